"""Of what there is one tensor each: the model, a kind of site, a layer, a site; and the axes along which there is a copy for each entry."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

#: The words behind `per` that name a place.
PLACES = ("model", "kind", "layer", "layers", "site")


@dataclass(frozen=True, slots=True)
class Owner:
    """``model``: one tensor in all. ``kind``: one for all sites of a name. ``layer``: one for each layer, whatever its sites.
    ``site``: one at each site. ``axes``: with a copy for each entry of these.

    The place may be the name of an argument that has no value yet.
    """

    place: str = "site"
    axes: frozenset[str] = frozenset()

    @property
    def shared(self) -> bool:
        """Whether several sites may have the tensor in common."""
        return self.place != "site"

    @property
    def every_layer(self) -> bool:
        """Whether one tensor serves all layers."""
        return self.place in ("kind", "model")

    @property
    def open(self) -> bool:
        """Whether the place is an argument without a value."""
        return self.place not in PLACES

    @property
    def per(self) -> tuple[str, ...]:
        """The words behind `per`: none where it is a site's, which is what a tensor is without them."""
        return (*((self.place,) if self.shared else ()), *sorted(self.axes))

    def outside_the_layers(self) -> Owner:
        """The owner at a site that stands there once: a kind of site and a layer are then that site."""
        return self if self.place == "model" else Owner("site", self.axes)

    def named(self, kind: str, layer: str, site: str) -> str:
        """What the owner is called where its kind of site, its layer and its site are called so. The model needs no
        name, and an argument without a value has none."""
        return {"kind": kind, "layer": layer, "site": site}.get(self.place, "")

    def __str__(self) -> str:
        """In words: `model`, `kind`, `site and head`."""
        return " and ".join([self.place, *sorted(self.axes)])


def owner_of(owners: Iterable[Owner], axes: frozenset[str]) -> Owner:
    """Who owns what is made of tensors of these owners: theirs where it is one place, else each site."""
    places = {o.place for o in owners}
    return Owner(places.pop() if len(places) == 1 else "site", axes)
