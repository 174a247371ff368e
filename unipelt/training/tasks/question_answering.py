"""Extractive question answering: the answer is a span of the context. Long contexts are read in overlapping windows."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from ...anatomy.positions import longest_text
from ...language.report.diagnostics import Diagnostic, counted, error
from ...language.syntax.nodes import Span
from .. import data as reading
from ..data import Split, kind_of_value
from ..options import TaskOptions
from .evaluation import outputs_in_order
from .task import Answer, Batch, Encoded, Example, Inputs, Output, Predicting, Task, need_offsets, pad, rows_of

CONTEXTS = ("context", "passage", "paragraph")
ENDS = ("start_positions", "end_positions")
#: As in the scripts of SQuAD and transformers: spans looked at in each window, and tokens of the longest answer.
BEST, LONGEST = 20, 30


@dataclass(frozen=True)
class Window:
    """A stretch of a row's context: for each token its characters there, None for tokens that are not of the context."""

    row: int
    characters: list[tuple[int, int] | None]


@dataclass(frozen=True)
class QuestionAnswering(Task):
    """SQuAD's columns: question, context, answers (`{"text": […], "answer_start": […]}`).

    ``stride`` is how many tokens neighbouring windows share. With ``unanswerable`` questions (lists of answers that are empty,
    as in SQuAD 2) the first token of a window stands for "no answer".
    """

    kind: ClassVar[str] = "question-answering"
    auto: ClassVar[str] = "AutoModelForQuestionAnswering"
    asks: ClassVar[tuple[str, ...]] = ("stride",)
    length: ClassVar[int] = 384
    usual: ClassVar[tuple[str, ...]] = ("question", "context")

    stride: Annotated[int, Field(ge=1)] = 128
    unanswerable: bool = False

    @classmethod
    def suits(cls, split: Split, options: TaskOptions, base: Any) -> bool:
        have = set(split.columns)
        return "question" in have and bool(have & set(CONTEXTS)) and "answers" in have

    @classmethod
    def find(cls, split: Split, options: TaskOptions, base: Any) -> QuestionAnswering:
        if options.text and len(options.text) != 2:
            raise error("E0603", "question answering reads a question and a context", help="`--text question,context`")
        asked = options.text or (None, None)
        question = reading.column(split, asked[0], ("question",), "text")
        context = reading.column(split, asked[1], CONTEXTS, "text")
        label = reading.column(split, options.label, ("answers",), "label")
        length = options.max_length or cls.length
        stride = min(cls.stride, length // 4) if options.stride is None else options.stride
        if stride > length // 2:
            raise error("E0620", f"`--stride` must be at most half of the window's {length} tokens; it is {stride}",
                        help="give a smaller stride, or a larger `--max-length`")  # fmt: skip
        answers = answers_of(split, context, label)
        unanswerable = any(not a for a in answers)
        return cls.made(options, (question, context), label, stride=stride, unanswerable=unanswerable)

    def damage(self) -> str | None:
        wrong = super().damage()
        if wrong is None and len(self.texts) != 2:
            return f"it reads a question and a context, and names {counted(len(self.texts), 'column')}"
        if wrong is None and self.stride > self.max_length // 2:
            return f"`stride` is {self.stride}, more than half of `max_length`, {self.max_length}"
        return wrong

    def fit(self, base: Any, tokenizer: Any) -> QuestionAnswering:
        need_offsets(tokenizer, self.kind)
        if self.max_length != type(self).length:
            return self
        from transformers import AutoModel

        with torch.device("meta"):  # its modules say what its configuration does not: how many entries no token gets
            longest = longest_text(AutoModel.from_config(base, trust_remote_code=False))
        if longest is not None and longest < self.max_length:
            return replace(self, max_length=longest, stride=min(self.stride, longest // 4))
        return self

    @property
    def metric(self) -> tuple[str, bool]:
        return "f1", True

    @property
    def table(self) -> tuple[str, ...]:
        return ("question", "answer", "probability")

    # ------------------------------------------------------------ encoding

    def encode(self, split: Split, tokenizer: Any) -> Encoded:
        inputs = self.read_inputs(split)
        answers = answers_of(split, self.texts[1], reading.named(split, str(self.label), "label"))
        encoded = self.encode_inputs(inputs, tokenizer)
        for example, window in zip(encoded.examples, encoded.aside, strict=True):
            found = answers[window.row]
            span = place_of(window.characters, found[0]) if found else None
            # A window without the answer points to its first token.
            example["start_positions"], example["end_positions"] = span or (0, 0)
        references = [(context, [text for text, _ in found]) for (_, context), found in zip(inputs, answers)]
        return Encoded(encoded.examples, encoded.truncated, encoded.aside, references)

    def encode_inputs(self, inputs: Inputs, tokenizer: Any) -> Encoded:
        """One example for each window. ``truncated`` counts questions that had to lose their end."""
        questions, contexts = [q.strip() for q, _ in inputs], [c for _, c in inputs]
        # What is left to the context must be longer than the stride; at most 4 tokens stand around and between the two.
        limit = max(1, min(self.max_length // 2, self.max_length - self.stride - 8))
        questions, cut = _short_enough(questions, tokenizer, limit)
        found = tokenizer(
            questions, contexts, truncation="only_second", max_length=self.max_length, stride=self.stride,
            return_overflowing_tokens=True, return_offsets_mapping=True, verbose=False,
        )  # fmt: skip
        rows, offsets = found.pop("overflow_to_sample_mapping"), found.pop("offset_mapping")
        aside = []
        for i, row in enumerate(rows):
            places = zip(offsets[i], found.sequence_ids(i))
            aside.append(Window(row, [(a, b) if of == 1 and b > a else None for (a, b), of in places]))
        return Encoded(rows_of(found), cut, aside, [(c, []) for c in contexts])

    def collate(self, examples: Sequence[Example], tokenizer: Any) -> Batch:
        batch = pad(examples, tokenizer, self, leave=ENDS)
        for name in ENDS:
            if name in examples[0]:
                batch[name] = torch.tensor([e[name] for e in examples])
        return batch

    # ------------------------------------------------------------ scores and predictions

    def outputs(self, model: Any, batch: Batch, encoded: Encoded, chosen: Sequence[int]) -> list[Output]:
        """For each window the best spans, as (score, first character, one behind the last), the score of "no answer", and the
        loss of the right span where it is known."""
        ends = [batch.pop(name) for name in ENDS if name in batch]
        found = model(**batch)
        out = []
        for row, i in enumerate(chosen):
            real = batch["attention_mask"][row].bool()
            start, end = (x[row][real].float().cpu() for x in (found.start_logits, found.end_logits))
            loss = 0.0
            if ends:
                for logits, place in zip((start, end), ends):
                    loss -= logits.log_softmax(-1)[int(place[row])].item() / 2
            out.append((best_spans(start, end, encoded.aside[i].characters), (start[0] + end[0]).item(), loss))
        return out

    def score(self, encoded: Encoded, outputs: Sequence[Output], tokenizer: Any) -> dict[str, float]:
        answers = self._answers(encoded, outputs)
        pairs = [(answer, wanted or [""]) for (answer, _), (_, wanted) in zip(answers, encoded.references)]
        return {
            "loss": math.fsum(loss for *_, loss in outputs) / max(len(outputs), 1),
            "exact_match": sum(max(exact(a, w) for w in wanted) for a, wanted in pairs) / max(len(pairs), 1),
            "f1": math.fsum(max(overlap(a, w) for w in wanted) for a, wanted in pairs) / max(len(pairs), 1),
            "examples": len(pairs),
        }

    def _answers(self, encoded: Encoded, outputs: Sequence[Output]) -> list[tuple[str, dict[str, Any]]]:
        """For each row the best span of all its windows, and its place and share among those considered."""
        spans: list[list[tuple[float, int, int]]] = [[] for _ in encoded.references]
        nothing = [math.inf] * len(spans)
        for window, (best, none, _) in zip(encoded.aside, outputs, strict=True):
            spans[window.row] += best
            nothing[window.row] = min(nothing[window.row], none)
        out = []
        for (context, _), found, none in zip(encoded.references, spans, nothing):
            # Overlapping windows may find a span twice: its better score counts.
            best = sorted({(a, b): s for s, a, b in sorted(found)}.items(), key=lambda item: (-item[1], item[0]))[:BEST]
            options: list[tuple[float, str, list[int] | None]] = [(s, context[a:b], [a, b]) for (a, b), s in best]
            if self.unanswerable or not options:
                options.append((none, "", None))
            scores = torch.tensor([s for s, *_ in options], dtype=torch.double)
            top = int(scores.argmax())
            _, text, place = options[top]
            out.append((text, {"characters": place, "probability": round(scores.softmax(-1)[top].item(), 6)}))
        return out

    def predict(self, model: Any, inputs: Inputs, tokenizer: Any, how: Predicting) -> list[Answer]:
        encoded = self.encode_inputs(inputs, tokenizer)
        answers = self._answers(encoded, outputs_in_order(model, self, encoded, tokenizer, how))
        return [{"question": q, "answer": text, **place} for (q, _), (text, place) in zip(inputs, answers)]


def place_of(characters: Sequence[tuple[int, int] | None], answer: tuple[str, int]) -> tuple[int, int] | None:
    """The first and last token of an answer (its text and first character), or None where a window does not hold it whole."""
    text, first = answer
    last = first + len(text)
    inside = [t for t, c in enumerate(characters) if c is not None and c[0] < last and c[1] > first]
    if not inside:
        return None
    whole = [c for c in characters if c is not None]
    if whole[0][0] > first or whole[-1][1] < last:
        return None
    return inside[0], inside[-1]


def best_spans(
    start: torch.Tensor, end: torch.Tensor, characters: Sequence[tuple[int, int] | None]
) -> list[tuple[float, int, int]]:
    """The spans with the largest sum of scores, at most `LONGEST` tokens long, among the `BEST` starts and ends of the context.

    ``start`` and ``end`` [tokens]; each span is its score, its first character and the one behind its last.
    """
    inside = torch.tensor([c is not None for c in characters])
    if not inside.any():
        return []
    number = min(BEST, int(inside.sum()))
    firsts, lasts = (x.masked_fill(~inside, -math.inf).topk(number).indices.tolist() for x in (start, end))
    found = []
    for a in firsts:
        for b in lasts:
            first, last = characters[a], characters[b]
            if a <= b < a + LONGEST and first is not None and last is not None:
                found.append(((start[a] + end[b]).item(), first[0], last[1]))
    return sorted(found, key=lambda s: (-s[0], s[1], s[2]))[:BEST]


def _short_enough(questions: list[str], tokenizer: Any, limit: int) -> tuple[list[str], int]:
    """Questions of at most ``limit`` tokens, so that a window has room for some context; and how many were cut."""
    offsets = tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
        "offset_mapping"
    ]
    short = [q[: o[limit - 1][1]] if len(o) > limit else q for q, o in zip(questions, offsets)]
    return short, sum(len(o) > limit for o in offsets)


# ---------------------------------------------------------------- SQuAD's comparison of answers


def normalised(answer: str) -> str:
    """Lower case without punctuation, articles and surplus blanks (the official script of Rajpurkar et al. 2016)."""
    text = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact(answer: str, wanted: str) -> float:
    return float(normalised(answer) == normalised(wanted))


def overlap(answer: str, wanted: str) -> float:
    """F1 of the words that two answers share."""
    a, b = normalised(answer).split(), normalised(wanted).split()
    if not a or not b:
        return float(a == b)
    shared = sum((Counter(a) & Counter(b)).values())
    return 2 * shared / (len(a) + len(b))


# ---------------------------------------------------------------- values


def answers_of(split: Split, context: str, column: str) -> list[list[tuple[str, int]]]:
    """For each row its answers, each with its first character; a text that does not stand there is an error."""

    def wrong(value: Any) -> str:
        if not isinstance(value, dict):
            return f"is {kind_of_value(value)}, not an object with text and answer_start"
        texts, starts = value.get("text"), value.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            return "has no lists text and answer_start of the same length"
        if not all(isinstance(t, str) and t for t in texts):
            return "holds something other than texts"
        return "" if all(isinstance(s, int) and s >= 0 for s in starts) else "holds starts that are no positions"

    remedy = 'write `{"text": ["Paris"], "answer_start": [17]}`, with empty lists where there is no answer'
    found = [list(zip(v["text"], v["answer_start"])) for v in reading.values_of(split, column, wrong, remedy)]
    contexts = reading.texts_of(split, context)
    reading.raise_all([
        Diagnostic("E0635", f"{split.place(i)}: the context has `{text_there}` at character {start}, not `{text}`", Span(split.file),
                   help="count `answer_start` in characters from 0")
        for i, (row, answers) in enumerate(zip(contexts, found))
        for text, start in answers
        if (text_there := row[start : start + len(text)]) != text
    ])  # fmt: skip
    return found
