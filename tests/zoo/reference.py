"""What the methods of the library are compared with, and the means to compare: see `refs_*.py`.

A reference is other code for the same function: live peft, a recording of another library, the published formula
evaluated by hand, or a published number of parameters. Each returns how far the two are apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import peft
import small
import torch
from names import name as named
from torch import nn

import unipelt
from unipelt.runtime.edits import Edit
from unipelt.runtime.registry import record

By = Literal["peft", "recording", "formula", "count"]
#: How far a method and its reference may be apart: float32 with other orders of sums (peft, recordings), float64 (formulas), or not.
WITHIN: dict[By, float] = {"peft": 1e-5, "recording": 2e-5, "formula": 1e-9, "count": 0.0}


@dataclass(frozen=True)
class Reference:
    """How a method was verified: by what, against what (a short text for the table), and the comparison."""

    method: str
    by: By
    against: str
    measure: Callable[[], float]


REFERENCES: list[Reference] = []


def reference(*methods: str, by: By, against: str) -> Callable[[Callable[[], float]], Callable[[], float]]:
    """Notes that a function compares these methods with something; it returns the largest difference."""

    def add(measure: Callable[[], float]) -> Callable[[], float]:
        REFERENCES.extend(Reference(m, by, against, measure) for m in methods)
        return measure

    return add


@dataclass
class Seen:
    """What one edit met in a pass: h before and after, what it read, and the row's tensors by their short names."""

    site: str
    layer: int | None
    row: str
    h: torch.Tensor
    out: torch.Tensor
    x: torch.Tensor | None = None
    given: dict[str, Any] = field(default_factory=dict)  # everything else in scope: q, residual, scale, log_mass …
    t: dict[str, torch.Tensor] = field(default_factory=dict)
    mask: torch.Tensor | None = None
    W: torch.Tensor | None = None  # [d_in, d_out] of the base's map, where the site is one
    bias: torch.Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        """A tensor of the row, or what is in scope, by its name: ``s.A``, ``s.q``."""
        found = {**self.__dict__.get("given", {}), **self.__dict__.get("t", {})}
        if name not in found:
            raise AttributeError(name)
        return found[name]


def library(name: str, **arguments: Any) -> unipelt.Method:
    """A method of the library, with arguments."""
    found = unipelt.load(named(name))
    return found(**arguments) if arguments else found


@contextmanager
def watched(model: nn.Module) -> Iterator[list[Seen]]:
    """What every edit of a model meets while this is open."""
    found: list[Seen] = []
    edits = [m for m in model.modules() if isinstance(m, Edit)]

    def watch(edit: Edit) -> None:
        forward = edit.forward

        def seeing(h: torch.Tensor, given: Mapping[str, Any], mask: Any = None, want: str = "h") -> Any:
            out = forward(h, given, mask, want)
            yielded = out[0] if isinstance(out, tuple) else out
            others = {n: v for n, v in given.items() if n != "x"}
            W, bias = _map(model, edit)
            found.append(Seen(edit.site.name, edit.site.layer, edit.row.name, h.detach(), yielded.detach(), given.get("x"), others,
                              {n: t.detach() for n, t in edit.tensors().items()}, mask, W, bias))  # fmt: skip
            return out

        edit.forward = seeing  # type: ignore[method-assign]

    for e in edits:
        watch(e)
    try:
        yield found
    finally:
        for e in edits:
            del e.__dict__["forward"]


def _map(model: nn.Module, edit: Edit) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    from unipelt.anatomy.columns import taken
    from unipelt.anatomy.matrices import as_map

    try:
        module = model.get_submodule(edit.site.view.module)
    except AttributeError:
        return None, None
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or not edit.site.kind.has_weight:
        return None, None
    bias = getattr(module, "bias", None)
    W = taken(as_map(module, weight.detach()), edit.columns)
    return W, W.new_zeros(W.shape[-1]) if bias is None else taken(bias.detach(), edit.columns)


def randomised(
    method: unipelt.Method, kind: str = "llama", scale: float = 0.3, seed: int = 1, **more: Any
) -> nn.Module:
    """A small model in float64 that has the method, with its trained tensors moved at random; ``more`` goes to `unipelt.apply`."""
    model = small.model(kind, dtype=torch.float64)
    unipelt.apply(model, method, **more)
    small.randomise(model, seed=seed, scale=scale)
    return model


def run(
    method: unipelt.Method, kind: str = "llama", scale: float = 0.3, seed: int = 1, inputs: Mapping[str, torch.Tensor] | None = None,
    **more: Any,
) -> list[Seen]:  # fmt: skip
    """A pass of a small model in float64 with the method's trained tensors moved at random, and what every edit met.

    ``kind``: see `small.model` (``bert``, ``bert_labels``, ``gpt2``, ``llama``); ``more`` goes to `unipelt.apply`.
    """
    base = small.output(small.model(kind, dtype=torch.float64))
    model = randomised(method, kind, scale, seed, allow_future=True, **more)
    with watched(model) as found:
        after = small.output(model, **dict(inputs or {}))
    assert found, "the method edits nothing here"
    assert after.shape != base.shape or float((after - base).abs().max()) > 1e-4, "the method does nothing here"
    return found


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest difference, as a share of the largest entry."""
    assert ours.shape == theirs.shape, f"{list(ours.shape)} and {list(theirs.shape)}"
    ours, theirs = ours.detach(), theirs.detach()
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12))


def by_formula(
    method: unipelt.Method, formula: Callable[[Seen], torch.Tensor], kind: str = "llama", **more: Any
) -> float:
    """How far every edit's new h is from what the formula makes of what the edit met; see `run`."""
    return max(apart(s.out, formula(s)) for s in run(method, kind, **more))


# ---------------------------------------------------------------- numbers of parameters


class Counted(Exception):
    """How far two numbers of trained parameters are apart, from a comparison that was asked for them alone."""


_counting = False


def compare_counts(ours: Iterable[torch.Tensor], theirs: Iterable[torch.Tensor]) -> None:
    """In a comparison, before tensors are filled: ends it where only numbers are asked for (see `count_of`)."""
    if _counting:
        raise Counted(abs(sum(t.numel() for t in ours) - sum(t.numel() for t in theirs)))


def count_of(measure: Callable[[], float]) -> float:
    """How far the numbers of trained parameters are apart that a comparison meets (`beside_peft`, `by_recording`)."""
    global _counting
    _counting = True
    try:
        measure()
    except Counted as e:
        return float(e.args[0])
    finally:
        _counting = False
    raise AssertionError("this comparison counts nothing")


# ---------------------------------------------------------------- live peft


def beside_peft(
    method: unipelt.Method, config: peft.PeftConfig, into: Callable[[str, dict[str, torch.Tensor]], torch.Tensor], kind: str = "llama",
    scale: float = 0.2, frozen: bool = False, prepare: Callable[[nn.Module], None] | None = None,
    fixed: Callable[[str, nn.Module], torch.Tensor] | None = None, base: nn.Module | None = None,
    alter: Callable[[nn.Module], None] = lambda model: None, **more: Any,
) -> float:  # fmt: skip
    """How far the outputs and the gradients of ours and of live peft are apart, with peft's tensors moved at random.

    ``into(name, theirs)`` gives the value of our trained tensor of that full name (as in `unipelt.state_dict`) from all of peft's
    tensors by theirs; with ``frozen`` that of our frozen draws too, which ``fixed(name, peft's model)`` gives where no tensor
    of its state has them. ``base`` is the model that peft is given, as it has prepared it. ``alter`` changes both bases
    before anything is attached, ``prepare`` changes peft's model before anything is compared. The gradients of ours are compared by what
    they are after the same move: a step down the gradient of each side is taken and the outputs compared again.
    """
    base = small.model(kind) if base is None else base
    alter(base)
    theirs = peft.get_peft_model(base, config).eval()
    if prepare is not None:
        prepare(theirs)
    g = torch.Generator().manual_seed(3)
    trained = {n: p for n, p in theirs.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for n in sorted(trained):
            trained[n].add_(torch.randn(trained[n].shape, generator=g) * scale)
    model = small.model(kind)
    alter(model)
    unipelt.apply(model, method, allow_future=True, **more)
    compare_counts(record(model, "default").trained().values(), trained.values())
    model.eval()
    for n, t in record(model, "default").values().items() if fixed is not None else ():
        if not isinstance(t, nn.Parameter):
            t.copy_(fixed(n, theirs))
    worst = 0.0
    for step in range(2):
        own = record(model, "default").trained()
        with torch.no_grad():
            if step == 0:
                state = {n: t.detach().clone() for n, t in (*theirs.named_parameters(), *theirs.named_buffers())}
                for n, p in (unipelt.state_dict(model) if frozen else own).items():
                    p.copy_(into(n, state))
        given = small.inputs(padded=False)
        out, expected = model(**given)[0], theirs(**given)[0]
        worst = max(worst, apart(out.detach(), expected.detach()))
        if step == 0:
            weights = torch.randn(out.shape, generator=g)
            (out * weights).sum().backward()
            (expected * weights).sum().backward()
            largest = max(float(p.grad.abs().max()) for p in trained.values() if p.grad is not None)
            with torch.no_grad():
                for p in (*own.values(), *trained.values()):
                    if p.grad is not None:
                        p.sub_(p.grad * (0.1 / largest))
    return worst
