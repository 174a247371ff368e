"""What batches of data tell of a base, for starts that read it: moments of what enters a site, gradients of its weight.

Batches are streamed, and one matrix is kept for each thing that is asked for: sites that read the same share it. The model
is as it was afterwards, however the measuring ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import nn

from ..anatomy.base import base_parameters
from ..anatomy.brought import device_of, lacks_weights
from ..anatomy.columns import taken
from ..anatomy.evaluating import evaluating, untouched
from ..anatomy.interrupts import ended_by
from ..anatomy.passed import first_tensor
from ..compiler.at_attach import calibrated
from ..compiler.evaluator import Context, bind, constants, evaluate
from ..compiler.named import Named
from ..compiler.plan import Plan, PlannedEdit
from ..compiler.words.calibration import real
from ..language.report.diagnostics import error
from ..language.syntax.lines import lines_for, names_in
from ..language.syntax.nodes import Apply, Let
from ..language.syntax.printer import to_text
from .copies import element
from .registry import registry

#: What the loss of a batch is, from what the model returns and the batch.
Loss = Callable[[Any, Mapping[str, Any]], torch.Tensor]
#: Where something is measured, and what: the same for sites that read the same.
Key = tuple[str, ...]

#: How many batches are read where nobody says.
BATCHES = 32


@dataclass(frozen=True)
class Batches:
    """Batches of a model's arguments, how many of them are read, and their loss where the model returns none."""

    data: Iterable[Mapping[str, Any]] | None = None
    count: int = BATCHES
    loss: Loss | None = None


def key_of(e: PlannedEdit, call: Apply) -> Key:
    """What a call at a site asks to be measured."""
    if _is_gradient(call):
        return ("gradient", e.site.view.module, str(e.site.view.columns))
    lines = [to_text(s) for s in _lines(e, call)]
    insert = to_text(e.typing.insert) if e.typing.insert is not None and "z" in names_in(call) else ""
    return ("entering", e.site.x or "", str(e.site.x_leaves), insert, *lines, to_text(call))


def _is_gradient(call: Apply) -> bool:
    return to_text(call.function) == "mean_gradient"


def _lines(e: PlannedEdit, call: Apply) -> list[Let]:
    """The lets that what a call is given is made of."""
    return [s for s in lines_for(e.row.form, *(a.value for a in call.args)) if isinstance(s, Let)]


class _Mean:
    """A mean of matrices, summed in 32 bits at least, where they are."""

    def __init__(self, e: PlannedEdit, call: Apply, plan: Plan):
        self.e, self.call, self.plan = e, call, plan
        self.total: torch.Tensor | None = None
        self.weight = 0

    def add(self, summed: torch.Tensor, weight: int) -> None:
        self.total = summed if self.total is None else self.total.add_(summed)
        self.weight += weight

    def value(self) -> torch.Tensor:
        where = f"`{to_text(self.call)}` at `{self.e.site.label}`"
        if self.total is None or not self.weight:
            raise error(
                "E0536", f"no token of the data reached {where}", help="give batches that the whole model reads"
            )
        if not self.total.isfinite().all():
            raise error("E0536", f"{where} is not finite on these data", help="load the base in bfloat16 or float32, or give other data")  # fmt: skip
        return self.total / self.weight


class _Entering(_Mean):
    """The mean of what is made of the vectors that enter a site, over the real tokens."""

    mask: Mapping[str, Any] = {}

    def hook(self, module: nn.Module, *given: Any) -> None:
        x = element(given[-1]) if self.e.site.x_leaves else first_tensor(*given)
        if x is None:
            return
        layout, mask = self.e.site.view.layout, self._mask()
        x = (layout.entering(x) if layout is not None else x).detach()
        if mask is not None and x.dim() == 2 and len(x) == mask.numel():
            x = x.view(*mask.shape, -1)  # a module here flattens batch and tokens
        axes = ("batch", "token") if x.dim() == 3 else ("token",)[: x.dim() - 1]
        names: dict[str, Any] = {
            **constants(self.plan.method.params, self.e.sizes, self.e.constants),
            "x": Named(_longer(x) if x.dim() < 4 else _longer(x).flatten(0, -2), axes),
        }
        c = Context(names, self.e.sizes, mask=mask)
        with torch.no_grad():
            if self.e.typing.insert is not None and "z" in names_in(self.call):
                c.names["z"] = evaluate(self.e.typing.insert, c)
            for s in _lines(self.e, self.call):
                bind(s, c)
            found = evaluate(self.call, c)
            read = evaluate(self.call.args[0].value, c)
        assert isinstance(found, Named) and isinstance(read, Named)
        n = len(real(read, c.mask))
        self.add(found.data * n, n)

    def _mask(self) -> torch.Tensor | None:
        """Which tokens are real, of the tower whose tokens enter here."""
        name = "decoder_attention_mask" if self.e.site.tokens == "decoder" else "attention_mask"
        found = self.mask.get(name)
        return found if isinstance(found, torch.Tensor) and found.dim() == 2 else None


class _Gradient(_Mean):
    """The mean over batches of the gradient of a map's weight, xᵀ times what reaches its output: no parameter needs to require one."""

    def hook(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        x, y = first_tensor(args, kwargs), element(output)
        if x is None or not torch.is_grad_enabled():
            return
        if not y.requires_grad:
            y.requires_grad_(True)
        entered, columns = x.detach(), self.e.site.view.columns

        def reached(g: torch.Tensor) -> None:
            rows, by = entered.reshape(-1, entered.shape[-1]), taken(g.detach(), columns)
            self.add(_longer(rows).T @ _longer(by.reshape(-1, by.shape[-1])), 0)

        y.register_hook(reached)


def _longer(t: torch.Tensor) -> torch.Tensor:
    return t if t.dtype == torch.float64 else t.float()


def measure(model: nn.Module, plan: Plan, batches: Batches, seed: int) -> dict[Key, torch.Tensor]:
    """What the starts of a plan read of data, by `key_of`; nothing where none does. `PeltError` where data are missing or unfit."""
    asked: dict[Key, _Mean] = {}
    for e in plan.edits:
        for call in calibrated(e):
            asked.setdefault(key_of(e, call), (_Gradient if _is_gradient(call) else _Entering)(e, call, plan))
    if not asked or lacks_weights(model):
        return {}
    if batches.data is None:
        raise error("E0535", f"this method needs {plan.needs[-1]}", help=f"pass data=…, an iterable of dictionaries of the model's arguments, and batches=…, "
                    f"how many of them are read ({BATCHES} unless you say)")  # fmt: skip
    if not isinstance(batches.count, int) or batches.count < 1:
        raise error(
            "E0535",
            f"`batches` is how many batches are read, not {batches.count!r}",
            help="give a whole number of 1 or more",
        )
    gradients = [m for m in asked.values() if isinstance(m, _Gradient)]
    with _measuring(model, asked.values(), seed):
        device = device_of(next(p.device for _, p in base_parameters(model)), model)
        for batch in islice(batches.data, batches.count):
            given = _checked(batch, device)
            for m in asked.values():
                m.mask = given  # type: ignore[attr-defined]
            with torch.enable_grad() if gradients else torch.no_grad():
                out = model(**given)
                if gradients:
                    _loss(out, given, batches.loss).backward()
            for m in gradients:
                m.weight += m.total is not None
    return {key: m.value() for key, m in asked.items()}


def _checked(batch: Any, device: torch.device) -> dict[str, Any]:
    if not isinstance(batch, Mapping) or not all(isinstance(n, str) for n in batch):
        raise error("E0536", f"a batch of data is a dictionary of the model's arguments, not {type(batch).__name__}",
                    help='for example {"input_ids": …, "attention_mask": …, "labels": …}')  # fmt: skip
    return {n: v.to(device) if isinstance(v, torch.Tensor) else v for n, v in batch.items()}


def _loss(out: Any, batch: Mapping[str, Any], loss: Loss | None) -> torch.Tensor:
    found = loss(out, batch) if loss is not None else getattr(out, "loss", None)
    if not isinstance(found, torch.Tensor) or found.dim():
        raise error("E0536", "a gradient needs a loss, and the model returns none for this batch" if loss is None
                    else "the loss of a batch is a tensor with one number", help='give batches with "labels", or pass loss=…, a function of what the '
                    "model returns and the batch")  # fmt: skip
    return found


@contextmanager
def _measuring(model: nn.Module, asked: Iterable[_Mean], seed: int) -> Iterator[None]:
    """The base in evaluation mode, with hooks for what is asked; no adapter acts, no parameter gets a gradient, and random numbers
    are drawn from ``seed``. All is as before at the end."""
    handles: list[Any] = []
    required = [(p, p.requires_grad) for p in model.parameters()]

    def end() -> None:
        for h in handles:
            h.remove()
        for p, wanted in required:
            p.requires_grad_(wanted)

    r = registry(model)
    devices = [*{p.device for p, _ in required if p.device.type == "cuda"}]
    with ended_by(end), evaluating(model), untouched(model), torch.random.fork_rng(devices), torch.inference_mode(False), (
        r.switch.holder.using(()) if r is not None else nullcontext()
    ):  # fmt: skip
        torch.manual_seed(seed)
        for p, _ in required:
            p.requires_grad_(False)
        for m in asked:
            if isinstance(m, _Gradient):
                handles.append(
                    model.get_submodule(m.e.site.view.module).register_forward_hook(m.hook, with_kwargs=True)
                )
            elif isinstance(m, _Entering):
                module = model.get_submodule(m.e.site.x or "")
                handles.append(module.register_forward_hook(m.hook) if m.e.site.x_leaves
                               else module.register_forward_pre_hook(m.hook, with_kwargs=True))  # fmt: skip
        yield
