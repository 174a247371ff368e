"""Whatever names a method, in Python and on the command line alike: the language's own names, and adapters here and on the hub."""

from __future__ import annotations

from os.path import isdir, isfile
from pathlib import Path

from ..language import loading
from ..language.report.diagnostics import error
from ..language.ir import Method
from ..language.report.source import read
from .hub import METHOD, located, repository


def load(name: str | Path, method: str | None = None) -> Method:
    """A checked method. ``name`` is one of the library, or a ``.pelt`` file, of which ``method`` or ``file.pelt:name`` names the
    method where it has several, or a saved adapter's folder, or ``user/name`` of an adapter on the hub.

    ``a+b`` is the union of two methods. Raises `PeltError` with place and remedy.
    """
    return loading.load(name, method, of_adapter)


def of_adapter(place: str) -> Method | None:
    """The method that lies beside a saved adapter's tensors, here or on the hub; like every adapter's it imports nothing."""
    if not isdir(place) and repository(place) is None:
        return None
    path = located(place) / METHOD
    if not isfile(path):
        raise error("E0401", f"there is no method named `{place}` in the library, and the folder of that name is no adapter: "
                    f"it has no {METHOD}", help="name the `--out` folder of `unipelt train`, or a `.pelt` file")  # fmt: skip
    return loading.parse(read(path).text, file=str(path))
