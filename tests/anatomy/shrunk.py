"""Small configurations of any type of transformers: its default, with depths, widths and vocabularies cut wherever they stand.

What cannot be cut without a check of the configuration failing is left at the next, more cautious level.
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DEPTHS = ("num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers num_encoder_layers num_decoder_layers depth "
          "num_hidden_groups").split()  # fmt: skip
_SAME = {
    64: "hidden_size d_model dim n_embd embed_dim embedding_size word_embed_proj_dim emb_dim projection_dim text_hidden_size out_hidden_size",
    128: "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff ffn_hidden_size n_inner moe_intermediate_size dim_feedforward "
         "shared_expert_intermediate_size moe_shared_expert_intermediate_size dense_intermediate_size mlp_dim intermediate_size_mlp d_inner "
         "max_position_embeddings n_positions max_seq_len max_seq_length",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads num_encoder_attention_heads "
       "num_decoder_attention_heads num_experts num_local_experts n_routed_experts moe_num_experts mm_tokens_per_image",
    16: "head_dim d_kv d_head kv_channels v_head_dim qk_nope_head_dim kv_lora_rank embedding_size_per_head",
    8: "qk_rope_head_dim rotary_dim mamba_chunk_size",
    32: "q_lora_rank max_source_positions",
    2: "num_experts_per_tok moe_topk moe_k experts_per_token top_k_experts num_experts_per_token attn_layer_period expert_layer_period",
    1: "n_group topk_group first_k_dense_replace attn_layer_offset expert_layer_offset",
    512: "vocab_size",
}  # fmt: skip
_SIZES = {name: size for size, names in _SAME.items() for name in names.split()} | dict.fromkeys(DEPTHS, 2)
_GROUPS = "num_key_value_heads n_head_kv num_kv_heads decoder_key_value_heads encoder_key_value_heads".split()
#: One entry for each layer: what it is.
_LISTS = "layer_types layers_block_type mlp_layer_types attention_layers window_attn_skip_freq no_rope_layers hybrid_layer_ids".split()
_FIRST = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
LEVELS = 5


def shrunk(model_type: str, **more: Any) -> Any:
    """The first small configuration of a type that its own checks let pass, with ``more`` set in it."""
    for config in configurations(model_type):
        for name, value in more.items():
            setattr(config, name, value)
        return config
    raise ValueError(f"no small configuration of {model_type} passes its checks")


def configurations(model_type: str) -> Iterator[Any]:
    """Small configurations of a type, the smallest first; the last is the default with its depths cut."""
    from transformers import CONFIG_MAPPING

    made = CONFIG_MAPPING[model_type]
    for level in range(LEVELS):
        try:
            yield made(**entries(made, level))
        except Exception:  # noqa: BLE001 - a configuration's checks raise whatever they like
            continue


def entries(made: Any, level: int) -> dict[str, Any]:
    """What to set in a configuration: level 0 all sizes, 2 no sizes of heads, 3 depths and vocabularies, 4 depths alone.

    Lists with an entry for each layer keep their first and last one (levels 0 and 3) or are left to the type's own rule.
    """
    default = made()
    found: dict[str, Any] = {}
    for name, value in vars(default).items():
        if name in _LISTS and isinstance(value, (list, tuple)) and level < 4:
            found[name] = list(value)[:1] + list(value)[-1:] if level in (0, 3) and value else None
        if name == "initializer_range" and isinstance(value, float) and value < 1e-3:
            found[name] = 0.02  # of smaller numbers nothing is left behind two layers
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        if name == "embed_dim" and isinstance(getattr(default, "num_heads", None), (list, tuple)):
            continue  # that of the first stage: it must fit the heads of each
        if name in _SIZES and (name in DEPTHS or level < 3 or (level == 3 and "vocab" in name)):
            found[name] = _SIZES[name]
        if name in _GROUPS and level < 3:
            found[name] = 1 if value == 1 else 4 if value == getattr(default, "num_attention_heads", None) else 2
        if level == 2 and name in ("head_dim", "d_kv"):
            found.pop(name)
    if level < 3 and isinstance(vars(default).get("hidden_dim"), int):
        found["hidden_dim"] = 128 if "dim" in vars(default) else 64
    if level < 3:
        found |= _fitting(default, found)
        found |= _sections(made, default)
    for name in getattr(made, "sub_configs", None) or {}:
        inner = getattr(default, name, None)
        if hasattr(inner, "to_dict"):
            found[name] = type(inner)(**entries(type(inner), level))
    sizes = [
        c.get("vocab_size") if isinstance(c, dict) else getattr(c, "vocab_size", None)
        for c in (found, default, *found.values())
    ]
    return found | _tokens(default, next((s for s in sizes if isinstance(s, int)), None))


def _fitting(default: Any, found: dict[str, Any]) -> dict[str, int]:
    """Sizes that must agree with others: four times the width, heads that fill an expanded width."""
    width, more = found.get("hidden_size"), {}
    if width and getattr(default, "intermediate_size", None) == 4 * default.hidden_size:
        more["intermediate_size"] = 4 * width
    if width and type(ratio := getattr(default, "pixel_shuffle_ratio", None)) is float:
        more["intermediate_size"] = round(width / ratio**2)
    if hasattr(default, "vision_output_dim") and hasattr(default, "projector_output_dim"):
        more["vision_output_dim"] = default.projector_output_dim
    if width and type(getattr(default, "expand", None)) is int and "num_heads" in found and "head_dim" in found:
        more["num_heads"] = default.expand * width // found["head_dim"]
    return more


def _tokens(default: Any, vocabulary: Any) -> dict[str, int]:
    """Numbers of special tokens that a smaller vocabulary has."""
    if not isinstance(vocabulary, int):
        return {}
    beyond = [n for n, v in vars(default).items()
              if re.search(r"token_(id|index)$|_token$", n) and type(v) is int and v >= vocabulary]  # fmt: skip
    beyond += [n for n in ("image_token_index", "image_token_id") if n in vars(default) and vars(default)[n] is None]
    return {n: _FIRST.get(n, vocabulary - 3 - i) for i, n in enumerate(beyond)}


def _sections(made: Any, default: Any) -> dict[str, Any]:
    """Rotary positions in three parts (time, height, width), where a type has them, for heads of 16."""
    if "rope_parameters" not in vars(default):
        return {}
    rope = getattr(default, "rope_parameters", None) or {}
    folder = Path(str(sys.modules[made.__module__].__file__)).parent
    if "mrope_section" in rope or any("mrope_section" in f.read_text("utf-8") for f in folder.glob("modeling_*.py")):
        return {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                **copy.deepcopy(rope),
                "mrope_section": [2, 3, 3],
            }
        }
    return {}
