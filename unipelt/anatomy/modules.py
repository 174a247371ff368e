"""The sites ``module("regex")``: modules of any model, by their paths from it. Nothing else is known of them.

A linear map is a projection: its ``W`` and ``bias`` are read, and it absorbs edits. A convolution that reads one position at a
time is a linear map of each position. Of norms and embeddings the size of what leaves them is known; other modules do not say it.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from time import monotonic

import regex
from torch import nn

from ..language.report.diagnostics import Diagnostic
from ..language.sites import regular, signature
from ..language.syntax.nodes import Span
from .base import base_modules
from .layout import Layout
from .packed import IN
from .quantised import features
from .sites import Site, SiteMap, Stack, View
from .sizes import beyond_a_position, weight_shape

#: Seconds for which an expression may look at the paths of a model.
PATIENCE = 2.0
#: Paths that a message lists.
LISTED = 4
_AS_LAST = (nn.LayerNorm, nn.RMSNorm)
_BESIDE = (nn.modules.batchnorm._NormBase,)


@dataclass(frozen=True, slots=True)
class Place:
    """What is known of a module: sizes of what enters and leaves it (0: not known), how they lie, what cannot be read there, and
    why nothing can be put there."""

    d_x: int = 0
    d_out: int = 0
    layout: Layout = Layout()
    lacks: frozenset[str] = frozenset()
    refused: str = ""


def matching(
    model: nn.Module, sites: SiteMap, name: str, tower: str | None, span: Span
) -> tuple[list[Site], list[Diagnostic]]:
    """The sites of ``module("regex")`` in a model, of one tower or of all, and what is wrong with it there."""
    kind = signature(name)
    if kind is not None and kind.of:
        there, wrong = matching(model, sites, kind.of, tower, span)
        return [held for s in there if (held := s.holding(kind)) is not None], wrong
    expression = regular(name) or ""
    modules = {p: m for p, m in base_modules(model) if p}
    try:
        pattern = regex.compile(expression)
        end = monotonic() + PATIENCE
        paths = [p for p in modules if pattern.fullmatch(p, timeout=max(end - monotonic(), 1e-3))]
    except TimeoutError:
        return [], [Diagnostic("E0528", f"`{expression}` takes too long on the paths of this {type(model).__name__}", span,
                               help="write it without a repetition within a repetition")]  # fmt: skip
    except regex.error as e:
        return [], [Diagnostic("E0394", f"`{expression}` is no regular expression: {e}", span, help="correct it")]
    found: list[Site] = []
    bad: dict[str, str] = {}
    for path in paths:
        stack, layer, block = _where(sites, path)
        if tower is not None and (stack is None or stack.name != tower):
            continue
        place = place_of(model, path)
        readers = [r for r in sites.read_past.get(f"{path}.weight", ()) if r != path]
        if readers and not place.refused:
            place = Place(refused=f"`{readers[0]}` reads its weight by itself and does not call it")
        if place.refused:
            bad[path] = f"`{path}`, a {type(modules[path]).__name__}: {place.refused}"
            continue
        root = f"{sites.prefix}." if sites.prefix else ""
        around = next((s.sizes for s in sites.sites if s.block and s.block == block), {})
        found.append(Site(
            name, View(path, layout=place.layout), {**around, "d_x": place.d_x, "d_out": place.d_out}, stack=stack.name if stack else "",
            layer=layer, block=block, x=path, causal=stack.causal if stack else False, tokens=stack.name if stack and block else path,
            path=path.removeprefix(root), lacks=place.lacks,
        ))  # fmt: skip
    if bad:
        shown = "; ".join(list(bad.values())[:LISTED]) + ("; …" if len(bad) > LISTED else "")
        return [], [Diagnostic("E0529", f"`{name}` means modules at which nothing can be put: {shown}", span,
                               help="name linear maps, norms or embeddings, for example " + _examples(model, modules))]  # fmt: skip
    if not found:
        plain = expression.replace("\\", "").replace(".*", "").strip(".^$")
        near = get_close_matches(plain, modules, n=3, cutoff=0.4) or [p for p in modules if plain and plain in p][:3]
        where = f" in the {tower}" if tower else ""
        return [], [Diagnostic("E0528", f"`{name}` fits the path of no module of this {type(model).__name__}{where}", span,
                               help=f"it is matched with the whole path; {'near are' if near else 'there are'} "
                               + ", ".join(f"`{p}`" for p in near or list(modules)[:3]))]  # fmt: skip
    return found, []


def _examples(model: nn.Module, modules: dict[str, nn.Module]) -> str:
    usable = (p for p in modules if not place_of(model, p).refused)
    return ", ".join(f"`{p}`" for p in [p for p, _ in zip(usable, range(3))]) or "none, which this model has none of"


def _where(sites: SiteMap, path: str) -> tuple[Stack | None, int | None, str]:
    """The stack and the block that a module lies in: the block's number, if it is one layer's, and its path from the base."""
    root = f"{sites.prefix}." if sites.prefix else ""
    for stack in sites.stacks:
        for layer, block in enumerate(stack.blocks):
            if f"{path}.".startswith(f"{root}{block}."):
                return stack, None if stack.shared else layer, block
    inside = [s for s in sites.stacks if s.module and f"{path}.".startswith(f"{s.module}.")]
    return (inside[0] if inside else None), None, ""


def place_of(model: nn.Module, path: str) -> Place:
    """What is known of the module of a path."""
    module = model.get_submodule(path)
    parent = path.rpartition(".")[0]
    attention = model.get_submodule(parent)
    if isinstance(attention, nn.MultiheadAttention) and IN not in attention._modules:
        return Place(refused="torch's attention computes with its weight and never calls it")
    no_map = frozenset(["W", "bias"])
    if isinstance(module, nn.modules.conv._ConvNd):
        beyond, layout = beyond_a_position(module), Layout(-1 - len(module.kernel_size), module.stride)
        if beyond:
            return Place(refused=beyond)
        torchs = type(module).forward.__module__ == nn.modules.conv.__name__
        lacks = frozenset() if torchs else no_map  # another forward computes with other numbers than its weight's
        return Place(module.in_channels, module.out_channels, layout, lacks)
    known = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D" or features(module) is not None
    shape = weight_shape(module) if known else None
    if shape is not None:
        return Place(*shape)
    if isinstance(module, nn.Embedding):
        return Place(module.embedding_dim, module.embedding_dim, lacks=no_map | {"x"})
    if isinstance(module, (*_BESIDE, nn.GroupNorm)):
        d = module.num_channels if isinstance(module, nn.GroupNorm) else module.num_features
        return Place(d, d, Layout(1), no_map)
    weight = getattr(module, "weight", None)
    last = type(module) in _AS_LAST or ("norm" in type(module).__name__.lower() and not isinstance(module, _AS_LAST))
    if last and isinstance(weight, nn.Parameter) and weight.dim() == 1 and not hasattr(module, "data_format"):
        return Place(len(weight), len(weight), lacks=no_map)
    held = "it holds other modules, and " if next(module.children(), None) is not None else ""
    return Place(refused=f"{held}it does not say the size of what leaves it")
