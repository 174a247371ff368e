"""Arguments as expressions: what a parameter of each type takes, and Python values for them and back.

Non-goal: what an argument is worth where it is read (`arguments`).
"""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from typing import Any

from ..report.diagnostics import PeltError, error, near
from .initialisers import INITIALISERS
from .layers import NUMERIC
from ..syntax.parser import parse_expression
from .primitives import PRIMITIVES
from ..syntax.printer import to_text
from ..syntax.nodes import Apply, Choose, Compare, Expr, ListOf, Name, Negative, Number, Param, String

PARAM_TYPES = ("int", "float", "bool", "string", "activation", "init", "sites", "scope", "adapters")
EXAMPLES = {
    "int": "for example 8", "float": "for example 0.1", "bool": "true or false", "activation": "for example gelu",
    "init": "for example normal(0.02)", "sites": "for example [attn, ffn]",
    "adapters": 'for example ["first", "second"]',
}  # fmt: skip


def argument(param: Param, value: Any) -> Expr:
    """A Python value (or a text of the language) as an expression of the parameter's type."""
    try:
        expr = _expression(value, param.type, f"<{param.name}>")
    except PeltError as e:
        raise error("E0405", f"the argument `{param.name}` cannot be read: {e.diagnostics[0].message}") from None
    if expr is None or not fits(expr, param.type):
        raise error(
            "E0405", f"the argument `{param.name}` takes {_article(param.type)}, not {value!r}",
            help="; ".join(filter(None, [misfit(expr, param.type), EXAMPLES.get(param.type, "")])),
        )  # fmt: skip
    return expr


def takes(param: Param) -> str:
    """What an argument may be, as a sentence with an example."""
    example = EXAMPLES.get(param.type)
    return f"`{param.name}` takes {_article(param.type)}" + (f", {example}" if example else "")


def _article(type_: str) -> str:
    articles = {
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "string": "a text",
        "adapters": "a list of adapters",
    }
    return articles.get(type_, f"an expression of type {type_}")


def _expression(value: Any, type_: str, place: str) -> Expr | None:
    if type_ == "adapters" and (names := _adapters(value)) is not None:
        return ListOf(tuple(map(String, names)))
    if isinstance(value, bool):
        return Name("true" if value else "false")
    if isinstance(value, (int, float)):
        if value != value or value in (float("inf"), float("-inf")):
            return None
        number = float(value) if type_ == "float" else value
        return Number(number) if number >= 0 else Negative(Number(-number))
    if isinstance(value, str):
        if type_ == "string":
            return String(value)
        return as_float(parse_expression(value, place)) if type_ == "float" else parse_expression(value, place)
    if isinstance(value, (list, tuple)):
        items = [_expression(v, type_, place) for v in value]
        return ListOf(tuple(i for i in items if i is not None)) if None not in items else None
    if hasattr(value, "__dataclass_fields__"):
        return value
    return None


def _adapters(value: Any) -> list[str] | None:
    """Names and folders in a list, or in a text with commas between them; None where it is neither, or written in the language."""
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return [name.strip() for name in value.split(",")]
    if isinstance(value, (list, tuple)) and all(isinstance(v, (str, PathLike)) for v in value):
        return [str(v) for v in value]
    return None


def as_float(expr: Expr) -> Expr:
    """The numbers of an argument of type `float`, those of a list too, as such."""
    if isinstance(expr, ListOf):
        return replace(expr, items=tuple(as_float(i) for i in expr.items))
    if isinstance(expr, Negative):
        return replace(expr, value=as_float(expr.value))
    return replace(expr, value=float(expr.value)) if isinstance(expr, Number) else expr


#: What words are that are arguments of a type.
WORDS = {"activation": "an activation", "init": "a distribution"}


def words_of(type_: str) -> tuple[str, ...]:
    """The words of the language that are arguments of that type."""
    if type_ == "activation":
        return tuple(name for name, p in PRIMITIVES.items() if p.elementwise)
    return tuple(INITIALISERS) if type_ == "init" else ()


def misfit(expr: Expr | None, type_: str) -> str:
    """Which item of a list is at fault, or which name may have been meant; no text otherwise."""
    named = expr.function if isinstance(expr, Apply) else expr
    if isinstance(named, Name) and (words := words_of(type_)):
        return near(named.id, words)
    if not isinstance(expr, ListOf) or type_ not in NUMERIC:
        return ""
    for n, item in enumerate(expr.items, 1):
        if isinstance(item, ListOf) or not fits(item, type_):
            return (
                f"value {n} of the list is no {({'int': 'whole number', 'float': 'number'}).get(type_, 'truth value')}"
            )
    return "" if expr.items else "a list has a value for each layer, and this one is empty"


def fits(expr: Expr, type_: str) -> bool:
    """Whether a closed expression can be an argument of that type. A list has a value for each layer."""
    if isinstance(expr, ListOf) and type_ in NUMERIC:
        return not misfit(expr, type_)
    if type_ in ("int", "float"):
        inner = expr.value if isinstance(expr, Negative) else expr
        if isinstance(inner, Number):
            return type_ == "float" or isinstance(inner.value, int)
        return not isinstance(inner, String)
    if type_ == "bool":
        return isinstance(expr, (Compare, Choose)) or (isinstance(expr, Name) and expr.id in ("true", "false"))
    if type_ == "string":
        return isinstance(expr, String)
    if words := words_of(type_):
        name = expr.function if isinstance(expr, Apply) and type_ == "init" else expr
        return isinstance(name, Name) and name.id in words
    if type_ == "scope":
        return isinstance(expr, Name)
    if type_ == "adapters":
        given = expr.items if isinstance(expr, ListOf) else ()
        return bool(given) and all(isinstance(i, String) and i.value for i in given)
    return not isinstance(expr, (Number, Negative, String))


def plain(expr: Expr | None) -> Any:
    """A Python value of a literal; the expression's text otherwise."""
    if isinstance(expr, Number):
        return expr.value
    if isinstance(expr, Negative) and isinstance(expr.value, Number):
        return -expr.value.value
    if isinstance(expr, String):
        return expr.value
    if isinstance(expr, Name) and expr.id in ("true", "false"):
        return expr.id == "true"
    if isinstance(expr, ListOf) and all(
        isinstance(i, String) or isinstance(plain(i), (int, float)) for i in expr.items
    ):
        return [plain(i) for i in expr.items]
    if expr is None:
        return None
    return to_text(expr)
