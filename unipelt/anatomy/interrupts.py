"""Ctrl-C may come between any two steps: what must not be left half-done is made of steps that may be repeated, and is repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def ended_by(end: Callable[[], object]) -> Iterator[None]:
    """A block at whose end something is called, which may be repeated: it is called again where Ctrl-C came before it was done.

    Only there: a second Ctrl-C is not expected, and a call that needs none would be another that the first can break off.
    """
    done = False
    try:
        try:
            yield
        finally:
            end()
            done = True
    finally:
        if not done:
            end()


def finish(commit: Callable[[], object]) -> None:
    """Carries out steps that may be repeated. Where they are interrupted, they are carried out again before the error goes on."""
    try:
        commit()
    except BaseException:
        commit()
        raise
