"""Sequence classification: one text or a pair, one label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from .. import data as reading
from ..config import TaskOptions
from ..data import Split
from .evaluation import Collator, outputs_of
from .task import Encoded, Example, Output, Predicting, Task, pad


@dataclass(frozen=True)
class SequenceClassification(Task):
    """``labels`` are the values in the data, ``titles`` what is shown for them."""

    kind: ClassVar[str] = "sequence-classification"
    auto: ClassVar[str] = "AutoModelForSequenceClassification"
    table: ClassVar[tuple[str, ...]] = ("text", "label", "probability")

    labels: tuple[str, ...] = ()
    titles: tuple[str, ...] = ()

    @classmethod
    def suits(cls, split: Split, options: TaskOptions) -> bool:
        have = set(split.columns)
        pair = any({p, c} <= have for p, c in reading.COMPLETIONS)
        return not pair and bool(have & set(reading.LABELS))

    @classmethod
    def find(cls, split: Split, options: TaskOptions) -> SequenceClassification:
        columns = reading.classification_columns(split, options.text, options.label)
        assert columns.label is not None
        labels = reading.label_set(split, columns.label)
        titles = reading.label_titles(split, columns.label, labels)
        return cls(columns.texts, columns.label, options.length(cls.length), options.padding, tuple(labels), tuple(titles))

    def classes(self, split: Split) -> list[str]:
        assert self.label is not None
        return reading.labels_of(split, self.label)

    @property
    def metric(self) -> tuple[str, bool]:
        return "accuracy", True

    def model_options(self) -> dict[str, Any]:
        return {"num_labels": len(self.titles), "id2label": dict(enumerate(self.titles)),
                "label2id": {t: i for i, t in enumerate(self.titles)}}  # fmt: skip

    def encode(self, split: Split, tokenizer: Any) -> Encoded:
        assert self.label is not None
        encoded = self.encode_inputs(self.read_inputs(split), tokenizer)
        reading.named(split, self.label, "label")
        answers = reading.known_labels(split, self.label, self.labels)
        for example, label in zip(encoded.examples, answers, strict=True):
            example["labels"] = label
        return Encoded(encoded.examples, encoded.truncated, references=answers)

    def encode_inputs(self, inputs: Sequence[Sequence[Any]], tokenizer: Any) -> Encoded:
        columns = [list(c) for c in zip(*inputs)]
        whole = tokenizer(*columns, truncation=False, verbose=False)
        cut = tokenizer(*columns, truncation=True, max_length=self.max_length, verbose=False)
        examples = [{k: cut[k][i] for k in cut} for i in range(len(inputs))]
        return Encoded(examples, sum(len(a) > len(b) for a, b in zip(whole["input_ids"], cut["input_ids"])))

    def collate(self, examples: Sequence[Example], tokenizer: Any) -> dict[str, torch.Tensor]:
        batch = pad(examples, tokenizer, self)
        if "labels" in examples[0]:
            batch["labels"] = torch.tensor([e["labels"] for e in examples])
        return batch

    def outputs(self, model: Any, batch: dict[str, torch.Tensor], encoded: Encoded, chosen: Sequence[int]) -> list[Output]:
        """The scores of the classes."""
        batch.pop("labels", None)
        return list(model(**batch).logits.float().cpu())

    def score(self, encoded: Encoded, outputs: Sequence[Output], tokenizer: Any) -> dict[str, float]:
        return classification_metrics(torch.stack(list(outputs)), torch.tensor(encoded.references), len(self.labels))

    def predict(self, model: Any, inputs: Sequence[Sequence[Any]], tokenizer: Any, how: Predicting) -> list[dict[str, Any]]:
        encoded = self.encode_inputs(inputs, tokenizer)
        found = outputs_of(model, self, encoded, Collator(tokenizer, self), how.batch_size, how.tick)
        out = []
        for i, text in enumerate(inputs):
            share = found[i].softmax(-1)
            best = int(share.argmax())
            out.append({
                "text": text[0] if len(text) == 1 else list(text),
                "label": self.titles[best],
                "probability": round(share[best].item(), 6),
                "probabilities": {t: round(p.item(), 6) for t, p in zip(self.titles, share)},
            })  # fmt: skip
        return out


def classification_metrics(scores: torch.Tensor, labels: torch.Tensor, classes: int) -> dict[str, float]:
    """Loss, accuracy, macro F1 (over the classes that occur or are predicted) and the share of the commonest class."""
    guess = scores.argmax(-1)
    hits = torch.zeros(classes).index_add_(0, labels, (guess == labels).float())
    support = torch.bincount(labels, minlength=classes).float()
    guessed = torch.bincount(guess, minlength=classes).float()
    present = support + guessed > 0
    f1 = 2 * hits[present] / (support + guessed)[present]
    return {
        "loss": F.cross_entropy(scores.double(), labels).item(),
        "accuracy": (guess == labels).double().mean().item(),
        "macro_f1": f1.double().mean().item(),
        "majority": support.max().item() / len(labels),
        "examples": len(labels),
    }
