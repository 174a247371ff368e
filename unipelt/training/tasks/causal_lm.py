"""Causal language modelling: plain texts, or prompts with completions that alone are counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from ...language.diagnostics import error
from .. import data as reading
from ..config import TaskOptions
from ..data import Split
from .task import IGNORED, Encoded, Example, Output, Predicting, Task, pad, spread, text_logits


@dataclass(frozen=True)
class CausalLM(Task):
    """``loss`` says which tokens of an example count: those of the completion (the column ``label``), or all."""

    kind: ClassVar[str] = "causal-lm"
    auto: ClassVar[str] = "AutoModelForCausalLM"

    loss: str = "all"
    separator: str = "\n"

    @classmethod
    def suits(cls, split: Split, options: TaskOptions) -> bool:
        return True

    @classmethod
    def find(cls, split: Split, options: TaskOptions) -> CausalLM:
        columns = reading.language_columns(split, options.text, options.label)
        if options.loss == "completion" and columns.label is None:
            raise error("E0603", "there is no completion to take the loss on", help="name its column with `--label`")
        loss = options.loss or ("completion" if columns.label else "all")
        return cls(columns.texts, columns.label, options.length(cls.length), options.padding, loss)

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.texts[:1]

    # ------------------------------------------------------------ encoding

    def encode(self, split: Split, tokenizer: Any) -> Encoded:
        prompts = [text for (text,) in self.read_inputs(split)]
        completions = reading.texts_of(split, reading.named(split, self.label, "label")) if self.label else [""] * len(split)
        cut = [self._example(p, c, tokenizer) for p, c in zip(prompts, completions)]
        return Encoded([e for e, _ in cut], sum(c for _, c in cut))

    def _example(self, prompt: str, completion: str, tokenizer: Any) -> tuple[Example, bool]:
        """Prompt and completion are tokenised apart, so that the border of the loss is exact. Also whether it was cut."""
        _, end = borders(tokenizer)
        first = self._prompt(prompt, tokenizer)
        rest = (ids_of(completion, tokenizer) if self.label else []) + end
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

    def _prompt(self, text: str, tokenizer: Any) -> list[int]:
        start, _ = borders(tokenizer)
        return start + ids_of(text + (self.separator if self.label else ""), tokenizer)

    def collate(self, examples: Sequence[Example], tokenizer: Any) -> dict[str, torch.Tensor]:
        batch = pad(examples, tokenizer, self)
        batch["labels"] = spread(examples, batch)
        return batch

    # ------------------------------------------------------------ scores and predictions

    def outputs(self, model: Any, batch: dict[str, torch.Tensor], encoded: Encoded, chosen: Sequence[int]) -> list[Output]:
        """The sum of the losses of an example's tokens in nats, and their number."""
        target = batch.pop("labels")
        logits = text_logits(model(**batch).logits, target.shape[1])[:, :-1].float()
        target = target[:, 1:]
        losses = F.cross_entropy(logits.transpose(1, 2), target, ignore_index=IGNORED, reduction="none").sum(-1)
        return list(zip(losses.tolist(), (target != IGNORED).sum(-1).tolist()))

    def score(self, encoded: Encoded, outputs: Sequence[Output], tokenizer: Any) -> dict[str, float]:
        count = sum(n for _, n in outputs)
        loss = math.fsum(x for x, _ in outputs) / max(count, 1)
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "tokens": count, "examples": len(outputs)}

    def predict(self, model: Any, inputs: Sequence[Sequence[Any]], tokenizer: Any, how: Predicting) -> list[dict[str, Any]]:
        """Greedy continuations, one at a time: without padding, the answer depends on the prompt alone."""
        answers = []
        for done, (text,) in enumerate(inputs, 1):
            prompt = torch.tensor([self._prompt(text, tokenizer)[-self.max_length :]], device=model.device)
            out = model.generate(
                input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=how.max_new_tokens,
                do_sample=False, num_beams=1, temperature=None, top_p=None, top_k=None,
                pad_token_id=tokenizer.pad_token_id,
            )  # fmt: skip
            answer = tokenizer.decode(out[0, prompt.shape[1] :], skip_special_tokens=True).strip()
            answers.append({"text": text, "completion": answer})
            if how.tick:
                how.tick(done)
        return answers


def ids_of(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def borders(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The token in front of a text where the tokenizer puts one, and the token that ends it."""
    probe = tokenizer("a", verbose=False)["input_ids"]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return [bos] if bos is not None and probe[:1] == [bos] else [], [eos] if eos is not None else []
