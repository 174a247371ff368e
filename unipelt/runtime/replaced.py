"""Whether an adapter's edits still hang in the model: who puts another module in a module's place takes out what hung at it."""

from __future__ import annotations

from torch import nn

from ..language.report.diagnostics import error
from .registry import record
from .seam import key_of, seam_of


def refuse_replaced(model: nn.Module, name: str) -> None:
    """`PeltError` (E0559) where a module at which an adapter acts is no longer in the model, so that it would not act there."""
    attached = record(model, name)
    paths = dict.fromkeys(e.site.view.module for e in attached.plan.edits)
    lost = [path for path in paths if not _hangs(model, path, name)]
    if not lost:
        return
    there = {id(m) for m in model.modules()}  # others may have wrapped a module
    edits = {id(m) for m, _ in attached.registered.values()}
    if edits and edits <= there:
        return
    more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
    raise error("E0559", f"another module has taken the place of `{lost[0]}`{more}, at which the adapter `{name}` acts, and it acts there no more",
                help="unipelt.save(model, folder, name), unipelt.remove(model, name), then unipelt.attach(model, folder)")  # fmt: skip


def _hangs(model: nn.Module, path: str, name: str) -> bool:
    try:
        seam = seam_of(model.get_submodule(path))
    except AttributeError:
        return False
    return seam is not None and key_of(name) in seam.adapters
