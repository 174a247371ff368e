"""The checker of methods: their parameters, every row at every site it names, their requirements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..types.arguments import parameters
from .inline import site_paths
from ..report.diagnostics import Diagnostic, Label, PeltError, instead, put
from ..types.infer import Inference
from ..types.inputs import disagreement
from ..ir import Method, Row
from ..types.layers import WORDS, by_layer, layered, least
from .outside import outside_the_layers
from .parameters import check_parameters
from ..types.rows import SYMBOLS, RowChecker, RowTyping, Sizes, require
from ..sites import SITES, SIZES, SiteSignature, signature, site_name
from ..sizes import Size
from ..syntax.nodes import NOWHERE, Expr, Param, Path, Selection
from ..types.values import NumberType, Poison, Value


def numbered(row: Row, params: Sequence[Param]) -> bool:
    """Whether a row differs from layer to layer: it reads ``layer``, a list, or an argument that does."""
    parts = (row.insert, *row.form, *row.compose, *(row.gate or ()))
    return any(by_layer(p, layered(params)) for p in parts if p is not None)


def sites_of(paths: Sequence[Path], params: Sequence[Param]) -> list[Path]:
    """The paths of a row, each once; a parameter of type `sites` stands for its sites, for none while it is not bound."""
    known = {p.name: p for p in params if p.type == "sites"}
    out: dict[Path, None] = {}
    for p in paths:
        param = known.get(p.parts[0]) if len(p.parts) == 1 else None
        if param is None:
            out[p] = None
        elif param.default is not None:
            out |= dict.fromkeys(site_paths(param.default))
    return list(out)


def open_paths(row: Row, params: Sequence[Param]) -> list[Path]:
    """The paths of a row that are parameters of type `sites` without a value."""
    unknown = {p.name for p in params if p.type == "sites" and p.default is None}
    return [p for p in row.sites if len(p.parts) == 1 and p.parts[0] in unknown]


def anywhere(row: Row, params: Sequence[Param]) -> tuple[list[RowTyping], list[Diagnostic]]:
    """The row at every site at which it has no mistake; where there is none, the mistakes at the site where it fits best."""
    typings: list[RowTyping] = []
    wrong: dict[str, list[Diagnostic]] = {}
    weights = [f"{n}.weight" for n, s in SITES.items() if s.family == "projection"] if row.insert is None else []
    for name in (*SITES, *weights):
        try:
            typings.append(check_row(row, signature(name), params))  # type: ignore[arg-type]
        except PeltError as e:
            wrong[name] = list(e.diagnostics)
    if typings:
        return typings, []
    best = min(wrong, key=lambda n: fit(wrong[n]))
    note = f"at `{best}`; there is no site at which this row has no mistake"
    return [], [replace(d, where=(*d.where, note)) for d in wrong[best]]


def fit(problems: Sequence[Diagnostic]) -> tuple[int, int, bool]:
    """How badly something fits at a place: few mistakes are better, then those far behind, then those with a remedy."""
    return len(problems), -min((p.span.start for p in problems), default=0), not any(p.edits for p in problems)


def site_problem(path: Path) -> Diagnostic | None:
    text = str(path)
    stack, name = site_name(text)
    if signature(name) is not None:
        return None
    if text.startswith("module("):
        return Diagnostic("E0390", "`module(…)` is a word of the language that is not built yet", path.span,
                          help=f"sites: {', '.join(SITES)}")  # fmt: skip
    return Diagnostic("E0302", f"there is no site `{text}`", path.span,
                      **_instead(path, name, stack))  # fmt: skip


def names_norm(path: Path) -> bool:
    """Whether a part of a path calls a norm by a name that people use."""
    return any(
        p.lower().replace("_", "") in ("norm", "norms", "layernorm", "rmsnorm", "ln", "ln1", "ln2", "lnf")
        for p in path.parts
    )


def _instead(path: Path, name: str, stack: str | None) -> dict[str, Any]:
    """The nearest site; one with its weight where a weight is meant. Norms and inputs are no sites, whatever is near."""
    owner, _, last = name.rpartition(".")
    if names_norm(path):
        return {"help": "norms are trained as they are, in place of a row: `train *.norm.*`"}
    if last in ("x", "z", "in", "input", "inputs") and signature(owner) is not None:
        return {
            "help": f"what goes into `{owner}` is read there, not modified: `modify {owner}` with `insert parallel` reads it"
        }
    if last in ("h", "out", "output", "outputs") and signature(owner) is not None:
        front = f"{stack}." if stack else ""
        return {"help": f"`modify {front}{owner}` changes what comes out of it", "edits": put(front + owner, path.span)}
    front, back = f"{stack}." if stack else "", ".weight" if name.endswith(".weight") else ""
    known = [f"{front}{s}{back}" for s in SITES if not back or SITES[s].family == "projection"]
    return instead(str(path), known, path.span, f"sites: {', '.join(SITES)}")


def check_row(row: Row, site: SiteSignature, params: Sequence[Param], sizes: Sizes = SYMBOLS) -> RowTyping:
    """The row's typing at a site; raises `PeltError` with every mistake."""
    checker = RowChecker(row, site, params, sizes)
    typing = checker.check()
    if checker.inf.problems:
        raise PeltError(distinct(checker.inf.problems))
    return typing


def check_method(method: Method) -> list[RowTyping]:
    """Checks every row at every site it names, with symbolic sizes; raises `PeltError` with all mistakes."""
    problems, params = check_parameters(method.params, f"the method `{method.name}`")
    typings: list[RowTyping] = []
    for row in method.rows:
        for path in sites_of(row.sites, params):
            problem = site_problem(path)
            if problem is not None:
                problems.append(problem)
                continue
            stack, name = site_name(str(path))
            try:
                typings.append(replace(check_row(row, signature(name), params), stack=stack))  # type: ignore[arg-type]
                if (outside := outside_the_layers(typings[-1])) is not None:
                    problems.append(outside)
            except PeltError as e:
                problems += [_from_afar(d, method, row) for d in e.diagnostics]
        if open_paths(row, params):
            problems += [_from_afar(d, method, row) for d in anywhere(row, params)[1]]
    for selection in (*(r.layers for r in method.rows), *(t.layers for t in method.trains)):
        problems += _selection(selection, method.params) if selection is not None else []
    for multiple in (t.lr for t in method.trains if t.lr is not None):
        problems += _multiple(multiple, method.params)
    clash = disagreement([i for t in typings for i in t.inputs])
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
    return typings


def _selection(selection: Selection, params: Sequence[Param]) -> list[Diagnostic]:
    """What is wrong with a selection of layers on any model."""
    if selection.word not in WORDS:
        return [Diagnostic("E0515", f"layers are not selected with `{selection.word}`, which is a word for tokens", selection.span,
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


def _multiple(lr: Expr, params: Sequence[Param]) -> list[Diagnostic]:
    inf = Inference(parameters(params, False), {})
    t = inf.infer(lr).type
    if isinstance(t, NumberType) and t.value is not None and t.value < 0:
        return [Diagnostic("E0345", f"a learning-rate multiple is at least 0, not {t.value:g}", lr.span)]
    if isinstance(t, (NumberType, Poison)):
        return inf.problems
    return [Diagnostic("E0345", f"a learning-rate multiple is a number, not {t}", lr.span)]


def _from_afar(d: Diagnostic, method: Method, row: Row) -> Diagnostic:
    """A mistake that shows itself in a definition of another file names the method that brings the two together."""
    if d.span.file == method.span.file or method.span == NOWHERE:
        return d
    return replace(d, labels=(*d.labels, Label(method.span, f"in the row `{row.name}` of this method")))


def distinct(problems: Sequence[Diagnostic]) -> list[Diagnostic]:
    """A mistake seen at two sites is one mistake."""
    seen: dict[tuple, Diagnostic] = {}
    for d in problems:
        # Where no place tells two mistakes apart, their words do.
        seen.setdefault((d.code, d.span.file or d.message, d.span.start, d.span.end), d)
    return list(seen.values())
