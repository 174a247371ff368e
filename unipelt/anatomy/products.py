"""Products with a parameter that has several matrices, as a pass computes them: what is multiplied, and what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .record import CONTRACTS, LEFT, of_weight

#: ``moved(path, rows, enters)`` sees what enters a product (or leaves it) as rows, and says what is to stand there.
Moved = Callable[[str, torch.Tensor, bool], torch.Tensor]


class Products(TorchDispatchMode):
    """Shows the first product with each of some parameters, by path; ``rows`` has a row that entered it, and what came of that row."""

    def __init__(self, parameters: Mapping[str, torch.Tensor], moved: Moved):
        super().__init__()
        self.moved = moved
        self.of: dict[int, str] = {id(t): path for path, t in parameters.items()}
        self.kept: list[Any] = [*parameters.values()]  # so that no other tensor has the identity of one of these
        self.left = set(parameters)
        self.rows: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        at = next((i for i, a in enumerate(args) if isinstance(a, torch.Tensor) and id(a) in self.of), None)
        path = self.of[id(args[at])] if at is not None else ""
        if at is not None and name in CONTRACTS and path in self.left:
            return self.product(func, path, at, args, kwargs, name)
        out = func(*args, **kwargs)
        if at == 0 and of_weight(name, args[0].dim()):
            made = [out] if isinstance(out, torch.Tensor) else [*out]
            self.of |= {id(t): path for t in made}
            self.kept += made
        return out

    def product(self, func: Any, path: str, at: int, args: tuple, kwargs: Any, name: str) -> Any:
        self.left.discard(path)
        beside = 1 if name in ("addmm", "baddbmm") else 0  # behind the bias
        left = at == LEFT.get(name, -1)
        other = beside + 1 if left else beside

        def rows(t: torch.Tensor) -> torch.Tensor:
            return t.squeeze(-1) if left else t

        x = self.moved(path, rows(args[other]), True)
        given = [*args]
        given[other] = x.unsqueeze(-1) if left else x
        out = func(*given, **kwargs)
        bias = args[0] if beside else args[2] if name == "linear" and len(args) > 2 and args[2] is not None else 0
        y = rows(out - bias if isinstance(bias, torch.Tensor) else out)
        self.rows[path] = x.reshape(-1, x.shape[-1])[0].clone(), y.reshape(-1, y.shape[-1])[0].clone()
        new = self.moved(path, rows(out), False)
        return new.unsqueeze(-1) if left else new
