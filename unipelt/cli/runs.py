"""The commands for models: plan, sites, train, eval, predict, merge; and push, for a saved adapter."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from os.path import exists, isdir
from pathlib import Path
from typing import Annotated, Any

import typer

from ..language.report.diagnostics import error
from ..training.config import TrainConfig
from ..training.options import Opening, TaskOptions, check, read_arguments
from .options import AllowFuture, Arguments, AsJson, Data, Folder, HeadName, MethodName
from .output import OTHER, columns, emit, pour, say, table, tell


def plan(
    method: MethodName,
    model: Annotated[str, typer.Option("--model", "-m", help="A model folder or a configuration file.")],
    task: Annotated[str, typer.Option(help="The task whose model is planned for, as in `train`, or base.")] = "base",
    arguments: Arguments = None,
    head: HeadName = None,
    allow_future: AllowFuture = False,
    as_json: AsJson = False,
) -> None:
    """Show where a method would change a model, and how many parameters that takes. Needs no weights."""
    from ..runtime.references import load

    wanted = load(method, arguments=read_arguments(arguments), head=head)  # mistakes in it come before torch

    import unipelt

    from ..compiler.plan import plan_text
    from ..training.models import load_config_model

    found = unipelt.plan(load_config_model(model, task), wanted, allow_future=allow_future)
    if as_json:
        emit({"ok": True, "method": wanted.name, "arguments": wanted.arguments, "plan": found.to_json()})
    else:
        tell(plan_text(found, columns()))


def sites(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="A model folder, a configuration file, or a model type of transformers."),
    ],
    tower: Annotated[str | None, typer.Option(help="Show one tower alone, as text or vision.")] = None,
    task: Annotated[str, typer.Option(help="The task whose model is shown, as in `train`, or base.")] = "base",
    as_json: AsJson = False,
) -> None:
    """Show a model's sites, by what each is known, and the projections that no site covers. Needs no weights."""
    import unipelt

    from ..anatomy.written import text
    from ..training.models import load_config_model

    found = unipelt.sites(load_config_model(model, task))
    found = found if tower is None else found.tower(tower)
    if as_json:
        emit({"ok": True, "sites": found.to_json()})
    else:
        tell(text(found.tree, columns()))


def train(config: TrainConfig, as_json: AsJson = False) -> None:
    """Train an adapter and save it."""
    from ..training.data import read
    from ..training.ranks import is_main
    from ..training.report import PICTURES
    from ..runtime.references import load

    # Whatever is wrong with these is said before the seconds that importing torch takes.
    config.check()
    load(config.method, arguments=config.set, head=config.head)
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


def eval_(
    data: Data,
    folder: Annotated[
        str | None,
        typer.Argument(
            metavar="[DIR]",
            help="The `--out` folder of `unipelt train`, or `user/name[@revision]` on the hub; without one, --model as it was pretrained.",
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="train, validation or test; default: test.")] = None,
    *,
    opening: Opening,
    task: TaskOptions,
    as_json: AsJson = False,
) -> None:
    """Evaluate a saved adapter on a data set, or a pretrained model alone (language models and pet)."""
    task.check()
    check(opening)
    if folder is None and opening.model is None:
        raise typer.BadParameter("give the folder of a run, or a model with --model")
    if folder is None and opening.arguments:
        raise typer.BadParameter("a pretrained model has no arguments: leave --set out")

    from ..training.bars import Ticker
    from ..training.saved import evaluate_run, load_base, load_run

    if folder is None:
        run = load_base(str(opening.model), task, data, dtype=opening.dtype)
    else:
        run = load_run(folder, **vars(opening), say=say, options=task, data=data)
    with Ticker("evaluating", False if as_json else None) as tick:
        metrics, chosen, cut = evaluate_run(run, data, split, tick, task.generate)
    if as_json:
        emit({"ok": True, "split": chosen, "metrics": metrics, "truncated": cut})
        return
    if cut:
        say(f"{cut} examples are longer than {run.task.longest} and are cut")
    table([{"split": chosen, **metrics}], ["split", *metrics])


def predict(
    folder: Folder,
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEXT…]",
            help="Texts to label or go on from, or files of pictures or sounds; for a task of several columns, one after the other.",
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option("--file", "-f", help="A data file, or one text on each line; a folder of pictures or sounds."),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Tokens of a generated answer; default: the run's.")
    ] = None,
    *,
    opening: Opening,
    task: TaskOptions,
    as_json: AsJson = False,
) -> None:
    """Predict with a saved adapter: labels, entities, answers, texts."""
    task.check()
    check(opening)
    if file is None and not texts:
        raise typer.BadParameter("give texts, or a file with --file")

    from ..training.bars import Ticker
    from ..training.saved import load_run, predict_run, read_texts

    run = load_run(folder, **vars(opening), say=say, options=task)
    each, texts = len(run.task.inputs), texts or []
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


def merge(
    folder: Folder,
    out: Annotated[str, typer.Option("--out", "-o", help="Where the plain model is written.")],
    also: Annotated[
        list[str] | None,
        typer.Option(
            "--and", metavar="DIR", help="Another adapter of the same base, merged behind it; may be given again."
        ),
    ] = None,
    max_shard_size: Annotated[
        str | None, typer.Option(help="The most bytes of a file of weights, as 5GB; larger models get several.")
    ] = None,
    *,
    opening: Opening,
    as_json: AsJson = False,
) -> None:
    """Merge a saved adapter into its model and write that as a plain Hugging Face model."""
    check(opening)
    if exists(out) and (not isdir(out) or any(Path(out).iterdir())):  # before the seconds that a model takes
        raise error("E0611", f"`{out}` exists and is not empty", help="name another folder")

    import unipelt

    from ..runtime.dequantised import sizes_of
    from ..training.models import quiet
    from ..training.saved import attach_also, load_adapted

    adapted, tokenizer, name = load_adapted(folder, opening, say=say)
    names = [name, *(attach_also(adapted, place, opening) for place in also or ())]
    with quiet():
        unipelt.save_merged(adapted, out, names, tokenizer=tokenizer, max_shard_size=max_shard_size)
        sizes = sizes_of(adapted, out)
    if as_json:
        emit({"ok": True, "folder": out, **({"dequantised": sizes._asdict()} if sizes is not None else {})})
    else:
        say(f"merged into {out}: a plain model for `from_pretrained`")
        if sizes is not None:
            say(str(sizes))


def push(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="The `--out` folder of `unipelt train`, or a saved adapter's.")
    ],
    name: Annotated[
        str, typer.Argument(metavar="USER/NAME", help="The repository on the hub; it is made where it is missing.")
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Make a private repository; refused where a public one exists.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(help="The branch; it is made where it is missing. Default: main.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be pushed, and send nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Push a saved adapter to the hub, without anything of this machine."""
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
