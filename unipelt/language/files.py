"""Files that may come from anyone: one rule for all that read and write them.

A file is a regular file of the folder it lies in. A link that leads out of it would bring in, print, push or overwrite what its
author cannot see but the user can. The hub's cache, whose snapshots link to the blobs beside them, links inside itself.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


def leaves(path: Path) -> bool:
    """Whether a file is a link that leads out of the folder it lies in."""
    if not os.path.islink(path):
        return False
    home, target = Path(os.path.realpath(path.parent)), Path(os.path.realpath(path))
    return not (target.is_relative_to(home) or any(target.is_relative_to(blobs) for blobs in _blobs(home)))


def _blobs(home: Path) -> list[Path]:
    """Where the hub's cache keeps the files of a snapshot, if the folder is one or lies in one."""
    snapshots = [p for p in (home, *home.parents) if p.parent.name == "snapshots" and "--" in p.parent.parent.name]
    return [p.parent.parent / "blobs" for p in snapshots]


# ---------------------------------------------------------------- read, and written


class Refused(OSError):
    """A file that is not read. Its text says why, as in "it leads out of the folder"."""


def check(path: Path) -> None:
    """Raises OSError unless a regular file lies there, inside its folder. For libraries that open it themselves."""
    if leaves(path):
        raise Refused("it is a link that leads out of its folder")
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise Refused("it is not a regular file")


def contents(path: Path, most: int) -> bytes:
    """The bytes of a file inside its folder, at most ``most`` of them, read once.

    Raises OSError: `Refused` for another thing than a regular file, for a link out of the folder, and for too large a file.
    """
    check(path)
    target = os.path.realpath(path)
    # Without waiting: opening a pipe would wait for a writer.
    handle = os.open(
        target, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    )
    with open(handle, "rb") as f:
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise Refused("it is not a regular file")
        if found.st_size > most:
            raise Refused(f"it has {found.st_size:,} bytes, and at most {most:,} are read")
        data = f.read(found.st_size + 1)
    if len(data) > most:
        raise Refused(f"it has more than the {most:,} bytes that are read")
    return data


def reason(e: Exception) -> str:
    """Why a file was not read or written, in a few words."""
    return str(getattr(e, "strerror", None) or e or type(e).__name__)


def replace(path: Path, data: bytes, mode: int | None = None, synced: bool = True) -> None:
    """Writes a file beside its place under a name of its own, syncs it and renames it. Raises OSError; nothing is then left.

    Without ``synced`` the machine may lose it when it stops: for what can be made again.
    """
    part = path.with_name(f"{part_prefix(path.name)}{os.urandom(4).hex()}")
    try:
        with open(part, "xb") as f:  # a file of its own: never through a link that lies there
            f.write(data)
            if synced:
                f.flush()
                os.fsync(f.fileno())
        if mode is not None:
            os.chmod(part, mode)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def part_prefix(name: str) -> str:
    """How the names of a file's unfinished parts begin."""
    return f".{name}.part-"
