"""What a map says beyond single blocks, held against a pass: the order of a stack's blocks and which tokens see which, where
tokens enter the model and where its last states leave, and its head."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .comparing import blended, same
from .evaluating import evaluating
from .interrupts import ended_by
from .reasons import Open
from .sites import Site, Stack, whole_block
from .trial import Trial, logits, without_cache


def why(t: Trial, i: int, s: Site) -> str:
    """Why a site (the map's number ``i``) is not what the map says; `Open` where that cannot be told; nothing where it is."""
    if s.kind.times == "head":
        return _head(t, s)
    stack = next((k for k in t.sites.stacks if k.name == s.stack and k.blocks), None)
    if stack is None:
        return f"the map has no stack `{s.stack}`"
    if not t.reached(stack):
        return Open(f"no pass that was tried reaches {stack!r}")
    wrong = _tokens(t, s)
    if s.kind.outside_the_layers:
        return wrong or _end(t, s, stack)
    return wrong or _place(t, s, stack) or t.why.get(i, f"`{t.path(s.block)}` is not called") or _summed(t, s)


def _summed(t: Trial, s: Site) -> str:
    """Where a block as a whole is a sublayer, what is normed behind it is its sum with the stream."""
    path = t.path(s.block)
    if not whole_block(s, path):
        return ""
    h, r, normed = t.left.get(path), t.entered.get(s.residual or ""), t.entered.get(s.norm or "")
    if h is None or r is None or normed is None or same(normed, r):
        return Open("it is added outside its block, where no module is given the sum")
    return (
        ""
        if blended(h, r, normed, s.factor, s.keeps)
        else f"`{s.full_name}.residual` + `{s.full_name}` is not what enters `{s.norm}`"
    )


def _tokens(t: Trial, s: Site) -> str:
    """Whether tokens see later ones is what the map says."""
    if "token" not in s.kind.h.axes:
        return ""
    stack = next((k for k in t.sites.stacks if k.name == s.tokens), None)
    if stack is None:  # tokens that come from outside of the map, as a text's into a model of pictures
        return "" if s.kind.tokens else f"the map has no stack `{s.tokens}`"
    asked = (s.block,) if s.block in stack.blocks and s.causal else stack.blocks  # a block without attention sees none
    known = [sees for b in asked if (sees := t.sees.get(t.path(b))) is not None]
    if not known or any(known) != s.causal or not (t.sites.anatomy or any(known)):
        return ""
    return ("its tokens see later ones, and its attention says they do not" if any(known) else
            "its tokens see no later ones, and its attention does not say so (`is_causal`)")  # fmt: skip


def _place(t: Trial, s: Site, stack: Stack) -> str:
    """A site's block is of its stack, at its place among the others, and follows none of another stack."""
    if s.block not in stack.blocks or s.layer is None or stack.blocks[s.layer : s.layer + 1] != (s.block,):
        return f"`{s.block}` is not block {s.layer} of {stack!r}"
    path = t.path(s.block)
    if stack.module and not path.startswith(f"{stack.module}."):
        return f"`{path}` does not lie in `{stack.module}`"
    if path not in t.left:
        return ""
    inside = [
        p for b in stack.blocks if (p := t.path(b)) in t.left and (not stack.module or p.startswith(f"{stack.module}."))
    ]
    if [p for p in t.order if p in inside] != inside:
        return f"the blocks of {stack!r} are called in another order"
    for other in (k for k in t.sites.stacks if k is not stack):
        for b in (t.path(b) for b in other.blocks if b not in stack.blocks):
            if path.rpartition(".")[0] != b.rpartition(".")[0] and _ends_meet(t, s, stack, other, b):
                continue
            if same(t.left.get(b), t.entered.get(path)) or same(t.entered.get(b), t.left[path]):
                return f"`{path}` follows `{b}` or is followed by it, which is of {other!r}"
    return ""


def _ends_meet(t: Trial, s: Site, stack: Stack, other: Stack, b: str) -> bool:
    """Whether one of two blocks is its stack's first and the other one its stack's last: a list of modules may follow another."""
    first, last = stack.blocks[0], stack.blocks[-1]
    return (s.block == first and b == t.path(other.blocks[-1])) or (s.block == last and b == t.path(other.blocks[0]))


def _end(t: Trial, s: Site, stack: Stack) -> str:
    """Where tokens enter a stack, or its last states leave."""
    at, ends = s.view.module, [t.path(stack.blocks[i]) for i in (0, -1)]
    here = (t.entered if s.view.enters else t.left).get(at)
    if here is None:
        text = f"`{at}` is not passed through"
        return Open(text) if s.kind.times == "between" else text
    if here.shape[-1] != s.sizes.get("d_model"):
        return f"`{at}` has {here.shape[-1]} numbers there, and `d_model` is {s.sizes.get('d_model')}"
    if s.kind.times == "stacks":
        wrong = not same(t.entered.get(s.x or at), t.last.get(ends[1]))
        return f"what enters `{at}`, its `{s.name}`, is not what leaves `{ends[1]}`" if wrong else ""
    if s.kind.times == "between":
        return Open("what lies between two stacks is not tried")
    if not s.kind.positions:
        return "" if s.view.enters else _words(t, s)
    states = t.entered.get(ends[0])
    if same(here * (s.factor or 1.0), states) or any(
        same(t.entered.get(b), here) and same(t.left.get(b), states) for b in t.bridges(s, stack)
    ):
        return ""
    return f"what leaves `{at}`, its `{s.name}`, is not what enters `{ends[0]}`"


def _words(t: Trial, s: Site) -> str:
    """A table of words is given the ids that the model is given (some of them, where others stand for pictures)."""
    ids = t.ids.get(s.view.module)
    names = [n for n, v in t.given.items() if n.endswith("input_ids") and isinstance(v, torch.Tensor)]
    own = [n for n in names if n.startswith("decoder") == (s.stack == "decoder")] or names
    if ids is None or not own:
        return Open("no ids enter it")
    for v in (t.given[n].reshape(-1).to(ids.device) for n in own):
        if v.numel() <= ids.numel() and 2 * int((v == ids.reshape(-1)[: v.numel()]).sum()) >= v.numel():
            return ""  # (some models fill up a text to a multiple of a window)
    return f"what enters `{s.view.module}` is not the model's `{own[0]}`"


def _head(t: Trial, s: Site) -> str:
    """Every number that the model yields is one that its head yields, or comes from there alone."""
    if not t.headed:
        return Open("the model does not run with its head here")
    own = t.left.get(s.view.module)
    if own is None:
        return f"`{s.view.module}` is not passed through"
    if own.shape[-1] != s.sizes.get("labels"):
        return f"`{s.view.module}` yields {own.shape[-1]} numbers, and `labels` is {s.sizes.get('labels')}"
    if s.x is not None and (t.left if s.x_leaves else t.entered).get(s.x) is None:
        return f"`{s.x}` is not passed through"
    if t.yielded and all(bool(torch.isin(v, own.to(v.device, v.dtype)).all()) for v in t.yielded):
        return ""
    return _alone(t, s, own)


def _alone(t: Trial, s: Site, own: torch.Tensor) -> str:
    """With other words, and the head's output as it was, the model yields what it did."""
    if "input_ids" not in t.given or not t.yielded:
        return Open("nothing else can be put in")
    handles: list[Any] = []
    other = {n: v.flip(-1) if n.endswith("input_ids") else v for n, v in t.given.items()}

    def as_it_was(module: nn.Module, entered: tuple, output: Any) -> torch.Tensor:
        return own

    try:
        with evaluating(t.model), ended_by(lambda: [handle.remove() for handle in handles]):
            handles.append(t.model.get_submodule(s.view.module).register_forward_hook(as_it_was))
            again = logits(t.model(**other, **without_cache(t.model, other)))
    except Exception as e:  # noqa: BLE001 - as in the first pass
        return Open(f"a second pass fails: {type(e).__name__}")
    alike = len(again) == len(t.yielded) and all(same(a, b) for a, b in zip(again, t.yielded))
    return "" if alike else f"what the model yields depends on more than what leaves `{s.view.module}`"
