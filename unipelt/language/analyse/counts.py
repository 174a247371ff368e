"""Parameter counts as formulas, before any model exists: exact polynomials in the sizes of sites and the arguments.

``L`` is the number of layers (of those that have the row's sites, where layers differ), ``L_cross`` of those with
cross-attention, ``L_mixer`` of those with a mixer, ``L_gate`` of those with a gate in the feed-forward layer,
``L_experts`` of those with experts, ``L_gated_experts`` of those whose experts have a gate. An encoder–decoder has the sum over its stacks,
each with its own ``L`` and sizes (``L_cross`` is 0 in the encoder); ``L_encoder``, ``L_decoder``, ``L_vision`` are those of a stack that
is named, and ``has_cross``, ``has_encoder``, ``has_vision`` are 1 in a stack that has or is that, else 0. ``sum_layer(r)`` is the sum of what depends on
the layer over those a row is at: ``sum_layer(r, last 2)`` where it selects some. Trained copies of the base's own parameters
are named in words. Non-goal: the numbers of a model; a plan counts them (and a test holds that the two agree).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from math import prod

from .amounts import ALIKE, NONE, OF_A_PART, Amount, Count, LayerSum, Shared
from .method import analyse
from ..check.methods import open_paths
from ..types.declared import TensorTyping
from ..types.owners import Owner
from ..types.typed import TypedRow
from .fold import fold_form, sizes_written
from ..ir import Method, Trained
from ..types.layers import by_layer, layered
from ..syntax.parser import parse_expression
from ..syntax.printer import to_text
from ..sites import SIZES, STACKS, TensorType
from ..sizes import Size
from ..syntax.nodes import Selection, Tensor

_WHOLE = {
    "*": "every parameter",
    "*.bias": "every bias",
    "*.norm.*": "every norm's parameters",
    "head": "the model's own head",
}


#: What the symbols of a formula mean that are no arguments; an encoder–decoder has the sum over its stacks.
SYMBOLS = {
    "L": "layers; an encoder–decoder has the sum over its two stacks", "L_cross": "layers with cross-attention", "L_mixer": "layers with a mixer",
    "L_gate": "layers whose feed-forward layer has a gate", "has_gate": "1 for a stack with such layers, else 0",
    "L_experts": "layers with experts", "L_gated_experts": "layers whose experts have a gate",
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
    others = {w: _of_a_tower(w) for w in sorted(met - set(SYMBOLS)) if OF_A_PART.fullmatch(w)}
    return {n: meaning for n, meaning in SYMBOLS.items() if n in met} | others | sums


def _of_a_tower(symbol: str) -> str:
    front, _, name = symbol.partition("_")
    return f"layers of the {name}" if front == "L" else f"1 for the {name}, else 0"


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
        after = counting.folded(outside_heads) if name not in lenders and sizes_written(every) is not None else None
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
                shared=(Shared(f"{t.row.name}.{label}", tuple(s.bind(ALIKE) for s in (*copies, *type_.sizes)), part),)
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
        total = NONE
        for monomial, factor in size.bind({**ALIKE, "depth": Size.of(depth)}).terms:
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
    if not t.stack and t.site.own_axes:
        return "gated_experts" if t.site.gated else "experts"
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
    return replace(total, each=total.each.bind(ALIKE), once=total.once.bind(ALIKE), first=total.first.bind(ALIKE))


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
