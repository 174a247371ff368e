"""The proof of a map of sites, by numbers: each site is proved by itself, and one that is not what the map says drops out.

One small pass of the model, in which each block is run again with nudges (`replay`) and its sites are judged by what moves
(`judge`). Here is what lies around the blocks: which tokens a stack's see, whether its blocks follow each other, where the
embedded tokens enter and the last states leave, and whether all that the model yields comes from its head.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import nn

from .base import base_modules
from .calls import called_once, calls
from .evaluating import evaluating
from .interrupts import ended_by
from .judge import Block, Open
from .replay import first, replay, same
from .sites import Site, SiteMap, Stack
from .sizes import weight_shape

TOKENS = 4
#: What `Site.proof` says.
PROVED, NOT_YET = "proved", "not yet proved"
#: The name that transformers' attention modules read their function from.
_DISPATCH = "ALL_ATTENTION_FUNCTIONS"


def proved(sites: SiteMap, model: nn.Module, base: nn.Module, inputs: Mapping[str, Any] | None = None) -> SiteMap:
    """The map without the sites that are not what it says (`SiteMap.refused` has the reasons); the others say "proved".

    ``inputs`` are the keyword arguments of a pass of ``model``; without them some are made, where its base reads ids or
    pictures. Where nothing can be tried (no weights, no inputs, a pass fails) all sites stay and say "not yet proved", as
    one does of which nothing can be seen. The model is as before, whatever happens.
    """
    return tried(sites, model, base, inputs)[0]


def tried(
    sites: SiteMap, model: nn.Module, base: nn.Module, inputs: Mapping[str, Any] | None = None
) -> tuple[SiteMap, dict[str, str]]:
    """As `proved`, with the reason of each site that is not what the map says, by full name; of all, ``""``, if nothing can
    be tried. Sites that no edit could have (called twice, heads that no edit reaches) are left out without being named there."""
    if any(p.is_meta for p in base.parameters()) and not hasattr(base, "hf_device_map"):
        return unproved(sites), {"": "it has no weights"}
    given = inputs if inputs is not None else _inputs(base, sites.stacks)
    if given is None:
        return unproved(sites), {
            "": f"it reads `{getattr(base, 'main_input_name', '')}`, with which nothing can be tried here"
        }
    trial = _Trial(sites, model, base)
    try:
        trial.run(given)
    except Exception as e:  # noqa: BLE001 - whatever a strange model's forward raises
        return unproved(sites), {"": f"a small pass fails: {type(e).__name__}: {' '.join(str(e).split())[:200]}"}
    return trial.verdict()


def unproved(sites: SiteMap) -> SiteMap:
    """The map of a model with which nothing was tried."""
    return replace(sites, sites=tuple(replace(s, proof=NOT_YET) for s in sites.sites))


def dispatches(module: nn.Module) -> bool:
    """Whether an attention module takes its function from transformers' interface, where edits at heads are put."""
    forward = inspect.unwrap(type(module).forward)
    return _DISPATCH in getattr(getattr(forward, "__code__", None), "co_names", ())


def without_heads(sites: SiteMap, model: nn.Module) -> SiteMap:
    """The map without the heads of attention that no edit would reach."""
    past = {s.full_name: f"{type(m).__name__} computes attention past the interface of transformers" for s in sites.sites
            if s.side == "attention" and not dispatches(m := model.get_submodule(s.view.module))}  # fmt: skip
    return replace(
        sites, sites=tuple(s for s in sites.sites if s.full_name not in past), refused={**sites.refused, **past}
    )


# ---------------------------------------------------------------- a trial


@dataclass(slots=True)
class _Trial:
    """One map and what a pass showed. Tensors by path are those of a module's first call; ``last`` left at its last one."""

    sites: SiteMap
    model: nn.Module
    base: nn.Module
    entered: dict[str, torch.Tensor] = field(default_factory=dict)
    left: dict[str, torch.Tensor] = field(default_factory=dict)
    last: dict[str, torch.Tensor] = field(default_factory=dict)
    ids: dict[str, torch.Tensor] = field(default_factory=dict)  # whole numbers that entered a module
    order: list[str] = field(default_factory=list)  # the blocks as they were called
    sees: dict[str, bool | None] = field(default_factory=dict)  # by block: whether a token sees later ones
    why: dict[int, str] = field(default_factory=dict)  # by the number of a site of a block
    counts: Counter[str] = field(default_factory=Counter)
    given: dict[str, Any] = field(default_factory=dict)
    yielded: list[torch.Tensor] = field(default_factory=list)
    headed: bool = True  # whether the pass was the whole model's

    def path(self, block: str) -> str:
        return f"{self.sites.prefix}.{block}" if self.sites.prefix else block

    def around(self) -> list[Site]:
        return [s for s in self.sites.sites if s.kind.outside_the_layers]

    def _bridges(self, s: Site, stack: Stack) -> list[str]:
        """The linear maps outside the blocks that can bring embeddings of a width of their own to that of the blocks."""
        if s.kind.times != "input" or not s.kind.positions:
            return []
        inner = next((t.sizes.get("d_model") for t in self.sites.sites if t.block and t.stack == stack.name), None)
        wanted = s.sizes.get("d_model"), inner
        blocks = tuple(f"{self.path(b)}." for t in self.sites.stacks for b in t.blocks)
        return [] if wanted[0] == inner else [n for n, m in base_modules(self.base, self.sites.prefix)
                                              if weight_shape(m) == wanted and not n.startswith(blocks)]  # fmt: skip

    # ------------------------------------------------------------ the pass

    def run(self, given: Mapping[str, Any]) -> None:
        self.given = dict(given)
        if not self._head():
            self._pass(self.base)
            return
        try:
            self._pass(self.model)
        except Exception:  # noqa: BLE001 - a head may ask for more than its base does
            self.headed = self.base is self.model
            self.__init__(self.sites, self.model, self.base, given=dict(given), headed=False)  # type: ignore[misc]
            self._pass(self.base)

    def _pass(self, called: nn.Module) -> None:
        with evaluating(self.model), calls(self.model, self.sites) as self.counts, self._watched():
            output = called(**self.given, **without_cache(called, self.given))
        self.yielded = _logits(output)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        handles: list[Any] = []
        names = {id(m): n for n, m in base_modules(self.model)}
        with ended_by(lambda: [handle.remove() for handle in handles]):
            for block in dict.fromkeys(b for s in self.sites.stacks for b in s.blocks):
                handles += self._block(
                    self.path(block), [(i, s) for i, s in enumerate(self.sites.sites) if s.block == block], names
                )
            outside = {p for s in self.around() for p in (s.view.module, s.x) if p is not None}
            outside |= {
                p for s in self.around() for t in self.sites.stacks if t.name == s.stack for p in self._bridges(s, t)
            }
            for path in outside - {self.path(b) for t in self.sites.stacks for b in t.blocks}:
                handles += self._outside(path)
            yield

    def _outside(self, path: str) -> list[Any]:
        module = self.model.get_submodule(path)

        def enter(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            values = [*args, kwargs.get("hidden_states"), *kwargs.values()]
            found = first(values)
            if found is not None:
                self.entered.setdefault(path, found.detach().clone())
            numbers = next((v for v in values if isinstance(v, torch.Tensor) and not v.is_floating_point()), None)
            if numbers is not None:
                self.ids.setdefault(path, numbers.detach().clone())

        def leave(_: nn.Module, args: tuple, output: Any) -> None:
            found = first(
                output
                if isinstance(output, (tuple, list))
                else list(output.values())
                if isinstance(output, dict)
                else [output]
            )
            if found is not None:
                self.left.setdefault(path, found.detach().clone())

        return [module.register_forward_pre_hook(enter, with_kwargs=True), module.register_forward_hook(leave)]

    def _block(self, path: str, mine: list[tuple[int, Site]], names: Mapping[int, str]) -> list[Any]:
        """Hooks that keep what enters and leaves a block, and run it again at its first call."""
        module, busy = self.model.get_submodule(path), [False]
        kept: list[tuple[tuple, dict[str, Any]]] = []

        def enter(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            if not busy[0] and path not in self.left:
                self.order.append(path)
                kept.append((cast(tuple, _copied(args)), cast(dict, _copied(kwargs))))

        def leave(_: nn.Module, args: tuple, output: Any) -> None:
            found = first(output if isinstance(output, (tuple, list)) else [output])
            if busy[0] or found is None:
                return
            self.last[path] = found.detach().clone()
            if path in self.left:
                return
            self.left[path] = self.last[path]
            args, kwargs = kept.pop()
            entered = first([*args, kwargs.get("hidden_states"), *kwargs.values()])
            if entered is not None:
                self.entered[path] = entered
            before = Counter(self.counts)
            busy[0] = True
            try:
                self._judge(Block(path, [s for _, s in mine], names), module, args, kwargs, [i for i, _ in mine])
            finally:
                busy[0] = False
                self.counts.clear()
                self.counts.update(before)

        return [module.register_forward_pre_hook(enter, with_kwargs=True), module.register_forward_hook(leave)]

    def _judge(self, block: Block, module: nn.Module, args: tuple, kwargs: dict[str, Any], numbers: list[int]) -> None:
        modules = {p: self.model.get_submodule(p) for p in block.modules()}
        block.seen = replay(module, block.path, args, kwargs, modules, block.nudges(), self.left[block.path])
        self.sees[block.path] = block.sees_later()
        for i, s in zip(numbers, block.sites):
            self.why[i] = block.wrong(s)

    # ------------------------------------------------------------ what follows from it

    def verdict(self) -> tuple[SiteMap, dict[str, str]]:
        usable = without_heads(called_once(self.sites, self.counts), self.model)
        kept = {id(s) for s in usable.sites}
        found = [(i, s) for i, s in enumerate(self.sites.sites) if id(s) in kept]
        why = {id(s): self._why(i, s) for i, s in found}
        bad = {(s.block, s.name) for _, s in found if why[id(s)] and not isinstance(why[id(s)], Open)}
        views = {(s.block, s.name): s.view for s in self.sites.sites}
        for _, s in found:
            called = next((n for n, v in s.bases.items() if (s.block, n) in bad or views.get((s.block, n), v) != v
                           or n == f"{s.name}.norm" and v.module != s.norm), None)  # fmt: skip
            if called is not None and not why[id(s)]:
                why[id(s)] = f"`{called}`, which a form may call there, is not what the map says"
        proof = {"": PROVED}
        stay = tuple(replace(s, proof=proof.get(why[id(s)], NOT_YET)) for _, s in found
                     if not why[id(s)] or isinstance(why[id(s)], Open))  # fmt: skip
        left = {s.full_name for s in stay}
        wrong: dict[str, str] = {}
        refused = dict(usable.refused)
        for _, s in found:
            if why[id(s)] and not isinstance(why[id(s)], Open):
                wrong.setdefault(s.full_name, why[id(s)])
                refused.setdefault(s.full_name if s.full_name not in left else s.label, why[id(s)])
        return replace(usable, sites=stay, refused=refused), wrong

    def _why(self, i: int, s: Site) -> str:
        if s.kind.times == "head":
            return self._heads_output(s)
        stack = next((t for t in self.sites.stacks if t.name == s.stack), None)
        if stack is None:
            return f"the map has no stack `{s.stack}`"
        wrong = self._tokens(s)
        if s.kind.outside_the_layers:
            return wrong or self._around(s, stack)
        return wrong or self._place(s, stack) or self.why.get(i, f"`{self.path(s.block)}` is not called")

    def _tokens(self, s: Site) -> str:
        """Whether tokens see later ones is what the map says."""
        if "token" not in s.kind.h.axes:
            return ""
        stack = next((t for t in self.sites.stacks if t.name == s.tokens), None)
        if stack is None:
            return f"the map has no stack `{s.tokens}`"
        known = [sees for b in stack.blocks if (sees := self.sees.get(self.path(b))) is not None]
        if not known or any(known) != s.causal:
            return ""
        return ("its tokens see later ones, and its attention says they do not" if any(known) else
                "its tokens see no later ones, and its attention does not say so (`is_causal`)")  # fmt: skip

    def _place(self, s: Site, stack: Stack) -> str:
        """A site's block is of its stack, at its place among the others, and follows none of another stack."""
        if s.block not in stack.blocks or s.layer is None or stack.blocks[s.layer : s.layer + 1] != (s.block,):
            return f"`{s.block}` is not block {s.layer} of {stack!r}"
        path = self.path(s.block)
        if stack.module and not path.startswith(f"{stack.module}."):
            return f"`{path}` does not lie in `{stack.module}`"
        if path not in self.left:
            return ""
        order = [p for p in self.order if p in {self.path(b) for b in stack.blocks}]
        if order != [self.path(b) for b in stack.blocks if self.path(b) in self.left]:
            return f"the blocks of {stack!r} are called in another order"
        for other in (t for t in self.sites.stacks if t is not stack):
            for b in (self.path(b) for b in other.blocks if b not in stack.blocks):
                if same(self.left.get(b), self.entered.get(path)) or same(self.entered.get(b), self.left[path]):
                    return f"`{path}` follows `{b}` or is followed by it, which is of {other!r}"
        return ""

    def _around(self, s: Site, stack: Stack) -> str:
        at, ends = s.view.module, [self.path(stack.blocks[i]) for i in (0, -1)]
        here = (self.entered if s.view.enters else self.left).get(at)
        if here is None:
            return f"`{at}` is not passed through"
        if here.shape[-1] != s.sizes.get("d_model"):
            return f"`{at}` has {here.shape[-1]} numbers there, and `d_model` is {s.sizes.get('d_model')}"
        if s.kind.times == "stacks":
            wrong = not same(self.entered.get(at), self.last.get(ends[1]))
            return f"what enters `{at}`, its `{s.name}`, is not what leaves `{ends[1]}`" if wrong else ""
        if s.kind.positions:
            states = self.entered.get(ends[0])
            wrong = not same(here, states) and not any(
                same(self.entered.get(b), here) and same(self.left.get(b), states) for b in self._bridges(s, stack)
            )
            return f"what leaves `{at}`, its `{s.name}`, is not what enters `{ends[0]}`" if wrong else ""
        return "" if s.view.enters else self._words(s)

    def _words(self, s: Site) -> str:
        """A table of words is given the ids that the model is given (some of them, where others stand for pictures)."""
        ids = self.ids.get(s.view.module)
        names = [n for n, t in self.given.items() if n.endswith("input_ids") and isinstance(t, torch.Tensor)]
        own = [n for n in names if n.startswith("decoder") == (s.stack == "decoder")] or names
        if ids is None or not own:
            return Open("no ids enter it")
        for t in (self.given[n].reshape(-1).to(ids.device) for n in own):
            if t.numel() == ids.numel() and 2 * int((t == ids.reshape(-1)).sum()) >= t.numel():
                return ""
        return f"what enters `{s.view.module}` is not the model's `{own[0]}`"

    def _heads_output(self, s: Site) -> str:
        """Every number that the model yields is one that its head yields, or comes from there alone."""
        if not self.headed:
            return Open("the model does not run with its head here")
        own = self.left.get(s.view.module)
        if own is None:
            return f"`{s.view.module}` is not passed through"
        if own.shape[-1] != s.sizes.get("labels"):
            return f"`{s.view.module}` yields {own.shape[-1]} numbers, and `labels` is {s.sizes.get('labels')}"
        if s.x is not None and (self.left if s.x_leaves else self.entered).get(s.x) is None:
            return f"`{s.x}` is not passed through"
        if self.yielded and all(bool(torch.isin(t, own.to(t.device, t.dtype)).all()) for t in self.yielded):
            return ""
        return self._alone(s, own)

    def _alone(self, s: Site, own: torch.Tensor) -> str:
        """With other words, and the head's output as it was, the model yields what it did."""
        if "input_ids" not in self.given or not self.yielded:
            return Open("nothing else can be put in")
        handles: list[Any] = []
        module = self.model.get_submodule(s.view.module)
        other = {n: t.flip(-1) if n.endswith("input_ids") else t for n, t in self.given.items()}
        try:
            with evaluating(self.model), ended_by(lambda: [handle.remove() for handle in handles]):
                handles.append(module.register_forward_hook(lambda module, entered, output: own))
                again = _logits(self.model(**other, **without_cache(self.model, other)))
        except Exception as e:  # noqa: BLE001 - as above
            return Open(f"a second pass fails: {type(e).__name__}")
        alike = len(again) == len(self.yielded) and all(same(a, b) for a, b in zip(again, self.yielded))
        return "" if alike else f"what the model yields depends on more than what leaves `{s.view.module}`"

    def _head(self) -> bool:
        return any(s.kind.times == "head" for s in self.sites.sites)


def _copied(v: Any) -> Any:
    """Tensors as they are now, in whatever holds them: a block may write over what enters it."""
    if isinstance(v, torch.Tensor):
        return v.detach().clone()
    if type(v) in (tuple, list):
        return type(v)(_copied(i) for i in v)
    return {k: _copied(i) for k, i in v.items()} if type(v) is dict else v


def _logits(output: Any) -> list[torch.Tensor]:
    """What a head makes of a model's output: all that is called logits, else the first tensor."""
    values = dict(output.items()) if hasattr(output, "items") else {}
    found = [t for n, t in values.items() if "logits" in n and isinstance(t, torch.Tensor)]
    one = first(output if isinstance(output, (tuple, list)) else values.values() or [output])
    return [t.detach().clone() for t in (found or ([one] if one is not None else []))]


def without_cache(model: nn.Module, given: Mapping[str, Any]) -> dict[str, Any]:
    """The argument that keeps a model from remembering tokens: a block that is run again would add them twice."""
    names = inspect.signature(model.forward).parameters
    open_ = any(p.kind is p.VAR_KEYWORD for p in names.values()) and hasattr(
        getattr(model, "config", None), "use_cache"
    )
    return {"use_cache": False} if ("use_cache" in names or open_) and "use_cache" not in given else {}


def _inputs(base: nn.Module, stacks: tuple[Stack, ...]) -> dict[str, torch.Tensor] | None:
    """Some tokens or a picture for a model whose base reads these."""
    name, config = getattr(base, "main_input_name", "input_ids"), cast(Any, getattr(base, "config", None))
    if name == "pixel_values" and isinstance(size := getattr(config, "image_size", None), int):
        own = next(base.parameters())
        return {
            name: torch.linspace(-1, 1, config.num_channels * size**2, device=own.device, dtype=own.dtype).reshape(
                1, -1, size, size
            )
        }
    if name != "input_ids":
        return None  # asked first: models of sound have no embeddings and raise where they are asked for them
    embeddings: Any = getattr(base, "get_input_embeddings", None)
    weight = getattr(embeddings() if callable(embeddings) else None, "weight", None)
    if weight is None:
        return None
    ids = torch.arange(TOKENS + 1, 2 * TOKENS + 1, device=weight.device)[None] % len(weight)
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {**found, "decoder_input_ids": ids.flip(-1)} if len(stacks) > 1 else found
