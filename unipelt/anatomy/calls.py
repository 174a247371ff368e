"""How often modules and attention functions are called in a pass. An edit acts at each call of its module, and is meant once a layer."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
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

    def watched(ask: Callable[[str], Callable], name: str, known: Container[str]) -> Callable:
        function = ask(name)
        return lambda module, *args, **kwargs: call(module, function, args, kwargs)

    with _answered(AttentionInterface, watched):
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

    def together(ask: Callable[[str], Callable], name: str, known: Container[str]) -> Callable:
        return ask("grouped_mm" if "grouped_mm" in known else name)

    with _answered(ExpertsInterface, together):
        yield


@contextmanager
def _answered(
    interface: Any, answer: Callable[[Callable[[str], Callable], str, Container[str]], Callable]
) -> Iterator[None]:
    """Lets ``answer`` say which function a module of this thread gets from an interface of transformers. It is given how the interface
    is asked for a name, the name that the module asks for, and the names that the interface knows."""
    mine = threading.get_ident()
    with _alone():
        ask = interface.get_interface

        def instead(self: Any, implementation: str, default: Callable) -> Callable:
            if threading.get_ident() != mine:
                return ask(self, implementation, default)
            return answer(lambda name: ask(self, name, default), implementation, self)

        def end() -> None:
            if interface.get_interface is instead:  # nobody has put something else there meanwhile
                interface.get_interface = ask

        with ended_by(end):
            interface.get_interface = instead
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
