"""What is computed while a method is attached: the lines that exact starts lead to, and what of them needs data."""

from __future__ import annotations

from collections.abc import Iterable

from ..language.syntax.lines import lines_for
from ..language.syntax.nodes import Apply, Let, Tensor, walk
from ..language.syntax.printer import to_text
from ..language.types.primitives import entry_of
from .plan import PlannedEdit


def lines_of_starts(e: PlannedEdit) -> list[Tensor | Let]:
    """The tensors of an edit that start exactly, and the lines that lead to them."""
    found: dict[int, Tensor | Let] = {}
    for part in (e.row.form, e.row.gate or (), e.row.compose):
        front = () if part is e.row.form else e.row.form
        for i, s in enumerate(part):
            if isinstance(s, Tensor) and s.exact:
                lines = lines_for([*front, *part[:i]], s.start)
                found |= {id(x): x for x in (*lines, s) if isinstance(x, (Tensor, Let))}
    return list(found.values())


def calibrated(e: PlannedEdit) -> list[Apply]:
    """The calls, in what an edit's tensors start from, of functions of data."""
    calls = (n for s in lines_of_starts(e) for n in walk(s.start if isinstance(s, Tensor) else s.value))
    return [n for n in calls if (entry := entry_of(n)) is not None and entry.data]


def data_needed(edits: Iterable[PlannedEdit]) -> list[str]:
    """What a plan says of the data that its starts need."""
    sites: dict[str, dict[str, None]] = {}
    for e in edits:
        for call in calibrated(e):
            sites.setdefault(to_text(call), {})[e.site.full_name] = None
    asked = [f"`{call}` at {', '.join(names)}" for call, names in sites.items()]
    return [f"batches of data, data=…, of which batches=… are read (for {'; '.join(asked)})"] if asked else []
