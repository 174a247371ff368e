"""The folder of an adapter: ``adapter.safetensors``, ``method.pelt``, ``adapter.json`` and a card, written whole or not at all, and read with distrust.

What is read may come from anyone: forms, versions, hashes, shapes and values are checked before anything is made of them,
and nothing is unpickled. No model is known here; what a manifest says of one is made in `runtime.saving` and compared in `runtime.checkpoint`.
"""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
import shlex
import shutil
import tempfile
from collections.abc import Mapping
from os.path import exists, isdir, isfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as unpack
from safetensors.torch import save as pack

from ..language.report.diagnostics import error, near_path
from ..language.files import contents, reason
from ..language.ir import Method
from ..language.loading import parse
from ..language.report.source import refuse_link, source_of
from ..language.versions import FORMAT, LANGUAGE_VERSION, UPDATE, Version, named, refusal
from ..language.report.warned import warn
from .card import replaceable
from .hub import FETCHED, FOLDER, INDEX, MANIFEST, METHOD, README, RUN, WEIGHTS

#: Types that tensors may have.
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64)
#: The most bytes that names and shapes take in a file of tensors; a value takes 8 at most.
_HEADER = FETCHED[MANIFEST]
#: What a manifest holds besides its versions, whoever wrote it.
_MANIFEST: dict[str, tuple[type, str]] = {
    "adapter": (str, "a name"), "seed": (int, "a whole number"), "base": (dict, "an object"), "copies": (list, "a list"),
    "head": (int, "a whole number"), "tensors": (dict, "an object"), "sha256": (dict, "an object"), "folded": (bool, "true or false"),
}  # fmt: skip
#: What it may hold or lack.
_OPTIONAL: dict[str, tuple[type, str]] = {
    "arguments": (dict, "an object"), "card": (dict, "an object"), "method": (str, "a name"), "allow_future": (bool, "true or false"), "drawn": (dict, "an object"),
}  # fmt: skip


# ---------------------------------------------------------------- writing


def write(
    folder: Path, tensors: Mapping[str, torch.Tensor], texts: Mapping[str, str], manifest: Mapping[str, Any]
) -> None:
    """Writes tensors, texts by their files' names, and the manifest with hashes: beside the folder's place, synced, then renamed.

    Further files of an old folder are kept (links as links), among them a card that somebody has edited: then a warning says so.
    Where the folder is a link, what it leads to is written. Raises OSError; the old folder is then as it was.
    """
    folder = Path(os.path.realpath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    blob = pack({n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()})
    files = {WEIGHTS: blob, **{n: text.encode() for n, text in texts.items()}}
    bring_back(folder)
    if README in files and not replaceable(folder / README):
        del files[README]
        warn(f"{folder / README} was not written by unipelt or has been edited: it is kept, and no card is written")
    whole = {**manifest, "sha256": {n: hashlib.sha256(files[n]).hexdigest() for n in (WEIGHTS, METHOD)}}
    files[MANIFEST] = (
        json.dumps(whole, indent=1, ensure_ascii=False, default=str) + "\n"
    ).encode()  # the last: what it lists is there
    room = Path(tempfile.mkdtemp(prefix=_room_prefix(folder), dir=folder.parent))
    done = False
    try:
        new = room / _NEW
        new.mkdir()
        for n, data in files.items():
            with open(new / n, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
        _swap(new, folder, room / _OLD)
        done = True
    finally:
        if done or not (room / _OLD).exists():  # else it holds the only copy
            shutil.rmtree(room, ignore_errors=True)


#: What a save makes beside the folder's place, in a room of its own: the new folder, and the old one until the new is in place.
_NEW, _OLD = "new", "old"


def _room_prefix(folder: Path) -> str:
    return f".{folder.name}.saving-"


def _swap(new: Path, folder: Path, old: Path) -> None:
    """Puts a complete folder in place of an old one, whose further files come along."""
    if not folder.exists():
        os.rename(new, folder)
        return
    shutil.copymode(folder, new)
    for item in folder.iterdir():
        if not os.path.lexists(new / item.name):
            if item.is_dir() and not item.is_symlink():
                shutil.copytree(item, new / item.name, symlinks=True, copy_function=_link)
            else:
                _link(str(item), str(new / item.name))
    os.rename(folder, old)
    try:
        os.rename(new, folder)
    except OSError as e:
        try:
            os.rename(old, folder)
        except OSError:
            raise OSError(f"{reason(e)}, and the old folder, which could not be put back, is {old}") from e
        raise


def _link(source: str, target: str) -> str:
    """A hard link where the file system has them (a copy else): checkpoints beside an adapter are not written again.

    A link is made anew as it is, wherever it leads.
    """
    if os.path.islink(source):
        os.symlink(os.readlink(source), target)
        return target
    try:
        os.link(source, target)
    except OSError:
        if not os.path.isfile(source):  # a pipe cannot be copied
            raise
        shutil.copy2(source, target)
    return target


def bring_back(folder: Path) -> None:
    """Finishes a save that was killed between its two renames, so that the old folder's further files are not lost."""
    if not folder.exists():
        left = cut_short(folder)
        if left is not None and (left.parent / _OLD).exists():
            os.rename(left, folder)
            shutil.rmtree(left.parent, ignore_errors=True)


def cut_short(folder: Path) -> Path | None:
    """The whole adapter, if any, that a killed save left beside the place of a folder that is not there: the newest."""
    place = Path(os.path.realpath(folder)) if os.path.islink(folder) else folder
    rooms = place.parent.glob(f"{glob.escape(_room_prefix(place))}*/{_NEW}") if isdir(place.parent) else ()
    found = [p for p in rooms if isfile(p / MANIFEST)]
    former = place.with_name(f".{place.name}.old")  # where earlier versions put the old folder
    found = found or [p for p in (former,) if isfile(p / MANIFEST)]
    return max(found, key=lambda p: p.parent.stat().st_mtime) if found else None


# ---------------------------------------------------------------- reading


def verify(folder: Path) -> None:
    """Raises a `PeltError` unless the folder holds a whole adapter that can be read."""
    manifest = read_manifest(folder)
    read_method(folder, manifest)
    read_tensors(folder, manifest)


#: What the configuration of an adapter of another library's is called (peft's, AdapterHub's).
FOREIGN = "adapter_config.json"


def foreign(folder: Path) -> bool:
    """Whether a folder holds an adapter of another library's, or several, each in a subfolder."""
    if isfile(folder / MANIFEST) or isfile(folder / INDEX) or not isdir(folder):
        return False
    return isfile(folder / FOREIGN) or any(
        isfile(folder / n / FOREIGN) and not isfile(folder / n / MANIFEST) for n in os.listdir(folder)
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """``adapter.json``, checked for form and version."""
    if not isdir(folder):
        left = cut_short(folder)
        raise error("E0577", f"there is no folder {folder}" + (f", and a save to it was cut short: the whole adapter is {left}" if left else ""),
                    help=f"move it to its place: mv {shlex.quote(str(left))} {shlex.quote(str(folder))}" if left
                    else near_path(folder, folders=True) or "check the path and the spelling")  # fmt: skip
    path = folder / MANIFEST
    for n in (MANIFEST, WEIGHTS, METHOD):
        refuse_link(folder / n)
        if not exists(folder / n) or isdir(folder / n):
            raise error("E0577", f"{folder} is no adapter: it has no {n}",
                        help="the run there is not finished: `--resume` goes on with it" if isfile(folder / RUN)
                        else f"it is a model with adapters beside it: name one of the folders {folder / FOLDER.format('*')}"
                        if isfile(folder / INDEX) else f"it is an adapter of another library's: `unipelt import {shlex.quote(str(folder))} --model BASE --out adapter` makes one of unipelt's of it"
                        if isfile(folder / FOREIGN) else "name the `--out` folder of `unipelt train`, or one that `unipelt.save` made")  # fmt: skip
    data = _bytes(path, FETCHED[MANIFEST])
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError) as e:
        raise error("E0578", f"{path} is broken: {e}") from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    version = named(found, FORMAT)
    if version is None:
        raise error("E0579", f"{path} has the format {found!r}, this version reads {FORMAT!r}")
    _readable(folder, "format", version, FORMAT, "E0579")
    language = Version.of(manifest.get("language"))
    if language is None:
        raise error("E0578", f"{path} is broken: its `language` is not a version")
    _readable(folder, "language", language, LANGUAGE_VERSION, "E0720")
    for key, (type_, what) in _MANIFEST.items():
        if (
            key not in manifest
            or not isinstance(manifest[key], type_)
            or isinstance(manifest[key], bool) != (type_ is bool)
        ):
            raise error("E0578", f"{path} is broken: its `{key}` is not {what}")
    for key, (type_, what) in _OPTIONAL.items():
        if not isinstance(manifest.get(key), (type_, type(None))):
            raise error("E0578", f"{path} is broken: its `{key}` is not {what}")
    return manifest


def _bytes(path: Path, most: int) -> bytes:
    """A file of the folder, read once."""
    try:
        return contents(path, most)
    except OSError as e:
        raise error(
            "E0780",
            f"{path} is not read: {reason(e)}",
            help="copy the folder again: an adapter's files are plain files of a sane size",
        ) from None


def _readable(folder: Path, what: str, version: Version, own: str, code: str) -> None:
    if refusal(version, own):
        raise error(code, f"the adapter in {folder} cannot be read: its {what} {refusal(version, own)}", help=UPDATE)


def read_method(folder: Path, manifest: Mapping[str, Any]) -> Method:
    """``method.pelt``, as it was saved."""
    path = folder / METHOD
    data = _bytes(path, FETCHED[METHOD])
    _check_hash(path, data, manifest)
    return parse(source_of(data, str(path)).text, file=str(path))


def _check_hash(path: Path, data: bytes, manifest: Mapping[str, Any]) -> None:
    hashes = manifest.get("sha256")
    wanted = hashes.get(path.name) if isinstance(hashes, dict) else None
    if wanted != hashlib.sha256(data).hexdigest():
        raise error("E0580", f"{path} is not the file that was saved: its hash differs",
                    help="the file is truncated or was changed; copy the folder again")  # fmt: skip


def read_tensors(folder: Path, manifest: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """``adapter.safetensors``, as it was saved and as the manifest lists it; nothing is NaN or infinite.

    The file is read once, and only if it is no larger than what the manifest lists.
    """
    path = folder / WEIGHTS
    listed = listed_shapes(folder, manifest)
    data = _bytes(path, _HEADER + sum(8 * math.prod(shape) for shape in listed.values()))
    _check_hash(path, data, manifest)
    try:
        tensors = unpack(data)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as e:  # a key: a type that is not known
        raise error("E0583", f"{path} cannot be read: {reason(e)}") from None
    if set(tensors) != set(listed):
        raise error("E0581", f"{path} and its manifest list different tensors")
    for n, t in tensors.items():
        if t.shape != listed[n] or t.dtype not in DTYPES:
            raise error("E0582", f"the tensor `{n}` in {path} has another shape or type than its manifest says")
        if not torch.isfinite(t).all():
            raise error("E0584", f"the tensor `{n}` in {path} holds NaN or infinity")
    return tensors


def listed_shapes(folder: Path, manifest: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of the saved tensors by name, as the manifest tells them."""
    return {n: shape_of(folder, n, said) for n, said in manifest["tensors"].items()}


def shape_of(folder: Path, name: str, said: Any) -> tuple[int, ...]:
    """The shape that the manifest gives a tensor."""
    shape = said.get("shape") if isinstance(said, dict) else None
    if not isinstance(shape, list) or not all(type(k) is int and k >= 0 for k in shape):
        raise error("E0578", f"{folder / MANIFEST} is broken: the shape of `{name}` is not a list of whole numbers")
    return tuple(shape)
