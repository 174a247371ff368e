"""What is known of a method without running it: causal, mergeable, foldable – with the place that decides.

The facts come from the primitives' own rules (`primitives`, `infer`); here they are only read. No method has a name here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from .check import RowTyping, changes_length, check_method
from .ir import Method, Row
from .syntax import NOWHERE, Name, Span, walk
from .values import AFFINE

#: Sites whose edit can be absorbed, for each insertion the linear map that absorbs it (relative to the site's part).
#: A projection's output edit goes into the projection itself; a scaled hidden activation goes into `down`.
ABSORBED_BY_SITE = ("projection", "weight")
ABSORBED_SEQUENTIAL = {"attn": "attn.o", "cross": "cross.o", "ffn": "ffn.down", "ffn.hidden": "ffn.down"}

#: Words through which an expression reads other positions than its own.
POOLS = ("tokens", "positions", "running_mean")


@dataclass(frozen=True, slots=True)
class Verdict:
    value: Literal["yes", "no", "unknown"]
    reason: str
    span: Span = NOWHERE


def row_reads(row: Row) -> frozenset[str]:
    """The names a row's expressions mention."""
    parts: list = [row.insert, *row.form, *row.compose, *(row.gate or ())]
    return frozenset(n.id for p in parts if p is not None for n in walk(p) if isinstance(n, Name))


def causal(t: RowTyping) -> Verdict:
    """Whether position t of the edit sees no later position (for a model whose attention is causal)."""
    if t.out.future is not None:
        return Verdict("no", "this pools over the whole sequence, so every position sees the later ones", t.out.future)
    return Verdict("yes", "nothing reads another position of the sequence", t.row.span)


def padding_invariant(t: RowTyping) -> Verdict:
    if t.out.padding is not None:
        return Verdict("no", "pad positions take part here", t.out.padding)
    return Verdict("yes", "pad positions are never read", t.row.span)


def cache_consistent(t: RowTyping) -> Verdict:
    """Whether decoding with a cache equals one full pass: a step sees only its own chunk, so nothing may pool over it."""
    row = t.row
    for part in (row.insert, *row.form, *row.compose, *(row.gate or ())):
        for n in walk(part) if part is not None else ():
            if isinstance(n, Name) and n.id in POOLS:
                return Verdict("no", "this reads other positions, and a step with a cache sees only its own chunk", n.span)
    return Verdict("yes", "nothing reads another position of the sequence", row.span)


def mergeable(t: RowTyping) -> Verdict:
    """Whether the edit can be absorbed by a linear map beside it: ``out`` affine in the input, at a site next to one."""
    row, site = t.row, t.site
    if row.tokens:
        return Verdict("no", "it changes only some tokens", row.span)
    if changes_length(row):
        return Verdict("no", "it adds tokens", row.span)
    if t.out.degree > AFFINE:
        span = t.out.bends or row.span
        return Verdict("no", "the output is not an affine function of the input", span)
    if site.family in ABSORBED_BY_SITE:
        return Verdict("yes", "affine in the input of the projection, which absorbs it", row.span)
    if site.name in ABSORBED_SEQUENTIAL:
        outside = sorted(t.out.reads & {"x", "residual", "q", "log_mass"})
        if not outside:
            return Verdict("yes", f"affine in the output of `{ABSORBED_SEQUENTIAL[site.name]}`, which absorbs it", row.span)
        return Verdict("no", f"it reads `{outside[0]}`, which no linear map beside `{site.name}` reads", row.span)
    return Verdict("no", f"no linear map beside `{site.name}` could absorb it", row.span)


#: Every verdict: its rule for a row at a site, and why trained copies of parameters never stand against it.
RULES: dict[str, tuple[Callable[[RowTyping], Verdict], str]] = {
    "mergeable": (mergeable, "trained copies of parameters merge by replacing them"),
    "causal": (causal, "trained parameters see no other position"),
    "cache-consistent": (cache_consistent, "trained parameters see no other position"),
    "padding-invariant": (padding_invariant, "pad positions are never read"),
}


def judged(typings: Sequence[RowTyping]) -> dict[str, Verdict]:
    """Every verdict over some rows: the first row that decides against it, else yes."""
    return {name: _all((rule(t) for t in typings), otherwise) for name, (rule, otherwise) in RULES.items()}


def verdicts(method: Method) -> dict[str, Verdict]:
    """The method's verdicts. Checks the method."""
    return judged(check_method(method))


def _all(found: Iterable[Verdict], otherwise: str) -> Verdict:
    verdict: Verdict | None = None
    for v in found:
        if v.value != "yes":
            return v
        verdict = verdict or v
    return verdict or Verdict("yes", otherwise)
