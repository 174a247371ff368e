"""What hangs on a module of the base: its seam, with the edits of every adapter there, behind public hooks.

A seam is a child of its host under the one reserved name ``unipelt``. Values that enter elsewhere (``x``, ``residual``)
come through taps: pre-hooks that leave a tensor in the thread's holder, from which the seam takes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import combinations
from typing import Any

import torch
from torch import nn
from torch.compiler import is_compiling, is_dynamo_compiling

from ..anatomy.base import NAME, base_modules
from ..anatomy.columns import Columns, joined, taken
from ..anatomy.passed import first_tensor
from ..anatomy.sites import Site
from ..compiler.drawn import SEED
from ..compiler.plan import PlannedEdit
from ..compiler.recipe import GRID
from ..language.report.diagnostics import error
from ..language.types.draws import PROGRESS
from ..language.types.primitives import OF_REAL_TOKENS
from .along import CARRIED
from .copies import CopyEdit, element
from .edits import PLACES, ROWS, Edit
from .hooks import Hook, moved
from .penalties import NOTED
from .prompts.pictures import Unplaced
from .prompts.selected import ENTERED
from .mixture import Group, Mixture, Split, mixed
from .quick import of_host
from .switch import Switch, Weighted
from .taps import Tap, cells_key, first_entered, shape_key
from .weighed import weighed
from .weights import Changes, Use, Weights, acts, added, called, looked_up, rewritten, value_in

Editing = Edit | CopyEdit | Use
#: Sides of a host whose edits act without a hook of its own.
NO_HOOK = frozenset(["attention", "forward"])
_NOT_GIVEN = object()


def _with_first(args: tuple, kwargs: Mapping[str, Any], new: torch.Tensor) -> tuple[tuple, dict]:
    if args and isinstance(args[0], torch.Tensor):
        return (new, *args[1:]), dict(kwargs)
    name = (
        "hidden_states"
        if "hidden_states" in kwargs
        else next(k for k, v in kwargs.items() if isinstance(v, torch.Tensor))
    )
    return args, {**kwargs, name: new}


def with_element(output: Any, new: torch.Tensor) -> Any:
    if isinstance(output, torch.Tensor):
        return new
    if type(output) in (tuple, list):
        return type(output)((new, *output[1:]))
    changed = type(output)(**output) if hasattr(output, "keys") else output
    first = next(iter(changed.keys()))
    changed[first] = new
    return changed


class Seam(nn.Module):
    """The edits at one host module, by adapter, in order of application."""

    def __init__(self, path: str, switch: Switch):
        super().__init__()
        self.path, self.switch = path, switch
        self.adapters = nn.ModuleDict()
        #: `live` by what acts; emptied where edits change
        self.chosen: dict[tuple[str, tuple[str, ...], tuple[float, ...]], list[tuple[str, Any]]] = {}
        #: by side, which adapters of the last mixture have edits there, and whether some of them cannot be computed together
        self.last: dict[str, tuple[Mixture, tuple[str, ...], bool]] = {}
        #: the columns that edits have, with how many edits have the very same ones
        self.columns: Counter[Columns] = Counter()
        #: whether some of them have numbers in common
        self.overlap = False
        self.weights = {n: Weights(n) for n in ("weight", "bias")}
        #: Of a block's attention: the stack and the block, where rows enter later ones (see `prompts.veils`)
        self.veils: tuple[str, int] | None = None
        self.acts = ""  # how the host takes another parameter

    def forward(self, x: Any) -> Any:
        """What was given: a container that calls its children in turn calls this one as well."""
        return x

    def live(self, side: str) -> list[tuple[str, Any]]:
        """(adapter, edit) of the acting adapters at a side of the host."""
        acting = self.switch.live
        if type(acting) is tuple and not is_compiling() and (found := self.chosen.get((side, acting, ()))) is not None:
            return found
        return self.of(side, acting)

    def of(self, side: str, acting: tuple[str, ...]) -> list[tuple[str, Any]]:
        """(adapter, edit) of some adapters at a side of the host."""
        if isinstance(acting, Mixture):  # there are more mixtures than could be remembered
            return [found for name in acting for found in self.of(side, (name,))]
        if is_compiling():  # what is remembered in a first pass would make a second one be compiled again
            return self._live(side, acting)
        weights = tuple(acting.weights.values()) if isinstance(acting, Weighted) else ()
        found = self.chosen.get((side, acting, weights))
        if found is None:
            found = self.chosen[side, acting, weights] = self._live(side, acting)
        return found

    def split(self, mixture: Mixture, side: str, batch: int) -> Split | None:
        """How a batch is computed at a side of the host; None where no adapter of the mixture has edits there.

        The rows of a bank are computed together, or, where an edit cannot (one of a weight, which is the same for a batch), by slots.
        """
        last = self.last.get(side)
        if last is None or last[0] is not mixture:
            edits = {name: found for name in mixture if (found := self.of(side, (name,)))}
            apart = side != "attention" and not all(e.batched for found in edits.values() for _, e in found)
            last = self.last[side] = mixture, tuple(edits), apart
        _, editing, apart = last
        if not editing:
            return None
        if batch == 1 < len(mixture.examples):
            raise error("E0852", f"one row came to `{self.path}`, and {len(mixture.examples)} adapters were named, one for each example",
                        help="name as many as the batch has examples; a method that changes what all of them share, as positions, runs by "
                        "itself: with unipelt.using(model, NAME)")  # fmt: skip
        return mixture.split(batch, editing, apart)

    def _live(self, side: str, acting: tuple[str, ...]) -> list[tuple[str, Any]]:
        found = []
        for name in acting:
            key = key_of(name)
            if key in self.adapters:
                found += [(name, e) for e in self.adapters[key] if e.side == side]  # type: ignore[attr-defined]
        found = sorted(found, key=_rank)
        return weighed(found, acting.weights) if isinstance(acting, Weighted) else found

    def add(self, host: nn.Module, name: str, edit: Editing, first: bool = False) -> None:
        """An edit of an adapter behind (or before) its others here, and the hook it needs."""
        key = key_of(name)
        if key not in self.adapters:
            self.adapters[key] = nn.ModuleList().train(self.training)
        edits: nn.ModuleList = self.adapters[key]  # type: ignore[assignment]
        edits.insert(0 if first else len(edits), edit.train(host.training))
        self.acts = acts(host)
        self._changed([edit], 1)
        if (hook := self._hook(host, edit.side)) is not None:
            hook.put()
            for at, function in list(host._forward_hooks.items()):
                if getattr(function, "__func__", None) is Tap.leaves:  # it reads what the edits make
                    host._forward_hooks.move_to_end(at)  # type: ignore[attr-defined]
            for at, entered in list(host._forward_pre_hooks.items()):
                if getattr(entered, "__func__", None) is Tap.enters:  # so does this one
                    host._forward_pre_hooks.move_to_end(at)  # type: ignore[attr-defined]

    def veil(self, name: str, site: Site) -> None:
        """Lets the host, a block's attention, hide the rows of an adapter that enter later blocks."""
        self.veils = (site.stack, site.layer or 0)
        if key_of(name) not in self.adapters:
            self.adapters[key_of(name)] = nn.ModuleList().train(self.training)

    def drop(self, host: nn.Module, name: str) -> None:
        """Takes out the edits of an adapter, and the hooks that no other one needs. May be repeated."""
        key = key_of(name)
        for side in {e.side for e in self.adapters[key]} - NO_HOOK if key in self.adapters else ():  # type: ignore[attr-defined]
            others = (e for k, edits in self.adapters.items() if k != key for e in edits if e.side == side)  # type: ignore[attr-defined]
            if next(others, None) is None:
                self._hook(host, side).take()  # type: ignore[union-attr]
        self._changed(self.adapters._modules.pop(key, None) or (), -1)  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> Seam:
        self._forget()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Seam:
        self._forget()  # what moves is not held where it was
        return super()._apply(*args, **kwargs)

    def _forget(self) -> None:
        self.switch.kinds.forget()
        for weights in self.weights.values():
            weights.kept.forget()
        for edit in self.modules():
            if isinstance(edit, Edit):
                edit.forget()

    def _changed(self, edits: Iterable[Any], more: int) -> None:
        """Other edits are here now: these (1), or these no longer (-1)."""
        self.chosen.clear()
        self.switch.kinds.forget()
        self.last.clear()
        own = [e.columns for e in edits if e.columns is not None]
        if own:  # as many as the host has projections, however many adapters there are
            self.columns.update({c: more * n for c, n in Counter(own).items()})
            self.columns = +self.columns
            self.overlap = any(a.meets(b) for a, b in combinations(self.columns, 2))

    def _hook(self, host: nn.Module, side: str) -> Hook | None:
        """The hook for edits of a side; none for those of attention, which are asked for by attention's function, nor for
        copies in place of the host (`instead`)."""
        if side in NO_HOOK:
            return None
        before = side == "input"
        return Hook(host, self.on_input if before else self.on_output, before=before, named=True)

    # ------------------------------------------------------------ hooks

    def on_input(self, host: nn.Module, args: tuple, kwargs: dict | None = None) -> Any:
        if kwargs is None:
            raise moved(host)
        steady = None if is_dynamo_compiling() else self.switch.holder.steady
        if steady is None:
            return self._on_input(host, args, kwargs)
        quick = steady.inputs.get(self)
        if quick:
            new = quick(args, kwargs)
            if new is not None:
                return ((new, *args[1:]), kwargs) if args else _with_first(args, kwargs, new)
        new = self._on_input(host, args, kwargs)
        if quick is None and steady.learns:
            steady.inputs[self] = of_host(self.live("input"), "input", steady, args, kwargs)
        return new

    def _on_input(self, host: nn.Module, args: tuple, kwargs: dict) -> Any:
        if self.switch.mixes and (mixture := self.switch.mixture()) is not None:
            h = mixed(self, mixture, "input", first_entered(args, kwargs), lambda part, _: self._entering(host, part, self.live("input")))  # fmt: skip
            return None if h is None else _with_first(args, kwargs, h)
        edits = self.live("input")
        return _with_first(args, kwargs, self._entering(host, first_entered(args, kwargs), edits)) if edits else None

    def _entering(self, host: nn.Module, h: torch.Tensor, edits: Sequence[tuple[str, Any]]) -> torch.Tensor:
        """What enters the host, as the edits there leave it."""
        for name, edit in edits:
            if edit.prompt is not None:
                h = self.put_prompt(name, edit, h, host)
            else:
                h = edit(h, self.gather(name, edit, None, host), self.mask(edit) if edit.pools else None)
        return h

    def on_output(self, host: nn.Module, args: tuple, kwargs: dict, output: Any = _NOT_GIVEN) -> Any:
        if output is _NOT_GIVEN:
            raise moved(host)
        steady = None if is_dynamo_compiling() else self.switch.holder.steady
        if steady is None:
            return self._on_output(host, args, kwargs, output)
        quick = steady.outputs.get(self)
        if quick:
            new = quick(args, kwargs, output)
            if new is not None:
                return new
        new = self._on_output(host, args, kwargs, output)
        if quick is None and steady.learns:
            steady.outputs[self] = of_host(self.live("output"), "output", steady, args, kwargs, output, self.overlap)
        return new

    def _on_output(self, host: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        if self.switch.mixes and (mixture := self.switch.mixture()) is not None:
            return self._mixed_output(mixture, host, args, kwargs, output)
        edits = self.live("output")
        if not edits:
            return None
        h = output if isinstance(output, torch.Tensor) else element(output)
        x = first_tensor(args, kwargs)
        if len(edits) == 1 and edits[0][1].alone:
            name, only = edits[0]
            given = {"x": x} if only.plain and x is not None else self.gather(name, only, x, host)
            new = only(h, given, self.mask(only) if only.pools else None)
            return new if h is output else with_element(output, new)
        parts: dict[Columns, torch.Tensor] = {}  # new values of some columns, put into h together
        copies = [e for _, e in edits if isinstance(e, CopyEdit)]
        if copies:  # weight edits precede activation edits, those of other adapters too
            new = copies[-1](args, kwargs, h, copies[:-1])
            output = with_element(output, new) if isinstance(new, torch.Tensor) else new
            h = element(output)
        rewriting = [e for _, e in edits if e.of_weight]
        if rewriting and x is not None:
            output = self._rewritten(host, edits, copies, args, kwargs, output, x)
            h = element(output)
        for name, edit in edits:
            if isinstance(edit, CopyEdit) or edit.of_weight:
                continue
            if edit.columns is not None:
                at = parts.get(edit.columns)
                if at is None:
                    if self.overlap and parts:
                        h, parts = joined(h, parts), {}
                    at = edit.columns.of(h)
                parts[edit.columns] = edit(at, self.gather(name, edit, x, host), self.mask(edit))
                continue
            if parts:
                h, parts = joined(h, parts), {}
            if edit.prompt is not None:
                h = self.put_prompt(name, edit, h, host)
            else:
                h = edit(h, self.gather(name, edit, x, host), self.mask(edit))
        return with_element(output, joined(h, parts) if parts else h)

    def _mixed_output(self, mixture: Mixture, host: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        """As `_on_output`, of a batch whose examples have adapters of their own."""
        x = first_tensor(args, kwargs)

        def of_rows(part: torch.Tensor, group: Group) -> torch.Tensor:
            entering = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
            if len(entering) > 1 and any(isinstance(e, CopyEdit) or e.of_weight for _, e in self.live("output")):
                raise error("E0853", f"`{self.path}` is called with several tensors, and its parameters cannot differ between the rows of a batch",
                            help="run the examples of its adapter by themselves: with unipelt.using(model, NAME)")  # fmt: skip
            entered = (group.of(x),) if x is not None else ()
            return element(self._on_output(host, entered, {}, part))

        new = mixed(self, mixture, "output", output if isinstance(output, torch.Tensor) else element(output), of_rows)
        return None if new is None else with_element(output, new)

    def _rewritten(
        self, host: nn.Module, edits: Sequence[tuple[str, Any]], copies: Sequence[CopyEdit], args: tuple, kwargs: Mapping[str, Any],
        output: Any, x: torch.Tensor,
    ) -> Any:  # fmt: skip
        """What the host yields with its parameters as the edits among these make them."""
        h = element(output)
        if self.acts == "map":
            lies = next(e.lies for _, e in edits if e.of_weight)
            return with_element(output, added(h, x, self._changes(host, edits, copies, x.dtype), lies))
        if self.acts == "table":
            return with_element(output, looked_up(h, x, self._changes(host, edits, copies, h.dtype), host))  # type: ignore[arg-type]
        new = {}
        for name in self.weights:
            own = value_in(host, name, copies).dtype if host._parameters.get(name) is not None else h.dtype
            if changes := self._changes(host, edits, copies, own, name):
                new[name] = changes
        found = called(host, new, copies, args, kwargs)
        return with_element(output, found.to(h.dtype)) if isinstance(found, torch.Tensor) else found

    def _changes(
        self, host: nn.Module, edits: Sequence[tuple[str, Any]], copies: Sequence[CopyEdit], like: torch.dtype,
        name: str = "weight",
    ) -> Changes:  # fmt: skip
        """What the edits among these add to a parameter of the host, in a dtype; nothing where there are none."""
        own = [e for _, e in edits if e.of_weight and e.parameter == name]
        if not own:
            return {}
        return self.weights[name].changes(host, own, self.read_by(own), like, copies)

    def read_by(self, edits: Iterable[Any]) -> dict[str, Any]:
        """What edits of parameters read besides these: what the model is called with, or draws."""
        given: dict[str, Any] = {}
        for e in edits:
            self._called_with(e, given)
        return given

    def put_prompt(self, name: str, edit: Edit, h: torch.Tensor, host: nn.Module) -> torch.Tensor:
        """A prompt in its place among the tokens; there is none in a step that continues a cache, nor outside a pass of the model."""
        current = self.switch.holder.current
        key = (name, edit.site.label, edit.row.name)
        positions = current.positions.get(key) if edit.side == "output" else current.late.get(key)
        if positions is None:
            return h
        if isinstance(positions, Unplaced):
            h = positions.make_room(h, current)
            positions = current.positions[key]
        # the places kept for rows are no tokens of the text, which a prompt may be made of
        entered = current.entered.get(edit.masked)
        layout = entered.layout if entered is not None and entered.layout is not None else current.layout
        pools = layout is not None and not OF_REAL_TOKENS.isdisjoint(edit.row.reads)
        mask = self.switch.own(layout.text) if pools else self.mask(edit)  # type: ignore[union-attr]
        return edit(h, {**self.gather(name, edit, None, host), PLACES: self.switch.own(positions)}, mask)

    def put_prompts(self, h: torch.Tensor, host: nn.Module) -> torch.Tensor:
        """Every acting adapter's prompts, where embeddings were given, which pass by the host."""
        if self.switch.mixes and (mixture := self.switch.mixture()) is not None:
            new = mixed(self, mixture, "output", h, lambda part, _: self.put_prompts(part, host))
            return h if new is None else new
        for name, edit in self.live("output"):
            if isinstance(edit, Edit) and edit.prompt is not None:
                h = self.put_prompt(name, edit, h, host)
        return h

    # ------------------------------------------------------------ scope

    def mask(self, edit: Edit) -> torch.Tensor | None:
        """Which tokens are real, [batch, tokens] of the stack whose tokens the edit's axis counts."""
        found = self.switch.holder.current.masks.get(edit.masked)
        return self.switch.own(found) if self.switch.mixes else found

    def gather(self, name: str, edit: Edit, x: torch.Tensor | None, host: nn.Module) -> dict[str, Any]:
        """The scope values an edit reads at this host."""
        given: dict[str, Any] = {}
        values = self.switch.holder.values
        for need, key in edit.taps.items():
            if key in values:
                # of an adapter whose rows are computed in several parts, the last one takes it
                mixes = self.switch.mixes
                found = values.pop(key) if not mixes or self.switch.takes else values[key]
                if isinstance(found, tuple):  # it leaves a module, which may be computed without a graph
                    found, graph = found
                    if not graph and torch.is_grad_enabled():
                        raise error("E0524", f"no gradient would flow through `{need}` of `{edit.site.full_name}`: it was computed without one",
                                    help="checkpoint activations with use_reentrant=False, or call the whole model under no_grad")  # fmt: skip
                found = self.switch.own(found) if mixes else found
                # another part of the model may run elsewhere
                given[need] = found if x is None or found.device == x.device else found.to(x.device)
            elif need == "x" and x is not None and edit.site.x == self.path:
                given["x"] = x
            else:
                raise error("E0523", f"`{need}` of `{edit.site.full_name}` is not there: `{self.path}` was called by itself, or more than "
                            "once in a layer", help="call the model that was given to unipelt.apply")  # fmt: skip
        if edit.asks:
            self._called_with(edit, given)
        if edit.maps:
            W, bias = self._map(host)
            given["W"] = taken(W, edit.columns)
            given["bias"] = taken(bias, edit.columns) if bias is not None else W.new_zeros(given["W"].shape[-1])
        if edit.site.rows is not None:
            given[ROWS] = values[shape_key(edit.site.rows)]
        if edit.grid is not None:
            entered = self.switch.holder.current.entered.get(edit.masked)
            given[GRID] = (values[cells_key(edit.grid.module)], entered.layout if entered is not None else None)
        return given

    def _map(self, host: nn.Module) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The weight [d_in, d_out] and the bias of the host, as trained copies and edits of the weight make them."""
        edits = self.live("output")
        copies = [e for _, e in edits if isinstance(e, CopyEdit)]
        W = value_in(host, "weight", copies)
        trained = [t for c in copies for n, t in c.values().items() if n == "bias"]
        return rewritten(W, self._changes(host, edits, copies, W.dtype)), trained[-1] if trained else getattr(
            host, "bias", None
        )

    def _called_with(self, edit: Edit, given: dict[str, Any]) -> None:
        """Adds what the model is called with, or draws, and an edit reads."""
        current = self.switch.holder.current
        if edit.chosen or edit.indices:
            given[ENTERED] = current.entered.get(edit.masked)
        if edit.carries and current.carried is not None:
            given[CARRIED] = current.carried
        if "chance" in edit.needs and current.chance is not None:
            given["chance"] = current.chance
        if SEED in edit.needs and current.seed is not None:
            given[SEED] = current.seed
        if edit.penalised and edit.training and current.penalties is not None:
            given[NOTED] = current.penalties
        if PROGRESS in edit.needs and edit.training:
            given[PROGRESS] = self.switch.progress
        for declared in edit.inputs:
            if declared not in current.inputs:
                raise error("E0543", f"the argument `{declared}` is not there: a part of the model was called by itself, past the "
                            "model that the adapter was applied to", help="call the model that was given to unipelt.apply")  # fmt: skip
            given[declared] = current.inputs[declared]


def _rank(item: tuple[str, Any]) -> int:
    """Edits of a map come before those of the sublayer that ends with it: the order of the data flow."""
    return 0 if isinstance(item[1], CopyEdit) or item[1].of_weight or item[1].kind.has_weight else 1


def key_of(name: str) -> str:
    """An adapter's key in a `ModuleDict`, whose keys may not be names of its own methods."""
    return f"adapter_{name}"


def seam_of(module: nn.Module) -> Seam | None:
    found = module._modules.get(NAME)
    return found if isinstance(found, Seam) else None


def seam_at(model: nn.Module, path: str) -> tuple[nn.Module, Seam] | None:
    """The host of a path, and its seam, also where another module was put around it since; None where they are not in the model."""
    with suppress(AttributeError):
        host = model.get_submodule(path)
        if (seam := seam_of(host)) is not None:
            return host, seam
    return next(((host, seam) for host, seam in seams(model) if seam.path == path), None)


def edit_at(model: nn.Module, name: str, planned: PlannedEdit) -> Edit:
    """The edit of an adapter that carries out a planned one."""
    seam = seam_of(model.get_submodule(planned.site.view.module))
    assert seam is not None
    return next(
        e for e in seam.adapters[key_of(name)]  # type: ignore[attr-defined]
        if isinstance(e, Edit) and e.row.name == planned.row.name and e.site.label == planned.site.label
    )  # fmt: skip


def seams(model: nn.Module) -> Iterable[tuple[nn.Module, Seam]]:
    """Every host with its seam."""
    for _, module in base_modules(model):
        seam = seam_of(module)
        if seam is not None:
            yield module, seam
