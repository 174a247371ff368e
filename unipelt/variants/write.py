"""Members as readable `.pelt` files: each stands alone, with the definitions of the space's own file that it uses."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from os.path import exists, isdir
from pathlib import Path

from ..language.syntax import nodes as S
from ..language.report.diagnostics import PeltError, error
from ..language.ir import as_definition
from ..language.library import Key, key_of, of_library
from ..language.check.names import Names
from ..language.syntax.printer import to_text
from .generate import Member


def file_of(member: Member, names: Names) -> str:
    """The text of a member's file: with the definitions that it calls, or, where two of one name meet, with what they say."""
    needed = _needed(member.definition, names)
    if needed is None:
        method = replace(member.method, params=member.definition.params, doc=member.definition.doc)
        return to_text(S.File((), (as_definition(method),)))
    return to_text(S.File((), (*needed, member.definition)))


def _needed(definition: S.MethodDef, names: Names) -> list[S.Definition] | None:
    """The definitions outside the library that a definition calls, those they call first. None, where two have one name."""
    found: dict[Key, S.Definition] = {}
    todo: list[S.Definition] = [definition]
    try:
        while todo:
            for used in names.called(todo.pop()):
                if used is definition:
                    continue
                if key_of(used) not in found and not of_library(used.span):
                    todo.append(used)
                if found.setdefault(key_of(used), used) is not used:
                    return None
    except PeltError:  # a name of several meanings, one of which it has here
        return None
    return [d for d in reversed(found.values()) if not of_library(d.span)]


def refuse_full(folder: Path) -> None:
    """Raises `PeltError` if the folder holds something: nothing is overwritten."""
    if exists(folder) and not isdir(folder):
        raise error("E0801", f"`{folder}` exists and is no folder", help="give another `--out`")
    if exists(folder) and any(folder.iterdir()):
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
        if exists(folder):
            folder.rmdir()
        os.rename(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return [folder / f"{m.name}.pelt" for m in members]
