"""Transforms of matrices: from frequencies, from wavelets (`unipelt.language.types.transforms`)."""

from __future__ import annotations

from .of_one import of_one

for _name in ("fft2", "ifft2", "idwt2"):
    of_one(_name, lambda sizes: sizes)
