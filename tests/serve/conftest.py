"""A tiny decoder with adapters of several methods in a folder, and a tiny encoder: what the tests of the server share."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

TRAINING = str(Path(__file__).parent.parent / "training")
if TRAINING not in sys.path:
    sys.path.insert(0, TRAINING)

from served import METHODS, TEMPLATE, Plain, adapted, write_adapter
from tiny_hf import write_bert, write_tokenizer


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("serve") / "base"
    tokenizer = write_tokenizer(folder, chat_template=TEMPLATE)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2000, bos_token_id=2, eos_token_id=3, pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


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
