"""Adapters on disk by name. A request names one; the name is looked up here and never becomes part of a path.

``roots`` are folders of adapters, or adapters themselves. `refresh` looks again and puts a new table in place of the old one, so
that whoever reads it in another thread sees one state or the other. No torch.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os.path import isfile
from pathlib import Path

from ..interchange.folders import ADAPTERS, HEAD, PEFT
from ..language.report.diagnostics import error, near, near_path
from ..runtime.hub import MANIFEST, METHOD, TASK, WEIGHTS
from ..runtime.switch import ADAPTER_NAME
from .refusals import Refusal, wrong

#: The files that make an adapter: when one of them changes the adapter is read again.
FILES = tuple(
    dict.fromkeys((MANIFEST, METHOD, WEIGHTS, TASK, *(n for f in (PEFT, ADAPTERS, HEAD) for n in (f.config, f.weights, f.pickled))))
)  # fmt: skip
#: How the files of a folder are told from those that were there before.
Stamp = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class Entry:
    """An adapter's folder as it was at the last look."""

    name: str
    folder: Path
    stamp: Stamp

    def has(self, file: str) -> bool:
        return any(name == file for name, *_ in self.stamp)

    @property
    def foreign(self) -> bool:
        """Whether another library wrote it."""
        return not self.has(MANIFEST)


@dataclass(frozen=True)
class Table:
    """What a look found: adapters by name, and folders that cannot be served, with the reasons."""

    entries: Mapping[str, Entry] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)


class Catalogue:
    """``base`` is what requests call the base."""

    def __init__(self, base: str, roots: Sequence[str | Path]):
        self.base, self.roots = base, [Path(os.path.realpath(r)) for r in roots]
        for given, root in zip(roots, self.roots):
            if not root.is_dir():
                raise error("E0860", f"there is no folder `{given}`", help=near_path(Path(given), folders=True)
                            or "name a folder of adapters, or an adapter's own")  # fmt: skip
        self.table = Table()
        self._looking = threading.Lock()
        self.refresh()

    def refresh(self) -> bool:
        """Looks into the folders; whether anything is otherwise than before."""
        with self._looking:
            found: dict[str, Entry] = {}
            refused: dict[str, str] = {}
            for root in self.roots:
                for folder in _folders(root):
                    name, stamp = folder.name, _stamp(folder)
                    if stamp is None:
                        continue
                    reason = self._reason(name, folder, found)
                    if reason:
                        refused[str(folder)] = reason
                    else:
                        found[name] = Entry(name, folder, stamp)
            new = Table(found, refused)
            changed, self.table = new != self.table, new
            return changed

    def _reason(self, name: str, folder: Path, found: Mapping[str, Entry]) -> str:
        """Why a folder is not served; nothing where it is."""
        if not ADAPTER_NAME.fullmatch(name):
            return "its name is no adapter's: letters, digits, `_` and `-`"
        if folder.is_symlink():
            return "it is a link"
        if name == self.base:
            return "the base has that name"
        if name in found:
            return f"there is another of that name in {found[name].folder.parent}"
        return ""

    def find(self, name: str) -> Entry:
        """Raises `Refusal` for a name that no adapter has."""
        entry = self.table.entries.get(name)
        if entry is None:
            raise self._unknown(name)
        return entry

    def _unknown(self, name: str) -> Refusal:
        known = [self.base, *self.table.entries]
        shown = name if len(name) <= 80 else f"{name[:80]}…"
        close = near(name[:80], known)
        if not close and len(known) <= 10:
            close = f"there are {', '.join(f'`{k}`' for k in known)}"
        return wrong("model_not_found", f"there is no adapter `{shown}`; {close or 'GET /v1/models lists them'}", "model", 404)  # fmt: skip


def _folders(root: Path) -> Iterator[Path]:
    """The folders that may be adapters; what vanishes meanwhile is left out."""
    if any(isfile(root / name) for name in (MANIFEST, PEFT.config)):
        yield root
        return
    try:
        with os.scandir(root) as found:
            names = sorted(e.name for e in found if not e.name.startswith(".") and e.is_dir())
    except OSError:
        return
    yield from (root / name for name in names)


def _stamp(folder: Path) -> Stamp | None:
    """None where the folder holds no adapter."""
    found = []
    for name in FILES:
        try:
            s = os.stat(folder / name)
        except OSError:
            continue
        found.append((name, s.st_size, s.st_mtime_ns, s.st_ino))
    return tuple(found) if {MANIFEST, PEFT.config} & {name for name, *_ in found} else None
