"""Penalties of a pass that trains: what `penalty` lines give, added to the model's loss where it has one.

A penalty counts once for each batch whatever the number of parts it comes in: where the model divides its loss by the number of
labels of the whole batch (``num_items_in_batch``), so is the penalty; elsewhere who adds the parts up divides both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..language.report.diagnostics import error

if TYPE_CHECKING:
    from .edits import Edit
    from .switch import Switch

#: Under which name an edit is given where its penalty is noted: no name of the language.
NOTED = ":penalties"


class Noted:
    """The penalties of one pass, from its first hook to its last; layers that are computed again later find it closed."""

    def __init__(self) -> None:
        self.graded = torch.is_grad_enabled()
        self.values: dict[Any, torch.Tensor] = {}
        self.open = True

    def add(self, edit: Edit, value: torch.Tensor) -> None:
        if not self.open:
            return
        if self.graded and not torch.is_grad_enabled():
            raise error("E0771", f"no gradient would flow through the penalty of `{edit.row.name}`: its layer is computed without one",
                        help="checkpoint activations with use_reentrant=False, or call the whole model under no_grad")  # fmt: skip
        # one that edits a weight may be asked for it more than once in a pass
        self.values[id(edit) if edit.of_weight else (id(edit), len(self.values))] = value

    def total(self) -> torch.Tensor:
        values = list(self.values.values())
        if not values:
            return torch.zeros(())
        return sum((v.to(values[0].device) for v in values[1:]), values[0])


class PenaltyHooks:
    """Hooks of the model itself: a pass begins and ends."""

    def __init__(self, switch: Switch):
        self.switch = switch

    def begin(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        self.switch.holder.current.penalties = Noted()

    def end(self, model: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        """The model's output with the penalties in its loss."""
        noted = self.switch.holder.current.penalties
        if noted is None or not noted.open:
            return None
        noted.open = False
        if not noted.values:
            return None
        penalty = noted.total()
        share = _share(model, kwargs)
        if isinstance(output, Mapping):
            loss = output.get("loss")
            if not isinstance(loss, torch.Tensor):
                return None
            changed: Any = type(output)(**output)
            changed["loss"] = loss + (penalty * share).to(loss.device)
            return changed
        if isinstance(output, tuple) and kwargs.get("labels") is not None and isinstance(output[0], torch.Tensor):
            loss = output[0]
            return (loss + (penalty * share).to(loss.device), *output[1:])
        return None


def _share(model: nn.Module, kwargs: Mapping[str, Any]) -> Any:
    """Which share of its whole batch this part is, where the loss is divided by the labels of the whole: counted as the Trainer does."""
    whole, labels = kwargs.get("num_items_in_batch"), kwargs.get("shift_labels")
    if whole is None:
        return 1.0
    if labels is None:
        labels = kwargs.get("labels")
        if not isinstance(labels, torch.Tensor):
            return 1.0
        if _shifts(model) and labels.dim() > 1:
            labels = labels[..., 1:]
    return labels.ne(-100).sum() / whole


def _shifts(model: nn.Module) -> bool:
    """Whether a model's loss compares each position with the next label."""
    decoder = not getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    kind = getattr(model, "loss_type", None)
    if kind is None or not decoder:
        return False
    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

    return LOSS_MAPPING.get(kind) is ForCausalLMLoss


def penalised(edit: Edit) -> bool:
    return any(getattr(s, "word", "") == "penalty" for s in edit.row.form)
