"""Methods that read trained adapters, made ready for a model: two members are attached to it, with tensors moved at random."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import small
from names import name
from torch import nn

import unipelt
from unipelt.language.check.methods import sites_of
from unipelt.language.members import asks

#: Members by what they are called; of those that have the method's sites the first serves.
MEMBERS = ("pfeiffer", "lora")
NAMES = ("first", "second", "third")


def member_for(method: unipelt.Method) -> unipelt.Method:
    """A small method with rows at all sites of another one."""
    wanted = {str(p) for r in method.rows for p in sites_of(r.sites, method.params)}
    found = [unipelt.load(name(n))(r=4) for n in MEMBERS]
    return next(m for m in found if wanted <= {str(p) for r in m.rows for p in sites_of(r.sites, m.params)})


@contextmanager
def among_members(model: nn.Module, method: unipelt.Method) -> Iterator[unipelt.Method]:
    """The method with members of the model, which are taken off again behind the block: what read them has its copies."""
    before, acting = set(unipelt.adapters(model)), unipelt.active(model)
    try:
        yield with_members(model, method)
    finally:
        acting = [*acting, *(n for n in unipelt.active(model) if n not in acting)]
        members = [n for n in NAMES if n in unipelt.adapters(model) and n not in before]
        if members:
            for n in members:
                unipelt.remove(model, n)
            unipelt.activate(model, *acting)


def with_members(model: nn.Module, method: unipelt.Method, count: int = 2) -> unipelt.Method:
    """The method with members of the model in its arguments that are adapters; itself where it has none."""
    wanted = [of for of in asks(method) if method.arguments.get(of) is None]
    if not wanted:
        return method
    names = NAMES[:count]
    for seed, own in enumerate(names, 10):
        unipelt.apply(model, member_for(method), name=own, head=False)
        if next(model.parameters()).device.type != "meta":
            small.randomise(model, own, seed=seed)
    unipelt.activate(model)
    return method(**dict.fromkeys(wanted, list(names)))
