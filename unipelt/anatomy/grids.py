"""The grid of a picture: which tokens of a tower are the parts that a convolution cuts a picture into, row by row.

Found in a pass of the model, and proved where it has weights: one part is changed behind the convolution, and its token alone
must change in front of the first block. Where a module yields [batch, d, rows, columns], that is its grid (`layout`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ..language.report.diagnostics import PeltError
from .base import NAME, base_modules, base_of
from .brought import lacks_weights
from .evaluating import evaluating
from .examples import Inputs, first_that_runs
from .interrupts import ended_by
from .passed import first_tensor
from .sites import SiteMap, Stack


@dataclass(frozen=True, slots=True)
class Grid:
    """The tokens of a tower that are parts of a picture, in rows and columns as the output of the convolution ``module`` has them:
    behind the first ``before`` tokens, in front of the last ``behind``. ``proved``: by the numbers of a pass."""

    module: str
    before: int
    behind: int
    proved: bool


class _Entered(Exception):
    """The first block was reached: no more of the pass is needed."""


def grid_of(model: nn.Module, sites: SiteMap, stack: Stack, example: Mapping[str, Any] | None = None) -> Grid | str:
    """The grid of a tower's tokens, or why they lie on none. ``example``: arguments of a pass, if they cannot be guessed."""
    front = f"{sites.prefix}." if sites.prefix else ""
    blocks = [front + b for b in stack.blocks]
    cuts = {p: m for p, m in base_modules(model)
            if isinstance(m, nn.Conv2d) and not any(p.startswith(f"{b}.") for b in blocks)}  # fmt: skip
    if not cuts:
        return "no convolution cuts a picture into parts"
    with _at_rest(model):
        try:
            found = _passed(model, sites, stack, blocks, cuts, dict(example) if example is not None else None)
        except PeltError as e:
            return e.diagnostics[0].message
        return _grid(found, lacks_weights(base_of(model)))


def _at_rest(model: nn.Module) -> Any:
    """Without what adapters that are attached already put among the tokens."""
    switch = getattr(model._modules.get(NAME), "switch", None)
    return switch.holder.using(()) if switch is not None else nullcontext()


@dataclass
class _Passed:
    """A pass: what the convolutions yielded, by path, in their order; what entered each block; and how to run it again."""

    called: nn.Module
    given: Inputs
    cuts: Mapping[str, nn.Module]
    blocks: list[nn.Module]
    yielded: dict[str, torch.Tensor]
    entered: list[torch.Tensor]

    def run(self) -> None:
        """The whole pass."""
        self.yielded, self.entered = {}, []
        with evaluating(self.called), self._watched():
            self.called(**self.given)

    def nudged(self, path: str, row: int, column: int) -> torch.Tensor:
        """What enters the first block where one part of what a convolution yields is another: the pass ends there."""

        def nudge(_: nn.Module, args: tuple, output: torch.Tensor) -> torch.Tensor:
            changed = output.clone()
            part = changed[..., row, column]
            changed[..., row, column] = part + 1 + part.abs() * torch.linspace(-1, 1, part.shape[-1]).to(part)
            return changed

        def stop(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            kept.append(_tokens(args, kwargs))
            raise _Entered

        kept: list[torch.Tensor] = []
        hooks = [
            self.cuts[path].register_forward_hook(nudge),
            self.blocks[0].register_forward_pre_hook(stop, with_kwargs=True),
        ]
        with evaluating(self.called), ended_by(partial(_removed, hooks)):
            try:
                self.called(**self.given)
            except _Entered:
                pass
        return kept[0]

    @contextmanager
    def _watched(self) -> Iterator[None]:
        def leaves(path: str) -> Any:
            return lambda _, args, output: self.yielded.update({path: output.detach()})

        def enters(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            self.entered.append(_tokens(args, kwargs).detach().clone())

        hooks = [m.register_forward_hook(leaves(p)) for p, m in self.cuts.items()]
        hooks += [b.register_forward_pre_hook(enters, with_kwargs=True) for b in self.blocks]
        with ended_by(partial(_removed, hooks)):
            yield


def _removed(hooks: list[Any]) -> None:
    for h in hooks:
        h.remove()


def _tokens(args: tuple, kwargs: Mapping[str, Any]) -> torch.Tensor:
    found = first_tensor(args, kwargs)
    assert found is not None
    return found


def _passed(
    model: nn.Module,
    sites: SiteMap,
    stack: Stack,
    blocks: list[str],
    cuts: Mapping[str, nn.Module],
    example: Inputs | None,
) -> _Passed:
    """A pass in which a picture reaches the tower; E0595 where none does."""
    modules = [model.get_submodule(b) for b in blocks]

    def run(called: nn.Module, given: Inputs) -> _Passed:
        found = _Passed(called, given, cuts, modules, {}, [])
        found.run()
        if not found.entered or not found.yielded:
            raise RuntimeError("no picture reached the tower")
        return found

    tower = model.get_submodule(stack.module)
    failed: PeltError | None = None
    for called in {id(m): m for m in (model, base_of(model), tower)}.values():
        try:
            return first_that_runs(called, given=example, run=partial(run, called))[1]
        except PeltError as e:
            failed = failed or e
    assert failed is not None
    raise failed


def _grid(found: _Passed, meta: bool) -> Grid | str:
    """The grid that a pass shows, of the last convolution whose parts are tokens."""
    tokens = found.entered[0]
    if tokens.dim() != 3:
        return f"what enters its blocks has {tokens.dim()} dimensions, and not [batch, tokens, d]"
    n = tokens.shape[1]
    others = {t.shape[1] for t in found.entered if t.dim() == 3} - {n}
    if others:
        return f"its blocks read {n} tokens at first and {', '.join(map(str, sorted(others, reverse=True)))} later"
    fit = [p for p, t in found.yielded.items() if t.dim() == 4 and t.shape[-2:].numel() <= n]
    if not fit:
        return f"no convolution yields a part for each of its {n} tokens"
    path = max(fit, key=lambda p: found.yielded[p].shape[-2:].numel())
    rows, columns = found.yielded[path].shape[-2:]
    if meta or tokens.is_meta:
        return Grid(path, n - rows * columns, 0, False)
    corners = [(0, 0), (0, columns - 1), (rows - 1, 0), (rows - 1, columns - 1)]
    before = 0
    for row, column in corners:
        moved = (found.nudged(path, row, column) - tokens).abs().amax((0, -1))
        changed = (moved > 1e-3 * moved.amax()).nonzero().flatten().tolist()
        before = changed[0] if (row, column) == (0, 0) and len(changed) == 1 else before
        if changed != [before + row * columns + column]:
            which = "its token in a row-by-row order" if len(changed) == 1 else f"one token, but {len(changed)}"
            return f"part ({row}, {column}) of what `{path}` cuts a picture into does not become {which}"
    return Grid(path, before, n - before - rows * columns, True)
