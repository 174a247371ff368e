"""References for rows that enter a block behind others: the blocks one by one by hand, a text at a time and without pads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import small
import torch
from reference import apart, library, randomised, reference
from torch import nn

import unipelt

#: The block that the rows enter.
BEFORE = 2


def rows_of(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """What makes the rows [1, l, d] of the states [tokens, d] that enter the block, by hand."""
    t = {n.rpartition(".")[2]: v.detach() for n, v in unipelt.state_dict(model).items()}
    if "P" in t:
        return lambda h: t["P"][None]
    flat = t["up"].flatten(1)
    return lambda h: (
        (torch.relu(h.mean(0) @ t["hidden_weight"] + t["hidden_b"]) @ flat).view(1, *t["up"].shape[1:]) + t["b_up"]
    )


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def encoded(model: Any, ids: torch.Tensor, rows: Callable[[torch.Tensor], torch.Tensor], behind: int) -> torch.Tensor:
    """BERT's scores of a text."""
    h = model.bert.embeddings(input_ids=ids[None])
    for i, block in enumerate(model.bert.encoder.layer):
        h = torch.cat([h[:, :behind], rows(h[0]), h[:, behind:]], 1) if i == BEFORE else h
        h = _first(block(h))
    return model.classifier(model.bert.pooler(h))


def foretold(model: Any, ids: torch.Tensor, rows: Callable[[torch.Tensor], torch.Tensor], behind: int) -> torch.Tensor:
    """GPT-2's logits at the tokens of a text, at the last of ``behind`` those of the last row."""
    core = model.transformer
    h = core.wte(ids)[None] + core.wpe(torch.arange(len(ids)))[None]
    for i, block in enumerate(core.h):
        h = torch.cat([h[:, :behind], rows(h[0]), h[:, behind:]], 1) if i == BEFORE else h
        n = h.shape[1]
        h = _first(block(h, attention_mask=torch.full((n, n), -torch.inf, dtype=h.dtype).triu(1)[None, None]))
    logits = model.lm_head(core.ln_f(h))[0]
    more = len(logits) - len(ids)
    return logits[[i + more * (i >= behind - 1) for i in range(len(ids))]]


def by_hand(method: unipelt.Method, kind: str, behind: int) -> float:
    """How far the outputs of padded texts are from those by hand."""
    model = randomised(method, kind, head=False) if kind == "bert_labels" else randomised(method, kind)
    given = small.inputs()
    found, one = small.output(model, **given), encoded if kind == "bert_labels" else foretold
    rows, worst = rows_of(model), 0.0
    for i, (ids, mask) in enumerate(zip(given["input_ids"], given["attention_mask"].bool())):
        with unipelt.disabled(model), torch.no_grad():
            expected = one(model, ids[mask], rows, behind)
        worst = max(worst, apart(found[i : i + 1] if kind == "bert_labels" else found[i][mask], expected))
    return worst


@reference(
    "late_prompt_tuning",
    by="formula",
    against="the blocks of BERT and GPT-2 by hand, rows beside the states that enter one",
)
def _() -> float:
    return max(
        by_hand(library("late_prompt_tuning", l=3, before=BEFORE, k=k), kind, k)
        for kind in ("bert_labels", "gpt2") for k in (0, 1)
    )  # fmt: skip


@reference(
    "late_prompt_tuning_generated",
    by="formula",
    against="BERT's blocks by hand, rows W_2 ReLU(W_1 m + b_1) + b_2 of the mean m of the states that enter one",
)
def _() -> float:
    method = library("late_prompt_tuning_generated", l=3, m=5, before=BEFORE)
    return max(by_hand(method(k=k), "bert_labels", k) for k in (0, 1))
