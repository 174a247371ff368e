"""LoRA as GGUF files: read back with `gguf`, the weights that they make of a base are those that merging makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from names import RENAMED
from small import model, randomise, state
from transformers import MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

import unipelt
from unipelt.interchange.gguf_out import architectures, interleaved
from unipelt.language.report.diagnostics import PeltError

gguf = pytest.importorskip("gguf", reason="pip install 'unipelt[gguf]'")
pytestmark = pytest.mark.skipif(bool(RENAMED), reason="the declarations call methods by their names")

PATHS = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
EVERYWHERE = "[attn.q, attn.k, attn.v, attn.o, ffn.up, ffn.gate, ffn.down]"


def of(kind: str) -> Any:
    if kind == "llama":
        return model("llama")
    sizes = dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        vocab_size=80,
    )
    torch.manual_seed(0)
    made = {"mistral": (MistralForCausalLM, MistralConfig), "qwen2": (Qwen2ForCausalLM, Qwen2Config)}[kind]
    return made[0](made[1](**sizes)).eval()


def adapted(kind: str, method: unipelt.Method) -> Any:
    m = of(kind)
    unipelt.apply(m, method, "mine")
    randomise(m, "mine", scale=0.1)
    return m


def their_order(path: str, W: torch.Tensor, m: Any) -> torch.Tensor:
    """The rows of a map as the format has them: written out, pair by pair."""
    if m.config.model_type not in ("llama", "mistral") or not path.endswith(("q_proj", "k_proj")):
        return W
    heads = m.config.num_attention_heads if path.endswith("q_proj") else m.config.num_key_value_heads
    d = len(W) // heads
    return torch.stack([W[h * d + i + half * d // 2] for h in range(heads) for i in range(d // 2) for half in (0, 1)])


def check(m: Any, file: Path, atol: float = 1e-5) -> set[str]:
    """Holds the file's changes of weights against those of merging; returns the maps that it has."""
    reader = gguf.GGUFReader(file)
    field = {n: f.contents() for n, f in reader.fields.items()}
    assert field["general.type"] == "adapter" and field["adapter.type"] == "lora"
    assert field["general.architecture"] == {"mistral": "llama"}.get(m.config.model_type, m.config.model_type)
    found = {t.name: torch.from_numpy(np.array(t.data)) for t in reader.tensors}
    maps = {n.removesuffix(".weight.lora_a") for n in found if n.endswith("lora_a")}
    before = {n: p.detach().clone() for n, p in m.named_parameters()}
    unipelt.merge(m, "mine")
    changed = set()
    for n in maps:
        block, _, what = n.removeprefix("blk.").partition(".")
        path = f"model.layers.{block}.{PATHS[what]}"
        A, B = found[f"{n}.weight.lora_a"], found[f"{n}.weight.lora_b"]
        old, new = before[f"{path}.weight"], m.get_submodule(path).weight.detach()
        merged = their_order(path, old, m) + field["adapter.lora.alpha"] / len(A) * (B @ A)
        torch.testing.assert_close(merged, their_order(path, new, m), rtol=1e-4, atol=atol)
        assert (new - old).abs().max() > 1e-3
        changed.add(f"{path}.weight")
    moved = {n for n, p in m.named_parameters() if n in before and not torch.equal(p, before[n])}
    assert moved == changed, "every map that merging changes is in the file"
    unipelt.unmerge(m)
    return maps


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("method", ["lora", "rslora"])
def test_the_file_makes_the_weights_that_merging_makes(kind: str, method: str, tmp_path: Path) -> None:
    m = adapted(kind, unipelt.load(method, arguments={"r": 3, "alpha": 8.0, "at": EVERYWHERE}))
    before = state(m)
    assert unipelt.export_gguf(m, tmp_path / "a.gguf", "mine") is None
    assert state(m) == before
    assert {n.rpartition(".")[2] for n in check(m, tmp_path / "a.gguf")} == set(PATHS)
    assert [f.name for f in tmp_path.iterdir()] == ["a.gguf"]


def test_rows_are_in_the_order_that_neighbours_are_turned_in() -> None:
    """A rotation of neighbours after the new order gives the scores that a rotation of halves gives before; transformers undoes it."""
    from transformers.modeling_gguf_pytorch_utils import LlamaTensorProcessor

    g = torch.Generator().manual_seed(0)
    heads, d, position = 3, 8, 5.0
    angle = position * 10.0 ** -torch.arange(d // 2)
    q, k = (torch.randn(heads * d, generator=g) for _ in "qk")

    def by_halves(t: torch.Tensor) -> torch.Tensor:
        a, b = t.reshape(heads, 2, d // 2).unbind(1)
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], 1)

    def by_neighbours(t: torch.Tensor) -> torch.Tensor:
        a, b = t.reshape(heads, d // 2, 2).unbind(2)
        return torch.stack([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], 2).flatten(1)

    scores = (by_halves(q) * k.reshape(heads, d)).sum(1)
    new = (
        by_neighbours(interleaved(q[:, None], heads)[:, 0]) * interleaved(k[:, None], heads)[:, 0].reshape(heads, d)
    ).sum(1)
    torch.testing.assert_close(new, scores)
    W = torch.randn(heads * d, 4, generator=g)
    back = LlamaTensorProcessor({})._reverse_permute_weights(interleaved(W, heads).numpy(), heads)
    assert np.array_equal(back, W.numpy())


def test_scales_that_differ_are_in_the_factors(tmp_path: Path) -> None:
    """The format has one alpha."""
    two = unipelt.parse(
        "method two { use lora(r=2, alpha=8.0, at=[attn.q]) as one  use lora(r=4, alpha=2.0, at=[attn.v]) as other }"
    )
    m = adapted("llama", two)
    unipelt.export_gguf(m, tmp_path / "a.gguf", "mine")
    assert len(check(m, tmp_path / "a.gguf")) == 6


def test_any_method_that_merges_as_two_factors(tmp_path: Path) -> None:
    m = adapted("llama", unipelt.load("ia3"))
    with pytest.raises(PeltError, match="--as lora --rank 8"):
        unipelt.export_gguf(m, tmp_path / "a.gguf", "mine")
    whole = unipelt.export_gguf(m, tmp_path / "a.gguf", "mine", as_lora=True)
    assert whole is not None and whole.error < 1e-5 and whole.folder == tmp_path / "a.gguf"
    assert {n.rpartition(".")[2] for n in check(m, tmp_path / "a.gguf")} == {"attn_k", "attn_v", "ffn_down"}
    less = unipelt.export_gguf(m, tmp_path / "b.gguf", "mine", as_lora=True, rank=2)
    assert less is not None and less.rank == 2 and less.error > 0.1


@pytest.mark.parametrize(
    "kind, method, as_lora, words",
    [
        ("bert", "lora", False, "type `bert`"), ("gpt2", "lora", False, "type `gpt2`"), ("llama", "dora", False, "nothing else"),
        ("llama", "prefix_tuning", False, "E0848"), ("llama", "full", True, "`model.embed_tokens` has no place|trained module"),
        ("qwen2", "ia3", True, "biases have no place"), ("llama", "prefix_tuning", True, "E0563"),
    ],
)  # fmt: skip
def test_what_the_format_cannot_hold(kind: str, method: str, as_lora: bool, words: str, tmp_path: Path) -> None:
    m = of(kind) if kind in ("mistral", "qwen2") else model(kind)
    with torch.no_grad():
        for n, p in m.named_parameters():
            p.add_(0.1 if n.endswith("bias") else 0.0)
    unipelt.apply(m, unipelt.load(method), "mine")
    randomise(m, "mine", scale=0.1)
    with pytest.raises(PeltError, match=words):
        unipelt.export_gguf(m, tmp_path / "a.gguf", "mine", as_lora=as_lora)
    assert not list(tmp_path.iterdir())


def test_a_file_is_not_written_over_and_is_named_as_what_it_is(tmp_path: Path) -> None:
    m = adapted("llama", unipelt.load("lora"))
    (tmp_path / "a.gguf").write_text("mine")
    with pytest.raises(PeltError, match="E0611"):
        unipelt.export_gguf(m, tmp_path / "a.gguf", "mine")
    with pytest.raises(PeltError, match="does not end in `.gguf`"):
        unipelt.export_gguf(m, tmp_path / "a.bin", "mine")
    with pytest.raises(PeltError, match="could not be written"):
        unipelt.export_gguf(m, tmp_path / "a.gguf" / "b.gguf", "mine")
    assert (tmp_path / "a.gguf").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_the_models_that_are_listed_are_the_formats() -> None:
    from transformers import CONFIG_MAPPING

    for kind, said in architectures().items():
        assert kind in CONFIG_MAPPING and said["arch"] in gguf.MODEL_ARCH_NAMES.values()
        config = CONFIG_MAPPING[kind]()
        assert all(hasattr(config, field) for field in said.get("interleaved", {}).values())
