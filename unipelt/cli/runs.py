"""The commands that run a model: train, eval, predict, merge; and push, for what was trained."""

from __future__ import annotations

import sys
from pathlib import Path
from collections.abc import Sequence
from typing import Any

import typer

from ..language.report.diagnostics import error
from .output import OTHER, emit, pour, say, table


def train_command(arguments: list[str], as_json: bool, **options: Any) -> None:
    from ..training.config import TrainConfig
    from ..training.data import read
    from ..training.report import PICTURES
    from ..training.ranks import is_main
    from ..training.resolve import read_arguments, resolve_method

    config = TrainConfig(set=read_arguments(arguments), **options)
    # Whatever is wrong with these is said before the seconds that importing torch takes.
    config.check()
    resolve_method(config.method, config.set, config.head)
    read(config.data)

    from ..training.run import train

    result = train(config, say=say, bar=False if as_json else None)
    if not is_main():
        return
    picture = str(Path(result.folder) / PICTURES[0])
    if as_json:
        emit({"ok": True, **result.to_json(), **({"report": picture} if config.report else {})})
        return
    c = result.counts
    if config.report:
        say(f"what happened is drawn in {picture}")
    say(f"trained {c['trained']:,} parameters in {result.seconds:.0f} s; stored {c['stored']:,} in {result.folder}")
    table([{"split": s, **m} for s, m in result.metrics.items()], ["split", *next(iter(result.metrics.values()))])


def eval_command(folder: str | None, data: str, split: str | None, model: str | None, force: bool, generate: bool | None, dtype: str | None,
                 arguments: list[str], as_json: bool, **options: Any) -> None:  # fmt: skip
    from ..training.config import TaskOptions, check_dtype

    asked = TaskOptions(**options, generate=generate)
    asked.check()
    check_dtype(dtype)
    if folder is None and model is None:
        raise typer.BadParameter("give the folder of a run, or a model with --model")
    given = [f"--{n.replace('_', '-')}" for n, v in options.items() if v not in (None, False, "longest")]
    if folder is None and arguments:
        raise typer.BadParameter("a pretrained model has no arguments: leave --set out")
    from ..training.progress import Ticker
    from ..training.resolve import read_arguments
    from ..training.saved import evaluate_run, has_task, load_base, load_run

    if folder is not None:
        if given and has_task(folder):
            raise typer.BadParameter(f"the run in {folder} has its task already: leave {', '.join(given)} out")
        run = load_run(folder, model, force, read_arguments(arguments), say, dtype=dtype, options=asked, data=data)
    else:
        run = load_base(str(model), asked, data, dtype=dtype)
    with Ticker("evaluating", False if as_json else None) as tick:
        metrics, chosen, cut = evaluate_run(run, data, split, tick, generate)
    if as_json:
        emit({"ok": True, "split": chosen, "metrics": metrics, "truncated": cut})
        return
    if cut:
        say(f"{cut} examples are longer than {run.task.max_length} tokens and are cut")
    table([{"split": chosen, **metrics}], ["split", *metrics])


def predict_command(folder: str, texts: list[str], file: str | None, max_new_tokens: int | None, model: str | None,
                    force: bool, dtype: str | None, arguments: list[str], as_json: bool, **options: Any) -> None:  # fmt: skip
    from ..training.config import TaskOptions, check_dtype

    asked = TaskOptions(**options)
    asked.check()
    check_dtype(dtype)
    from ..training.progress import Ticker
    from ..training.resolve import read_arguments
    from ..training.saved import has_task, load_run, predict_run, read_texts

    if file is None and not texts:
        raise typer.BadParameter("give texts, or a file with --file")
    given = [f"--{n.replace('_', '-')}" for n, v in options.items() if v is not None]
    if given and has_task(folder):
        raise typer.BadParameter(f"the run in {folder} has its task already: leave {', '.join(given)} out")
    run = load_run(folder, model, force, read_arguments(arguments), say, dtype=dtype, options=asked)
    each = len(run.task.inputs)
    if len(texts) % each:
        raise error("E0607", f"the task reads {each} texts each: {', '.join(run.task.inputs)}",
                    help="give them one after the other, in quotes")  # fmt: skip
    wanted: list[Sequence[Any]] = [texts[i : i + each] for i in range(0, len(texts), each)]
    if file is not None:
        wanted += read_texts(run, file)
    with Ticker("predicting", False if as_json else None) as tick:
        found = predict_run(run, wanted, max_new_tokens, tick)
    if as_json:
        emit({"ok": True, "predictions": found})
    elif run.task.table:
        table([{k: _shown(v) for k, v in p.items()} for p in found], run.task.table)
    else:
        for p in found:
            pour(f"{p['completion']}\n")


def _shown(value: Any) -> Any:
    """A prediction in a cell of a table: what is found in a text as `type: text`."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return ", ".join(f"{v['type']}: {v['text']}" for v in value)
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def merge_command(
    folder: str, out: str, model: str | None, force: bool, dtype: str | None, arguments: list[str], as_json: bool
) -> None:
    from ..training.config import check_dtype

    check_dtype(dtype)

    import unipelt

    from ..training.models import quiet
    from ..training.resolve import read_arguments
    from ..training.saved import Opening, load_adapted

    adapted, tokenizer, name = load_adapted(folder, Opening(model, force, read_arguments(arguments), dtype), say)
    with quiet():
        unipelt.save_merged(adapted, out, name, tokenizer=tokenizer)
    if as_json:
        emit({"ok": True, "folder": out})
    else:
        say(f"merged into {out}: a plain model for `from_pretrained`")


def push_command(
    folder: str, name: str, private: bool, revision: str | None, yes: bool, dry_run: bool, as_json: bool
) -> None:
    if yes and dry_run:
        raise typer.BadParameter("--yes and --dry-run exclude each other")
    asks = not yes and not dry_run
    if asks and (as_json or not sys.stdin.isatty()):
        raise typer.BadParameter(
            "nobody can be asked here: give --yes to push, or --dry-run to see what would be pushed"
        )

    from ..runtime.push import prepared, send

    made = prepared(folder, name, revision)
    if not as_json:
        table([{"file": n, "bytes": size} for n, size in made.files.items()], ["file", "bytes"])
        total, kind = sum(made.files.values()), " (private, if it is new)" if private else ""
        say(f"{len(made.files)} files, {total:,} bytes {'would go' if dry_run else 'go'} to {made.url}{kind}")
    if asks and not typer.confirm("push?", err=True):
        say("nothing was sent")
        raise SystemExit(OTHER)
    if not dry_run:
        made = send(made, private or None)
    if as_json:
        emit({"ok": True, "dry_run": dry_run, **made.to_json()})
        return
    for note in made.notes:
        say(f"note: {note}")
    if not dry_run:
        say(f'pushed; `unipelt.attach(model, "{made.place}")` loads it')
