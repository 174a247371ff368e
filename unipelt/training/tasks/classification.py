"""Sequence classification: one text or a pair; a label, several labels at once, or a number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F

from ...compiler.labels import Labels
from ...language.report.diagnostics import counted, error
from .. import data as reading
from ..data import Split
from ..options import TaskOptions
from . import template
from .answers import Answers, answers_for
from .evaluation import outputs_in_order
from .task import Answer, Batch, Encoded, Example, Inputs, Output, Predicting, Task, pad, rows_of, spread, tokenized
from .template import Template


@dataclass(frozen=True)
class SequenceClassification(Task):
    """``labels`` are the values in the data, ``titles`` what is shown for them.

    With a ``pattern`` its text is read, which may have pseudo-tokens (P-tuning). ``problem`` is `single_label` (a column of
    labels), `multi_label` (a column of lists of labels, or several columns of 0 and 1, joined by commas in ``label``) or
    `regression` (a column of numbers).
    """

    kind: ClassVar[str] = "sequence-classification"
    auto: ClassVar[str] = "AutoModelForSequenceClassification"
    asks: ClassVar[tuple[str, ...]] = ("problem_type", "pattern")
    by_example: ClassVar[bool] = True

    labels: tuple[str, ...] = ()
    titles: tuple[str, ...] = ()
    problem: Literal["single_label", "multi_label", "regression"] = "single_label"
    pattern: str | None = None

    @classmethod
    def suits(cls, split: Split, options: TaskOptions, base: Any) -> bool:
        have = set(split.columns)
        pair = any({p, c} <= have for p, c in reading.COMPLETIONS)
        return options.problem_type is not None or (not pair and bool(have & set(reading.LABELS)))

    @classmethod
    def find(cls, split: Split, options: TaskOptions, base: Any) -> SequenceClassification:
        several = options.label is not None and "," in options.label and options.label not in split.columns
        pattern = template.asked(options, split)
        texts = pattern.columns if pattern else options.text
        columns = reading.classification_columns(
            split, texts, None if several else options.label, several, pattern is not None
        )
        label = str(options.label) if several else columns.label
        assert label is not None
        answers = answers_for(split, label, options.problem_type)
        labels, titles = answers.labels(split)
        return cls.made(options, columns.texts, label, labels=labels, titles=titles, problem=answers.problem)

    @classmethod
    def named(cls, options: TaskOptions, head: Labels, **own: Any) -> Self:
        names, problem = head.names, options.problem_type or "single_label"
        return super().named(options, head, labels=names, titles=names, problem=problem)

    def in_order_of(self, head: Labels) -> Self:
        if self.problem == "regression":
            return self
        values = reading.values_in_order(head.names, self.labels, self.titles)
        return replace(self, labels=values, titles=head.names)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        return super().from_json({"titles": record.get("labels"), **record})  # type: ignore[misc]

    def damage(self) -> str | None:
        if len(self.titles) != len(self.labels):
            return f"it has {counted(len(self.titles), 'title')} for {counted(len(self.labels), 'label')}"
        if self.pattern is not None and self.template.columns != self.texts:
            return f"its pattern `{self.pattern}` reads other columns than {', '.join(self.texts)}"
        if self.pattern is None and len(self.texts) > 2:
            return f"it reads {len(self.texts)} texts, and a model reads two at most"
        return super().damage()

    @property
    def template(self) -> Template:
        return template.parse(str(self.pattern))

    @property
    def pseudo_tokens(self) -> int:
        return self.template.rows if self.pattern else 0

    @property
    def answers(self) -> Answers:
        return Answers(str(self.label), self.problem)

    def classes(self, split: Split) -> list[str]:
        if self.problem != "single_label":
            raise error("E0620", f"`--shots` counts examples of each class, and a {self.problem} task has no classes",
                        help="use `--train-size`")  # fmt: skip
        return reading.labels_of(split, str(self.label))

    # ------------------------------------------------------------ the model

    @property
    def metric(self) -> tuple[str, bool]:
        return {"single_label": "accuracy", "multi_label": "micro_f1", "regression": "pearson"}[self.problem], True

    @property
    def table(self) -> tuple[str, ...]:
        return {"single_label": ("text", "label", "probability"), "multi_label": ("text", "labels"),
                "regression": ("text", "value")}[self.problem]  # fmt: skip

    def model_options(self) -> dict[str, Any]:
        problem = "regression" if self.problem == "regression" else f"{self.problem}_classification"
        return {"num_labels": len(self.titles), "id2label": dict(enumerate(self.titles)),
                "label2id": {t: i for i, t in enumerate(self.titles)}, "problem_type": problem}  # fmt: skip

    # ------------------------------------------------------------ encoding

    def encode(self, split: Split, tokenizer: Any) -> Encoded:
        encoded = self.encode_inputs(self.read_inputs(split), tokenizer)
        targets = self.answers.targets(split, self.labels)
        for example, target in zip(encoded.examples, targets, strict=True):
            example["labels"] = target
        return Encoded(encoded.examples, encoded.truncated, references=targets)

    def encode_inputs(self, inputs: Inputs, tokenizer: Any) -> Encoded:
        if self.pattern:
            around = template.borders(tokenizer)
            found = [template.encode(self.template, values, tokenizer, self.max_length, *around) for values in inputs]
            return Encoded([e.example(self.template.rows > 0) for e in found], sum(e.cut for e in found))
        found, cut = tokenized(tokenizer, self.max_length, *map(list, zip(*inputs)))
        return Encoded(rows_of(found), sum(cut))

    def collate(self, examples: Sequence[Example], tokenizer: Any) -> Batch:
        batch = pad(examples, tokenizer, self, leave=("labels", "pseudo_tokens"))
        if "pseudo_tokens" in examples[0]:
            batch["pseudo_tokens"] = spread(examples, batch, "pseudo_tokens", 0)
        if "labels" in examples[0]:
            dtype = torch.long if self.problem == "single_label" else torch.float
            batch["labels"] = torch.tensor([e["labels"] for e in examples], dtype=dtype)
        return batch

    # ------------------------------------------------------------ scores and predictions

    def outputs(self, model: Any, batch: Batch, encoded: Encoded, chosen: Sequence[int]) -> list[Output]:
        """The scores of the classes, or the number."""
        batch.pop("labels", None)
        return list(model(**batch).logits.float().cpu())

    def score(self, encoded: Encoded, outputs: Sequence[Output], tokenizer: Any) -> dict[str, float]:
        scores = torch.stack(list(outputs))
        if self.problem == "regression":
            return regression_metrics(scores[:, 0], torch.tensor(encoded.references))
        if self.problem == "multi_label":
            return multi_label_metrics(scores, torch.tensor(encoded.references))
        return classification_metrics(scores, torch.tensor(encoded.references))

    def predict(self, model: Any, inputs: Inputs, tokenizer: Any, how: Predicting) -> list[Answer]:
        encoded = self.encode_inputs(inputs, tokenizer)
        found = outputs_in_order(model, self, encoded, tokenizer, how)
        texts = [given[0] if len(given) == 1 else list(given) for given in inputs]
        return [{"text": text, **self.answer(scores)} for text, scores in zip(texts, found, strict=True)]

    def answer(self, scores: torch.Tensor) -> dict[str, Any]:
        """The prediction for one text, from its scores."""
        if self.problem == "regression":
            return {"value": round(scores.item(), 6)}
        if self.problem == "multi_label":
            share = scores.sigmoid()
            return {"labels": [t for t, s in zip(self.titles, scores) if s > 0], "probabilities": self._shares(share)}
        share = scores.softmax(-1)
        best = int(share.argmax())
        return {
            "label": self.titles[best],
            "probability": round(share[best].item(), 6),
            "probabilities": self._shares(share),
        }

    def _shares(self, share: torch.Tensor) -> dict[str, float]:
        return {t: round(p.item(), 6) for t, p in zip(self.titles, share)}


def classification_metrics(scores: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Loss, accuracy, macro F1 (over the classes that occur or are predicted), Matthews' correlation, and the share of the
    commonest class. ``scores`` [examples, classes]; ``labels`` [examples]."""
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    guess = scores.argmax(-1)
    return {
        "loss": F.cross_entropy(scores.double(), labels).item(),
        "accuracy": float(accuracy_score(labels, guess)),
        "macro_f1": float(f1_score(labels, guess, average="macro", zero_division=0)),
        "mcc": float(matthews_corrcoef(labels, guess)),
        "majority": torch.bincount(labels).max().item() / len(labels),
        "examples": len(labels),
    }


def multi_label_metrics(scores: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Loss, F1 over all decisions (micro) and over the labels' F1 (macro), and the share of examples whose labels are all
    right. ``scores`` and ``labels`` (0 and 1) [examples, labels]; a label is given where its probability is above one half."""
    from sklearn.metrics import accuracy_score, f1_score

    guess, wanted = (scores > 0).int(), labels.int()
    return {
        "loss": F.binary_cross_entropy_with_logits(scores.double(), labels.double()).item(),
        "micro_f1": float(f1_score(wanted, guess, average="micro", zero_division=0)),
        "macro_f1": float(f1_score(wanted, guess, average="macro", zero_division=0)),
        "accuracy": float(accuracy_score(wanted, guess)),
        "examples": len(labels),
    }


def regression_metrics(values: torch.Tensor, wanted: torch.Tensor) -> dict[str, float]:
    """The mean squared error and the correlations of Pearson and Spearman, 0 where they are undefined (all values are equal)."""
    import numpy as np
    from scipy.stats import pearsonr, spearmanr

    a, b = values.double().numpy(), wanted.double().numpy()
    defined = len(a) > 1 and np.ptp(a) > 0 and np.ptp(b) > 0
    mse = float(np.mean((a - b) ** 2))
    pearson, spearman = (float(f(a, b).statistic) if defined else 0.0 for f in (pearsonr, spearmanr))
    return {
        "loss": mse, "mse": mse, "pearson": pearson if math.isfinite(pearson) else 0.0, "spearman": spearman,
        "examples": len(a),
    }  # fmt: skip
