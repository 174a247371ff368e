"""How many parameters: what the formulas say, the plan, and the tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import unipelt
from unipelt.language.analyse.counts import counts

from .case import Case, holds

#: What a formula calls the layers that have a site.
_LAYERS = {
    "L_gate": "ffn.gate",
    "L_mixer": "mixer",
    "L_experts": "ffn.experts.down.weight",
    "L_gated_experts": "ffn.experts.gate.weight",
}


def layers_of(sites: Sequence[Any]) -> dict[str, int]:
    """How many layers have each of these sites, by the symbols of formulas."""
    return {n: len({s.layer for s in sites if s.name == at}) for n, at in _LAYERS.items()}


def sizes_of(plan: Any) -> list[dict[str, int]]:
    """What the formulas' sizes are on a model: of each stack its own, with the method's arguments.

    A tower beside the one of the words is meant only by sites that name it: without them it is left out, with them it
    has none of the layers ``L``.
    """
    found = []
    reached = {e.site.stack for e in plan.edits}
    for s in plan.sites.stacks:
        if not s.main and s.name not in reached:
            continue
        sites = [x for x in plan.sites.sites if x.stack == s.name]
        depth = len(s.blocks)
        cross = depth if any(x.name == "cross" for x in sites) else 0
        sizes = {n: v for x in reversed(sites) for n, v in x.sizes.items()}  # some are of one site alone
        values = {**sizes, "L": depth if s.main else 0, "L_cross": cross, "depth": s.depth}
        values |= layers_of(sites)
        values |= {f"L_{s.name}": depth} if s.name else {}
        values |= {n: v for n, v in plan.method.arguments.items() if isinstance(v, int)}
        found.append(values)
    for x in plan.sites.named("head"):
        found[-1] |= {"labels": x.sizes["labels"], "d_x": x.sizes["d_x"]}
    if plan.edits and all(
        e.site.kind.times == "input" for e in plan.edits
    ):  # ALBERT's words are narrower than its stream
        found[-1]["d_model"] = plan.edits[-1].site.sizes["d_model"]
    return found


def of_one_size(plan: Any) -> bool:
    """Whether what the formulas call by one symbol is one number on this model, at all of a method's places in a stack."""
    known = {s for count in counts(plan.method).values() for s in count.size.symbols}
    met: dict[tuple[str, str], set[int]] = {}
    for e in plan.edits:
        for n in known & set(e.site.sizes):
            met.setdefault((e.site.stack, n), set()).add(e.site.sizes[n])
    return all(len(sizes) == 1 for sizes in met.values())


def agree(plan: Any) -> None:
    """The formulas and the plan; copies of the base's parameters are in no formula, as they are what the base has."""
    formulas, copied = counts(plan.method), sum(c.parameter.count for c in plan.copies if not c.head)
    for what in ("trained", "stored"):
        assert formulas[what].number(*sizes_of(plan)) == getattr(plan.counts, what) - copied, what


@holds("counted")
def counted(case: Case) -> None:
    """The formulas give the numbers of the plan, and the plan those of the tensors."""
    agree(case.plan)
    state = unipelt.state_dict(case.acting(), "a")
    planned = sum(t.count for t in case.plan.tensors.values()) + sum(c.parameter.count for c in case.plan.copies)
    assert sum(t.numel() for t in state.values()) == planned
