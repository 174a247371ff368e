"""Puts a plan into a model, whole or not at all; switches adapters; takes them out without a trace."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..compiler.initialise import draw, generator
from ..compiler.labels import Labels, labels_of_base
from ..compiler.plan import Plan, PlannedEdit
from ..compiler.planner import plan as make_plan
from ..compiler.trained import hosts
from ..language.diagnostics import error, near
from ..language.ir import Method
from .attention import install, refuse_bypassing
from .chance import Draw
from .edits import BaseCall, CopyEdit, Edit, Shared, key_of_tensor
from .heads import Heads, agree, hang
from .masks import MaskTap
from .offload import device_of, value_of
from .outputs import Outputs
from .prompts import Doorway, placing
from .seam import NAME, Seam, Tap, key_of, rows_key, seam_of, seams, tap_key
from .sharding import is_sharded, settle
from .starts import LabelWords, StartData, start
from .switch import Switch

_ADAPTER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-]*")


@dataclass
class Attached:
    """What a model remembers of one adapter."""

    plan: Plan
    seed: int
    lowering: bool
    trainable: bool
    #: Where each tensor, then each copy, is registered. Looked up at every use: sharding, `load_state_dict(assign=True)`
    #: and offloading put other tensor objects there.
    places: dict[str, tuple[nn.Module, str]] = field(default_factory=dict)
    handles: list[Any] = field(default_factory=list)

    @property
    def method(self) -> Method:
        return self.plan.method

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the rows' tensors, then of the copies."""
        return (*self.plan.tensors, *(c.name for c in self.plan.copies))

    def values(self) -> dict[str, torch.Tensor]:
        """Every tensor and trained copy by its name, as it is registered, wherever its values are kept."""
        return {n: value_of(*self.places[n]) for n in self.names}

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape as the plan has it; numbers are registered as vectors of one entry."""
        planned = self.plan.tensors.get(name)
        return planned.shape if planned is not None else tuple(self.places[name][0]._parameters[self.places[name][1]].shape)  # type: ignore[union-attr]

    def trained(self) -> dict[str, nn.Parameter]:
        """Every trained parameter by its name."""
        found = {n: self.places[n][0]._parameters.get(self.places[n][1]) for n in self.names}
        return {n: p for n, p in found.items() if p is not None}


class Registry(Doorway):
    """The model's own record of its adapters: the child ``unipelt`` of the model itself."""

    def __init__(self, switch: Switch, sites: Any, frozen: dict[str, bool]):
        super().__init__(switch, sites)
        self.attached: dict[str, Attached] = {}
        self.shared = nn.ModuleDict()
        self.required = frozen  # which parameters of the base required a gradient before
        self.merged: Any = None
        self.watched = 0  # how many `watch` blocks are open
        self.root_handles: list[Any] = []
        self.heads = Heads(switch)
        self.head_handles: list[Any] = []
        self.draw_handles: list[Any] = []


def registry(model: nn.Module) -> Registry | None:
    found = model._modules.get(NAME)
    return found if isinstance(found, Registry) else None


def record(model: nn.Module, name: str) -> Attached:
    """The record of an attached adapter; an unknown name is an error that lists those there are."""
    r = registry(model)
    if r is None:
        raise error("E0550", "this model has no adapter", help="attach one: unipelt.apply(model, method, name=…)")
    if name not in r.attached:
        raise error("E0551", f"this model has no adapter named `{name}`",
                    help=near(name, r.attached) or f"it has: {', '.join(r.attached)}")  # fmt: skip
    return r.attached[name]


# ---------------------------------------------------------------- apply


def apply(
    model: nn.Module, method: Method, name: str = "default", seed: int = 0, *, head: bool | None = None,
    tokenizer: Any = None, label_words: LabelWords | None = None, dtype: torch.dtype | None = None,
    allow_future: bool = False, lowering: bool = True, trainable: bool = True,
    labels: int | Sequence[str] | Labels | None = None, problem_type: str | None = None,
) -> Plan:  # fmt: skip
    """Attaches a method under a name, freezes the base and activates the adapter. Returns the plan it carried out.

    The same seed gives the same tensors, whatever the order of sites, the device or the other adapters. If anything
    fails, the model is as it was. ``head``, ``labels`` and ``problem_type`` are as in `unipelt.plan`: with labels of its
    own the adapter has a head with as many columns, and a batch's ``labels`` mean those; ``tokenizer`` serves starts from a
    text, and ``label_words`` (by default the names of the labels) those from the words of the class labels;
    ``dtype`` is that of the adapter's tensors (the base's own by default); ``lowering=False`` evaluates every line
    as written. Raises `PeltError`.
    """
    model = _unwrapped(model)
    if not isinstance(name, str) or not _ADAPTER_NAME.fullmatch(name):
        raise error("E0552", f"{name!r} is no adapter's name", help="letters, digits, `_` and `-`")
    r = registry(model)
    if r is not None and name in r.attached:
        raise error("E0553", f"the model has an adapter named `{name}` already", help="unipelt.remove it, or choose another")
    if r is not None and r.merged is not None:
        raise error("E0554", f"the adapter `{r.merged.name}` is merged into the base", help="unipelt.unmerge(model) first")
    _refuse_sharded(model)
    planned = make_plan(model, method, head=head, allow_future=allow_future, labels=labels, problem_type=problem_type)
    data = StartData.of(model, planned, tokenizer, label_words)
    attached = Attached(planned, seed, lowering, trainable)
    made = _create(model, attached, data, dtype)
    _install(model, name, attached, made)
    return planned


def _unwrapped(model: nn.Module) -> nn.Module:
    inner = getattr(model, "_orig_mod", None)  # torch.compile's wrapper shares the module it wraps
    if isinstance(inner, nn.Module):
        return inner
    if type(model).__name__ in ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel"):
        applied = isinstance(inner := getattr(model, "module", None), nn.Module) and registry(inner) is not None
        raise error("E0555", f"the model is wrapped in {type(model).__name__} already",
                    help="give the model inside: `model.module`" if applied else "apply the method first, then wrap")  # fmt: skip
    return model


def _refuse_sharded(model: nn.Module) -> None:
    if is_sharded(model):
        raise error("E0556", "the model is sharded already, and gradients of what is added now would not be reduced",
                    help="apply the method first, then shard (fully_shard)")  # fmt: skip


def _create(
    model: nn.Module, attached: Attached, data: StartData, dtype: torch.dtype | None
) -> dict[str, torch.Tensor]:
    """The adapter's tensors and trained copies by name: parameters, and frozen draws as plain tensors."""
    planned = attached.plan
    made: dict[str, torch.Tensor] = {}
    owner: dict[str, PlannedEdit] = {}
    for e in planned.edits:
        for n in e.tensors.values():
            owner.setdefault(n, e)
    for n, t in planned.tensors.items():
        like, device = _like(model, owner[n])
        target = dtype or like.dtype
        if device.type == "meta":
            value = torch.empty(t.shape, dtype=target, device="meta")
        else:
            value = start(model, t, owner[n], attached.seed, data, planned).to(device, target)
        made[n] = value if t.frozen else nn.Parameter(value, requires_grad=attached.trainable)
    for c in planned.copies:
        path, _, attribute = c.parameter.path.rpartition(".")
        source = value_of(model.get_submodule(path), attribute).detach()
        if c.start is None:
            value = source.clone()
        elif source.device.type == "meta":
            value = source.new_empty(c.parameter.shape)
        else:
            value = draw(c.start, (), c.parameter.shape, generator(attached.seed, c.name)).to(source)
        made[c.name] = nn.Parameter(value, requires_grad=attached.trainable)
    return made


def _like(model: nn.Module, e: PlannedEdit) -> tuple[torch.Tensor, torch.device]:
    """A floating parameter at the edit's place, for its dtype, and the device on which that place runs."""
    places = [model.get_submodule(p) for p in (e.site.view.module, e.site.x) if p is not None] + [model]
    like = next(p for m in places for p in m.parameters() if p.is_floating_point())
    return like, device_of(like.device, *places)


def _install(model: nn.Module, name: str, attached: Attached, made: dict[str, torch.Tensor]) -> None:
    """Hangs the adapter into the model; on any failure takes it out again."""
    before = registry(model)
    if before is None:
        _refuse_namesake(model, "")
        required = {n: p.requires_grad for n, p in model.named_parameters()}
        r = Registry(Switch(), attached.plan.sites, required)
    else:
        r = before
    was = r.switch.active
    try:
        for p in model.parameters():
            if before is None:
                p.requires_grad_(False)
        if before is None:
            model.add_module(NAME, r)
        r.attached[name] = attached
        if attached.plan.inputs:
            r.wanted[name] = attached.plan.inputs
        r.placing[name] = placing(attached.plan, name)
        shared = _share(r, name, attached, made)
        r.train(model.training)  # like everything that is hung into the model
        for e in attached.plan.edits:
            _hang_edit(model, r, name, attached, e, made, shared)
        _hang_copies(model, r, name, attached, made)
        _hang_root(model, r)
        _hang_draw(model, r)
        at_heads = {e.site.view.module for e in attached.plan.edits if e.site.side == "attention"}
        if at_heads:
            refuse_bypassing(model, at_heads)
            install()
        activate(model, name)
        _forget_compiled()
    except BaseException:
        if name in r.attached:
            _take_out(model, r, name)
        if before is not None:
            activate(model, *was)  # what trains is as it was, too
        raise


def _seam(model: nn.Module, r: Registry, path: str) -> tuple[nn.Module, Seam]:
    host = model.get_submodule(path)
    seam = seam_of(host)
    if seam is None:
        _refuse_namesake(host, path)
        seam = Seam(path, r.switch)
        seam.train(host.training)
        host.add_module(NAME, seam)
    return host, seam


def _refuse_namesake(module: nn.Module, path: str) -> None:
    if hasattr(module, NAME):
        raise error("E0557", f"the module `{path or type(module).__name__}` has something named `{NAME}` already",
                    help="rename it: edits are put into a child module of that name")  # fmt: skip


def _edits(seam: Seam, name: str) -> nn.ModuleList:
    key = key_of(name)
    if key not in seam.adapters:
        seam.adapters[key] = nn.ModuleList().train(seam.training)
    return seam.adapters[key]  # type: ignore[return-value]


def _share(r: Registry, name: str, attached: Attached, made: dict[str, torch.Tensor]) -> Shared | None:
    """What more than one edit reads, owned by the model."""
    uses = Counter(n for e in attached.plan.edits for n in set(e.tensors.values()))
    several = {n: made[n] for n in attached.plan.tensors if uses[n] > 1}
    if not several:
        return None
    shared = r.shared[key_of(name)] = Shared(several)
    attached.places.update({n: (shared, key_of_tensor(n)) for n in shared.scalars})
    return shared


def _hang_edit(
    model: nn.Module, r: Registry, name: str, attached: Attached, e: PlannedEdit, made: dict[str, torch.Tensor],
    shared: Shared | None,
) -> None:  # fmt: skip
    borrowed = {label: n for label, n in e.tensors.items() if shared is not None and n in shared.scalars}
    own = {label: made[n] for label, n in e.tensors.items() if label not in borrowed}
    axes = {label: attached.plan.tensors[n].axes for label, n in e.tensors.items()}
    bases = {n: BaseCall(model.get_submodule(v.module), v.part) for n, v in e.site.bases.items()}
    host, seam = _seam(model, r, e.site.view.module)
    edit = Edit(e, attached.method.params, own, borrowed, shared, axes, bases, attached.lowering)
    attached.places.update({e.tensors[label]: (edit, key_of_tensor(label)) for label in own})
    edit.train(host.training)
    _edits(seam, name).append(edit)
    seam.hang(host)
    if e.site.rows is not None:
        tap = Tap(r.switch, rows_key(e.site.rows), name)
        attached.handles.append(model.get_submodule(e.site.rows).register_forward_pre_hook(tap.shape, with_kwargs=True))
    for need in sorted(edit.needs & {"x", "residual"}):
        source = e.site.x if need == "x" else e.site.residual
        if source is None or (need == "x" and source == e.site.view.module and e.site.side == "output"):
            continue
        tap = Tap(r.switch, tap_key(e.site.view.module, name, edit, need), name)
        module = model.get_submodule(source) if source else model
        if need == "x" and e.site.x_leaves:
            attached.handles.append(module.register_forward_hook(tap.leaves))
        else:
            attached.handles.append(module.register_forward_pre_hook(tap.enters, with_kwargs=True))


def _hang_copies(model: nn.Module, r: Registry, name: str, attached: Attached, made: dict[str, torch.Tensor]) -> None:
    copies: dict[str, dict[str, str]] = {}
    for c in attached.plan.copies:
        for path, attribute in hosts(model, attached.plan.sites, c.parameter):
            copies.setdefault(path, {})[attribute] = c.name
    for path, names in copies.items():
        host, seam = _seam(model, r, path)
        copy_edit = CopyEdit(host, {attribute: made[n] for attribute, n in names.items()}, attached.lowering)  # type: ignore[misc]
        attached.places.update({n: (copy_edit.twin, attribute) for attribute, n in names.items()})
        copy_edit.train(host.training)
        _edits(seam, name).insert(0, copy_edit)  # weight edits precede activation edits (ruling 6)
        seam.hang(host)


def _hang_root(model: nn.Module, r: Registry) -> None:
    """The model's own hooks, where an adapter or a watch needs the mask, takes an argument, places rows or has its own labels."""
    edits = [e for a in r.attached.values() for e in a.plan.edits]
    prompts = any(e.site.side == "prompt" for e in edits)
    needed = prompts or bool(r.watched) or bool(r.wanted) or any("tokens" in e.names for e in edits)
    if needed and not r.root_handles:
        r.root_handles.append(model.register_forward_pre_hook(r.enter, with_kwargs=True))
        r.root_handles.append(model.register_forward_hook(r.leave, always_call=True))
        base = getattr(model, "base_model", model)
        if base is not model:
            r.root_handles.append(model.register_forward_pre_hook(r.mark, with_kwargs=True))
            r.root_handles.append(base.register_forward_pre_hook(r.base_enter, with_kwargs=True))
        if r.tower:
            encoder, decoder = (model.get_submodule(s.module) for s in r.sites.stacks)
            r.root_handles.append(encoder.register_forward_pre_hook(r.enter_encoder, with_kwargs=True))
            r.root_handles.append(encoder.register_forward_hook(r.leave_encoder, always_call=True))
            r.root_handles.append(decoder.register_forward_pre_hook(r.enter_decoder, with_kwargs=True))
        for stack in r.sites.stacks:  # behind what makes a mask longer
            module = model.get_submodule(stack.module)
            tap = MaskTap(r.switch, stack, module)
            r.root_handles.append(module.register_forward_pre_hook(tap.enters, with_kwargs=True))
    elif not needed:
        for handle in r.root_handles:
            handle.remove()
        r.root_handles.clear()
        values = r.switch.holder.values
        for key in [k for k in values if k.startswith("mask:")]:
            del values[key]
    hang(model, r.heads, {n: a.plan for n, a in r.attached.items()}, r.head_handles)
    if any(p.rows.grows for placed in r.placing.values() for p in placed) and not r.tower:
        # last: a head's loss is over all entries
        r.head_handles.append(model.register_forward_hook(Outputs(r.switch, model, r.sites).leaves))


def rehang(model: nn.Module) -> None:
    """The hooks of a model whose base changed."""
    r = registry(model)
    assert r is not None
    _hang_root(model, r)
    _forget_compiled()


def _hang_draw(model: nn.Module, r: Registry) -> None:
    """The hook that draws ``chance``, where an attached adapter reads it."""
    needed = any("chance" in e.names for a in r.attached.values() for e in a.plan.edits)
    if needed and not r.draw_handles:
        r.draw_handles.append(model.register_forward_pre_hook(Draw(r.switch).enters))
    while r.draw_handles and not needed:
        r.draw_handles.pop().remove()


def _forget_compiled() -> None:
    """Code that torch.compile made before knows nothing of the new hooks: it is made anew."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


# ---------------------------------------------------------------- remove, activate, disable


def remove(model: nn.Module, name: str) -> None:
    """Takes an adapter out. With the last one every hook, name and flag of the model is as before."""
    model = _unwrapped(model)
    record(model, name)
    r = registry(model)
    assert r is not None
    if r.merged is not None and name in r.merged.names:
        raise error("E0554", f"the adapter `{name}` is merged into the base", help="unipelt.unmerge(model) first")
    _take_out(model, r, name)


def _take_out(model: nn.Module, r: Registry, name: str) -> None:
    attached = r.attached.pop(name)
    r.wanted.pop(name, None)
    r.placing.pop(name, None)
    r.switch.active = tuple(n for n in r.switch.active if n != name)
    for handle in attached.handles:
        handle.remove()
    if key_of(name) in r.shared:
        del r.shared[key_of(name)]
    for host, seam in seams(model):
        if key_of(name) in seam.adapters:
            del seam.adapters[key_of(name)]
        seam.hang(host)
        if not seam.adapters:
            del host._modules[NAME]
    _hang_root(model, r)
    _hang_draw(model, r)
    if not r.attached:
        model._modules.pop(NAME, None)
        for n, p in model.named_parameters():
            p.requires_grad_(r.required.get(n, True))
    _forget_compiled()


def adapters(model: nn.Module) -> dict[str, Method]:
    """The attached adapters by name, with their methods."""
    r = registry(_unwrapped(model))
    return {n: a.method for n, a in r.attached.items()} if r is not None else {}


def active(model: nn.Module) -> tuple[str, ...]:
    """The names of the acting adapters, in order of application."""
    r = registry(_unwrapped(model))
    return r.switch.active if r is not None else ()


def activate(model: nn.Module, *names: str) -> None:
    """Makes exactly these adapters act, in this order; only they receive gradients. No name: none acts."""
    model = _unwrapped(model)
    for n in names:
        record(model, n)
    twice = [n for n, count in Counter(names).items() if count > 1]
    if twice:
        raise error("E0558", f"the adapter `{twice[0]}` is named twice", help="name it once")
    r = registry(model)
    if r is None:
        raise error("E0550", "this model has no adapter")
    agree(model, {n: r.attached[n].plan for n in names})
    settle(model)
    for n, a in r.attached.items():
        for p in a.trained().values():
            p.requires_grad_(n in names and a.trainable)
    r.switch.active = tuple(names)


def labels(model: nn.Module, name: str | None = None) -> Labels | None:
    """What the logits' columns mean under an adapter or, without a name, now. None where they are no labels."""
    model = _unwrapped(model)
    r = registry(model)
    own = record(model, name).plan.labels if name is not None else r.heads.own if r is not None else None
    return own or labels_of_base(model)


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block this thread sees the base model. Blocks nest; an exception restores what was."""
    r = registry(_unwrapped(model))
    with nullcontext() if r is None else r.switch.holder.within("depth"):
        yield model


def parameter_groups(model: nn.Module, name: str, lr: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
    """Optimiser groups of an adapter: the method's learning-rate multiples, no decay on vectors and scalars."""
    model = _unwrapped(model)
    a = record(model, name)
    settle(model)
    multiples = {n: t.lr for n, t in a.plan.tensors.items()} | {c.name: c.lr for c in a.plan.copies}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for n, p in a.trained().items():
        if p.requires_grad:
            decay = weight_decay if p.dim() > 1 else 0.0
            groups.setdefault((lr * multiples[n], decay), []).append(p)
    return [{"params": ps, "lr": rate, "weight_decay": decay} for (rate, decay), ps in groups.items()]
