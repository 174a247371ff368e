"""The base of a model: its modules and parameters without what adapters have put among them.

All of that stands under one name, so a walk leaves it out without entering it, and takes no longer with a hundred adapters.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

#: The one name under which everything of ours is registered in a module.
NAME = "unipelt"


def base_modules(model: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules of the base by path, each once, as `named_modules` lists them; ``path`` is that of ``model``."""
    seen: set[nn.Module] = set()
    left = [(path, model)]
    while left:
        path, module = left.pop()
        if module not in seen:
            seen.add(module)
            yield path, module
            left += [(f"{path}.{n}" if path else n, m) for n, m in reversed(children(module).items())]


def base_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of the base by path; one that several modules hold comes with each of them."""
    for path, module in base_modules(model):
        for n, p in module._parameters.items():
            if p is not None:
                yield f"{path}.{n}" if path else n, p


def children(module: nn.Module) -> dict[str, nn.Module]:
    """A module's own children by name."""
    return {n: m for n, m in module._modules.items() if m is not None and n != NAME}


def base_of(model: nn.Module) -> nn.Module:
    """The model without its head; the model itself where it has none."""
    found = getattr(model, "base_model", model)
    return found if isinstance(found, nn.Module) else model


def uncompiled(model: nn.Module) -> nn.Module:
    """The module that torch.compile's wrapper shares, else the model itself."""
    inner = getattr(model, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else model
