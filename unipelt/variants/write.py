"""Members as readable `.pelt` files: each stands alone, with the definitions of the space's own file that it uses."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ..language import syntax as S
from ..language.diagnostics import error
from ..language.library import Names
from ..language.printer import to_text
from .generate import Member

_KINDS = ("form", "compose", "gate", "method")


def file_of(member: Member, names: Names) -> str:
    """The text of a member's file."""
    return to_text(S.File((), (*_needed(member.definition, names), member.definition)))


def _needed(definition: S.Definition, names: Names) -> list[S.Definition]:
    """The definitions outside the library that a definition calls, those they call first."""
    own = {**names.imported, **names.own}
    found: dict[tuple[str, str], S.Definition] = {}

    def visit(d: S.Definition) -> None:
        called = {n.id for n in S.walk(d) if isinstance(n, S.Name)}
        for kind in _KINDS:
            for name in sorted(called):
                used = own.get((kind, name))
                if used is not None and (kind, name) not in found and used is not definition:
                    found[(kind, name)] = used
                    visit(used)

    visit(definition)
    return list(reversed(found.values()))


def refuse_full(folder: Path) -> None:
    """Nothing is written over: raises `PeltError` where something stands already."""
    if folder.exists() and not folder.is_dir():
        raise error("E0801", f"`{folder}` exists and is no folder", help="give another `--out`")
    if folder.exists() and any(folder.iterdir()):
        raise error("E0801", f"`{folder}` exists and is not empty", help="give another `--out`")


def write(members: Sequence[Member], names: Names, folder: Path) -> list[Path]:
    """One file for each member, named after it. The folder must be new or empty; it appears whole or not at all."""
    refuse_full(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for m in members:
            (staging / f"{m.name}.pelt").write_text(file_of(m, names), encoding="utf-8")
        os.chmod(staging, 0o755)
        if folder.exists():
            folder.rmdir()
        os.rename(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return [folder / f"{m.name}.pelt" for m in members]
