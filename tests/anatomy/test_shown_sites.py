"""What users see of a model's sites: the tree as a text and as data, and that every projection is in it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
import transformers as T
from names import name as named
from test_finder import OTHERS, model_of
from tiny import build
from torch import nn

import unipelt
from unipelt.anatomy.shown import Sites
from unipelt.anatomy.tree import BLOCK, SitesData, json_schema
from unipelt.anatomy.written import ranges, text
from unipelt.language.sites import SITES
from unipelt.language.versions import SITES_SCHEMA
from unipelt.resources import folder


def read(data: dict[str, Any]) -> SitesData:
    from pydantic import TypeAdapter

    return TypeAdapter(SitesData).validate_python(data)


def test_the_schema_of_the_sites_is_published_and_holds() -> None:
    published = json.loads((folder("grammar") / "unipelt-sites-1.schema.json").read_text("utf-8"))
    assert published == json.loads(json.dumps(json_schema())), "publish a new schema under a new version"
    assert published["$id"] == SITES_SCHEMA


@pytest.mark.parametrize("model", [build("bert_head"), build("whisper"), build("albert"), *(model_of(c) for c in OTHERS.values())],
                         ids=lambda m: type(m).__name__)  # fmt: skip
def test_every_site_and_every_linear_map_is_in_the_tree(model: nn.Module) -> None:
    """The data goes through JSON whole; unfolded it has each site once, with its module; and no map of the model is missing."""
    found = unipelt.sites(model)
    data = json.loads(json.dumps(found.to_json()))
    assert read(data) == found.tree and data["schema"] == SITES_SCHEMA
    told = []
    for t in data["towers"]:
        for b in t["blocks"]:
            for s in (s for part in b["sublayers"] for s in part["sites"]):
                told += [(s["site"], s["module"].replace(BLOCK, block, 1)) for block in b["blocks"]]
        told += [(s["site"], s["module"]) for s in t["outside"]]
    told += [(s["site"], s["module"]) for s in data["between"]]
    assert sorted(told) == sorted((s.name, s.view.path) for s in found.map.sites)
    covered = {module for name, module in told if (kind := SITES.get(name)) is not None and kind.has_weight}
    maps = {
        n
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear) and not f"{n}.".startswith(tuple(f"{h}." for h in found.map.head))
    }
    left = {n.removesuffix(".weight") for n in found.map.uncovered}
    assert maps <= covered | left and not covered & left
    assert sum(u["count"] for u in data["uncovered"]) == len(found.map.uncovered) and all(
        u["reason"] for u in data["uncovered"]
    )


def test_equal_blocks_are_told_once_and_others_by_themselves() -> None:
    blocks = unipelt.sites(build("gpt2", layers=3)).tree.towers[0].blocks
    assert [(b.layers, len(b.blocks)) for b in blocks] == [([0, 1, 2], 3)]
    config = T.Qwen3NextConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48, head_dim=8,
        linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8, moe_intermediate_size=24,
        shared_expert_intermediate_size=24, num_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    hybrid = unipelt.sites(model_of(config)).tree.towers[0].blocks  # every fourth layer has attention
    assert sorted(tuple(b.layers) for b in hybrid) == [(0, 1, 2), (3,)]
    assert [bool([p for p in b.sublayers if p.sublayer == "attn"]) for b in hybrid] == [b.layers == [3] for b in hybrid]


def test_a_shared_block_is_said_to_be_one() -> None:
    model = build("albert", layers=3)
    assert "3 layers, one module for all of them" in str(unipelt.sites(model)) and "layers 0–2 (* is" in str(
        unipelt.sites(model)
    )


def test_the_text_says_sizes_columns_evidence_and_factors() -> None:
    granite, neox = (str(unipelt.sites(model_of(OTHERS[k]))) for k in ("granite", "gpt_neox"))
    flat = " ".join(granite.split())
    assert "GraniteModel: sites found by what flows where, proved by the numbers of a pass" in flat
    assert "attn.k *.self_attn.k_proj 32 → 16 the last projection before the softmax's keys" in flat
    assert "softmax of q kᵀ, added to the residual, after it is multiplied by 0.5" in flat
    assert "*.attention.query_key_value columns [0:8, 24:32, 48:56, …] per head  32 → 32" in neox
    assert "not yet proved" in str(unipelt.sites(model_of(OTHERS["granite"], meta=True))).splitlines()[0]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_lines_keep_to_a_width_but_where_a_path_is_longer(width: int) -> None:
    found = unipelt.sites(model_of(OTHERS["mixtral"]))
    long = [line for line in text(found.tree, width).splitlines() if len(line) > width]
    assert not long or width < 120 and all(".mlp." in line for line in long)


def test_what_no_site_covers_is_grouped_with_its_reason() -> None:
    found = unipelt.sites(model_of(OTHERS["mixtral"]))
    grouped = {u.path: (u.count, u.reason) for u in found.tree.uncovered}
    assert grouped["layers.*.mlp.gate.weight"] == (2, "it is used by the module that holds it")
    assert len(grouped) < len(found.map.uncovered)
    assert "projections that no site covers" in str(found) and "not covered" in repr(found)
    assert not unipelt.sites(model_of(OTHERS["granite"])).tree.uncovered


def test_one_tower() -> None:
    found = unipelt.sites(build("bart"))
    decoder = found.tower("decoder")
    assert [t.tower for t in decoder.tree.towers] == ["decoder"] and decoder.map.named("cross.q", "decoder")
    assert {s.stack for s in decoder.map.sites} == {"decoder"} and not decoder.tree.between
    with pytest.raises(unipelt.PeltError, match="E0704.*no tower `vision`") as e:
        found.tower("vision")
    assert e.value.diagnostics[0].help == "it has `encoder`, `decoder`"
    with pytest.raises(unipelt.PeltError) as e:
        unipelt.sites(build("bert")).tower("text")
    assert "one tower, without a name" in str(e.value.diagnostics[0].help)


def test_a_model_of_which_nothing_is_known_says_why() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh())
    found = unipelt.sites(model)
    assert (
        found.tree.known == "unknown"
        and found.tree.unknown
        and str(found).startswith("Sequential: no sites are known; ")
    )
    json.dumps(found.to_json())


class Guarded(nn.Module):
    """Blocks that run only on an input which nobody guesses."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(2)
        )

    def forward(self, readings: torch.Tensor, secret: str) -> torch.Tensor:
        if secret != "sesame":
            raise ValueError(f"not with {secret!r}")
        for b in self.blocks:
            readings = self.add(b, readings)
        return readings

    @staticmethod
    def add(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x + block(x)


class Blocks(Guarded):
    """The same, the sum within the block."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.down(torch.relu(self.up(self.norm(x))))

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Block() for _ in range(2))

    @staticmethod
    def add(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return block(x)


def test_inputs_that_cannot_be_guessed_are_given_and_what_they_showed_is_remembered() -> None:
    torch.manual_seed(0)
    method = unipelt.parse(
        "method m { modify ffn.up insert parallel form { A: [d_in, 2] ~ normal(0.1)  B: [2, d_out] ~ zeros  delta = z @ A @ B } compose add }"
    )
    example = {"readings": torch.randn(1, 4, 8), "secret": "sesame"}
    with pytest.raises(unipelt.PeltError, match="E0595.*`readings`, `secret`") as e:
        unipelt.plan(Blocks(), method)
    assert "example={" in str(e.value.diagnostics[0].help)
    assert "E0595" in [d.code for d in unipelt.sites(Blocks()).map.unknown]
    assert len(unipelt.plan(Blocks(), method, example=example).edits) == 2
    model = Blocks()
    assert len(unipelt.apply(model, method, example=example).edits) == 2
    other = Blocks()
    found = unipelt.sites(other, example=example)
    assert found.map.proof == "proved" and {"ffn", "ffn.up", "ffn.down"} <= set(found.map.names())
    assert len(unipelt.plan(other, method).edits) == 2 and unipelt.plan(other, method).sites is found.map
    with pytest.raises(unipelt.PeltError, match="E0595.*with the given example fails: ValueError: not with 'open'"):
        unipelt.plan(Blocks(), method, example={**example, "secret": "open"})
    with pytest.raises(unipelt.PeltError, match="E0593"):
        unipelt.sites(Blocks(), example=3)  # type: ignore[arg-type]


def test_plans_say_how_the_sites_are_known() -> None:
    lora = unipelt.load(named("lora"))
    found = unipelt.plan(model_of(OTHERS["granite"]), lora)
    assert str(found).splitlines()[0].endswith("on GraniteModel (2 layers, sites found)")
    assert found.to_json()["sites"] == {"known": "found", "proof": "proved"} and not found.to_json()["anatomy"]
    meta = unipelt.plan(model_of(OTHERS["granite"], meta=True), lora)
    assert str(meta).splitlines()[0].endswith("(2 layers, sites found, not yet proved)")


def test_a_compiled_model_is_the_model_that_it_wraps() -> None:
    model = model_of(OTHERS["granite"])
    compiled = torch.compile(model, backend="eager")
    assert unipelt.sites(compiled).map == unipelt.sites(model).map
    lora = unipelt.load(named("lora"))
    assert unipelt.plan(compiled, lora).to_json() == unipelt.plan(model, lora).to_json()


def test_ranges() -> None:
    assert [ranges(x) for x in ([], [3], [0, 1, 2, 4, 6, 7])] == ["", "3", "0–2, 4, 6–7"]


def test_every_site_says_by_what_a_pass_shows_it() -> None:
    assert [n for n, s in SITES.items() if not s.shown_by] == []


def test_factors_of_the_sum_are_said() -> None:
    """A number, learned numbers, and what the residual is multiplied by."""
    found = unipelt.sites(model_of(OTHERS["granite"])).map
    ffn = found.named("ffn")[0]
    said = [
        str(Sites("m", replace(found, sites=(replace(ffn, **more),))))
        for more in ({}, {"factor": None}, {"keeps": 2.0})
    ]
    flat = [" ".join(s.split()) for s in said]
    assert "multiplied by 0.5" in flat[0] and "multiplied by learned numbers" in flat[1]
    assert "added to the residual, which is multiplied by 2, after it is multiplied by 0.5" in flat[2]


def test_where_a_site_s_numbers_lie_is_said() -> None:
    """Behind the parts of a picture or before them, tokens before examples; nothing where they are [batch, token, d]."""
    pictures = T.ConvNextConfig(hidden_sizes=[8, 8], depths=[1, 1], num_stages=2)
    turned = T.XLNetConfig(vocab_size=64, d_model=32, n_layer=1, n_head=4, d_inner=48)
    told = {}
    for config in (pictures, turned):
        found = unipelt.sites(model_of(config))
        tower = found.to_json()["towers"][0]
        inside = [s for b in tower["blocks"] for part in b["sublayers"] for s in part["sites"]]
        told[config.model_type] = {s["site"]: s["layout"] for s in [*inside, *tower["outside"]]}, str(found)
    layouts, words = told["xlnet"]
    assert (
        layouts["embed.words"] == {"axis": -1, "stride": [], "turned": True} and "tokens come before examples" in words
    )
    layouts, words = told["convnext"]
    assert layouts["block"] == {"axis": -3, "stride": [], "turned": False} and "its numbers are dimension -3" in words
    (granite,) = unipelt.sites(model_of(OTHERS["granite"])).tree.towers
    assert all(s.layout is None for b in granite.blocks for part in b.sublayers for s in part.sites)
