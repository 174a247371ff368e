"""A tiny decoder with adapters of several methods in a folder, and a tiny encoder: what the tests of the server share."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

TRAINING = str(Path(__file__).parent.parent / "training")
if TRAINING not in sys.path:
    sys.path.insert(0, TRAINING)

from served import METHODS, TEMPLATE, Heard, Plain, adapted, write_adapter
from tiny_hf import write_bert, write_llama


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_llama(tmp_path_factory.mktemp("serve") / "base", positions=2000, chat_template=TEMPLATE)


@pytest.fixture(scope="session")
def written(base: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plain]:
    folder, model = tmp_path_factory.mktemp("adapters"), adapted(base)
    for i, (name, (method, arguments)) in enumerate(METHODS.items()):
        write_adapter(model, folder / name, method, arguments, i)
    return folder, Plain(model)


@pytest.fixture
def folder(written: tuple[Path, Plain], tmp_path: Path) -> Path:
    """The adapters in a folder of the test's own."""
    return Path(shutil.copytree(written[0], tmp_path / "adapters"))


@pytest.fixture
def plain(written: tuple[Path, Plain]) -> Plain:
    return written[1]


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_bert(tmp_path_factory.mktemp("serve") / "bert")


@pytest.fixture
def heard() -> Heard:
    return Heard()
