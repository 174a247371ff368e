"""Names of the library in tests: the suite also runs with every definition renamed (see `test_renamed`).

``UNIPELT_RENAMED`` holds a JSON object from the names in ``specs/`` to those in force; without it they are the same.
"""

from __future__ import annotations

import json
import os
import re

RENAMED: dict[str, str] = json.loads(os.environ.get("UNIPELT_RENAMED", "{}"))
_WORD = re.compile(r"(?<![\w.])[A-Za-z_]\w*")


def name(original: str) -> str:
    """The name of a definition of the library; ``a+b`` of a union."""
    return "+".join(RENAMED.get(n, n) for n in original.split("+"))


def spec(text: str) -> str:
    """A text of the language in which definitions of the library are called by the names in force."""
    return _WORD.sub(lambda m: RENAMED.get(m[0], m[0]), text)
