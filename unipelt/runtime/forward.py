"""``module.forward(…)``, called past the module's hooks, as some libraries do, is a call of the module with its hooks.

Rows of a prompt, declared arguments, masks and labels of one's own enter through hooks of the model, its base and its towers, which
torch runs in ``module(…)`` only. Without them a pass would leave those out in silence. So where there are such hooks, the module
has a `forward` of its own.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from .hooks import Hook
from ..anatomy.stand_in import StandIn
from .switch import Switch


class HookedForward(StandIn):
    """Stands in for a module's ``forward``: a call that comes past the hooks goes to the module, any other to what was there.

    ``key`` is what the thread's holder has while a pass of the module is under way.
    """

    def __init__(self, module: nn.Module, switch: Switch, key: str):
        super().__init__(module, "forward")
        self.module, self.switch, self.key = module, switch, key
        self.hooks = Hook(module, self.enter, before=True), Hook(module, self.leave, always=True)
        self.acts = False

    def put(self) -> None:
        """Two hooks that say whether a pass is under way, and the module's ``forward``."""
        if not self.acts:
            for hook in self.hooks:
                hook.put()
            super().put()
            self.acts = True

    def take(self) -> None:
        self.acts = False
        super().take()
        for hook in self.hooks:
            hook.take()

    def enter(self, module: nn.Module, args: tuple) -> None:
        self.switch.holder.values[self.key] = True

    def leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.switch.holder.values.pop(self.key, None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if args and args[0] is self.module:
            args = args[1:]  # accelerate binds what stood there to the module when it takes its autocast away
        if self.key in self.switch.holder.values or not self.acts:
            if self.before is not None:
                return self.before(*args, **kwargs)
            return type(self.module).forward(self.module, *args, **kwargs)
        try:
            return self.module(*args, **kwargs)
        finally:
            self.switch.holder.values.pop(self.key, None)
