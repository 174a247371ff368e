"""Starting values: draws that follow from the seed and the tensor's name, so they depend on neither order, device nor neighbours."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from ..language.report.diagnostics import error
from ..language.syntax.nodes import Number
from ..language.types.values import Distribution
from .plan import PlannedTensor
from .random import Counted, Generated, Source


#: Word embeddings [rows, d] for a distribution that is made of them.
Embeddings = Callable[[Distribution, int, Source], torch.Tensor]


def start(t: PlannedTensor, seed: int, embeddings: Embeddings | None = None) -> torch.Tensor:
    """What a tensor of a plan that names a distribution starts with (see `draw`). One that stays so is made of counted numbers."""
    assert t.start is not None
    source: Source = Counted(seed, t.name) if t.redrawn else Generated(seed, t.name)
    return draw(t.start, t.copies, t.sizes, source, embeddings)


def _number(d: Distribution, i: int) -> float:
    a = d.args[i]
    assert isinstance(a, Number)
    return float(a.value)


def _whole(d: Distribution) -> int:
    """The whole number of a distribution's only argument."""
    return int(_number(d, 0))


def _distinct(n: int, below: int, g: Source) -> torch.Tensor:
    """n distinct whole numbers in a random order, without a list of all those below where they are few."""
    if 4 * n >= below:
        return g.permutation(below)[:n]
    found = g.integers((2 * n,), below)
    while True:
        values, which = found.unique(return_inverse=True)
        if len(values) >= n:
            break
        found = torch.cat([found, g.integers((2 * n,), below)])
    first = torch.full_like(values, len(found)).scatter_reduce(0, which, torch.arange(len(found)), "amin")
    return found[first.sort().values[:n]]  # those that were drawn first


def draw(
    d: Distribution, copies: Sequence[int], sizes: Sequence[int], g: Source, embeddings: Embeddings | None = None
) -> torch.Tensor:
    """A float32 tensor [*copies, *sizes], int64 where it holds whole numbers; fans are those of the sizes: [d_in, r] has fan_in d_in.

    ``embeddings(distribution, rows, source)`` gives word embeddings [rows, d] for the starts that are made of them.
    """  # fmt: skip
    shape = (*copies, *sizes)
    fan_in = sizes[0] if sizes else 1
    fan_out = sizes[-1] if sizes else 1
    match d.name:
        case "zeros":
            return torch.zeros(shape)
        case "ones":
            return torch.ones(shape)
        case "constant":
            return torch.full(shape, _number(d, 0))
        case "normal":
            mean, std = (_number(d, 0), _number(d, 1)) if len(d.args) == 2 else (0.0, _number(d, 0))
            return g.normal(shape, mean, std)
        case "truncated_normal":
            return g.truncated(shape, _number(d, 0))
        case "uniform":
            return g.uniform(shape, _number(d, 0), _number(d, 1))
        case "kaiming_uniform":
            bound = math.sqrt(6 / ((1 + _number(d, 0) ** 2) * fan_in))
            return g.uniform(shape, -bound, bound)
        case "xavier_uniform":
            bound = math.sqrt(6 / (fan_in + fan_out))
            return g.uniform(shape, -bound, bound)
        case "xavier_normal":
            return g.normal(shape, 0.0, math.sqrt(2 / (fan_in + fan_out)))
        case "torch_linear":
            bound = 1 / math.sqrt(_number(d, 0))
            return g.uniform(shape, -bound, bound)
        case "orthogonal":
            rows, columns = sizes[-2:]  # each matrix of a stack by itself
            flat = torch.empty(math.prod(shape[:-2]), rows, columns)
            for i in range(flat.shape[0]):
                q, r = torch.linalg.qr(g.normal((max(rows, columns), min(rows, columns))))
                q = q * r.diagonal().sign()
                flat[i] = q if rows >= columns else q.T
            return flat.reshape(shape)
        case "identity":
            return torch.eye(*sizes[-2:]).expand(shape).clone()
        case "integers":
            return g.integers(shape, _whole(d))
        case "listed":
            return torch.tensor([int(_number(d, i)) for i in range(len(d.args))]).reshape(*sizes).expand(shape).clone()
        case "values":
            return torch.tensor([_number(d, i) for i in range(len(d.args))]).reshape(*sizes).expand(shape).clone()
        case "permutation" | "choice":
            found = [_distinct(math.prod(sizes), _whole(d), g) for _ in range(math.prod(copies))]
            return torch.stack(found).reshape(shape)
        case "sampled_tokens" | "tokens" | "label_words":
            if embeddings is None or len(sizes) < 2:
                raise error("E0520", f"`{d.name}` starts from word embeddings, and this place has none")
            found = [embeddings(d, sizes[-2], g) for _ in range(math.prod(sizes[:-2]))]
            return torch.stack(found).reshape(tuple(sizes)).expand(shape).clone()
        case "given" | "given_integers":
            raise error("E0568", "this method has the values of trained adapters, and none are given here",
                        help="attach its folder, which has them: unipelt.attach(model, folder)")  # fmt: skip
    raise NotImplementedError(f"the language knows a distribution `{d.name}` that nothing here draws")
