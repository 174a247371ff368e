"""Verdicts against judges: what is said of a method, on which models it was tried, and what refutes it.

A "yes" is refuted by any model on which more than 1e-9 is found. A "no" is refuted where no model and no draw shows more
than 1e-7 (it was then only cautious). What depends on an argument is judged with the argument bound to either side.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from judges import HOLDS, JUDGES, SHOWS, folding, merged
from properties.counting import layers_of, of_one_size
from safetensors.torch import load_file
from trial import Trial, Unstable, deviation

import unipelt
from unipelt.compiler.plan import Plan
from unipelt.language.analyse.counts import counts
from unipelt.language.ir import Method
from unipelt.language.analyse.meaning import bound
from unipelt.language.analyse.verdicts import verdicts
from unipelt.runtime.registry import record
from unipelt.runtime.hub import WEIGHTS

#: Encoder, decoder, decoder with grouped queries, two encoder–decoders, shared layers, vision, speech.
KINDS = ("bert_head", "gpt2", "llama", "t5", "bart", "albert_head", "vit_head", "whisper")


@dataclass
class Proof:
    """What is said of a method and what was measured: for each verdict the deviation on each model."""

    method: str
    said: dict[str, str]
    found: dict[str, dict[str, float]] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # models onto which the method does not go, with the code
    unstable: list[str] = field(default_factory=list)  # judges, with models, that met values that are not finite
    idle: dict[str, bool] = field(default_factory=dict)  # models, and whether a row leaves every h there as it is
    wrong: list[str] = field(default_factory=list)  # what is refuted by other means: counts, merging, folding

    def note(self, kind: str, verdict: str, value: float) -> None:
        own = self.found.setdefault(verdict, {})
        own[kind] = max(own.get(kind, 0.0), value)

    @property
    def open(self) -> list[str]:
        """Verdicts "no" that nothing has shown yet."""
        return [
            v
            for v, said in self.said.items()
            if said == "no" and max(self.found.get(v, {}).values(), default=0.0) <= SHOWS
        ]

    @property
    def refuted(self) -> list[str]:
        over = [f"{v}: yes, and {kind} shows {x:.1e}" for v, found in self.found.items() if self.said[v] == "yes"
                for kind, x in found.items() if not x <= HOLDS]  # fmt: skip
        tried = set().union(*self.found.values()) if self.found else set()
        if self.idle and all(self.idle.values()):
            return self.wrong + over  # nothing can be seen of what does nothing
        return (
            self.wrong
            + over
            + [f"{v}: no, and nothing shows it on {', '.join(sorted(tried))}" for v in self.open if v in self.found]
        )


def prove(
    method: Method,
    kinds: Sequence[str],
    layers: int | Mapping[str, int] = 2,
    more: Iterable[tuple[str, int, float]] = (),
    folder: Path | None = None,
) -> Proof:
    """Judges every verdict on some models, of so many layers (by kind, or all alike). While a "no" is not shown, further tries
    (model, seed, size of the noise)."""

    def depth(kind: str) -> int:
        return layers if isinstance(layers, int) else layers.get(kind, 1)

    proof = Proof(method.name, {n: v.value for n, v in verdicts(method).items()})
    for kind in kinds:
        _try(proof, kind, method, depth(kind), folder)
    for kind, seed, scale in more:
        if not proof.open:
            break
        if kind in proof.refused:
            continue
        _try(proof, kind, method, depth(kind), None, proof.open, seed=seed, scale=scale)
    return proof


def _try(proof: Proof, kind: str, method: Method, layers: int, folder: Path | None, names: Sequence[str] | None = None,
         **options: float) -> None:  # fmt: skip
    try:
        t = Trial(kind, method, layers=layers, **options)  # type: ignore[arg-type]
    except unipelt.PeltError as e:
        proof.refused[kind] = e.diagnostics[0].code
        return
    except Unstable:
        proof.unstable.append(f"start on {kind}")
        return
    try:
        for name in names or [n for n in JUDGES if n in proof.said]:
            try:
                value = JUDGES[name](t)
            except Unstable:
                proof.unstable.append(f"{name} on {kind}")
                continue
            if value is not None:
                proof.note(kind, name, value)
        if names is None:
            _besides(proof, t, folder)
        proof.idle[kind] = proof.idle.get(kind, True) and idle(t)
    except Unstable:
        proof.unstable.append(f"merging or folding on {kind}")
    finally:
        t.close()


def idle(t: Trial) -> bool:
    """Whether some row, with tensors that are random, does nothing anywhere."""
    rows: dict[str, float] = {}
    for tap in t.run(t.inputs).taps:
        rows[tap.edit.row.name] = max(rows.get(tap.edit.row.name, 0.0), deviation(tap.out, tap.h))
    return any(value <= 1e-12 for value in rows.values())


def _besides(proof: Proof, t: Trial, folder: Path | None) -> None:
    """Counts, what merging and folding write, and the plan's own verdicts on this model."""
    for name, (said, found) in counted(t, folder).items():
        if said != found:
            proof.wrong.append(f"{name}: {said} by the formula, {found} on {t.kind}")
    properties = t.plan.properties
    for name, words in properties.items():
        here = words.split(":")[0]
        value = proof.found.get(name, {}).get(t.kind)
        if here == "yes" and value is not None and not value <= HOLDS:
            proof.wrong.append(f"{name}: yes on {t.kind}, which shows {value:.1e}")
    if properties["mergeable"] == "yes":
        value = merged(t)
        if value is not None and not value <= HOLDS:
            proof.wrong.append(f"merging changes the outputs of {t.kind} by {value:.1e}")
    if t.plan.folds:
        value = folding(t)
        if not value <= HOLDS:
            proof.wrong.append(f"folding changes the outputs of {t.kind} by {value:.1e}")


def arguments(method: Method) -> dict[str, list[tuple[str, Method]]]:
    """For each verdict that depends on an argument: what must be said with it bound to 0 and above, and those methods."""
    out: dict[str, list[tuple[str, Method]]] = {}
    for name, v in verdicts(method).items():
        if v.value == "depends":
            asked = [p.name for p in method.params if p.name in re.findall(r"`(\w+)`", v.reason)]
            assert asked, v
            out[name] = [
                (said, bound(method(**dict.fromkeys(asked, value)))) for said, value in (("yes", 0.0), ("no", 0.5))
            ]
    return out


# ---------------------------------------------------------------- counts


def numbers(plan: Plan) -> list[dict[str, int]]:
    """What the formulas' symbols stand for on a model, for each of its stacks.

    The sites that are edited come first: ALBERT's words are narrower than its layers, and `d_model` there is their width.
    """
    out = []
    stacks = [s.name for s in plan.sites.stacks]
    for stack in plan.sites.stacks:
        here = [*(e.site for e in plan.edits), *plan.sites.sites]
        sites = [s for s in here if s.stack == stack.name or s.stack not in stacks]
        known: dict[str, int] = {}
        for s in sites:
            known = {**s.sizes, **known}
        layers = len(stack.blocks)
        known |= {"L": layers, "depth": stack.depth, "L_cross": layers if any(s.name == "cross" for s in sites) else 0}
        known |= layers_of(sites)
        known |= {f"L_{stack.name}": layers} if stack.name else {}
        out.append(
            known | {k: v for k, v in plan.method.arguments.items() if isinstance(v, int) and not isinstance(v, bool)}
        )
    return out


def counted(t: Trial, folder: Path | None = None) -> dict[str, tuple[int, int]]:
    """Each count by its formula, and as the tensors that are there have it; trained copies of the base are no formula.

    ``stored`` is what the saved file holds, its draws too, where a folder is given to save it in.
    """
    attached = record(t.model, "a")
    learned, state = attached.trained(), unipelt.state_dict(t.model, "a")
    copies = {c.name for c in t.plan.copies}
    heads = {n for e in t.plan.edits if e.site.kind.times == "head" for n in e.tensors.values()}
    found = dict.fromkeys(("trained", "frozen", "head"), 0)
    for n, x in state.items():
        if n not in copies:
            found["frozen" if n not in learned else "head" if n in heads else "trained"] += x.numel()
    if folder is not None:
        file = load_file(unipelt.save(t.model, folder / t.kind, "a", draws=True) / WEIGHTS)
        # draws that only what is folded reads are gone with it
        others = copies | heads | {n for n in state if n not in learned}
        found["stored"] = sum(x.numel() for n, x in file.items() if n not in others)
    else:
        found["stored"] = t.plan.counts.stored - sum(c.parameter.count for c in t.plan.copies if not c.head)
    said = counts(t.plan.method)  # with what it reads of trained adapters written out
    values = numbers(t.plan)
    assert sum(p.numel() for p in t.model.parameters() if p.requires_grad) == sum(x.numel() for x in learned.values())
    if not of_one_size(t.plan):
        return {}
    known = [n for n in found if not any("`" in w and w.startswith("what ") for w in said[n].words)]
    return {n: (said[n].number(*values), found[n]) for n in known}
