"""The work of a language model: texts that are gone on with, those of different adapters together."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from ..anatomy.positions import longest_text
from ..language.ir import Method
from .catalogue import Entry
from .decoding import Decoding, Model, Row
from .jobs import Completed, Completion, Job
from .listener import SILENT, Listener
from .options import ServeOptions
from .placing import Placed
from .refusals import broken, cancelled, too_long, wrong
from .texts import Written
from .trial import Ways, tried, tried_briefly


@dataclass(eq=False)
class _Text:
    """A completion under way."""

    job: Completion
    row: Row
    ways: Ways
    written: Written
    chance: torch.Generator | None


class Writing:
    """See `engine.Work`."""

    kind = "causal-lm"

    def __init__(self, model: Any, tokenizer: Any, options: ServeOptions, listener: Listener = SILENT):
        self.model = Model(model, tokenizer.pad_token_id)
        self.tokenizer, self.options, self.listener = tokenizer, options, listener
        if not self.model.remembers:
            raise TypeError("no cache among its arguments")
        self.longest = longest_text(model)
        self.words = len(tokenizer)
        self._ends = _ends(model, tokenizer)
        self.base = tried(self.model, None, self.words)
        self._known: dict[tuple[Method, bool], Ways] = {}
        self._new: list[_Text] = []
        #: By what may run together: None for all that may share, else the adapter.
        self._under_way: dict[str | None, list[Decoding]] = defaultdict(list)

    def look(self, entry: Entry, placed: Placed) -> Ways:
        """How an adapter's texts may run: tried for the first one of a method, as it depends on the method and not on the values."""
        kind = (placed.plan.method, placed.bank is not None)
        if kind in self._known:
            tried_briefly(self.model, placed.inside)
        else:
            self._known[kind] = tried(self.model, placed.inside, self.words, placed.rows)
        return self._known[kind]

    # ------------------------------------------------------------ see `engine.Work`

    def check(self, job: Job) -> None:
        if not isinstance(job, Completion):
            raise wrong("wrong_endpoint", "this server completes texts: use /v1/completions")
        if len(job.prompt) > self.options.max_input:
            raise too_long(len(job.prompt), self.options.max_input)
        if job.max_tokens > self.options.max_tokens:
            raise wrong("too_many_tokens", f"at most {self.options.max_tokens} tokens are written for a request", "max_tokens")  # fmt: skip
        self._need_room(job, 0)

    def _need_room(self, job: Completion, rows: int) -> None:
        if self.longest is None or len(job.prompt) + job.max_tokens + rows <= self.longest:
            return
        own = f" and {rows} of the adapter's own" if rows else ""
        raise wrong("context_length_exceeded", f"{len(job.prompt)} tokens of the prompt{own} and {job.max_tokens} of an answer are more than "
                    f"the {self.longest} that the model reads: shorten the prompt, or ask for fewer", "max_tokens")  # fmt: skip

    def room(self) -> int:
        return self.options.max_batch - len(self._new) - sum(len(d.rows) for d in self._decodings())

    def begin(self, job: Job) -> None:
        assert isinstance(job, Completion)
        ways = job.loaded.known if job.loaded is not None else self.base
        self._need_room(job, ways.rows)
        row = Row(job.prompt, job.inside, inserted=ways.rows)
        row.owner = _Text(job, row, ways, Written(self.tokenizer, job.stop), job.sampling.generator())
        self._new.append(row.owner)

    def running(self) -> list[Job]:
        return [t.job for t in self._new] + [r.owner.job for d in self._decodings() for r in d.rows]

    def leave(self, jobs: Iterable[Job]) -> None:
        gone = {id(job) for job in jobs}
        if not gone:
            return
        self._new = [t for t in self._new if id(t.job) not in gone]
        for d in self._decodings():
            d.leave([r for r in d.rows if id(r.owner.job) in gone])
        self._forget_empty()

    def step(self) -> list[tuple[Job, Any]]:
        """One token for every row."""
        before = self._decodings()
        ended: list[tuple[Job, Any]] = []
        for d in before:
            try:
                self._read(d, d.rows, d.step(), ended)
            except Exception as e:  # noqa: BLE001 - whatever a pass raises, it is these rows' and nobody else's
                ended += [(r.owner.job, e) for r in d.rows]
                d.leave(list(d.rows))
        ended += self._begin_new()
        self._forget_empty()
        return ended

    # ------------------------------------------------------------ rows

    def _decodings(self) -> list[Decoding]:
        return [d for several in self._under_way.values() for d in several]

    def _forget_empty(self) -> None:
        for key in list(self._under_way):
            self._under_way[key] = [d for d in self._under_way[key] if d.rows]
            if not self._under_way[key]:
                del self._under_way[key]

    def _begin_new(self) -> list[tuple[Job, Any]]:
        """Lets new texts join what runs, where they may, and begin by themselves else."""
        groups: dict[tuple[Any, ...], list[_Text]] = defaultdict(list)
        for t in self._new:
            key = None if t.ways.shares and not self.options.one_at_a_time else t.row.adapter or ""
            length = None if t.ways.pads else len(t.row.prompt)
            groups[key, length, t.ways.joins, None if t.ways.batches else id(t)].append(t)
        self._new = []
        ended: list[tuple[Job, Any]] = []
        for (key, _, joins, _), texts in groups.items():
            running = next((d for d in self._under_way.get(key, ()) if d.joins), None) if joins else None
            d = running or Decoding(self.model, joins)
            rows = [t.row for t in texts]
            try:
                self._read(d, rows, d.begin(rows), ended)
            except Exception as e:  # noqa: BLE001
                ended += [(t.job, e) for t in texts]
                d.leave(rows)
                continue
            if running is None:
                self._under_way[key].append(d)
            d.sort()
        return ended

    def _read(self, d: Decoding, rows: list[Row], scores: torch.Tensor, ended: list[tuple[Job, Any]]) -> None:
        """Takes the next token of each row; rows that have ended leave."""
        self.listener.batch(len(d.rows), len({r.adapter for r in d.rows}))
        best, largest = scores.argmax(-1).tolist(), scores.amax(-1).tolist()
        over: list[Row] = []
        for i, row in enumerate(list(rows)):
            text: _Text = row.owner
            if not math.isfinite(largest[i]):
                ended.append((text.job, broken("not_finite", "the model made no numbers of this text")))
                over.append(row)
                continue
            row.next = best[i] if text.chance is None else text.job.sampling.choose(scores[i].cpu(), text.chance)
            if (end := self._take(text, row.next)) is not None:
                ended.append((text.job, end))
                over.append(row)
        d.leave(over)

    def _take(self, text: _Text, token: int) -> Any:
        """The answer, if this token ends it; None if it goes on."""
        job, written = text.job, text.written
        if token in self._ends:
            reason = "stop"
        else:
            written.add(token)
            reason = "stop" if written.stopped else "length" if len(written.ids) >= job.max_tokens else ""
        if job.heard is not None:
            try:
                piece = written.piece(bool(reason))
                if piece:
                    job.heard(piece)
            except Exception:  # noqa: BLE001 - whoever listened is gone
                return cancelled()
        if not reason:
            return None
        return Completed(written.text(), tuple(written.ids), reason, len(job.prompt))


def _ends(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer: those of the model's settings for generation, else the tokenizer's."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = tokenizer.eos_token_id if found is None else found
    return frozenset([found] if isinstance(found, int) else found or ())
