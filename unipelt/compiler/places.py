"""A row at modules that their paths name: which of them it means, and what it cannot read there."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence

from torch import nn

from ..anatomy.sites import Site, SiteMap
from ..language.ir import Row
from ..language.report.diagnostics import Diagnostic
from ..language.syntax.nodes import Name
from .plan import PlannedEdit


def one_place(a: Site, b: Site) -> bool:
    """Whether two sites of a row, one of them a module's by its path, are one: the same linear map, in the same columns."""
    if not (a.kind.by_path or b.kind.by_path) or a.kind.has_weight is not b.kind.has_weight:
        return False
    return a.side == b.side == "output" and a.view.module == b.view.module and a.view.columns == b.view.columns


def in_the_layers(found: list[Site], row: Row, sites: SiteMap) -> tuple[list[Site], Sequence[Diagnostic]]:
    """The sites of a row without modules that lie in no layer, where it selects layers; a mistake if that leaves none."""
    if row.layers is None or row.layers.word == "all":
        return found, ()
    outside = [s for s in found if s.kind.by_path and s.layer is None]
    kept = [s for s in found if not any(s is o for o in outside)]
    if kept or not outside:
        return kept, ()
    return kept, sites.unknown or (Diagnostic("E0516", f"`{outside[0].path}` lies in no layer", row.layers.span,
                                              help="leave the selection of layers out"),)  # fmt: skip


def lacking_at(site: Site, row: Row, model: nn.Module) -> Diagnostic | None:
    """What a row reads that a module does not have."""
    lacks = site.lacks & (row.reads | ({"x"} if row.insert == Name("parallel") else set()))
    if not lacks:
        return None
    kind = type(model.get_submodule(site.view.module)).__name__
    words = "x" in lacks
    why = "which is given words, not numbers" if words else "which is no linear map"
    return Diagnostic("E0529", f"`{site.path}` is a {kind}, {why}: there is no `{min(lacks)}`", row.span,
                      help="`insert sequential` reads what leaves it" if words else
                      "name the linear maps in an expression of their own")  # fmt: skip


def own_arguments(model: nn.Module, edits: Iterable[PlannedEdit]) -> list[Diagnostic]:
    """Declared inputs that are called as what the model's forward takes already."""
    own = {*inspect.signature(model.forward).parameters, "self"}
    declared = {i.name: i.declaration.span for e in edits for i in e.typing.inputs}
    return [
        Diagnostic("E0738", f"`{name}` is an argument of this {type(model).__name__}'s own forward", span,
                   help="give the input another name")
        for name, span in declared.items() if name in own
    ]  # fmt: skip
