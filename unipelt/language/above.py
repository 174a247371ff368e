"""What a method shows of itself by way of packages above the language, each looked up by name when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any


def view(name: str, module: str = "notebook") -> Callable[..., Any]:
    """A function of `unipelt.notebook`, or of another module of the package, that shows a value."""
    return getattr(import_module(f"unipelt.{module}"), name)
