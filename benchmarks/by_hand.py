"""UniPELT for causal models written by hand: hooks and an attention function, what reads one tensor joined in one product.

It has the arithmetic of `unipelt_apl_causal` in evaluation and nothing else: what the method costs at the least in a model that is not rewritten.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import AttentionInterface

NAME = "unipelt_by_hand"


def attention(module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any) -> Any:  # fmt: skip
    """One query: the gate multiplies the learned keys and values, which stand before the others."""
    K, V, w, b = module.rows
    g = torch.sigmoid(F.linear(module.entered, w, b))[:, None]
    kwargs["is_causal"] = False
    return sdpa_attention_forward(module, query, torch.cat([K * g, key], 2), torch.cat([V * g, value], 2), mask, **kwargs)  # fmt: skip


def by_hand(model: LlamaForCausalLM, ra: int = 48, l: int = 10, rl: int = 8) -> LlamaForCausalLM:
    AttentionInterface.register(NAME, attention)
    model.config._attn_implementation = NAME
    width, heads = model.config.hidden_size, model.config.num_attention_heads
    for layer in model.model.layers:
        attn = layer.self_attn
        for m in (attn.q_proj, attn.v_proj):
            m.register_forward_hook(_lora(width, rl))
        attn.rows = (
            _drawn(1, heads, l, width // heads),
            _drawn(1, heads, l, width // heads),
            _drawn(1, width),
            _drawn(1),
        )
        attn.register_forward_pre_hook(_entered, with_kwargs=True)
        norm = layer.post_attention_layernorm
        norm.register_forward_pre_hook(lambda m, args, attn=attn: setattr(attn, "residual", args[0]))
        layer.mlp.register_forward_hook(_adapter(attn, norm, width, ra))
    return model


def _drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape) * 0.02


def _entered(attn: nn.Module, args: tuple, kwargs: dict) -> None:
    attn.entered = kwargs["hidden_states"]


def _lora(width: int, r: int) -> Any:
    A, b, B = _drawn(r + 1, width), _drawn(r + 1), _drawn(r, width)  # the gate is the last row of A

    def hook(m: nn.Module, args: tuple, out: torch.Tensor) -> torch.Tensor:
        t = F.linear(args[0], A, b)
        return torch.addcmul(out, torch.sigmoid(t[..., r:]), t[..., :r] @ B)

    return hook


def _adapter(attn: nn.Module, norm: nn.Module, width: int, r: int) -> Any:
    down, b, up, c = _drawn(r + 1, width), _drawn(r + 1), _drawn(width, r), _drawn(width)

    def hook(m: nn.Module, args: tuple, out: torch.Tensor) -> torch.Tensor:
        t = F.linear(norm.forward(out + attn.residual), down, b)
        return torch.addcmul(out, torch.sigmoid(t[..., r:]), F.linear(F.relu(t[..., :r]), up, c))

    return hook
