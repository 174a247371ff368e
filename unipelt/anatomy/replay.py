"""A block is run again with what entered it, once for each nudge: what of it moves tells what its modules are to each other.

All nudges are rows of one batch, so that one pass serves them. Where a block's input cannot be repeated as a batch (tokens
of several examples in one dimension, tokens before the batch), it is run once for each nudge.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from .columns import Columns, joined, taken
from .comparing import rms, same
from .interrupts import ended_by
from .products import Products
from .received import received
from .sites import View

#: How far a number is pushed, in multiples of what such numbers are (1 at least): far enough that no softmax, no activation
#: and no norm looks like a linear map.
_FAR = 4.0


@dataclass(frozen=True, slots=True)
class Nudge:
    """A change of what leaves a module, or of what ``enters`` it: ``times`` one and the same direction; 0 puts it back to what it
    is without any nudge. ``row``: of that token only (batch and tokens counted in one), of all where it is None, and with
    ``later`` of all tokens behind it instead. ``size``: how large the numbers of a step are at least, otherwise some multiple of what stands there."""

    module: str
    columns: Columns | None = None
    enters: bool = False
    times: float = 1.0
    row: int | None = None
    later: bool = False
    size: float = 0.0

    def on(self, t: torch.Tensor, plain: torch.Tensor) -> torch.Tensor:
        """``t`` with the nudge; ``plain`` is what stands there without any."""
        if self.times == 0.0:
            return self._put(t, taken(plain, self.columns))
        mine = taken(plain, self.columns)
        g = torch.Generator().manual_seed(7)
        size = max(_FAR * rms(mine), _FAR, self.size) * self.times
        signs = torch.randint(0, 2, mine.shape, generator=g) * 2 - 1
        step = (torch.rand(mine.shape, generator=g) + 0.5) * signs * size
        if self.row is not None:
            rows = step.reshape(-1, step.shape[-1])
            only = torch.zeros_like(rows)
            at = slice(self.row + 1, None) if self.later else self.row
            only[at] = rows[at]
            step = only.reshape(step.shape)
        return self._put(t, taken(t, self.columns) + step.to(t.device, t.dtype))

    def _put(self, t: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return new if self.columns is None else joined(t, {self.columns: new})


Nudges = tuple[Nudge, ...]


def at_module(view: View) -> Nudge:
    """A nudge of what leaves a site's module, at its columns."""
    return Nudge(view.module, view.columns)


def first_column(view: View) -> Nudges:
    """A nudge of the first of a projection's numbers."""
    start = view.columns.ranges[0][0] if view.columns is not None else 0
    return (Nudge(view.module, Columns.span(start, start + 1)),)


def nudged(at: Nudge, times: float, row: int | None = None) -> Nudges:
    """That nudge alone, so many times as far, and of one row only where one is given."""
    return (Nudge(at.module, at.columns, at.enters, times, row),)


@dataclass(slots=True)
class Seen:
    """What a run of a block showed, of each module at its first call; what entered at later calls; and what its attention
    functions received, in order."""

    entered: dict[str, torch.Tensor] = field(default_factory=dict)
    left: dict[str, torch.Tensor] = field(default_factory=dict)
    again: list[tuple[str, torch.Tensor]] = field(default_factory=list)
    attention: list[tuple[Any, tuple[torch.Tensor, ...]]] = field(default_factory=list)
    heads: dict[int, torch.Tensor] = field(
        default_factory=dict
    )  # by the number of the call, past transformers' interface
    #: By the path of a parameter with several matrices: a row that entered the first product with one, and what came of it.
    products: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


class CannotBeRepeated(Exception):
    """What enters a block is no batch of one."""


def replay(
    block: nn.Module, at: str, args: tuple, kwargs: Mapping[str, Any], modules: Mapping[str, nn.Module], nudges: Sequence[Nudges],
    left: torch.Tensor | None, parameters: Mapping[str, torch.Tensor],
) -> dict[Nudges, Seen]:  # fmt: skip
    """What is seen in a block with each of the nudges, and with none (``()``). ``at`` is the block's path, ``modules`` are those
    that are looked at or nudged, by path, ``left`` what the block yielded. Of ``parameters`` with several matrices the products are
    looked at and nudged as modules are; their rows are those of no batch, so each of these nudges has a run of its own."""
    apart = [n for n in nudges if any(nudge.module in parameters for nudge in n)]
    found = _of_modules(block, at, args, kwargs, modules, [n for n in nudges if n not in apart], left)
    if parameters:
        plain = _run(block, args, kwargs, modules, [()], Seen(), parameters)
        found |= {n: _run(block, args, kwargs, modules, [n], plain, parameters) for n in apart}
        found[()].products = plain.products
        for kind in ("entered", "left"):
            getattr(found[()], kind).update({p: t for p, t in getattr(plain, kind).items() if p in parameters})
    return found


def _of_modules(
    block: nn.Module, at: str, args: tuple, kwargs: Mapping[str, Any], modules: Mapping[str, nn.Module], nudges: Sequence[Nudges],
    left: torch.Tensor | None,
) -> dict[Nudges, Seen]:  # fmt: skip
    every: list[Nudges] = [(), *nudges]
    with contextlib.suppress(Exception):  # whatever a block raises that is no friend of batches
        found = _together(block, at, args, kwargs, modules, every)
        if same(found[()].left.get(at), left):
            return found
    plain = _run(block, args, kwargs, modules, [()], Seen())
    return {(): plain, **{n: _run(block, args, kwargs, modules, [n], plain) for n in nudges}}


def _together(
    block: nn.Module, at: str, args: tuple, kwargs: Mapping[str, Any], modules: Mapping[str, nn.Module], every: Sequence[Nudges]
) -> dict[Nudges, Seen]:  # fmt: skip
    stream = first([*args, kwargs.get("hidden_states"), *kwargs.values()])
    if stream is None or stream.dim() < 2 or stream.shape[0] != 1:
        raise CannotBeRepeated(at)
    n = _rows(len(every), stream.numel())
    every = [*every, *[()] * (n - len(every))]

    def repeated(t: torch.Tensor) -> torch.Tensor:
        return t.repeat(n, *[1] * (t.dim() - 1)) if t.dim() > 1 and t.shape[0] == 1 else t

    args, kwargs = with_tensors((args, dict(kwargs)), repeated)
    all_ = _run(block, args, kwargs, modules, every, None)
    rows = [Seen() for _ in every]
    for kind in ("entered", "left"):
        for path, t in getattr(all_, kind).items():
            for row, part in zip(rows, _parts(t, n)):
                getattr(row, kind)[path] = part
    for path, t in all_.again:
        for row, part in zip(rows, _parts(t, n)):
            row.again.append((path, part))
    for module, operands in all_.attention:
        for row, parts in zip(rows, zip(*(_parts(t, n) for t in operands))):
            row.attention.append((module, parts))
    for i, t in all_.heads.items():
        for row, part in zip(rows, _parts(t, n)):
            row.heads[i] = part
    return {nudges: row for nudges, row in zip(reversed(every), reversed(rows))}  # of equal ones the first


def _rows(least: int, numbers: int) -> int:
    """A prime number of rows that divides no size of one example: a dimension that it divides is that of the batch."""
    return next(n for n in count(least) if numbers % n and all(n % i for i in range(2, n)))


def _parts(t: torch.Tensor, n: int) -> tuple[torch.Tensor, ...]:
    if t.dim() == 0 or t.shape[0] % n:
        raise CannotBeRepeated
    return t.chunk(n, 0)


def _run(
    block: nn.Module, args: tuple, kwargs: Mapping[str, Any], modules: Mapping[str, nn.Module], every: Sequence[Nudges], plain: Seen | None,
    parameters: Mapping[str, torch.Tensor] = MappingProxyType({}),
) -> Seen:  # fmt: skip
    """One call of the block; without ``plain`` the nudges are the parts of a batch, and the first of them is none."""
    seen = Seen()

    def moved(path: str, t: torch.Tensor, enters: bool) -> torch.Tensor:
        mine = [[n for n in nudges if n.module == path and n.enters == enters] for nudges in every]
        if any(mine):
            parts = list(_parts(t, len(every)))
            known = (plain.entered if enters else plain.left).get(path) if plain is not None else parts[0]
            for i, nudges in enumerate(mine):
                for n in nudges:
                    if known is not None and known.shape == parts[i].shape:
                        parts[i] = n.on(parts[i], known)
            t = torch.cat(parts)
        kept = seen.entered if enters else seen.left
        if path not in kept:
            kept[path] = t.detach().clone()
        elif enters:
            seen.again.append((path, t.detach().clone()))
        return t

    running: list[nn.Module] = []

    def saw(module: Any, operands: tuple[torch.Tensor, ...], out: torch.Tensor | None) -> None:
        if out is not None:
            seen.heads[len(seen.attention)] = out.detach().clone()
        module = running[-1] if module is None and running else module
        seen.attention.append((module, tuple(t.detach().clone() for t in operands)))

    handles: list[Any] = []
    with ended_by(lambda: [handle.remove() for handle in handles]):
        for path, module in modules.items():

            def enter(
                called: nn.Module, args: tuple, kwargs: dict[str, Any], path: str = path
            ) -> tuple[tuple, dict] | None:
                running.append(called)
                found = first([*args, kwargs.get("hidden_states"), *kwargs.values()])
                if found is None:
                    return None
                new = moved(path, found, True)
                return tuple(new if a is found else a for a in args), {
                    k: new if a is found else a for k, a in kwargs.items()
                }

            def leave(_: nn.Module, args: tuple, output: Any, path: str = path) -> Any:
                running.pop()
                found = first(output if isinstance(output, (tuple, list)) else [output])
                if found is None:
                    return None
                new = moved(path, found, False)
                if isinstance(output, torch.Tensor):
                    return new
                return type(output)(new if o is found else o for o in output) if type(output) in (tuple, list) else None

            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave))
        products = Products(parameters, moved)
        with received(saw), products if parameters else contextlib.nullcontext():
            args, kwargs = anew((args, dict(kwargs)))
            block(*args, **kwargs)
        seen.products = products.rows
    return seen


def anew(given: Any) -> Any:
    """What a block is given, with copies of the caches in it: some models make one in every pass, and a block writes into it."""
    from transformers.cache_utils import Cache

    return _mapped(given, lambda v: copy.deepcopy(v) if isinstance(v, Cache) else v)


def with_tensors(given: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """What a block is given, with each of its tensors changed. One that is there twice is one tensor still."""
    made: dict[int, torch.Tensor] = {}

    def changed(v: Any) -> Any:
        if not isinstance(v, torch.Tensor):
            return v
        if id(v) not in made:
            made[id(v)] = change(v)
        return made[id(v)]

    return _mapped(given, changed)


def _mapped(v: Any, change: Callable[[Any], Any]) -> Any:
    """Tuples, lists and dicts as they are, however deep, with everything else in them changed."""
    if type(v) in (tuple, list):
        return type(v)(_mapped(i, change) for i in v)
    return {k: _mapped(i, change) for k, i in v.items()} if type(v) is dict else change(v)


def first(values: Iterable[Any]) -> torch.Tensor | None:
    """The first tensor of floating numbers."""
    return next((v for v in values if isinstance(v, torch.Tensor) and v.is_floating_point()), None)
