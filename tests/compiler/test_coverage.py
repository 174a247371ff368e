"""What a plan says of models whose blocks differ, that have several towers, or lack what a row reads: on a small model of `mixed`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import mixed
import pytest
import torch
from small import inputs as words
from small import model as small
from small import output

import unipelt
from unipelt.anatomy.find import find
from unipelt.anatomy.sites import Site, SiteMap
from unipelt.compiler import planner
from unipelt.language.analyse.counts import formula
from unipelt.runtime.registry import record

CONSTANT = "form { b: [d_out] ~ normal(1) delta = b }"


@pytest.fixture(autouse=True)
def _anatomy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed.teach(tmp_path, monkeypatch)


def method(sites: str, form: str = CONSTANT, more: str = "") -> unipelt.Method:
    return unipelt.parse(f"method m {{ modify {sites} {form} compose {{ out = h + delta }} {more} }}")


def planned(*args: str, model: Any = None) -> Any:
    return unipelt.plan(mixed.build() if model is None else model, method(*args))


def refused(code: str, *args: str, model: Any = None) -> Any:
    with pytest.raises(unipelt.PeltError) as e:
        planned(*args, model=model)
    (d,) = e.value.diagnostics
    assert d.code == code, str(e.value)
    return d


def changed(monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    """The planner finds a map that says something else: of the sites of a name (with ``name``), or of the whole."""
    name = more.pop("name", None)

    def found(model: Any, example: Any = None) -> SiteMap:
        sites = find(model, example)
        if name is None:
            return replace(sites, **more)
        return replace(sites, sites=tuple(replace(s, **more) if s.full_name == name else s for s in sites.sites))

    monkeypatch.setattr(planner, "find", found)


# ---------------------------------------------------------------- towers


def test_a_bare_name_means_the_language_tower_and_the_plan_says_so() -> None:
    plan = planned("ffn")
    assert {(e.site.stack, e.site.layer) for e in plan.edits} == {("text", 0), ("text", 1), ("text", 2)}
    (note,) = plan.warnings
    assert note.startswith("`ffn` means the text tower here; the vision tower is left alone") and "`vision.ffn`" in note
    assert note in str(plan).replace("\n  ", " ") and note in plan.to_json()["warnings"]


@pytest.mark.parametrize("sites", ["text.ffn", "vision.ffn", "vision.ffn, text.ffn", "projector", "final"])
def test_nothing_is_said_of_towers_where_the_names_say_it(sites: str) -> None:
    plan = planned(sites)
    assert not plan.warnings
    assert {e.site.full_name for e in plan.edits} <= {*sites.split(", "), "vision.projector", "text.final"}


def test_a_tower_that_a_model_lacks() -> None:
    d = refused("E0704", "qformer.attn.q")
    assert d.help == "it has the stacks `vision`, `text`"
    assert refused("E0704", "vison_tower.ffn").help == "it has the stacks `vision`, `text`"
    assert refused("E0704", "texts_2.ffn").help.startswith("did you mean `text`? it has")
    assert "leave `vision.` out" in refused("E0704", "vision.ffn", model=small("bert")).help


def test_a_site_that_only_another_tower_has() -> None:
    assert refused("E0512", "attn.q").help == "write `vision.attn.q`"
    assert refused("E0512", "vision.mixer").help == "write `text.mixer`"


def test_training_a_tower() -> None:
    model = mixed.build()
    of_vision = {n for n, _ in model.named_parameters() if n.startswith("vision.")}

    def copies(text: str) -> set[str]:
        return {c.name for c in unipelt.plan(model, unipelt.parse(f"method m {{ train {text} }}")).copies}

    assert copies("vision.*") == of_vision
    assert copies("vision.attn.q") == {n for n in of_vision if ".attn.q." in n}
    assert copies("vision.*.norm.weight") == {n for n in of_vision if "before_" in n and n.endswith("weight")}
    assert copies("attn.o") == {"text.layers.1.attn.o.weight"}
    with pytest.raises(unipelt.PeltError, match="E0704"):
        copies("audio.*")
    with pytest.raises(unipelt.PeltError, match="E0704"):
        copies("qformer.attn.q")


def test_a_tower_acts_and_leaves_the_other_alone() -> None:
    """What is put at the vision tower and the projector is what hooks put there; taking it out restores every number."""
    model, inputs = mixed.build(), mixed.batch()
    before = model(**inputs)[0].detach()
    for sites, modules in (("vision.attn.q", [b.attn.q for b in model.vision.layers]), ("projector", [model.projector]),
                           ("vision.block.input", list(model.vision.layers))):  # fmt: skip
        unipelt.apply(model, method(sites), name="a")
        found = model(**inputs)[0].detach()
        tensors = list(record(model, "a").trained().values())
        unipelt.remove(model, "a")
        assert torch.equal(model(**inputs)[0], before) and not torch.allclose(found, before, atol=1e-4)
        entering = "input" in sites
        handles = [m.register_forward_pre_hook(lambda m, a, t=t: (a[0] + t, *a[1:])) if entering
                   else m.register_forward_hook(lambda m, a, o, t=t: o + t) for m, t in zip(modules, tensors, strict=True)]  # fmt: skip
        assert torch.allclose(model(**inputs)[0], found, rtol=0, atol=1e-10)
        for h in handles:
            h.remove()


def test_formulas_of_towers() -> None:
    assert formula(method("vision.attn.q"))["trained"] == "L_vision d_head heads"
    assert (
        formula(method("qformer.block", "form { b: [d_out] ~ zeros per kind delta = b }"))["trained"]
        == "d_model has_qformer"
    )
    assert formula(method("mixer.in"))["trained"] == "L_mixer d_mix"
    assert formula(method("projector"))["trained"] == "d_model"


# ---------------------------------------------------------------- blocks that differ


def test_a_plan_says_which_blocks_have_a_site() -> None:
    plan = planned("text.attn.o, text.mixer.in, text.ffn")
    assert plan.warnings == (
        "`attn.o` is in 1 of 3 blocks of the text tower: layer 1",
        "`mixer.in` is in 2 of 3 blocks of the text tower: layers 0, 2",
    )
    assert [(r["site"], r["layers"]) for r in plan.table()] == [
        ("text.attn.o", "1"),
        ("text.mixer.in", "0, 2"),
        ("text.ffn", "0–2"),
    ]


def test_layers_that_lack_the_site() -> None:
    d = refused("E0526", "text.attn.o", CONSTANT, "layers 0..1")
    assert "`attn.o`" in d.message and "`attn.o` is in layer 1 of the text tower" in d.help
    d = refused("E0526", "text.attn.o, text.ffn.router", CONSTANT, "layers 0")
    assert "layer 1" in d.help and "layers 1, 2" in d.help
    plan = planned("text.attn.o, text.mixer.in", CONSTANT, "layers 0")
    assert [e.site.name for e in plan.edits] == ["mixer.in"]
    assert any("no selected layer of the text tower has `attn.o`, which is in layer 1" in w for w in plan.warnings)
    assert len(planned("text.mixer.in", CONSTANT, "layers last 2").edits) == 1


def test_why_blocks_lack_a_site_and_what_no_site_covers(monkeypatch: pytest.MonkeyPatch) -> None:
    why, experts = (
        {"text.layers.0.attn.o": "it is called twice"},
        [f"text.layers.1.ffn.experts.{i}.up" for i in range(2)],
    )
    left = {**dict.fromkeys(experts, "an expert's"), "lm_head": "outside", "text.layers.10.x": "of no such block"}
    changed(monkeypatch, refused=why, uncovered=left)
    plan = planned("text.attn.o")
    assert plan.warnings == (
        "`attn.o` is in 1 of 3 blocks of the text tower: layer 1; `text.layers.0.attn.o`: it is called twice",
        f"2 projections of these blocks are covered by no site, as `{experts[0]}` (an expert's)",
    )
    assert (plan.to_json()["uncovered"], plan.to_json()["refused"]) == (left, why)
    assert not planned("text.ffn").warnings  # a sublayer, whatever projections it has


def test_sizes_are_each_site_s_own() -> None:
    """Latent attention: queries and values have heads of other sizes, and a projection reads what the one before it yields."""
    form = "insert parallel form { A: [d_in, d_out] ~ zeros  B: [d_head] ~ zeros delta = z @ A }"
    shapes = {e.site.name: [plan.tensors[n].shape for n in e.tensors.values()]
              for plan in [planned("text.attn.q_a, text.attn.q_b, text.attn.kv_a, text.attn.kv_b, text.attn.o", form)] for e in plan.edits}  # fmt: skip
    assert shapes == {
        "attn.q_a": [(16, 7), (6,)], "attn.q_b": [(7, 12), (6,)], "attn.kv_a": [(16, 11), (6,)], "attn.kv_b": [(9, 18), (6,)],
        "attn.o": [(10, 16), (5,)],
    }  # fmt: skip


@pytest.mark.parametrize("form", ["form { b: [d_out] ~ normal(1) per model delta = b }",
                                  "form { u: [d_out, 2] ~ normal(1) per model  w: [2, 1] ~ normal(1) per model  b = u @ w  delta = sum(b, 1) }"],
                         ids=["plain", "folded"])  # fmt: skip
def test_sites_of_one_name_share_one_tensor_for_each_size(form: str, tmp_path: Path) -> None:
    sites = "vision.ffn, text.ffn"
    model, inputs = mixed.build(), mixed.batch()
    plan = unipelt.apply(model, method(sites, form))
    assert bool(plan.folds) == ("@" in form)
    assert any("`per model`, and the sizes of `ffn` differ" in w for w in plan.warnings)
    by_tower = {
        tower: {n for e in plan.edits if e.site.stack == tower for n in e.tensors.values()}
        for tower in ("vision", "text")
    }
    (first,) = {plan.tensors[n].sizes[0] for n in by_tower["vision"] if n.startswith(("m.b", "m.u"))}
    (second,) = {plan.tensors[n].sizes[0] for n in by_tower["text"] if n.startswith(("m.b", "m.u"))}
    assert (first, second) == (mixed.PICTURE, mixed.WIDTH) and plan.counts.trained == sum(
        t.numel() for t in record(model, "default").trained().values()
    )
    found = model(**inputs)[0]
    unipelt.save(model, tmp_path / "kept")
    again = mixed.build()
    unipelt.attach(again, tmp_path / "kept")
    assert torch.allclose(again(**inputs)[0], found, rtol=0, atol=1e-5)
    assert not torch.allclose(found, mixed.build()(**inputs)[0], atol=1e-3)


def test_sites_of_other_names_do_not() -> None:
    d = refused("E0513", "text.ffn, text.mixer.in", "form { b: [d_out] ~ zeros per model delta = b }")
    assert "[16]" in d.message and "[24]" in d.message


def test_a_requirement_is_about_sizes_that_all_blocks_have() -> None:
    planned("text.ffn", CONSTANT, "require d_model > 8")
    planned("text.ffn", CONSTANT, "require d_q == 12")  # that of the queries, not of the values
    for condition, code in (("d_model > 16", "E0360"), ("d_q_rank > 7", "E0360"), ("d_mix > 100", "E0360")):
        with pytest.raises(unipelt.PeltError, match=code):
            planned("text.ffn", CONSTANT, f"require {condition}")
    with pytest.raises(unipelt.PeltError, match="E0360"):  # the vision tower's are asked for where it is changed
        planned("vision.ffn", CONSTANT, "require d_q == 12")


# ---------------------------------------------------------------- what a site lacks


def lacking(sites: SiteMap, name: str) -> Site:
    return next(s for s in sites.sites if s.full_name == name)


@pytest.mark.parametrize("part, form, said", [
    ("residual", "insert residual form { b: [d_out] ~ zeros delta = z * b }", "`residual` of `text.ffn` enters no module"),
    ("x", "insert parallel form { b: [d_out] ~ zeros delta = z * b }", "`x` of `text.ffn` enters no module"),
    ("bases", "insert parallel form { b: [d_out] ~ zeros delta = ffn.norm(z) * b }", "no module `ffn.norm` at `text.ffn`"),
])  # fmt: skip
def test_a_row_that_reads_what_no_module_has(part: str, form: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planned("text.ffn", form)
    changed(monkeypatch, name="text.ffn", **{part: {} if part == "bases" else None})
    d = refused("E0525", "text.ffn", form)
    assert said in d.message and d.help
    model, inputs = mixed.build(), mixed.batch()
    before = model(**inputs)[0]
    unipelt.apply(model, method("text.ffn", "insert sequential form { b: [d_out] ~ normal(1) delta = z * b }"))
    assert not torch.allclose(model(**inputs)[0], before, atol=1e-4)


def test_a_factor_before_the_sum_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    changed(monkeypatch, name="text.ffn", factor=0.22)
    (note,) = planned("text.ffn").warnings
    assert note.startswith("the model multiplies `text.ffn` by 0.22 before the residual sum")


def test_where_rows_stand_before_what_the_model_does_to_its_words() -> None:
    (note,) = planned("embed.words").warnings
    assert "`embed.words` is what leaves `text.embed`" in note
    assert not planned("embed.words", model=small("bert")).warnings  # `embed` is there, and says what it is


# ---------------------------------------------------------------- what enters, before and behind its edits


@pytest.mark.parametrize("first", ["attn.input", "attn"])
def test_an_edit_of_a_sublayer_s_input_changes_what_it_reads_and_not_the_stream(first: str) -> None:
    """BERT's stream enters the same module as what attention reads: x is behind the edit there, residual is not."""
    rows = {"attn.input": "use { modify attn.input form { b: [d_out] ~ normal(1) delta = b } compose { out = h + delta } } as moved",
            "attn": "use { modify attn insert parallel form { c: [d_out] ~ normal(1) delta = z * c + residual } compose { out = h + delta } } as read"}  # fmt: skip
    order = [first, *(n for n in rows if n != first)]
    model, plain = small("bert", dtype=torch.float64), small("bert", dtype=torch.float64)
    unipelt.apply(model, unipelt.parse("method m { " + " ".join(rows[n] for n in order) + " }"))
    own = record(model, "default").trained()
    for i, layer in enumerate(plain.encoder.layer):
        b, c = (
            next(t for n, t in own.items() if f"layer.{i}." in n and n.endswith(end)) for end in ("moved.b", "read.c")
        )
        kept: dict[str, torch.Tensor] = {}

        def enters(m: Any, args: tuple, kept: dict = kept, b: torch.Tensor = b) -> tuple:
            kept["stream"], kept["x"] = args[0], args[0] + b
            return (kept["x"], *args[1:])

        def leaves(m: Any, args: tuple, out: torch.Tensor, kept: dict = kept, c: torch.Tensor = c) -> torch.Tensor:
            return out + kept["x"] * c + kept["stream"]

        layer.attention.self.register_forward_pre_hook(enters)
        layer.attention.output.dropout.register_forward_hook(leaves)
    found, expected = output(model, **words()), output(plain, **words())
    assert torch.allclose(found, expected, rtol=0, atol=1e-9)
    assert not torch.allclose(found, output(small("bert", dtype=torch.float64), **words()), rtol=0, atol=1e-2)
