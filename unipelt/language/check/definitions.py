"""Forms, gates and compositions on their own: what their bodies bind, and whether there is a place at which one fits.

A form is typed by the site it stands at, so alone it is at fault only where no site, and no call, would do.
Non-goal: how parts of a row meet (`check`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from itertools import chain, islice

from .inline import inline_calls
from .methods import fit
from ..report.diagnostics import Diagnostic, TextEdit, Label, PeltError, instead, put
from ..ir import Row
from ..library import library_definition, library_names, title
from .names import Names
from .parameters import check_parameters
from ..types.draws import DRAWN
from ..types.initialisers import INITIALISERS
from ..types.primitives import DOMAINS, PRIMITIVES
from ..types.rows import RowChecker
from ..types.typed import SYMBOLS
from ..sites import NUMBERS, PARAMETERS, RESERVED, SITES, SIZES, STACKS, SiteSignature, TensorType, signature
from ..sizes import Size
from ..report.texts import after, inside, text_of
from ..syntax.lines import binds, names_of
from ..syntax.nodes import Axis, BodyDef, Expr, Input, Later, Let, Name, Param, Span, Statement, Tensor, walk
from ..types.values import POISON, Value

#: What a name may mean at some place or other, without having been bound; `SITE_WORDS` begin the modules of a site.
WORDS = frozenset({*SIZES, *NUMBERS, *RESERVED, *DOMAINS, *PRIMITIVES, *INITIALISERS, "d_in", "d_out", "true", "false",
                   "training", "progress", "batch", "token", *DRAWN, "site", "layer", "kind", "model"})  # fmt: skip
SITE_WORDS = frozenset({part for s in SITES for part in s.split(".")} | {*STACKS, "module"})
LIKELY = 3  # places that come first
RESULTS = {"form": "delta", "compose": "out", "gate": "g"}


def bound_names(body: Sequence[Statement], params: Mapping[str, Param], owner: str) -> list[Diagnostic]:
    """The names that a body binds and may not: parameters of its ``owner``, and those with a meaning of their own."""
    problems: list[Diagnostic] = []
    for s in body:
        for name in (s.name,) if isinstance(s, Input) else binds(s):
            if name in params and s.span.file == params[name].span.file:
                problems.append(Diagnostic(
                    "E0223", f"`{name}` is a parameter of the {owner} and cannot be bound here", s.span,
                    labels=(Label(params[name].span, "the parameter"),), help="rename one of them"))  # fmt: skip
            elif name in params:
                problems.append(Diagnostic(
                    "E0223", f"the {owner} calls a definition that binds the name of its parameter `{name}`", params[name].span,
                    labels=(Label(s.span, "bound here"),), help="rename the parameter"))  # fmt: skip
            elif name in RESERVED and not (isinstance(s, Let) and name in ("delta", "out", "g", "k", "v")):
                problems.append(Diagnostic("E0224", f"`{name}` has a meaning of its own at a site and cannot be "
                                           "rebound", s.span, help="choose another name"))  # fmt: skip
    return problems


def unbound_result(what: str, body: Sequence[Statement], definition: BodyDef | None, span: Span) -> Diagnostic | None:
    """A body that does not bind its result; the mistake stands where the body is written, not where it is used."""
    result = RESULTS[what]
    if any(isinstance(s, Let) and result in s.names for s in body):
        return None
    said = f"the {title(what)} `{definition.name}`" if definition is not None else f"this {title(what)}"
    return Diagnostic("E0219", f"{said} does not bind `{result}`", definition.name_span if definition is not None else span,
                      help=f"end it with `{result} = …`", edits=_bound(result, body))  # fmt: skip


def _bound(result: str, body: Sequence[Statement]) -> tuple[TextEdit, ...]:
    """The last value under the result's name: called so itself, or, where others read it by its own name, given both."""
    last = body[-1] if body else None
    if not isinstance(last, Let) or len(last.names) > 1:
        return ()
    name = last.names[0]
    place = inside(last.span, rf"^({re.escape(name)})\b")
    if place is None:
        return ()
    if any(isinstance(n, Name) and n.id == name for s in body for n in walk(s)):
        return put(f" {result} = {name}", after(last.span))
    return put(result, place)


def check_body(d: BodyDef, names: Names, works: bool) -> list[Diagnostic]:
    """The mistakes of a definition by itself. ``works``: a method without mistakes uses it, so that there is a place for it."""
    problems, params = check_parameters(d.params, f"the {title(d.what)} `{d.name}`")
    try:
        body = inline_calls(d.body, names, (d,))
    except PeltError as e:
        return [*problems, *e.diagnostics]
    problems += bound_names(body, {p.name: p for p in d.params}, title(d.what))
    unbound = unbound_result(d.what, body, d, d.name_span)
    if unbound is not None:
        problems.append(unbound)
    if works:
        return problems
    given = frozenset[str]() if d.what == "form" else bound_by_forms(names)
    found = at_the_best_place(d.what, body, params, given, d.name_span)
    known = {(p.code, p.span) for p in problems}
    return [called_definition(p, names) for p in (*problems, *(p for p in found if (p.code, p.span) not in known))]


def called_definition(d: Diagnostic, names: Names) -> Diagnostic:
    """A misspelt function may have meant a form or a gate, which expressions call like functions."""
    name = text_of(d.span)
    if d.code != "E0320" or not name.isidentifier():
        return d
    known = [*names.names("form"), *names.names("gate"), *(e.text for e in d.edits)]
    return replace(d, **instead(name, known, d.span, d.help))


def bound_by_forms(names: Names) -> frozenset[str]:
    """What a composition or a gate may read of the form that stands before it: any name that some form binds."""
    found = {"delta"}
    library = (library_definition("form", name) for name in library_names("form"))
    for node in chain.from_iterable(map(walk, (*names.definitions(), *library))):
        found |= (
            set(node.names)
            if isinstance(node, (Let, Later))
            else {node.name}
            if isinstance(node, (Tensor, Axis, Input))
            else set()
        )
    return frozenset(found)


def at_the_best_place(
    what: str, body: tuple[Statement, ...], params: Sequence[Param], given: Set[str], span: Span
) -> list[Diagnostic]:
    """What is wrong with the body of a form, gate or composition where it fits best: nothing, if there is a place for it.

    ``given`` are names that it may read because something before it in the row may bind them (`bound_by_forms`).
    """
    best: list[Diagnostic] | None = None
    # a name that means nothing anywhere is a mistake at every place
    places = islice(_places(), LIKELY if _meaningless(body, {*given, *(p.name for p in params)}) else None)
    same: tuple[Statement, ...] = (Let(("out",), Name("h")),)
    for site, insert, z in places:
        row = Row(
            what, (), insert, body if what == "form" else (), body if what == "compose" else same,
            body if what == "gate" else None, span=span,
        )  # fmt: skip
        checker = _Alone(row, site, params, SYMBOLS)
        checker.given, checker.inf.names = z, {**dict.fromkeys(given, Value(POISON)), **checker.inf.names}
        checker.check()
        found = checker.inf.problems
        if not found:
            return []
        if best is None or fit(found) < fit(best):
            best = found
    return best or []


def _meaningless(body: Sequence[Statement], given: Set[str]) -> bool:
    """Whether a name is read that neither the body nor any place gives a meaning."""
    bound = {n for s in body for n in names_of(s)}
    read = {n.id for s in body for n in walk(s) if isinstance(n, Name)}
    return not read <= bound | given | WORDS | SITE_WORDS


def _places() -> Iterator[tuple[SiteSignature, Expr | None, Value | None]]:
    """Sites with what may be inserted there, and what a call may give: rows of a size. The likely ones come first."""

    likely = [SITES[n] for n in ("ffn", "attn.heads")]

    def called(*axes: str) -> tuple[SiteSignature, Expr, Value]:
        return likely[0], Name("x"), Value(TensorType(frozenset(axes), (Size.of("rows"), Size.of("width"))))

    yield from ((site, Name("parallel"), None) for site in likely)
    yield called()
    for site in SITES.values():
        for word in ("parallel", "sequential", *(("x",) if site.parallel not in (None, "x") else ())):
            if word != "parallel" or (site.parallel is not None and site not in likely):
                yield site, Name(word), None
    yield next(weight for n in SITES if (weight := signature(f"{n}.weight"))), None, None
    yield next(weight for weight in PARAMETERS.values() if weight.own_axes), None, None
    for axis in ("batch", "group", "head"):
        yield called(axis)


class _Alone(RowChecker):
    """A row whose ``z`` may be something that a call gives."""

    given: Value | None = None

    def _insertion(self, e: Expr | None, h: Value) -> Value | None:
        return self.given if self.given is not None else super()._insertion(e, h)
