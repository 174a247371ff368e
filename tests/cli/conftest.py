"""The command line's tests use the tiny models of the training tests."""

import sys
from pathlib import Path

TRAINING = str(Path(__file__).parent.parent / "training")
if TRAINING not in sys.path:
    sys.path.insert(0, TRAINING)

import pytest
from tiny_hf import write_bert, write_gpt2, write_intents, write_spec


@pytest.fixture(scope="session")
def spec(tmp_path_factory):
    return write_spec(tmp_path_factory.mktemp("spec"))


@pytest.fixture(scope="session")
def intents(tmp_path_factory):
    return str(write_intents(tmp_path_factory.mktemp("intents")))


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    import torch

    torch.set_num_threads(1)
    return write_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory):
    return write_gpt2(tmp_path_factory.mktemp("gpt2"))
