"""The meaning of a method as text in which nothing is arbitrary: tensors are numbered by the part they play.

Equal texts mean equal methods. With numbers and activations erased, the text is the skeleton by which a method is
recognised (`unipelt.variants.recognise`); what was erased is kept in the same order, as leaves.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from ..types.algebra import Atom, Term, atoms
from ..ir import Method
from .meaning import Meaning, SiteMeaning, meaning
from ..types.draws import DRAWN
from ..types.primitives import PRIMITIVES
from .reader import Learned, written
from .start import tensors_of
from ..sizes import Size


@dataclass(frozen=True, slots=True)
class Leaf:
    """What a skeleton leaves out: a coefficient, a size, a multiple or an activation. ``any``: of parts that read the same, whose order
    nothing tells, the leaves of each."""

    kind: str  # number, size, word, any
    value: Any


@dataclass(frozen=True, slots=True)
class Line:
    """One site, or one tensor, as text, with the leaves its text has erased. ``starts`` are kept apart."""

    what: str
    text: str
    leaves: tuple[Leaf, ...] = ()
    start: str = ""


@dataclass(frozen=True, slots=True)
class Canonical:
    """A method line by line: sites in order, the tensors they read, trained copies."""

    sites: tuple[Line, ...]
    tensors: tuple[Line, ...]
    trains: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    keys: tuple[tuple[str, bool], ...] = ()  # the tensors in order: key in the meaning, whether it is shown transposed

    def lines(self, starts: bool = True) -> list[tuple[str, str]]:
        """(what, text) of everything; two methods are equal where these are."""
        out = [(line.what, line.text) for line in self.sites]
        out += [(line.what, line.text + (f" {line.start}" if starts else "")) for line in self.tensors]
        return out + [("train", t) for t in self.trains] + [("input", t) for t in self.inputs]


def canonical(found: Meaning, erase: bool = False, starts: bool | None = None) -> Canonical:
    """The lines of a meaning; with ``erase`` its numbers, sizes and activations become leaves.

    ``starts``: whether how tensors start has a part in their order; by default where nothing is erased.
    """
    return _Writer(found, erase, not erase if starts is None else starts).write()


def difference(a: Method, b: Method) -> tuple[str, str, str] | None:
    """The first difference of two methods at their arguments, as (what, in a, in b); None where they are equal.

    It is shown with the tensors numbered without regard to their starts, if it shows then: where only a start differs,
    that is what is said, and not a formula in which tensors have changed their numbers.
    """
    left, right = meaning(a), meaning(b)
    found = _first(canonical(left).lines(), canonical(right).lines())
    if found is None:
        return None
    return _first(canonical(left, starts=False).lines(), canonical(right, starts=False).lines()) or found


def _first(left: list[tuple[str, str]], right: list[tuple[str, str]]) -> tuple[str, str, str] | None:
    for what in dict.fromkeys(w for w, _ in (*left, *right)):
        here, there = ([t for w, t in lines if w == what] for lines in (left, right))
        if here != there:
            site = what.split(" ")[0]  # which both may edit, in other layers or tokens
            edits = [
                [f"{w.removeprefix(site).strip() or 'everywhere'}: {t}" for w, t in lines if w.split(" ")[0] == site]
                for lines in (left, right)
            ]
            if not (here and there) and all(edits):
                return site, *(", ".join(e) for e in edits)  # type: ignore[return-value]
            return what, ", ".join(here) or "nothing", ", ".join(there) or "nothing"
    return None


# ---------------------------------------------------------------- writing

_Written = tuple[str, tuple[Leaf, ...]]


def _sorted(parts: Iterable[_Written]) -> tuple[list[str], tuple[Leaf, ...]]:
    """The texts of parts that may stand in any order, sorted, and all their leaves."""
    texts: list[str] = []
    leaves: tuple[Leaf, ...] = ()
    for text, alike in groupby(sorted(parts, key=lambda p: p[0]), key=lambda p: p[0]):
        own = [found for _, found in alike]
        texts += [text] * len(own)
        leaves += own[0] if len(own) == 1 else (Leaf("any", tuple(own)),) if own[0] else ()
    return texts, leaves


class _Writer:
    def __init__(self, found: Meaning, erase: bool, starts: bool):
        self.found, self.erase, self.starts = found, erase, starts
        self.turned = _only_turned(found)
        self.names: dict[str, str] = {}

    def write(self) -> Canonical:
        # those that are read by nothing come too: they are drawn, counted and saved
        used = {i: list(dict.fromkeys((*tensors_of(s.out), *s.tensors))) for i, s in enumerate(self.found.sites)}
        colours = self._colours(used)
        order: list[str] = []
        for i in range(len(self.found.sites)):
            order += sorted((k for k in used[i] if k not in order), key=lambda k: colours[k])
        self.names = {k: f"t{n}" for n, k in enumerate(order, 1)}
        sites = []
        for s in self.found.sites:
            text, leaves = self._term(s.out, s)
            what = (f"{s.site} in {s.layers}" if s.layers else s.site) + (f" (edit {s.edit})" if s.edit else "")
            sites.append(Line(what, text, leaves))
            sites += [Line(f"{what} {word}", *self._term(t, s)) for word, t in s.training]
        tensors = [self._tensor(k, next(s for i, s in enumerate(self.found.sites) if k in used[i])) for k in order]
        trains = tuple(
            f"{p}{f' in layers {at}' if at else ''}{f' lr {lr}' if lr != '1' else ''}"
            for p, at, lr in self.found.trains
        )
        keys = tuple((k, k in self.turned) for k in order)
        inputs = tuple(f"{name}: {what}" for name, what in self.found.inputs)
        return Canonical(tuple(sites), tuple(tensors), trains, inputs, keys)

    def _colours(self, used: Mapping[int, list[str]]) -> dict[str, str]:
        """What tells tensors apart without their names: how they are declared, then the parts they play."""
        colours: dict[str, str] = {}
        for i, keys in used.items():
            for k in keys:
                if k not in colours:
                    line = self._tensor(k, self.found.sites[i], bare=True)
                    colours[k] = _hash(line.text + line.start * self.starts)
        for _ in range(3):
            if len(set(colours.values())) == len(colours):
                break
            new: dict[str, str] = {}
            for k in colours:
                self.names = {**colours, k: "*"}
                seen = [
                    self._term(t, s)[0]
                    for i, s in enumerate(self.found.sites)
                    if k in used[i]
                    for t in (s.out, *(t for _, t in s.training))
                ]
                new[k] = _hash("|".join([colours[k], *seen]))
            colours = new
        return colours

    # ------------------------------------------------------------ pieces: text and leaves

    def _size(self, size: Size, site: SiteMeaning, kind: str = "size") -> tuple[str, tuple[Leaf, ...]]:
        if not self.erase:
            return written(size), ()
        known = {k: Size.of(v) for k, v in site.symbols.items() if k in size.symbols}
        return "#", (Leaf(kind, size.bind(known) if known else size),)

    def _axis(self, word: str, site: SiteMeaning) -> tuple[str, tuple[Leaf, ...]]:
        """A word, such as a domain; a declared axis, which is told by its size, by its number where sizes are left out."""
        if not self.erase or word not in site.axes:
            return word, ()
        return f"axis {1 + list(site.axes).index(word)}", self._size(site.axes[word], site)[1]

    def _word(self, word: str, site: SiteMeaning) -> tuple[str, tuple[Leaf, ...]]:
        """An argument that is no term: an axis, the sizes of a draw, or any other word."""
        return self._axis(word, site) if word in site.axes else self._range(word, site)

    def _range(self, name: str, site: SiteMeaning) -> tuple[str, tuple[Leaf, ...]]:
        """The name of a call, or the sizes of a draw; the ends of a range and the sizes are leaves."""
        if not self.erase or name not in site.ranges:
            return name, ()
        ends = [self._size(end, site) for end in site.ranges[name]]
        return _without_ends(name), tuple(leaf for _, own in ends for leaf in own)

    def _term(self, t: Term, site: SiteMeaning) -> tuple[str, tuple[Leaf, ...]]:
        if not t.products:
            return "0", ()
        parts = []
        for factors, c in t.products:
            inner, leaves = _sorted(self._atom(a, site) for a in factors)
            text = " * ".join(inner)
            number, first = self._size(c, site, "number")
            number = (
                f"({number})" if c.number is None and text and not (self.erase or number.isidentifier()) else number
            )
            if self.erase or number != "1" or not text:
                text = f"{number} * {text}" if text else number
                leaves = (*first, *leaves)
            parts.append((text, leaves))
        texts, all_leaves = _sorted(parts)
        return " + ".join(texts), all_leaves

    def _atom(self, a: Atom, site: SiteMeaning) -> tuple[str, tuple[Leaf, ...]]:
        if a.kind == "read":
            return a.parts[0], ()
        if a.kind == "tensor":
            key = a.parts[0]
            return self.names.get(key, "t") + (".T" if key in self.turned else ""), ()
        if a.kind == "turned":
            inner = a.parts[0]
            if inner.kind == "tensor" and inner.parts[0] in self.turned:
                return self.names.get(inner.parts[0], "t"), ()
            text, leaves = self._atom(inner, site)
            return f"({text}).T", leaves
        if a.kind == "sum":
            text, leaves = self._term(a.parts[0], site)
            return f"({text})", leaves
        if a.kind == "sized":
            inner, *sizes = a.parts
            text, leaves = self._term(inner, site)
            shape = [self._size(x, site) for x in sizes]
            return f"({text} as [{', '.join(x for x, _ in shape)}])", (*leaves, *(v for _, own in shape for v in own))
        if a.kind in ("chain", "times"):
            found = [self._atom(p, site) for p in a.parts]
            if a.kind == "chain":  # one that is not flattened is another product
                found = [(f"({x})" if p.kind == "chain" else x, own) for p, (x, own) in zip(a.parts, found)]
            if a.kind == "times":
                texts, leaves = _sorted(found)
                return f"({' * '.join(texts)})", leaves
            return " @ ".join(x for x, _ in found), tuple(v for _, own in found for v in own)
        name, *args = a.parts
        shown, leaves = self._range(name, site)
        plain = name.removeprefix("?")
        if name.startswith("?") or (plain in PRIMITIVES and PRIMITIVES[plain].elementwise):
            shown, leaves = ("act", (Leaf("word", name),)) if self.erase else (name, ())
        found = [self._term(v, site) if isinstance(v, Term) else self._word(str(v), site) for v in args]
        if (
            self.erase and name in DRAWN
        ):  # between the owner and the sizes stand axes, which else follow the text of their sizes
            found[1:-1] = sorted(found[1:-1], key=lambda p: p[0])
        return f"{shown}({', '.join(x for x, _ in found)})", (*leaves, *(v for _, own in found for v in own))

    def _tensor(self, key: str, site: SiteMeaning, bare: bool = False) -> Line:
        t: Learned = self.found.tensors[key]
        shape = (*t.shape[:-2], t.shape[-1], t.shape[-2]) if key in self.turned else t.shape
        sizes = [self._size(s, site) for s in shape]
        per = [self._axis(word, site) for word in t.owner.per]
        if self.erase and t.owner.span is not None:  # one for each group of so many layers
            whole = replace(t.owner, span=None)
            per = [("layers(#)", self._size(t.owner.span, site)[1]), *(self._axis(word, site) for word in whole.per)]
        per = sorted(per, key=lambda p: p[0]) if self.erase else per  # which else follow the text of their sizes
        scope = ", ".join(word for word, _ in per)
        text = f"{'frozen ' if t.frozen else ''}[{', '.join(x for x, _ in sizes)}]{f' per {scope}' if scope else ''}"
        sizes += per
        if t.lr != Size.of(1):
            sizes.append(self._size(t.lr, site, "number"))
            text += f" lr {sizes[-1][0]}"
        start = f"~ {t.start or ''}" if t.exact is None else f"= {self._term(t.exact, site)[0] if not bare else ''}"
        if key in self.turned and not (t.start is not None and t.start.known is not None and t.start.known.alike):
            start += " turned"
        return Line(self.names.get(key, key), text, tuple(v for _, own in sizes for v in own), start)


def _without_ends(name: str) -> str:
    """The text of a range with `#` for each end, in whose brackets commas may stand."""
    out, depth = "", 0
    for c in name:
        if not depth and (c in "[],:·" or (c == " " and out[-1:] != "#")):
            out += c
        elif out[-1:] != "#":
            out += "#"
        depth += (c == "(") - (c == ")")
    return out


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _only_turned(found: Meaning) -> frozenset[str]:
    """Tensors that are read transposed and never as they are: their transposes might as well be declared."""
    read = (
        *(s.out for s in found.sites),
        *(t for s in found.sites for _, t in s.training),
        *(x.exact for x in found.tensors.values() if x.exact is not None),
    )
    times = Counter(a.parts[0] for t in read for a in atoms(t) if a.kind == "tensor")
    turned = Counter(
        a.parts[0].parts[0] for t in read for a in atoms(t) if a.kind == "turned" and a.parts[0].kind == "tensor"
    )
    return frozenset(k for k in turned if turned[k] == times[k])
