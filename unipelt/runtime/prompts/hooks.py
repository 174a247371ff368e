"""Rows that a method puts among the tokens, and arguments that it declares, enter where the model is called.

Placeholder tokens are put where rows will stand, and the rows replace them behind the embeddings. Because the ids, the
mask, the positions and the labels all grow together, every length that a model derives from them (pooling at the last
token, the loss, a cache) follows by itself; `outputs` leaves them out of what the model returns. Whether the tokens' positions
shift is the site's meaning: at ``embed.words`` they shift, at ``embed`` of a model with learned positions they do not.

Of an encoder–decoder the input is the encoder's. Rows enter where the encoder is called, as generation calls it by itself,
before the first call of the model; its tokens are nobody else's, but for the mask by which the decoder looks at them.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...anatomy.sites import SiteMap
from ...compiler.among import entrance
from ...compiler.plan import Plan, PlannedInput, PlannedPrompt
from ...language.report.diagnostics import error
from .arguments import Given, marks_for, take, value_for
from .call import Call, grow, named_arguments, refuse
from .layout import Layout, Rows, most, ragged
from .pictures import Unplaced, pictured
from .room import Room
from .selected import reads_text
from .veils import veils
from ..copies import element
from ..seam import seam_of, with_element
from ..switch import Switch

#: What the thread's holder has while a pass of the model is under way (see `forward`).
INSIDE = "inside"


@dataclass(frozen=True)
class Prompt:
    """A planned edit that puts rows among the tokens of a stack, at the module ``host``; ``key``: see `Pass.positions`; ``block``:
    which one they enter, None where they enter the model."""

    stack: str
    host: str
    adapter: str
    key: tuple[str, str, str]
    plan: PlannedPrompt
    block: int | None = None


def prompts(plan: Plan, adapter: str) -> tuple[Prompt, ...]:
    """The edits of a plan that put rows among the tokens."""
    return tuple(
        Prompt(e.site.stack, e.site.view.module, adapter, (adapter, e.site.label, e.row.name), e.prompt, e.late)
        for e in plan.edits if e.prompt is not None
    )  # fmt: skip


class InputHooks:
    """Hooks of the model itself and of the module of its first stack: rows among the tokens, declared arguments.

    ``tower`` is the module whose call takes the tokens that rows stand among (a path, ``""`` for the model itself).
    """

    def __init__(self, switch: Switch, sites: SiteMap):
        self.switch, self.sites = switch, sites
        self.declared: dict[str, tuple[PlannedInput, ...]] = {}  # by adapter, acting or not
        self.names: frozenset[str] = frozenset()  # of the declared arguments
        self.prompts: dict[str, tuple[Prompt, ...]] = {}
        self.asked: dict[str, bool | None] = {}  # by adapter, see `_of_text`
        self.selecting: dict[str, bool] = {}  # adapters that change some tokens, and whether these are found by a text
        self.pictures = False  # whether rows stand among the parts of a picture
        self.towers: dict[str, nn.Module] = {}  # the stacks' modules
        self.embeddings: dict[str, nn.Module] = {}  # by stack, where the parts of a picture leave theirs
        self.room: Room | None = None  # for rows that move the tokens' positions
        self.tower = sites.main[0].module if len(sites.main) > 1 else ""
        entered = sites.entered()
        self.words = next((s.view.module for s in entered if not s.kind.positions), None)
        self.embeds = entered[-1].view.module if entered else ""
        self.hosts = tuple(dict.fromkeys(s.view.module for s in entered))

    def update(self, model: nn.Module, plans: Mapping[str, Plan]) -> None:
        """Brings the hooks up to date with the attached adapters."""
        self.declared = {n: p.inputs for n, p in plans.items() if p.inputs}
        self.names = frozenset([i.name for declared in self.declared.values() for i in declared])
        asked, known = self.asked, self.prompts  # what is attached already is not looked at again
        self.asked = {n: asked[n] if n in asked else _of_text(p) for n, p in plans.items()}
        self.selecting = {n: since for n, since in self.asked.items() if since is not None}
        self.pictures = pictured(model)
        self.prompts = {n: known[n] if n in known else prompts(p, n) for n, p in plans.items()}
        self.towers = {s.name: model.get_submodule(self.sites.tower(s)) for s in self.sites.stacks}
        rows = [p for placed in self.prompts.values() for p in placed]
        entered = {p.stack: entrance(self.sites, p.stack) for p in rows if p.block is not None}
        self.embeddings = {n: model.get_submodule(s.view.module) for n, s in entered.items()
                           if s is not None and pictured(model if self._of_model(n) else self.towers[n])}  # fmt: skip
        self.room = Room.of(model, self.sites) if rows else None

    # ------------------------------------------------------------ hooks

    def enter(self, model: nn.Module, args: tuple, kwargs: dict) -> Any:
        current = self.switch.holder.current
        current.begin()
        kwargs = dict(kwargs)
        given = take(self.switch, self.names, kwargs)
        if not self.switch.live:
            return (args, kwargs) if self.names else None
        named = named_arguments(model, args, kwargs)
        self._take(named, given)
        current.given = given
        placed = self._acting() if not self.tower else []
        if placed and self.pictures:
            self._await(placed, self.sites.main[0].name)
        elif placed:
            self._make_room(Call(model, named), placed, given)
        return ((), named) if placed or self.names else None

    def enter_encoder(self, encoder: nn.Module, args: tuple, kwargs: dict) -> Any:
        """The encoder is called: by the model, or past it (generation), where only a block can have given arguments."""
        if not self.switch.live:
            return None
        given, kwargs = self.switch.holder.current.given, dict(kwargs)
        alone = given is None
        if given is None:
            self.switch.holder.current.begin()
            given = take(self.switch, self.names, kwargs)
        named = named_arguments(encoder, args, kwargs)
        if alone:
            self._take(named, given)
        placed = self._acting()
        if placed:
            self._make_room(Call(encoder, named), placed, given)
        return ((), named) if placed or self.names else None

    def enter_alone(self, tower: nn.Module, args: tuple, kwargs: dict) -> Any:
        """The tower of the model's tokens may be called past the model, as for the features of a text."""
        return None if INSIDE in self.switch.holder.values else self.enter_encoder(tower, args, kwargs)

    def leave_alone(self, tower: nn.Module, args: tuple, output: Any) -> None:
        if INSIDE not in self.switch.holder.values:
            self.switch.holder.current.end()

    def enter_pictures(self, tower: nn.Module, args: tuple, kwargs: dict) -> None:
        """A tower of pictures beside that of the model's tokens: where its rows stand is known behind its embeddings."""
        current = self.switch.holder.current
        if self.switch.live and INSIDE not in self.switch.holder.values:
            current.begin()
        for stack in {s.name for s in self.sites.stacks if tower is self.towers.get(s.name)}:
            placed = [p for p in self._live() if p.stack == stack and not self._of_model(stack)]
            self._await(placed, stack, main=False)

    def _await(self, placed: Sequence[Prompt], stack: str, main: bool = True) -> None:
        """Notes that rows wait for the parts of a picture to leave their embeddings."""
        keys, current = [p.key for p in placed], self.switch.holder.current
        if keys:
            waiting = Unplaced(stack, keys, self._rows(placed), [p.block for p in placed], main)
            current.waiting[stack] = waiting
            current.positions |= {p.key: waiting for p in placed if p.block is None}

    def leave_embeddings(self, module: nn.Module, args: tuple, output: Any) -> Any:
        """Room for rows among the parts of a picture, where all of them enter a block."""
        current = self.switch.holder.current
        waiting = next((w for w in current.waiting.values() if module is self.embeddings.get(w.stack)), None)
        if waiting is None:
            return None
        return with_element(output, waiting.make_room(element(output), current))

    def leave_encoder(self, encoder: nn.Module, args: tuple, output: Any) -> None:
        self.switch.holder.current.positions = {}  # a decoder may embed its own tokens with the same module

    def enter_decoder(self, decoder: nn.Module, args: tuple, kwargs: dict) -> Any:
        """The mask by which a decoder looks at its encoder's tokens knows nothing of the rows among them.

        It is made longer where the encoder's states are: those that came without rows (of another pass) keep their mask.
        """
        grows = [p for p in self._acting() if p.plan.grows] if self.switch.live else []
        named = named_arguments(decoder, args, kwargs) if grows else {}
        states, mask = named.get("encoder_hidden_states"), named.get("encoder_attention_mask")
        if states is None:
            return None
        rows = self._rows(grows, states.shape[0])
        if mask is None and ragged(rows, states.shape[0]):  # some of the states are those of pads
            mask = torch.ones((states.shape[0], states.shape[1] - most(rows)), dtype=torch.long, device=states.device)
        if mask is None or mask.dim() != 2:
            return None
        layout = Layout(rows, (mask.shape[0], mask.shape[1]), mask, mask.device)
        if states.shape[1] != mask.shape[1] + layout.total:
            return None
        return (), {**named, "encoder_attention_mask": layout.mask(mask)}

    def base_enter(self, base: nn.Module, args: tuple, kwargs: dict) -> None:
        """The base model was called past the model: rows or arguments would be left out in silence."""
        if not self.switch.live or INSIDE in self.switch.holder.values:
            return
        placed = not self.tower and self._acting()
        if placed or any(self.declared.get(name) for name in self.switch.live):
            what = "a prompt is active" if placed else "an active adapter takes an argument"
            raise error("E0543", f"{what}, and the base model was called directly, past the model it was applied to",
                        help="call the model that was given to unipelt.apply, or apply to the base model")  # fmt: skip

    def leave(self, model: nn.Module, args: tuple, output: Any) -> None:
        self.switch.holder.current.end()

    def draw(self, model: nn.Module, args: tuple) -> None:
        """Draws ``chance``, one number in [0, 1) for the pass, while an adapter acts.

        It comes from torch's generator on the CPU, as dropout does there: `torch.manual_seed` seeds it, and a checkpoint that keeps
        the generator's state resumes it. It stays until the next call, so layers that are computed again in the backward pass
        (gradient checkpointing) see the same number. Each process of a distributed run draws its own.
        """
        if self.switch.live:
            self.switch.holder.current.chance = torch.rand(())

    def draw_seed(self, model: nn.Module, args: tuple) -> None:
        """Draws what `noise[…]` and `chance[…]` follow from, as `draw` does the number of the pass."""
        if self.switch.live:
            self.switch.holder.current.seed = torch.randint(2**62, ())

    # ------------------------------------------------------------ declared arguments

    def _take(self, named: dict[str, Any], given: Given) -> None:
        first = next((t for t in named.values() if isinstance(t, torch.Tensor)), None)
        for adapter in self.switch.live:
            for planned in self.declared.get(adapter, ()):
                if first is not None and not planned.marks:
                    value = value_for(planned, adapter, given, first.shape[0], first.device)
                    self.switch.holder.current.inputs[planned.name] = value

    # ------------------------------------------------------------ rows among the tokens

    @property
    def moving(self) -> int:
        """How many positions of the model's table the rows of the acting adapters take from the tokens."""
        rows = self._rows([p for p in self._acting() if p.plan.grows]) if self.room is not None else []
        return sum(r.count for r in rows if r.moves)

    @property
    def standing(self) -> int:
        """How many rows the acting adapters put among the tokens."""
        return sum(p.plan.rows for p in self._acting() if p.plan.grows)

    def looks_for_text(self, acting: Sequence[str]) -> bool:
        """Whether an acting adapter finds its tokens by a text."""
        return any(self.selecting.get(name, False) for name in acting)

    def _of_model(self, stack: str) -> bool:
        """Whether the tokens of a stack are those that the model is called with."""
        return stack == self.sites.main[0].name

    def _acting(self) -> list[Prompt]:
        """What the acting adapters place, at the words first, then block by block: the first rows stand nearest to the tokens."""
        acting = self._live()
        late = sorted(
            (p for p in acting if p.block is not None and self._of_model(p.stack)), key=lambda p: p.block or 0
        )
        return [*(p for host in self.hosts for p in acting if p.host == host), *late]

    def _live(self) -> list[Prompt]:
        return [p for name in self.switch.live for p in self.prompts.get(name, ())]

    def _rows(self, grows: Sequence[Prompt], batch: int | None = None) -> list[Rows]:
        """The rows that prompts put among the tokens; of a ``batch`` whose examples have adapters of their own, each to its own."""
        moves = not self.sites.main[0].learned_positions
        mixture = self.switch.mixture() if batch is not None and self.switch.mixes else None
        who = {g.name: g.at for g in mixture.groups(batch)} if mixture is not None and batch is not None else {}
        return [Rows(p.plan.rows, p.plan.behind, moves or p.host == self.words, who.get(p.adapter)) for p in grows]

    def _make_room(self, call: Call, placed: list[Prompt], given: Given) -> None:
        """Makes room for the rows and notes where they stand."""
        current = self.switch.holder.current
        if call.continues:
            current.positions |= dict.fromkeys(p.key for p in placed if p.block is None)
            return
        grows, fills = [p for p in placed if p.plan.grows], [p for p in placed if not p.plan.grows]
        layout = self._layout(call, grows) if grows else None
        if fills:
            marks = self._marks(call, fills, given, layout)
            current.positions |= {p.key: marks for p in fills}
        if layout is not None:
            keys, blocks = [p.key for p in grows], [p.block for p in grows]
            current.veils = veils(self.sites.main[0].name, keys, blocks, layout)
            current.place(keys, blocks, [None] * len(grows) if call.seen else layout.rows)
            if not call.seen:
                current.layout = layout
            grow(call, layout, self._own_positions, self.room is not None and self.room.masked)
        embeds = call.named.get("inputs_embeds")
        if embeds is not None and any(p.host == self.words for p in placed):
            # given embeddings pass by the module of the words: what stands there acts on them here
            call.named["inputs_embeds"] = self._at_words(call.model, embeds)

    def _layout(self, call: Call, grows: list[Prompt]) -> Layout:
        batch = call.tokens.shape[0]
        rows = self._rows(grows, batch)
        refuse(call, rows)
        if self.room is not None:
            self.room.refuse(call, rows)
        main, pads = self.sites.main[0], ragged(rows, batch)
        if pads and main.causal and main.learned_positions and not self._is_told(call.model):
            raise error("E0853", f"the adapters of this batch put different numbers of rows among the tokens, and {type(call.model).__name__} "
                        "takes no positions, so that some texts would be shifted", help="run the examples of each by themselves")  # fmt: skip
        if pads and call.mask is None:  # pads are among the tokens now
            seen = call.seen - most(rows) if call.seen else 0
            shape = (batch, seen + call.tokens.shape[1])
            call.named["attention_mask"] = torch.ones(shape, dtype=torch.long, device=call.tokens.device)
        shape = call.shape
        if call.seen and call.mask is None and any(p.block is not None for p in grows):
            shape = (batch, call.seen - most(rows) + shape[1])  # where those stand is asked in each step
        return Layout(rows, shape, call.mask, call.tokens.device, main.causal)

    def _is_told(self, model: nn.Module) -> bool:
        """Whether a model can be told the tokens' positions: by an argument, or by the mask."""
        by_mask = self.room is not None and self.room.masked
        return by_mask or "position_ids" in inspect.signature(model.forward).parameters

    def _marks(self, call: Call, fills: list[Prompt], given: Given, layout: Layout | None) -> torch.Tensor | None:
        """Which tokens are the pseudo-tokens of the text, in the sequence as long as it will be."""
        adapter, planned = min(
            ((p.adapter, i) for p in fills for i in self.declared[p.adapter] if i.marks), key=lambda x: x[1].count or 0
        )
        tokens = call.tokens
        grown = layout.total if layout is not None else 0
        seen = call.seen - grown if call.seen else 0
        marks = marks_for(planned, adapter, given, (tokens.shape[0], tokens.shape[1]), tokens.device, seen)
        return layout.spread(marks) if marks is not None and layout is not None and not call.seen else marks

    def _inside(self, entered: nn.Module, path: str) -> nn.Module:
        """A module of the model, found from the one that was entered: the model itself, or its first tower."""
        first = self.sites.main[0]
        front = self.tower if self.tower else self.sites.tower(first) if entered is self.towers[first.name] else ""
        return entered.get_submodule(path.removeprefix(f"{front}.") if front else path)

    def _at_words(self, entered: nn.Module, embeds: torch.Tensor) -> torch.Tensor:
        host = self._inside(entered, str(self.words))
        seam = seam_of(host)
        assert seam is not None
        return seam.put_prompts(embeds, host)

    def _own_positions(self, call: Call) -> torch.Tensor:
        """The positions that the model itself gives to the tokens of a call."""
        embeddings = self._inside(call.model, self.embeds)
        own = getattr(embeddings, "create_position_ids_from_input_ids", None)
        if own is not None and call.tokens.dim() == 2:  # RoBERTa counts from its padding index
            return own(call.tokens, embeddings.padding_idx)
        start = call.seen - call.grown if call.seen else 0
        return torch.arange(start, start + call.tokens.shape[1], device=call.tokens.device)[None]


def _of_text(plan: Plan) -> bool | None:
    """Whether an adapter finds tokens by a text; None where it need not know the tokens that enter."""
    edits = [e for e in plan.edits if reads_text(e)]
    return any(c.word == "since" for e in edits for c in e.typing.tokens) if edits else None
