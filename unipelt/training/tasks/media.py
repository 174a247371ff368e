"""Classification of files: what pictures and sounds have in common. The tasks are `pictures` and `sounds`.

Every file is read once before training begins, so that one that cannot be read is named then. What it became is kept up to a
bound; beyond that a file is read again in each epoch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from ...anatomy.evaluating import evaluating
from ...language.report.diagnostics import Diagnostic, PeltError, error
from ...language.syntax.nodes import Span
from .. import data as reading
from ..data import Files, Split, Unreadable
from ..data.media import NOUNS
from ..options import TaskOptions
from .answers import Answers, answers_for
from .classification import SequenceClassification
from .evaluation import as_read, outputs_in_order
from .task import Answer, Batch, Encoded, Example, Inputs, Predicting

#: The most bytes of inputs that are kept of a split.
KEPT = 2**30


@dataclass(frozen=True)
class FileClassification(SequenceClassification):
    """``texts`` is the column that names files, relative to the folder of the file they stand in."""

    #: The column of a folder of classes, a key of `data.media.MEDIA`.
    column: ClassVar[str]
    asks: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def suits(cls, split: Split, options: TaskOptions, base: Any) -> bool:
        if isinstance(split, Files):
            return cls.column in split.columns
        if options.text or reading.media_column(split, cls.column) is None:
            return False
        import transformers

        return base is None or type(base) in getattr(transformers, cls.auto)._model_mapping

    @classmethod
    def find(cls, split: Split, options: TaskOptions, base: Any) -> Self:
        if options.text and len(options.text) > 1:
            raise error("E0603", f"{cls.kind} reads one column of files, not {len(options.text)}", help="name one")
        noun = NOUNS[cls.column]
        named = reading.named(split, options.text[0], "text") if options.text else None
        column = named or reading.media_column(split, cls.column)
        if column is None:
            raise error("E0603", f"`{split.file}` has no column of {noun}s; it has {reading.listed(split.columns)}",
                        Span(split.file), help="name the column of their files with `--text`")  # fmt: skip
        label = reading.column(split, options.label, reading.LABELS, "label")
        # Folders are named after classes, also where a name could be a number.
        answers = (
            Answers(label, "single_label")
            if isinstance(split, Files)
            else answers_for(split, label, options.problem_type)
        )
        cls.check_problem(answers.problem)
        labels, titles = answers.labels(split)
        if answers.problem == "single_label" and split.name == "train":
            single = [n for n, k in Counter(reading.labels_of(split, label)).items() if k == 1]
            if single:
                raise error("E0605", f"the class `{single[0]}` of `{split.file}` has one {noun}: what is trained on cannot be validated on",
                            Span(split.file), help=f"add {noun}s of it, or take the class out")  # fmt: skip
        return cls.made(options, (column,), label, labels=labels, titles=titles, problem=answers.problem)

    @classmethod
    def check_problem(cls, problem: str) -> None:
        """Refuse a problem that transformers' models of this kind have no loss for."""

    @property
    def longest(self) -> str | None:
        return None

    @property
    def table(self) -> tuple[str, ...]:
        return ("file", *super().table[1:])

    # ------------------------------------------------------------ encoding

    @abstractmethod
    def read(self, value: Any, reader: Any) -> tuple[dict[str, torch.Tensor], bool]:
        """The inputs of one file, and whether it was cut. Raises `Unreadable`."""

    @abstractmethod
    def batch(self, inputs: Sequence[dict[str, torch.Tensor]], reader: Any) -> Batch:
        """The inputs of several files as a batch."""

    def read_inputs(self, split: Split) -> list[Sequence[Any]]:
        column = reading.named(split, self.texts[0], "text")
        remedy = "write the name of a file, relative to the folder of this one"
        folder = Path() if isinstance(split, Files) else Path(split.file).parent
        return [(reading.beside(v, folder),) for v in reading.values_of(split, column, reading.wrong_file, remedy)]

    def encode(self, split: Split, tokenizer: Any) -> Encoded:
        inputs = self.read_inputs(split)
        targets = self.answers.targets(split, self.labels)  # before the files are read, which takes long
        cells = [row[self.texts[0]] for row in split.rows]
        places = [
            split.place(i) + (f": `{v}`" if isinstance(v, str) and not isinstance(split, Files) else "")
            for i, v in enumerate(cells)
        ]
        encoded = self._encode(inputs, places, tokenizer)
        for example, target in zip(encoded.examples, targets, strict=True):
            example["labels"] = target
        return Encoded(encoded.examples, encoded.truncated, references=targets)

    def encode_inputs(self, inputs: Inputs, tokenizer: Any) -> Encoded:
        names = [reading.title_of(value) for (value,) in inputs]
        return self._encode(inputs, [f"`{n}`" if n else f"row {i}" for i, n in enumerate(names, 1)], tokenizer)

    def _encode(self, inputs: Inputs, places: Sequence[str], reader: Any) -> Encoded:
        examples: list[Example] = []
        problems: list[Diagnostic] = []
        kept = cut = 0
        for (value,), place in zip(inputs, places, strict=True):
            try:
                found, shorter = self.read(value, reader)
            except Unreadable as e:
                message = f"{place}: the {NOUNS[self.column]} cannot be read: {e}"
                problems.append(Diagnostic("E0650", message, help=e.remedy))
                continue
            cut += shorter
            kept += sum(t.nbytes for t in found.values())
            length = next(iter(found.values())).shape[-1]
            examples.append({"file": value, "length": length, "inputs": found if kept <= KEPT else None})
        reading.raise_all(problems)
        return Encoded(examples, cut)

    def length_of(self, example: Example) -> int:
        return example["length"]

    def collate(self, examples: Sequence[Example], tokenizer: Any) -> Batch:
        inputs = [e["inputs"] or self.read(e["file"], tokenizer)[0] for e in examples]
        batch = self.batch(inputs, tokenizer)
        if "labels" in examples[0]:
            dtype = torch.long if self.problem == "single_label" else torch.float
            batch["labels"] = torch.tensor([e["labels"] for e in examples], dtype=dtype)
        return batch

    def try_out(self, model: Any, encoded: Encoded, tokenizer: Any) -> None:
        batch = self.collate([encoded[0]], tokenizer)
        batch.pop("labels", None)
        fail_to_read(model, batch, f"{NOUNS[self.column]}s")

    # ------------------------------------------------------------ predictions

    def predict(self, model: Any, inputs: Inputs, tokenizer: Any, how: Predicting) -> list[Answer]:
        found = outputs_in_order(model, self, self.encode_inputs(inputs, tokenizer), tokenizer, how)
        names = [reading.title_of(value) for (value,) in inputs]
        return [{"file": name, **self.answer(scores)} for name, scores in zip(names, found, strict=True)]


def fail_to_read(model: Any, batch: Batch, what: str) -> None:
    """An error if the model cannot read a batch that was made of ``what``."""
    batch = as_read(batch, model.dtype)
    shapes = ", ".join(f"{n} {list(t.shape)}" for n, t in batch.items())
    try:
        with evaluating(model):
            model(**{n: t.to(model.device) for n, t in batch.items()})
    except PeltError:
        raise
    except Exception as e:  # noqa: BLE001 - whatever a model's forward raises
        raise error("E0651", f"the model cannot read what is made of the {what} ({shapes}): {reading.said(e)}",
                    help="the preprocessor_config.json in the model's folder must be this model's own") from None  # fmt: skip
