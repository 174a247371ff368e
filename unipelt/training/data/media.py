"""Files of pictures and sounds: folders with a folder for each class, columns that name files, and the bytes of one.

A folder of classes is read by the names of its files alone; what is in a file is read where a task needs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os.path import getsize, isdir, isfile
from pathlib import Path
from typing import Any

from ...language.report.diagnostics import counted, error, near_path
from ...language.syntax.nodes import Span
from .split import SPLITS, Data, Split, kind_of_value

#: How the names of files end, by the column in which they stand.
MEDIA = {
    "image": (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"),
    "audio": (".wav",),
}
#: What a file of a column is called.
NOUNS = {"image": "picture", "audio": "sound"}
#: Names of columns of files, in the order of preference.
COLUMNS = {"image": ("image", "picture", "img", "pixel_values"), "audio": ("audio", "sound", "wav", "speech")}
ANY = ("file", "file_name", "filename", "path", "file_path")
#: The most bytes of a file that are read.
LARGEST = 2**28


class Unreadable(Exception):
    """A file that cannot be read: why, and what to do."""

    def __init__(self, why: str, remedy: str):
        super().__init__(why)
        self.remedy = remedy


@dataclass(frozen=True)
class Files(Split):
    """The files of a folder of classes: a row has a file and the name of its class, and stands where the file lies."""

    def place(self, i: int) -> str:
        return f"`{next(iter(self.rows[i].values()))}`"


# ---------------------------------------------------------------- folders


def read_classes(folder: Path, split: str) -> Data | None:
    """The files of a folder that has a folder for each class, or a folder for each split with one for each class in it.

    None where there is neither. Hidden files and folders are none; other files are counted in the notes.
    """
    below = _folders(folder)
    found: dict[str, Path] = {}
    for name, spellings in SPLITS.items():
        named = [f for f in below if f.name.lower() in spellings]
        if len(named) > 1:
            raise error("E0608", f"the folder `{folder}` has more than one {name} split: `{named[0].name}` and `{named[1].name}`",
                        Span(str(folder)), help="keep one of them")  # fmt: skip
        if named:
            found[name] = named[0]
    if found and ("train" in found or len(found) == len(below)):
        notes = [f"the folder `{f}` is no split and is not used" for f in below if f not in found.values()]
        splits: dict[str, Split] = {}
        for name, part in found.items():
            files = _classes(part, name, notes)
            if files is None:
                raise error("E0608", f"the folder `{part}` holds no pictures and no sounds in folders of classes",
                            Span(str(part)), help=_remedy(part))  # fmt: skip
            splits[name] = files
        return Data(splits, tuple(notes))
    notes = []
    files = _classes(folder, split, notes)
    return None if files is None else Data({split: files}, tuple(notes))


def _classes(folder: Path, name: str, notes: list[str]) -> Files | None:
    rows: list[dict[str, Any]] = []
    other: list[Path] = [f for f in folder.iterdir() if f.is_file() and not f.name.startswith(".")]
    seen: dict[str, Path] = {}
    empty = []
    for below in _folders(folder):
        before = len(rows)
        for file in _files(below):
            column = kind_of_file(file.name)
            if column is None:
                other.append(file)
                continue
            seen.setdefault(column, file)
            rows.append({column: str(file), "label": below.name})
        if len(rows) == before:
            empty.append(below)
    if not rows:
        return None
    if len(seen) > 1:
        both = " and ".join(f"`{f}`" for f in seen.values())
        raise error("E0608", f"the folder `{folder}` holds pictures and sounds: {both}", Span(str(folder)),
                    help="keep each kind in a folder of its own")  # fmt: skip
    noun = f"{NOUNS[next(iter(seen))]}s"
    notes += [f"the folder `{f}` holds no {noun} and is no class" for f in empty]
    if other:
        notes.append(f"{counted(len(other), 'file')} in `{folder}` are no {noun} of a class, such as `{other[0].name}`")
    return Files(name, str(folder), tuple(rows), tuple(range(1, len(rows) + 1)), "file")


def loose(folder: Path) -> str | None:
    """What to do where pictures or sounds lie in a folder without folders of classes; None where none lie there."""
    return _remedy(folder) if any(kind_of_file(f.name) for f in folder.iterdir()) else None


def _remedy(folder: Path) -> str:
    return (f"put the files of each class into a folder with its name, as in `{folder.name}/cats/1.png`, or name the files "
            "and their labels in a file train.csv")  # fmt: skip


def _folders(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_dir() and not f.name.startswith("."))


def _files(folder: Path) -> Iterator[Path]:
    """The files of a folder and of those in it."""
    for f in sorted(folder.rglob("*")):
        if not any(part.startswith(".") for part in f.relative_to(folder).parts) and f.is_file():
            yield f


def files_of(place: Path, column: str) -> list[str]:
    """The pictures or sounds of a folder and of those in it, or the one file that is named."""
    found = _files(place) if place.is_dir() else [place]
    return [str(f) for f in found if kind_of_file(f.name) == column]


def kind_of_file(name: str) -> str | None:
    """The column that a file of this name would stand in, a key of `MEDIA`; None for other files."""
    return next((c for c, endings in MEDIA.items() if name.lower().endswith(endings)), None)


# ---------------------------------------------------------------- columns


def media_column(split: Split, column: str) -> str | None:
    """The column of a split that names files of this kind (`image` or `audio`) or holds their bytes; None where none does."""
    for name in (*COLUMNS[column], *ANY):
        values = [row[name] for row in split.rows if row.get(name) is not None]
        if values and all(_is_media(v, column) for v in values):
            return name
    return None


def _is_media(value: Any, column: str) -> bool:
    if isinstance(value, Mapping):
        return "bytes" in value or "path" in value
    return value.lower().endswith(MEDIA[column]) if isinstance(value, str) else hasattr(value, "convert")


def wrong_file(value: Any) -> str:
    """What is wrong with a cell that is to name a file, or to hold one as the hub's data sets do; "" if nothing is."""
    if isinstance(value, str):
        return "" if value.strip() else "is empty"
    held = isinstance(value, Mapping) and (isinstance(value.get("bytes"), bytes) or isinstance(value.get("path"), str))
    return "" if held or hasattr(value, "convert") else f"is {kind_of_value(value)}, not the name of a file"


def beside(value: Any, folder: Path) -> Any:
    """The value of a cell with the name of its file as seen from here. Names are relative to the folder of the file they stand in."""
    return str(folder / value) if isinstance(value, str) else value


def title_of(value: Any) -> str:
    """What a file is called in predictions."""
    if isinstance(value, Mapping):
        return str(value.get("path") or "")
    return value if isinstance(value, str) else str(getattr(value, "filename", ""))


def bytes_of(value: Any) -> bytes:
    """The bytes of a file, or those that a cell holds. Raises `Unreadable`."""
    if isinstance(value, Mapping) and isinstance(value.get("bytes"), bytes):
        return value["bytes"]
    name = title_of(value)
    if isdir(name):
        raise Unreadable("it is a folder", "name the files in it; `unipelt predict --file` takes a folder")
    if not isfile(name):
        raise Unreadable(
            "there is no such file",
            near_path(Path(name)) or "correct the name; names are relative to the folder of the file they stand in",
        )
    try:
        if getsize(name) > LARGEST:
            raise Unreadable(f"it has {getsize(name):,} bytes, and at most {LARGEST:,} are read", "make it smaller")
        return Path(name).read_bytes()
    except OSError as e:
        raise Unreadable(str(e.strerror), "make it readable, or take it out") from None
