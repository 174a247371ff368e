"""Folders of whichever library: what brings them in, by their files."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from . import folders
from .adapterhub_in import import_adapters
from .peft_in import import_peft
from .several import chosen


def import_adapter(
    model: nn.Module, folder: Path, name: str | None = None, *, trainable: bool = False, allow_future: bool = False
) -> str:
    """Attaches an adapter of peft's or of `adapters`, or several in subfolders, and returns its name or the last one's. Raises `PeltError`,
    the model untouched."""
    if folders.written_by(next(iter(chosen(folder, name).values()))) is folders.ADAPTERS:
        return import_adapters(model, folder, name, trainable=trainable, allow_future=allow_future)
    return import_peft(model, folder, name, trainable=trainable)
