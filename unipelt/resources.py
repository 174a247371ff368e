"""Where the grammar and the library of specs lie: in a checkout beside the package, in an install inside it."""

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """The folder ``grammar`` or ``specs``, in a wheel (``unipelt/_data``) or in a checkout alike."""
    for candidate in (_HERE / "_data" / name, _HERE.parent / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"unipelt is installed without its {name}/ folder; reinstall the package")
