"""Where the grammar and the library of specs lie: in a checkout beside the package, in an install inside it."""

import os
from pathlib import Path

_HERE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """The folder ``grammar`` or ``specs``, in a wheel (``unipelt/_data``) or in a checkout alike.

    ``UNIPELT_SPECS`` names another library of specs: methods are data, and nothing here knows them by name.
    """
    chosen = os.environ.get("UNIPELT_SPECS") if name == "specs" else None
    for candidate in (Path(chosen).resolve(),) if chosen else (_HERE / "_data" / name, _HERE.parent / name):
        if candidate.is_dir():
            return candidate
    if chosen:
        raise FileNotFoundError(f"UNIPELT_SPECS names {chosen}, and that is no folder")
    raise FileNotFoundError(f"unipelt is installed without its {name}/ folder; reinstall the package")
