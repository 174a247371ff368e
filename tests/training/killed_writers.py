"""Writers of a trunk's cache that are killed (SIGKILL) at many places: run as a script with a folder and a seed, it raises where something is lost.

A process of its own: it forks writers, and so has one thread.
"""

from __future__ import annotations

import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1]))
from epochs import trained
from test_trunk import batches, still

from unipelt.training import cache_trunk
from unipelt.training.kept_rows import KeptRows

ROWS, SIZE = 10, 4000
BEGUN, DONE = b"b", b"d"


def told(write: Callable[[Callable[[bytes], object]], object]) -> tuple[int, int]:
    """A child that writes, and tells what it has done over a pipe: its number, and where to read. It ends without an exit of Python's."""
    there, here = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(there)
        try:
            write(lambda said: os.write(here, said))
        finally:
            os._exit(1)
    os.close(here)
    return child, there


def killed(write: Callable[[Callable[[bytes], object]], object], after: int, delay: float) -> bytes:
    """What a child had told when it was killed: some time after it told for the ``after``th time, or by itself."""
    child, pipe = told(write)
    said, until = b"", time.monotonic() + 60
    while len(said) < after and time.monotonic() < until:
        if select.select([pipe], [], [], 1.0)[0]:
            found = os.read(pipe, 1)
            if not found:
                break
            said += found
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the writer failed: {status}"
    while found := os.read(pipe, 4096):
        said += found
    os.close(pipe)
    return said


def row(i: int, j: int) -> torch.Tensor:
    return torch.full((SIZE,), float(i * ROWS + j))


def put(rows: KeptRows, i: int) -> None:
    rows.put({f"{i} {j}".encode(): row(i, j) for j in range(ROWS)})


def instructions(folder: Path) -> int:
    """How many instructions of SQLite's a writing of rows takes."""
    seen = [0]
    rows = KeptRows(folder / "counted", "m", 10**9)
    assert rows.file is not None
    rows.file.set_progress_handler(lambda: seen.__setitem__(0, seen[0] + 1), 1)
    put(rows, 0)
    rows.close()
    return seen[0]


def single_rows(folder: Path, random_: random.Random) -> int:
    """Kills while a file is opened, while rows are written to it, and while it is tidied; returns how many were inside of a writing."""
    inside, first = 0, 0
    most = instructions(folder)
    for n in range(16):
        at = random_.randrange(1, most) if n % 2 else 0  # in the middle of a writing, or whenever

        def write(tell: Callable[[bytes], object], first: int = first, at: int = at) -> None:
            rows = KeptRows(folder / "k", "m", 10**9)
            left = [at]

            def step() -> int:
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return 0

            for i in range(first, 10**6):
                if at and i == first + 2 and rows.file is not None:
                    rows.file.set_progress_handler(step, 1)
                tell(BEGUN)
                put(rows, i)
                tell(DONE)

        said = killed(write, 10**6 if at else random_.randrange(12), random_.random() * 0.004)
        inside += said.endswith(BEGUN)
        whole = first + said.count(DONE)
        rows = KeptRows(folder / "k", "m", 10**9)
        for i in range(whole):
            for j in range(ROWS):
                found = rows.get(f"{i} {j}".encode())
                assert found is not None and torch.equal(found, row(i, j)), f"row {i} {j} of {whole} is lost or wrong"
        last = [rows.get(f"{whole} {j}".encode()) for j in range(ROWS)]
        none = all(t is None for t in last)
        assert none or all(t is not None and torch.equal(t, row(whole, j)) for j, t in enumerate(last)), "half written"
        assert rows.get(f"{whole + 1} 0".encode()) is None and rows.damaged == 0
        rows.close()
        first = whole + (not none)
    return inside


def trainings(folder: Path, random_: random.Random) -> int:
    """Kills of a training that fills a cache: the next one on it gives what one without gives. Returns how many were within it."""
    given = batches("bert_labels")
    losses, tensors = trained(still("bert_labels"), given)
    begun = time.monotonic()
    with cache_trunk(still("bert_labels"), folder / "whole") as trunk:
        trained(trunk.model, given)
    takes, within = time.monotonic() - begun, 0
    for n in range(5):
        place = folder / f"killed-{n}"

        def write(tell: Callable[[bytes], object], place: Path = place) -> None:
            tell(BEGUN)
            with cache_trunk(still("bert_labels"), place) as trunk:
                trained(trunk.model, given)
            tell(DONE)
            time.sleep(60)

        said = killed(write, 1, random_.random() * takes)
        within += DONE not in said
        m = still("bert_labels")
        with cache_trunk(m, place) as trunk:
            found, same = trained(m, given)
            assert trunk.rows.damaged == 0
        torch.testing.assert_close(found, losses, rtol=1e-5, atol=1e-6)
        assert all(torch.allclose(t, same[k], rtol=1e-5, atol=1e-6) for k, t in tensors.items())
    return within


if __name__ == "__main__":
    torch.set_num_threads(1)
    at, seed = Path(sys.argv[1]), int(sys.argv[2])
    print(single_rows(at, random.Random(seed)), trainings(at, random.Random(seed)))
