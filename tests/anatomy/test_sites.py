"""Every site an anatomy names is proved on a model: an edit there is called once a layer, sees what the signature says, and
reaches the output; what a sublayer's h is added to is its residual."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from tiny import DESCRIBED, batch, build, distance, look
from torch import nn

import unipelt
from unipelt.anatomy.find import find
from unipelt.anatomy.sites import Site, SiteMap
from unipelt.language.sites import SITES

NUDGE = "method nudge {{ modify {site} form {{ b: [d_out] ~ normal(1.0) delta = b }} compose {{ out = h + delta * h }} }}"  # the same for every token, a key's would cancel
READS = "method reads {{ modify {site} insert parallel form {{ A: [d_in, d_out] ~ normal(0.5) delta = z @ A }} compose add }}"
#: A head may read the sequence and yield one value for each example.
POOLED = READS.replace("z @", "mean(z, tokens) @")


@pytest.fixture(scope="module", params=sorted(DESCRIBED))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def _expected(sites: SiteMap, name: str) -> int:
    """How often the edits at a site of that name act in one pass: once a layer of each stack that has it."""
    found = sites.named(name)
    layers = {s.stack: sites.stack(s.stack).depth for s in found if s.layer is not None}
    return sum(layers.values()) or len(found)


def _calls(model: nn.Module) -> tuple[Counter[str], list[Any]]:
    calls: Counter[str] = Counter()

    def count(edit: Any, *_: Any) -> None:
        calls[edit.site.label] += 1

    handles = [m.register_forward_hook(count) for m in model.modules() if type(m).__name__ == "Edit"]
    return calls, handles


@pytest.mark.sampled(2)
def test_every_edit_is_called_once_a_layer_and_reaches_the_output(kind: str) -> None:
    model, inputs = build(kind), batch(kind)
    sites = find(model)
    before = look(model, inputs)
    for name in sites.names():
        if SITES[name].takes_rows:
            continue
        reads = READS if SITES[name].x is not None else READS.replace("parallel", "sequential")
        for text in (NUDGE, POOLED if name == "head" else reads):
            plan = unipelt.apply(model, unipelt.parse(text.format(site=name)), name="a", allow_future=True)
            calls, _ = _calls(model)
            after = look(model, inputs)
            assert distance(before, after) > 1e-4, (name, text)
            assert calls.total() == _expected(sites, name), (name, calls)
            assert set(calls) == {e.site.label for e in plan.edits}, name
            unipelt.remove(model, "a")
    assert distance(before, look(model, inputs)) == 0.0


def test_each_layer_alone_reaches_the_output(kind: str) -> None:
    model, inputs = build(kind), batch(kind)
    before = look(model, inputs)
    for stack in find(model).stacks:
        if stack.shared:
            continue
        front = f"{stack.name}." if stack.name else ""
        for layer in range(stack.depth):
            text = NUDGE.format(site=f"{front}attn.v, {front}ffn").replace(
                "modify", f"layers {layer}..{layer + 1} modify"
            )
            unipelt.apply(model, unipelt.parse(text), name="a")
            assert distance(before, look(model, inputs)) > 1e-4, (stack.name, layer)
            unipelt.remove(model, "a")


def _entering(model: nn.Module, path: str) -> tuple[list[torch.Tensor], Any]:
    seen: list[torch.Tensor] = []

    def keep(module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    return seen, model.get_submodule(path).register_forward_pre_hook(keep, with_kwargs=True)


def _block(sites: SiteMap, site: Site) -> str:
    return next(s.view.module for s in sites.named("block", site.stack) if s.layer == site.layer)


def _after(sites: SiteMap, site: Site) -> Site | None:
    """The sublayer behind one in its block."""
    order = [s for s in sites.sites if s.kind.is_sublayer and s.block == site.block]
    at = order.index(site)
    return order[at + 1] if at + 1 < len(order) else None


def test_h_is_added_to_the_residual(kind: str) -> None:
    """With -residual for h nothing is left of the stream: it is zero, or the norm's value at zero."""
    model, inputs = build(kind), batch(kind)
    sites = find(model)
    for name in ("attn", "cross", "ffn"):
        for site in sites.named(name):
            if sites.stack(site.stack).shared:
                continue
            front = f"{site.stack}." if site.stack else ""
            text = (f"method gone {{ layers {site.layer}..{site.layer + 1} modify {front}{name} insert residual "
                    "form { delta = z } compose { out = 0 * h - delta } }")  # fmt: skip
            unipelt.apply(model, unipelt.parse(text), name="a")
            following = _after(sites, site)
            if following is not None:
                seen, handle = _entering(model, following.residual)
            else:
                seen = []
                handle = model.get_submodule(_block(sites, site)).register_forward_hook(
                    lambda m, a, o, seen=seen: seen.append(o if isinstance(o, torch.Tensor) else o[0])
                )
            look(model, inputs)
            handle.remove()
            unipelt.remove(model, "a")
            (left,) = seen
            norm = model.get_submodule(site.norm)
            with torch.no_grad():
                at_zero = norm(torch.zeros_like(left))
            assert torch.allclose(left, torch.zeros_like(left), atol=1e-5) or torch.allclose(
                left, at_zero, atol=1e-5
            ), site.label


def test_sizes_are_those_of_the_modules(kind: str) -> None:
    model, inputs = build(kind), batch(kind)
    sites = find(model)
    seen: dict[str, tuple[int, ...]] = {}
    handles = []
    for s in sites.sites:
        if s.side == "output" and s.view.columns is None and s.kind.times != "head":
            handles.append(model.get_submodule(s.view.module).register_forward_hook(
                lambda m, a, o, n=s.label: seen.update({n: (o if isinstance(o, torch.Tensor) else o[0]).shape})))  # fmt: skip
    look(model, inputs)
    for h in handles:
        h.remove()
    for s in sites.sites:
        if s.label in seen:
            (d_out,) = SITES[s.name].h.sizes
            assert seen[s.label][-1] == s.sizes[str(d_out)], s.label
    for s in sites.stacks:
        first = next(x for x in sites.sites if x.stack == s.name)
        assert first.sizes["heads"] * first.sizes["d_head"] == first.sizes["d_q"]
        assert s.depth >= len(s.blocks) > 0
