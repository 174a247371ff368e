"""Where peft's tensors are: the key of each of an adapter's tensors, and the sites that the modules of its keys are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..anatomy.find import find
from ..anatomy.spelled import spelled
from ..compiler.plan import PlannedEdit
from ..language.report.diagnostics import error
from .declared import Declared

FRONT = "base_model.model."
#: How the key of a tensor begins that all modules share.
WHOLE = "base_model."


def ours(t: torch.Tensor, how: str, edit: PlannedEdit, layers: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Our tensor, of a shape, made of peft's. Raises `RuntimeError` where it cannot be."""
    word, *rest = how.split()
    if word == "joined":
        size = edit.site.sizes
        rows = t.reshape(t.shape[0], layers, 2, size["groups"], size["d_head"])
        return rows[:, edit.site.layer or 0, int(rest[0])].transpose(0, 1)  # [l, group, d_head] → [group, l, d_head]
    if word == "columns":
        part = t.tensor_split(int(rest[1]), dim=-1)[int(rest[0])]
        return part.flip(-1) if "flip" in rest else part
    if word == "row" and t.shape[:1] != (1,):
        raise RuntimeError("it has several rows")
    return {
        "same": lambda: t, "T": lambda: t.mT, "swap": lambda: t.transpose(0, 1), "row": lambda: t[0],
        "flat": lambda: t.reshape(-1), "split": lambda: t.reshape(shape if t.dim() == 1 else t.shape),
    }[word]()  # fmt: skip


def theirs(t: torch.Tensor, how: str, edit: PlannedEdit) -> torch.Tensor:
    """peft's tensor, made of ours, or the part of it that `part_of` says; what is joined comes as [l, group · d_head]."""
    word, *rest = how.split()
    if word == "joined":
        return t.transpose(0, 1).reshape(t.shape[1], -1)
    if word == "columns":
        return t.flip(-1) if "flip" in rest else t
    if word == "flat":
        return t[None] if edit.site.side == "input" else t[:, None]
    return {
        "same": lambda: t, "T": lambda: t.mT, "swap": lambda: t.transpose(0, 1), "row": lambda: t[None],
        "split": lambda: t.reshape(-1),
    }[word]()  # fmt: skip


def part_of(how: str, edit: PlannedEdit, layers: int) -> tuple[int, int] | None:
    """Which part of peft's tensor ours is, and of how many that stand beside each other; None where it is the whole."""
    word, *rest = how.split()
    if word == "joined":
        return 2 * (edit.site.layer or 0) + int(rest[0]), 2 * layers
    return (int(rest[0]), int(rest[1])) if word == "columns" else None


def of_base(module: nn.Module, how: str) -> torch.Tensor:
    """What peft saves of the base's own weight: ``norms`` are those of the weights of each input. Raises `TypeError`."""
    if how != "norms" or not isinstance(module, nn.Linear):
        raise TypeError(f"a {type(module).__name__} has no {how} there")
    return torch.norm(module.weight.detach(), dim=0)


def host(edit: PlannedEdit) -> str:
    """The path of the module that an edit hangs on."""
    return edit.site.view.module


def key(d: Declared, suffix: str, path: str) -> str:
    return f"{FRONT}{path}.{suffix}" if d.of_modules and not suffix.startswith(WHOLE) else suffix


def depth(model: nn.Module) -> int:
    """How many layers peft counts: those of the deepest tower."""
    return max((s.depth for s in find(model).stacks), default=1)


def modules_of(d: Declared, keys: Iterable[str]) -> list[str]:
    """The modules of peft's keys, as peft calls them; what has no place here is left out."""
    suffixes = {suffix for suffix, _ in d.tensors.values() if not suffix.startswith(WHOLE)}
    found: dict[str, None] = {}
    for k in keys:
        suffix = next((s for s in suffixes if k.startswith(FRONT) and k.endswith(f".{s}")), None)
        if suffix is not None:
            found[k[len(FRONT) : -len(suffix) - 1]] = None
    return list(found)


def in_model(model: nn.Module, paths: Iterable[str]) -> dict[str, str]:
    """For each of peft's paths the module's in this model, which may be the base of the one it was trained on, or hold it."""
    own = {n for n, _ in model.named_modules()}
    front = str(getattr(model, "base_model_prefix", "") or "")
    found = {}
    for path in paths:
        tried = (path, f"{front}.{path}", path.removeprefix(f"{front}."))
        place = next((p for p in tried if p in own), None)
        if place is None:
            raise error("E0843", f"the adapter is for a module `{path}`, and this {type(model).__name__} has none of that path",
                        help="load the model that the adapter was trained on")  # fmt: skip
        found[path] = place
    return found


def sites(model: nn.Module, places: Iterable[str], d: Declared, at_input: frozenset[str]) -> list[str]:
    """How a text of the language names the modules of some paths (`anatomy.spelled`), or their weights."""
    named, inputs = spelled(model, places, at_input)
    if inputs:
        raise error("E0841", f"the input of `{min(inputs)}` is rescaled, and no site is there",
                    help="merge it with peft (`merge_and_unload`), and use the merged model")  # fmt: skip
    return [f"{name}.weight" if d.at == "weight" else name for name in named]


def sizes(edits: Iterable[PlannedEdit], layers: int) -> Mapping[str, Any]:
    """The sizes of the model by their names, and its number of layers."""
    found: dict[str, Any] = {"layers": layers}
    for e in edits:
        found = {**e.site.sizes, **found}
    return found
