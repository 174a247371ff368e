"""Starts that data decide: the same as by hand, streamed, and the model is as it was, however the measuring ends."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from calibrated import batches

import unipelt
from unipelt.language.loading import parse
from unipelt.runtime import calibration

MEASURED = """
method m {
  modify attn.q, attn.v
  insert parallel
  form {
    y = 2 * x
    frozen C: [d_in, d_in]  = second_moment(x)
    frozen M: [d_in]        = data_mean(z)
    frozen D: [d_in, d_in]  = second_moment(y)
    frozen G: [d_in, d_out] = mean_gradient(W)
    A: [d_in, d_in] ~ zeros
    delta = z @ A @ (C + D + M) @ G
  }
  compose add
}
"""
MOMENT = "method m { modify attn.q insert parallel form { frozen C: [d_in, d_in] = second_moment(x)  B: [d_in, d_out] ~ zeros  delta = z @ C @ B } compose add }"


def by_hand(kind: str, data: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Moments and gradients at the first layer's queries and values, by hooks and by autograd on whole parameters."""
    model = small.model(kind, dtype=torch.float64)
    path = "transformer.h.0.attn.c_attn" if kind == "gpt2" else "model.layers.0.self_attn.q_proj"
    module, seen = model.get_submodule(path), []
    module.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append((args or (*kwargs.values(),))[0].detach()), with_kwargs=True
    )
    grads: list[dict[str, torch.Tensor]] = []
    for batch in data:
        model.zero_grad()
        model(**batch).loss.backward()
        if kind == "gpt2":
            q, _, v = module.weight.grad.split(small.WIDTH, 1)
        else:
            q, v = (model.get_submodule(f"model.layers.0.self_attn.{n}_proj").weight.grad.T for n in "qv")
        grads.append({"q": q.clone(), "v": v.clone()})
    real = torch.cat([x[b["attention_mask"].bool()] for x, b in zip(seen, data, strict=True)])
    return {
        "C": torch.einsum("ni,nj->ij", real, real) / len(real), "M": real.sum(0) / len(real),
        **{n: torch.stack([g[n] for g in grads]).mean(0) for n in "qv"},
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_what_is_measured_is_what_it_is_by_hand(kind: str) -> None:
    data = batches()
    expected = by_hand(kind, data)
    model = small.model(kind, dtype=torch.float64)
    plan = unipelt.apply(model, parse(MEASURED), data=data)
    assert plan.needs == ("batches of data, data=…, of which batches=… are read (for `second_moment(x)` at attn.q, attn.v; `data_mean(z)` at "
                          "attn.q, attn.v; `second_moment(y)` at attn.q, attn.v; `mean_gradient(W)` at attn.q, attn.v)",)  # fmt: skip
    state = unipelt.state_dict(model)
    for site in "qv":
        C, M, D, G = (next(t for n, t in state.items() if n.endswith(f".0.attn.{site}.m.{x}")) for x in "CMDG")
        assert torch.allclose(C, expected["C"]) and torch.allclose(M, expected["M"]) and torch.allclose(D, 4 * C)
        assert G.abs().max() > 1e-6 and torch.allclose(G, expected[site], rtol=1e-6, atol=1e-12)


def test_sites_that_read_the_same_share_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    value = calibration._Mean.value
    monkeypatch.setattr(calibration._Mean, "value", lambda self: (kept.append(self), value(self))[1])
    both = parse(MOMENT.replace("modify attn.q", "modify attn.q, attn.k, attn.v"))
    unipelt.apply(small.model("gpt2"), both, data=batches())  # one map for the three
    assert len(kept) == small.LAYERS
    kept.clear()
    unipelt.apply(small.model("gpt2"), parse(MEASURED), data=batches())
    assert len(kept) == small.LAYERS * (3 + 2)  # x, z and y are the same for both, their gradients are not


def test_no_more_batches_are_read_than_are_asked_for() -> None:
    read = []

    def stream() -> Iterator[dict[str, torch.Tensor]]:
        for i in range(1000):
            read.append(i)
            yield batches(1, labels=False)[0]

    unipelt.apply(small.model("llama"), parse(MOMENT), data=stream(), batches=3)
    assert read == [0, 1, 2]


@pytest.mark.parametrize("text", [MOMENT, MEASURED])
def test_nothing_is_kept_of_a_batch_but_sums(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the next batch is asked for, what entered the sites is gone; kept are sums, as many and as large as after the first."""
    model = small.model("llama")
    method = parse(text)
    entered: list[weakref.ref] = []
    measured: list[calibration._Mean] = []
    made = calibration._Mean.__init__
    monkeypatch.setattr(calibration._Mean, "__init__", lambda self, *a: (measured.append(self), made(self, *a))[1])

    def enters(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        entered.append(weakref.ref((*args, *kwargs.values())[0]))

    for layer in model.model.layers:
        layer.self_attn.q_proj.register_forward_pre_hook(enters, with_kwargs=True)
    kept: list[int] = []

    def stream() -> Iterator[dict[str, torch.Tensor]]:
        gc.collect()  # the search for sites has passes of its own, and leaves cycles
        assert not [x for x in entered if x() is not None]
        entered.clear()
        for i in range(8):
            assert len(entered) >= i * small.LAYERS and not [x for x in entered if x() is not None]
            kept.append(sum(m.total.numel() for m in measured if m.total is not None))
            ids = torch.randint(2, small.WORDS, (1 + i, 50), generator=torch.Generator().manual_seed(i))
            yield {"input_ids": ids, "labels": ids}

    unipelt.apply(model, method, data=stream(), batches=7)
    whole = small.LAYERS * small.WIDTH * small.WIDTH
    a_value = small.WIDTH * small.WIDTH // small.HEADS * small.GROUPS  # of grouped queries
    gradients = small.LAYERS * (small.WIDTH**2 + a_value)
    entering = 2 * (2 * whole + small.LAYERS * small.WIDTH)  # queries and values have a map each
    wanted = whole if text == MOMENT else entering + gradients
    assert kept == [0, *[wanted] * 6] and len(entered) == 7 * small.LAYERS


def full_state(model: torch.nn.Module) -> tuple:
    return (*small.state(model), [m.training for m in model.modules()], [p.grad for p in model.parameters()], torch.get_rng_state().tolist(),
            {n: set(vars(m)) for n, m in model.named_modules()})  # fmt: skip


@pytest.mark.parametrize("text", [MOMENT, MEASURED])
@pytest.mark.parametrize("ends", ["whole", "broken off", "unfit"])
def test_the_model_is_left_as_it_was(text: str, ends: str) -> None:
    model = small.model("llama")
    model.train()
    model.model.layers[1].eval()
    seen: list[int] = []
    model.model.layers[0].register_forward_hook(lambda m, args, out: seen.append(1))
    before = full_state(model)

    def stream() -> Iterator[Any]:
        yield batches(1)[0]
        if ends == "broken off":
            raise KeyboardInterrupt
        yield batches(2)[1] if ends == "whole" else [1, 2]

    if ends == "whole":
        unipelt.apply(model, parse(text), data=stream())
        unipelt.remove(model)
    else:
        with pytest.raises(KeyboardInterrupt if ends == "broken off" else unipelt.PeltError):
            unipelt.apply(model, parse(text), data=stream())
        assert not unipelt.adapters(model)
    assert full_state(model) == before and seen


def test_other_adapters_do_not_act_while_data_are_read() -> None:
    alone, beside = small.model("llama"), small.model("llama")
    unipelt.apply(beside, unipelt.load("lora"), name="first")
    small.randomise(beside, "first")
    for model in (alone, beside):
        unipelt.apply(model, parse(MEASURED), name="second", data=batches())
    one, other = (unipelt.state_dict(m, "second") for m in (alone, beside))
    assert all(torch.equal(t, other[n]) for n, t in one.items())
    assert unipelt.active(beside) == ("second",)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_32_bits(dtype: torch.dtype) -> None:
    model, whole = small.model("llama", dtype=dtype), small.model("llama")
    for m in (model, whole):
        unipelt.apply(m, parse(MEASURED), data=batches())
    for n, t in unipelt.state_dict(model).items():
        expected = unipelt.state_dict(whole)[n]
        assert t.dtype == torch.float32 and torch.allclose(
            t, expected, atol=0.05 * float(expected.abs().max()) + 1e-9
        ), n


def test_an_adapter_comes_back_without_data(tmp_path: Path) -> None:
    model = small.model("llama")
    unipelt.apply(model, parse(MEASURED), data=batches())
    small.randomise(model)
    unipelt.save(model, tmp_path / "a")
    again = small.model("llama")
    unipelt.attach(again, tmp_path / "a")
    assert torch.equal(small.output(again), small.output(model))


def test_the_loss_may_be_ones_own() -> None:
    model, data = small.model("llama"), batches(labels=False)
    with pytest.raises(unipelt.PeltError) as caught:
        unipelt.apply(model, parse(MEASURED), data=data)
    assert caught.value.diagnostics[0].code == "E0536" and "loss=" in caught.value.diagnostics[0].help
    unipelt.apply(model, parse(MEASURED), data=data, loss=lambda out, batch: out.logits.square().mean())
    assert all(
        t.isfinite().all() and t.abs().max() > 0 for n, t in unipelt.state_dict(model).items() if n.endswith(".G")
    )


def test_missing_data_are_asked_for() -> None:
    model = small.model("llama")
    before = small.state(model)
    with pytest.raises(unipelt.PeltError) as caught:
        unipelt.apply(model, parse(MOMENT))
    (d,) = caught.value.diagnostics
    assert (
        d.code == "E0535" and "`second_moment(x)` at attn.q" in d.message and "data=" in d.help and "batches=" in d.help
    )
    with pytest.raises(unipelt.PeltError, match="E0535"):
        unipelt.apply(model, parse(MOMENT), data=batches(), batches=0)
    with pytest.raises(unipelt.PeltError, match="no token of the data reached"):
        unipelt.apply(model, parse(MOMENT), data=[])
    assert small.state(model) == before


def test_what_is_not_finite_is_refused() -> None:
    model = small.model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = float("nan")
    with pytest.raises(unipelt.PeltError, match="is not finite on these data"):
        unipelt.apply(model, parse(MOMENT), data=[{"input_ids": torch.tensor([[5, 6]])}])


def test_a_model_without_weights_is_planned_without_data() -> None:
    with torch.device("meta"):
        model = small.model("llama")
    plan = unipelt.apply(model, parse(MOMENT))
    assert plan.needs and all(t.is_meta for t in unipelt.state_dict(model).values())
