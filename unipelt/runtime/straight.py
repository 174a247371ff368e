"""A row's tensors and its recipe: what enters is put where the recipe reads it, with as little done at each call as there can be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch.compiler import is_compiling

from ..compiler.drawn import SEED, Draws, numbers
from ..compiler.recipe import CHOSEN, GRID, MASK, PLACES, Recipe, Recipes, Want, folded
from ..language.sites import SiteSignature
from ..language.types.draws import PROGRESS
from ..language.types.indexing import INSERTED, POSITIONS
from .along import CARRIED
from .base_call import BaseCall
from .holding import Holding, Shared, key_of_tensor
from .penalties import NOTED

#: What enters a row under no names of the language.
UNNAMED = (PLACES, CHOSEN, GRID, SEED, NOTED, CARRIED)


class Places(NamedTuple):
    """Under which keys tensors of a row are: its parameters, its buffers, those that the model shares; and their labels."""

    parameters: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    lent: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()


_lies = attrgetter("dtype", "ndim")


class Ready(NamedTuple):
    """A recipe with where its arguments are, found once for what enters by these names.

    ``lies`` are dtype and dimensions of what it reads where nothing is to be done to it, ``dtype`` is that in which the row is computed
    and ``like`` the place of the first of its tensors that says so. ``bases`` are the frozen modules, None where it reads other
    things too that are not in scope. ``fold`` makes what the recipe takes of the row's tensors, where these are not what it takes.
    """

    recipe: Recipe | None
    reads: tuple[str, ...]
    lies: list[tuple[torch.dtype, int]]
    bases: tuple[BaseCall, ...] | None = ()
    places: Places = Places()
    like: int | None = None
    dtype: torch.dtype | None = None
    fold: Any = None


class Straight(Holding):
    """Has a row's tensors, of its own and ``shared`` ones, and computes the row by its recipe."""

    recipes: Recipes | None
    each_recipes: Recipes | None
    axes: dict[str, tuple[str, ...]]
    borrowed: dict[str, str]
    shared: list[Shared]
    bases: dict[str, BaseCall]
    of_weight: bool
    inputs: frozenset[str]
    kind: SiteSignature
    types: dict[str, tuple[tuple[str, ...], int]]
    sizes: Mapping[str, int]
    lengths: Mapping[str, int]
    places: Mapping[str, int]
    heads: Mapping[str, int]

    def _straight(self, given: Mapping[str, Any], mask: torch.Tensor | None, want: Want) -> Any:
        """What the row's recipe makes of what enters; None where the row has none.

        A compiler sees through the evaluator and fuses what it computes: it needs no recipe, and cannot trace the writing of one.
        """
        recipes = self.recipes if self.stacked is None or not self.several else self.each_recipes
        if recipes is None or is_compiling():
            return None
        key = (want, self.training, *given)
        ready = recipes.ready.get(key)
        if ready is None:
            ready = recipes.ready[key] = self._ready(recipes, given, want)
        recipe, reads, lies, bases, places, like, dtype, fold = ready
        own: Any = self._own(places)
        if self.of_weight:
            own = [*map(_long, own)]
        values = [*map(given.__getitem__, reads)]
        if [*map(_lies, values)] != lies or (like is not None and own[like].dtype != dtype):
            own_dtype = own[like].dtype if like is not None else None
            if own_dtype != dtype or [t.dim() for t in values] != [n for _, n in lies]:
                del recipes.ready[key]  # what entered before lay otherwise
                return self._straight(given, mask, want)
            values = [self._fitted(n, t, dtype, given) for n, t in zip(reads, values)]
        if recipe is None:
            return None
        if bases is None:
            bases = self._besides(recipe, given, mask, own)
        if recipe.fold is not None:
            own = recipes.kept.of(recipe.source, own, fold)
        elif fold is not None:
            own = fold(own)
        return recipe.function(*values, *bases, *own)

    def _ready(self, recipes: Recipes, given: Mapping[str, Any], want: Want) -> Ready:
        """The recipe for what enters, and where its arguments are."""
        tensors = {n: t for n, t in given.items() if isinstance(t, torch.Tensor)}
        entering = tuple(
            (n, self._scope_axes(n, t) if n in tensors else ()) for n, t in given.items() if n not in UNNAMED
        )
        recipe = recipes.of(entering, self.training, want)
        if recipe is None:
            return Ready(None, tuple(tensors), [*map(_lies, tensors.values())])
        places = self._places(recipe.own)
        own = [_long(t) if self.of_weight else t for t in self._own(places)]
        like = next((i for i, t in enumerate(own) if t.is_floating_point()), None)
        dtype = own[like].dtype if like is not None else None
        lies = [(dtype if dtype is not None and tensors[n].is_floating_point() else tensors[n].dtype, tensors[n].ndim)
                for n in recipe.reads]  # fmt: skip
        bases = tuple(self.bases[n] for n in recipe.besides if n in self.bases)
        fold = partial(folded, recipe.fold, [self._is_number(label) for label in recipe.own])
        return Ready(recipe, recipe.reads, lies, bases if len(bases) == len(recipe.besides) else None, places, like, dtype,
                     fold if recipe.fold is not None or any(fold.args[1]) else None)  # fmt: skip

    def _besides(
        self, recipe: Recipe, given: Mapping[str, Any], mask: torch.Tensor | None, own: Sequence[torch.Tensor]
    ) -> tuple[Any, ...]:
        """What a recipe reads beside tensors in scope: numbers, the mask, where tokens lie, frozen modules, what is drawn."""
        found: list[Any] = []
        drawn = self._draws(given, own) if recipe.draws else None
        for name in recipe.besides:
            if name in given:
                t = given[name]
                found.append(self._fitted(name, t, None, given) if isinstance(t, torch.Tensor) else t)
            elif drawn is not None and name in recipe.draws:
                draw, sizes = recipe.draws[name]
                found.append(numbers(draw, sizes, drawn, self.training).data)
            else:
                found.append(mask if name == MASK else self.bases.get(name))
        return tuple(found)

    # ------------------------------------------------------------ tensors

    def in_order(self, axes: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        """The axes of the row's tensors, in the order in which `_own` gives them."""
        return {n: axes[n] for n in sorted(axes, key=lambda n: (n in self.borrowed, key_of_tensor(n) in self._buffers))}

    def _places(self, labels: Iterable[str]) -> Places:
        found: tuple[list[str], list[str], list[str]] = [], [], []
        for label in labels:
            key = key_of_tensor(self.borrowed.get(label, label))
            found[2 if label in self.borrowed else key in self._buffers].append(key)
        return Places(tuple(found[0]), tuple(found[1]), tuple(found[2]), tuple(labels))

    def _own(self, places: Places) -> list[torch.Tensor]:
        """The row's tensors at their places, as they are registered; of a bank, those of the adapters whose rows are computed now."""
        if self.stacked is not None:
            return [*map(self._held().__getitem__, places.labels)]
        parameters, buffers, lent, _ = places
        found: list[Any] = [*map(self._parameters.__getitem__, parameters)]
        if buffers:
            found += map(self._buffers.__getitem__, buffers)
        if lent:
            found += map(self.shared[0](registered=True).__getitem__, lent)
        return found

    def _held(self) -> dict[str, torch.Tensor]:
        own = self.held()
        shared = self.shared[0]() if self.borrowed else {}
        return {label: shared[self.borrowed[label]] if label in self.borrowed else own[label] for label in self.axes}

    @property
    def several(self) -> bool:
        """Whether the rows that are computed now have tensors of their own each."""
        return self.stacked is not None and self.stacked.several

    def registered(self) -> list[torch.Tensor]:
        """The row's tensors as they are registered, its own and those that it borrows."""
        return self._own(self._places(self.axes))

    def _is_number(self, label: str) -> bool:
        return self.shared[0].scalars[self.borrowed[label]] if label in self.borrowed else self.scalars[label]

    def tensors(self) -> dict[str, torch.Tensor]:
        """The row's tensors by its own names for them."""
        found = self._held()
        return {label: _long(t) for label, t in found.items()} if self.of_weight else found

    # ------------------------------------------------------------ what enters

    def _scope_axes(self, name: str, t: torch.Tensor) -> tuple[str, ...]:
        """The axes of what is in scope: those of its type, fewer where the model has joined some, or pooled the tokens of h."""
        if name in self.inputs:
            return ("batch",)
        if name in (POSITIONS, INSERTED):
            return ("batch", "token")
        if name == "h" and self.kind.pools and t.dim() == 2:
            return ("batch",)
        axes, sizes = self.types.get(name, ((), 0))
        return axes[max(0, len(axes) + sizes - t.dim()) :]

    def _given(self, given: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """What is in scope, in the dtype of the row's tensors; under autocast as it is."""
        dtype = next((t.dtype for t in tensors.values() if t.is_floating_point()), None)
        return {n: self._fitted(n, t, dtype, given) if isinstance(t, torch.Tensor) else t for n, t in given.items()}

    def _fitted(self, name: str, t: torch.Tensor, dtype: torch.dtype | None, given: Mapping[str, Any]) -> torch.Tensor:
        if name in ("chance", PROGRESS):
            return t.to(given["h"].device) if "h" in given else t
        if (
            name in UNNAMED
            or dtype is None
            or t.dtype == dtype
            or not t.is_floating_point()
            or torch.is_autocast_enabled(t.device.type)
        ):
            return t
        return t.to(dtype)

    def _draws(self, given: Mapping[str, Any], tensors: Iterable[torch.Tensor]) -> Draws:
        """What the row's draws of this pass follow from."""
        h, own = given.get("h"), next((t for t in tensors if t.is_floating_point()), None)
        like = h if h is not None else own
        axes = dict(zip(self._scope_axes("h", h), h.shape)) if h is not None else {}
        dtype = own.dtype if own is not None else h.dtype if h is not None else torch.float32
        device = like.device if like is not None else torch.device("cpu")
        return Draws(given.get(SEED), self.places, {**self.heads, **self.lengths, **axes}, device, dtype)


def _long(t: torch.Tensor) -> torch.Tensor:
    """A tensor that makes a weight, which is computed in 32 bits at least: what is small beside the weight would be lost."""
    return t.float() if t.is_floating_point() and t.dtype.itemsize < 4 else t
