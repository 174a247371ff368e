"""``module.forward(…)``, called past the module's hooks, as some libraries do, is a call of the module with its hooks.

Rows of a prompt, declared arguments, masks and labels of one's own enter through hooks of the model, its base and its towers, which
torch runs in ``module(…)`` only. Without them a pass would leave those out in silence. So where there are such hooks, the module
has a `forward` of its own, as accelerate gives one to a module whose weights it keeps elsewhere.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from .switch import Switch

_FORWARD = "forward"


class HookedForward:
    """Stands in for a module's ``forward``: a call that comes past the hooks goes to the module, any other to what was there.

    ``key`` is what the thread's holder has while a pass of the module is under way.
    """

    __name__ = _FORWARD

    def __init__(self, module: nn.Module, switch: Switch, key: str):
        self.module, self.switch, self.key = module, switch, key
        self.before = vars(module).get(_FORWARD)  # another library's
        self.handles: dict[str, Any] = {}

    def open(self) -> None:
        """Hangs what is not there yet: two hooks that say whether a pass is under way, and the module's ``forward``."""
        if "enter" not in self.handles:
            self.handles["enter"] = self.module.register_forward_pre_hook(self.enter)
        if "leave" not in self.handles:
            self.module.forward = self
            self.handles["leave"] = self.module.register_forward_hook(self.leave, always_call=True)

    def close(self) -> None:
        """Takes it down. Where another library has since put a `forward` around this one, it stays there and does nothing."""
        for handle in self.handles.values():
            handle.remove()
        if vars(self.module).get(_FORWARD) is self:
            if self.before is not None:
                self.module.forward = self.before
            else:
                del self.module.forward
        self.handles.clear()

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.before or getattr(type(self.module), _FORWARD).__get__(self.module))

    @property
    def __code__(self) -> Any:  # torch.export asks where a forward is written
        return getattr(type(self.module), _FORWARD).__code__

    def enter(self, module: nn.Module, args: tuple) -> None:
        self.switch.holder.values[self.key] = True

    def leave(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.switch.holder.values.pop(self.key, None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.key in self.switch.holder.values or not self.handles:
            if self.before is not None:
                return self.before(*args, **kwargs)
            return type(self.module).forward(self.module, *args, **kwargs)
        try:
            return self.module(*args, **kwargs)
        finally:
            self.switch.holder.values.pop(self.key, None)
