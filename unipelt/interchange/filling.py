"""Another library's tensors into a plan's, and a plan's into the other library's: all of them, or a refusal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..compiler.plan import Plan, PlannedEdit
from ..language.report.diagnostics import PeltError, error
from .shapes import Sizes, keys_of, ours, part_of, theirs, whole


@dataclass(frozen=True, slots=True)
class Source:
    """Where a tensor of ours is found: its key, what makes it of it (see `shapes`), its place among those that share the key, and the
    sizes that the words of ``how`` call by name."""

    key: str
    how: str
    rank: int = 0
    of: int = 1
    lost: str = ""  # what to do where the library left it out itself
    sizes: Sizes = field(default_factory=dict)
    given: torch.Tensor | None = None  # what a field of the configuration decides


#: The source of an edit's tensor, by the row's own name for it.
Sources = Callable[[PlannedEdit, str], Source]


class Apart(Exception):
    """Tensors of ours that share one of theirs are not all there, or differ."""


def filled(
    plan: Plan, source: Sources, tensors: Mapping[str, torch.Tensor], place: Path
) -> tuple[dict[str, torch.Tensor], set[str]]:
    """The plan's tensors by name, and the keys that were read. Raises `PeltError` for a tensor that is missing or misshapen."""
    used: set[str] = set()
    found: dict[str, torch.Tensor] = {}
    for e in plan.edits:
        for label, n in e.tensors.items():
            s = source(e, label)
            if s.given is not None:
                found[n] = s.given
                continue
            keys = keys_of(s.key, s.how)
            missing = next((k for k in keys if k not in tensors), None)
            if missing is not None:
                raise error("E0842", f"{place} lacks the tensor `{missing}`", help=s.lost or "copy the folder again")
            used.update(keys)
            shape = plan.tensors[n].shape
            try:
                t = ours(tuple(tensors[k] for k in keys), s.how, e, shape, s.rank, s.of, s.sizes)
            except (RuntimeError, IndexError):
                raise misshapen(place, keys[0], tensors[keys[0]]) from None
            except ValueError as reason:
                raise error(
                    "E0842", f"the tensor `{keys[0]}` in {place} is broken: {reason}", help="copy the folder again"
                ) from None
            if tuple(t.shape) != shape:
                raise misshapen(place, keys[0], tensors[keys[0]], shape)
            if n in found and not torch.equal(found[n], t):
                raise error(
                    "E0842",
                    f"`{keys[0]}` in {place} is shared, and another module's has other numbers",
                    help="copy the folder again",
                )
            found[n] = t
    return found, used


def emptied(plan: Plan, source: Sources, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Their tensors by key, made of the values of the plan's. Raises `Apart`."""
    found: dict[str, torch.Tensor] = {}
    beside: dict[str, tuple[str, dict[int, torch.Tensor], int, int]] = {}
    for e in plan.edits:
        for label, n in e.tensors.items():
            s = source(e, label)
            if s.given is not None:
                if not torch.equal(values[n].cpu(), s.given):
                    raise Apart(f"its `{label}` are other numbers than peft draws from `{s.key}`")
                continue
            for k, t in zip(keys_of(s.key, s.how), theirs(values[n], s.how, e, s.of, s.sizes)):
                part = part_of(s.how, e, s.rank, s.of)
                if part is not None:
                    beside.setdefault(k, (s.how, {}, part[1], part[2]))[1][part[0]] = t
                elif k in found and not torch.equal(found[k], t):
                    raise Apart(f"modules share its `{k}`, and here they differ")
                else:
                    found[k] = t
    for k, (how, parts, count, dim) in beside.items():
        if len(parts) != count:
            raise Apart("it has rows in some layers only")
        found[k] = whole(torch.cat([parts[i] for i in range(count)], dim=dim), how)
    return found


def leftover(place: Path, left: list[str], name: str, remedy: str) -> PeltError:
    """Tensors of a folder that were read by nothing."""
    more = f", and {len(left) - 1} more" if left[1:] else ""
    return error("E0842", f"{place} has the tensor `{left[0]}`, which has no place in `{name}`{more}", help=remedy)


def misshapen(place: Path, k: str, t: torch.Tensor, wanted: tuple[int, ...] | None = None) -> PeltError:
    said = f", and ours there would be {list(wanted)}" if wanted is not None else ""
    return error("E0842", f"the tensor `{k}` in {place} has the shape {list(t.shape)}{said}",
                 help="load the model that the adapter was trained on; a head has as many rows as there are labels")  # fmt: skip
