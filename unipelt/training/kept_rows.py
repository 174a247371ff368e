"""A file of tensors by key, for hidden states that are computed once: bounded, checked at each reading, whole after a crash.

It is a SQLite file: a row is written in a transaction, or it is not there. Several processes may share it.
"""

from __future__ import annotations

import sqlite3
import threading
import zlib
from pathlib import Path

import torch

from ..language.report.diagnostics import error

#: Of what these files are, told apart from other SQLite files.
_MARK = "unipelt trunk 1"
_DTYPES = {str(d): d for d in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}


class KeptRows:
    """Tensors by key (bytes), in memory and, with a path, in a file. ``most`` bounds the bytes of each: what does not fit is not kept.

    ``model`` says what the tensors were computed by: a file of another model is refused. Not a number is kept of a tensor whose
    bytes do not have their checksum any more: it is left out, counted in ``damaged``, and computed again.
    """

    def __init__(self, path: Path | None, model: str, most: int):
        self.memory: dict[bytes, torch.Tensor] = {}
        self.most, self.bytes, self.damaged = most, 0, 0
        self.file: sqlite3.Connection | None = None
        self.lock = threading.Lock()
        if path is not None:
            self.file = _opened(path, model)
            self.on_disk = int(self.file.execute("SELECT coalesce(sum(length(data)), 0) FROM rows").fetchone()[0])

    def get(self, key: bytes) -> torch.Tensor | None:
        found = self.memory.get(key)
        if found is not None or self.file is None:
            return found
        with self.lock:
            row = self.file.execute("SELECT dtype, shape, crc, data FROM rows WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        dtype, shape, crc, data = row
        sizes = tuple(int(n) for n in str(shape).split(","))
        if zlib.crc32(data) != crc or dtype not in _DTYPES:
            self.damaged += 1
            with self.lock, self.file:
                self.file.execute("DELETE FROM rows WHERE key = ?", (key,))
            return None
        t = torch.frombuffer(bytearray(data), dtype=_DTYPES[dtype]).reshape(sizes)
        self._remember(key, t)
        return t

    def put(self, rows: dict[bytes, torch.Tensor]) -> None:
        """Keeps some rows; those of a file in one transaction."""
        written = []
        for key, t in rows.items():
            t = t.detach().cpu().contiguous().clone()
            self._remember(key, t)
            if self.file is not None and self.on_disk + t.nbytes <= self.most:
                data = t.reshape(-1).view(torch.uint8).numpy().tobytes()
                written.append((key, str(t.dtype), ",".join(map(str, t.shape)), zlib.crc32(data), data))
                self.on_disk += len(data)
        if self.file is not None and written:
            with self.lock, self.file:
                self.file.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?)", written)

    def _remember(self, key: bytes, t: torch.Tensor) -> None:
        if key not in self.memory and self.bytes + t.nbytes <= self.most:
            self.memory[key] = t
            self.bytes += t.nbytes

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None
        self.memory.clear()


def _opened(path: Path, model: str) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = sqlite3.connect(path, timeout=60.0, check_same_thread=False)
        file.execute("PRAGMA journal_mode = WAL")
        with file:
            file.execute("CREATE TABLE IF NOT EXISTS about (mark TEXT, model TEXT)")
            file.execute(
                "CREATE TABLE IF NOT EXISTS rows (key BLOB PRIMARY KEY, dtype TEXT, shape TEXT, crc INTEGER, data BLOB)"
            )
            if file.execute("SELECT count(*) FROM about").fetchone()[0] == 0:
                file.execute("INSERT INTO about VALUES (?, ?)", (_MARK, model))
        mark, of = file.execute("SELECT mark, model FROM about").fetchone()
    except (sqlite3.Error, OSError, TypeError, ValueError) as e:
        raise error(
            "E0782", f"the cache `{path}` is not read: {e}", help="take it away, or name another folder"
        ) from None
    if mark != _MARK or of != model:
        file.close()
        raise error(
            "E0782",
            f"the cache `{path}` is of another model or another version",
            help="take it away, or name another folder",
        )
    return file
