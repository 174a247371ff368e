"""Which blocks of a model lie below everything that is edited or trained: they give the same for an input each time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..anatomy.sites import SiteMap, Stack

if TYPE_CHECKING:
    from .plan import Plan, PlannedEdit


@dataclass(frozen=True)
class Cut:
    """Where a model can be cut: the blocks of a tower that lie below everything that is edited or trained."""

    stack: Stack
    blocks: int
    base: str  # the path of the base model, in which the blocks are

    def __str__(self) -> str:
        which = f"blocks 0–{self.blocks - 1}" if self.blocks > 1 else "block 0"
        of = f" of the {self.stack.name}'s {self.stack.depth}" if self.stack.name else f" of {self.stack.depth}"
        return f"{which}{of} {'run' if self.blocks > 1 else 'runs'} once"

    def to_json(self) -> dict[str, int | str]:
        return {"blocks": self.blocks, "of": self.stack.depth, "tower": self.stack.name}

    def path(self, block: int) -> str:
        return f"{self.base}.{self.stack.blocks[block]}" if self.base else self.stack.blocks[block]

    def above(self, path: str) -> bool:
        """Whether a module lies in a later block, or outside the base model, as a head does."""
        outside = bool(self.base) and not within(path, self.base)
        return outside or any(within(path, self.path(i)) for i in range(self.blocks, len(self.stack.blocks)))


def within(path: str, module: str) -> bool:
    return path == module or path.startswith(f"{module}.")


def below_edits(edits: Iterable[PlannedEdit], stack: Stack, sites: SiteMap) -> Iterator[tuple[int, str]]:
    """For each edit how many blocks of a tower lie below it, and what is edited."""
    earlier = {s.name for s in sites.stacks[: sites.stacks.index(stack)]}  # their tokens may be this one's
    for e in edits:
        s, why = e.site, f"`{e.site.label}` is edited"
        if s.layer is not None:
            yield s.layer if s.stack == stack.name else 0 if s.stack in earlier else stack.depth, why
        elif (s.side == "prompt" or s.kind.times in ("input", "stacks")) and s.name != "final":
            yield 0, why
        else:
            yield _below(s.view.module, stack, sites), why


def below_modules(paths: Iterable[str], stack: Stack, sites: SiteMap) -> Iterator[tuple[int, str]]:
    """For each module that is trained how many blocks of a tower lie below it."""
    for path in paths:
        yield _below(path, stack, sites), f"`{path}` is trained"


def _below(path: str, stack: Stack, sites: SiteMap) -> int:
    """A head lies above all; what is in no block may be anywhere, as the first stages of a network of convolutions are."""
    whole = Cut(stack, stack.depth, sites.prefix)
    above = {*sites.head, *(s.view.module for s in sites.sites if s.name == "final")}
    block = next((i for i in range(whole.blocks) if within(path, whole.path(i))), None)
    over = whole.above(path) or any(within(path, h) for h in above)
    return block if block is not None else whole.blocks if over else 0


def runs_once(plan: Plan) -> Cut | None:
    """The blocks that need not run again for an input that was seen, as `unipelt.training.cache_trunk` has it; None where there are none."""
    sites = plan.sites
    if sites.unknown or not sites.stacks or sites.main[0].shared or not (plan.edits or plan.copies):
        return None
    stack = sites.main[0]
    trained = [c.parameter.path.rpartition(".")[0] for c in plan.copies if not c.head]
    found = [
        stack.depth,
        *(n for n, _ in below_edits(plan.edits, stack, sites)),
        *(n for n, _ in below_modules(trained, stack, sites)),
    ]
    return Cut(stack, min(found), sites.prefix) if min(found) > 0 else None
