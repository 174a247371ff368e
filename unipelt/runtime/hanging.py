"""Hangs an adapter's modules and hooks into a model, and takes them down: edits at the seams of their sites, trained copies beside
the modules they stand for, and the model's own hooks where any adapter needs them.

Which adapter acts, what is trained and what happens where this fails is decided in `attach`.
"""

from __future__ import annotations

import sys
from collections import Counter

import torch
from torch import nn

from ..compiler.plan import PlannedEdit
from ..compiler.trained import hosts
from ..language.report.diagnostics import error
from .attention import install, refuse_bypassing
from .beside import hang as hang_savers
from .chance import Draw
from .doors import Door
from .copies import CopyEdit
from .edits import BaseCall, Edit
from .holding import Shared, key_of_tensor
from .heads import hang as hang_heads
from .masks import MaskTap
from .outputs import Outputs
from .prompts import INSIDE
from .registry import Attached, Registry
from .room import Room
from .seam import Seam, Tap, key_of, rows_key, seam_of, seams, tap_key
from .switch import NAME


#: Where torch notes how a hook is called.
_FLAGS = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")


def hang_adapter(model: nn.Module, r: Registry, name: str, attached: Attached, made: dict[str, torch.Tensor]) -> None:
    """Everything that an adapter, which the registry has already, needs in the model; ``made`` are its tensors and copies by name."""
    copies = _hosts_of_copies(model, attached)
    shared = _share(r, name, attached, made, copies)
    r.train(model.training)  # like everything that is hung into the model
    for e in attached.plan.edits:
        _hang_edit(model, r, name, attached, e, made, shared)
    _hang_copies(model, r, name, attached, made, copies, shared)
    rehang(model, r)
    at_heads = {e.site.view.module for e in attached.plan.edits if e.site.side == "attention"}
    if at_heads:
        refuse_bypassing(model, at_heads)
        install()


def take_down(model: nn.Module, r: Registry, name: str, attached: Attached) -> None:
    """What `hang_adapter` hung, as much of it as there is, so that it may be called again; the adapter is marked as leaving."""
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
    rehang(model, r)
    _sweep(model, r, name)


def _sweep(model: nn.Module, r: Registry, name: str) -> None:
    """Takes away the hooks of an adapter, and with the last adapter all of them, by looking at the modules.

    One that was registered and not yet noted when Ctrl-C came is in no list of handles.
    """
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks, module._state_dict_hooks):
            for key, hook in list(hooks.items()):
                owner = getattr(hook, "__self__", hook)
                if r.switch in (owner, getattr(owner, "switch", None)) and (
                    not r.staying or getattr(owner, "adapter", None) == name
                ):
                    for kept in (hooks, *(getattr(module, flags) for flags in _FLAGS)):
                        kept.pop(key, None)


def _seam(model: nn.Module, r: Registry, path: str) -> tuple[nn.Module, Seam]:
    host = model.get_submodule(path)
    seam = seam_of(host)
    if seam is None:
        refuse_namesake(host, path)
        seam = Seam(path, r.switch)
        seam.train(host.training)
        host.add_module(NAME, seam)
    return host, seam


def refuse_namesake(module: nn.Module, path: str = "") -> None:
    """An error where a module (the model itself, without a path) has something under the name that children are hung under."""
    if hasattr(module, NAME):
        raise error("E0557", f"the module `{path or type(module).__name__}` has something named `{NAME}` already",
                    help="rename it: edits are put into a child module of that name")  # fmt: skip


def _edits(seam: Seam, name: str) -> nn.ModuleList:
    key = key_of(name)
    if key not in seam.adapters:
        seam.adapters[key] = nn.ModuleList().train(seam.training)
    return seam.adapters[key]  # type: ignore[return-value]


def _hosts_of_copies(model: nn.Module, attached: Attached) -> dict[str, dict[str, str]]:
    """Where the trained copies act: module path → the module's name of a parameter → the copy's name."""
    copies: dict[str, dict[str, str]] = {}
    for c in attached.plan.copies:
        for path, attribute in hosts(model, attached.plan.sites, c.parameter):
            copies.setdefault(path, {})[attribute] = c.name
    return copies


def _share(
    r: Registry, name: str, attached: Attached, made: dict[str, torch.Tensor], copies: dict[str, dict[str, str]]
) -> Shared | None:
    """What more than one edit reads (the copy of a tied weight, too), owned by the model."""
    uses = Counter(n for e in attached.plan.edits for n in set(e.tensors.values()))
    uses.update(n for names in copies.values() for n in names.values())
    several = {n: made[n] for n in attached.names if uses[n] > 1}
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
    bases = {n: BaseCall(model.get_submodule(v.module), v.columns) for n, v in e.site.bases.items()}
    host, seam = _seam(model, r, e.site.view.module)
    edit = Edit(e, attached.method.params, own, borrowed, shared, axes, bases, attached.lowering)
    attached.places.update({e.tensors[label]: (edit, key_of_tensor(label)) for label in own})
    edit.taps = {
        need: tap_key(e.site.view.module, name, edit, need) for need in ("x", "residual") if need in edit.needs
    }
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
        tap = Tap(r.switch, edit.taps[need], name)
        module = model.get_submodule(source) if source else model
        if need == "x" and e.site.x_leaves:
            attached.handles.append(module.register_forward_hook(tap.leaves))
        else:
            attached.handles.append(module.register_forward_pre_hook(tap.enters, with_kwargs=True))


def _hang_copies(
    model: nn.Module, r: Registry, name: str, attached: Attached, made: dict[str, torch.Tensor],
    copies: dict[str, dict[str, str]], shared: Shared | None,
) -> None:  # fmt: skip
    for path, names in copies.items():
        borrowed = {attribute: n for attribute, n in names.items() if shared is not None and n in shared.scalars}
        own = {attribute: made[n] for attribute, n in names.items() if attribute not in borrowed}
        host, seam = _seam(model, r, path)
        edit = CopyEdit(host, own, borrowed, shared if borrowed else None, attached.lowering)
        attached.places.update({names[attribute]: (edit, key_of_tensor(attribute)) for attribute in own})
        edit.train(host.training)
        _edits(seam, name).insert(0, edit)  # weight edits precede activation edits
        seam.hang(host)


def hang_root(model: nn.Module, r: Registry) -> None:
    """The model's own hooks, where an adapter or a watch needs the mask, takes an argument, places rows or has its own labels."""
    edits = [e for a in r.staying.values() for e in a.plan.edits]
    prompts = any(e.site.side == "prompt" for e in edits)
    needed = prompts or bool(r.watched) or bool(r.wanted) or any("tokens" in e.names for e in edits)
    r.room = Room.of(model, r.sites) if prompts else None
    if needed and not r.root_handles:
        r.root_handles.append(model.register_forward_pre_hook(r.enter, with_kwargs=True))
        r.root_handles.append(model.register_forward_hook(r.leave, always_call=True))
        base = base_of(model)
        if base is not model:
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
    hang_heads(model, r.heads, {n: a.plan for n, a in r.staying.items()}, r.head_handles)
    if any(p.rows.grows for placed in r.placing.values() for p in placed) and not r.tower:
        # last: a head's loss is over all entries
        r.head_handles.append(model.register_forward_hook(Outputs(r.switch, model, r.sites).leaves))
    _hang_passes(model, r)
    _hang_doors(model, r)


def _hang_doors(model: nn.Module, r: Registry) -> None:
    """A ``forward`` that runs the hooks, for each module that has some of the model's own (see `doors`)."""
    edits = [e for a in r.staying.values() for e in a.plan.edits]
    wanted: dict[str, nn.Module] = {}
    if r.root_handles or r.head_handles or r.draw_handles or any("" in (e.site.x, e.site.residual) for e in edits):
        wanted[INSIDE] = model
    if r.root_handles:
        for name, module in {
            "base": base_of(model),
            **{s.module: model.get_submodule(s.module) for s in r.sites.stacks},
        }.items():
            if all(module is not other for other in wanted.values()):
                wanted[f"{INSIDE}:{name}"] = module
    for key in [k for k in r.doors if k not in wanted]:
        r.doors[key].close()
        del r.doors[key]
    for key, module in wanted.items():
        if key not in r.doors:
            r.doors[key] = Door(module, r.switch, key)
        r.doors[key].open()


def rehang(model: nn.Module, r: Registry) -> None:
    """Brings the model's own hooks up to date with what is attached, and with a base that changed."""
    _taps_last(r)
    _hang_draw(model, r)
    hang_root(model, r)
    hang_savers(model, r)
    _forget_compiled()


def _hang_passes(model: nn.Module, r: Registry) -> None:
    """Hooks on what is called from outside: what acts is settled when a pass begins.

    Hooked anew each time, since they stand before and behind all others.
    """
    while r.pass_handles:
        r.pass_handles[-1].remove()
        r.pass_handles.pop()
    towers = [model.get_submodule(s.module) for s in r.sites.stacks] if r.staying else []
    for module in {id(m): m for m in (model, base_of(model), *towers)}.values() if towers else ():
        r.pass_handles.append(module.register_forward_pre_hook(r.switch.begin, prepend=True))
        r.pass_handles.append(module.register_forward_hook(r.switch.end, always_call=True))


def base_of(model: nn.Module) -> nn.Module:
    """The model without its head; the model itself where it has none."""
    return getattr(model, "base_model", model)  # type: ignore[return-value]


def _hang_draw(model: nn.Module, r: Registry) -> None:
    """The hook that draws ``chance``, where an attached adapter reads it."""
    needed = any("chance" in e.names for a in r.staying.values() for e in a.plan.edits)
    if needed and not r.draw_handles:
        r.draw_handles.append(model.register_forward_pre_hook(Draw(r.switch).enters))
    while r.draw_handles and not needed:
        r.draw_handles[-1].remove()
        r.draw_handles.pop()


def _taps_last(r: Registry) -> None:
    """What reads a module's output stands behind every edit of it, whichever was hung first."""
    for handle in (h for a in r.staying.values() for h in a.handles):
        hooks = handle.hooks_dict_ref()
        if hooks is not None and getattr(hooks.get(handle.id), "__func__", None) is Tap.leaves:
            hooks.move_to_end(handle.id)


def _forget_compiled() -> None:
    """Code that torch.compile made before knows nothing of the new hooks: it is made anew."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
