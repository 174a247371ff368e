"""The tokens that a row changes, found in a pass: `tokens first k`, `last k`, `since "a text"`, `inserted`.

``first k`` are the first k real tokens of a text, into however many steps with a cache it is cut. ``last k`` are the last real
ones of the step that begins a text; what is decoded behind them is not selected. ``since`` goes from the start of the last place
where its tokens stand to the end, and on into what is decoded: a cache then remembers the ids that it has seen. ``inserted``
are the rows of a prompt, which the others do not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from ...compiler.plan import PlannedEdit, whole
from ...compiler.recipe import CHOSEN
from ...language.ir import Row
from ...language.report.diagnostics import error
from ...language.types.indexing import INSERTED, POSITIONS, numbers_named, token_indices
from ...language.types.selections import Chosen
from ...language.sites import TensorType
from ...language.syntax.nodes import Index
from .call import Call
from .layout import Layout

#: Under which name an edit is given what entered its stack: no name of the language.
ENTERED = ":entered"
#: What a cache is given, to remember the ids of the tokens that it holds, by the stack's name.
_SEEN = "_unipelt_seen_ids"


@dataclass
class Entered:
    """What entered a stack: its call, and the rows of a prompt among its tokens: where they stand (``layout``, in the step that
    begins a text), and how many (``rows``, in a cache)."""

    stack: str
    call: Call
    layout: Layout | None
    rows: int
    known: dict[Any, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        call, mask = self.call, self.call.mask
        # where rows were put in, which tokens are real is known from then
        if self.layout is None and mask is not None and (not isinstance(mask, torch.Tensor) or mask.dim() != 2):
            raise error("E0796", "tokens are selected by a mask [batch, tokens], and this one is prepared: it has "
                        f"{mask.dim() if isinstance(mask, torch.Tensor) else 'no'} dimensions",
                        help="give a mask of that shape, or none; where generation prepares masks for a static cache, leave "
                        "cache_implementation out")  # fmt: skip
        tokens = call.tokens
        self.seen, n = call.seen, tokens.shape[1]
        self.ids = tokens if tokens.dim() == 2 and not tokens.is_floating_point() else None
        self.device = tokens.device
        if self.layout is not None:
            self.shape = self.layout.shape
            self.ids = self.ids.gather(1, self.layout.tokens) if self.ids is not None else None
            self.real: torch.Tensor = self.layout.real
        else:
            self.shape = (tokens.shape[0], n)
            self.real = (
                mask[:, -n:] != 0 if mask is not None else torch.ones(self.shape, dtype=torch.bool, device=self.device)
            )

    @property
    def before(self) -> torch.Tensor | int:
        """How many real tokens a cache holds: [batch] or the same for all."""
        mask, n = self.call.mask, self.shape[1]
        if self.call.continues:  # states say nothing of how many they have seen
            return (
                (mask[:, :-n] != 0).sum(1)
                if mask is not None and mask.shape[1] > n
                else torch.iinfo(torch.long).max // 2
            )
        if not self.seen:
            return 0
        held = (mask[:, :-n] != 0).sum(1) if mask is not None and mask.shape[1] > n else self.seen
        return held - self.rows

    def chosen(self, choices: Sequence[Chosen]) -> torch.Tensor:
        """Which of the pass's tokens (and rows) any of these select: [batch, tokens]."""
        key = tuple((c.word, c.count, c.ids) for c in choices)
        if key not in self.known:
            found = torch.zeros(self.shape, dtype=torch.bool, device=self.device)
            for c in choices:
                if c.word != "inserted":
                    found = found | self._tokens(c)
            if self.layout is not None:
                rows = any(c.word == "inserted" for c in choices)
                found = self.layout.spread(found.long(), int(rows)).bool()
            self.known[key] = found
        return self.known[key]

    def numbers(self) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
        """The ids of the tokens, where they are known, and their numbers in their texts, from 0: [batch, tokens]; and which of these
        are rows of a prompt."""
        before = self.before
        rank = self.real.long().cumsum(1) - 1 + (before[:, None] if isinstance(before, torch.Tensor) else before)
        found = {POSITIONS: rank.clamp(min=0)} | ({"ids": self.ids} if self.ids is not None else {})
        if self.layout is None:
            return {**found, INSERTED: torch.zeros_like(rank)}, None
        rows = self.layout.spread(torch.zeros_like(rank), 1)
        inserted = (rows.cumsum(1) - 1).clamp(min=0) * rows
        return {**{n: self.layout.spread(t) for n, t in found.items()}, INSERTED: inserted}, rows.bool()

    def _tokens(self, c: Chosen) -> torch.Tensor:
        if c.word == "since":
            return self._since(c)
        assert c.count is not None
        rank = self.real.long().cumsum(1)  # from 1
        if c.word == "first":
            before = self.before
            before = before[:, None] if isinstance(before, torch.Tensor) else before
            return self.real & (rank + before <= c.count)
        if self.seen or self.call.continues:
            return torch.zeros_like(self.real)
        return self.real & (rank > rank[:, -1:] - c.count)

    def _since(self, c: Chosen) -> torch.Tensor:
        n, ids = self.shape[1], self._ids()
        real = self.real
        if ids.shape[1] > n:
            mask = self.call.mask
            held = ids.shape[1] - n
            # rows of a prompt are no tokens; where they stood among the pads does not matter to what is real
            known = mask is not None and not self.rows and mask.shape[1] == ids.shape[1]
            front = mask[:, :held] != 0 if known else torch.ones_like(ids[:, :held], dtype=torch.bool)  # type: ignore[index]
            real = torch.cat([front, real], 1)
        return since(ids, real, c.ids)[:, -n:]

    def _ids(self) -> torch.Tensor:
        """The ids of the text so far."""
        if self.ids is None:
            raise error(
                "E0796",
                "`tokens since` looks for ids, and embeddings were given in their place",
                help="give `input_ids`",
            )
        if not self.seen and not self.call.continues:
            return self.ids
        held = getattr(self.call.cache, _SEEN, {}).get(self.stack)
        seen = self.seen - self.rows
        if held is None or held.shape[1] < seen or held.shape[0] != self.shape[0]:
            raise error("E0796", "`tokens since` needs the ids of the tokens that the cache holds, and this one does not know them",
                        help="fill the cache with this adapter active, or call the model with the whole text")  # fmt: skip
        return torch.cat([held[:, :seen], self.ids], 1)

    def remember(self, cache: Any) -> None:
        """Lets a cache know the ids that it holds now."""
        if cache is not None and self.ids is not None:
            known = getattr(cache, _SEEN, {})
            setattr(cache, _SEEN, {**known, self.stack: self._ids()})


def since(ids: torch.Tensor, real: torch.Tensor, wanted: Sequence[int]) -> torch.Tensor:
    """The tokens from the start of the last place where ``wanted`` stands, none where it stands nowhere: [batch, tokens]."""
    n = len(wanted)
    if ids.shape[1] < n:
        return torch.zeros_like(real)
    there = (ids.unfold(1, n, 1) == torch.tensor(wanted, device=ids.device)) & real.unfold(1, n, 1)
    steps = torch.arange(ids.shape[1], device=ids.device)
    start = torch.where(there.all(-1), steps[: ids.shape[1] - n + 1], -1).amax(1, keepdim=True)
    return (start >= 0) & (steps >= start)


def reads_text(e: PlannedEdit) -> bool:
    """Whether an edit must know the tokens that enter: it changes some of them, or reads tensors by their ids or positions."""
    return bool(e.row.tokens) or (e.site.kind.takes_rows and bool(token_indices(e.row.nodes)))


def selected(entered: Entered | None, choices: Sequence[Chosen], h: torch.Tensor) -> torch.Tensor:
    """Which tokens of ``h`` [batch, …, tokens, d] are selected. Where nothing is known of the text, as in a picture, all are
    real. A module may have read the last tokens alone (`logits_to_keep`)."""
    if entered is None and any(c.word == "since" for c in choices):
        raise error("E0796", "`tokens since` looks for the ids of a text, and this model was given none")
    return _beside((entered or _unknown(h)).chosen(choices), h)


def numbered(entered: Entered | None, h: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """See `Entered.numbers`; where nothing is known of the text, ``h`` has positions alone."""
    found, rows = (entered or _unknown(h)).numbers()
    return {n: _beside(t, h) for n, t in found.items()}, _beside(rows, h) if rows is not None else None


class Reading(Protocol):
    """What is asked of an edit that must know the text."""

    row: Row
    chosen: tuple[Chosen, ...]
    indices: frozenset[str]
    longest: dict[str, int]


def of_the_text(
    edit: Reading, h: torch.Tensor, given: Mapping[str, Any]
) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    """What is given to an edit, with which tokens are selected, their ids and their numbers; and which are rows of a prompt, where
    ids and positions are read, which those have not."""
    entered: Entered | None = given.get(ENTERED)
    found = {n: t for n, t in given.items() if n != ENTERED}
    if edit.chosen:
        found[CHOSEN] = selected(entered, edit.chosen, h)
    if not edit.indices:
        return found, None
    numbers, rows = numbered(entered, h)
    for name, n in edit.longest.items() if not torch.compiler.is_compiling() and not h.is_meta else ():
        if int(numbers[name].max()) >= n:
            what = "positions, and a text" if name == POSITIONS else "rows of a prompt, and the one"
            raise error("E0797", f"the row `{edit.row.name}` has a value for each of {n} {what} here is longer",
                        help=f"bring at most {n}, or give the method more")  # fmt: skip
    if edit.indices - numbers.keys():
        raise error("E0796", f"the row `{edit.row.name}` reads the ids of the tokens, and embeddings were given in their place",
                    help="give `input_ids`")  # fmt: skip
    return {**found, **{n: numbers[n] for n in edit.indices}}, rows if edit.indices & {"ids", POSITIONS} else None


def most(planned: PlannedEdit, name: str) -> int:
    """For how many tokens the row has values, where it reads tensors by their numbers."""
    read = [
        (n.value, i)
        for n in planned.row.nodes
        if isinstance(n, Index)
        for i, e in enumerate(n.items)
        if numbers_named(e) == name
    ]
    types = [(planned.typing.value(e).type, i) for e, i in read]
    return min((whole(t.sizes[i]) for t, i in types if isinstance(t, TensorType)), default=0)


def _unknown(h: torch.Tensor) -> Entered:
    """What has as many tokens as ``h``, all of them real, and no ids."""
    blank = h.new_zeros((h.shape[0], h.shape[-2], 0))
    return Entered("", Call(None, {"inputs_embeds": blank}), None, 0)  # type: ignore[arg-type]


def _beside(found: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    found, (batch, n) = found.to(h.device), (h.shape[0], h.shape[-2])
    if found.shape[0] != batch or found.shape[1] < n:
        raise error("E0796", f"tokens are selected among {found.shape[1]} in {found.shape[0]} texts, and here are {n} in {batch}",
                    help="modify a site whose tokens are those of the text")  # fmt: skip
    return found[:, -n:]


def chosen_beside(chosen: torch.Tensor, h: torch.Tensor, sizes: int) -> torch.Tensor:
    """The selection [batch, tokens] beside a tensor with the axes of ``h`` [batch, …, tokens, d] and this many sizes."""
    batch, n = chosen.shape
    return chosen.reshape(batch, *[1] * (h.dim() - 3), n, *[1] * sizes)
