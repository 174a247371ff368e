"""Data sets of the Hugging Face hub, through the library `datasets`, which is needed only here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ...language.diagnostics import error, near_path
from .formats import class_names, name_classes
from .split import Data, Split

PREFIX = "hub:"
#: As the hub allows them: `name` or `owner/name`; a configuration may follow after a colon.
NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?(:[\w.-]+)?")
#: A name with such an end is a file's, not a data set's.
FILE = re.compile(r"\.[A-Za-z0-9]{1,8}$")


def names_a_data_set(path: str) -> bool:
    """Whether what is no file here may be a name of the hub."""
    return NAME.fullmatch(path) is not None and not FILE.search(path)


def read_hub(path: str) -> Data:
    """The splits train, validation and test of a data set; class numbers become the classes' names."""
    wanted = path.removeprefix(PREFIX)
    name, _, configuration = wanted.partition(":")
    try:
        import datasets
    except ImportError:
        if path.startswith(PREFIX):
            raise error("E0630", f"the data set `{wanted}` is one of the hub, and reading those needs the library `datasets`",
                        help="pip install 'unipelt[data]'") from None  # fmt: skip
        raise error("E0601", f"there is no file or folder `{path}`",
                    help=near_path(Path(path)) or "check the path; for a data set of the hub, pip install 'unipelt[data]'") from None  # fmt: skip
    try:
        loaded = datasets.load_dataset(name, configuration or None)
    except Exception as e:  # noqa: BLE001 - whatever the network, the hub and its files raise
        reason = " ".join(str(e).split()) or type(e).__name__
        reason = reason if len(reason) <= 300 else reason[:297] + "…"
        what = "the data set" if path.startswith(PREFIX) else "there is no file or folder of this name, and the data set"
        raise error("E0632", f"`{wanted}`: {what} cannot be loaded from the hub: {reason}",
                    help=near_path(Path(path)) or "check the spelling and the network; files are read without either") from None  # fmt: skip
    return Data(*_splits(loaded, wanted))


def _splits(loaded: Any, wanted: str) -> tuple[dict[str, Split], tuple[str, ...]]:
    names = {"train": "train", "validation": "validation", "valid": "validation", "dev": "validation", "test": "test"}
    splits: dict[str, Split] = {}
    notes: list[str] = []
    for given, part in loaded.items():
        name = names.get(str(given))
        if name is None or name in splits or not len(part):
            notes.append(f"the split `{given}` of `{wanted}` is not used")
            continue
        rows = part.to_list()
        classes = class_names(part.features.to_dict())
        name_classes(rows, classes)
        secret = [c for c in classes if all(row[c] is None for row in rows)]
        if secret and name == "test":
            notes.append(f"the split `{given}` of `{wanted}` has no labels (`{secret[0]}`) and is not used")
            continue
        splits[name] = Split(name, f"{PREFIX}{wanted}/{given}", tuple(rows), tuple(range(1, len(rows) + 1)), "row")
    if not splits:
        have = ", ".join(f"`{n}`" for n in loaded) or "none"
        raise error("E0608", f"the data set `{wanted}` has no split called train, validation or test; it has {have}",
                    help="name another data set, or save its rows as files")  # fmt: skip
    return splits, tuple(notes)

