"""`benchmarks/reach.py`: what it counts as working, and that each of its checks can fail."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # behind tests, which has files of the same names

import reach
import reach_methods
import reach_model
import reach_tables
import reach_types
from names import name as named
from reach_methods import METHODS, Found, Subject, survey, works
from reach_types import KINDS, USED, Type, kind, types

import unipelt

BERT, LLAMA = Type("bert", "BertForMaskedLM", "MASKED_LM"), Type("llama", "LlamaForCausalLM", "CAUSAL_LM")


@pytest.fixture(autouse=True)
def by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's methods may be called otherwise."""
    load = unipelt.load
    monkeypatch.setattr(unipelt, "load", lambda name, **more: load(named(name), **more))


def subject(found: Type) -> Subject:
    model, config, inputs = reach_model.built_and_run(found)
    meta = reach_model._built(found, config, "meta")
    record: dict[str, Any] = {}
    return Subject(
        model,
        meta,
        inputs,
        reach_methods.outputs(model, inputs),
        reach_model._decodes(found, model, inputs, record),
        True,
    )


def test_every_type_is_of_a_kind_and_those_that_people_use_are_there() -> None:
    found = list(types())
    assert len(found) > 500 and {kind(t) for t in found[::10]} <= set(KINDS)
    assert set(USED) <= {t.name for t in found} and len(USED) == len(set(USED)) == 43
    assert {t.name: kind(t) for t in found if t.name in ("llama", "t5", "vit", "whisper", "clip", "qwen2_vl")} == {
        "llama": "text", "t5": "text", "vit": "vision", "whisper": "speech", "clip": "multimodal", "qwen2_vl": "multimodal",
    }  # fmt: skip


def test_a_class_whose_libraries_are_missing_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stand(type):
        def __getattribute__(cls, key: str) -> Any:
            raise ImportError("requires another library")

    monkeypatch.setattr(reach_types.transformers, "BertForMaskedLM", Stand("BertForMaskedLM", (), {}))
    assert BERT.built is None and kind(BERT) == "text"
    assert reach_model.surveyed(BERT)["unbuilt"] == "this installation has no such class"
    assert {kind(t) for t in types()} == set(KINDS)


def test_a_method_that_works_is_a_line_with_what_was_checked() -> None:
    found = survey(subject(LLAMA), "lora").record()
    assert isinstance(found, str) and found.split(", ") == [
        "meta", "apply", "changes", "disabled", "cache", "merged", "removed",
    ]  # fmt: skip


def test_a_refusal_is_no_success_and_has_its_reason() -> None:
    found = survey(subject(LLAMA), "bitfit").record()
    assert not works(found) and isinstance(found, dict) and "E0510" in found["refused"]["plan"]


@pytest.mark.parametrize("check", ["changes", "disabled", "removed"])
def test_outputs_that_are_not_the_bases_are_wrong(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    s = subject(BERT)
    if check == "changes":
        outputs = reach_methods.outputs
        monkeypatch.setattr(reach_methods, "outputs", lambda model, inputs: (outputs(model, inputs), s.base)[1])
    else:
        s.base = [t + 1e-6 for t in s.base]
    found = survey(s, "lora").record()
    assert isinstance(found, dict) and check in found["wrong"]


def test_a_cache_and_a_merge_that_are_off_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    s = subject(LLAMA)
    monkeypatch.setattr(reach_methods, "WITHIN", 0.0)
    monkeypatch.setattr(reach_methods, "_merged_in_double", lambda subject: 1e-6)  # what float32 rounds does not count
    found = survey(s, "lora").record()
    assert isinstance(found, dict) and {"cache", "merged"} <= set(found["wrong"])


def test_a_head_of_its_own_does_not_stand_for_a_method_that_acts() -> None:
    """Adapters of models with labels train a copy of the head, whose random numbers would change any output."""
    model, _, _ = reach_model.built_and_run(Type("vit", "ViTForImageClassification", "IMAGE_CLASSIFICATION"))
    plan = reach_methods._planned(model, "lora", "")[1]
    assert plan.edits and not plan.copies


def test_a_traceback_is_told_apart_from_a_refusal() -> None:
    found = Found()
    found.tried("plan", lambda: unipelt.parse("method m { }"))
    found.tried("apply", lambda: [][0])
    assert list(found.refused) == ["plan"] and list(found.crashed) == ["apply"]
    assert found.crashed["apply"].startswith("IndexError") and "test_reach.py:" in found.crashed["apply"]


def test_whether_attention_is_computed_is_seen_in_a_pass() -> None:
    for module, seen in ((nn.MultiheadAttention(8, 2), True), (nn.Linear(8, 8), False)):
        with torch.no_grad(), reach_model.Attention() as found:
            x = torch.randn(3, 1, 8)
            module(*([x] * 3 if seen else [x]))
        assert found.seen is seen


def test_a_child_that_takes_too_long_or_dies_is_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    found: dict[str, Any] = {}

    def task(t: Type) -> dict[str, Any]:
        if t is BERT:
            while True:
                sum(range(1000))
        raise MemoryError("all of it")

    reach.each(task, [BERT, LLAMA], 2, 1, lambda t, r: found.update({t.name: r}))
    assert found["bert"]["crashed"] == "longer than 1 s" and found["llama"]["crashed"] == "MemoryError: all of it"


def test_a_run_goes_on_with_what_the_record_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "reach.json"
    monkeypatch.setattr(reach, "types", lambda: iter([BERT, LLAMA]))
    seen: list[str] = []

    def each(task: Any, items: Any, jobs: int, limit: int, keep: Any) -> None:
        for t in items:
            seen.append(t.name)
            keep(t, {"class": t.cls, "kind": "text", "unbuilt": "here"})

    monkeypatch.setattr(reach, "each", each)
    reach.main(["--only", "^bert$", "--out", str(out)])
    reach.main(["--out", str(out)])
    reach.main(["--only", "bert", "--again", "--out", str(out)])
    assert seen == ["bert", "llama", "bert"] and set(json.loads(out.read_text())["types"]) == {"bert", "llama"}


def test_shares_count_the_types_on_which_a_method_has_sense() -> None:
    good, bad = "meta, apply", {"refused": {"plan": "error[E0502]: no anatomy is known for the model type `x`"}}
    common = {"kind": "text", "softmax attention": True, "biases": True, "inputs": ["input_ids"]}
    records: dict[str, Any] = {
        "a": {**common, "methods": dict.fromkeys(METHODS, good)},
        "b": {
            **common,
            "softmax attention": False,
            "biases": False,
            "methods": {**dict.fromkeys(METHODS, bad), "lora": good},
        },
        "c": {**common, "methods": dict.fromkeys(METHODS, bad)},
        "d": {"kind": "text", "unbuilt": "why"},
    }
    shares = {m: reach_tables.share(records.values(), m) for m in ("lora", "mam", "bitfit", "adapter")}
    assert shares == {"lora": (2, 3), "mam": (1, 2), "bitfit": (1, 2), "adapter": (1, 3)}
    text = reach_tables.tables(records)
    assert "open  text, lora: 2/3 (67 %), aim 95 %" in text and "1  unbuilt: why\n      d" in text
    assert "2  adapter, plan: error[E0502]: no anatomy is known for the model type `…`\n      b, c" in text
    assert len(reach_tables.failures(records)) == len(METHODS) + 2


@pytest.mark.parametrize("found, left", [
    (BERT, {}), (LLAMA, {}),
    (Type("mixtral", "MixtralForCausalLM", "CAUSAL_LM"), {"ia3": "projections are those of experts"}),
    (Type("qwen2_moe", "Qwen2MoeForCausalLM", "CAUSAL_LM"), {}),  # one of its experts every token passes
    (Type("afmoe", "AfmoeForCausalLM", "CAUSAL_LM"), {"bitfit": r"no gradient by any of its 1 biases \(expert_bias\)"}),
])  # fmt: skip
def test_a_method_without_sense_is_left_out_by_a_fact(found: Type, left: dict[str, str]) -> None:
    model, _, inputs = reach_model.built_and_run(found)
    told = reach_model.senseless(model, inputs)
    assert told.keys() == left.keys() and all(re.search(why, told[m]) for m, why in left.items())
    record = {"methods": {}, "softmax attention": True, "biases": True, "inputs": ["input_ids"], "left out": told}
    assert {m for m in METHODS if not reach_tables.counts(record, m)} == set(left)
    assert not any(p.requires_grad for p in model.parameters())


def test_biases_of_a_tower_count_where_it_hears_something() -> None:
    """In a pass of the text alone no output has a gradient by them."""
    model, _, inputs = reach_model.built_and_run(Type("glmasr", "GlmAsrForConditionalGeneration", "SPEECH_SEQ_2_SEQ"))
    heard = reach_model._beside(model)
    assert heard is not None and "input_features" in heard and "input_features" not in inputs
    assert "bitfit" in reach_model.senseless(model, inputs) and not reach_model.senseless(model, heard)


def test_a_picture_that_changes_nothing_is_none() -> None:
    class Blind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.eye = nn.Embedding(16, 4), nn.Conv2d(3, 4, 4)

        def forward(self, input_ids: torch.Tensor, pixel_values: torch.Tensor | None = None) -> torch.Tensor:
            if pixel_values is not None and self.sees:
                return self.words(input_ids) + self.eye(pixel_values).mean((-1, -2))[:, None]
            return self.words(input_ids)

    torch.manual_seed(0)
    for sees in (False, True):
        model = Blind().eval()
        model.sees = sees
        assert (reach_model._beside(model) is not None) == sees


def test_types_that_take_longer_are_there() -> None:
    assert set(reach_types.LONGER) <= {t.name for t in types()}


def test_the_page_has_the_record_s_table() -> None:
    page = (reach.OUT.parents[1] / "README.md").read_text("utf-8")
    types = json.loads(reach.OUT.read_text("utf-8"))["types"]
    assert reach_tables.written(page, types) == page, "python benchmarks/reach.py --readme"
    fewer = {n: t for n, t in types.items() if n != "bert"}
    assert reach_tables.written(page, fewer) != page
