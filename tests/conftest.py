import gc
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = str(Path(__file__).parent)
if HERE not in sys.path:  # `names` and `small` serve the tests of several folders
    sys.path.insert(0, HERE)

os.environ["UNIPELT_CACHE"] = "off"  # a test neither reads nor writes what other runs found


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A hub in this process (`fake_hub`), with a cache of its own; the hub's library asks no other."""
    from fake_hub import point_to, served
    from huggingface_hub import constants

    with served() as h:
        point_to(monkeypatch, h.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield h


def pytest_runtest_setup() -> None:
    """One thread: tiny tensors gain nothing from more. What is drawn without a generator (peft's starts) is the same in every run. Tests of the
    language alone do without torch."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
        torch.manual_seed(0)


def pytest_collection_finish() -> None:
    """What is there by now stays to the end: torch, transformers, thousands of tests. Python's collector is to leave it be.

    It would walk through all of it again and again; every training run alone asks for a full collection.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


@pytest.fixture(autouse=True, scope="session")
def unsynced() -> Iterator[None]:
    """Nothing waits for the disk: the tests kill processes, and no test cuts the power."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        yield


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of a test marked `sampled(n)` every n-th case runs (UNIPELT_ALL=1 runs them all, UNIPELT_FEWER=3 a third of these). Long tests come first,
    so that no worker is left alone with one at the end."""
    fewer = int(os.environ.get("UNIPELT_FEWER", "1"))
    seen: Counter[str] = Counter()
    left_out = []
    for item in items:
        marker = item.get_closest_marker("sampled")
        test = item.nodeid.partition("[")[0]
        if marker and seen[test] % (marker.args[0] * fewer) and not os.environ.get("UNIPELT_ALL"):
            left_out.append(item)
        seen[test] += 1
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        out = {id(item) for item in left_out}
        items[:] = [item for item in items if id(item) not in out]
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says the figures that tests found (``record_property``; they come here from the workers too), once, also with -q."""
    reports = [r for found in terminalreporter.stats.values() for r in found if getattr(r, "when", "") == "call"]
    found = [p for r in reports for p in r.user_properties]
    for text in dict.fromkeys(text for name, text in found if name == "figure"):
        terminalreporter.write_line(text)
    if any(r.nodeid.startswith("tests/fidelity/") for r in reports):
        from fidelity.recordings import summary

        terminalreporter.write_line(summary([tuple(value) for name, value in found if name == "recording"]))
