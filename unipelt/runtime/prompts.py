"""The model's doorway: rows that a method puts among the tokens, and arguments that it declares, enter where the model
is called.

Placeholder tokens are put where rows will stand, and the rows replace them behind the embeddings. Because the ids, the
mask, the positions and the labels all grow together, every length that a model derives from them (pooling at the last
token, the loss, a cache) follows by itself. Where the tokens' positions shift and where they do not is the site's
meaning: at ``embed.words`` they shift, at ``embed`` of a model with learned positions they do not.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..anatomy.sites import SiteMap
from ..compiler.plan import PlannedInput, PlannedRows
from ..language.diagnostics import error
from ..language.primitives import PLACING
from . import growing
from .arguments import Given, marks_for, take, value_for
from .edits import Edit
from .growing import Call
from .places import Layout, Rows
from .seam import Seam, place_key, seam_of
from .switch import Switch

#: What the model keeps under way of one pass: cleared when the next one enters.
_KEPT = ("mask:", "layout", "places:", "input:")


@dataclass(frozen=True)
class Placing:
    """An acting edit that puts rows among the tokens."""

    host: str
    adapter: str
    edit: Edit
    rows: PlannedRows

    @property
    def key(self) -> str:
        return place_key(self.adapter, self.edit)

    @property
    def grows(self) -> bool:
        return PLACING[self.rows.word]


class Doorway(nn.Module):
    """Hangs on the model itself: rows among the tokens, declared arguments, the mask of real tokens."""

    def __init__(self, switch: Switch, sites: SiteMap):
        super().__init__()
        self.switch, self.sites = switch, sites
        self.wanted: dict[str, tuple[PlannedInput, ...]] = {}  # by adapter, acting or not
        words = sites.named("embed.words")
        self.words = words[0].view.module if words else None
        self.hosts = tuple(dict.fromkeys(s.view.module for n in ("embed.words", "embed") for s in sites.named(n)))

    # ------------------------------------------------------------ hooks

    def enter(self, model: nn.Module, args: tuple, kwargs: dict) -> Any:
        values = self.switch.holder.values
        for key in [k for k in values if k.startswith(_KEPT)]:
            del values[key]
        kwargs = dict(kwargs)
        given = take(self.switch, self.wanted, kwargs)
        if not self.switch.live:
            return (args, kwargs) if self.wanted else None
        named = _named(model, args, kwargs)
        self._take(named, given)
        placed = self._placed(model)
        if placed:
            self._place(model, Call(model, named), placed, given)
        return ((), named) if placed or self.wanted else None

    def base_enter(self, base: nn.Module, args: tuple, kwargs: dict) -> None:
        """The base model was called past the model: rows or arguments would be left out in silence."""
        if not self.switch.live or "inside" in self.switch.holder.values:
            return
        placed = any(_placing("", s) for s in map(seam_of, base.modules()) if s is not None)
        if placed or any(self.wanted.get(name) for name in self.switch.live):
            what = "a prompt is active" if placed else "an active adapter takes an argument"
            raise error("E0543", f"{what}, and the base model was called directly, past the model it was applied to",
                        help="call the model that was given to unipelt.apply, or apply to the base model")  # fmt: skip

    def mark(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        self.switch.holder.values["inside"] = True

    def leave(self, model: nn.Module, args: tuple, output: Any) -> None:
        values = self.switch.holder.values
        values.pop("inside", None)
        for key in [k for k in values if k.startswith("places:")]:
            del values[key]  # an embedding that is called by itself afterwards is the base's

    # ------------------------------------------------------------ declared arguments

    def _take(self, named: dict[str, Any], given: Given) -> None:
        first = next((t for t in named.values() if isinstance(t, torch.Tensor)), None)
        for adapter in self.switch.live:
            for planned in self.wanted.get(adapter, ()):
                if first is not None and not planned.marks:
                    value = value_for(planned, adapter, given, first.shape[0], first.device)
                    self.switch.holder.values[f"input:{planned.name}"] = value

    # ------------------------------------------------------------ rows among the tokens

    def _placed(self, model: nn.Module) -> list[Placing]:
        """The acting edits that place rows, those at the words first: theirs stand nearest to the tokens."""
        found = []
        for path in self.hosts:
            seam = seam_of(model.get_submodule(path))
            found += _placing(path, seam) if seam is not None else []
        return found

    def _place(self, model: nn.Module, call: Call, placed: list[Placing], given: Given) -> None:
        """Makes room for the rows and notes where they stand."""
        values = self.switch.holder.values
        grows, fills = [p for p in placed if p.grows], [p for p in placed if not p.grows]
        layout = self._layout(call, grows) if grows else None
        if fills:
            marks = self._marks(call, fills, given, layout)
            values |= {p.key: marks for p in fills}
        if layout is not None:
            values |= {p.key: None if call.seen else index for p, index in zip(grows, layout.rows)}
            if not call.seen:
                values["layout"] = layout
            growing.grow(call, layout, self._own_positions)
        embeds = call.named.get("inputs_embeds")
        if embeds is not None and any(p.host == self.words for p in placed):
            # given embeddings pass by the module of the words: what stands there acts on them here
            call.named["inputs_embeds"] = self._at_words(model, embeds)

    def _layout(self, call: Call, grows: list[Placing]) -> Layout:
        moves = not self.sites.stacks[-1].learned_positions
        rows = [
            Rows(p.rows.rows, None if p.rows.word == "append" else p.rows.after, moves or p.host == self.words) for p in grows
        ]
        growing.refuse(call, rows)
        return Layout(rows, call.shape, call.mask, call.tokens.device)

    def _marks(self, call: Call, fills: list[Placing], given: Given, layout: Layout | None) -> torch.Tensor | None:
        """Which tokens are the pseudo-tokens of the text, in the sequence as long as it will be."""
        adapter, planned = min(
            ((p.adapter, i) for p in fills for i in self.wanted[p.adapter] if i.marks), key=lambda x: x[1].count or 0
        )
        tokens = call.tokens
        grown = layout.total if layout is not None else 0
        seen = call.seen - grown if call.seen else 0
        marks = marks_for(planned, adapter, given, (tokens.shape[0], tokens.shape[1]), tokens.device, seen)
        return layout.spread(marks) if marks is not None and layout is not None and not call.seen else marks

    def _at_words(self, model: nn.Module, embeds: torch.Tensor) -> torch.Tensor:
        host = model.get_submodule(str(self.words))
        seam = seam_of(host)
        assert seam is not None
        for p in _placing(str(self.words), seam):
            embeds = seam.place(p.adapter, p.edit, embeds, host)
        return embeds

    def _own_positions(self, call: Call) -> torch.Tensor:
        """The positions that the model itself gives to the tokens of a call."""
        embeddings = call.model.get_submodule(self.sites.named("embed")[0].view.module)
        own = getattr(embeddings, "create_position_ids_from_input_ids", None)
        if own is not None and call.tokens.dim() == 2:  # RoBERTa counts from its padding index
            return own(call.tokens, embeddings.padding_idx)
        start = call.seen - call.grown if call.seen else 0
        return torch.arange(start, start + call.tokens.shape[1], device=call.tokens.device)[None]


def _placing(path: str, seam: Seam) -> list[Placing]:
    return [
        Placing(path, name, e, e.places) for name, e in seam.live("output") if isinstance(e, Edit) and e.places is not None
    ]


def _named(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Every argument of a call by name."""
    signature = inspect.signature(model.forward)
    named = dict(signature.bind_partial(*args, **kwargs).arguments)
    for variadic in [n for n, p in signature.parameters.items() if p.kind is p.VAR_KEYWORD]:
        named |= named.pop(variadic, {})
    return named


def at_tokens(model: nn.Module, output: torch.Tensor) -> torch.Tensor:
    """The entries of an output at the tokens that were given: [batch, tokens and rows, …] → [batch, tokens, …].

    ``output`` is of the last pass of the model in this thread; where no rows stood among the tokens it is returned as it
    is. Raises `PeltError` (E0737) for an output of another length.
    """
    from .attach import _unwrapped, registry

    r = registry(_unwrapped(model))
    layout = r.switch.holder.values.get("layout") if r is not None and r.switch.live else None
    if layout is None:
        return output
    if output.shape[:2] != (layout.shape[0], layout.shape[1] + layout.total):
        raise error("E0737", f"the last pass had {layout.shape[1]} tokens and {layout.total} rows, and this has the shape "
                    f"{list(output.shape)}", help="give an output of that pass, of every position")  # fmt: skip
    index = layout.tokens.to(output.device)
    return output.gather(1, index.reshape(*index.shape, *[1] * (output.dim() - 2)).expand(-1, -1, *output.shape[2:]))
