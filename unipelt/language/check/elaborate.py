"""Definitions to the IR: `from`, `use`, arguments and calls of definitions are resolved and inlined.

Inlining substitutes arguments for parameters, so that everything is in terms of the outermost method's parameters.
Non-goals: types and sizes (`check`), what a site is on a model (the compiler).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .definitions import SITE_WORDS, WORDS, bound_names, unbound_result
from .inline import Mapping, Scoped, callee, inline_calls, missing, short_enough, substitute, substitute_all
from ..report.diagnostics import Diagnostic, Label, PeltError, error, instead, put
from ..ir import Columns, Method, Row, Trained
from .names import Names
from ..types.primitives import PRIMITIVES
from ..syntax.printer import to_text
from ..report.texts import after
from ..syntax.nodes import (
    Apply,
    Attr,
    Axis,
    Block,
    Clause,
    Compose,
    Form,
    Input,
    Insert,
    Layers,
    Let,
    MethodDef,
    Modify,
    Name,
    Require,
    RowBlock,
    Span,
    Statement,
    Tensor,
    Tokens,
    Train,
    Use,
    rewrite,
    walk,
)  # fmt: skip

MAX_DEPTH = 32
MAX_PARTS = 256  # rows, trained copies and requirements of one method
Trail = tuple[MethodDef, ...]  # the methods that are being put together, outermost first
SLOTS: dict[type, str] = {Modify: "modify", Insert: "insert", Form: "form", Compose: "compose", Layers: "layers",
                          Tokens: "tokens"}  # fmt: skip


_SHARED: dict[type, str] = {Tensor: "a tensor", Let: "a value", Axis: "an axis", Input: "an input"}


@dataclass
class Draft:
    """A row while it is put together; slots hold syntax in terms of the outermost parameters."""

    name: str
    span: Span
    slots: dict[str, Any] = field(default_factory=dict)
    gate: Apply | Block | None = None
    used: Span | None = None  # the outermost `use` that brings the row in
    unnamed: Span | None = None  # where that `use` could name it


@dataclass
class Parts:
    """What a method consists of, before its rows are inlined."""

    drafts: list[Draft] = field(default_factory=list)
    trains: list[Trained] = field(default_factory=list)
    requires: list[Require] = field(default_factory=list)
    problems: list[Diagnostic] = field(default_factory=list)  # of the outermost method's clauses


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
    problems = [*parts.problems, *_unknown_arguments(definition)]
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
                    "E0211",
                    f"two rows are named `{draft.name}`",
                    draft.used or draft.span,
                    labels=(Label(seen[draft.name], "the first one"),),
                    help="name one of them: `use … as NAME`",
                    edits=put(f" as {draft.name}_{len(seen) + 1}", draft.unnamed) if draft.unnamed is not None else (),
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
    parts = _parts(definition, {}, names, ())
    if parts.problems:
        raise PeltError(parts.problems)
    return parts.drafts


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
    inner, mapping = callee("method", call, names, {p.name: p for p in trail[-1].params})
    if any(d is inner for d in trail):
        raise _circle(trail[next(i for i, d in enumerate(trail) if d is inner) :])
    _refuse_space(inner, call.function.span)
    if len(trail) > MAX_DEPTH:
        raise error("E0213", f"methods use each other more than {MAX_DEPTH} deep", call.function.span)
    given = {
        k: short_enough(substitute(v, bound), f"the method `{inner.name}`", k, call.span) for k, v in mapping.items()
    }
    return _parts(inner, given, names, trail)


def _circle(circle: Trail) -> PeltError:
    """Methods that use each other in a circle: one and the same error, whichever of them was entered first."""
    start = min(range(len(circle)), key=lambda i: (circle[i].name_span.file, circle[i].name_span.start))
    first, *others = circle = circle[start:] + circle[:start]
    chain = " → ".join(f"`{d.name}`" for d in (first, *others, first))
    calls = [call for d in walk(circle[-1]) for call in (getattr(d, "base", None), getattr(d, "target", None))
             if isinstance(call, Apply) and call.function == Name(first.name)]  # fmt: skip
    return error("E0213", f"the method `{first.name}` uses itself: {chain}", calls[0].function.span,
                 help="write out what one of them does in place of the call")  # fmt: skip


def _parts(definition: MethodDef, bound: Mapping, names: Names, trail: Trail) -> Parts:
    """The rows of a method with ``bound`` for its parameters; ``{}`` leaves them as they are (the outermost)."""
    trail = (*trail, definition)
    parts = Parts()
    if definition.base is not None:
        parts = _inner(definition.base, bound, names, trail)
        for draft in parts.drafts:
            draft.name = definition.name if len(parts.drafts) == 1 else draft.name
    _apply_clauses(
        definition.clauses, parts, definition.name, bound, names, trail, inherited=definition.base is not None
    )
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
                            labels=(Label(own[slot].span, "the first time"),),
                            help="name both sites in one: `modify attn, ffn`" if slot == "modify" else "keep one of them")  # fmt: skip
            own[slot] = substitute(clause, bound)
        elif isinstance(clause, Use):
            try:
                parts.drafts += _use(clause, parts, name, bound, names, trail)
            except PeltError as e:
                if len(trail) > 1:  # what is used is at fault as a whole; going on at each level would double the work
                    raise
                parts.problems += e.diagnostics
            if len(parts.drafts) + len(parts.trains) + len(parts.requires) > MAX_PARTS:
                raise error("E0227", f"the method `{name}` has more than {MAX_PARTS} rows", clause.span)
        elif isinstance(clause, Train):
            trains.append(clause)
        elif isinstance(clause, Require):
            parts.requires.append(substitute(clause, bound))
        else:
            what = _SHARED.get(type(clause)) or f"`{getattr(clause, 'word', 'this')}`"
            raise error("E0215", f"{what} belongs to one row, and this stands at the level of a method", clause.span,
                        help="move it into the row's form or composition")  # fmt: skip
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
    before = [d.name for d in inner.drafts]
    for draft in inner.drafts:
        draft.used = use.span
        draft.unnamed = after(use.target.span) if use.name is None and len(inner.drafts) == 1 else None
        if use.name is not None:
            draft.name = use.name if len(inner.drafts) == 1 else f"{use.name}_{draft.name}"
        if use.gate is not None:
            if draft.gate is not None:
                raise error(
                    "E0217", f"the row `{draft.name}` is gated already", use.gate.span, help="leave one gate out"
                )
            draft.gate = substitute(use.gate, bound)
    renamed = {a: d.name for a, d in zip(before, inner.drafts) if a != d.name}
    for draft in inner.drafts if len(renamed) > 1 else ():
        draft.slots = {k: _lent_by(v, renamed) for k, v in draft.slots.items()}
        draft.gate = _lent_by(draft.gate, renamed)
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


def _lent_by(part: Any, renamed: dict[str, str]) -> Any:
    """A slot that reads tensors of rows by their new names (`a.A`)."""

    def change(n: Any) -> Any:
        known = isinstance(n, Attr) and isinstance(n.value, Name) and n.value.id in renamed
        return replace(n, value=replace(n.value, id=renamed[n.value.id])) if known else n

    return rewrite(part, change) if part is not None else None


def _unknown_arguments(definition: MethodDef) -> list[Diagnostic]:
    """Names in the arguments of its `from` and `use` that are neither its parameters nor anything else. Where a slot that
    would have read the argument is replaced, nothing else would meet them."""
    known = WORDS | {p.name for p in definition.params}
    found = []
    for node in walk(definition):
        for call in (getattr(node, "base", None), getattr(node, "target", None)):
            for name in (
                (n for a in call.args for n in walk(a) if isinstance(n, Name)) if isinstance(call, Apply) else ()
            ):
                if name.id not in known | SITE_WORDS:
                    found.append(Diagnostic("E0301", f"there is no `{name.id}` here", name.span, **instead(
                        name.id, known, name.span, f"parameters: {', '.join(p.name for p in definition.params) or 'none'}")))  # fmt: skip
    return found


# ---------------------------------------------------------------- rows


def _row(draft: Draft, definition: MethodDef, names: Names, problems: list[Diagnostic]) -> Row:
    slots = draft.slots
    if "modify" not in slots:
        raise error("E0218", f"the row `{draft.name}` does not say what it modifies", draft.span,
                    help="add `modify SITE`, for example `modify ffn`")  # fmt: skip
    if "compose" not in slots:
        raise error("E0218", f"the row `{draft.name}` does not say how `delta` meets `h`", draft.span,
                    help="add `compose h + delta`", edits=put(" compose h + delta", after(draft.span)))  # fmt: skip
    params = {p.name: p for p in definition.params}
    form_value = slots["form"].alternatives[0] if "form" in slots else None
    compose_value = slots["compose"].alternatives[0]
    insert = slots["insert"].alternatives[0] if "insert" in slots else None
    form = inline_calls(_body("form", form_value, names, params), names) if form_value is not None else ()
    compose: tuple[Statement, ...] = (Let(("out",), Name("h")),)
    gate = None
    try:
        compose = inline_calls(_compose(compose_value, names, params), names)
    except PeltError as e:
        problems += e.diagnostics
    try:
        gate = inline_calls(_body("gate", draft.gate, names, params), names) if draft.gate is not None else None
    except PeltError as e:
        problems += e.diagnostics
        draft.gate = None
    found = [d for body in (form, compose, gate or ()) for d in bound_names(body, params, "method")]
    if found:
        raise PeltError(found)
    for what, body, value, span in (
        ("compose", compose, compose_value, slots["compose"].span),
        ("form", form, form_value, slots["form"].span if form_value is not None else draft.span),
        ("gate", gate or (), draft.gate, draft.gate.span if draft.gate is not None else draft.span),
    ):
        unbound = unbound_result(what, body, _named(what, value, names), span) if value is not None else None
        if unbound is not None:
            raise PeltError(unbound)
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


def _body(what: str, value: Any, names: Names, params: Scoped) -> tuple[Statement, ...]:
    if isinstance(value, Block):
        return value.body
    definition, mapping = callee(what, value, names, params)
    return substitute_all(definition.body, mapping)


def _compose(value: Any, names: Names, params: Scoped) -> tuple[Statement, ...]:
    if isinstance(value, Block):
        return value.body
    function = value.function if isinstance(value, Apply) else value
    if isinstance(function, Name) and names.find("compose", function) is not None:
        return _body("compose", value if isinstance(value, Apply) else Apply(value, (), value.span), names, params)
    if isinstance(value, Name) and value.id not in ("h", "delta"):
        raise missing("compose", value, names)
    if isinstance(function, Name) and isinstance(value, Apply) and function.id not in PRIMITIVES:
        raise missing("compose", function, names)
    return (Let(("out",), value, value.span),)


def _named(what: str, value: Any, names: Names) -> Any:
    """The definition that a slot's value calls, if it calls one."""
    function = value.function if isinstance(value, Apply) else value
    return names.find(what, function) if isinstance(function, Name) else None
