"""What commands print: results on stdout, everything else on stderr; mistakes with their places; exit codes."""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from ..language.diagnostics import PeltError

#: Columns of a table where stdout is no terminal.
WIDTH = 120
OK, MISTAKES, USAGE, OTHER = 0, 1, 2, 3
#: Codes of errors that are no mistakes in the input: the run is complete already; an adapter could not be written; a file gives
#: not what its model gives; the hub cannot be reached.
NO_MISTAKES = ("E0618", "E0575", "E0756", "E0823")
Command = TypeVar("Command", bound=Callable[..., Any])


def say(text: str = "") -> None:
    """A line for people, on stderr."""
    print(text, file=sys.stderr, flush=True)


def emit(value: Any) -> None:
    """A result for programs, on stdout."""
    print(json.dumps(value, indent=1, ensure_ascii=False, default=str))


def guarded(command: Command) -> Command:
    """No traceback reaches a user: mistakes are rendered, and the exit code tells them apart.

    Of several processes that a launcher started and that fail together, the first says why.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except (Exception, KeyboardInterrupt) as e:
            # Usage errors and exits of the command line's own are no failures.
            if type(e).__module__.startswith("typer") or (os.environ.get("UNIPELT_TRACEBACK") and not isinstance(e, PeltError)):
                raise
            from ..training.ranks import failing

            with failing() as first:
                if first:
                    _explain(e, bool(kwargs.get("as_json")), "resume" in kwargs)
            mistake = isinstance(e, PeltError) and not all(d.code in NO_MISTAKES for d in e.diagnostics)
            raise SystemExit(MISTAKES if mistake else OTHER) from None

    return run  # type: ignore[return-value]


def _explain(e: BaseException, as_json: bool, resumes: bool) -> None:
    if isinstance(e, PeltError):
        report(e.diagnostics, as_json)
    elif isinstance(e, KeyboardInterrupt):
        hint = "; the same command with `--resume` goes on from the last checkpoint" if resumes else ""
        say(f"\ninterrupted{hint}")
    elif isinstance(e, BrokenPipeError):
        # The reader of a pipe has gone; python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    elif isinstance(e, OSError):
        where = f" `{e.filename}`" if e.filename else ""
        failed(f"{e.strerror or e}{where}", as_json)
    else:
        failed(f"this is a mistake in unipelt, not in your input: {type(e).__name__}: {e}", as_json)
        say("UNIPELT_TRACEBACK=1 shows where; please report it")


def colored(stream: Any) -> bool:
    """Whether text for this stream may be coloured: it is a terminal, and nobody asked for none (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def report(diagnostics: Sequence[Any], as_json: bool) -> None:
    """Mistakes: rendered on stderr, or as JSON on stdout."""
    from ..language.render import render_all, to_json

    if as_json:
        emit({"ok": False, "diagnostics": [to_json(d) for d in diagnostics]})
    elif diagnostics:
        say(render_all(diagnostics, color=colored(sys.stderr)))


def failed(reason: str, as_json: bool) -> None:
    if as_json:
        emit({"ok": False, "reason": reason})
    else:
        say(f"error: {reason}")


# ---------------------------------------------------------------- tables


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Rows under their columns, on stdout; numbers at the right, long texts wrapped."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDTH
    console = Console(file=io.StringIO(), width=width, highlight=False)
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        numbers = all(isinstance(r.get(column), (int, float)) for r in rows if r.get(column) is not None)
        shown.add_column(column, justify="right" if numbers and rows else "left", overflow="fold")
    for row in rows:
        # As text, not markup: a spec's text must not be read as a style.
        shown.add_row(*(Text(cell(row.get(c))) for c in columns))
    with console.capture() as captured:
        console.print(shown)
    # Without the padding that fills each line: what is printed can be compared and pasted.
    print("\n".join(line.rstrip() for line in captured.get().rstrip().split("\n")) + "\n")


def cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
