import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
for folder in (HERE.parent / "training", HERE):  # the tiny tokenizer is there
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from tiny import Bases


@pytest.fixture(scope="session")
def shared_bases():
    return Bases()


@pytest.fixture
def bases(shared_bases):
    """Lends base models; a test must give each back exactly as it was."""
    yield shared_bases
    changed = shared_bases.take_back()
    assert not changed, f"these bases were not given back as they were: {changed}"
