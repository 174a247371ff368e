"""What towers are called. Names of modules and of arguments are a hint here, and nowhere else."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from .towers import Tower

#: What a tower reads, by an argument of its module and by words in its path.
_TAKEN = (
    ("text", ("input_ids",)),
    ("vision", ("pixel_values", "pixel_values_videos")),
    ("audio", ("input_features", "input_values")),
)
_WORDS = (
    ("vision", ("vision", "visual", "image", "pixel", "video")), ("audio", ("audio", "speech", "sound")),
    ("text", ("text", "language", "llm", "lm")), ("encoder", ("encoder",)), ("decoder", ("decoder",)),
)  # fmt: skip


def names_of(model: nn.Module, found: list[tuple[Tower, set[str]]]) -> tuple[dict[str, str], set[str]]:
    """Each tower's name by its path (nothing where there is one), and the paths of the towers that a bare name means."""
    config: Any = getattr(model, "config", None)
    if len(found) <= 1:
        return {t.path: _alone(type(config), t) for t, _ in found}, {t.path for t, _ in found}
    crossing = [t for t, kinds in found if "cross" in kinds]
    if len(found) == 2 and (getattr(config, "is_encoder_decoder", False) or crossing == [found[1][0]]):
        names = {found[0][0].path: "encoder", found[1][0].path: "decoder"}
        return names, set(names)
    names = {}
    for t, _ in found:
        hint = _hint(model, t)
        if hint in names.values():
            hint = next(
                (p for p in reversed(t.path.split(".")) if p.isidentifier() and p not in names.values()),
                f"{hint}_{len(names)}",
            )
        names[t.path] = hint
    main = {p for p, n in names.items() if n == "text"} or {p for p, n in names.items() if n == "decoder"} or set(names)
    return names, main


def _alone(config: type, t: Tower) -> str:
    """The name of a tower that has no other beside it: none, unless it is one half of what its type of model has two of."""
    last = t.module.rpartition(".")[2]
    return last if getattr(config, "is_encoder_decoder", False) and last in ("encoder", "decoder") else ""


def _hint(model: nn.Module, t: Tower) -> str:
    path = t.path.lower()
    for name, words in _WORDS[:3]:
        if any(w in part for part in path.split(".") for w in words):
            return name
    taken = inspect.signature(model.get_submodule(t.module).forward).parameters
    for name, arguments in _TAKEN:
        if any(a in taken for a in arguments) and (
            name != "text" or not any(a in taken for _, others in _TAKEN[1:] for a in others)
        ):
            return name
    return next(
        (n for n, words in _WORDS if any(w in path for w in words)),
        next((p for p in path.split(".") if p.isidentifier()), "tower"),
    )
