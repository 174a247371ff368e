"""Where the recordings are, and what was found of them (shown at the end of a run by ``conftest.py``)."""

from __future__ import annotations

import os
from pathlib import Path

COUNT = 80  # recordings there are
RESULTS: list[tuple[str, float, float, str]] = []  # name, output error, gradient error, explanation


def _folder() -> Path | None:
    given = os.environ.get("UNIPELT_FIXTURES")
    if given:
        if not Path(given).is_dir():
            raise FileNotFoundError(f"UNIPELT_FIXTURES names {given}, which is no folder")
        return Path(given)
    beside = Path(__file__).resolve().parents[3] / "shared" / "fixtures"
    return beside if beside.is_dir() else None


FOLDER = _folder()


def listed(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.safetensors"))
