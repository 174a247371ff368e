"""Which tokens a row changes: `tokens first k`, `last k`, `since "a text"`, `inserted`, and any of several.

A selection is a gate of 0 and 1 for each token: `h + m * (out - h)`. `first` and `last` count real tokens, by the mask, and not
the rows that a prompt puts among them: those are `inserted`. Non-goal: finding them in a pass (`runtime.prompts.selected`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..ir import Row
from ..sites import SiteSignature
from ..syntax.nodes import Expr, ListOf, Selection, Span, String
from ..syntax.printer import to_text
from .indexing import INSERTED, token_indices
from .infer import Inference
from .inputs import places_rows
from .values import NumberType, Poison, WordType

#: The words of a selection of tokens.
WORDS = ("first", "last", "since", "inserted")


@dataclass(frozen=True, slots=True)
class Chosen:
    """Tokens that a row changes: the ``count`` first or last ones (None while an argument has no value), those from a ``text``
    on, or from the tokens with these ``ids``."""

    word: str
    span: Span
    count: int | None = None
    text: str | None = None
    ids: tuple[int, ...] = ()

    @property
    def late(self) -> bool:
        """Whether later tokens have a say in it: a text that goes on has other last tokens, and `since` counts from the last
        place where its text stands."""
        return self.word == "since" or (self.word == "last" and self.count != 0)


def chosen_tokens(row: Row, site: SiteSignature, inf: Inference) -> tuple[Chosen, ...]:
    """The selections of a row; mistakes go to ``inf``, in whose scope the arguments stand."""
    numbered = INSERTED in token_indices(row.nodes)
    if numbered and [s.word for s in row.tokens] != ["inserted"]:
        inf.fail("E0398", "`inserted` numbers the rows that a prompt put among the tokens, and this row changes others", row.span,
                 help="write `tokens inserted`")  # fmt: skip
    if not row.tokens:
        return ()
    span = row.tokens[0].span
    if "token" not in site.h.axes:
        what = "a weight is the same for every token" if site.is_weight else f"`h` at `{site.name}` has no tokens here"
        inf.fail("E0398", f"{what}, so none can be selected", span, help="leave `tokens` out, or modify another site")
    elif places_rows(row):
        inf.fail(
            "E0398", "a composition that puts rows among the tokens changes no token", span, help="leave `tokens` out"
        )
    return tuple(c for s in row.tokens if (c := _chosen(s, inf)) is not None)


def _chosen(s: Selection, inf: Inference) -> Chosen | None:
    if s.word not in WORDS:
        inf.fail("E0397", f"`{to_text(s)}` selects layers, not tokens", s.span,
                 help='select `first k`, `last k`, `since "a text"` or `inserted`')  # fmt: skip
        return None
    if s.word == "inserted":
        return Chosen(s.word, s.span)
    return _since(s, s.values[0], inf) if s.word == "since" else _counted(s, s.values[0], inf)


def _counted(s: Selection, e: Expr, inf: Inference) -> Chosen | None:
    t = inf.infer(e).type
    value = t.value if isinstance(t, NumberType) else None
    whole = (
        isinstance(t, NumberType) and not isinstance(value, (bool, float)) and (value is not None or t.size is not None)
    )
    if isinstance(t, Poison):
        return None
    if not whole or (value is not None and value < 0):
        inf.fail("E0397", f"`tokens {s.word}` takes a whole number of at least 0", e.span)
        return None
    return Chosen(s.word, s.span, count=int(value) if value is not None else None)


def _since(s: Selection, e: Expr, inf: Inference) -> Chosen | None:
    """A text, a parameter of type `string`, or the ids of tokens."""
    if isinstance(e, ListOf):
        values = [i.type.value if isinstance(i.type, NumberType) else None for i in map(inf.infer, e.items)]
        if not values or any(isinstance(v, (bool, float)) or v is None or v < 0 for v in values):
            inf.fail("E0397", "a list after `since` has the ids of tokens, which are whole numbers", e.span)
            return None
        return Chosen(s.word, s.span, ids=tuple(int(v) for v in values if v is not None))
    t = inf.infer(e).type
    if isinstance(t, Poison):
        return None
    word = t.word if isinstance(t, WordType) and t.what == "string" else None
    text = word.value if isinstance(word, String) else word
    if not (isinstance(t, WordType) and t.what == "string") or (isinstance(text, str) and not text):
        inf.fail("E0397", "`tokens since` takes a text, or a list of the ids of its tokens", e.span)
        return None
    return Chosen(s.word, s.span, text=text if isinstance(text, str) else None)


def late(chosen: Sequence[Chosen]) -> Chosen | None:
    """The selection in which later tokens have a say, if there is one."""
    return next((c for c in chosen if c.late), None)
