"""Starting values: counter-based draws (seed, tensor's name), so they depend on neither order, device nor neighbours."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence

import torch

from ..language.report.diagnostics import error
from ..language.syntax.nodes import Number
from ..language.types.values import Distribution


def generator(seed: int, name: str) -> torch.Generator:
    """A generator for one tensor; equal for equal seed and name."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _number(d: Distribution, i: int) -> float:
    a = d.args[i]
    assert isinstance(a, Number)
    return float(a.value)


def _whole(d: Distribution) -> int:
    """The whole number of a distribution's only argument."""
    return int(_number(d, 0))


def _distinct(n: int, below: int, g: torch.Generator) -> torch.Tensor:
    """n distinct whole numbers in a random order, without a list of all those below where they are few."""
    if 4 * n >= below:
        return torch.randperm(below, generator=g)[:n]
    found = torch.randint(below, (2 * n,), generator=g)
    while True:
        values, which = found.unique(return_inverse=True)
        if len(values) >= n:
            break
        found = torch.cat([found, torch.randint(below, (2 * n,), generator=g)])
    first = torch.full_like(values, len(found)).scatter_reduce(0, which, torch.arange(len(found)), "amin")
    return found[first.sort().values[:n]]  # those that were drawn first


def draw(
    d: Distribution,
    copies: Sequence[int],
    sizes: Sequence[int],
    g: torch.Generator,
    embeddings: Callable[[Distribution, int, torch.Generator], torch.Tensor] | None = None,
) -> torch.Tensor:
    """A float32 tensor [*copies, *sizes], int64 where it holds whole numbers; fans are those of the sizes: [d_in, r] has fan_in d_in.

    ``embeddings(distribution, rows, generator)`` gives word embeddings [rows, d] for the starts that are made of them.
    """  # fmt: skip
    shape = (*copies, *sizes)
    t = torch.empty(shape)
    fan_in = sizes[0] if sizes else 1
    fan_out = sizes[-1] if sizes else 1
    match d.name:
        case "zeros":
            return t.zero_()
        case "ones":
            return t.fill_(1.0)
        case "constant":
            return t.fill_(_number(d, 0))
        case "normal":
            mean, std = (_number(d, 0), _number(d, 1)) if len(d.args) == 2 else (0.0, _number(d, 0))
            return t.normal_(mean, std, generator=g)
        case "truncated_normal":
            std = _number(d, 0)
            return torch.nn.init.trunc_normal_(t, 0.0, std, -2 * std, 2 * std, generator=g)
        case "uniform":
            return t.uniform_(_number(d, 0), _number(d, 1), generator=g)
        case "kaiming_uniform":
            bound = math.sqrt(6 / ((1 + _number(d, 0) ** 2) * fan_in))
            return t.uniform_(-bound, bound, generator=g)
        case "xavier_uniform":
            bound = math.sqrt(6 / (fan_in + fan_out))
            return t.uniform_(-bound, bound, generator=g)
        case "xavier_normal":
            return t.normal_(0.0, math.sqrt(2 / (fan_in + fan_out)), generator=g)
        case "torch_linear":
            bound = 1 / math.sqrt(_number(d, 0))
            return t.uniform_(-bound, bound, generator=g)
        case "orthogonal":
            rows, columns = sizes[-2:]  # each matrix of a stack by itself
            flat = t.reshape(-1, rows, columns)
            for i in range(flat.shape[0]):
                q, r = torch.linalg.qr(torch.randn(max(rows, columns), min(rows, columns), generator=g))
                q = q * r.diagonal().sign()
                flat[i] = q if rows >= columns else q.T
            return t
        case "identity":
            return torch.eye(*sizes[-2:]).expand(shape).clone()
        case "integers":
            return torch.randint(_whole(d), shape, generator=g)
        case "permutation" | "choice":
            found = [_distinct(math.prod(sizes), _whole(d), g) for _ in range(math.prod(copies))]
            return torch.stack(found).reshape(shape)
        case "sampled_tokens" | "tokens" | "label_words":
            if embeddings is None or len(sizes) < 2:
                raise error("E0520", f"`{d.name}` starts from word embeddings, and this place has none")
            found = [embeddings(d, sizes[-2], g) for _ in range(math.prod(sizes[:-2]))]
            return torch.stack(found).reshape(tuple(sizes)).expand(shape).clone()
    raise NotImplementedError(f"the language knows a distribution `{d.name}` that nothing here draws")
