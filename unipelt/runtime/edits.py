"""The module that edits: a row at a site, by its recipe or evaluated as written."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..anatomy.layout import Layout, agree
from ..compiler.drawn import SEED, Draws, draws, numbers_of
from ..compiler.evaluator import Context, constants, evaluate, run
from ..compiler.gates import ITS_VALUE
from ..compiler.lower import Lowered, lower, rests
from ..compiler.named import Named, elementwise, refine, spread, to_axes
from ..compiler.plan import PlannedEdit
from ..compiler.recipe import CHOSEN, GRID, PLACES, Recipes
from ..compiler.words.mixing import CAUSAL
from ..language.report.diagnostics import error
from ..language.sites import AXES, axis_order
from ..language.types.carried import carries, from_before
from ..language.types.draws import PROGRESS
from ..language.types.indexing import INSERTED, POSITIONS, token_indices
from ..language.types.primitives import OF_GRID, OF_REAL_TOKENS
from ..language.types.softmax import shares_softmax
from ..language.types.told_apart import takes_a_tensor_for_each_example
from ..language.syntax.nodes import Param
from .penalties import NOTED, penalised
from .along import leave, taken
from .base_call import BaseCall
from .holding import Shared, Stacked
from .prompts.selected import chosen_beside, most, of_the_text
from .straight import UNNAMED, Straight


#: Keys, values, and by what scores and what they yield is multiplied.
Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor | None]
#: Under which name an edit is given batch and tokens that a module of the base has flattened: no name of the language.
ROWS = ":rows"


class Edit(Straight):
    """One row at one site. Its own tensors are its parameters; ``borrowed`` names those it finds in ``shared``."""

    def __init__(
        self, planned: PlannedEdit, params: tuple[Param, ...], tensors: Mapping[str, torch.Tensor],
        borrowed: Mapping[str, str], shared: Shared | None, axes: Mapping[str, tuple[str, ...]],
        bases: Mapping[str, BaseCall], lowering: frozenset[str], stacked: Stacked | None = None,
    ):  # fmt: skip
        super().__init__()
        self.row, self.site, self.insert = planned.typing.acting, planned.site, planned.typing.insert
        # rows that enter among the tokens replace placeholders in what the embeddings yield (see `runtime.prompts`)
        self.side: str = "output" if planned.site.side == "prompt" else planned.site.side
        if planned.site.view.parameter:  # its module computes with the new one, once
            self.side = "forward"
        #: Whether h is the host's weight: it is given that, and what it makes of it acts by `weights`.
        self.of_weight = planned.site.kind.is_weight
        self.parameter = planned.site.parameter  # which one, as the host calls it
        self.columns = planned.site.view.columns
        self.lies = planned.site.view.layout  # how the tokens lie that the host reads
        self.layout = None if self.of_weight or planned.site.kind.has_heads else self.lies
        self.needs = needs(planned)
        self.penalised = penalised(self)
        self.prompt = planned.prompt  # the rows that it puts among the tokens, if it does
        self.inputs = frozenset(i.name for i in planned.typing.inputs)
        self.types = {n: _laid(t) for n, t in planned.site.kind.types.items()}
        self.bases = dict(bases)  # a plain dict: the base's modules must not become children
        self.sizes, self.lengths = planned.sizes, planned.lengths
        self.places = numbers_of({**{a: a for a in (*AXES, *self.lengths)}, **places_of(planned)})
        self.constants = {**constants(params, self.sizes, planned.constants), CAUSAL: planned.site.causal}
        #: What it carries to the next layer: the names, the chain of layers that hand it on (its adapter's name comes in front where
        #: it is attached), the layer's number (None where one module serves several), how many there are, whether it is the first.
        self.carries = carries(self.row)
        self.types |= {from_before(n): _laid(v.type) for n, v in planned.typing.carried.items()}
        self.chain, self.layer, self.runs, self.leads = (
            "",
            planned.constants.get("layer"),
            planned.constants.get("depth", 1),
            False,
        )
        self.borrowed = dict(borrowed)
        self.shared = [shared] if shared is not None else []  # in a list: it must not become a child
        self.hold(tensors, stacked)
        self.axes = self.in_order(axes)
        grouped = planned.site.kind.has_heads and planned.site.sizes["heads"] != planned.site.sizes["groups"]
        self.lowered: Lowered | None = lower(planned.typing, lowering, grouped) if lowering else None
        self.recipes = (
            Recipes(self.row, planned.typing, self.lowered, self.constants, self.sizes, self.axes)
            if self.lowered
            else None
        )
        #: The axes of its tensors where each row has an adapter of its own, and the recipes for that.
        self.each: dict[str, tuple[str, ...]] = {}
        self.each_recipes: Recipes | None = None
        #: Whether rows of several adapters are computed together: a weight, and some words, have no place for the batch.
        self.batched = not self.of_weight
        if stacked is not None:
            differ = frozenset(n for n in self.axes if self._differs(n, stacked))
            self.batched = self.batched and takes_a_tensor_for_each_example(planned.typing, differ)
            self.each = {n: ("batch", *a) if n in differ else a for n, a in self.axes.items()}
            if self.lowered is not None:
                self.each_recipes = Recipes(
                    self.row, planned.typing, self.lowered, self.constants, self.sizes, self.each
                )
        self.rests = "rests" in lowering and not self.carries and rests(self.row, self.constants, self.sizes)
        self.heads = {"head": planned.site.sizes.get("heads", 1), "group": planned.site.sizes.get("groups", 1)}
        self.kind = planned.site.kind  # looked up once: a compiler does not see through the site's table
        self.shares = planned.site.kind.has_heads and shares_softmax(planned.row)
        self.watchers: tuple[Any, ...] = ()  # see `runtime.watch`
        self.taps: dict[str, str] = {}  # under which names x and residual are left for it (see `seam`)
        #: Which tokens it changes; none: all
        self.chosen = planned.typing.tokens
        #: By which numbers of the tokens themselves it reads tensors, and for how many it has values
        own = frozenset({POSITIONS, "ids", INSERTED} if planned.site.kind.takes_rows else {INSERTED})
        self.indices = token_indices(planned.row.nodes) & own
        self.longest = {n: most(planned, n) for n in self.indices - {"ids"}}
        #: Where the parts of a picture lie among its tokens, if it reads that
        self.grid = planned.grid
        self.gridded = not OF_GRID.isdisjoint(planned.typing.read_by_passes)
        self.masked = planned.site.tokens  # the stack whose tokens its axis counts
        #: Whether what the recipe makes of what enters is all that there is to do, where h has so many dimensions.
        self.dims = 4 if self.side == "attention" else 3
        self.direct = not (self.carries or self.chosen or self.indices or self.grid or self.gridded or self.penalised or self.rests or self.layout is not None
                           or planned.site.rows is not None)  # fmt: skip
        #: Whether the model is asked for more than tensors that enter modules or leave them.
        self.asks = bool(
            self.carries
            or self.chosen
            or self.indices
            or self.penalised
            or self.inputs
            or self.needs & {"chance", SEED, PROGRESS}
        )
        self.pools = "tokens" in self.needs  # whether it reads which tokens are real
        self.maps = bool(self.needs & {"W", "bias"})  # whether it reads the map of the host
        #: Whether what enters the host is all that it reads beside h.
        self.plain = self.needs == {"x"} and self.side == "output" and planned.site.x == planned.site.view.module and not (
            self.asks or self.grid or planned.site.rows is not None)  # fmt: skip
        #: Whether h is the whole of what leaves the host, and each edit there makes of it the next.
        self.alone = not self.of_weight and self.columns is None and self.prompt is None

    def forget(self) -> None:
        """Lets go of what was folded of its tensors."""
        for recipes in (self.recipes, self.each_recipes):
            if recipes is not None:
                recipes.forget()

    def _differs(self, label: str, stacked: Stacked) -> bool:
        """Whether each adapter of a bank has a tensor of its own."""
        if label not in self.borrowed:
            return label in stacked.names
        lent = self.shared[0].stacked
        return lent is not None and self.borrowed[label] in lent.names

    @property
    def identity(self) -> Any:
        """What tells it from all others, and of a weighed one also the weight."""
        return id(self)

    # ------------------------------------------------------------ evaluation

    def context(
        self, given: Mapping[str, torch.Tensor], mask: torch.Tensor | None, still: bool = False,
        tensors: Mapping[str, torch.Tensor] | None = None,
    ) -> Context:  # fmt: skip
        """The names a form reads: constants, tensors (the edit's, unless others are given), and what is in scope."""
        names: dict[str, Any] = dict(self.constants)
        tensors = self.tensors() if tensors is None else tensors
        # A gate's tensors keep their front, `gate.`, under which no line of the form can name them.
        found = self.each if self.several else self.axes
        names.update({label: Named(tensors[label], axes) for label, axes in found.items()})
        for name, t in self._given(given, tensors).items():
            if name not in UNNAMED:
                names[name] = Named(t, self._scope_axes(name, t)) if isinstance(t, torch.Tensor) else t
        drawn = self._draws(given, tensors.values()) if SEED in self.needs else Draws()
        return Context(
            names, self.sizes, self.bases, mask, self.training and not still, given.get(PLACES), given.get(GRID),
            self.lengths, drawn,
        )  # fmt: skip

    def _z(self, c: Context, h: Named) -> None:
        if self.insert is not None:
            c.names["h"] = h
            c.names["z"] = evaluate(self.insert, c)
            del c.names["h"]

    def forward(
        self, h: torch.Tensor, given: Mapping[str, torch.Tensor], mask: torch.Tensor | None = None, want: str = "h"
    ) -> Any:
        """The new h, of h's shape and dtype; ``given`` is what is in scope (and `ROWS`: see `Site`, and `PLACES`); for
        ``want="mass"`` with the log of its scores' mass, for "rows" only `rows`.

        "still" is as "mass", with nothing random in it: for a look beside a pass that must not notice.
        Whatever reads the tensors goes through here: hooks that bring a module's weights act on its call.
        """
        if self.lies is not None and self.kind.has_heads and "x" in given:
            given = {**given, "x": self.lies.entering(given["x"])}
        if want == "rows":
            return self.rows(given, mask)
        if self.direct and want == "h" and h.ndim == self.dims and not self.watchers:
            found = self._straight({**given, "h": h}, mask, "h")
            if found is not None:
                return found if found.dtype == h.dtype else found.to(h.dtype)
        if self.layout is not None:
            return self.layout.back(self._edited(*self._laid_out(self.layout, h, given), mask, want), h)
        return self._edited(h, given, mask, want)

    def _laid_out(
        self, layout: Layout, h: torch.Tensor, given: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """h and what is in scope as [batch, token, d]."""
        inner, read = layout.into(h), dict(given)
        if self.gridded and self.grid is None:
            read[GRID] = torch.arange(inner.shape[1], device=h.device).reshape(layout.positions(h))
        if "x" in read:
            read["x"] = layout.entering(read["x"])
            agree(read["x"], inner, f"`{self.site.view.module}`")
        if "residual" in read:
            read["residual"] = layout.into(read["residual"])
        return inner, read

    def _edited(self, h: torch.Tensor, given: Mapping[str, torch.Tensor], mask: torch.Tensor | None, want: str) -> Any:
        if ROWS in given:
            lead = given[ROWS]
            inner = {n: t.view(*lead, -1) if n in ("x", "residual") else t for n, t in given.items() if n != ROWS}
            return self.forward(h.view(*lead, -1), inner, mask, want).view(h.shape)
        if self.rests and want == "h" and not (self.training or self.watchers):
            return h
        if h.dim() == 4 and h.shape[1] == 1 and self.side != "attention":  # one head for all, before the tokens
            inner = {n: t.squeeze(1) if getattr(t, "ndim", 0) == 4 else t for n, t in given.items()}
            return self.change(h.squeeze(1), inner, mask, want).unsqueeze(1)
        return self.change(h, given, mask, want)

    def change(self, h: torch.Tensor, given: Mapping[str, torch.Tensor], mask: torch.Tensor | None, want: str) -> Any:
        """What `forward` returns of a row that does not rest."""
        rows: torch.Tensor | None = None
        if self.carries:
            given = taken(self, given, h)
        if self.chosen or self.indices:
            given, rows = of_the_text(self, h, given)
        if self.grid is not None:
            given = {**given, GRID: self.cells(h, *given[GRID])}
        straight = want in ("h", "mass") and self.recipes is not None and not torch.compiler.is_compiling()
        beside = self._beside(h, given, mask) if straight and self.watchers else None
        found = self._straight({**given, "h": h}, mask, want) if straight else None  # type: ignore[arg-type]
        if found is None:
            out, c = self.evaluate(h, given, mask, want == "still")
            result = out if want == "h" else (out, self._own_mass(c, given, h))
            self._note(given, c.penalties)
            if self.carries:
                leave(self, given, {n: v.data for n, v in c.carried.items() if isinstance(v, Named)})
        elif want == "mass":
            out = found[0].to(h.dtype)
            result = out, found[1]
        elif isinstance(found, tuple):
            result = out = found[0].to(h.dtype)
            end = len(found) - len(self.carries)
            self._note(given, found[1:end])
            if self.carries:
                leave(self, given, dict(zip(self.carries, found[end:])))
        else:
            result = out = found.to(h.dtype)
        if rows is not None:  # rows of a prompt have no ids and no positions in the text; heads read none
            result = out = torch.where(rows[..., None], h, out)
        for watcher in self.watchers:
            watcher.saw(h, out, beside or c)
        return result

    def cells(self, h: torch.Tensor, shape: tuple[int, int], layout: Any) -> torch.Tensor:
        """Which tokens of ``h`` are the parts of the picture, [rows, columns]; ``layout`` is that of a prompt's rows among them."""
        assert self.grid is not None
        rows, columns = shape
        n = self.grid.before + rows * columns + self.grid.behind
        at = torch.arange(self.grid.before, self.grid.before + rows * columns, device=h.device).view(rows, columns)
        if layout is not None:
            n, at = n + layout.total, layout.tokens[0].to(h.device)[at]
        if h.shape[-2] != n:
            raise error("E0537", f"the row `{self.row.name}` reads a picture of {rows} x {columns} parts, which is {n} tokens with those beside them, and "
                        f"at `{self.site.full_name}` there are {h.shape[-2]}", self.row.span,
                        help="modify a site whose tokens are those of the whole picture")  # fmt: skip
        return at

    def _note(self, given: Mapping[str, Any], penalties: Sequence[Any]) -> None:
        """Leaves the penalties of a pass where the model finds them."""
        if penalties and NOTED in given:
            found = [p.data if isinstance(p, Named) else p for p in penalties]
            total = sum(found[1:], found[0])
            given[NOTED].add(self, total if isinstance(total, torch.Tensor) else torch.tensor(float(total)))

    def _own_mass(self, c: Context, given: Mapping[str, torch.Tensor], h: torch.Tensor) -> torch.Tensor:
        """The log of the mass of the row's scores; tokens that are not selected see none of it."""
        mass = torch.logsumexp(c.names["scores"].data, -1)  # type: ignore[union-attr]
        return mass.masked_fill(~chosen_beside(given[CHOSEN], h, 0), -torch.inf) if CHOSEN in given else mass

    def _beside(self, h: torch.Tensor, given: Mapping[str, torch.Tensor], mask: torch.Tensor | None) -> Context:
        """The names that the row's lines bind, for those who watch: evaluated beside the pass, with the numbers that it will draw."""
        devices = [h.device] if h.device.type != "cpu" else []
        with torch.no_grad(), torch.random.fork_rng(devices, device_type=h.device.type if devices else "cuda"):
            return self.evaluate(h, given, mask)[1]

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
        run(self.row.compose, c)
        out = c.names["out"]
        if g is not None:
            change = elementwise(torch.sub, out, named)
            out = elementwise(torch.add, named, elementwise(operator.mul, g, change))
        if not isinstance(out, Named):
            raise TypeError("a row yields a tensor")
        data = out.data
        shape = h.shape
        if self.kind.has_labels:  # an adapter's head may have other labels
            shape = torch.Size((*h.shape[:-1], self.site.sizes["labels"]))
        if data.shape != shape:
            beyond = [a for a in out.axes if a not in named.axes]
            if beyond:
                raise error("E0706", f"the row `{self.row.name}` yields a value for each {beyond[0]} at `{self.site.full_name}`, and "
                            f"`{self.site.name}` of this model has one for each {' and '.join(named.axes)}", self.row.span,
                            help=f"reduce it, for example mean(…, {beyond[0]}s)")  # fmt: skip
            data = to_axes(out, named.axes, shape)
        data = data.to(h.dtype)
        if CHOSEN in given:
            data = torch.where(chosen_beside(given[CHOSEN], h, 1), data, h)
        return data, c

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

    def rows(self, given: Mapping[str, torch.Tensor], mask: torch.Tensor | None) -> Rows:
        """Keys and values [batch or 1, group, l, d_head] of a row that shares the softmax, and what its scores and what it yields is
        multiplied by at each query, [batch, head or 1, query, 1] (see `compiler.lower`)."""
        found = self._straight(given, mask, "rows")
        if found is not None:
            return found
        low = self.lowered
        assert low is not None and low.keys is not None and low.values is not None
        c = self.context(given, mask)
        run(low.before, c)
        heads, groups = self.site.sizes["heads"], self.site.sizes["groups"]

        def wide(e: Any, axes: tuple[str, ...]) -> torch.Tensor:
            v = evaluate(e, c)
            assert isinstance(v, Named)
            if "group" in axes and "head" in v.axes:
                return spread(v, ("batch", "head"), 2)
            return spread(refine(v, axes, heads), axes, 4 - len(axes))

        kv = [wide(e, ("batch", "group")) for e in (low.keys, low.values)]
        k, v = (t if t.shape[1] > 1 else t.expand(-1, groups, -1, -1) for t in kv)
        a, b = (None if e is None else wide(e, ("batch", "head", "token")) for e in (low.on_scores, low.on_values))
        return k, v, a, b


def _laid(t: Any) -> tuple[tuple[str, ...], int]:
    """The axes of a tensor of that type, in order, and how many sizes it has."""
    return tuple(sorted(t.axes, key=axis_order)), len(t.sizes)


def needs(planned: PlannedEdit) -> frozenset[str]:
    """The scope names that must be gathered for an edit."""
    read = planned.typing.read_by_passes & {
        "x",
        "residual",
        "q",
        "W",
        "bias",
        "log_mass",
        "scale",
        "tokens",
        "chance",
        PROGRESS,
    }
    real = {"tokens"} if not OF_REAL_TOKENS.isdisjoint(planned.typing.read_by_passes) else set()
    return frozenset(read | real | ({SEED} if draws(planned.typing) else set()))


def places_of(planned: PlannedEdit) -> dict[str, str]:
    """What the places of a row are called of which there is one draw each."""
    site, row = planned.site, planned.row.name
    layer = f"{site.stack}.{site.layer}"
    return {"site": f"{site.label}.{row}", "layer": f"{layer}.{row}", "kind": f"{site.full_name}.{row}", "model": row}
