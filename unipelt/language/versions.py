"""Versions of what is written down: the language, the schemas of the IR, of its types and of a model's sites, an adapter's folder. Each is MAJOR.MINOR.

Within a major, minors only add. So what an older version wrote is read for ever; what a newer one wrote may use what is
not known here, and is refused with those words rather than read in part.
"""

from __future__ import annotations

from typing import Any, NamedTuple

#: 1.1: arguments that depend on the layer; `sampled` tensors; the site `final`. 1.2: towers of any name; mixers, routers, latent
#: attention, projectors, what enters blocks and sublayers, and their sizes. 1.3: weights as sites, selected tokens, starts from
#: decompositions and from data, whole numbers, tensors of other rows, groups of layers, mixing among tokens, draws, penalties and
#: what happens after a step. 1.4: parameters of tables, heads and norms as sites; listed numbers, rows at places;
#: trained adapters as arguments, convolutions over the parts of a picture. 1.5: listed values and the nearest of them, rotations in
#: planes, cosine transforms, places that numbers name. 1.6: what is carried from layer to layer.
LANGUAGE_VERSION = "1.6"
SCHEMA = "unipelt-ir/1.2"
TYPES_SCHEMA = "unipelt-types/1.1"
#: 1.1: where a site's numbers lie.
SITES_SCHEMA = "unipelt-sites/1.1"
#: 1.2: frozen draws are left out.
FORMAT = "unipelt-adapter/1.2"

UPDATE = "pip install -U unipelt"


class Version(NamedTuple):
    major: int
    minor: int

    @staticmethod
    def of(value: Any) -> Version | None:
        """``"1.1"``, or ``1`` and ``"1"`` as the first versions wrote it; None where it is no version."""
        if isinstance(value, int) and not isinstance(value, bool):
            return Version(value, 0)
        parts = value.split(".") if isinstance(value, str) else []
        if not 1 <= len(parts) <= 2 or not all(p.isascii() and p.isdigit() and len(p) < 6 for p in parts):
            return None
        return Version(int(parts[0]), int(parts[1]) if len(parts) == 2 else 0)


def named(text: Any, own: str) -> Version | None:
    """The version in a text such as ``unipelt-ir/1.1`` if it has the name of ``own``."""
    name, slash, version = text.partition("/") if isinstance(text, str) else ("", "", "")
    return Version.of(version) if slash and name == own.partition("/")[0] else None


def refusal(found: Version, own: str) -> str:
    """Why something of that version cannot be read here, where ``own`` is the version of this unipelt; "" if it can."""
    mine = Version.of(own.rpartition("/")[2])
    assert mine is not None
    if found.major == mine.major and found.minor <= mine.minor:
        return ""
    age = "newer" if found > mine else "older"
    return f"{found.major}.{found.minor} is {age} than what this version of unipelt reads: {mine.major}.0 to {mine.major}.{mine.minor}"
