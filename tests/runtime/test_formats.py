"""Adapters that earlier versions saved are opened for ever: the committed folders of ``tests/data/format-*``.

The folders are never written again. What they hold (bases, adapters, logits) says `tests/data/make_adapters.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

import unipelt

DATA = Path(__file__).resolve().parent.parent / "data"
CLASSES: dict[str, Any] = {
    "bert": (BertForSequenceClassification, BertConfig),
    "gpt2": (GPT2LMHeadModel, GPT2Config),
}
RECORDED = {f.parent.name: json.loads(f.read_text()) for f in sorted(DATA.glob("format-*/outputs.json"))}
CASES = [(f, a) for f, found in RECORDED.items() for a in found["adapters"]]


def base(folder: str, kind: str) -> nn.Module:
    cls, config = CLASSES[kind]
    model = cls(config(**json.loads((DATA / folder / f"{kind}.json").read_text()))).eval()
    missing, surplus = model.load_state_dict(load_file(DATA / folder / f"{kind}.safetensors"), strict=False)
    assert not surplus and not any(n in dict(model.named_parameters()) for n in missing if n != "lm_head.weight")
    return model


def logits(model: nn.Module, folder: str) -> torch.Tensor:
    with torch.no_grad():
        return model(**{n: torch.tensor(v) for n, v in RECORDED[folder]["batch"].items()}).logits


def test_format_1_is_there() -> None:
    assert set(RECORDED["format-1"]["adapters"]) >= {"lora", "unipelt_apl", "prompt_tuning", "bitfit", "mean_head"}


@pytest.mark.parametrize(("folder", "adapter"), CASES, ids=[f"{f}-{a}" for f, a in CASES])
def test_a_saved_adapter_of_any_format_computes_what_it_did(folder: str, adapter: str) -> None:
    recorded = RECORDED[folder]["adapters"][adapter]
    model = base(folder, recorded["base"])
    before = logits(model, folder)
    assert unipelt.attach(model, DATA / folder / adapter) == "saved"
    wanted, found = torch.tensor(recorded["logits"]), logits(model, folder)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() < 1e-4
    assert found.shape != before.shape or (found - before).abs().max() > 0.05, "the adapter acts"
    stored = sum(t.numel() for t in unipelt.state_dict(model, "saved").values())
    counts = recorded["counts"]
    assert stored == counts["stored"] + counts["frozen"] + counts["head"]
    unipelt.remove(model, "saved")
    assert torch.equal(logits(model, folder), before)


@pytest.mark.parametrize(("folder", "adapter"), CASES, ids=[f"{f}-{a}" for f, a in CASES])
def test_it_is_saved_again_with_the_same_values(folder: str, adapter: str, tmp_path: Path) -> None:
    model = base(folder, RECORDED[folder]["adapters"][adapter]["base"])
    unipelt.attach(model, DATA / folder / adapter)
    again = unipelt.save(model, tmp_path / "again", "saved")
    old, new = (load_file(f / "adapter.safetensors") for f in (DATA / folder / adapter, again))
    assert old.keys() == new.keys() and all(torch.equal(old[n], new[n]) for n in old)
