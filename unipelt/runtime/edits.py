"""The modules that edit: a row at a site, evaluated as written, and a trained copy of a module's parameters."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..anatomy.columns import Columns, taken
from ..compiler.evaluator import Context, constants, evaluate, run
from ..compiler.gates import ITS_VALUE
from ..compiler.lower import Lowered, lower, rests
from ..compiler.named import Named, elementwise, to_axes
from ..compiler.plan import PlannedEdit
from ..compiler.recipe import MASK, PLACES, Recipes, Want
from ..language.diagnostics import error
from ..language.softmax import shares_softmax
from ..language.syntax import Name, Param
from .masks import mask_key
from .offload import PATCHED, kept_elsewhere, value_of
from .switch import NAME


#: Under which name an edit is given batch and tokens that a module of the base has flattened: no name of the language.
ROWS = ":rows"


#: A recipe's function, the names of its arguments (None for a tensor of the row), and where the row's tensors are.
Ready = tuple[Callable[..., Any] | None, tuple[str | None, ...], tuple[tuple[bool, str, bool], ...]]


def axes_of(family: str, t: torch.Tensor) -> tuple[str, ...]:
    """The axes of a scope tensor with one trailing size: [batch, token, d], [batch, d] at a pooled head."""
    if family == "heads":
        return ("batch", "head", "token")
    if family == "head" and t.dim() == 2:
        return ("batch",)
    return ("batch", "token")[max(0, 3 - t.dim()) :]


_COMPUTED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class BaseCall:
    """Calls a frozen module of the base past every hook, so past every edit. It computes in its own dtype, and what it yields
    has that of what was given (outside of autocast, which chooses for itself)."""

    def __init__(self, module: nn.Module, columns: Columns | None):
        self.module, self.columns = module, columns

    def __call__(self, t: torch.Tensor) -> torch.Tensor:
        if torch.is_autocast_enabled(t.device.type):
            return taken(self.module.forward(t), self.columns)
        weight = getattr(self.module, "weight", None)
        known = weight is not None and weight.dtype in _COMPUTED  # one that is packed says nothing of what its module takes
        data = t.to(weight.dtype) if known else t  # type: ignore[union-attr]
        return taken(self.module.forward(data), self.columns).to(t.dtype)


class Holding(nn.Module):
    """Has tensors by name: parameters, and frozen draws as buffers."""

    def hold(self, tensors: Mapping[str, torch.Tensor]) -> None:
        #: Numbers are registered as vectors of one entry: FSDP2 does not shard scalars.
        self.scalars = {name: t.dim() == 0 for name, t in tensors.items()}
        for name, t in tensors.items():
            data = t.detach().reshape(1) if self.scalars[name] else t
            if isinstance(t, nn.Parameter):
                kept = nn.Parameter(data, t.requires_grad) if self.scalars[name] else t
                self.register_parameter(key_of_tensor(name), kept)
            else:
                self.register_buffer(key_of_tensor(name), data)

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *others: Any) -> None:
        """As torch's; what earlier versions called otherwise is found, so that a state dict or a checkpoint of theirs is read whole."""
        keys = {name: prefix + key_of_tensor(name) for name in self.scalars}
        if not set(keys.values()) <= set(state):
            found = {name: prefix + former for name in keys for former in (name.replace(".", ":"), f"twin.{name}") if prefix + former in state}
            values = {name: state.pop(former) for name, former in found.items()}  # all before any is written: one may be called as another was
            state.update({keys[name]: t for name, t in values.items()})
        super()._load_from_state_dict(state, prefix, *others)

    def held(self) -> dict[str, torch.Tensor]:
        tensors = {name: getattr(self, key_of_tensor(name)) for name in self.scalars}
        return {name: t.reshape(()) if self.scalars[name] else t for name, t in tensors.items()}


class Shared(Holding):
    """Tensors of an adapter that several edits read. It belongs to the model, not to a layer.

    Each is registered once, and outside the layers: a layer can be sharded by itself (FSDP2 wants a parameter in one
    group) or moved by itself. Edits get them by calling it, so that hooks which bring a module's weights act.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]):
        super().__init__()
        self.hold(tensors)

    def forward(self) -> dict[str, torch.Tensor]:
        return self.held()


class Edit(Holding):
    """One row at one site. Its own tensors are its parameters; ``borrowed`` names those it finds in ``shared``."""

    def __init__(
        self, planned: PlannedEdit, params: tuple[Param, ...], tensors: Mapping[str, torch.Tensor],
        borrowed: Mapping[str, str], shared: Shared | None, axes: Mapping[str, tuple[str, ...]],
        bases: Mapping[str, BaseCall], lowering: bool,
    ):  # fmt: skip
        super().__init__()
        self.row, self.site = planned.row, planned.site
        # rows that enter among the tokens replace placeholders in what the embeddings yield (see `runtime.prompts`)
        self.side = "output" if planned.site.side == "prompt" else planned.site.side
        self.columns = planned.site.view.columns
        self.needs = needs(planned)
        self.places = planned.places  # where the row puts rows of its own among the tokens, if it does
        self.inputs = frozenset(i.name for i in planned.typing.inputs)
        self.axes = dict(axes)
        self.bases = dict(bases)  # a plain dict: the base's modules must not become children
        self.sizes = planned.sizes
        self.constants = constants(params, self.sizes, planned.constants)
        self.borrowed = dict(borrowed)
        self.shared = [shared] if shared is not None else []  # in a list: it must not become a child
        self.hold(tensors)
        grouped = planned.site.family == "heads" and planned.site.sizes["heads"] != planned.site.sizes["groups"]
        self.lowered: Lowered | None = lower(planned.row, planned.typing, grouped) if lowering else None
        self.recipes = Recipes(planned.row, planned.typing, self.lowered, self.constants, self.sizes, self.axes) if self.lowered else None
        self.rests = lowering and rests(planned.row, self.constants, self.sizes)
        self.shares = planned.site.family == "heads" and shares_softmax(planned.row)
        self.watchers: tuple[Any, ...] = ()  # see `runtime.watch`
        self.taps: dict[str, str] = {}  # under which names x and residual are left for it (see `seam`)
        self.masked = mask_key(planned.site.tokens)
        #: Whether nothing but h and what enters the host itself is read, and h is the whole of what leaves it.
        self.plain = self.columns is None and self.places is None and planned.site.rows is None and not self.inputs and (
            not self.needs or (self.needs == {"x"} and planned.site.x == planned.site.view.module))  # fmt: skip

    # ------------------------------------------------------------ evaluation

    def context(
        self, given: Mapping[str, torch.Tensor], mask: torch.Tensor | None, still: bool = False,
        tensors: Mapping[str, torch.Tensor] | None = None,
    ) -> Context:  # fmt: skip
        """The names a form reads: constants, tensors (the edit's, unless others are given), and what is in scope."""
        names: dict[str, Any] = dict(self.constants)
        tensors = self.tensors() if tensors is None else tensors
        # A gate's tensors keep their front, `gate.`, under which no line of the form can name them.
        names.update({label: Named(tensors[label], axes) for label, axes in self.axes.items()})
        for name, t in self._given(given, tensors).items():
            if name != PLACES:
                names[name] = Named(t, self._scope_axes(name, t)) if isinstance(t, torch.Tensor) else t
        return Context(
            names, self.sizes, self.bases, mask, self.training and not still, given.get(PLACES), self.lowered is not None
        )

    def _scope_axes(self, name: str, t: torch.Tensor) -> tuple[str, ...]:
        if name in ("W", "bias", "chance"):
            return ()
        if name in self.inputs:
            return ("batch",)
        if name == "log_mass":
            return ("batch", "head", "token")
        if name == "q" or (name == "h" and self.site.family == "heads"):
            return ("batch", "head", "token")
        return axes_of("head" if name == "h" and self.site.family == "head" else "token", t)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The row's tensors by its own names for them."""
        own = self.held()
        shared = self.shared[0]() if self.borrowed else {}
        return {label: shared[self.borrowed[label]] if label in self.borrowed else own[label] for label in self.axes}

    def _z(self, c: Context, h: Named) -> None:
        e = self.row.insert
        if e is None:
            return
        if isinstance(e, Name) and e.id == "parallel":
            c.names["z"] = c.names["q" if self.site.family == "heads" else "x"]
        elif isinstance(e, Name) and e.id == "sequential":
            c.names["z"] = h
        else:
            c.names["h"] = h
            c.names["z"] = evaluate(e, c)
            del c.names["h"]

    def forward(
        self, h: torch.Tensor, given: Mapping[str, torch.Tensor], mask: torch.Tensor | None = None, want: str = "h"
    ) -> Any:
        """The new h, of h's shape and dtype; ``given`` is what is in scope (and `ROWS`: see `Site`, and `PLACES`); for
        ``want="mass"`` with the log of its scores' mass, for "rows" only `rows`.

        "still" is as "mass", with nothing random in it: for a look beside a pass that must not notice.
        Whatever reads the tensors goes through here: hooks that bring a module's weights act on its call.
        """
        if want == "rows":
            return self.rows(given, mask)
        if ROWS in given:
            lead = given[ROWS]
            inner = {n: t.view(*lead, -1) if n in ("x", "residual") else t for n, t in given.items() if n != ROWS}
            return self.forward(h.view(*lead, -1), inner, mask, want).view(h.shape)
        if self.rests and want == "h" and not (self.training or self.watchers):
            return h
        return self.change(h, given, mask, want)

    def change(self, h: torch.Tensor, given: Mapping[str, torch.Tensor], mask: torch.Tensor | None, want: str) -> Any:
        """What `forward` returns of a row that does not rest."""
        straight = want in ("h", "mass") and self.recipes is not None and not torch.compiler.is_compiling()
        beside = self._beside(h, given, mask) if straight and self.watchers else None
        found = self._straight({**given, "h": h}, mask, want) if straight else None  # type: ignore[arg-type]
        if found is None:
            out, c = self.evaluate(h, given, mask, want == "still")
            scores = c.names.get("scores")
            result = out if want == "h" else (out, torch.logsumexp(scores.data, -1))  # type: ignore[union-attr]
        elif want == "mass":
            out = found[0].to(h.dtype)
            result = out, found[1]
        else:
            result = out = found.to(h.dtype)
        for watcher in self.watchers:
            watcher.saw(h, out, beside or c)
        return result

    def _beside(self, h: torch.Tensor, given: Mapping[str, torch.Tensor], mask: torch.Tensor | None) -> Context:
        """The names that the row's lines bind, for those who watch: evaluated beside the pass, with the numbers that it will draw."""
        devices = [h.device] if h.device.type != "cpu" else []
        with torch.no_grad(), torch.random.fork_rng(devices, device_type=h.device.type if devices else "cuda"):
            return self.evaluate(h, given, mask)[1]

    def _straight(self, given: Mapping[str, Any], mask: torch.Tensor | None, want: Want) -> Any:
        """What the row's recipe makes of what enters; None where the row has none.

        A compiler sees through the evaluator and fuses what it computes: it needs no recipe, and cannot trace the writing of one.
        """
        if self.recipes is None or torch.compiler.is_compiling():
            return None
        key = (want, self.training, *[(n, t.dim() if isinstance(t, torch.Tensor) else -1) for n, t in given.items()])
        ready = self.recipes.ready.get(key)
        if ready is None:
            ready = self.recipes.ready[key] = self._ready(given, want)
        function, reads, places = ready
        if function is None:
            return None
        own = self._own(places)
        dtype = own[0].dtype if own else None
        values = iter(own)
        arguments: list[Any] = []
        for name in reads:
            if name is None:
                arguments.append(next(values))
            elif name in given:
                t = given[name]
                if isinstance(t, torch.Tensor) and t.dtype != dtype:
                    t = self._fitted(name, t, dtype, given)
                arguments.append(t)
            else:
                arguments.append(mask if name == MASK else self.bases.get(name))
        return function(*arguments)

    def _ready(self, given: Mapping[str, Any], want: Want) -> Ready:
        """The recipe for what enters, and where its arguments are: a tensor of the row (None), or what is given under a name."""
        assert self.recipes is not None
        entering = tuple((n, self._scope_axes(n, t) if isinstance(t, torch.Tensor) else ()) for n, t in given.items() if n != PLACES)
        recipe = self.recipes.of(entering, self.training, want)
        if recipe is None:
            return None, (), ()
        labels = [n for n in recipe.reads if n in self.axes]
        places = tuple((label in self.borrowed, self.borrowed.get(label) or key_of_tensor(label), self.scalars.get(label, False)) for label in labels)
        return recipe.function, tuple(None if n in self.axes else n for n in recipe.reads), places

    def _own(self, places: Iterable[tuple[bool, str, bool]]) -> list[torch.Tensor]:
        """The row's tensors at their places: whether the model shares them, under which name, whether they are numbers."""
        shared = self.shared[0]() if self.borrowed else {}
        out: list[Any] = []
        for is_shared, key, number in places:
            t = shared[key] if is_shared else self._parameters.get(key)
            if t is None:
                t = self._buffers[key]
            out.append(t.reshape(()) if number else t)  # type: ignore[union-attr]
        return out

    def _given(self, given: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """What is in scope, in the dtype of the row's tensors; under autocast as it is."""
        dtype = next((t.dtype for t in tensors.values()), None)
        return {n: self._fitted(n, t, dtype, given) if isinstance(t, torch.Tensor) else t for n, t in given.items()}

    def _fitted(self, name: str, t: torch.Tensor, dtype: torch.dtype | None, given: Mapping[str, Any]) -> torch.Tensor:
        if name == "chance":
            return t.to(given["h"].device) if "h" in given else t
        if name == PLACES or dtype is None or t.dtype == dtype or not t.is_floating_point() or torch.is_autocast_enabled(t.device.type):
            return t
        return t.to(dtype)

    def evaluate(
        self, h: torch.Tensor, given: Mapping[str, torch.Tensor], mask: torch.Tensor | None = None, still: bool = False
    ) -> tuple[torch.Tensor, Context]:
        """The new h and every name that was bound on the way (``scores`` for the next row's ``log_mass``)."""
        c = self.context({**given, "h": h}, mask, still)
        named = c.names.pop("h")
        assert isinstance(named, Named)
        self._z(c, named)
        g = self._gate(c)
        run(self.row.form, c)
        c.names["h"] = named
        if self.lowered is not None and self.lowered.added is not None:
            run(self.row.compose[:-1], c)
            out = self._add(named, g, c)
        else:
            run(self.row.compose, c)
            out = c.names["out"]
            if g is not None:
                change = elementwise(torch.sub, out, named)
                out = elementwise(torch.add, named, elementwise(operator.mul, g, change))
        if not isinstance(out, Named):
            raise TypeError("a row yields a tensor")
        data = out.data
        shape = h.shape
        if self.site.family == "head":  # an adapter's head may have other labels
            shape = torch.Size((*h.shape[:-1], self.site.sizes["labels"]))
        if data.shape != shape:
            beyond = [a for a in out.axes if a not in named.axes]
            if beyond:
                raise error("E0706", f"the row `{self.row.name}` yields a value for each {beyond[0]} at `{self.site.full_name}`, and "
                            f"this {self.site.family} has one for each {' and '.join(named.axes)}", self.row.span,
                            help=f"reduce it, for example mean(…, {beyond[0]}s)")  # fmt: skip
            data = to_axes(out, named.axes, shape)
        return data.to(h.dtype), c

    def _add(self, h: Named, g: Any, c: Context) -> Any:
        """h + g · factor · added, a plain factor within the addition's kernel."""
        assert self.lowered is not None and self.lowered.added is not None
        added = evaluate(self.lowered.added, c)
        factor: Any = evaluate(self.lowered.factor, c) if self.lowered.factor is not None else 1
        if isinstance(factor, Named):  # a number in evaluation may be drawn in training
            added, factor = elementwise(torch.mul, factor, added), 1
        if g is not None:
            added = elementwise(operator.mul, g, added)
        return elementwise(lambda a, b: torch.add(a, b, alpha=factor), h, added)

    def _gate(self, c: Context) -> Any:
        if self.row.gate is None:
            return None
        inner = replace(c, names=dict(c.names))
        for label in self.axes:
            if label.startswith("gate."):
                inner.names[label[5:]] = c.names[label]
        run(self.row.gate, inner)
        c.names[ITS_VALUE] = inner.names["g"]
        return inner.names["g"]

    def rows(self, given: Mapping[str, torch.Tensor], mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [batch or 1, group, l, d_head] of a row that shares the softmax (see `compiler.lower`)."""
        assert self.lowered is not None and self.lowered.keys is not None and self.lowered.values is not None
        found = self._straight(given, mask, "rows")
        if found is not None:
            return found
        c = self.context(given, mask)
        run(self.lowered.before, c)
        return self._kv(evaluate(self.lowered.keys, c)), self._kv(evaluate(self.lowered.values, c))

    def _kv(self, v: Any) -> torch.Tensor:
        assert isinstance(v, Named)
        axes = ("batch", "head" if "head" in v.axes else "group")
        from ..compiler.named import spread

        t = spread(v, axes, 2)
        return t.expand(-1, self.site.sizes["heads" if axes[1] == "head" else "groups"], -1, -1)


def needs(planned: PlannedEdit) -> frozenset[str]:
    """The scope names that must be gathered for an edit."""
    found = set(planned.names)
    if "parallel" in found:
        found.add("q" if planned.site.family == "heads" else "x")
    return frozenset(found & {"x", "residual", "q", "W", "bias", "log_mass", "scale", "tokens", "chance"})


def key_of_tensor(name: str) -> str:
    """A tensor's name as an attribute of a module. It begins as none of a module's own attributes does, whatever a method calls it."""
    return f"tensor_{name.replace('.', ':')}"


class CopyEdit(Holding):
    """A trained copy of some parameters of a module (`compiler.trained.hosts`), by their names there; ``borrowed`` names those
    that it finds in ``shared`` (tied weights have one copy, and several hosts).

    A twin of the module computes the output: the same class, with the trained tensors and the frozen ones that the module
    has at the time. It is no child: nothing of the base is registered a second time, so a state dict, which may be written to
    a file, has every tensor once. Where only biases of a map that adds them are trained, the difference of the biases is
    added instead (the same value, without computing the map twice).
    """

    side = "output"
    columns = None
    plain = False
    needs: frozenset[str] = frozenset()

    def __init__(
        self, host: nn.Module, own: Mapping[str, torch.Tensor], borrowed: Mapping[str, str], shared: Shared | None, lowering: bool
    ):  # fmt: skip
        super().__init__()
        self.hold(own)
        self.borrowed = dict(borrowed)
        self.shared = [shared] if shared is not None else []  # in a list: it must not become a child
        self.trained = (*own, *borrowed)
        adds = isinstance(host, (nn.Linear, nn.LayerNorm)) or type(host).__name__ == "Conv1D"
        self.bias_only = lowering and adds and self.trained == ("bias",)
        self._base = [host]  # in a list, as what is shared
        self._twin = [_twin(host, self.values())]
        self.watchers: tuple[Any, ...] = ()

    def forward(
        self, args: tuple, kwargs: Mapping[str, Any], output: torch.Tensor, earlier: Sequence[CopyEdit] = ()
    ) -> torch.Tensor:
        """``output`` is the host's own. Of each parameter the last copy counts: ``earlier`` ones give those not trained here."""
        new = self._new(args, kwargs, output, earlier)
        for watcher in self.watchers:
            watcher.saw(output, new, None)
        return new

    def _new(
        self, args: tuple, kwargs: Mapping[str, Any], output: torch.Tensor, earlier: Sequence[CopyEdit]
    ) -> torch.Tensor:
        trained = self.values()
        others = {n: t for c in earlier for n, t in c.values().items() if n not in trained}
        if self.bias_only and not others:
            bias: Any = self._base[0].bias
            if "meta" not in (trained["bias"].device.type, bias.device.type):
                return output + (trained["bias"] - bias).to(output.dtype)
        return self._ready({**others, **trained}, keep=not others)(*args, **kwargs)

    def values(self) -> dict[str, torch.Tensor]:
        """The trained tensors by the module's names for them, wherever they are kept."""
        own = {n: value_of(self, key_of_tensor(n)) for n in self.scalars}
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
        if twin._parameters.keys() == wanted.keys() and all(twin._parameters[n] is t for n, t in wanted.items()):
            return twin
        if any(kept_elsewhere(m) for m in (host, self, *self.shared)):  # what is here for this call only does not stay
            self._twin[0] = _with(twin, {})
        elif keep and all(used[n] is t for n, t in trained.items()):
            self._twin[0] = _with(twin, wanted)
        return _with(twin, wanted)


def _as_used(host: nn.Module, name: str, trained: torch.Tensor) -> torch.Tensor:
    """A trained copy in the dtype in which its module computes: it may be kept in a longer one."""
    own = host._parameters[name]
    return trained if own is None else trained.to(own.dtype)


def _with(module: nn.Module, parameters: dict[str, Any]) -> nn.Module:
    """The same module with other parameters. (`copy.copy`, in words that torch.compile follows.)"""
    other = type(module).__new__(type(module))
    other.__dict__.update(module.__dict__)
    other.__dict__["_parameters"] = parameters
    return other


def _frozen(host: nn.Module, name: str) -> nn.Parameter | None:
    """A frozen parameter of the base for its twin: the same one, or the values of one that is kept elsewhere."""
    own = host._parameters[name]
    value = value_of(host, name) if own is not None else own
    return own if value is own else nn.Parameter(value, requires_grad=False)  # type: ignore[arg-type]


def _twin(host: nn.Module, trained: Mapping[str, torch.Tensor]) -> nn.Module:
    """A module of the host's class with these parameters beside its own ones, and without its hooks.

    What it holds is the host's own, called and never registered a second time.
    """
    twin = copy.copy(host)
    for patched in PATCHED:
        twin.__dict__.pop(patched, None)
    twin._parameters = {n: trained.get(n, p) for n, p in host._parameters.items()}  # type: ignore[misc]
    twin._modules = {}
    twin.__dict__.update({n: m for n, m in host._modules.items() if n != NAME})
    twin._forward_hooks, twin._forward_pre_hooks = type(host._forward_hooks)(), type(host._forward_pre_hooks)()
    twin._forward_hooks_with_kwargs = type(host._forward_hooks_with_kwargs)()
    twin._forward_pre_hooks_with_kwargs = type(host._forward_pre_hooks_with_kwargs)()
    if isinstance(twin, nn.Linear) and "weight" in trained:
        twin.out_features = len(trained["weight"])  # an adapter's head may have other labels
    return twin
