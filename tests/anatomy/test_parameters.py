"""Parameters of the base that are sites: a table of words, a head's map, norms. An edit computes what the base computes with the
parameter changed by hand, merges into it, and acts wherever a tied one is used."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import mixed
import pytest
import torch
from tiny import batch, build
from torch import nn

import unipelt
from unipelt.language.analyse.counts import counts
from unipelt.language.sites import PARAMETERS
from unipelt.language.write.diagram import diagram
from unipelt.runtime.registry import record

README = (Path(__file__).resolve().parents[2] / "README.md").read_text("utf-8")
LAYERS = 2
#: A model that has each, and the base's parameters that are meant, by hand.
WHERE: dict[str, tuple[str, list[str]]] = {
    "embed.weight": ("bert", ["embeddings.word_embeddings.weight"]),
    "head.weight": ("bert_head", ["classifier.weight"]),
    "projector.weight": ("mixed", ["projector.weight"]),
    **{f"final.{n}": ("gpt2", [f"transformer.ln_f.{n}"]) for n in ("weight", "bias")},
    **{f"attn.norm.{n}": ("bert", [f"encoder.layer.{i}.attention.output.LayerNorm.{n}" for i in range(LAYERS)]) for n in ("weight", "bias")},
    **{f"ffn.norm.{n}": ("bert", [f"encoder.layer.{i}.output.LayerNorm.{n}" for i in range(LAYERS)]) for n in ("weight", "bias")},
    **{f"cross.norm.{n}": ("bart", [f"model.decoder.layers.{i}.encoder_attn_layer_norm.{n}" for i in range(LAYERS)]) for n in ("weight", "bias")},
    **{f"ffn.experts.{n}.weight": ("mixtral", [f"model.layers.{i}.mlp.experts.{p}_proj" for i in range(LAYERS)])
       for n, p in (("up", "gate_up"), ("gate", "gate_up"), ("down", "down"))},
    **{f"mixer.norm.{n}": ("mixed", [f"text.layers.{i}.before_attn.{n}" for i in (0, 2)]) for n in ("weight", "bias")},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _anatomy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed.teach(tmp_path, monkeypatch)


def base(kind: str) -> nn.Module:
    return mixed.build() if kind == "mixed" else build(kind, torch.float64)


def inputs(kind: str) -> dict[str, torch.Tensor]:
    return mixed.batch() if kind == "mixed" else batch(kind)


def output(model: nn.Module, kind: str) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs(kind))[0]


def spec(site: str, form: str) -> unipelt.Method:
    return unipelt.parse(f"method m {{ modify {site} form {{ {form} }} compose {{ out = h + 0.5 * delta }} }}")


def whole(site: str) -> unipelt.Method:
    sizes = "d_in, d_out" if len(PARAMETERS[site].h.sizes) == 2 else "d_out"
    return spec(site, f"P: [{sizes}] ~ normal(1) delta = P")


def own_part(name: str, p: torch.Tensor) -> torch.Tensor:
    """What of a parameter is meant: gate and up of an expert are halves of one."""
    half = {"gate": 0, "up": 1}.get(name.split(".")[-2]) if "experts" in name else None
    return p if half is None else p.chunk(2, 1)[half]


@pytest.mark.parametrize("name", PARAMETERS)
def test_an_edit_is_the_base_with_another_parameter(name: str) -> None:
    kind, paths = WHERE[name]
    model, changed = base(kind), base(kind)
    before = output(model, kind)
    unipelt.apply(model, whole(name), head=False)
    for (_, P), path in zip(sorted(record(model, "default").trained().items()), paths, strict=True):
        p = own_part(name, changed.get_parameter(path))
        with torch.no_grad():
            stays = isinstance(changed.get_submodule(path.rpartition(".")[0]), nn.Embedding) or P.dim() < 2
            p += 0.5 * (P if stays else P.mT)
    expected = output(changed, kind)
    assert not torch.allclose(expected, before, rtol=0, atol=1e-4)
    found = output(model, kind)
    assert torch.allclose(found, expected, rtol=0, atol=1e-10)
    own = {n: p.clone() for n, p in model.named_parameters() if not n.count("unipelt")}
    unipelt.merge(model)
    assert torch.allclose(output(model, kind), expected, rtol=0, atol=1e-10)
    assert {n for n, p in model.named_parameters() if n in own and not torch.equal(p, own[n])} == set(paths)
    unipelt.unmerge(model)
    assert torch.equal(output(model, kind), found)
    unipelt.remove(model)
    assert torch.equal(output(model, kind), before)


@pytest.mark.parametrize("name", PARAMETERS)
def test_what_the_tables_say_of_a_parameter_is_true(name: str) -> None:
    site = PARAMETERS[name]
    lines = [line.split(" | ") for line in re.findall(r"^\| (`.*)\|$", README, re.MULTILINE)]
    (row,) = [line for line in lines if f"`{name}`" in line[0].split()]
    said = site.described()
    assert [c.strip() for c in row[1:]] == ["–", said["h"], "–", "`W`"] and said["also"] == "W" and site.shown_by
    kind, paths = WHERE[name]
    plan = unipelt.plan(base(kind), whole(name), head=False)
    each = sum(own_part(name, base(kind).get_parameter(p)).numel() for p in paths)
    which = "head" if site.times == "head" else "trained"
    assert getattr(plan.counts, which) == each
    width = 16 if kind == "mixed" else 32
    sizes = dict(d_model=width, d_x=mixed.PICTURE, vocab=96, labels=3, L=LAYERS, L_cross=LAYERS, L_mixer=2)
    sizes |= dict(L_experts=LAYERS, L_gated_experts=LAYERS, d_experts=4, d_expert_ff=64)
    stacks = [{**sizes, "L_cross": 0}, sizes] if kind == "bart" else [sizes]
    assert counts(whole(name))[which].number(*stacks) == each
    (panel,) = diagram(whole(name))
    assert panel.inside == site.inside and panel.enters == ""


def test_every_parameter_is_written_down_by_hand() -> None:
    assert set(WHERE) == set(PARAMETERS)


@pytest.mark.parametrize("kind", ["bert_words", "gpt2", "t5", "bart", "gemma2"])
def test_a_tied_table_changes_wherever_it_is_used(kind: str) -> None:
    model, changed = base(kind), base(kind)
    words = changed.get_input_embeddings()
    assert words.weight is changed.get_output_embeddings().weight
    form = "A: [d_in, 2] ~ normal(0.1) B: [2, d_out] ~ normal(0.1) delta = A @ B"
    plan = unipelt.apply(model, spec("embed.weight", form), head=False)
    assert any("is tied: what is edited of it acts in" in w for w in plan.warnings)
    own = record(model, "default").trained()
    A, B = (next(t for n, t in own.items() if n.endswith(f".{end}")) for end in "AB")
    with torch.no_grad():
        words.weight += 0.5 * A @ B
    found = output(model, kind)
    assert torch.allclose(found, output(changed, kind), rtol=0, atol=1e-9)
    model(**inputs(kind))[0].square().sum().backward()
    assert own and all(t.grad is not None for t in own.values())
    unipelt.merge(model)
    assert torch.allclose(output(model, kind), found, rtol=0, atol=1e-9)
    unipelt.unmerge(model)
    assert torch.equal(output(model, kind), found)


def test_the_head_is_the_other_end_of_a_tied_table() -> None:
    one, other = base("gpt2"), base("gpt2")
    unipelt.apply(one, spec("embed.weight", "A: [vocab, d_model] ~ normal(0.1) delta = A"))
    unipelt.apply(other, spec("head.weight", "A: [labels, d_model] ~ normal(0.1) delta = A.T"))
    (a,), (b,) = (record(m, "default").trained().values() for m in (one, other))
    with torch.no_grad():
        b.copy_(a)
    assert torch.allclose(output(one, "gpt2"), output(other, "gpt2"), rtol=0, atol=1e-10)


def test_two_edits_of_a_tied_table_act_one_after_the_other() -> None:
    model, changed = base("gpt2"), base("gpt2")
    unipelt.apply(model, unipelt.parse("""method m {
      use { modify embed.weight form { A: [d_in, d_out] ~ normal(0.1) delta = A } compose { out = h + delta } } as a
      use { modify head.weight form { s: [] ~ constant(1.5) delta = s } compose { out = s * h } } as b
    }"""))  # fmt: skip
    A = next(t for n, t in record(model, "default").trained().items() if n.endswith("A"))
    with torch.no_grad():
        w = changed.get_input_embeddings().weight
        w.copy_(1.5 * (w + A))
    assert torch.allclose(output(model, "gpt2"), output(changed, "gpt2"), rtol=0, atol=1e-9)


class _Own(nn.Module):
    """Words whose table a module reads under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.out = nn.Linear(5, 4, bias=False), nn.Module()
        self.out.kernel = self.words.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.words(x) @ self.out.kernel


def test_what_cannot_be_edited_is_refused_with_the_reason() -> None:
    def refused(model: nn.Module, method: unipelt.Method) -> str:
        with pytest.raises(unipelt.PeltError) as e:
            unipelt.plan(model, method, head=False)
        return " / ".join(f"{d.code} {d.message}" for d in e.value.diagnostics)

    P = "P: [d_out] ~ zeros delta = P"
    found = refused(base("llama"), spec("attn.norm.bias", P))
    assert found.startswith("E0747 `attn.norm.bias` of this LlamaForCausalLM") and "has no parameter `bias`" in found
    assert refused(base("vit_head"), spec("embed.weight", P)).startswith("E0512")
    kind = 'module("words").weight'
    found = refused(_Own(), spec(kind, "A: [d_in, d_out] ~ zeros delta = A"))
    assert found.startswith("E0749 `words.weight` is tied to `out.kernel`") and found.endswith("`out` is a Module")
    told = "frozen G: [d_in, d_out] = mean_gradient(W) A: [] ~ zeros delta = A * G"
    assert "cannot start from data" in refused(base("llama"), spec("embed.weight", told))
    assert refused(base("gpt2"), spec("head.weight", told)).startswith(
        "E0747 `head.weight` of this GPT2LMHeadModel cannot start from data"
    )


def test_a_plan_says_that_each_use_of_a_tied_weight_drops_by_itself() -> None:
    form = "A: [d_in, 2] ~ normal(0.1) B: [2, d_out] ~ zeros delta = drop(A, 0.1) @ B"
    (said,) = [w for w in unipelt.plan(base("gpt2"), spec("embed.weight", form)).warnings if "tied" in w]
    assert said.endswith("draws its own dropout")


def test_an_edited_tied_table_is_copied_saved_and_attached(tmp_path: Path) -> None:
    model, fresh = base("gpt2"), base("gpt2")
    before = output(model, "gpt2")
    unipelt.apply(model, whole("embed.weight"))
    found = output(model, "gpt2")
    assert not torch.equal(found, before)
    assert sum("unipelt" in n for n in model.state_dict()) == 1  # a second use has no tensors of its own
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(iter(record(other, "default").trained().values())).zero_()
    assert torch.equal(output(other, "gpt2"), before) and torch.equal(output(model, "gpt2"), found)
    unipelt.save(model, tmp_path / "a")
    unipelt.attach(fresh, tmp_path / "a")
    assert torch.allclose(output(fresh, "gpt2"), found, rtol=0, atol=1e-5)  # the saved tensors may be shorter
    with unipelt.disabled(model):
        assert torch.equal(output(model, "gpt2"), before)
