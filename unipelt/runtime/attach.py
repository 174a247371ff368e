"""Puts a plan into a model, whole or not at all, and takes it out without a trace (`acting`: which adapters act).

What stays in the model is recorded in `registry`; the modules and hooks themselves are hung by `hanging`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..anatomy.base import NAME, base_parameters
from ..anatomy.brought import device_of
from ..anatomy.interrupts import finish
from ..anatomy.packed import apart
from ..anatomy.quantised import is_quantised
from ..compiler.initialise import draw
from ..compiler.labels import Labels
from ..compiler.lower import lowerings
from ..compiler.plan import Plan, PlannedEdit
from ..compiler.random import Generated
from ..language.report.diagnostics import error
from ..language.ir import Method
from .acting import activate, receive
from .calibration import BATCHES, Batches, Loss
from .hanging import hang_adapter, refuse_namesake, take_down
from .members import Resolved, resolved
from .offload import value_of
from .prompts.hooks import InputHooks
from .registry import Attached, Registry, record, refuse_in_use, refuse_merged, registry, unwrapped
from .sharding import is_sharded
from .starts import LabelWords, StartData, Starts, Tokenizer, at_least, selecting_texts
from .switch import ADAPTER_NAME, Switch, without

# ---------------------------------------------------------------- apply


def apply(
    model: nn.Module, method: Method, name: str = "default", seed: int = 0, *, head: bool | None = None,
    tokenizer: Tokenizer | None = None, label_words: LabelWords | None = None, dtype: torch.dtype | None = None,
    allow_future: bool = False, lowering: bool | Sequence[str] = True, trainable: bool = True,
    labels: int | Sequence[str] | Labels | None = None, problem_type: str | None = None, example: Mapping[str, Any] | None = None,
    data: Iterable[Mapping[str, Any]] | None = None, batches: int = BATCHES, loss: Loss | None = None,
) -> Plan:  # fmt: skip
    """Attaches a method under a name, freezes the base and activates the adapter. Returns the plan it carried out.

    The same seed gives the same tensors, whatever the order of sites, the device or the other adapters. If anything
    fails, the model is as it was. ``head``, ``labels``, ``problem_type`` and ``example`` are as in `unipelt.plan`: with labels of its
    own the adapter has a head with as many columns, and a batch's ``labels`` mean those; ``tokenizer`` serves starts from a
    text, and ``label_words`` (by default the names of the labels) those from the words of the class labels;
    ``lowering=False`` evaluates every line as written, names of `compiler.lower.LOWERINGS` choose some. Raises `PeltError`.

    ``data`` are dictionaries of the model's arguments, for starts that data decide (`Plan.needs` says so): ``batches`` of them are
    read, one at a time, by the base alone, in evaluation mode. Starts from gradients need labels in them, or ``loss``, a function
    of what the model returns and the batch.

    ``dtype`` is that of the adapter's tensors and trained copies. By default they have the base's own, but float32 on a base in
    half precision: bfloat16 has 8 bits, so that an optimiser's step of less than some 0.4 % of a weight is rounded away
    and nothing is learned in silence, and float16 gradients underflow. (`peft` casts its adapters for the same reason.) Edits
    are computed in the adapter's dtype and handed on in the base's; a trained copy is used in the base's. ``dtype=torch.bfloat16``
    saves memory and time where nothing is trained. A copy never has fewer bits than what it is a copy of.
    """
    model = unwrapped(model)
    return install(model, resolved(model, method), name, seed, lambda plan: None, head=head, tokenizer=tokenizer, label_words=label_words, dtype=dtype,
                   allow_future=allow_future, lowering=lowering, trainable=trainable, labels=labels, problem_type=problem_type, example=example,
                   batches=Batches(data, batches, loss))  # fmt: skip


def install(
    model: nn.Module, found: Resolved, name: str, seed: int, check: Callable[[Plan], None], *, head: bool | None, allow_future: bool,
    labels: int | Sequence[str] | Labels | None, trainable: bool, tokenizer: Tokenizer | None = None, label_words: LabelWords | None = None,
    dtype: torch.dtype | None = None, lowering: bool | Sequence[str] = True, problem_type: str | None = None,
    example: Mapping[str, Any] | None = None, batches: Batches | None = None,
) -> Plan:  # fmt: skip
    """`apply` of a method whose members are ``found``, with a last word on the plan: where ``check`` raises, nothing has been made yet, however large the tensors would be.

    Without ``batches`` values will follow: all is made as zeros.
    """
    refuse_new(model, name, dtype)
    chosen = lowerings(lowering)
    planned = found.planned(
        model, head=head, allow_future=allow_future, labels=labels, problem_type=problem_type, example=example
    )
    check(planned)
    with apart(model):
        of = StartData(tokenizer)
        if batches is not None:
            of = StartData.of(model, planned, tokenizer, label_words, batches, int(seed))
            of = replace(of, given=found.given(model, planned))
        data = of if batches is not None else None
        attached = Attached(planned, int(seed), chosen, trainable, texts=selecting_texts(model, planned, of))
        made = create(model, attached, data, dtype)
        hang(model, name, attached, made)
    return planned


def refuse_name(model: nn.Module, name: str) -> None:
    """An error for a name that an adapter cannot have, or that one of this model has."""
    if not isinstance(name, str) or not ADAPTER_NAME.fullmatch(name):
        raise error("E0552", f"{name!r} is no adapter's name", help="letters, digits, `_` and `-`")
    r = registry(model)
    if r is not None and name in r.attached and r.attached[name].stacked is None:
        record(model, name)
    if r is not None and (name in r.attached or r.banked(name)):
        raise error(
            "E0553", f"the model has an adapter named `{name}` already", help="unipelt.remove it, or choose another"
        )


def refuse_new(model: nn.Module, name: str, dtype: torch.dtype | None) -> None:
    """An error where no adapter of this name, with tensors of this type, can be hung into the model now."""
    refuse_name(model, name)
    if dtype is not None and (not dtype.is_floating_point or dtype.itemsize < 2):
        raise error(
            "E0593",
            f"the argument `dtype` is a floating dtype of 16 bits or more, not {dtype}",
            help="torch.float32, or leave it out",
        )
    r = registry(model)
    if r is not None:
        refuse_merged(r)
    if is_sharded(model):
        raise error("E0556", "the model is sharded already, and gradients of what is added now would not be reduced",
                    help="apply the method first, then shard (fully_shard)")  # fmt: skip


def create(
    model: nn.Module, attached: Attached, data: StartData | None, dtype: torch.dtype | None
) -> dict[str, torch.Tensor]:
    """The adapter's tensors and trained copies by name: parameters, and frozen draws as plain tensors."""
    starts = Starts(model, attached.plan, attached.seed, data)
    planned = attached.plan
    made: dict[str, torch.Tensor] = {}
    owner: dict[str, PlannedEdit] = {}
    for e in planned.edits:
        for n in e.tensors.values():
            owner.setdefault(n, e)
    for n, t in planned.tensors.items():
        like, device = _like(model, owner[n])
        target = dtype or at_least(like.dtype, torch.float32)
        target = torch.int64 if t.below is not None else target
        if device.type == "meta":
            value = torch.empty(t.shape, dtype=target, device="meta")
        else:
            value = starts.of(t, owner[n]).to(device, target)
        made[n] = value if t.frozen else nn.Parameter(value, requires_grad=attached.trainable)
    for c in planned.copies:
        path, _, attribute = c.parameter.path.rpartition(".")
        source = value_of(model.get_submodule(path), attribute).detach()
        if is_quantised(source):
            raise error("E0566", f"`{c.parameter.path}` is quantised, and codes are not trained",
                        help="load the base without quantisation, or choose a method that trains tensors of its own")  # fmt: skip
        target = at_least(source.dtype, dtype or torch.float32)
        if c.start is None:
            value = source.to(target, copy=True)
        elif source.device.type == "meta":
            value = source.new_empty(c.parameter.shape, dtype=target)
        else:
            value = draw(c.start, (), c.parameter.shape, Generated(attached.seed, c.name)).to(source.device, target)
        made[c.name] = nn.Parameter(value, requires_grad=attached.trainable)
    return made


def _like(model: nn.Module, e: PlannedEdit) -> tuple[torch.Tensor, torch.device]:
    """A floating parameter at the edit's place, for its dtype, and the device on which that place runs."""
    places = [model.get_submodule(p) for p in (e.site.view.module, e.site.x) if p is not None] + [model]
    like = next(p for m in places for _, p in base_parameters(m) if p.is_floating_point())
    return like, device_of(like.device, *places)


def hang(model: nn.Module, name: str, attached: Attached, made: dict[str, torch.Tensor], act: bool = True) -> None:
    """Hangs the adapter into the model, active alone if it is to ``act``; on any failure takes it out again."""
    before = registry(model)
    if before is None:
        refuse_namesake(model)
        required = {n: p.requires_grad for n, p in base_parameters(model)}
        switch, sites = Switch(), attached.plan.sites
        r = Registry(switch, sites, required, InputHooks(switch, sites))
    else:
        r = before
    with apart(model), unchanged(model, r):
        r.attached[name] = attached
        if before is None:
            for p in model.parameters():
                p.requires_grad_(False)
            model.add_module(NAME, r.train(model.training))
        hang_adapter(model, r, name, attached, made)
        if act:
            activate(model, name)


@contextmanager
def unchanged(model: nn.Module, new: Registry | None = None) -> Iterator[None]:
    """If anything fails within the block, the adapters that came in it are taken out, and what acts and is trained is as before.

    ``new`` is the record of a model that gets its first adapter in the block.
    """
    before = registry(model)
    r = new if before is None else before
    there, was = list(r.attached) if r is not None else [], r.switch.active if r is not None else ()
    receiving = r.receiving if r is not None else frozenset()

    def back() -> None:
        now = r or registry(model)
        if now is not None:
            for name in [n for n in now.attached if n not in there]:
                take_out(model, now, name)
            receive(now, receiving)
            now.switch.active = was

    try:
        yield
    except BaseException:
        finish(back)
        raise


# ---------------------------------------------------------------- remove


def remove(model: nn.Module, name: str = "default") -> None:
    """Takes an adapter out. With the last one every hook, name and flag of the model is as before.

    An interruption (Ctrl-C) does not keep it from the end; where a second one does, calling it again finishes it. Raises
    `PeltError`: for a name that is not there (E0551), for an adapter that is merged (E0554) or that acts in a `using` block around
    the call (E0592).
    """
    model = unwrapped(model)
    r = registry(model)
    if r is None or name not in r.attached or not r.attached[name].leaving:
        record(model, name)
    assert r is not None
    refuse_in_use(r, name)
    refuse_merged(r, name)
    finish(lambda: take_out(model, r, name))


def take_out(model: nn.Module, r: Registry, name: str) -> None:
    """Takes an adapter out, as far as it is in; may be repeated until the registry has it no more, which is the last step."""
    attached = r.attached.get(name)
    if attached is None:
        return
    with apart(model):
        attached.leaving = True
        r.switch.active = without(r.switch.active, name)
        r.receiving -= {name}
        take_down(model, r, name, attached)
        if not r.staying:
            for n, p in base_parameters(model):
                p.requires_grad_(r.required.get(n, True))
            model._modules.pop(NAME, None)
        del r.attached[name]
