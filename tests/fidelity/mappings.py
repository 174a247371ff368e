"""Another library's tensors under unipelt's names: where each model keeps its sites, and what each kind of module is called there.

A mapping is ``our name → (their name, view)``; the view (a transpose, a slice, a reshape) is applied to their tensor
and to its gradient alike. Nothing is compared here: `fidelity_kit` holds a mapping against both sides and uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import unipelt
from unipelt.language.sites import site_name

View = Callable[[Tensor], Tensor]
Mapped = dict[str, tuple[str, View]]

# ---------------------------------------------------------------- where things are

#: Paths within a block, for each of our sites.
MODULES = {
    "bert": {
        "attn.q": "attention.self.query", "attn.k": "attention.self.key", "attn.v": "attention.self.value",
        "attn.o": "attention.output.dense", "ffn.up": "intermediate.dense", "ffn.down": "output.dense",
        "ffn.hidden": "output.dense", "attn.heads": "attention.output.dense",
        "attn": "attention.output", "ffn": "output",
    },
    "gpt2": {
        "attn.q": "attn.c_attn", "attn.k": "attn.c_attn", "attn.v": "attn.c_attn", "attn.o": "attn.c_proj",
        "ffn.up": "mlp.c_fc", "ffn.down": "mlp.c_proj", "ffn.hidden": "mlp.c_proj", "ffn": "output_adapters",
    },
    "llama": {
        "attn.q": "self_attn.q_proj", "attn.k": "self_attn.k_proj", "attn.v": "self_attn.v_proj",
        "attn.o": "self_attn.o_proj", "ffn.up": "mlp.up_proj", "ffn.down": "mlp.down_proj",
        "ffn.hidden": "mlp.down_proj",
    },
    "bart": {
        "attn.q": "self_attn.q_proj", "attn.v": "self_attn.v_proj",
        "cross.q": "encoder_attn.q_proj", "cross.v": "encoder_attn.v_proj", "ffn": "output_adapters",
    },
    "t5": {
        **{f"attn.{n}": f"layer.0.SelfAttention.{n}" for n in "qkv"},
        **{f"cross.{n}": f"layer.1.EncDecAttention.{n}" for n in "qkv"},
        "encoder.ffn.hidden": "layer.1.DenseReluDense.wo", "decoder.ffn.hidden": "layer.2.DenseReluDense.wo",
    },
}  # fmt: skip
#: Where a model's blocks are, for each of its stacks.
BLOCKS = {
    "bert": {None: "encoder.layer"}, "gpt2": {None: "h"}, "llama": {None: "layers"},
    "bart": {"encoder": "encoder.layers", "decoder": "decoder.layers"},
    "t5": {"encoder": "encoder.block", "decoder": "decoder.block"},
}  # fmt: skip
#: The model inside peft's wrapper, for each of ours.
PEFT_ROOTS = {
    "bert": "base_model.model.bert.", "gpt2": "base_model.model.transformer.", "llama": "base_model.model.model.",
    "t5": "base_model.model.",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A model and the library whose names are mapped."""

    kind: str  # bert, gpt2, llama, bart, t5
    peft: bool
    layers: int
    groups: int
    d_head: int
    rows: tuple[str, ...]  # the names of the method's rows, in order

    @staticmethod
    def of(config: Any, peft: bool, method: unipelt.Method) -> Place:
        groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return Place(config.model_type, peft, config.num_hidden_layers, groups,
                     config.hidden_size // config.num_attention_heads, tuple(r.name for r in method.rows))  # fmt: skip

    def theirs(self, layer: int, site: str) -> str:
        """A site's module in their names; ``decoder.attn.q`` in a model of two stacks."""
        root = PEFT_ROOTS[self.kind] if self.peft else ""
        stack, name = site_name(site)
        modules = MODULES[self.kind]
        return f"{root}{BLOCKS[self.kind][stack]}.{layer}.{modules.get(site) or modules[name]}"

    def ours(self, layer: int, site: str, row: int, tensor: str) -> str:
        stack, name = site_name(site)
        return f"{BLOCKS[self.kind][stack]}.{layer}.{name + '.' if name else ''}{self.rows[row]}.{tensor}"

    def attention(self, layer: int) -> str:
        """The self-attention of a layer (of the encoder, in a model of two stacks)."""
        blocks = next(iter(BLOCKS[self.kind].values()))
        return f"{blocks}.{layer}." + {"bert": "attention.self", "gpt2": "attn"}.get(self.kind, "self_attn")


# ---------------------------------------------------------------- views


def same(t: Tensor) -> Tensor:
    return t


def transposed(t: Tensor) -> Tensor:
    return t.T


def part(start: int, stop: int, then: View = same) -> View:
    """Some rows (of a fused projection's tensors), then another view."""
    return lambda t: then(t[start:stop])


def scalar(t: Tensor) -> Tensor:
    return t.reshape(())


def flat(t: Tensor) -> Tensor:
    return t.reshape(-1)


def by_head(d_head: int) -> View:
    return lambda t: t.view(-1, d_head)


# ---------------------------------------------------------------- mappings of one kind of module

Piece = Callable[[Place], Mapped]


def bottleneck(*sites: str, row: int = 0, gated: bool = False, scaled: bool = False) -> Piece:
    """`adapters`: linear layers keep (out, in), a gate is a linear layer with one output."""

    def mapped(p: Place) -> Mapped:
        out: Mapped = {}
        for i in range(p.layers):
            for site in sites:
                front = f"{p.theirs(i, site)}.adapters.ad"
                found = {
                    "down": ("adapter_down.0.weight", transposed), "b_down": ("adapter_down.0.bias", same),
                    "up": ("adapter_up.weight", transposed), "b_up": ("adapter_up.bias", same),
                }  # fmt: skip
                if gated:
                    found |= {"gate.w": ("gate.weight", flat), "gate.b": ("gate.bias", scalar)}
                if scaled:
                    found |= {"s": ("scaling", scalar)}
                out |= {p.ours(i, site, row, n): (f"{front}.{t}", view) for n, (t, view) in found.items()}
        return out

    return mapped


def low_rank(
    *sites: str, row: int = 0, r: int = 0, width: int = 32, gated: bool = False, bias: bool = False,
    layers: Iterable[int] | None = None,
) -> Piece:  # fmt: skip
    """LoRA: A is (r, in) and B is (out, r). In `adapters` a fused projection holds the factors of its parts one after
    another, in the order q, k, v; in peft the parts share A, and B has the rows of all."""

    def mapped(p: Place) -> Mapped:
        out: Mapped = {}
        fused = [s for s in sites if p.kind == "gpt2" and s in ("attn.q", "attn.k", "attn.v")]
        for i in range(p.layers) if layers is None else layers:
            for site in sites:
                front = p.theirs(i, site)
                A, B = (f"{front}.lora_{n}.default.weight" if p.peft else f"{front}.loras.ad.lora_{n}" for n in "AB")
                n = fused.index(site) if site in fused else None
                if n is None:
                    factors: Mapped = {"A": (A, transposed), "B": (B, transposed)}
                elif p.peft:
                    out[p.ours(i, "", row, "A")] = (A, transposed)
                    factors = {"B": (B, part(n * width, (n + 1) * width, transposed))}
                else:
                    factors = {"A": (A, part(n * r, (n + 1) * r, transposed)),
                               "B": (B, part(n * width, (n + 1) * width, transposed))}  # fmt: skip
                if gated:
                    g = n or 0  # one output of the fused projection's gate for each part
                    factors |= {"gate.w": (f"{front}.loras.ad.gate.weight", part(g, g + 1, flat)),
                                "gate.b": (f"{front}.loras.ad.gate.bias", part(g, g + 1, scalar))}  # fmt: skip
                if bias:
                    factors |= {"b": (B.removesuffix("weight") + "bias", same)}
                out |= {p.ours(i, site, row, k): v for k, v in factors.items()}
        return out

    return mapped


def rescaling(*sites: str, row: int = 0, width: int = 32) -> Piece:
    """(IA)³: a column or a row of one; at the heads each takes its own stretch."""

    def mapped(p: Place) -> Mapped:
        out: Mapped = {}
        fused = [s for s in sites if p.kind == "gpt2" and s in ("attn.q", "attn.k", "attn.v")]
        for i in range(p.layers):
            for site in sites:
                name = p.theirs(i, site) + (".ia3_l.default" if p.peft else ".loras.ad.lora_B")
                view: View = flat
                if site in fused:
                    n = fused.index(site)
                    view = part(n * width, (n + 1) * width, flat)
                elif site == "attn.heads":
                    view = by_head(p.d_head)
                out[p.ours(i, site, row, "l")] = (name, view)
        return out

    return mapped


#: What `adapters` calls the prefixes of the three kinds of attention.
PREFIXES = {
    "attn.heads": "self_prefix", "encoder.attn.heads": "encoder_prefix", "decoder.attn.heads": "self_prefix",
    "decoder.cross.heads": "cross_prefix",
}  # fmt: skip


def _prefix_source(p: Place, site: str) -> str:
    if p.peft:
        return "prompt_encoder.default"
    return f"{p.attention(0)}.prefix_tuning.pool.prefix_tunings.ad.{PREFIXES[site]}"  # the first layer keeps them all


def prefix(l: int, row: int = 0, site: str = "attn.heads") -> Piece:
    """Both libraries lay a prefix out as (l, 2 · layers, heads, d_head): key 0, value 0, key 1, …"""

    def mapped(p: Place) -> Mapped:
        name = _prefix_source(p, site) + (".embedding.weight" if p.peft else ".control_trans")

        def block(n: int) -> View:
            return lambda t: t.view(l, 2 * p.layers, p.groups, p.d_head)[:, n].permute(1, 0, 2)

        found = [(i, part, 2 * i + n) for i in range(p.layers) for n, part in enumerate(("P_k", "P_v"))]
        return {p.ours(i, site, row, part): (name, block(n)) for i, part, n in found}

    return mapped


def prefix_mlp(
    row: int = 0, names: tuple[str, str, str, str] = ("W_k", "b_k", "W_v", "b_v"), site: str = "attn.heads"
) -> Piece:
    """The MLP's last layer makes the keys and values of all layers and heads; ours has a slice for each."""

    def mapped(p: Place) -> Mapped:
        source = _prefix_source(p, site)
        mlp = "transform" if p.peft else "control_trans"
        kind = f"{site}.{p.rows[row]}"
        out: Mapped = {
            f"{kind}.E": (f"{source}.{'embedding' if p.peft else 'wte'}.weight", same),
            f"{kind}.W1": (f"{source}.{mlp}.0.weight", transposed),
            f"{kind}.b1": (f"{source}.{mlp}.0.bias", same),
        }

        def weight(n: int) -> View:
            return lambda t: t.view(2 * p.layers, p.groups, p.d_head, -1)[n].permute(0, 2, 1)

        def bias(n: int) -> View:
            return lambda t: t.view(2 * p.layers, p.groups, p.d_head)[n]

        for i in range(p.layers):
            for n in range(2):
                out[p.ours(i, site, row, names[2 * n])] = (f"{source}.{mlp}.2.weight", weight(2 * i + n))
                out[p.ours(i, site, row, names[2 * n + 1])] = (f"{source}.{mlp}.2.bias", bias(2 * i + n))
        return out

    return mapped


def prefix_gates(*names: str, row: int = 0) -> Piece:
    """`adapters`: one linear layer, one output for each gate (keys first)."""

    def mapped(p: Place) -> Mapped:
        out: Mapped = {}
        for i in range(p.layers):
            front = f"{p.attention(i)}.prefix_tuning.prefix_gates.ad"
            for n, g in enumerate(names):
                out[p.ours(i, "attn.heads", row, f"{g}_w")] = (f"{front}.weight", part(n, n + 1, flat))
                out[p.ours(i, "attn.heads", row, f"{g}_b")] = (f"{front}.bias", part(n, n + 1, scalar))
        return out

    return mapped


def prompt(site: str, row: int = 0) -> Piece:
    def mapped(p: Place) -> Mapped:
        name = "prompt_encoder.default.embedding" if p.peft else "prompt_tuning.prompt_tunings.ad.prompt_embedding"
        return {f"{site}.{p.rows[row]}.P": (f"{name}.weight", same)}

    return mapped


def prompt_lstm(row: int = 0) -> Piece:
    """peft's prompt encoder: a bidirectional LSTM of one layer (gates i, f, g, o) and an MLP."""

    def mapped(p: Place) -> Mapped:
        front, ours = "prompt_encoder.default", f"embed.words.{p.rows[row]}"
        out: Mapped = {f"{ours}.E": (f"{front}.embedding.weight", same)}
        for mark, end in (("f", ""), ("b", "_reverse")):
            for name, part_, view in (("x", "ih", transposed), ("h", "hh", transposed)):
                out[f"{ours}.W_{name}{mark}"] = (f"{front}.lstm_head.weight_{part_}_l0{end}", view)
                out[f"{ours}.b_{name}{mark}"] = (f"{front}.lstm_head.bias_{part_}_l0{end}", same)
        return out | _mlp_head(ours, front, 2)

    return mapped


def prompt_mlp(row: int = 0) -> Piece:
    """peft's prompt encoder of three linear layers."""

    def mapped(p: Place) -> Mapped:
        front, ours = "prompt_encoder.default", f"embed.words.{p.rows[row]}"
        return {f"{ours}.E": (f"{front}.embedding.weight", same)} | _mlp_head(ours, front, 3)

    return mapped


def _mlp_head(ours: str, front: str, layers: int) -> Mapped:
    out: Mapped = {}
    for i in range(layers):
        out[f"{ours}.W{i + 1}"] = (f"{front}.mlp_head.{2 * i}.weight", transposed)
        out[f"{ours}.b{i + 1}"] = (f"{front}.mlp_head.{2 * i}.bias", same)
    return out


def adaption(row: int = 0) -> Piece:
    """peft: a prompt (1, l, d) and one gate a layer."""

    def mapped(p: Place) -> Mapped:
        out: Mapped = {}
        for i in range(p.layers):
            front = f"{PEFT_ROOTS[p.kind]}{p.attention(i)}"
            out[p.ours(i, "", row, "P")] = (f"{front}.adaption_prompt", lambda t: t[0])
            out[p.ours(i, "", row, "t")] = (f"{front}.adaption_gate", scalar)
        return out

    return mapped


def norms(*names: str, biases: bool) -> Piece:
    """peft's LN tuning: a copy of each norm; names with `*` stand in every block."""

    def mapped(p: Place) -> Mapped:
        places = [
            n.replace("*", f"{BLOCKS[p.kind][None]}.{i}") for n in names for i in range(p.layers if "*" in n else 1)
        ]
        kinds = ("weight", "bias") if biases else ("weight",)
        root = PEFT_ROOTS[p.kind]
        return {f"{n}.{k}": (f"{root}{n}.ln_tuning_layers.default.{k}", same) for n in places for k in kinds}

    return mapped


def classifier(prefix_wrapper: bool = False) -> Piece:
    """peft's `modules_to_save`; the wrapper of prompt methods names it without `model`."""
    front = "base_model." if prefix_wrapper else "base_model.model."

    def mapped(p: Place) -> Mapped:
        return {f"classifier.{k}": (f"{front}classifier.modules_to_save.default.{k}", same) for k in ("weight", "bias")}

    return mapped


def mapping(pieces: Iterable[Piece], place: Place) -> Mapped:
    out: Mapped = {}
    for piece in pieces:
        found = piece(place)
        twice = {n for n in out.keys() & found.keys() if out[n][0] != found[n][0]}
        assert not twice, f"mapped twice: {twice}"
        out |= found
    return out
