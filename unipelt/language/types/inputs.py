"""What a row asks of the forward pass: further arguments (`input NAME: …`), and rows of its own among the tokens.

Non-goal: bringing them there; `unipelt.runtime` does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..report.diagnostics import Diagnostic, Label, put
from .infer import Inference
from ..ir import Row
from .primitives import PLACING
from ..syntax.printer import to_text
from ..sites import SiteSignature, TensorType
from ..sizes import Size
from ..syntax.nodes import Apply, Expr, Input, Name, walk
from .values import OTHER, Type, Value, WordType

#: The argument that marks the pseudo-tokens of a text, for the compositions that fill them.
PSEUDO_TOKENS = "pseudo_tokens"


@dataclass(frozen=True, slots=True)
class InputTyping:
    """A declared argument of the forward pass: an index below ``count`` or a tensor of ``sizes`` for each example."""

    name: str
    count: Size | None
    sizes: tuple[Size, ...]
    declaration: Input

    @property
    def type(self) -> Type:
        return WordType("index", self.count) if self.count is not None else TensorType(frozenset({"batch"}), self.sizes)

    @property
    def value(self) -> Value:
        # it differs from example to example, so no constant map can absorb what it picks
        return Value(self.type, OTHER, self.declaration.span, reads=frozenset({self.name}))

    def same(self, other: InputTyping) -> bool:
        return (self.count, self.sizes) == (other.count, other.sizes)


def input_typing(s: Input, inf: Inference, size: Callable[[Expr, str], Size | None]) -> InputTyping | None:
    """The typing of a declaration; mistakes go to ``inf``."""
    if s.index is None:
        sizes = [size(e, f"the input `{s.name}`") for e in s.shape]
        return (
            None
            if any(x is None for x in sizes)
            else InputTyping(s.name, None, tuple(x for x in sizes if x is not None), s)
        )
    args = s.index.args
    if s.index.function != Name("index") or len(args) != 1 or args[0].name is not None:
        inf.fail("E0362", f"an input is an `index(n)` or has sizes, and this is `{to_text(s.index)}`", s.index.span,
                 help=f"write `input {s.name}: index(8)` for a number from 0 to 7, or `input {s.name}: [4, 512]`")  # fmt: skip
        return None
    count = size(args[0].value, f"the input `{s.name}`")
    return InputTyping(s.name, count, (), s) if count is not None else None


def disagreement(found: Sequence[InputTyping]) -> Diagnostic | None:
    """One argument of the forward pass cannot be two things; equal declarations are one."""
    first: dict[str, InputTyping] = {}
    for t in found:
        known = first.setdefault(t.name, t)
        if not known.same(t):
            return Diagnostic("E0369", f"the input `{t.name}` is declared in two ways", t.declaration.span,
                              labels=(Label(known.declaration.span, "the first one"),), help="give one of them another name")  # fmt: skip
    return None


# ---------------------------------------------------------------- rows among the tokens


def _placing_calls(part: object) -> list[Apply]:
    return [n for n in walk(part) if isinstance(n, Apply) and isinstance(n.function, Name) and n.function.id in PLACING]


def places_rows(row: Row) -> bool:
    """Whether the composition puts rows among the tokens, or in the place of some."""
    return any(_placing_calls(s) for s in row.compose)


def changes_length(row: Row) -> bool:
    """Whether the composition makes the sequence longer."""
    return any(PLACING[c.function.id] for s in row.compose for c in _placing_calls(s))  # type: ignore[union-attr]


def placing_problem(row: Row, site: SiteSignature) -> Diagnostic | None:
    """Rows are placed where tokens enter the model or a block, by the composition, once."""
    elsewhere = [
        c for part in (row.insert, *row.form, *(row.gate or ())) if part is not None for c in _placing_calls(part)
    ]
    calls = [c for s in row.compose for c in _placing_calls(s)]
    if elsewhere:
        return Diagnostic("E0364", f"`{to_text(elsewhere[0].function)}` belongs into the composition", elsewhere[0].span,
                          help=f"compose {to_text(elsewhere[0].function)}(delta, h)")  # fmt: skip
    if calls and not (site.takes_rows or site.among):
        return Diagnostic("E0364", f"rows are placed among the tokens where they enter the model or a block, not at `{site.name}`",
                          calls[0].span, help="modify embed, embed.words or block.input")  # fmt: skip
    if calls and not site.takes_rows and not changes_length(row):
        return Diagnostic("E0364", f"`{to_text(calls[0].function)}` puts rows in the place of tokens that enter the model, and at "
                          f"`{site.name}` rows come besides them", calls[0].span,
                          help="compose prepend(delta, h), or modify embed")  # fmt: skip
    if changes_length(row):
        parts = (row.insert, *row.form, *(row.gate or ()), *row.compose)
        found = [n for p in parts if p is not None for n in walk(p) if isinstance(n, Name) and n.id == "positions"]
        if found:
            return Diagnostic("E0364", "among all positions are the rows themselves, which are not there yet", found[0].span,
                              help="read the text's own tokens: `tokens`", edits=put("tokens", found[0].span))  # fmt: skip
    if len(calls) > 1:
        return Diagnostic("E0364", "a row of the table places rows once", calls[1].span,
                          help="write a row of the table for each: `use { … } as name`")  # fmt: skip
    return None
