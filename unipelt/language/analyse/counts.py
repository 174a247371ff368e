"""Parameter counts as formulas, before any model exists: exact polynomials in the sizes of sites and the arguments.

``L`` is the number of layers (of those that have the row's sites, where layers differ), ``L_cross`` of those with
cross-attention, ``L_mixer`` of those with a mixer, ``L_gate`` of those with a gate in the feed-forward layer. An encoder–decoder has the sum over its stacks,
each with its own ``L`` and sizes (``L_cross`` is 0 in the encoder); ``L_encoder``, ``L_decoder``, ``L_vision`` are those of a stack that
is named, and ``has_cross``, ``has_encoder``, ``has_vision`` are 1 in a stack that has or is that, else 0. ``sum_layer(r)`` is the sum of what depends on
the layer over those a row is at: ``sum_layer(r, last 2)`` where it selects some. Trained copies of the base's own parameters
are named in words. Non-goal: the numbers of a model; a plan counts them (and a test holds that the two agree).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import prod

from ..types.arguments import parameters
from .method import analyse
from ..check.methods import open_paths
from ..types.declared import TensorTyping
from ..types.owners import Owner
from ..types.typed import TypedRow
from .fold import fold_form
from ..types.infer import Inference
from ..ir import Method, Trained
from ..types.layers import by_layer, chosen, layered
from ..syntax.printer import to_text
from ..sites import SIZES, STACKS, TensorType
from ..sizes import Size
from ..syntax.nodes import Param, Selection, Tensor
from ..types.values import NumberType, Value

_WHOLE = {
    "*": "every parameter",
    "*.bias": "every bias",
    "*.norm.*": "every norm's parameters",
    "head": "the model's own head",
}
_ALIKE = {"d_q": Size.of("heads") * Size.of("d_head"), "d_kv": Size.of("groups") * Size.of("d_head")}  # fmt: skip
_NONE = Size(())
#: Symbols that say how many layers of a stack a site is confined to (none, if there are none), and whether there are some.
_OF_A_PART = re.compile(r"(?:L|has)_(\w+)")


#: What the symbols of a formula mean that are no arguments; an encoder–decoder has the sum over its stacks.
SYMBOLS = {
    "L": "layers; an encoder–decoder has the sum over its two stacks", "L_cross": "layers with cross-attention", "L_mixer": "layers with a mixer",
    "L_gate": "layers whose feed-forward layer has a gate", "has_gate": "1 for a stack with such layers, else 0",
    "has_cross": "1 for a stack with cross-attention, else 0", "has_mixer": "1 for a stack with mixers, else 0",
    **{f"L_{name}": f"layers of the {name}" for name in STACKS}, **{f"has_{name}": f"1 for the {name}, else 0" for name in STACKS},
    **{n: SIZES[n] for n in ("heads", "groups", "d_head", "d_model", *SIZES)},
}  # fmt: skip


def symbols(formulas: Iterable[str], arguments: Iterable[str] = ()) -> dict[str, str]:
    """The symbols of some formulas with what they mean, those of the arguments left out."""
    met = {w for f in formulas for w in re.findall(r"\w+", f)} - set(arguments)
    sums = {
        w: f"the sum over the {SYMBOLS['L' + w.removeprefix('sum_layer')].partition(';')[0]}"
        for w in sorted(met)
        if re.fullmatch(r"sum_layer\w*", w)
    }
    others = {w: _of_a_tower(w) for w in sorted(met - set(SYMBOLS)) if _OF_A_PART.fullmatch(w)}
    return {n: meaning for n, meaning in SYMBOLS.items() if n in met} | others | sums


def _of_a_tower(symbol: str) -> str:
    front, _, name = symbol.partition("_")
    return f"layers of the {name}" if front == "L" else f"1 for the {name}, else 0"


@dataclass(frozen=True, slots=True)
class LayerSum:
    """``sum_layer(size)`` over the layers of a selection, of ``depth`` (a symbol) there are."""

    size: Size
    selection: Selection | None
    depth: str

    def __str__(self) -> str:
        of = "" if self.selection is None or self.selection.word == "all" else f", {to_text(self.selection)}"
        text = self.size.text
        bare = text[1:-1] if text in self.size.symbols and text.startswith("(") else text
        return f"sum_layer{self.depth[1:]}({bare}{of})"

    def number(self, values: Mapping[str, int], params: Sequence[Param]) -> int:
        depth = values[self.depth]
        word = self.selection.word if self.selection is not None else "all"
        ends = (
            [_value(to_text(v), {**values, "depth": depth}) for v in self.selection.values]
            if self.selection is not None
            else []
        )
        total = 0
        for layer in chosen(word, ends, depth):
            numbers = {"layer": layer, "depth": depth}
            total += _number(self.size, {**_bound(params, numbers), **values, **numbers})
        return total


def _bound(params: Sequence[Param], numbers: Mapping[str, int]) -> dict[str, int]:
    """The arguments that are numbers once ``numbers`` (``layer``, ``depth``) are known, and those."""
    found = {n: v.type for n, v in parameters(params, True, numbers).items()}
    return {n: t.value for n, t in found.items() if isinstance(t, NumberType) and isinstance(t.value, int)} | dict(
        numbers
    )


@dataclass(frozen=True, slots=True)
class Shared:
    """A tensor that the layers of a whole model share: one for each shape that it has in the stacks, or in those that have a ``part``."""

    tensor: str
    shape: tuple[Size, ...]
    part: str

    @property
    def size(self) -> Size:
        return prod(self.shape, start=Size.of(1))


@dataclass(frozen=True, slots=True)
class Amount:
    """What is counted in every stack, what once in the whole model, what in the first stack, which the input enters, and what
    all layers share."""

    each: Size = _NONE
    once: Size = _NONE
    first: Size = _NONE
    shared: tuple[Shared, ...] = ()

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.each + other.each, self.once + other.once, self.first + other.first, self.shared + other.shared
        )

    @property
    def size(self) -> Size:
        shared = {x.tensor: x.size for x in self.shared}
        return sum(shared.values(), self.each + self.once + self.first)

    def number(self, stacks: Sequence[Mapping[str, int]]) -> int:
        """The count on a model whose stacks have these sizes."""
        shapes = {
            (x.tensor, tuple(_number(s, known) for s in x.shape))
            for x in self.shared
            for known in stacks
            if not x.part or known.get(f"L_{x.part}")
        }
        return (
            sum(_number(self.each, known) for known in stacks)
            + _number(self.once, stacks[-1])
            + _number(self.first, stacks[0])
            + sum(prod(shape) for _, shape in shapes)
        )


@dataclass(frozen=True, slots=True)
class Count:
    """A polynomial, and in words what has none. ``folds`` pairs a row's amount as declared with that after folding;
    the smaller of the two is stored. ``sums`` are what symbols like ``sum_layer(r)`` stand for, ``params`` the arguments."""

    amount: Amount = Amount()
    words: tuple[str, ...] = ()
    folds: tuple[tuple[Amount, Amount], ...] = ()
    sums: Mapping[str, LayerSum] = field(default_factory=dict)
    params: tuple[Param, ...] = ()

    @property
    def size(self) -> Size:
        return self.amount.size

    def number(self, values: Mapping[str, int], *more: Mapping[str, int]) -> int:
        """The count on a model: ``values`` are its sizes, ``L``, ``L_cross`` and the arguments that are one number each;
        for an encoder–decoder the encoder's (with ``L_encoder``), then the decoder's. Words are not counted."""
        stacks = [self._known(v) for v in (values, *more)]
        return self.amount.number(stacks) + sum(min(a.number(stacks), b.number(stacks)) for a, b in self.folds)

    def _known(self, values: Mapping[str, int]) -> dict[str, int]:
        """A stack's values with all that follows from them."""
        symbols = {s for a in (self.amount, *(f for pair in self.folds for f in pair)) for s in a.size.symbols}
        params = {p.name for p in self.params}
        words = {w for s in (*symbols, *(s.depth for s in self.sums.values())) for w in re.findall(r"\w+", s)}
        depths = {f"L_{m[1]}": values.get(f"L_{m[1]}", 0) for w in words - params if (m := _OF_A_PART.fullmatch(w))}
        depth = {"depth": values.get("depth", values["L"])} if "L" in values else {}
        full = {
            **_bound(self.params, depth),
            **depths,
            **{f"has_{n.removeprefix('L_')}": int(layers > 0) for n, layers in depths.items()},
            **values,
        }
        return {**full, **{n: s.number(full, self.params) for n, s in self.sums.items() if n in symbols}}

    def __str__(self) -> str:
        total = self.size
        for _, after in self.folds:
            total = total + after.size
        parts = ([str(total)] if total.terms or not self.words else []) + list(self.words)
        return " + ".join(parts) + (" (folded)" if self.folds else "")


def counts(method: Method) -> dict[str, Count]:
    """The counts ``trained``, ``stored`` (after folding), ``frozen`` (draws that are kept) and ``head``."""
    counting, lenders = _Counting(method), {x.lender for t in analyse(method).rows for x in t.tensors}
    rows: dict[str, list[TypedRow]] = {}
    for t in analyse(method).rows:
        rows.setdefault(t.row.name, []).append(t)
    trained, stored, frozen, head = Amount(), Amount(), Amount(), Amount()
    folds: list[tuple[Amount, Amount]] = []
    in_layers: tuple[str, ...] = ()
    unknown = [f"what `{r.name}` learns at `{p}`" for r in method.rows for p in open_paths(r, method.params)]
    for name, every in rows.items():
        found = [t for t in every if not t.site.by_path]
        unknown += [f"what `{name}` learns at `{t.place}`" for t in every if t.site.by_path]
        spread = any(t.row.layers is not None and t.row.layers.word == "every" for t in found)
        owners = {
            ", ".join(x.owner.per)
            for t in found
            for x in t.tensors
            if x.owner.open or (spread and x.owner.span is not None)
        }
        if owners:
            unknown += [f"what `{name}` learns per `{p}`" for p in sorted(owners)]
            continue
        learned = [(t, x) for t in found for x in t.tensors if not x.frozen and not x.lender]
        own = counting.total((t, x) for t, x in learned if t.site.times != "head")
        trained = trained + own
        frozen = frozen + counting.total((t, x) for t in found for x in t.tensors if x.frozen and not x.lender)
        head = head + counting.total((t, x) for t, x in learned if t.site.times == "head")
        outside_heads = [t for t in found if t.site.times != "head"]
        after = counting.folded(outside_heads) if name not in lenders else None
        if after is None:
            stored = stored + own
        elif counting.folds_by_layer(outside_heads):
            in_layers += (f"what `{name}` stores, which folds in some layers",)
        else:
            folds.append((own, after))
    drawing = {t.row.name for t in analyse(method).rows if any(x.frozen for x in t.tensors)}
    kept = tuple(w.replace(" learns ", " draws ", 1) for w in unknown if w.split("`")[1] in drawing)
    copies = tuple(unknown) + tuple(w for t in method.trains if (w := _words(t)) and not _of_head(t))
    heads = tuple(_words(t) for t in method.trains if _of_head(t))
    return {
        "trained": counting.count(trained, copies), "stored": counting.count(stored, copies + in_layers, tuple(folds)),
        "frozen": counting.count(frozen, kept), "head": counting.count(head, heads),
    }  # fmt: skip


def formula(method: Method) -> dict[str, str]:
    """`counts` as text: ``{"trained": "2 L d_model r + …", …}``."""
    return {name: str(count) for name, count in counts(method).items()}


# ---------------------------------------------------------------- tensors

_Key = tuple[str, ...]


class _Counting:
    """Counts the tensors of one method's rows; remembers what its sums over layers stand for."""

    def __init__(self, method: Method):
        self.params = method.params
        self.layered = layered(method.params)
        self.sums: dict[str, LayerSum] = {}

    def count(
        self, amount: Amount, words: tuple[str, ...] = (), folds: tuple[tuple[Amount, Amount], ...] = ()
    ) -> Count:
        return Count(amount, words, folds, self.sums, self.params)

    def total(self, found: Iterable[tuple[TypedRow, TensorTyping]]) -> Amount:
        """The entries in the whole model of some tensors, each once, whoever shares it."""
        return _total(dict(self.entry(t, x.label, x.owner, x.type) for t, x in found))

    def entry(self, t: TypedRow, label: str, owner: Owner, type_: TensorType) -> tuple[_Key, Amount]:
        once, part = t.site.outside_the_layers, _part(t)
        owner = owner.outside_the_layers() if once else owner
        copies = tuple(t.axes[axis] if axis in t.axes else Size.of(f"{axis}s") for axis in sorted(type_.axes))
        size = prod(copies, start=type_.entries)
        key = (
            ", ".join(Owner(owner.each, span=owner.span).per) or owner.each,
            owner.named(kind=t.site.name, layer="", site=t.site.name),
            part,
            t.row.name,
            label,
        )
        if owner.each == "model" and not (t.site.once or t.site.times == "input"):
            return key, Amount(
                shared=(Shared(f"{t.row.name}.{label}", tuple(s.bind(_ALIKE) for s in (*copies, *type_.sizes)), part),)
            )
        if owner.each == "model":
            return (*key[:2], "", *key[3:]), Amount(once=size)
        if not once and owner.span is not None:
            return key, Amount(each=size * _groups(t.row.layers, f"L_{part}" if part else "L", owner.span.text))
        if not once and owner.each != "kind":
            return key, Amount(each=self.over_layers(t, size))
        size = size * Size.of(f"has_{part}") if part and not t.site.once else size
        if t.site.once:
            return key, Amount(once=size)
        return key, Amount(first=size) if t.site.times == "input" and not part else Amount(each=size)

    def over_layers(self, t: TypedRow, size: Size) -> Size:
        """The size summed over the row's layers: times their number, but for the symbols that depend on the layer."""
        depth = f"L_{part}" if (part := _part(t)) else "L"
        total = _NONE
        for monomial, factor in size.bind({**_ALIKE, "depth": Size.of(depth)}).terms:
            inner, outer = Size.of(1), Size.of(factor)
            for symbol, exponent in monomial:
                power = Size((((((symbol, exponent),)), Fraction(1)),))
                inner, outer = (inner * power, outer) if self.varies(symbol) else (inner, outer * power)
            if inner == Size.of(1):
                total = total + outer * _selected(t.row.layers, depth)
                continue
            added = LayerSum(inner, t.row.layers, depth)
            self.sums[str(added)] = added
            total = total + outer * Size.of(str(added))
        return total

    def varies(self, symbol: str) -> bool:
        from ..syntax.parser import parse_expression

        return by_layer(parse_expression(symbol), self.layered)

    def folds_by_layer(self, found: list[TypedRow]) -> bool:
        """Whether it depends on the layer what a row folds: where a choice by the layer takes another tensor, nothing may be left."""
        return any(by_layer(f.value, self.layered) for t in found for f in fold_form(t)[1])

    def folded(self, found: list[TypedRow]) -> Amount | None:
        """The row's count after folding, as `compiler.plan` counts it; None where nothing folds."""
        after: dict[_Key, Amount] = {}
        any_folds = False
        for t in found:
            form, folds = fold_form(t)
            any_folds = any_folds or bool(folds)
            left = {s.name for s in form if isinstance(s, Tensor)}
            for x in t.tensors:
                if not x.frozen and not x.lender and (x.part or x.name in left or x.declaration in t.row.compose):
                    after |= dict([self.entry(t, x.label, x.owner, x.type)])
            after |= dict(self.entry(t, f.name, f.owner, f.type) for f in folds)
        return _total(after) if any_folds else None


def _part(t: TypedRow) -> str:
    """The part of the stacks that a row's site is confined to; none for a site of every stack."""
    if t.site.gated and not t.stack:
        return "gate"
    return "cross" if t.site.cross else "mixer" if t.site.mixes else t.stack or ""


def _total(entries: Mapping[_Key, Amount]) -> Amount:
    """The sum without what is counted already: a part of the stacks beside every stack, cross-attention beside its decoder."""

    def within(key: _Key) -> bool:
        each, site, part, *rest = key
        wider = ("", "decoder") if part == "cross" else ("",) if part else ()
        return any((each, site, w, *rest) in entries for w in wider)

    total = sum((amount for key, amount in entries.items() if not within(key)), Amount())
    return replace(total, each=total.each.bind(_ALIKE), once=total.once.bind(_ALIKE), first=total.first.bind(_ALIKE))


def _at_most(value: str, depth: str) -> Size:
    return Size.of(depth if value == "depth" else 0 if value == "0" else f"min({value}, {depth})")


def _selected(selection: Selection | None, depth: str) -> Size:
    """How many layers a selection holds, clamped to those there are."""
    if selection is None or selection.word == "all":
        return Size.of(depth)
    values = [to_text(v) for v in selection.values]
    if selection.word in ("first", "last"):
        return _at_most(values[0], depth)
    if selection.word == "range":
        return _at_most(values[1], depth) - _at_most(values[0], depth)
    return Size.of(f"ceil({depth} / ({values[0]}))")


def _groups(selection: Selection | None, depth: str, k: str) -> Size:
    """How many groups of k layers a selection has layers of."""

    def up_to(end: str, round_: str) -> Size:
        return Size.of(f"{round_}({end} / {k if k.isidentifier() or k.isdigit() else f'({k})'})")

    if selection is None or selection.word == "all":
        return up_to(depth, "ceil")
    values = [f"min({to_text(v)}, {depth})" for v in selection.values]
    if selection.word == "first":
        return up_to(values[0], "ceil")
    low, high = (f"({depth} - {values[0]})", depth) if selection.word == "last" else (values[0], values[1])
    return up_to(high, "ceil") - up_to(low, "floor")


# ---------------------------------------------------------------- trained copies


def _of_head(t: Trained) -> bool:
    return all(str(p).split(".")[0] == "head" for p in t.paths)


def _words(t: Trained) -> str:
    what = " and ".join(_WHOLE.get(str(p), f"every parameter of `{p}`") for p in t.paths)
    if t.layers is None or t.layers.word == "all":
        return what
    return f"{what} in {_selected(t.layers, 'L')} layers"


# ---------------------------------------------------------------- numbers


def _number(size: Size, values: Mapping[str, int]) -> int:
    """The value of a polynomial; its opaque symbols (`min(top, L)`) are expressions of the language."""
    known = dict(values)
    for name, product in _ALIKE.items():  # within what is no polynomial, such as `ceil(d_kv / 2)`
        number = product.bind(known).number
        known |= {name: int(number)} if number is not None and name not in known else {}
    for symbol in size.symbols - set(known):
        known[symbol] = _value(symbol, known)
    total = size.bind(known).number
    assert total is not None and total.denominator == 1, f"unbound size {size}"
    return int(total)


def _value(text: str, values: Mapping[str, int]) -> int:
    """The whole number that an expression of the language is."""
    from ..syntax.parser import parse_expression

    names = {n: Value(NumberType(Size.of(v) if isinstance(v, int) else None, v)) for n, v in values.items()}
    found = Inference(names, {}).infer(parse_expression(text)).type
    if not isinstance(found, NumberType) or not isinstance(found.value, (int, Fraction)):
        raise KeyError(text)
    return int(found.value)
