"""Looking inside: what each edit does to its h, what its gates let through, which gradients arrive.

A watch puts an eye at every edit of one adapter for the time of a block, and takes it away. Without one an edit has an
empty tuple to look at, compiled code none at all. Eyes add sums on the edits' own devices; nothing waits for a device
before the numbers are read, nothing random is drawn, and no value of the pass is touched.
"""

from __future__ import annotations

import contextlib
import math
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ..anatomy.interrupts import ended_by
from ..anatomy.sites import Site, SiteMap
from ..compiler.evaluator import Context, evaluate
from ..compiler.gates import gates
from ..compiler.named import Named
from ..language.syntax.nodes import Expr
from .copies import CopyEdit
from .hanging import hang_root
from .registry import Attached, Registry, record, registry, unwrapped
from .seam import edit_at, key_of, seams


@dataclass(frozen=True, slots=True)
class Place:
    """A row at a site of a layer. ``layer`` counts from 0 in its stack and is None outside the layers.

    A trained copy's row is ``head`` or ``train``, its site the module's path in its block.
    """

    row: str
    site: str
    layer: int | None = None

    def __str__(self) -> str:
        return "/".join([self.row, self.site, *([] if self.layer is None else [str(self.layer)])])


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of all values of a gate that were seen: each example, and each real token or head where the gate has one."""

    mean: float
    std: float
    min: float
    max: float
    count: int


@dataclass
class Sums:
    """Σ1, Σv and Σv² of a gate's values with their extremes; Σ‖out − h‖² and Σ‖h‖² of an edit, each with its number of vectors."""

    gates: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    edit: torch.Tensor | None = None

    def add_edit(self, change: torch.Tensor, h: torch.Tensor, weights: torch.Tensor | None) -> None:
        new = torch.stack([*_squares(change, weights), *_squares(h, weights)])
        self.edit = new if self.edit is None else self.edit + new

    def add_gate(self, label: str, values: torch.Tensor, weights: torch.Tensor | None) -> None:
        v = values.to(_wide(values))
        w = torch.ones_like(v) if weights is None else weights.to(v.dtype).expand(v.shape)
        low = torch.where(w > 0, v, math.inf).amin()
        high = torch.where(w > 0, v, -math.inf).amax()
        sums, ends = torch.stack([w.sum(), (w * v).sum(), (w * v * v).sum()]), torch.stack([low, high])
        before = self.gates.get(label)
        if before is not None:
            sums = before[0] + sums
            ends = torch.stack([torch.minimum(before[1][0], low), torch.maximum(before[1][1], high)])
        self.gates[label] = sums, ends

    def raw(self) -> dict[str, Any]:
        """Plain numbers, which processes can exchange."""
        return {"edit": None if self.edit is None else self.edit.tolist(),
                "gates": {k: (s.tolist(), e.tolist()) for k, (s, e) in self.gates.items()}}  # fmt: skip


@dataclass
class Seen:
    """What a watch has seen so far. ``edits`` and ``gates`` read the sums, so they may be asked at any time."""

    name: str
    places: dict[Place, Sums] = field(default_factory=dict)

    @property
    def edits(self) -> dict[Place, float]:
        """‖out − h‖ / ‖h‖ at each place: the root of the ratio of the sums of squares over all real tokens seen."""
        return self.read(self.raw())[0]

    @property
    def gates(self) -> dict[Place, dict[str, Statistics]]:
        """Statistics of each gate at each place, by the gate's label (see `compiler.gates`)."""
        return self.read(self.raw())[1]

    def __repr__(self) -> str:
        """Short: `str` is the table."""
        return f"<seen of {self.name}: {len(self.places)} places>"

    def raw(self) -> dict[Place, dict[str, Any]]:
        return {place: sums.raw() for place, sums in self.places.items()}

    @staticmethod
    def read(
        *parts: Mapping[Place, Mapping[str, Any]],
    ) -> tuple[dict[Place, float], dict[Place, dict[str, Statistics]]]:
        """Edits and gates of what one or several processes saw."""
        edits: dict[Place, float] = {}
        found: dict[Place, dict[str, Statistics]] = {}
        for place in dict.fromkeys(p for part in parts for p in part):
            own = [part[place] for part in parts if place in part]
            change, n, h, m = (sum(v) for v in zip(*([r["edit"] or [0.0] * 4 for r in own])))
            if n and m and h > 0:
                edits[place] = math.sqrt((change / n) / (h / m))
            for label in dict.fromkeys(k for r in own for k in r["gates"]):
                values = [r["gates"][label] for r in own if label in r["gates"]]
                statistics = _statistics(values)
                if statistics is not None:
                    found.setdefault(place, {})[label] = statistics
        return edits, found

    def to_json(self) -> list[dict[str, Any]]:
        edits, found = self.read(self.raw())
        return [
            {"row": p.row, "site": p.site, "layer": p.layer, "edit": edits.get(p),
             "gates": {k: {f: getattr(s, f) for f in Statistics.__slots__} for k, s in found.get(p, {}).items()}}
            for p in self.places if p in edits or p in found
        ]  # fmt: skip

    def __str__(self) -> str:
        found = self.to_json()
        names = [str(Place(e["row"], e["site"], e["layer"])) for e in found]
        width = max(map(len, ("place", *names)))
        lines = [f"{'place':<{width}}  ‖out − h‖/‖h‖  gates: mean ± std [min, max]"]
        for name, e in zip(names, found):
            edit = "" if e["edit"] is None else f"{e['edit']:.4g}"
            shown = "{0} {mean:.3f} ± {std:.3f} [{min:.3f}, {max:.3f}]"
            lines.append(
                f"{name:<{width}}  {edit:>13}  {', '.join(shown.format(k, **g) for k, g in e['gates'].items())}".rstrip()
            )
        return "\n".join(lines)


class Eye:
    """What looks at one edit. It sees the passes of one thread."""

    def __init__(self, sums: Sums, found: Mapping[str, Expr], site: Site | None):
        self.sums, self.gates, self.site = sums, dict(found), site
        self.thread = threading.get_ident()

    @torch.no_grad()
    def saw(self, h: torch.Tensor, out: torch.Tensor, c: Context | None) -> None:
        """``h`` before and after an edit, and the names its lines bound (None for a trained copy)."""
        if threading.get_ident() != self.thread or h.device.type == "meta":
            return
        mask = c.mask if c is not None else None
        if c is not None and c.places is not None:
            new = (out != h).any(-1)  # rows stand where there were placeholders: their size beside the tokens'
            self.sums.add_edit(out[new], h[~new], None)
        else:
            heads = self.site is not None and self.site.kind.has_heads
            self.sums.add_edit(out - h, h, _real(mask, h.shape[0], h.shape[-2], heads) if h.dim() > 2 else None)
        if c is None:
            return
        still = replace(c, training=False)
        for label, e in self.gates.items():
            value = evaluate(e, still)
            if isinstance(value, Named):
                self.sums.add_gate(label, value.data, _weights(value, mask))


@contextmanager
def watch(model: nn.Module, name: str = "default") -> Iterator[Seen]:
    """Within the block every pass of this thread through the adapter ``name`` is looked at.

    ``with unipelt.watch(model, "sst2") as seen: model(**batch)`` and then ``seen.edits``, ``seen.gates`` or
    ``print(seen)``. Blocks nest. In the block code made by `torch.compile` runs as written, since compiled code cannot be
    looked into; outside it nothing is compiled anew. Raises `PeltError` for an unknown adapter.
    """
    model = unwrapped(model)
    attached = record(model, name)
    r = registry(model)
    assert r is not None
    seen = Seen(name)
    hung: list[tuple[Any, Eye]] = []
    with contextlib.ExitStack() as stack:
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(ended_by(lambda: _close(model, r, hung, id(seen))))
        r.watched.add(id(seen))
        for edit, eye in _eyes(model, name, attached, seen):
            hung.append((edit, eye))
            edit.watchers += (eye,)
        hang_root(model, r)  # for the mask of real tokens
        yield seen


def _close(model: nn.Module, r: Registry, hung: list[tuple[Any, Eye]], block: int) -> None:
    for edit, eye in hung:
        edit.watchers = tuple(e for e in edit.watchers if e is not eye)
    r.watched.discard(block)
    hang_root(model, r)


def _eyes(model: nn.Module, name: str, attached: Attached, seen: Seen) -> Iterator[tuple[Any, Eye]]:
    for e in attached.plan.edits:
        place = Place(e.row.name, e.site.full_name, e.site.layer)
        yield edit_at(model, name, e), Eye(seen.places.setdefault(place, Sums()), gates(e.typing), e.site)
    heads = {path for c in attached.plan.copies if c.head for path, _ in c.parameter.uses}
    for _, seam in seams(model):
        for edit in seam.adapters[key_of(name)] if key_of(name) in seam.adapters else ():  # type: ignore[union-attr]
            if (
                isinstance(edit, CopyEdit) and edit.side == "output"
            ):  # in its host's place there is nothing to compare with
                place = copy_place(attached.plan.sites, seam.path, seam.path in heads)
                yield edit, Eye(seen.places.setdefault(place, Sums()), {}, None)


# ---------------------------------------------------------------- gradients


def gradient_norms(model: nn.Module, name: str = "default") -> dict[Place, float]:
    """‖∂loss/∂θ‖ over the trained tensors of each place, of the gradients that are there now.

    Tensors that several layers or sites share have a place of their own, without a layer; the site is ``shared`` where
    several sites share them. Of a sharded model every process must ask.
    """
    model = unwrapped(model)
    attached = record(model, name)
    return {p: float(n) for p, n in norms(parameters(attached)).items()}


def parameters(attached: Attached) -> dict[Place, list[nn.Parameter]]:
    """An adapter's trained tensors by place."""
    users: dict[str, list[Site]] = {}
    rows: dict[str, str] = {}
    for e in attached.plan.edits:
        for n in e.tensors.values():
            users.setdefault(n, []).append(e.site)
            rows[n] = e.row.name
    places: dict[str, Place] = {}
    for n, sites in users.items():
        names, layers = {s.full_name for s in sites}, {s.layer for s in sites}
        places[n] = Place(
            rows[n], names.pop() if len(names) == 1 else "shared", layers.pop() if len(layers) == 1 else None
        )
    for c in attached.plan.copies:
        places[c.name] = copy_place(attached.plan.sites, c.parameter.path.rpartition(".")[0], c.head)
    out: dict[Place, list[nn.Parameter]] = {}
    for n, p in attached.trained().items():
        out.setdefault(places[n], []).append(p)
    return out


@torch.no_grad()
def norms(places: Mapping[Place, list[nn.Parameter]]) -> dict[Place, torch.Tensor]:
    """The norm of the gradients of each list of parameters, as a tensor on its device; without a gradient, none."""
    found = {p: [t.grad for t in ts if t.grad is not None] for p, ts in places.items()}
    return {p: _whole(torch.nn.utils.get_total_norm(gs)) for p, gs in found.items() if gs}


def _whole(t: torch.Tensor) -> torch.Tensor:
    """The value of a norm over shards (a DTensor), from all processes."""
    return t.full_tensor() if hasattr(t, "full_tensor") else t  # type: ignore[operator]


# ---------------------------------------------------------------- places, sums


def copy_place(sites: SiteMap, path: str, head: bool) -> Place:
    """The place of a trained copy of a module of the base."""
    root = f"{sites.prefix}." if sites.prefix else ""
    inside = path.removeprefix(root)
    row = "head" if head else "train"
    for stack in sites.stacks:
        for layer, block in enumerate(stack.blocks):
            if inside == block or inside.startswith(f"{block}."):
                site = inside[len(block) + 1 :] or "block"
                return Place(row, f"{stack.name}.{site}" if stack.name else site, None if stack.shared else layer)
    return Place(row, inside or "model")


def _wide(t: torch.Tensor) -> torch.dtype:
    return torch.float32 if t.device.type == "mps" else torch.float64


def _squares(t: torch.Tensor, weights: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ‖vector‖² and the number of vectors, of [..., d] with weights [...]."""
    each = t.float().square().sum(-1).to(_wide(t))
    w = torch.ones_like(each) if weights is None else weights.to(each.dtype).expand(each.shape)
    return (each * w).sum(), w.sum()


def _real(mask: torch.Tensor | None, batch: int, tokens: int, heads: bool) -> torch.Tensor | None:
    """The mask of real tokens [batch, tokens] ([batch, 1, tokens] at heads) where it is about these tokens."""
    if mask is None or tuple(mask.shape) != (batch, tokens):
        return None
    return mask[:, None] if heads else mask


def _weights(value: Named, mask: torch.Tensor | None) -> torch.Tensor | None:
    if mask is None or "token" not in value.axes or "batch" not in value.axes:
        return None
    shape = dict(zip(value.axes, value.data.shape))
    if mask.shape[0] != shape["batch"] or mask.shape[1] != shape["token"]:
        return None
    return mask.reshape([shape[a] if a in ("batch", "token") else 1 for a in value.axes])


def _statistics(values: list[tuple[list[float], list[float]]]) -> Statistics | None:
    n, total, squares = (sum(v) for v in zip(*(s for s, _ in values)))
    if not n:
        return None
    mean = total / n
    low, high = min(e[0] for _, e in values), max(e[1] for _, e in values)
    return Statistics(mean, math.sqrt(max(squares / n - mean * mean, 0.0)), low, high, round(n))
