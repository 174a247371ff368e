"""A run goes on from a checkpoint whose files may be anything: nothing is unpickled, and what is wrong is said with its place."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unipelt.language.report.diagnostics import PeltError
from unipelt.training.config import TrainConfig
from unipelt.training.folder import CHECKPOINTS
from unipelt.training.run import train
from unipelt.training.trainer import OPTIMIZER, SCHEDULER, STATE

RNG = "rng_state.pth"


@pytest.fixture(scope="session")
def whole(spec: str, intents: str, bert: str, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    config = TrainConfig(method=f"{spec}:small", model=bert, data=intents, out=str(tmp_path_factory.mktemp("whole") / "run"),
                         epochs=1, batch_size=8, max_length=16, save_steps=10, report=False)  # fmt: skip
    train(config)
    return config


@pytest.fixture
def cut(whole: TrainConfig, tmp_path: Path) -> tuple[TrainConfig, Path]:
    """A run that was killed within its epoch, and its only checkpoint."""
    shutil.copytree(whole.out, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    checkpoint = tmp_path / "run" / CHECKPOINTS / "checkpoint-10"
    for later in checkpoint.parent.iterdir():
        if later != checkpoint:
            shutil.rmtree(later)
    return replace(whole, out=str(tmp_path / "run"), resume=True), checkpoint


class Evil:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.trace),)


def refused(config: TrainConfig) -> str:
    with pytest.raises(PeltError) as caught:
        train(config)
    (found,) = caught.value.diagnostics
    assert found.code == "E0781" and "--overwrite" in found.help
    return found.message


def test_it_goes_on_where_nothing_is_wrong(cut: tuple[TrainConfig, Path], whole: TrainConfig) -> None:
    resumed = train(cut[0])
    assert json.loads((Path(whole.out) / "metrics.json").read_text())["metrics"] == resumed.metrics


@pytest.mark.parametrize("name", [OPTIMIZER, SCHEDULER, RNG])
def test_a_pickle_is_not_opened(cut: tuple[TrainConfig, Path], tmp_path: Path, name: str) -> None:
    config, checkpoint = cut
    for write in (pickle.dumps, _saved):
        (checkpoint / name).write_bytes(write(Evil(tmp_path / "trace")))
        message = refused(config)
        assert name in message and not (tmp_path / "trace").exists() and len(message) < 600


def _saved(value: Any) -> bytes:
    import io

    out = io.BytesIO()
    torch.save(value, out)
    return out.getvalue()


WRONG: list[Callable[[], bytes]] = [
    lambda: b"", lambda: b"x" * 100, lambda: _saved(3), lambda: _saved([1]), lambda: _saved({}), lambda: _saved({"state": 3, "param_groups": "x"}),
    lambda: _saved({"python": 3, "numpy": 4, "cpu": torch.zeros(3)}), lambda: _saved({"base_lrs": "x"}),
]  # fmt: skip


@pytest.mark.sampled(3)
@pytest.mark.parametrize("data", WRONG, ids=range(len(WRONG)))
@pytest.mark.parametrize("name", [OPTIMIZER, SCHEDULER, RNG])
def test_a_file_that_holds_something_else(cut: tuple[TrainConfig, Path], name: str, data: Callable[[], bytes]) -> None:
    config, checkpoint = cut
    (checkpoint / name).write_bytes(data())
    assert name in refused(config)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", ["pipe", "device", "outside", "gone", "folder"])
@pytest.mark.parametrize("name", [OPTIMIZER, SCHEDULER, RNG])
def test_a_file_that_is_no_plain_file(cut: tuple[TrainConfig, Path], tmp_path: Path, name: str, kind: str) -> None:
    config, checkpoint = cut
    shutil.move(checkpoint / name, tmp_path / "elsewhere")
    if kind == "pipe":
        os.mkfifo(checkpoint / name)
    elif kind == "folder":
        (checkpoint / name).mkdir()
    elif kind != "gone":
        (checkpoint / name).symlink_to("/dev/zero" if kind == "device" else tmp_path / "elsewhere")
    if kind == "gone" and name == RNG:
        assert train(config).metrics  # as transformers has it: the numbers drawn are other ones
        return
    assert name in refused(config)


@pytest.mark.parametrize("change", [
    {"log_history": 3}, {"log_history": [3]}, {"max_steps": "x"}, {"epoch": []}, {"stateful_callbacks": [1]}, {"of another version": 1},
])  # fmt: skip
def test_a_state_of_another_kind(cut: tuple[TrainConfig, Path], change: dict[str, Any]) -> None:
    config, checkpoint = cut
    state = json.loads((checkpoint / STATE).read_text())
    (checkpoint / STATE).write_text(json.dumps({**state, **change}))
    assert STATE in refused(config) and checkpoint.exists()


@pytest.mark.parametrize("name", ["run.json", "task.json"])
@pytest.mark.parametrize("kind", ["pipe", "device", "outside", "huge"])
def test_a_record_that_is_no_plain_file(
    whole: TrainConfig, cut: tuple[TrainConfig, Path], tmp_path: Path, name: str, kind: str
) -> None:
    from unipelt.training.saved import load_run

    config = cut[0]
    place = Path(config.out) / name
    shutil.move(place, tmp_path / "elsewhere")
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "huge":
        place.write_bytes(b"{}")
        os.truncate(place, 2**40)
    else:
        place.symlink_to("/dev/zero" if kind == "device" else tmp_path / "elsewhere")
    with pytest.raises(PeltError, match="E0790|E061[25]"):
        train(config) if name == "run.json" else load_run(config.out)


def test_a_record_is_never_written_through_a_link(cut: tuple[TrainConfig, Path], tmp_path: Path) -> None:
    config = cut[0]
    (tmp_path / "mine").write_text("mine")
    for name in ("task.json", "metrics.json"):
        for n in (name, f".{name}.part"):
            (Path(config.out) / n).unlink(missing_ok=True)
            (Path(config.out) / n).symlink_to(tmp_path / "mine")
    (Path(config.out) / "metrics.json").unlink()
    train(config)
    assert (tmp_path / "mine").read_text() == "mine" and not (Path(config.out) / "task.json").is_symlink()
