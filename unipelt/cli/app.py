"""The commands of `unipelt`: what each is called, takes and tells of itself. What they do is in the modules that they import when they run.

Options that several have are in `options`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from .exporting import export
from .options import (
    AllowFuture, AnswerAfter, Arguments, AsJson, Base, Budget, Chat, Data, DType, Folder, Force, Generate, HeadName, LabelColumn, LabelWords, Loss,
    MaxLength, MaxTargetLength, MethodName, NewFolder, OnModel, OnTask, Pattern, Rebound, RowName, Solved, TaskName, TaskOfSaved,
    TextColumns,
)  # fmt: skip
from .output import MISTAKES, guarded, tell

app = typer.Typer(
    name="unipelt",
    help="Parameter-efficient tuning methods, written down in `.pelt` files and compiled into any Hugging Face model.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    # Plain help: rich takes longer to import than most commands take to run.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _versions(wanted: bool) -> None:
    if wanted:
        from ..language.versions import FORMAT, LANGUAGE_VERSION, SCHEMA

        tell(f"unipelt {__version__} (language {LANGUAGE_VERSION}, {SCHEMA}, {FORMAT})")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_versions, is_eager=True, help="Print the versions and leave.")
    ] = False,
) -> None: ...


@app.command()
@guarded
def check(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH…", help="`.pelt` files, or folders of them.")],
    fix: Annotated[
        bool, typer.Option("--fix", help="Change the files as the help says, where that needs no further thought.")
    ] = False,
    as_json: AsJson = False,
    as_sarif: Annotated[
        bool, typer.Option("--sarif", help="Print SARIF 2.1.0 on stdout, for code hosts and editors.")
    ] = False,
) -> None:
    """Check specs: syntax, names, types and properties. `unipelt explain CODE` tells more of a mistake."""
    from .methods import check_paths

    if not check_paths(paths, as_json, as_sarif, fix):
        raise SystemExit(MISTAKES)


@app.command()
@guarded
def explain(
    code: Annotated[
        str | None, typer.Argument(metavar="[CODE]", help="The code of an error, as E0312; without one, all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Explain an error code: what it means, a program that raises it, and the remedy. Without a code: list them."""
    from .explain import explain_code, list_codes

    if code is None:
        list_codes(as_json)
    else:
        explain_code(code, as_json)


@app.command()
@guarded
def fmt(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH…", help="`.pelt` files, folders of them, or - for stdin.")
    ],
    check_only: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit code 1 if something would change.")
    ] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Change nothing; show what would change.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write specs in the canonical layout; comments and docstrings are kept."""
    from .layout import fmt_paths

    if not fmt_paths(paths, check_only, diff, as_json):
        raise SystemExit(MISTAKES)


@app.command("list")
@guarded
def list_(
    word: Annotated[
        str | None, typer.Argument(metavar="[WORD]", help="List only what has this word in its name or description.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also forms, compositions, gates and anatomies.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the library's methods by family, a line each; `show` prints the whole description."""
    from .methods import list_library

    list_library(word, everything, as_json)


@app.command()
@guarded
def show(
    methods: Annotated[
        list[str],
        typer.Argument(metavar="METHOD…", help="Methods of the library, `.pelt` files (`file.pelt:name`), or `a+b`."),
    ],
    arguments: Arguments = None,
    form: Annotated[str, typer.Option("--format", help="text, markdown or latex.")] = "text",
    picture: Annotated[Path | None, typer.Option(help="Draw the method's diagram into this .svg or .png file.")] = None,
    as_torch: Annotated[
        bool,
        typer.Option(
            "--torch", help="Print the method as plain PyTorch: a module for each row, which needs torch alone."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show a method: its row of the table, formula, arguments, counts, properties. Several: the table."""
    from .show import show_methods

    show_methods(methods, arguments or [], form, picture, as_json, as_torch)


@app.command()
@guarded
def diff(first: MethodName, second: MethodName, as_json: AsJson = False) -> None:
    """In which columns two methods differ. Exit code 1 if they do not mean the same."""
    from .show import diff_methods

    if not diff_methods(first, second, as_json):
        raise SystemExit(MISTAKES)


@app.command()
@guarded
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
    from .methods import plan_method

    plan_method(method, model, task, arguments or [], head, allow_future, as_json)


@app.command()
@guarded
def equal(first: MethodName, second: MethodName, as_json: AsJson = False) -> None:
    """Whether two methods mean the same, however they are written; else the first difference. Exit code 1 if not."""
    from .spaces import equal_command

    if not equal_command(first, second, as_json):
        raise SystemExit(MISTAKES)


@app.command()
@guarded
def generate(
    space: Annotated[
        str, typer.Argument(metavar="SPACE", help="A `.pelt` file whose method has alternatives (`file.pelt:name`).")
    ],
    out: NewFolder = None,
    model: OnModel = None,
    task: OnTask = "base",
    params: Budget = None,
    size: Solved = None,
    sample: Annotated[int | None, typer.Option(min=1, help="Look at so many members, drawn at random.")] = None,
    seed: int = 0,
    as_json: AsJson = False,
) -> None:
    """Enumerate a space of methods: drop what is no method, keep each meaning once, say what each member is."""
    from .spaces import Asked, generate_command

    generate_command(space, Asked(out, model, task, params, size, sample, seed, as_json))


@app.command()
@guarded
def vary(
    method: MethodName,
    modify: Annotated[str | None, typer.Option(help="Sites to try, as in attn,ffn.")] = None,
    insert: Annotated[str | None, typer.Option(help="Insertions to try, as in parallel,sequential.")] = None,
    form: Annotated[str | None, typer.Option(help="Forms to try, as in 'bottleneck(r),low_rank(r)'.")] = None,
    compose: Annotated[str | None, typer.Option(help="Compositions to try, as in 'add,scaled(4.0)'.")] = None,
    row: RowName = None,
    out: NewFolder = None,
    model: OnModel = None,
    task: OnTask = "base",
    params: Budget = None,
    size: Solved = None,
    as_json: AsJson = False,
) -> None:
    """A method's variants: columns of its row with other contents."""
    from .spaces import Asked, vary_command

    slots = {"modify": modify, "insert": insert, "form": form, "compose": compose}
    vary_command(method, row, slots, Asked(out, model, task, params, size, as_json=as_json))


@app.command()
@guarded
def cross(
    first: MethodName,
    second: MethodName,
    row_a: Annotated[str | None, typer.Option(help="The first parent's row, where it has several.")] = None,
    row_b: Annotated[str | None, typer.Option(help="The second parent's.")] = None,
    out: NewFolder = None,
    model: OnModel = None,
    task: OnTask = "base",
    params: Budget = None,
    size: Solved = None,
    as_json: AsJson = False,
) -> None:
    """The offspring of two methods: each column from either parent."""
    from .spaces import Asked, cross_command

    cross_command(first, second, row_a, row_b, Asked(out, model, task, params, size, as_json=as_json))


@app.command()
@guarded
def neighbours(
    method: MethodName,
    row: RowName = None,
    out: NewFolder = None,
    model: OnModel = None,
    task: OnTask = "base",
    params: Budget = None,
    size: Solved = None,
    as_json: AsJson = False,
) -> None:
    """Every method one column away."""
    from .spaces import Asked, neighbours_command

    neighbours_command(method, row, Asked(out, model, task, params, size, as_json=as_json))


@app.command()
@guarded
def train(
    method: MethodName,
    model: Annotated[str, typer.Option("--model", "-m", help="A folder made by `save_pretrained`, or a hub name.")],
    data: Data,
    out: Annotated[str, typer.Option("--out", "-o", help="The folder of the run.")],
    arguments: Arguments = None,
    head: HeadName = None,
    task: TaskName = None,
    text: TextColumns = None,
    label: LabelColumn = None,
    problem_type: Annotated[
        str | None, typer.Option(help="single_label, multi_label or regression; default: by the values.")
    ] = None,
    pattern: Pattern = None,
    words: LabelWords = None,
    loss: Loss = None,
    chat: Chat = False,
    pack: Annotated[bool, typer.Option("--pack", help="causal-lm: train on several examples in one row.")] = False,
    stride: Annotated[
        int | None, typer.Option(help="question-answering: tokens that windows of a long context share.")
    ] = None,
    max_target_length: MaxTargetLength = None,
    generate: Generate = None,
    answer_after: AnswerAfter = None,
    epochs: int = 3,
    max_steps: Annotated[int | None, typer.Option(help="Stop after so many optimizer steps.")] = None,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate; default 1e-3, or 5e-5 if over 20 % is trained.")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(help="Examples of one optimizer step, in all processes together: as many, the same run.")
    ] = 16,
    accumulate: Annotated[
        int, typer.Option(help="Compute a step in this many parts, to save memory; the run is the same.")
    ] = 1,
    eval_batch_size: Annotated[int, typer.Option(help="Examples that a process evaluates at once.")] = 64,
    max_length: MaxLength = None,
    padding: Annotated[str, typer.Option(help="`longest` in the batch, or `max_length`.")] = "longest",
    train_size: Annotated[
        int | None, typer.Option(help="Train on this many rows: the first after a shuffle with the seed.")
    ] = None,
    shots: Annotated[int | None, typer.Option(help="Train on this many rows of each class.")] = None,
    seed: int = 0,
    warmup: Annotated[float, typer.Option(help="Share of the steps in which the rate grows.")] = 0.06,
    weight_decay: float = 0.0,
    scheduler: Annotated[str, typer.Option(help="linear, constant or cosine.")] = "linear",
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient; 0 for none.")] = 1.0,
    dropout: Annotated[
        float | None, typer.Option(help="The base's dropout rate; default: its configuration's.")
    ] = None,
    last: Annotated[
        bool, typer.Option("--last", help="Keep the last epoch instead of the best on validation.")
    ] = False,
    no_checkpoints: Annotated[
        bool, typer.Option("--no-checkpoints", help="Evaluate and save at the end only; implies --last.")
    ] = False,
    patience: Annotated[int | None, typer.Option(help="Stop after this many evaluations without a better one.")] = None,
    optimizer: Annotated[
        str, typer.Option(help="By transformers' name for it, as adamw_torch, adafactor, sgd.")
    ] = "adamw_torch",
    precision: Annotated[
        str | None,
        typer.Option(
            help="no, bf16 or fp16: mixed precision; what is trained stays in float32. Default: the launcher's."
        ),
    ] = None,
    dtype: DType = None,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Recompute activations, to save memory.")
    ] = False,
    log_to: Annotated[
        list[str] | None, typer.Option(help="Log to tensorboard (in OUT/logs), wandb, mlflow, …; repeatable.")
    ] = None,
    allow_future: AllowFuture = False,
    save_steps: Annotated[int | None, typer.Option(help="Checkpoint every so many steps, besides each epoch.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in --out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    report: Annotated[
        bool, typer.Option("--report", help="Watch gates, edits and gradients; draw report.png and .svg in --out.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train an adapter and save it."""
    from .runs import train_command

    train_command(
        arguments or [], as_json, method=method, model=model, data=data, out=out, head=head, task=task,
        text=columns_of(text), label=label, problem_type=problem_type, pattern=pattern, words=words, loss=loss, chat=chat,
        pack=pack, stride=stride, max_target_length=max_target_length, generate=generate, answer_after=answer_after,
        epochs=epochs, max_steps=max_steps, lr=lr, batch_size=batch_size,
        eval_batch_size=eval_batch_size, max_length=max_length, padding=padding, train_size=train_size, shots=shots, seed=seed,
        warmup=warmup, weight_decay=weight_decay, scheduler=scheduler, clip=clip, dropout=dropout, best=not last,
        checkpoints=not no_checkpoints, accumulate=accumulate, patience=patience, optimizer=optimizer, precision=precision, dtype=dtype,
        checkpointing=checkpointing, log_to=tuple(log_to or ()), allow_future=allow_future, save_steps=save_steps, resume=resume, overwrite=overwrite, report=report,
    )  # fmt: skip


def columns_of(text: str | None) -> tuple[str, ...] | None:
    """The columns that `--text` names."""
    return tuple(c.strip() for c in text.split(",")) if text else None


@app.command("eval")
@guarded
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
    model: Base = None,
    force: Force = False,
    dtype: DType = None,
    arguments: Rebound = None,
    generate: Generate = None,
    task: TaskName = None,
    text: TextColumns = None,
    label: LabelColumn = None,
    pattern: Pattern = None,
    words: LabelWords = None,
    loss: Loss = None,
    chat: Chat = False,
    max_length: MaxLength = None,
    max_target_length: MaxTargetLength = None,
    answer_after: AnswerAfter = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a saved adapter on a data set, or a pretrained model alone (language models and pet)."""
    from .runs import eval_command

    eval_command(
        folder, data, split, model, force, generate, dtype, arguments or [], as_json, task=task, text=columns_of(text), label=label, pattern=pattern,
        words=words, loss=loss, chat=chat, max_length=max_length, max_target_length=max_target_length, answer_after=answer_after,
    )  # fmt: skip


@app.command()
@guarded
def predict(
    folder: Folder,
    texts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[TEXT…]", help="Texts to label or go on from; for a task of several columns, one after the other."
        ),
    ] = None,
    file: Annotated[str | None, typer.Option("--file", "-f", help="A data file, or one text on each line.")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Tokens of a generated answer; default: the run's.")
    ] = None,
    model: Base = None,
    force: Force = False,
    dtype: DType = None,
    arguments: Rebound = None,
    task: TaskOfSaved = None,
    text: TextColumns = None,
    pattern: Pattern = None,
    max_length: MaxLength = None,
    as_json: AsJson = False,
) -> None:
    """Predict with a saved adapter: labels, entities, answers, texts."""
    from .runs import predict_command

    predict_command(
        folder, texts or [], file, max_new_tokens, model, force, dtype, arguments or [], as_json, task=task, text=columns_of(text), pattern=pattern,
        max_length=max_length,
    )  # fmt: skip


@app.command()
@guarded
def merge(
    folder: Folder,
    out: Annotated[str, typer.Option("--out", "-o", help="Where the plain model is written.")],
    model: Base = None,
    force: Force = False,
    dtype: DType = None,
    arguments: Rebound = None,
    as_json: AsJson = False,
) -> None:
    """Merge a saved adapter into its model and write that as a plain Hugging Face model."""
    from .runs import merge_command

    merge_command(folder, out, model, force, dtype, arguments or [], as_json)


@app.command()
@guarded
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
    from .runs import push_command

    push_command(folder, name, private, revision, yes, dry_run, as_json)


app.command()(export)
