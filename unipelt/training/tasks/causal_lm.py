"""Causal language modelling: plain texts, prompts with completions, conversations; packed or one to a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from ...language.types.inputs import changes_length
from ...language.report.diagnostics import error
from .. import data as reading
from ..data import Split
from ..options import TaskOptions
from . import chat
from .language import LanguageTask, prompt_columns
from .packing import collate_packs, packed
from .task import IGNORED, Batch, Encoded, Example, Output, pad, spread
from .template import ids_of


@dataclass(frozen=True)
class CausalLM(LanguageTask):
    """``loss`` says which tokens of an example count: those of the completion (or of the assistant's turns), or all.

    With ``chat`` the tokenizer's template makes the text: of a column of conversations, or of prompts and their completions.
    With ``pack`` several examples are trained on in one row.
    """

    kind: ClassVar[str] = "causal-lm"
    auto: ClassVar[str] = "AutoModelForCausalLM"
    asks: ClassVar[tuple[str, ...]] = (*LanguageTask.asks, "loss", "chat", "pack")
    answers_only: ClassVar[bool] = False
    usual: ClassVar[tuple[str, ...]] = ("prompt", "completion")

    loss: Literal["completion", "all"] = "all"
    separator: str = "\n"
    chat: bool = False
    pack: bool = False

    @classmethod
    def suits(cls, split: Split, options: TaskOptions, base: Any) -> bool:
        return True

    @classmethod
    def find(cls, split: Split, options: TaskOptions, base: Any) -> CausalLM:
        talks = None if options.pattern else chat.column_of(split, options.text)
        if talks:
            columns = reading.Columns((talks,), None)
        else:
            columns = prompt_columns(split, options, cls.kind)
        answered = bool(talks or columns.label)
        needy = {"loss": options.loss == "completion", "generate": options.generate, "chat": options.chat}
        name = next((name for name, given in needy.items() if given), None)
        if name is not None and not answered:
            raise error("E0603", f"`--{name}` needs answers, and there is no column of them",
                        help="name it with `--label`")  # fmt: skip
        loss = options.loss or ("completion" if answered else "all")
        return cls.made(options, columns.texts, columns.label, loss=loss, chat=bool(talks) or options.chat)

    def fit(self, base: Any, tokenizer: Any) -> CausalLM:
        if self.chat:
            chat.need_template(tokenizer)
        return self

    @classmethod
    def check_model(cls, name: str, model: Any) -> None:
        """Encoders such as BERT load as language models too, and see the words that they are to predict."""
        told = [m.is_causal for m in model.modules() if isinstance(getattr(m, "is_causal", None), bool)]
        if told and not any(told):
            raise error("E0633", f"`{name}` reads in both directions, so it would see the words that {cls.kind} has it predict",
                        help="choose a model that reads from left to right, such as GPT-2 or Llama, or another `--task`")  # fmt: skip

    def check_plan(self, plan: Any) -> None:
        super().check_plan(plan)
        if not self.pack:
            return
        wrong = next((e.row.name for e in plan.edits if changes_length(e.row)), None)
        why = "puts tokens of its own before the first text of a pack only"
        if wrong is None and plan.properties["cache-consistent"] != "yes":
            wrong, why = plan.method.name, "reads other positions, and those of a pack belong to other texts"
        if wrong is not None:
            raise error("E0636", f"`--pack` does not go with `{wrong}`, which {why}", help="leave `--pack` out")

    # ------------------------------------------------------------ encoding

    @property
    def talks(self) -> bool:
        """Whether conversations are read, as they are."""
        return self.chat and self.label is None

    def read_inputs(self, split: Split) -> list[Sequence[Any]]:
        if self.talks:
            return [(talk,) for talk in chat.conversations_of(split, reading.named(split, self.texts[0], "text"))]
        return super().read_inputs(split)

    def encode(self, split: Split, tokenizer: Any) -> Encoded:
        inputs = self.read_inputs(split)
        if self.talks:
            answers = [talk[-1]["content"] for (talk,) in inputs]
        elif self.label:
            answers = reading.texts_of(split, reading.named(split, self.label, "label"))
        else:
            answers = [""] * len(inputs)
        cut = [self._example(given, answer, tokenizer) for given, answer in zip(inputs, answers)]
        return Encoded([e for e, _ in cut], sum(c for _, c in cut), self.prompts(inputs, tokenizer), answers)

    def _example(self, given: Sequence[Any], answer: str, tokenizer: Any) -> tuple[Example, bool]:
        """Prompt and completion are tokenised apart, so that the border of the loss is exact. Also whether it was cut."""
        if self.chat:
            talk = given[0] if self.talks else [*self._talk(given), {"role": chat.ASSISTANT, "content": answer}]
            return chat.example(talk, tokenizer, self.max_length, whole=self.loss == "all")
        first = self._prompt(given, tokenizer)
        rest = (ids_of(answer, tokenizer) if self.label else []) + ending(tokenizer)
        if self.label is None:
            first, rest = [], first + rest
        room = self.max_length - len(rest)
        cut = len(first) > room
        if cut:
            # The completion is what is learned: the prompt loses its beginning first.
            first = first[len(first) - room :] if room > 0 else []
            rest = rest[: self.max_length]
        ids = first + rest
        labels = list(ids) if self.loss == "all" else [IGNORED] * len(first) + rest
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}, cut

    def _talk(self, given: Sequence[Any]) -> list[dict[str, Any]]:
        return chat.question(self.text_of(given) if isinstance(given[0], str) else given[0])

    def _prompt(self, given: Sequence[str], tokenizer: Any) -> list[int]:
        # A pattern says itself what stands between a prompt and its answer.
        separator = self.separator if self.label and self.pattern is None else ""
        return beginning(tokenizer) + ids_of(self.text_of(given) + separator, tokenizer)

    def prompt_ids(self, given: Sequence[Any], tokenizer: Any) -> list[int]:
        found = chat.prompt_ids(self._talk(given), tokenizer) if self.chat else self._prompt(given, tokenizer)
        return found[-self.max_length :]

    def for_training(self, encoded: Encoded) -> Encoded:
        return packed(encoded, self.max_length) if self.pack else encoded

    def collate(self, examples: Sequence[Example], tokenizer: Any) -> Batch:
        if "position_ids" in examples[0]:
            length = self.max_length if self.padding == "max_length" else None
            return collate_packs(examples, tokenizer.pad_token_id, length)
        batch = pad(examples, tokenizer, self)
        batch["labels"] = spread(examples, batch)
        return batch

    def weight(self, batch: Mapping[str, torch.Tensor], prompted: bool = False) -> int:
        # A token is predicted by the one before it, the first by none unless a prompt stands in front.
        return int((batch["labels"][:, 0 if prompted else 1 :] != IGNORED).sum())

    # ------------------------------------------------------------ scores

    def outputs(self, model: Any, batch: Batch, encoded: Encoded, chosen: Sequence[int]) -> list[Output]:
        target = batch.pop("labels")
        logits = model(**batch).logits
        return self.text_outputs(model, logits[:, :-1], target[:, 1:], encoded, chosen)


def beginning(tokenizer: Any) -> list[int]:
    """The token in front of a text, where the tokenizer puts one."""
    probe = tokenizer("a", verbose=False)["input_ids"]
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and probe[:1] == [bos] else []


def ending(tokenizer: Any) -> list[int]:
    """The token that ends a text."""
    return [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
