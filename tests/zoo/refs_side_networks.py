"""References for `specs/side_networks.pelt`: what is handed on from layer to layer, followed by other code over what the layers met."""

from __future__ import annotations

import re
from collections.abc import Callable

import peft
import small
import torch
from reference import Seen, apart, beside_peft, library, reference, run
from torch import nn
from torch.nn import functional as F

import unipelt

KINDS = ("llama", "bert")


def along(
    method: unipelt.Method, new: Callable[[Seen, list[Seen]], torch.Tensor], kinds: tuple[str, ...] = KINDS
) -> float:
    """How far each edit's new h is from what is made of what it met and of what the layers below met, in order."""
    worst = 0.0
    for kind in kinds:
        found = run(method, kind)
        for site in {s.site for s in found}:
            layers = [s for s in found if s.site == site]
            assert [s.layer for s in layers] == list(range(len(layers))) and len(layers) > 1
            worst = max(worst, *(apart(s.out, new(s, layers[:i])) for i, s in enumerate(layers)))
    return worst


@reference(
    "ladder_side_tuning",
    by="formula",
    against="the ladder climbed layer by layer, after their code, with feed-forward blocks",
)
def _() -> float:
    def new(s: Seen, below: list[Seen]) -> torch.Tensor:
        side = torch.einsum("btd,dr->btr", (below[0] if below else s).x, s.E)
        for at in (*below, s):
            gate = 1 / (1 + torch.exp(-at.w / 0.1))
            own = side + (side @ at.F).clamp(min=0) @ at.G
            side = gate * own + (1 - gate) * torch.einsum("btd,dr->btr", at.h, at.D)
        return s.h + side @ s.U if s.layer == small.LAYERS - 1 else s.h

    return along(library("ladder_side_tuning", r=6, inner=5), new)


@reference("side_tuning", by="formula", against="a B(x) + (1 - a) S(x) behind the last layer, S by torch's own layers")
def _() -> float:
    def new(s: Seen, below: list[Seen]) -> torch.Tensor:
        side = (below[0] if below else s).x
        for at in (*below, s):
            side = side + F.linear(F.relu(F.linear(side, at.F.T)), at.G.T)
        return torch.lerp(side, s.h, torch.sigmoid(s.w)) if s.layer == small.LAYERS - 1 else s.h

    return along(library("side_tuning", r=6), new)


@reference("reslora_input", by="formula", against="W x_n + s B A (x_n + x_(n-1)), after their code")
def _() -> float:
    def new(s: Seen, below: list[Seen]) -> torch.Tensor:
        both = s.x + (below[-1] if below else s).x
        return s.x @ s.W + s.bias + 2 * torch.einsum("btd,dr,ro->bto", both, s.A, s.B)

    return along(library("reslora_input"), new)


@reference("reslora_middle", by="formula", against="W x_n + s B_n (A_n x_n + … + A_0 x_0)")
def _() -> float:
    def new(s: Seen, below: list[Seen]) -> torch.Tensor:
        middle = sum(torch.einsum("btd,dr->btr", at.x, at.A) for at in (*below, s))
        return s.x @ s.W + s.bias + 2 * middle @ s.B

    return along(library("reslora_middle"), new)


class First(nn.Module):
    """A first state of one residual feed-forward layer, in the place of a small model."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.F, self.G = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, inputs_embeds: torch.Tensor, **more: object) -> object:
        state = inputs_embeds + self.G(F.gelu(self.F(inputs_embeds)))
        return type("Output", (), {"last_hidden_state": state, "past_key_values": None})()


@reference(
    "shadow",
    by="peft",
    against="live peft's ShadowPEFT with that first state, but for its last step, which nothing reads",
)
def _() -> float:
    config = peft.ShadowConfig(r=3, task_type="CAUSAL_LM", shadow_dropout=0.0, auxiliary_loss_weight=0.0)

    def prepare(theirs: nn.Module) -> None:
        inner = theirs.base_model
        width = inner.model.config.hidden_size
        first = First(width, 5)
        with torch.no_grad():
            for p in first.parameters():
                p.zero_()
        inner.shadow_backbone["default"] = first

    def into(name: str, theirs: dict[str, torch.Tensor]) -> torch.Tensor:
        tensor = name.rpartition(".")[2]
        if tensor in "FG":
            return next(t for n, t in theirs.items() if n.endswith(f"shadow_backbone.default.{tensor}.weight")).T
        layer = int(re.search(r"layers\.(\d+)\.", name)[1])  # type: ignore[index]
        if tensor in ("down", "up"):
            found = f"layers.{layer}.shadow_{tensor}.default.weight"
            return next(t for n, t in theirs.items() if n.endswith(found)).T
        which, part = tensor.split("_", 1)  # its step into a layer is theirs out of the one below
        module = {"new": "transform", "step": "gate"}[which]
        at = {"down": "0.weight", "b_down": "0.bias", "up": "2.weight", "b_up": "2.bias"}[part]
        found = f"layers.{layer - 1 if layer else 0}.shadow_update_{module}.default.{at}"
        at_layer = next(t for n, t in theirs.items() if n.endswith(found))
        return at_layer.T if at_layer.dim() == 2 else at_layer

    return beside_peft(library("shadow", r=3, inner=5, dropout=0.0), config, into, prepare=prepare)
