"""The commands of `unipelt`. Those that read specs import what they need when they run; the others are in `spaces` and `runs`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from . import exchange, features, runs, serving, spaces
from .options import Arguments, AsJson, MethodName, with_options
from .output import guarded, tell

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


def check(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH…", help="`.pelt` files, or folders of them.")],
    fix: Annotated[
        bool, typer.Option("--fix", help="Change the files as the help says, where that needs no further thought.")
    ] = False,
    as_json: AsJson = False,
    as_sarif: Annotated[
        bool, typer.Option("--sarif", help="Print SARIF 2.1.0 on stdout, for code hosts and editors.")
    ] = False,
) -> bool:
    """Check specs: syntax, names, types and properties. `unipelt explain CODE` tells more of a mistake."""
    from .methods import check_paths

    return check_paths(paths, as_json, as_sarif, fix)


def explain(
    code: Annotated[
        str | None,
        typer.Argument(
            metavar="[CODE]",
            help="The code of an error, as E0312, a site, as attn.q, or a word of the language, as softmax; without one, all codes.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Explain an error code: what it means, a program that raises it, and the remedy; what a form may read at a site; what a word of the language is. Without one: list the codes."""
    from ..language.sites import signature
    from ..language.report.diagnostics import error
    from ..language.words import close_to, words
    from .explain import explain_code, explain_site, explain_word, list_codes

    if code is None:
        list_codes(as_json)
    elif (site := signature('module("regex")' if code == "module" else code)) is not None:
        explain_site(site, as_json)
    elif code in words():
        explain_word(words()[code], as_json)
    elif close := close_to(code):
        raise error("E0409", f"there is no word, no site and no error code `{code}`", help=f"did you mean `{close}`?")
    else:
        explain_code(code, as_json)


def fmt(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH…", help="`.pelt` files, folders of them, or - for stdin.")
    ],
    check_only: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit code 1 if something would change.")
    ] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Change nothing; show what would change.")] = False,
    as_json: AsJson = False,
) -> bool:
    """Write specs in the canonical layout; comments and docstrings are kept."""
    from .layout import fmt_paths

    return fmt_paths(paths, check_only, diff, as_json)


def list_(
    word: Annotated[
        str | None, typer.Argument(metavar="[WORD]", help="List only what has this word in its name or description.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Also forms, compositions, gates and anatomies.")] = False,
    as_table: Annotated[
        bool,
        typer.Option(
            "--table", help="The methods' rows, their parameters on two models, verdicts, what verified them."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the library's methods by family, a line each; `show` prints the whole description."""
    from .methods import list_library

    list_library(word, everything, as_json, as_table)


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
    typed: Annotated[
        bool, typer.Option("--typed", help="Print each row at its sites line by line, with types and what is known.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show a method: its row of the table, formula, arguments, counts, properties. Several: the table."""
    from .show import show_methods

    show_methods(methods, arguments or [], form, picture, as_json, as_torch, typed)


def diff(first: MethodName, second: MethodName, as_json: AsJson = False) -> bool:
    """In which columns two methods differ. Exit code 1 if they do not mean the same."""
    from .show import diff_methods

    return diff_methods(first, second, as_json)


def equal(first: MethodName, second: MethodName, as_json: AsJson = False) -> bool:
    """Whether two methods mean the same, however they are written; else the first difference. Exit code 1 if not."""
    from .show import equal_methods

    return equal_methods(first, second, as_json)


for command in (
    check, explain, fmt, list_, show, diff, equal, spaces.generate, spaces.vary, spaces.cross, spaces.neighbours,
    runs.plan, runs.sites, runs.train, runs.eval_, runs.predict, features.features, runs.merge, runs.push, exchange.import_, exchange.export,
    serving.serve,
):  # fmt: skip
    app.command(command.__name__.strip("_"))(guarded(with_options(command)))
