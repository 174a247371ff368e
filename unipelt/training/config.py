"""What a training run is asked to do. Plain data: neither torch nor transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from os.path import exists
from pathlib import Path
from typing import Any, Literal

from ..language.report.diagnostics import error, near
from .data import is_unicode
from .report import drawable
from .tasks import KINDS, task

SCHEDULERS = ("linear", "constant", "cosine")
PRECISIONS = ("no", "bf16", "fp16")
#: What a base may be loaded in.
DTYPES = ("float32", "bfloat16", "float16")

LEAST = {
    "epochs": 1, "batch_size": 1, "eval_batch_size": 1, "seed": 0, "weight_decay": 0, "max_steps": 1, "train_size": 1, "shots": 1,
    "save_steps": 1, "accumulate": 1, "patience": 1, **task.LEAST,
}  # fmt: skip
CHOICES = {
    "task": tuple(KINDS), "scheduler": SCHEDULERS, "padding": task.CHOICES["padding"], "loss": task.CHOICES["loss"],
    "problem_type": task.CHOICES["problem"], "precision": PRECISIONS, "dtype": DTYPES,
}  # fmt: skip

#: Options that may change between a run and its continuation: they do not change what is computed.
NOT_PART_OF_A_RUN = ("out", "resume", "overwrite", "save_steps", "report", "accumulate", "checkpointing", "log_to")


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """What is asked about the task; whatever is None is chosen by the data.

    ``pattern`` is a template of the input (`"{text} It was {mask}."`), ``words`` say a word for each label (PET).
    ``max_target_length`` bounds what is generated. ``generate`` asks for generation metrics, of which exact match looks
    behind the last ``answer_after``.
    """

    task: str | None = None
    text: tuple[str, ...] | None = None
    label: str | None = None
    max_length: int | None = None
    padding: Literal["longest", "max_length"] = "longest"
    problem_type: Literal["single_label", "multi_label", "regression"] | None = None
    loss: Literal["completion", "all"] | None = None
    pattern: str | None = None
    words: str | None = None
    chat: bool = False
    pack: bool = False
    stride: int | None = None
    max_target_length: int | None = None
    generate: bool | None = None
    answer_after: str | None = None

    def given(self) -> list[str]:
        """The options that are given and do not mean something to every task."""
        common = ("task", "text", "label", "max_length", "padding")
        return [
            f.name for f in fields(TaskOptions) if f.name not in common and getattr(self, f.name) not in (None, False)
        ]

    def length(self, default: int) -> int:
        return default if self.max_length is None else self.max_length

    def check(self) -> None:
        """Refuse values that cannot mean anything, before a model is loaded."""
        for f in fields(self):  # what cannot be written down would be found when the run is saved
            if not is_unicode(getattr(self, f.name)):
                raise error(
                    "E0649",
                    f"`--{f.name.replace('_', '-')}` holds half of a character, which is no Unicode",
                    help="correct the option",
                )
        for name, low in LEAST.items():
            value = getattr(self, name, None)
            if value is not None and value < low:
                raise _option(name, f"must be at least {low}", value)
        for name, allowed in CHOICES.items():
            value = getattr(self, name, None)
            if value is not None and value not in allowed:
                raise _option(name, f"is one of {', '.join(allowed)}", value, near(str(value), allowed))


@dataclass(frozen=True)
class TrainConfig(TaskOptions):
    """Options of a run.

    ``method`` is a name of the library, a `.pelt` file, or several joined by ``+``; ``set`` binds its arguments.
    ``lr`` and ``task`` are chosen from the plan and the data where they are None. Without ``checkpoints`` nothing is
    evaluated or saved before the end: quicker, and the last epoch counts. ``batch_size`` counts the examples of one
    optimizer step, in all processes and all ``accumulate`` parts together. ``precision`` None is the launcher's;
    ``dtype`` is that of the frozen base, and None the one in which it is stored.
    """

    method: str
    model: str
    data: str
    out: str
    set: Mapping[str, Any] = field(default_factory=dict)
    head: str | None = None
    epochs: int = 3
    max_steps: int | None = None
    lr: float | None = None
    batch_size: int = 16
    eval_batch_size: int = 64
    train_size: int | None = None
    shots: int | None = None
    seed: int = 0
    warmup: float = 0.06
    weight_decay: float = 0.0
    scheduler: str = "linear"
    clip: float = 1.0
    dropout: float | None = None
    checkpoints: bool = True
    best: bool = True
    allow_future: bool = False
    accumulate: int = 1
    precision: Literal["no", "bf16", "fp16"] | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    checkpointing: bool = False
    optimizer: str = "adamw_torch"
    patience: int | None = None
    log_to: tuple[str, ...] = ()
    save_steps: int | None = None
    resume: bool = False
    overwrite: bool = False
    report: bool = False

    def check(self) -> None:
        super().check()
        if self.lr is not None and not 0 < self.lr < float("inf"):
            raise _option("lr", "must be positive", self.lr)
        if not 0 <= self.warmup <= 1:
            raise _option("warmup", "is a share of the steps, between 0 and 1", self.warmup)
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise _option("dropout", "is a probability below 1", self.dropout)
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
        data = asdict(self)
        data["text"] = list(self.text) if self.text is not None else None
        data["log_to"] = list(self.log_to)
        data["set"] = {k: str(v) for k, v in self.set.items()}
        return data

    def differs(self, earlier: Mapping[str, Any]) -> list[str]:
        """The options in which an earlier run's record differs, as text; those that change no result are left out."""
        mine = self.to_json()
        # An option that is newer than the record had its default then.
        then = {f.name: earlier.get(f.name, f.default) for f in fields(self) if f.name not in NOT_PART_OF_A_RUN}
        return [f"{n}: {old!r} then, {mine[n]!r} now" for n, old in then.items() if old != mine[n]]


def check_dtype(dtype: str | None) -> None:
    if dtype is not None and dtype not in DTYPES:
        raise _option("dtype", f"is one of {', '.join(DTYPES)}", dtype, near(dtype, DTYPES))


def _option(name: str, rule: str, value: object, remedy: str = "") -> Exception:
    return error("E0620", f"`--{name.replace('_', '-')}` {rule}; it is {value!r}", help=remedy or "change the option")


def absolute(folder: str) -> str:
    """A local folder as an absolute path, a hub name as it is: so that a saved run finds its model from anywhere."""
    return str(Path(folder).resolve()) if exists(folder) else folder
