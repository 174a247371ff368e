"""What a plan says of the base: modules of torch that compute otherwise, or remember something, where an adapter is in a model."""

from __future__ import annotations

from torch import nn

from ..anatomy.base import base_modules


def of_the_base(model: nn.Module) -> list[str]:
    """Notes in words, for the person who applies a method."""
    modules = list(base_modules(model))
    counting = [n for n, m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None]
    fast = [n for n, m in modules if isinstance(m, nn.TransformerEncoderLayer)]
    said = []
    if counting:
        said.append(
            f"{_named(counting)} keep{'s' * (len(counting) == 1)} a running mean and variance, which move in train mode and are no "
            "part of an adapter: keep such norms in eval mode while you train"
        )
    if fast:
        said.append(
            f"{_named(fast)} leave{'s' * (len(fast) == 1)} torch's fast path while there are adapters: in eval mode a disabled adapter's "
            "output is the base's up to rounding, and pads are computed as well"
        )
    return said


def of_rows(said: str, rows: list[str]) -> str:
    """One note for all the rows it is true of."""
    names = [f"`{r}`" for r in dict.fromkeys(rows)]
    return f"row {names[0]}: {said}" if len(names) == 1 else f"rows {', '.join(names)}: {said}"


def _named(paths: list[str]) -> str:
    others = f" and {len(paths) - 1} others" if len(paths) > 2 else f" and `{paths[1]}`" if len(paths) == 2 else ""
    return f"`{paths[0]}`{others}"
