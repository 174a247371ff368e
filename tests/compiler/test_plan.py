"""Plans: pure, on the meta device too; which layers and sites, what is shared, what is refused and why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from names import members, name, spec
from small import GROUPS, HEADS, INNER, LAYERS, WIDTH, model, state

import unipelt
from unipelt.compiler.plan import Plan
from unipelt.language.report.diagnostics import Diagnostic, PeltError

METHODS = members()
LOW_RANK = (
    "insert parallel form { A: [d_in, r] ~ normal(1) B: [r, d_out] ~ zeros delta = z @ A @ B } "
    "compose { out = h + delta }"
)


def plan(text: str, kind: Any = "bert", head: bool | None = None, allow_future: bool = False) -> Plan:
    m = model(kind) if isinstance(kind, str) else kind
    return unipelt.plan(m, unipelt.parse(spec(text)), head=head, allow_future=allow_future)


def refused(text: str, kind: Any = "bert", head: bool | None = None) -> list[Diagnostic]:
    with pytest.raises(PeltError) as caught:
        plan(text, kind, head)
    return list(caught.value.diagnostics)


def layers(p: Plan) -> list[int | None]:
    return sorted({e.site.layer for e in p.edits}, key=lambda x: -1 if x is None else x)


# ---------------------------------------------------------------- purity


@pytest.mark.parametrize("kind", ["bert_labels", "gpt2", "llama"])
def test_planning_changes_nothing_and_meta_agrees(kind: str) -> None:
    m = model(kind)
    with torch.device("meta"):
        hollow = model(kind)
    assert next(hollow.parameters()).is_meta
    before = state(m)
    planned = 0
    for n in METHODS:
        try:
            p = unipelt.plan(m, unipelt.load(n), allow_future=True)
        except PeltError as e:
            with pytest.raises(PeltError) as caught:
                unipelt.plan(hollow, unipelt.load(n), allow_future=True)
            assert [d.code for d in caught.value.diagnostics] == [d.code for d in e.diagnostics]
            continue
        q = unipelt.plan(hollow, unipelt.load(n), allow_future=True)
        ours, theirs = p.to_json(), q.to_json()
        assert ours["sites"].pop("proof") == "proved" and theirs["sites"].pop("proof") == "not yet proved"
        (note,) = set(q.warnings) - set(p.warnings)
        theirs["warnings"].remove(note)
        assert "not yet proved" in note and p.counts == q.counts and ours == theirs
        assert "sites found, not yet proved)" in " ".join(str(q).split())
        assert str(p) == str(replace(q, sites=p.sites, warnings=p.warnings))
        planned += 1
    assert planned >= 24 and state(m) == before


def test_a_plan_lists_what_apply_makes() -> None:
    for kind in ("bert_labels", "gpt2", "llama"):
        for n in METHODS:
            m = model(kind)
            try:
                p = unipelt.plan(m, unipelt.load(n), allow_future=True)
            except PeltError:
                continue
            assert unipelt.apply(m, unipelt.load(n), allow_future=True).counts == p.counts
            made = {k: tuple(t.shape) for k, t in unipelt.state_dict(m).items()}
            assert made == {t.name: t.shape for t in p.tensors.values()} | {c.name: c.parameter.shape for c in p.copies}
            assert (
                sum(torch.Size(s).numel() for s in made.values()) == p.counts.trained + p.counts.frozen + p.counts.head
            )
            assert sum(e["parameters"] for e in p.table()) == p.counts.trained + p.counts.head


def test_a_plan_is_plain_data() -> None:
    import json

    p = plan(f"method m(r: int = 4) {{ modify ffn {LOW_RANK} }}")
    data = json.loads(json.dumps(p.to_json()))
    assert data["counts"]["trained"] == 2 * LAYERS * WIDTH * 4 and data["method"] == "m"
    assert data["tensors"]["encoder.layer.0.ffn.m.A"] == {"shape": [WIDTH, 4], "frozen": False, "lr": 1.0}
    assert "0–2" in str(p) and "768" in str(p)


# ---------------------------------------------------------------- layers


@pytest.mark.parametrize(
    ("words", "chosen"),
    [
        ("first 1", [0]),
        ("first 2", [0, 1]),
        ("last 2", [1, 2]),
        ("1 .. 3", [1, 2]),
        ("0 .. 1", [0]),
        ("every 2", [0, 2]),
        ("every 3", [0]),
        ("every 1", [0, 1, 2]),
        ("all", [0, 1, 2]),
        ("last depth - 1", [1, 2]),
        ("first r / 2", [0, 1]),
        ("every 7", [0]),
    ],
)
def test_selections_of_layers(words: str, chosen: list[int]) -> None:
    p = plan(f"method m(r: int = 4) {{ layers {words} modify ffn {LOW_RANK} }}")
    assert layers(p) == chosen and p.warnings == ()
    assert p.counts.trained == len(chosen) * 2 * WIDTH * 4


@pytest.mark.parametrize(("words", "chosen"), [("first 9", [0, 1, 2]), ("last 9", [0, 1, 2]), ("2 .. 9", [2])])
def test_more_layers_than_there_are_is_clamped_with_a_warning(words: str, chosen: list[int]) -> None:
    p = plan(f"method m(r: int = 4) {{ layers {words} modify ffn {LOW_RANK} }}")
    assert layers(p) == chosen
    assert [("9" in w and f"{LAYERS} layers" in w and "clamped" in w) for w in p.warnings] == [True]
    assert p.warnings[0] in str(p)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("first 0", "E0514"),
        ("first 0 - 1", "E0514"),
        ("first 2.5", "E0514"),
        ("2 .. 2", "E0516"),
        ("5 .. 9", "E0516"),
        ("first gelu", "E0514"),
        ("first depth / 2", "E0514"),
        ("first depth - 3", "E0514"),
        ("layer .. 2", "E0303"),
        ('since "a"', "E0515"),
    ],
)
def test_wrong_selections(words: str, code: str) -> None:
    text = f"method m(r: int = 4) {{ layers {words} modify ffn {LOW_RANK} }}"
    found = refused(text)
    assert [d.code for d in found] == [code], [d.message for d in found]


def test_layers_of_trained_copies() -> None:
    p = plan("method m { layers last 2 train *.bias lr 0.5 }")
    assert {c.name.split(".")[2] for c in p.copies} == {"1", "2"} and {c.lr for c in p.copies} == {0.5}


# ---------------------------------------------------------------- sites


def test_a_missing_site_is_named_with_those_there_are() -> None:
    text = f"method m(r: int = 4) {{ modify ffn.gate {LOW_RANK} }}"
    (d,) = refused(text, "bert")
    assert d.code == "E0512" and text[d.span.start : d.span.end] == "ffn.gate" and "BertModel" in d.message and d.help
    assert len(plan(text, "llama").edits) == LAYERS
    (d,) = refused(text.replace("ffn.gate", "head"), "bert")
    assert d.code == "E0512" and "head" in d.message


def test_an_absent_gate_is_left_out_with_a_warning_unless_it_is_all() -> None:
    """So that `every linear map` can be written for models with and without a gate."""
    text = "method m {{ modify {} insert parallel form {{ b: [d_out] ~ zeros delta = b }} compose add }}"
    both = unipelt.parse(text.format("ffn.up, ffn.gate"))
    plan = unipelt.plan(model("bert"), both)
    assert {e.site.name for e in plan.edits} == {"ffn.up"}
    assert plan.warnings == ("row `m`: the feed-forward layers have no gate, so ffn.gate is left out",)
    assert not unipelt.plan(model("llama"), both).warnings
    with pytest.raises(unipelt.PeltError, match="E0512.*no site `ffn.gate`"):
        unipelt.plan(model("bert"), unipelt.parse(text.format("ffn.gate")))


def test_absent_cross_attention_is_left_out_with_a_warning_unless_it_is_all() -> None:
    p = plan(f"method m(r: int = 4) {{ modify attn.q, cross.q {LOW_RANK} }}")
    assert {e.site.name for e in p.edits} == {"attn.q"} and any("cross.q" in w for w in p.warnings)
    (d,) = refused(f"method m(r: int = 4) {{ modify cross.q {LOW_RANK} }}")
    assert d.code == "E0512" and "cross.q" in d.message


def test_numbers_are_checked_again() -> None:
    (d,) = refused(f"method m(r: int = 0) {{ modify ffn {LOW_RANK} }}")
    assert d.code == "E0343" and "0" in d.message
    d, other = refused(f"method m(r: int = 1000000000) {{ modify ffn {LOW_RANK} }}")
    assert d.code == other.code == "E0346" and "32,000,000,000" in d.message
    (d,) = refused(
        "method m(r: int = 4) { modify ffn "
        + LOW_RANK.replace("[d_in, r]", "[d_in, r / 3]").replace("[r,", "[r / 3,")
        + " }"
    )
    assert d.code == "E0343" and "1.33" in d.message
    (d,) = refused(
        f'method m(r: int = 4) {{ use {{ modify ffn {LOW_RANK} }} as a require divides(r, 6), "r must divide six" }}'
    )
    assert d.code == "E0360" and "six" in d.message
    (d,) = refused(f"method m(r: int) {{ modify ffn {LOW_RANK} }}")
    assert d.code == "E0408" and "`r`" in d.message
    (d,) = refused(
        "method m { modify attn insert parallel form { require divides(5, d_in) delta = z } "
        "compose { out = h + delta } }"
    )
    assert d.code == "E0360"
    text = (
        "method m { modify ffn.up insert parallel form { A: [d_in, 48] ~ zeros delta = z @ A } "
        "compose { out = h + delta } }"
    )
    with pytest.raises(PeltError):  # 48 is d_ff of this model alone
        unipelt.parse(text)


def test_the_whole_is_bounded() -> None:
    rows = " ".join(
        "use { modify ffn insert parallel form { A: [d_in, 60000000] ~ zeros b: [60000000] ~ zeros "
        f"delta = z * sum(z @ A * b) }} compose {{ out = h + delta }} }} as r{i}"
        for i in range(4)
    )
    m = model("bert")
    with pytest.raises(PeltError) as caught:
        unipelt.plan(m, unipelt.parse(f"method m {{ {rows} }}"))
    assert {d.code for d in caught.value.diagnostics} == {"E0346"}


def test_a_share_of_the_base_can_be_required() -> None:
    text = 'method m(r: int = 4) {{ use {{ modify ffn {} }} as a require params <= {}, "too many" }}'
    assert plan(text.format(LOW_RANK, "50%")).edits
    (d,) = refused(text.format(LOW_RANK, "0.1%"))
    assert d.code == "E0360" and "too many" in d.message


# ---------------------------------------------------------------- causality


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("method", ["unipelt_ap", "unipelt_apl"])
def test_a_gate_that_pools_is_an_error_on_a_causal_model(kind: str, method: str) -> None:
    m = model(kind)
    with pytest.raises(PeltError) as caught:
        unipelt.plan(m, unipelt.load(name(method)))
    found = caught.value.diagnostics
    assert {d.code for d in found} == {"E0530"} and len(found) == (2 if method == "unipelt_ap" else 3), (
        "one for each row"
    )
    from unipelt.language.report.texts import lookup

    for d in found:
        source = lookup(d.span.file)
        assert source is not None and source.text[d.span.start : d.span.end] == "positions"
        assert type(m).__name__ in d.message and "allow_future" in d.help
    allowed = unipelt.plan(m, unipelt.load(name(method)), allow_future=True)
    assert len(allowed.leaks) == len(found) and allowed.properties["causal"].startswith("no")
    with pytest.raises(PeltError):
        unipelt.apply(m, unipelt.load(name(method)))
    assert unipelt.plan(model("bert"), unipelt.load(name(method))).leaks == ()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_causal_twin_passes(kind: str) -> None:
    p = unipelt.plan(model(kind), unipelt.load(name("unipelt_apl_causal")))
    assert p.leaks == () and p.properties["causal"] == "yes"


def test_causality_words_by_hand() -> None:
    text = "method m { modify ffn insert parallel form { delta = {} } compose { out = h + delta } }"
    for words, good in [
        ("mean(z, tokens)", False),
        ("mean(z, positions)", False),
        ("last(z, tokens)", False),
        ("running_mean(z)", True),
        ("first(z, positions)", True),
        ("relu(z)", True),
    ]:
        one = text.replace("{}", words)
        if good:
            assert plan(one, "gpt2").leaks == ()
        else:
            (d,) = refused(one, "gpt2")
            assert d.code == "E0530" and one[d.span.start : d.span.end] in words.split("(")[1]


def test_padding_is_a_warning() -> None:
    assert any("pad" in w for w in unipelt.plan(model("bert"), unipelt.load(name("unipelt_ap"))).warnings)
    assert not any("pad" in w for w in unipelt.plan(model("bert"), unipelt.load(name("lora"))).warnings)


# ---------------------------------------------------------------- sharing


@pytest.mark.parametrize(
    ("scope", "names"),
    [("", 2 * LAYERS), ("per site", 2 * LAYERS), ("per layer", LAYERS), ("per kind", 2), ("per model", 1)],
)
def test_tensors_are_shared_as_their_scope_says(scope: str, names: int) -> None:
    p = plan(
        f"method m {{ modify attn, ffn insert parallel form {{ s: [d_out] ~ zeros {scope} delta = s * z }} "
        "compose { out = h + delta } }"
    )
    assert len(p.tensors) == names and p.counts.trained == names * WIDTH and len(p.edits) == 2 * LAYERS
    assert {n for e in p.edits for n in e.tensors.values()} == set(p.tensors)


def test_shared_tensors_are_one_tensor_in_the_model() -> None:
    m = model("bert")
    unipelt.apply(
        m,
        unipelt.parse(
            "method m { modify attn, ffn insert parallel form { s: [d_out] ~ ones per model delta = s * z } "
            "compose { out = h + delta } }"
        ),
    )
    from unipelt.runtime.edits import Edit

    edits = [e for e in m.modules() if isinstance(e, Edit)]
    assert len(edits) == 2 * LAYERS and len({id(p) for e in edits for p in e.tensors().values()}) == 1
    # registered once, and outside the layers: each of these may be sharded by itself
    registered = [n for n, p in m.named_parameters(remove_duplicate=False) if p.requires_grad]
    assert len(registered) == 1 and "layer" not in registered[0]
    assert sum(p.numel() for p in m.parameters() if p.requires_grad) == WIDTH


def test_sharing_across_sizes_is_refused() -> None:
    (d,) = refused(
        "method m { modify attn.k, ffn.up insert parallel form { s: [d_out] ~ zeros per model delta = s } "
        "compose { out = h + delta } }"
    )
    assert d.code == "E0513" and str(INNER) in d.message and str(WIDTH) in d.message


def test_groups_and_heads_have_their_own_copies() -> None:
    p = plan(
        "method m { modify attn.heads insert parallel form { a: [d_head] ~ zeros b: [d_head] ~ zeros per group "
        "c: [d_head] ~ zeros per layer, head delta = q * a * b * c } compose { out = h + delta } }",
        "llama",
    )
    shapes = {n.rsplit(".", 1)[1]: t.shape for n, t in p.tensors.items()}
    assert shapes == {"a": (HEADS, WIDTH // HEADS), "b": (GROUPS, WIDTH // HEADS), "c": (HEADS, WIDTH // HEADS)}


def test_learning_rates() -> None:
    p = unipelt.plan(model("bert"), unipelt.load(name("lora_plus"))(ratio=7))
    assert {n.rsplit(".", 1)[1]: t.lr for n, t in p.tensors.items()} == {"A": 1.0, "B": 7.0}


# ---------------------------------------------------------------- trained copies


def copies(train: str, kind: str = "bert") -> set[str]:
    p = plan(f"method m {{ train {train} }}", kind, head=False)
    assert len({c.name for c in p.copies}) == len(p.copies)
    return {c.name for c in p.copies}


def test_patterns_of_parameters() -> None:
    m = model("bert")
    every = {n for n, _ in m.named_parameters()}
    assert copies("*") == every
    assert copies("*.bias") == {n for n in every if n.endswith(".bias")} and len(copies("*.bias")) > 20
    assert copies("*.norm.*") == {n for n in every if "LayerNorm" in n}
    assert copies("*.norm.bias") == {n for n in every if n.endswith("LayerNorm.bias")}
    assert copies("attn.q") == {n for n in every if "attention.self.query" in n}
    assert copies("attn.q.weight, ffn.up.bias") == {
        n for n in every if n.endswith("query.weight") or n.endswith("intermediate.dense.bias")
    }
    assert copies("embed.words") == {"embeddings.word_embeddings.weight"}
    assert copies("block") == {n for n in every if n.startswith("encoder.layer.")}
    assert copies("*.norm.*", "llama") == {
        n.removeprefix("model.") for n, _ in model("llama").named_parameters() if "norm" in n
    }


def test_a_pattern_that_names_nothing_is_an_error() -> None:
    for words, near in (("*.biass", ""), ("wing", ""), ("attn.qq", "attn.q"), ("*.bias", "")):
        kind = "llama" if words == "*.bias" else "bert"
        (d,) = refused(f"method m {{ train {words} }}", kind)
        assert d.code == "E0510" and words in d.message and near in d.help and d.help


def test_a_tied_weight_is_one_copy_with_a_warning() -> None:
    p = plan("method m { train embed.words }", "gpt2")
    assert [c.name for c in p.copies] == ["wte.weight"] and len(p.copies[0].parameter.uses) == 2
    assert any("tied" in w and "lm_head" in w for w in p.warnings)
    assert not any("tied" in w for w in plan("method m { train ln_f.* }", "gpt2").warnings)


# ---------------------------------------------------------------- heads


def test_a_task_head_trains_along_unless_told() -> None:
    text = f"method m(r: int = 4) {{ modify ffn {LOW_RANK} }}"
    head = WIDTH * WIDTH + WIDTH + 3 * WIDTH + 3
    p = plan(text, "bert_labels")
    assert p.counts.head == head and {c.name for c in p.copies} == {
        "pooler.dense.weight",
        "pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    }
    assert plan(text, "bert_labels", head=False).counts.head == 0
    assert plan(text, "gpt2").counts.head == 0 and plan(text, "bert").counts.head == 0
    assert p.counts.trained == plan(text, "bert").counts.trained, "the head is counted apart"
    (d,) = refused(text, "bert", head=True)
    assert d.code == "E0517"


def test_a_methods_own_head_replaces_the_models() -> None:
    p = unipelt.plan(model("bert_labels"), unipelt.load(name("lora+mean_head")))
    assert p.copies == () and p.counts.head == WIDTH * 3 + 3 and p.counts.trained > 0
    assert unipelt.plan(model("bert_labels"), unipelt.load(name("probing"))).counts.trained == 0
    with pytest.raises(PeltError):
        unipelt.plan(model("bert"), unipelt.load(name("probing")))


def test_base_counts_leave_the_task_head_out() -> None:
    counted = unipelt.plan(model("bert_labels"), unipelt.load(name("lora"))).counts.base
    pooler = WIDTH * WIDTH + WIDTH
    assert counted == sum(p.numel() for p in model("bert").parameters()) - pooler


# ---------------------------------------------------------------- folds


def test_what_folds_is_stored_folded_where_that_is_smaller() -> None:
    m = model("bert")
    p = unipelt.plan(m, unipelt.load(name("prefix_tuning_mlp"))(l=4, mid=64))
    assert p.counts.stored == 2 * LAYERS * 4 * WIDTH < p.counts.trained
    assert {f.tensor.shape for f in p.folds} == {(HEADS, 4, 8), (HEADS, 8, 4)} and len(p.folds) == 2 * LAYERS
    p = unipelt.plan(m, unipelt.load(name("prefix_tuning_mlp"))(l=400, mid=1))
    assert p.folds == () and p.counts.stored == p.counts.trained
    assert unipelt.plan(m, unipelt.load(name("lora"))).folds == ()


# ---------------------------------------------------------------- what a start needs


def test_starts_that_need_data_say_so() -> None:
    p = unipelt.plan(model("bert"), unipelt.load(name("prompt_tuning"))(start='tokens("a text")'))
    assert len(p.needs) == 1 and "tokenizer" in p.needs[0] and p.needs[0] in str(p)
    m = model("bert")
    before = state(m)
    with pytest.raises(PeltError) as caught:
        unipelt.apply(m, unipelt.load(name("prompt_tuning"))(start='tokens("a text")'))
    assert caught.value.diagnostics[0].code == "E0521" and state(m) == before
    assert unipelt.plan(m, unipelt.load(name("prompt_tuning"))).needs == ()


def test_all_mistakes_are_reported_at_once() -> None:
    text = f"""method m(r: int = 4) {{
      use {{ modify ffn.gate {LOW_RANK} }} as a
      use {{ layers 20 .. 30 modify ffn {LOW_RANK} }} as b
      use {{ train wing }} as c
      require 1 > 2 + r
    }}"""
    assert [d.code for d in refused(text)] == ["E0512", "E0516", "E0510", "E0360"]
