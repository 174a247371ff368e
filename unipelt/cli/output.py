"""What commands print: results on stdout, everything else on stderr; mistakes with their places; exit codes.

Every command writes to the terminal through this module. Specs, records, labels and file names may come from anyone, so
characters that move the cursor, colour the screen or turn the direction of writing are escaped here.
"""

from __future__ import annotations

import functools
import io
import json
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from ..language.report.diagnostics import PeltError
from ..language.report.render import escape

#: Columns of a table where stdout is no terminal.
WIDTH = 120
OK, MISTAKES, USAGE, OTHER = 0, 1, 2, 3
#: Codes of errors that are no mistakes in the input: the run is complete already; an adapter could not be written; a file gives
#: not what its model gives; the hub cannot be reached.
NO_MISTAKES = ("E0618", "E0575", "E0756", "E0823")
#: Codes of options that are wrong by themselves or together.
MISUSE = ("E0620", "E0805", "E0812")
Command = TypeVar("Command", bound=Callable[..., Any])


def visible(text: str) -> str:
    """The text with every character escaped that would control a terminal; line ends stay."""
    return "\n".join(map(escape, text.split("\n")))


def say(text: str = "", styled: bool = False) -> None:
    """A line for people, on stderr. ``styled``: the text is escaped already and has our own colours."""
    print(text if styled else visible(text), file=sys.stderr, flush=True)


def tell(text: str = "", styled: bool = False) -> None:
    """A result for people, on stdout. ``styled`` is as in `say`."""
    print(text if styled else visible(text))


def on_terminal(stream: Any) -> bool:
    """Whether people read a stream directly."""
    return stream.isatty()


def pour(text: str) -> None:
    """A text that may go into a file, on stdout: exactly as it is, but escaped on a terminal. No line end is added."""
    # Half of a pair of UTF-16 is no character: no encoding takes it.
    sys.stdout.write(visible(text) if on_terminal(sys.stdout) else text.encode(errors="backslashreplace").decode())


def emit(value: Any) -> None:
    """A result for programs, on stdout: JSON in which what cannot be seen is written as an escape."""
    text = json.dumps(value, indent=1, ensure_ascii=False, default=str)
    print("\n".join(line if line.isprintable() else "".join(map(_json_character, line)) for line in text.split("\n")))


def _json_character(char: str) -> str:
    """A character as JSON writes it: one that cannot be seen as an escape, of one or two units of UTF-16."""
    if char.isprintable():
        return char
    units = char.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))


def columns() -> int:
    """How many columns a line may have: the terminal's, or a fixed number where stdout is none."""
    return shutil.get_terminal_size().columns if on_terminal(sys.stdout) or "COLUMNS" in os.environ else WIDTH


def cut(text: str, width: int) -> str:
    """The text as one line of at most ``width`` columns; what is left out is shown by an ellipsis."""
    from rich.cells import set_cell_size

    line = visible(" ".join(text.split()))
    return line if len(line) <= width else set_cell_size(line, width - 1).rstrip() + "…"


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
            if type(e).__module__.startswith("typer") or (
                os.environ.get("UNIPELT_TRACEBACK") and not isinstance(e, PeltError)
            ):
                raise
            from ..training.ranks import failing

            with failing() as first:
                if first:
                    _explain(e, bool(kwargs.get("as_json")), "resume" in kwargs)
            raise SystemExit(_exit_code(e)) from None

    return run  # type: ignore[return-value]


def _exit_code(e: BaseException) -> int:
    codes = [d.code for d in e.diagnostics] if isinstance(e, PeltError) else []
    if all(c in NO_MISTAKES for c in codes):  # no code: no mistake of the user's
        return OTHER
    return USAGE if all(c in MISUSE for c in codes) else MISTAKES


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
    from ..language.report.render import render_all, to_json

    if as_json:
        emit({"ok": False, "diagnostics": [to_json(d) for d in diagnostics]})
    elif diagnostics:
        say(render_all(diagnostics, color=colored(sys.stderr)), styled=True)


def failed(reason: str, as_json: bool) -> None:
    if as_json:
        emit({"ok": False, "reason": reason})
    else:
        say(f"error: {reason}")


# ---------------------------------------------------------------- tables


#: Between two columns of a table.
GAP = 3


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Rows under their columns, on stdout; numbers at the right, long texts wrapped at spaces.

    Where a terminal is too narrow for the longest words of the columns side by side, each row is a block of lines.
    """
    cells = [[cell(row.get(c)) for c in columns] for row in rows]
    names = [visible(c) for c in columns]
    line = shutil.get_terminal_size().columns if on_terminal(sys.stdout) else WIDTH
    widths = _widths([(c, *(row[i] for row in cells)) for i, c in enumerate(names)], line - GAP * (len(columns) - 1))
    if widths is None:
        tell("\n\n".join(_block(names, row, line) for row in cells) + "\n")
    else:
        numbers = [
            all(isinstance(r.get(c), (int, float)) for r in rows if r.get(c) is not None) and bool(rows)
            for c in columns
        ]
        tell(_grid(names, cells, widths, numbers) + "\n")


def _widths(columns: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """A width for each column: the widest are cut down first, none below its longest word. None, where there is no room for these."""
    from rich.cells import cell_len

    whole = [max(map(cell_len, texts)) for texts in columns]
    least = [max((cell_len(word) for text in texts for word in text.split()), default=0) for texts in columns]
    if sum(least) > room:
        return None
    widths = [min(w, room) for w in whole]
    while sum(widths) > room:
        widest = max((w, -i) for i, w in enumerate(widths) if w > least[i])
        widths[-widest[1]] -= 1
    return widths


def _block(columns: Sequence[str], row: Sequence[str], width: int) -> str:
    """The cells of a row below one another, each beside its column's name; one without a name stays with the one before."""
    named: list[list[str]] = []
    for name, text in zip(columns, row):
        if name or not named:
            named.append([name, text])
        else:
            named[-1][1] += f": {text}"
    left = max(map(len, columns)) + 2
    lines: list[str] = []
    for name, text in named:
        for i, line in enumerate(
            textwrap.wrap(text, max(width - left, 20), break_long_words=False, break_on_hyphens=False)
        ):
            lines.append(f"{name if not i else '':<{left}}{line}")
    return "\n".join(lines)


def _grid(
    columns: Sequence[str], cells: Sequence[Sequence[str]], widths: Sequence[int], numbers: Sequence[bool]
) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(file=io.StringIO(), width=sum(widths) + GAP * len(widths), highlight=False)
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column, width, number in zip(columns, widths, numbers):
        shown.add_column(column, justify="right" if number else "left", width=width)
    for row in cells:
        # As text, not markup: a spec's text must not be read as a style.
        shown.add_row(*map(Text, row))
    with console.capture() as captured:
        console.print(shown)
    # Without the padding that fills each line: what is printed can be compared and pasted.
    return "\n".join(line.rstrip() for line in captured.get().rstrip().split("\n"))


def cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else visible(str(value))
