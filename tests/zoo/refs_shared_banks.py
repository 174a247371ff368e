"""References of the methods whose layers have tensors in common."""

from __future__ import annotations

import peft
import torch
from reference import beside_peft, library, reference

FRONT = "base_model.model.model.layers.{}.self_attn.{}_proj.lily_{}.default.weight"


@reference("lily", by="peft", against="live peft, Lily with A shared by two layers")
def lily() -> float:
    config = peft.LilyConfig(r=4, num_B=3, stride_A=2, scaling=2.0, target_modules=["q_proj", "v_proj"])

    def into(name: str, state: dict[str, torch.Tensor]) -> torch.Tensor:
        *front, _, tensor = name.split(".")
        part = front[front.index("attn") + 1]
        if tensor == "A":
            layer = front[-1].split("_")[1]  # the first of its group
            return state[FRONT.format(layer, part, "A")].T
        if tensor == "R":
            return state[FRONT.format(front[1], part, "router")]
        B = state[FRONT.format(0, part, "B")]
        return B.reshape(3, 4, B.shape[1])

    return beside_peft(library("lily", r=4, n=3, k=2, s=2.0), config, into)
