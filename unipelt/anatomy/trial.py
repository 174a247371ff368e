"""One small pass of a model in which each block is run again with nudges, and what is kept of it."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .base import base_modules
from .calls import calls
from .evaluating import evaluating
from .interrupts import ended_by
from .comparing import rms
from .judge import Block
from .reasons import Open
from .replay import anew, first, replay, with_tensors
from .sites import Site, SiteMap, Stack, whole_block
from .sizes import weight_shape


@dataclass(slots=True)
class Trial:
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

    def bridges(self, s: Site, stack: Stack) -> list[str]:
        """The linear maps outside the blocks that can bring embeddings of a width of their own to that of the blocks."""
        if s.kind.times != "input" or not s.kind.positions:
            return []
        inner = next((t.sizes.get("d_model") for t in self.sites.sites if t.block and t.stack == stack.name), None)
        wanted = s.sizes.get("d_model"), inner
        blocks = tuple(f"{self.path(b)}." for t in self.sites.stacks for b in t.blocks)
        return [] if wanted[0] == inner else [n for n, m in base_modules(self.base, self.sites.prefix)
                                              if weight_shape(m) == wanted and not n.startswith(blocks)]  # fmt: skip

    def reached(self, stack: Stack) -> bool:
        """Whether some block of a stack was called."""
        return any(self.path(b) in self.left for b in stack.blocks)

    def join(self, other: Trial) -> None:
        """Takes over what another pass showed of modules that this one did not reach."""
        for name in ("entered", "left", "last", "ids", "sees", "why"):
            setattr(self, name, {**getattr(other, name), **getattr(self, name)})
        self.order += [b for b in other.order if b not in self.order]
        self.given = {**other.given, **self.given}
        self.counts.update({p: n for p, n in other.counts.items() if not self.counts[p]})

    # ------------------------------------------------------------ the pass

    def run(self, called: nn.Module, given: Mapping[str, Any]) -> Trial:
        """One pass of the model, or of its base."""
        self.given, self.headed = dict(given), called is self.model
        with evaluating(self.model), calls(self.model, self.sites) as self.counts, self._watched():
            self.yielded = logits(called(**self.given, **without_cache(called, self.given)))
        return self

    @contextmanager
    def _watched(self) -> Iterator[None]:
        handles: list[Any] = []
        names = {id(m): n for n, m in base_modules(self.model)}
        with ended_by(lambda: [handle.remove() for handle in handles]):
            there = set(names.values())
            for block in dict.fromkeys(b for s in self.sites.stacks for b in s.blocks if self.path(b) in there):
                handles += self._block(
                    self.path(block), [(i, s) for i, s in enumerate(self.sites.sites) if s.block == block], names
                )
            outside = {p for s in self.around() for p in (s.view.module, s.x) if p is not None}
            whole = [s for s in self.sites.sites if whole_block(s, self.path(s.block))]
            outside |= {p for s in whole for p in (s.residual, s.norm) if p is not None}
            outside |= {
                p for s in self.around() for t in self.sites.stacks if t.name == s.stack for p in self.bridges(s, t)
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
            values = output.values() if isinstance(output, dict) else output
            found = first(values if isinstance(output, (tuple, list, dict)) else [output])
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
                kept.append(anew(with_tensors((args, kwargs), _copied)))

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
        held = (s.view.path for s in block.sites if s.view.parameter)
        block.parameters = {p: self.model.get_parameter(p) for p in held}
        entered = self.entered.get(block.path)
        block.stream = rms(entered) if entered is not None else 1.0
        try:
            left = self.left[block.path]
            block.seen = replay(module, block.path, args, kwargs, modules, block.nudges(), left, block.parameters)
            if more := block.more_nudges():
                block.seen |= replay(module, block.path, args, kwargs, modules, more, left, {})
            self.sees[block.path] = block.sees_later()
            self.why.update({i: block.wrong(s) for i, s in zip(numbers, block.sites)})
        except Exception as e:  # noqa: BLE001 - whatever a strange block raises when it is run again
            why = Open(f"`{block.path}` cannot be run again: {type(e).__name__}: {' '.join(str(e).split())[:200]}")
            self.why.update(dict.fromkeys(numbers, why))


def _copied(t: torch.Tensor) -> torch.Tensor:
    """A tensor as it is now: a block may write over what enters it."""
    return t.detach().clone()


def logits(output: Any) -> list[torch.Tensor]:
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
