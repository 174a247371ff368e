"""Hangs an adapter's modules and hooks into a model, and takes them down: edits at the seams of their sites, trained copies beside
the modules they stand for, and the model's own hooks where any adapter needs them.

Which adapter acts, what is trained and what happens where this fails is decided in `attach`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import replace

import torch
from torch import nn

from ..anatomy.base import NAME, base_modules, base_of
from ..anatomy.matrices import stored_as_map
from ..anatomy.sites import Site
from ..compiler.along import chain_of
from ..compiler.among import late, veiled
from ..compiler.plan import PlannedEdit
from ..compiler.hosting import hosts, stands_in
from ..language.report.diagnostics import error
from .attention import install, refuse_bypassing
from .save_pretrained import hang as hang_savers
from .copies import CopyEdit
from .forward import HookedForward
from .base_call import BaseCall
from .edits import Edit
from .holding import Shared, Stacked, key_of_tensor
from .hooks import Hook
from .instead import Instead
from .penalties import PenaltyHooks
from .prompts.masks import MaskTap
from .prompts.outputs import Outputs
from .prompts.hooks import INSIDE
from .prompts.pictures import pictured
from .registry import Attached, Registry
from .seam import Seam, key_of, seam_at, seam_of
from .taps import Tap, tap_key, taps
from .weights import Use
from .within import Within


def hang_adapter(model: nn.Module, r: Registry, name: str, attached: Attached, made: dict[str, torch.Tensor]) -> None:
    """Everything that an adapter, which the registry has already, needs in the model; ``made`` are its tensors and copies by name."""
    copies, veiling = _hosts_of_copies(model, attached), _veiling(attached)
    at = [m for e in attached.plan.edits for m in (e.site.view.module, *e.site.also)]
    attached.places = (*dict.fromkeys([*at, *(s.view.module for s in veiling), *copies]),)
    shared = _share(r, name, attached, made, copies)
    for e in attached.plan.edits:
        _hang_edit(model, r, name, attached, e, made, shared)
    _hang_copies(model, r, name, attached, made, copies, shared)
    for site in veiling:
        _seam(model, r, site.view.module)[1].veil(name, site)
    rehang(model, r)
    at_heads = {e.site.view.module for e in attached.plan.edits if e.site.side == "attention" and not e.site.attends}
    at_heads |= {s.view.module for s in veiling}
    if at_heads:
        refuse_bypassing(model, at_heads)
        install()


def take_down(model: nn.Module, r: Registry, name: str, attached: Attached) -> None:
    """What `hang_adapter` hung, as much of it as there is, so that it may be called again; the adapter is marked as leaving."""
    if key_of(name) in r.shared:
        del r.shared[key_of(name)]
    for path in attached.places:
        if (found := seam_at(model, path)) is not None:
            host, seam = found
            seam.drop(host, name)
            if path in r.instead and not any(e.side == "forward" for edits in seam.adapters.values() for e in edits):  # type: ignore[attr-defined]
                _not_within(r, path)
                r.instead.pop(path).take()
            if not seam.adapters:
                del host._modules[NAME]
    for source in {(path, kind) for e in attached.plan.edits for path, kind, _ in taps(e, name)}:
        if (tap := r.taps.get(source)) is not None:
            tap.keys = {n: keys for n, keys in tap.keys.items() if n != name}
            if not tap.keys:
                with suppress(AttributeError):  # another module may have taken the place of one around it
                    tap.hook(model.get_submodule(source[0]), source[1]).take()
                del r.taps[source]
    rehang(model, r)


def _veiling(attached: Attached) -> list[Site]:
    """The attentions that hide rows which enter later blocks."""
    deepest: dict[str, int] = {}
    for e in late(attached.plan.edits):
        deepest[e.site.stack] = max(deepest.get(e.site.stack, 0), e.late or 0)
    return [s for stack, block in deepest.items() for s in veiled(attached.plan.sites, stack, block)]


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
    shared = Shared(several, _stacked(r, attached, {n: n for n in several}))
    r.shared[key_of(name)] = shared.train(r.training)
    attached.registered.update({n: (shared, key_of_tensor(n)) for n in shared.scalars})
    return shared


def _stacked(r: Registry, attached: Attached, names: Mapping[str, str]) -> Stacked | None:
    """What a module is told of its tensors, by its own names for them, where the adapter is a bank."""
    if attached.stacked is None:
        return None
    return Stacked(frozenset(own for own, n in names.items() if n in attached.stacked), r.switch.holder)


def _hang_edit(
    model: nn.Module, r: Registry, name: str, attached: Attached, e: PlannedEdit, made: dict[str, torch.Tensor],
    shared: Shared | None,
) -> None:  # fmt: skip
    borrowed = {label: n for label, n in e.tensors.items() if shared is not None and n in shared.scalars}
    own = {label: made[n] for label, n in e.tensors.items() if label not in borrowed}
    axes = {label: attached.plan.tensors[n].axes for label, n in e.tensors.items()}
    bases = {n: BaseCall(model.get_submodule(v.module), v.columns) for n, v in e.site.bases.items()}
    host, seam = _seam(model, r, e.site.view.module)
    stacked = _stacked(r, attached, {label: e.tensors[label] for label in own})
    edit = Edit(e, attached.method.params, own, borrowed, shared, axes, bases, attached.lowering, stacked)
    edit.chosen = tuple(replace(c, ids=attached.texts[c.text]) if c.text else c for c in edit.chosen)
    attached.registered.update({e.tensors[label]: (edit, key_of_tensor(label)) for label in own})
    edit.taps = {need: tap_key(e, name, need) for need in ("x", "residual") if need in edit.needs}
    if edit.carries:
        edit.chain = f"{name}:{chain_of(e)}"
        others = [o.site.layer for o in attached.plan.edits if chain_of(o) == chain_of(e)]
        edit.leads = e.site.layer == min((i for i in others if i is not None), default=None)
    seam.add(host, name, edit)
    for path in e.site.also:
        other, seam = _seam(model, r, path)
        seam.add(other, name, Use(edit, stored_as_map(host) is not stored_as_map(other)))
    if edit.side == "forward":
        _stand_in(r, e.site.view.module, host)
    for path, kind, key in taps(e, name):
        tap = r.taps.setdefault((path, kind), Tap(r.switch))
        tap.keys = {**tap.keys, name: (*(k for k in tap.keys.get(name, ()) if k != key), key)}
        tap.hook(model.get_submodule(path), kind).put()


def _hang_copies(
    model: nn.Module, r: Registry, name: str, attached: Attached, made: dict[str, torch.Tensor],
    copies: dict[str, dict[str, str]], shared: Shared | None,
) -> None:  # fmt: skip
    for path, names in copies.items():
        borrowed = {attribute: n for attribute, n in names.items() if shared is not None and n in shared.scalars}
        own = {attribute: made[n] for attribute, n in names.items() if attribute not in borrowed}
        host, seam = _seam(model, r, path)
        stacked = _stacked(r, attached, {attribute: names[attribute] for attribute in own})
        edit = CopyEdit(host, own, borrowed, shared if borrowed else None, attached.lowering, stacked)
        attached.registered.update({names[attribute]: (edit, key_of_tensor(attribute)) for attribute in own})
        if stands_in(model, attached.plan.sites, path):
            edit.side = "forward"
        seam.add(host, name, edit, first=True)  # weight edits precede activation edits
        if edit.side == "forward":
            _stand_in(r, path, host)


def _stand_in(r: Registry, path: str, host: nn.Module) -> None:
    """Lets what is live at a module compute in its place."""
    if path not in r.instead:
        _not_within(r, path)
        r.instead[path] = Instead(host)
        r.instead[path].put()


def _not_within(r: Registry, path: str) -> None:
    """What serves the heads of a module stands around what stands in for it: `hang_root` puts it there again."""
    if path in r.within:
        r.within.pop(path).take()


def hang_root(model: nn.Module, r: Registry) -> None:
    """Brings the hooks of the model itself, its base and its stacks up to date with what is attached and watched."""
    r.switch.kinds.forget()
    asked: frozenset[str] = frozenset().union(*[a.asks for a in r.staying.values()])
    plans = {n: a.plan for n, a in r.staying.items()}
    r.heads.update(model, plans)
    r.input_hooks.update(model, plans)
    wanted = _root_hooks(model, r, asked)
    if wanted != r.hooks:
        # all that may be there, wherever this is broken off
        r.hooks = [*(h for h in r.hooks if h not in wanted), *wanted]
        for hook in r.hooks:
            hook.take()
        for hook in wanted:
            hook.put()
        r.switch.holder.current.begin()  # what the last pass left is of the hooks before
        r.hooks = wanted
    _hang_forwards(model, r, "model" in asked)
    _hang_within(model, r)


def _root_hooks(model: nn.Module, r: Registry, asked: Set[str]) -> list[Hook]:
    """The hooks of the model itself, its base and its stacks, in their order at each of them."""
    if not r.staying:
        return []
    inputs = r.input_hooks
    base, towers = base_of(model), [model.get_submodule(s.module) for s in r.sites.stacks]
    called = {id(m): m for m in (model, base, *towers)}.values()  # what is called from outside
    before: list[Hook] = [Hook(m, r.switch.begin, before=True, named=True, first=True) for m in called]
    behind: list[Hook] = []
    if "chance" in asked:
        before.append(Hook(model, inputs.draw, before=True))
    if "seed" in asked:
        before.append(Hook(model, inputs.draw_seed, before=True))
    if asked & {"prompt", "tokens", "input"} or r.watched:
        before.append(Hook(model, inputs.enter, before=True, named=True))
        behind.append(Hook(model, inputs.leave, always=True))
        if base is not model:
            before.append(Hook(base, inputs.base_enter, before=True, named=True))
        if inputs.tower:
            encoder, decoder = (model.get_submodule(s.module) for s in r.sites.main[:2])
            before += [
                Hook(encoder, inputs.enter_encoder, before=True, named=True),
                Hook(decoder, inputs.enter_decoder, before=True, named=True),
            ]
            behind.append(Hook(encoder, inputs.leave_encoder, always=True))
        else:
            own_before, own_behind = _towers(model, base, r)
            before, behind = [*before, *own_before], [*behind, *own_behind]
        r.mask_taps = r.mask_taps or [MaskTap(r.switch, s, m, inputs) for s, m in zip(r.sites.stacks, towers)]
        # behind what makes a mask longer
        before += [Hook(m, tap.enters, before=True, named=True) for tap, m in zip(r.mask_taps, towers)]
        if any(inputs.selecting.values()):
            behind += [Hook(m, tap.leaves) for tap, m in zip(r.mask_taps, towers)]
    behind += [Hook(m, inputs.leave_embeddings) for m in inputs.embeddings.values()]
    if r.heads.has_labels:  # behind what makes labels longer
        before.append(Hook(model, r.heads.take, before=True, named=True))
        behind.append(Hook(model, r.heads.give, named=True))
    if "penalty" in asked:  # behind what makes a loss of its own
        r.penalties = r.penalties or PenaltyHooks(r.switch)
        before.append(Hook(model, r.penalties.begin, before=True, named=True))
        behind.append(Hook(model, r.penalties.end, named=True))
    if "grows" in asked and not inputs.tower:  # a head's loss is over all entries
        r.outputs = r.outputs or Outputs(r.switch, model, r.sites)
        behind.append(Hook(model, r.outputs.leaves))
    return [*before, *behind, *(Hook(m, r.switch.end, always=True) for m in called)]


def _towers(model: nn.Module, base: nn.Module, r: Registry) -> tuple[list[Hook], list[Hook]]:
    """The hooks of towers beside one another, which are called past the model for the features of one input alone."""
    inputs, own = r.input_hooks, r.sites.main[0] if r.sites.main else None
    before, behind = [], []
    for stack in r.sites.stacks:
        tower = inputs.towers[stack.name]
        if stack is own and tower is not model and tower is not base:
            before.append(Hook(tower, inputs.enter_alone, before=True, named=True))
            behind.append(Hook(tower, inputs.leave_alone, always=True))
        elif stack is not own and pictured(tower) and tower is not model:
            before.append(Hook(tower, inputs.enter_pictures, before=True, named=True))
            behind.append(Hook(tower, inputs.leave_alone, always=True))
    return before, behind


def _hang_forwards(model: nn.Module, r: Registry, reads_model: bool) -> None:
    """A ``forward`` that runs the hooks, for each module that has some of the model's own (see `forward`)."""
    wanted: dict[str, nn.Module] = {}
    own = [h.function for h in r.hooks if h.function not in (r.switch.begin, r.switch.end)]
    if own or reads_model:
        wanted[INSIDE] = model
    if r.input_hooks.enter in own:
        for name, module in {
            "base": base_of(model),
            **{s.module: model.get_submodule(s.module) for s in r.sites.stacks},
            **{r.sites.tower(s): r.input_hooks.towers[s.name] for s in r.sites.stacks},
        }.items():
            if all(module is not other for other in wanted.values()):
                wanted[f"{INSIDE}:{name}"] = module
    for key in [k for k in r.forwards if k not in wanted]:
        r.forwards[key].take()
        del r.forwards[key]
    for key, module in wanted.items():
        if key not in r.forwards:
            r.forwards[key] = HookedForward(module, r.switch, key)
        r.forwards[key].put()


def _hang_within(model: nn.Module, r: Registry) -> None:
    """A ``forward`` for each module with edits at the heads of an attention that it computes itself."""
    wanted = {e.site.view.module for a in r.staying.values() for e in a.plan.edits if e.site.attends}
    for path in [p for p in r.within if p not in wanted]:
        r.within[path].take()
        del r.within[path]
    for path in wanted:
        if path not in r.within:
            r.within[path] = Within(model.get_submodule(path))
        r.within[path].put()


def rehang(model: nn.Module, r: Registry) -> None:
    """Brings the model's own hooks up to date with what is attached, and with a base that changed."""
    hang_root(model, r)
    hang_savers(model, r)
    _keep_pads(model, r)
    _forget_compiled()


def _keep_pads(model: nn.Module, r: Registry) -> None:
    """Lets torch's encoders compute with pads while there are adapters. Without pads (nested tensors) their layers can be
    called in the fast path only, which torch leaves where a module has hooks."""
    for path, module in base_modules(model) if r.staying else ():
        if isinstance(module, nn.TransformerEncoder) and getattr(module, "use_nested_tensor", False):
            r.nested[path] = True
            module.use_nested_tensor = False
    for path in [] if r.staying else list(r.nested):
        model.get_submodule(path).use_nested_tensor = True  # type: ignore[assignment]
        del r.nested[path]


def _forget_compiled() -> None:
    """Code that torch.compile made before knows nothing of the new hooks: it is made anew."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
