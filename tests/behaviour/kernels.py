"""Stand-ins on a CPU for attention kernels that need a GPU. They keep to the contract of the kernel and refuse what it refuses."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import transformers.integrations.flex_attention as flex
import transformers.masking_utils as masks
import transformers.modeling_flash_attention_utils as flash
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.overrides import TorchFunctionMode

calls: list[dict[str, Any]] = []  # what the flash kernel was given


def flash_attn_func(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None,
    causal: bool = False, window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0, deterministic: bool = False,
    s_aux: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """As flash_attn has it: [batch, tokens, heads, d], fewer heads of keys, causal and windows aligned at the lower right."""
    calls.append(
        {"keys": k.shape[1], "queries": q.shape[1], "causal": causal, "window": window_size, "dropout": dropout_p}
    )
    n, m = q.shape[1], k.shape[1]
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = q @ k.transpose(-1, -2) * (softmax_scale or q.shape[-1] ** -0.5)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    at = torch.arange(n)[:, None] + m - n - torch.arange(m)
    seen = torch.ones(n, m, dtype=torch.bool)
    left, right = (window_size[0], 0) if causal else window_size
    seen &= (at >= -right) if right >= 0 else True
    seen &= (at <= left) if left >= 0 else True
    scores = scores.masked_fill(~seen, -torch.inf)
    if s_aux is not None:
        scores = torch.cat([scores, s_aux.view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)], -1)
    shares = torch.nn.functional.dropout(scores.softmax(-1), dropout_p)[..., :m]
    return (shares @ v).transpose(1, 2)


def flash_attn_varlen_func(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int, max_seqlen_k: int, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
    window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0, deterministic: bool = False,
    s_aux: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Texts of several lengths, one behind the other: [all tokens, heads, d]."""
    ends_q, ends_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    assert ends_q[-1] == q.shape[0] and ends_k[-1] == k.shape[0] == v.shape[0]
    assert max_seqlen_q >= max(cu_seqlens_q.diff()) and max_seqlen_k >= max(cu_seqlens_k.diff())
    found = [
        flash_attn_func(q[None, a:b], k[None, c:d], v[None, c:d], dropout_p, softmax_scale, causal, window_size, softcap, s_aux=s_aux)
        for a, b, c, d in zip(ends_q, ends_q[1:], ends_k, ends_k[1:])
    ]  # fmt: skip
    return torch.cat(found, 1)[0]


def use(model: Any, name: str) -> None:
    """Switches the implementation without asking whether this machine has its kernel."""
    model.config._attn_implementation = name


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """flash_attention_2 through all that transformers does before its kernel, and flex_attention without its compiler."""
    calls.clear()
    functions = (flash_attn_func, flash_attn_varlen_func, None, flash._pad_input, flash._unpad_input)
    monkeypatch.setattr(flash, "_lazy_imports", lambda *args, **kwargs: functions)
    for name in ("_loaded_implementation", "_flash_fn", "_flash_varlen_fn", "_flash_with_kvcache_fn", "_pad_fn", "_unpad_fn",
                 "_process_flash_kwargs_fn", "_process_with_kvcache_kwargs_fn"):  # fmt: skip
        monkeypatch.setattr(flash, name, None, raising=False)  # older versions lack the last one
    monkeypatch.setattr(flex, "compile_friendly_flex_attention", _flex)
    monkeypatch.setattr(
        masks, "create_block_mask", lambda *args, _compile, **kwargs: create_block_mask(*args, **kwargs)
    )
    return calls


def _flex(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, training: bool = False, **kwargs: Any) -> Any:
    return flex_attention(q, k, v, **kwargs)


def flex_with_mass(base: Any) -> Any:
    """As on a GPU, where flex attention also returns the log of the scores' mass; a CPU's does not."""

    @functools.wraps(base)
    def attend(module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **kwargs: Any) -> Any:
        out, _ = base(module, query, key, value, attention_mask, **kwargs)
        keys = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        scores = query @ keys.transpose(-1, -2) * kwargs["scaling"]
        b, h, q, k = (torch.arange(n) for n in scores.shape)
        seen = attention_mask.mask_mod(b[:, None, None, None], h[:, None, None], q[:, None], k)
        return out, torch.logsumexp(scores.masked_fill(~seen, -torch.inf), -1)

    return attend


class Spy(TorchFunctionMode):
    """Notes what torch's attention is given: by name, and how many queries."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[dict[str, Any]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.given.append({"queries": args[0].shape[2], "mask": kwargs["attn_mask"], **kwargs})
        return func(*args, **(kwargs or {}))
