"""Who reads a parameter: a trained copy of it must act in the module that reads it, which need not be the one that holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from .base import base_parameters, children
from .record import Recording


def read_past(model: nn.Module, recordings: Sequence[Recording]) -> Mapping[str, tuple[str, ...]]:
    """Parameters that are not read by the modules that hold them, as passes show it: first path → paths of those that read it.

    One that is tied to a module without children counts too where a module that holds others reads it: which of its names
    that one reads it by is not known.
    """
    holders: dict[int, set[str]] = {}
    first: dict[int, str] = {}
    for path, p in base_parameters(model):
        first.setdefault(id(p), path)
        holders.setdefault(id(p), set()).add(path.rpartition(".")[0])
    found: dict[str, tuple[str, ...]] = {}
    for key, path in first.items():
        readers = {r for recording in recordings for r in recording.readers.get(path, ())}
        tied = len(holders[key]) > 1 and any(children(model.get_submodule(r)) for r in readers)
        if tied or readers - holders[key]:
            found[path] = tuple(sorted(readers))
    return found
