"""Training in two processes on the CPU, started by `torchrun` and by `accelerate launch`: what one process trains, and what users see."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from unipelt.training import TrainConfig, train

pytestmark = pytest.mark.long

#: 45 examples, 8 in a step: the last batch of an epoch holds 5, which two processes cannot share evenly.
STEPS_OF_AN_EPOCH, STEPS = 6, 12
#: The sums of two processes are taken in another order than those of one: a few units in the last place of float32.
EXACT = 1e-6
#: Of the runs that are compared bit for bit.
DROPPING = {"dropout": 0.1, "save_steps": 4}
#: By MULTI_CPU accelerate means what mpirun starts, and starts one process itself; MULTI_GPU starts several on CPUs too.
ACCELERATE = """\
compute_environment: LOCAL_MACHINE
distributed_type: MULTI_GPU
use_cpu: true
num_machines: 1
machine_rank: 0
num_processes: 2
main_process_port: 0
mixed_precision: 'no'
"""


def launch(*command: Any, timeout: int = 120) -> subprocess.CompletedProcess:
    """Waits for all the processes: each holds the pipes."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *map(str, command)], env=env, capture_output=True, text=True, timeout=timeout, check=False
    )


def torchrun(*command: Any) -> subprocess.CompletedProcess:
    return launch("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, *command)


def train_together(runs: list[dict[str, Any]], place: Path) -> subprocess.CompletedProcess:
    """Several runs in the same two processes, as starting them takes most of the time."""
    place.write_text(json.dumps(runs))
    return torchrun(Path(__file__).with_name("several.py"), place)


def weights(folder: Any) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "adapter.safetensors")


def apart(a: Any, b: Any) -> float:
    """The largest difference between the adapters of two runs."""
    a, b = weights(a), weights(b)
    assert a.keys() == b.keys()
    return max(float((a[n] - b[n]).abs().max()) for n in a)


def losses(folder: Any) -> list[float]:
    return [h["loss"] for h in json.loads((Path(folder) / "metrics.json").read_text())["history"]]


def check_same(found: Any, wanted: Any) -> None:
    assert len(losses(found)) == len(losses(wanted)) == STEPS
    assert apart(found, wanted) < EXACT
    assert losses(found) == pytest.approx(losses(wanted), abs=EXACT)
    a, b = (json.loads((Path(f) / "metrics.json").read_text())["metrics"] for f in (found, wanted))
    for split in ("validation", "test"):
        assert a[split] == pytest.approx(b[split], abs=EXACT)


@pytest.fixture(scope="module")
def options(bert, intents):
    """Without dropout, as processes drop other units each; padded alike, as UniPELT's gates read pad positions."""
    return dict(model=bert, data=intents, epochs=2, lr=1e-2, batch_size=8, train_size=45, max_length=12, dropout=0.0,
                padding="max_length")  # fmt: skip


@pytest.fixture(scope="module")
def runs(options, tmp_path_factory):
    """LoRA and UniPELT by one process, and by two in every way; the last run is killed in the middle of its second epoch."""
    place = tmp_path_factory.mktemp("launched")

    def run(name: str, **changes: Any) -> dict[str, Any]:
        return {"method": "lora", "set": {"r": 4}, **options, "out": str(place / name), **changes}

    unipelt = {"method": "unipelt_apl", "set": {"ra": 8, "l": 4, "rl": 4, "mid": 16}}
    eva = {"method": "eva", "set": {"r": 4}}
    for alone in (run("lora"), run("unipelt", **unipelt), run("eva", **eva), run("bf16", precision="bf16")):
        train(TrainConfig(**alone))
    done = train_together([
        run("mistaken", label="lable"), run("lora2"), run("lora2_parts", accumulate=2), run("lora2_recomputed", checkpointing=True), run("unipelt2", **unipelt), run("eva2", **eva),
        run("bf16_2", precision="bf16"), run("whole", **DROPPING), run("killed", **DROPPING, die=9),
    ], place / "runs.json")  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    (place / "said").write_text(done.stderr)
    return place, run


@pytest.mark.parametrize(
    "two, one",
    [
        ("lora2", "lora"),
        ("lora2_parts", "lora"),
        ("lora2_recomputed", "lora"),
        ("unipelt2", "unipelt"),
        ("eva2", "eva"),
    ],
)
def test_two_processes_train_what_one_trains(runs, two, one):
    """Also where a step is computed in parts, where activations are recomputed, and where data decide the start."""
    place, _ = runs
    check_same(place / two, place / one)


def test_bf16_in_two_processes(runs):
    """What is trained stays in float32; what is computed is rounded to 8 bits, so two runs agree as far as that."""
    place, _ = runs
    assert all(t.dtype == torch.float32 for t in weights(place / "bf16_2").values())
    assert losses(place / "bf16_2") == pytest.approx(losses(place / "bf16"), abs=2**-7)
    assert losses(place / "bf16_2") != pytest.approx(losses(place / "lora2"), abs=EXACT)


def test_a_killed_run_goes_on_to_the_same_end(runs, options, tmp_path):
    """Bit for bit, with dropout: each process draws on where it was. By `accelerate launch` and the command; one prints."""
    place, _ = runs
    assert not (place / "killed" / "metrics.json").exists()
    (tmp_path / "two.yaml").write_text(ACCELERATE)
    given = {**options, **DROPPING, "set": "r=4", "out": place / "killed"}
    command = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", value)]
    done = launch("-m", "accelerate.commands.launch", "--config_file", tmp_path / "two.yaml", "-m", "unipelt", "train", "lora",
                  *command, "--resume", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("resuming at step 8") == 1
    assert (
        place / "killed" / "checkpoints" / f"checkpoint-{STEPS}" / "rng_state_1.pth"
    ).exists()  # two processes have run
    printed = json.loads(done.stdout)
    killed, whole = (json.loads((place / n / "metrics.json").read_text()) for n in ("killed", "whole"))
    assert printed["metrics"] == killed["metrics"] == whole["metrics"]
    assert losses(place / "killed") == losses(place / "whole")
    assert apart(place / "killed", place / "whole") == 0


def test_one_process_goes_on_where_two_left_off(runs):
    place, run = runs
    shutil.copytree(place / "lora2", place / "fewer")
    (place / "fewer" / "metrics.json").unlink()
    shutil.rmtree(place / "fewer" / "checkpoints" / f"checkpoint-{STEPS}")
    said: list[str] = []
    train(TrainConfig(**run("fewer", resume=True)), say=said.append)
    assert f"resuming at step {STEPS_OF_AN_EPOCH}" in said
    check_same(place / "fewer", place / "lora")


def test_a_mistake_of_a_run_is_said_once(runs):
    """Both processes meet it; the runs after it are as if it had not been."""
    place, _ = runs
    said = (place / "said").read_text()
    assert said.count("error[E0603]") == said.count("`lable`") == 1 and not (place / "mistaken").exists()


def test_a_mistake_ends_all_processes_and_is_said_once(tmp_path):
    done = torchrun("--log-dir", tmp_path / "logs", "--redirects", 3, "-m", "unipelt", "list")
    logs = [f.read_text() for f in (tmp_path / "logs").rglob("*.log")]
    assert len(logs) == 4 and sum(log.count("error[E0667]") for log in logs) == 1, logs
    assert "Traceback" not in "".join(logs)
    assert "exitcode  : 1 " in done.stderr  # what the launcher saw; its own code is 1 in any case


@pytest.mark.parametrize("others", [0, 1])
def test_a_mistake_of_the_command_line_is_said_by_the_first_that_meets_it(others, monkeypatch, capsys):
    """A group of one process, in whose store another may have noted that it fails."""
    import torch.distributed as dist

    from unipelt.cli import main
    from unipelt.training import ranks

    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    monkeypatch.setattr(sys, "argv", ["unipelt", "train", "lora", "--lable", "label"])
    monkeypatch.setattr(ranks, "join", lambda: None)
    monkeypatch.setattr(ranks, "PATIENCE", timedelta(seconds=1))
    for _ in range(others):
        with ranks.failing() as first:
            assert first
    with pytest.raises(SystemExit) as left:
        main.main()
    assert left.value.code == 2 and capsys.readouterr().err.count("No such option: --lable") == 1 - others
    assert not dist.is_initialized()
