"""Data sets of the Hugging Face hub, through the library `datasets`, which is needed only here."""

from __future__ import annotations

from dataclasses import replace
from os.path import exists
from typing import Any

from ...language.report.diagnostics import error
from ...runtime.hub import is_data_set
from .formats import class_names, name_classes
from .split import SPLITS, Data, Split, said

PREFIX = "hub:"


def read_hub(path: str) -> Data:
    """The splits train, validation and test of the data set `hub:user/name` or `hub:user/name:configuration`; class numbers
    become the classes' names.

    The library `datasets` would take another name for one of its builders (`text`, `json`), which read every file that lies
    here, and would prefer what lies here under that name.
    """
    wanted = path.removeprefix(PREFIX)
    name, colon, configuration = wanted.partition(":")
    if not is_data_set(name) or (colon and not configuration.strip()):
        raise error(
            "E0632",
            f"`{path}` is no name of a data set on the hub",
            help="write `hub:user/name`, or `hub:user/name:configuration`",
        )
    if exists(name):
        raise error("E0632", f"`{name}` lies here, too, and would be read instead of the data set of that name on the hub",
                    help=f"write `{name}` to read what lies here, or work in another folder")  # fmt: skip
    try:
        import datasets
    except ImportError:
        raise error("E0630", f"the data set `{wanted}` is one of the hub, and reading those needs the library `datasets`",
                    help="pip install 'unipelt[data]'") from None  # fmt: skip
    try:
        loaded = datasets.load_dataset(name, configuration or None)
    except Exception as e:  # noqa: BLE001 - whatever the network, the hub and its files raise
        raise error("E0632", f"the data set `{wanted}` cannot be loaded from the hub: {said(e)}",
                    help="check the spelling and the network; files are read without either") from None  # fmt: skip
    return Data(*_splits(loaded, wanted))


def _splits(loaded: Any, wanted: str) -> tuple[dict[str, Split], tuple[str, ...]]:
    names = {spelling: name for name, spellings in SPLITS.items() for spelling in spellings}
    splits: dict[str, Split] = {}
    notes: list[str] = []
    for given, part in loaded.items():
        name = names.get(str(given))
        if name is None or name in splits or not len(part):
            notes.append(f"the split `{given}` of `{wanted}` is not used")
            continue
        for column, feature in part.features.items():  # of pictures and sounds the bytes: decoded they fill the memory
            if getattr(feature, "decode", False):
                part = part.cast_column(column, replace(feature, decode=False))
        try:
            rows = part.to_list()
        except UnicodeDecodeError:
            raise error("E0649", f"the split `{given}` of `{wanted}` holds bytes that are no Unicode",
                        help="save its rows as files, and correct the text") from None  # fmt: skip
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
