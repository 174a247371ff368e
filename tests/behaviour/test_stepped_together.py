"""Two processes on the CPU (gloo): `penalty` and `after step` under DDP and FSDP2 do what one process does."""

from __future__ import annotations

import copy
import traceback
from typing import Any

import torch
from together import together
from torch import nn

import unipelt

#: Singular values that a budget prunes over all places; the penalty reads tensors, and what enters.
TEXT = """
method pruned(r: int = 4, left: float = 1.5, gamma: float = 0.3) {
  modify attn.q, attn.v  insert parallel
  form {
    A: [d_in, r] ~ normal(0.3)   E: [r] ~ normal(0.5)   B: [r, d_out] ~ normal(0.3)   t: [] ~ ones
    frozen one: [r, r] ~ identity
    frozen s: [r] ~ zeros
    penalty gamma * sum(sum((A.T @ A - one) ** 2)) + gamma * sum(mean(softmax(z @ A), positions, batch) ** 2)
    delta = z @ A * E @ B * t
    after step {
      s = 0.8 * s + 0.2 * abs(E * gradient(E))
      t = t * 0.9 + 0.05 * gradient(t)
      E = E * among(s, left + (r - left) * (1 - progress) ** 3)
    }
  }
  compose h + delta
}
"""
STEPS = 4


def given(part: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(2, 60, (2, 6), generator=torch.Generator().manual_seed(part))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor([0, part])}


def train(model: nn.Module, acting: nn.Module, parts: list[dict[str, torch.Tensor]]) -> list[float]:
    optimizer = torch.optim.AdamW(unipelt.parameter_groups(model, lr=1e-2), eps=1e-4)
    losses = []
    for step in range(STEPS):
        unipelt.progress(model, step / STEPS)
        found = [acting(**part).loss / len(parts) for part in parts]
        torch.stack(found).sum().backward()
        losses.append(float(torch.stack(found).sum().detach()))
        optimizer.step()
        unipelt.progress(model, (step + 1) / STEPS)
        unipelt.after_step(model)
        optimizer.zero_grad()
    return losses


def work(rank: int, how: str) -> list[str]:
    try:
        _compare(rank, how)
    except Exception:  # noqa: BLE001 - the parent must hear of it
        return [traceback.format_exc(limit=4)]
    return []


def _compare(rank: int, how: str) -> None:
    import small
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    alone = small.model("bert_labels", dtype=torch.float64)
    for module in alone.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    unipelt.apply(alone, unipelt.parse(TEXT))
    small.randomise(alone)
    spread: Any = copy.deepcopy(alone).train()
    losses = train(alone.train(), alone, [given(0), given(1)])
    wanted = unipelt.state_dict(alone)
    kept = sum(int((t != 0).sum()) for n, t in wanted.items() if n.endswith(".E"))
    assert kept == 9 and all(t.any() for n, t in wanted.items() if n.endswith(".s")), "1.5 at each of 6 places"
    acting = spread
    if how == "DDP":
        acting = torch.nn.parallel.DistributedDataParallel(spread)
    else:
        mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
        for block in spread.bert.encoder.layer:
            fully_shard(block, mesh=mesh)
        fully_shard(spread, mesh=mesh)
    mine = train(spread, acting, [given(rank)])
    found = unipelt.state_dict(spread)
    assert found.keys() == wanted.keys()
    for n, t in wanted.items():
        assert torch.allclose(found[n], t, rtol=1e-9, atol=1e-11), n
    both: list[Any] = [None, None]
    dist.all_gather_object(both, mine)
    assert all(abs(a - (b + c) / 2) < 1e-9 for a, b, c in zip(losses, *both))


def test_copies_of_the_model() -> None:
    for problems in together(work, "DDP"):
        assert not problems, "\n".join(problems)


def test_shards_of_the_model() -> None:
    for problems in together(work, "FSDP2"):
        assert not problems, "\n".join(problems)
