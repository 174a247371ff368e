"""torch's attention (`nn.MultiheadAttention`) keeps the maps of queries, keys and values in one parameter, and calls neither them nor its
output projection: it computes with their weights. Where edits are to act there, both are called.

While the maps of a model are ``apart``, each such attention has one more child, ``in_proj``, whose weight is the packed parameter
(it holds none of its own), and a ``forward`` that calls the two where torch's function computes with their weights. Nothing
else of that function is another one. It stays so where an adapter hangs at one of them, and calls them while that acts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from threading import local
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ..language.report.diagnostics import error
from .base import NAME, base_modules, uncompiled
from .interrupts import ended_by
from .stand_in import StandIn

#: The name of the map that the packed parameter is, and what stands in front of the names of its parameters.
IN, _FRONT = "in_proj", "in_proj_"
_here = local()
T = TypeVar("T")


class InProjection(nn.Module):
    """The map of queries, keys and values of an attention, one beside the other."""

    def __init__(self, attention: nn.MultiheadAttention):
        super().__init__()
        self.of = [attention]  # in a list: it must not become a child
        self.stands = Apart(attention)

    @property
    def weight(self) -> torch.Tensor:
        return self.of[0].in_proj_weight

    @property
    def bias(self) -> torch.Tensor | None:
        return self.of[0].in_proj_bias

    @property
    def in_features(self) -> int:
        return self.weight.shape[1]

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        call = getattr(_here, "call", None)
        own = call.given if call is not None and call.attention is self.of[0] else None  # a trained copy, perhaps
        return functional.linear(x, *(own or (self.weight, self.bias)))


class Apart(StandIn):
    """Stands in for the ``forward`` of torch's attention whose maps are to be called."""

    def __init__(self, attention: nn.MultiheadAttention):
        super().__init__(attention, "forward")
        self.asked: set[int] = set()  # the blocks that ask for it (`apart`)

    @property
    def needed(self) -> bool:
        """Whether something asks for the maps, or hangs at one of them."""
        return bool(self.asked) or any(NAME in m._modules for m in _maps(self.owner))

    @property
    def acts(self) -> bool:
        """Whether that is to act."""
        return bool(self.asked) or any(map(_edited, _maps(self.owner)))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.running(self.own(), args, kwargs)

    def running(self, own: Any, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        """What the attention yields, or a twin of it with other parameters (``own`` is its forward)."""
        if not self.acts:
            return own(*args, **kwargs)
        if torch.compiler.is_compiling():
            raise error("E0547", "torch's attention calls none of its maps: edits of them are put in while it runs, and a compiler would not see "
                        "them", help="run the model as it is, or merge the adapter first")  # fmt: skip
        before = getattr(_here, "call", None)
        with ended_by(lambda: setattr(_here, "call", before)):
            _here.call = _Call(self.owner, args, kwargs)
            with _Seen():
                return own(*args, **kwargs)


class _Seen(TorchFunctionMode):
    """Looks into torch's function. That a mode is there keeps attention off its fast path, too."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        looked = looked_into(func) if getattr(func, "__name__", "") == "multi_head_attention_forward" else func
        return looked(*args, **(kwargs or {}))


class _Call:
    """One call of an attention, and what its maps are given in it."""

    def __init__(self, attention: nn.MultiheadAttention, args: tuple, kwargs: Mapping[str, Any]):
        self.attention = attention
        self.entered = (*args[:3], *(kwargs[n] for n in ("query", "key", "value")[len(args) :] if n in kwargs))
        self.given: tuple[torch.Tensor, torch.Tensor | None] | None = None
        self.tokens: tuple[int, int] = (0, 0)

    def turned(self, x: torch.Tensor) -> torch.Tensor:
        """[token, batch, d], as torch's function computes, with the dimensions of the attention's own inputs; and back."""
        return x.transpose(0, 1) if self.attention.batch_first else x

    def project(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """What stands for torch's projections. Keys of other tokens are maps of other calls: `in_proj` is called for each."""
        self.given, self.tokens = (w, b), (q.shape[0], q.shape[1])
        made: dict[int, torch.Tensor] = {}
        for x, entered in zip((q, k, v), self.entered):
            if id(x) not in made:
                x_in = self.turned(x)
                x_in = entered if entered.shape == x_in.shape else x_in  # what entered the attention enters its map
                made[id(x)] = self.turned(self.attention.in_proj(x_in))  # type: ignore[operator]
        return [made[id(x)].chunk(3, -1)[i].contiguous() for i, x in enumerate((q, k, v))]

    def leave(self, x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        """What stands for the output projection."""
        out: Any = self.attention.out_proj
        if w is not out.weight or b is not out.bias:
            if _edited(out):
                raise error("E0547", "a trained copy of `out_proj` and an edit of it are to act at once: torch's attention computes with the copy "
                            "past it", help="activate one of the two adapters")  # fmt: skip
            return functional.linear(x, w, b)
        return self.turned(out(self.turned(x.unflatten(0, self.tokens)))).flatten(0, 1)


def looked_into(function: Any) -> Any:
    """A function of torch, written in Python, that lets the functions it calls be seen one by one."""
    call = getattr(_here, "call", None)
    maps = {} if call is None else {"_in_projection_packed": call.project, "linear": call.leave}
    seen = {**vars(functional), "has_torch_function": lambda tensors: False, **maps}
    copy = FunctionType(function.__code__, seen, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


@contextmanager
def apart(model: nn.Module) -> Iterator[None]:
    """A block in which the maps of torch's attention are apart, and called. Behind it they are so where something hangs at them."""
    packed = [m for _, m in base_modules(model) if _packs(m)]
    block = object()

    def back() -> None:
        for m in packed:
            _settle(m, id(block))

    with ended_by(back):
        for m in packed:
            if IN not in m._modules:
                m.add_module(IN, InProjection(m).train(m.training))  # type: ignore[arg-type]
            stands: Apart = m.in_proj.stands  # type: ignore[assignment,union-attr]
            stands.asked.add(id(block))
            stands.put()
        yield


def maps_apart(function: Callable[..., T]) -> Callable[..., T]:
    """A function whose first argument is a model, with the maps of its attention apart."""

    @wraps(function)
    def called(model: nn.Module, *args: Any, **kwargs: Any) -> T:
        with apart(uncompiled(model)):
            return function(model, *args, **kwargs)

    return called


def at_map(model: nn.Module, use: tuple[str, str]) -> tuple[str, str]:
    """Where a parameter is (module, name), as the map has it that a packed one is; any other is where it is."""
    module, name = use
    if not name.startswith(_FRONT) or not _packs(model.get_submodule(module)):
        return use
    return f"{module}.{IN}" if module else IN, name.removeprefix(_FRONT)


def run_as(host: nn.Module, twin: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> Any:
    """What a twin of a module yields; where the module's maps are apart, they are called in its place."""
    held = host._modules.get(IN)
    return held.stands.running(twin, args, kwargs) if isinstance(held, InProjection) else twin(*args, **kwargs)


def own_forward(m: nn.Module) -> Any:
    """What stands in place of the forward of a module's class, but for what calls its maps, which comes and goes."""
    found = vars(m).get("forward")
    while isinstance(found, Apart):
        found = found.before
    return found


def _packs(m: nn.Module | None) -> bool:
    return isinstance(m, nn.MultiheadAttention) and m.in_proj_weight is not None


def _edited(module: nn.Module) -> bool:
    """Whether edits act at a map."""
    seam: Any = module._modules.get(NAME)
    return seam is not None and bool(seam.live("output") or seam.live("input"))


def _maps(attention: nn.Module) -> list[nn.Module]:
    return [m for n in (IN, "out_proj") if (m := attention._modules.get(n)) is not None]


def _settle(attention: nn.Module, block: int) -> None:
    """Takes away what nobody needs behind a block. May be repeated."""
    held = attention._modules.get(IN)
    if isinstance(held, InProjection):
        held.stands.asked.discard(block)
        if not held.stands.needed:
            held.stands.take()
            del attention._modules[IN]
