"""How often modules and attention functions are called in a pass. An edit acts at each call of its module, and is meant once a layer."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import starmap
from typing import Any

from torch import nn

from .interrupts import ended_by
from .sites import Site, SiteMap

lock = threading.RLock()


@contextmanager
def _alone() -> Iterator[None]:
    """Holds the lock. (At the end of a plain `with lock` Ctrl-C could come before it is let go, and every other thread would wait for ever.)"""
    held: list[bool] = []
    release: Iterator[object] = iter(lock.release, None)  # lets it go once, however often it is asked

    def let_go() -> None:
        if held:
            next(release, None)

    with ended_by(let_go):
        held.extend(starmap(lock.acquire, [()]))  # in one step: Ctrl-C comes before it is taken, or once that is noted
        yield


@contextmanager
def calls(model: nn.Module, sites: SiteMap) -> Iterator[Counter[str]]:
    """Counts the calls of the modules that edits hang on, by path, and those of attention functions, by ``attention:`` and path."""
    found: Counter[str] = Counter()
    handles: list[Any] = []

    def hook(path: str) -> Callable[[nn.Module, tuple], None]:
        return lambda module, args: found.update([path])

    paths = {id(model.get_submodule(s.view.module)): s.view.module for s in sites.sites if s.side == "attention"}
    asked = _asked(lambda module: found.update([f"attention:{paths.get(id(module), '')}"]))
    with ended_by(lambda: [handle.remove() for handle in handles]), asked:
        for path in {p for s in sites.sites if s.block for p in _hosts(s)}:
            handles.append(model.get_submodule(path).register_forward_pre_hook(hook(path)))
        yield found


@contextmanager
def _asked(saw: Callable[[Any], None]) -> Iterator[None]:
    """Shows ``saw`` every module that calls an attention function which it got from transformers' interface, in this thread."""

    def call(module: Any, function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        saw(module)
        return function(module, *args, **kwargs)

    with interface_watched(call):
        yield


@contextmanager
def interface_watched(call: Callable[[Any, Callable, tuple, dict[str, Any]], Any]) -> Iterator[None]:
    """Lets ``call`` (module, function, arguments, named arguments) stand for every attention function that a module gets from
    transformers' interface, in this thread."""
    from transformers.modeling_utils import AttentionInterface

    mine = threading.get_ident()
    with _alone():
        ask = AttentionInterface.get_interface

        def watched(self: Any, implementation: str, default: Callable) -> Callable:
            function = ask(self, implementation, default)
            if threading.get_ident() != mine:
                return function
            return lambda module, *args, **kwargs: call(module, function, args, kwargs)

        def end() -> None:
            if AttentionInterface.get_interface is watched:  # nobody has put something else there meanwhile
                AttentionInterface.get_interface = ask  # type: ignore[method-assign]

        with ended_by(end):
            AttentionInterface.get_interface = watched  # type: ignore[method-assign,assignment]
            yield


@contextmanager
def experts_together() -> Iterator[None]:
    """Lets the experts of transformers' models compute all at once, in this thread. Their own way takes one expert after the other, and
    none of those of which no number says that a token chose them, as on the meta device."""
    try:
        from transformers.integrations.moe import ExpertsInterface
    except ImportError:  # a version whose experts know one way
        yield
        return
    mine = threading.get_ident()
    with _alone():
        ask = ExpertsInterface.get_interface

        def together(self: Any, implementation: str, default: Callable) -> Callable:
            at_once = threading.get_ident() == mine and "grouped_mm" in self
            return ask(self, "grouped_mm" if at_once else implementation, default)

        def end() -> None:
            if ExpertsInterface.get_interface is together:
                ExpertsInterface.get_interface = ask  # type: ignore[method-assign]

        with ended_by(end):
            ExpertsInterface.get_interface = together  # type: ignore[method-assign,assignment]
            yield


def called_once(sites: SiteMap, counts: Mapping[str, int]) -> SiteMap:
    """The map without the sites of blocks whose modules are called more than once a layer, or never; `SiteMap.refused` says why."""
    refused: dict[str, str] = {}
    for s in sites.sites:
        if s.block and (why := _why(s, sites.stack(s.stack).calls, counts)):
            refused.setdefault(s.full_name, why)
    kept = tuple(s for s in sites.sites if not s.block or s.full_name not in refused)
    return replace(sites, sites=kept, refused={**sites.refused, **refused})


def _why(s: Site, wanted: int, counts: Mapping[str, int]) -> str:
    wrong = next((p for p in _hosts(s) if counts[p] != wanted), None)
    if wrong is not None:
        return (
            f"`{wrong}` is called {times(counts[wrong])} in a layer" if counts[wrong] else f"`{wrong}` is never called"
        )
    found = counts[f"attention:{s.view.module}"] if s.side == "attention" else 0
    return f"`{s.view.module}` calls its attention function {times(found)} in a layer" if found > wanted else ""


def _hosts(s: Site) -> list[str]:
    """The modules at which something of an edit hangs: its own, and those that ``x`` and ``residual`` enter."""
    return list(dict.fromkeys(p for p in (s.view.module, s.x, s.residual, s.rows) if p is not None))


def times(n: float) -> str:
    return "once" if n == 1 else "twice" if n == 2 else f"{n:g} times"
