"""The entry point of the command `unipelt`."""

from __future__ import annotations

import gc
import io
import sys
from pathlib import Path

from ..language.report.diagnostics import error
from .output import MISTAKES, OK, USAGE, guarded, say


#: The commands that may run in several processes. Any other would do everything several times.
SPREAD = ("train", "eval")


def main() -> None:
    """Run the command line. Several processes join before anything can fail, so that one reports for all."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["check"]:
        paths = [a for a in arguments[1:] if a not in ("--json", "--sarif")]
        if paths and not any(p.startswith("-") for p in paths):
            # What editors and hooks call at every save: building typer's commands would take most of its time.
            raise SystemExit(_check(paths, as_json="--json" in arguments, as_sarif="--sarif" in arguments))
    from ..training import ranks
    from .app import app

    ranks.join()
    try:
        if ranks.launched():
            _one_process(arguments[:1])
        raise SystemExit(app(standalone_mode=False) or OK)
    except Exception as e:
        if not hasattr(e, "show"):
            raise
        with ranks.failing() as first:
            if first:
                shown = io.StringIO()
                e.show(file=shown)  # a usage error of the command line's; it quotes what was typed
                say(shown.getvalue().rstrip("\n"))
        raise SystemExit(USAGE) from None
    finally:
        ranks.leave()


@guarded
def _one_process(command: list[str]) -> None:
    if command and not command[0].startswith("-") and command[0] not in SPREAD:
        raise error("E0667", f"`unipelt {command[0]}` runs in one process", help="call it without the launcher")


@guarded
def _check(paths: list[str], as_json: bool, as_sarif: bool) -> int:
    # A check makes many small values and few circles of them: looking for those took two fifths of its time, half at its end.
    gc.set_threshold(1_000_000)
    # The parser's library tries two others, for checks of grammars that ours has passed: a quarter of a check's time.
    # Nothing else in this process asks for them.
    for unused in ("interegular", "regex"):
        sys.modules.setdefault(unused, None)  # type: ignore[arg-type]
    from .methods import check_paths

    try:
        return OK if check_paths([Path(p) for p in paths], as_json, as_sarif) else MISTAKES
    finally:
        gc.freeze()


if __name__ == "__main__":
    main()
