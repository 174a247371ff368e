"""Small models with random weights and the same inputs, for the tests of compiler and runtime."""

from __future__ import annotations

import copy
import inspect
import math
from functools import lru_cache
from typing import Any

import torch
from torch import nn

WIDTH, HEADS, GROUPS, LAYERS, INNER, WORDS = 32, 4, 2, 3, 48, 80
PICTURE = (12, 20)  # in pixels: 3 rows of 5 patches
_SIZES = dict(
    hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=INNER, vocab_size=WORDS
)


def model(kind: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """``bert``, ``bert_labels`` (with a head), ``gpt2``, ``llama`` (two groups), ``mamba``, ``vit``, ``clip``; weights and biases all random."""
    if torch.empty(()).is_meta:
        return _build(kind, seed)
    return copy.deepcopy(_remembered(kind, seed)).to(dtype)


@lru_cache(maxsize=16)
def _remembered(kind: str, seed: int) -> nn.Module:
    return _build(kind, seed)


def _build(kind: str, seed: int) -> nn.Module:
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        BertModel,
        CLIPConfig,
        CLIPModel,
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        MambaConfig,
        MambaForCausalLM,
        ViTConfig,
        ViTForImageClassification,
    )

    build: Any
    if kind == "bert":
        build, config = BertModel, BertConfig(**_SIZES)
    elif kind == "bert_labels":
        build, config = BertForSequenceClassification, BertConfig(**_SIZES, num_labels=3)
    elif kind == "vit":
        build, config = ViTForImageClassification, ViTConfig(**{n: v for n, v in _SIZES.items() if n != "vocab_size"}, image_size=PICTURE, patch_size=4)  # fmt: skip
    elif kind == "clip":  # where a text ends its largest id stands
        own = {n: v for n, v in _SIZES.items() if n != "vocab_size"}
        text = {**_SIZES, "max_position_embeddings": 32, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
        build, config = (
            CLIPModel,
            CLIPConfig(
                text_config=text,
                vision_config={**own, "hidden_size": 24, "image_size": 12, "patch_size": 4},
                projection_dim=16,
            ),
        )
    elif kind == "mamba":
        build, config = MambaForCausalLM, MambaConfig(
            hidden_size=WIDTH, num_hidden_layers=LAYERS, vocab_size=WORDS, state_size=4, time_step_rank=4, bos_token_id=1,
            eos_token_id=1, pad_token_id=1,
        )  # fmt: skip
    elif kind == "gpt2":
        build = GPT2LMHeadModel
        config = GPT2Config(
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=HEADS,
            n_inner=INNER,
            vocab_size=WORDS,
            n_positions=64,
            bos_token_id=1,
            eos_token_id=1,
        )
    else:
        build = LlamaForCausalLM
        config = LlamaConfig(**_SIZES, num_key_value_heads=GROUPS)
    m = build(config).eval()
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in m.parameters():
            if p.device.type != "meta":
                p.copy_(
                    torch.randn(p.shape, generator=g) * 0.2 + (1.0 if p.dim() == 1 and bool((p == 1).all()) else 0.0)
                )
    return m


def inputs(padded: bool = True) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(7)
    ids = torch.randint(2, WORDS, (3, 7), generator=g)
    mask = torch.ones_like(ids)
    if padded:
        mask[1, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def declared(model: nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The arguments that the attached adapters declare, made from the ids so that padding and later tokens change none."""
    from unipelt.runtime.registry import registry

    found: dict[str, torch.Tensor] = {}
    r = registry(model)
    for planned in [i for a in r.attached.values() for i in a.plan.inputs] if r is not None else []:
        if planned.name in r.switch.holder.given:
            continue
        first = ids.gather(1, (ids != 0).long().argmax(1, keepdim=True))[:, 0]
        n = planned.count
        if n is None:
            phase = torch.arange(1, math.prod(planned.sizes) + 1, device=ids.device).reshape(planned.sizes)
            floating = next(p.dtype for p in model.parameters() if p.is_floating_point())
            found[planned.name] = torch.sin(first.reshape(-1, *[1] * phase.dim()) * phase.double()).to(floating)
            continue
        found[planned.name] = torch.where((ids > 4) & (ids % 3 == 0), ids % n + 1, 0) if planned.marks else first % n
    return found


def pictures(like: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    found = torch.randn(3, 3, *PICTURE, generator=torch.Generator().manual_seed(7))
    return {"pixel_values": found if like is None else found.to(like.dtype)}


def both(m: nn.Module) -> dict[str, torch.Tensor]:
    """Texts without pads, and as many pictures."""
    return {**inputs(padded=False), "pixel_values": pictures(next(p for p in m.parameters()))["pixel_values"][..., :12]}


def entering(m: nn.Module, **given: Any) -> dict[str, Any]:
    """What a model is called with, unless something else is given: its inputs, and what its adapters declare."""
    if not given and getattr(m, "main_input_name", "") == "pixel_values":
        given = pictures(next(p for p in m.parameters() if p.is_floating_point()))
    given = given or (both(m) if hasattr(m, "vision_model") else inputs())
    if "input_ids" in given:
        given = {**declared(m, given["input_ids"]), **given}
    return given


def output(m: nn.Module, **given: Any) -> torch.Tensor:
    with torch.no_grad():
        return m(**entering(m, **given))[0].clone()


def randomise(m: nn.Module, name: str = "default", seed: int = 1, scale: float = 0.3) -> dict[str, torch.Tensor]:
    """Random values for an adapter's trained tensors (added to what they are); the same for the same seed."""
    from unipelt.runtime.registry import record

    g = torch.Generator().manual_seed(seed)
    own = record(m, name).trained()
    with torch.no_grad():
        for n in sorted(own):
            own[n].add_((torch.randn(own[n].shape, generator=g) * scale).to(own[n].dtype))
    return {n: t.detach().clone() for n, t in own.items()}


def state(m: nn.Module) -> tuple:
    """What an untouched model shows: names of modules and parameters, flags, hooks, values."""
    hooks = [
        (n, len(x._forward_hooks), len(x._forward_pre_hooks), len(x._backward_hooks)) for n, x in m.named_modules()
    ]
    values = [(n, p.requires_grad, p.shape, p.detach().double().sum().item()) for n, p in m.named_parameters()]
    return tuple(hooks), tuple(values)


def smaller(method: Any, n: int) -> Any:
    """The method with every whole number above 4 that it takes at ``n``; in their proportions, where it needs those.

    A number that counts the values which another argument lists stays.
    """
    from unipelt import PeltError, analyse

    listed = {len(getattr(p.default, "args", ())) for p in method.params}
    large = {
        p.name: p.default.value
        for p in method.params
        if p.type == "int" and getattr(p.default, "value", 0) > 4 and p.default.value not in listed
    }
    if not large:
        return method
    found = method(**dict.fromkeys(large, n))
    try:
        analyse(found)
        return found
    except PeltError:
        most = max(large.values())
        return method(**{name: max(1, round((n + 1) * value / most)) for name, value in large.items()})


# ---------------------------------------------------------------- names that transformers has changed


def with_cache(m: nn.Module, cache: Any) -> dict[str, Any]:
    """The argument of a call with a cache, by the name that this version of transformers has for it."""
    name = "cache" if "cache" in inspect.signature(m.forward).parameters else "past_key_values"
    return {name: cache}


def cache_of(output: Any) -> Any:
    return output.cache if hasattr(output, "cache") else output.past_key_values


def checkpoint_activations(m: nn.Module, reentrant: bool = False) -> None:
    enable: Any = getattr(m, "activation_checkpointing_enable", None) or m.gradient_checkpointing_enable
    enable(**{next(iter(inspect.signature(enable).parameters)): {"use_reentrant": reentrant}})
