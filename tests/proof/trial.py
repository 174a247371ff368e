"""One method on one tiny model, run so that its edits can be looked at: the ground on which verdicts are judged.

Everything is measured in float64: casts to float32 inside the models (norms, softmaxes, rotary tables) are passed over
(`Exact`), since rounding there would hide what differs by 1e-9.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from tiny import ENCODER_DECODERS, MARK, batch, build, outputs, randomise, starting
from torch import nn
from torch.overrides import TorchFunctionMode
from trained import among_members

import unipelt
from unipelt.compiler.evaluator import Context
from unipelt.compiler.plan import Plan, PlannedEdit
from unipelt.language.ir import Method
from unipelt.runtime.seam import edit_at

Inputs = dict[str, torch.Tensor]


class Exact(TorchFunctionMode):
    """Nothing that is float64 becomes float32."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = dict(kwargs or {})
        first = args[0] if args else None
        wide = isinstance(first, torch.Tensor) and first.dtype == torch.float64
        if wide and func is torch.Tensor.float:
            return first
        if wide and func is torch.Tensor.to and torch.float32 in (*args[1:], kwargs.get("dtype")):
            return first
        if wide and kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        if wide and func in (torch.Tensor.matmul, torch.matmul, torch.Tensor.__matmul__):
            args = (first, args[1].double(), *args[2:])  # positions times frequencies (a product, in older rotary code)
        return func(*args, **kwargs)


class Unstable(ArithmeticError):
    """A value that is not finite: nothing can be measured by it."""


@dataclass
class Tap:
    """One evaluation of a row at a site: h before, out after, and every name its lines bound."""

    edit: PlannedEdit
    h: torch.Tensor
    out: torch.Tensor
    context: Context


@dataclass
class Pass:
    """What one forward pass yields: the model's outputs at the tokens that were given, and its edits in their order."""

    outputs: dict[str, torch.Tensor]
    taps: list[Tap] = field(default_factory=list)


class _Eye:
    def __init__(self, edit: PlannedEdit, seen: list[Tap]):
        self.edit, self.seen = edit, seen

    def saw(self, h: torch.Tensor, out: torch.Tensor, c: Context) -> None:
        self.seen.append(
            Tap(self.edit, h.detach().clone(), out.detach().clone(), c)
        )  # an out may be a view of a tensor


_BASES: dict[tuple[str, int, bool], nn.Module] = {}


def base(kind: str, layers: int = 2, loud: bool = False) -> nn.Module:
    """A tiny model in float64, built once. ``loud``: with matrices four times as large, where what a row makes of small values
    would be too small to be seen. A pad token embeds to numbers: zeros would hide what reads it."""
    if (kind, layers, loud) not in _BASES:
        model = _BASES[kind, layers, loud] = build(kind, torch.float64, layers)
        with torch.no_grad():
            for m in model.modules():
                if isinstance(m, nn.Embedding) and m.padding_idx is not None:
                    m.weight[m.padding_idx] = m.weight[m.padding_idx - 1]
            for p in model.parameters():
                p.mul_(4.0 if loud and p.dim() > 1 else 1.0)
    return _BASES[kind, layers, loud]


class Trial:
    """A method applied to a base; `close` takes it off again. Raises `PeltError` where the method does not go onto it.

    ``started`` and ``plain`` are the same pass with the method at its start and without it. ``scale`` is the size of the
    noise that is added to every trained tensor then; above 1 the base is loud, too.
    """

    def __init__(self, kind: str, method: Method, seed: int = 0, layers: int = 2, scale: float = 0.3):
        self.kind, self.method, self.seed, self.scale = kind, method, seed, scale
        self.model = base(kind, layers, loud=scale > 1)
        self.plan = self.apply(method, "a")
        self.seen: list[Tap] = []
        try:
            self.watch("a", self.plan)
            self.inputs = self.batch(seed=seed)
            self.started = self.run(self.inputs)
            with unipelt.disabled(self.model):
                self.plain = self.run(self.inputs)
            self.randomise(seed)
        except BaseException:
            self.close()
            raise

    def apply(self, method: Method, name: str) -> Plan:
        """Puts a method onto the base, with all that some methods start from."""
        more = starting(self.model)
        with among_members(self.model, method) as written:
            return unipelt.apply(self.model, written, name=name, seed=self.seed, head=False, allow_future=True, **more)

    def batch(self, at: tuple[int, ...] = (2,), **options: Any) -> Inputs:
        """A batch for the base (`tiny.batch`), with the text by which rows select tokens at these places."""
        return self.marked(batch(self.kind, **options), *at)

    def marked(self, inputs: Inputs, *places: int, last: bool = False) -> Inputs:
        """The inputs with the text by which rows select tokens at these places, if they do; ``last``: in the last stack's alone."""
        chosen = [c for e in self.plan.edits for c in e.typing.tokens if c.word == "since"]
        if not chosen:
            return inputs
        text = chosen[0].ids or (MARK,)
        out = {n: x.clone() for n, x in inputs.items()}
        for n in ({self.ids} if last else {"input_ids", self.ids}) & set(out):
            for place in places:
                for i, number in enumerate(text):
                    out[n][:, min(place + i, out[n].shape[1] - 1)] = number
        return out

    def watch(self, adapter: str, plan: Plan) -> None:
        """What the edits of an adapter do is noted in ``seen``."""
        for e in plan.edits:
            edit_at(self.model, adapter, e).watchers = (_Eye(e, self.seen),)

    @property
    def grows(self) -> bool:
        """Whether rows stand among the tokens: positions at the sites are then not those of the tokens."""
        return any(e.prompt is not None for e in self.plan.edits)

    @property
    def ids(self) -> str:
        """The argument that holds the tokens of the (last) stack."""
        return "decoder_input_ids" if self.kind in ENCODER_DECODERS else "input_ids"

    def randomise(self, seed: int) -> None:
        if any(not t.frozen for t in self.plan.tensors.values()) or self.plan.copies:
            randomise(self.model, "a", seed, self.scale)

    def run(self, inputs: Inputs, seed: int = 0, **more: Any) -> Pass:
        """A pass with torch's generator at ``seed``."""
        self.seen.clear()
        torch.manual_seed(seed)
        with torch.no_grad(), Exact():
            found = {n: self.at_tokens(t).detach().clone() for n, t in outputs(self.model, inputs, **more).items()}
        return Pass(found, self.once_each())

    def once_each(self) -> list[Tap]:
        """What was seen of a pass, weights last and once: whether a module that uses one too computes it again or finds it kept
        says nothing about the method."""
        weights: dict[int, Tap] = {}
        for tap in self.seen:
            if tap.edit.site.kind.is_weight:
                weights.setdefault(id(tap.edit), tap)
        others = [tap for tap in self.seen if not tap.edit.site.kind.is_weight]
        return others + sorted(weights.values(), key=lambda tap: tap.edit.site.label)

    def at_tokens(self, t: torch.Tensor) -> torch.Tensor:
        return unipelt.at_tokens(self.model, t) if t.dim() == 3 and self.kind not in ENCODER_DECODERS else t

    @contextmanager
    def training(self) -> Iterator[None]:
        """A block in training, a part of the way on: at its ends what is multiplied by `progress` may be nothing."""
        unipelt.progress(self.model, 0.4)
        self.model.train()
        try:
            yield
        finally:
            self.model.eval()

    def close(self) -> None:
        if "a" in unipelt.adapters(self.model):
            unipelt.remove(self.model, "a")


@contextmanager
def trial(kind: str, method: Method, **options: Any) -> Iterator[Trial]:
    t = Trial(kind, method, **options)
    try:
        yield t
    finally:
        t.close()


def deviation(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, relative to the largest entry where that is above 1."""
    a, b = a.detach(), b.detach()  # an output may be a trained tensor itself
    if a.shape != b.shape:
        return float("inf")
    if not a.numel():
        return 0.0
    same = a.isinf() & (a == b)  # what `top` leaves out
    a, b = a.masked_fill(same, 0), b.masked_fill(same, 0)
    size = torch.maximum(a.abs().max(), b.abs().max())
    if not torch.isfinite(size):
        raise Unstable
    return float((a - b).abs().max() / size.clamp(min=1.0))
