"""Plain torch functions behind the words that are no single call of torch's. Generated code calls them, and carries their text
where it must stand alone: each uses nothing but torch.

Shapes: a tensor's dimensions are its named axes and then its sizes (see `named`); ``dim`` is the place of the axis ``token``,
``mask`` is 1 at real tokens [batch, tokens] or None where all are real.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch


def real_tokens(mask: torch.Tensor, t: torch.Tensor, dim: int) -> torch.Tensor:
    """The mask of the tokens of ``t`` (the last ones, where a cache holds the others), shaped to multiply it; batch is ``t``'s first axis."""
    mask = mask[..., -t.shape[dim] :].to(t.dtype)
    return mask.reshape(mask.shape[0], *[1] * (dim - 1), mask.shape[-1], *[1] * (t.dim() - dim - 1))


def lean_product(x: torch.Tensor, W: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ W + b``. An ``x`` that a layer norm of torch yields is not kept for the backward pass, but computed again there from
    what the norm keeps."""
    norm: Any = x.grad_fn
    hooks = _hooks_of_kept() if type(norm).__name__ == "NativeLayerNormBackward0" else None
    # What others keep for the norm they may give but once; and x may have been changed since.
    if hooks is None or x._version or not isinstance(getattr(norm._raw_saved_input, "data", None), torch.Tensor):
        return _narrow_product(x, W, b)
    at, entries, dtype = x.data_ptr(), x.numel(), x.dtype
    keep, give = hooks

    def pack(t: torch.Tensor) -> object:
        if t.data_ptr() == at and t.numel() == entries and t.dtype == dtype and t.is_contiguous():
            return t.shape
        return (keep(t),)

    def unpack(kept: Any) -> torch.Tensor:
        if isinstance(kept, torch.Size):
            return output_of_norm(norm).to(dtype).reshape(kept)
        return give(kept[0])

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return _narrow_product(x, W, b)


def _narrow_product(x: torch.Tensor, W: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ W + b``. Where each of a few columns lies in a piece, the kernels for CPUs take a third of the time, forward and backward. Whether
    W is laid so does not depend on ``x``: parts of a batch are summed in the order of the whole."""
    if W.dim() == 2 and W.shape[1] < 16 and W.shape[0] >= 256 and W.device.type == "cpu":
        return torch.nn.functional.linear(x, W.T.contiguous(), b)
    return x @ W if b is None else torch.nn.functional.linear(x, W.mT, b)


def _hooks_of_kept() -> tuple[Callable, Callable] | None:
    """What is done in this place with what is kept for the backward pass; None under torch.func, which allows no such hooks, and in
    a checkpoint, which keeps nothing and counts what is kept."""
    if not torch._C._autograd._saved_tensors_hooks_is_enabled():  # type: ignore[attr-defined]
        return None
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    if hooks is None:
        return _as_it_is, _as_it_is
    return None if hooks[0].__module__ == "torch.utils.checkpoint" else hooks


def _as_it_is(t: torch.Tensor) -> torch.Tensor:
    return t


@torch.no_grad()
def output_of_norm(node: Any) -> torch.Tensor:
    """What a layer norm yielded, from what its node in the graph keeps."""
    weight, bias = node._saved_weight, node._saved_bias
    out = (node._saved_input - node._saved_result1).mul_(node._saved_result2)  # new memory costs more than these sums
    out = out if weight is None else out.mul_(weight)
    return out if bias is None else out.add_(bias)


def sum_of_real(t: torch.Tensor, mask: torch.Tensor | None, dim: int) -> torch.Tensor:
    """The sum over the real tokens."""
    return t.sum(dim) if mask is None else (t * real_tokens(mask, t, dim)).sum(dim)


def mean_of_real(t: torch.Tensor, mask: torch.Tensor | None, dim: int) -> torch.Tensor:
    """The mean over the real tokens; 0 where there is none."""
    if mask is None:
        return t.mean(dim)
    weights = real_tokens(mask, t, dim)
    return (t * weights).sum(dim) / weights.sum(dim).clamp(min=1)


def running_mean(t: torch.Tensor, dim: int) -> torch.Tensor:
    """At each token the mean over the tokens up to it."""
    steps = torch.arange(1, t.shape[dim] + 1, device=t.device, dtype=t.dtype)
    return t.cumsum(dim) / steps.reshape([-1 if i == dim else 1 for i in range(t.dim())])


def first_of_real(t: torch.Tensor, mask: torch.Tensor | None, dim: int) -> torch.Tensor:
    """The value at the first real token."""
    if mask is None:
        return t.select(dim, 0)
    return at_token(t, mask[..., -t.shape[dim] :].to(torch.int64).argmax(-1), dim)


def last_of_real(t: torch.Tensor, mask: torch.Tensor | None, dim: int) -> torch.Tensor:
    """The value at the last real token; at the first one where there is none."""
    n = t.shape[dim]
    if mask is None:
        return t.select(dim, n - 1)
    steps = torch.arange(n, device=t.device)
    return at_token(t, torch.where(mask[..., -n:] != 0, steps, 0).amax(-1), dim)


def scatter(values: torch.Tensor, places: torch.Tensor, count: int, sizes: list[int], rest: int = 0) -> torch.Tensor:
    """Zeros of these sizes with the values, of ``count`` sizes, at the places, which count entries row by row; where they meet they
    are added up. In front may stand axes. With ``rest`` each value has so many sizes of its own: it is a row, for instance."""
    own = values.shape[values.dim() - rest :] if rest else ()
    values, places = torch.broadcast_tensors(values, places.reshape(*places.shape, *(1 for _ in own)))
    lead = values.shape[: values.dim() - count - rest]
    filled = values.new_zeros(*lead, math.prod(sizes), *own)
    at = places.reshape(*lead, -1, *own)
    filled = filled.scatter_add(len(lead), at, values.reshape(*lead, -1, *own))
    return filled.reshape(*lead, *sizes, *own)


def top_indices(t: torch.Tensor, count: int, k: int) -> torch.Tensor:
    """Where the k largest entries stand, the largest first, counted row by row over the last ``count`` dimensions."""
    return t.flatten(t.dim() - count).topk(k, dim=-1).indices


def nearest_indices(parts: list[torch.Tensor], sizes: list[int]) -> torch.Tensor:
    """The places nearest to some numbers, in one direction or in rows and columns, counted row by row."""
    found = [t.detach().nan_to_num(0.0).round().clamp(0, n - 1).to(torch.int64) for t, n in zip(parts, sizes)]
    return found[0] if len(found) == 1 else found[0] * sizes[1] + found[1]


def nearest(x: torch.Tensor, table: torch.Tensor, count: int) -> torch.Tensor:
    """For each entry of x, whose last ``count`` dimensions are its own, the nearest of the numbers in the table's last one, of two the
    smaller. One table is looked up; of several each entry meets one number after another: nothing is as large as all pairs."""
    table = table.sort(-1).values
    if table.dim() == 1:
        between = (table[1:].detach() + table[:-1].detach()) / 2
        return table[torch.bucketize(x.detach(), between)]
    first, *others = table.reshape(*table.shape[:-1], *(1 for _ in range(count)), table.shape[-1]).unbind(-1)
    best = first.expand(torch.broadcast_shapes(first.shape, x.shape))
    for number in others:
        best = torch.where((x - number).abs() < (x - best).abs(), number, best)
    return best


def fft2(t: torch.Tensor) -> torch.Tensor:
    """The real part of the Fourier transform of the last two dimensions; a copy, since a view of it would keep the imaginary part, too."""
    return torch.fft.fft2(t.float() if t.dtype.itemsize < 4 else t).real.to(t.dtype, copy=True)


def ifft2(t: torch.Tensor) -> torch.Tensor:
    """The real part of the inverse Fourier transform of the last two dimensions; a copy, as of `fft2`."""
    return torch.fft.ifft2(t.float() if t.dtype.itemsize < 4 else t).real.to(t.dtype, copy=True)


def idct2(t: torch.Tensor) -> torch.Tensor:
    """The orthonormal inverse cosine transform of the last two dimensions, each by a Fourier transform of twice its length."""
    found = t.float() if t.dtype.itemsize < 4 else t
    for dim in (-2, -1):
        n = found.shape[dim]
        k = torch.arange(n, dtype=found.dtype, device=found.device)
        size = torch.full_like(k, math.sqrt(2 / n))
        size[0] = math.sqrt(1 / n)
        turned = torch.polar(size, math.pi / (2 * n) * k)
        spectrum = found * (turned[:, None] if dim == -2 else turned)
        found = torch.fft.ifft(spectrum, n=2 * n, dim=dim, norm="forward").narrow(dim, 0, n).real
    return found.to(t.dtype, copy=True)


def givens(z: torch.Tensor, t: torch.Tensor, blocks: bool) -> torch.Tensor:
    """The last dimension of z with its pairs rotated, or multiplied from the right by blocks [.., 2, 2], along a tree: neighbours, then
    every second entry with the next such, and so on. What stands second in a pair is done with; one entry is left at the end."""
    if blocks:
        a, b, c, d = t.flatten(-2).unbind(-1)
    else:
        a, b = t.cos(), t.sin()
        c, d = -b, a
    done, places = [], []
    left, at, used = z, torch.arange(z.shape[-1], device=z.device), 0
    while (pairs := left.shape[-1] // 2) > 0:
        first, second, alone = left[..., : 2 * pairs : 2], left[..., 1 : 2 * pairs : 2], left[..., 2 * pairs :]
        own = [x[..., used : used + pairs] for x in (a, b, c, d)]
        turned = first * own[0] + second * own[2]
        done.append(first * own[1] + second * own[3])
        places.append(at[1 : 2 * pairs : 2])
        left = torch.cat([turned, alone.expand(*turned.shape[:-1], alone.shape[-1])], -1)
        at = torch.cat([at[: 2 * pairs : 2], at[2 * pairs :]])
        used += pairs
    return torch.cat([left, *done], -1).index_select(-1, torch.cat([at, *places]).argsort())


def idwt2(t: torch.Tensor) -> torch.Tensor:
    """One level of the inverse Haar wavelet transform of the last two dimensions: means in the first half, differences in the second."""
    for dim in (-2, -1):
        mean, difference = t.chunk(2, dim)
        t = torch.stack([mean + difference, mean - difference], dim).flatten(dim - 1, dim) / math.sqrt(2)
    return t


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, causal: bool
) -> torch.Tensor:
    """Scaled dot-product attention among the tokens [batch, .., tokens, d], the earlier ones alone where ``causal``. Pads are not read,
    but for a pad's own self, which has nothing else to read where pads stand at the left."""
    n = q.shape[-2]
    lead = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
    q, k, v = (t.expand(*lead, *t.shape[-2:]) for t in (q, k, v))
    seen = torch.ones(n, n, dtype=torch.bool, device=q.device)
    seen = seen.tril() if causal else seen
    if mask is not None:
        real = mask[..., -n:] != 0
        seen = seen & real.reshape(real.shape[0], *[1] * (len(lead) - 1), 1, n)
        seen = seen | torch.eye(n, dtype=torch.bool, device=q.device)
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)


def conv(z: torch.Tensor, kernel: torch.Tensor, full: bool, mask: torch.Tensor | None, causal: bool) -> torch.Tensor:
    """A convolution along the tokens of z [batch, .., tokens, d] with a kernel [.., k, d], or [.., k, d, e] where it is ``full``: what
    it meets last is the token itself where ``causal``, and in its middle elsewhere. Pads and what lies outside count as 0."""
    z = z if mask is None else z * real_tokens(mask, z, z.dim() - 2)
    at, n = kernel.dim() - (3 if full else 2), z.shape[-2]
    k = kernel.shape[at]
    before = k - 1 if causal else k // 2
    z = torch.nn.functional.pad(z, (0, 0, before, k - 1 - before))
    total = torch.zeros((), dtype=z.dtype, device=z.device)
    for i, tap in enumerate(kernel.unbind(at)):
        row = z.narrow(-2, i, n)
        total = total + (row @ tap if full else row * tap.unsqueeze(-2))
    return total


def conv2d(
    z: torch.Tensor, kernel: torch.Tensor, full: bool, mask: torch.Tensor | None, grid: torch.Tensor
) -> torch.Tensor:
    """A convolution over the parts of a picture: of z [batch, .., tokens, d] those at ``grid`` [rows, columns], with a kernel
    [.., a, b, d], or [.., a, b, d, e] where it is ``full``, whose middle meets the part itself. Any other token meets the middle alone."""
    z = z if mask is None else z * real_tokens(mask, z, z.dim() - 2)
    kernel = kernel if full else kernel.unsqueeze(-1)
    lead = torch.broadcast_shapes((1, *z.shape[1:-2]), kernel.shape[:-4])[1:]
    z = z.expand(z.shape[0], *lead, *z.shape[-2:])
    kernel = kernel.expand(1, *lead, *kernel.shape[-4:])[0]
    a, b, d, e = kernel.shape[-4:]
    middle = kernel[..., a // 2, b // 2, :, :]
    out = z @ middle if full else z * middle.mT
    many, (rows, columns) = math.prod(lead), grid.shape
    parts = z[..., grid.flatten(), :].mT.reshape(z.shape[0], many * d, rows, columns)
    parts = torch.nn.functional.pad(parts, (b // 2, (b - 1) // 2, a // 2, (a - 1) // 2))
    taps = (
        kernel.reshape(many, a, b, d, e).permute(0, 4, 3, 1, 2)
        if full
        else kernel.reshape(many, a, b, d, 1).permute(0, 3, 4, 1, 2)
    )
    found = torch.nn.functional.conv2d(parts, taps.flatten(0, 1), groups=many if full else many * d)
    found = found.reshape(*out.shape[:-2], out.shape[-1], rows * columns).mT
    return out.index_copy(-2, grid.flatten(), found.to(out.dtype))


def at_token(t: torch.Tensor, index: torch.Tensor, dim: int) -> torch.Tensor:
    """For each example of the batch, the first axis, the value at the token of its index [batch]."""
    rows = torch.arange(t.shape[0], device=t.device)
    return t.movedim(dim, 1)[rows, index.expand(t.shape[0])]


def join_last(*parts: torch.Tensor) -> torch.Tensor:
    """Tensors joined along their last size; their other dimensions are broadcast."""
    lead = torch.broadcast_shapes(*(p.shape[:-1] for p in parts))
    return torch.cat([p.expand(*lead, p.shape[-1]) for p in parts], -1)


def lstm(x: torch.Tensor, W: torch.Tensor, U: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Hochreiter and Schmidhuber 1997 with a forget gate, from a state of zeros; one step for each row of ``x`` [..., l, d]."""
    ahead = x @ W + b
    hidden = cell = ahead.new_zeros(*x.shape[:-2], U.shape[0])
    states = []
    for step in ahead.unbind(-2):
        i, f, g, o = (step + hidden @ U).chunk(4, -1)
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        hidden = torch.sigmoid(o) * torch.tanh(cell)
        states.append(hidden)
    return torch.stack(states, -2)


def mixed_bits(z: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finaliser (Steele et al. 2014): every bit of a whole number changes about half of those of the result."""
    z = (z ^ ((z >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    z = (z ^ ((z >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return z ^ ((z >> 31) & 0x1FFFFFFFF)


def uniform_numbers(seed: torch.Tensor, key: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Numbers between 0 and 1 in float32, the same for a seed, a key and a shape: 23 bits and a half, so neither 0 nor 1."""
    n = 1
    for length in shape:
        n *= length
    first = mixed_bits(seed + key)
    bits = mixed_bits(first + torch.arange(n, device=seed.device) * -7046029254386353131)
    return ((((bits >> 41) & 0x7FFFFF).to(torch.float32) + 0.5) * 2.0**-23).reshape(shape)


def normal_numbers(seed: torch.Tensor, key: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal numbers in float32, the same for a seed, a key and a shape."""
    return torch.erfinv(2 * uniform_numbers(seed, key, shape) - 1) * 2**0.5


def put_rows(rows: torch.Tensor, h: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """``h`` [batch, tokens, d] with the rows [.., l, d] at ``places`` [batch, l], where it has placeholders."""
    index = places[..., None].expand(-1, -1, h.shape[-1])
    return h.scatter(1, index, rows.to(h.dtype).expand(index.shape))


def fill_rows(rows: torch.Tensor, h: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """``h`` [batch, tokens, d] with row k - 1 where ``places`` [batch, tokens] is k; 0 leaves the token as it is."""
    data = rows.to(h.dtype)
    table = torch.cat([data.new_zeros(*data.shape[:-2], 1, data.shape[-1]), data], -2)
    if table.dim() == 3:  # rows of each example's own
        found = table.gather(1, places[..., None].expand(-1, -1, data.shape[-1]))
    else:  # a look-up whose gradient leaves the tokens that stay out
        found = torch.nn.functional.embedding(places, table, padding_idx=0)
    return torch.where(places[..., None] > 0, found, h)


def kron(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[.., p, q] and [.., s, t] as [.., p s, q t]: each entry of ``a`` times the whole of ``b``."""
    return (a[..., :, None, :, None] * b[..., None, :, None, :]).flatten(-4, -3).flatten(-2)


def kron_vectors(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[.., p] and [.., s] as [.., p s]."""
    return (a[..., :, None] * b[..., None, :]).flatten(-2)


def skew(t: torch.Tensor, n: int) -> torch.Tensor:
    """[.., n (n - 1) / 2] as [.., n, n]: row by row above the diagonal, negated below it."""
    i, j = torch.triu_indices(n, n, 1, device=t.device)
    upper = t.new_zeros(*t.shape[:-1], n * n).index_copy(-1, i * n + j, t).unflatten(-1, (n, n))
    return upper - upper.mT


def in_single(t: torch.Tensor) -> torch.Tensor:
    """In a precision in which torch solves and factorises."""
    return t if t.dtype == torch.float64 else t.float()


def cayley(t: torch.Tensor) -> torch.Tensor:
    """(I + S) (I - S)^-1; the two factors commute."""
    s = in_single(t)
    eye = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
    return torch.linalg.solve(eye - s, eye + s).to(t.dtype)


def cayley_series(t: torch.Tensor, k: int) -> torch.Tensor:
    """I + 2 S + ... + 2 S^k."""
    eye = torch.eye(t.shape[-1], dtype=t.dtype, device=t.device)
    power, total = eye, eye.expand(t.shape)
    for _ in range(k):
        power = power @ t
        total = total + 2 * power
    return total


def orthonormal(t: torch.Tensor) -> torch.Tensor:
    """Q of t = Q R, the diagonal of R positive."""
    q, r = torch.linalg.qr(in_single(t))
    return (q * torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)[..., None, :]).to(t.dtype)


def top(t: torch.Tensor, k: int, dim: int) -> torch.Tensor:
    """The ``k`` largest stay, the others become minus infinity."""
    kept = t.topk(min(k, t.shape[dim]), dim).indices
    return t.masked_fill(torch.ones_like(t, dtype=torch.bool).scatter(dim, kept, False), float("-inf"))


def householder(t: torch.Tensor) -> torch.Tensor:
    """The product of the reflections in the columns of [.., n, k]."""
    product = torch.eye(t.shape[-2], dtype=t.dtype, device=t.device)
    for v in t.unbind(-1):
        square = (v * v).sum(-1, keepdim=True).clamp(min=torch.finfo(t.dtype).tiny)
        product = product - 2 * (product @ v[..., None]) * (v / square)[..., None, :]
    return product


def circulant(t: torch.Tensor) -> torch.Tensor:
    """[.., n] as [.., n, n]: the entry in row i and column j is that of i - j."""
    n = torch.arange(t.shape[-1], device=t.device)
    return t[..., (n[:, None] - n) % t.shape[-1]]


def largest(t: torch.Tensor, mask: torch.Tensor | None, dim: int) -> torch.Tensor:
    """The largest entry over the real tokens; 0 where there is none."""
    if mask is None:
        return t.amax(dim)
    real = real_tokens(mask, t, dim) != 0
    found = t.masked_fill(~real, float("-inf")).amax(dim)
    return torch.where(real.any(dim), found, 0)


def smallest(t: torch.Tensor, mask: torch.Tensor | None, dim: int) -> torch.Tensor:
    """The smallest entry over the real tokens; 0 where there is none."""
    return -largest(-t, mask, dim)


def layer_norm(t: torch.Tensor, eps: float = 1e-5) -> torch.Tensor:
    """The last size less its mean, divided by its deviation."""
    return torch.nn.functional.layer_norm(t, t.shape[-1:], eps=eps)


def rms_norm(t: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """The last size divided by the root of its mean square."""
    return t * torch.rsqrt((t * t).mean(-1, keepdim=True) + eps)


def gradient_of(t: torch.Tensor) -> torch.Tensor:
    """The gradient of a parameter, zeros where it has none."""
    return torch.zeros_like(t) if t.grad is None else t.grad


def largest_entries(values: list[torch.Tensor], n: float) -> list[torch.Tensor]:
    """1 at the entries that are among the ``n`` largest of each value on average, 0 elsewhere; of equal ones the first."""
    flat = torch.cat([v.flatten().cpu().double() for v in values])
    kept = torch.zeros_like(flat)
    kept[torch.sort(flat, descending=True, stable=True).indices[: max(0, round(n * len(values)))]] = 1
    return [k.reshape(v.shape).to(v) for k, v in zip(kept.split([v.numel() for v in values]), values)]


def at_all_places(runs: list) -> None:
    """Carries out what happens after a step at all places together. Each is a generator that yields entries with how many of them are
    kept on average, gets 1 at those that are among the largest of all places, and yields None at its end."""
    asked = [next(run) for run in runs]
    while asked and asked[0] is not None:
        kept = largest_entries([values for values, _ in asked], float(asked[0][1]))
        asked = [run.send(k) for run, k in zip(runs, kept)]
