"""The weights of experts that a module has in its own parameters, one matrix for each expert: which of them are gate, up and down,
and how they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..language.sites import PARAMETERS
from .calls import times
from .columns import Columns
from .flow import Block
from .hosts import Hosts
from .record import LEFT, SAME, Key, Recording, Step
from .sites import Site, View
from .sublayers import BENDS, Sublayer, product

#: Operations that keep numbers within bounds: what only passes these is no gate beside what bends otherwise.
_BOUNDS = frozenset("clamp clamp_min clamp_max".split())


@dataclass(frozen=True, slots=True)
class Matrices:
    """Some columns (None: all) of the matrices in a parameter: its path, how many they are, and the sizes of all of each.
    ``turned``: each is stored as [d_out, d_in]."""

    path: str
    number: int
    d_in: int
    d_out: int
    turned: bool
    columns: tuple[int, ...] | None = None

    @property
    def width(self) -> int:
        return self.d_out if self.columns is None else len(self.columns)


class _Untold(Exception):
    """Why nothing can be said of the experts' weights."""


def matrices(b: Block, s: Sublayer) -> tuple[dict[str, Matrices], str]:
    """The experts' weights of a feed-forward layer by the last words of their sites' names, and why there are none of some."""
    try:
        down = _one(b, s, s.added.h, "the sum of the experts")
        read = _read(b, down)
        found = {"down": _stored(b.r, down)}
        inner = _inner(b, s, read)
    except _Untold as e:
        return {}, str(e)
    if any(m.width != found["down"].d_in for m in inner.values()):
        made = " and ".join(str(m.width) for m in inner.values())
        return {}, f"`{found['down'].path}` reads {found['down'].d_in} numbers, and what is made before it has {made}"
    return {**inner, **found}, ""


def of_experts(
    b: Block, hosts: Hosts, s: Sublayer, sizes: dict[str, int], common: dict[str, Any], reasons: dict[str, str]
) -> list[Site]:
    """The sites that are the weights of a layer's experts; ``reasons`` gets why there are none of some."""
    made = []
    found, why = matrices(b, s)
    for name, kind in PARAMETERS.items():
        if kind.sublayer != s.kind or not kind.own_axes:
            continue
        m = found.get(name.split(".")[-2])
        if m is None:
            if not kind.gated or why:
                reasons[name] = why
            continue
        module, _, parameter = m.path.rpartition(".")
        if hosts.times[module] != hosts.once:
            n = hosts.times[module] / hosts.once
            called = (
                f"is called {times(n)} in a layer" if n else f"is never called: another module reads its `{parameter}`"
            )
            reasons[name] = f"`{module}` {called}"
            continue
        own = {"d_experts": m.number, **dict(zip(map(str, kind.h.sizes), (m.d_in, m.width)))}
        columns = None if m.columns is None else Columns.of_indices(m.columns)
        view = View(module, columns, parameter=parameter, turned=m.turned)
        made.append(Site(name, view, {**sizes, "d_x": m.d_in, **own}, **common))
    return made


def _one(b: Block, s: Sublayer, key: Key, what: str) -> Step:
    """The first of the products with an expert's matrix behind a value; they must all be with one parameter."""
    behind = [t for t in b.nearest(key, s.stop) if t.at in s.experts]
    paths = list(dict.fromkeys(t.weight for t in behind if t.op != "projection"))
    if not behind:
        raise _Untold(f"no parameter with a matrix for each expert stands before {what}")
    if not paths:
        raise _Untold(
            f'linear maps of their own stand before {what}, as `{behind[0].weight}`, which `module("…")` names'
        )
    if len(paths) > 1 or any(t.op == "projection" for t in behind):
        raise _Untold(f"several parameters stand before {what}: " + ", ".join(f"`{t}`" for t in paths))
    return behind[0]


def _operands(r: Recording, step: Step) -> tuple[Key, int]:
    """The operand that is the weight, and its place among the tensors."""
    at = max(i for i, k in enumerate(step.ins) if k in r.parameters and len(r.shapes[k]) > 1)
    return step.ins[at], at


def _on_the_left(r: Recording, step: Step) -> bool:
    return _operands(r, step)[1] == LEFT.get(step.op, -1)


def _read(b: Block, step: Step) -> Key:
    """What a product multiplies by the weight."""
    given = [k for k in b.given(step) if k in b.r.floating]
    if not given:
        raise _Untold(f"what `{step.weight}` multiplies cannot be told")
    return given[-1] if step.op in ("addmm", "baddbmm") else given[0]


def _yields(b: Block, step: Step) -> Step:
    """The product as a step that yields rows: where the weight stands on the left, what it yields is one column for each row."""
    if not _on_the_left(b.r, step):
        return step
    made = next((t for t in b.steps if t.op == "squeeze" and t.ins[:1] == step.outs[:1]), None)
    if made is None:
        raise _Untold(f"where what `{step.weight}` yields lies cannot be told")
    return replace(step, outs=made.outs, at=made.at)


def _stored(r: Recording, step: Step) -> Matrices:
    """How the matrices of a product's weight lie in their parameter."""
    key, _ = _operands(r, step)
    turned = step.op == "linear" or _on_the_left(r, step)
    while (made := r.made_by.get(key)) is not None and made.ins:
        before, after = r.shapes[made.ins[0]], r.shapes[key]
        swapped = _swaps(made, len(before))
        if swapped is None or len(before) < 2 or (before[-2:] != (after[-2:][::-1] if swapped else after[-2:])):
            raise _Untold(f"how `{step.weight}` lies cannot be told: `{made.op}` is done to it")
        turned ^= swapped
        key = made.ins[0]
    shape = r.shapes[key]
    if len(shape) != 3:
        raise _Untold(f"`{step.weight}` has the sizes {list(shape)}, and not one matrix for each expert")
    d_in, d_out = shape[:0:-1] if turned else shape[1:]
    return Matrices(step.weight, shape[0], d_in, d_out, turned)


def _swaps(made: Step, dimensions: int) -> bool | None:
    """Whether an operation swaps the last two of so many dimensions; None where it does something else with them."""
    if made.op == "t":
        return True
    last = [dimensions - 2, dimensions - 1]
    if made.op == "transpose":
        a, c = sorted(n % dimensions for n in made.args[1:3])
        return True if [a, c] == last else None if c in last else False
    if made.op == "permute":
        order = [n % dimensions for n in made.args[1]]
        return False if order[-2:] == last else True if order[-2:] == last[::-1] else None
    return (
        False
        if made.op in SAME | {"select", "index", "unsqueeze", "squeeze", "slice", "unbind", "split", "expand"}
        else None
    )


def _inner(b: Block, s: Sublayer, hidden: Key) -> dict[str, Matrices]:
    """What makes the inner activation: one product, or those behind the two factors of another, of which one bends before it."""
    made = product(b, hidden)
    factors = b.given(made)[-2:] if made is not None else []
    behind = [[t for t in b.nearest(f, s.stop) if t.at in s.experts] for f in factors]
    if not behind or not all(behind):
        return {"up": _stored(b.r, _one(b, s, hidden, "what enters the last of them"))}
    steps = [_one(b, s, f, "a factor of what enters the last of them") for f in factors]
    gate = _gate([_bent(b, f, s.stop) for f in factors])
    if gate is None:
        if steps[0].at == steps[1].at:  # an activation may be a product of what it is given
            return {"up": _stored(b.r, steps[0])}
        raise _Untold("which of the two factors of what enters the last of them is the gate cannot be told")
    found = {}
    for name, i in (("up", 1 - gate), ("gate", gate)):
        whole, rows = _stored(b.r, steps[i]), _yields(b, steps[i])
        columns = b.columns(rows, factors[i], s.stop)
        if not columns:
            raise _Untold(f"which columns of `{whole.path}` are those of its {name} cannot be told")
        found[name] = replace(whole, columns=None if len(columns) == whole.d_out else tuple(columns))
    up, gate_ = found["up"], found["gate"]
    if up.path == gate_.path and set(up.columns or range(up.d_out)) & set(gate_.columns or range(up.d_out)):
        return {"up": replace(up, columns=None)}
    return found


def _bent(b: Block, key: Key, stop: Sequence[Key]) -> frozenset[str]:
    """The operations that bend between the last product and a value."""
    return frozenset(b.r.steps[i].op for i in b.walk(key, stop, past=False)) & BENDS


def _gate(bent: Sequence[frozenset[str]]) -> int | None:
    """Which of two factors is the gate: the one that bends, or that does more than stay within bounds; None where both do as much."""
    for found in ([bool(o) for o in bent], [bool(o - _BOUNDS) for o in bent]):
        if found[0] != found[1]:
            return found.index(True)
    return None
