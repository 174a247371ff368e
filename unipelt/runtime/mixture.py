"""A batch whose examples have adapters of their own: whose its rows are, and how they are computed in parts and put together again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.compiler import is_compiling

from ..language.report.diagnostics import counted, error

if TYPE_CHECKING:
    from .seam import Seam


class Numbers(tuple[int, ...]):
    """Numbers of rows or of slots, by which tensors are indexed on whatever device."""

    def on(self, device: torch.device) -> torch.Tensor:
        if is_compiling():
            return torch.tensor(self, device=device)
        if device not in self._on:
            with torch.inference_mode(False):  # a pass with gradients may be the next that asks
                self._on[device] = torch.tensor(self, device=device)
        return self._on[device]

    @cached_property
    def _on(self) -> dict[torch.device, torch.Tensor]:
        return {}


@dataclass(frozen=True)
class Group:
    """The rows of a batch that one adapter has (``name`` None: the base): a run of them, or a list.

    Where the adapter is a bank, ``slots`` says for each row in which slot its tensors are.
    """

    name: str | None
    at: Numbers
    slots: Numbers = Numbers()
    last: bool = True  # whether the adapter has no further rows in the batch

    @cached_property
    def slot(self) -> int | None:
        """The slot of all rows, where it is the same."""
        return self.slots[0] if len(set(self.slots)) == 1 else None

    @cached_property
    def is_run(self) -> bool:
        return self.at[-1] - self.at[0] + 1 == len(self.at)

    def of(self, t: torch.Tensor) -> torch.Tensor:
        """These rows of a tensor; a view where they are one run."""
        return t.narrow(0, self.at[0], len(self.at)) if self.is_run else t.index_select(0, self.at.on(t.device))


@dataclass(frozen=True)
class Split:
    """A batch in parts that are computed by themselves. ``back``: where each of its rows is once they stand one behind the other,
    None where it was."""

    parts: tuple[Group, ...]
    back: Numbers | None

    @staticmethod
    def of(parts: Sequence[Group]) -> Split:
        order = [i for p in parts for i in p.at]
        straight = order == sorted(order)
        return Split(tuple(parts), None if straight else Numbers(sorted(range(len(order)), key=order.__getitem__)))

    def together(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        """The rows of all parts in the order of the batch. Where heads score labels of different number, what a row has none for is
        -inf: no label."""
        if len(parts) == 1:
            return parts[0]
        widest = max(t.shape[-1] for t in parts)
        if any(t.shape[-1] < widest for t in parts):
            parts = [nn.functional.pad(t, (0, widest - t.shape[-1]), value=-torch.inf) for t in parts]
        whole = torch.cat(list(parts))
        return whole if self.back is None else whole.index_select(0, self.back.on(whole.device))


class Mixture(tuple[str, ...]):
    """The adapters of a batch in which each example has its own: their names, and ``examples``, whose is which (None: the base's).

    Adapters of a bank have the bank's name there, and ``slots`` their slots in it; ``names`` are all as the user calls them.
    """

    examples: tuple[str | None, ...]
    slots: tuple[int | None, ...]
    names: tuple[str, ...]
    #: `split` by what it was asked.
    known: dict[tuple[int, tuple[str, ...], bool], Split]

    @staticmethod
    def of(names: Sequence[str | None], held: Mapping[str, tuple[str, int]] | None = None) -> Mixture:
        """``held`` has, for each adapter of a bank, the bank's name and its slot there."""
        placed = [(held or {}).get(n, (n, None)) if n is not None else (None, None) for n in names]
        found = Mixture(dict.fromkeys(n for n, _ in placed if n is not None))
        found.examples, found.slots = tuple(n for n, _ in placed), tuple(s for _, s in placed)
        found.names, found.known = tuple(dict.fromkeys(n for n in names if n is not None)), {}
        return found

    def groups(self, batch: int, apart: bool = False) -> list[Group]:
        """Whose the rows of a batch are. A batch of a multiple of the examples (beams, several answers) has each in a run.

        The rows of a bank are one group, or, ``apart``, one for each slot.
        """
        n = len(self.examples)
        if batch % n:
            raise error("E0852", f"a batch of {batch} came, and {counted(n, 'adapter')} {'was' if n == 1 else 'were'} named, one for each example",
                        help="name as many as the batch has examples, None for the base")  # fmt: skip
        at: dict[tuple[str | None, int | None], list[int]] = {}
        slots = [self.slots[i * n // batch] for i in range(batch)]
        for i in range(batch):
            at.setdefault((self.examples[i * n // batch], slots[i] if apart else None), []).append(i)
        last = {name: rows for (name, _), rows in at.items()}
        return [
            Group(name, Numbers(rows), Numbers(s for i in rows if (s := slots[i]) is not None), last[name] is rows)
            for (name, _), rows in at.items()
        ]

    def split(self, batch: int, editing: tuple[str, ...], apart: bool = False) -> Split:
        """A batch in the groups of those adapters that edit somewhere, and the rest of the rows, together as far as they are runs."""
        found = self.known.get((batch, editing, apart))
        if found is None:
            groups = self.groups(batch, apart)
            own = [g for g in groups if g.name in editing]
            rest = sorted(i for g in groups if g.name not in editing for i in g.at)
            if all(g.is_run for g in own):
                others = [Group(None, Numbers(run)) for run in _runs(rest)]
                own = sorted([*own, *others], key=lambda g: g.at)
            elif rest:
                own.append(Group(None, Numbers(rest)))
            found = self.known[batch, editing, apart] = Split.of(own)
        return found


def _runs(rows: Sequence[int]) -> list[list[int]]:
    """Numbers that rise, in runs without a gap."""
    found: list[list[int]] = []
    for i in rows:
        if found and i == found[-1][-1] + 1:
            found[-1].append(i)
        else:
            found.append([i])
    return found


def mixed(
    seam: Seam, mixture: Mixture, side: str, h: torch.Tensor, edited: Callable[[torch.Tensor, Group], torch.Tensor]
) -> torch.Tensor | None:
    """h of a batch whose examples have adapters of their own, ``edited(rows of h, group)`` for each adapter that edits here; None where
    none does."""
    split = seam.split(mixture, side, h.shape[0])
    if split is None:
        return None
    parts = []
    for group in split.parts:
        part = group.of(h)
        if group.name is not None:
            part = seam.switch.holder.of_rows(group, partial(edited, part, group)).to(h.dtype)
        parts.append(part)
    return split.together(parts)
