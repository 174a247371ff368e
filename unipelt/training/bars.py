"""Bars on a terminal. Needs neither torch nor transformers."""

from __future__ import annotations

import sys
from typing import Any


def wanted(asked: bool | None) -> bool:
    """Whether a bar is shown: as asked, or by default on a terminal."""
    return sys.stderr.isatty() if asked is None else asked


def bar(what: str, unit: str, total: int, **more: Any) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=what, unit=unit, dynamic_ncols=True, file=sys.stderr, **more)


class Ticker:
    """A bar over the items that are done; without one it prints nothing."""

    def __init__(self, what: str, asked: bool | None = None, unit: str = "example"):
        self.what, self.unit, self.wanted = what, unit, wanted(asked)
        self.bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        if not self.wanted:
            return
        if self.bar is None:
            self.bar = bar(self.what, self.unit, total, leave=False)
        self.bar.update(done - self.bar.n)

    def __enter__(self) -> Ticker:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
