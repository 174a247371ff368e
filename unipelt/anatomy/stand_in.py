"""A method of one object, replaced for a while, as accelerate replaces the ``forward`` of a module whose weights it keeps elsewhere."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any


class StandIn:
    """Takes the place of the method ``name`` of an object, and knows what was there: another library's, else its class's own."""

    def __init__(self, owner: Any, name: str):
        self.owner, self.__name__ = owner, name
        self.before = vars(owner).get(name)

    def put(self) -> None:
        if self not in self.standing():
            setattr(self.owner, self.__name__, self)

    def take(self) -> None:
        """Puts back what was there, also where another of ours stands around it. Where another library has since put its own around
        this one, it stays, and must do nothing."""
        if vars(self.owner).get(self.__name__) is self:
            if self.before is not None:
                setattr(self.owner, self.__name__, self.before)
            else:
                delattr(self.owner, self.__name__)
        for around in self.standing():
            if around.before is self:
                around.before = self.before

    def standing(self) -> Iterator[StandIn]:
        """What stands there of ours, from the outermost on."""
        found = vars(self.owner).get(self.__name__)
        while isinstance(found, StandIn):
            yield found
            found = found.before

    def own(self) -> Any:
        """What stands in its place without this."""
        return self.before if self.before is not None else getattr(type(self.owner), self.__name__).__get__(self.owner)

    @property
    def __code__(self) -> Any:  # torch.export asks where a forward is written
        return getattr(type(self.owner), self.__name__).__code__

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.own())
