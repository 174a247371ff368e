"""A method with the types of everything in it: every row at every site that it names, checked and typed once.

What is known of a method is found from here: verdicts, counts, normal forms, folds, pictures and plans read typed rows,
and nothing outside the checker infers a type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..check.methods import anywhere, open_paths, site_problem, sites_of
from ..check.outside import outside_the_layers
from ..check.parameters import check_parameters
from ..ir import Method, Row
from ..once import once
from ..report.diagnostics import Diagnostic, Label, PeltError, error, near
from ..sites import NUMBERS, SIZES, signature, site_name
from ..sizes import Size
from ..syntax.nodes import NOWHERE, Param, Selection
from ..types.arguments import parameters
from ..types.declared import multiple
from ..types.infer import Inference
from ..types.inputs import disagreement
from ..types.layers import WORDS, least
from ..types.rows import distinct, require, typed_row
from ..types.typed import SYMBOLS, Sizes, TypedRow
from ..types.values import NumberType, Poison, Value


@dataclass(frozen=True, slots=True, eq=False)
class TypedMethod:
    """A method and its typed rows: one for each row at each site that it names, in the order of the text."""

    method: Method
    rows: tuple[TypedRow, ...]

    def __repr__(self) -> str:
        return f"<types of {self.method!r}>"

    def __str__(self) -> str:
        from ..write import typed

        return typed.text(self.method, self.rows)

    def to_json(self) -> dict[str, Any]:
        """The rows as plain data; their schema is `unipelt.language.write.typed.json_schema`."""
        from ..write import typed

        return typed.data(self.method, self.rows)

    def of(self, row: Row) -> list[TypedRow]:
        """A row of the method at each of its sites."""
        return [t for t in self.rows if t.row.name == row.name]


def analyse(method: Method, sizes: Mapping[str, int] | None = None) -> TypedMethod:
    """The types of a method, checked; the same value for the same method. Raises `PeltError` with all mistakes.

    Sizes are symbols. With ``sizes`` (``d_model``, ``heads``, … and the numbers ``layer`` and ``depth``) rows are typed as they
    are at a site of a model that has these; an argument that is bound is then its value.
    """
    if sizes is None:
        return _analysed(method, SYMBOLS)
    known = (*SIZES, *NUMBERS)
    for name, value in sizes.items():
        if name not in known:
            raise error(
                "E0593",
                f"`analyse` knows no size `{name}`",
                help=near(name, known) or f"the sizes are {', '.join(known)}",
            )
        if value < (name != "layer"):
            raise error(
                "E0593",
                f"the size `{name}` of `analyse` is {value}",
                help=f"give a whole number of at least {int(name != 'layer')}",
            )
    values = {n: v for n, v in sizes.items() if n not in NUMBERS}
    return _analysed(method, Sizes(values, sizes.get("layer"), sizes.get("depth")))


@once
def _analysed(method: Method, sizes: Sizes) -> TypedMethod:
    problems, params = check_parameters(method.params, f"the method `{method.name}`")
    sound = replace(method, params=tuple(params)) if problems else method
    rows: list[TypedRow] = []
    for row in method.rows:
        for path in sites_of(row.sites, params):
            problem = site_problem(path)
            if problem is not None:
                problems.append(problem)
                continue
            stack, name = site_name(str(path))
            try:
                rows.append(typed_row(sound, row, signature(name), sizes, stack))  # type: ignore[arg-type]
                if (outside := outside_the_layers(rows[-1])) is not None:
                    problems.append(outside)
            except PeltError as e:
                problems += [_from_afar(d, method, row) for d in e.diagnostics]
        if open_paths(row, params):
            problems += [_from_afar(d, method, row) for d in anywhere(sound, row)[1]]
    for selection in (*(r.layers for r in method.rows), *(t.layers for t in method.trains)):
        problems += _selection(selection, method.params) if selection is not None else []
    for lr in (t.lr for t in method.trains if t.lr is not None):
        inf = Inference(parameters(method.params, False), {})
        multiple(inf, lr, inf.infer(lr))
        problems += inf.problems
    clash = disagreement([i for t in rows for i in t.inputs])
    if clash is not None and not problems:
        problems.append(clash)
    if not problems:
        inf = Inference(parameters(method.params, False), {n: Size.of(n) for n in SIZES if n != "d_x"})
        inf.names["params"] = Value(NumberType())
        for r in method.requires:
            require(r, inf)
        problems += inf.problems
    if problems:
        raise PeltError(distinct(problems))
    return TypedMethod(method, tuple(rows))


def _selection(selection: Selection, params: Sequence[Param]) -> list[Diagnostic]:
    """What is wrong with a selection of layers on any model."""
    if selection.word not in WORDS:
        return [Diagnostic("E0515", f"`{selection.word}` selects tokens, not layers", selection.span,
                           help="select all, first k, last k, every k or a .. b")]  # fmt: skip
    inf = Inference(parameters(params, False), {})
    for e in selection.values:
        t = inf.infer(e).type
        if isinstance(t, Poison):
            return inf.problems
        value = t.value if isinstance(t, NumberType) else None
        if not isinstance(t, NumberType) or isinstance(value, (bool, float)):
            return [Diagnostic("E0514", "a layer is counted by a whole number", e.span)]
        low, said = least(selection.word)
        if value is not None and value < low:
            return [Diagnostic("E0514", said, e.span)]
    return []


def _from_afar(d: Diagnostic, method: Method, row: Row) -> Diagnostic:
    """A mistake that shows itself in a definition of another file names the method that brings the two together."""
    if d.span.file == method.span.file or method.span == NOWHERE:
        return d
    return replace(d, labels=(*d.labels, Label(method.span, f"in the row `{row.name}` of this method")))
