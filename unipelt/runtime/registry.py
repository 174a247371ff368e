"""What a model remembers of its adapters: plans, places of their tensors, hooks, what is merged, what the base was like.

The record is the model's child ``unipelt``, so it is copied, pickled and moved with the model. Nothing is put into a model here
or taken out of it: see `attach`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..anatomy.base import NAME, uncompiled
from ..anatomy.sites import SiteMap
from ..compiler.drawn import draws
from ..compiler.plan import Plan, PlannedInput
from ..language.report.diagnostics import error, near
from ..language.ir import Method
from ..language.syntax.nodes import Later
from ..language.types.primitives import OF_REAL_TOKENS
from .forward import HookedForward
from .instead import Instead
from .within import Within
from .heads import Heads
from .offload import value_of
from .prompts.selected import reads_text
from .hooks import Hook
from .taps import Tap
from .switch import Switch

if TYPE_CHECKING:
    from .bank import Bank
    from .prompts.masks import MaskTap
    from .penalties import PenaltyHooks
    from .prompts.outputs import Outputs
    from .prompts.hooks import InputHooks


@dataclass
class Attached:
    """What a model remembers of one adapter."""

    plan: Plan
    seed: int
    lowering: frozenset[str]
    trainable: bool
    #: Where each tensor, then each copy, is registered. Looked up at every use: sharding, `load_state_dict(assign=True)`
    #: and offloading put other tensor objects there.
    registered: dict[str, tuple[nn.Module, str]] = field(default_factory=dict)
    #: The ids of the texts by which a row selects tokens.
    texts: dict[str, tuple[int, ...]] = field(default_factory=dict)
    #: The paths of the modules at which it hangs.
    places: tuple[str, ...] = ()
    leaving: bool = False  # its removal has begun
    alone: str | None = None  # why it cannot share a batch with others ("": it can), once that was asked
    #: Of a bank (`runtime.bank`): the tensors that have a slot for each of its adapters.
    stacked: frozenset[str] | None = None

    @property
    def method(self) -> Method:
        return self.plan.method

    @cached_property
    def asks(self) -> frozenset[str]:
        """What the edits need hooks of the model itself for: rows among the tokens (`prompt`; `grows` where the sequence gets longer; `late` where they enter a block),
        arguments (`input`), what a form reads (`tokens`, `chance`, its own `seed`), and what enters the model (`model`)."""
        edits = self.plan.edits
        found = {
            "prompt": any(e.site.side == "prompt" or e.prompt is not None for e in edits),
            "grows": any(e.prompt is not None and e.prompt.grows for e in edits),
            "late": any(e.late is not None for e in edits),
            "input": bool(self.plan.inputs),
            "tokens": any(not OF_REAL_TOKENS.isdisjoint(e.row.reads) or reads_text(e) for e in edits),
            "chance": any("chance" in e.row.reads for e in edits),
            "penalty": any(isinstance(s, Later) and s.word == "penalty" for e in edits for s in e.row.form),
            "seed": any(draws(e.typing) for e in edits),
            "model": any("" in (e.site.x, e.site.residual) for e in edits),
        }
        return frozenset(n for n, asked in found.items() if asked)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the rows' tensors, then of the copies."""
        return (*self.plan.tensors, *(c.name for c in self.plan.copies))

    def values(self) -> dict[str, torch.Tensor]:
        """Every tensor and trained copy by its name, as it is registered, wherever its values are kept."""
        return {n: value_of(*self.registered[n]) for n in self.names}

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's or copy's shape as the plan has it; numbers are registered as vectors of one entry."""
        planned = self.plan.tensors.get(name)
        return (
            planned.shape
            if planned is not None
            else next(c.parameter.shape for c in self.plan.copies if c.name == name)
        )

    def trained(self) -> dict[str, nn.Parameter]:
        """Every trained parameter by its name."""
        found = {n: self.registered[n][0]._parameters.get(self.registered[n][1]) for n in self.names}
        return {n: p for n, p in found.items() if p is not None}


class Registry(nn.Module):
    """The model's own record of its adapters: the child ``unipelt`` of the model itself."""

    def __init__(self, switch: Switch, sites: SiteMap, required: dict[str, bool], input_hooks: InputHooks):
        super().__init__()
        self.switch, self.sites, self.input_hooks = switch, sites, input_hooks
        self.attached: dict[str, Attached] = {}
        self.banks: dict[str, Bank] = {}  # by the name under which each is attached
        self.shared = nn.ModuleDict()
        self.required = required  # which parameters of the base required a gradient before
        #: The adapters whose tensors may require a gradient.
        self.receiving: frozenset[str] = frozenset()
        self.merged: Any = None
        self.watched: set[int] = set()  # the open `watch` blocks
        self.taps: dict[tuple[str, str], Tap] = {}  # by the module's path and what they leave
        self.hooks: list[Hook] = []  # those of the model itself, its base and its stacks
        self.mask_taps: list[MaskTap] = []
        self.outputs: Outputs | None = None
        self.penalties: PenaltyHooks | None = None
        self.heads = Heads(switch)
        self.forwards: dict[str, HookedForward] = {}
        self.within: dict[str, Within] = {}  # by the path of a module that computes its attention itself
        self.instead: dict[str, Instead] = {}  # by the path of a module for which a twin with trained copies computes
        self.nested: dict[
            str, bool
        ] = {}  # of torch's encoders, by path: whether they may leave pads out (see `hanging`)
        self.savers: dict[str, Any] = {}  # by the path of a part that can be saved by itself: see `save_pretrained`

    def forward(self, x: Any) -> Any:
        """What was given: a container that calls its children in turn (`torch.nn.Sequential`) calls this one as well."""
        return x

    @property
    def inputs(self) -> dict[str, PlannedInput]:
        """The arguments that the adapters that act now declare, by name."""
        return {i.name: i for n in self.switch.live if n in self.attached for i in self.attached[n].plan.inputs}

    @property
    def staying(self) -> dict[str, Attached]:
        """The adapters whose removal has not begun."""
        return {n: a for n, a in self.attached.items() if not a.leaving}

    def banked(self, name: str) -> Bank | None:
        """The bank that has an adapter of this name."""
        return next((b for b in self.banks.values() if name in b), None)


def registry(model: nn.Module) -> Registry | None:
    """The model's record, if it has an adapter."""
    found = model._modules.get(NAME)
    return found if isinstance(found, Registry) else None


def record(model: nn.Module, name: str) -> Attached:
    """The record of an attached adapter; an unknown name is an error that lists those there are."""
    r = registry(model)
    if r is None:
        raise error("E0550", "this model has no adapter", help="attach one: unipelt.apply(model, method, name=…)")
    if not isinstance(name, str):
        raise error(
            "E0551",
            f"an adapter is called by its name, which is a text, not {name!r}",
            help=f"this model has: {', '.join(r.attached)}",
        )
    if name in r.banks:
        raise error(
            "E0854", f"`{name}` is a bank, and no adapter", help="name one that is in it; `bank.close()` takes it out"
        )
    if (bank := r.banked(name)) is not None:
        raise error("E0854", f"`{name}` is in the bank `{bank.name}`, where adapters only act in a `using` block",
                    help="attach its folder by itself: unipelt.attach(model, folder)")  # fmt: skip
    if name not in r.attached:
        own = [n for n in r.attached if n not in r.banks]
        raise error("E0551", f"this model has no adapter named `{name}`",
                    help=near(name, own) or (f"it has: {', '.join(own)}" if own else "add it to a bank: bank.add(name, folder)"))  # fmt: skip
    if r.attached[name].leaving:
        raise error(
            "E0591",
            f"the removal of the adapter `{name}` was interrupted",
            help=f"finish it: unipelt.remove(model, {name!r})",
        )
    return r.attached[name]


def refuse_merged(r: Registry, name: str | None = None) -> None:
    """An error where an adapter, or the one of this name, is merged into the base."""
    if r.merged is not None and name in (None, *r.merged.names):
        raise error(
            "E0554",
            f"the adapter `{name or r.merged.name}` is merged into the base",
            help="unipelt.unmerge(model) first",
        )


def refuse_in_use(r: Registry, name: str | None) -> None:
    """An error where this thread is in a `using` block (with the adapter of a name)."""
    found = next((n for names in r.switch.holder.blocks for n in names if name in (None, n)), None)
    if found is not None:
        raise error(
            "E0592",
            f"the adapter `{found}` is in use: this is within `with unipelt.using(model, {found!r})`",
            help="leave the block first",
        )


def unwrapped(model: nn.Module) -> nn.Module:
    """The module that a compiled model wraps, else the model; an error for a wrapper whose hooks would not see every pass."""
    inner = uncompiled(model)
    if inner is not model:
        return inner
    if type(model).__name__ in ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel"):
        inside = getattr(model, "module", None)
        applied = isinstance(inside, nn.Module) and registry(inside) is not None
        raise error("E0555", f"the model is wrapped in {type(model).__name__} already",
                    help="give the model inside: `model.module`" if applied else "apply the method first, then wrap")  # fmt: skip
    return model
