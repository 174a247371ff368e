"""Walking a syntax tree: what stands below a node, a changed copy, a dotted name. Knows no node by its class."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import cache
from itertools import islice
from typing import Any


@cache
def _below(kind: type) -> tuple[str, ...] | None:
    """The fields of a kind of node in which other nodes may stand; None for what is no node."""
    if not hasattr(kind, "__dataclass_fields__"):
        return None
    return tuple(f.name for f in fields(kind) if f.name not in ("span", "name_span", "kind"))


def children(node: Any) -> Iterator[Any]:
    """The nodes directly below a node, in source order."""
    stack = [getattr(node, name) for name in reversed(_below(node.__class__) or ())]
    while stack:
        item = stack.pop()
        if item.__class__ is tuple:
            stack.extend(reversed(item))
        elif _below(item.__class__) is not None:
            yield item


def walk(node: Any) -> Iterator[Any]:
    """The node and everything below it."""
    todo = [node]
    while todo:
        item = todo.pop()
        if item.__class__ is tuple:
            todo += item
        elif (names := _below(item.__class__)) is not None:
            yield item
            todo += [getattr(item, name) for name in names]


def rewrite(node: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of the tree in which ``change`` has been applied to every node, leaves first."""
    return change(_changed(node, lambda n: rewrite(n, change)))


def descend(node: Any, change: Callable[[Any], Any]) -> Any:
    """A copy of the tree in which ``change`` has put something in the place of nodes, asked from the top; where it gives
    None, it is asked below."""
    new = change(node)
    return new if new is not None else _changed(node, lambda n: descend(n, change))


def _changed(node: Any, below: Callable[[Any], Any]) -> Any:
    """The node with what ``below`` makes of each node directly below it."""

    def visit(value: Any) -> Any:
        if value.__class__ is tuple:
            new = tuple(map(visit, value))
            return value if all(a is b for a, b in zip(new, value)) else new
        return below(value) if _below(value.__class__) is not None else value

    old = {name: getattr(node, name) for name in _below(node.__class__) or ()}
    changed = {name: new for name, value in old.items() if (new := visit(value)) is not value}
    return replace(node, **changed) if changed else node


def dotted(expr: Any) -> str | None:
    """``attn.q`` of nested `Attr` over a `Name`, else None."""
    parts: list[str] = []
    while getattr(expr, "kind", "") == "attr":
        parts.append(expr.name)
        expr = expr.value
    if getattr(expr, "kind", "") != "name":
        return None
    return ".".join([expr.id, *reversed(parts)])


def site_text(expr: Any) -> str | None:
    """``attn.q`` or ``module("regex")`` of an expression that names a site, else None."""
    function = dotted(expr.function) if getattr(expr, "kind", "") == "apply" and len(expr.args) == 1 else None
    if function is None or function.split(".")[-1] != "module":
        return dotted(expr)
    text = getattr(expr.args[0].value, "value", None)
    return f'{function}("{text}")' if isinstance(text, str) else None


def large(node: Any, most: int = 2_000) -> bool:
    """Whether an expression has more nodes than lines are put in each other's place for: they may double from line to line."""
    return next(islice(walk(node), most, None), None) is not None
