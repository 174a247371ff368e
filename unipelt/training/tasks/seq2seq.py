"""Sequence to sequence: an encoder–decoder reads a text and writes another; its answers are compared with those wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ...language.report.diagnostics import error
from .. import data as reading
from ..data import Split
from ..options import TaskOptions
from .language import LanguageTask, prompt_columns
from .task import IGNORED, Batch, Encoded, Example, Inputs, Output, pad, tokenized


@dataclass(frozen=True)
class Seq2Seq(LanguageTask):
    """The encoder reads the column ``texts`` or a ``pattern`` (T5's `"summarize: {article}"`), the decoder writes ``label``."""

    kind: ClassVar[str] = "seq2seq"
    auto: ClassVar[str] = "AutoModelForSeq2SeqLM"
    answers_only: ClassVar[bool] = True
    usual: ClassVar[tuple[str, ...]] = ("source", "target")

    @classmethod
    def suits(cls, split: Split, options: TaskOptions, base: Any) -> bool:
        have = set(split.columns)
        named = options.pattern is not None or any({p, a} <= have for p, a in reading.COMPLETIONS)
        return bool(getattr(base, "is_encoder_decoder", False)) and named

    @classmethod
    def find(cls, split: Split, options: TaskOptions, base: Any) -> Seq2Seq:
        columns = prompt_columns(split, options, cls.kind)
        if columns.label is None:
            raise error("E0603", f"`{split.file}` has no column of answers; it has {reading.listed(split.columns)}",
                        help="name it with `--label`")  # fmt: skip
        return cls.made(options, columns.texts, columns.label, generate=options.generate is not False)

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

    def cut_of(self, inputs: Inputs, tokenizer: Any) -> int:
        return sum(_ids(tokenizer, self.max_length, [self.text_of(given) for given in inputs])[1])

    def collate(self, examples: Sequence[Example], tokenizer: Any) -> Batch:
        batch = pad(examples, tokenizer, self)
        longest = self.max_target_length if self.padding == "max_length" else max(len(e["labels"]) for e in examples)
        # A decoder reads from the left, whatever the side on which the encoder's tokens are padded.
        batch["labels"] = torch.tensor([e["labels"] + [IGNORED] * (longest - len(e["labels"])) for e in examples])
        return batch

    # ------------------------------------------------------------ scores

    def outputs(self, model: Any, batch: Batch, encoded: Encoded, chosen: Sequence[int]) -> list[Output]:
        target = batch["labels"]  # from which the model makes the decoder's inputs
        return self.text_outputs(model, model(**batch).logits, target, encoded, chosen)


def _ids(tokenizer: Any, room: int, *texts: list[str], **named: list[str]) -> tuple[list[list[int]], list[bool]]:
    """The tokens of texts, each with its end token, and which texts were cut."""
    found, cut = tokenized(tokenizer, room, *texts, **named)
    eos = tokenizer.eos_token_id
    return [i if eos is None or eos in i[-1:] else [*i[: room - 1], eos] for i in found["input_ids"]], cut
