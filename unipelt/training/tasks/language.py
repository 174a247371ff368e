"""What the tasks of language models share: sums of losses, and answers that are generated and compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import Field

from ...language.report.diagnostics import error
from .. import data as reading
from ..data import Split
from ..options import TaskOptions
from . import template
from .generation import decoded, generate, grouped, leaders, text_metrics
from .task import IGNORED, Answer, Encoded, Inputs, Output, Predicting, Task


@dataclass(frozen=True)
class Prompt:
    """A prompt's tokens, and the position of the first example with the same prompt."""

    ids: list[int]
    leader: int


@dataclass(frozen=True)
class LanguageTask(Task):
    """A prompt, which is the column ``texts`` or a ``pattern`` of columns, and its answer, the column ``label``.

    With ``generate`` an evaluation also writes answers of at most ``max_target_length`` tokens and compares them; exact match
    then looks behind the last ``answer_after``, where that is given.
    """

    pretrained: ClassVar[bool] = True
    asks: ClassVar[tuple[str, ...]] = ("pattern", "max_target_length", "generate", "answer_after")
    #: Whether the model gives back the answer without the prompt.
    answers_only: ClassVar[bool]

    pattern: str | None = None
    max_target_length: Annotated[int, Field(ge=1)] = 128
    generate: bool = False
    answer_after: str | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.texts if self.pattern else self.texts[:1]

    def in_training(self) -> Self:
        return replace(self, generate=False)

    def text_of(self, given: Sequence[str]) -> str:
        """The prompt as it is read."""
        return template.parse(self.pattern).render(given) if self.pattern else given[0]

    def prompt_ids(self, given: Sequence[Any], tokenizer: Any) -> list[int]:
        """The tokens of a prompt, as generation starts from them."""
        raise NotImplementedError

    def prompts(self, inputs: Inputs, tokenizer: Any) -> list[Prompt]:
        if not self.generate:
            return []
        ids = [self.prompt_ids(given, tokenizer) for given in inputs]
        return [Prompt(i, leader) for i, leader in zip(ids, leaders(ids))]

    # ------------------------------------------------------------ scores and predictions

    def text_outputs(
        self, model: Any, logits: torch.Tensor, target: torch.Tensor, encoded: Encoded, chosen: Sequence[int]
    ) -> list[Output]:
        """For each example the sum of its tokens' losses in nats, their number, and the tokens of an answer if one is written.

        ``logits`` [batch, tokens, vocab] are those that predict ``target`` [batch, tokens].
        """
        losses = F.cross_entropy(logits.float().transpose(1, 2), target, ignore_index=IGNORED, reduction="none").sum(-1)
        asked = [i for i in chosen if encoded.aside[i].leader == i] if self.generate else []
        prompts = [encoded.aside[i].ids for i in asked]
        answers = dict(zip(asked, generate(model, prompts, self.max_target_length, self.answers_only)))
        return [
            (x, n, answers.get(i)) for x, n, i in zip(losses.tolist(), (target != IGNORED).sum(-1).tolist(), chosen)
        ]

    def score(self, encoded: Encoded, outputs: Sequence[Output], tokenizer: Any) -> dict[str, float]:
        count = sum(n for _, n, _ in outputs)
        loss = math.fsum(x for x, *_ in outputs) / max(count, 1)
        found = {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "tokens": count, "examples": len(outputs)}
        if self.generate:
            wanted = grouped([p.leader for p in encoded.aside], encoded.references)
            answers = [decoded(outputs[i][2], tokenizer) for i in wanted]
            found |= text_metrics(answers, list(wanted.values()), self.answer_after)
        return found

    def predict(self, model: Any, inputs: Inputs, tokenizer: Any, how: Predicting) -> list[Answer]:
        prompts = [self.prompt_ids(given, tokenizer) for given in inputs]
        length = how.max_new_tokens or self.max_target_length
        found = generate(model, prompts, length, self.answers_only, how.batch_size, how.tick)
        texts = [g[0] if len(g) == 1 else list(g) for g in inputs]
        return [{"text": t, "completion": decoded(a, tokenizer)} for t, a in zip(texts, found)]


def prompt_columns(split: Split, options: TaskOptions, kind: str) -> reading.Columns:
    """The columns of prompts and answers, by convention or by name, or those of a pattern; the answer may be missing."""
    pattern, label = template.asked(options, split), options.label
    if pattern is None:
        return reading.language_columns(split, options.text, label)
    if pattern.masks or pattern.rows:
        raise error("E0640", f"the pattern `{options.pattern}` has a mask or pseudo-tokens, and {kind} fills columns only",
                    help="leave `{mask}` and `{prompt:…}` out, or choose `--task pet`")  # fmt: skip
    if label is None:
        known = [
            answer for _, answer in reading.COMPLETIONS if answer in split.columns and answer not in pattern.columns
        ]
        label = known[0] if known else None
    return reading.Columns(pattern.columns, reading.named(split, label, "label") if label else None)
