"""Two processes on the CPU that meet by gloo, for the tests of what differs there."""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import pytest

Work = Callable[..., Any]


def together(work: Work, *given: Any, timeout: int = 300) -> list[Any]:
    """What ``work(rank, *given)``, a function of a module, finds in each of two processes; what one raises is the failure."""
    import torch.distributed as dist
    import torch.multiprocessing as mp

    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this torch is built without gloo")
    context = mp.get_context("forkserver")
    # imported once, by the process that both are forked from
    context.set_forkserver_preload(
        [n for n in sys.modules if n.startswith(("torch.distributed.", "transformers.models."))]
    )
    results = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        workers = [context.Process(target=_meet, args=(r, f"{folder}/meet", results, work, given)) for r in range(2)]
        for w in workers:
            w.start()
        found = dict(results.get(timeout=timeout) for _ in workers)
        for w in workers:
            w.join(30)
    raised = [x.text for x in found.values() if isinstance(x, _Raised)]
    assert not raised, "\n".join(raised)
    return [found[rank] for rank in range(2)]


class _Raised:
    def __init__(self, text: str):
        self.text = text


def _meet(rank: int, place: str, results: Any, work: Work, given: tuple) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    try:
        results.put((rank, work(rank, *given)))
    except BaseException:  # the parent must hear of it
        results.put((rank, _Raised(traceback.format_exc())))
        raise
    finally:
        dist.destroy_process_group()
