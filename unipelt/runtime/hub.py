"""The hub: names of repositories, and what of a path may be told to others."""

from __future__ import annotations

import re
from pathlib import Path

#: ``user/name`` or, for a base of the hub's own, ``name``.
_NAME = re.compile(r"(?!.*(\.\.|--))[A-Za-z0-9_][\w.\-]{0,95}(/[A-Za-z0-9_][\w.\-]{0,95})?")


def is_hub_name(name: str) -> bool:
    """Whether this can only be a name on the hub: of its form, and nothing of that name lies here."""
    return bool(_NAME.fullmatch(name)) and not name.endswith((".git", ".ipynb")) and not Path(name).exists()


def public_name(name: str) -> str:
    """A name that tells nothing of this machine: a hub name as it is, of a path its last part."""
    return name if is_hub_name(name) else re.split(r"[/\\]", name.rstrip("/\\"))[-1]
