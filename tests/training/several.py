"""Run by a launcher in each process: trains what a JSON file lists, one run after the other.

The run that has ``die`` ends at that step as with a machine that loses power: launcher and processes are killed. Of one
that is a mistake they say why, and go on with the next.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from unipelt.cli.output import MISTAKES, guarded
from unipelt.training import TrainConfig, ranks, train


class Die(TrainerCallback):
    def __init__(self, step: int):
        self.step, self.launcher = step, os.getppid()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            if ranks.is_main():
                os.kill(self.launcher, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)


def main(path: str) -> None:
    torch.set_num_threads(1)
    for run in json.loads(Path(path).read_text()):
        die = run.pop("die", None)
        try:
            guarded(train)(TrainConfig(**run), callbacks=[Die(die)] if die else [])
        except SystemExit as left:
            assert left.code == MISTAKES
        assert ranks.world() == 2
    ranks.leave()


if __name__ == "__main__":
    main(sys.argv[1])
