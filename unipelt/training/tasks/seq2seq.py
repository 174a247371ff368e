"""Sequence to sequence: an encoder–decoder reads a text and writes another; its answers are compared with those wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ...language.report.diagnostics import error
from .. import data as reading
from ..config import TaskOptions
from ..data import Split
from .language import LanguageTask, prompt_columns
from .task import IGNORED, Encoded, Example, Output, pad


@dataclass(frozen=True)
class Seq2Seq(LanguageTask):
    """The encoder reads the column ``texts`` or a ``pattern`` (T5's `"summarize: {article}"`), the decoder writes ``label``."""

    kind: ClassVar[str] = "seq2seq"
    auto: ClassVar[str] = "AutoModelForSeq2SeqLM"
    answers_only: ClassVar[bool] = True

    @classmethod
    def suits(cls, split: Split, options: TaskOptions, base: Any) -> bool:
        have = set(split.columns)
        named = options.pattern is not None or any({p, a} <= have for p, a in reading.COMPLETIONS)
        return bool(getattr(base, "is_encoder_decoder", False)) and named

    @classmethod
    def find(cls, split: Split, options: TaskOptions, base: Any) -> Seq2Seq:
        columns = prompt_columns(split, options.text, options.label, options.pattern, cls.kind)
        if columns.label is None:
            raise error("E0603", f"`{split.file}` has no column of answers; it has {reading.listed(split.columns)}",
                        help="name it with `--label`")  # fmt: skip
        return cls(
            columns.texts, columns.label, options.length(cls.length), options.padding, options.pattern,
            options.max_target_length or cls.max_target_length, options.generate is not False, options.answer_after,
        )  # fmt: skip

    # ------------------------------------------------------------ encoding

    def encode(self, split: Split, tokenizer: Any) -> Encoded:
        inputs = self.read_inputs(split)
        answers = reading.texts_of(split, reading.named(split, str(self.label), "label"))
        texts = [self.text_of(given) for given in inputs]
        sources, cut_sources = _ids(tokenizer, self.max_length, texts)
        targets, cut_targets = _ids(tokenizer, self.max_target_length, text_target=answers)
        examples = [{"input_ids": s, "attention_mask": [1] * len(s), "labels": t} for s, t in zip(sources, targets)]
        truncated = sum(a or b for a, b in zip(cut_sources, cut_targets))
        return Encoded(examples, truncated, self.prompts(inputs, tokenizer), answers)

    def prompt_ids(self, given: Sequence[Any], tokenizer: Any) -> list[int]:
        return _ids(tokenizer, self.max_length, [self.text_of(given)])[0][0]

    def collate(self, examples: Sequence[Example], tokenizer: Any) -> dict[str, torch.Tensor]:
        batch = pad(examples, tokenizer, self)
        longest = self.max_target_length if self.padding == "max_length" else max(len(e["labels"]) for e in examples)
        # A decoder reads from the left, whatever the side on which the encoder's tokens are padded.
        batch["labels"] = torch.tensor([e["labels"] + [IGNORED] * (longest - len(e["labels"])) for e in examples])
        return batch

    # ------------------------------------------------------------ scores

    def outputs(
        self, model: Any, batch: dict[str, torch.Tensor], encoded: Encoded, chosen: Sequence[int]
    ) -> list[Output]:
        target = batch["labels"]  # from which the model makes the decoder's inputs
        return self.text_outputs(model, model(**batch).logits, target, encoded, chosen)


def _ids(tokenizer: Any, room: int, *texts: list[str], **named: list[str]) -> tuple[list[list[int]], list[bool]]:
    """Tokens with those that end a text, and which texts were cut."""
    whole = tokenizer(*texts, **named, truncation=False, verbose=False)["input_ids"]
    cut = tokenizer(*texts, **named, truncation=True, max_length=room, verbose=False)["input_ids"]
    eos = tokenizer.eos_token_id
    ended = [i if eos is None or eos in i[-1:] else [*i[: room - 1], eos] for i in cut]
    return ended, [len(a) > len(b) for a, b in zip(whole, cut)]
