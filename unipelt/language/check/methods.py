"""The rows and sites of methods: whether a row differs by layer, the sites that its paths name, what is wrong with a path."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .inline import site_paths
from ..once import once
from ..types.arguments import parameters
from ..report.diagnostics import Diagnostic, PeltError, error, instead, nearest, put
from ..ir import Method, Row
from ..types.layers import NUMERIC, layered
from ..types.rows import typed_row
from ..types.values import Type
from ..types.typed import TypedRow
from ..sites import FIRST_WORDS, PARAMETERS, SITES, STACKS, regular, signature, site_name
from ..syntax.nodes import ListOf, Param, Path


@once
def varies_by(method: Method, row: Row) -> frozenset[str]:
    """The names through which a row differs from layer to layer: ``layer``, which a list reads, too, and arguments."""
    own = {"layer"} if "layer" in row.reads or any(isinstance(n, ListOf) for n in row.nodes) else set()
    return frozenset(own | (layered(method.params) & row.reads))


def first_like(method: Method, row: Row, layer: int, depth: int) -> int:
    """The first layer at which a row is what it is at this one: it reads the same numbers there."""
    names = varies_by(method, row)
    if not names:
        return 0
    if "layer" in names or any(p.type not in NUMERIC for p in method.params if p.name in names):
        return layer  # what starts depend on is no number
    here = _numbers(method, names, layer, depth)
    return next(i for i in range(layer + 1) if _numbers(method, names, i, depth) == here)


@once
def _numbers(method: Method, names: frozenset[str], layer: int, depth: int) -> list[Type]:
    """The values of arguments at a layer."""
    found = parameters(method.params, True, {"layer": layer, "depth": depth})
    return [found[n].type for n in sorted(names)]


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


def settled(method: Method) -> None:
    """Raises `PeltError` where the sites of a row are an argument without a value."""
    for path in (p for r in method.rows for p in open_paths(r, method.params)):
        raise error("E0408", f"`{method.name}` needs a value for `{path}`: without it nothing is known of where it acts", path.span,
                    help=f"write {method.name}({path}=…)")  # fmt: skip


def anywhere(method: Method, row: Row) -> tuple[list[TypedRow], list[Diagnostic]]:
    """The row at every site at which it has no mistake; where there is none, the mistakes at the site where it fits best."""
    found: list[TypedRow] = []
    wrong: dict[str, list[Diagnostic]] = {}
    weights = [*(f"{n}.weight" for n, s in SITES.items() if s.has_weight), *PARAMETERS] if row.insert is None else []
    for name in (*SITES, *weights):
        try:
            found.append(typed_row(method, row, signature(name)))  # type: ignore[arg-type]
        except PeltError as e:
            wrong[name] = list(e.diagnostics)
    if found:
        return found, []
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
        return (None if stack is None else _tower_problem(path, stack, name)) or _irregular(name, path)
    return Diagnostic("E0302", f"there is no site `{text}`", path.span,
                      **_instead(path, name, stack))  # fmt: skip


#: From where on a stack's name is a known one that is misspelt.
_MISSPELT = 0.8


def _tower_problem(path: Path, stack: str, name: str) -> Diagnostic | None:
    """A stack may have any name that a model gives it, but for those that are nearly a known one, or a site's."""
    if stack in STACKS or not (meant := nearest(stack, (*STACKS, *FIRST_WORDS), _MISSPELT)):
        return None
    known = [f"{meant}.{name}"] if meant in STACKS else []
    return Diagnostic("E0302", f"there is no site `{path}`", path.span,
                      **instead(str(path), known or SITES, path.span, f"sites: {', '.join(SITES)}"))  # fmt: skip


def _irregular(name: str, path: Path) -> Diagnostic | None:
    """The mistake of a site whose regular expression cannot be read."""
    expression = regular(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what other versions of Python may read otherwise
            re.compile(expression or "")
    except (re.error, RecursionError, OverflowError) as e:
        return Diagnostic("E0394", f"`{expression}` is no regular expression: {e}", path.span,
                          help="a dot of a path is written `\\.`, any text `.*`; brackets that mean themselves have a `\\` before them")  # fmt: skip
    return None


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
        return {
            "help": "norms are trained as they are, in place of a row: `train *.norm.*`; the last one's output is the site `final`"
        }
    if last in ("x", "z", "in", "input", "inputs") and signature(owner) is not None:
        return {
            "help": f"what goes into `{owner}` is read there, not modified: `modify {owner}` with `insert parallel` reads it"
        }
    if last in ("h", "out", "output", "outputs") and signature(owner) is not None:
        front = f"{stack}." if stack else ""
        return {"help": f"`modify {front}{owner}` changes what comes out of it", "edits": put(front + owner, path.span)}
    front, back = f"{stack}." if stack else "", ".weight" if name.endswith(".weight") else ""
    sites = [s for s in SITES if not back or SITES[s].has_weight]
    known = [f"{front}{s}{back}" for s in sites] + [f"{front}{s}" for s in PARAMETERS if back]
    if (
        stack is None
        and len(path.parts) > 2
        and not nearest(first := path.parts[0], (*STACKS, *FIRST_WORDS), _MISSPELT)
    ):
        known += [f"{first}.{s}{back}" for s in sites if first not in FIRST_WORDS]
    return instead(str(path), known, path.span, f"sites: {', '.join(SITES)}")
