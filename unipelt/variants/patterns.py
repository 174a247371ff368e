"""The library's methods as patterns: every row under the skeleton of each of its sites, its arguments unknowns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from ..language.syntax import nodes as S
from ..language.types.algebra import Atom, Term
from ..language.analyse.canonical import Canonical, canonical
from ..language.ir import Method, Row
from ..language.analyse.meaning import Meaning, SiteMeaning, bound, meaning
from ..language.analyse.start import tensors_of
from ..language.sizes import Size
from ..language.write.columns import columns_of


@dataclass(frozen=True, slots=True)
class Pattern:
    """A row of a known method: its lines at each of its sites, its arguments, and whether biases are left out."""

    method: str
    row: str
    alone: bool  # the method has no other row
    sites: tuple[str, ...]
    lines: tuple[Canonical, ...]  # of each site
    params: Mapping[str, S.Param]
    biases: str
    fixed: Mapping[str, Any]  # arguments that have a value here


def lines_of(found: Meaning, starts: bool = False) -> list[tuple[str, Canonical]]:
    """Each site by itself: (site, its lines without numbers); with ``starts`` in an order in which those have a part."""
    return [(s.site, canonical(replace(found, sites=(s,), trains=(), inputs=()), True, starts)) for s in found.sites]


def key_of_lines(c: Canonical) -> str:
    """The skeleton: the same for two rows that differ in numbers, sizes and activations only."""
    return "\n".join([*(x.text for x in c.sites), *(x.text for x in c.tensors)])


def patterns_of(name: str, method: Method) -> list[tuple[str, Pattern]]:
    """Every row of a method as a pattern, under the skeleton of each of its sites; one that reads another's tensors is none by itself."""
    out: list[tuple[str, Pattern]] = []
    for variant, fixed in _variants(method):
        for row in (r for r in variant.rows if not _borrows(r, variant)):
            single = replace(variant, rows=(replace(row, gate=None),), trains=(), requires=())
            found = meaning(single, arguments=False)
            for biases, m in (("", found), ("with", without_biases(found))):
                if biases and m == found:
                    continue
                lines = lines_of(m)
                p = Pattern(name, row.name, len(method.rows) == 1, tuple(s for s, _ in lines),
                             tuple(c for _, c in lines), {q.name: q for q in method.params}, biases, fixed)  # fmt: skip
                out += [(key, p) for key in sorted({key_of_lines(c) for _, c in lines})]
    return out


def _borrows(row: Row, method: Method) -> bool:
    """Whether a row reads a tensor of another one by that row's name."""
    others = {r.name for r in method.rows} - {row.name}
    return any(isinstance(n, S.Attr) and isinstance(n.value, S.Name) and n.value.id in others for n in row.nodes)


def compared(row: Row, method: Method) -> dict[str, Any]:
    """What two rows are compared by: their columns, the sites in any order, and the layers."""
    columns = columns_of(row, method)
    others = {c: columns[c] for c in ("insert", "form", "compose", "gated by", "layers")}
    return {"modify": sorted(columns["modify"].split(", ")), **others}


def _variants(method: Method) -> list[tuple[Method, Mapping[str, Any]]]:
    """The method with every argument unknown; once more with the arguments at 0 that are 0 by default, as 0 removes a term; and with
    each truth value that a choice may read."""
    zero = {p.name: 0 for p in method.params if isinstance(p.default, S.Number) and p.default.value == 0}
    asked = [p.name for p in method.params if p.type == "bool"]
    choices = (
        [dict(zip(asked, values)) for values in product((False, True), repeat=len(asked))] if len(asked) < 4 else [{}]
    )
    fixed = [*({**c, **z} for c in choices for z in ({}, zero)[: 1 + bool(zero)])]
    return [(method, {}), *((with_bound(method, f), f) for f in fixed if f)]


def with_bound(method: Method, fixed: Mapping[str, Any]) -> Method:
    """The method with some arguments bound, the others unknown."""
    held = tuple(p for p in method(**fixed).params if p.name in fixed)
    left = tuple(p for p in method.params if p.name not in fixed)
    return replace(bound(replace(method, params=held)), params=left)


def without_biases(found: Meaning) -> Meaning:
    """The meaning with every learned vector that is only added left out."""

    def strip(t: Term) -> Term:
        kept = []
        for factors, c in t.products:
            if factors and all(_is_bias(a, found) for a in factors):
                continue
            kept.append((tuple(atom(a) for a in factors), c))
        return Term(tuple(sorted(kept, key=lambda p: [a.text for a in p[0]])), t.sizes)

    def atom(a: Atom) -> Atom:
        if a.kind in ("read", "tensor"):
            return a
        return Atom.of(
            a.kind,
            a.sizes,
            *(strip(p) if isinstance(p, Term) else atom(p) if isinstance(p, Atom) else p for p in a.parts),
        )

    def site(s: SiteMeaning) -> SiteMeaning:
        out = strip(s.out)
        kept = tuple(k for k in s.tensors if k in tensors_of(out) or k not in tensors_of(s.out))
        return replace(s, out=out, tensors=kept)

    return replace(found, sites=tuple(site(s) for s in found.sites))


def _is_bias(a: Atom, found: Meaning) -> bool:
    if a.kind != "tensor" or len(a.sizes) != 1:
        return False
    t = found.tensors[a.parts[0]]
    return t.start is not None and t.start.value == Size.of(0) and not t.frozen
