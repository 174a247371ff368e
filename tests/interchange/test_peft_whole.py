"""What peft trains whole beside its own tensors, in and out: biases (``bias``) and modules (``modules_to_save``), to the bit, and live peft's outputs."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as T
from names import RENAMED
from safetensors.torch import load_file, save_file
from small import inputs, model, output, randomise, state

import unipelt
from unipelt.interchange.declared import declarations
from unipelt.language.report.diagnostics import PeltError
from unipelt.runtime.registry import record, registry

pytestmark = [
    pytest.mark.skipif(bool(RENAMED), reason="the declarations call methods by their names"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning"),
    pytest.mark.filterwarnings("ignore:The cayley-neumann parameterization:UserWarning"),
]
BERT = {"r": 2, "target_modules": ["query", "value"]}
#: name → (model, peft's configuration, how many copies beside a head come in)
FOLDERS: dict[str, tuple[str, Any, int]] = {
    "all": ("bert", lambda: peft.LoraConfig(**BERT, bias="all"), 26),
    "of the maps": ("bert", lambda: peft.LoraConfig(**BERT, bias="lora_only"), 6),
    "of the maps in a layer": ("bert", lambda: peft.LoraConfig(**BERT, bias="lora_only", layers_to_transform=[1]), 2),
    "of the maps, a head": ("bert_labels", lambda: peft.LoraConfig(**BERT, bias="lora_only", task_type="SEQ_CLS"), 6),
    "all, a head": ("bert_labels", lambda: peft.LoraConfig(**BERT, bias="all", task_type="SEQ_CLS"), 25),
    "all, and of a head its bias alone": ("bert_labels", lambda: peft.LoraConfig(**BERT, bias="all"), 25),
    "there are none": ("llama", lambda: peft.LoraConfig(r=2, target_modules=["q_proj"], bias="all"), 0),
    "at a fused map": ("gpt2", lambda: peft.LoraConfig(r=2, target_modules=["c_attn"], bias="lora_only", fan_in_fan_out=True), 3),
    "all, at a fused map": ("gpt2", lambda: peft.LoraConfig(r=2, target_modules=["c_attn"], bias="all", fan_in_fan_out=True), 19),
    "rslora": ("bert", lambda: peft.LoraConfig(**BERT, bias="lora_only", use_rslora=True), 6),
    "dora": ("bert", lambda: peft.LoraConfig(**BERT, bias="lora_only", use_dora=True), 6),
    "oft": ("bert", lambda: peft.OFTConfig(r=0, oft_block_size=8, use_cayley_neumann=False, target_modules=["query"], bias="oft_only"), 3),
    "vera": ("bert", lambda: peft.VeraConfig(r=2, target_modules=["query"], bias="vera_only"), 3),
    "hra": ("bert", lambda: peft.HRAConfig(r=2, target_modules=["query"], bias="all"), 26),
    "miss": ("bert", lambda: peft.MissConfig(r=8, target_modules=["query"], bias="MiSS_only"), 3),
    "fourierft": ("bert", lambda: peft.FourierFTConfig(n_frequency=20, target_modules=["query"], bias="fourier_only"), 3),
    "modules": ("llama", lambda: peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"]), 2),
    "norms": ("llama", lambda: peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["input_layernorm", "post_attention_layernorm", "norm"]), 7),
    "a module of a layer": ("llama", lambda: peft.LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["layers.1.mlp.up_proj"]), 1),
    "modules and biases": ("bert", lambda: peft.LoraConfig(**BERT, bias="lora_only", modules_to_save=["pooler.dense"]), 8),
    "modules, a head": ("bert_labels", lambda: peft.LoraConfig(**BERT, modules_to_save=["classifier", "word_embeddings"]), 1),
    "ia3 and modules": ("llama", lambda: peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[], modules_to_save=["lm_head"]), 1),
}  # fmt: skip


def saved(name: str, folder: Path) -> str:
    kind, config, _ = FOLDERS[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        m = peft.get_peft_model(model(kind), config())
    g = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for _, p in sorted(m.named_parameters()):
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=g) * 0.1)
    m.save_pretrained(folder)
    return kind


def of_peft(kind: str, folder: Path) -> torch.Tensor:
    return of_ours(peft.PeftModel.from_pretrained(model(kind), folder))


def of_ours(m: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return m.eval()(**inputs(padded=False))[0]


@pytest.mark.parametrize("name", FOLDERS)
def test_in_and_out(name: str, tmp_path: Path) -> None:
    kind = saved(name, tmp_path / "in")
    expected = of_peft(kind, tmp_path / "in")
    m = model(kind)
    base = of_ours(m)
    unipelt.import_peft(m, tmp_path / "in", "theirs")
    torch.testing.assert_close(of_ours(m), expected, rtol=1e-5, atol=1e-5)
    copies = [c for c in record(m, "theirs").plan.copies if not c.head]
    assert len(copies) == FOLDERS[name][2]
    values = unipelt.state_dict(m, "theirs")
    moved = {c.name for c in copies if not torch.equal(values[c.name], m.get_parameter(c.parameter.path))}
    assert moved == {c.name for c in copies} and not torch.allclose(of_ours(m), base, atol=1e-2)
    unipelt.export_peft(m, tmp_path / "out", "theirs")
    before, after = (load_file(tmp_path / d / "adapter_model.safetensors") for d in ("in", "out"))
    assert before.keys() == after.keys() and all(torch.equal(t, after[k]) for k, t in before.items())
    theirs, ours = (json.loads((tmp_path / d / "adapter_config.json").read_text()) for d in ("in", "out"))
    assert ours.get("bias") == (
        theirs.get("bias") if copies or kind == "bert_labels" else theirs.get("bias") and "none"
    )
    torch.testing.assert_close(of_peft(kind, tmp_path / "out"), expected, rtol=0, atol=0)
    unipelt.save(m, tmp_path / "own", "theirs", fold=False)
    again = model(kind)
    unipelt.attach(again, tmp_path / "own")
    torch.testing.assert_close(of_ours(again), of_ours(m), rtol=0, atol=0)
    unipelt.activate(m)
    assert torch.equal(of_ours(m), base), "the base's own are as they were"


@pytest.mark.parametrize("clause, said", [
    ("train *.bias", "all"), ("train *.query.bias, *.value.bias", "lora_only"), ("train *.query.bias", "`bias` has `none`, `all`, `lora_only`"),
    ("train *.key.bias", "trains `encoder.layer.0.attention.self.key.bias`"), ("train *.key.weight", "and not `encoder.layer.0.attention.self.key.bias`, and peft trains modules whole"),
    ("train *.query.weight, *.query.bias, *.value.bias", "where it has a row too"), ("train *.norm.*", "none"),
])  # fmt: skip
def test_what_was_trained_here(clause: str, said: str, tmp_path: Path) -> None:
    """It goes out as the setting that says it, or is refused by the setting's name."""
    m = model("bert")
    unipelt.apply(m, unipelt.parse(f"method mine {{ use lora(r = 2, at = [attn.q, attn.v]) as lora  {clause} }}"))
    randomise(m, "default", scale=0.1)
    if said not in ("all", "lora_only", "none"):
        with pytest.raises(PeltError) as caught:
            unipelt.export_peft(m, tmp_path / "out")
        assert said in str(caught.value) and not (tmp_path / "out").exists()
        return
    unipelt.export_peft(m, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["bias"] == said
    torch.testing.assert_close(of_peft("bert", tmp_path / "out"), of_ours(m), rtol=1e-5, atol=1e-5)
    if said != "none":
        with pytest.raises(PeltError, match="serving engine would not read it: biases"):
            unipelt.export_peft(m, tmp_path / "served", serving=True)


def test_what_has_no_bias_setting_is_refused(tmp_path: Path) -> None:
    m = model("bert")
    unipelt.apply(m, unipelt.parse("method mine { use ia3 as ia3  train *.bias }"))
    with pytest.raises(PeltError, match="E0844.*trains `embeddings.LayerNorm.bias` and not"):
        unipelt.export_peft(m, tmp_path / "out")


def test_what_is_tied(tmp_path: Path) -> None:
    """peft trains one of two tied weights alone where it saves its module, and both where it trains their one bias."""
    config = peft.LoraConfig(r=2, target_modules=["c_fc"], modules_to_save=["lm_head"], fan_in_fan_out=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.get_peft_model(model("gpt2"), config).save_pretrained(tmp_path)
    ours = model("gpt2")
    with pytest.raises(PeltError, match=r"E0841.*`lm_head.weight` alone, which is tied to `transformer.wte.weight`"):
        unipelt.import_peft(ours, tmp_path)
    assert registry(ours) is None


def test_a_head_that_has_not_moved_stays_the_base_s(tmp_path: Path) -> None:
    """peft asks for the head in a folder that says its task: without a head the folder says none, and opens."""
    m = model("bert_labels")
    unipelt.apply(m, unipelt.load("lora", arguments={"r": 2, "at": "[attn.q]"}))
    with torch.no_grad():
        for n, t in unipelt.state_dict(m).items():
            t.add_(0.1 if n.endswith((".A", ".B")) else 0.0)
    unipelt.export_peft(m, tmp_path)
    assert not any("classifier" in k for k in load_file(tmp_path / "adapter_model.safetensors"))
    torch.testing.assert_close(of_peft("bert_labels", tmp_path), of_ours(m), rtol=1e-5, atol=1e-5)


def test_one_bias_of_two_modules(tmp_path: Path) -> None:
    """peft trains it in its place, so for both, and writes it for each."""
    torch.manual_seed(0)
    m = T.BertForMaskedLM(model("bert").config).eval()
    theirs = peft.get_peft_model(copy.deepcopy(m), peft.LoraConfig(**BERT, bias="all"))
    with torch.no_grad():
        for i, p in enumerate(q for q in theirs.parameters() if q.requires_grad):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.1)
    theirs.save_pretrained(tmp_path / "in")
    unipelt.import_peft(m, tmp_path / "in")
    torch.testing.assert_close(of_ours(m), of_ours(theirs), rtol=1e-5, atol=1e-5)
    unipelt.export_peft(m, tmp_path / "out")
    before, after = (load_file(tmp_path / d / "adapter_model.safetensors") for d in ("in", "out"))
    assert "base_model.model.cls.predictions.decoder.bias" in before and before.keys() == after.keys()
    assert all(torch.equal(t, after[k]) for k, t in before.items())


def changed(folder: Path, change: Any) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


FRONT = "base_model.model.encoder.layer.0.attention.self."


@pytest.mark.parametrize(
    "change, code, said",
    [
        (lambda t: t.update({f"{FRONT}query.base_layer.bias": torch.zeros(3)}), "E0842", "query.bias` in"),
        (lambda t: t.update({f"{FRONT}query.base_layer.shift": torch.zeros(3)}), "E0842", "base_layer.shift"),
        (lambda t: t.update({f"{FRONT}query.bias": torch.zeros(32)}), "E0842", "is there twice, with other numbers"),
        (lambda t: t.update({f"{FRONT}other.bias": torch.zeros(32)}), "E0842", "other.bias"),
    ],
)
def test_broken_folders(change: Any, code: str, said: str, tmp_path: Path) -> None:
    saved("of the maps", tmp_path)
    changed(tmp_path, change)
    m = model("bert")
    before, out = state(m), output(m)
    with pytest.raises(PeltError) as caught:
        unipelt.import_peft(m, tmp_path)
    assert [d.code for d in caught.value.diagnostics] == [code] and said in str(caught.value)
    assert state(m) == before and torch.equal(output(m), out) and registry(m) is None


def test_each_type_says_its_own_word() -> None:
    """A type of peft's whose configuration has `bias` is declared with its values, and no other is."""
    for d in declarations():
        config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(d.type)]
        fields = config.__dataclass_fields__
        assert bool(d.biases) == ("bias" in fields), d.name
        if d.at in ("output", "weight"):
            assert "modules_to_save" in fields, d.name
        if d.biases:
            assert d.biases[:2] == ["none", "all"]
            said = " ".join((config.__doc__ or "", str(fields["bias"].metadata.get("help"))))
            assert d.biases[2] in said or d.type == "WAVEFT", d.name
