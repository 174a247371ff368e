"""What rows carry along depth, on a model: whether its layers hand it on, and what is said of tensors that few of them read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from ..anatomy.sites import SiteMap
from ..language.ir import Row
from ..language.report.diagnostics import Diagnostic
from ..language.syntax.lines import lines_for, names_in
from ..language.syntax.nodes import Later, Tensor
from ..language.types.carried import carries
from .plan import PlannedEdit


def chain_of(e: PlannedEdit) -> str:
    """What tells the values that a row carries apart from those of other rows, towers and sites."""
    return f"{e.row.name}:{e.site.stack}:{e.site.full_name}"


def refused(edits: Sequence[PlannedEdit], sites: SiteMap) -> Iterator[Diagnostic]:
    """Where what is carried has no next layer to go to, or none that it fits."""
    shared = {s.name for s in sites.stacks if s.shared}
    for chain in _chains(edits):
        first = chain[0]
        for name, value in first.typing.carried.items():
            other = next((e for e in chain if e.typing.carried[name].type != value.type), None)
            if other is not None:
                yield Diagnostic(
                    "E0548", f"`{first.row.name}` carries `{name}`, which is {value.type} at `{first.site.label}` and "
                    f"{other.typing.carried[name].type} at `{other.site.label}`", _carry(first.row, name).span,
                    help="select layers of one size, or carry what has a size of its own, as in `z @ A` with `A: [d_in, r]`")  # fmt: skip
        layers = [e.site.layer for e in chain]
        if first.site.stack not in shared and (None in layers or len(set(layers)) < len(layers)):
            name = carries(first.row)[0]
            said = "is in no layer" if None in layers else "is in some layers more than once"
            yield Diagnostic("E0548", f"`{first.row.name}` carries `{name}` from layer to layer, and `{first.site.full_name}` {said}",
                             _carry(first.row, name).span, help="modify a site that each layer has once")  # fmt: skip


def said(edits: Sequence[PlannedEdit]) -> Iterator[str]:
    """Of tensors that each place has and only the first layer reads, or all but the first."""
    for names, silent, first in unread(edits):
        where = "behind the first layer alone" if first else "at the first layer alone"
        one = len(names) == 1
        listed = ", ".join(f"`{n}`" for n in names)
        yield (f"{listed} of `{silent[0].row.name}` {'is' if one else 'are'} read {where}, and there is one for each site: "
               f"elsewhere {'it gets' if one else 'they get'} no gradient")  # fmt: skip


def unread(edits: Sequence[PlannedEdit]) -> Iterator[tuple[list[str], list[PlannedEdit], bool]]:
    """Tensors that a place has and does not read, as what is carried begins in one way and goes on in another: their names, the edits that
    do not read them, and whether that is the first of its chain."""
    for chain in _chains(edits):
        row = chain[0].row
        for name in carries(row) if len(chain) > 1 else ():
            begins, goes_on = _carry(row, name).values
            for e, other, silent in ((goes_on, begins, chain[:1]), (begins, goes_on, chain[1:])):
                few = _tensors(row, e) - _tensors(row, other) - _tensors(row, *_others(row, name))
                names = [t.name for t in chain[0].typing.tensors if t.name in few and not t.part and not t.owner.shared]
                if names:
                    yield names, silent, e is goes_on


def _chains(edits: Iterable[PlannedEdit]) -> list[list[PlannedEdit]]:
    found: dict[str, list[PlannedEdit]] = {}
    for e in edits:
        if carries(e.typing.acting):
            found.setdefault(chain_of(e), []).append(e)
    return [*found.values()]


def _carry(row: Row, name: str) -> Later:
    return next(s for s in row.form if isinstance(s, Later) and name in s.names)


def _others(row: Row, name: str) -> list[object]:
    """What a row computes besides a value that it carries: the other lines that have an end."""
    own = _carry(row, name)
    ends = [s for s in row.form if isinstance(s, Later) and s is not own]
    lines = lines_for([s for s in row.form if s is not own], *row.compose, *ends)
    return [*lines, *ends, *row.compose, *(row.gate or ())]


def _tensors(row: Row, *ends: object) -> set[str]:
    """The tensors of the form that some expressions or lines lead to, but through what is carried."""
    lines = lines_for([s for s in row.form if not isinstance(s, Later)], *ends)
    return names_in(*ends, *lines) & {s.name for s in row.form if isinstance(s, Tensor)}
