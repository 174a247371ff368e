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
    hints = {t.path: _hint(model, t) for t, _ in found}
    crossing = [t for t, kinds in found if "cross" in kinds]
    said = [n for n, told in hints.values() if told]
    senses = "text" in said and len(set(said)) > 1  # they read different things, and do not halve one task
    halves = getattr(config, "is_encoder_decoder", False) or (crossing == [found[1][0]] and not senses)
    names: dict[str, str] = {}
    if len(found) == 2 and halves:
        names = {found[0][0].path: "encoder", found[1][0].path: "decoder"}
        return names, set(names)
    for t in sorted((t for t, _ in found), key=lambda t: (not hints[t.path][1], _after_pictures(t))):
        hint = hints[t.path][0]
        before = next((p for p, n in names.items() if n == hint), None)
        taken = {*names.values(), *(n for n, _ in hints.values())}
        names[t.path] = hint if before is None else _apart(t.path, before, hint, taken)
    main = {p for p, n in names.items() if n == "text"} or {p for p, n in names.items() if n == "decoder"} or set(names)
    return names, main


def _after_pictures(t: Tower) -> bool:
    """Whether a tower is for films, by its path: one for pictures beside it is the tower that sees."""
    return "video" in t.path.lower()


def _apart(path: str, before: str, hint: str, taken: set[str]) -> str:
    """A name for a tower whose hint is the name of another: the first part of its path that is not that one's, nor a name that is
    taken."""
    parts = path.split(".")
    other = before.split(".")
    own = [p for i, p in enumerate(parts) if other[i : i + 1] != [p]]
    free = (p for p in (*own, *reversed(parts)) if p.isidentifier() and p not in taken)
    return next(free, f"{hint}_{len(taken)}")


def _alone(config: type, t: Tower) -> str:
    """The name of a tower that has no other beside it: none, unless it is one half of what its type of model has two of."""
    last = t.module.rpartition(".")[2]
    return last if getattr(config, "is_encoder_decoder", False) and last in ("encoder", "decoder") else ""


def _hint(model: nn.Module, t: Tower) -> tuple[str, bool]:
    """What a tower may be called, and whether its path says what it reads."""
    path = t.path.lower()
    for name, words in _WORDS[:3]:
        if any(w in part for part in path.split(".") for w in words):
            return name, True
    taken = inspect.signature(model.get_submodule(t.module).forward).parameters
    for name, arguments in _TAKEN:
        if any(a in taken for a in arguments) and (
            name != "text" or not any(a in taken for _, others in _TAKEN[1:] for a in others)
        ):
            return name, False
    return next(
        (n for n, words in _WORDS if any(w in path for w in words)),
        next((p for p in path.split(".") if p.isidentifier()), "tower"),
    ), False
