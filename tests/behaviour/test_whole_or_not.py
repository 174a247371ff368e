"""What fails half-way leaves the model as it was."""

from __future__ import annotations

import pytest
import torch
from tiny import batch, footprint, look, put, same, same_values, small, values

import unipelt


class Broken(Exception):
    pass


def _break_after(monkeypatch, where, name, calls):
    original = getattr(where, name)
    left = [calls]

    def broken(*args, **kwargs):
        left[0] -= 1
        if left[0] == -1:  # once: what undoes the half-done work may call it again
            raise Broken
        return original(*args, **kwargs)

    monkeypatch.setattr(where, name, broken)


@pytest.mark.parametrize(("kind", "others"), [("bert_head", False), ("bert_head", True), ("bart", False)])
@pytest.mark.parametrize(
    ("where", "name", "calls"),
    [("hanging", "_hang_edit", 0), ("hanging", "_hang_edit", 3), ("hanging", "_hang_copies", 0), ("hanging", "hang_root", 0),
     ("hanging", "install", 0), ("attach", "activate", 0), ("starts", "of", 2), ("hanging", "_forget_compiled", 0)],
)  # fmt: skip
def test_apply_that_fails_half_way(where, name, calls, kind, others, bases, monkeypatch):
    from unipelt.runtime import attach, hanging

    m = bases.get(kind)
    inputs = batch(kind)
    for i, p in enumerate(m.parameters()):
        p.requires_grad_(i % 2 == 0)
    if others:
        put(m, "lora", "other")
    traces, weights, acting = footprint(m), values(m), look(m, inputs)
    held = unipelt.active(m)
    with monkeypatch.context() as patch:
        _break_after(patch, {"attach": attach, "hanging": hanging, "starts": attach.Starts}[where], name, calls)
        with pytest.raises(Broken):
            unipelt.apply(m, small("unipelt_apl"), name="new", allow_future=True)
    assert footprint(m) == traces
    assert same_values(values(m), weights)
    assert same(look(m, inputs), acting)
    assert unipelt.active(m) == held and "new" not in unipelt.adapters(m)
    put(m, "unipelt_apl", "new")  # and nothing stands in the way of another try
    unipelt.remove(m, "new")
    if others:
        unipelt.activate(m, "other")
        assert same(look(m, inputs), acting)
        unipelt.remove(m, "other")
    for p in m.parameters():
        p.requires_grad_(True)


def test_a_site_that_the_second_row_misses(bases):
    m = bases.get("gpt2")
    traces, weights = footprint(m), values(m)
    method = unipelt.parse("""
        method two(r: int = 4) {
          use { modify ffn insert parallel form low_rank(r) compose add } as first
          use { modify ffn.gate insert parallel form low_rank(r) compose add } as second
        }""")
    with pytest.raises(unipelt.PeltError, match="ffn.gate"):
        unipelt.apply(m, method)
    assert footprint(m) == traces and same_values(values(m), weights)


@pytest.mark.parametrize("spec", ["lora", "ia3", "bitfit"])
def test_merge_that_fails_half_way(spec, bases, monkeypatch):
    from unipelt.runtime import absorbing, merge

    m = bases.get("gpt2")
    inputs = batch("gpt2")
    put(m, spec)
    acting, weights = look(m, inputs), values(m)
    target, calls = ("_edited", 1) if spec != "bitfit" else ("_changed", 0)
    with monkeypatch.context() as patch:
        if spec == "bitfit":
            patch.setattr(merge, "merged_values", lambda *_: (_ for _ in ()).throw(Broken()))
        else:
            _break_after(patch, absorbing, target, calls)
        with pytest.raises(Broken):
            unipelt.merge(m, "a")
    assert same_values(values(m), weights) and same(look(m, inputs), acting)
    assert unipelt.active(m) == ("a",)
    unipelt.remove(m, "a")


def test_merge_that_fails_while_writing(bases, monkeypatch):
    """An error between two weights, where the first is written already."""
    m = bases.get("gpt2")
    inputs = batch("gpt2")
    put(m, "lora")
    acting, weights = look(m, inputs), values(m)
    original = torch.Tensor.copy_
    mine = {p.data_ptr() for n, p in m.named_parameters() if n.endswith("c_attn.weight")}
    written = []

    def copy_(self, *args, **kwargs):
        if self.data_ptr() in mine:
            if len(written) == 1:
                written.append(1)
                raise Broken
            written.append(1)
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "copy_", copy_)
        with pytest.raises(Broken):
            unipelt.merge(m, "a")
    assert len(written) >= 2
    assert same_values(values(m), weights) and same(look(m, inputs), acting)
    assert unipelt.active(m) == ("a",)
    unipelt.remove(m, "a")
