"""The proof of a map of sites, by numbers: each site is proved by itself, and one that is not what the map says drops out.

One small pass of the model (`trial`), in which each block is run again with nudges (`replay`) and its sites are judged by
what moves (`judge`). What lies around the blocks is judged in `around`.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from ..language.report.diagnostics import PeltError
from .around import why
from .brought import lacks_weights
from .calls import called_once
from .examples import first_that_runs, joined
from .reasons import Open
from .sites import NOT_YET, PROVED, Site, SiteMap, Stack
from .trial import Trial

#: The name that transformers' attention modules read their function from.
_DISPATCH = "ALL_ATTENTION_FUNCTIONS"


def proved(sites: SiteMap, model: nn.Module, base: nn.Module, inputs: Mapping[str, Any] | None = None) -> SiteMap:
    """The map without the sites that are not what it says (`SiteMap.refused` has the reasons); the others say "proved".

    ``inputs`` are the keyword arguments of a pass of ``model``; without them some are guessed (`examples`). Where nothing can
    be tried (no weights, no inputs that run) all sites stay and say "not yet proved", as one does of which nothing can be
    seen. A site that is refused in some blocks only is named there by its label. The model is as before, whatever happens.
    """
    return tried(sites, model, base, inputs)[0]


def tried(
    sites: SiteMap, model: nn.Module, base: nn.Module, inputs: Mapping[str, Any] | None = None
) -> tuple[SiteMap, dict[str, str]]:
    """As `proved`, with the reason of each site that is not what the map says, by full name; of all, ``""``, if nothing can be
    tried. Sites that no edit could have (called twice, heads that no edit reaches) are left out without being named there."""
    if lacks_weights(base):
        return unproved(sites), {"": "it has no weights"}
    there, absent = _there(sites, model)
    try:
        trial = _trial(there, model, base, dict(inputs) if inputs is not None else None)
    except PeltError as e:
        return unproved(sites), {"": e.diagnostics[0].message}
    if not sites.anatomy:
        trial.sites = _as_seen(trial)
    found, wrong = _verdict(trial)
    found = replace(found, refused={**found.refused, **absent})
    return (found if sites.anatomy else replace(found, uncovered=_uncovered(sites, found))), {**absent, **wrong}


def unproved(sites: SiteMap) -> SiteMap:
    """The map of a model with which nothing was tried."""
    return replace(sites, sites=tuple(replace(s, proof=NOT_YET) for s in sites.sites))


def dispatches(module: nn.Module) -> bool:
    """Whether an attention module takes its function from transformers' interface, where edits at heads are put."""
    forward = inspect.unwrap(type(module).forward)
    return _DISPATCH in getattr(getattr(forward, "__code__", None), "co_names", ())


def past_the_interface(sites: SiteMap, model: nn.Module) -> dict[str, str]:
    """The sites at heads that are said to be computed by a function of transformers' interface, and are not, with the reason."""
    return {s.full_name: f"{type(m).__name__} computes attention past the interface of transformers" for s in sites.sites
            if s.side == "attention" and not s.attends and not dispatches(m := model.get_submodule(s.view.module))}  # fmt: skip


def without_heads(sites: SiteMap, model: nn.Module) -> SiteMap:
    """The map without the heads of attention that no edit would reach."""
    past = past_the_interface(sites, model)
    return replace(
        sites, sites=tuple(s for s in sites.sites if s.full_name not in past), refused={**sites.refused, **past}
    )


def _there(sites: SiteMap, model: nn.Module) -> tuple[SiteMap, dict[str, str]]:
    """The map without the sites whose modules the model lacks."""
    paths = {n for n, _ in model.named_modules()}
    absent: dict[str, str] = {}
    kept = []
    for s in sites.sites:
        lacks = next(
            (p for p in (s.view.module, s.x, s.residual, s.norm, s.rows) if p is not None and p not in paths), None
        )
        if lacks is None:
            kept.append(s)
        else:
            absent.setdefault(s.full_name, f"the model has no `{lacks}`")
    return replace(sites, sites=tuple(kept)), absent


def _trial(sites: SiteMap, model: nn.Module, base: nn.Module, inputs: dict[str, Any] | None) -> Trial:
    """A pass of the model, or of its base where a head asks for what nobody guesses; E0595 where neither runs."""

    def run(called: nn.Module, inputs: dict[str, Any] | None = inputs) -> Trial:
        return first_that_runs(called, given=inputs, run=lambda given: Trial(sites, model, base).run(called, given))[1]

    try:
        trial = run(model)
    except PeltError:
        if base is model:
            raise
        trial = run(base)
    for stack in sites.stacks:
        for part in _parts(model, trial, stack):
            with contextlib.suppress(PeltError):  # it stays as it is: not yet proved
                trial.join(run(part, None))
    far = tuple(k for k in sites.stacks if not trial.reached(k))
    if far and inputs is not None and trial.headed:  # towers that run beside a text alone
        beside = Trial(replace(sites, stacks=far), model, base)
        with contextlib.suppress(PeltError):
            trial.join(first_that_runs(model, joined(model, inputs), run=lambda given: beside.run(model, given))[1])
    return trial


def _parts(model: nn.Module, trial: Trial, stack: Stack) -> Iterator[nn.Module]:
    """The parts of a model with inputs of their own in which a stack lies that was not reached, the outermost first."""
    names = trial.path(stack.blocks[0]).split(".") if stack.blocks else []
    modules = dict(model.named_modules())
    for i in range(1, len(names)):
        part: Any = modules.get(".".join(names[:i]))  # None in a map of another model
        if (
            not trial.reached(stack)
            and getattr(part, "main_input_name", None)
            and getattr(part, "config", None) is not None
        ):
            yield part


def _as_seen(t: Trial) -> SiteMap:
    """A map that was found, with the stacks whose tokens are seen to read later ones as no causal ones."""
    looks = {k.name for k in t.sites.stacks if k.causal and any(t.sees.get(t.path(b)) for b in k.blocks)}
    return replace(
        t.sites,
        stacks=tuple(replace(k, causal=k.causal and k.name not in looks) for k in t.sites.stacks),
        sites=tuple(replace(s, causal=s.causal and s.tokens not in looks) for s in t.sites.sites),
    )


def _verdict(t: Trial) -> tuple[SiteMap, dict[str, str]]:
    far = {k.name for k in t.sites.stacks if not t.reached(k)}
    near = replace(t.sites, sites=tuple(s for s in t.sites.sites if s.stack not in far))
    usable = without_heads(called_once(near, t.counts), t.model)
    kept = {id(s) for s in usable.sites} | {id(s) for s in t.sites.sites if s.stack in far}
    found = [(s, why(t, i, s)) for i, s in enumerate(t.sites.sites) if id(s) in kept]
    bad = {(s.block, s.name) for s, wrong in found if _against(wrong)}
    views = {(s.block, s.name): s.view for s in t.sites.sites}

    def called(s: Site) -> str:
        """A module that forms may call at a site, and that is not what the map says."""
        for n, v in s.bases.items():
            if (s.block, n) in bad or views.get((s.block, n), v) != v or (n == f"{s.name}.norm" and v.module != s.norm):
                return f"`{n}`, which a form may call there, is not what the map says"
        return ""

    found = [(s, wrong or called(s)) for s, wrong in found]
    stay = tuple(replace(s, proof=NOT_YET if wrong else PROVED) for s, wrong in found if not _against(wrong))
    left = {s.full_name for s in stay}
    refuted: dict[str, str] = {}
    refused = dict(usable.refused)
    for s, wrong in sorted(
        found, key=lambda f: (f[0].block, f[0].name) not in bad
    ):  # those that follow from others last
        if _against(wrong):
            refuted.setdefault(s.full_name, wrong)
            refused.setdefault(s.full_name if s.full_name not in left else s.label, wrong)
    return replace(usable, sites=stay, refused=refused), refuted


def _uncovered(before: SiteMap, after: SiteMap) -> dict[str, str]:
    """The projections that no site covers, those among them whose sites dropped out."""
    covered = {s.view.path for s in after.sites if s.kind.has_weight or s.view.parameter}
    dropped = {s.view.path: after.refused.get(s.label) or after.refused.get(s.full_name, "") for s in before.sites
               if (s.kind.has_weight or s.view.parameter) and s.view.path not in covered}  # fmt: skip
    return {**before.uncovered, **{path: f"its site is left out: {why}" for path, why in dropped.items()}}


def _against(wrong: str) -> bool:
    return bool(wrong) and not isinstance(wrong, Open)
