"""Of what there is one tensor each: the model, a kind of site, a layer, a site; and the axes along which there is a copy for each entry."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..sizes import Size

#: The words that may follow `per`, besides axes.
OWNERS = ("model", "kind", "layer", "layers", "site")


@dataclass(frozen=True, slots=True)
class Owner:
    """``model``: one tensor in all. ``kind``: one for all sites of a name. ``layer``: one for each layer, whatever its sites.
    ``site``: one at each site. ``layers`` with ``span``: one for each group of so many layers that follow one another, whatever its
    sites; ``kind`` with ``span``: one for each kind of site in each such group. ``axes``: with a copy for each entry of these.

    ``each`` may be the name of an argument that has no value yet.
    """

    each: str = "site"
    axes: frozenset[str] = frozenset()
    span: Size | None = None

    @property
    def shared(self) -> bool:
        """Whether several sites may have the tensor in common."""
        return self.each != "site"

    @property
    def every_layer(self) -> bool:
        """Whether one tensor serves all layers."""
        return self.each in ("kind", "model") and self.span is None

    @property
    def several_layers(self) -> bool:
        """Whether one tensor serves several layers."""
        return self.every_layer or self.span is not None

    @property
    def open(self) -> bool:
        """Whether ``each`` is an argument without a value."""
        return self.each not in OWNERS

    @property
    def per(self) -> tuple[str, ...]:
        """The words after `per`: none where it is a site's, which is what a tensor is without them."""
        group = (f"layers({self.span.text})",) if self.span is not None else ()
        each = (self.each,) if self.shared and self.each != "layers" else ()
        return (*each, *group, *sorted(self.axes))

    def outside_the_layers(self) -> Owner:
        """The owner at a site that stands there once: a kind of site and a layer are then that site."""
        return self if self.each == "model" else Owner("site", self.axes)

    def group(self, layer: int) -> str:
        """What the group of a layer is called: by its first layer and its last, if there are so many."""
        assert self.span is not None and self.span.number is not None
        k = int(self.span.number)
        return f"layers_{layer // k * k}_{layer // k * k + k - 1}"

    def named(self, kind: str, layer: str, site: str) -> str:
        """What the owner is called where its kind of site, its layer and its site are called so. The model needs no
        name, and an argument without a value has none."""
        return {"kind": kind, "layer": layer, "site": site}.get(self.each, "")

    def __str__(self) -> str:
        """In words: `model`, `kind`, `site and head`."""
        group = [f"{self.span} layers"] if self.span is not None else []
        return " and ".join([*([self.each] if self.each != "layers" else []), *group, *sorted(self.axes)])


def owner_of(owners: Iterable[Owner], axes: frozenset[str]) -> Owner:
    """Who owns what is made of tensors of these owners: theirs where it is the same, else each site."""
    found = {(o.each, o.span) for o in owners}
    each, span = found.pop() if len(found) == 1 else ("site", None)
    return Owner(each, axes, span)
