"""peft's folders: ``adapter_config.json`` and ``adapter_model.safetensors``, read with suspicion and written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from os.path import exists, isdir
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as unpack
from safetensors.torch import save as pack

from ..language.files import contents, reason, replace
from ..language.report.diagnostics import error

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_LARGEST_CONFIG, _LARGEST = 2**20, 2**36
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def read(folder: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The configuration and the tensors. Raises `PeltError`; nothing is unpickled."""
    if not isdir(folder):
        raise error("E0840", f"there is no folder {folder}", help="check the path and the spelling")
    if not exists(folder / WEIGHTS) and exists(folder / PICKLED):
        raise error("E0840", f"{folder} has its tensors in {PICKLED}, a pickle, which can run code: it is not read",
                    help="load it with peft where you trust it, and `save_pretrained` it again: that writes safetensors")  # fmt: skip
    for name in (CONFIG, WEIGHTS):
        if not exists(folder / name):
            raise error("E0840", f"{folder} is no adapter of peft's: it has no {name}",
                        help="name the folder that `save_pretrained` of peft's model wrote")  # fmt: skip
    try:
        config = json.loads(contents(folder / CONFIG, _LARGEST_CONFIG))
        tensors = unpack(contents(folder / WEIGHTS, _LARGEST))
    except (OSError, ValueError, RecursionError, SafetensorError, KeyError, RuntimeError) as e:
        raise error("E0840", f"{folder} is broken: {reason(e)}", help="copy the folder again") from None
    if not isinstance(config, dict):
        raise error("E0840", f"{folder / CONFIG} is broken: it is no object", help="copy the folder again")
    for name, t in tensors.items():
        if t.dtype not in _FLOATS or not torch.isfinite(t).all():
            raise error("E0842", f"the tensor `{name}` in {folder} holds NaN, infinity or whole numbers")
    return config, tensors


def write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
    """Both files; the configuration comes last, so a folder that was cut short is not taken for an adapter."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace(
            folder / WEIGHTS,
            pack({n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}, {"format": "pt"}),
        )
        replace(folder / CONFIG, (json.dumps(dict(sorted(config.items())), indent=2) + "\n").encode())
    except OSError as e:
        raise error("E0575", f"the adapter could not be written to {folder}: {reason(e)}") from None
