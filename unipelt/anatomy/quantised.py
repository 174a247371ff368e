"""Weights that a library keeps as codes: whether one is, the shape of what it stands for, and its values, as that library computes them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from .base import base_parameters, children
from ..language.report.diagnostics import error

#: The types of numbers that are what they say. Shorter ones are codes: they mean something only together with their scales.
PLAIN = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def is_quantised(t: torch.Tensor) -> bool:
    """Whether a weight holds codes. Some libraries keep them behind a tensor that says it is of a longer type."""
    return t.dtype not in PLAIN or _knows_its_values(t) or getattr(t, "quant_state", None) is not None


def _knows_its_values(t: torch.Tensor) -> bool:
    return type(t).dequantize is not torch.Tensor.dequantize


def packs_itself(module: nn.Module) -> bool:
    """Whether a map's codes are stored otherwise, for good, once it is called in evaluation mode: bitsandbytes does so with 4-bit
    codes on some CPUs, and no gradient flows through such a map any more."""
    return getattr(getattr(module, "weight", None), "quant_state", None) is not None


def is_packed(module: nn.Module) -> bool:
    """Whether that has happened to a map."""
    state = getattr(getattr(module, "weight", None), "quant_state", None)
    return bool(getattr(state, "packing_format_for_cpu", False))


def stops_gradients(module: nn.Module) -> bool:
    """Whether no gradient flows through a map since it was called in evaluation mode: its codes were packed for a CPU then, for good
    (bitsandbytes, gptqmodel)."""
    return is_packed(module) or (
        without_weight(module) is not None and getattr(module, "linear_mode", None) == "inference"
    )


def features(module: nn.Module) -> tuple[int, int] | None:
    """(d_in, d_out) as a linear map says them, however its weight is stored."""
    found = getattr(module, "in_features", None), getattr(module, "out_features", None)
    return found if all(type(n) is int for n in found) and not children(module) else None  # type: ignore[return-value]


def without_weight(module: nn.Module) -> tuple[int, int] | None:
    """(d_in, d_out) of a map that keeps codes and no weight, as GPTQ's and AWQ's do; None for any other module."""
    coded = any(b is not None and b.dtype not in PLAIN for b in module._buffers.values())
    return features(module) if coded and "weight" not in module._parameters else None


def whole_shape(module: nn.Module, name: str, own: torch.Tensor) -> tuple[int, ...]:
    """The shape of what a module's parameter ``own`` stands for: codes may be packed."""
    if is_quantised(own):
        state, said = getattr(own, "quant_state", None), features(module)
        if state is not None:
            return tuple(state.shape)
        if name == "weight" and said is not None:
            return said[::-1]
    return tuple(own.shape)


def values(module: nn.Module, name: str, own: torch.Tensor) -> torch.Tensor:
    """What a module's parameter ``own`` stands for, in a floating type; itself where it holds no codes.

    Codes are turned into numbers by the library that made them; `PeltError` (E0565) where none here can.
    """
    if not is_quantised(own):
        return own
    found = _dequantised(module, name, own.detach())
    if found is None or found.dtype not in PLAIN or tuple(found.shape) != whole_shape(module, name, own):
        raise unreadable(module, name)
    return found


def _dequantised(module: Any, name: str, own: Any) -> torch.Tensor | None:
    if _knows_its_values(own) or own.is_quantized:
        return own.dequantize()
    if name == "weight" and is_packed(module):
        return _unpacked(module.weight)
    state = getattr(getattr(module, name), "quant_state", None)
    scales = getattr(getattr(module, name), "SCB", None)
    if scales is None:  # where they are once the map has been called
        scales = getattr(getattr(module, "state", None), "SCB", None)
    if state is None and scales is None:
        return None
    from bitsandbytes import functional

    return (
        functional.dequantize_4bit(own, state) if state is not None else functional.int8_vectorwise_dequant(own, scales)
    )


def _unpacked(weight: Any) -> torch.Tensor:
    """What packed codes stand for; they stay packed. The library's way back loses the order of the scales of rows with several blocks,
    and rounds scales that were codes themselves once more: here they are put back as they were when packed."""
    from bitsandbytes import functional

    state = copy.copy(weight.quant_state)
    scales, state.original_nested = state.absmax, False
    codes, state = functional._convert_weight_packed_for_cpu_inverse(weight.detach(), state)
    state.absmax = scales.T.reshape(-1).float()
    return functional.dequantize_4bit(codes, state)


def plain_dtype(model: nn.Module, own: torch.Tensor) -> torch.dtype:
    """The type of what a parameter of a model stands for: its own, and of codes the one that the model's other weights have.

    Libraries name for codes the type that they dequantise into, which need not be the model's.
    """
    if not is_quantised(own):
        return own.dtype
    others = (p.dtype for _, p in base_parameters(model) if not is_quantised(p))
    said = getattr(getattr(model, "config", None), "dtype", None)
    return next(others, said if said in PLAIN else torch.get_default_dtype())


def unreadable(module: nn.Module, name: str) -> Exception:
    """The mistake of asking for numbers that only another library knows."""
    own = getattr(module, name, None)
    kind = f" ({own.dtype})".replace("torch.", "") if isinstance(own, torch.Tensor) else ""
    return error("E0565", f"the {name} of a {type(module).__name__} is quantised{kind}, and its values cannot be computed here",
                 help="load the base without quantisation; bitsandbytes, quanto, torchao, GPTQ and AWQ can be read")  # fmt: skip
