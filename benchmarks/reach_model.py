"""One model type: a small model of it, inputs that run, and every method on it."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from reach_methods import METHODS, VISION, WITHIN, Subject, decoding_error, floats, outputs, said, same, survey
from reach_types import Type, kind
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from unipelt.anatomy.examples import examples, first_that_runs
from unipelt.anatomy.find import find
from unipelt.language.report.diagnostics import PeltError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "anatomy"))

from shrunk import configurations

LARGEST = 150_000_000
#: What the finder says of feed-forward layers that are experts alone.
_OF_EXPERTS = "its projections are those of experts"
#: Passes that are tried of a text with a picture, or with a sound.
_PICTURED = 12
_PICTURES = ("pixel_values", "pixel_values_videos", "pixel_values_images")
_SOUNDS = ("input_features", "input_values")


class Attention(TorchDispatchMode):
    """Whether a softmax over tokens is computed: torch's own attention, or a softmax of a square or of heads."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name.startswith("_scaled_dot_product"):
            self.seen = True
        if name == "_softmax":
            shape = args[0].shape
            self.seen |= len(shape) >= 4 or (len(shape) == 3 and shape[-1] == shape[-2])
        return func(*args, **(kwargs or {}))


def surveyed(found: Type) -> dict[str, Any]:
    """The record of a type."""
    warnings.simplefilter("ignore")
    record: dict[str, Any] = {"class": found.cls, "task": found.task, "kind": kind(found)}
    if found.built is None:
        return {**record, "unbuilt": "this installation has no such class"}
    try:
        model, config, inputs = built_and_run(found)
    except NotRun as e:
        return {**record, "not run": str(e)}
    except NotBuilt as e:
        return {**record, "unbuilt": str(e)}
    try:
        meta = _built(found, config, "meta")
    except Exception as e:
        meta, record["not on meta"] = None, said(e)
    with suppress(Exception):  # a model may change itself in its first pass, as the one with weights has
        meta(**{n: v.to("meta") if isinstance(v, torch.Tensor) else v for n, v in inputs.items()})
    record |= {"parameters": sum(p.numel() for p in model.parameters()), "inputs": sorted(inputs)}
    base = outputs(model, inputs)
    if not same(outputs(model, inputs), base):
        return {**record, "not run": "two passes of the base differ"}
    with Attention() as seen:
        outputs(model, inputs)
    record["softmax attention"] = seen.seen
    record["biases"] = any(n.endswith("bias") for n, _ in model.named_parameters())
    beside = _beside(model) if record["kind"] == "multimodal" else None
    record |= {"picture": sorted(beside)} if beside is not None else {}
    decodes = _decodes(found, model, inputs, record)
    subject = seeing = Subject(model, meta, inputs, base, decodes, seen.seen)
    if beside is not None:
        seeing = Subject(model, meta, beside, outputs(model, beside), None, True)
    left = senseless(model, seeing.inputs)
    record |= {"left out": left} if left else {}
    # Every parameter is asked for a change by what trains them all, so that needs every tower.
    record["methods"] = {n: survey(seeing if n == "bitfit" else subject, n).record() for n in METHODS if n not in left}
    if beside is not None and set(beside) & set(_PICTURES):
        record["methods"][VISION] = survey(seeing, "lora", at="vision.attn.q, vision.attn.v").record()
    return record


def senseless(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, str]:
    """The methods that mean nothing on a model that has what they ask for by name, and why: by facts, not by what is refused."""
    found: dict[str, str] = {}
    biases = {n: p for n, p in model.named_parameters() if n.endswith("bias")}
    if biases and not _learns(model, inputs, list(biases.values())):
        last = ", ".join(sorted({n.rpartition(".")[2] for n in biases}))
        found["bitfit"] = f"the output has no gradient by any of its {len(biases)} biases ({last})"
    sites = find(model)
    if not sites.named("ffn.hidden") and (why := sites.refused.get("ffn.down", "")).startswith(_OF_EXPERTS):
        found["ia3"] = f"no inner activation is every token's: {why}"
    return found


def _learns(model: nn.Module, inputs: Mapping[str, Any], chosen: list[nn.Parameter]) -> bool:
    """Whether the output has a gradient by some of these parameters."""
    try:
        for p in chosen:
            p.requires_grad_(True)
        torch.manual_seed(1)
        total = sum(
            (t.double() * torch.rand_like(t.double())).sum() for t in floats(model(**inputs)) if t.requires_grad
        )
        if not isinstance(total, torch.Tensor):
            return False
        return any(g is not None and bool(g.any()) for g in torch.autograd.grad(total, chosen, allow_unused=True))
    except Exception:
        return True  # it cannot be told: the method counts
    finally:
        for p in chosen:
            p.requires_grad_(False)


class NotBuilt(Exception):
    """No small model of the type is built."""


class NotRun(Exception):
    """A small model is built, and no inputs run through it."""


def built_and_run(found: Type) -> tuple[nn.Module, Any, dict[str, Any]]:
    """The first small model of a type that runs, its configuration, and inputs that run."""
    built = ran = ""
    for config in configurations(found.name):
        try:
            model = _built(found, config, "cpu")
        except Exception as e:
            built = built or said(e)
            continue
        try:
            inputs = first_that_runs(model, run=lambda i, m=model: _finite(m, i))[0]
        except PeltError as e:
            ran = ran or said(e)
            continue
        if same(outputs(model, shifted(inputs)), outputs(model, inputs)):
            settle(model, inputs)
        return model, config, inputs
    raise NotRun(ran) if ran else NotBuilt(built or "no configuration passes its checks")


def shifted(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Other pictures and sounds."""
    return {n: v + 1 if isinstance(v, torch.Tensor) and v.is_floating_point() else v for n, v in inputs.items()}


def settle(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Batch norms take the statistics of what passes. With those of no data, nothing of a picture is left behind some forty random layers."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    before = [m.momentum for m in norms]
    for m in norms:
        m.momentum, m.training = 1.0, True
    try:
        outputs(model, inputs)
    except ValueError:  # of one number for each channel there are no statistics
        for m in norms:
            m.reset_running_stats()
    for m, momentum in zip(norms, before, strict=True):
        m.momentum, m.training = momentum, False


def _built(found: Type, config: Any, device: str) -> nn.Module:
    config = copy.deepcopy(config)
    with torch.device("meta"):
        size = sum(p.numel() for p in found.built(copy.deepcopy(config)).parameters())
    if size > LARGEST:
        raise ValueError(f"its smallest configuration here has {size:,} parameters")
    torch.manual_seed(0)
    with torch.device(device):
        model = (
            found.built(config).eval().requires_grad_(False)
        )  # torch takes other kernels where gradients are asked for
    for p in (*model.parameters(), *_kept_buffers(model)):
        if p.dim() > 1 and p.is_floating_point() and not p.is_meta and not p.any():
            p.normal_(0.0, 0.02)  # a map or a codebook that starts at zero is not zero once it was trained
    return model


def _kept_buffers(model: nn.Module) -> list[torch.Tensor]:
    """The buffers that are stored with a model's weights."""
    stored = model.state_dict().keys()
    return [b for n, b in model.named_buffers() if n in stored]


def _finite(model: nn.Module, inputs: Mapping[str, Any]) -> None:
    found = outputs(model, inputs)
    if not found or not all(bool(torch.isfinite(t).all()) for t in found[:1]):
        raise ValueError("the output is not finite")


def _decodes(found: Type, model: Any, inputs: Mapping[str, Any], record: dict[str, Any]) -> torch.Tensor | None:
    """Ids to decode, where the base's own cache gives what one pass gives."""
    if not found.generates or "input_ids" not in inputs or set(inputs) & set(_PICTURES):
        return None
    ids = next((g["input_ids"] for g in examples(model, tokens=7) if g.keys() == inputs.keys()), None)
    if ids is None:
        return None
    try:
        error = decoding_error(model, ids)
    except Exception as e:
        record["base's cache"] = said(e)
        return None
    if error > WITHIN:
        record["base's cache"] = f"off by {error:.1e} of the largest logit"
        return None
    return ids


def _beside(model: nn.Module) -> Mapping[str, Any] | None:
    """Inputs with a picture that run, else with a sound, of which the output depends; those with text first."""

    def counts(inputs: Mapping[str, Any]) -> None:
        _finite(model, inputs)
        if same(outputs(model, shifted(inputs)), outputs(model, inputs)):
            raise ValueError("the output is the same for another picture")

    for names in (_PICTURES, _SOUNDS):
        guesses = [g for g in islice(examples(model), 80) if set(g) & set(names)]
        guesses.sort(key=lambda g: "input_ids" not in g)
        with suppress(PeltError):
            return first_that_runs(model, guesses[:_PICTURED], run=counts)[0]
    return None
