"""Hooks of ours on modules of the base. A hook is found again by its function, so none is lost where Ctrl-C comes while it is
put there or taken away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..language.report.diagnostics import PeltError, error

#: Where torch notes how a hook is called.
_FLAGS = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")


@dataclass(frozen=True, slots=True)
class Hook:
    """A function that torch calls before a module's forward, or behind it: ``always`` also where that raised an error.

    ``named``: it is given the named arguments too. ``first``: before all other hooks. A function is a bound method, which is
    copied and pickled with the model.
    """

    module: nn.Module
    function: Callable[..., Any]
    before: bool = False
    named: bool = False
    first: bool = False
    always: bool = False

    def put(self) -> None:
        """Registers the hook, unless it is there."""
        if self.function in self._hooks().values():
            return
        if self.before:
            self.module.register_forward_pre_hook(self.function, prepend=self.first, with_kwargs=self.named)
        else:
            self.module.register_forward_hook(self.function, with_kwargs=self.named, always_call=self.always)

    def take(self) -> None:
        """Takes the hook away, if it is there."""
        hooks = self._hooks()
        for key in [k for k, function in hooks.items() if function == self.function]:
            for kept in (hooks, *(getattr(self.module, flags) for flags in _FLAGS)):
                kept.pop(key, None)

    def _hooks(self) -> dict[int, Callable[..., Any]]:
        return self.module._forward_pre_hooks if self.before else self.module._forward_hooks


def moved(module: nn.Module) -> PeltError:
    """The mistake of a library that puts the hooks of a module on one that takes its place, and calls them otherwise."""
    return error("E0559", f"a {type(module).__name__} has taken the place of a module at which an adapter acts, and the adapter cannot act there",
                 help="replace modules first and apply then, or merge before: unipelt.merge(model, name)")  # fmt: skip
