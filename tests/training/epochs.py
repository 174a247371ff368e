"""Plain training, for what caches of trunks are compared with."""

from __future__ import annotations

import torch
from torch import nn

import unipelt


def trained(
    m: nn.Module, given: list[dict[str, torch.Tensor]], epochs: int = 3
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of some epochs, each in another order, and the adapter's tensors after them."""
    optimizer = torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for epoch in range(epochs):
        order = [given[(i + epoch) % len(given)] for i in range(len(given))]
        for x in order:
            loss = m(**x).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
    return losses, unipelt.state_dict(m)
