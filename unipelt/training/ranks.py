"""The processes of one run, which a launcher (`accelerate launch`, `torchrun`, `mpirun`) started with the same arguments.

Each reads the data and the model; the main one opens and writes the folder and speaks. Of a failure that several share,
the first to meet it speaks. In a process that no launcher started, everything here is as if it were not there.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from .data import whole_number

T = TypeVar("T")
#: Where launchers write the number of processes.
SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
#: How long a process that failed with others waits for the one that speaks.
PATIENCE = timedelta(seconds=30)
FAILED, SAID = "unipelt/failed", "unipelt/said"


def launched() -> bool:
    """Whether a launcher started several processes. Needs no torch."""
    return any((whole_number(os.environ.get(name, "")) or 1) > 1 for name in SIZES)


def on_cpu() -> bool:
    """Whether the run is on CPUs: there is nothing else, or the launcher says so."""
    import torch

    asked = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    return asked or not torch.accelerator.is_available()


def device() -> Any:
    """Where this process trains."""
    import torch

    if on_cpu():
        return torch.device("cpu")
    if launched():
        from accelerate import PartialState

        return PartialState().device
    return torch.accelerator.current_accelerator()


def join() -> None:
    """Meet the other processes, if a launcher started some."""
    if launched():
        # Otherwise accelerate has the first process alone read the weights, as it means to send them to the others when
        # it shards; but a method starts from weights (trained copies, prompts from words) before that.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
        # DDP warns, past Python's filters, that it looked for unused parameters and found none.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        from accelerate import PartialState

        # Without `cpu` accelerate takes processes without a GPU for independent ones.
        PartialState(cpu=on_cpu())


def leave() -> None:
    """Leave the group of processes, as torch wants it at the end."""
    if _together():
        _distributed().destroy_process_group()


def rank() -> int:
    return _distributed().get_rank() if _together() else 0


def world() -> int:
    return _distributed().get_world_size() if _together() else 1


def is_main() -> bool:
    return rank() == 0


def on_main(call: Callable[[], T]) -> T:
    """Calls in the main process. Every process gets its result, or raises its error."""
    from ..runtime.sharding import on_first

    return on_first(call) if _together() else call()


def gather(found: dict[Any, Any]) -> dict[Any, Any]:
    """The entries of every process's dictionary, for every process."""
    if not _together():
        return found
    parts: list[Any] = [None] * world()
    _distributed().all_gather_object(parts, found)
    return {key: value for part in parts for key, value in part.items()}


def total(number: int, device: Any) -> int:
    """The sum of every process's number."""
    if not _together():
        return number
    import torch

    sum_ = torch.tensor(number, device=device)
    _distributed().all_reduce(sum_)
    return int(sum_)


def same(tensors: Iterable[Any]) -> None:
    """Gives the tensors of every process, in the same order, the values of the main one's."""
    if _together():
        for t in tensors:
            sent = t.detach().to(device()).contiguous()
            _distributed().broadcast(sent, 0)
            t.detach().copy_(sent)


@contextmanager
def failing() -> Iterator[bool]:
    """Yields whether this process is the first that fails, which reports why. The others wait: a launcher ends all when one ends."""
    if not _together():
        yield True
        return
    try:
        # The launcher's own store: it is there when a process is gone, and collectives are not.
        store = _distributed().distributed_c10d._get_default_store()
        first = store.add(FAILED, 1) == 1
    except Exception:  # noqa: BLE001 - the process that kept the store has failed, so it was the first
        first = False
    try:
        yield first
    finally:
        try:
            store.set(SAID, "") if first else store.wait([SAID], PATIENCE)
        except Exception:  # noqa: BLE001 - as above
            pass


def _distributed() -> Any:
    import torch.distributed

    return torch.distributed


def _together() -> bool:
    import sys

    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()
