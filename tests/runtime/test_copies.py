"""Trained copies of the base's own parameters: each tensor is registered once, and the copy follows its module wherever it goes."""

from __future__ import annotations

import copy
import io
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from small import inputs, model
from torch import nn

import unipelt

#: Parts of modules, whole modules, tied weights (GPT-2's words and head), and parameters of a module that holds others.
PATHS = {"biases": "*.bias", "one bias": "ffn.up.bias", "weights": "*.norm.weight", "norms": "*.norm.*", "all": "*"}


def copies(paths: str, lr: str = "") -> Any:
    return unipelt.parse(f"method m() {{ train {paths} {lr} }}")


def wear(kind: str, paths: str = "*.bias", name: str = "a", shift: float = 0.05) -> nn.Module:
    m = model(kind)
    put(m, paths, name, shift)
    return m


def put(m: nn.Module, paths: str, name: str = "a", shift: float = 0.05) -> dict[str, str]:
    """Applies and changes the copies; returns the paths of what they are copies of, by name."""
    plan = unipelt.apply(m, copies(paths), name)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for t in unipelt.state_dict(m, name).values():
            t.add_(shift * torch.randn(t.shape, generator=g))
    return {c.name: c.parameter.path for c in plan.copies}


def out(m: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        o = m(**inputs())
    return (o.logits if "logits" in o else o.last_hidden_state).clone()


def registered(m: nn.Module) -> dict[int, list[str]]:
    """The names of a state dict by the memory that they stand for."""
    found: dict[int, list[str]] = {}
    for name, t in m.state_dict().items():
        found.setdefault(t.data_ptr(), []).append(name)
    return found


@pytest.mark.parametrize(("kind", "paths"), [(k, p) for k in ("bert_labels", "gpt2", "llama") for p in PATHS.values()
                                             if k != "llama" or "bias" not in p])  # fmt: skip
def test_every_tensor_is_registered_once(kind: str, paths: str) -> None:
    """As often as in the base, to be exact: that may tie weights."""
    m = model(kind)
    before = registered(m)
    unipelt.apply(m, copies(paths), "a")
    after = registered(m)
    new = {p: names for p, names in after.items() if p not in before}
    assert {p: names for p, names in after.items() if p in before} == before
    assert len(new) == len(unipelt.state_dict(m, "a")) and all(len(names) == 1 for names in new.values())


def test_a_parameter_of_a_module_that_holds_others_is_registered_once() -> None:
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    m = ViTModel(ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=32, image_size=12,
                           patch_size=4), add_pooling_layer=False).eval()  # fmt: skip
    before = registered(m)
    pixels = torch.randn(2, 3, 12, 12)
    plain = m(pixels).last_hidden_state
    unipelt.apply(m, copies("embeddings.cls_token"), "a")
    assert {p: n for p, n in registered(m).items() if p in before} == before and len(registered(m)) == len(before) + 1
    with torch.no_grad():
        t = next(iter(unipelt.state_dict(m, "a").values()))
        t.copy_(torch.randn(t.shape))
    assert not torch.allclose(m(pixels).last_hidden_state, plain, atol=1e-3)


def test_a_tied_weight_has_one_copy_that_both_its_modules_use() -> None:
    m = wear("gpt2", "embed.words.*")
    ((name, t),) = unipelt.state_dict(m, "a").items()
    acting = out(m)
    plain = model("gpt2")
    with torch.no_grad():
        plain.transformer.wte.weight.copy_(t)
    assert torch.allclose(out(plain), acting, atol=1e-5)
    m.zero_grad()
    m(**inputs()).logits.square().mean().backward()
    plain(**inputs()).logits.square().mean().backward()
    p = next(p for g in unipelt.parameter_groups(m, "a", 1.0) for p in g["params"])
    assert torch.allclose(p.grad, plain.transformer.wte.weight.grad, atol=1e-5), name


@pytest.mark.parametrize("paths", PATHS.values(), ids=PATHS)
def test_the_trainers_own_checkpoints(paths: str, tmp_path: Path) -> None:
    """Of transformers' Trainer as it is: it saves, and goes on to the same weights."""
    from transformers import Trainer, TrainingArguments

    rows = [{**{k: v[i] for k, v in inputs().items()}, "labels": torch.tensor(i)} for i in range(3)]

    def run(steps: int, resume: bool = False) -> dict[str, torch.Tensor]:
        m = model("bert_labels")
        unipelt.apply(m, copies(paths), "a")
        arguments = TrainingArguments(str(tmp_path / "run"), max_steps=steps, per_device_train_batch_size=3, learning_rate=1e-2,
                                      lr_scheduler_type="constant", report_to=[], disable_tqdm=True, save_steps=2,
                                      dataloader_pin_memory=False, use_cpu=True, logging_strategy="no")  # fmt: skip
        m.train()
        for part in m.modules():  # what is drawn anew in each step would hide a step that is missing
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        Trainer(model=m, args=arguments, train_dataset=rows).train(resume_from_checkpoint=resume or None)
        return unipelt.state_dict(m, "a")

    two, start = run(2), unipelt.state_dict(wear("bert_labels", paths, shift=0.0), "a")
    assert any(not torch.equal(two[n], start[n]) for n in two)
    four = run(4, resume=True)
    whole = run(4)
    assert all(torch.allclose(four[n], whole[n], atol=1e-6) for n in whole)
    assert any(not torch.equal(four[n], two[n]) for n in two)


# ---------------------------------------------------------------- wherever the module goes


@pytest.mark.parametrize("paths", ["*.bias", "*.norm.weight", "ffn.up.weight", "*"])
@pytest.mark.parametrize("kind", ["bert_labels", "gpt2"])
def test_copied_pickled_and_moved(kind: str, paths: str) -> None:
    m = wear(kind, paths)
    acting = out(m)
    buffer = io.BytesIO()
    torch.save(m, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(m), torch.load(buffer, weights_only=False)):
        assert torch.equal(out(other), acting)
        with torch.no_grad():
            for p in other.parameters():
                p.mul_(1.1)
        assert not torch.allclose(out(other), acting, atol=1e-3) and torch.equal(out(m), acting)
    assert torch.allclose(out(copy.deepcopy(m).double()).float(), acting, atol=1e-4)


@pytest.mark.parametrize("paths", ["*.norm.weight", "ffn.up.weight", "*"])
@pytest.mark.parametrize("assign", [False, True])
def test_the_base_s_values_are_read_where_they_are_now(paths: str, assign: bool) -> None:
    """A frozen parameter that is put there later (`assign` replaces the object) is the one that the copy uses."""
    m, other = wear("bert_labels", paths), model("bert_labels", seed=3)
    put(other, paths, shift=0.2)
    wanted = out(other)
    assert not torch.allclose(out(m), wanted, atol=1e-2)
    m.load_state_dict({n: t.clone() for n, t in other.state_dict().items()}, assign=assign)
    assert torch.equal(out(m), wanted) and torch.equal(out(m), wanted)
    with torch.no_grad():
        for p in m.parameters():
            p.add_(0.01)
        for p in other.parameters():
            p.add_(0.01)
    assert torch.equal(out(m), out(other))


@pytest.mark.parametrize("paths", ["*.norm.weight", "ffn.up.weight", "embed.words.*", "*"])
@pytest.mark.parametrize("first", ["the method", "the offloading"])
def test_offloaded(paths: str, first: str) -> None:
    """Frozen parameters are brought for the copy's call as for the module's own, tied copies too, and do not stay."""
    from accelerate import cpu_offload

    m = wear("gpt2", paths)
    acting = out(m)
    if first == "the offloading":
        m = model("gpt2")
        cpu_offload(m, torch.device("cpu"))
        put(m, paths)
    else:
        cpu_offload(m, torch.device("cpu"))
    for _ in range(2):
        assert torch.equal(out(m), acting)
    copied = [e for e in m.modules() if hasattr(e, "_twin")]
    held = [t for e in copied for n, t in e._twin[0]._parameters.items() if first == "the method" or n not in e.trained]
    assert copied and all(
        t is None or t.is_meta for t in held
    )  # copies that are made behind the offloading are in memory


def test_from_the_meta_device() -> None:
    with torch.device("meta"):
        m = model("bert_labels")
        unipelt.apply(m, copies("*.norm.weight"), "a")
    other = wear("bert_labels", "*.norm.weight")
    m = m.to_empty(device="cpu")
    m.load_state_dict(other.state_dict())
    m.bert.embeddings.position_ids.copy_(other.bert.embeddings.position_ids)
    m.bert.embeddings.token_type_ids.copy_(other.bert.embeddings.token_type_ids)
    assert torch.equal(out(m.eval()), out(other))


def test_training_mode_is_the_module_s_own() -> None:
    m = wear("bert_labels", "*.norm.weight")
    for mode in (True, False):
        m.train(mode)
        found = [e._twin[0].training for e in m.modules() if hasattr(e, "_twin")]
        assert len(found) > 7 and set(found) == {mode}


def test_of_several_copies_the_last_one_counts_for_each_parameter() -> None:
    m = model("bert_labels")
    paths = {"weights": put(m, "*.norm.weight", "weights"), "biases": put(m, "*.norm.bias", "biases")}
    unipelt.activate(m, "weights", "biases")
    both = out(m)
    plain = model("bert_labels")
    with torch.no_grad():
        for name in ("weights", "biases"):
            for n, t in unipelt.state_dict(m, name).items():
                plain.get_parameter(paths[name][n]).copy_(t)
    assert torch.allclose(out(plain), both, atol=1e-5)


def test_in_threads_while_the_weights_are_replaced() -> None:
    """Passes of several threads see whole sets of weights: one pass never changes the module that another one is in."""
    m = wear("bert_labels", "*.norm.weight")
    state = {n: t.clone() for n, t in m.state_dict().items()}
    wanted, wrong = out(m), []

    def ask() -> None:
        for _ in range(15):
            m.load_state_dict({n: t.clone() for n, t in state.items()}, assign=True)
            if not torch.equal(out(m), wanted):
                wrong.append(True)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo hides it, but not where it is an error
@pytest.mark.parametrize("paths", ["*.bias", "*.norm.weight"])
def test_compiled(paths: str) -> None:
    m = wear("bert_labels", paths)
    torch._dynamo.reset()
    compiled = torch.compile(m, backend="eager", fullgraph=True)
    assert torch.allclose(out(compiled), out(m), atol=1e-6)
    with torch.no_grad():
        for t in unipelt.state_dict(m, "a").values():
            t.add_(0.1)
    assert torch.allclose(out(compiled), out(m), atol=1e-6)
    m.train()
    m.eval()
    assert torch.allclose(out(compiled), out(m), atol=1e-6)
    torch._dynamo.reset()


# ---------------------------------------------------------------- in the place of a module that holds others


class Scaled(nn.Module):
    """In a block's place: what holds the block's parts multiplies what they yield, and notes how often it was called."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.inner, self.gamma, self.calls = attention, nn.Parameter(torch.ones(32)), 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        found = self.inner(*args, **kwargs)
        return (found[0] * self.gamma, *found[1:])


def scaling() -> nn.Module:
    m = model("bert")
    for layer in m.encoder.layer:
        layer.attention = Scaled(layer.attention)
    return m.eval()


def test_a_module_that_holds_others_runs_once_with_a_copy_of_what_it_owns() -> None:
    m = scaling()
    seen: list[int] = []
    handle = m.encoder.layer[0].attention.inner.register_forward_hook(lambda *_: seen.append(1))
    plain = out(m)
    plan = unipelt.apply(m, copies("*.gamma"), "a")
    assert sorted(c.name for c in plan.copies) == [f"encoder.layer.{i}.attention.gamma" for i in range(3)]
    assert torch.equal(out(m), plain)
    with torch.no_grad():
        for i, t in enumerate(unipelt.state_dict(m, "a").values()):
            t.mul_(1.5 + i)
    seen.clear()
    m.encoder.layer[0].attention.calls = 0
    acting = out(m)
    assert len(seen) == 1 == m.encoder.layer[0].attention.calls  # it runs once, and what it notes in itself stays
    with unipelt.disabled(m):
        assert torch.equal(out(m), plain)
    m(**inputs()).last_hidden_state.square().mean().backward()
    grads = [p.grad for g in unipelt.parameter_groups(m, "a", 1.0) for p in g["params"]]
    assert len(grads) == 3 and all(g is not None and bool(g.any()) for g in grads)
    again = copy.deepcopy(m)
    unipelt.merge(m, "a")
    assert torch.allclose(out(m), acting, atol=1e-5)
    unipelt.unmerge(m)
    for other in (m, again):
        unipelt.remove(other, "a")
        assert torch.equal(out(other), plain) and not any("forward" in vars(x) for x in other.modules())
    handle.remove()


def test_copies_in_the_place_of_a_module_act_with_weights() -> None:
    m = scaling()
    for name, value in (("a", 1.5), ("b", 2.0)):
        unipelt.apply(m, copies("*.gamma"), name)
        with torch.no_grad():
            for t in unipelt.state_dict(m, name).values():
                t.fill_(value)
    unipelt.activate(m, {"a": 0.5, "b": 1})
    weighed = out(m)
    unipelt.remove(m, "b")
    with torch.no_grad():
        for t in unipelt.state_dict(m, "a").values():
            t.fill_(1 + 0.5 * 0.5 + 1.0)
    unipelt.activate(m, "a")
    torch.testing.assert_close(weighed, out(m))


class Leaky(nn.Module):
    """Calls its map, and takes that one's bias off again by half."""

    def __init__(self, dense: nn.Linear) -> None:
        super().__init__()
        self.dense = dense

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.dense(x) - self.dense.bias / 2


@pytest.mark.parametrize("paths", ["*.dense.bias", "*.dense.*"])
def test_a_parameter_that_a_module_reads_and_its_child_too_has_one_copy_for_both(paths: str) -> None:
    m = model("bert")
    for layer in m.encoder.layer:
        layer.intermediate.dense = Leaky(layer.intermediate.dense)
    unipelt.apply(m, copies(paths), "a")
    with torch.no_grad():
        for t in unipelt.state_dict(m, "a").values():
            t.add_(torch.rand(t.shape))
    acting = out(m)
    unipelt.merge(m, "a")
    torch.testing.assert_close(out(m), acting, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("paths", ["attn.heads", "attn.q, attn.v"])
def test_edits_within_a_module_act_in_its_twin_too(paths: str) -> None:
    """Whichever is applied first; at heads that a module computes by its own means, too (BLOOM's)."""
    method = unipelt.parse(
        f"method edit() {{ modify {paths} form {{ b: [d_out] ~ normal(1.0) delta = b }} compose add }}"
    )

    def both(order: str) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
        from transformers import BloomConfig, BloomModel

        torch.manual_seed(0)
        m: Any = BloomModel(BloomConfig(vocab_size=80, hidden_size=32, n_layer=2, n_head=4)).eval()
        for block in m.h:
            block.self_attention.gamma = nn.Parameter(torch.ones(3))  # a parameter of its own, which makes a twin of it
        plain = out(m)
        for name in order:
            unipelt.apply(m, copies("*.gamma") if name == "c" else method, name, seed=0)
        unipelt.activate(m, "c", "e")
        return m, plain, out(m)

    results = [both(order) for order in ("ce", "ec")]
    m, plain, now = results[0]
    assert torch.equal(now, results[1][2]) and not torch.allclose(now, plain, atol=1e-3)
    with unipelt.using(m, "e"):
        assert torch.allclose(out(m), now, atol=1e-6)
    for name in "ec":
        unipelt.remove(m, name)
    assert torch.equal(out(m), plain) and not any("forward" in vars(x) for x in m.modules())


def test_rows_of_a_batch_share_the_parameters_of_a_module_that_holds_others() -> None:
    m = scaling()
    unipelt.apply(m, copies("*.gamma"), "a")
    with (
        pytest.raises(unipelt.PeltError, match=r"E0853.*attention` holds other modules"),
        unipelt.using(m, ["a", None, "a"]),
    ):
        m(**inputs())


def test_a_twin_in_the_place_of_a_module_is_compiled_and_exported() -> None:
    torch._dynamo.reset()
    m = scaling()
    unipelt.apply(m, copies("*.gamma"), "a")
    compiled = torch.compile(m, backend="eager")
    for _ in range(2):  # what was learned after compiling counts
        with torch.no_grad():
            for t in unipelt.state_dict(m, "a").values():
                t.mul_(1.5)
        now = out(m)
        torch.testing.assert_close(out(compiled), now)
    exported = torch.export.export(m, (), inputs()).module()
    torch.testing.assert_close(exported(**inputs()).last_hidden_state, now)
    with unipelt.disabled(m):
        plain = out(m)
        torch.testing.assert_close(out(compiled), plain)
    assert not torch.allclose(now, plain, atol=1e-3)
