"""Several members over one frozen model in one forward pass: prompts, or whatever a method picks by an index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..language.report.diagnostics import error, near
from .registry import registry, unwrapped


@dataclass(frozen=True)
class Ensemble:
    """What the members of an ensemble say: logits [member, batch, …, class]."""

    logits: torch.Tensor

    def __repr__(self) -> str:
        return f"<ensemble: logits {list(self.logits.shape)}>"

    @property
    def probabilities(self) -> torch.Tensor:
        """The mean of the members' probabilities: [batch, …, class]."""
        return self.logits.softmax(-1).mean(0)

    @property
    def votes(self) -> torch.Tensor:
        """The share of the members that each class is the best one for (Lester et al. 2021): [batch, …, class]."""
        best = self.logits.argmax(-1, keepdim=True)
        return torch.zeros_like(self.logits).scatter(-1, best, 1.0).mean(0)


def ensemble(model: nn.Module, batch: Mapping[str, Any], over: str | None = None) -> Ensemble:
    """Every member's logits for a batch, in one forward pass of ``n`` times the batch.

    ``over`` names the `input … : index(n)` that tells members apart; it may be left out where the acting adapters
    declare one only. Labels in the batch are left aside, but for those of which an encoder–decoder makes the tokens that its decoder
    reads. Raises `PeltError` (E0736) where there is no such input, and for a cache or an encoder's states, which are of one member.
    """
    r = registry(unwrapped(model))
    found = {n: i for n, i in r.inputs.items() if i.count} if r is not None else {}
    if over is None and len(found) == 1:
        over = next(iter(found))
    if over is None or over not in found:
        said = (
            f"no acting adapter declares the input `{over}: index(n)`"
            if over
            else "which input tells the members apart?"
        )
        listed = (
            f"declared: {', '.join(sorted(found))}" if found else "no acting adapter declares an input of type index"
        )
        raise error("E0736", said, help=(near(over, found) if over else "") or listed)
    n = found[over].count
    assert n is not None
    rows = next((t.shape[0] for t in batch.values() if isinstance(t, torch.Tensor) and t.dim()), 0)
    if not rows:
        raise error(
            "E0736",
            "`batch` holds no tensor with a row for each example",
            help="give what the model takes: input_ids and the like",
        )
    asked = {k: v for k, v in _with_decoder_tokens(model, batch).items() if k not in (over, "labels")}
    states = next(
        (k for k, v in asked.items() if not isinstance(v, (torch.Tensor, bool, int, float, str, type(None)))), None
    )
    if states is not None:
        raise error("E0736", f"`{states}` holds what one member has made of the batch, and every member is asked",
                    help=f"leave `{states}` out; give the tokens")  # fmt: skip
    repeated = {
        k: v.repeat(n, *[1] * (v.dim() - 1)) if isinstance(v, torch.Tensor) and v.dim() and v.shape[0] == rows else v
        for k, v in asked.items()
    }
    output = model(**repeated, **{over: torch.arange(n).repeat_interleave(rows)})
    logits = getattr(output, "logits", None)
    if logits is None:
        raise error("E0736", f"a {type(model).__name__} yields no logits to put together", help="load it with a head")
    return Ensemble(logits.unflatten(0, (n, rows)))


def _with_decoder_tokens(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with the decoder's tokens, where the model makes them of the labels: without these some would read the encoder's."""
    made = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    given = any(batch.get(k) is not None for k in ("decoder_input_ids", "decoder_inputs_embeds"))
    if made is None or given or batch.get("labels") is None:
        return dict(batch)
    return {**batch, "decoder_input_ids": made(labels=batch["labels"])}
