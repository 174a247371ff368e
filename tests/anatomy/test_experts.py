"""The weights of experts that a module has in one parameter: found by what flows where, whichever way the experts compute, and proved by
numbers. What a wrong map says of them is refuted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as T
from torch import nn

import unipelt
from unipelt.anatomy.columns import Columns
from unipelt.anatomy.find import find
from unipelt.anatomy.prove import proved
from unipelt.anatomy.sites import NOT_YET, PROVED, Site, SiteMap

EXPERTS, WIDTH, INNER = 4, 16, 24
_SIZES: dict[str, Any] = dict(
    vocab_size=64, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=4,
    num_local_experts=EXPERTS,
)  # fmt: skip
#: Gate and up in one parameter: side by side, by turns, and side by side in a module that computes all experts for all tokens.
KINDS: dict[str, Callable[[int], Any]] = {
    "mixtral": lambda inner: T.MixtralConfig(**_SIZES, intermediate_size=inner, num_experts_per_tok=2),
    "gpt_oss": lambda inner: T.GptOssConfig(**_SIZES, intermediate_size=inner, num_experts_per_tok=2),
    "llama4": lambda inner: T.Llama4TextConfig(**_SIZES, intermediate_size=inner, intermediate_size_mlp=inner),
}
TURNED = {"mixtral": True, "gpt_oss": False, "llama4": False}
WAYS = [(k, w) for k in KINDS for w in ("eager", "grouped_mm", "batched_mm") if k != "llama4" or w == "eager"]
ALL = ["ffn.experts.up.weight", "ffn.experts.gate.weight", "ffn.experts.down.weight"]


def model_of(kind: str, way: str = "eager", inner: int = INNER, device: str = "cpu") -> nn.Module:
    config = KINDS[kind](inner)
    config._experts_implementation = way
    torch.manual_seed(0)
    with torch.device(device):
        return T.AutoModelForCausalLM.from_config(config).eval()


def of_experts(sites: SiteMap) -> dict[str, Site]:
    """Those of the last layer."""
    return {s.name: s for s in sites.sites if s.view.parameter and s.layer == 1}


def columns(kind: str, part: str, inner: int = INNER) -> Columns | None:
    if part == "down":
        return None
    at = int(part == "up")
    if kind == "gpt_oss":
        return Columns.of_indices(range(at, 2 * inner, 2))
    return Columns.span(at * inner, (at + 1) * inner)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("kind", "way"), WAYS)
def test_they_are_found_whichever_way_experts_compute(kind: str, way: str, device: str) -> None:
    found = of_experts(find(model_of(kind, way, device=device)))
    assert sorted(found) == sorted(ALL)
    for name, s in found.items():
        part = name.split(".")[2]
        assert s.view.path.endswith("experts.down_proj" if part == "down" else "experts.gate_up_proj")
        assert (s.view.turned, s.view.columns) == (TURNED[kind], columns(kind, part))
        assert {n: s.sizes[n] for n in ("d_experts", "d_expert_ff", "d_model")} == {
            "d_experts": EXPERTS,
            "d_expert_ff": INNER,
            "d_model": WIDTH,
        }
        assert s.proof == (PROVED if device == "cpu" else NOT_YET)


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_square_matrices_lie_as_the_products_say(kind: str) -> None:
    for device in ("cpu", "meta"):
        found = of_experts(find(model_of(kind, inner=WIDTH, device=device)))
        assert {s.view.turned for s in found.values()} == {TURNED[kind]} and len(found) == 3


def wrong_maps(kind: str, found: dict[str, Site]) -> dict[str, list[Site]]:
    """Sites that are not what they say, by what is wrong with them."""
    up, gate, down = (found[n] for n in ALL)
    shifted = Columns.of_indices(
        [c + 1 for a, b in (gate.view.columns or Columns.span(0, 1)).ranges for c in range(a, b)]
    )
    halves = Columns.span(0, WIDTH), Columns.span(WIDTH, 2 * WIDTH)
    turns = Columns.of_indices(range(0, 2 * WIDTH, 2)), Columns.of_indices(range(1, 2 * WIDTH, 2))
    other = halves if kind == "gpt_oss" else turns
    return {
        "gate and up swapped": [replace(up, view=gate.view), replace(gate, view=up.view), down],
        "stored the other way": [replace(s, view=replace(s.view, turned=not s.view.turned)) for s in (up, gate, down)],
        "down stored the other way": [up, gate, replace(down, view=replace(down.view, turned=not down.view.turned))],
        "down is up": [replace(up, view=down.view), gate, replace(down, view=up.view)],
        "other columns": [replace(s, view=replace(s.view, columns=c)) for s, c in zip((gate, up), other)] + [down],
        "columns one further": [up, replace(gate, view=replace(gate.view, columns=shifted)), down],
        "half of it alone": [up, down],
        "more experts": [up, gate, replace(down, sizes={**down.sizes, "d_experts": EXPERTS + 1})],
    }


WRONG = ["gate and up swapped", "stored the other way", "down stored the other way", "down is up", "other columns", "columns one further",
         "half of it alone", "more experts"]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_a_wrong_map_is_refuted(kind: str, wrong: str) -> None:
    model = model_of(kind, inner=WIDTH)  # square: no size tells anything
    sites = find(model)
    right = of_experts(sites)
    maps = wrong_maps(kind, right)
    assert list(maps) == WRONG
    told = maps[wrong]
    kept = tuple(s for s in sites.sites if s.label not in {r.label for r in right.values()})
    after = proved(replace(sites, sites=(*kept, *told)), model, model.get_submodule(sites.prefix))
    left = of_experts(after)
    changed = {s.name for s in told if s != right[s.name]} or {"ffn.experts.up.weight"}
    assert not changed & {n for n, s in left.items() if s.proof == PROVED}, (changed, after.refused)


def test_the_model_is_as_it_was() -> None:
    model = model_of("mixtral")
    before = {n: t.clone() for n, t in model.state_dict().items()}
    find(model)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert not any(vars(m).get("forward") or m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_experts_that_are_modules_are_named_by_their_paths() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(WIDTH, EXPERTS)
            self.list = nn.ModuleList(
                nn.Sequential(nn.Linear(WIDTH, INNER), nn.GELU(), nn.Linear(INNER, WIDTH)) for _ in range(EXPERTS)
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = x.reshape(-1, WIDTH)
            share, chosen = self.router(rows).softmax(-1).topk(2)
            out = torch.zeros_like(rows)
            for i, expert in enumerate(self.list):
                at, of = torch.where(chosen == i)
                out.index_add_(0, at, expert(rows[at]) * share[at, of, None])
            return out.reshape(x.shape)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.experts = nn.LayerNorm(WIDTH), Experts()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.experts(self.norm(x))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.blocks = nn.Embedding(32, WIDTH), nn.ModuleList(Block() for _ in range(2))

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            x = self.words(input_ids)
            for block in self.blocks:
                x = block(x)
            return x

    sites = find(Model(), {"input_ids": torch.arange(6)[None]})
    why = sites.refused["ffn.experts.down.weight"]
    assert why.startswith("linear maps of their own stand before the sum of the experts, as `blocks.0.experts.list.")


@pytest.mark.parametrize("kind", KINDS)
def test_the_tree_shows_them(kind: str) -> None:
    told = str(unipelt.sites(model_of(kind)))
    (line,) = {line.strip() for line in told.splitlines() if "ffn.experts.down.weight" in line}
    assert line.endswith(f"experts.down_proj  {EXPERTS} × {INNER} × {WIDTH}")
