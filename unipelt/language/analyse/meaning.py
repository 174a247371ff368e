"""What a method means, however it is written: the new ``h`` of each site in a normal form.

Two methods whose normal forms are equal compute the same function, draw the same starts and train the same tensors,
whatever their tensors, lets, rows and definitions are called and in which order they are written. The rules are
identities of the language's algebra (`algebra`), and a projection's ``h`` is ``x @ W + bias``, so the answer "equal" is
never wrong; "different" may be said of methods that are equal for a deeper reason. Non-goals: making anything faster
(`compiler.lower`), a model's numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import groupby
from typing import Any

from ..syntax import nodes as S
from ..types.algebra import Term, atom
from ..check.methods import settled, sites_of
from ..types.rows import typed_row
from ..types.typed import TypedRow
from ..once import once
from ..check.inline import substitute
from ..types.infer import Inference
from ..ir import Method, Row, Trained
from ..syntax.parser import parse_expression
from ..syntax.printer import to_text
from .reader import Learned, SiteState, scope_sizes, written
from ..sites import SiteSignature, signature, site_name
from ..sizes import Size
from ..types.values import NumberType


@dataclass(frozen=True, slots=True)
class SiteMeaning:
    """The new ``h`` at a site in some layers. ``symbols`` names the site's own sizes as they are called anywhere;
    ``tensors`` are the keys of those declared there, read or not; ``axes`` are the sizes of the declared axes, by what stands for
    them in terms.

    Where a site has edits in different layers, stacks or tokens, they are counted by ``edit``, in the order in which they
    act, and ``h`` is what the edits before leave. ``ranges`` are the ends of ranges, and the sizes of draws, by their text.
    """

    site: str
    layers: str
    out: Term
    symbols: Mapping[str, str] = field(compare=False)
    tensors: tuple[Any, ...] = ()
    edit: int = 0
    training: tuple[tuple[str, Term], ...] = ()  # penalties, and what tensors become after a step, in order
    axes: Mapping[str, Size] = field(default_factory=dict, compare=False)
    ranges: Mapping[str, tuple[Size, ...]] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Meaning:
    """All that a method changes: sites with their tensors, trained copies (path, layers, learning-rate multiple), and
    the arguments it adds to the forward pass (name, what it is)."""

    sites: tuple[SiteMeaning, ...]
    tensors: Mapping[Any, Learned]
    trains: tuple[tuple[str, str, str], ...]
    inputs: tuple[tuple[str, str], ...] = ()


@once
def bound(method: Method) -> Method:
    """The method with its arguments in place of its parameters; those without a value stay."""
    mapping: dict[str, Any] = {}
    for p in method.params:
        if p.default is not None and p.type != "adapters":  # what these do is not known of their names
            mapping[p.name] = substitute(p.default, mapping)
    rows = tuple(replace(substitute(r, mapping), sites=tuple(sites_of(r.sites, method.params))) for r in method.rows)
    return replace(
        substitute(replace(method, rows=()), mapping),
        rows=rows,
        params=tuple(p for p in method.params if p.name not in mapping),
    )


@once
def meaning(method: Method, arguments: bool = True) -> Meaning:
    """The meaning of a method at its arguments; with ``arguments=False`` numbers and activations stay symbols.

    Raises `PeltError` where the method has mistakes, and where a row's sites are an argument without a value.
    """
    settled(method)
    if arguments:
        method = bound(method)
    tensors: dict[Any, Learned] = {}
    inputs: dict[str, str] = {}
    sites: list[SiteMeaning] = []
    for edits in _by_site(method).values():
        groups = _groups(edits)
        places = [
            SiteState(g[0].site, tensors, first=not any(_meet(g[0], e[0]) for e in groups[:n]))
            for n, g in enumerate(groups)
        ]
        for group, place in zip(groups, places):
            for e in group:
                place.read(typed_row(method, e.row, e.signature))
            inputs |= place.inputs
        counted = any(_meet(a[0], b[0]) for n, a in enumerate(groups) for b in groups[:n])
        for n, (group, place) in enumerate(zip(groups, places), 1):
            later = [p.out for g, p in zip(groups[n:], places[n:]) if _meet(group[0], g[0])]
            declared = tuple(dict.fromkeys(place.declared))
            sites.append(
                SiteMeaning(
                    group[0].site,
                    group[0].layers,
                    place.leaves(later),
                    place.symbols,
                    declared,
                    n if counted else 0,
                    tuple(place.training),
                    axes=dict(place.lengths),
                    ranges=dict(place.ranges),
                )
            )
    return Meaning(tuple(sites), tensors, _trains(method.trains), tuple(sorted(inputs.items())))


@dataclass(frozen=True, slots=True)
class _Edited:
    """One row at one of its sites; ``layers`` are the layers and tokens it acts on."""

    row: Row
    signature: SiteSignature
    site: str  # with its stack
    stack: str | None
    layers: str


def _by_site(method: Method) -> dict[str, list[_Edited]]:
    """The edits of each site, whatever the stack, in the order in which they act: weights first."""
    out: dict[str, list[_Edited]] = {}
    for row in method.rows:
        paths = list(dict.fromkeys(str(p) for p in sites_of(row.sites, method.params)))
        for path in paths:
            stack, name = site_name(path)
            found = signature(name)
            if found is None or (stack and name in paths):
                continue  # a row edits a site once, however often it names it
            at = found.into or name if found.is_weight else name
            tokens = sorted({*map(_selected, row.tokens)})  # what is selected twice is edited once
            layers = " ".join(
                [*([f"layers {where}"] if (where := _layers(row.layers)) else []), *(f"tokens {t}" for t in tokens)]
            )
            out.setdefault(at, []).append(_Edited(row, found, f"{stack}.{at}" if stack else at, stack, layers))
    return {at: _ordered(sorted(out[at], key=lambda e: not e.signature.is_weight)) for at in sorted(out)}


def _ordered(edits: Sequence[_Edited]) -> list[_Edited]:
    """The edits with those of one stack beside each other, as far as no edit of all stacks stands between: they commute."""
    out: list[_Edited] = []
    for _, run in groupby(edits, key=lambda e: e.stack is None):
        out += sorted(run, key=lambda e: e.stack or "")
    return out


def _meet(a: _Edited, b: _Edited) -> bool:
    """Whether two edits of a site act on a stack of both."""
    return a.stack is None or b.stack is None or a.stack == b.stack


def _groups(edits: Sequence[_Edited]) -> list[list[_Edited]]:
    """Edits that follow each other and act on the same layers: each group is one function of ``h``.

    Edits of some tokens stay apart, since the next one reads what they leave of the others.
    """
    out: list[list[_Edited]] = []
    for e in edits:
        if out and (out[-1][-1].site, out[-1][-1].layers) == (e.site, e.layers) and not e.row.tokens:
            out[-1].append(e)
        else:
            out.append([e])
    return out


def _trains(trains: Sequence[Trained]) -> tuple[tuple[str, str, str], ...]:
    """Of copies that are named twice the first counts; where all learn alike, the order makes no difference."""
    found = [(str(p), _layers(t.layers), _number(t.lr) if t.lr is not None else "1") for t in trains for p in t.paths]
    alike = len({lr for _, _, lr in found}) <= 1
    return tuple(sorted(set(found)) if alike else dict.fromkeys(found))


def _number(e: S.Expr) -> str:
    """A number, however it is written, where it is known."""
    found = Inference({}, {}).infer(e).type
    known = isinstance(found, NumberType) and found.value is not None and math.isfinite(found.value)
    return written(Size.of(Fraction(found.value))) if known else to_text(e)  # type: ignore[union-attr, arg-type]


@dataclass(frozen=True, slots=True)
class RowMeaning:
    """One row at one site: ``h`` before, ``out`` after, the tensors by key, and their own names."""

    h: Term
    out: Term
    tensors: Mapping[Any, Learned]
    names: Mapping[Any, str]


@once
def row_meaning(typing: TypedRow, training: bool = False) -> RowMeaning:
    """The meaning of a row that has been checked at a site, by itself, in training or outside it."""
    place = SiteState(typing.site.name, {}, evaluation=not training)
    place.read(typing)
    h = atom("read", scope_sizes(typing, "h", typing.site.h), "h")
    if typing.site.has_weight:
        before = SiteState(typing.site.name, {}, evaluation=not training)
        before.weight = atom("read", scope_sizes(typing, "W", dict(typing.site.scope)["W"]), "W")
        h = before.affine()
    names = {k: k.split("/")[1].removeprefix("gate.") for k in place.tensors}
    return RowMeaning(h, place.out, place.tensors, names)


def _layers(selection: S.Selection | None) -> str:
    return "" if selection is None or selection.word == "all" else _selected(selection)


def _selected(selection: S.Selection) -> str:
    """A selection, its numbers worked out."""

    def worked(e: Any) -> Any:
        return parse_expression(text) if (text := _number(e)).isdigit() else e

    return to_text(replace(selection, values=tuple(map(worked, selection.values))))
