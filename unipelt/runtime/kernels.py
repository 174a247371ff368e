"""The attention kernels of transformers: how each is told which keys a query may see, and how learned rows join those keys.

transformers keeps beside a kernel the function that makes its masks. A kernel is known by that function, whatever its own name is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.bias import causal_lower_right
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, create_mask
from transformers.masking_utils import (
    ALL_MASK_ATTENTION_FUNCTIONS,
    eager_mask,
    flash_attention_mask,
    flex_attention_mask,
    sdpa_mask,
)
from transformers.modeling_flash_attention_utils import (
    _is_packed_sequence,
    flash_attn_supports_top_left_mask,
    prepare_fa_kwargs_from_position_ids,
)


class Call(NamedTuple):
    """What an attention function is given: query [batch, heads, tokens, d]; key, value [batch, groups, all tokens, d]."""

    module: nn.Module
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: Any
    kwargs: dict[str, Any]
    dropped: int = 0  # so many queries were put in front, and their outputs are dropped

    @property
    def causal(self) -> bool:
        given = self.kwargs.get("is_causal")
        return bool(getattr(self.module, "is_causal", True) if given is None else given)

    @property
    def scale(self) -> float:
        given = self.kwargs.get("scaling")
        return float(given) if given is not None else self.query.shape[-1] ** -0.5

    def quiet(self) -> Call:
        """The call without dropout."""
        return self._replace(kwargs={**self.kwargs, "dropout": 0.0}) if "dropout" in self.kwargs else self

    def run(self, function: Callable) -> tuple[torch.Tensor, Any]:
        """(out [batch, tokens, heads, d], weights)"""
        out, weights = function(self.module, self.query, self.key, self.value, self.mask, **self.kwargs)
        return (out[:, self.dropped :].contiguous() if self.dropped else out), weights


Rows = list[tuple[torch.Tensor, torch.Tensor]]  # keys and values [batch or 1, groups, l, d], as each edit yields them


@dataclass(frozen=True, slots=True)
class Kernel:
    """`seen` is the mask that says in full what a query may see: boolean or to be added, or None; its last axis may be shorter
    than the keys, and then the later keys are empty. `join` adds learned rows that every query sees."""

    seen: Callable[[Call], torch.Tensor | None]
    join: Callable[[Call, Rows], Call]
    joins: Callable[[Call], bool] = lambda call: True
    tells_mass: bool = False  # whether what it returns beside `out` may be the log of the scores' mass
    #: Whether a mask of all queries and keys, or none, says what each query sees, but for a causal call; ``flagged``: a flag says that.
    masked: bool = False
    flagged: bool = False
    padded: bool = (
        False  # whether its mask, [batch, keys], says of keys alone whether they are pads, which are no queries either
    )


def kernel_of(name: str) -> Kernel | None:
    """The kernel behind a name of an attention implementation, or None where its masks are not known."""
    return _KERNELS.get(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping.get(name))


def fits(kernel: Kernel, call: Call) -> bool:
    """Whether learned rows that join the keys are treated as their form says: scores are not capped, no window hides rows."""
    return call.kwargs.get("softcap") is None and kernel.joins(call)


def log_mass(kernel: Kernel, call: Call) -> torch.Tensor:
    """log Σ exp(score) over the keys that each query may see: [batch, heads, tokens]."""
    seen = kernel.seen(call)
    key = call.key if seen is None else call.key[:, :, : seen.shape[-1]]
    scores = scores_of(call, key)
    cap, bias = call.kwargs.get("softcap"), call.kwargs.get("position_bias")
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    if bias is not None:
        scores = scores + bias[..., : key.shape[2]]
    if seen is not None:
        least = torch.finfo(scores.dtype).min
        scores = torch.where(seen, scores, least) if seen.dtype == torch.bool else scores + seen
    return with_sinks(call, torch.logsumexp(scores, -1))


def with_sinks(call: Call, mass: torch.Tensor) -> torch.Tensor:
    """Attention sinks take a share of the softmax and add nothing to `out`, which has that share in it already."""
    sinks = call.kwargs.get("s_aux")
    return mass if sinks is None else torch.logaddexp(mass, sinks.view(1, -1, 1).to(mass.dtype))


def scores_of(call: Call, key: torch.Tensor) -> torch.Tensor:
    """[batch, heads, tokens, keys]"""
    repeat = call.query.shape[1] // key.shape[1]
    key = key.repeat_interleave(repeat, 1) if repeat > 1 else key
    return call.query @ key.to(call.query.dtype).transpose(-1, -2) * call.scale


def _joined(call: Call, rows: Rows, mask: Any, more: dict[str, Any] | None = None, behind: bool = False) -> Call:
    """The call with the rows before the tokens' keys and values (or behind them), another mask and more arguments."""
    module, query, key, value, _, kwargs, _ = call
    if more is not None:
        kwargs = {**kwargs, **more}
    if (bias := kwargs.get("position_bias")) is not None:  # of the tokens alone
        kwargs = {**kwargs, "position_bias": freed(bias[..., : key.shape[2]], _count(rows), behind)}
    keys, values = ([key], [value]) if behind else ([], [])
    lead, dtype = key.shape[:2], key.dtype
    for k, v in rows:
        keys.append(k if k.dtype == dtype and k.shape[:2] == lead else beside(k, key))
        values.append(v if v.dtype == dtype and v.shape[:2] == lead else beside(v, value))
    if not behind:
        keys.append(key)
        values.append(value)
    return Call(module, query, torch.cat(keys, 2), torch.cat(values, 2), mask, kwargs)


def beside(learned: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Learned rows for each example and head of the tokens' keys, or values, and in their dtype."""
    learned = learned.to(tokens.dtype)
    if learned.shape[1] != tokens.shape[1]:  # the module has given each head its group's keys already
        learned = learned.repeat_interleave(tokens.shape[1] // learned.shape[1], 1)
    return learned if learned.shape[0] == tokens.shape[0] else learned.expand(tokens.shape[0], -1, -1, -1)


def _count(rows: Rows) -> int:
    return sum(k.shape[2] for k, _ in rows)


def freed(mask: torch.Tensor, rows: int, behind: bool = False) -> torch.Tensor:
    """A mask, boolean or to be added, with so many keys more that nothing hides."""
    return F.pad(mask, (0, rows) if behind else (rows, 0), value=mask.dtype == torch.bool)


# ---------------------------------------------------------------- eager: a mask that is added, or none and nothing is hidden


def _eager_join(call: Call, rows: Rows) -> Call:
    return _joined(call, rows, _freed(call, rows))


def _freed(call: Call, rows: Rows) -> torch.Tensor | None:
    return None if call.mask is None else freed(call.mask[..., : call.key.shape[2]], _count(rows))


# ---------------------------------------------------------------- sdpa: as eager, or a causal flag aligned at the top left


_NOT_CAUSAL = {"is_causal": False}


def _flagged(call: Call) -> bool:
    return call.mask is None and call.query.shape[2] > 1 and call.causal


def _sdpa_seen(call: Call) -> torch.Tensor | None:
    if not _flagged(call):
        return call.mask
    n, m = call.query.shape[2], call.key.shape[2]
    return torch.ones(n, min(n, m), dtype=torch.bool, device=call.query.device).tril()[None, None]


def _sdpa_join(call: Call, rows: Rows) -> Call:
    """The causal flag becomes torch's causal bias at the lower right, which flash and efficient kernels take.

    A compiler cannot trace that bias. There the flag stays, and the square is filled up by queries whose outputs are dropped.
    """
    if not _flagged(call):
        return _joined(call, rows, _freed(call, rows), _NOT_CAUSAL)
    n, count = call.query.shape[2], _count(rows)
    call = call._replace(key=call.key[:, :, :n], value=call.value[:, :, :n])  # later keys are empty: a static cache
    if call.key.shape[2] != n or call.kwargs.get("position_bias") is not None:
        return _joined(call, rows, freed(_sdpa_seen(call), count), _NOT_CAUSAL)  # type: ignore[arg-type]
    if not torch.compiler.is_compiling():
        return _joined(call, rows, causal_lower_right(n, n + count), _NOT_CAUSAL)
    return _joined(call, rows, None)._replace(query=F.pad(call.query, (0, 0, count, 0)), dropped=count)


# ---------------------------------------------------------------- flash: a mask of padding, causal at the lower right


def _flash_joins(call: Call) -> bool:
    """A window counts keys from the query, so it would hide rows that stand before the tokens."""
    window = call.kwargs.get("sliding_window")
    return window is None or call.key.shape[2] <= window


def _texts(call: Call) -> tuple[torch.Tensor, torch.Tensor, Any, Any] | None:
    """Where the texts of a packed sequence begin and end, among the queries and the keys, and their largest lengths."""
    given = [call.kwargs.get(n) for n in ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")]
    if call.mask is not None:
        return None
    if all(t is not None for t in given):
        return tuple(given)  # type: ignore[return-value]
    positions = call.kwargs.get("position_ids")
    if not _is_packed_sequence(positions, call.query.shape[0]):
        return None
    ends, longest = prepare_fa_kwargs_from_position_ids(positions)
    return *ends, *longest


def _flash_join(call: Call, rows: Rows) -> Call:
    count, texts = _count(rows), _texts(call)
    if texts is None:
        mask = call.mask if call.mask is None else F.pad(call.mask, (count, 0), value=1)
        return _joined(call, rows, mask, {"sliding_window": None})
    ends_q, ends_k, longest_q, longest_k = texts
    places: list[int] = []  # the rows stand before each text
    ends = ends_k.tolist()
    for begin, end in zip(ends, ends[1:]):
        places += [*range(count), *range(count + begin, count + end)]
    index = torch.tensor(places, device=call.key.device)
    more = count * torch.arange(len(ends), dtype=ends_k.dtype, device=ends_k.device)
    lengths = {
        "cu_seq_lens_q": ends_q,
        "cu_seq_lens_k": ends_k + more,
        "max_length_q": longest_q,
        "max_length_k": longest_k + count,
    }
    joined = _joined(call, rows, None, {**lengths, "sliding_window": None})
    return joined._replace(key=joined.key[:, :, index], value=joined.value[:, :, index])


def _flash_seen(call: Call) -> torch.Tensor | None:
    n, m, device = call.query.shape[2], call.key.shape[2], call.query.device
    window, texts = call.kwargs.get("sliding_window"), _texts(call)
    window = None if window is None or m <= window else window
    if texts is not None:
        text_q, at_q = _within(texts[0], n, texts[1] - texts[0])
        text_k, at_k = _within(texts[1], m)
        seen = text_q[:, None] == text_k[None]
        at_q, at_k, seen = at_q[None], at_k[None], seen[None]
    elif call.mask is None and not call.causal and window is None:
        return None
    else:
        real = torch.ones(1, m, dtype=torch.bool, device=device)
        if call.mask is not None:  # shorter than the keys of a static cache
            real = F.pad(call.mask.bool(), (0, m - call.mask.shape[1]))
        at_k = real.cumsum(-1) - 1
        last = call.mask.shape[1] if call.mask is not None else m
        at_q = at_k[:, last - n : last] if n > 1 else at_k[:, -1:]
        seen = real[:, None].expand(-1, n, -1)
    distance = at_q[:, :, None] - at_k[:, None]
    if call.causal:
        seen = seen & (distance >= 0)
    if window is not None:
        seen = seen & (distance.abs() < window)
    return seen[:, None]


def _within(ends: torch.Tensor, n: int, ahead: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """For each token of a packed sequence its text, and its place there; ``ahead``: how far the keys reach beyond the queries."""
    at = torch.arange(n, device=ends.device)
    text = torch.bucketize(at, ends[1:].long(), right=True)
    place = at - ends.long()[text]
    return text, place if ahead is None else place + ahead.long().diff()[text]


# ---------------------------------------------------------------- flex: a function of the places, or a mask that is added


def _flex_seen(call: Call) -> torch.Tensor | None:
    if not isinstance(call.mask, BlockMask):
        return call.mask
    batch, heads = call.mask.shape[:2]
    n, m = call.query.shape[2], call.key.shape[2]
    return create_mask(call.mask.mask_mod, batch, heads, n, m, device=call.query.device)


def _flex_join(call: Call, rows: Rows) -> Call:
    """The rows stand behind the tokens, whose places stay as the mask's function knows them."""
    n, m, count = call.query.shape[2], call.key.shape[2], _count(rows)
    mask = call.mask
    if isinstance(mask, BlockMask):
        mask = _extended(mask, n, m, count, call.query.device)
    elif mask is not None:
        mask = freed(mask[..., :m], count, behind=True)
    return _joined(call, rows, mask, behind=True)


def _extended(mask: BlockMask, n: int, m: int, count: int, device: torch.device) -> BlockMask:
    """A block mask with so many keys more that every query sees; kept at the mask, which the layers share."""
    keep = not (torch.compiler.is_compiling() or torch.is_inference_mode_enabled())
    kept = vars(mask).setdefault("_with_rows", {}) if keep else {}
    if (n, m, count) not in kept:
        batch, heads = mask.shape[:2]
        sees = partial(_or_learned, mask.mask_mod, m)
        create = create_block_mask if device.type == "cpu" else torch.compile(create_block_mask)
        kept[n, m, count] = create(sees, batch, heads, n, m + count, device=device)
    return kept[n, m, count]


def _or_learned(tokens: Callable, m: int, batch: Any, head: Any, q: Any, key: torch.Tensor) -> torch.Tensor:
    return (key >= m) | tokens(batch, head, q, key.clamp(max=m - 1))


_KERNELS: dict[Any, Kernel] = {
    eager_mask: Kernel(lambda call: call.mask, _eager_join, masked=True),
    sdpa_mask: Kernel(_sdpa_seen, _sdpa_join, masked=True, flagged=True),
    flex_attention_mask: Kernel(_flex_seen, _flex_join, tells_mass=True),
}
if (
    not flash_attn_supports_top_left_mask()
):  # where it is at the top left, rows before the tokens would hide some of them
    _KERNELS[flash_attention_mask] = Kernel(_flash_seen, _flash_join, _flash_joins, padded=True)
