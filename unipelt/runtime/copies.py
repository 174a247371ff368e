"""A trained copy of some parameters of a module of the base, which acts like any edit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..anatomy.base import NAME
from ..anatomy.packed import run_as
from .holding import Holding, Shared, Stacked, key_of_tensor
from .offload import PATCHED, kept_elsewhere, value_of


class CopyEdit(Holding):
    """A trained copy of some parameters of a module (`compiler.trained.hosts`), by their names there; ``borrowed`` names those
    that it finds in ``shared`` (tied weights have one copy, and several hosts).

    A twin of the module computes the output: the same class, with the trained tensors and the frozen ones that the module
    has at the time. It is no child: nothing of the base is registered a second time, so a state dict, which may be written to
    a file, has every tensor once. Where only biases of a map that adds them are trained, the difference of the biases is
    added instead (the same value, without computing the map twice).
    """

    side = "output"  # or, where the twin computes in its host's place (`instead`), forward
    columns = None
    alone = False
    of_weight = False
    batched = False  # a module has one set of parameters for a batch
    needs: frozenset[str] = frozenset()

    def __init__(
        self, host: nn.Module, own: Mapping[str, torch.Tensor], borrowed: Mapping[str, str], shared: Shared | None,
        lowering: frozenset[str], stacked: Stacked | None = None,
    ):  # fmt: skip
        super().__init__()
        self.hold(own, stacked)
        self.borrowed = dict(borrowed)
        self.shared = [shared] if shared is not None else []  # in a list: it must not become a child
        self.trained = (*own, *borrowed)
        self.bias_only = bool(lowering) and _adds_its_bias(host) and self.trained == ("bias",)
        self._base = [host]  # in a list, as what is shared
        self._twin = [_twin(host, self.values())]
        self.watchers: tuple[Any, ...] = ()

    @property
    def host(self) -> nn.Module:
        return self._base[0]

    def forward(
        self, args: tuple, kwargs: Mapping[str, Any], output: torch.Tensor, earlier: Sequence[CopyEdit] = ()
    ) -> Any:
        """``output`` is the first of what the host yields. What the twin yields comes back, whole; or, where the change is added,
        the new first. Of each parameter the last copy counts: ``earlier`` ones give those not trained here."""
        new = self._new(args, kwargs, output, earlier)
        for watcher in self.watchers:
            watcher.saw(output, element(new), None)
        return new

    def _new(self, args: tuple, kwargs: Mapping[str, Any], output: torch.Tensor, earlier: Sequence[CopyEdit]) -> Any:
        trained = self.values()
        others = {n: t for c in earlier for n, t in c.values().items() if n not in trained}
        if self.bias_only and not others:
            bias: Any = self._base[0].bias
            if "meta" not in (trained["bias"].device.type, bias.device.type):
                return output + (trained["bias"] - bias).to(output.dtype)
        return run_as(self._base[0], self._ready({**others, **trained}, keep=not others), args, kwargs)

    def instead(self, args: tuple, kwargs: Mapping[str, Any], earlier: Sequence[CopyEdit] = ()) -> Any:
        """What a twin yields in place of its host, with these copies."""
        return in_place(self.host, {n: t for c in (*earlier, self) for n, t in c.values().items()}, args, kwargs)

    def values(self) -> dict[str, torch.Tensor]:
        """The trained tensors by the module's names for them, wherever they are kept."""
        own = {n: self.meant(n, value_of(self, key_of_tensor(n))) for n in self.scalars}
        shared = self.shared[0]() if self.borrowed else {}
        return {
            **{n: t.reshape(()) if self.scalars[n] else t for n, t in own.items()},
            **{n: shared[name] for n, name in self.borrowed.items()},
        }

    def train(self, mode: bool = True) -> CopyEdit:
        self._twin[0].training = mode
        return super().train(mode)

    def _ready(self, trained: Mapping[str, torch.Tensor], keep: bool) -> nn.Module:
        """The twin with these tensors and, for the rest, what its module has now: sharding and loading put others there.

        It is never changed, since other threads may be in it: a new one takes its place.
        """
        host, twin = self._base[0], self._twin[0]
        used = {n: _as_used(host, n, t) for n, t in trained.items()}
        wanted: dict[str, Any] = {n: used[n] if n in used else _frozen(host, n) for n in host._parameters}
        there = set(twin._parameters)
        wanted |= {n: t for n, t in used.items() if "." in n}
        if there == {n for n in wanted if "." not in n} and all(_held(twin, n) is t for n, t in wanted.items()):
            return twin
        if any(kept_elsewhere(m) for m in (host, self, *self.shared)):  # what is here for this call only does not stay
            self._twin[0] = _with(twin, {})
        elif keep and all(used[n] is t for n, t in trained.items()):
            self._twin[0] = _with(twin, wanted)
        return _with(twin, wanted)


def _adds_its_bias(host: nn.Module) -> bool:
    """Whether a module adds its bias last, on the last axis. A norm that is a `LayerNorm` by its class may norm another axis."""
    norms = isinstance(host, nn.LayerNorm) and type(host).forward is nn.LayerNorm.forward
    return norms or isinstance(host, nn.Linear) or type(host).__name__ == "Conv1D"


def element(output: Any) -> torch.Tensor:
    """The first of what a module yields."""
    return output if isinstance(output, torch.Tensor) else output[0]


def _as_used(host: nn.Module, name: str, trained: torch.Tensor) -> torch.Tensor:
    """A trained copy in the dtype in which its module computes: it may be kept in a longer one."""
    own = _held(host, name)
    return trained if own is None else trained.to(own.dtype)


def _held(module: nn.Module, name: str) -> nn.Parameter | None:
    """A parameter of a module, or of a child of it that it never calls (``out_proj.weight``: see `compiler.trained.hosts`)."""
    child, _, attribute = name.rpartition(".")
    return (getattr(module, child) if child else module)._parameters[attribute]


def _with(module: nn.Module, parameters: dict[str, Any]) -> nn.Module:
    """The same module with other parameters. (`copy.copy`, in words that torch.compile follows.)"""
    other = type(module).__new__(type(module))
    other.__dict__.update(module.__dict__)
    other.__dict__["_parameters"] = {n: t for n, t in parameters.items() if "." not in n}
    for child in {n.partition(".")[0] for n in parameters if "." in n}:
        held = getattr(module, child)
        own = {n.partition(".")[2]: t for n, t in parameters.items() if n.startswith(f"{child}.")}
        other.__dict__[child] = _with(held, {**held._parameters, **own})
    if isinstance(other, nn.RNNBase):  # its weights are in a list as well, which it computes with
        other.__dict__["_flat_weights"] = [other._parameters.get(n) for n in other._flat_weights_names]
    return other


def with_parameters(host: nn.Module, values: Mapping[str, torch.Tensor]) -> nn.Module:
    """A twin of a module with other parameters, by its names for them; the rest are its own."""
    used = {n: _as_used(host, n, t) for n, t in values.items()}
    own = {n: used[n] if n in used else _frozen(host, n) for n in host._parameters}
    return _with(_twin(host, {}), {**used, **own})


def in_place(host: nn.Module, values: Mapping[str, torch.Tensor], args: tuple, kwargs: Mapping[str, Any]) -> Any:
    """What a twin of a module with other parameters yields in its place. What it notes in itself is noted in the host.

    It has the host's seam: what attention functions are given as their module has the edits at its heads."""
    twin = with_parameters(host, values)
    twin.__dict__["_modules"] = {NAME: host._modules[NAME]}
    before = dict(twin.__dict__)
    out = type(host).forward(twin, *args, **kwargs)
    host.__dict__.update({n: v for n, v in twin.__dict__.items() if n not in before or before[n] is not v})
    return out


def _frozen(host: nn.Module, name: str) -> nn.Parameter | None:
    """A frozen parameter of the base for its twin: the same one, or the values of one that is kept elsewhere."""
    own = host._parameters[name]
    value = value_of(host, name) if own is not None else own
    return own if value is own else nn.Parameter(value, requires_grad=False)  # type: ignore[arg-type]


def _twin(host: nn.Module, trained: Mapping[str, torch.Tensor]) -> nn.Module:
    """A module of the host's class with these parameters beside its own ones, and without its hooks.

    What it holds is the host's own, called and never registered a second time.
    """
    twin = type(host).__new__(
        type(host)
    )  # copy.copy would ask a module with parametrised weights to be written to a file
    twin.__dict__.update(host.__dict__)
    for patched in PATCHED:
        twin.__dict__.pop(patched, None)
    twin._parameters = {n: trained.get(n, p) for n, p in host._parameters.items()}  # type: ignore[misc]
    twin._modules = {}
    twin.__dict__.update({n: m for n, m in host._modules.items() if n != NAME})
    twin._forward_hooks, twin._forward_pre_hooks = type(host._forward_hooks)(), type(host._forward_pre_hooks)()
    twin._forward_hooks_with_kwargs = type(host._forward_hooks_with_kwargs)()
    twin._forward_pre_hooks_with_kwargs = type(host._forward_pre_hooks_with_kwargs)()
    if isinstance(twin, nn.modules.batchnorm._BatchNorm):
        twin.track_running_stats = False  # the module itself has counted the batch
    if isinstance(twin, nn.Linear) and "weight" in trained:
        twin.out_features = len(trained["weight"])  # an adapter's head may have other labels
    return twin
