"""Adapters as GGUF files, which llama.cpp and its like load beside a base: LoRA alone, at the maps that the format has a name for."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import tempfile
import tomllib
import warnings
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from os.path import exists
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..language.files import part_prefix, reason
from ..language.report.diagnostics import PeltError, error, near
from ..resources import folder
from ..runtime.registry import record, unwrapped
from . import folders
from .declared import REFUSED, by_factors, declared_for
from .factors import Tick
from .peft_factors import AsLora, export_as_lora
from .peft_out import export_peft
from .places import FRONT

FILE, INSTALL = "gguf.toml", "pip install 'unipelt[gguf]'"


@lru_cache(maxsize=1)
def architectures() -> dict[str, dict[str, Any]]:
    """The models of ``specs/gguf.toml`` by their type."""
    return tomllib.loads((folder("specs") / FILE).read_text(encoding="utf-8"))


def export_gguf(
    model: nn.Module, path: str | Path, name: str = "default", *, as_lora: bool = False, rank: int | None = None,
    tick: Tick = lambda done, total: None,
) -> AsLora | None:  # fmt: skip
    """Writes an attached LoRA as a GGUF file, in float32: ``llama-cli -m base.gguf --lora path``.

    The factors are the adapter's own; with ``as_lora`` they are those of any method that merges, in ``rank`` (`export_as_lora`, whose
    account of what is left out is returned). Rows of queries and keys are put into the order that the format has for the model.
    The file is whole or not there. Raises `PeltError` for a model that ``specs/gguf.toml`` does not list, for another method, for a
    trained head, norms or biases, and for maps that the format has no name for.
    """
    model = unwrapped(model)
    record(model, name)
    place = Path(path)
    check_place(place)
    arch, said = _architecture(model)
    with tempfile.TemporaryDirectory() as staging:  # what peft would read has all that is needed
        at = Path(staging) / "peft"
        made = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # notes on what peft makes of it
            try:
                if as_lora:
                    made = export_as_lora(model, at, name, rank=rank, tick=tick)
                else:
                    export_peft(model, at, name)
            except PeltError as e:
                raise _as_ours(e, as_lora) from None
        config, tensors = folders.read(at, folders.PEFT)
    problem = _problem(config)
    if problem is not None:
        raise _refused(problem, "" if as_lora else _factors())
    alpha, factors = _scaled(config, tensors)
    _write(place, said, alpha, _named(model, arch, said, factors))
    return made and replace(made, folder=place)


def check_place(place: Path) -> None:
    """Refuses a file that could not be written, or is there already."""
    if place.suffix != ".gguf":
        raise error("E0848", f"`{place.name}` does not end in `.gguf`", help="name the file so")
    if exists(place):
        raise error("E0611", f"`{place}` exists", help="name another file")
    if importlib.util.find_spec("gguf") is None:
        raise error("E0848", "writing GGUF needs the package gguf, not installed here", help=INSTALL)


def _refused(why: str, remedy: str = "") -> PeltError:
    remedy = remedy or "hand on the merged model: `unipelt merge`, which converters of whole models read"
    return error("E0848", f"the adapter cannot be written as a GGUF file: {why}", help=remedy)


def _as_ours(e: PeltError, as_lora: bool) -> PeltError:
    """What peft has no place for has none here."""
    said = e.diagnostics[0]
    if said.code != REFUSED:
        return e
    return _refused(said.message.partition("for peft: ")[2] or said.message, "" if as_lora else _factors())


def _factors() -> str:
    name = by_factors().name
    return f"where it merges, write what it does as two factors for each map: `--as {name} --rank 8`, or `as_lora=True`"


def _architecture(model: nn.Module) -> tuple[Any, dict[str, Any]]:
    import gguf

    kind = str(getattr(getattr(model, "config", None), "model_type", ""))
    known = architectures()
    if kind not in known:
        raise _refused(f"of a model of the type `{kind}` it is not known how the format has it",
                       near(kind, known) or f"it is known of {', '.join(known)}; or hand on the merged model: `unipelt merge`")  # fmt: skip
    said = known[kind]
    return next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == said["arch"]), said


def _problem(config: Mapping[str, Any]) -> str | None:
    if config.get("peft_type") != by_factors().type or config.get("use_dora"):
        return "it holds two factors for each map, and nothing else"
    if config.get("modules_to_save"):
        return f"the trained module `{config['modules_to_save'][0]}` has no place there"
    return "changes of biases have no place there" if config.get(by_factors().shift["setting"]) else None


def _scaled(
    config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> tuple[float, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """alpha, and by the path of a map its factors [r, in] and [out, r], whose product counts alpha / r times; maps of another scale
    have it in their second factor."""
    d, b = by_factors(), declared_for(config)
    down, up = (d.tensors[d.factors[n]][0] for n in ("down", "up"))
    paths = [k[len(FRONT) : -len(down) - 1] for k in tensors if k.endswith(f".{down}")]
    scales, found = {}, {}
    for path in paths:
        A, B = (tensors[f"{FRONT}{path}.{end}"].float() for end in (down, up))
        own = b.values(config, path)
        r, alpha = own[d.factors["rank"]], own[d.factors["scale"]]
        scales[path] = alpha / (r**0.5 if config.get("use_rslora") else r)
        found[path] = A, B
    alpha = scales[paths[0]] * len(found[paths[0]][0])
    return alpha, {
        p: (A, B if scales[p] == alpha / len(A) else B * (scales[p] * len(A) / alpha)) for p, (A, B) in found.items()
    }


def _named(
    model: nn.Module, arch: Any, said: Mapping[str, Any], factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """The tensors by the format's names."""
    import gguf

    config: Any = model.config
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    found = {}
    for path, (A, B) in factors.items():
        ours = names.get_name(path) or names.get_name(f"{getattr(model, 'base_model_prefix', '')}.{path}")
        if ours is None:
            raise _refused(f"the format has no name for `{path}`")
        if path == "lm_head" and getattr(config, "tie_word_embeddings", False):
            raise _refused("it edits `lm_head`, which is tied to the embeddings: the format stores that map once")
        heads = said.get("interleaved", {}).get(ours.rpartition(".")[2])
        found[f"{ours}.weight.lora_a"] = A
        found[f"{ours}.weight.lora_b"] = B if heads is None else interleaved(B, getattr(config, heads))
    return found


def interleaved(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """The rows [heads · d, …] of a map of queries or keys whose positions turn halves of a head, ordered so that they turn neighbours."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _write(place: Path, said: Mapping[str, Any], alpha: float, tensors: Mapping[str, torch.Tensor]) -> None:
    import gguf

    part = place.with_name(f"{part_prefix(place.name)}{secrets.token_hex(4)}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        writer = gguf.GGUFWriter(part, said["arch"])
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, by_factors().type.lower())
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        for n, t in tensors.items():
            writer.add_tensor(n, t.contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with open(part, "rb") as f:
            os.fsync(f.fileno())
        os.replace(part, place)
    except OSError as e:
        raise error("E0848", f"`{place}` could not be written: {reason(e)}", help="name another file") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
