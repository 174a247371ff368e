"""torch's attention, which keeps the maps of queries, keys and values in one parameter and calls none of its maps: edits act there, and
nothing of what puts them in stays."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from names import name as named
from torch import nn

import unipelt
from unipelt.anatomy.find import find
from unipelt.anatomy.packed import apart
from unipelt.anatomy.stand_in import StandIn
from unipelt.anatomy.stored import Architecture

WIDTH = 16
PARTS = {"attn.q": slice(0, 16), "attn.k": slice(16, 32), "attn.v": slice(32, 48)}


class Block(nn.Module):
    """As CLIP models of other libraries have it: tokens come before the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, 2)
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(), nn.Linear(24, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.resblocks, self.end = (
            nn.Embedding(20, WIDTH),
            nn.Sequential(Block(), Block()),
            nn.LayerNorm(WIDTH),
        )

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        return self.end(self.resblocks(self.table(text).transpose(0, 1)).transpose(0, 1))


def encoder(**more: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 24, batch_first=True, **more)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


#: Of each kind: the model, what enters it, and its attention's path in a block.
KINDS: dict[str, tuple[Any, Any, str]] = {
    "post-norm": (encoder, lambda: torch.randn(3, 5, WIDTH), "layers.{}.self_attn"),
    "pre-norm": (lambda: encoder(norm_first=True), lambda: torch.randn(3, 5, WIDTH), "layers.{}.self_attn"),
    "no biases": (lambda: encoder(bias=False), lambda: torch.randn(3, 5, WIDTH), "layers.{}.self_attn"),
    "tokens first": (Tower, lambda: torch.randint(0, 20, (3, 5)), "resblocks.{}.attn"),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def built(kind: str) -> tuple[nn.Module, torch.Tensor, str]:
    torch.manual_seed(0)
    make, given, path = KINDS[kind]
    model = make().eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(torch.randn_like(p) * 0.3)
    return model, given(), path


def structure(model: nn.Module) -> list[Any]:
    return [
        (n, type(m), list(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in model.named_modules()
    ]


def low(*sites: str) -> Any:
    return unipelt.parse(f"method low {{ modify {', '.join(sites)}  insert parallel  form {{ A: [d_in, 2] ~ normal(0.3)  B: [2, d_out] ~ normal(0.3)  "
                         "delta = z @ A @ B }  compose add }")  # fmt: skip


def by_hand(model: nn.Module, path: str, tensors: dict[str, torch.Tensor]) -> None:
    """The products of an adapter added to the rows of the packed weight, or to the output projection's."""
    for i in range(2):
        attention: Any = model.get_submodule(path.format(i))
        block = path.format(i).rpartition(".")[0]
        for site, rows in (*PARTS.items(), ("attn.o", None)):
            if f"{block}.{site}.low.A" in tensors:
                added = (tensors[f"{block}.{site}.low.A"] @ tensors[f"{block}.{site}.low.B"]).T
                (attention.out_proj.weight if rows is None else attention.in_proj_weight[rows]).add_(added)


@kinds
def test_the_maps_are_found_as_columns_of_one_and_proved(kind: str) -> None:
    model, _, path = built(kind)
    before = structure(model)
    sites = find(model)
    assert structure(model) == before
    for name, rows in PARTS.items():
        (site, _) = sites.named(name)
        assert (site.view.module, site.proof) == (f"{path.format(0)}.in_proj", "proved")
        assert site.view.columns is not None and site.view.columns.ranges == ((rows.start, rows.stop),)
    assert (
        sites.named("attn.o")[0].view.module == f"{path.format(0)}.out_proj"
        and not sites.refused
        and not sites.uncovered
    )
    assert find(model) == sites


@kinds
def test_edits_act_merge_and_leave_nothing_behind(kind: str, tmp_path: Path) -> None:
    model, x, path = built(kind)
    other, before, keys = copy.deepcopy(model), structure(model), list(model.state_dict())
    with torch.no_grad():
        plain = model(x)
        unipelt.apply(model, low(*PARTS, "attn.o"), name="a")
        by_hand(other, path, unipelt.state_dict(model, "a"))
        changed = model(x)
        assert float((changed - plain).abs().max()) > 1e-2
        torch.testing.assert_close(changed, other(x), rtol=1e-4, atol=1e-5)
        for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(copied(x), changed)
            for t in unipelt.state_dict(copied, "a").values():
                t.zero_()
            torch.testing.assert_close(copied(x), plain, rtol=1e-4, atol=1e-5)
        assert torch.equal(model(x), changed)
        unipelt.save(model, tmp_path / "a", "a")
        unipelt.merge(model, "a")
        torch.testing.assert_close(model(x), changed, rtol=1e-4, atol=1e-5)
        unipelt.unmerge(model, "a")
        unipelt.remove(model, "a")
        assert structure(model) == before and list(model.state_dict()) == keys and torch.equal(model(x), plain)
        # torch multiplies by a tensor that requires a gradient in another way, whose last bits differ on some processors
        unipelt.attach(model, tmp_path / "a", trainable=True)
        assert torch.equal(model(x), changed)


def test_two_adapters_one_of_them_at_the_heads() -> None:
    """What serves the heads stands around what calls the maps, whichever came first, and both go."""
    for order in (("maps", "heads"), ("heads", "maps")):
        model, x, _ = built("post-norm")
        before = structure(model)
        methods = {"maps": low("attn.q", "attn.o"), "heads": unipelt.load(named("prefix_tuning"))(l=3)}
        with torch.no_grad():
            plain = model(x)
            alone = {}
            for name in order:
                unipelt.apply(model, methods[name], name=name, seed=1)
                alone[name] = model(x)
            unipelt.activate(model, *order)
            both = model(x)
            assert all(float((both - t).abs().max()) > 1e-3 for t in (plain, *alone.values()))
            for name in order:
                unipelt.activate(model, name)
                torch.testing.assert_close(model(x), alone[name], rtol=1e-4, atol=1e-5)
            for name in order:
                unipelt.remove(model, name)
            assert structure(model) == before and torch.equal(model(x), plain)


def test_they_train_beside_copies_of_biases() -> None:
    model, x, path = built("post-norm")
    unipelt.apply(model, unipelt.parse("method m { modify attn.q, attn.v insert parallel form { A: [d_in, 2] ~ normal(0.3)  B: [2, d_out] ~ zeros  "
                                       "delta = z @ A @ B } compose add  train *.bias }"), name="m")  # fmt: skip
    trained = [p for p in model.parameters() if p.requires_grad]
    step = torch.optim.SGD(trained, lr=0.05)
    losses = []
    model.train()
    for _ in range(4):
        torch.manual_seed(1)
        loss = (model(x) - 1).pow(2).mean()
        step.zero_grad()
        loss.backward()
        step.step()
        losses.append(float(loss.detach()))
    still = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert losses[-1] < losses[0] and not still


def test_a_copy_of_the_output_projection_and_an_edit_of_it_are_refused_at_once() -> None:
    model, x, path = built("post-norm")
    unipelt.apply(model, low("attn.o"), name="a")
    unipelt.apply(model, unipelt.parse("method m { train *.out_proj.bias }"), name="b")
    model(x)
    unipelt.activate(model, "a", "b")
    with pytest.raises(unipelt.PeltError, match="E0547.*`out_proj`"):
        model(x)


def test_a_forward_that_somebody_put_in_is_seen_behind_what_calls_the_maps() -> None:
    """The map of a model with one is not kept for others of its architecture."""
    model, _, path = built("post-norm")
    attention: Any = model.get_submodule(path.format(0))
    with apart(model):
        assert Architecture(model).key is not None
    attention.forward = attention.forward
    with apart(model):
        assert Architecture(model).key is None


@pytest.mark.parametrize("sites", [("attn.q",), tuple(PARTS), ("attn.o",)])
@pytest.mark.parametrize("export", [unipelt.export_peft, unipelt.export_as_lora])
def test_peft_has_no_place_for_them(export: Any, sites: tuple[str, ...], tmp_path: Path) -> None:
    """Its own attention computes with the weight of the output projection, past what stands beside it, and has no `in_proj`."""
    model, _, _ = built("post-norm")
    unipelt.apply(model, low(*sites))
    with pytest.raises(unipelt.PeltError, match="E0844.*(in_proj|out_proj)") as caught:
        export(model, tmp_path / "a")
    assert "--as lora" not in str(caught.value) and not (tmp_path / "a").exists()


def test_a_compiler_is_told() -> None:
    model, x, _ = built("post-norm")
    unipelt.apply(model, low("attn.q"), name="a")
    with pytest.raises(Exception, match="attention calls none of its maps"):
        torch.compile(model, backend="eager")(x)


def test_maps_of_other_tokens_are_refused_and_the_output_projection_is_not() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerDecoderLayer(WIDTH, 2, 24, batch_first=True)
    model = nn.TransformerDecoder(layer, 2).eval()
    given = {"tgt": torch.randn(1, 5, WIDTH), "memory": torch.randn(1, 6, WIDTH)}
    sites = find(model, given)
    assert "called twice" in sites.refused["cross.q"] and len(sites.named("cross.o")) == len(sites.named("attn.q")) == 2
    with torch.no_grad():
        plain = model(**given)
        unipelt.apply(model, low("attn.q", "cross.o"), example=given)
        assert float((model(**given) - plain).abs().max()) > 1e-2
        unipelt.remove(model)
        assert torch.equal(model(**given), plain)


def test_an_interrupted_search_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, _ = built("post-norm")
    before = structure(model)

    def broken(*_: Any) -> torch.Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(nn.LayerNorm, "forward", broken)
    with pytest.raises(KeyboardInterrupt):
        find(model)
    assert structure(model) == before and not any(isinstance(vars(m).get("forward"), StandIn) for m in model.modules())
