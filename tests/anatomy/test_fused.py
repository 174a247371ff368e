"""Projections that alternate head by head or group by group in one module: GPT-NeoX, BLOOM, Falcon's three layouts, and Phi-3's, side by side.

The reference is a hook that changes the columns by hand; which they are is read by the modelling file's own change of shape.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from names import name as named
from torch import nn

import unipelt
from unipelt.anatomy.columns import Columns
from unipelt.anatomy.find import OWN, find
from unipelt.runtime.seam import key_of, seams

WIDTH, VOCAB, HEADS, SIZE = 32, 64, 4, 8
SMALL: dict[str, Any] = dict(vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS, pad_token_id=0, bos_token_id=1,
                             eos_token_id=2, initializer_range=0.3)  # fmt: skip
FALCON = ('block: "h.*"  attn.x: "self_attention"  attn.heads: "self_attention"  attn.o: "self_attention.dense" '
          + "  ".join(f'attn.{w}: "self_attention.query_key_value[{w} of q k v per group]"' for w in "qkv")
          + '  ffn.x: "mlp"  ffn.up: "mlp.dense_h_to_4h"  ffn.down: "mlp.dense_4h_to_h"  embed: "word_embeddings"  final: "ln_f"')  # fmt: skip
SUBLAYERS = 'attn: "{attn}"  attn.residual: "input_layernorm"  attn.norm: "input_layernorm"  ffn: "{ffn}"  ffn.residual: "post_attention_layernorm"  ffn.norm: "post_attention_layernorm" '
BLOOM = (SUBLAYERS.format(attn="self_attention.dense", ffn="mlp.dense_4h_to_h") + FALCON).replace(
    '"word_embeddings"', '"word_embeddings_layernorm"'
)
NEOX = (SUBLAYERS.format(attn="post_attention_dropout", ffn="post_mlp_dropout") + FALCON).replace("h.*", "layers.*").replace(
    "self_attention", "attention").replace('"word_embeddings"', '"emb_dropout"').replace('"ln_f"', '"final_layer_norm"')  # fmt: skip
for part, word in enumerate("qkv"):
    BLOOM, NEOX = (a.replace(f"[{word} of q k v per group]", f"[{part}/3 per head]") for a in (BLOOM, NEOX))
PHI3 = ('like: "pre_norm"  ' + "  ".join(f'attn.{w}: "self_attn.qkv_proj[{w} of q k v]"' for w in "qkv")
        + '  ffn.gate: "mlp.gate_up_proj[0/2]"  ffn.up: "mlp.gate_up_proj[1/2]"')  # fmt: skip


def alternating(i: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """As GPT-NeoX, BLOOM and the first Falcon change the shape: [heads, 3, size]."""
    return tuple(i.view(HEADS, 3, SIZE).unbind(1))


def grouped(i: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """As the new Falcon: [groups, queries of a group and two more, size]."""
    rows = i.view(2, -1, SIZE)
    return rows[:, :-2], rows[:, -2], rows[:, -1]


def one_group(i: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """As Falcon with one key and value for all heads."""
    rows = i.view(-1, SIZE)
    return rows[:-2], rows[-2], rows[-1]


def behind(i: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """As Phi-3, with two groups."""
    q = HEADS * SIZE
    return i[:q], i[q : q + 2 * SIZE], i[q + 2 * SIZE :]


@dataclass(frozen=True)
class Kind:
    config: Callable[[], Any]
    anatomy: str
    module: str  # of the projection, in a layer
    shape: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]

    def where(self, model: nn.Module, site: str) -> list[int]:
        width = next(m for n, m in model.named_modules() if n.endswith(self.module)).out_features
        return self.shape(torch.arange(int(width)))["qkv".index(site[-1])].flatten().tolist()


def falcon(**more: Any) -> Callable[[], Any]:
    return lambda: T.FalconConfig(**SMALL, ffn_hidden_size=48, bias=True, alibi=False, **more)


FUSED = "self_attention.query_key_value"
KINDS: dict[str, Kind] = {
    "gpt_neox": Kind(lambda: T.GPTNeoXConfig(**SMALL, intermediate_size=48, max_position_embeddings=32, use_parallel_residual=False), NEOX, "attention.query_key_value", alternating),
    "bloom": Kind(lambda: T.BloomConfig(**SMALL), BLOOM, FUSED, alternating),
    "falcon new": Kind(falcon(new_decoder_architecture=True, num_kv_heads=2), FALCON, FUSED, grouped),
    "falcon multi query": Kind(falcon(new_decoder_architecture=False, multi_query=True), FALCON, FUSED, one_group),
    "falcon heads": Kind(falcon(new_decoder_architecture=False, multi_query=False, parallel_attn=False), FALCON, FUSED, alternating),
    "phi3": Kind(lambda: T.Phi3Config(**SMALL, num_key_value_heads=2, intermediate_size=48, max_position_embeddings=32), PHI3, "self_attn.qkv_proj", behind),
}  # fmt: skip
QKV = ("attn.q", "attn.k", "attn.v")
kinds = pytest.mark.parametrize("kind", list(KINDS))


def model_of(kind: str, monkeypatch: pytest.MonkeyPatch, folder: Path, anatomy: str = "") -> Any:
    k = KINDS[kind]
    config = k.config()
    file = folder / "mine.pelt"
    file.write_text(f"anatomy mine for {config.model_type} {{ {anatomy or k.anatomy} }}")
    monkeypatch.setenv(OWN, str(file))
    torch.manual_seed(0)
    model = T.AutoModel.from_config(config).eval()
    for m in model.modules():
        if type(m).__name__ == "BloomAttention":
            m.is_causal = True  # it is, and does not say so; an anatomy has no word for it
    with torch.no_grad():
        for p in model.parameters():  # biases and norms too: at zero and one they would hide what they do
            if p.dim() == 1:
                p.add_(torch.randn_like(p) * 0.3)
    return model


def fused_of(model: nn.Module, kind: str) -> list[nn.Linear]:
    return [m for n, m in model.named_modules() if n.endswith(KINDS[kind].module)]  # type: ignore[misc]


def output(model: Any) -> torch.Tensor:
    return model(input_ids=torch.arange(5, 11)[None]).last_hidden_state


def low_rank(*sites: str) -> Any:
    return unipelt.parse(f"method low {{ modify {', '.join(sites)}  insert parallel  form {{ A: [d_in, 2] ~ normal(0.3)  "
                         "B: [2, d_out] ~ normal(0.3)  delta = z @ A @ B } compose add }")  # fmt: skip


def by_hand(model: Any, kind: str, sites: tuple[str, ...], tensors: dict[str, torch.Tensor]) -> None:
    """Adds x A B to the columns of each site, in a hook of the module."""
    layers = model.layers if hasattr(model, "layers") else model.h
    for layer, module in enumerate(fused_of(model, kind)):

        def hook(_: nn.Module, args: tuple, out: torch.Tensor, layer: int = layer) -> torch.Tensor:
            for site in sites:
                A, B = (tensors[f"{'h' if hasattr(model, 'h') else 'layers'}.{layer}.{site}.low.{n}"] for n in "AB")
                change = torch.zeros_like(out)
                change[..., KINDS[kind].where(model, site)] = args[0] @ A @ B
                out = out + change
            return out

        module.register_forward_hook(hook)
    assert len(layers) == 2


@kinds
def test_the_columns_are_those_that_the_model_reads(kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    model = model_of(kind, monkeypatch, tmp_path)
    for site in QKV:
        for found in find(model).named(site):
            assert found.view.columns == Columns.of_indices(KINDS[kind].where(model, site))


@kinds
@pytest.mark.parametrize("sites", [*((s,) for s in QKV), QKV], ids=" ".join)
def test_an_edit_acts_on_its_columns_alone(kind: str, sites: tuple[str, ...], tmp_path: Path, monkeypatch: Any) -> None:
    """As the hook does it, values and gradients; merged it is the same, and unmerged every bit is as it was."""
    model, other = (model_of(kind, monkeypatch, tmp_path) for _ in range(2))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    plain = output(model)
    unipelt.apply(model, low_rank(*sites))
    own = {n: p for n, p in model.named_parameters() if p.requires_grad}
    tensors = {n: t.detach().clone().requires_grad_() for n, t in unipelt.state_dict(model).items()}
    by_hand(other, kind, sites, tensors)
    changed, expected = output(model), output(other)
    assert (changed - plain).abs().max() > 1e-2
    torch.testing.assert_close(changed, expected, rtol=1e-4, atol=1e-5)
    for out in (changed, expected):
        out.square().mean().backward()
    assert len(own) == len(tensors) == 4 * len(sites)
    order = sorted(tensors, key=lambda n: (n.split(".")[1], *(f".{s}." not in n for s in sites), n))
    for (n, p), t in zip(sorted(own.items()), (tensors[n] for n in order)):
        torch.testing.assert_close(p.grad, t.grad, rtol=1e-3, atol=1e-6, msg=n)

    unipelt.merge(model, "default")
    torch.testing.assert_close(output(model), changed, rtol=1e-4, atol=1e-5)
    touched = sorted(i for s in sites for i in KINDS[kind].where(model, s))
    base = {n: p for n, p in model.named_parameters() if n in before}
    for n, p in base.items():
        rest = torch.ones(len(p), dtype=torch.bool)
        if n.endswith(f"{KINDS[kind].module}.weight"):
            rest[touched] = False
            assert not torch.equal(p[~rest], before[n][~rest])
        assert torch.equal(p[rest], before[n][rest]), n
    unipelt.unmerge(model)
    assert all(torch.equal(p, before[n]) for n, p in base.items())
    torch.testing.assert_close(output(model), changed, rtol=0, atol=0)


def spread(model: Any) -> None:
    """Every trained tensor elsewhere than where it starts, where an adapter changes nothing."""
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.2)


@pytest.mark.sampled(2)
@kinds
@pytest.mark.parametrize("method", ["lora", "ia3", "adapter", "parallel_adapter", "unipelt_apl_causal"])
def test_methods_of_the_library(kind: str, method: str, tmp_path: Path, monkeypatch: Any) -> None:
    """They act, are saved and come back; those that merge compute the same merged."""
    sites = find(model := model_of(kind, monkeypatch, tmp_path)).names()
    plain = output(model)
    if ("adapter" in method and "ffn" not in sites) or (
        "unipelt" in method and not {"ffn", "attn.heads"} <= set(sites)
    ):
        with pytest.raises(unipelt.PeltError, match="E0512"):
            unipelt.apply(model, unipelt.load(named(method)))
        return
    unipelt.apply(model, unipelt.load(named(method)))
    spread(model)
    with torch.no_grad():
        changed = output(model)
    assert (changed - plain).abs().max() > 1e-2
    unipelt.save(model, tmp_path / "saved")
    again = model_of(kind, monkeypatch, tmp_path)
    unipelt.attach(again, tmp_path / "saved")
    with torch.no_grad():
        folds = "unipelt" in method  # what its prefix computes of its own tensors alone is saved computed
        torch.testing.assert_close(output(again), changed, rtol=1e-4 if folds else 0, atol=1e-5 if folds else 0)
        if method in ("lora", "ia3"):
            unipelt.merge(again, "default")
            torch.testing.assert_close(output(again), changed, rtol=1e-4, atol=1e-5)


@kinds
def test_a_bias_is_scaled_with_its_columns(kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    """(IA)3 merges into weight and bias: both are multiplied in the columns of keys and values, and nowhere else."""
    model = model_of(kind, monkeypatch, tmp_path)
    module = fused_of(model, kind)[1]
    weight, bias = module.weight.detach().clone(), module.bias.detach().clone() if module.bias is not None else None
    unipelt.apply(
        model,
        unipelt.parse(
            "method s { modify attn.k, attn.v  form { l: [d_out] ~ normal(1.0)  delta = l } compose h * delta }"
        ),
    )
    tensors = unipelt.state_dict(model)
    factor = torch.ones(len(weight))
    for site in ("attn.k", "attn.v"):
        factor[KINDS[kind].where(model, site)] = next(t for n, t in tensors.items() if f".1.{site}." in n)
    unipelt.merge(model, "default")
    torch.testing.assert_close(module.weight, weight * factor[:, None])
    if bias is not None:
        torch.testing.assert_close(module.bias, bias * factor)
    assert torch.equal(module.weight[factor == 1], weight[factor == 1])


@kinds
def test_merging_leaves_small_weights_beside_large_biases_as_they_are(
    kind: str, tmp_path: Path, monkeypatch: Any
) -> None:
    """A map is read at zero and on the basis; a difference of the two would round the weights that nothing changes."""
    model = model_of(kind, monkeypatch, tmp_path)
    module = fused_of(model, kind)[1]
    where = KINDS[kind].where(model, "attn.q")
    if module.bias is None:
        module.bias = nn.Parameter(torch.zeros(len(module.weight)))
    with torch.no_grad():
        module.weight[where] *= 1e-12
        module.bias[where] = 1e3
    before = module.weight.detach().clone(), module.bias.detach().clone()
    unipelt.apply(model, low_rank("attn.k"))
    unipelt.merge(model, "default")
    assert not torch.equal(module.weight, before[0])
    assert torch.equal(module.weight[where], before[0][where]) and torch.equal(module.bias, before[1])


@pytest.mark.parametrize("kind", ["gpt_neox", "falcon new"])
def test_compiled_exported_copied_and_under_autocast(kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    model = model_of(kind, monkeypatch, tmp_path)
    unipelt.apply(model, low_rank(*QKV))
    with torch.no_grad():
        expected = output(model)
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(output(compiled), expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(output(copy.deepcopy(model)), expected)
        with torch.autocast("cpu", torch.bfloat16):
            near = output(model)
    assert (near - expected).abs().max() < 0.1 * expected.abs().max()
    module = fused_of(model, kind)[0]
    with torch.no_grad():
        x = torch.randn(1, 3, WIDTH)
        exported = torch.export.export(module, (x,)).module()
        torch.testing.assert_close(exported(x), module(x))


@pytest.mark.sampled(2)
@pytest.mark.long
@pytest.mark.parametrize("kind", ["gpt_neox", "phi3"])
def test_an_onnx_file_has_the_columns(kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    config = model_of(kind, monkeypatch, tmp_path).config
    torch.manual_seed(0)
    model = T.AutoModelForCausalLM.from_config(config).eval()
    unipelt.apply(model, low_rank(*QKV))
    apart = unipelt.export_onnx(model, tmp_path / "model.onnx")
    assert apart is not None and apart <= 1e-5


def test_frozen_calls_and_exact_starts_read_the_columns(tmp_path: Path, monkeypatch: Any) -> None:
    model = model_of("gpt_neox", monkeypatch, tmp_path)
    module = fused_of(model, "gpt_neox")[0]
    unipelt.apply(model, unipelt.parse(
        "method p { modify attn.heads  insert parallel  form { P: [3, d_model] ~ normal(1) per site  "
        "delta = softmax(q @ heads(attn.k(P)).T * scale) @ heads(attn.v(P)) }  compose add }"))  # fmt: skip
    unipelt.apply(model, unipelt.parse("method w { modify attn.q, attn.v  insert parallel  form { C: [d_in, d_out] = W  b: [d_out] = bias "
                                       "delta = z @ C + b }  compose add }"), name="w")  # fmt: skip
    edit = next(m for m in model.modules() if type(m).__name__ == "Edit" and m.bases)
    rows = torch.randn(3, WIDTH)
    for site in QKV:
        torch.testing.assert_close(
            edit.bases[site](rows),
            nn.functional.linear(rows, module.weight, module.bias)[:, KINDS["gpt_neox"].where(model, site)],
        )
    tensors = unipelt.state_dict(model, "w")
    for site in ("attn.q", "attn.v"):
        where = KINDS["gpt_neox"].where(model, site)
        assert torch.equal(tensors[f"layers.0.{site}.w.C"], module.weight[where].T.detach())
        assert torch.equal(tensors[f"layers.0.{site}.w.b"], module.bias[where].detach())


@pytest.mark.parametrize("order", [("first", "second"), ("second", "first")], ids=" ".join)
@pytest.mark.parametrize("kind", ["gpt_neox", "phi3"])
def test_two_adapters_on_columns_that_meet(kind: str, order: tuple[str, str], tmp_path: Path, monkeypatch: Any) -> None:
    """Each acts on what the one before it has left, in the order of activation. (No map has such sites: one edit is moved by hand.)"""
    model, other = (model_of(kind, monkeypatch, tmp_path) for _ in range(2))
    for name in ("first", "second"):
        unipelt.apply(model, unipelt.parse("method m { modify attn.q, attn.v  form { s: [d_out] ~ normal(1.0)  b: [d_out] ~ normal(1.0)  delta = b } "
                                           "compose { out = h * s + delta } }"), name=name)  # fmt: skip
    own = {("first", s): KINDS[kind].where(model, s) for s in ("attn.q", "attn.v")}
    own["second", "attn.v"] = own["first", "attn.v"]
    own["second", "attn.q"] = [*range(5), *range(9, 9 + len(own["first", "attn.q"]) - 5)]
    for _, seam in seams(model):
        edits = seam.adapters[key_of("second")]
        moved = next(e for e in edits if e.site.name == "attn.q")  # type: ignore[union-attr]
        seam._changed([moved], -1)
        moved.columns = Columns.of_indices(own["second", "attn.q"])  # type: ignore[union-attr,assignment]
        seam._changed([moved], 1)
    unipelt.activate(model, *order)
    assert [seam.overlap for _, seam in seams(model)] == [True] * len(fused_of(model, kind))
    for layer, module in enumerate(fused_of(other, kind)):

        def hook(_: nn.Module, args: tuple, out: torch.Tensor, layer: int = layer) -> torch.Tensor:
            for name in order:
                for site in ("attn.q", "attn.v"):
                    s, b = (unipelt.state_dict(model, name)[f"layers.{layer}.{site}.m.{n}"] for n in "sb")
                    out = out.clone()
                    out[..., own[name, site]] = out[..., own[name, site]] * s + b
            return out

        module.register_forward_hook(hook)
    with torch.no_grad():
        torch.testing.assert_close(output(model), output(other), rtol=1e-4, atol=1e-5)
    unipelt.remove(model, "second")
    assert [seam.overlap for _, seam in seams(model)] == [False] * len(fused_of(model, kind))


@kinds
def test_two_adapters_on_the_same_columns(kind: str, tmp_path: Path, monkeypatch: Any) -> None:
    model, other = (model_of(kind, monkeypatch, tmp_path) for _ in range(2))
    for name, sites in (("a", QKV), ("b", ("attn.k",))):
        unipelt.apply(model, low_rank(*sites), name=name)
        by_hand(other, kind, sites, unipelt.state_dict(model, name))
    unipelt.activate(model, "a", "b")
    with torch.no_grad():
        torch.testing.assert_close(output(model), output(other), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "kind, said", [("gpt_neox", " per head"), ("bloom", " per head"), ("falcon new", " per group")]
)
def test_a_map_that_is_apart_and_wrong_is_refuted(kind: str, said: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Side by side instead of head by head: no column is named twice, and the numbers of a pass say that it is not so."""
    model = model_of(kind, monkeypatch, tmp_path, KINDS[kind].anatomy.replace(said, ""))
    with pytest.raises(unipelt.PeltError, match="E0503.*`attn.q`"):
        find(model)


@pytest.mark.parametrize("kind, change, code, said", [
    ("gpt_neox", {"k": "[0/3 per head]"}, "E0508", "`attn.q` and `attn.k`"),
    ("gpt_neox", {"k": "[1/3]"}, "E0508", "`attn.q` and `attn.k`"),
    ("gpt_neox", {"v": "[64:96]"}, "E0508", "`attn.q` and `attn.v`"),
    ("falcon new", {"v": "[k of q k v per group]"}, "E0508", "`attn.k` and `attn.v`"),
    ("falcon new", {"v": "[v of q k v]"}, "E0508", "`attn.k` and `attn.v`"),
    ("gpt_neox", {"k": "[1/5 per head]"}, "E0507", "`attn.k: "),
    ("gpt_neox", {"k": "[1/16 per head]"}, "E0507", "for each of 4 heads"),
    ("falcon new", {"v": "[k of q k]"}, "E0508", "`attn.q` and `attn.v`"),
    ("falcon multi query", {"v": "[0:8, 40:56]"}, "E0507", "yields 48"),
    ("phi3", {"v": "[v of q k v per groups]"}, "E0505", "`attn.v: "),
    ("phi3", {"v": "[w of q k w]"}, "E0505", "`w` among `q k w`"),
    ("phi3", {"v": "[v of k v]"}, "E0505", "`v` among `k v`"),
    ("phi3", {"v": "[v of q k k v]"}, "E0505", "`attn.v: "),
    ("phi3", {"v": "[v of q k]"}, "E0505", "`attn.v: "),
    ("phi3", {"v": "[8:8]"}, "E0505", "empty"),
    ("phi3", {"v": "[8:16, 0:8]"}, "E0505", "begins before"),
    ("phi3", {"v": "[]"}, "E0505", "no part"),
    ("phi3", {"v": "[3/4"}, "E0505", "`attn.v`"),
    ("phi3", {"v": "[4/4 per head]"}, "E0505", "counted from 0"),
], ids=str)  # fmt: skip
def test_a_wrong_map_is_refused(
    kind: str, change: dict[str, str], code: str, said: str, tmp_path: Path, monkeypatch: Any
) -> None:
    module = KINDS[kind].module
    wrong = "  ".join(f'attn.{w}: "{module}{text}"' for w, text in change.items())
    kept = "  ".join(e for e in _entries(KINDS[kind].anatomy) if e.split(":")[0] not in {f"attn.{w}" for w in change})
    with pytest.raises(unipelt.PeltError) as e:
        find(model_of(kind, monkeypatch, tmp_path, f"{kept}  {wrong}"))
    (found,) = e.value.diagnostics
    assert found.code == code and said in found.message and found.help, str(e.value)


def _entries(anatomy: str) -> list[str]:
    pieces = anatomy.split('"')
    return [f'{name.strip()} "{text}"' for name, text in zip(pieces[::2], pieces[1::2])]
