"""References for `specs/state_space.pelt`: the published formulas, on a small Mamba."""

from __future__ import annotations

import torch
from reference import Seen, by_formula, library, reference


@reference(
    "mamba_lora_partial",
    by="formula",
    against="LoRA at the rows of in_proj that yield X (or Z), the others as they were",
)
def _partial() -> float:
    def at(gate: bool) -> float:
        def formula(s: Seen) -> torch.Tensor:
            x, z = (s.x @ s.W + s.bias).chunk(2, -1)
            change = 8 / 8 * torch.einsum("bti,ir,ro->bto", s.x, s.A, s.B)
            return torch.cat((x, z + change) if gate else (x + change, z), -1)

        return by_formula(library("mamba_lora_partial", gate=gate), formula, kind="mamba")

    return max(at(False), at(True))
