"""Folders of another library's that hold several adapters: each but one called ``default`` in a subfolder of its name."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from os.path import isdir, isfile
from pathlib import Path

from torch import nn

from ..language.report.diagnostics import PeltError, error
from ..runtime.attach import unchanged
from ..runtime.folder import FOREIGN
from ..runtime.hub import MANIFEST

DEFAULT = "default"
#: What a trainer writes beside the adapter that it ended with.
_CHECKPOINT = re.compile(r"checkpoint-\d+")


def inside(folder: Path) -> dict[str, Path]:
    """All adapters of another library's in a folder, by name: those of its subfolders, and last the one that lies in it itself.

    A trainer's checkpoints are earlier states of the adapter that lies beside them, and none of their own.
    """
    own = isfile(folder / FOREIGN)
    below = {n: folder / n for n in sorted(os.listdir(folder))} if isdir(folder) else {}
    found = {
        n: at for n, at in below.items()
        if isfile(at / FOREIGN) and not isfile(at / MANIFEST) and not (own and _CHECKPOINT.fullmatch(n))
    }  # fmt: skip
    return {**found, **({DEFAULT: folder} if own else {})}


def chosen(folder: Path, name: str | None) -> dict[str, Path]:
    """Those that are meant, by the names that they get: all of them, or the one of a name; where there is one it gets that name. Raises `PeltError`."""
    found = inside(folder)
    if name is None and found:
        return found
    if name in found:
        return {name: found[name]}
    if DEFAULT not in found and len(found) > 1:
        raise error("E0533", f"{folder} holds the adapters {listed(found)}, and none named `{name}`",
                    help="name one of them, or the folder of one; without a name all are taken")  # fmt: skip
    return {name or DEFAULT: folder if DEFAULT in found else next(iter(found.values()), folder)}


def listed(names: Mapping[str, object]) -> str:
    return ", ".join(f"`{n}`" for n in names)


def each(model: nn.Module, folder: Path, name: str | None, bring: Callable[[Path, str], object]) -> str:
    """Brings those that are meant in, all or none, and returns the name of the last one, which acts."""
    found = chosen(folder, name)
    with unchanged(model):
        for own, at in found.items():
            try:
                bring(at, own)
            except PeltError as e:
                raise e if len(found) == 1 else _named(e, own) from None
    return list(found)[-1]


def _named(e: PeltError, name: str) -> PeltError:
    return PeltError([replace(d, message=f"of the adapter `{name}`: {d.message}") for d in e.diagnostics])
