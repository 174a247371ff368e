"""Who owns a row's tensors: one tensor for each site, layer, head and so on, as the declaration or its site's default says.

At the heads a tensor without `per` is one for each head. That is easily overlooked where its sizes say nothing of heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .method import analyse
from ..types.declared import TensorTyping
from ..report.diagnostics import Diagnostic, Label
from ..ir import Method, Row
from ..library import of_library
from ..syntax.nodes import NOWHERE


@dataclass(frozen=True, slots=True)
class Owned:
    """A tensor of a row at one or more sites, and of what there is one each; ``default``: because the site says so, not the text."""

    tensor: str
    row: str
    at: str
    sizes: str
    owner: str
    default: bool

    def to_json(self) -> dict[str, str]:
        return {"tensor": self.tensor, "row": self.row, "at": self.at, "sizes": self.sizes,
                "one for each": self.owner + (" (the default here)" if self.default else "")}  # fmt: skip


def owned(method: Method) -> list[Owned]:
    """Every tensor at the sites where the default owner is not the site; one line where it is the same at several sites."""
    at: dict[Owned, list[str]] = {}
    for row, path, t in _tensors(method):
        sizes = " × ".join(map(str, t.type.sizes)) or "one number"
        at.setdefault(Owned(t.name, row.name, "", sizes, str(t.owner), not t.declaration.per), []).append(path)
    return [replace(o, at=", ".join(sites)) for o, sites in at.items()]


def hints(method: Method) -> list[Diagnostic]:
    """What is no mistake and may not be meant: a copy for each head, by default, of a tensor whose sizes are no head's."""
    found: dict[tuple, Diagnostic] = {}
    for row, path, t in _tensors(method):
        if t.declaration.per or "head" not in t.owner.axes or any("d_head" in s.symbols for s in t.type.sizes):
            continue
        span, library = t.declaration.span, of_library(t.declaration.span)
        hint = Diagnostic(
            "E0380", f"`{t.name}` has a copy for each head of `{path}`, and no size of it is a head's", span, severity="warning",
            help="give the row a form of its own in which `per site` or `per head` follows the tensor" if library
            else "write `per site` after it for one that all heads share, `per head` to keep one for each",
        )  # fmt: skip
        if library and method.span != NOWHERE:
            hint = replace(hint, labels=(Label(method.span, f"in the row `{row.name}` of this method"),))
        found.setdefault((span.file, span.start, t.name), hint)
    return list(found.values())


def _tensors(method: Method) -> Iterator[tuple[Row, str, TensorTyping]]:
    for typed in analyse(method).rows:
        if typed.site.owner.axes:
            for t in (t for t in typed.tensors if not t.lender):
                yield typed.row, typed.place, t
