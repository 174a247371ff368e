"""What a method must do on one model: planned on meta, applied with weights, seen in the output, and taken back bit for bit."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

import unipelt
from unipelt.anatomy.modules import place_of
from unipelt.anatomy.sizes import weight_shape
from unipelt.language.report.diagnostics import PeltError

NAME = "reach"
#: Small sizes of the methods' own, so that tiny models serve.
METHODS: Mapping[str, Mapping[str, Any]] = {
    "lora": {"r": 4}, "adapter": {"r": 4}, "prefix_tuning": {"l": 3}, "bitfit": {}, "mam": {"l": 3, "r": 4, "mid": 8},
    "unipelt": {"ra": 4, "l": 3, "rl": 4, "mid": 8}, "prompt_tuning": {"l": 3}, "ia3": {},
}  # fmt: skip
VISION = "lora, vision tower"
#: Where there is no attention, the same method stands at what mixes tokens, or at the feed-forward layers.
_ELSEWHERE: Mapping[str, Sequence[str]] = {
    "lora": ("mixer.in, mixer.out", "ffn.up, ffn.down"),
    "adapter": ("mixer, ffn", "mixer", "ffn"),
}
STEPS, WITHIN = 3, 1e-4
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)
#: Linear maps, or norms, that a network without sublayers is adapted at.
MOST = 12


@dataclass
class Found:
    """What was found of one method on one model. ``holds``: the checks that hold; ``skipped``: those that say nothing here."""

    at: str = ""
    trained: int = 0
    holds: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)
    crashed: dict[str, str] = field(default_factory=dict)

    def check(self, name: str, right: bool, why: str = "") -> None:
        if right:
            self.holds.append(name)
        else:
            self.wrong[name] = why

    def tried(self, name: str, do: Callable[[], Any]) -> Any:
        """What ``do`` yields, or None with the reason kept: a refusal, or anything else that is raised."""
        try:
            return do()
        except PeltError as e:
            self.refused[name] = said(e)
        except Exception as e:
            place = traceback.extract_tb(e.__traceback__)[-1]
            self.crashed[name] = f"{said(e)} ({place.filename.rpartition('/')[2]}:{place.lineno})"
        return None

    def record(self) -> dict[str, Any] | str:
        """A line where everything holds."""
        front = f"at {self.at}: " if self.at else ""
        if self.refused or self.wrong or self.crashed:
            return {k: v for k, v in vars(self).items() if v}
        return front + ", ".join([*self.holds, *(f"{n} left out ({w})" for n, w in self.skipped.items())])


def said(e: Exception) -> str:
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    if isinstance(e, PeltError):
        notes = [line for line in lines[1:] if line.startswith("= ") and "help" not in line[:8]]
        return " ".join([lines[0], *notes])[:400]
    return f"{type(e).__name__}: {lines[0] if lines else ''}"[:240]


def works(record: Any) -> bool:
    return isinstance(record, str)


# ---------------------------------------------------------------- passes


def floats(out: Any) -> list[torch.Tensor]:
    """Everything with a fraction that a model yields, without its caches."""
    if isinstance(out, torch.Tensor):
        return [out] if out.is_floating_point() else []
    if isinstance(out, Mapping):
        return [t for n, v in out.items() if "past" not in n and "cache" not in n for t in floats(v)]
    return [t for v in out for t in floats(v)] if isinstance(out, (list, tuple)) else []


def outputs(model: nn.Module, inputs: Mapping[str, Any]) -> list[torch.Tensor]:
    torch.manual_seed(1)  # some models draw numbers in evaluation mode, too
    with torch.no_grad():
        return [t.clone() for t in floats(model(**inputs))]


def same(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def apart(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> float:
    """The largest difference, as a share of the largest number."""
    if len(a) != len(b) or any(x.shape != y.shape for x, y in zip(a, b, strict=True)):
        return float("inf")
    return max(
        (float((x - y).abs().max() / y.abs().max().clamp_min(1e-30)) for x, y in zip(a, b, strict=True) if y.numel()),
        default=0.0,
    )


class Forced:
    """Tokens that a generation takes, whatever it would choose."""

    def __init__(self, ids: torch.Tensor) -> None:
        self.ids = ids

    def __call__(self, so_far: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        wanted = self.ids[:, so_far.shape[1]]
        return torch.full_like(scores, float("-inf")).scatter(1, wanted[:, None], 0.0)


def decoding_error(model: Any, ids: torch.Tensor) -> float:
    """How far logits with a cache, a token at a time, are from those of one pass over all tokens."""
    start = ids[:, :-STEPS]
    torch.manual_seed(1)
    with torch.no_grad():
        made = model.generate(
            input_ids=start, attention_mask=torch.ones_like(start), max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False, num_beams=1,
            use_cache=True, logits_processor=[Forced(ids)], output_logits=True, return_dict_in_generate=True, pad_token_id=0,
        )  # fmt: skip
        whole = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[:, -STEPS - 1 : -1]
    return apart([torch.stack(made.logits, 1).float()], [whole.float()])


# ---------------------------------------------------------------- one method


@dataclass
class Subject:
    """A model with weights, its like on meta, inputs that run, and what the base yields for them."""

    model: nn.Module
    meta: nn.Module | None
    inputs: Mapping[str, Any]
    base: Sequence[torch.Tensor]
    decodes: torch.Tensor | None  # ids, where the base's own cache is exact
    attends: bool


def _method(name: str, at: str, causal: bool) -> Any:
    loaded = name
    if name == "unipelt":
        loaded = "unipelt_apl_causal" if causal else "unipelt_apl"
    if name == "adapter" and at:
        return unipelt.parse(f"method there(r: int = 4) from adapter(r) {{ modify {at} }}")
    return unipelt.load(loaded, arguments={**METHODS[name], **({"at": f"[{at}]"} if at else {})})


def _planned(model: nn.Module, name: str, at: str) -> tuple[Any, Any]:
    """The method, its causal twin where the model's tokens must see no later ones, and its plan."""
    try:
        method = _method(name, at, causal=False)
        return method, unipelt.plan(model, method, head=False)
    except PeltError as e:
        if name != "unipelt" or "E0530" not in str(e):
            raise
    method = _method(name, at, causal=True)
    return method, unipelt.plan(model, method, head=False)


def survey(subject: Subject, name: str, at: str = "") -> Found:
    """Every check of a method on a model. Elsewhere than at attention where the model has none."""
    found = _survey(subject, name, at)
    if found.refused and not at and not subject.attends:
        inside = {"lora": _maps, "adapter": _norms}
        for other in (*_ELSEWHERE.get(name, ()), *(inside[name](subject.model) if name in inside else ())):
            again = _survey(subject, name, other)
            if not again.refused:
                return again
            found.refused |= {f"{check} at {other}": why for check, why in again.refused.items()}
    return found


def _maps(model: nn.Module) -> tuple[str, ...]:
    """The linear maps of a network without sublayers, as `module("…")` names them: convolutions of one position, mostly."""
    found = [
        n for n, m in model.named_modules() if n and weight_shape(m) is not None and not place_of(model, n).refused
    ]
    return _named(found)


def _norms(model: nn.Module) -> tuple[str, ...]:
    """The norms of a network without sublayers: what leaves them has the channels of each position."""
    return _named([n for n, m in model.named_modules() if isinstance(m, _NORMS) and not place_of(model, n).refused])


def _named(found: Sequence[str]) -> tuple[str, ...]:
    """The first of these modules as one site, `module("…")`; nothing where all of them are the head's."""
    inside = [n for n in found if n.count(".") > 1][:MOST]  # not the head
    return (f'module("{"|".join(n.replace(".", "[.]") for n in inside)}")',) if inside else ()


def _survey(subject: Subject, name: str, at: str) -> Found:
    found, model = Found(at), subject.model
    planned = found.tried("plan", lambda: _planned(model, name, at))
    if planned is None:
        return found
    method, plan = planned
    found.trained = plan.counts.trained
    on_meta(found, subject, name, at, plan)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    if found.tried("apply", lambda: unipelt.apply(model, method, name=NAME, seed=0, head=False)) is None:
        return found
    found.holds.append("apply")
    found.tried("pass", lambda: _passes(found, subject, plan))
    with suppress(PeltError):
        unipelt.unmerge(model)
    found.tried("remove", lambda: unipelt.remove(model, NAME))
    after = model.state_dict()
    kept = after.keys() == before.keys() and all(torch.equal(after[n], t) for n, t in before.items())
    back = found.tried("pass after remove", lambda: outputs(model, subject.inputs))
    found.check("removed", kept and back is not None and same(back, subject.base), "the base is not as it was")
    return found


def on_meta(found: Found, subject: Subject, name: str, at: str, plan: Any) -> None:
    """The plan without weights, which must name the same places."""
    if subject.meta is None:
        found.skipped["meta"] = "not built there"
        return
    bare = found.tried("plan on meta", lambda: _planned(subject.meta, name, at)[1])
    if bare is not None:
        mine, theirs = places(plan), places(bare)
        found.check(
            "meta", mine == theirs, f"{len(theirs - mine)} places only on meta, {len(mine - theirs)} only with weights"
        )


def places(plan: Any) -> set[tuple[str, str, Any]]:
    return {(e.site.label, e.site.view.module, e.site.view.columns) for e in plan.edits} | {
        ("", c.name, None) for c in plan.copies
    }


def _passes(found: Found, subject: Subject, plan: Any) -> None:
    model = subject.model
    drawn = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for group in unipelt.parameter_groups(model, NAME, 1e-3):
            for p in group["params"]:
                p.add_(torch.randn(p.shape, generator=drawn) * 0.3)
    now = outputs(model, subject.inputs)
    moved = any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(now, subject.base, strict=False))
    found.check("changes", moved, "the output is the base's with other tensors")
    with unipelt.disabled(model):
        off = outputs(model, subject.inputs)
    found.check("disabled", same(off, subject.base), "the base is not seen")
    if subject.decodes is not None:
        verdict = plan.properties["cache-consistent"]
        if verdict != "yes":
            found.skipped["cache"] = verdict.partition(":")[0]
        else:
            error = decoding_error(model, subject.decodes)
            found.check("cache", error <= WITHIN, f"off by {error:.1e} of the largest logit")
    if plan.properties["mergeable"] == "yes":
        try:
            unipelt.merge(model, NAME)
        except PeltError as e:
            found.skipped["merged"] = said(e)
            return
        error, limit = apart(outputs(model, subject.inputs), now), WITHIN
        unipelt.unmerge(model)
        if error > limit:  # what is rounded may grow from layer to layer
            error, limit = _merged_in_double(subject), WITHIN**2
        found.check("merged", error <= limit, f"off by {error:.1e} of the largest number in float64")


def _merged_in_double(subject: Subject) -> float:
    model = copy.deepcopy(subject.model).double()
    inputs = {
        n: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for n, v in subject.inputs.items()
    }
    now = outputs(model, inputs)
    unipelt.merge(model, NAME)
    return apart(outputs(model, inputs), now)
