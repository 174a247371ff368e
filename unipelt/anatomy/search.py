"""The sites of a model that no anatomy describes: passes are recorded, and what they show is put on a map."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from ..language.report.diagnostics import PeltError
from .base import base_modules
from .brought import lacks_weights, on_meta
from .examples import Inputs, first_that_runs, joined
from .found import found
from .record import Recording, record
from .sites import SiteMap
from .sizes import weight_shape

#: Why no site covers a linear map that did not run.
NOT_REACHED = "no pass reached it: give `example={…}` that does"


def search(model: nn.Module, base: nn.Module, prefix: str, example: Inputs | None = None) -> tuple[SiteMap, Inputs]:
    """The map of a model's sites, and the inputs that showed it, as `_searched` has them. A model that has some of its weights
    only, so that no pass goes from one device to the other, is searched without any."""
    try:
        return _searched(model, base, prefix, example)
    except PeltError:
        if not lacks_weights(model) or all(p.is_meta for p in model.parameters()):
            raise
    empty = on_meta(model)
    example = tree_map(lambda v: v.to("meta") if isinstance(v, torch.Tensor) else v, example)
    return _searched(empty, empty.get_submodule(prefix), prefix, example)


def _searched(model: nn.Module, base: nn.Module, prefix: str, example: Inputs | None) -> tuple[SiteMap, Inputs]:
    """The map of a model's sites, and the inputs that showed it. Nothing is proved yet, and the model is as it was.

    Parts that the inputs do not reach (a tower for pictures, where a text alone was given) are run by themselves, where they
    have inputs of their own. Raises E0595 where no inputs run.
    """
    try:
        inputs, first = _recorded(model, model, example)
    except PeltError:
        if base is model or example is not None:
            raise
        inputs, first = _recorded(model, base, None)
    recordings = [first]
    parts = list(_unreached(model, first))
    for part in parts:
        with suppress(PeltError):  # its linear maps are listed with those that no site covers
            recordings.append(_recorded(model, part, None)[1])
    whole = _all_at_once(model, inputs) if parts and example is None else first
    if whole is not None and whole is not first:
        recordings.append(whole)  # of towers that run beside a text alone, and of what stands between towers
    sites = found(model, base, prefix, recordings, whole)
    return replace(sites, uncovered={**sites.uncovered, **_not_reached(model, recordings, sites)}), inputs


def _not_reached(model: nn.Module, recordings: Sequence[Recording], sites: SiteMap) -> dict[str, str]:
    """The linear maps that no pass called and no other module reads, as in a tower whose inputs could not be guessed."""
    called = {path for r in recordings for path in r.times}
    maps = (path for path, m in base_modules(model) if path and path not in called and weight_shape(m) is not None)
    return {path: NOT_REACHED for path in maps if not {f"{path}.weight", path} & sites.uncovered.keys()}


def _recorded(model: nn.Module, part: nn.Module, example: Inputs | None) -> tuple[Inputs, Recording]:
    return first_that_runs(part, given=example, run=lambda inputs: record(model, lambda: part(**inputs)))


def _all_at_once(model: nn.Module, inputs: Inputs) -> Recording | None:
    """A pass with what some pass had and a picture or a sound beside it, which shows what one tower makes of another; None where none runs."""
    with suppress(PeltError):
        return first_that_runs(model, joined(model, inputs), run=lambda given: record(model, lambda: model(**given)))[1]
    return None


def _unreached(model: nn.Module, r: Recording) -> Iterator[nn.Module]:
    """The outermost parts with inputs and configurations of their own that were not called."""
    inside: tuple[str, ...] = ()
    for path, module in base_modules(model):
        part: Any = module
        own = getattr(part, "main_input_name", None) and getattr(part, "config", None) is not None
        if not path or path in r.times or path.startswith(inside) or not own:
            continue
        inside += (f"{path}.",)
        if not any(n.startswith(f"{path}.") for n in r.times):  # else it was run past its own forward
            yield module
