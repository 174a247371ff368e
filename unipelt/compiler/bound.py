"""A recipe bound to its tensors: the function that a host calls in passes in which nothing has changed (see `runtime.steady`).

Straight code again: it looks whether what enters lies as it did before, computes, and returns the result; None where it does not. What is
the same at every call stands in the function's cells, so that equal rows of all layers have one code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .recipe import Recipe, compiled, turned

#: What the function is called with, by what is asked of the row.
CALLED = {"output": "_args, _kwargs, _output", "input": "_args, _kwargs", "rows": ""}
_FIRST = '_args[0] if _args else _kwargs.get("hidden_states")'
#: Where what the recipe reads comes from; of what hooks have left, under the key that is bound as ``_key_NAME``.
SOURCES = {
    "enters": _FIRST,
    "leaves": "_output",
    "first of a tuple": "_output[0] if type(_output) is tuple and _output else None",
    "left": "_values.get(_key_{0})",
    "left with a flag": "(_values.get(_key_{0}) or (None,))[0]",
}


@dataclass(frozen=True, slots=True)
class Read:
    """A tensor that a recipe reads: where it comes from (a key of `SOURCES`), how it lies, the key under which it was left, and
    whether the row is computed in another dtype."""

    source: str
    dtype: torch.dtype
    dims: int
    key: str | None = None
    cast: bool = False


def bound(
    recipe: Recipe, called: str, reads: Mapping[str, Read], modules: Sequence[Any], tensors: Sequence[torch.Tensor],
    own: torch.dtype | None, holder: Any,
) -> Callable[..., Any]:  # fmt: skip
    """The function that computes a recipe, called with what `CALLED` says. Bound are the frozen ``modules`` (or what calls them) and the row's
    ``tensors``, or what was folded of them.

    ``reads`` has what enters by the language's names for it; ``own`` is the dtype in which the row is computed; the ``holder`` has
    what hooks have left.
    """
    count = len(recipe.reads), len(recipe.reads) + len(recipe.besides)
    names = dict(zip(recipe.reads, recipe.arguments))
    frozen, held = recipe.arguments[count[0] : count[1]], recipe.arguments[count[1] :]
    cells: dict[str, Any] = {"_tensor": torch.Tensor, "_graded": torch.is_grad_enabled, "_holder": holder, "_own": own}
    cells |= {**dict(zip(frozen, modules, strict=True)), **dict(zip(held, tensors, strict=True))}
    before, tests, behind, kinds = [], ["_graded()"], [], {r.dtype: f"_dtype_{i}" for i, r in enumerate(reads.values())}
    cells |= {**{n: d for d, n in kinds.items()}, "_device": (device := tensors[0].device)}
    for name, r in reads.items():
        n = names.get(name, name)  # h, whose dtype the result has, may go unread
        before.append(f"{n} = {SOURCES[r.source].format(n)}")
        tests.append(f"type({n}) is not _tensor or {n}.dtype is not {kinds[r.dtype]} or {n}.ndim != {r.dims}")
        if r.key is not None:
            cells[f"_key_{n}"] = r.key
            tests += [f"{n}.device != _device"] * (device.type != "cpu")  # another part of the model may run elsewhere
            behind.append(f"del _values[_key_{n}]")
        if r.cast:
            behind.append(f"{n} = {n}.to(_own)")
    if any(r.key is not None for r in reads.values()):
        before.insert(0, "_values = _holder.values")
    lines, ends, views = _turned([*recipe.lines], [*recipe.ends], held)
    for n in (n for n, m in zip(frozen, modules) if isinstance(m, torch.nn.Module)):  # past its hooks
        lines, ends = ([re.sub(rf"(?<![\w.]){n}\(", f"{n}.forward(", t) for t in texts] for texts in (lines, ends))
    result = ", ".join(ends)
    if "h" in reads:
        back = f".to({kinds[reads['h'].dtype]})" if reads["h"].cast else ""
        result = f"({result}){back}" if back else result
        if reads["h"].source == "first of a tuple":
            result = f"({result}, *_output[1:])"
    source = "\n".join(
        [
            f"def bind({', '.join(cells)}):",
            *(f"    {n} = {t}" for n, t in views.items()),
            f"    def quick({CALLED[called]}):",
            *(f"        {line}" for line in before),
            f"        if {' or '.join(tests)}:",
            "            return None",
            *(f"        {line}" for line in (*behind, *lines)),
            f"        return {result}",
            "    return quick\n",
        ]
    )
    return compiled(source, "bind")(*cells.values())  # type: ignore[no-any-return]


def _turned(lines: list[str], ends: list[str], held: Sequence[str]) -> tuple[list[str], list[str], dict[str, str]]:
    """The texts with each transposed tensor of the row under a name: it is a view, and the same at every call."""
    found = {}
    for n in held:
        for way in {m for t in (*lines, *ends) for m in re.findall(turned(n), t)}:
            found[f"_{way}_{n}"] = f"{n}.{way}"
        lines, ends = ([re.sub(turned(n), rf"_\1_{n}", t) for t in texts] for texts in (lines, ends))
    return lines, ends, found
