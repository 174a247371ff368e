"""Which rows share the softmax of their heads: later rows then see a larger ``log_mass``.

By the structure of the composition after inlining its lets, never by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

from ..ir import Row
from ..syntax.parser import parse_expression
from ..syntax.nodes import Expr, Let, Name, Statement, rewrite
from ..syntax.tree import large


@lru_cache(maxsize=1)
def _shared_softmax() -> Expr:

    share = "sigmoid(logsumexp(scores) - log_mass)"
    return parse_expression(f"(1 - {share}) * h + {share} * delta")


def shares_softmax(row: Row) -> bool:
    """Whether the composition gives delta its share of one softmax with the tokens' own keys and values."""
    return row.gate is None and inlined(row.compose, "out") == _shared_softmax()


def _put(known: Mapping[str, Expr], n: Any) -> Any:
    return known.get(n.id, n) if isinstance(n, Name) else n


def inlined(body: tuple[Statement, ...], name: str) -> Expr | None:
    """What a body binds to a name, with its lets inlined; None where that is `large`."""
    known: dict[str, Expr] = {}
    for s in body:
        if isinstance(s, Let) and len(s.names) == 1:
            value = rewrite(s.value, partial(_put, known))
            known.pop(s.names[0], None)
            known |= {s.names[0]: value} if not large(value) else {}
    return known.get(name)
