"""Frozen trunks of networks of convolutions: stages run once, norms over the batch stay as they are, and plans say which blocks run once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from epochs import trained
from names import name as named
from small import model
from torch import nn
from transformers import ResNetConfig, ResNetForImageClassification

import unipelt
from unipelt.language.report.diagnostics import PeltError
from unipelt.training import cache_trunk

EDIT = """method x { modify module("resnet.encoder.stages.%d.layers.1.layer.0.convolution") insert parallel
  form { A: [d_in, 2] ~ normal(0.1) B: [2, d_out] ~ normal(0.1) delta = z @ A @ B } compose add }"""


def resnet(kind: str = "basic") -> nn.Module:
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12, 16], depths=[1, 2, 2], num_labels=3, layer_type=kind)
    m = ResNetForImageClassification(config).eval()
    with torch.no_grad():
        for n, b in m.named_buffers():
            if "running" in n:
                b.copy_(torch.rand(b.shape) + 0.5)
    return m


def pictures() -> list[dict[str, torch.Tensor]]:
    g = torch.Generator().manual_seed(4)
    return [
        {"pixel_values": torch.randn(2, 3, size, size, generator=g), "labels": torch.tensor([0, 2])}
        for size in (32, 48, 32)
    ]


def adapted(kind: str, method: Any = None) -> nn.Module:
    m = resnet(kind)
    unipelt.apply(m, unipelt.load(named("probing")) if method is None else unipelt.parse(method), seed=1)
    return m


@pytest.mark.parametrize(
    "kind, method, blocks", [("basic", None, 4), ("bottleneck", None, 4), ("bottleneck", EDIT % 2, 3)]
)
def test_the_stages_of_a_resnet_run_once(kind: str, method: str | None, blocks: int) -> None:
    """The first convolution and the first stages are passed over as well; pictures may differ in size."""
    losses, tensors = trained(adapted(kind, method), pictures())
    m = adapted(kind, method)
    runs: list[int] = []
    with cache_trunk(m) as trunk:
        for place in (m.resnet.embedder.pooler, m.resnet.encoder.stages[0].layers[0].activation):  # type: ignore[union-attr, index]
            place.register_forward_hook(lambda *_: runs.append(1))
        found, same = trained(m, pictures())
        assert trunk.blocks == blocks and (trunk.hits, trunk.misses) == (12, 6) and len(runs) == 6, (
            "once for each batch"
        )
    torch.testing.assert_close(found, losses, rtol=1e-5, atol=1e-6)
    assert all(torch.allclose(t, same[n], rtol=1e-5, atol=1e-6) for n, t in tensors.items())
    m(**pictures()[0])
    assert len(runs) == 8, "closed, everything runs again"


def test_an_edit_of_an_early_stage_is_below_all_blocks() -> None:
    """Its module is in no block that is known: what it changes reaches them all."""
    m = resnet("bottleneck")
    method = EDIT.replace("stages.%d.layers.1", "stages.0.layers.0")
    unipelt.apply(m, unipelt.parse(method))
    with pytest.raises(PeltError, match="is edited, and no block lies below"):
        cache_trunk(m)
    assert unipelt.plan(resnet("bottleneck"), unipelt.parse(method)).runs_once is None


def test_norms_over_the_batch_stay_as_in_evaluation_or_nothing_is_read() -> None:
    m = adapted("basic").train()
    with pytest.raises(PeltError, match="norms over the batch in train mode"):
        cache_trunk(m)
    with cache_trunk(m.eval()) as trunk:
        m.train()
        with pytest.warns(UserWarning, match="the blocks run in each pass"):
            for _ in range(2):
                for x in pictures():
                    m(**x)
        assert trunk.hits == trunk.misses == 0


def test_for_trainer_keeps_running_statistics_as_the_base_has_them(tmp_path: Path) -> None:
    """An adapter does not hold them: moved, they would be lost with the process."""
    from transformers import Trainer, TrainingArguments

    m = adapted("basic")
    before = {n: b.clone() for n, b in m.named_buffers()}
    examples = [{k: v[i] for k, v in x.items()} for x in pictures()[:1] for i in range(2)]
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=3,
        report_to=[],
        save_strategy="no",
        learning_rate=0.1,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    with cache_trunk(m) as trunk:
        unipelt.training.for_trainer(Trainer(m, arguments, train_dataset=examples)).train()
        assert trunk.hits == 4
    assert all(torch.equal(b, before[n]) for n, b in m.named_buffers() if n in before)


def test_a_plan_says_which_blocks_run_once() -> None:
    plan = unipelt.plan(model("bert_labels"), unipelt.load(named("probing")))
    assert "blocks 0–2 of 3 run once for each example with `--cache-trunk`" in " ".join(str(plan).split())
    assert plan.to_json()["runs_once"] == {"blocks": 3, "of": 3, "tower": ""}
    deep = unipelt.plan(model("bert_labels"), unipelt.parse("method y { layers last 2 train attn.q.bias }"))
    assert "block 0 of 3 runs once" in str(deep)
    full = unipelt.plan(model("bert_labels"), unipelt.load(named("bitfit")))
    assert full.runs_once is None and "run once" not in str(full) and full.to_json()["runs_once"] is None
