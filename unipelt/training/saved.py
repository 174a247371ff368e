"""Use a finished run: evaluate it on other data, predict with it, merge it into a plain model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import exists, isdir, isfile
from pathlib import Path
from typing import Any, get_args

import unipelt

from ..language.report.diagnostics import counted, error, near_path
from ..runtime.hub import MANIFEST, TASK, located
from . import data as reading
from .adapters import attach, open_for_task, open_plain
from .folder import read_json
from .models import load_config, load_model, quiet
from .options import FloatType, Opening, TaskOptions, flag
from .readers import load_reader
from .tasks import task_for, task_from_json
from .tasks.evaluation import Collator, evaluate, predict
from .tasks.media import FileClassification
from .tasks.task import Inputs, Predicting, Task, Tick


@dataclass(frozen=True)
class Run:
    """A fresh base model with a saved adapter attached, and the task that it was trained for."""

    model: Any
    tokenizer: Any
    task: Task
    name: str
    batch_size: int

    def __repr__(self) -> str:
        return f"<run: {self.name} on {type(self.model).__name__}, {self.task.kind}>"


def load_run(
    folder: str | Path,
    model: str | None = None,
    force: bool = False,
    arguments: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda text: None,
    *,
    dtype: FloatType | None = None,
    options: TaskOptions = TaskOptions(),
    data: str | Path | None = None,
) -> Run:
    """Load a run's folder, or that of `unipelt.save`, onto its base model, or onto ``model``; another base is refused unless forced.

    ``folder`` may be a repository of the hub, as for `unipelt.attach`.
    ``arguments`` binds some of the method's anew (see `unipelt.attach`). ``say`` is told which base is loaded where the folder's
    record names it, and not the caller. ``dtype`` is that of the base: by default the run's, else the one in which it is stored.
    ``options`` name the task of an adapter that no run made, and ``data`` are what it is evaluated on.
    """
    asked = Opening(model, force, dtype, dict(arguments or {}))
    place = _folder(folder)
    if not exists(place / TASK):
        if isfile(place / MANIFEST):
            return Run(*open_for_task(place, asked, options, data), 64)
        raise error("E0615", f"`{place}` holds no finished run: `{TASK}` is missing",
                    help="name the `--out` folder of `unipelt train`; a run cut short goes on with `--resume`")  # fmt: skip
    given = [flag(n) for n, v in vars(options).items() if v not in (None, False) and n not in ("padding", "generate")]
    if given:
        raise error("E0620", f"the run in {folder} has its task already", help=f"leave {', '.join(given)} out")
    record = read_json(place / TASK)
    task = task_from_json(record.get("task", {}))
    base = asked.model or record.get("model")
    if not isinstance(base, str):
        raise error("E0827", f"`{folder}` was trained on a base that lay in a folder, `{record.get('base')}`",
                    help="name it with `--model`")  # fmt: skip
    if asked.model is None:
        say(f"base: {base}, as the record in {folder} says")
    dtype = asked.dtype or record.get("dtype")
    if dtype is not None and dtype not in get_args(FloatType):
        raise error("E0615", f"the run's record is damaged: `dtype` is {dtype!r}", help="train again")
    seed, batch_size = _whole(record, "seed", 0, 0), _whole(record, "eval_batch_size", 64, 1)
    tokenizer = load_reader(base, task, load_config(base))
    loaded = load_model(base, task, tokenizer, seed, dtype=dtype)
    return Run(loaded, tokenizer, task, attach(loaded, place, asked), batch_size)


def load_adapted(
    folder: str | Path, asked: Opening, task: str | None = None, say: Callable[[str], None] = lambda text: None
) -> tuple[Any, Any, str]:
    """The model with the adapter of either kind of folder, its tokenizer if it reads text, and the adapter's name.

    A ``task`` that is named for an adapter that no run made decides the class of the model.
    """
    place = _folder(folder)
    if isfile(place / MANIFEST) and not exists(place / TASK):
        return open_plain(place, asked, task)
    run = load_run(folder, **vars(asked), say=say, options=TaskOptions(task=task))
    return run.model, run.tokenizer, run.name


def attach_also(model: Any, folder: str | Path, asked: Opening) -> str:
    """Attaches another saved adapter, of either kind of folder, and returns its name, which no other has."""
    there = unipelt.adapters(model)
    name = next(f"and_{i}" for i in range(2, len(there) + 3) if f"and_{i}" not in there)
    return attach(model, _folder(folder), replace(asked, arguments={}), name)


def _folder(folder: str | Path) -> Path:
    place = located(folder)
    if not isdir(place):
        raise error("E0615", f"`{place}` is a file, not a folder" if exists(place) else f"there is no folder `{place}`",
                    help=near_path(place, folders=True) or "name the `--out` folder of `unipelt train`")  # fmt: skip
    return place


def _whole(record: dict[str, Any], name: str, default: int, least: int) -> int:
    value = record.get(name, default)
    if type(value) is not int or value < least:
        raise error("E0615", f"the run's record is damaged: `{name}` is {value!r}", help="train again")
    return value


def load_base(model: str, options: TaskOptions, data: str | Path, seed: int = 0, dtype: str | None = None) -> Run:
    """A model as it was pretrained, with the task that the data ask for: what an adapter starts from.

    Only tasks that a pretrained model can do count: those of language models, and PET.
    """
    base, found = load_config(model), reading.read(data, "test")
    split = next(found[s] for s in ("train", "validation", "test") if s in found)
    task = task_for(split, options, base)
    if not task.pretrained:
        raise error(
            "E0645", f"{task.kind} needs a trained head, and `{model}` has none", help="name the folder of a run"
        )
    tokenizer = load_reader(model, task, base)
    task = task.fit(base, tokenizer)
    loaded = load_model(model, task, tokenizer, seed, dtype=dtype).eval()
    return Run(loaded, tokenizer, task, "", 64)


def evaluate_run(run: Run, data: str | Path, split: str | None = None, tick: Tick | None = None, generate: bool | None = None
                 ) -> tuple[dict[str, float], str, int]:  # fmt: skip
    """Metrics on a file or a folder's split (the test split, else the validation split); which, and how many were cut.

    ``generate`` asks a language model's task for metrics of generated answers, or spares them.
    """
    task = run.task
    if generate is not None:
        if "generate" not in task.asks:
            raise error("E0620", f"{task.kind} generates nothing", help="leave `--generate` out")
        task = replace(task, generate=generate)  # type: ignore[call-arg]
    found = reading.read(data, split or "test")
    chosen = split or next((s for s in ("test", "validation") if s in found), None)
    if chosen is None or chosen not in found:
        have = ", ".join(found.splits)
        raise error("E0608", f"`{data}` has no {chosen or 'test'} split; it has {have}", help="name one with `--split`")
    encoded = task.encode(found[chosen], run.tokenizer)
    collator = Collator(run.tokenizer, task)
    with quiet():
        return evaluate(run.model, task, encoded, collator, run.batch_size, tick), chosen, encoded.truncated


def predict_run(run: Run, inputs: Inputs, max_new_tokens: int | None = None, tick: Tick | None = None
                ) -> list[dict[str, Any]]:  # fmt: skip
    """A record for each input: a label with its probability, a continuation, whatever the task answers.

    An input is a sequence with a value for each of the task's input columns: one text, or two where it reads pairs.
    """
    wanted = run.task.inputs
    for given in inputs:
        if len(given) != len(wanted) or not all(part.strip() if isinstance(part, str) else part for part in given):
            raise error("E0607", f"the task reads {counted(len(wanted), 'text')} each, none of them empty",
                        help="give texts, or a file with the columns " + ", ".join(wanted))  # fmt: skip
    spoilt = next((i for i, given in enumerate(inputs, 1) if not reading.is_unicode(tuple(given))), None)
    if spoilt is not None:
        raise error(
            "E0649",
            f"text {spoilt} of {len(inputs)} holds half of a character, which is no Unicode",
            help="take it out of the text",
        )
    with quiet():
        return predict(run.model, run.task, inputs, run.tokenizer, Predicting(run.batch_size, max_new_tokens, tick))


def read_texts(run: Run, file: str) -> list[Sequence[Any]]:
    """The inputs of a data file, or of a plain text file with one text on each line (or the name of one picture or sound).

    For a task that reads files also a folder of them, or one of them.
    """
    path = Path(file)
    if (isdir(path) or reading.kind_of_file(path.name)) and isinstance(run.task, FileClassification):
        files = reading.files_of(path, run.task.column)
        if not files:
            raise error("E0605", f"`{path}` holds nothing that {run.task.kind} reads", help="name another")
        return [[f] for f in files]
    if path.suffix in reading.SUFFIXES:
        return run.task.read_inputs(reading.read_file(path))
    if not isfile(path):
        raise error("E0601", f"there is no file `{path}`", help="check the path and the spelling")
    lines = reading.decoded(path).split("\n")
    return [[line] for line in lines if line.strip()]


def merge_run(run: Run, out: str | Path) -> None:
    """Write a plain Hugging Face model with the adapter merged into its weights; an error where that is not exact."""
    with quiet():
        unipelt.save_merged(run.model, out, run.name, tokenizer=run.tokenizer)
