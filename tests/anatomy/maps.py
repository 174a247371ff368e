"""The maps of tested architectures that are written down (`written`): what the finder finds must be equal to them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from unipelt.anatomy.find import OWN, anatomies, find
from unipelt.anatomy.sites import SiteMap
from unipelt.language.syntax.nodes import AnatomyDef

_FILES = sorted((Path(__file__).parent / "written").glob("*.pelt"))


@contextmanager
def known() -> Iterator[None]:
    """A block in which they are known, as anatomies of one's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(OWN, os.pathsep.join(map(str, _FILES)))
        yield


def written(model: Any) -> SiteMap:
    """The map of a model that is written down for its type."""
    with known():
        sites = find(model)
    assert sites.anatomy, f"none is written down for {type(model).__name__}"
    return sites


def anatomy(name: str) -> AnatomyDef:
    """One of them, with the entries of the one it is like."""
    with known():
        return next(a for a in anatomies() if a.name == name)


def entries(name: str, **changes: str) -> str:
    """The entries of one of them, as text; those of ``changes`` say something else (``_`` stands for the dot)."""
    said = dict(anatomy(name).entries) | {n.replace("_", "."): text for n, text in changes.items()}
    return "  ".join(f'{n}: "{text}"' for n, text in said.items())
