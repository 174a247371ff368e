"""Transforms of matrices: from frequencies, from wavelets (`unipelt.language.types.transforms`)."""

from __future__ import annotations

from typing import Any

from .. import helpers
from ..code import Code, Written
from ..named import Named, Value
from .evaluated import function
from .written import Writing, word


@function("ifft2")
def ifft2(context: Any, a: Named) -> Value:
    return Named(helpers.ifft2(a.data), a.axes)


@word("ifft2")
def _ifft2(w: Writing, a: Written) -> Written:
    assert isinstance(a, Code)
    return Code(w.helper("ifft2", a.text), a.axes, a.sizes)


@function("fft2")
def fft2(context: Any, a: Named) -> Value:
    return Named(helpers.fft2(a.data), a.axes)


@word("fft2")
def _fft2(w: Writing, a: Written) -> Written:
    assert isinstance(a, Code)
    return Code(w.helper("fft2", a.text), a.axes, a.sizes)


@function("idwt2")
def idwt2(context: Any, a: Named) -> Value:
    return Named(helpers.idwt2(a.data), a.axes)


@word("idwt2")
def _idwt2(w: Writing, a: Written) -> Written:
    assert isinstance(a, Code)
    return Code(w.helper("idwt2", a.text), a.axes, a.sizes)
