"""A model with an adapter merged into it, written as a plain folder that loads without this library."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from os.path import exists, isdir
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from ..anatomy.interrupts import ended_by
from ..language.files import reason
from ..language.report.diagnostics import error
from .dequantised import plain_state, with_weights, without_quantiser
from .hanging import rehang
from .heads import is_view, plain
from .merge import absorb, refuse_weighed, unmerge
from .registry import record, registry, unwrapped


@runtime_checkable
class Tokenizer(Protocol):
    """Writes its files into a folder."""

    def save_pretrained(self, folder: Any, /) -> Any: ...


def save_merged(
    model: nn.Module, folder: str | Path, name: str | Sequence[str] = "default", *, tokenizer: Tokenizer | None = None,
    max_shard_size: int | str | None = None,
) -> Path:  # fmt: skip
    """Writes the model as it is with the adapter in it: `save_pretrained`'s folder, for `from_pretrained`.

    Several names are merged one after the other: the model is then what it was with all of them active in this order. A head
    comes along with its labels, in shape and in the configuration; weights keep their type, and what is tied stays so.
    ``max_shard_size`` (bytes, or as ``"5GB"``) bounds the files, as transformers does. The model itself is as before afterwards.
    The folder must not exist, or be empty; it is whole or not there. Raises `PeltError` where `merge` does.

    Quantised weights are written as what they stand for (the base computes with these), in the type of the others, and the
    configuration says nothing of codes: the folder is larger than the base. Where a library also rounds what enters a map
    (bitsandbytes in 8 bits does), the folder's outputs are those without that rounding. A map that keeps codes and no weight (GPTQ's, AWQ's) is
    asked what it makes of unit vectors. Codes that cannot be read are refused (E0565).
    """
    model = unwrapped(model)
    names = (name,) if isinstance(name, str) else tuple(name)
    if not names:
        raise error("E0551", "no adapter is named", help="name those that are to be merged")
    for n in names:
        record(model, n)
    place = Path(folder)
    if exists(place) and (not isdir(place) or any(place.iterdir())):
        raise error("E0611", f"`{place}` exists and is not empty", help="name another folder")
    r = registry(model)
    assert r is not None
    refuse_weighed(r, names)
    merged_before = r.merged.names if r.merged is not None else ()
    config: Any = model.config
    active = r.switch.active

    def as_before() -> None:
        model.config = config
        while r.merged is not None and r.merged.names != merged_before:
            unmerge(model, r.merged.names[-1] if merged_before else None)
        if r.switch.active is not active:
            r.switch.active = active
            rehang(model, r)

    try:
        with with_weights(model) as codes, ended_by(as_before):
            if len(names) > 1:  # each of them alone, as `merge` wants it
                r.switch.active = tuple(n for n in active if n not in names)
                rehang(model, r)
            for n in names:
                absorb(model, n, quantised=True)
            model.config = (
                plain(config) if is_view(config) else copy.deepcopy(config)
            )  # `save_pretrained` writes into it
            with without_quantiser(model):
                unwritten = r.merged.unwritten if r.merged is not None else {}
                _write(model, plain_state(model, unwritten, codes), place, tokenizer, max_shard_size)
    except OSError as e:
        raise error("E0750", f"the model could not be written to {place}: {reason(e)}") from e
    return place


def _write(
    model: Any, state: dict[str, torch.Tensor], place: Path, tokenizer: Tokenizer | None, largest: int | str | None
) -> None:
    options = {} if largest is None else {"max_shard_size": largest}
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as staging:
        whole = Path(staging) / "model"
        try:
            type(model).save_pretrained(
                model, whole, state_dict=state, **options
            )  # its own would speak of other adapters
        except ValueError as e:
            if largest is None:
                raise
            raise error("E0750", f"`max_shard_size`: the model could not be written in files of {largest!r}: {e}",
                        help="give a number of bytes, or as `5GB`") from None  # fmt: skip
        if tokenizer is not None:
            tokenizer.save_pretrained(whole)
        if exists(place):
            place.rmdir()
        whole.rename(place)
