"""What planned edits come to together: how many parameters, which arguments of the forward pass, which folds are worth storing.

Asked when every row has its place. Nothing is refused here: `compiler.planner` has found every mistake before.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from ..language.types.declared import TensorTyping
from ..language.analyse.fold import fold_form, sizes_written
from ..language.analyse.method import analyse
from ..language.ir import Method
from ..language.types.inputs import PSEUDO_TOKENS
from ..language.syntax.nodes import Tensor
from ..language.types.values import Distribution
from .plan import Counts, PlannedCopy, PlannedEdit, PlannedFold, PlannedInput, PlannedTensor, whole


def counts(
    edits: Iterable[PlannedEdit], tensors: Mapping[str, PlannedTensor], copies: Collection[PlannedCopy], base: int
) -> Counts:
    """What is trained (the head apart), stored before folding, drawn and kept; ``base`` is the count of the base without its head."""
    own = _in_head(edits)
    learned = {n: t.count for n, t in tensors.items() if not t.frozen}
    frozen = sum(t.count for t in tensors.values() if t.frozen)
    head = sum(c.parameter.count for c in copies if c.head) + sum(c for n, c in learned.items() if n in own)
    trained = sum(c.parameter.count for c in copies if not c.head) + sum(c for n, c in learned.items() if n not in own)
    return Counts(trained, trained, frozen, head, base)


def _in_head(edits: Iterable[PlannedEdit]) -> set[str]:
    """The tensors of rows that are a head."""
    return {n for e in edits if e.site.kind.times == "head" for n in e.tensors.values()}


def inputs(edits: Iterable[PlannedEdit]) -> tuple[PlannedInput, ...]:
    """The arguments that the forward pass takes for these edits."""
    found: dict[str, PlannedInput] = {}
    for e in edits:
        for i in e.typing.inputs:
            count = whole(i.count) if i.count is not None else None
            found[i.name] = PlannedInput(i.name, count, tuple(whole(s) for s in i.sizes))
        if e.prompt is not None and not e.prompt.grows:
            rows = min(e.prompt.rows, found[PSEUDO_TOKENS].count or 0) if PSEUDO_TOKENS in found else e.prompt.rows
            found[PSEUDO_TOKENS] = PlannedInput(PSEUDO_TOKENS, rows, marks=True)
    return tuple(found.values())


def rates(tensors: Mapping[str, PlannedTensor], copies: Iterable[PlannedCopy]) -> list[str]:
    """A note where something learns at a multiple of the learning rate, which an optimiser over all parameters does not know."""
    found = [t.lr for t in tensors.values() if not t.frozen] + [c.lr for c in copies]
    own = sorted({x for x in found if x != 1})
    if not own:
        return []
    some = " and ".join(f"{x:g}" for x in own) if len(own) < 4 else f"{own[0]:g} to {own[-1]:g}"
    return [f"{sum(x != 1 for x in found)} of {len(found)} trained tensors learn at a multiple of the learning rate ({some}): only an optimiser "
            "made with `unipelt.parameter_groups(model, name, lr)` does so, and the plain Trainer's own does not"]  # fmt: skip


def folds(
    method: Method, edits: Sequence[PlannedEdit], tensors: Mapping[str, PlannedTensor]
) -> tuple[tuple[PlannedFold, ...], int]:
    """The folds of each row that make the stored adapter smaller, and by how much."""
    in_head = _in_head(edits)
    chosen: list[PlannedFold] = []
    saved = 0
    lenders = {t.lender for e in edits for t in e.typing.tensors}  # their tensors are read elsewhere
    for name in dict.fromkeys(e.row.name for e in edits if e.row.name not in lenders):
        planned: dict[str, PlannedFold] = {}
        before: set[str] = set()
        kept: set[str] = set()
        for i, e in enumerate(edits):
            if e.row.name != name:
                continue
            form, found = fold_form(e.typing)
            left = {s.name for s in form if isinstance(s, Tensor)} | {n for n in e.tensors if n.startswith("gate.")}
            left |= {t.name for t in e.typing.tensors if t.declaration in e.row.compose}
            before |= set(e.tensors.values())
            kept |= {e.tensors[n] for n in left if n in e.tensors}
            for f in found:
                declaration = e.typing.tensors[0].declaration  # no tensor is declared under the fold's name
                typing = TensorTyping(f.name, f.type, f.owner, Distribution("zeros"), None, False, None, declaration)
                tensor = PlannedTensor.of(typing, e.row, e.site, e.typing)
                tensor = tensor.beside(planned[tensor.name].tensor if tensor.name in planned else None)
                planned.setdefault(tensor.name, PlannedFold(tensor.name, f, i, tensor))
        old = sum(tensors[n].count for n in before - in_head if not tensors[n].frozen)
        new = sum(tensors[n].count for n in kept - in_head if not tensors[n].frozen)
        new += sum(p.tensor.count for p in planned.values())
        row = next(r for r in method.rows if r.name == name)
        if planned and new < old and sizes_written(analyse(method).of(row)) is not None:
            chosen += planned.values()
            saved += old - new
    return tuple(chosen), saved
