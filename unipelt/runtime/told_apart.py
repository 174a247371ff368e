"""Learned rows among the keys of one attention whose scores, or what they yield, a scalar of each query multiplies.

With one query the scalars multiply the rows. With several, the queries of such rows are others than the tokens', and what the rows
yield must be told apart from the rest: both have entries of their own, behind those of the tokens, and zeros in the others'. One
softmax is over all, and the kernel stays what it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from .edits import Rows
from .kernels import Call

#: So many entries a head may have for the fast kernels.
WIDEST = 256


def told_apart(
    call: Call, rows: Sequence[Rows]
) -> tuple[Call, list[tuple[torch.Tensor, torch.Tensor]], list[torch.Tensor | None]]:
    """The call and keys and values of the rows as the kernel takes them, and by what each part of the output that is told apart is multiplied."""
    if call.query.shape[2] == 1:
        return call, [(k if a is None else k * a, v if b is None else v * b) for k, v, a, b in rows], []
    gated = [i for i, (_, _, a, b) in enumerate(rows) if a is not None or b is not None]
    if not gated:
        return call, [(k, v) for k, v, _, _ in rows], []
    d = call.query.shape[-1]
    more = d * len(gated)
    queries = [call.query if a is None else call.query * a.to(call.query.dtype) for a in (rows[i][2] for i in gated)]
    pairs = []
    for i, (k, v, _, _) in enumerate(rows):
        before = d * (gated.index(i) + 1) if i in gated else 0
        pairs.append((F.pad(k, (before, more - before)), F.pad(v, (before, more - before))))
    beside = call._replace(
        query=torch.cat([call.query, *queries], -1), key=F.pad(call.key, (0, more)), value=F.pad(call.value, (0, more)),
        kwargs={**call.kwargs, "scaling": call.scale},
    )  # fmt: skip
    return beside, pairs, [rows[i][3] for i in gated]


def together(out: torch.Tensor, shares: Sequence[torch.Tensor | None], width: int) -> torch.Tensor:
    """The output [batch, tokens, heads, entries] with its parts added, each multiplied at each query."""
    own, *others = out.split(width, -1)
    for part, share in zip(others, shares, strict=True):
        own = own + part if share is None else torch.addcmul(own, part, share.transpose(1, 2).to(own.dtype))
    return own
