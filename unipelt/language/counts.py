"""Parameter counts as formulas, before any model exists: exact polynomials in the sizes of sites and the arguments.

``L`` is the number of layers, ``L_cross`` of those with cross-attention. Trained copies of the base's own parameters
are named in words. Non-goal: the numbers of a model; a plan counts them (and a test holds that the two agree).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from .check import RowTyping, TensorTyping, check_method
from .diagnostics import error
from .fold import Fold, fold_form
from .infer import Inference
from .ir import Method, Trained
from .printer import to_text
from .sites import TensorType
from .sizes import Size
from .syntax import Selection, Tensor
from .values import NumberType, Value

_ONCE = ("embed", "head")  # families that stand outside the layers
_WHOLE = {"*": "every parameter", "*.bias": "every bias", "*.norm.*": "every norm's parameters", "head": "the model's own head"}
_ALIKE = {"d_q": Size.of("heads") * Size.of("d_head"), "d_kv": Size.of("groups") * Size.of("d_head")}  # fmt: skip
_NONE = Size(())


@dataclass(frozen=True, slots=True)
class Count:
    """A polynomial, and in words what has none. ``folds`` pairs a row's count as declared with that after folding;
    the smaller of the two is stored."""

    size: Size = _NONE
    words: tuple[str, ...] = ()
    folds: tuple[tuple[Size, Size], ...] = ()

    def number(self, values: Mapping[str, int]) -> int:
        """The count on a model: ``values`` are its sizes, ``L``, ``L_cross`` and the arguments. Words are not counted."""
        total = _number(self.size, values)
        return total + sum(min(_number(a, values), _number(b, values)) for a, b in self.folds)

    def __str__(self) -> str:
        total = self.size
        for _, after in self.folds:
            total = total + after
        parts = ([str(total)] if total.terms or not self.words else []) + list(self.words)
        return " + ".join(parts) + (" (folded)" if self.folds else "")


def counts(method: Method) -> dict[str, Count]:
    """The counts ``trained``, ``stored`` (after folding), ``frozen`` (draws that are kept) and ``head``."""
    typings = check_method(method)
    rows: dict[str, list[RowTyping]] = {}
    for t in typings:
        rows.setdefault(t.row.name, []).append(t)
    trained, stored, frozen, head = _NONE, _NONE, _NONE, _NONE
    folds: list[tuple[Size, Size]] = []
    for found in rows.values():
        learned = _entries((t, x) for t in found if t.site.family != "head" for x in t.tensors if not x.frozen)
        own = _total(learned)
        trained = trained + own
        frozen = frozen + _total(_entries((t, x) for t in found for x in t.tensors if x.frozen))
        head = head + _total(_entries((t, x) for t in found if t.site.family == "head" for x in t.tensors if not x.frozen))
        after = _folded([t for t in found if t.site.family != "head"], learned)
        if after is None:
            stored = stored + own
        else:
            folds.append((own, after))
    copies = tuple(w for t in method.trains if (w := _words(t)) and not _of_head(t))
    heads = tuple(_words(t) for t in method.trains if _of_head(t))
    return {
        "trained": Count(trained, copies), "stored": Count(stored, copies, tuple(folds)), "frozen": Count(frozen),
        "head": Count(head, heads),
    }  # fmt: skip


def formula(method: Method) -> dict[str, str]:
    """`counts` as text: ``{"trained": "2 L d_model r + …", …}``."""
    return {name: str(count) for name, count in counts(method).items()}


# ---------------------------------------------------------------- tensors

_Key = tuple[str, ...]


def _entries(found: Iterable[tuple[RowTyping, TensorTyping]]) -> dict[_Key, Size]:
    """Each tensor of the method once, whoever shares it, with its entries in the whole model."""
    out: dict[_Key, Size] = {}
    for t, x in found:
        key, size = _entry(t, x.label, x.place, x.type)
        out[key] = size
    return out


def _entry(t: RowTyping, label: str, place: str, type_: TensorType) -> tuple[_Key, Size]:
    once = t.site.family in _ONCE
    size = Size.of(1)
    for s in type_.sizes:
        size = size * s
    for axis in type_.axes & {"head", "group"}:
        size = size * Size.of(f"{axis}s")
    if place == "model":
        return (place, t.row.name, label), size
    if place == "layer" and not once:
        return (place, t.row.name, label), size * _layers(t)
    if place == "kind" or once:
        return ("kind", t.site.name, t.row.name, label), size
    return ("site", t.site.name, t.row.name, label), size * _layers(t)


def _total(entries: Mapping[_Key, Size]) -> Size:
    total = _NONE
    for size in entries.values():
        total = total + size
    return total.bind(_ALIKE)


def _layers(t: RowTyping) -> Size:
    return _selected(t.row.layers, "L_cross" if t.site.name.startswith("cross") else "L")


def _selected(selection: Selection | None, depth: str) -> Size:
    """How many layers a selection holds, clamped to those there are."""
    if selection is None or selection.word == "all":
        return Size.of(depth)
    values = [to_text(v) for v in selection.values]
    if selection.word in ("first", "last"):
        return Size.of(f"min({values[0]}, {depth})")
    if selection.word == "range":
        return Size.of(f"min({values[1]}, {depth})") - Size.of(f"min({values[0]}, {depth})")
    if selection.word == "every":
        return Size.of(f"ceil({depth} / ({values[0]}))")
    raise error("E0515", f"layers are not selected with `{selection.word}`", selection.span)


def _folded(found: list[RowTyping], learned: Mapping[_Key, Size]) -> Size | None:
    """The row's count after folding, as `compiler.plan` counts it; None where nothing folds."""
    after: dict[_Key, Size] = {}
    any_folds = False
    for t in found:
        form, folds = fold_form(t)
        any_folds = any_folds or bool(folds)
        left = {s.name for s in form if isinstance(s, Tensor)}
        for x in t.tensors:
            if not x.frozen and (x.part or x.name in left or x.declaration in t.row.compose):
                key, _ = _entry(t, x.label, x.place, x.type)
                after[key] = learned[key]
        for f in folds:
            after |= dict([_fold_entry(t, f)])
    return _total(after) if any_folds else None


def _fold_entry(t: RowTyping, f: Fold) -> tuple[_Key, Size]:
    return _entry(t, f.name, f.place, f.type)


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
    from .parser import parse_expression

    known = dict(values)
    names = {n: Value(NumberType(Size.of(v), v)) for n, v in values.items()}
    for symbol in size.symbols - set(known):
        found = Inference(dict(names), {}).infer(parse_expression(symbol)).type
        if not isinstance(found, NumberType) or not isinstance(found.value, (int, Fraction)):
            raise KeyError(symbol)
        known[symbol] = int(found.value)
    total = size.bind(known).number
    assert total is not None and total.denominator == 1, f"unbound size {size}"
    return int(total)
