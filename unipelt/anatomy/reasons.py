"""Why a site is not what a map says."""

from __future__ import annotations


class Open(str):
    """A reason why nothing can be said of a site, for or against."""
