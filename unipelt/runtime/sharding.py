"""Models that `fully_shard` (FSDP2) has divided among processes: whole tensors out of them, and back into them.

What gathers or distributes is called by every process of the group, as torch's collectives are.
Non-goals: sharding a model (that is `torch.distributed.fsdp.fully_shard`'s, or accelerate's) and tensor parallelism.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

from ..anatomy.base import base_modules, base_parameters
from ..anatomy.interrupts import ended_by

T = TypeVar("T")


def units(model: nn.Module) -> list[Any]:
    """The modules that were sharded. Nothing can be, in a process that never imported FSDP2; no adapter is without its base."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None or not any(isinstance(m, fsdp.FSDPModule) for _, m in base_modules(model)):
        return []
    return [m for m in model.modules() if isinstance(m, fsdp.FSDPModule)]


def is_sharded(model: nn.Module) -> bool:
    return any(is_part(p) for _, p in base_parameters(model)) or bool(units(model))


def is_part(t: torch.Tensor) -> bool:
    """Whether a tensor is distributed: this process may hold a part of it only."""
    return type(t).__name__ == "DTensor"


def settle(model: nn.Module) -> None:
    """Registers the sharded parameters: between passes some units keep the gathered ones, which an optimizer does not see."""
    for unit in units(model):
        unit.reshard()


def whole(t: torch.Tensor) -> torch.Tensor:
    """All of a tensor's values."""
    return t.full_tensor() if is_part(t) else t  # type: ignore[attr-defined]


def put(target: torch.Tensor, values: torch.Tensor) -> None:
    """Writes whole values into a tensor, of which this process may hold a part. Every process has the same values."""
    if is_part(target):
        from torch.distributed.tensor import distribute_tensor

        # Without a source rank each process cuts its part out of its own values.
        values = distribute_tensor(values.to(target.device, target.dtype), target.device_mesh, target.placements,  # type: ignore[attr-defined]
                                   src_data_rank=None)  # fmt: skip
    target.detach().copy_(values)


@contextmanager
def gathered(model: nn.Module, path: str) -> Iterator[None]:
    """Inside, the modules on the way to ``path`` have whole parameters; for the empty path the model's own are whole."""
    parts = path.split(".") if path else []
    ways = [".".join(parts[: i + 1]) for i in range(len(parts))] or [""]
    chosen = [u for u in units(model) if any(u is model.get_submodule(way) for way in ways)]
    with ended_by(lambda: [unit.reshard() for unit in chosen]):
        for unit in chosen:
            unit.unshard()
        yield


def on_first(call: Callable[[], T]) -> T:
    """The first process's result for every process; what it raises, every process raises."""
    import torch.distributed as dist

    box: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            box[0] = call()
        except Exception as e:  # noqa: BLE001 - the others wait for it
            box[1] = e
    dist.broadcast_object_list(box)
    if box[1] is not None:
        raise box[1]
    return box[0]
