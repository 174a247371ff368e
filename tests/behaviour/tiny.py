"""Tiny random base models, batches for them, and what the behaviour tests measure."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch
import transformers as T
from torch import nn
from transformers import (
    AlbertConfig, AlbertForSequenceClassification, AlbertModel, BartConfig, BartForConditionalGeneration, BertConfig, BertForMaskedLM,
    BertForSequenceClassification, BertModel, DistilBertConfig, DistilBertForSequenceClassification, ElectraConfig,
    ElectraForSequenceClassification, GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, LlamaConfig,
    LlamaForCausalLM, LlamaForSequenceClassification, MBartConfig, MBartForConditionalGeneration, MistralConfig,
    MistralForCausalLM, MT5Config, MT5ForConditionalGeneration, OPTConfig, OPTForCausalLM, Qwen2Config, Qwen2ForCausalLM,
    RobertaConfig, RobertaForSequenceClassification, T5Config, T5ForConditionalGeneration, ViTConfig,
    ViTForImageClassification, WhisperConfig, WhisperForConditionalGeneration,
)  # fmt: skip

import unipelt
from small import declared, smaller
from trained import among_members

VOCAB, WIDTH, PAD = 96, 32, 0
_SPECIAL: dict[str, Any] = dict(
    vocab_size=VOCAB, pad_token_id=PAD, bos_token_id=2, eos_token_id=None, initializer_range=0.1
)
_COMMON: dict[str, Any] = dict(
    **_SPECIAL,
    hidden_size=WIDTH,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=64,
)
_ENCODER: dict[str, Any] = dict(**_COMMON, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
_GPT2: dict[str, Any] = dict(
    **_SPECIAL, n_embd=WIDTH, n_layer=2, n_head=4, n_positions=64, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
)
_GROUPED: dict[str, Any] = dict(**_COMMON, num_key_value_heads=2)
# An encoder–decoder's stacks differ in depth and sizes, so that neither can pass for the other.
_T5: dict[str, Any] = dict(
    vocab_size=VOCAB, pad_token_id=PAD, eos_token_id=None, decoder_start_token_id=PAD, d_model=WIDTH, d_kv=6, d_ff=48,
    num_heads=4, dropout_rate=0.0, initializer_factor=0.3, relative_attention_num_buckets=8,
)  # fmt: skip
_BART: dict[str, Any] = dict(
    **{**_SPECIAL, "pad_token_id": PAD}, init_std=0.1, d_model=WIDTH, encoder_ffn_dim=64, decoder_ffn_dim=48, dropout=0.0,
    encoder_attention_heads=4, decoder_attention_heads=2, max_position_embeddings=64, decoder_start_token_id=2,
    forced_eos_token_id=None,
)  # fmt: skip
_OPT: dict[str, Any] = dict(
    **_SPECIAL, init_std=0.1, hidden_size=WIDTH, ffn_dim=64, num_attention_heads=4, max_position_embeddings=64, dropout=0.0,
    word_embed_proj_dim=WIDTH,
)  # fmt: skip
#: What any text is in the tokenizer of these models: the third token of the first batch.
MARK = int(torch.randint(5, VOCAB, (1, 7), generator=torch.Generator().manual_seed(0))[0, 2])
FRAMES = 12  # of sound, twice as many as the Whisper encoder's positions

#: Those of which a map is written down, with which what is found is compared (`tests/anatomy/written`).
DESCRIBED = {
    "bert": (BertModel, BertConfig, _ENCODER),
    "bert_head": (BertForSequenceClassification, BertConfig, {**_ENCODER, "num_labels": 3}),
    "bert_words": (BertForMaskedLM, BertConfig, _ENCODER),
    "gpt2": (GPT2LMHeadModel, GPT2Config, _GPT2),
    "llama": (LlamaForCausalLM, LlamaConfig, _GROUPED),
    "gpt2_head": (GPT2ForSequenceClassification, GPT2Config, {**_GPT2, "num_labels": 3}),
    "llama_head": (LlamaForSequenceClassification, LlamaConfig, {**_GROUPED, "num_labels": 3}),
    "roberta_head": (RobertaForSequenceClassification, RobertaConfig, {**_ENCODER, "num_labels": 3}),
    "electra_head": (
        ElectraForSequenceClassification,
        ElectraConfig,
        {**_ENCODER, "num_labels": 3, "embedding_size": WIDTH},
    ),
    "mistral": (MistralForCausalLM, MistralConfig, {**_GROUPED, "sliding_window": None}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, _GROUPED),
    "t5": (T5ForConditionalGeneration, T5Config, _T5),
    "mt5": (MT5ForConditionalGeneration, MT5Config, {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "bart": (BartForConditionalGeneration, BartConfig, _BART),
    "mbart": (MBartForConditionalGeneration, MBartConfig, _BART),
    "whisper": (
        WhisperForConditionalGeneration,
        WhisperConfig,
        {**_BART, "num_mel_bins": 5, "max_source_positions": FRAMES // 2, "max_target_positions": 64,
         "begin_suppress_tokens": None},
    ),
    "distilbert_head": (
        DistilBertForSequenceClassification,
        DistilBertConfig,
        {"vocab_size": VOCAB, "pad_token_id": PAD, "dim": WIDTH, "n_heads": 4, "hidden_dim": 64, "dropout": 0.0,
         "attention_dropout": 0.0, "seq_classif_dropout": 0.0, "max_position_embeddings": 64, "initializer_range": 0.1,
         "num_labels": 3},
    ),
    "albert": (AlbertModel, AlbertConfig, {**_ENCODER, "embedding_size": 16}),
    "albert_head": (
        AlbertForSequenceClassification,
        AlbertConfig,
        {**_ENCODER, "embedding_size": 16, "classifier_dropout_prob": 0.0, "num_labels": 3},
    ),
    "opt": (OPTForCausalLM, OPTConfig, _OPT),
    "opt_post": (OPTForCausalLM, OPTConfig, {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "vit_head": (
        ViTForImageClassification,
        ViTConfig,
        {"hidden_size": WIDTH, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 12, "patch_size": 4,
         "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.1, "num_labels": 3},
    ),
}  # fmt: skip
IMAGE = 4  # the token in whose place a picture stands
#: Those of which none is.
FOUND: dict[str, Any] = {
    # queries, keys and values in one map, gate and up in another
    "phi3": (T.Phi3ForCausalLM, T.Phi3Config, {**_GROUPED, "original_max_position_embeddings": 64}),
    # queries, keys and values by turns, head by head; two sublayers beside each other
    "gpt_neox": (T.GPTNeoXForCausalLM, T.GPTNeoXConfig, {**_COMMON, "rotary_pct": 0.5}),
    # experts
    "mixtral": (T.MixtralForCausalLM, T.MixtralConfig, {**_GROUPED, "num_local_experts": 4, "sliding_window": None}),
    # a state-space layer, then one of attention with experts
    "jamba": (
        T.JambaForCausalLM, T.JambaConfig,
        {**_GROUPED, "num_experts": 2, "num_experts_per_tok": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
         "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4, "mamba_d_conv": 3, "mamba_dt_rank": 4,
         "use_mamba_kernels": False},
    ),
    # latent attention, whose heads of keys and of values differ in size; experts, one of them shared
    "deepseek_v3": (
        T.DeepseekV3ForCausalLM, T.DeepseekV3Config,
        {**_COMMON, "num_key_value_heads": 4, "q_lora_rank": 12, "kv_lora_rank": 10, "qk_rope_head_dim": 4,
         "qk_nope_head_dim": 6, "v_head_dim": 8, "moe_intermediate_size": 16, "n_routed_experts": 4,
         "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "n_shared_experts": 1, "first_k_dense_replace": 1},
    ),
    # norms on both sides of a sublayer, a window, scores that are capped
    "gemma2": (
        T.Gemma2ForCausalLM, T.Gemma2Config,
        {**_GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 6,
         "attn_implementation": "eager"},  # SDPA does not cap, and knows no row that sees nothing
    ),
    # a tower that reads pictures before one that reads words
    "smolvlm": (
        T.SmolVLMForConditionalGeneration, T.SmolVLMConfig,
        {"image_token_id": IMAGE, "scale_factor": 2, "pad_token_id": PAD,
         "text_config": {"model_type": "llama", **_GROUPED, "attention_bias": True},  # biases that words alone meet
         "vision_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
                           "image_size": 8, "patch_size": 4}},
    ),
    # a tower of words beside one of pictures; a text is read where its largest id stands
    "clip": (
        T.CLIPModel, T.CLIPConfig,
        {"projection_dim": 8,
         "text_config": {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
                         "max_position_embeddings": 64, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": PAD},
         "vision_config": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
                           "image_size": 8, "patch_size": 4}},
    ),
    # an encoder with a window, fused maps and a gate
    "modernbert": (
        T.ModernBertModel, T.ModernBertConfig,
        {**_COMMON, "cls_token_id": 2, "sep_token_id": 3, "local_attention": 4, "global_attn_every_n_layers": 2},
    ),
    # an encoder with norms behind the sums, whose attention is its own
    "deberta_v2_head": (
        T.DebertaV2ForSequenceClassification, T.DebertaV2Config,
        {**_ENCODER, "num_labels": 3, "relative_attention": True, "position_buckets": 4, "pos_att_type": ["p2c", "c2p"],
         "norm_rel_ebd": "layer_norm", "pooler_hidden_size": WIDTH},
    ),
    # what is added is multiplied by a number
    "granite": (
        T.GraniteForCausalLM, T.GraniteConfig,
        {**_GROUPED, "residual_multiplier": 0.5, "embedding_multiplier": 2.0, "attention_multiplier": 0.3},
    ),
}  # fmt: skip
KINDS = {**DESCRIBED, **FOUND}
DECODERS = ("gpt2", "llama", "mistral", "qwen2", "opt", "opt_post")
ENCODER_DECODERS = ("t5", "mt5", "bart", "mbart", "whisper")
#: What configurations call the number of layers, with how many a stack has beyond the others.
_DEPTHS: dict[type, tuple[tuple[str, int], ...]] = {
    GPT2Config: (("n_layer", 0),), DistilBertConfig: (("n_layers", 0),),
    T5Config: (("num_layers", 1), ("num_decoder_layers", 0)), MT5Config: (("num_layers", 1), ("num_decoder_layers", 0)),
    BartConfig: (("encoder_layers", 1), ("decoder_layers", 0)), MBartConfig: (("encoder_layers", 1), ("decoder_layers", 0)),
    WhisperConfig: (("encoder_layers", 1), ("decoder_layers", 0)), T.SmolVLMConfig: (), T.CLIPConfig: (),
}  # fmt: skip


def build(kind: str, dtype: torch.dtype = torch.float32, layers: int = 2, **changes: Any) -> nn.Module:
    """A base in evaluation mode. Biases and norms are random too: a zero bias would hide what is done to it.

    An encoder before a decoder has one layer more than it (generation sizes T5's cache by the encoder's depth).
    """
    cls, config, options = KINDS[kind]
    changes |= {n: layers + more for n, more in _DEPTHS.get(config, (("num_hidden_layers", 0),))}
    torch.manual_seed(0)
    settings = config(**{**options, **changes})
    settings._experts_implementation = "eager"  # the other ways know no float64
    model = cls(settings)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(0.1 * torch.randn(p.shape, generator=g))
    return model.to(dtype).eval()


def batch(kind: str, rows: int = 3, tokens: int = 7, padded: bool = True, seed: int = 0) -> dict[str, torch.Tensor]:
    """Token ids and a mask (a decoder's too, from its start token on); one row is shorter, with its padding at the right.
    Sound and pictures have no padding."""
    if kind in ENCODER_DECODERS:
        decoder = {f"decoder_{n}": t for n, t in batch("bert", rows, tokens - 2, padded, seed + 1).items()}
        decoder["decoder_input_ids"][:, 0] = KINDS[kind][2]["decoder_start_token_id"]
        return {**(_sound(rows, seed) if kind == "whisper" else batch("bert", rows, tokens, padded, seed)), **decoder}
    if kind == "vit_head":
        return {"pixel_values": torch.randn(rows, 3, 12, 12, generator=torch.Generator().manual_seed(seed))}
    ids = torch.randint(5, VOCAB, (rows, tokens), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    if padded and rows > 1:
        mask[1, -2:] = 0
        ids[1, -2:] = PAD
    found = {"input_ids": ids, "attention_mask": mask}
    if kind == "clip":
        found["pixel_values"] = torch.randn(rows, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    if kind == "smolvlm" and padded:  # what is written on is words alone
        ids[:, 1] = IMAGE
        found["pixel_values"] = torch.randn(rows, 1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return found


def _sound(rows: int, seed: int) -> dict[str, torch.Tensor]:
    return {"input_features": torch.randn(rows, 5, FRAMES, generator=torch.Generator().manual_seed(seed))}


def examples(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Ids that tell the examples of a batch apart: those of its texts; of sound and pictures, the example's number."""
    rows = len(next(iter(inputs.values())))
    return inputs["input_ids"] if "input_ids" in inputs else torch.arange(5, 5 + rows)[:, None]


def starting(model: nn.Module) -> dict[str, Any]:
    """What some methods are applied with: a tokenizer, the words of the labels, and batches of data with labels."""
    kind = next((k for k, (cls, _, _) in KINDS.items() if type(model) is cls), None)
    if kind is None:
        return {}  # a model of a test's own
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    data = []
    for seed in (21, 22):
        inputs = {n: t.to(dtype) if t.is_floating_point() else t for n, t in batch(kind, seed=seed).items()}
        ids = inputs.get("decoder_input_ids", inputs.get("input_ids"))
        labels = torch.arange(3) if kind.endswith("_head") else ids
        data.append(inputs | {"labels": labels} if kind != "bert" and labels is not None else inputs)
    return {"tokenizer": lambda text, **_: {"input_ids": [MARK]}, "data": data, "batches": len(data),
            "label_words": ["good", "bad", "other"]}  # fmt: skip


def giving(model: nn.Module, inputs: dict[str, torch.Tensor]) -> Any:
    """A block in which a model has the arguments that its adapters declare, as the ids of the inputs make them."""
    found = declared(model, examples(inputs))
    return unipelt.inputs(model, **found) if found else nullcontext()


def outputs(
    model: nn.Module, inputs: dict[str, torch.Tensor], also: tuple[str, ...] = (), **more: Any
) -> dict[str, torch.Tensor]:
    """What a user reads from a model: logits, or the last hidden state and the pooled one; ``also`` others, by name."""
    dtype = next(model.parameters()).dtype
    more = {**declared(model, examples(inputs)), **more}
    o = model(**{n: t.to(dtype) if t.is_floating_point() else t for n, t in inputs.items()}, **more)
    found = {
        n: o[n]
        for n in ("logits", "last_hidden_state", "pooler_output", "text_embeds", "image_embeds", *also)
        if n in o and o[n] is not None
    }
    assert found
    return found


def look(
    model: nn.Module, inputs: dict[str, torch.Tensor], also: tuple[str, ...] = (), **more: Any
) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return {n: t.detach().clone() for n, t in outputs(model, inputs, also, **more).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference. Where a prompt made one of them longer, the tokens' own positions are compared."""
    assert a.keys() == b.keys()
    found = 0.0
    for n in a:
        x, y = a[n].double(), b[n].double()
        assert torch.isfinite(x).all() and torch.isfinite(y).all()
        if x.dim() == 3:
            tokens = min(x.shape[1], y.shape[1])
            x, y = x[:, -tokens:], y[:, -tokens:]
        assert x.shape == y.shape
        found = max(found, float((x - y).abs().max()))
    return found


def size(a: dict[str, torch.Tensor]) -> float:
    return max(float(t.double().abs().max()) for t in a.values())


def loss(model: nn.Module, inputs: dict[str, torch.Tensor], **more: Any) -> torch.Tensor:
    """A number that depends on every entry of the output."""
    total = torch.zeros((), dtype=torch.float64)
    for i, t in enumerate(outputs(model, inputs, **more).values()):
        weights = torch.randn(t.shape, generator=torch.Generator().manual_seed(40 + i), dtype=torch.float64)
        total = total + (t.double() * weights).sum()
    return total


# ---------------------------------------------------------------- adapters


#: Arguments of methods at which there is something to see in tiny models: a value for each position of the longest text, a temperature
#: and bounds that suit their width, words that stand in the texts, an alpha that is the rank, as it is by default, at all maps of a layer,
#: a block that they have.
ROOM: dict[str, dict[str, Any]] = {
    "dept": {"s": 48}, "attempt": {"temperature": 4.0}, "coft": {"eps": 0.5}, "coft_shared": {"eps": 0.5}, "cpt": {"eps": 4.0},
    "mtlora": {"s": 1.0}, "maple": {"d_text": 32}, "corda": {"alpha": 4.0}, "corda_ipm": {"alpha": 4.0},
    "sine_lora": {"frequency": 4.0}, "uni_lora": {"n": 512}, "trainable_tokens": {"n": VOCAB, "which": f"permutation({VOCAB})"},
    "late_prompt_tuning": {"before": 1}, "late_prompt_tuning_generated": {"before": 1},
}  # fmt: skip


@lru_cache(maxsize=None)
def small(name: str) -> Any:
    """A method of the library with sizes that suit the tiny models and the texts of the tests."""
    return smaller(unipelt.load(name), 4)(**ROOM.get(name, {}))


def trained(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The adapter's trained parameters by their names in its state dict."""
    parameters = {p.data_ptr(): p for g in unipelt.parameter_groups(model, name, 1.0) for p in g["params"]}
    return {
        n: parameters[t.data_ptr()] for n, t in unipelt.state_dict(model, name).items() if t.data_ptr() in parameters
    }


def randomise(model: nn.Module, name: str, seed: int = 0, scale: float = 0.2) -> None:
    """Adds noise to every trained tensor, drawn by its name: a start at the identity would hide everything."""
    found = trained(model, name)
    assert found
    with torch.no_grad():
        for n, p in found.items():
            key = int.from_bytes(hashlib.sha256(f"{seed}:{n}".encode()).digest()[:6], "little")
            noise = torch.randn(p.shape, generator=torch.Generator().manual_seed(key), dtype=torch.float64)
            p.add_((scale * noise).to(p.dtype))


def put(model: nn.Module, spec: Any, name: str = "a", noise: int = 0, **options: Any) -> Any:
    """Applies a method (or the library's by that name), on a causal model too, and randomises it."""
    method = small(spec) if isinstance(spec, str) else spec
    with among_members(model, method) as written:
        plan = unipelt.apply(model, written, name=name, allow_future=True, **starting(model), **options)
    randomise(model, name, noise)
    return plan


# ---------------------------------------------------------------- traces


def footprint(model: nn.Module) -> dict[str, Any]:
    """Everything a model is made of, but for its values."""
    hooks = {}
    for path, m in model.named_modules():
        counts = {
            k: len(v)
            for k, v in vars(m).items()
            if k.startswith("_") and k.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called"))
        }
        hooks[path] = (type(m), tuple(sorted(vars(m))), tuple(sorted(counts.items())), m.training)
    return {
        "modules": hooks,
        "state": {n: (tuple(t.shape), t.dtype) for n, t in model.state_dict().items()},
        "parameters": {n: (id(p), p.requires_grad) for n, p in model.named_parameters()},
        "buffers": {n: id(b) for n, b in model.named_buffers()},
        "config": repr(model.config),
        "attention": model.config._attn_implementation,
    }


def values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: t.detach().clone() for n, t in model.state_dict().items()}


def same_values(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


class Bases:
    """Base models that the tests share, bare or with a method on. One that a failing test left changed is built anew."""

    def __init__(self) -> None:
        self.built: dict[tuple, nn.Module] = {}  # lent to nobody: what is lent is a copy
        self.kept: dict[tuple, tuple[nn.Module, dict, dict]] = {}
        self.lent: list[tuple] = []
        self.found: dict[tuple, Any] = {}

    def once(self, what: tuple, find: Callable[[], Any]) -> Any:
        """What was found of a base, which does not change."""
        if what not in self.found:
            self.found[what] = find()
        return self.found[what]

    def get(
        self, kind: str, dtype: torch.dtype = torch.float32, copy_number: int = 0, wearing: str | None = None
    ) -> nn.Module:
        """A base; ``wearing``: with that method on, randomised, as adapter ``a``. Those of one method are kept at a time."""
        key = (kind, dtype, copy_number, wearing)
        if key not in self.kept:
            if wearing is not None:
                self.kept = {k: v for k, v in self.kept.items() if k[3] in (None, wearing)}
            if (kind, dtype) not in self.built:
                self.built[kind, dtype] = build(kind, dtype)
            model = fresh(self.built[kind, dtype])
            if wearing is not None:
                put(model, wearing)
            self.kept[key] = (model, footprint(model), values(model))
        self.lent.append(key)
        return self.kept[key][0]

    def take_back(self) -> list[tuple]:
        """The models that were lent and are not as they were."""
        changed = []
        for key in dict.fromkeys(k for k in self.lent if k in self.kept):
            model, before, weights = self.kept[key]
            clean = footprint(model) == before and same_values(model.state_dict(), weights)
            if not clean or any(p.grad is not None for p in model.parameters()):
                changed.append(key)
                del self.kept[key]
        self.lent.clear()
        return changed


def fresh(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)
