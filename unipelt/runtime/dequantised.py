"""A model with quantised weights as a plain one: the numbers that its codes stand for, under the names that the plain model has."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..anatomy.base import NAME, base_modules, children
from ..anatomy.interrupts import ended_by
from ..anatomy.matrices import matrix, stored_as_map
from ..anatomy.quantised import is_quantised, plain_dtype, unreadable, values, without_weight
from ..compiler.hosting import Parameter
from ..compiler.trained import parameters_of
from ..language.report.diagnostics import error


class Codes(NamedTuple):
    """Of maps that keep codes and no weight: the names of the codes in a state dict, and of the weights that the plain model stores turned over."""

    names: Set[str]
    turned: Set[str]


@contextmanager
def with_weights(model: nn.Module) -> Iterator[Codes]:
    """Inside, maps that keep codes and no weight (GPTQ's, AWQ's) have a weight, and a bias if any, as torch's linear maps have them.

    `PeltError` (E0565) where a map's values cannot be computed.
    """
    coded = {n: m for n, m in base_modules(model) if without_weight(m) is not None}
    biases = {n: b for n, m in coded.items() if (b := m._buffers.get("bias")) is not None}
    turned = _turned(model, coded) if coded else frozenset()

    def end() -> None:
        for n, m in coded.items():
            m._parameters.pop("weight", None)
            if n in biases:
                m._parameters.pop("bias", None)
                m._buffers["bias"] = biases[n]

    with ended_by(end):
        for n, m in coded.items():
            m._parameters["weight"] = nn.Parameter(matrix(m).T.contiguous(), requires_grad=False)
            if n in biases:
                m._buffers.pop("bias")
                m._parameters["bias"] = nn.Parameter(biases[n].clone(), requires_grad=False)
        yield Codes(frozenset(f"{n}.{b}" for n, m in coded.items() for b in m._buffers), turned)


def _turned(model: Any, coded: Mapping[str, nn.Module]) -> frozenset[str]:
    """The weights that the model as its class builds it, without codes, stores as [d_in, d_out]."""
    config = copy.deepcopy(model.config)
    for part in _configurations(config):
        vars(part).pop("quantization_config", None)
    try:
        with torch.device("meta"):
            plain = type(model)(config)
        return frozenset(f"{n}.weight" for n in coded if stored_as_map(plain.get_submodule(n)))
    except Exception:  # noqa: BLE001 - of foreign code
        name, module = next(iter(coded.items()))
        raise error("E0565", f"the weight of `{name}`, a {type(module).__name__}, is quantised, and a {type(model).__name__} without codes cannot be built "
                    "here, which would tell how it stores it", help="load the base without quantisation, attach the adapter, and merge it there") from None  # fmt: skip


def plain_state(model: nn.Module, unwritten: Mapping[str, torch.Tensor], codes: Codes) -> dict[str, torch.Tensor]:
    """The base's tensors by name, but for the ``codes``, those that parameters hold dequantised; ``unwritten`` are values that take the
    place of quantised parameters.

    What a library keeps beside its codes is left out. A parameter of several modules is one tensor under all of its names.
    """
    found = _coded(model)
    coded = {m for p in found for m, _ in p.uses}
    # What lives in the model under the reserved name is the adapter, now inactive; the rest is the base.
    if found:
        state: dict[str, Any] = {}
        _collect(model, "", {id(model.get_submodule(m)) for m in coded}, state)
    else:
        state = {n: t for n, t in model.state_dict().items() if NAME not in n.split(".")}
    for p in found:
        own = model.get_parameter(p.path)
        path, _, attribute = p.path.rpartition(".")
        host = model.get_submodule(path)
        if own.is_meta:
            raise unreadable(host, attribute)
        t = unwritten[p.path] if p.path in unwritten else values(host, attribute, own)
        t = t.detach().to(plain_dtype(model, own))
        # A library may have turned the weights of such maps over when it took their place.
        turned = t.dim() == 2 and getattr(getattr(host, "source_cls", None), "__name__", "") == "Conv1D"
        t = (t.T if turned else t).contiguous()
        state |= {f"{m}.{a}" if m else a: t for m, a in p.uses}
    return {n: t.T.contiguous() if n in codes.turned else t for n, t in state.items() if n not in codes.names}


def _collect(module: nn.Module, prefix: str, coded: set[int], into: dict[str, Any]) -> None:
    """The entries of a state dict, but of modules with codes their plain parameters alone: asked for its state, a library may store its
    codes otherwise, for good."""
    if id(module) in coded:
        into |= {
            f"{prefix}{n}": p.detach() for n, p in module._parameters.items() if p is not None and not is_quantised(p)
        }
    else:
        module._save_to_state_dict(into, prefix, False)
    for n, m in children(module).items():
        _collect(m, f"{prefix}{n}.", coded, into)


@contextmanager
def without_quantiser(model: Any) -> Iterator[None]:
    """The model as transformers sees a plain one, for as long as its weights are written. Its configuration, which must be its own, says
    nothing of codes afterwards, either."""
    for config in _configurations(model.config):
        vars(config).pop("quantization_config", None)
    if _untied(model):
        model.config.tie_word_embeddings = False
    kept = {n: vars(model)[n] for n in ("hf_quantizer", "_weight_conversions") if n in vars(model)}
    try:
        if kept.get("hf_quantizer") is not None:
            model.hf_quantizer = None
            if (conversions := kept.get("_weight_conversions")) is not None:
                model._weight_conversions = [c for c in conversions if _reversible(c)]
        yield
    finally:
        for n, v in kept.items():
            setattr(model, n, v)


def _configurations(config: Any) -> Iterator[Any]:
    yield config
    for part in list(vars(config).values()):
        if hasattr(part, "to_dict") and hasattr(part, "model_type"):
            yield from _configurations(part)


def _untied(model: Any) -> bool:
    """Whether a library's codes have taken the place of one of two weights that were one."""
    if not getattr(model.config, "tie_word_embeddings", False) or not _coded(model):
        return False
    tables = [getattr(m(), "weight", None) for m in (model.get_input_embeddings, model.get_output_embeddings)]
    a, b = (t if isinstance(t, torch.Tensor) else None for t in tables)
    return a is not None and b is not None and a is not b and (is_quantised(a) or is_quantised(b))


def _coded(model: nn.Module) -> list[Parameter]:
    return [p for p in parameters_of(model).values() if is_quantised(model.get_parameter(p.path))]


def _reversible(conversion: Any) -> bool:
    """Whether a change of names or shapes on loading has one back; those that read codes have none, and none is needed."""
    try:
        copy.deepcopy(conversion).reverse_transform()
    except (NotImplementedError, ValueError):
        return False
    return True


class Sizes(NamedTuple):
    """How many weights of a folder are dequantised; bytes of its weights, and of the quantised base's in memory."""

    weights: int
    folder_bytes: int
    base_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.weights} weights were quantised and are written as the numbers that their codes stand for: "
            f"{_readable(self.folder_bytes)}, {self.folder_bytes / max(1, self.base_bytes):.1f} times the quantised base ({_readable(self.base_bytes)})"
        )


def sizes_of(model: nn.Module, folder: str | Path) -> Sizes | None:
    """The sizes of a folder that `save_merged` wrote and of the base in memory; None where nothing of it is quantised."""
    coded = len(_coded(model)) + sum(without_weight(m) is not None for _, m in base_modules(model))
    if not coded:
        return None
    written = sum(f.stat().st_size for f in Path(folder).glob("*.safetensors"))
    kept = {
        id(t): _bytes(t)
        for _, m in base_modules(model)
        for t in (*m._parameters.values(), *m._buffers.values())
        if t is not None
    }
    return Sizes(coded, written, sum(kept.values()))


def _bytes(t: Any) -> int:
    """Those of a tensor and of the scales that stand beside its codes; of one that is made of others, theirs."""
    if hasattr(t, "__tensor_flatten__"):
        return sum(_bytes(getattr(t, n)) for n in t.__tensor_flatten__()[0])
    beside = (getattr(t, "SCB", None), *_scales(getattr(t, "quant_state", None)))
    return t.numel() * t.element_size() + sum(
        s.numel() * s.element_size() for s in beside if isinstance(s, torch.Tensor)
    )


def _scales(state: Any) -> list[Any]:
    """Scales of 4-bit codes; they may be codes with scales themselves."""
    return [] if state is None else [getattr(state, "absmax", None), *_scales(getattr(state, "state2", None))]


def _readable(n: float) -> str:
    unit, size = next(((u, s) for u, s in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)) if n >= s), ("bytes", 1))
    return f"{n / size:.3g} {unit}"
