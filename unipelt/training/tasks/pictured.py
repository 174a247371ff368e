"""Vision-language models: a picture and a prompt, and the answer that is learned. The picture is passed through as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from ...anatomy.evaluating import evaluating
from ...language.report.diagnostics import Diagnostic, error
from ...language.syntax.nodes import Span
from .. import data as reading
from ..data import Split, Unreadable
from ..options import TaskOptions
from .causal_lm import CausalLM
from .generation import decoded
from .media import fail_to_read
from .pictures import picture_of
from .task import IGNORED, Answer, Batch, Encoded, Example, Inputs, Predicting


@dataclass(frozen=True)
class ImageTextToText(CausalLM):
    """``texts`` are the columns of the picture's file and of the prompt, ``label`` that of the answer.

    The prompt is what the model's own processor makes of both, by its chat template where it has one; the answer and an end
    token follow it. An answer that is too long loses its end. One picture goes with each prompt.
    """

    kind: ClassVar[str] = "image-text-to-text"
    auto: ClassVar[str] = "AutoModelForImageTextToText"
    reader: ClassVar[str] = "AutoProcessor"
    asks: ClassVar[tuple[str, ...]] = ("loss", "max_target_length")
    length: ClassVar[int] = 2048
    usual: ClassVar[tuple[str, ...]] = ("image", "prompt")

    @classmethod
    def suits(cls, split: Split, options: TaskOptions, base: Any) -> bool:
        if options.text or base is None or reading.media_column(split, "image") is None:
            return False
        import transformers

        pair = any({p, a} <= set(split.columns) for p, a in reading.COMPLETIONS)
        return pair and type(base) in getattr(transformers, cls.auto)._model_mapping

    @classmethod
    def find(cls, split: Split, options: TaskOptions, base: Any) -> ImageTextToText:
        if options.text and len(options.text) != 2:
            raise error("E0603", f"{cls.kind} reads a column of pictures and one of prompts, not {len(options.text)} columns",
                        help="name both, as in `--text image,question`")  # fmt: skip
        picture = (
            reading.named(split, options.text[0], "text") if options.text else reading.media_column(split, "image")
        )
        if picture is None:
            raise error("E0603", f"`{split.file}` has no column of pictures; it has {reading.listed(split.columns)}",
                        Span(split.file), help="name the columns, as in `--text image,question`")  # fmt: skip
        columns = reading.language_columns(split, options.text[1:] if options.text else None, options.label)
        if columns.label is None:
            raise error("E0603", f"`{split.file}` has no column of answers; it has {reading.listed(split.columns)}",
                        help="name it with `--label`")  # fmt: skip
        return cls.made(options, (picture, *columns.texts), columns.label, loss=options.loss or "completion")

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.texts

    # ------------------------------------------------------------ encoding

    def read_inputs(self, split: Split) -> list[Sequence[Any]]:
        files = reading.values_of(
            split, reading.named(split, self.texts[0], "text"), reading.wrong_file, "write the name of a file"
        )
        prompts = reading.texts_of(split, reading.named(split, self.texts[1], "text"))
        return [(reading.beside(f, Path(split.file).parent), p) for f, p in zip(files, prompts)]

    def encode(self, split: Split, tokenizer: Any) -> Encoded:
        inputs = self.read_inputs(split)
        answers = reading.texts_of(split, reading.named(split, str(self.label), "label"))
        examples: list[Example] = []
        problems: list[Diagnostic] = []
        cut = 0
        for i, (given, answer) in enumerate(zip(inputs, answers)):
            try:
                read = tokenizer(picture_of(given[0]), given[1])
            except Unreadable as e:
                problems.append(
                    Diagnostic("E0650", f"{split.place(i)}: the picture cannot be read: {e}", help=e.remedy)
                )
                continue
            first = read["input_ids"].tolist()
            if len(first) >= self.max_length:
                problems.append(Diagnostic("E0607", f"{split.place(i)}: the picture and its prompt have {len(first)} tokens, and at most "
                                           f"{self.max_length} are read", help=f"give `--max-length {len(first) + 64}` or more"))  # fmt: skip
                continue
            rest = tokenizer.answer(answer)
            room = self.max_length - len(first)
            cut += len(rest) > room
            labels = [IGNORED] * len(first) + rest[:room] if self.loss == "completion" else first + rest[:room]
            examples.append({"input_ids": first + rest[:room], "labels": labels, "file": given[0], "prompt": given[1]})
        reading.raise_all(problems)
        return Encoded(examples, cut, references=answers)

    def collate(self, examples: Sequence[Example], tokenizer: Any) -> Batch:
        """Tokens are padded at the right; what a processor makes of pictures stands one after the other."""
        longest = self.max_length if self.padding == "max_length" else max(len(e["input_ids"]) for e in examples)
        read = [tokenizer(picture_of(e["file"]), e["prompt"]) for e in examples]
        batch: dict[str, Any] = {}
        for name, first in read[0].items():
            if first.shape == read[0]["input_ids"].shape:  # a value for each token, such as its kind
                fill = [0] * longest
                batch[name] = torch.tensor([(r[name].tolist() + fill)[:longest] for r in read])
            else:
                batch[name] = torch.cat([r[name] for r in read])
        lengths = torch.tensor([len(e["input_ids"]) for e in examples])
        ids = [e["input_ids"] + [tokenizer.pad_id] * (longest - len(e["input_ids"])) for e in examples]
        batch["input_ids"] = torch.tensor(ids)
        batch["attention_mask"] = (torch.arange(longest)[None] < lengths[:, None]).long()
        batch["labels"] = torch.tensor([e["labels"] + [IGNORED] * (longest - len(e["labels"])) for e in examples])
        return batch

    def try_out(self, model: Any, encoded: Encoded, tokenizer: Any) -> None:
        batch = self.collate([encoded[0]], tokenizer)
        batch.pop("labels")
        fail_to_read(model, batch, "pictures")

    # ------------------------------------------------------------ predictions

    def predict(self, model: Any, inputs: Inputs, tokenizer: Any, how: Predicting) -> list[Answer]:
        """Greedy answers, one by one."""
        answers: list[Answer] = []
        with evaluating(model):
            for done, (file, prompt) in enumerate(inputs, 1):
                try:
                    read = tokenizer(picture_of(file), prompt)
                except Unreadable as e:
                    raise error(
                        "E0650", f"`{reading.title_of(file)}`: the picture cannot be read: {e}", help=e.remedy
                    ) from None
                batch = {n: t[None] if t.shape == read["input_ids"].shape else t for n, t in read.items()}
                batch = {
                    n: t.to(model.device, model.dtype if t.is_floating_point() else t.dtype) for n, t in batch.items()
                }
                ids = model.generate(
                    **batch, max_new_tokens=how.max_new_tokens or self.max_target_length, do_sample=False
                )
                text = decoded(ids[0, len(read["input_ids"]) :].tolist(), tokenizer.processor.tokenizer)
                answers.append({"text": [reading.title_of(file), prompt], "completion": text})
                if how.tick:
                    how.tick(done, len(inputs))
        return answers
