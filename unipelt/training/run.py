"""One training run, from names and files to a folder with the adapter, its task and its metrics (the folder itself: `training.folder`)."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import torch
from transformers import (
    EarlyStoppingCallback, PrinterCallback, ProgressCallback, TrainerCallback, TrainingArguments, set_seed
)  # fmt: skip
from transformers.training_args import OptimizerNames


from ..anatomy.positions import longest_text
from ..compiler.totals import rates
from ..language.report.diagnostics import counted, error, near
from ..runtime.card import replaceable
from ..runtime.hub import README, public_name
from ..runtime.references import load
from ..runtime.prompts.room import moving
from . import data as reading
from . import ranks
from .bars import Ticker
from .config import Precision, TrainConfig
from .data.hub import PREFIX
from .folder import CHECKPOINTS, LOGS, NAME, finish, open_folder
from .models import load_config, load_model, quiet
from .progress import Progress, Say, silent
from .readers import load_reader
from .report import PICTURES, report_of, write_report
from .starting import start
from .tasks import task_for
from .tasks.evaluation import Collator
from .tasks.task import Encoded, Task
from .trunk import cached
from .trainer import AdapterTrainer, SaveEvery, optimizer_of
from .watching import Watching

#: Above this share of trained parameters a run is fine-tuning, and wants fine-tuning's learning rate.
FINE_TUNING_SHARE = 0.2
#: Optimizers that act on each entry by itself, so on a part of a tensor as on all of it.
OVER_SHARDS = ("adamw_torch", "sgd", "adagrad", "rmsprop")
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

    The same configuration gives the same weights on the same machine, resumed or not; in several processes (`accelerate
    launch`, `torchrun`) the same as in one, up to the order of sums. Raises `PeltError` for bad input.
    """
    begun = time.monotonic()
    config.check()
    ranks.join()
    config, surroundings = with_launcher(config)
    if not ranks.is_main():
        say, bar = silent, False
    method = load(config.method, arguments=config.set, head=config.head)
    task, tokenizer, encoded, notes = examples(config)
    model = load_model(config.model, task, tokenizer, config.seed, config.dropout, config.dtype)
    task.try_out(model, encoded["train"], tokenizer)
    plan, measured = start(config, method, model, task, tokenizer, encoded["train"])
    if not plan.counts.trained + plan.counts.head:
        raise error("E0622", f"`{method.name}` trains nothing on this model", help="choose another method")
    task.check_plan(plan)
    _check_room(task, plan, model)
    lr, why = learning_rate(config, plan)
    kept = rates(plan.tensors, plan.copies)  # a run's own optimiser has every learning rate
    notes += [*surroundings, *measured, why, *(w for w in plan.warnings if w not in kept)]

    folder = Path(config.out)
    _log_to(config, folder)
    if config.checkpointing:
        _checkpoint_activations(model)
    _shard_by_blocks(model, plan)
    arguments = _arguments(config, task, len(encoded["train"]), lr, folder / CHECKPOINTS)
    optimizer_of(arguments)  # before anything is written: whether it is there
    checkpoint = ranks.on_main(lambda: open_folder(folder, config))
    for note in notes:
        say(note)
    if config.resume:
        say(
            f"resuming at step {checkpoint.name.rpartition('-')[2]}"
            if checkpoint
            else "no checkpoint yet: starting anew"
        )

    trainer = _trainer(config, arguments, model, task, tokenizer, encoded)
    progress = Progress(say, task.metric[0], bar)
    watching = Watching(trainer, NAME)
    for callback in (progress, *([watching] if config.report else []), *callbacks):
        trainer.add_callback(callback)
    if config.save_steps:
        trainer.add_callback(SaveEvery(config.save_steps, math.ceil(len(encoded["train"]) / config.batch_size)))
    # Each process drops other units; the order of the examples has a seed of its own, which all share.
    set_seed(config.seed + ranks.rank())
    try:
        with quiet(), cached(model, config.cache_trunk, say):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            if config.best and config.checkpoints and trainer.load_best():
                say(f"the best checkpoint is step {trainer.state.best_global_step} of {trainer.state.global_step}")
    finally:
        progress.close()
        watching.close()

    trainer.leave_autocast()
    metrics: dict[str, dict[str, float]] = {}
    for name in ("validation", "test"):
        if name in encoded:
            with Ticker(f"evaluating {name}", bar) as tick:
                metrics[name] = trainer.score(task, encoded[name], tick)
    counts = {k: int(getattr(plan.counts, k)) for k in ("trained", "stored", "frozen", "head", "base")}
    history = [{"step": h["step"], "loss": h["loss"]} for h in trainer.state.log_history if "loss" in h]
    seconds = time.monotonic() - begun
    result = Result(str(folder), task, metrics, counts, lr, history, tuple(notes), seconds, model, tokenizer)
    best = trainer.state.best_global_step
    if ranks.is_main() and config.report:
        write_report(folder, report_of(
            trainer.state.log_history, method=method.name, model=public_name(config.model), task=task.kind, counts=counts,
            order=list(dict.fromkeys((e.row.name, e.site.full_name) for e in plan.edits)), metric=task.metric[0], seed=config.seed,
            best_step=best if config.best else trainer.state.global_step,
        ))  # fmt: skip
    if not replaceable(folder / README):
        say(f"{folder / README} was not written by unipelt or has been edited: it is kept, and no card is written")
    card = card_of(config, result, {name: len(e) for name, e in encoded.items()})
    finish(folder, config, model, card, task.to_json(), {"best_step": best, **result.to_json()})
    return result


def card_of(config: TrainConfig, result: Result, sizes: dict[str, int]) -> dict[str, Any]:
    """What a run writes into its manifest and its model card: names, never paths."""
    options = {
        "learning rate": result.lr, "epochs": config.epochs, "steps": result.history[-1]["step"], "batch size": config.batch_size,
        "longest example": result.task.longest, "scheduler": config.scheduler, "warm-up share": config.warmup,
        "weight decay": config.weight_decay, "gradient norm at most": config.clip or None, "dropout of the base": config.dropout,
        "weights kept": "the best on validation" if config.best and config.checkpoints else "the last", "seed": config.seed,
    }  # fmt: skip
    hub = config.data.startswith(PREFIX)
    name = config.data.removeprefix(PREFIX).partition(":")[0] if hub else public_name(config.data)
    data = {"name": name, "hub": hub, **{f"{n} examples": k for n, k in sizes.items()}}
    return {"task": result.task.kind, "metrics": result.metrics, "seed": config.seed, "lr": result.lr, "data": data,
            "training": {k: v for k, v in options.items() if v is not None},
            **({"picture": PICTURES[0]} if config.report else {})}  # fmt: skip


def examples(config: TrainConfig) -> tuple[Task, Any, dict[str, Encoded], list[str]]:
    """The task, the model's tokenizer, the examples by split, and notes about them."""
    found = reading.read(config.data)
    whole = reading.training_split(found)
    base = load_config(config.model)
    # Labels are those of the whole training split: a small sample may lack a class.
    task = task_for(whole, config, base)
    tokenizer = load_reader(config.model, task, base)
    task = task.fit(base, tokenizer)
    classes = task.classes(whole) if config.shots else None
    data = reading.prepare(found, config.train_size, config.seed, shots=config.shots, classes=classes)
    encoded = {name: task.encode(split, tokenizer) for name, split in data.splits.items()}
    notes = [*data.notes, *reading.alike(getattr(task, "labels", ())), *_truncation(task, encoded)]
    trained = task.for_training(encoded["train"])
    if len(trained) != len(encoded["train"]):
        notes.append(
            f"{len(encoded['train'])} training examples are packed into {len(trained)} rows of {task.max_length} tokens"
        )
    return task, tokenizer, {**encoded, "train": trained}, notes


def with_launcher(config: TrainConfig) -> tuple[TrainConfig, list[str]]:
    """The options with the launcher's settings, and notes about them. Refuses settings that cannot be met."""
    flags = {
        n: os.environ.get(f"ACCELERATE_USE_{n}", "").lower() in ("1", "true", "yes")
        for n in ("DEEPSPEED", "MEGATRON_LM", "FSDP")
    }
    other = next((n for n in ("DEEPSPEED", "MEGATRON_LM") if flags[n]), None)
    if other or (flags["FSDP"] and os.environ.get("FSDP_VERSION", "1") != "2"):
        raise error("E0661", f"the launcher's configuration asks for {other or 'FSDP 1'}, which takes a model's parameters away",
                    help="use FSDP 2 (fsdp_version: 2), or copies of the model (distributed_type: MULTI_GPU)")  # fmt: skip
    parts = ranks.world() * config.accumulate
    if config.batch_size < parts:
        over = f"{counted(ranks.world(), 'process')} × {counted(config.accumulate, 'part')}"
        raise error("E0662", f"a batch of {config.batch_size} cannot be spread over {over}",
                    help=f"`--batch-size` counts the examples of a step in all of them: give {parts} or more")  # fmt: skip
    optimizers = [o.value for o in OptimizerNames]
    if config.optimizer not in optimizers:
        raise error("E0620", f"`--optimizer` {config.optimizer} is not known to transformers",
                    help=_beginning(config.optimizer, optimizers) or near(config.optimizer, optimizers) or f"it is one of {', '.join(optimizers)}")  # fmt: skip
    if flags["FSDP"] and not ranks.on_cpu() and not config.optimizer.startswith(OVER_SHARDS):
        raise error("E0666", f"the optimizer {config.optimizer} needs whole tensors, and FSDP 2 gives it shards",
                    help=f"use adamw_torch, or another of torch's own: {', '.join(OVER_SHARDS)}")  # fmt: skip
    precision = config.precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in get_args(Precision):
        raise error(
            "E0663",
            f"the launcher's configuration asks for the precision {precision}",
            help=f"use {', '.join(get_args(Precision))}",
        )
    if precision == "fp16" and ranks.on_cpu():
        raise error("E0663", "fp16 needs a GPU: its loss scaling is not made for CPUs", help="use `--precision bf16`")
    if precision == "bf16" and not ranks.on_cpu() and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise error("E0663", "this GPU does not compute in bf16", help="use `--precision fp16`")
    if config.precision == "no":
        os.environ["ACCELERATE_MIXED_PRECISION"] = "no"  # the option has the last word
    notes = []
    if flags["FSDP"] and ranks.on_cpu():
        notes.append("accelerate shards on GPUs only: on CPUs each process has a copy of the model")
    if torch.cuda.is_available() and torch.cuda.device_count() > ranks.world():
        notes.append(
            f"{ranks.world()} of {torch.cuda.device_count()} GPUs is used: `accelerate launch -m unipelt train …` uses all"
        )
    return replace(config, precision=precision), notes  # type: ignore[arg-type]


def _beginning(name: str, known: Sequence[str]) -> str:
    found = [f"`{k}`" for k in known if name and k.startswith(name)]
    return f"names that begin so: {', '.join(found)}" if found else ""


def _log_to(config: TrainConfig, folder: Path) -> None:
    """Check that the loggers are there, and give those that write files the run's folder."""
    from transformers.integrations import get_available_reporting_integrations

    able = get_available_reporting_integrations()
    for name in config.log_to:
        if name not in able:
            raise error("E0664", f"there is no logger `{name}` here", help=near(name, able) or (
                f"install its package (pip install {name}); there are: {', '.join(able) or 'none'}"))  # fmt: skip
    os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(folder / LOGS))


def _shard_by_blocks(model: Any, plan: Any) -> None:
    """FSDP 2 shards block by block, unless the launcher's configuration says how (transformers' own list may name embeddings)."""
    front = f"{plan.sites.prefix}." if plan.sites.prefix else ""
    blocks = {
        type(model.get_submodule(front + block)).__name__ for stack in plan.sites.stacks for block in stack.blocks
    }
    os.environ.setdefault("FSDP_TRANSFORMER_CLS_TO_WRAP", ",".join(sorted(blocks)))


def _checkpoint_activations(model: Any) -> None:
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise error(
            "E0665", f"{type(model).__name__} cannot recompute its activations", help="leave `--checkpointing` out"
        )
    # transformers renamed it; the other kind of checkpointing needs inputs that require a gradient.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    with quiet():
        enable({"use_reentrant": False})


def _check_room(task: Task, plan: Any, model: Any) -> None:
    """The longest text and the rows that take positions beside it must fit into the model's table of positions."""
    rows, longest = moving(plan), longest_text(model)
    if rows and task.reads_text and longest is not None and task.max_length + rows > longest:
        raise error("E0617", f"the model has {longest} positions, and the {rows} rows of `{plan.method.name}` take some beside texts of "
                    f"up to {task.max_length} tokens", help=f"give `--max-length {longest - rows}` or less")  # fmt: skip


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
        f"{e.truncated} of {len(e)} {name} examples are longer than {task.longest} and are cut"
        for name, e in encoded.items()
        if e.truncated
    ]


def _arguments(config: TrainConfig, task: Task, examples: int, lr: float, folder: Path) -> TrainingArguments:
    metric, more_is_better = task.metric
    steps = config.max_steps or math.ceil(examples / config.batch_size) * config.epochs
    with quiet():
        arguments = TrainingArguments(
            output_dir=str(folder),
            num_train_epochs=config.epochs,
            max_steps=config.max_steps or -1,
            learning_rate=lr,
            per_device_train_batch_size=math.ceil(config.batch_size / (ranks.world() * config.accumulate)),
            per_device_eval_batch_size=config.eval_batch_size,
            gradient_accumulation_steps=config.accumulate,
            bf16=config.precision == "bf16",
            fp16=config.precision == "fp16",
            use_cpu=ranks.on_cpu(),
            # The batches are even already, empty parts included.
            accelerator_config={"even_batches": False},
            # A step may leave parameters out, as where layers are dropped; a frozen model costs the search little.
            ddp_find_unused_parameters=True,
            optim=config.optimizer,
            # Counted here: transformers rounds a ratio up, and would warm up a run of a single step.
            warmup_steps=int(config.warmup * steps),
            weight_decay=config.weight_decay,
            lr_scheduler_type=config.scheduler,
            max_grad_norm=config.clip,
            seed=config.seed,
            data_seed=config.seed,
            eval_strategy="epoch" if config.checkpoints else "no",
            save_strategy="epoch" if config.checkpoints else "no",
            # The best and the last.
            save_total_limit=2,
            metric_for_best_model=metric,
            greater_is_better=more_is_better,
            logging_steps=1,
            report_to=list(config.log_to),
            run_name=folder.parent.name,
            # Patience is counted on where a resumed run left off.
            restore_callback_states_from_checkpoint=True,
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        # The Trainer would take every GPU it sees for copies of the model in threads, in which hooks do not act.
        arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _trainer(
    config: TrainConfig,
    arguments: TrainingArguments,
    model: Any,
    task: Task,
    tokenizer: Any,
    encoded: dict[str, Encoded],
) -> AdapterTrainer:
    with quiet():
        trainer = AdapterTrainer(
            NAME, task.in_training(), Collator(tokenizer, task), config.batch_size, compute_loss_func=task.loss_function,
            model=model, args=arguments, train_dataset=encoded["train"], eval_dataset=encoded["validation"],
        )  # fmt: skip
    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    if config.patience:
        trainer.add_callback(EarlyStoppingCallback(config.patience))
    return trainer
