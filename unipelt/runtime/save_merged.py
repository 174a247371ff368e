"""A model with an adapter merged into it, written as a plain folder that loads without this library."""

from __future__ import annotations

import copy
import tempfile
from os.path import exists, isdir
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import nn

from ..anatomy.base import NAME
from ..anatomy.interrupts import ended_by
from ..language.report.diagnostics import error
from .heads import is_view, plain
from .merge import merge, unmerge
from .registry import record, registry, unwrapped


@runtime_checkable
class Tokenizer(Protocol):
    """Writes its files into a folder."""

    def save_pretrained(self, folder: Any, /) -> Any: ...


def save_merged(
    model: nn.Module, folder: str | Path, name: str = "default", *, tokenizer: Tokenizer | None = None
) -> Path:
    """Writes the model as it is with the adapter in it: `save_pretrained`'s folder, for `from_pretrained`.

    A head comes along with its labels, in shape and in the configuration. The model itself is as before afterwards.
    The folder must not exist, or be empty; it is whole or not there. Raises `PeltError` where `merge` does.
    """
    model = unwrapped(model)
    record(model, name)
    place = Path(folder)
    if exists(place) and (not isdir(place) or any(place.iterdir())):
        raise error("E0611", f"`{place}` exists and is not empty", help="name another folder")
    r = registry(model)
    merged_before = r is not None and r.merged is not None
    config: Any = model.config

    def as_before() -> None:
        model.config = config
        if not merged_before and r is not None and r.merged is not None:
            unmerge(model)

    try:
        with ended_by(as_before):
            merge(model, name)
            model.config = (
                plain(config) if is_view(config) else copy.deepcopy(config)
            )  # `save_pretrained` writes into it
            _write(model, place, tokenizer)
    except OSError as e:
        raise error("E0750", f"the model could not be written to {place}: {e.strerror or e}") from e
    return place


def _write(model: Any, place: Path, tokenizer: Tokenizer | None) -> None:
    # What lives in the model under the reserved name is the adapter, now inactive; the rest is the plain model.
    state = {n: t for n, t in model.state_dict().items() if NAME not in n.split(".")}
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as staging:
        whole = Path(staging) / "model"
        type(model).save_pretrained(model, whole, state_dict=state)  # its own would speak of other adapters
        if tokenizer is not None:
            tokenizer.save_pretrained(whole)
        if exists(place):
            place.rmdir()
        whole.rename(place)
