"""What a message about a method on a model says to do, done: the mistake is gone."""

from __future__ import annotations

import json
import re

import pytest
import small
import torch
from names import name
from torch import nn
from typer.testing import CliRunner

import unipelt
from unipelt.cli.app import app
from unipelt.language.loading import parse


def said(model: nn.Module, method: unipelt.Method) -> tuple[str, str]:
    with pytest.raises(unipelt.PeltError) as caught:
        unipelt.plan(model, method)
    (d,) = caught.value.diagnostics
    return d.code, d.help


def test_a_head_outside_the_layers_is_trained_in_a_part_of_its_own() -> None:
    model = small.model("bert_labels")
    code, help_ = said(model, parse("method m { layers last 1  train *.bias, head }"))
    part = re.search(r"`(use \{ .* \})`", help_)
    assert code == "E0510" and part, help_
    plan = unipelt.plan(model, parse(f"method m {{ use {{ layers last 1  train *.bias }} {part[1]} }}"))
    assert {c.name.split(".")[0] for c in plan.copies} >= {"classifier"} and any(
        "layer.2" in c.name for c in plan.copies
    )
    for path in ("embeddings.*", "pooler.*"):  # what else stands outside the blocks
        code, help_ = said(model, parse(f"method m {{ layers last 1  train {path} }}"))
        assert code == "E0510" and f"use {{ train {path} }}" in help_
        unipelt.plan(model, parse(f"method m {{ use {{ train {path} }} }}"))


def test_a_model_without_a_head_is_loaded_with_one(tmp_path) -> None:
    config = small.model("bert").config
    (tmp_path / "bert.json").write_text(json.dumps({**config.to_dict(), "model_type": "bert"}))
    command = ["plan", name("lora"), "--model", str(tmp_path / "bert.json"), "--head", "mean"]
    for task in ([], ["--task", "base"]):
        done = CliRunner().invoke(app, [*command, *task])
        option = re.search(r"`(--task \S+)`", done.output)
        assert done.exit_code == 1 and "E0512" in done.output and option
        again = CliRunner().invoke(app, [*command, *option[1].split()])
        assert again.exit_code == 0, again.output
    assert "AutoModelForSequenceClassification" in said(small.model("bert"), parse("method m { train head }"))[1]


@pytest.mark.parametrize("path", ["norm", "attn.norm", "layernorm", "ffn.LayerNorm", "ln_1"])
def test_norms_are_named_together(path: str) -> None:
    model = small.model("bert_labels")
    for text in (f"method m {{ train {path} }}", f"method m {{ modify {path} compose 2 * h }}"):
        with pytest.raises(unipelt.PeltError) as caught:
            unipelt.plan(model, parse(text))
        (d,) = caught.value.diagnostics
        assert d.code in ("E0510", "E0302") and "`train *.norm.*`" in d.help
    assert unipelt.plan(model, parse("method m { train *.norm.* }")).counts.trained > 0


def test_the_weight_of_a_norm_is_a_site_and_trained_with_the_others() -> None:
    model = small.model("bert_labels")
    code, help_ = said(model, parse("method m { train attn.norm.weight }"))
    assert code == "E0510" and "`train *.norm.*`" in help_
    edits = unipelt.plan(model, parse("method m { modify attn.norm.weight compose 2 * h }")).edits
    assert [e.site.label for e in edits] == [f"encoder.layer.{n}.attn.norm.weight" for n in range(len(edits))] and edits


@pytest.mark.parametrize("path, meant", [("attn.x", "attn"), ("attn.q.in", "attn.q"), ("block.x", "block")])
def test_what_goes_into_a_site_is_read_there(path: str, meant: str) -> None:
    with pytest.raises(unipelt.PeltError) as caught:
        parse(f"method m {{ modify {path} insert parallel form {{ delta = tanh(z) }} compose h + sum(delta) }}")
    (d,) = caught.value.diagnostics
    assert d.code == "E0302" and f"`modify {meant}` with `insert parallel` reads it" in d.help
    parse(f"method m {{ modify {meant} insert parallel form {{ delta = tanh(z) }} compose h + sum(delta) }}")


class Config:
    is_encoder_decoder = False

    def __init__(self, model_type: str = ""):
        self.model_type = model_type


class Plain(nn.Module):
    """Maps one after the other: nothing is added to what enters them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.config = Config(kind)
        self.stages = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.stages:
            x = stage(x)
        return x


def test_a_model_in_which_nothing_is_found_is_told_how_to_write_an_anatomy() -> None:
    lora = unipelt.load(name("lora"))
    code, help_ = said(Plain("resnet_like"), lora)
    assert code == "E0502" and "anatomy resnet_like for resnet_like" in help_
    assert parse_of(help_), "what it says to write is read"
    for kind in ("", "3d-net", "net 2.5"):
        code, help_ = said(Plain(kind), lora)
        assert code == "E0502" and "`model.config.model_type`" in help_ and "`module(…)`" in help_


def parse_of(help_: str) -> bool:
    from unipelt.language.syntax.parser import parse as parse_file

    text = re.search(r"`(anatomy .*?\})`", help_)
    return text is not None and len(parse_file(text[1]).definitions) == 1
