"""Sources of the random numbers that starts are made of: torch's generator for what is trained, and counted numbers for what stays
as it is drawn, which is drawn again wherever it is needed.

Counted numbers are mixed whole numbers (`helpers.mixed_bits`) of a key and a count. They depend neither on torch's generators nor on the
processor's vector unit, so that they are the same everywhere, and for ever: a saved adapter has the seed of them alone.
"""

from __future__ import annotations

import hashlib
import math
from typing import Protocol

import torch

from . import helpers

#: Where they are made, whatever torch's default device is.
_CPU = torch.device("cpu")
#: So many numbers are made at a time: what is between takes some 30 bytes for each.
_PART = 2**20
#: The step of SplitMix64 from one state to the next (Steele et al. 2014), as a signed number.
_STEP = -7046029254386353131


class Source(Protocol):
    """Random numbers on the CPU: float32, and whole ones in int64."""

    def uniform(self, shape: tuple[int, ...], low: float, high: float) -> torch.Tensor: ...

    def normal(self, shape: tuple[int, ...], mean: float = 0.0, std: float = 1.0) -> torch.Tensor: ...

    def truncated(self, shape: tuple[int, ...], std: float) -> torch.Tensor:
        """Normal numbers within two deviations of 0."""
        ...

    def integers(self, shape: tuple[int, ...], below: int) -> torch.Tensor: ...

    def permutation(self, n: int) -> torch.Tensor: ...


def _digest(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "little")


class Generated:
    """The numbers of a generator of torch's for one tensor; equal for equal seed and name."""

    def __init__(self, seed: int, name: str):
        self.generator = torch.Generator().manual_seed(_digest(seed, name) >> 1)

    def uniform(self, shape: tuple[int, ...], low: float, high: float) -> torch.Tensor:
        return torch.empty(shape, device=_CPU).uniform_(low, high, generator=self.generator)

    def normal(self, shape: tuple[int, ...], mean: float = 0.0, std: float = 1.0) -> torch.Tensor:
        return torch.empty(shape, device=_CPU).normal_(mean, std, generator=self.generator)

    def truncated(self, shape: tuple[int, ...], std: float) -> torch.Tensor:
        return torch.nn.init.trunc_normal_(
            torch.empty(shape, device=_CPU), 0.0, std, -2 * std, 2 * std, generator=self.generator
        )

    def integers(self, shape: tuple[int, ...], below: int) -> torch.Tensor:
        return torch.randint(below, shape, generator=self.generator, device=_CPU)

    def permutation(self, n: int) -> torch.Tensor:
        return torch.randperm(n, generator=self.generator, device=_CPU)


class Counted:
    """The numbers of a key and a count, for one tensor; equal for equal seed and name.

    All is computed in float64 and rounded once, so that the last bits of a processor's functions do not show.
    """

    def __init__(self, seed: int, name: str):
        self.key = torch.tensor((_digest(seed, name) >> 1) - 2**62, device=_CPU)
        self.used = 0

    def _bits(self, n: int) -> torch.Tensor:
        count = torch.arange(self.used, self.used + n, device=_CPU)
        self.used += n
        return helpers.mixed_bits(helpers.mixed_bits(self.key) + count * _STEP)

    def _between(self, n: int, low: float, high: float) -> torch.Tensor:
        """n numbers in float64: the middles of 2^23 equal parts of the range, so never its ends."""
        return low + (high - low) * ((((self._bits(n) >> 41) & 0x7FFFFF) + 0.5) * 2.0**-23)

    def _normal(self, n: int, within: float, mean: float, std: float) -> torch.Tensor:
        """n normal numbers, those alone that lie within so many of a normal number's quantiles around 0: all for 1."""
        return mean + std * (2**0.5 * torch.erfinv(self._between(n, -within, within)))

    def _parts(self, shape: tuple[int, ...]) -> list[int]:
        n = math.prod(shape)
        return [min(_PART, n - i) for i in range(0, n, _PART)] or [0]

    def uniform(self, shape: tuple[int, ...], low: float, high: float) -> torch.Tensor:
        return torch.cat([self._between(n, low, high).float() for n in self._parts(shape)]).reshape(shape)

    def normal(self, shape: tuple[int, ...], mean: float = 0.0, std: float = 1.0) -> torch.Tensor:
        return torch.cat([self._normal(n, 1.0, mean, std).float() for n in self._parts(shape)]).reshape(shape)

    def truncated(self, shape: tuple[int, ...], std: float) -> torch.Tensor:
        within = math.erf(2**0.5)  # of a normal number, to lie within two deviations of 0
        return torch.cat([self._normal(n, within, 0.0, std).float() for n in self._parts(shape)]).reshape(shape)

    def integers(self, shape: tuple[int, ...], below: int) -> torch.Tensor:
        return torch.cat([(self._bits(n) & (2**62 - 1)) % below for n in self._parts(shape)]).reshape(shape)

    def permutation(self, n: int) -> torch.Tensor:
        return self._bits(n).argsort(stable=True)
