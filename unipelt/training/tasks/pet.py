"""Patterns and words (PET, Schick and Schütze 2021): a label's score is the language model's score of the label's word.

The pattern makes a cloze of an example, `"{text} Question type: {mask}."`; a masked model fills the mask, a causal one goes on
from what stands before it. Nothing new is learned but what the adapter holds, and without an adapter it works too (zero-shot).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F

from ...compiler.labels import Labels
from ...language.report.diagnostics import Diagnostic, PeltError, error, near
from ...language.syntax.nodes import Span
from .. import data as reading
from ..data import Split
from ..options import TaskOptions
from . import template
from .answers import Answers
from .causal_lm import beginning
from .classification import SequenceClassification
from .task import IGNORED, Batch, Encoded, Example, Inputs, LossFunction, Output, pad, spread
from .template import Template, ids_of

#: Tokens of words that are not the right answer are stored as numbers below this.
WRONG = -1000
Words = tuple[tuple[str, ...], ...]
Tokens = tuple[tuple[tuple[int, ...], ...], ...]


@dataclass(frozen=True)
class PET(SequenceClassification):
    """``words`` are those of each label, in the labels' order; ``tokens`` are theirs in the model's vocabulary.

    With several words a label's score is their mean. A masked model fills one token; a causal model scores words of
    several tokens by their joint probability, one row of the batch for each word.
    """

    kind: ClassVar[str] = "pet"
    auto: ClassVar[str] = "AutoModelForMaskedLM"
    pretrained: ClassVar[bool] = True
    asks: ClassVar[tuple[str, ...]] = ("pattern", "words")

    words: Words = ()
    tokens: Tokens = ()
    masked: bool = True

    # ------------------------------------------------------------ from data

    @classmethod
    def suits(cls, split: Split, options: TaskOptions, base: Any) -> bool:
        return options.words is not None or (options.pattern is not None and template.parse(options.pattern).masks > 0)

    @classmethod
    def find(cls, split: Split, options: TaskOptions, base: Any) -> PET:
        pattern = _with_mask(options, split)
        label = reading.column(split, options.label, reading.LABELS, "label")
        labels, titles = Answers(label, "single_label").labels(split)
        words = words_for(options.words, labels, titles)
        return cls.made(options, pattern.columns, label, labels=labels, titles=titles, words=words)

    @classmethod
    def named(cls, options: TaskOptions, head: Labels, **own: Any) -> Self:
        """Labels are those that the words are given for, else the words themselves: the model's head scores words."""
        if options.words is None:
            raise error("E0668", "a prediction of pet needs the labels' words, which only the folder of a run has",
                        help="name them with `--words`, as in `--words bad,good`")  # fmt: skip
        words = read_words(options.words)
        labels = tuple(words if isinstance(words, dict) else (group[0] for group in words))
        columns = _with_mask(options, None).columns
        return cls.made(
            options, columns, None, labels=labels, titles=labels, words=words_for(options.words, labels, labels)
        )

    def damage(self) -> str | None:
        if self.pattern is None or not self.template.masks:
            return "its pattern has no `{mask}`"
        if not (len(self.words) == len(self.tokens) == len(self.labels)) or not all(self.words):
            return "it has not a word for each label"
        if any(len(words) != len(ids) or not all(ids) for words, ids in zip(self.words, self.tokens)):
            return "it has not tokens for each word"
        return super().damage()

    @classmethod
    def auto_for(cls, base: Any) -> str:
        from transformers import AutoModelForMaskedLM

        masked = not getattr(base, "is_encoder_decoder", False) and type(base) in AutoModelForMaskedLM._model_mapping
        return "AutoModelForMaskedLM" if masked else "AutoModelForCausalLM"

    def fit(self, base: Any, tokenizer: Any) -> PET:
        masked = self.auto_for(base) == "AutoModelForMaskedLM"
        if masked and tokenizer.mask_token_id is None:
            raise error("E0642", "the tokenizer has no mask token",
                        help="use a causal model, or a masked one with its own tokenizer")  # fmt: skip
        pattern = self.template
        hidden = [c for c in pattern.columns if c not in pattern.before_mask().columns]
        hidden += [f"prompt:{p.rows}" for p in pattern.after_mask().parts if p.rows]
        if not masked and hidden:
            raise error("E0640", f"a causal model does not see `{{{hidden[0]}}}`, which comes after the mask",
                        help="put `{mask}` behind all of them")  # fmt: skip
        tokens = tuple(tuple(tuple(word_ids(w, pattern, tokenizer)) for w in words) for words in self.words)
        _check_words(self.words, tokens, masked, tokenizer)
        return replace(self, tokens=tokens, masked=masked)

    def model_options(self) -> dict[str, Any]:
        return {}

    @property
    def label_words(self) -> Sequence[str]:
        return [words[0] for words in self.words]

    # ------------------------------------------------------------ encoding

    @property
    def single(self) -> bool:
        """Whether every word is one token, so that one row tells the scores of all."""
        return all(len(ids) == 1 for words in self.tokens for ids in words)

    @property
    def candidates(self) -> list[tuple[int, tuple[int, ...]]]:
        """The rows of an example: label and tokens after the text; a single row without tokens if that is enough."""
        return [(0, ())] if self.single else [(k, ids) for k, words in enumerate(self.tokens) for ids in words]

    def encode(self, split: Split, tokenizer: Any) -> Encoded:
        reading.raise_all([
            _masked_text(f"{split.place(i)}: ", tokenizer)
            for i, texts in enumerate(self.read_inputs(split))
            if self._holds_mask(texts, tokenizer)
        ])  # fmt: skip
        return super().encode(split, tokenizer)

    def _holds_mask(self, texts: Sequence[str], tokenizer: Any) -> bool:
        return self.masked and any(tokenizer.mask_token in t for t in texts)

    def encode_inputs(self, inputs: Inputs, tokenizer: Any) -> Encoded:
        if any(self._holds_mask(texts, tokenizer) for texts in inputs):
            raise PeltError(_masked_text("", tokenizer))
        if not all(0 <= i < len(tokenizer) for words in self.tokens for ids in words for i in ids):
            raise error("E0615", "the task's record is damaged: its words have tokens that the tokenizer has not",
                        help="train again")  # fmt: skip
        pattern = self.template if self.masked else self.template.before_mask()
        if self.masked:
            front, back = template.borders(tokenizer)
        else:
            front, back = beginning(tokenizer), []
        room = self.max_length - max(len(ids) for _, ids in self.candidates)
        marked = self.template.rows > 0
        found = [template.encode(pattern, values, tokenizer, room, front, back) for values in inputs]
        examples = [e.example(marked) for e in found]
        for example in examples:
            ids = example["input_ids"]
            example["place"] = ids.index(tokenizer.mask_token_id) if self.masked else len(ids) - 1
        return Encoded(examples, sum(e.cut for e in found))

    def collate(self, examples: Sequence[Example], tokenizer: Any) -> Batch:
        """``labels`` [rows, tokens] tell where the word is and what is right: at the place of a word of one token the index of
        the label; else at the tokens of each candidate their ids, or ``WRONG`` minus these for the labels that are not right."""
        rows = []
        for e in examples:
            right = e.get("labels", 0)
            for label, ids in self.candidates:
                place = e["place"] if self.single else e["place"] + 1
                marks = [IGNORED] * (len(e["input_ids"]) + len(ids))
                if self.single:
                    marks[place] = right
                else:
                    marks[place : place + len(ids)] = [i if label == right else WRONG - i for i in ids]
                row = {"input_ids": [*e["input_ids"], *ids], "attention_mask": [1] * len(marks), "labels": marks}
                if "pseudo_tokens" in e:
                    row["pseudo_tokens"] = [*e["pseudo_tokens"], *[0] * len(ids)]
                rows.append(row)
        batch = pad(rows, tokenizer, self, leave=("labels", "pseudo_tokens"))
        batch["labels"] = spread(rows, batch)
        if "pseudo_tokens" in rows[0]:
            batch["pseudo_tokens"] = spread(rows, batch, "pseudo_tokens", 0)
        return batch

    # ------------------------------------------------------------ scores

    def scores(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The mean log-probability of each label's words, [examples, labels]."""
        if self.single:
            shares = logits[labels != IGNORED].float().log_softmax(-1)
            return torch.stack([shares[:, [ids[0] for ids in words]].mean(-1) for words in self.tokens], -1)
        target = torch.where(labels <= WRONG, WRONG - labels, labels)[:, 1:]
        losses = F.cross_entropy(logits[:, :-1].float().transpose(1, 2), target, ignore_index=IGNORED, reduction="none")
        words = -losses.sum(-1).view(-1, len(self.candidates))
        of = torch.tensor([k for k, _ in self.candidates], device=words.device)
        return torch.stack([words[:, of == k].mean(-1) for k in range(len(self.tokens))], -1)

    def right(self, labels: torch.Tensor) -> torch.Tensor:
        """The right label of each example, as ``labels`` tell it."""
        if self.single:
            return labels[labels != IGNORED]
        rows = (labels >= 0).any(-1).view(-1, len(self.candidates))
        return torch.tensor([self.candidates[int(r.int().argmax())][0] for r in rows], device=labels.device)

    @property
    def loss_function(self) -> LossFunction:
        """The cross-entropy over the labels' scores, and not over all words."""

        def loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
            logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
            total = F.cross_entropy(self.scores(logits, labels), self.right(labels), reduction="sum")
            marks = (labels != IGNORED).sum()
            examples = labels.shape[0] // len(self.candidates)
            # A step's number of labels counts marks, of which each example has the same number.
            return total / examples if num_items_in_batch is None else total * (marks / examples) / num_items_in_batch

        return loss

    def outputs(self, model: Any, batch: Batch, encoded: Encoded, chosen: Sequence[int]) -> list[Output]:
        labels = batch.pop("labels")
        return list(self.scores(model(**batch).logits, labels).cpu())

    def answer(self, scores: torch.Tensor) -> dict[str, Any]:
        found = super().answer(scores)
        return {"label": found.pop("label"), "word": "|".join(self.words[int(scores.argmax())]), **found}

    @property
    def table(self) -> tuple[str, ...]:
        return ("text", "label", "word", "probability")


def _with_mask(options: TaskOptions, split: Split | None) -> Template:
    pattern = template.asked(options, split)
    if pattern is None:
        raise error("E0640", "a pattern is missing", help='give one, as in `--pattern "{text} It was {mask}."`')
    if not pattern.masks:
        raise error("E0640", f"the pattern `{options.pattern}` has no `{{mask}}`, where the label's word is wanted",
                    help="write one")  # fmt: skip
    return pattern


# ---------------------------------------------------------------- words


def read_words(given: str) -> list[tuple[str, ...]] | dict[str, tuple[str, ...]]:
    """Words in the labels' order, or by label."""
    return _from_file(Path(given)) if given.endswith(".json") else _from_text(given)


def words_for(given: str | None, labels: Sequence[str], titles: Sequence[str]) -> Words:
    """The words of each label: `great,terrible` in the labels' order, `1=great|good,0=terrible`, or a JSON file of such.

    Without any, the labels' own names are their words.
    """
    if given is None:
        if all(reading.whole_number(t) is not None for t in titles):
            raise error("E0643", f"the labels are numbers ({reading.listed(labels[:6])}), and a model needs words for them",
                        help="`--words` in the labels' order, or as `0=terrible,1=great`")  # fmt: skip
        return tuple((t.replace("_", " "),) for t in titles)
    found = read_words(given)
    if isinstance(found, list):
        if len(found) != len(labels):
            raise error("E0643", f"there are {len(found)} words for {len(labels)} labels", where=(f"labels: {', '.join(labels)}",),
                        help="give a word for each label, in this order, or write `label=word`")  # fmt: skip
        return tuple(found)
    names = {**{t: i for i, t in enumerate(titles)}, **{n: i for i, n in enumerate(labels)}}
    by_label: dict[int, tuple[str, ...]] = {}
    for name, words in found.items():
        if name not in names:
            raise error("E0643", f"there is no label `{name}`; there are {reading.listed(labels[:12])}",
                        help=near(name, names) or "correct `--words`")  # fmt: skip
        by_label[names[name]] = words
    missing = [n for i, n in enumerate(labels) if i not in by_label]
    if missing:
        raise error("E0643", f"the label {reading.listed(missing[:5])} has no word", help="add it to `--words`")
    return tuple(by_label[i] for i in range(len(labels)))


def _from_text(given: str) -> list[tuple[str, ...]] | dict[str, tuple[str, ...]]:
    items = [i.strip() for i in given.split(",")]
    named = [i for i in items if "=" in i]
    if named and len(named) < len(items):
        raise error("E0643", f"`--words {given}` names a label for some words only",
                    help="write `label=word` for all, or for none")  # fmt: skip
    pairs = [tuple(i.split("=", 1)) if named else ("", i) for i in items]
    words = [tuple(w.strip() for w in p[1].split("|")) for p in pairs]
    if any(not w for group in words for w in group):
        raise error("E0643", f"`--words {given}` has an empty word", help="give each label a word")
    return {p[0].strip(): w for p, w in zip(pairs, words)} if named else words


def _from_file(path: Path) -> list[tuple[str, ...]] | dict[str, tuple[str, ...]]:
    def wrong(what: str, remedy: str = 'write `{"label": ["word", …]}`', code: str = "E0643") -> PeltError:
        return error(code, f"`{path}` {what}", Span(str(path)), help=remedy)

    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise wrong(f"cannot be read: {e}", "give words, or a JSON file of them") from None
    if not reading.is_unicode(value):
        raise wrong("holds half of a character, which is no Unicode", "complete it, or take it out", "E0649")
    if not isinstance(value, (dict, list)):
        raise wrong("holds neither an object nor a list of words")
    found = []
    for v in value.values() if isinstance(value, dict) else value:
        group = [v] if isinstance(v, str) else v
        if not isinstance(group, list) or not group or not all(isinstance(w, str) and w.strip() for w in group):
            raise wrong("holds something other than words")
        found.append(tuple(group))
    return dict(zip(value, found)) if isinstance(value, dict) else found


def word_ids(word: str, pattern: Template, tokenizer: Any) -> list[int]:
    """The tokens of a word where the mask stands: with the blank in front, where the tokenizer makes it a part of the word."""
    before = pattern.before_mask().parts
    spaced = bool(before) and before[-1].text[-1:].isspace() and before[-1].kind == "text"
    return ids_of((template.lead(tokenizer) if spaced else "") + word, tokenizer)


def _masked_text(place: str, tokenizer: Any) -> Diagnostic:
    return Diagnostic("E0646", f"{place}the text holds `{tokenizer.mask_token}` itself, which the pattern writes once",
                      help="take it out of the text")  # fmt: skip


def _check_words(words: Words, tokens: Tokens, masked: bool, tokenizer: Any) -> None:
    problems = []
    seen: dict[tuple[int, ...], str] = {}
    for word, ids in ((w, i) for ws, ts in zip(words, tokens) for w, i in zip(ws, ts)):
        pieces = ", ".join(f"`{p}`" for p in tokenizer.convert_ids_to_tokens(list(ids)))
        what, remedy = "", "choose another"
        if not ids or tokenizer.unk_token_id in ids and tokenizer.unk_token_id != tokenizer.eos_token_id:
            what = f"the word `{word}` is not in the model's vocabulary"
        elif masked and len(ids) > 1:
            what = f"the word `{word}` is {len(ids)} tokens ({pieces}), and a masked model fills one"
            remedy = "choose a word of one token"
        elif ids in seen:
            what = f"the words `{seen[ids]}` and `{word}` are the same to the model"
        problems += [Diagnostic("E0644", what, help=remedy)] if what else []
        seen.setdefault(ids, word)
    reading.raise_all(problems)
