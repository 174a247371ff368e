"""The folder of an adapter: ``adapter.safetensors``, ``method.pelt``, ``adapter.json`` and a card, written whole or not at all, and read with distrust.

What is read may come from anyone: forms, versions, hashes, shapes and values are checked before anything is made of them,
and nothing is unpickled. No model is known here; what a manifest says of one is made in `runtime.saving` and compared in `runtime.checkpoint`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as pack

from ..language.diagnostics import error, near_path
from ..language.ir import Method
from ..language.loading import parse
from ..language.source import read, refuse_link
from ..language.versions import FORMAT, LANGUAGE_VERSION, UPDATE, Version, named, refusal
from .card import replaceable
from .hub import FETCHED, FOLDER, INDEX, MANIFEST, METHOD, README, RUN, WEIGHTS

#: Types that tensors may have, by safetensors' names.
_DTYPES = ("F64", "F32", "F16", "BF16")
#: What a manifest holds besides its versions, whoever wrote it.
_MANIFEST: dict[str, tuple[type, str]] = {
    "adapter": (str, "a name"), "seed": (int, "a whole number"), "base": (dict, "an object"), "copies": (list, "a list"),
    "head": (int, "a whole number"), "tensors": (dict, "an object"), "sha256": (dict, "an object"), "folded": (bool, "true or false"),
}  # fmt: skip


# ---------------------------------------------------------------- writing


def write(folder: Path, tensors: Mapping[str, torch.Tensor], texts: Mapping[str, str], manifest: Mapping[str, Any]) -> None:
    """Writes tensors, texts by their files' names, and the manifest with hashes: beside the folder's place, synced, then renamed.

    Further files of an old folder are kept, among them a card that somebody has edited: then a warning says so. Raises OSError;
    the old folder is then as it was.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    blob = pack({n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()})
    files = {WEIGHTS: blob, **{n: text.encode() for n, text in texts.items()}}
    if README in files and not replaceable(folder / README):
        del files[README]
        warnings.warn(f"{folder / README} was not written by unipelt or has been edited: it is kept, and no card is written", stacklevel=5)
    whole = {**manifest, "sha256": {n: hashlib.sha256(files[n]).hexdigest() for n in (WEIGHTS, METHOD)}}
    files[MANIFEST] = (json.dumps(whole, indent=1, ensure_ascii=False, default=str) + "\n").encode()
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for n, data in files.items():
            with open(beside / n, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
        _swap(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _swap(new: Path, folder: Path) -> None:
    """Puts a complete folder in place of an old one, whose further files move along."""
    os.chmod(new, 0o755)
    old = folder.with_name(f".{folder.name}.old")
    if not folder.exists():
        os.rename(new, folder)
        shutil.rmtree(old, ignore_errors=True)  # left behind where an earlier save was killed between its two renames
        return
    for item in folder.iterdir():
        if not (new / item.name).exists():
            if item.is_dir():
                shutil.copytree(item, new / item.name, copy_function=_link)
            else:
                _link(str(item), str(new / item.name))
    shutil.rmtree(old, ignore_errors=True)
    os.rename(folder, old)
    try:
        os.rename(new, folder)
    except OSError:
        os.rename(old, folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _link(source: str, target: str) -> str:
    """A hard link where the file system has them (a copy else): checkpoints beside an adapter are not written again."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


# ---------------------------------------------------------------- reading


def verify(folder: Path) -> None:
    """Raises a `PeltError` unless the folder holds a whole adapter that can be read."""
    manifest = read_manifest(folder)
    read_method(folder, manifest)
    read_tensors(folder, manifest)


def read_manifest(folder: Path) -> dict[str, Any]:
    """``adapter.json``, checked for form and version."""
    if not folder.is_dir():
        raise error("E0577", f"there is no folder {folder}", help=near_path(folder, folders=True) or "check the path and the spelling")
    path = folder / MANIFEST
    for n in (MANIFEST, WEIGHTS, METHOD):
        refuse_link(folder / n)
        if not (folder / n).is_file():
            raise error("E0577", f"{folder} is no adapter: it has no {n}",
                        help="the run there is not finished: `--resume` goes on with it" if (folder / RUN).is_file()
                        else f"it is a model with adapters beside it: name one of the folders {folder / FOLDER.format('*')}"
                        if (folder / INDEX).is_file() else "name the `--out` folder of `unipelt train`, or one that `unipelt.save` made")  # fmt: skip
    if path.stat().st_size > FETCHED[MANIFEST]:
        raise error("E0578", f"{path} is too large to be a manifest")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError, RecursionError) as e:
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
        if key not in manifest or not isinstance(manifest[key], type_) or isinstance(manifest[key], bool) != (type_ is bool):
            raise error("E0578", f"{path} is broken: its `{key}` is not {what}")
    return manifest


def _readable(folder: Path, what: str, version: Version, own: str, code: str) -> None:
    if refusal(version, own):
        raise error(code, f"the adapter in {folder} cannot be read: its {what} {refusal(version, own)}", help=UPDATE)


def read_method(folder: Path, manifest: Mapping[str, Any]) -> Method:
    """``method.pelt``, as it was saved."""
    path = folder / METHOD
    source = read(path)
    _check_hash(path, manifest)
    return parse(source.text, file=str(path))


def _check_hash(path: Path, manifest: Mapping[str, Any]) -> None:
    hashes = manifest.get("sha256")
    wanted = hashes.get(path.name) if isinstance(hashes, dict) else None
    if wanted != hashlib.sha256(path.read_bytes()).hexdigest():
        raise error("E0580", f"{path} is not the file that was saved: its hash differs",
                    help="the file is truncated or was changed; copy the folder again")  # fmt: skip


def read_tensors(folder: Path, manifest: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """``adapter.safetensors``, as it was saved and as the manifest lists it; nothing is NaN or infinite."""
    path = folder / WEIGHTS
    _check_hash(path, manifest)
    listed = manifest.get("tensors")
    try:
        with safe_open(path, framework="pt") as f:
            names = set(f.keys())
            if not isinstance(listed, dict) or names != set(listed):
                raise error("E0581", f"{path} and its manifest list different tensors")
            for n in names:  # headers before values: a shape that disagrees is never allocated
                said, found = listed[n], f.get_slice(n)
                shape = said.get("shape") if isinstance(said, dict) else None
                if list(found.get_shape()) != shape or found.get_dtype() not in _DTYPES:
                    raise error("E0582", f"the tensor `{n}` in {path} has another shape or type than its manifest says")
            tensors = {n: f.get_tensor(n) for n in names}
    except (SafetensorError, OSError) as e:
        raise error("E0583", f"{path} cannot be read: {e}") from None
    for n, t in tensors.items():
        if not torch.isfinite(t).all():
            raise error("E0584", f"the tensor `{n}` in {path} holds NaN or infinity")
    return tensors
