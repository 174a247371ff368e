"""Folders of other libraries: a configuration and tensors, read with suspicion and written whole or not at all."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os.path import exists, isdir
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as unpack
from safetensors.torch import save as pack

from ..language.files import contents, reason, replace
from ..language.report.diagnostics import error
from .declared import of_whole_numbers

_LARGEST_CONFIG, _LARGEST = 2**20, 2**36
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_WHOLE = (torch.int32, torch.int64)


@dataclass(frozen=True, slots=True)
class Format:
    """What a library calls its files.

    ``unpickled``: whether a pickle is read, by torch's reader of plain tensors, which runs no code. ``whole``: the ends of the names
    of those tensors that may be of whole numbers.
    """

    library: str
    config: str
    weights: str
    pickled: str
    unpickled: bool
    writer: str
    whole: Callable[[], tuple[str, ...]] = tuple

    @property
    def owner(self) -> str:
        return f"{self.library}'s" if not self.unpickled else f"`{self.library}`"


PEFT = Format("peft", "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin", False,
              "the folder that `save_pretrained` of peft's model wrote", of_whole_numbers)  # fmt: skip
ADAPTERS = Format("adapters", "adapter_config.json", "adapter.safetensors", "pytorch_adapter.bin", True,
                  "the folder that `save_adapter` wrote")  # fmt: skip
#: The head that `adapters` writes beside an adapter.
HEAD = Format("adapters", "head_config.json", "model_head.safetensors", "pytorch_model_head.bin", True,
              "the folder that `save_adapter` wrote")  # fmt: skip


def written_by(folder: Path) -> Format:
    """Whose folder it is, by its files, and where its tensors are missing by its configuration; peft's where nothing tells."""
    if any(exists(folder / n) for n in (ADAPTERS.weights, ADAPTERS.pickled)):
        return ADAPTERS
    if any(exists(folder / n) for n in (PEFT.weights, PEFT.pickled)):
        return PEFT
    try:
        config = json.loads(contents(folder / ADAPTERS.config, _LARGEST_CONFIG))
    except (OSError, ValueError, RecursionError):
        return PEFT
    return ADAPTERS if isinstance(config, dict) and "config" in config and "peft_type" not in config else PEFT


def read(folder: Path, form: Format) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The configuration and the tensors. Raises `PeltError`; no code of a pickle is run."""
    if not isdir(folder):
        raise error("E0840", f"there is no folder {folder}", help="check the path and the spelling")
    pickled = not exists(folder / form.weights) and exists(folder / form.pickled)
    if pickled and not form.unpickled:
        raise error("E0840", f"{folder} has its tensors in {form.pickled}, a pickle, which can run code: it is not read",
                    help=f"load it with {form.library} where you trust it, and `save_pretrained` it again: that writes safetensors")  # fmt: skip
    weights = form.pickled if pickled else form.weights
    for name in (form.config, weights):
        if not exists(folder / name):
            raise error("E0840", f"{folder} is no adapter of {form.owner}: it has no {name}", help=f"name {form.writer}")  # fmt: skip
    try:
        config = json.loads(contents(folder / form.config, _LARGEST_CONFIG))
        data = contents(folder / weights, _LARGEST)
        tensors = _unpickled(data) if pickled else unpack(data)
    except (OSError, ValueError, RecursionError, SafetensorError, KeyError, RuntimeError) as e:
        raise error("E0840", f"{folder} is broken: {reason(e)}", help="copy the folder again") from None
    if not isinstance(config, dict):
        raise error("E0840", f"{folder / form.config} is broken: it is no object", help="copy the folder again")
    for name, t in tensors.items():
        if t.dtype in _WHOLE and name.endswith(form.whole()):
            continue
        if t.dtype not in _FLOATS or not torch.isfinite(t).all():
            raise error("E0842", f"the tensor `{name}` in {folder} holds NaN, infinity or whole numbers")
    return config, tensors


def _unpickled(data: bytes) -> dict[str, torch.Tensor]:
    """The tensors of a pickle. Raises `ValueError` for anything but tensors by their names: nothing else is made of what it says."""
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as e:  # noqa: BLE001 what a pickle that someone made raises is up to them
        raise ValueError(f"the pickle holds something else than tensors ({str(e).partition(chr(10))[0]})") from None
    if not isinstance(found, dict) or not all(
        isinstance(n, str) and type(t) in (torch.Tensor, torch.nn.Parameter) and t.layout == torch.strided
        for n, t in found.items()
    ):
        raise ValueError("the pickle holds something else than tensors by their names")
    return {n: t.detach() for n, t in found.items()}


def write(folder: Path, form: Format, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Both files; the configuration comes last, so a folder that was cut short is not taken for an adapter.

    A library that reads pickles by default gets one; tensors that are one object are then stored once."""

    def plain(t: torch.Tensor) -> torch.Tensor:
        return t.detach().cpu().contiguous().clone()

    try:
        folder.mkdir(parents=True, exist_ok=True)
        if form.unpickled:
            own = {id(t): plain(t) for t in tensors.values()}
            stream = io.BytesIO()
            torch.save({n: own[id(t)] for n, t in tensors.items()}, stream)
            replace(folder / form.pickled, stream.getvalue())
        else:
            replace(folder / form.weights, pack({n: plain(t) for n, t in tensors.items()}, {"format": "pt"}))
        replace(folder / form.config, (json.dumps(dict(sorted(config.items())), indent=2) + "\n").encode())
    except OSError as e:
        raise error("E0575", f"the adapter could not be written to {folder}: {reason(e)}") from None
