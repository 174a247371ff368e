"""How a text of the language names some modules of a model: by sites where all of a site's modules are meant, else by their paths."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

from .find import find


def spelled(
    model: nn.Module, places: Iterable[str], at_input: frozenset[str] = frozenset()
) -> tuple[list[str], set[str]]:
    """Sites of the modules of some paths, as in ``["attn.q", 'module("…")']``, and the paths in ``at_input`` that no site covers.

    Of the modules in ``at_input`` what enters is meant, of the others what the linear map yields."""
    left = set(places)
    of_site: dict[str, set[str]] = {}
    for s in find(model).sites:
        side = "input" if s.view.module in at_input else "output"
        whole = s.view.columns is None and not s.view.enters and s.path == ""
        if whole and s.kind.side == side and (s.kind.has_weight or side == "input") and not s.kind.is_weight:
            of_site.setdefault(s.full_name, set()).add(s.view.module)
    named = []
    for name, modules in of_site.items():
        if modules <= left:
            named.append(name)
            left -= modules
    by_path = sorted(left - at_input)
    if by_path:
        paths = "|".join(re.escape(p) for p in by_path)
        named.append(f'module("{paths}")')
    return named, left & at_input
