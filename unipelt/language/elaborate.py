"""Definitions to the IR: `from`, `use`, arguments and calls of definitions are resolved and inlined.

Inlining substitutes arguments for parameters, so that everything is in terms of the outermost method's parameters.
Non-goals: types and sizes (`check`), what a site is on a model (the compiler).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .diagnostics import Diagnostic, Label, PeltError, error, near
from .ir import Columns, Method, Row, Trained, as_float, fits, misfit
from .library import Names
from .primitives import PRIMITIVES
from .printer import to_text
from .sites import RESERVED
from .syntax import (
    AnatomyDef,
    Apply,
    Arg,
    Block,
    Clause,
    Compose,
    Expr,
    Form,
    Input,
    Insert,
    Layers,
    Let,
    ListOf,
    MethodDef,
    Modify,
    Name,
    Number,
    Param,
    Path,
    Require,
    RowBlock,
    Scope,
    Span,
    Statement,
    String,
    Tensor,
    Tokens,
    Train,
    Use,
    rewrite,
    walk,
)  # fmt: skip

MAX_DEPTH = 32
MAX_PARTS = 512  # rows, trained copies and requirements of one method
MAX_NODES = 2000  # of an argument after substitution: `use` in `use` may double it each time
Mapping = dict[str, Expr]
Trail = tuple[MethodDef, ...]  # the methods that are being put together, outermost first
SLOTS: dict[type, str] = {Modify: "modify", Insert: "insert", Form: "form", Compose: "compose", Layers: "layers",
                          Tokens: "tokens"}  # fmt: skip


@dataclass
class Draft:
    """A row while it is put together; slots hold syntax in terms of the outermost parameters."""

    name: str
    span: Span
    slots: dict[str, Any] = field(default_factory=dict)
    gate: Apply | Block | None = None
    used: Span | None = None  # the outermost `use` that brings the row in


@dataclass
class Parts:
    """What a method consists of, before its rows are inlined."""

    drafts: list[Draft] = field(default_factory=list)
    trains: list[Trained] = field(default_factory=list)
    requires: list[Require] = field(default_factory=list)


def is_space(definition: MethodDef) -> bool:
    """Whether a slot or an argument holds alternatives, which makes the method a space of methods."""
    return _alternative(definition) is not None


def _alternative(definition: MethodDef) -> Any:
    """The first parameter or slot with alternatives."""
    if definition.choices:
        return definition.choices[0]
    return next((c for c in walk(definition) if len(getattr(c, "alternatives", ())) > 1), None)


def elaborate(definition: MethodDef, names: Names, found: list[Diagnostic] | None = None) -> Method:
    """The resolved method; raises `PeltError` with every mistake found in its rows.

    Given a list ``found``, mistakes are added to it instead, and a row whose composition or gate is at fault goes on
    without it, so that the rest of the row is checked too.
    """
    _refuse_space(definition)
    parts = _parts(definition, {}, names, ())
    problems: list[Diagnostic] = []
    rows: list[Row] = []
    for draft in parts.drafts:
        try:
            rows.append(_row(draft, definition, names, problems))
        except PeltError as e:
            problems += e.diagnostics
    seen: dict[str, Span] = {}
    for draft in parts.drafts:
        if draft.name in seen:
            problems.append(
                Diagnostic(
                    "E0211", f"two rows are named `{draft.name}`", draft.used or draft.span,
                    labels=(Label(seen[draft.name], "the first one"),), help="name one of them: `use … as NAME`",
                )  # fmt: skip
            )
        seen[draft.name] = draft.used or draft.span
    if not rows and not parts.trains and not problems:
        problems.append(
            Diagnostic("E0212", f"the method `{definition.name}` changes nothing", definition.name_span,
                       help="add a row (`modify`, `insert`, `form`, `compose`), a `use` or a `train`")
        )  # fmt: skip
    if problems and found is None:
        raise PeltError(problems)
    if found is not None:
        found += problems
    return Method(
        definition.name, definition.params, tuple(rows), tuple(parts.trains), tuple(parts.requires), definition.doc,
        definition.span.file, definition.name_span,
    )  # fmt: skip


def drafts(definition: MethodDef, names: Names) -> list[Draft]:
    """The rows of a method with their slots as they were written, in terms of its own parameters."""
    _refuse_space(definition)
    return _parts(definition, {}, names, ()).drafts


def _refuse_space(definition: MethodDef, span: Span | None = None) -> None:
    several = _alternative(definition)
    if several is not None:
        raise error(
            "E0220", f"`{definition.name}` is a space of methods, not one method", span or several.span,
            help="keep one alternative in each slot, or let `unipelt generate` write its members",
        )  # fmt: skip


# ---------------------------------------------------------------- methods


def _inner(call: Apply, bound: Mapping, names: Names, trail: Trail) -> Parts:
    """The parts of the method that a `from` or `use` calls."""
    callee, mapping = _callee("method", call, names)
    if any(d is callee for d in trail):
        chain = " → ".join(f"`{d.name}`" for d in (*trail, callee))
        raise error("E0213", f"the method `{callee.name}` uses itself: {chain}", call.function.span,
                    help="say in one of them what it does in its own words")  # fmt: skip
    _refuse_space(callee, call.function.span)
    if len(trail) > MAX_DEPTH:
        raise error("E0213", f"methods use each other more than {MAX_DEPTH} deep", call.function.span)
    given = {k: substitute(v, bound) for k, v in mapping.items()}
    if any(n >= MAX_NODES for v in given.values() for n, _ in enumerate(walk(v))):
        raise error("E0227", f"an argument of `{callee.name}` grows beyond {MAX_NODES} words", call.span)
    return _parts(callee, given, names, trail)


def _parts(definition: MethodDef, bound: Mapping, names: Names, trail: Trail) -> Parts:
    """The rows of a method with ``bound`` for its parameters; ``{}`` leaves them as they are (the outermost)."""
    trail = (*trail, definition)
    parts = Parts()
    if definition.base is not None:
        parts = _inner(definition.base, bound, names, trail)
        for draft in parts.drafts:
            draft.name = definition.name if len(parts.drafts) == 1 else draft.name
    _apply_clauses(definition.clauses, parts, definition.name, bound, names, trail, inherited=definition.base is not None)
    return parts


def _apply_clauses(
    clauses: Sequence[Clause], parts: Parts, name: str, bound: Mapping, names: Names, trail: Trail, inherited: bool
) -> None:
    own: dict[str, Any] = {}
    trains: list[Train] = []
    for clause in clauses:
        slot = SLOTS.get(type(clause))
        if slot is not None:
            if slot in own:
                raise error("E0214", f"the slot `{slot}` is set twice", clause.span,
                            labels=(Label(own[slot].span, "the first time"),))  # fmt: skip
            own[slot] = substitute(clause, bound)
        elif isinstance(clause, Use):
            parts.drafts += _use(clause, parts, name, bound, names, trail)
            if len(parts.drafts) + len(parts.trains) + len(parts.requires) > MAX_PARTS:
                raise error("E0227", f"the method `{name}` has more than {MAX_PARTS} rows", clause.span)
        elif isinstance(clause, Train):
            trains.append(clause)
        elif isinstance(clause, Require):
            parts.requires.append(substitute(clause, bound))
        else:
            raise error("E0215", "tensors, lets and this word are not built yet at the level of a method", clause.span,
                        help="move it into the row's form")  # fmt: skip
    layers = own["layers"].alternatives[0] if "layers" in own else None
    for clause in trains:
        taken = {t.name for t in parts.trains}
        label = "train" if "train" not in taken else f"train_{len(taken) + 1}"
        parts.trains.append(
            Trained(label, substitute(clause, bound).paths, substitute(clause, bound).lr, layers, clause.span)
        )
    if not own or (set(own) == {"layers"} and (trains or not inherited)):
        if layers is not None:
            for draft in parts.drafts:
                draft.slots.setdefault("layers", own["layers"])
        return
    span = next(iter(own.values())).span
    if inherited:
        if len(parts.drafts) != 1:
            raise error("E0216", "the base has several rows, so it is not clear whose slots these replace", span,
                        help="write the rows with `use … { … }`")  # fmt: skip
        parts.drafts[0].slots.update(own)
    else:
        parts.drafts.append(Draft(name, span, own))


def _use(use: Use, parts: Parts, outer: str, bound: Mapping, names: Names, trail: Trail) -> list[Draft]:
    inner = Parts()
    if isinstance(use.target, RowBlock):
        _apply_clauses(use.target.clauses, inner, use.name or outer, bound, names, trail, inherited=False)
    else:
        inner = _inner(use.target, bound, names, trail)
    if use.overrides:
        _apply_clauses(use.overrides, inner, use.name or outer, bound, names, trail, inherited=True)
    for draft in inner.drafts:
        draft.used = use.span
        if use.name is not None:
            draft.name = use.name if len(inner.drafts) == 1 else f"{use.name}_{draft.name}"
        if use.gate is not None:
            if draft.gate is not None:
                raise error("E0217", f"the row `{draft.name}` is gated already", use.gate.span)
            draft.gate = substitute(use.gate, bound)
    taken = {t.name for t in parts.trains}
    for trained in inner.trains:
        base = f"{use.name}_{trained.name}" if use.name and inner.drafts else use.name or trained.name
        label, n = base, 2
        while label in taken:
            label, n = f"{base}_{n}", n + 1
        taken.add(label)
        parts.trains.append(replace(trained, name=label))
    parts.requires += inner.requires
    return inner.drafts


# ---------------------------------------------------------------- rows


def _row(draft: Draft, definition: MethodDef, names: Names, problems: list[Diagnostic]) -> Row:
    slots = draft.slots
    if "modify" not in slots:
        raise error("E0218", f"the row `{draft.name}` does not say what it modifies", draft.span,
                    help="add `modify SITE`, for example `modify ffn`")  # fmt: skip
    if "compose" not in slots:
        raise error("E0218", f"the row `{draft.name}` does not say how `delta` meets `h`", draft.span,
                    help="add `compose add`")  # fmt: skip
    params = {p.name: p for p in definition.params}
    form_value = slots["form"].alternatives[0] if "form" in slots else None
    compose_value = slots["compose"].alternatives[0]
    insert = slots["insert"].alternatives[0] if "insert" in slots else None
    form = _inline_calls(_body("form", form_value, names), names) if form_value is not None else ()
    compose: tuple[Statement, ...] = (Let(("out",), Name("h")),)
    gate = None
    try:
        compose = _inline_calls(_compose(compose_value, names), names)
    except PeltError as e:
        problems += e.diagnostics
    try:
        gate = _inline_calls(_body("gate", draft.gate, names), names) if draft.gate is not None else None
    except PeltError as e:
        problems += e.diagnostics
        draft.gate = None
    _check_names(form, compose, gate or (), params)
    if not any(isinstance(s, Let) and "out" in s.names for s in compose):
        raise error("E0219", "this composition does not bind `out`", slots["compose"].span, help="end it with `out = …`")
    if form_value is not None and not any(isinstance(s, Let) and "delta" in s.names for s in form):
        raise error("E0219", "this form does not bind `delta`", slots["form"].span, help="end it with `delta = …`")
    if draft.gate is not None and not any(isinstance(s, Let) and "g" in s.names for s in gate or ()):
        raise error("E0219", "this gate does not bind `g`", draft.gate.span, help="end it with `g = …`")
    columns = Columns(
        ", ".join(str(p) for p in slots["modify"].alternatives[0]),
        to_text(insert) if insert is not None else "",
        _label(form_value), _label(compose_value), _label(draft.gate),
    )  # fmt: skip
    return Row(
        draft.name, slots["modify"].alternatives[0], insert, form, compose, gate,
        slots["layers"].alternatives[0] if "layers" in slots else None,
        slots["tokens"].selections if "tokens" in slots else (), columns, draft.span,
    )  # fmt: skip


def _label(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Block):
        last = [s for s in value.body if isinstance(s, Let)]
        return to_text(last[-1].value) if last else ""
    return to_text(value)


def _body(what: str, value: Any, names: Names) -> tuple[Statement, ...]:
    if isinstance(value, Block):
        return value.body
    definition, mapping = _callee(what, value, names)
    return substitute_all(definition.body, mapping)


def _compose(value: Any, names: Names) -> tuple[Statement, ...]:
    if isinstance(value, Block):
        return value.body
    function = value.function if isinstance(value, Apply) else value
    if isinstance(function, Name) and names.find("compose", function.id) is not None:
        return _body("compose", value if isinstance(value, Apply) else Apply(value, (), value.span), names)
    if isinstance(value, Name) and value.id not in ("h", "delta"):
        raise error("E0221", f"there is no composition named `{value.id}`", value.span,
                    help=near(value.id, names.names("compose")) or f"known: {', '.join(names.names('compose'))}")  # fmt: skip
    if isinstance(function, Name) and isinstance(value, Apply) and function.id not in PRIMITIVES:
        raise error("E0221", f"there is no composition named `{function.id}`", function.span,
                    help=near(function.id, names.names("compose")))  # fmt: skip
    return (Let(("out",), value, value.span),)


def _inline_calls(body: tuple[Statement, ...], names: Names, trail: tuple[Any, ...] = ()) -> tuple[Statement, ...]:
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
            definition, mapping = _callee(what, Apply(node.function, node.args[1:], node.span), names)
            if any(d is definition for d in trail):
                raise error("E0213", f"the {what} `{name}` uses itself", node.span)
            inner = _inline_calls(substitute_all(definition.body, mapping), names, (*trail, definition))
            if len(out) + len(inner) > MAX_NODES:
                raise error("E0227", f"the {what} `{name}` grows beyond {MAX_NODES} lines", node.span)
            out.extend(_prefixed(inner, prefix, node.args[0].value, _RESULTS[what]))
            return Name(prefix, node.span)

        new = rewrite(value, inline)
        if not (direct and isinstance(new, Name) and new.id == statement.names[0]):
            out.append(replace(statement, value=new))
    return tuple(out)


_RESULTS = {"gate": "g", "form": "delta"}


def _called(node: Apply, names: Names) -> str | None:
    """Whether a call is that of a `gate` or of a `form`."""
    if not isinstance(node.function, Name) or node.function.id in PRIMITIVES:
        return None
    return next((what for what in _RESULTS if names.find(what, node.function.id) is not None), None)


def _prefixed(body: tuple[Statement, ...], prefix: str, z: Expr, result: str) -> list[Statement]:
    local = {n for s in body for n in (s.names if isinstance(s, Let) else (s.name,) if isinstance(s, Tensor) else ())}
    mapping: Mapping = {n: Name(prefix if n == result else f"{prefix}_{n}") for n in local}
    mapping |= {"z": z, "d_in": Apply(Name("width"), (Arg(z),))}
    renamed: list[Statement] = []
    for s in body:
        s = substitute(s, mapping)
        if isinstance(s, Let):
            s = replace(s, names=tuple(mapping[n].id for n in s.names))  # type: ignore[union-attr]
        elif isinstance(s, Tensor):
            s = replace(s, name=mapping[s.name].id)  # type: ignore[union-attr]
        renamed.append(s)
    return renamed


def _check_names(form: tuple, compose: tuple, gate: tuple, params: dict[str, Param]) -> None:
    problems: list[Diagnostic] = []
    for body in (form, compose, gate):
        for s in body:
            for name in s.names if isinstance(s, Let) else (s.name,) if isinstance(s, (Tensor, Input)) else ():
                if name in params:
                    problems.append(Diagnostic(
                        "E0223", f"`{name}` is a parameter of the method and cannot be bound here", s.span,
                        labels=(Label(params[name].span, "the parameter"),), help="rename one of them"))  # fmt: skip
                elif name in RESERVED and not (isinstance(s, Let) and name in ("delta", "out", "g", "k", "v")):
                    problems.append(Diagnostic("E0224", f"`{name}` has a meaning of its own at a site and cannot be "
                                               "rebound", s.span, help="choose another name"))  # fmt: skip
    if problems:
        raise PeltError(problems)


# ---------------------------------------------------------------- calls


def _callee(what: str, call: Apply, names: Names) -> tuple[Any, Mapping]:
    """The definition a call names, and its parameters' values."""
    name = call.function
    definition = names.find(what, name.id) if isinstance(name, Name) else None
    if definition is None:
        text = to_text(name)
        title = {"compose": "composition"}.get(what, what)
        raise error("E0225", f"there is no {title} named `{text}`", name.span,
                    help=near(text, names.names(what)) or f"`unipelt list` shows the {title}s there are")  # fmt: skip
    assert not isinstance(definition, AnatomyDef)
    return definition, bind(definition.params, call, f"the {what} `{definition.name}`")


def bind(params: Sequence[Param], call: Apply, what: str) -> Mapping:
    """Positional and named arguments to parameters; defaults fill the rest."""
    mapping: Mapping = {}
    listed = ", ".join(f"{p.name}: {p.type}" for p in params) or "none"
    known = {p.name: p for p in params}
    positional = [a for a in call.args if a.name is None]
    if len(positional) > len(params):
        raise error("E0206", f"{what} takes {len(params)} arguments, {len(positional)} are given",
                    positional[len(params)].span, help=f"its parameters: {listed}")  # fmt: skip
    pairs = [(params[i].name, a) for i, a in enumerate(positional)]
    pairs += [(a.name, a) for a in call.args if a.name is not None]
    for name, arg in pairs:
        if name not in known:
            raise error("E0206", f"{what} has no parameter `{name}`", arg.span,
                        help="; ".join(filter(None, [near(name, known), f"its parameters: {listed}"])))  # fmt: skip
        if name in mapping:
            raise error("E0208", f"the parameter `{name}` is given twice", arg.span)
        value = arg.value
        if known[name].type == "float":
            value = as_float(value)
        if isinstance(value, (Number, String, ListOf)) and not fits(value, known[name].type):
            raise error("E0209", f"the parameter `{name}` of {what} takes type {known[name].type}", arg.span,
                        help=misfit(value, known[name].type))  # fmt: skip
        mapping[name] = value
    for p in params:
        if p.name not in mapping:
            if p.default is None:
                raise error("E0207", f"{what} needs a value for `{p.name}`", call.span, help=f"its parameters: {listed}")
            mapping[p.name] = substitute(p.default, dict(mapping))
    return mapping


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
    from .syntax import dotted

    items = value.items if isinstance(value, ListOf) else (value,)
    found = [(dotted(i), i) for i in items]
    for text, item in found:
        if text is None:
            raise error("E0226", "an argument of type `sites` is a site or a list of sites", item.span,
                        help="for example [attn, ffn]")  # fmt: skip
    return [Path(tuple(str(t).split(".")), i.span) for t, i in found]
