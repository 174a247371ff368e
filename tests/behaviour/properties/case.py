"""A method on a model, and what a property may ask of the model, whatever its kind.

Models differ here by facts, which are found on the model: the tokens it reads, which of them it writes on, and whether
the base by itself is the same beside padding. A property is written once, against these.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tiny import PAD, Bases, batch, distance, giving, look, loss, put, size, small, trained
from torch import Tensor, nn
from trained import among_members
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

import unipelt
from unipelt.compiler import along
from unipelt.compiler.drawn import draws

#: What an edit changes at least, with its tensors randomised.
EFFECT = 1e-3
NEW = 5  # tokens that a generation writes
Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class Tokens:
    """Tokens that a model reads: its arguments for them, and the outputs with an entry for each of them.

    ``causal``: no token sees a later one. ``source``: what a prompt's rows stand among.
    """

    ids: str
    mask: str
    positions: str | None
    outputs: tuple[str, ...]
    causal: bool
    source: bool


def tokens_of(model: Any) -> tuple[Tokens, ...]:
    """The tokens that a model reads, those of an encoder before its decoder's; none where it reads sound or pictures."""
    names = inspect.signature(model.forward).parameters
    towers, writes = bool(model.config.is_encoder_decoder), model.can_generate()
    found = []
    for front in ("", "decoder_"):
        if f"{front}input_ids" in names:
            outputs = ("encoder_last_hidden_state",) if towers and not front else ("logits", "last_hidden_state")
            positions = f"{front}position_ids" if f"{front}position_ids" in names else None
            causal = writes and (bool(front) or not towers)
            found.append(Tokens(f"{front}input_ids", f"{front}attention_mask", positions, outputs, causal, not front))
    return tuple(found)


@dataclass
class Case:
    """``kind`` names a model of `tiny`; ``folder`` is a place for files."""

    spec: str
    kind: str
    bases: Bases
    folder: Path | None = None

    def base(self, dtype: torch.dtype = torch.float32, copy_number: int = 0) -> nn.Module:
        return self.bases.get(self.kind, dtype, copy_number)

    def bare(self, dtype: torch.dtype) -> nn.Module:
        """A base that is never lent, so that no method is on it whenever something of it is found and remembered."""
        return self.bases.get(self.kind, dtype, copy_number=-1)

    def acting(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A base of its own with the method on, randomised, as adapter ``a``: for properties that leave it so."""
        return self.bases.get(self.kind, dtype, wearing=self.spec)

    def put(self, model: nn.Module, name: str = "a", noise: int = 0, **options: Any) -> Any:
        return put(model, self.spec, name, noise, **options)

    @cached_property
    def plan(self) -> Any:
        with among_members(self.base(), small(self.spec)) as method:
            return unipelt.plan(self.base(), method, allow_future=True)

    @property
    def knows_training(self) -> bool:
        """Whether a row reads that there is training, or how far it has come (outside training it has ended)."""
        return any({"training", "progress"} & set(e.row.reads) for e in self.plan.edits)

    @cached_property
    def resting(self) -> set[str]:
        """Trained tensors that have a gradient in training alone: what scales noise, which is 0 outside it, or what a row reads there only.
        And those of which the plan says that their place does not read them."""
        unread = {e.tensors[n] for names, silent, _ in along.unread(self.plan.edits) for e in silent for n in names}
        if not self.knows_training and not any(draws(e.typing) for e in self.plan.edits):
            return unread
        m, found = self.bases.get(self.kind, torch.float32, copy_number=1), []
        self.put(m, "resting")
        for training in (False, True):
            m.train(training)
            loss(m, self.inputs).backward()
            found.append({n for n, p in trained(m, "resting").items() if p.grad is not None})
            m.zero_grad()
        m.eval()
        unipelt.remove(m, "resting")
        return unread | (found[1] - found[0])

    def before(self, dtype: torch.dtype = torch.float32) -> Inputs:
        """What the base yields for `inputs`."""
        return self.bases.once((self.kind, dtype), lambda: look(self.bare(dtype), self.inputs))

    def acted(self, dtype: torch.dtype = torch.float32) -> Inputs:
        """What it yields with the method on, which is something else."""
        found = self.bases.once((self.kind, dtype, self.spec), lambda: look(self.acting(dtype), self.inputs))
        assert distance(found, self.before(dtype)) > EFFECT
        return found

    # ------------------------------------------------------------ inputs and outputs

    @cached_property
    def inputs(self) -> Inputs:
        """Three examples; where there is padding, one is shorter."""
        return batch(self.kind)

    def text(self, rows: int, tokens: int, seed: int = 0) -> Inputs:
        """Inputs without padding."""
        return batch(self.kind, rows=rows, tokens=tokens, padded=False, seed=seed)

    @cached_property
    def tokens(self) -> tuple[Tokens, ...]:
        return tokens_of(self.base())

    @cached_property
    def written(self) -> Tokens | None:
        """The tokens that generation writes on."""
        return next((t for t in self.tokens if t.causal), None)

    def at_tokens(self, model: nn.Module, outputs: Inputs) -> Inputs:
        """The outputs of the last pass, without the entries of rows that a prompt put among the tokens."""
        source = {n for t in self.tokens if t.source for n in t.outputs}
        return {n: unipelt.at_tokens(model, t) if n in source and t.dim() == 3 else t for n, t in outputs.items()}

    def logits(self, model: nn.Module, inputs: Inputs, **more: Any) -> Tensor:
        """[batch, tokens written on, vocabulary]."""
        return self.at_tokens(model, look(model, inputs, **more))["logits"]

    # ------------------------------------------------------------ padding

    def beside_longer(self, side: str) -> tuple[Inputs, Inputs]:
        """One example alone, and the same beside one whose every text is longer, its own padded at a side."""
        alone, longer = self.text(1, 5), self.text(1, 9, seed=8)
        both = {
            n: torch.cat([pad(t, longer[n].shape[1], side) if t.dim() == 2 else t, longer[n]]) for n, t in alone.items()
        }
        for given in (alone, both):
            given |= {t.positions: (given[t.mask].cumsum(1) - 1).clamp(min=0) for t in self.tokens if t.positions}
        return alone, both

    def padded(self, model: nn.Module, side: str) -> tuple[Inputs, Inputs]:
        """What the one example yields alone and beside the longer one, at its real tokens.

        At the left, of a text with an output for each token only these: where a pad stands first, what is read there for
        the whole text is a pad's.
        """
        given = self.beside_longer(side)
        wanted, got = (self.at_tokens(model, look(model, g, ("encoder_last_hidden_state",))) for g in given)
        by_token = {n: t for t in self.tokens for n in t.outputs if n in wanted and wanted[n].dim() == 3}
        cut = {}
        for n, t in got.items():
            if n in by_token:
                real = wanted[n].shape[1]
                cut[n] = t[:1, -real:] if side == "left" else t[:1, :real]
            elif side == "right" or not by_token:
                cut[n] = t[:1]
        return {n: wanted[n] for n in cut}, cut

    def base_holds(self, side: str) -> bool:
        """Whether the base, without any method, yields the same beside padding at a side."""
        return self.bases.once(
            (self.kind, "padding", side), lambda: _close(*self.padded(self.bare(torch.float64), side))
        )

    # ------------------------------------------------------------ decoding

    def giving(self, model: nn.Module, inputs: Inputs) -> AbstractContextManager[Any]:
        """A block in which the arguments that the method declares are there, as the ids of the inputs make them."""
        return giving(model, inputs)

    def read_once(self, model: nn.Module, inputs: Inputs) -> dict[str, Any]:
        """The arguments that stay the same while tokens are written: what an encoder made of the source, if there is one."""
        rest = {n: t for n, t in inputs.items() if self.written and n not in (self.written.ids, self.written.mask)}
        if not rest:
            return {}
        with torch.no_grad():
            states = model.get_encoder()(**rest)  # type: ignore[operator]
        return {"encoder_outputs": states, **{n: t for n, t in rest.items() if n == "attention_mask"}}

    def cache(self, model: Any, read: dict[str, Any], room: int | None = None) -> Any:
        """An empty cache, a static one if there is a limit of ``room`` tokens."""

        def make(n: int | None) -> Any:
            return DynamicCache(config=model.config) if n is None else StaticCache(config=model.config, max_cache_len=n)

        if "encoder_outputs" not in read:
            return make(room)
        return EncoderDecoderCache(make(room), make(None if room is None else read["encoder_outputs"][0].shape[1]))

    def generate(self, model: Any, inputs: Inputs, **options: Any) -> Tensor:
        """The `NEW` tokens that are written after those given: [batch, NEW]."""
        assert self.written is not None
        if "force_unique_generate_call" in inspect.signature(model.generate).parameters:
            options["force_unique_generate_call"] = True  # of Whisper, which cuts off the tokens that it was given
        with self.giving(model, inputs):
            out = model.generate(**inputs, max_new_tokens=NEW, do_sample=False, pad_token_id=PAD, **options)
        given = inputs[self.written.ids]
        assert out.shape[1] == given.shape[1] + NEW and torch.equal(out[:, : given.shape[1]], given)
        return out[:, -NEW:]

    def written_on(self, inputs: Inputs, new: Tensor) -> Inputs:
        """The inputs with what was generated behind them."""
        assert self.written is not None
        ids, mask = self.written.ids, self.written.mask
        return {
            **inputs,
            ids: torch.cat([inputs[ids], new], 1),
            mask: torch.cat([inputs[mask], torch.ones_like(new)], 1),
        }

    def prompts(self) -> tuple[Inputs, Inputs, Inputs] | None:
        """A short source, a long one, and both as one batch: padded at the left if it is written on, else at the right.

        The texts that are written on behind a source are as long as one another. None: the source has no padding.
        """
        if not self.tokens or not self.tokens[0].source:
            return None
        source = self.tokens[0]
        short, long = self.text(1, 4, seed=3), self.text(1, 7, seed=4)
        if source is not self.written and self.written is not None:
            for n in (self.written.ids, self.written.mask):
                long[n] = long[n][:, : short[n].shape[1]]
        side = "left" if source is self.written else "right"
        both = {
            n: torch.cat([pad(t, long[n].shape[1], side) if t.dim() == 2 else t, long[n]]) for n, t in short.items()
        }
        return short, long, both


def pad(t: Tensor, length: int, side: str) -> Tensor:
    """[batch, tokens] of ids (or a mask) → [batch, length], with pads (or zeros: `PAD` is 0)."""
    room = t.new_full((t.shape[0], length - t.shape[1]), PAD)
    return torch.cat([room, t] if side == "left" else [t, room], 1)


def _close(wanted: Inputs, got: Inputs) -> bool:
    if not all(t.isfinite().all() for t in (*wanted.values(), *got.values())):
        return False  # a pad that sees no token at all is no number, and what reads it is none
    # float64, but for rotary tables and the softmax that models keep in float32
    return distance(wanted, got) <= 1e-6 * max(1.0, size(wanted))


PROPERTIES: dict[str, Callable[[Case], None]] = {}


def holds(name: str) -> Callable[[Callable[[Case], None]], Callable[[Case], None]]:
    """Adds a property by its name."""

    def add(f: Callable[[Case], None]) -> Callable[[Case], None]:
        PROPERTIES[name] = f
        return f

    return add
