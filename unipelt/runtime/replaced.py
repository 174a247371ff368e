"""Whether an adapter still hangs in the model: who puts another module in a module's place takes out what hung at it."""

from __future__ import annotations

from torch import nn

from ..language.report.diagnostics import error
from .registry import record
from .seam import key_of, seam_at


def refuse_replaced(model: nn.Module, name: str) -> None:
    """`PeltError` (E0559) where a module at which an adapter acts is no longer in the model, so that it would not act there."""
    lost = [path for path in record(model, name).places if not _hangs(model, path, name)]
    if lost:
        more = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise error("E0559", f"another module has taken the place of `{lost[0]}`{more}, where the adapter `{name}` would act",
                    help="unipelt.save(model, folder, name), unipelt.remove(model, name), then unipelt.attach(model, folder)")  # fmt: skip


def _hangs(model: nn.Module, path: str, name: str) -> bool:
    found = seam_at(model, path)
    return found is not None and key_of(name) in found[1].adapters
