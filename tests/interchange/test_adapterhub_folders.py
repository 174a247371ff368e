"""Folders of AdapterHub's `adapters`: out and in again, heads, the command line; wrong folders are refused, the model untouched."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from names import RENAMED
from small import inputs, model, output, randomise, state
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

import unipelt
from unipelt.cli.app import app
from unipelt.interchange import folders
from unipelt.interchange.adapterhub_declared import architectures
from unipelt.interchange.adapterhub_places import Place, written
from unipelt.language.report.diagnostics import PeltError
from unipelt.runtime.registry import record, registry

pytestmark = pytest.mark.skipif(bool(RENAMED), reason="the declarations call methods by their names")
BN: dict[str, Any] = {"mh_adapter": False, "output_adapter": True, "reduction_factor": 8, "non_linearity": "relu"}
PREFIX: dict[str, Any] = {"architecture": "prefix_tuning", "prefix_length": 3, "bottleneck_size": 6}
LORA: dict[str, Any] = {"architecture": "lora", "r": 3, "alpha": 6}
REFT: dict[str, Any] = {"architecture": "reft", "r": 2, "prefix_positions": 2, "dropout": 0.0}
GATED = {"use_gating": True}
UNIPELT = [{**PREFIX, **GATED}, {**BN, "original_ln_before": True, **GATED}, {**LORA, **GATED}]
#: name → (model, configurations)
CONFIGS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "seq_bn": ("bert", [{**BN, "original_ln_before": True}]),
    "double_seq_bn": ("bert", [{**BN, "mh_adapter": True, "non_linearity": "swish"}]),
    "both, normed": ("bert", [{**BN, "mh_adapter": True, "original_ln_before": True}]),
    "par_bn": ("bert", [{**BN, "is_parallel": True, "scaling": 4.0}]),
    "learned scale": ("bert", [{**BN, "scaling": "learned"}]),
    "scale of channels": ("bert", [{**BN, "scaling": "channel", "non_linearity": "gelu"}]),
    "an odd width": ("bert", [{**BN, "reduction_factor": 4.5}]),
    "widths of layers": ("bert", [{**BN, "original_ln_before": True, "reduction_factor": {"1": 4, "default": 8}}]),
    "some layers": ("bert", [{**BN, "leave_out": [1]}, {**LORA, "leave_out": [0, 2]}]),
    "compacter": ("bert", [{**BN, "mh_adapter": True, "phm_layer": True, "non_linearity": "gelu"}]),
    "flat prefix": ("bert", [{**PREFIX, "flat": True}]),
    "mam": ("bert", [PREFIX, {**BN, "is_parallel": True, "scaling": 4.0}]),
    "unipelt": ("bert", UNIPELT),
    "unipelt with two gates": ("bert", [{**UNIPELT[0], "shared_gating": False}, *UNIPELT[1:]]),
    "lora everywhere": ("bert", [{**LORA, "attn_matrices": ["q", "k", "v"], "intermediate_lora": True, "output_lora": True}]),
    "lora at the inner maps": ("bert", [{**LORA, "selfattn_lora": False, "output_lora": True}]),
    "ia3": ("bert", [{**LORA, "r": 1, "alpha": 1, "composition_mode": "scale", "attn_matrices": ["k", "v"], "intermediate_lora": True}]),
    "loreft": ("bert", [REFT]),
    "loreft in a layer": ("bert", [{**REFT, "layers": [1], "tied_weights": True, "suffix_positions": 1}]),
    "noreft": ("bert", [{**REFT, "orthogonality": False, "tied_weights": True}]),
    "noreft at both ends": ("bert", [{**REFT, "orthogonality": False}]),
    "prompt": ("bert", [{"architecture": "prompt_tuning", "prompt_length": 3, "combine": "prefix_after_bos"}]),
    "gpt2": ("gpt2", [{**PREFIX, "flat": True}, {**BN, "original_ln_before": True}, {**LORA, "attn_matrices": ["q", "v"]}]),
    "llama": ("llama", [PREFIX, {**BN, "is_parallel": True, "mh_adapter": True}, {**LORA, "intermediate_lora": True}]),
    "distilbert": ("distilbert", [PREFIX, {**BN, "original_ln_before": True}, LORA]),
    "electra": ("electra", UNIPELT),
    "bart": ("bart", [PREFIX, {**BN, "cross_adapter": True}, {**LORA, "attn_matrices": ["k"]}]),
    "bart in some layers": ("bart", [{**BN, "cross_adapter": True, "leave_out": [0, 3]}, {**LORA, "leave_out": [1, 2], "attn_matrices": ["q"]}]),
    "bart with widths of layers": ("bart", [{**BN, "mh_adapter": True, "reduction_factor": {"1": 4, "2": 16, "default": 8}}]),
    "bart's decoder": ("bart", [{**BN, "leave_out": [0, 1]}, {**PREFIX, "leave_out": [2]}]),
    "loreft in layers of bart": ("bart", [{**REFT, "layers": [1, 2]}]),
    "bart without some prefixes": ("bart", [{**PREFIX, "encoder_prefix": False, "flat": True}]),
}  # fmt: skip


def built(kind: str) -> nn.Module:
    if kind in ("bert", "bert_labels", "gpt2", "llama", "vit"):
        return model(kind)
    import transformers as t

    torch.manual_seed(0)
    sizes = {"vocab_size": 80, "pad_token_id": 0}
    if kind == "distilbert":
        return t.DistilBertModel(t.DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=48, **sizes)).eval()
    if kind == "electra":
        own = {
            "hidden_size": 32,
            "embedding_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
        }
        return t.ElectraModel(t.ElectraConfig(**own, **sizes)).eval()
    ends = {"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": 2}
    layers = {
        f"{side}_{n}": v
        for side in ("encoder", "decoder")
        for n, v in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))
    }
    return t.BartModel(t.BartConfig(d_model=32, **layers, **sizes, **ends)).eval()


def out_of(m: nn.Module) -> torch.Tensor:
    with torch.no_grad(), unipelt.with_rows(m):
        return m(**inputs())[0].clone()


def adapted(kind: str, configs: Sequence[dict[str, Any]]) -> nn.Module:
    """A model with the adapter that some configurations are, its tensors moved."""
    m = built(kind)
    unipelt.apply(m, written(configs, Place.of(m)).method, name="mine", head=False, allow_future=True)
    randomise(m, "mine")
    return m


def saved(
    at: Path,
    kind: str = "bert",
    configs: Sequence[dict[str, Any]] = (LORA,),
    tensors: dict[str, Any] | None = None,
    **changes: Any,
) -> None:
    """A folder of an adapter, with changes of its configuration and of its tensors."""
    unipelt.export_adapters(adapted(kind, configs), at, "mine")
    path, weights = at / "adapter_config.json", at / "pytorch_adapter.bin"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    if tensors is not None:
        torch.save(tensors, weights)


def held(at: Path) -> dict[str, torch.Tensor]:
    return folders.read(at, folders.ADAPTERS)[1]


@pytest.mark.filterwarnings("ignore:`adapters` does not save:UserWarning")
@pytest.mark.parametrize("name", CONFIGS)
def test_out_and_in_again(name: str, tmp_path: Path) -> None:
    kind, configs = CONFIGS[name]
    m = adapted(kind, configs)
    found = out_of(m)
    with unipelt.disabled(m):
        base = out_of(m)
    assert (found[:, -4:] - base[:, -4:]).abs().max() > 1e-3
    unipelt.export_adapters(m, tmp_path / "out", "mine")
    other = built(kind)
    assert unipelt.import_adapters(other, tmp_path / "out", "theirs", allow_future=True) == "theirs"
    torch.testing.assert_close(out_of(other), found, rtol=1e-6, atol=1e-6)
    assert not any(p.requires_grad for p in other.parameters())
    unipelt.export_adapters(other, tmp_path / "again", "theirs")
    before, after = held(tmp_path / "out"), held(tmp_path / "again")
    renamed = {k.replace(".mine.", ".theirs."): t for k, t in before.items()}
    assert renamed.keys() == after.keys()
    for k, t in renamed.items():
        if "parametrizations" not in k:
            assert torch.equal(t, after[k]), k
    a, b = (json.loads((tmp_path / d / "adapter_config.json").read_text())["config"] for d in ("out", "again"))
    assert a == b


def test_the_library_finds_its_keys(tmp_path: Path) -> None:
    """Names as the library gives them, where a base stands under a head; what layers share is there once in each, and stored once."""
    m = built("bert_labels")
    unipelt.apply(m, written(UNIPELT, Place.of(m)).method, name="mine", head=False)
    unipelt.export_adapters(m, tmp_path, "mine")
    front = "bert.encoder.layer.2"
    pool = "prefix_tunings.mine.self_prefix"
    assert {k for k in held(tmp_path) if k.startswith(front)} == {
        *(f"{front}.attention.self.{m}.loras.mine.{t}" for m in ("query", "value") for t in ("lora_A", "lora_B", "gate.weight", "gate.bias")),
        *(f"{front}.output.adapters.mine.{t}.{p}" for t in ("adapter_down.0", "adapter_up", "gate") for p in ("weight", "bias")),
        *(f"{front}.attention.self.prefix_tuning.prefix_gates.mine.{p}" for p in ("weight", "bias")),
        *(f"{front}.attention.self.prefix_tuning.pool.{pool}.control_trans.{i}.{p}" for i in (0, 2) for p in ("weight", "bias")),
        f"{front}.attention.self.prefix_tuning.pool.{pool}.wte.weight",
    }  # fmt: skip
    assert f"bert.prefix_tuning.{pool}.wte.weight" in held(tmp_path)
    numbers = sum(t.numel() for k, t in held(tmp_path).items() if ".pool." not in k)
    assert (tmp_path / "pytorch_adapter.bin").stat().st_size < 4 * numbers + 40_000
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (
        config["version"].startswith("adapters.1.") and config["hidden_size"] == 32 and config["model_type"] == "bert"
    )
    assert [c.get("architecture") for c in config["config"]["configs"]] == ["prefix_tuning", None, "lora"]


def test_safetensors_and_the_old_scale(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    saved(tmp_path)
    expected = out_of(adapted("bert", [LORA]))
    save_file(held(tmp_path), tmp_path / "adapter.safetensors")
    (tmp_path / "pytorch_adapter.bin").write_bytes(b"not read")
    m = built("bert")
    unipelt.attach(m, tmp_path, "a", trainable=True)
    torch.testing.assert_close(out_of(m), expected, rtol=1e-6, atol=1e-6)
    assert any(p.requires_grad for p in m.parameters())
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace("adapters.1.3.0", "adapters.1.0.1"))
    with pytest.warns(UserWarning, match="did not scale") as said:
        unipelt.attach(m, tmp_path, "b")
    assert said[0].filename == __file__
    unscaled = out_of(adapted("bert", [{**LORA, "alpha": 3}]))
    torch.testing.assert_close(out_of(m), unscaled, rtol=1e-6, atol=1e-6)


# ---------------------------------------------------------------- refusals


def refused(at: Path, code: str, kind: str = "bert", **options: Any) -> str:
    m = built(kind)
    before, out = state(m), output(m)
    with pytest.raises(PeltError) as caught:
        unipelt.import_adapters(m, at, **options)
    assert [d.code for d in caught.value.diagnostics][0] == code, caught.value
    assert state(m) == before and torch.equal(output(m), out) and registry(m) is None
    return str(caught.value)


@pytest.mark.parametrize(
    "change, code, said",
    [
        ({"r": 5}, "E0842", "shape"), ({"r": "three"}, "E0841", "`r`"), ({"r": 2.5}, "E0840", "whole number"), ({"use_dora": True}, "E0841", "use_dora"),
        ({"composition_mode": "scale"}, "E0841", "composition_mode"), ({"a_new_field": 0}, "E0841", "a_new_field"), ({"vera_d": 0.1}, "E0841", "vera_d"),
        ({"architecture": "mtl_lora"}, "E0841", "mtl_lora"), ({"architecture": 3}, "E0841", "3"), ({"attn_matrices": []}, "E0843", "no such site"),
        ({"attn_matrices": "q"}, "E0840", "no list"), ({"leave_out": ["a"]}, "E0840", "layers"), ({"leave_out": [0, 1, 2]}, "E0841", "no layer"),
        ({"attn_matrices": ["q", "k", "v"]}, "E0842", "lacks"), ({"attn_matrices": ["q"]}, "E0842", "no place"), ({"leave_out": [0]}, "E0842", "no place"),
        ({"intermediate_lora": True}, "E0842", "intermediate.dense"),
    ],
    ids=str,
)  # fmt: skip
def test_fields_of_a_configuration(change: dict[str, Any], code: str, said: str, tmp_path: Path) -> None:
    saved(tmp_path, config={**json.loads(json.dumps(architectures()["lora"].fields)), **LORA, **change})
    assert said in refused(tmp_path, code)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"ln_after": True}, "ln_after"), ({"residual_before_ln": False, "original_ln_before": True}, "residual_before_ln"),
        ({"non_linearity": "prelu"}, "prelu"), ({"inv_adapter": "nice"}, "inv_adapter"), ({"original_ln_after": False}, "original_ln_after"),
        ({"phm_layer": True, "phm_rank": 2}, "phm_rank"), ({"scaling": "other"}, "other"), ({"reduction_factor": 0}, "divides nothing"),
        ({"reduction_factor": {"0": 2}}, "reduction_factor"),
    ],
    ids=str,
)  # fmt: skip
def test_bottlenecks_that_mean_something_else(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    saved(tmp_path, configs=[BN], config={**BN, **change})
    assert said in refused(tmp_path, "E0840" if "divides" in said else "E0841")


@pytest.mark.parametrize(
    "changes, code, said",
    [
        ({"version": "adapters.2.0.0"}, "E0841", "version 1"), ({"version": "3.1.0"}, "E0841", "3.1.0"), ({"version": None}, "E0841", "version 1"),
        ({"name": 3}, "E0840", "name"), ({"config": None}, "E0840", "config"), ({"config": {"architecture": "union", "configs": []}}, "E0840", "nothing"),
        ({"model_type": "roberta"}, "E0843", "roberta"), ({"hidden_size": 64}, "E0843", "64"), ({"name": "other"}, "E0842", "lacks"),
    ],
    ids=str,
)  # fmt: skip
def test_other_versions_and_models(changes: dict[str, Any], code: str, said: str, tmp_path: Path) -> None:
    saved(tmp_path, **changes)
    assert said in refused(tmp_path, code)


def test_broken_folders(tmp_path: Path) -> None:
    assert "no folder" in refused(tmp_path / "none", "E0840")
    saved(tmp_path / "a")
    whole = held(tmp_path / "a")
    first = sorted(whole)[0]
    for tensors, code, said in (
        ({k: t for k, t in whole.items() if k != first}, "E0842", "lacks"), ({**whole, "encoder.other": torch.zeros(2)}, "E0842", "other"),
        ({**whole, first: torch.zeros(3, 7)}, "E0842", "shape"), ({**whole, first: whole[first] * float("nan")}, "E0842", "NaN"),
        ({**whole, first: torch.zeros(3, dtype=torch.int64)}, "E0842", "whole numbers"), ({**whole, first: [1, 2]}, "E0840", "tensors by their names"),
        ([1, 2], "E0840", "tensors by their names"), ({**whole, 3: whole[first]}, "E0840", "tensors by their names"),
    ):  # fmt: skip
        torch.save(tensors, tmp_path / "a" / "pytorch_adapter.bin")
        assert said in refused(tmp_path / "a", code)
    (tmp_path / "a" / "pytorch_adapter.bin").write_bytes(b"no tensors")
    refused(tmp_path / "a", "E0840")
    (tmp_path / "a" / "pytorch_adapter.bin").unlink()
    assert "adapter.safetensors" in refused(tmp_path / "a", "E0840")
    saved(tmp_path / "b")
    (tmp_path / "b" / "adapter_config.json").write_text("{")
    refused(tmp_path / "b", "E0840")
    saved(tmp_path / "c")
    assert "vit" in refused(tmp_path / "c", "E0843", "vit")
    saved(tmp_path / "d", configs=UNIPELT)
    assert "gpt2" in refused(tmp_path / "d", "E0843", "gpt2")


class Poison:
    def __init__(self, at: Path) -> None:
        self.at = at

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.at),)


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    for made in (
        lambda f: torch.save({"x": Poison(tmp_path / "ran")}, f),
        lambda f: f.write_bytes(pickle.dumps(Poison(tmp_path / "ran"))),
    ):
        made(tmp_path / "a" / "pytorch_adapter.bin")
        assert "something else than tensors" in refused(tmp_path / "a", "E0840")
    assert not (tmp_path / "ran").exists()


def test_what_layers_share_is_one(tmp_path: Path) -> None:
    saved(tmp_path, configs=[PREFIX])
    whole = held(tmp_path)
    other = next(k for k in whole if ".pool." in k)
    torch.save({**whole, other: whole[other] + 1}, tmp_path / "pytorch_adapter.bin")
    assert "shared" in refused(tmp_path, "E0842")
    torch.save({k: t for k, t in whole.items() if ".pool." not in k}, tmp_path / "pytorch_adapter.bin")
    m = built("bert")
    unipelt.import_adapters(m, tmp_path)
    assert torch.equal(out_of(m), out_of(adapted("bert", [PREFIX])))


def test_gates_that_read_later_positions(tmp_path: Path) -> None:
    saved(tmp_path, kind="gpt2", configs=[{**LORA, **GATED}])
    assert "later" in refused(tmp_path, "E0530", "gpt2")
    unipelt.import_adapters(built("gpt2"), tmp_path, allow_future=True)


@pytest.mark.parametrize(
    "kind, text, said",
    [
        ("bert", "use lora as lora gated by token_gate", "nothing that a configuration says"),
        ("bert", "use lora(at = attn.o) as lora", "nothing"), ("bert", "use lora as a  use ia3 as b", "nothing"), ("bert", "train *.bias", "trains"),
        ("bert", "use lora as lora { tokens last 1 }", "nothing"), ("bert", "use direft(r = 2) as a", "nothing"), ("bert", "use lora(r = 2) as a  use lora(r = 3, at = attn.k) as b", "several"),
        ("vit", "use lora as lora", "vit"), ("gpt2", "use pfeiffer as a", "nothing"), ("bart", "use lora as a { modify encoder.attn.q } use lora(r = 2) as b { modify decoder.attn.q, decoder.cross.q }", "several"),
        ("bart", "use lora(at = decoder.attn.q) as lora", "nothing"), ("bert", "use pfeiffer(act = leaky_relu) as a", "leaky_relu"),
    ],
)  # fmt: skip
def test_what_the_library_cannot_say(kind: str, text: str, said: str, tmp_path: Path) -> None:
    m = built(kind)
    unipelt.apply(m, unipelt.parse(f"method mine {{ {text} }}"), name="mine", head=False)
    with pytest.raises(PeltError, match="E0844") as caught:
        unipelt.export_adapters(m, tmp_path / "out", "mine")
    assert said in str(caught.value) and not (tmp_path / "out").exists()


# ---------------------------------------------------------------- heads


def with_head(moved: str) -> nn.Module:
    m = built("bert_labels")
    unipelt.apply(m, unipelt.load("lora"), name="mine", labels=["no", "yes", "both", "none"])
    with torch.no_grad():
        for n, p in record(m, "mine").trained().items():
            if n.startswith(moved) or "lora" in n:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(3)) * 0.2)
    return m


@pytest.mark.parametrize("moved, of", [("classifier", None), ("", "classification")])
def test_heads_out_and_in(moved: str, of: str | None, tmp_path: Path) -> None:
    """The classifier alone is the head of transformers' class; with the pooler it is one of the library's own."""
    m = with_head(moved)
    unipelt.export_adapters(m, tmp_path, "mine")
    config, tensors = folders.read(tmp_path, folders.HEAD)
    assert (config["config"] or {}).get("head_type") == of
    fronts = {k.rpartition(".")[0] for k in tensors}
    assert fronts == ({"classifier"} if of is None else {"heads.mine.1", "heads.mine.4"})
    assert config["model_class"] == ("BertForSequenceClassification" if of is None else "BertAdapterModel")
    other = built("bert_labels")
    unipelt.import_adapters(other, tmp_path)
    torch.testing.assert_close(output(other), output(m), rtol=1e-6, atol=1e-6)
    assert unipelt.labels(other).names == ("no", "yes", "both", "none")


def test_the_library_s_own_head(tmp_path: Path) -> None:
    """Its usual head, two layers on the first token, computed by hand."""
    saved(tmp_path, configs=[{**LORA, "r": 1}])
    g = torch.Generator().manual_seed(2)
    w1, b1, w4, b4 = (torch.randn(s, generator=g) * 0.3 for s in ((32, 32), (32,), (2, 32), (2,)))
    tensors = {"heads.h.1.weight": w1, "heads.h.1.bias": b1, "heads.h.4.weight": w4, "heads.h.4.bias": b4}
    own = {
        "head_type": "classification",
        "layers": 2,
        "activation_function": "tanh",
        "use_pooler": False,
        "bias": True,
        "num_labels": 2,
    }
    head = {
        "config": {**own, "label2id": {"b": 1, "a": 0}, "dropout_prob": None},
        "name": "h",
        "model_class": "BertAdapterModel",
    }
    folders.write(tmp_path, folders.HEAD, head, tensors)
    m = built("bert_labels")
    unipelt.import_adapters(m, tmp_path)
    with torch.no_grad():
        hidden = m(**inputs(), output_hidden_states=True).hidden_states[-1][:, 0]
        expected = torch.tanh(hidden @ w1.T + b1) @ w4.T + b4
        torch.testing.assert_close(m(**inputs()).logits, expected, rtol=1e-5, atol=1e-5)
    assert unipelt.labels(m).names == ("a", "b")
    for change, said in (
        ({"layers": 3}, "layers = 3"),
        ({"activation_function": "relu"}, "relu"),
        ({"head_type": "tagging"}, "tagging"),
    ):
        folders.write(tmp_path, folders.HEAD, {**head, "config": {**head["config"], **change}}, tensors)
        assert said in refused(tmp_path, "E0843", "bert_labels")
    folders.write(tmp_path, folders.HEAD, head, {**tensors, "heads.h.7.weight": w1})
    assert "heads.h.7.weight" in refused(tmp_path, "E0842", "bert_labels")
    folders.write(tmp_path, folders.HEAD, {**head, "config": None}, tensors)
    assert "head" in refused(tmp_path, "E0843")


def test_a_head_of_words(tmp_path: Path) -> None:
    """The library writes it as it stands in the model, with the two labels of its configuration; it is no head of labels."""
    saved(tmp_path, "gpt2")
    m = built("gpt2")
    words = {"lm_head.weight": m.get_parameter("lm_head.weight").detach().clone()}
    head = {
        "config": None,
        "name": None,
        "num_labels": 2,
        "label2id": {"LABEL_0": 0, "LABEL_1": 1},
        "model_class": "GPT2LMHeadModel",
    }
    folders.write(tmp_path, folders.HEAD, head, words)
    unipelt.import_adapters(m, tmp_path)
    assert not record(m, "default").plan.copies, "it is the model's own"
    torch.testing.assert_close(out_of(m), out_of(adapted("gpt2", [LORA])), rtol=1e-6, atol=1e-6)
    folders.write(tmp_path, folders.HEAD, head, {"lm_head.weight": words["lm_head.weight"] + 0.5})
    assert "lm_head.weight" in refused(tmp_path, "E0842", "gpt2"), "it is the table of words as well"
    saved(tmp_path, "llama")
    m = built("llama")
    moved = m.get_parameter("lm_head.weight").detach() + 0.5
    folders.write(tmp_path, folders.HEAD, {**head, "model_class": "LlamaForCausalLM"}, {"lm_head.weight": moved})
    unipelt.import_adapters(m, tmp_path)
    assert torch.equal(unipelt.state_dict(m)["lm_head.weight"], moved)


def test_a_head_of_places_in_a_text(tmp_path: Path) -> None:
    """A question's two columns are a start and an end, and no labels, though the library's configuration counts two."""
    from transformers import BertForQuestionAnswering

    torch.manual_seed(0)
    m = BertForQuestionAnswering(built("bert").config).eval()
    saved(tmp_path)
    w, b = torch.randn(2, 32), torch.randn(2)
    config = {
        "head_type": "question_answering",
        "num_labels": 2,
        "layers": 1,
        "activation_function": "tanh",
        "label2id": None,
    }
    head = {"config": config, "name": "h", "model_class": "BertAdapterModel"}
    folders.write(tmp_path, folders.HEAD, head, {"heads.h.1.weight": w, "heads.h.1.bias": b})
    unipelt.import_adapters(m, tmp_path)
    with torch.no_grad():
        out = m(**inputs(), output_hidden_states=True)
        expected = out.hidden_states[-1] @ w.T + b
    torch.testing.assert_close(torch.stack([out.start_logits, out.end_logits], dim=-1), expected, rtol=1e-5, atol=1e-5)


def test_what_tells_whose_a_folder_is(tmp_path: Path) -> None:
    assert folders.written_by(tmp_path) is folders.PEFT
    saved(tmp_path)
    (tmp_path / "pytorch_adapter.bin").unlink()
    with pytest.raises(PeltError, match="no adapter of `adapters`: it has no adapter.safetensors"):
        unipelt.attach(built("bert"), tmp_path)


# ---------------------------------------------------------------- the command line


def call(*words: object, code: int = 0) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = CliRunner().invoke(app, [str(w) for w in words])
    assert done.exit_code == code, (done.output, done.stderr if done.stderr_bytes else "")
    return done.output


def test_the_command_line(tmp_path: Path) -> None:
    m = with_head("classifier")
    built("bert_labels").save_pretrained(tmp_path / "base")
    words = Tokenizer(WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<unk>").save_pretrained(
        tmp_path / "base"
    )
    unipelt.export_adapters(m, tmp_path / "theirs", "mine")
    found = json.loads(call("import", tmp_path / "theirs", "-m", tmp_path / "base", "-o", tmp_path / "ours", "--json"))
    assert found["ok"] and found["library"] == "adapters" and "attn.q" in found["text"]
    other = built("bert_labels")
    unipelt.attach(other, tmp_path / "ours")
    torch.testing.assert_close(output(other), output(m), rtol=1e-6, atol=1e-6)
    made = call(
        "export", tmp_path / "ours", "-m", tmp_path / "base", "--to", "adapters", "-o", tmp_path / "again", "--json"
    )
    assert json.loads(made)["ok"]
    before, after = held(tmp_path / "theirs"), held(tmp_path / "again")
    assert all(torch.equal(t, after[k.replace(".mine.", ".default.")]) for k, t in before.items())
    assert (tmp_path / "again" / "pytorch_model_head.bin").exists()
    call(
        "export",
        tmp_path / "ours",
        "-m",
        tmp_path / "base",
        "--to",
        "adapters",
        "--serving",
        "-o",
        tmp_path / "x",
        code=2,
    )
    assert "E0611" in call(
        "export", tmp_path / "ours", "-m", tmp_path / "base", "--to", "adapters", "-o", tmp_path / "again", code=1
    )


@pytest.mark.parametrize("name", architectures())
def test_a_declaration_has_what_its_method_has(name: str) -> None:
    """Every case names tensors and arguments that its method has, and fields that configurations have."""
    for norms in ("before", "after"):
        for m in architectures()[name].meanings(norms):
            method = unipelt.load(m.base)
            known = {*method.arguments, *(n for n in m.arguments if f"{{{n}}}" in m.lines)}
            assert set(m.arguments) <= known and set(m.tokens) <= set(m.arguments)
            assert m.read - {""} <= {*m.architecture.fields, "norms", "layers", "leave_out", "architecture"}
            labels = {t.name for r in unipelt.analyse(method).rows for t in r.tensors}
            of_rows = {f"{row}.{n}" if row else n for row in m.rows for n in labels}
            assert m.lines or of_rows == set(m.tensors)


# ---------------------------------------------------------------- what is said in other words there


def test_layers_of_a_decoder_are_counted_behind_those_of_its_encoder(tmp_path: Path) -> None:
    m = built("bart")
    own = "use pfeiffer(r = 4) as a { modify encoder.ffn insert sequential layers 1 } use pfeiffer(r = 4) as b { modify decoder.ffn insert sequential layers 0 }"
    unipelt.apply(m, unipelt.parse(f"method mine {{ {own} }}"), name="mine", head=False)
    randomise(m, "mine")
    unipelt.export_adapters(m, tmp_path, "mine")
    config, tensors = folders.read(tmp_path, folders.ADAPTERS)
    assert config["config"]["leave_out"] == [0, 3]
    assert {k.partition(".output_adapters")[0] for k in tensors} == {"encoder.layers.1", "decoder.layers.0"}
    again = built("bart")
    unipelt.import_adapters(again, tmp_path)
    assert torch.equal(out_of(again), out_of(m)) and not torch.equal(out_of(again), out_of(built("bart")))


@pytest.mark.parametrize("r", [3, 4, 8])
def test_a_scale_by_the_root_of_the_rank_is_said_by_alpha(r: int, tmp_path: Path) -> None:
    """The library divides alpha by the rank and has no field for another scale."""
    m = built("bert")
    unipelt.apply(m, unipelt.load("rslora")(r=r, alpha=7.0), name="mine", head=False)
    randomise(m, "mine")
    unipelt.export_adapters(m, tmp_path, "mine")
    config, _ = folders.read(tmp_path, folders.ADAPTERS)
    assert config["config"]["alpha"] == pytest.approx(7 * r**0.5, rel=1e-15)
    again = built("bert")
    unipelt.import_adapters(again, tmp_path)
    torch.testing.assert_close(out_of(again), out_of(m), rtol=0, atol=1e-6)
