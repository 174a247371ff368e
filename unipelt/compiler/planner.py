"""Makes a plan: rows to sites, tensors to their places, requirements, causality. Pure; `runtime` carries a plan out.

Every mistake of a method on a model is found here; what the planned edits come to together is counted in `compiler.totals`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import starmap
from typing import Any

from torch import nn

from ..anatomy.base import uncompiled
from ..anatomy.find import find
from ..anatomy.packed import maps_apart
from ..anatomy.heads import is_language_model, word_embeddings
from ..anatomy.sites import Site, SiteMap, Stack
from ..language.types.arguments import parameters
from ..language.analyse.method import analyse
from ..language.check.methods import first_like, sites_of, varies_by
from ..language.types.declared import TensorTyping
from ..language.report.diagnostics import Diagnostic, PeltError, error
from ..language.types.infer import Inference
from ..language.types.inputs import places_rows
from ..language.ir import Method, Row
from ..language.members import asks
from ..language.types.layers import by_layer, chosen, layered, least
from ..language.types.initialisers import INITIALISERS
from ..language.check.outside import not_one, selects
from ..language.analyse.row_verdicts import cache_consistent, causal, padding_invariant, stands_behind
from ..language.types.rows import distinct, lacking, require, typed_row
from ..language.types.typed import Sizes, TypedRow
from ..language.sites import SiteSignature, TensorType
from ..language.sizes import Size
from ..language.syntax.nodes import NOWHERE, Expr, Selection
from ..language.types.values import NumberType, Value
from .absorbed import without_bias
from . import along, at_attach, coverage, totals
from .among import late, looks_behind, misplaced, no_rows
from .coverage import common_sizes
from .grids import Grids
from .notes import DECODES_OTHERWISE, FORETELLS_THE_END, READS_PADS, of_attention, of_rows, of_the_base
from .held import held, said_of_tied
from .hosting import Parameter, refused_heads
from .labels import Labels, label_map, own_labels, scores_examples
from .own_heads import head_use, incomplete, own_head, own_rows
from .meant import meant_by
from .places import in_the_layers, lacking_at, own_arguments
from .plan import Counts, Plan, PlannedCopy, PlannedEdit, PlannedTensor
from .trained import copy_name, head_parameters, numbers_of, parameters_of, select, stacks_named, trained_along

MAX_TRAINED = 2**33
#: Where a module lies of a model whose layers are not known.
NO_STACK = Stack("", 0, (), False, False, False, "")
#: The main input of models whose batches hold no pads.
UNPADDED = ("pixel_values",)


@maps_apart
def plan(
    model: nn.Module, method: Method, head: bool | None = None, allow_future: bool = False,
    labels: int | Sequence[str] | Labels | None = None, problem_type: str | None = None, example: Mapping[str, Any] | None = None,
) -> Plan:  # fmt: skip
    """The plan of a method whose adapters, where it takes some, are written out in it. The arguments are those of `unipelt.plan`
    (`runtime.members.plan`), which finds the adapters first."""
    model = uncompiled(model)
    analyse(method)
    missing = [p.name for p in method.params if p.default is None]
    if missing:
        raise error(
            "E0408", f"`{method.name}` needs a value for `{missing[0]}`", help=f"write {method.name}({missing[0]}=…)"
        )
    if open_ := asks(method):
        raise error("E0599", f"the adapters that `{open_[0]}` names are not in `{method.name}` yet",
                    help="unipelt.plan and unipelt.apply find them, in a model or in their folders")  # fmt: skip
    sites = find(model, example)
    builder = _Builder(model, method, sites, own_labels(model, sites, labels, problem_type), example)
    for row in method.rows:
        builder.row(row)
    builder.places()
    for trained in method.trains:
        builder.trained(trained)
    builder.head(head)
    builder.whole_head()
    builder.requirements()
    builder.problems += [*own_arguments(model, builder.edits), *along.refused(builder.edits, sites)]
    if builder.problems:
        raise PeltError(distinct(builder.problems))
    result = builder.plan()
    if result.leaks and not allow_future:
        raise PeltError(result.leaks)
    return result


class _Builder:
    def __init__(
        self, model: nn.Module, method: Method, sites: SiteMap, labels: Labels | None, example: Mapping[str, Any] | None
    ):
        self.model, self.method, self.sites, self.labels = model, method, sites, labels
        self.grids = Grids(model, sites, example)
        self.label_map = label_map(model, sites)
        self.parameters = parameters_of(model)
        self.head_parameters = head_parameters(sites, self.parameters)
        self.stacks = {s.name: s for s in sites.stacks}
        heads = [own_head(s, labels) for s in sites.sites if s.kind.has_labels]
        #: How many labels the model's head has, or the adapter's own: a size that any row may read.
        self.of_the_head = {"labels": heads[0].sizes["labels"]} if heads else {}
        self.edits: list[PlannedEdit] = []
        self.tensors: dict[str, PlannedTensor] = {}
        self.first: dict[str, str] = {}  # the site at which a tensor was met first
        self.copies: dict[str, PlannedCopy] = {}
        self.problems: list[Diagnostic] = []
        self.warnings: list[str] = [
            "the sites of this model were found without weights and are not yet proved: that is done where the method is applied to them"
        ] if sites.untried else []  # fmt: skip
        self.judged: dict[str, list[str]] = {}  # what is to be said of rows, and of which
        self.needs: list[str] = []
        self.leaks: dict[tuple, Diagnostic] = {}

    # ------------------------------------------------------------ rows

    def row(self, row: Row) -> None:
        meant = meant_by(row, self.method, self.model, self.sites, again=bool(self.problems))
        self.problems += meant.problems
        self.warnings += meant.warnings
        found = meant.sites
        here_layers: dict[str, frozenset[int]] = {}
        for stack in (s for s in self.sites.stacks if any(f.stack == s.name and f.layer is not None for f in found)):
            layers = self.layers(row.layers, stack, bool(varies_by(self.method, row)))
            if layers is None:
                return
            here_layers[stack.name] = layers
        found, misplaced = in_the_layers(found, row, self.sites)
        self.problems += misplaced
        missing, notes = coverage.unselected(row, found, here_layers, self.sites)
        self.problems += missing
        paths, named = sites_of(row.sites, self.method.params), [s for s in found if not s.kind.by_path]
        self.warnings += [*coverage.towers(paths, self.sites), *coverage.partial(named, self.sites), *coverage.uncovered(named, self.sites),
                          *notes, *coverage.said_of(found), *coverage.before_the_blocks(found, self.sites)]  # fmt: skip
        for site in found:
            at = self.probed(row, site) if site.kind.probes and selects(row) else site
            if at is not None and (site.layer is None or site.layer in here_layers[site.stack]):
                self.edit(row, own_head(at, self.labels))

    def probed(self, row: Row, site: Site) -> Site | None:
        """The head's site where ``x`` is what leaves one layer, the one that a row selects."""
        stack = self.sites.main[-1]
        layers = self.layers(row.layers, stack)
        if layers is None:
            return None
        if len(layers) > 1:
            self.problems.append(not_one(row, len(layers)))
            return None
        block = next(s for s in self.sites.named("block", stack.name) if s.layer in layers)
        sizes = {**site.sizes, **{n: block.sizes[n] for n in ("d_model", "d_x")}}
        return replace(site, layer=block.layer, block=block.block, x=block.view.module, x_leaves=True, sizes=sizes)

    def edit(self, row: Row, site: Site) -> None:
        if (site.side == "prompt" or places_rows(row)) and (refused := no_rows(self.model, self.sites, row, site)):
            self.problems += [refused] * ((refused.code, refused.span) not in {(d.code, d.span) for d in self.problems})
            return
        stack = self.stacks.get(site.stack, self.sites.main[-1] if self.sites.stacks else NO_STACK)
        layer = None if stack.shared else site.layer
        alike = None if layer is None else first_like(self.method, row, layer, stack.depth)
        depth = stack.depth or None
        found = lacking_at(site, row, self.model) or held(
            site, row, self.model, self.sites, self.parameters, self.label_map
        )
        if isinstance(found, Diagnostic):
            self.problems.append(found)
            return
        site = found
        self.warnings += said_of_tied(site, row)
        sizes = Sizes({**self.of_the_head, **site.sizes}, alike, depth)
        try:
            typing = typed_row(self.method, row, self.signature(site), sizes)
        except PeltError as e:
            known = {(d.code, d.span) for d in self.problems}
            here = (self.here(stack),) if stack.name else ()
            self.problems += [replace(d, where=d.where + here) for d in e.diagnostics if (d.code, d.span) not in known]
            return
        if without := coverage.without(site, typing, self.model, self.sites):
            self.problems += without
            return
        grid = self.grids.of(site, typing)
        if isinstance(grid, Diagnostic):
            self.problems += [grid] if (grid.code, grid.span) not in {(d.code, d.span) for d in self.problems} else []
            return
        if site.causal:
            verdict = causal(typing)
            if verdict.value != "yes":
                self.leaks[(row.name, verdict.span.start)] = Diagnostic(
                    "E0530", f"the row `{row.name}` sees later positions, and {self.tower(stack)} is causal",
                    verdict.span, label=verdict.reason if typing.tokens else "pools over the whole sequence",
                    help=("select the first tokens" if typing.tokens else "gate each token by itself (`token_gate`) or use a running mean")
                    + "; allow_future=True (`--allow-future`) applies the method as it is" + ("; in the encoder it may stand as it is" if "encoder" in self.stacks else ""),
                )  # fmt: skip
            elif (said := cache_consistent(typing).value) != "yes":
                self.judged.setdefault(DECODES_OTHERWISE[said != "no"], []).append(row.name)
        if site.causal and stands_behind(typing) and is_language_model(self.model):
            self.judged.setdefault(FORETELLS_THE_END, []).append(row.name)
        said = padding_invariant(typing).value
        if said != "yes" and getattr(self.model, "main_input_name", "") not in UNPADDED:
            self.judged.setdefault(READS_PADS[said != "no"], []).append(row.name)
        self.needs += [f'a tokenizer (for `tokens since "{c.text}"`)' for c in typing.tokens if c.text is not None]
        names: dict[str, str] = {}
        for t in typing.tensors:
            planned = self.tensor(t, row, site, typing)
            names[t.label] = planned.name
        numbers = ({"depth": depth} if depth else {}) | ({"layer": layer} if layer is not None else {})
        self.edits.append(PlannedEdit(site, names, typing, numbers, grid))

    def places(self) -> None:
        """Rows that enter a block behind others: where they stand, and who would read their places before."""
        pictures = getattr(self.model, "main_input_name", "") in UNPADDED
        found = [misplaced(e.prompt, self.stacks[e.site.stack], e.row, pictures) for e in late(self.edits) if e.prompt]
        self.problems += [d for d in (*found, looks_behind(self.edits)) if d is not None][:1]

    def signature(self, site: Site) -> SiteSignature:
        """What a site binds on this model: a head that scores examples has no value for each token."""
        found = site.kind
        if found.pools and scores_examples(self.model, self.sites):
            return replace(found, h=TensorType(found.h.axes - {"token"}, found.h.sizes))
        return found

    def here(self, stack: Stack) -> str:
        """Where a row of several stacks failed, and what is otherwise in the others: what does for one need not do for all."""
        others = [f"the {s.name} has {s.depth}" for s in self.sites.stacks if s.depth != stack.depth]
        return f"in the {stack.name}" + (f", of {stack.depth} layers ({', '.join(others)})" if others else "")

    def tower(self, stack: Stack) -> str:
        return (
            f"the {stack.name} of this {type(self.model).__name__}"
            if stack.name
            else f"this {type(self.model).__name__}"
        )

    def tensor(self, t: TensorTyping, row: Row, site: Site, typing: TypedRow) -> PlannedTensor:
        planned = PlannedTensor.of(t, row, site, typing)
        before = self.tensors.get(planned.name)
        if t.lender:
            return self.lent(t, planned, site)
        if before is not None and before.shape != planned.shape and self.first[planned.name] == site.name:
            planned = planned.beside(before)
            before = self.tensors.get(planned.name)
            self.warnings.append(
                f"`{t.name}` is shared `per {t.owner.each}`, and the sizes of `{site.name}` differ: there is one for each size"
            )
        self.first.setdefault(planned.name, site.name)
        if before is not None and before.shape != planned.shape:
            self.problems.append(Diagnostic(
                "E0513", f"`{t.name}` is shared `per {t.owner.each}`, but its sizes differ: {list(before.shape)} and "
                f"{list(planned.shape)}", t.declaration.span, help="share it per site"))  # fmt: skip
        elif before is not None and t.of_site:
            self.problems.append(Diagnostic(
                "E0513", f"`{t.name}` is shared `per {t.owner.each}`, and it starts from the weights of one site, or what enters: those of "
                f"`{site.full_name}` are others", t.declaration.span, help="share it per site"))  # fmt: skip
        self.tensors[planned.name] = planned
        start = INITIALISERS[t.start.name] if t.start is not None else None
        if start is not None and start.words:
            self.start_from_words(t, planned.sizes)
        needed = start.data if start is not None else None
        if needed:
            self.needs.append(f"{needed} (for `{planned.name}`)")
        return planned

    def lent(self, t: TensorTyping, planned: PlannedTensor, site: Site) -> PlannedTensor:
        """A tensor of a row above, which must have one at this place."""
        at = self.tensors.get(planned.beside(self.tensors.get(planned.name)).name)
        if at is None or at.shape != planned.shape:
            found = self.tensors.get(planned.name)
            why = (
                f"has none of that owner (per {t.owner})"
                if found is None
                else f"has one of the sizes {list(found.shape)}, not {list(planned.shape)}"
            )
            self.problems.append(Diagnostic(
                "E0376", f"at `{site.full_name}` there is no `{t.name}`: the row `{t.lender}` {why}", t.declaration.span,
                help="let both rows modify the same sites, or share the tensor: `per model`, `per layer`"))  # fmt: skip
        return at or planned

    def start_from_words(self, t: TensorTyping, sizes: tuple[int, ...]) -> None:
        words = word_embeddings(self.model)
        why = ("reads none" if words is None else f"has {words.embedding_dim} numbers for each, where {sizes[-1]} are learned"
               if words.embedding_dim != sizes[-1] else "")  # fmt: skip
        if why:
            self.problems.append(Diagnostic(
                "E0707", f"`{t.name}` starts from words, and this {type(self.model).__name__} {why}", t.declaration.span,
                help="give it another start, for example normal(0.02)"))  # fmt: skip

    def layers(self, selection: Selection | None, stack: Stack, numbered: bool = False) -> frozenset[int] | None:
        """The layers of a stack that a selection names; 0-based, half-open; more than there are is clamped, with a warning.

        None where the selection has mistakes, or where it (or a row that is ``numbered`` by layer) tells apart layers
        that one module serves.
        """
        everything = frozenset(range(len(stack.blocks)))
        selects = selection is not None and selection.word != "all"
        if stack.shared and (selects or numbered):
            self.problems.append(Diagnostic(
                "E0703", f"{'one module serves' if len(stack.blocks) == 1 else f'{len(stack.blocks)} modules serve'} the "
                f"{stack.depth} layers of this {type(self.model).__name__}, so "
                f"{'layers cannot be selected' if selects else 'a layer has no number'}",
                selection.span if selection is not None and selects else NOWHERE,
                help="what is learned there is shared by the layers; leave the selection of layers out"))  # fmt: skip
            return None
        if selection is None or not selects:
            return everything
        depth = stack.depth
        where = f"the {stack.name}" if stack.name else "the model"
        inf = self.numbers({"depth": depth})
        word = selection.word
        values: list[int] = []
        for e in selection.values:
            v = inf.infer(e)
            if (
                not isinstance(v.type, NumberType)
                or not isinstance(v.type.value, int)
                or isinstance(v.type.value, bool)
            ):
                self.problems += inf.problems or [Diagnostic("E0514", "a layer is counted by a whole number", e.span)]
                return None
            values.append(v.type.value)
        low, said = least(word)
        if min(values) < low:
            self.problems.append(Diagnostic("E0514", said, selection.span))
            return None
        top = max(values)
        if top > depth and word != "every":
            self.warnings.append(f"`layers {word} {top}` is clamped: {where} has {depth} layers")
        found = frozenset(chosen(word, values, depth))
        if not found:
            self.problems.append(Diagnostic("E0516", f"this selects none of the {depth} layers", selection.span))
            return None
        return found

    def numbers(self, known: dict[str, int], stack: Stack | None = None) -> Inference:
        """The scope of a number outside of rows: the arguments, ``depth`` and ``layer`` where they are known, and the sizes
        that all sites of a stack have."""
        inf = Inference(parameters(self.method.params, True, known), {})
        if stack is not None:
            sizes = {n: v for n, v in {**self.of_the_head, **common_sizes(self.sites, stack)}.items() if n != "d_x"}
            inf.sizes |= {n: Size.of(v) for n, v in sizes.items() if v > 0}
            inf.hidden |= {n: why for n, why in lacking(sizes).items() if n != "d_x"}
        inf.names |= {n: Value(NumberType(Size.of(v), v)) for n, v in known.items()}
        if "layer" not in known:
            varying = ("layer", *layered(self.method.params))
            inf.hidden |= {n: "depends on the layer, and there is none here" for n in varying}
            inf.remedies |= {
                n: "give one number, or write a clause of its own for what is outside the layers" for n in varying
            }
        return inf

    # ------------------------------------------------------------ trained copies

    def trained(self, trained: Any) -> None:
        layers: dict[str, frozenset[int]] | None = None
        if trained.layers is not None and trained.layers.word != "all":
            if self.sites.unknown:  # what a layer is, too
                self.problems += self.sites.unknown
                return
            layers = {}
            for stack in stacks_named(trained.paths, self.sites):
                found_layers = self.layers(trained.layers, stack)
                if found_layers is None:
                    return
                layers[stack.name] = found_layers
        try:
            found, notes = select(self.model, self.sites, trained.paths, layers)
        except PeltError as e:
            self.problems += e.diagnostics
            return
        self.warnings += [*notes, *trained_along(trained.paths, self.sites)]
        heads = {p.path for p in self.head_parameters}
        for p in found:
            lr = self.multiple(trained.lr, p) if trained.lr is not None else 1.0
            if lr is None:
                return
            self.copy(p, lr, p.path in heads and not self._is_lm())

    def multiple(self, e: Expr, p: Parameter) -> float | None:
        """A learning-rate multiple at a parameter of the base, which may depend on the layer it belongs to."""
        inf = self.numbers(numbers_of(p, self.sites))
        t = inf.infer(e).type
        if isinstance(t, NumberType) and t.value is not None and t.value >= 0:
            return float(t.value)
        found = f"{t.value:g}" if isinstance(t, NumberType) and t.value is not None else "no number"
        self.problems += inf.problems or [
            Diagnostic("E0345", f"a learning-rate multiple is at least 0, and that of `{p.path}` is {found}", e.span)]  # fmt: skip
        return None

    def copy(self, p: Parameter, lr: float, head: bool) -> None:
        name = copy_name(p.path, self.sites)
        self.copies.setdefault(name, own_rows(PlannedCopy(name, p, lr, head), self.model, self.label_map, self.labels))
        if len(p.uses) > 1:
            self.warnings.append(f"`{name}` is tied: its copy is used in {' and '.join(m for m, _ in p.uses)}")

    def _is_lm(self) -> bool:
        return is_language_model(self.model)

    def head(self, wanted: bool | None) -> None:
        own = any(e.site.kind.times == "head" for e in self.edits)
        if wanted is None:
            wanted = bool(self.sites.head) and not own and not self._is_lm() and hasattr(self.model, "config")
        if not wanted:
            return
        if not self.sites.head:
            self.problems.append(Diagnostic("E0517", f"this {type(self.model).__name__} has no head to train",
                                            help="load it with AutoModelForSequenceClassification"))  # fmt: skip
            return
        self.problems += refused_heads(self.model, self.sites, self.head_parameters)
        for p in self.head_parameters:
            self.copy(p, 1.0, True)

    def whole_head(self) -> None:
        if self.labels is not None:
            self.problems += incomplete(self.model, self.label_map, self.edits, self.copies.values())

    # ------------------------------------------------------------ the whole

    def requirements(self) -> None:
        counts = self.counts()
        share = Value(NumberType(None, counts.trained / max(counts.base, 1)))
        changed = {e.site.stack for e in self.edits}
        meant = [s for s in self.sites.stacks if s.main or s.name in changed]
        for r in self.method.requires:
            varies = by_layer(r.condition, layered(self.method.params))
            for stack in meant or (None,):
                known = {"depth": stack.depth} if stack is not None else {}
                for numbers in (
                    [{"layer": i, **known} for i in range(stack.depth)]
                    if varies and stack is not None and not stack.shared
                    else [known]
                ):
                    inf = self.numbers(numbers, stack)
                    inf.names["params"] = share
                    require(r, inf)
                    if inf.problems:
                        self.problems += inf.problems
                        break

    def counts(self) -> Counts:
        """Before folding. A language model's head is a part of its base."""
        heads = [] if self._is_lm() else self.head_parameters
        base = sum(p.count for p in self.parameters.values()) - sum(p.count for p in heads)
        return totals.counts(self.edits, self.tensors, self.copies.values(), base)

    def plan(self) -> Plan:
        counts = self.counts()
        total = counts.trained + counts.frozen + counts.head
        if total > MAX_TRAINED:
            raise error("E0346", f"this method would have {total:,} parameters, more than {MAX_TRAINED:,}",
                        help="choose smaller sizes")  # fmt: skip
        folded, saved = totals.folds(self.method, self.edits, self.tensors)
        counts = replace(counts, stored=counts.stored - saved)
        said = [
            *self.warnings,
            *self.grids.said,
            *of_the_base(self.model),
            *of_attention(self.model, self.edits),
            *starmap(of_rows, self.judged.items()),
            *along.said(self.edits),
            *totals.rates(self.tensors, self.copies.values()),
        ]
        return Plan(
            self.method, self.sites, tuple(self.edits), self.tensors, tuple(self.copies.values()), folded, counts,
            tuple(dict.fromkeys(said)), (*dict.fromkeys(self.needs), *at_attach.data_needed(self.edits)), type(self.model).__name__, self.labels,
            head_use(self.model, self.label_map, self.edits, self.copies.values()), tuple(self.leaks.values()),
            totals.inputs(self.edits), without_bias(self.model, self.sites, self.edits),
        )  # fmt: skip
