"""What is learned: sequence classification and causal language modelling; encoding, collation, metrics, predictions.

A task is plain data (`task.json` in a run's folder), so that a saved run needs only its folder and the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ..language.diagnostics import error
from . import data as reading
from .data import Columns, Split

IGNORED = -100
Example = dict[str, Any]
#: Called with the number of examples done so far.
Tick = Callable[[int], None]


@dataclass(frozen=True)
class Task:
    """The kind of a task, its columns, labels and encoding.

    ``labels`` are the values in the data, ``titles`` what is shown for them; both empty for a language model.
    ``loss`` says which tokens of a language model's example count: those of the completion, or all.
    """

    kind: str
    texts: tuple[str, ...]
    label: str | None
    labels: tuple[str, ...] = ()
    titles: tuple[str, ...] = ()
    loss: str = "all"
    max_length: int = 128
    padding: str = "longest"
    separator: str = "\n"

    @property
    def classifies(self) -> bool:
        return self.kind == "sequence-classification"

    @property
    def metric(self) -> tuple[str, bool]:
        """The metric that chooses the best checkpoint, and whether more is better."""
        return ("accuracy", True) if self.classifies else ("loss", False)

    def to_json(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Task:
        try:
            known: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in record.items() if k in cls.__annotations__
            }
            return cls(**known)
        except TypeError as e:
            raise error("E0615", f"the task's record is incomplete: {e}", help="train again") from None


def task_for(
    train: Split, kind: str | None, text: Sequence[str] | None, label: str | None, loss: str | None, max_length: int,
    padding: str,
) -> Task:  # fmt: skip
    """The task that a training split asks for: its kind unless given, its columns, its labels."""
    kind = kind or reading.guess_task(train)
    if kind == "sequence-classification":
        columns = reading.classification_columns(train, text, label)
        assert columns.label is not None
        labels = reading.label_set(train, columns.label)
        titles = reading.label_titles(train, columns.label, labels)
        return Task(kind, columns.texts, columns.label, tuple(labels), tuple(titles), "all", max_length, padding)
    columns = reading.language_columns(train, text, label)
    if loss == "completion" and columns.label is None:
        raise error("E0603", "there is no completion to take the loss on", help="name its column with `--label`")
    return Task(kind, columns.texts, columns.label, (), (), loss or ("completion" if columns.label else "all"),
                max_length, padding)  # fmt: skip


# ---------------------------------------------------------------- encoding


@dataclass(frozen=True)
class Encoded:
    """Examples as token ids. ``truncated`` counts those that were longer than the maximum."""

    examples: list[Example]
    truncated: int

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> Example:
        return self.examples[i]


def encode(task: Task, split: Split, tokenizer: Any) -> Encoded:
    """A split with its labels. Columns are looked up again, as another file may lack them."""
    for column in (*task.texts, *([task.label] if task.label else [])):
        reading._named(split, column, "label" if column == task.label else "text")
    texts = [reading.texts_of(split, c) for c in task.texts]
    if task.classifies:
        assert task.label is not None
        encoded = encode_texts(task, list(zip(*texts)), tokenizer)
        for example, label in zip(encoded.examples, reading.known_labels(split, task.label, task.labels)):
            example["labels"] = label
        return encoded
    completions = reading.texts_of(split, task.label) if task.label else [""] * len(split)
    return _encode_language(task, texts[0], completions, tokenizer)


def encode_texts(task: Task, texts: Sequence[Sequence[str]], tokenizer: Any) -> Encoded:
    """Inputs of a classifier, each one text or a pair."""
    columns = [list(c) for c in zip(*texts)]
    whole = tokenizer(*columns, truncation=False, verbose=False)
    cut = tokenizer(*columns, truncation=True, max_length=task.max_length, verbose=False)
    examples = [{k: cut[k][i] for k in cut} for i in range(len(columns[0]))]
    truncated = sum(len(a) > len(b) for a, b in zip(whole["input_ids"], cut["input_ids"]))
    return Encoded(examples, truncated)


def _encode_language(task: Task, prompts: list[str], completions: list[str], tokenizer: Any) -> Encoded:
    """Prompt and completion are tokenised apart, so that the border of the loss is exact."""
    start, end = _borders(tokenizer)
    examples: list[Example] = []
    truncated = 0
    for prompt, completion in zip(prompts, completions):
        first = start + _ids(tokenizer, prompt + (task.separator if task.label else ""))
        rest = (_ids(tokenizer, completion) if task.label else []) + end
        if task.label is None:
            first, rest = [], first + rest
        room = task.max_length - len(rest)
        if len(first) > room or len(rest) > task.max_length:
            truncated += 1
            # The completion is what is learned: the prompt loses its beginning first.
            first = first[len(first) - room :] if room > 0 else []
            rest = rest[: task.max_length]
        ids = first + rest
        labels = list(ids) if task.loss == "all" else [IGNORED] * len(first) + rest
        examples.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels})
    return Encoded(examples, truncated)


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _borders(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The token in front of a text where the tokenizer puts one, and the token that ends it."""
    probe = tokenizer("a", verbose=False)["input_ids"]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return [bos] if bos is not None and probe[:1] == [bos] else [], [eos] if eos is not None else []


@dataclass(frozen=True)
class Collator:
    """Pads a batch: to its longest example, or to the task's maximum where outputs must not depend on the batch."""

    tokenizer: Any
    task: Task

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        inputs = [{k: v for k, v in e.items() if k != "labels"} for e in examples]
        batch = self.tokenizer.pad(
            inputs,
            padding="max_length" if self.task.padding == "max_length" else True,
            max_length=self.task.max_length,
            return_tensors="pt",
            verbose=False,
        )
        batch = dict(batch)
        if "labels" not in examples[0]:
            return batch
        if self.task.classifies:
            batch["labels"] = torch.tensor([e["labels"] for e in examples])
            return batch
        # The tokenizer knows the side; the mask tells where the tokens went.
        labels = torch.full_like(batch["input_ids"], IGNORED)
        labels[batch["attention_mask"].bool()] = torch.tensor([t for e in examples for t in e["labels"]])
        batch["labels"] = labels
        return batch


# ---------------------------------------------------------------- metrics and predictions


def batches(
    encoded: Encoded, collator: Collator, size: int, device: torch.device
) -> Iterator[tuple[list[int], dict[str, torch.Tensor]]]:
    """Batches of similar length (little padding) and the positions of their examples."""
    order = sorted(range(len(encoded)), key=lambda i: (len(encoded[i]["input_ids"]), i))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        batch = collator([encoded[i] for i in chosen])
        yield chosen, {k: v.to(device) for k, v in batch.items()}


@torch.no_grad()
def logits_of(model: Any, encoded: Encoded, collator: Collator, size: int, tick: Tick | None = None) -> torch.Tensor:
    """Class scores, one row per example, in the order of the examples."""
    rows: list[torch.Tensor | None] = [None] * len(encoded)
    done = 0
    with evaluating(model):
        for chosen, batch in batches(encoded, collator, size, model.device):
            batch.pop("labels", None)
            for i, row in zip(chosen, model(**batch).logits.float().cpu()):
                rows[i] = row
            done += len(chosen)
            if tick:
                tick(done)
    return torch.stack([r for r in rows if r is not None])


def evaluate(model: Any, task: Task, encoded: Encoded, collator: Collator, size: int,
             tick: Tick | None = None) -> dict[str, float]:  # fmt: skip
    """Metrics over the examples, each counted once: padding and the last, smaller batch change nothing."""
    if task.classifies:
        labels = torch.tensor([e["labels"] for e in encoded.examples])
        scores = logits_of(model, encoded, collator, size, tick)
        return classification_metrics(scores, labels, len(task.labels))
    total, count, done = 0.0, 0, 0
    with evaluating(model), torch.no_grad():
        for chosen, batch in batches(encoded, collator, size, model.device):
            target = batch.pop("labels")[:, 1:]
            # A method may put tokens of its own in front: the text's predictions are the last ones.
            logits = model(**batch).logits[:, -target.shape[1] - 1 : -1].float()
            total += F.cross_entropy(
                logits.flatten(0, 1), target.flatten(), ignore_index=IGNORED, reduction="sum"
            ).item()
            count += int((target != IGNORED).sum())
            done += len(chosen)
            if tick:
                tick(done)
    loss = total / max(count, 1)
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "tokens": count, "examples": len(encoded)}


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


def generate(model: Any, task: Task, texts: Sequence[str], tokenizer: Any, max_new_tokens: int) -> list[str]:
    """Greedy continuations of prompts, one at a time: without padding, the answer depends on the prompt alone."""
    start, _ = _borders(tokenizer)
    answers = []
    with evaluating(model), torch.no_grad():
        for text in texts:
            ids = start + _ids(tokenizer, text + (task.separator if task.label else ""))
            prompt = torch.tensor([ids[-task.max_length :]], device=model.device)
            out = model.generate(
                input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=max_new_tokens,
                do_sample=False, num_beams=1, temperature=None, top_p=None, top_k=None,
                pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
            answers.append(tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True).strip())
    return answers


class evaluating:
    """Evaluation mode inside, the mode before afterwards."""

    def __init__(self, model: Any):
        self.model = model

    def __enter__(self) -> None:
        self.was = self.model.training
        self.model.eval()

    def __exit__(self, *_: object) -> None:
        self.model.train(self.was)


__all__ = ["Collator", "Columns", "Encoded", "Task", "encode", "encode_texts", "evaluate", "generate", "task_for"]
