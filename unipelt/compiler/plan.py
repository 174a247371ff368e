"""Method and model to plan: what will be changed where, which tensors of which sizes, how many parameters. Pure.

A plan is made on the meta device too. `unipelt.runtime` carries it out.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ..anatomy.grids import Grid
from ..anatomy.sites import Site, SiteMap
from ..language.above import view
from ..language.types.arguments import parameters
from ..language.types.declared import TensorTyping
from ..language.types.initialisers import INITIALISERS
from ..language.report.diagnostics import Diagnostic
from ..language.analyse.fold import Fold
from ..language.ir import Method, Row
from ..language.types.layers import NUMERIC, layered
from ..language.types.primitives import PLACING
from ..language.analyse.verdicts import judged
from ..language.types.typed import TypedRow
from ..language.sites import axis_order
from ..language.sizes import Size
from ..language.syntax.nodes import Expr
from ..language.types.values import Distribution, NumberType
from .labels import HeadUse, Labels
from .hosting import Parameter
from .untouched import Cut, runs_once


#: What a plan's table has as the form of trained copies.
COPY = "trained copy"


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor of the adapter: its name in a state dict, axes and their lengths, sizes, start. ``below``: its entries are whole
    numbers less than that."""

    name: str
    axes: tuple[str, ...]
    copies: tuple[int, ...]
    sizes: tuple[int, ...]
    start: Distribution | None
    exact: Expr | None
    frozen: bool
    lr: float
    below: int | None = None

    def __repr__(self) -> str:
        return f"<tensor: {self.name} {list(self.shape)}>"

    @staticmethod
    def of(t: TensorTyping, row: Row, site: Site, typing: TypedRow) -> PlannedTensor:
        """A tensor that a row declares, at a site: named by its owner, with the axes it has there."""
        within = site.layer is not None or (site.kind.by_path and t.owner.each == "kind")
        owner = t.owner if within else t.owner.outside_the_layers()
        if owner.span is not None and site.layer is not None:
            place = site.full_name if owner.each == "kind" else site.stack
            front = ".".join(filter(None, [place, owner.group(site.layer)]))
        else:
            front = owner.named(kind=site.full_name, layer=site.block, site=site.label)
        axes = tuple(sorted(t.type.axes, key=axis_order))
        of_heads = {a: site.sizes[n] for a, n in (("head", "heads"), ("group", "groups")) if n in site.sizes}
        lengths = {**of_heads, **{a: whole(n) for a, n in typing.axes.items()}}
        copies, sizes = tuple(lengths[a] for a in axes), tuple(whole(s) for s in t.type.sizes)
        name, lr = ".".join(filter(None, [front, t.lender or row.name, t.home])), t.lr if t.lr is not None else 1.0
        below = whole(t.below) if t.below is not None else None
        return PlannedTensor(name, axes, copies, sizes, t.start, t.exact, t.frozen, lr, below)

    def beside(self, known: PlannedTensor | None) -> PlannedTensor:
        """The tensor under a name of its own where one of that name has another shape: sites of one name that differ in size
        share what they can, one tensor for each size."""
        if known is None or known.shape == self.shape:
            return self
        return replace(self, name=f"{self.name}.{'x'.join(map(str, self.shape))}")

    @property
    def redrawn(self) -> bool:
        """Whether it stays as it is drawn, and what is drawn follows from the seed and its name alone: so it need not be stored."""
        known = INITIALISERS[self.start.name] if self.exact is None and self.start is not None else None
        return self.frozen and known is not None and not known.words and not known.given

    @property
    def shape(self) -> tuple[int, ...]:
        return self.copies + self.sizes

    @property
    def count(self) -> int:
        total = 1
        for n in self.shape:
            total *= n
        return total


@dataclass(frozen=True, slots=True)
class PlannedInput:
    """An argument that the model's forward takes besides its own: an index below ``count`` or a tensor of ``sizes`` for
    each example; ``marks``: the pseudo-tokens of the text, for as many rows as ``count``."""

    name: str
    count: int | None = None
    sizes: tuple[int, ...] = ()
    marks: bool = False

    def __str__(self) -> str:
        if self.marks:
            return f"a whole number for each token, 0 at text and k, from 1 to {self.count}, at the k-th pseudo-token"
        if self.count is not None:
            return f"a whole number from 0 to {self.count - 1} for each example"
        return f"a tensor [{', '.join(map(str, self.sizes))}] for each example"


@dataclass(frozen=True, slots=True)
class PlannedPrompt:
    """How many rows an edit puts among the tokens, with which composition, behind how many tokens."""

    word: str
    rows: int
    after: int

    @property
    def grows(self) -> bool:
        """Whether the sequence is longer by the rows."""
        return PLACING[self.word]

    @property
    def behind(self) -> int | None:
        """How many tokens the rows stand behind; None: all."""
        return None if self.word == "append" else self.after

    @property
    def leads(self) -> bool:
        """Whether the rows stand in front of the first token."""
        return self.grows and self.behind == 0


@dataclass(frozen=True, slots=True)
class PlannedEdit:
    """One row at one site. ``tensors`` maps the row's own names to tensor names."""

    site: Site
    tensors: dict[str, str]
    typing: TypedRow
    constants: dict[str, int]
    grid: Grid | None = None  # of the parts of a picture, where the row reads it

    def __repr__(self) -> str:
        return f"<edit: {self.row.name} at {self.site.label}>"

    @property
    def row(self) -> Row:
        return self.typing.row

    @property
    def sizes(self) -> dict[str, int]:
        """Every size that the row's lines may read as a number, `d_in` and `d_out` of this row included."""
        return {name: whole(size) for name, size in self.typing.sizes.items()}

    @property
    def lengths(self) -> dict[str, int]:
        """The sizes of the axes that the row declares."""
        return {name: whole(size) for name, size in self.typing.axes.items()}

    @property
    def prompt(self) -> PlannedPrompt | None:
        """The rows that this edit puts among the tokens, if it does."""
        placed = self.typing.out.placed
        return PlannedPrompt(placed.word, whole(placed.rows), whole(placed.after)) if placed is not None else None

    @property
    def late(self) -> int | None:
        """The block that the rows enter; None where they enter the model."""
        return self.site.layer if self.site.kind.among and self.prompt is not None else None


@dataclass(frozen=True, slots=True)
class PlannedFold:
    """A closed expression of an edit that is stored as one tensor after training."""

    name: str
    fold: Fold
    edit: int
    tensor: PlannedTensor

    def __repr__(self) -> str:
        return f"<fold: {self.name}>"


@dataclass(frozen=True, slots=True)
class PlannedCopy:
    """A trained copy of one parameter of the base; with a ``start`` only its place is copied, and it is drawn anew."""

    name: str
    parameter: Parameter
    lr: float
    head: bool
    start: Distribution | None = None

    def __repr__(self) -> str:
        return f"<copy: {self.name} {list(self.parameter.shape)}>"


@dataclass(frozen=True, slots=True)
class Counts:
    """Parameters: trained (the head apart), stored after folding, frozen draws that are kept, head, base model."""

    trained: int
    stored: int
    frozen: int
    head: int
    base: int


@dataclass(frozen=True)  # without slots, since the verdicts are worked out once
class Plan:
    method: Method
    sites: SiteMap
    edits: tuple[PlannedEdit, ...]
    tensors: dict[str, PlannedTensor]
    copies: tuple[PlannedCopy, ...]
    folds: tuple[PlannedFold, ...]
    counts: Counts
    warnings: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    model: str = ""
    labels: Labels | None = None  # of the adapter's own head; None where the base's labels hold
    head: HeadUse = ""
    leaks: tuple[Diagnostic, ...] = field(default=(), repr=False)
    inputs: tuple[PlannedInput, ...] = ()
    unabsorbed: str = ""  # why no map of this model absorbs edits that a formula says are affine

    @cached_property
    def runs_once(self) -> Cut | None:
        """The blocks below everything that is edited or trained: with `--cache-trunk` they run once for each example."""
        return runs_once(self)

    @cached_property
    def properties(self) -> dict[str, str]:
        """Verdicts at the sites of this model, in words."""
        found = judged([e.typing for e in self.edits])
        if any(s.causal for s in self.sites.stacks):  # an encoder beside it may look ahead
            ahead = judged([e.typing for e in self.edits if e.site.causal])
            # what a decoder reads of its encoder is all there, and is kept in the cache too
            kept = judged([e.typing for e in self.edits if e.site.causal or e.site.kind.cross])
            found |= {"causal": ahead["causal"], "cache-consistent": kept["cache-consistent"]}
        said = {name: v.value if v.value == "yes" else f"{v.value}: {v.reason}" for name, v in found.items()}
        if self.unabsorbed and said["mergeable"] == "yes":
            said["mergeable"] = f"no: {self.unabsorbed}"
        return said

    def table(self) -> list[dict[str, Any]]:
        """One entry for each row and site name: where, how often, which tensors, how many parameters."""
        groups: dict[tuple[str, str], list[PlannedEdit]] = {}
        for e in self.edits:
            groups.setdefault((e.row.name, e.site.full_name), []).append(e)
        shared = {s.name: s.depth for s in self.sites.stacks if s.shared}
        counted: set[str] = set()
        out: list[dict[str, Any]] = []
        for (row, site), edits in groups.items():
            names = list(dict.fromkeys(n for e in edits for n in e.tensors.values()))
            new = [n for n in names if n not in counted]
            counted.update(new)
            layers = sorted({e.site.layer for e in edits if e.site.layer is not None})
            if layers and edits[0].site.stack in shared:
                layers = list(range(shared[edits[0].site.stack]))
            shapes = {local: [self.tensors[e.tensors[local]].shape for e in edits] for local in edits[0].tensors}
            out.append({
                "row": row, "site": site, "layers": _ranges(layers), "insert": edits[0].row.columns.insert,
                "form": edits[0].row.columns.form, "compose": edits[0].row.columns.compose,
                "gate": edits[0].row.columns.gate, "tensors": {k: [_by_layer(n) for n in zip(*v)] for k, v in shapes.items()},
                "parameters": sum(self.tensors[n].count for n in new if not self.tensors[n].frozen),
            })  # fmt: skip
        for head in (False, True):
            chosen = [c for c in self.copies if c.head is head]
            if chosen:
                out.append({
                    "row": "head" if head else "train", "site": ", ".join(_kinds(chosen)), "layers": "", "insert": "",
                    "form": COPY, "compose": "replaces", "gate": "",
                    "tensors": {c.name: list(c.parameter.shape) for c in chosen[:4]},
                    "parameters": sum(c.parameter.count for c in chosen),
                })  # fmt: skip
        return out

    def by_layer(self) -> dict[str, list[Any]]:
        """The arguments that depend on the layer, with their value at each; of a stack, if there are several, by its name."""
        names = layered([p for p in self.method.params if p.type in NUMERIC])
        out: dict[str, list[Any]] = {}
        for stack in self.sites.stacks if names else ():
            if stack.shared:
                continue
            bound = [
                parameters(self.method.params, True, {"layer": i, "depth": stack.depth}) for i in range(stack.depth)
            ]
            for n in (p.name for p in self.method.params if p.name in names):
                types = [b[n].type for b in bound]
                values = [t.value for t in types if isinstance(t, NumberType)]
                if len(values) == stack.depth:  # a list for one stack need not fit another
                    out[f"{stack.name}.{n}" if stack.name else n] = values
        return out

    def to_json(self) -> dict[str, Any]:
        return {
            "method": self.method.name, "arguments": self.method.arguments, "by_layer": self.by_layer(), "model": self.model,
            "anatomy": self.sites.anatomy, "sites": {"known": self.sites.known, "proof": self.sites.proof}, "counts": {f: getattr(self.counts, f) for f in Counts.__slots__},
            "properties": self.properties, "warnings": list(self.warnings), "needs": list(self.needs),
            "inputs": {i.name: str(i) for i in self.inputs}, "refused": dict(self.sites.refused), "uncovered": dict(self.sites.uncovered),
            "labels": self.labels.to_json() if self.labels is not None else None, "edits": self.table(),
            "tensors": {t.name: {"shape": list(t.shape), "frozen": t.frozen, "lr": t.lr} for t in self.tensors.values()},
            "copies": {c.name: list(c.parameter.shape) for c in self.copies},
            "runs_once": self.runs_once.to_json() if self.runs_once is not None else None,
        }  # fmt: skip

    def __str__(self) -> str:
        return plan_text(self)

    def __repr__(self) -> str:
        """Short: `str` is the table."""
        return f"<plan: {self.method.name} on {self.model}, {len(self.edits)} edits, {self.counts.trained:,} parameters trained>"

    def _repr_html_(self) -> str:
        return view("plan_html")(self)


def _by_layer(values: tuple) -> Any:
    """One value, or where they differ a list with one for each layer."""
    return values[0] if len(set(values)) == 1 else list(values)


def _kinds(copies: list[PlannedCopy]) -> list[str]:
    return list(dict.fromkeys(c.name.rsplit(".", 1)[-1] if len(copies) > 8 else c.name for c in copies))


def _ranges(layers: list[int]) -> str:
    if not layers:
        return ""
    if layers == list(range(layers[0], layers[-1] + 1)):
        return str(layers[0]) if len(layers) == 1 else f"{layers[0]}–{layers[-1]}"
    return ", ".join(map(str, layers))


def whole(size: Size) -> int:
    """The number of a size that is bound."""
    n = size.number
    assert n is not None and n.denominator == 1, f"unbound size {size}"
    return int(n)


# ---------------------------------------------------------------- as text

#: Columns of a plan's text where nobody says how many there are.
WIDTH = 80


def plan_text(plan: Plan, width: int = WIDTH) -> str:
    """Where a plan's edits are, what its rows do and the counts, in lines of at most ``width`` columns."""
    entries = plan.table()
    depths = [f"{s.name} {s.depth} layers".strip() for s in plan.sites.stacks]
    about = ", ".join([*depths, *_known(plan.sites)])
    title = f"{plan.method.name} on {plan.model}" + (f" ({about})" if about else "")
    lines = [*_filled(title, width), "", *_places(entries, width), ""]
    lines += [line for text in _rows(entries) for line in _filled(text, width)]
    by_layer = [f"{n} by layer: {', '.join(map(_number, values))}" for n, values in plan.by_layer().items()]
    lines += ["", *by_layer] if by_layer else []
    c = plan.counts
    share = f" ({100 * c.trained / c.base:.2f} % of the base's {c.base:,})" if c.base else ""
    lines += ["", f"trained {c.trained:,}{share}", f"stored {c.stored:,}   frozen {c.frozen:,}   head {c.head:,}"]
    if plan.runs_once is not None:
        lines += _filled(f"{plan.runs_once} for each example with `--cache-trunk`, where nothing random acts", width)
    notes = [
        *(f"note: {w}" for w in plan.warnings),
        *(f"needs: {n}" for n in plan.needs),
        *(f"input {i.name}: {i}" for i in plan.inputs),
    ]
    return "\n".join([*lines, *(line for text in notes for line in _filled(text, width))])


def _known(sites: SiteMap) -> list[str]:
    """How a model's sites are known: nothing where it has none."""
    how = {"anatomy": f"anatomy {sites.anatomy}", "found": "sites found" if sites.sites else ""}.get(sites.known, "")
    return [how, *[sites.proof] * (sites.proof not in ("", "proved"))] if how else []


def _places(entries: list[dict[str, Any]], width: int) -> list[str]:
    """The table of rows, sites, layers and parameters; a list of sites that is too long goes on in the next line."""
    head = ("row", "site", "layers", "parameters")
    cells = [[str(e["row"]), str(e["site"]), str(e["layers"]), f"{e['parameters']:,}"] for e in entries]
    widths = [max(len(r[i]) for r in (head, *cells)) for i in range(len(head))]
    widths[1] = max(min(widths[1], width - 6 - widths[0] - widths[2] - widths[3]), len("site"))
    lines = []
    for row, site, layers, count in (head, ["-" * w for w in widths], *cells):
        first, *more = _filled(site, widths[1], indent="")
        lines.append(f"{row:<{widths[0]}}  {first:<{widths[1]}}  {layers:<{widths[2]}}  {count:>{widths[3]}}")
        lines += [" " * (widths[0] + 2) + part for part in more]
    return lines


def _rows(entries: list[dict[str, Any]]) -> list[str]:
    """What each row does, once: its insertion, form, composition and gate."""
    texts = []
    for e in entries:
        columns = [f"{c} {e[c]}" for c in ("insert", "form", "compose") if e[c]] + (
            [f"gated by {e['gate']}"] if e["gate"] else []
        )
        texts.append(f"{e['row']}: " + ("a trained copy in its place" if e["form"] == COPY else "; ".join(columns)))
    return list(dict.fromkeys(texts))


def _filled(text: str, width: int, indent: str = "  ") -> list[str]:
    return textwrap.wrap(
        text, max(width, 20), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    ) or [""]


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower()
