"""Maps that a search found are kept by architecture: which models share one, and that a bad file in the folder changes nothing."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_finder import OTHERS, model_of
from torch import nn

import unipelt
from unipelt.anatomy import find as finding, stored
from unipelt.anatomy.search import search as real_search
from unipelt.language import cache


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "maps"))
    stored.forget()
    yield tmp_path / "maps"
    stored.forget()


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    done: list[str] = []

    def search(model: nn.Module, *given: Any) -> Any:
        done.append(type(model).__name__)
        return real_search(model, *given)

    monkeypatch.setattr(finding, "search", search)
    return done


@pytest.mark.parametrize("kind", OTHERS)
def test_a_map_that_was_stored_is_the_map_that_was_found(kind: str, searches: list[str], folder: Path) -> None:
    """Without weights and with them (where it is proved anew), from memory and from the folder."""
    found, proved = unipelt.sites(model_of(OTHERS[kind], meta=True)).map, unipelt.sites(model_of(OTHERS[kind])).map
    assert len(searches) == 1 or {p.dtype for p in model_of(OTHERS[kind]).parameters()} != {torch.float32}
    searches.clear()
    for _ in range(2):
        assert (
            unipelt.sites(model_of(OTHERS[kind], meta=True)).map == found
            and unipelt.sites(model_of(OTHERS[kind])).map == proved
        )
        stored.forget()
    assert not searches and len(list(folder.iterdir())) == 1
    assert {s.proof for s in found.sites} == {"not yet proved"} and "proved" in {s.proof for s in proved.sites}


def test_what_a_search_depends_on_tells_architectures_apart(searches: list[str]) -> None:
    config = OTHERS["granite"]
    model = unipelt.sites(model_of(copy.deepcopy(config))).map

    def again(change: Any) -> int:
        before = len(searches)
        other = model_of(copy.deepcopy(config))
        change(other)
        unipelt.sites(other)
        return len(searches) - before

    def other_forward(m: nn.Module) -> None:
        m.norm.forward = type(m.norm).forward.__get__(m.norm)

    assert model.sites and again(lambda m: None) == 0
    assert again(lambda m: m.layers[1].register_forward_hook(lambda *_: None)) == 1
    assert again(other_forward) == 1
    assert again(lambda m: setattr(m.config, "residual_multiplier", 2.0)) == 1
    assert again(lambda m: setattr(m.layers[1], "residual_multiplier", 2.0)) == 1
    assert again(lambda m: setattr(m.layers[0], "mlp", nn.Sequential(nn.Linear(32, 48), nn.Linear(48, 32)))) == 1
    assert again(lambda m: m.half()) == 1
    assert again(lambda m: setattr(m.layers[1].mlp, "down_proj", m.layers[0].mlp.down_proj)) == 1
    assert again(lambda m: setattr(m.layers[1].input_layernorm, "weight", m.norm.weight)) == 1
    assert again(lambda m: m.train()) == 0


def test_own_modules_are_kept_in_memory_alone(searches: list[str], folder: Path) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.down(torch.relu(self.up(x)))

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for b in self.blocks:
                x = b(x)
            return x

    assert unipelt.sites(Own()).map.named("ffn") and unipelt.sites(Own()).map.named("ffn")
    assert len(searches) == 1 and not folder.exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "", lambda text: "[]", lambda text: text[: len(text) // 2], lambda text: "[" * 100_000, lambda text: "\0",
        lambda text: text.replace("self_attn.q_proj", "self_attn.r_proj"), lambda text: text.replace('"ffn"', '"elsewhere"'),
        lambda text: json.dumps({**json.loads(text), "sites": []}), lambda text: json.dumps({**json.loads(text), "stacks": [{}]}),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_searched_anew_and_replaced(
    damage: Any, searches: list[str], folder: Path
) -> None:
    first = unipelt.sites(model_of(OTHERS["granite"], meta=True)).map
    (file,) = folder.iterdir()
    good = file.read_text()
    file.write_text(damage(good))
    stored.forget()
    assert unipelt.sites(model_of(OTHERS["granite"], meta=True)).map == first and len(searches) == 2
    assert file.read_text() == good


def test_a_folder_that_cannot_be_written_and_none_at_all(
    searches: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write_text("a file")
    assert unipelt.sites(model_of(OTHERS["granite"], meta=True)).map.sites and folder.read_text() == "a file"
    for off in ("off", "0"):
        monkeypatch.setenv(cache.FOLDER, off)
        assert cache.folder() is None
    monkeypatch.delenv(cache.FOLDER)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent))
    assert cache.folder() == folder.parent / "unipelt"


def test_memory_keeps_the_last_maps(searches: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.FOLDER, "off")
    monkeypatch.setattr(stored, "KEPT", 1)
    for kind in ("granite", "gpt_neox", "gpt_neox", "granite"):
        unipelt.sites(model_of(OTHERS[kind], meta=True))
    assert len(searches) == 3


def test_another_finder_reads_no_file_of_this_one(
    folder: Path, searches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    unipelt.sites(model_of(OTHERS["granite"], meta=True))
    stored.forget()
    monkeypatch.setattr(stored, "_finder", lambda: "another")
    unipelt.sites(model_of(OTHERS["granite"], meta=True))
    assert len(searches) == 2 and len(list(folder.iterdir())) == 2


def test_an_example_is_searched_with(searches: list[str]) -> None:
    unipelt.sites(model_of(OTHERS["granite"]))
    unipelt.sites(model_of(OTHERS["granite"]), example={"input_ids": torch.tensor([[1, 2, 3]])})
    assert len(searches) == 2
