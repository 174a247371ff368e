"""Of what there is one tensor each: the model, a kind of site, a layer, a site; and the axes along which there is a copy for each entry."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

#: The words that may follow `per`, besides axes.
OWNERS = ("model", "kind", "layer", "layers", "site")


@dataclass(frozen=True, slots=True)
class Owner:
    """``model``: one tensor in all. ``kind``: one for all sites of a name. ``layer``: one for each layer, whatever its sites.
    ``site``: one at each site. ``axes``: with a copy for each entry of these.

    ``each`` may be the name of an argument that has no value yet.
    """

    each: str = "site"
    axes: frozenset[str] = frozenset()

    @property
    def shared(self) -> bool:
        """Whether several sites may have the tensor in common."""
        return self.each != "site"

    @property
    def every_layer(self) -> bool:
        """Whether one tensor serves all layers."""
        return self.each in ("kind", "model")

    @property
    def open(self) -> bool:
        """Whether ``each`` is an argument without a value."""
        return self.each not in OWNERS

    @property
    def per(self) -> tuple[str, ...]:
        """The words after `per`: none where it is a site's, which is what a tensor is without them."""
        return (*((self.each,) if self.shared else ()), *sorted(self.axes))

    def outside_the_layers(self) -> Owner:
        """The owner at a site that stands there once: a kind of site and a layer are then that site."""
        return self if self.each == "model" else Owner("site", self.axes)

    def named(self, kind: str, layer: str, site: str) -> str:
        """What the owner is called where its kind of site, its layer and its site are called so. The model needs no
        name, and an argument without a value has none."""
        return {"kind": kind, "layer": layer, "site": site}.get(self.each, "")

    def __str__(self) -> str:
        """In words: `model`, `kind`, `site and head`."""
        return " and ".join([self.each, *sorted(self.axes)])


def owner_of(owners: Iterable[Owner], axes: frozenset[str]) -> Owner:
    """Who owns what is made of tensors of these owners: theirs where it is the same, else each site."""
    found = {o.each for o in owners}
    return Owner(found.pop() if len(found) == 1 else "site", axes)
