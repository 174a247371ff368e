"""Words that take matrices apart or invert them, on both sides."""

from __future__ import annotations

from typing import Any

import torch

from ..code import Code, Unwritten, Written
from ..named import Named, Value
from .evaluated import FUNCTIONS, function
from .written import WORDS, Writing, word


@function("svd")
def _svd(context: Any, a: Named) -> Any:
    """Singular vectors have arbitrary signs: the largest entry of each column of U is made positive."""
    u, s, vh = torch.linalg.svd(a.data, full_matrices=False)
    largest = u.gather(-2, u.abs().argmax(-2, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).to(u.dtype)
    return tuple(Named(t, a.axes) for t in (u * sign, s, vh.mT * sign))


@function("qr")
def _qr(context: Any, a: Named) -> Any:
    q, r = torch.linalg.qr(a.data)
    sign = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(r.dtype)
    return Named(q * sign[..., None, :], a.axes), Named(r * sign[..., None], a.axes)


def _inverse(name: str, of: Any, text: str, turned: bool) -> None:
    def evaluated(context: Any, a: Named) -> Value:
        return Named(of(a.data), a.axes)

    def written(w: Writing, a: Written) -> Written:
        assert isinstance(a, Code)
        *front, n, m = a.sizes
        return Code(f"{text}({a.text})", a.axes, (*front, m, n) if turned else a.sizes)

    FUNCTIONS[name], WORDS[name] = evaluated, written


_inverse("inverse", torch.linalg.inv, "torch.linalg.inv", False)
_inverse("pinv", torch.linalg.pinv, "torch.linalg.pinv", True)


@word("svd", "qr")
def _apart(w: Writing, a: Written) -> Written:
    raise Unwritten("what is computed once, where a method is attached")
