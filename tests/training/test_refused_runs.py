"""Runs that cannot begin: what is said, with what to do about it, and that no folder is made for them."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_tasks
import torch
from mistakes import mistake
from tiny_hf import write_tokenizer

from unipelt.training import TrainConfig, ranks, train

FROZEN = """
method still(r: int = 2) {
  modify attn.q   insert parallel
  form { frozen A: [d_in, d_out] ~ normal(0.1)   delta = z @ A }   compose h + delta
}
"""


@pytest.fixture
def config(spec: str, intents: str, bert: str, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        method=f"{spec}:small", model=bert, data=intents, out=str(tmp_path / "run"), max_steps=1, max_length=16
    )


def refused(code: str, config: TrainConfig) -> str:
    """What is said of a run that cannot begin; it leaves no folder, and no variable of a launcher changed."""
    before = dict(os.environ)
    message, remedy = mistake(code, train, config)
    assert not Path(config.out).exists()
    assert {n: v for n, v in os.environ.items() if n.startswith("ACCELERATE")} == {
        n: v for n, v in before.items() if n.startswith("ACCELERATE")}  # fmt: skip
    return f"{message}; {remedy}"


# ---------------------------------------------------------------- tokenizers


@pytest.fixture
def copied(bert: str, tmp_path: Path) -> Path:
    """The tiny model in a folder of its own, whose tokenizer a test may spoil."""
    place = tmp_path / "model"
    place.mkdir()
    for file in Path(bert).iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    return place


def respecified(place: Path, **changes: Any) -> None:
    path = place / "tokenizer_config.json"
    found = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in found.items() if v is not None}))


def test_a_tokenizer_without_a_padding_and_an_end_token(config: TrainConfig, copied: Path) -> None:
    respecified(copied, pad_token=None, eos_token=None)
    said = refused("E0614", replace(config, model=str(copied)))
    assert str(copied) in said and "set `pad_token` in its tokenizer_config.json" in said
    respecified(copied, eos_token="[SEP]")  # which stands for the other, too
    train(replace(config, model=str(copied), report=False))


@pytest.mark.parametrize(
    "make, kind", [(tiny_tasks.tagged, "token-classification"), (tiny_tasks.asked, "question-answering")]
)
def test_a_tokenizer_that_does_not_tell_where_its_tokens_stand(
    make: Any, kind: str, config: TrainConfig, copied: Path
) -> None:
    (copied / "tokenizer.json").unlink()
    respecified(copied, tokenizer_class="CanineTokenizer")  # one that is made of Python alone
    data = tiny_tasks.splits(copied.parent / "data", make, 6, 3)
    said = refused("E0634", replace(config, model=str(copied), data=data, task=kind))
    assert kind in said and "CanineTokenizer" in said and "a fast tokenizer" in said


# ---------------------------------------------------------------- methods and models


@pytest.mark.parametrize("head", [False, True])
def test_a_method_that_trains_nothing(
    head: bool, config: TrainConfig, gpt2: str, completions: str, tmp_path: Path
) -> None:
    """A language model has no head that would be trained with it; one that classifies has."""
    (tmp_path / "still.pelt").write_text(FROZEN)
    config = replace(config, method=str(tmp_path / "still.pelt"), report=False)
    if head:
        assert train(config).counts["head"] > 0
    else:
        assert "`still` trains nothing" in refused("E0622", replace(config, model=gpt2, data=completions))


def test_a_model_that_cannot_recompute_its_activations(config: TrainConfig, tmp_path: Path) -> None:
    from transformers import AlbertConfig, AlbertModel

    place = tmp_path / "albert"
    words = write_tokenizer(place)
    sizes: Any = dict(
        embedding_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    AlbertModel(AlbertConfig(vocab_size=len(words), **sizes)).save_pretrained(place)
    said = refused("E0665", replace(config, model=str(place), checkpointing=True))
    assert "AlbertForSequenceClassification" in said and "leave `--checkpointing` out" in said


# ---------------------------------------------------------------- options and launchers


@pytest.mark.parametrize("options, code, said", [
    ({"batch_size": 1, "accumulate": 2}, "E0662", "a batch of 1 cannot be spread over 1 process × 2 parts; .*give 2 or more"),
    ({"batch_size": 8, "accumulate": 9}, "E0662", "over 1 process × 9 parts; .*give 9 or more"),
    ({"log_to": ("wandbb",)}, "E0664", "there is no logger `wandbb`"),
    ({"log_to": ("a diary",)}, "E0664", r"`a diary` here; install its package \(pip install a diary\)"),
    ({"precision": "fp16"}, "E0663", "fp16 needs a GPU.*--precision bf16"),
    ({"optimizer": "lomo"}, "E0666", "the optimizer lomo is not there: .*pip install.*choose another `--optimizer`"),
    ({"optimizer": "schedule_free_sgd"}, "E0666", "schedulefree"),
])  # fmt: skip
def test_options_that_cannot_be_kept_here(
    options: Any, code: str, said: str, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "on_cpu", lambda: True)
    assert re.search(said, refused(code, replace(config, **options)), re.DOTALL)


@pytest.mark.parametrize("variables, code, said", [
    ({"USE_DEEPSPEED": "true"}, "E0661", "asks for DEEPSPEED"),
    ({"USE_MEGATRON_LM": "1"}, "E0661", "asks for MEGATRON_LM"),
    ({"USE_FSDP": "true"}, "E0661", "asks for FSDP 1, .*fsdp_version: 2"),
    ({"MIXED_PRECISION": "fp8"}, "E0663", "asks for the precision fp8; use no, bf16, fp16"),
    ({"MIXED_PRECISION": "fp16"}, "E0663", "fp16 needs a GPU"),
])  # fmt: skip
def test_what_a_launcher_asks_for(
    variables: dict, code: str, said: str, config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "on_cpu", lambda: True)
    for name, value in variables.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    assert re.search(said, refused(code, config))


def test_a_gpu_that_does_not_compute_in_bf16(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "on_cpu", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert "use `--precision fp16`" in refused("E0663", replace(config, precision="bf16"))


def test_an_optimizer_that_needs_whole_tensors(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "on_cpu", lambda: False)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    said = refused("E0666", replace(config, optimizer="adafactor"))
    assert "the optimizer adafactor needs whole tensors" in said and "use adamw_torch" in said
