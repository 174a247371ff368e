"""The entry point of the command `unipelt`."""

from __future__ import annotations

import sys
from pathlib import Path

from .output import MISTAKES, OK, guarded


def main() -> None:
    """Run the command line."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["check"]:
        paths = [a for a in arguments[1:] if a != "--json"]
        if paths and not any(p.startswith("-") for p in paths):
            # What editors and hooks call at every save: building typer's commands would take most of its time.
            raise SystemExit(_check(paths, as_json="--json" in arguments))
    from .app import app

    app()


@guarded
def _check(paths: list[str], as_json: bool) -> int:
    from .methods import check_paths

    return OK if check_paths([Path(p) for p in paths], as_json) else MISTAKES


if __name__ == "__main__":
    main()
