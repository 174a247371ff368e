"""Calls of definitions: found, their arguments bound, their bodies put in the place of the call.

Non-goals: what a method consists of (`elaborate`), types and sizes (`check`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..report.diagnostics import PeltError, counted, error, instead, put
from ..types.fitting import EXAMPLES, PARAM_TYPES, as_float, fits, misfit, words_of
from ..library import title
from .names import Names
from ..types.primitives import PRIMITIVES
from ..syntax.lines import binds
from ..syntax.printer import to_text
from ..report.texts import inside
from ..syntax.nodes import (
    AnatomyDef,
    Apply,
    Arg,
    Expr,
    Later,
    Let,
    ListOf,
    Modify,
    Name,
    Number,
    Param,
    Path,
    Scope,
    Span,
    Statement,
    String,
    Tensor,
    site_text,
    rewrite,
    walk,
)  # fmt: skip

MAX_NODES = 2000  # of an argument after substitution: `use` in `use` may double them each time
MAX_LINES = 256  # of a body with what it calls: a call may double them, too
_MOST = 256  # bodies that are remembered
Mapping = dict[str, Expr]
Scoped = dict[str, Param]
NO_PARAMS: Scoped = {}


def callee(what: str, call: Apply, names: Names, scope: Scoped = NO_PARAMS) -> tuple[Any, Mapping]:
    """The definition a call names, and its parameters' values. ``scope`` are the caller's own parameters."""
    name = call.function
    definition = names.find(what, name) if isinstance(name, Name) else None
    if definition is None:
        raise missing(what, name, names)
    assert not isinstance(definition, AnatomyDef)
    return definition, bind(definition.params, call, f"the {title(what)} `{definition.name}`", scope)


def missing(what: str, name: Expr, names: Names) -> PeltError:
    """That no definition of a kind has the name: a close one is suggested, or what else has it."""
    text, known = to_text(name), names.names(what)
    code, listed = (
        ("E0221", f"known: {', '.join(known)}")
        if what == "compose"
        else ("E0225", f"`unipelt list --all` shows the {title(what)}s there are")
    )
    elsewhere = names.elsewhere(name) if isinstance(name, Name) else ""
    more = {"help": elsewhere} if elsewhere else instead(text, known, name.span, listed)
    return error(code, f"there is no {title(what)} named `{text}`", name.span, **more)


def bind(params: Sequence[Param], call: Apply, what: str, scope: Scoped = NO_PARAMS) -> Mapping:
    """Positional and named arguments to parameters; defaults fill the rest. ``scope`` are the caller's own parameters."""
    mapping: Mapping = {}
    listed = ", ".join(f"{p.name}: {p.type}" for p in params) or "none"
    known = {p.name: p for p in params}
    positional = [a for a in call.args if a.name is None]
    if len(positional) > len(params):
        raise error("E0206", f"{what} takes {counted(len(params), 'argument')}, {len(positional)} are given",
                    positional[len(params)].span, help=f"its parameters: {listed}")  # fmt: skip
    pairs = [(params[i].name, a) for i, a in enumerate(positional)]
    pairs += [(a.name, a) for a in call.args if a.name is not None]
    for name, arg in pairs:
        if name not in known:
            raise error("E0206", f"{what} has no parameter `{name}`", arg.span,
                        **_parameter(name, known, arg.span, listed))  # fmt: skip
        if name in mapping:
            raise error("E0208", f"the parameter `{name}` is given twice", arg.span, help="give it once")
        value = arg.value
        if known[name].type == "float":
            value = as_float(value)
        passed = scope.get(value.id) if isinstance(value, Name) else None
        if passed is not None and not _passes(passed, known[name].type):
            raise error("E0209", f"the parameter `{name}` of {what} takes type {known[name].type}, and `{passed.name}` is of type "
                        f"{passed.type}", arg.span, **_retyped(passed, known[name].type, listed))  # fmt: skip
        if isinstance(value, (Number, String, ListOf)) and not fits(value, known[name].type):
            raise error("E0209", f"the parameter `{name}` of {what} takes type {known[name].type}", arg.span,
                        **fitting(value, known[name].type))  # fmt: skip
        mapping[name] = short_enough(value, what, name, arg.span)
    for p in params:
        if p.name not in mapping:
            if p.default is None:
                raise error(
                    "E0207", f"{what} needs a value for `{p.name}`", call.span, help=f"its parameters: {listed}"
                )
            mapping[p.name] = short_enough(substitute(p.default, dict(mapping)), what, p.name, p.span)
        if p.type == "adapters" and not isinstance(mapping[p.name], Name):
            raise error("E0381", f"{what} reads adapters by the name of an argument, and `{p.name}` is given a list of them", call.span,
                        help=f"give the method that uses it a parameter `{p.name}: adapters`, and hand that on")  # fmt: skip
    return mapping


def short_enough(value: Any, what: str, name: str, span: Span) -> Any:
    """An argument that is not too long: what doubles from one parameter to the next would grow without end."""
    if any(n >= MAX_NODES for n, _ in enumerate(walk(value))):
        raise error(
            "E0227",
            f"the argument `{name}` of {what} grows beyond {MAX_NODES} words",
            span,
            help="write it shorter: `2 * s` for `s + s`, or a number",
        )
    return value


def fitting(value: Expr, type_: str) -> dict[str, Any]:
    """Help about a value that does not fit: which item of a list is at fault, or the whole number that a float is."""
    if type_ == "int" and isinstance(value, Number) and float(value.value).is_integer() and not value.percent:
        return {"help": f"write {int(value.value)}", "edits": put(str(int(value.value)), value.span)}
    if (
        isinstance(value, String)
        and re.fullmatch(r"\d+" if type_ == "int" else r"\d+(\.\d+)?", value.value)
        and type_ in ("int", "float")
    ):
        return {"help": f"write {value.value}, without quotes", "edits": put(value.value, value.span)}
    known = words_of(type_)
    name = value.function if isinstance(value, Apply) else value
    if known and isinstance(name, Name):
        return instead(name.id, known, name.span, f"known: {', '.join(known)}")
    return {"help": misfit(value, type_) or EXAMPLES.get(type_, "")}


def _retyped(passed: Param, type_: str, listed: str) -> dict[str, Any]:
    """Help about a number that is handed on as one of another type."""
    place = inside(passed.span, r":\s*(\w+)") if (passed.type, type_) == ("float", "int") else None
    if place is None:
        return {"help": f"its parameters: {listed}"}
    return {"help": f"give `{passed.name}` the type `int`", "edits": put("int", place)}


def _passes(passed: Param, type_: str) -> bool:
    """Whether a parameter may be handed on as one of another type: numbers as floats, and each as its own."""
    numbers = ("int", "float", "bool")
    if passed.type not in PARAM_TYPES or type_ not in PARAM_TYPES:
        return True  # which is said already
    return (
        passed.type == type_
        or (type_ == "float" and passed.type in numbers)
        or (type_ == "bool" and passed.type in numbers)
    )


def _parameter(name: str, known: dict[str, Param], span: Span, listed: str) -> dict[str, Any]:
    """Help about a misspelt parameter, whose name begins the argument."""
    found = instead(name, known, replace(span, end=span.start + len(name)))
    return {**found, "help": " ".join(filter(None, [found["help"], f"its parameters: {listed}"]))}


def substitute(node: Any, mapping: Mapping) -> Any:
    """The node with parameters replaced by expressions, also as scopes (`per share`) and sites (`modify at`)."""
    if not mapping:
        return node

    def change(n: Any) -> Any:
        if isinstance(n, Name) and n.id in mapping:
            return mapping[n.id]
        if isinstance(n, Scope) and isinstance(mapping.get(n.name), Name):
            return replace(n, name=mapping[n.name].id)  # type: ignore[union-attr]
        if isinstance(n, Modify):
            return replace(n, alternatives=tuple(_sites(a, mapping) for a in n.alternatives))
        return n

    return rewrite(node, change)


def substitute_all(body: tuple[Statement, ...], mapping: Mapping) -> tuple[Statement, ...]:
    return tuple(substitute(s, mapping) for s in body)


def _sites(paths: tuple[Path, ...], mapping: Mapping) -> tuple[Path, ...]:
    out: list[Path] = []
    for p in paths:
        value = mapping.get(p.parts[0]) if len(p.parts) == 1 else None
        out += site_paths(value) if value is not None else [p]
    return tuple(out)


def site_paths(value: Expr) -> list[Path]:
    """The sites an argument of type `sites` names: ``[attn, ffn]`` or ``attn.q``."""
    items = value.items if isinstance(value, ListOf) else (value,)
    found = [(site_text(i), i) for i in items]
    for text, item in found:
        if text is None:
            raise error("E0226", "an argument of type `sites` is a site or a list of sites", item.span,
                        help="for example [attn, ffn]")  # fmt: skip
    return [Path(tuple(str(t).split(".")), i.span) for t, i in found]


# ---------------------------------------------------------------- calls in expressions


def inline_calls(body: tuple[Statement, ...], names: Names, trail: tuple[Any, ...] = ()) -> tuple[Statement, ...]:
    """Replaces calls of gates and forms in expressions by their statements, with local names prefixed by the let's name."""
    out: list[Statement] = []
    for statement in body:
        if not isinstance(statement, Let):
            out.append(statement)
            continue
        value = statement.value
        direct = isinstance(value, Apply) and _called(value, names)

        def inline(node: Any, statement: Let = statement, direct: Any = direct, top: Any = value) -> Any:
            what = _called(node, names) if isinstance(node, Apply) else None
            if what is None:
                return node
            name = node.function.id
            if not node.args:
                raise error("E0222", f"the {what} `{name}` needs what it reads as its first argument", node.span,
                            help=f"write `{name}(x)`")  # fmt: skip
            is_top = direct and node == top and len(statement.names) == 1
            prefix = statement.names[0] if is_top else f"{name}_{len(out)}"
            definition, mapping = callee(what, Apply(node.function, node.args[1:], node.span), names)
            if any(d is definition for d in trail):
                raise error(
                    "E0213",
                    f"the {what} `{name}` uses itself",
                    node.span,
                    help="write out what it does in place of the call",
                )
            inner = _inlined(definition, mapping, names, (*trail, definition))
            if len(out) + len(inner) > MAX_LINES:
                raise error("E0227", f"with the {what} `{name}` this grows beyond {MAX_LINES} lines", node.span,
                            help="call it once, and read what it gave by the name on the left")  # fmt: skip
            out.extend(_prefixed(inner, prefix, node.args[0].value, _RESULTS[what]))
            return Name(prefix, node.span)

        new = rewrite(value, inline)
        if not (direct and isinstance(new, Name) and new.id == statement.names[0]):
            out.append(replace(statement, value=new))
    names.lines += len(out)
    return tuple(out)


_RESULTS = {"gate": "g", "form": "delta"}


def _inlined(definition: Any, mapping: Mapping, names: Names, trail: tuple[Any, ...]) -> tuple[Statement, ...]:
    """A definition's body with what it calls, worked out once for the same arguments: calls may double from one to the next."""
    key = (definition.what, definition.name, definition.name_span, tuple((n, v, v.span) for n, v in mapping.items()))
    if key not in names.inlined:
        try:
            found: tuple[Statement, ...] | PeltError = inline_calls(
                substitute_all(definition.body, mapping), names, trail
            )
        except PeltError as e:
            if any(d.code == "E0213" for d in e.diagnostics):  # what is a circle depends on where one comes from
                raise
            found = e
        if len(names.inlined) >= _MOST:
            names.inlined.clear()
        names.inlined[key] = found
    known = names.inlined[key]
    if isinstance(known, PeltError):
        raise PeltError(known.diagnostics)
    return known


def _called(node: Apply, names: Names) -> str | None:
    """Whether a call is that of a `gate` or of a `form`."""
    if not isinstance(node.function, Name) or node.function.id in PRIMITIVES:
        return None
    return next((what for what in _RESULTS if names.find(what, node.function) is not None), None)


def _prefixed(body: tuple[Statement, ...], prefix: str, z: Expr, result: str) -> list[Statement]:
    local = {n for s in body for n in binds(s)}
    mapping: Mapping = {n: Name(prefix if n == result else f"{prefix}_{n}") for n in local}
    mapping |= {"z": z, "d_in": Apply(Name("width"), (Arg(z),))}
    renamed: list[Statement] = []
    for s in body:
        s = substitute(s, mapping)
        if isinstance(s, (Let, Later)):
            s = replace(s, names=tuple(mapping[n].id for n in s.names))  # type: ignore[union-attr]
        elif isinstance(s, Tensor):
            s = replace(s, name=mapping[s.name].id)  # type: ignore[union-attr]
        renamed.append(s)
    return renamed
