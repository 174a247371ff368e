"""Files, folders of splits, data sets of the hub: whatever `--data` names.

A folder holds files named after their split (`train.jsonl`, `validation.jsonl` or `dev.csv`, `test.parquet`), as one file or as
the shards that the hub writes (`train-00000-of-00002.parquet`). A folder of pictures or sounds has a folder for each class.
"""

from __future__ import annotations

from dataclasses import replace
from os.path import isdir, isfile
from pathlib import Path

from ...language.report.diagnostics import error, near_path
from ...language.report.source import refuse_link
from ...language.syntax.nodes import Span
from ...runtime.hub import is_data_set
from .formats import SUFFIXES, parse
from .hub import PREFIX, read_hub
from .media import loose, read_classes
from .split import SPLITS, Data, Split, listed


def read(path: str | Path, split: str = "train") -> Data:
    """The splits of a folder or of a data set of the hub, or a single file as the split called ``split``.

    `hub:user/name` or `hub:user/name:configuration` is a data set of the hub. A path that is not there is an error.
    """
    if str(path).startswith(PREFIX):
        return read_hub(str(path))
    if not str(path).strip():
        raise error(
            "E0601", "the path of the data is empty", help="name a file, a folder of splits, or `hub:user/name`"
        )
    place = Path(path)
    if not isdir(place):
        return Data({split: read_file(place, split)})
    found: dict[str, Split] = {}
    for name, spellings in SPLITS.items():
        files = [group for s in spellings for x in SUFFIXES if (group := _files(place, s, x))]
        if len(files) > 1:
            names = " and ".join(f"`{group[0].name}`" for group in files)
            raise error("E0608", f"the folder `{place}` has more than one {name} split: {names}", Span(str(place)),
                        help="keep one of them, or name the file")  # fmt: skip
        if files:
            found[name] = _joined([read_file(f, name) for f in files[0]])
    if not found:
        classes = read_classes(place, split)
        if classes is not None:
            return classes
        present = sorted(f.name for f in place.iterdir())[:10]
        raise error("E0608", f"the folder `{place}` holds no split; it has {listed(present)}", Span(str(place)),
                    help=loose(place) or "name the files train.jsonl, validation.jsonl, test.jsonl (or .csv, .parquet); "
                    "pictures and sounds lie in a folder for each class")  # fmt: skip
    return Data(found)


def read_file(path: Path, split: str = "train") -> Split:
    """The rows of one file."""
    span = Span(str(path))
    if not isfile(path):
        raise error("E0601", f"there is no file or folder `{path}`", span,
                    help=near_path(path) or (f"check the spelling; a data set of the hub is written `{PREFIX}{path}`"
                                             if is_data_set(str(path)) else "check the path and the spelling"))  # fmt: skip
    refuse_link(path)
    if path.suffix not in SUFFIXES:
        raise error("E0608", f"`{path}` is neither JSON, CSV nor Parquet", span,
                    help=f"the file's name ends in one of {', '.join(SUFFIXES)}")  # fmt: skip
    found = parse(path, split)
    if not found.rows:
        raise error("E0605", f"`{path}` has no rows", span, help="put one example on each line")
    return found


def _files(folder: Path, stem: str, suffix: str) -> list[Path]:
    one = folder / f"{stem}{suffix}"
    return [one] if one.is_file() else sorted(folder.glob(f"{stem}-[0-9]*-of-[0-9]*{suffix}"))


def _joined(shards: list[Split]) -> Split:
    """Shards as one split, whose rows are numbered through."""
    if len(shards) == 1:
        return shards[0]
    rows = tuple(row for s in shards for row in s.rows)
    return replace(shards[0], file=f"{shards[0].file} …", rows=rows, lines=tuple(range(1, len(rows) + 1)), unit="row")
