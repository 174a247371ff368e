"""Trained adapters as arguments of a method: what is read of them is what they do, frozen, copied and saved with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from names import name, spec
from small import LAYERS, WIDTH, inputs, model, output, randomise, state
from torch import nn
from torch.nn import functional as F

import unipelt
from unipelt.language.members import MOST
from unipelt.runtime.registry import record

FUSION = spec(
    """
method fusion(of: adapters, at: sites = [ffn], reg: float = 0.01) {
  modify at
  insert ffn.norm(h + residual)
  form {
    axis member = of
    frozen one: [d_out, d_out] ~ identity per model
    Q: [d_in, d_out]  ~ normal(0.02)
    K: [d_out, d_out] ~ normal(0.02)
    V: [d_out, d_out] = one + 0.000001 * (1 - one)
    a = softmax(sum((z @ Q) * (of.delta @ K)), member)
    penalty reg * sum(sum((V - one) ** 2))
    delta = sum(a * (of.delta @ V), member)
  }
  compose add
}
"""
)
#: A weighted sum of what members make, of what they add, or one member made of all: with one weight of 1 it is that member.
OUTS = "method pick(of: adapters, at: sites) { modify at insert sequential form { axis member = of w: [] ~ zeros per member delta = sum(w * of.out, member) } compose { out = delta } }"
ADDED = "method pick(of: adapters, at: sites) { modify at insert parallel form { axis member = of w: [] ~ zeros per member delta = sum(w * of.delta, member) } compose h + delta }"
ONE = "method pick(of: adapters, at: sites) { modify at insert parallel form { axis member = of w: [] ~ zeros per member delta = of.delta(w) } compose h + delta }"


def trained(m: nn.Module, method: unipelt.Method, *names: str, **more: Any) -> nn.Module:
    """The model with adapters of a method whose tensors differ; none acts."""
    for seed, n in enumerate(names, 20):
        unipelt.apply(m, method, name=n, seed=seed, head=False, allow_future=True, **more)
        randomise(m, n, seed=seed)
    unipelt.activate(m)
    return m


def library(method: str, **arguments: Any) -> unipelt.Method:
    return unipelt.load(name(method))(**arguments)


def fused(kind: str = "bert", dtype: torch.dtype = torch.float32) -> nn.Module:
    m = trained(model(kind, dtype=dtype), library("pfeiffer", r=4), "first", "second")
    unipelt.apply(m, unipelt.parse(FUSION)(of=["first", "second"]), name="both", head=False)
    randomise(m, "both")
    return m


def codes(caught: pytest.ExceptionInfo[unipelt.PeltError]) -> list[str]:
    return [d.code for d in caught.value.diagnostics]


# ---------------------------------------------------------------- what it computes


class Fused(nn.Module):
    """BERT's output of the feed-forward layer with adapters and their fusion in it, written by hand as `adapters` has them."""

    def __init__(self, base: nn.Module, members: list[dict[str, torch.Tensor]], own: dict[str, torch.Tensor]):
        super().__init__()
        self.base, self.members = base, members
        self.own = nn.ParameterDict({n: nn.Parameter(t.clone()) for n, t in own.items()})

    def forward(self, hidden: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        h = self.base.dense(hidden)
        z = self.base.LayerNorm(h + residual)
        up = torch.stack(
            [F.linear(torch.relu(F.linear(z, m["down"].T, m["b_down"])), m["up"].T, m["b_up"]) for m in self.members], 2
        )
        scores = torch.matmul((z @ self.own["Q"]).unsqueeze(2), (up @ self.own["K"]).transpose(-2, -1)).squeeze(2)
        context = torch.matmul(torch.softmax(scores, -1).unsqueeze(2), up @ self.own["V"]).squeeze(2)
        return self.base.LayerNorm(context + h + residual)


def test_fusion_is_what_is_computed_by_hand_with_its_gradients() -> None:
    m, by_hand = fused(), model("bert")
    plan = record(m, "both").plan
    for layer in range(LAYERS):
        edits = {
            n: next(e for e in record(m, n).plan.edits if e.site.layer == layer) for n in ("first", "second", "both")
        }
        first, second, own = (
            {k: unipelt.state_dict(m, n)[full] for k, full in edits[n].tensors.items()} for n in edits
        )
        at = by_hand.encoder.layer[layer]
        at.output = Fused(at.output, [first, second], {n: own[n] for n in ("Q", "K", "V")})
    given = inputs()
    ours, theirs = m(**given)[0], by_hand(**given)[0]
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(0))
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    trained = record(m, "both").trained()
    for e in plan.edits:
        for n in ("Q", "K", "V"):
            wanted = by_hand.encoder.layer[e.site.layer].output.own[n].grad
            assert torch.allclose(trained[e.tensors[n]].grad, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert len(trained) == 3 * LAYERS, "members are not trained"
    assert plan.counts.trained == 3 * LAYERS * WIDTH**2
    assert plan.counts.frozen == WIDTH**2 + 2 * LAYERS * (2 * 4 * WIDTH + 4 + WIDTH)


MEMBERS = {
    "lora": ({"r": 4}, "llama"), "ia3": ({}, "llama"), "hydra_lora": ({"r": 4}, "gpt2"), "unipelt_apl": ({"ra": 4, "l": 3, "rl": 4, "mid": 8}, "bert"),
    "vera": ({"r": 4}, "llama"), "dora": ({"r": 4}, "gpt2"), "llama_adapter": ({"l": 3}, "llama"), "shira": ({"one_in": 40}, "llama"),
    "scaled_parallel_adapter": ({"r": 4}, "bert"),
}  # fmt: skip


@pytest.mark.parametrize("text", [OUTS, ADDED, ONE], ids=["out", "delta", "average"])
@pytest.mark.parametrize("member", MEMBERS)
def test_what_is_read_of_a_member_is_what_it_does(member: str, text: str) -> None:
    """Also where it is gated, rescales, shares the softmax, has one tensor for all sites, whole numbers, a weight as its site."""
    arguments, kind = MEMBERS[member]
    method = library(member, **arguments)
    m = trained(model(kind, dtype=torch.float64), method, "first", "second")
    unipelt.activate(m, "second")
    wanted = output(m)
    assert not torch.allclose(wanted, output(model(kind, dtype=torch.float64)))
    sites = list(
        dict.fromkeys(
            str(p) for r in method.rows for p in unipelt.language.check.methods.sites_of(r.sites, method.params)
        )
    )
    if any(s.endswith(".weight") for s in sites):
        text = text.replace("insert sequential ", "").replace("insert parallel ", "")
    picking = unipelt.parse(text)(of=["first", "second"], at=f"[{', '.join(sites)}]")
    if text is ONE and member == "shira":
        with pytest.raises(unipelt.PeltError) as caught:
            unipelt.apply(m, picking, name="pick")
        assert codes(caught) == ["E0422"] and "whole numbers" in str(caught.value)
        return
    for lowering in (True, False):
        unipelt.apply(m, picking, name="pick", head=False, allow_future=True, lowering=lowering)
        with torch.no_grad():
            for n, w in record(m, "pick").trained().items():
                assert n.endswith(".w")
                w.copy_(torch.tensor([0.0, 1.0]))
        assert torch.allclose(output(m), wanted, rtol=1e-9, atol=1e-9)
        unipelt.remove(m, "pick")


def test_members_of_other_forms_and_sizes_are_fused() -> None:
    """One reads the output, one the input, one the normed sum; the fusion's query keeps what it reads."""
    m = trained(model("llama", dtype=torch.float64), library("pfeiffer", r=4), "normed")
    trained(m, library("scaled_parallel_adapter", r=3), "beside")
    trained(
        m,
        unipelt.parse(
            "method own { modify ffn insert sequential form { A: [d_in, d_out] ~ zeros delta = tanh(z @ A) } compose h * (1 + delta) }"
        ),
        "times",
    )
    plan = unipelt.apply(m, unipelt.parse(FUSION)(of=["normed", "beside", "times"]), name="all")
    randomise(m, "all")
    assert plan.properties["causal"] == "yes" and plan.properties["mergeable"].startswith("no")
    compiled = output(m)
    again = trained(model("llama", dtype=torch.float64), library("pfeiffer", r=4), "normed")
    trained(again, library("scaled_parallel_adapter", r=3), "beside")
    trained(again, record(m, "times").method, "times")
    unipelt.apply(again, unipelt.parse(FUSION)(of=["normed", "beside", "times"]), name="all", lowering=False)
    randomise(again, "all")
    assert torch.allclose(output(again), compiled, rtol=1e-9, atol=1e-9)


def test_members_act_as_outside_training() -> None:
    """Their dropout is not for the training of what reads them, and it is deterministic."""
    m = trained(model("llama"), library("lora", r=4, dropout=0.5), "first", "second")
    plan = unipelt.apply(m, unipelt.parse(ADDED)(of=["first", "second"], at="[attn.q, attn.v]"), name="both")
    randomise(m, "both")
    assert plan.properties["deterministic in training"] == "yes"
    evaluated = output(m)
    m.train()
    assert torch.allclose(output(m), evaluated, rtol=1e-5, atol=1e-5)


def test_the_penalty_is_that_of_the_method() -> None:
    m = fused()
    own = {n: t.detach() for n, t in record(m, "both").trained().items() if n.endswith(".V")}
    m.train()
    m(**inputs())
    wanted = sum(0.01 * ((V - torch.eye(WIDTH)) ** 2).sum() for V in own.values())
    assert torch.allclose(unipelt.penalties(m), wanted, rtol=1e-5)


# ---------------------------------------------------------------- frozen, copied, saved


def test_members_do_not_move_in_training() -> None:
    m = fused()
    before = {n: {k: t.clone() for k, t in unipelt.state_dict(m, n).items()} for n in ("first", "second", "both")}
    optimiser = torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.1)
    m(**inputs())[0].square().sum().backward()
    optimiser.step()
    after = {n: unipelt.state_dict(m, n) for n in before}
    assert all(torch.equal(before[n][k], t) for n in ("first", "second") for k, t in after[n].items())
    moved = {k.rpartition(".")[2] for k, t in after["both"].items() if not torch.equal(before["both"][k], t)}
    assert moved == {"Q", "K", "V"}


def test_what_happens_to_a_member_later_is_not_seen() -> None:
    m = fused()
    acting = output(m)
    randomise(m, "first", seed=99)
    assert torch.equal(output(m), acting), "it has a copy"
    unipelt.remove(m, "second")
    assert torch.equal(output(m), acting)
    unipelt.apply(m, library("lora", r=2), name="other", head=False)
    randomise(m, "other")
    unipelt.activate(m, "both")
    assert torch.equal(output(m), acting)
    unipelt.activate(m, "both", "other")
    assert not torch.allclose(output(m), acting, atol=1e-3)
    with unipelt.disabled(m):
        assert torch.equal(output(m), output(model("bert")))


def test_without_a_trace() -> None:
    m = trained(model("bert"), library("pfeiffer", r=4), "first", "second")
    before = state(m)
    unipelt.apply(m, unipelt.parse(FUSION)(of=["first", "second"]), name="both")
    unipelt.remove(m, "both")
    unipelt.activate(m)
    assert state(m) == before


def test_a_saved_fusion_needs_its_members_no_more(tmp_path: Path) -> None:
    """It comes back in another process, to the bit, with their copies in its folder."""
    m = fused()
    folder = unipelt.save(m, tmp_path / "both", "both")
    torch.save(output(m), tmp_path / "wanted.pt")
    text = (folder / "method.pelt").read_text()
    assert "of.delta" not in text and "adapters" not in text.partition("{")[0]
    assert "Frozen in it: first (" in text and "~ given" in text
    script = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'tests')\n"
        "import torch, unipelt; from small import model, output\n"
        "m = model('bert'); place = Path(sys.argv[1])\n"
        "assert unipelt.attach(m, place / 'both') == 'both'\n"
        "assert torch.equal(output(m), torch.load(place / 'wanted.pt'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_folders_serve_as_names_do(tmp_path: Path) -> None:
    m = fused()
    folders = [str(unipelt.save(m, tmp_path / n, n)) for n in ("first", "second")]
    other = model("bert")
    method = unipelt.parse(FUSION)
    for given in (folders, ",".join(folders)):
        plan = unipelt.apply(other, method(of=given), name="both", head=False)
        assert "`of`: a copy, frozen, of first (" in str(plan.warnings) and str(tmp_path) not in str(plan.method)
        randomise(other, "both")
        assert torch.equal(output(other), output(m))
        unipelt.remove(other, "both")
    assert unipelt.plan(other, method(of=folders), head=False).counts == plan.counts


def test_a_folder_that_leaves_out_its_draws_serves_too(tmp_path: Path) -> None:
    m = trained(model("llama", dtype=torch.float64), library("vera", r=4), "first", "second")
    folders = [str(unipelt.save(m, tmp_path / n, n)) for n in ("first", "second")]
    method, other = unipelt.parse(ONE)(at="[attn.q, attn.v]"), model("llama", dtype=torch.float64)
    for on, of in ((m, ["first", "second"]), (other, folders)):
        unipelt.apply(on, method(of=of), name="pick")
        randomise(on, "pick")
    assert torch.equal(output(other), output(m))
    again = model("llama", dtype=torch.float64)
    unipelt.attach(again, unipelt.save(other, tmp_path / "pick", "pick"))
    assert torch.equal(output(again), output(m))


def test_a_fusion_is_a_member_too() -> None:
    m = fused(dtype=torch.float64)
    acting = output(m)
    unipelt.apply(m, unipelt.parse(OUTS)(of=["both", "first"], at="[ffn]"), name="nested")
    with torch.no_grad():
        for w in record(m, "nested").trained().values():
            w.copy_(torch.tensor([1.0, 0.0]))
    assert torch.allclose(output(m), acting, rtol=1e-9, atol=1e-9)


def test_a_mean_of_loras_merges() -> None:
    """Where what comes of members is affine, the base's weights absorb it; only the means' sums are then needed."""
    m = trained(model("llama", dtype=torch.float64), library("lora", r=4), "first", "second")
    unipelt.apply(m, unipelt.parse(ONE)(of=["first", "second"], at="[attn.q, attn.v]"), name="mean")
    randomise(m, "mean")
    acting = output(m)
    unipelt.merge(m, "mean")
    assert torch.allclose(output(m), acting, rtol=1e-7, atol=1e-7)
    unipelt.unmerge(m)
    assert torch.equal(output(m), acting)


def test_it_generates_with_a_cache_what_it_generates_without() -> None:
    m = fused("llama")
    ids = inputs(padded=False)["input_ids"][:, :4]
    found = [
        m.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0, use_cache=cached) for cached in (True, False)
    ]
    assert torch.equal(*found)
    unipelt.activate(m)
    assert not torch.equal(found[0], m.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0))


# ---------------------------------------------------------------- verdicts and refusals


def test_a_member_that_sees_later_positions_is_refused_on_a_causal_model() -> None:
    pooled = unipelt.parse(
        "method pooled { modify ffn insert sequential form { A: [d_in, d_out] ~ zeros delta = mean(z, tokens) @ A } compose h + delta }"
    )
    method = unipelt.parse(FUSION)
    assert {
        v.value
        for n, v in unipelt.language.analyse.verdicts.verdicts(method).items()
        if n in ("causal", "identity at start")
    } == {"depends"}
    m = trained(model("gpt2"), pooled, "first", "second")
    with pytest.raises(unipelt.PeltError) as caught:
        unipelt.apply(m, method(of=["first", "second"]), name="both")
    assert codes(caught) == ["E0530"]
    plan = unipelt.apply(m, method(of=["first", "second"]), name="both", allow_future=True)
    assert plan.properties["causal"].startswith("no")


def refused(m: nn.Module, method: unipelt.Method) -> unipelt.PeltError:
    """The refusal, after which the model is as it was."""
    before = state(m)
    with pytest.raises(unipelt.PeltError) as caught:
        unipelt.apply(m, method, name="both")
    assert state(m) == before
    return caught.value


def test_an_adapter_that_is_not_there() -> None:
    m = trained(model("bert"), library("pfeiffer", r=4), "first", "second")
    said = refused(m, unipelt.parse(FUSION)(of=["first", "secnd"])).diagnostics
    assert [(d.code, d.help) for d in said] == [("E0599", "did you mean `second`?")]
    assert "folder" in refused(model("bert"), unipelt.parse(FUSION)(of=["first"])).diagnostics[0].help


@pytest.mark.parametrize("given", [[], [""], 3, [2, 3], "[first]"])
def test_what_is_no_list_of_adapters(given: Any) -> None:
    with pytest.raises(unipelt.PeltError) as caught:
        unipelt.parse(FUSION)(of=given)
    assert codes(caught) == ["E0405"] and "a list of adapters" in str(caught.value)


def test_more_adapters_than_a_method_takes() -> None:
    m = trained(model("bert"), library("pfeiffer", r=4), "first")
    assert f"takes {MOST} at most" in str(refused(m, unipelt.parse(FUSION)(of=["first"] * (MOST + 1))))


@pytest.mark.parametrize(
    "method,at,why",
    [
        ("method m { modify attn insert sequential form { A: [d_in, d_out] ~ zeros delta = z @ A } compose h + delta }", "[ffn]", "does nothing at `ffn`"),
        ("method m { train *.norm.* }", "[ffn]", "does nothing at `ffn`"),
        ("method m { modify embed form { P: [2, d_out] ~ normal(0.1) delta = P } compose prepend(delta, h) }", "[embed]", "changes the length"),
        ("method m { tokens last 1 modify ffn insert sequential form { A: [d_in, d_out] ~ zeros delta = z @ A } compose h + delta }", "[ffn]", "some tokens only"),
        ("method m { layers last 1 modify ffn insert sequential form { A: [d_in, d_out] ~ zeros delta = z @ A } compose h + delta }", "", "other layers"),
    ],
)  # fmt: skip
def test_an_adapter_that_cannot_be_read_there(method: str, at: str, why: str) -> None:
    m = trained(model("bert"), unipelt.parse(method), "first")
    trained(m, library("pfeiffer", r=4), "second")
    text = OUTS.replace("modify at", "layers first 1 modify at") if not at else OUTS
    error = refused(m, unipelt.parse(text)(of=["first"] if at else ["first", "second"], at=at or "[ffn]"))
    assert [d.code for d in error.diagnostics] == ["E0421"] and why in str(error)


def test_adapters_of_the_same_layers_lend_them_to_what_reads_them() -> None:
    m = trained(model("bert"), library("adapter_drop", k=1, r=4), "first", "second")
    plan = unipelt.apply(m, unipelt.parse(FUSION)(of=["first", "second"]), name="both", head=False)
    assert {e.site.layer for e in plan.edits} == set(range(1, LAYERS))


def test_adapters_of_other_forms_have_no_average() -> None:
    m = trained(model("llama"), library("lora", r=4), "small")
    trained(m, library("lora", r=8), "large")
    error = refused(m, unipelt.parse(ONE)(of=["small", "large"], at="[attn.q, attn.v]"))
    assert [d.code for d in error.diagnostics] == ["E0422"] and "`small`" in str(error) and "`large`" in str(error)


def test_adapters_of_another_base(tmp_path: Path) -> None:
    own = unipelt.save(trained(model("bert"), library("pfeiffer", r=4), "first"), tmp_path / "first", "first")
    method = unipelt.parse(FUSION)(of=[str(own)])
    assert [d.code for d in refused(model("bert", seed=5), method).diagnostics] == ["E0571"]
    assert [d.code for d in refused(model("llama"), method).diagnostics] == ["E0570"]


def test_a_stored_text_alone_has_no_values(tmp_path: Path) -> None:
    folder = unipelt.save(fused(), tmp_path / "both", "both")
    error = refused(model("bert"), unipelt.load(folder / "method.pelt"))
    assert [d.code for d in error.diagnostics] == ["E0568"] and "attach" in error.diagnostics[0].help


def test_what_takes_no_part_is_said() -> None:
    m = trained(model("bert"), library("adapter", r=4), "first", "second")
    plan = unipelt.apply(m, unipelt.parse(FUSION)(of=["first", "second"]), name="both", head=False)
    assert "of the adapter `first` takes no part what it has at attn, the trained copies of *.norm.*" in plan.warnings


# ---------------------------------------------------------------- as text, and on the command line


def printed(method: unipelt.Method) -> type[nn.Module]:
    """The class of the printed module of a method with one row."""
    found: dict[str, Any] = {"__name__": "printed"}
    exec(compile(method.torch_source(), "printed", "exec"), found)
    return next(c for c in found.values() if isinstance(c, type) and c.__module__ == "printed")


@pytest.mark.parametrize("text", [ADDED, ONE], ids=["tensor", "function"])
def test_the_printed_module_is_given_what_members_do(text: str) -> None:
    """Before it is known which they are: as a tensor with their axis, or as a function of weights."""
    g = torch.Generator().manual_seed(0)
    method = unipelt.parse(text)(at="[attn.q]")
    module = printed(method)(of=3)
    h, x, deltas = (torch.randn(s, generator=g) for s in ((2, 5, WIDTH), (2, 5, WIDTH), (2, 3, 5, WIDTH)))
    with torch.no_grad():
        module.w.copy_(torch.tensor([0.5, 2.0, -1.0]))
        wanted = h + 0.5 * deltas[:, 0] + 2.0 * deltas[:, 1] - deltas[:, 2]
        given = deltas if text is ADDED else lambda w: torch.einsum("n,bnto->bto", w, deltas)
        assert torch.allclose(module(h, of_delta=given), wanted, rtol=1e-5, atol=1e-5)


def test_the_printed_module_of_a_fusion_is_the_row_that_runs() -> None:
    m = fused(dtype=torch.float64)
    edit = next(e for e in record(m, "both").plan.edits if e.site.layer == 1)
    module = printed(unipelt.parse(FUSION))(d_model=WIDTH).double()
    own = {n: unipelt.state_dict(m, "both")[full] for n, full in edit.tensors.items()}
    module.load_state_dict({n: own[n] for n in module.state_dict()})
    norm = m.encoder.layer[1].output.LayerNorm
    g = torch.Generator().manual_seed(0)
    h, residual = (torch.randn((2, 5, WIDTH), generator=g, dtype=torch.float64) for _ in range(2))
    z = norm(h + residual)
    ups = [
        torch.relu(z @ own[f"{n}_down"] + own[f"{n}_b_down"]) @ own[f"{n}_up"] + own[f"{n}_b_up"]
        for n in ("first", "second")
    ]
    from unipelt.runtime.seam import edit_at

    running = edit_at(m, "both", edit)
    with torch.no_grad():
        assert torch.allclose(
            module(h, residual, torch.stack(ups, 1), norm), running(h, {"residual": residual}), rtol=1e-9, atol=1e-9
        )


def test_the_plan_of_a_command_finds_the_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    from typer.testing import CliRunner

    from unipelt.cli.app import app

    m = fused()
    for n in ("first", "second"):
        unipelt.save(m, tmp_path / n, n)
    (tmp_path / "fusion.pelt").write_text(FUSION)
    (tmp_path / "bert.json").write_text(json.dumps({**m.config.to_dict(), "model_type": "bert"}))
    monkeypatch.chdir(tmp_path)
    command = ["plan", "fusion.pelt", "--model", "bert.json", "--set"]
    shown = CliRunner().invoke(app, [*command, "of=first,second"])
    assert (
        shown.exit_code == 0
        and f"trained {3 * LAYERS * WIDTH**2:,}" in shown.output
        and "a copy, frozen, of first" in shown.output
    )
    assert "E0599" in CliRunner().invoke(app, [*command, "of=first,third"]).output
