"""Which state of the repository a record speaks of."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True, cwd=ROOT).stdout.strip()


def changed() -> bool:
    """Whether there are changes that are not committed; records of earlier runs are none."""
    return bool(git("status", "--porcelain", "--", ".", ":!benchmarks/results"))


def commit() -> str:
    """The commit that is measured, with a word behind it where the tree is not what was committed."""
    return git("rev-parse", "--short", "HEAD") + (" and changes" if changed() else "")
