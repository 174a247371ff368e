"""Arguments as values: symbols while a method is checked, numbers once ``layer`` and ``depth`` are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..report.diagnostics import Diagnostic
from .infer import Inference
from .fitting import PARAM_TYPES
from .layers import layered
from ..sizes import Size
from ..syntax.nodes import Name, Param
from .values import POISON, NumberType, Poison, Value, WordType

NO_NUMBERS: Mapping[str, int] = {}


def parameters(
    params: Sequence[Param],
    numeric: bool,
    numbers: Mapping[str, int] = NO_NUMBERS,
    problems: list[Diagnostic] | None = None,
) -> dict[str, Value]:
    """Parameters as values: symbols, or their bound arguments. ``numbers`` are ``layer`` and ``depth`` where they are known.

    Mistakes in arguments go to ``problems``. Bound arguments that depend on the layer are left out where it is unknown.
    """
    scope = {n: Value(NumberType(Size.of(v), v), reads=frozenset({n})) for n, v in numbers.items()}
    known: dict[str, Value] = {}
    inf = Inference(known, {})
    of_layer = layered(params)
    for p in params:
        if p.type not in PARAM_TYPES:
            known[p.name] = Value(POISON)  # which is said already
            continue
        if p.type == "adapters":  # how many there are is a number; what they do is `members`
            known[p.name] = Value(NumberType(Size.of(p.name)))
            continue
        if p.type in ("activation", "init", "sites", "string", "scope"):
            word = p.default.id if isinstance(p.default, Name) else p.default
            known[p.name] = Value(WordType(p.type, word))
            continue
        if numeric and p.name in of_layer and "layer" not in numbers:
            continue
        value = Value(NumberType())
        if p.default is not None:
            inf.names = {**scope, **known}
            before = len(inf.problems)
            value = _fitting(p, inf.infer(p.default), numbers, inf)
            inf.problems[before:] = [replace(d, span=d.span if d.span.file else p.span) for d in inf.problems[before:]]
        reads = value.reads & {"layer"}
        bound = numeric and p.default is not None
        known[p.name] = (
            value
            if bound or isinstance(value.type, Poison)
            else Value(NumberType(Size.of(p.name) if p.type == "int" else None), reads=reads)
        )
    if problems is not None:
        problems += inf.problems
    return known


def _fitting(p: Param, value: Value, numbers: Mapping[str, int], inf: Inference) -> Value:
    """The value of an argument, which is a number of the parameter's type at every layer."""
    t = value.type
    n = t.value if isinstance(t, NumberType) else None
    if isinstance(t, Poison) or (isinstance(t, NumberType) and n is None):
        return value  # it is said already, or not known before there is a model
    fit = {"int": isinstance(n, int) and not isinstance(n, bool), "bool": isinstance(n, bool)}
    if fit.get(p.type, n is not None):
        return value
    where = f", and at layer {numbers['layer']} it is" if "layer" in value.reads and "layer" in numbers else ", not"
    what = {"int": "a whole number", "bool": "true or false"}.get(p.type, "a number")
    return inf.fail("E0368", f"`{p.name}` takes {what}{where} {t if n is None or isinstance(n, bool) else f'{n:g}'}",
                    p.default.span if p.default is not None else p.span)  # fmt: skip
