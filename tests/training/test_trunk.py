"""Frozen trunks that run once: training is the same, later epochs pass over the blocks, and a file of states is not trusted."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from epochs import trained
from names import name as named
from safetensors.torch import load_file
from small import model
from torch import nn
from transformers import DynamicCache

import unipelt
from unipelt.language.report.diagnostics import PeltError
from unipelt.training import TrainConfig, cache_trunk, train
from unipelt.runtime import caches
from unipelt.training.kept_rows import KeptRows
from unipelt.training.trunk import _keys

LAST = unipelt.parse(
    "method x from lora(r=2) { layers last 1 }"
    if named("lora") == "lora"
    else "method x { layers last 1  train *.bias }"
)


def still(kind: str, method: Any = LAST) -> nn.Module:
    m = model(kind)
    for part in m.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        for n, v in vars(part).items():
            if "drop" in n and isinstance(v, float):
                setattr(part, n, 0.0)
    unipelt.apply(m, method, allow_future=True, seed=1)
    return m.train()


def batches(kind: str, left: bool = False) -> list[dict[str, torch.Tensor]]:
    """Three batches; the texts of one have other lengths."""
    g = torch.Generator().manual_seed(2)
    if kind == "vit":
        return [
            {"pixel_values": torch.randn(3, 3, 12, 20, generator=g), "labels": torch.tensor([0, 1, 1])}
            for _ in range(3)
        ]
    out = []
    for width in (7, 5, 9):
        ids = torch.randint(3, 20, (3, width), generator=g)
        mask = torch.ones_like(ids)
        mask[1, width - 2 :] = 0
        mask = mask.flip(1) if left else mask
        out.append(
            {
                "input_ids": ids,
                "attention_mask": mask,
                "labels": torch.tensor([0, 1, 1]) if kind == "bert_labels" else ids.where(mask > 0, -100),
            }
        )
    return out


def calls(m: nn.Module, blocks: list[nn.Module]) -> list[int]:
    """How often what is inside of each block runs, from now on."""
    seen = [0] * len(blocks)
    for i, b in enumerate(blocks):
        inner = next(c for c in b.modules() if isinstance(c, nn.LayerNorm) or type(c).__name__.endswith("RMSNorm"))
        inner.register_forward_hook(lambda *_, i=i: seen.__setitem__(i, seen[i] + 1))
    return seen


def blocks_of(m: nn.Module) -> list[nn.Module]:
    return list(max((x for x in m.modules() if isinstance(x, nn.ModuleList)), key=len))


@pytest.mark.parametrize("kind", ["bert_labels", "llama", "gpt2", "vit"])
@pytest.mark.parametrize("left", [False, True])
def test_training_is_the_same_and_the_blocks_run_once(kind: str, left: bool) -> None:
    given = batches(kind, left)
    losses, tensors = trained(still(kind), given)
    m = still(kind)
    with cache_trunk(m) as trunk:
        seen = calls(m, blocks_of(m))
        found, same = trained(m, given)
        assert trunk.blocks == 2 and (trunk.hits, trunk.misses) == (18, 9)
    assert seen[:2] == [3, 3] and seen[2] == 9
    torch.testing.assert_close(found, losses, rtol=1e-5, atol=1e-6)
    assert all(torch.allclose(t, same[n], rtol=1e-5, atol=1e-6) for n, t in tensors.items())
    m(**given[0])
    assert seen[:2] == [4, 4], "closed, all blocks run again"


def test_probing_passes_over_all_blocks() -> None:
    given = batches("bert_labels")
    probe = unipelt.load(named("probing"))
    losses, _ = trained(still("bert_labels", probe), given)
    m = still("bert_labels", probe)
    with cache_trunk(m) as trunk:
        found, _ = trained(m, given)
        assert trunk.blocks == 3 and trunk.hits == 18
    torch.testing.assert_close(found, losses, rtol=1e-5, atol=1e-6)


def test_a_text_has_its_states_whatever_its_neighbours_and_its_padding() -> None:
    m = still("bert_labels").eval()
    x = batches("bert_labels")[0]
    with cache_trunk(m) as trunk, torch.no_grad():
        m(**x)
        pad = {n: torch.cat([t, t.new_zeros(3, 4)], 1) for n, t in x.items() if n != "labels"}
        wider = m(**pad).logits
        assert trunk.hits == 3
    with torch.no_grad():
        torch.testing.assert_close(wider, m(**pad).logits, rtol=1e-5, atol=1e-6)


def test_passes_that_ask_for_more_run_as_they_are() -> None:
    m = still("llama").eval()
    x = {n: t for n, t in batches("llama")[0].items() if n == "input_ids"}
    expected = m.generate(**x, max_new_tokens=4, do_sample=False)
    with cache_trunk(m) as trunk, torch.no_grad():
        m(**x)
        states = m(**x, output_hidden_states=True).hidden_states
        assert len(states) == 4 and trunk.hits == 0
        assert torch.equal(m.generate(**x, max_new_tokens=4, do_sample=False), expected)


def test_a_file_serves_another_process(tmp_path: Path) -> None:
    given = batches("bert_labels")
    with cache_trunk(still("bert_labels"), tmp_path) as trunk:
        losses, _ = trained(trunk.model, given)
    m = still("bert_labels")
    with cache_trunk(m, tmp_path) as trunk:
        found, _ = trained(m, given)
        assert trunk.misses <= 3 and trunk.hits >= 24, "the first pass runs, to see what a block yields"
    torch.testing.assert_close(found, losses, rtol=1e-5, atol=1e-6)
    assert len(list(tmp_path.glob("*.sqlite"))) == 1
    other = still("bert_labels")
    with torch.no_grad():
        next(p for n, p in other.named_parameters() if "layer.0" in n).add_(1.0)
    with cache_trunk(other, tmp_path) as trunk:
        trained(other, given, 1)
        assert trunk.hits == 0, "other weights, another file"
    assert len(list(tmp_path.glob("*.sqlite"))) == 2


def test_a_damaged_row_is_computed_again(tmp_path: Path) -> None:
    given = batches("bert_labels")
    with cache_trunk(still("bert_labels"), tmp_path) as trunk:
        losses, _ = trained(trunk.model, given)
    (path,) = tmp_path.glob("*.sqlite")
    with sqlite3.connect(path) as file:
        file.execute("UPDATE rows SET data = zeroblob(length(data))")
    m = still("bert_labels")
    with cache_trunk(m, tmp_path) as trunk:
        found, _ = trained(m, given)
        assert trunk.rows.damaged >= 6
    torch.testing.assert_close(found, losses, rtol=1e-5, atol=1e-6)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    with cache_trunk(still("bert_labels"), tmp_path):
        pass
    (path,) = tmp_path.glob("*.sqlite")
    path.write_bytes(b"no database" * 100)
    with pytest.raises(PeltError, match="E0782"):
        cache_trunk(still("bert_labels"), tmp_path)
    with sqlite3.connect(tmp_path / "mine") as file:
        file.execute("CREATE TABLE about (mark TEXT, model TEXT)")
        file.execute("INSERT INTO about VALUES ('something else', 'x')")
    with pytest.raises(PeltError, match="another model"):
        KeptRows(tmp_path / "mine", "x", 10**6)


def test_killed_at_any_write_nothing_is_lost_or_half_there(tmp_path: Path) -> None:
    """Sixteen writers of rows, half of them killed at a drawn instruction of SQLite's within a writing, and five trainings (`killed_writers`)."""
    script = Path(__file__).with_name("killed_writers.py")
    done = subprocess.run([sys.executable, str(script), str(tmp_path), "0"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    inside, within = map(int, done.stdout.split())
    assert inside >= 8 and within >= 1, "the kills fell into writings"


def test_what_does_not_fit_is_not_kept(tmp_path: Path) -> None:
    rows = KeptRows(tmp_path / "k", "m", 1000)
    rows.put({bytes([i]): torch.zeros(100) for i in range(5)})  # 400 bytes each
    assert rows.bytes == 800 and sum(rows.get(bytes([i])) is not None for i in range(5)) == 2
    assert rows.on_disk <= 1000
    rows.close()


@pytest.mark.parametrize("kind, place, rate", [("gpt2", "transformer.drop", 0.1), ("bert_labels", "bert.embeddings.dropout", 0.1),
                                               ("llama", "model.layers.0.self_attn", 0.2)])  # fmt: skip
def test_whatever_drops_below_is_noticed(kind: str, place: str, rate: float) -> None:
    """Also between the tokens and the blocks, in a module of any name, and where a rate is a number of a module."""
    m = still(kind)
    part = m.get_submodule(place)
    setattr(part, "p" if isinstance(part, nn.Dropout) else "attention_dropout", rate)
    with pytest.raises(PeltError, match=f"`{place}` drops at random"):
        cache_trunk(m)
    above = still(kind)
    for part in blocks_of(above)[2].modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.5
    if kind == "bert_labels":
        above.dropout.p = 0.5  # behind the base, in front of the classifier
    cache_trunk(above).close()


def test_a_norm_over_the_batch_is_noticed() -> None:
    m = still("bert_labels")
    m.bert.embeddings.norm_of_batch = nn.BatchNorm1d(32)
    for p in m.bert.embeddings.norm_of_batch.parameters():
        p.requires_grad_(False)
    with pytest.raises(PeltError, match="norms over the batch"):
        cache_trunk(m)


def test_another_start_of_the_head_is_the_same_trunk(tmp_path: Path) -> None:
    given = batches("bert_labels")
    with cache_trunk(still("bert_labels"), tmp_path) as trunk:
        trained(trunk.model, given, 1)
    other = still("bert_labels")
    with torch.no_grad():
        other.classifier.weight.add_(1.0)
    with cache_trunk(other, tmp_path) as trunk:
        trained(other, given, 1)
        assert trunk.hits == 6, "all but the first pass, which shows what a block yields"


def test_where_no_block_can_run_once() -> None:
    whole = unipelt.load(named("lora"))(r=2)
    m = model("bert_labels")
    unipelt.apply(m, whole)
    with pytest.raises(PeltError, match="is edited"):
        cache_trunk(m)
    m = model("bert_labels")
    unipelt.apply(m, unipelt.load(named("probing")))
    for part in m.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.1
    with pytest.raises(PeltError, match="drops at random"):
        cache_trunk(m)
    with pytest.raises(PeltError, match="E0783"):
        cache_trunk(nn.Linear(2, 2))


def test_a_run_says_it_and_is_the_same(bert: str, intents: str, tmp_path: Path) -> None:
    def run(how: str) -> tuple[dict[str, torch.Tensor], list[str]]:
        said: list[str] = []
        out = tmp_path / how.rpartition("/")[2]
        config = TrainConfig(method=named("probing"), model=bert, data=intents, out=str(out), epochs=2, dropout=0.0, max_length=16, lr=1e-2,
                             checkpoints=False, cache_trunk=how)  # fmt: skip
        train(config, say=said.append)
        return load_file(out / "adapter.safetensors"), [line for line in said if "run once" in line]

    plain, nothing = run("off")
    cached, line = run("auto")
    kept, again = run(str(tmp_path / "kept"))
    assert nothing == [] and len(line) == len(again) == 1 and list((tmp_path / "kept").glob("*.sqlite"))
    assert all(
        torch.allclose(t, cached[n], rtol=1e-5, atol=1e-6) and torch.allclose(t, kept[n], rtol=1e-5, atol=1e-6)
        for n, t in plain.items()
    )


def test_auto_leaves_it_and_a_folder_insists(bert: str, intents: str, tmp_path: Path) -> None:
    config = TrainConfig(method=named("lora"), model=bert, data=intents, out=str(tmp_path / "a"), max_steps=1, dropout=0.0, max_length=16,
                         checkpoints=False, cache_trunk="auto")  # fmt: skip
    said: list[str] = []
    train(config, say=said.append)
    train(replace(config, method=named("probing"), dropout=0.1, out=str(tmp_path / "c")), say=said.append)
    reasons = [line for line in said if line.startswith("no block runs once: ")]
    assert len(reasons) == 2 and "is edited" in reasons[0] and "drops at random" in reasons[1]
    with pytest.raises(PeltError, match="E0783"):
        train(replace(config, out=str(tmp_path / "b"), cache_trunk=str(tmp_path / "kept")))


@pytest.mark.parametrize("name", caches.NAMES)
def test_a_pass_that_goes_on_with_a_cache_runs_as_it_is(name: str) -> None:
    """Whichever version of transformers named the argument."""
    given = {"input_ids": torch.tensor([[1, 2]])}
    assert _keys((), given, None) is not None and _keys((), {**given, name: DynamicCache()}, None) is None
