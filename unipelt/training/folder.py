"""The folder of a run: how it is made ready, resumed, overwritten and finished.

While the run goes on it holds ``run.json`` (what was asked) and ``checkpoints/``; at the end the folded adapter, its tokenizer-free
``task.json`` and, written last, ``metrics.json``: its presence says that the run is complete. Whatever moment a process is killed
at, what lies here can be resumed or is complete. The adapter's own files are written by `unipelt.save`, checkpoints by the Trainer.
"""

from __future__ import annotations

import json
import os
import shutil
from os.path import exists, isdir, isfile
from pathlib import Path
from typing import Any

import unipelt

from ..language.report.diagnostics import error
from ..language.files import contents, part_prefix, reason, replace
from ..language.report.source import refuse_link
from ..runtime.card import replaceable
from ..runtime.hub import FETCHED, MANIFEST, METHOD, METRICS, README, RUN, TASK, WEIGHTS
from ..runtime.sharding import is_sharded
from . import ranks
from .config import TrainConfig, absolute
from .report import DATA, PICTURES
from .trainer import last_checkpoint

#: The name that a run's adapter has in its model and in its folder.
NAME = "trained"
CHECKPOINTS, LOGS, STAGING = "checkpoints", "logs", ".adapter"
#: What a run writes. `--overwrite` removes these, a model card that nobody has edited, and nothing else.
WRITTEN = (WEIGHTS, MANIFEST, METHOD, TASK, METRICS, RUN, DATA, *PICTURES)


def open_folder(folder: Path, config: TrainConfig) -> Path | None:
    """Prepare the run's folder. Returns the checkpoint to resume from, if there is one."""
    above = next(p for p in (folder, *folder.absolute().parents) if exists(p))
    if not isdir(above):
        raise error("E0611", f"`{above}` is a file, not a folder", help="give another `--out`")
    _sweep(folder)
    if config.resume:
        return _reopen(folder, config)
    if isdir(folder) and any(folder.iterdir()):
        if not config.overwrite:
            what = "holds a run" if isfile(folder / RUN) else "is not empty"
            raise error(
                "E0611", f"the folder `{folder}` {what}", help="give another `--out`, `--resume` or `--overwrite`"
            )
        foreign = [f.name for f in folder.iterdir() if f.name not in (*WRITTEN, CHECKPOINTS, LOGS, README)]
        if foreign or not isfile(folder / RUN):
            raise error("E0611", f"the folder `{folder}` holds other things than a run, such as `{(foreign or ['?'])[0]}`",
                        help="give another `--out`: only a run's own folder is overwritten")  # fmt: skip
        # First what says that the run is complete, last what says that the folder is a run's.
        mine = (README,) if replaceable(folder / README) else ()
        for name in (METRICS, *(n for n in WRITTEN if n != RUN), *mine):
            (folder / name).unlink(missing_ok=True)
        for name in (CHECKPOINTS, LOGS):
            shutil.rmtree(folder / name, ignore_errors=True)
        (folder / RUN).unlink()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RUN, {"version": 1, "config": config.to_json()})
    return None


def _reopen(folder: Path, config: TrainConfig) -> Path | None:
    if not isfile(folder / RUN):
        raise error("E0612", f"there is no run in `{folder}` to resume", help="leave `--resume` out to start one")
    asked = read_json(folder / RUN).get("config")
    if not isinstance(asked, dict):
        raise error(
            "E0615",
            f"`{folder / RUN}` is damaged: it does not say what was asked",
            help="train again with `--overwrite`",
        )
    differs = config.differs(asked)
    if differs:
        raise error("E0612", "the run was started with other options", where=tuple(differs),
                    help="give the same options, or `--overwrite` to start anew")  # fmt: skip
    if isfile(folder / METRICS):
        raise error("E0618", f"the run in `{folder}` is complete", help="`unipelt eval` shows how good it is")
    return last_checkpoint(folder / CHECKPOINTS)


def _sweep(folder: Path) -> None:
    """Remove the unfinished files of a process that was killed."""
    for part in (p for n in WRITTEN for p in folder.glob(f"{part_prefix(n)}*")):
        part.unlink(missing_ok=True)
    for left in folder.glob(f"{STAGING}*"):
        shutil.rmtree(left, ignore_errors=True)


def finish(
    folder: Path, config: TrainConfig, model: Any, card: dict[str, Any], task: dict[str, Any], metrics: dict[str, Any]
) -> None:
    """Write the adapter with its model card, the task and the metrics; every process calls it.

    The adapter is written beside its place and moved in file by file, the one that names the others last.
    """
    staging = folder / STAGING / "adapter"
    if ranks.is_main() or is_sharded(model):
        unipelt.save(model, staging, NAME, fold=True, card=card)

    def write() -> None:
        if not config.checkpoints:
            (folder / CHECKPOINTS).rmdir()  # the Trainer makes its folder in any case
        if not replaceable(folder / README):
            (staging / README).unlink()
        for file in sorted(staging.iterdir(), key=lambda f: (f.name == MANIFEST, f.name)):
            os.replace(file, folder / file.name)
        shutil.rmtree(staging.parent)
        write_json(folder / TASK, {"version": 1, "model": absolute(config.model), "dtype": config.dtype, "seed": config.seed,
                                   "eval_batch_size": config.eval_batch_size, "task": task})  # fmt: skip
        write_json(folder / METRICS, {"version": 1, **metrics, "config": config.to_json()})

    ranks.on_main(write)


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    replace(path, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """A record of a run; an error where the file holds none."""
    refuse_link(path)
    try:
        value = json.loads(contents(path, FETCHED[TASK]))
    except (OSError, ValueError, RecursionError) as e:
        raise error("E0615", f"`{path}` is damaged: {reason(e)}", help="train again with `--overwrite`") from None
    if not isinstance(value, dict):
        raise error("E0615", f"`{path}` is damaged: it holds no record", help="train again with `--overwrite`")
    return value
