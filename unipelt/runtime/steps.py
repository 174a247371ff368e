"""What a training tells adapters between their passes: how far it has come, and that a step was taken; and what it asks them for:
the penalties of a pass. In a loop of one's own these are called by hand; `unipelt.training.Words` calls them for any Trainer of
transformers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ..compiler.evaluator import Context, evaluate
from ..compiler.named import Named
from ..compiler.plan import PlannedEdit
from ..compiler.words.stepping import largest_of
from ..language.report.diagnostics import error
from ..language.syntax.nodes import Apply, Expr, Later, Let, Name, children, rewrite
from .edits import Edit
from .registry import Attached, Registry, registry, unwrapped
from .seam import edit_at
from .sharding import is_part, put, settle, whole


def of_training(model: nn.Module) -> Registry:
    """The record of a model that has adapters."""
    found = registry(unwrapped(model))
    if found is None:
        raise error("E0550", "this model has no adapter", help="attach one: unipelt.apply(model, method, name=…)")
    return found


def progress(model: nn.Module, value: float) -> None:
    """Says how far training has come, from 0 to 1: what ``progress`` is in the passes that follow. Outside training it is 1.

    In a loop of one's own: ``unipelt.progress(model, step / steps)`` before each step. It begins at 0.
    """
    r = of_training(model)
    if not 0 <= float(value) <= 1:
        raise error("E0770", f"progress goes from 0 to 1, and this is {float(value):g}", help="give step / steps")
    with torch.no_grad():
        r.switch.progress.fill_(float(value))


def penalties(model: nn.Module) -> torch.Tensor:
    """The sum of the penalties of the model's last pass in this thread, with its gradient; 0 outside training.

    A model that is given ``labels`` has them in its loss already: add them to a loss of your own, which you make of logits.
    """
    noted = of_training(model).switch.holder.current.penalties
    return torch.zeros(()) if noted is None else noted.total()


def after_step(model: nn.Module) -> None:
    """Carries out the ``after step`` lines of the adapters that are trained and act, in the order in which they act.

    In a loop of one's own: behind ``optimizer.step()`` and before ``optimizer.zero_grad()``, since lines may read gradients.
    Where the model is sharded (FSDP2), every process of the group calls this together: each line sees whole tensors.
    """
    model = unwrapped(model)
    settle(model)
    r = of_training(model)
    for name in r.switch.chosen:
        attached = r.staying.get(name)
        if attached is not None and attached.trainable:
            _after_step(model, r, name, attached)


def _after_step(model: nn.Module, r: Registry, name: str, attached: Attached) -> None:
    for row in attached.method.rows:
        lines = [line for s in row.form if isinstance(s, Later) and s.word == "after step" for line in s.body]
        if not lines:
            continue
        planned = [e for e in attached.plan.edits if e.row.name == row.name]
        places = [_place(edit_at(model, name, e), e, attached, r) for e in planned]
        with torch.no_grad():
            own = {t.name for t in planned[0].typing.tensors}
            for line in lines:
                _carry_out(line, places, own)
            _put_back(places, planned, attached, own & {line.names[0] for line in lines})


def _place(edit: Edit, planned: PlannedEdit, attached: Attached, r: Registry) -> Context:
    """What the lines read at one place: its tensors, which share their memory with those that are trained unless these are sharded,
    and their gradients."""
    names: dict[str, Any] = {**edit.constants, "progress": Named(r.switch.progress)}
    gradients = {}
    for label, name in planned.tensors.items():
        module, key = attached.registered[name]
        kept = getattr(module, key)
        t = whole(kept.detach()).reshape(attached.plan.tensors[name].shape)
        names[label] = Named(t, edit.axes[label])
        if kept.grad is not None:
            gradients[id(t)] = whole(kept.grad).reshape(t.shape)
    return Context(names, edit.sizes, training=True, axes=edit.lengths, gradients=gradients)


def _put_back(
    places: Sequence[Context], planned: Sequence[PlannedEdit], attached: Attached, changed: Collection[str]
) -> None:
    """Of tensors that are sharded, lines have changed whole copies: each process takes its part."""
    for c, e in zip(places, planned):
        for label in changed:
            module, key = attached.registered[e.tensors[label]]
            kept, new = getattr(module, key), c.names[label]
            if is_part(kept):
                assert isinstance(new, Named)
                put(kept, new.data.reshape(kept.shape))


def _carry_out(line: Let, places: Sequence[Context], tensors: Collection[str]) -> None:
    """A line at all places at once: what is among the largest of the model is known when all of it is."""
    value, name = _apart(line.value, places), line.names[0]
    for c in places:
        new, before = evaluate(value, c), c.names.get(name)
        if name in tensors:
            assert isinstance(before, Named)
            before.data.copy_(new.data) if isinstance(new, Named) else before.data.fill_(float(new))  # type: ignore[arg-type]
        else:
            c.names[name] = new


def _apart(e: Expr, places: Sequence[Context]) -> Expr:
    """The expression with what `among` gives under names of its own, which are bound at each place; the inner ones first."""
    for n, call in enumerate(_calls(e)):
        inner = _apart(call.args[0].value, places)
        values = [evaluate(inner, c) for c in places]
        most: Any = evaluate(call.args[1].value, places[0])
        kept = largest_of(values, float(most.data if isinstance(most, Named) else most))  # type: ignore[arg-type]
        key = f":among {call.span.start} {n}"
        for c, mask in zip(places, kept):
            c.names[key] = mask
        e = rewrite(e, partial(_in_place, call, Name(key)))
    return e


def _in_place(call: Apply, name: Name, e: Any) -> Any:
    """The name where the call stands, anything else as it is."""
    return name if e == call else e


def _calls(e: Any) -> list[Apply]:
    """The outermost calls of `among`."""
    if isinstance(e, Apply) and e.function == Name("among"):
        return [e]
    return [c for child in children(e) for c in _calls(child)]
