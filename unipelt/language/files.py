"""Files that may come from anyone: one rule for all that read and write them.

A file is a regular file of the folder it lies in. A link that leads out of it would bring in, print, push or overwrite what its
author cannot see but the user can. The hub's cache, whose snapshots link to the blobs beside them, links inside itself.
"""

from __future__ import annotations

from pathlib import Path


def leaves(path: Path) -> bool:
    """Whether a file is a link that leads out of the folder it lies in."""
    if not path.is_symlink():
        return False
    home, target = path.parent.resolve(), path.resolve()
    return not (target.is_relative_to(home) or any(target.is_relative_to(blobs) for blobs in _blobs(home)))


def _blobs(home: Path) -> list[Path]:
    """Where the hub's cache keeps the files of a snapshot, if the folder is one or lies in one."""
    snapshots = [p for p in (home, *home.parents) if p.parent.name == "snapshots" and "--" in p.parent.parent.name]
    return [p.parent.parent / "blobs" for p in snapshots]
