"""What a training run is asked to do. Plain data: neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from math import inf
from os.path import exists
from pathlib import Path
from typing import Annotated, Any, Literal

from ..language.report.diagnostics import error
from .options import DType, Option, Rule, TaskOptions, at_least, options_of
from .report import drawable

POSITIVE = Rule("must be positive", lambda value: 0 < value < inf)
SHARE = Rule("is a share of the steps, between 0 and 1", lambda value: 0 <= value <= 1)
PROBABILITY = Rule("is a probability below 1", lambda value: 0 <= value < 1)
Precision = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True)
class TrainConfig(TaskOptions):
    """Options of a run.

    ``method`` is a name of the library, a `.pelt` file, or several joined by ``+``; ``set`` binds its arguments.
    ``lr`` and ``task`` are chosen from the plan and the data where they are None. Without ``checkpoints`` nothing is
    evaluated or saved before the end: quicker, and the last epoch counts. ``batch_size`` counts the examples of one
    optimizer step, in all processes and all ``accumulate`` parts together. ``precision`` None is the launcher's;
    ``dtype`` is that of the frozen base, and None the one in which it is stored.
    """

    method: Annotated[str, Option("A method of the library, a `.pelt` file (`file.pelt:name`), or `a+b`.")]
    model: Annotated[str, Option("A folder made by `save_pretrained`, or a hub name.", short="-m")]
    data: Annotated[
        str,
        Option(
            "A jsonl, csv or Parquet file, a folder of splits, or `hub:user/name`, a data set of the hub.", short="-d"
        ),
    ]
    out: Annotated[str, Option("The folder of the run.", short="-o", may_change=True)]
    set: Annotated[Mapping[str, Any], Option("Bind an argument of the method; repeatable.")] = field(
        default_factory=dict
    )
    head: Annotated[str | None, Option("Add a head of the library, such as `mean`. Default: the model's own.")] = None
    epochs: Annotated[int, Option(rule=at_least(1))] = 3
    max_steps: Annotated[int | None, Option("Stop after so many optimizer steps.", rule=at_least(1))] = None
    lr: Annotated[
        float | None, Option("Learning rate; default 1e-3, or 5e-5 if over 20 % is trained.", rule=POSITIVE)
    ] = None
    batch_size: Annotated[
        int,
        Option("Examples of one optimizer step, in all processes together: as many, the same run.", rule=at_least(1)),
    ] = 16
    accumulate: Annotated[
        int,
        Option(
            "Compute a step in this many parts, to save memory; the run is the same.", rule=at_least(1), may_change=True
        ),
    ] = 1
    eval_batch_size: Annotated[int, Option("Examples that a process evaluates at once.", rule=at_least(1))] = 64
    train_size: Annotated[
        int | None, Option("Train on this many rows: the first after a shuffle with the seed.", rule=at_least(1))
    ] = None
    shots: Annotated[int | None, Option("Train on this many rows of each class.", rule=at_least(1))] = None
    seed: Annotated[int, Option(rule=at_least(0))] = 0
    warmup: Annotated[float, Option("Share of the steps in which the rate grows.", rule=SHARE)] = 0.06
    weight_decay: Annotated[float, Option(rule=at_least(0))] = 0.0
    scheduler: Annotated[Literal["linear", "constant", "cosine"], Option("linear, constant or cosine.")] = "linear"
    clip: Annotated[float, Option("Largest norm of the gradient; 0 for none.")] = 1.0
    dropout: Annotated[
        float | None, Option("The base's dropout rate; default: its configuration's.", rule=PROBABILITY)
    ] = None
    best: Annotated[bool, Option("Keep the last epoch instead of the best on validation.", flag="--last")] = True
    checkpoints: Annotated[
        bool, Option("Evaluate and save at the end only; implies --last.", flag="--no-checkpoints")
    ] = True
    patience: Annotated[
        int | None, Option("Stop after this many evaluations without a better one.", rule=at_least(1))
    ] = None
    optimizer: Annotated[str, Option("By transformers' name for it, as adamw_torch, adafactor, sgd.")] = "adamw_torch"
    precision: Annotated[
        Precision | None,
        Option("no, bf16 or fp16: mixed precision; what is trained stays in float32. Default: the launcher's."),
    ] = None
    dtype: DType = None
    checkpointing: Annotated[bool, Option("Recompute activations, to save memory.", may_change=True)] = False
    cache_trunk: Annotated[
        str,
        Option(
            "Compute the frozen blocks below every edit once: auto (where they are), off, or a folder that keeps them.",
            may_change=True,
        ),
    ] = "off"
    log_to: Annotated[
        tuple[str, ...], Option("Log to tensorboard (in OUT/logs), wandb, mlflow, …; repeatable.", may_change=True)
    ] = ()
    allow_future: Annotated[bool, Option("Allow a method that sees later tokens on a causal model.")] = False
    save_steps: Annotated[
        int | None, Option("Checkpoint every so many steps, besides each epoch.", rule=at_least(1), may_change=True)
    ] = None
    resume: Annotated[bool, Option("Go on from the last checkpoint in --out.", may_change=True)] = False
    overwrite: Annotated[bool, Option("Replace the run in --out.", may_change=True)] = False
    report: Annotated[
        bool, Option("Watch gates, edits and gradients; draw report.png and .svg in --out.", may_change=True)
    ] = False

    def check(self) -> None:
        """Refuse values that mean nothing, by themselves or together."""
        super().check()
        if not self.checkpoints and (self.resume or self.save_steps):
            raise error("E0620", "without checkpoints a run cannot be resumed", help="leave `--no-checkpoints` out")
        if self.report and not self.checkpoints:
            raise error("E0670", "a report shows what each epoch's evaluation finds, and without checkpoints there is none",
                        help="leave `--no-checkpoints` or `--report` out")  # fmt: skip
        if self.report:
            drawable()
        if not self.checkpoints and self.patience:
            raise error("E0620", "without checkpoints nothing is evaluated on the way, so no run is stopped early",
                        help="leave `--no-checkpoints` or `--patience` out")  # fmt: skip
        if self.shots and self.train_size:
            raise error("E0620", "`--shots` and `--train-size` exclude each other", help="give one of them")
        if self.resume and self.overwrite:
            raise error("E0620", "`--resume` and `--overwrite` exclude each other", help="give one of them")

    def to_json(self) -> dict[str, Any]:
        data = asdict(self) | {"set": {k: str(v) for k, v in self.set.items()}}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in data.items()}

    def differs(self, earlier: Mapping[str, Any]) -> list[str]:
        """The options in which an earlier run's record differs, as text; those that change no result are left out."""
        mine, options = self.to_json(), options_of(type(self))  # type: ignore[arg-type]
        # An option that is newer than the record had its default then.
        then = {f.name: earlier.get(f.name, f.default) for f in fields(self) if not options[f.name][1].may_change}
        return [f"{n}: {old!r} then, {mine[n]!r} now" for n, old in then.items() if old != mine[n]]


def absolute(folder: str) -> str:
    """A local folder as an absolute path, a hub name as it is: so that a saved run finds its model from anywhere."""
    return str(Path(folder).resolve()) if exists(folder) else folder
