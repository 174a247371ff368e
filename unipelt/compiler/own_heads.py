"""Heads that an adapter has for itself: which columns, how they start, and what keeps it from having a whole one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from torch import nn

from ..anatomy.sites import Site
from ..language.report.diagnostics import Diagnostic
from ..language.syntax.nodes import Number
from ..language.types.values import Distribution
from .labels import HeadUse, Labels
from .plan import PlannedCopy, PlannedEdit


def own_head(site: Site, labels: Labels | None) -> Site:
    """The head's site as the adapter has it: as many outputs as labels. Other sites stay as they are."""
    return replace(site, sizes={**site.sizes, "labels": len(labels)}) if labels and site.kind.has_labels else site


def own_rows(c: PlannedCopy, model: nn.Module, path: str | None, labels: Labels | None) -> PlannedCopy:
    """The copy of a parameter of the head's last map with a row for each label: drawn anew, a bias from zero."""
    attribute = next((a for m, a in c.parameter.uses if m == path), None)
    if labels is None or path is None or attribute is None:
        return c
    shape = (len(labels), *c.parameter.shape[1:])
    config: Any = model.config
    spread = getattr(config.get_text_config(), "initializer_range", None) or 0.02  # as transformers starts a head
    start = Distribution("zeros") if len(shape) == 1 else Distribution("normal", (Number(float(spread)),))
    own = replace(c.parameter, shape=shape, count=math.prod(shape), uses=((path, attribute),))
    return replace(c, parameter=own, start=start)


def brings_head(e: PlannedEdit) -> bool:
    """Whether a row yields the head's output without the head that is there."""
    return e.site.kind.has_labels and "h" not in e.typing.reads and e.row.gate is None


def head_use(
    model: nn.Module, path: str | None, edits: Iterable[PlannedEdit], copies: Iterable[PlannedCopy]
) -> HeadUse:
    """What an adapter does to the logits' columns: ``row`` and ``copy`` bring a whole head, ``edit`` changes the one there is."""
    rows = [e for e in edits if e.site.kind.has_labels]
    if any(map(brings_head, rows)):
        return "row"
    own = {} if path is None else dict(model.get_submodule(path).named_parameters(recurse=False))
    copied = {a for c in copies for m, a in c.parameter.uses if m == path}
    return "copy" if own and copied == set(own) else "edit" if rows or copied else ""


def incomplete(
    model: nn.Module, path: str | None, edits: Iterable[PlannedEdit], copies: Iterable[PlannedCopy]
) -> list[Diagnostic]:
    """What keeps an adapter with labels of its own from having a whole head of its own."""
    rows = [e for e in edits if e.site.kind.has_labels]
    copied = head_use(model, path, (), copies) == "copy"
    found = []
    for e in rows:
        if not (copied or brings_head(e)):
            found.append(Diagnostic(
                "E0744", f"the row `{e.row.name}` changes the model's own head, which has other labels", e.row.span,
                help="pass head=True, so that the row changes a head of the adapter's own"))  # fmt: skip
    if not rows and not copied:
        last = f"; the last map of {type(model).__name__}'s head is no torch.nn.Linear" if path is None else ""
        found.append(Diagnostic("E0745", f"labels of its own need a head of the adapter's own{last}",
                                help="leave out head=False, or add a row that modifies `head`"))  # fmt: skip
    return found
