"""Edits by themselves, in float64 with random tensors and random inputs: what other ways of computing a row are compared with."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import small
import torch

import unipelt
from unipelt.compiler import helpers
from unipelt.compiler.drawn import SEED
from unipelt.compiler.module import torch_source
from unipelt.compiler.recipe import GRID
from unipelt.language.sites import TensorType
from unipelt.language.types.draws import PROGRESS
from unipelt.language.types.indexing import token_indices
from unipelt.language.types.typed import TypedRow
from unipelt.runtime.edits import PLACES, Edit
from unipelt.runtime.prompts.selected import ENTERED
from unipelt.runtime.seam import edit_at

BATCH, TOKENS = 3, 5


def rand(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64)


@dataclass(frozen=True)
class Text:
    """What is known of the text that enters (see `prompts.selected.Entered`): which tokens are selected, and their numbers."""

    selected: torch.Tensor
    told: dict[str, torch.Tensor]

    def chosen(self, choices: Any) -> torch.Tensor:
        return self.selected

    def numbers(self) -> tuple[dict[str, torch.Tensor], None]:
        return self.told, None

    @property
    def names(self) -> dict[str, torch.Tensor]:
        """By the names that a printed module has for them."""
        return {"chosen": self.selected, **{n.strip(":"): t for n, t in self.told.items()}}


@dataclass
class Placed:
    """An edit of a small model in float64, with random tensors."""

    edit: Edit
    typing: TypedRow

    def size(self, name: str) -> int:
        n = self.typing.sizes[name].number
        assert n is not None
        return int(n)

    def scope(self) -> tuple[torch.Tensor, dict[str, Any], torch.Tensor]:
        """What enters, all of it random: h, what is in scope, the mask."""
        e = self.edit
        n_tokens = max(TOKENS, e.prompt.rows + 1 if e.prompt is not None and e.prompt.grows else 0)
        tokens = (BATCH, n_tokens)
        heads = (BATCH, self.size("heads") if "heads" in self.typing.sizes else 1, n_tokens)
        shapes = {n: tokens for n in ("x", "residual")} | {"q": heads, "log_mass": heads, "W": (), "bias": ()}
        types = {n: self.typing.values[n].type for n in ("h", *e.needs) if n in self.typing.values}
        found: dict[str, Any] = {
            n: rand(*(shapes[n] if n != "h" else () if e.site.kind.is_weight else heads if e.site.kind.has_heads else tokens), *(int(str(s)) for s in t.sizes), seed=i)
            for i, (n, t) in enumerate(sorted(types.items())) if isinstance(t, TensorType)
        }  # fmt: skip
        found |= {"W": found["h"]} if e.site.kind.is_weight and "W" in found else {}  # one tensor under two names
        found |= {"scale": 0.25} if "scale" in e.needs else {}
        found |= {"chance": torch.tensor(0.4)} if "chance" in e.needs else {}
        found |= {GRID: torch.tensor([[1, 2], [3, 4]])} if e.gridded else {}
        found |= {SEED: torch.tensor(0)} if SEED in e.needs else {}
        for i in self.typing.inputs:
            sizes = [int(str(s)) for s in i.sizes]
            found[i.name] = torch.tensor([0, 1, 0]) if i.count is not None else rand(BATCH, *sizes, seed=len(i.name))
        if e.prompt is not None:
            found[PLACES] = (
                torch.arange(e.prompt.rows)[None].expand(BATCH, e.prompt.rows)
                if e.prompt.grows
                else torch.tensor([[0, 1, 0, 2, 0]]).expand(BATCH, TOKENS)
            )
        numbers = torch.arange(BATCH * n_tokens).reshape(tokens)
        told = {name: numbers % 2 for name in token_indices(e.row.nodes)}
        if e.row.tokens or told:
            found[ENTERED] = Text(numbers % 3 > 0, told)
        mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [1, 1, 1, 0, 0]])
        mask = torch.cat([mask, mask.new_ones(BATCH, n_tokens - TOKENS)], 1)
        return found.pop("h"), found, mask


def edits(method: Any, kind: str, lowering: bool, **starts: Any) -> list[Placed]:
    model = small.model(kind, dtype=torch.float64)
    plan = unipelt.apply(model, method, allow_future=True, lowering=lowering, **starts)
    small.randomise(model, seed=1)
    found: dict[tuple[str, str], Any] = {}  # of several layers layer 1, where a row is in it
    for e in plan.edits:
        place = (e.row.name, e.site.name)
        if place not in found or e.site.layer == 1:
            found[place] = e
    placed = [Placed(edit_at(model, "default", e), e.typing) for e in found.values()]
    for p in placed:
        p.edit.grid = None  # which tokens are the parts of a picture is among what enters
    return placed


def both(placed: Placed, other: Any, *args: Any, training: bool) -> None:
    """The literal evaluation of an edit and another way to compute it are equal, with the same numbers drawn."""
    h, given, mask = placed.scope()
    if training and PROGRESS in placed.edit.needs:
        given[PROGRESS] = torch.tensor(0.4)
    placed.edit.train(training)
    with drawn_by_torch():
        expected = placed.edit(h, dict(given), mask)
    with drawn_by_torch():
        found = other(h, dict(given), mask)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@contextmanager
def drawn_by_torch() -> Iterator[None]:
    """What a row draws for a pass are torch's own numbers from a seed, once for each draw, as a printed module draws them."""
    torch.manual_seed(0)
    known: dict[Any, torch.Tensor] = {}

    def by(draw: Any, seed: torch.Tensor, key: int, shape: Sequence[int]) -> torch.Tensor:
        if (draw, key) not in known:
            known[draw, key] = draw(shape, dtype=torch.float64)
        return known[draw, key]

    with mock.patch.multiple(helpers, uniform_numbers=partial(by, torch.rand), normal_numbers=partial(by, torch.randn)):
        yield


def compare_printed(
    method: Any, kinds: Sequence[str], starting: Callable[[str], dict[str, Any]] = lambda kind: {}
) -> None:
    """The text of a method as torch modules computes what the literal evaluator does: every class that is printed, on some of the
    kinds. ``starting`` is what a method is applied with on a kind."""
    source = torch_source(method)
    assert "import unipelt" not in source
    found: dict[str, Any] = {"__name__": "printed"}
    exec(compile(source, method.name, "exec"), found)
    classes = [c for c in found.values() if isinstance(c, type) and c.__module__ == "printed"]
    assert bool(classes) == bool(method.rows)
    met = set()
    for kind in kinds:
        try:
            literal = edits(method, kind, False, **starting(kind))
        except unipelt.PeltError:
            continue
        for placed in literal:
            c = _class_of(placed.edit, classes)
            _compare(placed, c)
            met.add(c)
    assert met == set(classes)


def _class_of(e: Edit, classes: Sequence[Any]) -> Any:
    said = rf"The row `{e.row.name}` at [^:]*\b{re.escape(e.site.name)}[,:]"
    return next(c for c in classes if re.search(said, c.__doc__ or ""))


def _compare(placed: Placed, c: Any) -> None:
    e, numbers = (
        placed.edit,
        {"layer": placed.edit.site.layer, "depth": small.LAYERS, "causal": placed.edit.site.causal},
    )
    module = c(
        **{p: numbers[p] if p in numbers else placed.size(p) for p in c.__init__.__annotations__ if p != "return"}
    ).double()
    own = {label.replace(".", "_"): t for label, t in e.tensors().items()}
    state = module.state_dict()
    for label, t in own.items():
        mine = state.pop(label if label in state else f"{label}_")  # where torch has the name for something else
        assert mine.shape == t.shape
        mine.copy_(t.data)
    assert not state

    def printed(h: Any, given: Any, mask: Any) -> Any:
        names = {
            **given,
            "h": h,
            "mask": mask,
            "places": given.get(PLACES),
            "grid": given.get(GRID),
            "progress": given.get(PROGRESS, torch.ones(())),
            **(given[ENTERED].names if ENTERED in given else {}),
            **{n.replace(".", "_"): b for n, b in e.bases.items()},
        }
        return module(**{p: names[p] for p in module.forward.__annotations__ if p != "return"})

    for training in (False, True):
        module.train(training)
        both(placed, printed, training=training)
