"""Where the recordings are, and what is said of them at the end of a run."""

from __future__ import annotations

import os
from pathlib import Path

COUNT = 80  # recordings there are


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


def summary(results: list[tuple[str, float, float, str]]) -> str:
    """How many recordings were compared; of each: name, error of the output, of the gradient, explained difference."""
    if FOLDER is None:
        return f"fidelity: {COUNT} recordings were not run: UNIPELT_FIXTURES is not set"
    explained = {name for name, _, _, why in results if why}
    return (
        f"fidelity: {len({name for name, *_ in results})} of {COUNT} recordings compared in tests/fidelity ({len(explained)} "
        f"with an explained difference of method or call), the others by the references in tests/zoo; largest error of an "
        f"output {max((r[1] for r in results), default=0):.1e}, of a gradient "
        f"{max((r[2] for r in results), default=0):.1e} of its largest entry"
    )
