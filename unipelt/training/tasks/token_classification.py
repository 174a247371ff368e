"""Token classification: a label for each word, such as the parts of named entities in BIO notation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self


from ...compiler.labels import Labels
from ...language.report.diagnostic import Diagnostic
from ...language.report.diagnostics import error
from ...language.syntax.nodes import Span
from .. import data as reading
from ..data import Split, kind_of_value
from ..options import TaskOptions
from .evaluation import outputs_in_order
from .task import (
    IGNORED,
    Answer,
    Batch,
    Encoded,
    Example,
    Inputs,
    Output,
    Predicting,
    Task,
    need_offsets,
    pad,
    rows_of,
    spread,
    tokenized,
)
from .template import lead

TOKENS = ("tokens", "words")
TAGS = ("ner_tags", "tags", "labels", "pos_tags", "chunk_tags", "ner", "pos")
OUTSIDE = "O"
ENTITY = re.compile(r"[BIES]-.+")
#: The words of a plain text. Punctuation stands alone, except inside a word and before a name or a topic.
WORD = re.compile(r"[@#]?\w+(?:[-'’.]\w+)*|\S")


@dataclass(frozen=True)
class TokenClassification(Task):
    """``labels`` are the tags in the data. The first token of a word bears its label, the others none (Devlin et al. 2019)."""

    kind: ClassVar[str] = "token-classification"
    auto: ClassVar[str] = "AutoModelForTokenClassification"
    by_example: ClassVar[bool] = True

    labels: tuple[str, ...] = ()

    @classmethod
    def suits(cls, split: Split, options: TaskOptions, base: Any) -> bool:
        words = (options.text or tuple(c for c in TOKENS if c in split.columns))[:1]
        return bool(words) and any(isinstance(row.get(words[0]), list) for row in split.rows)

    @classmethod
    def find(cls, split: Split, options: TaskOptions, base: Any) -> TokenClassification:
        if options.text and len(options.text) > 1:
            raise error("E0603", f"token classification reads one column of words, not {len(options.text)}",
                        help="name one")  # fmt: skip
        text = reading.column(split, (options.text or (None,))[0], TOKENS, "text")
        label = reading.column(split, options.label, TAGS, "label")
        found = {tag for tags in tags_of(split, text, label) for tag in tags}
        if len(found) < 2:
            raise error("E0604", f"every word of `{split.file}` has the label `{next(iter(found))}`", Span(split.file),
                        help="check the label column")  # fmt: skip
        return cls.made(options, (text,), label, labels=tuple(reading.in_order(found, OUTSIDE)))

    @classmethod
    def named(cls, options: TaskOptions, head: Labels, **own: Any) -> Self:
        return super().named(options, head, labels=head.names)

    def in_order_of(self, head: Labels) -> TokenClassification:
        return replace(self, labels=reading.values_in_order(head.names, self.labels, self.labels))

    def fit(self, base: Any, tokenizer: Any) -> TokenClassification:
        need_offsets(tokenizer, self.kind)
        return self

    @property
    def entities(self) -> bool:
        """Whether the labels are parts of entities."""
        return OUTSIDE in self.labels and all(t == OUTSIDE or ENTITY.fullmatch(t) for t in self.labels)

    @property
    def metric(self) -> tuple[str, bool]:
        return ("entity_f1" if self.entities else "accuracy"), True

    @property
    def table(self) -> tuple[str, ...]:
        return ("text", "entities" if self.entities else "labels")

    def model_options(self) -> dict[str, Any]:
        return {"num_labels": len(self.labels), "id2label": dict(enumerate(self.labels)),
                "label2id": {t: i for i, t in enumerate(self.labels)}}  # fmt: skip

    # ------------------------------------------------------------ encoding

    def read_inputs(self, split: Split) -> list[Sequence[Any]]:
        return [(words,) for words in words_of(split, reading.named(split, self.texts[0], "text"))]

    def encode(self, split: Split, tokenizer: Any) -> Encoded:
        inputs = self.read_inputs(split)
        tags = tags_of(split, self.texts[0], reading.named(split, str(self.label), "label"))
        known = set(self.labels)
        reading.raise_all([
            reading.unknown_label(split, i, tag, self.labels) for i, row in enumerate(tags) for tag in row if tag not in known
        ])  # fmt: skip
        encoded = self.encode_inputs(inputs, tokenizer)
        index = {t: i for i, t in enumerate(self.labels)}
        for example, places, row in zip(encoded.examples, encoded.aside, tags, strict=True):
            labels = [IGNORED] * len(example["input_ids"])
            for place, word in places:
                labels[place] = index[row[word]]
            example["labels"] = labels
        return Encoded(encoded.examples, encoded.truncated, encoded.aside, tags)

    def encode_inputs(self, inputs: Inputs, tokenizer: Any) -> Encoded:
        """``aside`` has the places of each word's first token; words that are cut off or have no token have none."""
        blank = lead(tokenizer)
        texts = [[blank + w for w in split_words(words)] for (words,) in inputs]
        found, cut = tokenized(tokenizer, self.max_length, texts, is_split_into_words=True)
        aside = []
        for i in range(len(texts)):
            first: dict[int, int] = {}
            for place, word in enumerate(found.word_ids(i)):
                if word is not None:
                    first.setdefault(word, place)
            aside.append([(place, word) for word, place in first.items()])
        return Encoded(rows_of(found), sum(cut), aside, [len(t) for t in texts])

    def collate(self, examples: Sequence[Example], tokenizer: Any) -> Batch:
        batch = pad(examples, tokenizer, self)
        if "labels" in examples[0]:
            batch["labels"] = spread(examples, batch)
        return batch

    # ------------------------------------------------------------ scores and predictions

    def outputs(self, model: Any, batch: Batch, encoded: Encoded, chosen: Sequence[int]) -> list[Output]:
        """For each word that has a token the word's position, its best label and that one's log-probability, and the
        log-probability of the right label where it is known."""
        wanted = batch.pop("labels", None)
        shares = model(**batch).logits.float().log_softmax(-1).cpu()
        out = []
        for row, i in enumerate(chosen):
            # The mask tells on which side the padding stands.
            real = shares[row][batch["attention_mask"][row].bool().cpu()]
            label = wanted[row][batch["attention_mask"][row].bool()].cpu() if wanted is not None else None
            found = []
            for place, word in encoded.aside[i]:
                best = int(real[place].argmax())
                right = real[place, label[place]].item() if label is not None else 0.0
                found.append((word, best, real[place, best].item(), right))
            out.append(found)
        return out

    def score(self, encoded: Encoded, outputs: Sequence[Output], tokenizer: Any) -> dict[str, float]:
        """Every word counts: those that were cut off are said to be outside of entities."""
        guesses = [self._tags(found, len(row)) for found, row in zip(outputs, encoded.references)]
        right = [x for found in outputs for *_, x in found]
        loss = -sum(right) / max(len(right), 1)
        return {"loss": loss, **tag_metrics(guesses, encoded.references, self.entities), "examples": len(outputs)}

    def _tags(self, found: Output, words: int) -> list[str]:
        tags = [OUTSIDE if OUTSIDE in self.labels else self.labels[0]] * words
        for word, best, *_ in found:
            tags[word] = self.labels[best]
        return tags

    def predict(self, model: Any, inputs: Inputs, tokenizer: Any, how: Predicting) -> list[Answer]:
        encoded = self.encode_inputs(inputs, tokenizer)
        answers = []
        for (given,), found in zip(inputs, outputs_in_order(model, self, encoded, tokenizer, how), strict=True):
            words = split_words(given)
            tags = self._tags(found, len(words))
            text = given if isinstance(given, str) else " ".join(given)
            answer: Answer = {"text": text, "words": words, "labels": tags}
            if self.entities:
                answer["entities"] = entities_in(given, words, tags)
            answers.append(answer)
        return answers


def tag_metrics(guesses: Sequence[Sequence[str]], wanted: Sequence[Sequence[str]], entities: bool) -> dict[str, float]:
    """Accuracy over the words; over entities F1, precision and recall as CoNLL's script counts them: an entity is right if
    its words and its type are. Without entities, macro F1 over the labels."""
    from sklearn.metrics import accuracy_score, f1_score

    flat = [[t for row in rows for t in row] for rows in (wanted, guesses)]
    found = {"accuracy": float(accuracy_score(*flat))}
    if not entities:
        return {**found, "macro_f1": float(f1_score(*flat, average="macro", zero_division=0))}
    from seqeval.metrics.sequence_labeling import precision_recall_fscore_support

    precision, recall, f1, _ = precision_recall_fscore_support(
        [list(r) for r in wanted], [list(r) for r in guesses], average="micro", zero_division=0
    )
    return {"entity_f1": float(f1), "precision": float(precision), "recall": float(recall), **found}


def entities_in(given: str | Sequence[str], words: Sequence[str], tags: Sequence[str]) -> list[dict[str, Any]]:
    """The entities with their type and text, their first word and the one behind the last; in a text also the characters."""
    from seqeval.metrics.sequence_labeling import get_entities

    spans = [m.span() for m in WORD.finditer(given)] if isinstance(given, str) else []
    out = []
    for kind, first, last in get_entities(list(tags)):
        start, end = (spans[first][0], spans[last][1]) if spans else (None, None)
        text = given[start:end] if isinstance(given, str) else " ".join(words[first : last + 1])
        out.append(
            {"type": kind, "text": text, "words": [first, last + 1], **({"characters": [start, end]} if spans else {})}
        )
    return out


def split_words(given: str | Sequence[str]) -> list[str]:
    return WORD.findall(given) if isinstance(given, str) else list(given)


# ---------------------------------------------------------------- values


def words_of(split: Split, column: str) -> list[list[str]]:
    def wrong(value: Any) -> str:
        if not isinstance(value, list):
            return f"is {kind_of_value(value)}, not a list of words"
        bad = next((v for v in value if not isinstance(v, str)), "")
        if not isinstance(bad, str):
            return f"holds {kind_of_value(bad)} among its words"
        return "" if value else "has no words"

    return reading.values_of(split, column, wrong, 'write lists of words, as in `["New", "York"]`')


def tags_of(split: Split, words: str, column: str) -> list[list[str]]:
    """A column of lists with a tag for each word."""

    def wrong(value: Any) -> str:
        if not isinstance(value, list):
            return f"is {kind_of_value(value)}, not a list of labels"
        bad = any(not isinstance(v, (str, int)) or isinstance(v, bool) or v == "" for v in value)
        return "holds something other than names and integers" if bad else ""

    lengths = [len(w) for w in words_of(split, words)]
    found = reading.values_of(split, column, wrong, "give each word a label")
    reading.raise_all([
        Diagnostic("E0607", f"{split.place(i)}: `{column}` has {len(tags)} labels for {n} words", Span(split.file),
                   help="give each word a label")
        for i, (tags, n) in enumerate(zip(found, lengths))
        if len(tags) != n
    ])  # fmt: skip
    return [[str(t) for t in tags] for tags in found]
