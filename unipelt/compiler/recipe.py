"""Recipes: a row at a site as one straight function of tensors, written once and shared by the layers that do not differ.

The function is generated from the checked row, here and now; none is ever read from a file. What it computes is what the
literal evaluator computes (`evaluator`), after the rewrites of `lower`. Rows for which no straight code can be written are
left to the evaluator.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import lru_cache, partial, reduce
from typing import Any, Literal

import torch
from torch.nn import functional

from ..language.types.carried import from_before
from ..language.types.draws import PROGRESS, Draw
from ..language.types.indexing import INSERTED, POSITIONS
from ..language.types.inputs import InputTyping
from ..language.ir import Row
from ..language.types.typed import TypedRow
from ..language.types.values import IndexType
from ..language.sites import TensorType
from ..language.sizes import Size
from ..language.syntax.nodes import Expr
from . import again, helpers
from .code import PRODUCT, Code, Num, Unwritten, Written, refine, spread, text_of
from .kept import Kept
from .lines import Line, joined, needed, split, words
from .lower import Lowered
from .writer import Writer

#: What is asked of a row: the new h; also the log of its scores' mass; keys and values for the attention kernel.
Want = Literal["h", "mass", "rows"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """``function(*values, *others, *own)`` of the tensors in scope whose names are ``reads``, of what else enters by the names ``besides``
    (numbers, frozen modules, `MASK`, `PLACES`, `CHOSEN`, `GRID`, what is drawn), and of the row's tensors whose labels are ``own``.

    With ``fold`` it takes what that makes of those tensors in their place, which may be kept while they stay as they are.
    ``draws`` are what is drawn for a pass, by the names in ``besides`` under which it enters. ``computed`` are the labels of the
    tensors from which something is made that may be kept: those that the fold reads, and those that the recipe takes transposed.

    The code has its ``arguments`` by these names, and its ``lines`` and ``ends`` may be written into other code (see `bound`).
    """

    source: str
    reads: tuple[str, ...]
    besides: tuple[str, ...]
    own: tuple[str, ...]
    function: Any
    arguments: tuple[str, ...]
    lines: tuple[str, ...]
    ends: tuple[str, ...]
    fold: Any = None
    draws: Mapping[str, tuple[Draw, tuple[int, ...]]] = field(default_factory=dict)
    computed: Set[str] = frozenset()

    def __reduce__(self) -> Any:
        raise TypeError("a recipe is written where it is used")


#: What else enters: the mask of real tokens, the places of rows among the tokens, the tokens that are selected and those that are the
#: parts of a picture, under no names of the language.
MASK, PLACES, CHOSEN, GRID = ":mask", ":places", ":chosen", ":grid"
#: What is in scope, and a number or moved to where h is.
_NUMBERS = ("scale", "chance", PROGRESS)
#: What enters a row, with its axes.
Entering = tuple[tuple[str, tuple[str, ...]], ...]


class Recipes:
    """The recipes of a row at a site, each written when it is first asked for. Copies and pickles of it have none yet: code
    belongs to the process that wrote it.

    ``tensors`` are the axes of the row's tensors by their labels.
    """

    def __init__(self, row: Row, typing: TypedRow, lowered: Lowered, constants: Mapping[str, Any], sizes: Mapping[str, int],
                 tensors: Mapping[str, tuple[str, ...]]):  # fmt: skip
        self.parts = (row, typing, lowered, constants, sizes, tensors)
        self.known: dict[tuple[Entering, bool, Want], Recipe | None] = {}
        self.ready: dict[tuple, Any] = {}  # what who calls them makes of them, by what enters
        self.kept = Kept()  # what was folded

    def __reduce__(self) -> Any:
        return Recipes, self.parts

    def __deepcopy__(self, memo: dict) -> Recipes:
        return Recipes(*self.parts)

    def forget(self) -> None:
        self.kept.forget()

    def of(self, entering: Entering, training: bool, want: Want) -> Recipe | None:
        """The recipe for what enters; None where there is no straight code, and the row is evaluated as written."""
        key = (entering, training, want)
        if key not in self.known:
            self.known[key] = _recipe(*self.parts, dict(entering), training, want)
        return self.known[key]


def folded(fold: Any, numbers: Sequence[bool], tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """What ``fold`` (None: nothing) makes of tensors of a row, those that are ``numbers`` without the dimension that they are registered
    with."""
    found = [t.reshape(()) if n else t for t, n in zip(tensors, numbers, strict=True)]
    return found if fold is None else fold(*found)  # type: ignore[no-any-return]


def _recipe(
    row: Row, typing: TypedRow, lowered: Lowered, constants: Mapping[str, Any], sizes: Mapping[str, int], tensors: Mapping[str, tuple[str, ...]],
    entering: Mapping[str, tuple[str, ...]], training: bool, want: Want,
) -> Recipe | None:  # fmt: skip
    try:
        body = Body(row, typing, lowered, constants, sizes, tensors, entering, training)
        lines, ends = body.text(want)
    except (Unwritten, ArithmeticError, ValueError):
        return None
    if "joined" in lowered.on:
        lines = needed(joined(lines, training and "recomputed" in lowered.on, fill=not training), ends)
    names, labels = body.arguments, {n for n in body.arguments if n in tensors}
    fixed, lines = split(lines, [names[n] for n in names if n not in labels]) if "folded" in lowered.on else ([], lines)
    read = set().union(*(words(line.text) for line in lines), *(words(e) for e in ends))
    folded = [line.name for line in fixed if line.name in read]
    wanted = [n for n in names if names[n] in read]
    reads = tuple(n for n in wanted if n in entering and n not in _NUMBERS)
    besides = tuple(n for n in wanted if n not in labels and n not in reads)
    own = tuple(n for n in wanted if n in labels)
    draws = {n: body.drawn[n] for n in besides if n in body.drawn}
    arguments = (*(names[n] for n in (*reads, *besides, *own)), *folded)
    source = _function("recipe", arguments, lines, ends)
    code = (arguments, tuple(map(str, lines)), tuple(ends))
    viewed = {n for n in own if any(re.search(turned(names[n]), t) for t in (*code[1], *ends))}
    if not folded:
        return Recipe(source, reads, besides, own, compiled(source), *code, draws=draws, computed=viewed)
    computed = set().union(*(words(line.text) for line in fixed))
    read |= computed
    every = tuple(n for n in names if names[n] in read and n in labels)
    first = _function("fold", [names[n] for n in every], fixed, [*(names[n] for n in own), *folded, ""])
    return Recipe(
        f"{first}\n{source}",
        reads,
        besides,
        every,
        compiled(source),
        *code,
        compiled(first, "fold"),
        draws,
        viewed.union(n for n in every if names[n] in computed),
    )


def _function(name: str, arguments: Sequence[str], lines: Sequence[Line], ends: Sequence[str]) -> str:
    inner = [*map(str, lines), f"return {', '.join(ends).rstrip()}"]
    return "\n    ".join([f"def {name}({', '.join(arguments)}):", *inner]) + "\n"


def turned(name: str) -> str:
    """What finds the tensor of that name, transposed, in a text."""
    return rf"(?<![\w.]){name}\.(m?T)\b"


@lru_cache(maxsize=4096)
def compiled(source: str, name: str = "recipe") -> Any:
    """The function of a source. Equal sources give the same function, so layers share what a compiler makes of it."""
    scope: dict[str, Any] = {"torch": torch, "F": functional}
    scope |= {n: getattr(m, n) for m in (helpers, again) for n in dir(m) if not n.startswith("_")}
    exec(compile(source, "<recipe>", "exec"), scope)
    return scope[name]


class Body:
    """The lines of a row at a site.

    ``arguments`` maps every name that may enter (tensors by label, scope, frozen modules, `MASK`, `PLACES`, `CHOSEN`, `GRID`) to its name
    in the code; ``own`` stands in front of the row's tensors. ``training`` None writes code for both. ``lengths`` are the sizes of
    the declared axes where these are no numbers yet.
    """

    def __init__(
        self, row: Row, typing: TypedRow, lowered: Lowered, constants: Mapping[str, Written], sizes: Mapping[str, Written],
        tensors: Mapping[str, tuple[str, ...]], entering: Mapping[str, tuple[str, ...]], training: bool | None, own: str = "",
        lengths: Mapping[str, Written] | None = None,
    ):  # fmt: skip
        self.row, self.typing, self.lowered, self.on = row, typing, lowered, lowered.on
        self.training = training
        bases = {n: out for n, (_, out) in typing.bases.items()}
        heads, groups = sizes.get("heads", 1), sizes.get("groups", 1)  # a tower of mixers alone has none
        repeats: Written = (
            heads // groups
            if isinstance(heads, int) and isinstance(groups, int)
            else Num("self.heads // self.groups", PRODUCT)
        )
        self.writer = Writer(constants, {**sizes, **_bound(typing.sizes)}, bases, repeats, training, lowered.on)
        self.writer.axes = _bound(typing.axes) if lengths is None else lengths
        self.arguments: dict[str, str] = {"h": "h"}
        types = {t.label: t.type for t in typing.tensors}
        inputs = {i.name: i for i in typing.inputs}
        before = {from_before(n): v for n, v in typing.carried.items()}
        self.gate: dict[str, Code] = {}
        self.drawn: dict[str, tuple[Draw, tuple[int, ...]]] = {}  # what is drawn, by the names in `arguments`
        for name, axes in entering.items():
            if name == "W" and typing.site.is_weight:
                continue
            if name == "scale":
                self.writer.names[name] = Num(self._enters(name))
            elif name in ("chance", PROGRESS):
                self.writer.names[name] = Code(self._enters(name), (), ())
            elif name in (POSITIONS, INSERTED):
                self.arguments[name] = self.writer.safe(name)
                self.writer.names[name] = Code(self.arguments[name], axes, ())
            elif name in inputs:
                self.writer.names[name] = Code(self._enters(name), ("batch",), _input_sizes(inputs[name]))
            elif name in before:
                found = before[name].type
                assert isinstance(found, TensorType)
                self.writer.names[name] = Code(self._enters(name), axes, found.sizes)
            else:
                found = typing.values[name].type
                assert isinstance(found, (TensorType, IndexType))
                if name.endswith("()"):  # of adapters, with weights
                    self.writer.called[name[:-2]] = Code(self._enters(name), axes, found.sizes)
                    continue
                self.writer.names[name] = Code("h" if name == "h" else self._enters(name), axes, found.sizes)
        for label, axes in tensors.items():
            value = Code(own + self._enters(label), axes, types[label].sizes)
            if label.startswith("gate."):
                self.gate[label[5:]] = value
            else:
                self.writer.names[label] = value
        if typing.site.is_weight:  # one tensor under two names
            self.writer.names["W"] = self.writer.names["h"]
        self.writer.h = self.writer.names.get("h")  # type: ignore[assignment]
        for name in bases:
            self._enters(name)
        self.arguments |= {MASK: "mask", PLACES: "places", CHOSEN: "chosen", GRID: "grid"}
        self.writer.live |= {a for n, a in self.arguments.items() if n not in tensors}

    def _enters(self, name: str) -> str:
        self.arguments[name] = self.writer.safe(name)
        return self.arguments[name]

    def text(self, want: Want) -> tuple[list[Line], list[str]]:
        """The lines, and the expressions of the result."""
        ends = self._rows() if want == "rows" else self._ends(want)
        self.drawn = {f":{n}": d for n, d in self.writer.drawn.items()}
        self.arguments |= {n: n[1:] for n in self.drawn}
        return needed(self.writer.lines, ends), ends

    def _ends(self, want: Want) -> list[str]:
        w = self.writer
        h = w.names.get("h")
        if self.typing.insert is not None:
            w.bind("z", w.write(self.typing.insert))
        w.names.pop("h", None)
        assert isinstance(h, Code)
        added = self.lowered.added
        compose = self.row.compose[:-1] if added is not None else self.row.compose
        g = self._gate() if self.row.gate is not None else None
        w.run(self.row.form)
        w.names["h"] = h
        w.run(compose)
        if added is not None:
            out = self._add(
                h, g, w.write(added), w.write(self.lowered.factor) if self.lowered.factor is not None else 1
            )
        else:
            out = w.names["out"]
            if g is not None:
                change = w.once(w.combined("-", out, h)) if isinstance(out, Code) else w.combined("-", out, h)  # type: ignore[arg-type]
                out = w.combined("+", h, w.combined("*", g, change))
        if not isinstance(out, Code):
            raise Unwritten("an out that is a number")
        ends = [self._whole(out, h), *self._penalty(want), *(text_of(v) for v in w.carried.values())]
        if self.row.tokens:
            ends[0] = f"torch.where({self._chosen(h, len(h.sizes))}, {ends[0]}, h)"
        if want == "mass":
            scores = w.names["scores"]
            assert isinstance(scores, Code)
            ends.append(f"torch.logsumexp({scores.text}, -1)")
            if self.row.tokens:
                ends[1] = f"{ends[1]}.masked_fill(~{self._chosen(h, 0)}, -torch.inf)"
        return ends

    def _chosen(self, h: Code, sizes: int) -> str:
        """Which tokens are selected, beside what has the axes of h and some sizes."""
        return spread(Code("chosen", ("batch", "token"), ()), h.axes, sizes)

    def _penalty(self, want: Want) -> list[str]:
        """The sum of the row's penalties, behind the new h."""
        w = self.writer
        if w.penalties and want != "h":
            raise Unwritten("a penalty of a row that shares the softmax")
        total = reduce(partial(w.combined, "+"), w.penalties) if w.penalties else None
        return [] if total is None else [text_of(total)]

    # ------------------------------------------------------------ parts

    def _gate(self) -> Written:
        """The gate's value; what its lines bind is not seen by the form."""
        w = self.writer
        before = w.names
        w.names = {**before, **self.gate}
        w.run(self.row.gate or (), "gate.")
        g = w.names["g"]
        w.names = before
        return g

    def _add(self, h: Code, g: Written | None, added: Written, factor: Written) -> Written:
        """h + g · factor · added, with what is a plain number inside the addition's kernel."""
        w = self.writer
        if "fused" not in self.on or not isinstance(added, Code):
            change = added if factor == 1 else w.combined("*", factor, added)
            return w.combined("+", h, change if g is None else w.combined("*", g, change))
        if isinstance(factor, (Code, Num)):
            added, factor = w.combined("*", factor, added), 1
        if isinstance(g, (int, float, bool)):
            factor, g = factor * g, None  # type: ignore[operator]
        assert isinstance(added, Code)
        narrow = self._narrow(g, added) if isinstance(g, Code) else None
        if narrow is not None:
            added, g = narrow, None
        if not set(added.axes) <= set(h.axes):
            raise Unwritten("an out with other axes than h")
        n = len(h.sizes)
        if isinstance(g, Code) and g.axes and set(g.axes) <= set(h.axes):
            value = "" if factor == 1 else f", value={factor!r}"
            return Code(f"torch.addcmul(h, {spread(g, h.axes, n)}, {spread(added, h.axes, n)}{value})", h.axes, h.sizes)
        if g is not None:
            added = w.combined("*", g, added)  # type: ignore[assignment]
        if not isinstance(added, Code) or not set(added.axes) <= set(h.axes):
            raise Unwritten("an out with other axes than h")
        if factor == 1:
            return w.combined("+", h, added)
        return Code(f"torch.add(h, {spread(added, h.axes, n)}, alpha={factor!r})", h.axes, h.sizes)

    def _narrow(self, g: Code, added: Code) -> Code | None:
        """g · (u @ W) as (g · u) @ W, and g · (u @ W + b) as [g · u, g] @ [W; b], where u is the narrower: the backward pass
        needs what g multiplies."""
        if "narrow" not in self.on or not self.training or added.product is None or g.sizes:
            return None
        w, (u, W, b) = self.writer, added.product
        sizes = [s.number for s in W.sizes]
        if len(sizes) != 2 or None in sizes or sizes[0] >= sizes[1] or not set(g.axes) <= set(u.axes):  # type: ignore[operator]
            return None
        gu = w.combined("*", g, u)
        assert isinstance(gu, Code)
        if b is None:
            return w.product(gu, W)
        column = Code(f"{spread(g, u.axes, 1)}.expand(*{{0}}.shape[:-1], 1)", u.axes, (Size.of(1),))
        gu = w.once(gu)
        both = Code(f"torch.cat([{gu.text}, {column.text.format(gu.text)}], -1)", u.axes, (u.sizes[0] + 1,))
        return w.product(both, Code(f"torch.cat([{W.text}, {b.text}[None]])", (), (W.sizes[0] + 1, W.sizes[1])))

    def _whole(self, out: Code, h: Code) -> str:
        """``out`` with every axis of ``h``."""
        if out.axes == h.axes:
            return out.text
        if not set(out.axes) <= set(h.axes):
            raise Unwritten("an out with other axes than h")
        kept = ", -1" * len(out.sizes)  # its own sizes: an adapter's head may have other labels than h
        return f"{spread(out, h.axes, len(out.sizes))}.expand(*h.shape[:{len(h.axes)}]{kept})"

    def _rows(self) -> list[str]:
        """Keys and values [batch or 1, groups or heads, rows, d_head], and by what their scores and what they yield is multiplied for
        each query, [batch, heads or 1, queries, 1] or None."""
        w, low = self.writer, self.lowered
        assert low.keys is not None and low.values is not None
        w.run(low.before)
        return [*(self._row(w.write(e)) for e in (low.keys, low.values)), *self._shares(low.on_scores, low.on_values)]

    def _shares(self, *factors: Expr | None) -> list[str]:
        """What scores and values are multiplied by; written once where it is the same."""
        w, axes = self.writer, ("batch", "head", "token")
        found: dict[Expr | None, str] = {None: "None"}
        for e in factors:
            if e not in found:
                v = w.write(e)  # type: ignore[arg-type]
                assert isinstance(v, Code)
                text = spread(refine(v, axes, w.repeats), axes, 1, whole=True)
                found[e] = w.once(Code(text, axes, (Size.of(1),))).text
        return [found[e] for e in factors]

    def _row(self, v: Written) -> str:
        assert isinstance(v, Code)
        axis = "head" if "head" in v.axes else "group"
        n = self.writer.sizes["heads" if axis == "head" else "groups"]
        text = spread(v, ("batch", axis), 2, whole=True)
        text = text if axis in v.axes else f"{text}.expand(-1, {text_of(n)}, -1, -1)"
        return self.writer.apart(Code(text, ("batch", axis), v.sizes), Num("h"))[
            0
        ].text  # what is fixed is a line that is computed once


def _bound(sizes: Mapping[str, Size]) -> dict[str, int]:
    """Those sizes that are known, as numbers."""
    found = {n: s.number for n, s in sizes.items()}
    return {n: int(v) for n, v in found.items() if v is not None and v.denominator == 1}


def _input_sizes(i: InputTyping) -> tuple[Size, ...]:
    return () if i.count is not None else i.sizes
