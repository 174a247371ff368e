"""One training run, from names and files to a folder with the adapter, its task and its metrics.

The folder holds, while it runs, ``run.json`` (what was asked) and ``checkpoints/``; at the end the folded adapter, its tokenizer-free
``task.json`` and, written last, ``metrics.json``: its presence says that the run is complete.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainingArguments, set_seed

import unipelt

from ..language.diagnostics import error
from ..runtime.hub import public_name
from . import data as reading
from .config import TrainConfig, absolute
from .models import load_config, load_model, load_tokenizer, quiet
from .progress import Progress, Say, Ticker, silent
from .report import DATA, PICTURES, report_of, write_report
from .resolve import resolve_method
from .tasks import Collator, Encoded, Task, evaluate, task_for
from .trainer import AdapterTrainer, SaveEvery, last_checkpoint
from .watching import Watching

NAME = "trained"
RUN, TASK, METRICS, CHECKPOINTS = "run.json", "task.json", "metrics.json", "checkpoints"
#: What a run writes. `--overwrite` removes these and nothing else.
WRITTEN = ("adapter.safetensors", "adapter.json", "method.pelt", TASK, METRICS, RUN, DATA, *PICTURES)
#: Above this share of trained parameters a run is fine-tuning, and wants fine-tuning's learning rate.
FINE_TUNING_SHARE = 0.2
ADAPTER_LR, FINE_TUNING_LR = 1e-3, 5e-5


@dataclass(frozen=True)
class Result:
    """A finished run: metrics by split, the plan's numbers, the steps' losses, and the model with its adapter."""

    folder: str
    task: Task
    metrics: dict[str, dict[str, float]]
    counts: dict[str, int]
    lr: float
    history: list[dict[str, float]]
    notes: tuple[str, ...]
    seconds: float
    model: Any = field(repr=False, compare=False)
    tokenizer: Any = field(repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": self.folder, "task": self.task.kind, "metrics": self.metrics, "counts": self.counts,
            "lr": self.lr, "history": self.history, "notes": list(self.notes), "seconds": round(self.seconds, 2),
        }  # fmt: skip


def train(
    config: TrainConfig, say: Say = silent, bar: bool | None = False, callbacks: Sequence[TrainerCallback] = ()
) -> Result:
    """Train an adapter as ``config`` says. ``say`` gets one line at a time; ``bar`` None shows a bar on a terminal.

    The same configuration gives the same weights on the same machine, resumed or not. Raises `PeltError` for bad input.
    """
    begun = time.monotonic()
    config.check()
    method = resolve_method(config.method, config.set, config.head)
    task, tokenizer, encoded, notes = examples(config)
    model = load_model(config.model, task, tokenizer, config.seed, config.dropout)
    plan = unipelt.apply(
        model, method, name=NAME, seed=config.seed, tokenizer=tokenizer, allow_future=config.allow_future
    )
    if not plan.counts.trained + plan.counts.head:
        raise error("E0622", f"`{method.name}` trains nothing on this model", help="choose another method")
    task.check_plan(plan)
    lr, why = learning_rate(config, plan)
    notes += [why, *plan.warnings]

    folder = Path(config.out)
    checkpoint = _open(folder, config)
    for note in notes:
        say(note)
    if config.resume:
        say(
            f"resuming at step {checkpoint.name.rpartition('-')[2]}"
            if checkpoint
            else "no checkpoint yet: starting anew"
        )

    trainer = _trainer(config, model, task, tokenizer, encoded, lr, folder / CHECKPOINTS)
    progress = Progress(say, task.metric[0], bar)
    watching = Watching(trainer, NAME)
    for callback in (progress, *([watching] if config.report else []), *callbacks):
        trainer.add_callback(callback)
    if config.save_steps:
        trainer.add_callback(SaveEvery(config.save_steps, math.ceil(len(encoded["train"]) / config.batch_size)))
    set_seed(config.seed)
    try:
        with quiet():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            if config.best and config.checkpoints and trainer.load_best():
                say(f"the best checkpoint is step {trainer.state.best_global_step} of {trainer.state.global_step}")
    finally:
        progress.close()
        watching.close()

    collator = Collator(tokenizer, task)
    metrics: dict[str, dict[str, float]] = {}
    for name in ("validation", "test"):
        if name in encoded:
            with Ticker(f"evaluating {name}", bar) as tick:
                metrics[name] = evaluate(model, task, encoded[name], collator, config.eval_batch_size, tick)
    counts = {k: int(getattr(plan.counts, k)) for k in ("trained", "stored", "frozen", "head", "base")}
    history = [{"step": h["step"], "loss": h["loss"]} for h in trainer.state.log_history if "loss" in h]
    seconds = time.monotonic() - begun
    result = Result(str(folder), task, metrics, counts, lr, history, tuple(notes), seconds, model, tokenizer)
    best = trainer.state.best_global_step
    if config.report:
        write_report(folder, report_of(
            trainer.state.log_history, method=method.name, model=public_name(config.model), task=task.kind, counts=counts,
            order=list(dict.fromkeys((e.row.name, e.site.full_name) for e in plan.edits)), metric=task.metric[0], seed=config.seed,
            best_step=best if config.best else trainer.state.global_step,
        ))  # fmt: skip
    _finish(folder, config, result, best)
    return result


def examples(config: TrainConfig) -> tuple[Task, Any, dict[str, Encoded], list[str]]:
    """The task, the model's tokenizer, the examples by split, and what is to be said about them."""
    found = reading.read(config.data)
    whole = reading.training_split(found)
    base = load_config(config.model)
    tokenizer = load_tokenizer(config.model)
    # Labels are those of the whole training split: a small sample may lack a class.
    task = task_for(whole, config, base).fit(base, tokenizer)
    classes = task.classes(whole) if config.shots else None
    data = reading.prepare(found, config.train_size, config.seed, shots=config.shots, classes=classes)
    encoded = {name: task.encode(split, tokenizer) for name, split in data.splits.items()}
    notes = [*data.notes, *_truncation(task, encoded)]
    trained = task.for_training(encoded["train"])
    if len(trained) != len(encoded["train"]):
        notes.append(f"{len(encoded['train'])} training examples are packed into {len(trained)} rows of {task.max_length} tokens")
    return task, tokenizer, {**encoded, "train": trained}, notes


def learning_rate(config: TrainConfig, plan: Any) -> tuple[float, str]:
    """The rate that was asked for, or a default by the share of parameters that are trained; and why."""
    if config.lr is not None:
        return config.lr, f"learning rate {config.lr:g}"
    share = plan.counts.trained / max(plan.counts.base, 1)
    if share > FINE_TUNING_SHARE:
        return FINE_TUNING_LR, f"learning rate {FINE_TUNING_LR:g}: {share:.0%} of the parameters are trained"
    return ADAPTER_LR, f"learning rate {ADAPTER_LR:g}: {share:.2%} of the parameters are trained"


def _truncation(task: Task, encoded: dict[str, Encoded]) -> list[str]:
    return [
        f"{e.truncated} of {len(e)} {name} examples are longer than {task.max_length} tokens and are cut"
        for name, e in encoded.items()
        if e.truncated
    ]


def _trainer(
    config: TrainConfig, model: Any, task: Task, tokenizer: Any, encoded: dict[str, Encoded], lr: float, folder: Path
) -> AdapterTrainer:
    metric, more_is_better = task.metric
    steps = math.ceil(len(encoded["train"]) / config.batch_size) * config.epochs
    steps = config.max_steps or steps
    with quiet():
        arguments = TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=config.epochs,
            max_steps=config.max_steps or -1,
            learning_rate=lr,
            per_device_train_batch_size=config.batch_size,
            per_device_eval_batch_size=config.eval_batch_size,
            # Counted here: transformers rounds a ratio up, and would warm up a run of a single step.
            warmup_steps=int(config.warmup * steps),
            weight_decay=config.weight_decay,
            lr_scheduler_type=config.scheduler,
            max_grad_norm=config.clip,
            seed=config.seed,
            eval_strategy="epoch" if config.checkpoints else "no",
            save_strategy="epoch" if config.checkpoints else "no",
            # The best and the last.
            save_total_limit=2,
            metric_for_best_model=metric,
            greater_is_better=more_is_better,
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        trainer = AdapterTrainer(
            NAME, task.in_training(), Collator(tokenizer, task), compute_loss_func=task.loss_function,
            model=model, args=arguments, train_dataset=encoded["train"], eval_dataset=encoded["validation"],
        )  # fmt: skip
    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    return trainer


# ---------------------------------------------------------------- the folder


def _open(folder: Path, config: TrainConfig) -> Path | None:
    """Make the run's folder ready; the checkpoint to go on from, if any."""
    if folder.exists() and not folder.is_dir():
        raise error("E0611", f"`{folder}` is a file, not a folder", help="give another `--out`")
    if config.resume:
        return _reopen(folder, config)
    if folder.is_dir() and any(folder.iterdir()):
        if not config.overwrite:
            what = "holds a run" if (folder / RUN).is_file() else "is not empty"
            raise error(
                "E0611", f"the folder `{folder}` {what}", help="give another `--out`, `--resume` or `--overwrite`"
            )
        foreign = [f.name for f in folder.iterdir() if f.name not in (*WRITTEN, CHECKPOINTS)]
        if foreign or not (folder / RUN).is_file():
            raise error("E0611", f"the folder `{folder}` holds other things than a run, such as `{(foreign or ['?'])[0]}`",
                        help="give another `--out`: only a run's own folder is overwritten")  # fmt: skip
        # The record goes first: what is left after an interruption is no complete run.
        for name in (METRICS, RUN, *WRITTEN):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RUN, _record(config))
    return None


def _reopen(folder: Path, config: TrainConfig) -> Path | None:
    if not (folder / RUN).is_file():
        raise error("E0612", f"there is no run in `{folder}` to resume", help="leave `--resume` out to start one")
    differs = config.differs(read_json(folder / RUN)["config"])
    if differs:
        raise error("E0612", "the run was started with other options", where=tuple(differs),
                    help="give the same options, or `--overwrite` to start anew")  # fmt: skip
    if (folder / METRICS).is_file():
        raise error("E0618", f"the run in `{folder}` is complete", help="`unipelt eval` shows how good it is")
    return last_checkpoint(folder / CHECKPOINTS)


def _record(config: TrainConfig) -> dict[str, Any]:
    return {"version": 1, "config": config.to_json()}


def _finish(folder: Path, config: TrainConfig, result: Result, best: int | None) -> None:
    """The adapter is written beside its place and moved in file by file, the one that names the others last."""
    card = {"task": result.task.kind, "metrics": result.metrics, "seed": config.seed, "lr": result.lr}
    if not config.checkpoints:
        (folder / CHECKPOINTS).rmdir()  # the Trainer makes its folder in any case
    with tempfile.TemporaryDirectory(prefix=".adapter-", dir=folder) as staging:
        unipelt.save(result.model, Path(staging) / "adapter", NAME, fold=True, card=card)
        files = sorted((Path(staging) / "adapter").iterdir(), key=lambda f: (f.name == "adapter.json", f.name))
        for file in files:
            os.replace(file, folder / file.name)
    write_json(folder / TASK, {"version": 1, "model": absolute(config.model), "seed": config.seed,
                               "eval_batch_size": config.eval_batch_size, "task": result.task.to_json()})  # fmt: skip
    write_json(folder / METRICS, {"version": 1, "best_step": best, **result.to_json(), "config": config.to_json()})


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "w", encoding="utf-8") as f:
            json.dump(value, f, indent=1, ensure_ascii=False)
            f.write("\n")
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as e:
        raise error("E0615", f"`{path}` is damaged: {e}", help="train again with `--overwrite`") from None
    if not isinstance(value, dict):
        raise error("E0615", f"`{path}` is damaged: it holds no record", help="train again with `--overwrite`")
    return value
