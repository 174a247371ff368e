"""peft's folders, made by live peft: in, out and back to the bit; what has no counterpart is refused, the model untouched."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from names import RENAMED
from safetensors.torch import load_file, save_file
from small import inputs, model, output, randomise, state

import unipelt
from unipelt.interchange.declared import declarations
from unipelt.interchange.filling import Source, filled
from unipelt.interchange.peft_out import serving_problem
from unipelt.language.report.diagnostics import PeltError
from unipelt.runtime.registry import registry
from unipelt.variants.recognise import recognise

pytestmark = [
    pytest.mark.skipif(bool(RENAMED), reason="the declarations call methods by their names"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:peft counts the positions:UserWarning"),
    pytest.mark.filterwarnings("ignore:peft saves the rows:UserWarning"),
    pytest.mark.filterwarnings("ignore:peft computes two butterfly:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),
    pytest.mark.filterwarnings("ignore:Detected that the base layer has no bias:UserWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning"),
]
QV = ["q_proj", "v_proj"]
BOTH, WEIGHTS = {"attn.q", "attn.v"}, {"attn.q.weight", "attn.v.weight"}
L = 5
#: name → (model, peft's configuration, sites of the adapter that comes in)
FOLDERS: dict[str, tuple[str, Any, set[str]]] = {
    "lora": ("llama", lambda: peft.LoraConfig(r=4, lora_alpha=6, target_modules=QV), {"attn.q", "attn.v"}),
    "rslora": ("llama", lambda: peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, target_modules=["up_proj"]), {"ffn.up"}),
    "lora with a head": (
        "bert_labels", lambda: peft.LoraConfig(r=4, lora_alpha=6, target_modules=["query"], task_type="SEQ_CLS"), {"attn.q"}),
    "lora at a fused map": (
        "gpt2", lambda: peft.LoraConfig(r=4, lora_alpha=6, target_modules=["c_attn"], fan_in_fan_out=True), {"module"}),
    "lora in some layers": (
        "llama", lambda: peft.LoraConfig(r=4, target_modules=QV, layers_to_transform=[1]), {"module"}),
    "dora": ("llama", lambda: peft.LoraConfig(r=4, use_dora=True, target_modules=QV), {"attn.q.weight", "attn.v.weight"}),
    "patterns": (
        "llama", lambda: peft.LoraConfig(r=4, target_modules=QV, rank_pattern={r"layers.0.self_attn.q_proj": 2}, alpha_pattern={"v_proj": 32}),
        {"module", "attn.v"}),
    "ia3": (
        "llama", lambda: peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
        {"attn.k", "attn.v", "ffn.hidden"}),
    "vera": ("llama", lambda: peft.VeraConfig(r=4, target_modules=QV), {"attn.q", "attn.v"}),
    "vera of several sizes": ("llama", lambda: peft.VeraConfig(r=4, target_modules=["q_proj", "up_proj", "v_proj"]), {"attn.q", "ffn.up", "attn.v"}),
    "vera at a narrow map": ("llama", lambda: peft.VeraConfig(r=4, target_modules=["v_proj"]), {"attn.v"}),
    "randlora": ("llama", lambda: peft.RandLoraConfig(r=5, randlora_alpha=9, target_modules=["q_proj", "v_proj", "down_proj"]), {*BOTH, "ffn.down"}),
    "randlora at a narrow map": ("llama", lambda: peft.RandLoraConfig(r=4, target_modules=["v_proj"]), {"attn.v"}),
    "randlora of stored maps": ("gpt2", lambda: peft.RandLoraConfig(r=4, target_modules=["c_fc"], fan_in_fan_out=True), {"ffn.up"}),
    "trained tokens": ("llama", lambda: peft.TrainableTokensConfig(token_indices=[3, 5, 11, 12]), {"embed.weight"}),
    "adaption prompt": ("llama", lambda: peft.AdaptionPromptConfig(adapter_len=4, adapter_layers=2, task_type="CAUSAL_LM"), {"attn.heads"}),
    "fourierft": ("llama", lambda: peft.FourierFTConfig(n_frequency=20, scaling=50.0, target_modules=QV), BOTH),
    "fourierft of another seed": ("llama", lambda: peft.FourierFTConfig(n_frequency=20, random_loc_seed=3, target_modules=["up_proj"]), {"ffn.up"}),
    "waveft": ("llama", lambda: peft.WaveFTConfig(n_frequency=30, scaling=5.0, target_modules=["q_proj", "down_proj"]), {"attn.q", "ffn.down"}),
    "shira": ("llama", lambda: peft.ShiraConfig(r=3, target_modules=["q_proj", "v_proj", "up_proj"]), {*BOTH, "ffn.up"}),
    "loha": ("llama", lambda: peft.LoHaConfig(r=2, alpha=3, target_modules=QV, rank_pattern={"v_proj": 3}), WEIGHTS),
    "lokr": ("llama", lambda: peft.LoKrConfig(r=3, alpha=6, decompose_factor=4, target_modules=["q_proj", "o_proj"]), {"attn.q", "attn.o"}),
    "lokr of two products": (
        "llama", lambda: peft.LoKrConfig(r=1, alpha=6, decompose_both=True, decompose_factor=4, target_modules=["q_proj"]), {"attn.q"}),
    "oft": ("llama", lambda: peft.OFTConfig(r=0, oft_block_size=8, use_cayley_neumann=False, target_modules=QV), WEIGHTS),
    "oft, shared": (
        "llama", lambda: peft.OFTConfig(r=0, oft_block_size=8, use_cayley_neumann=False, block_share=True, target_modules=QV), WEIGHTS),
    "oft by Neumann's series": ("llama", lambda: peft.OFTConfig(r=0, oft_block_size=8, use_cayley_neumann=True, target_modules=QV), BOTH),
    "boft": ("llama", lambda: peft.BOFTConfig(boft_block_size=8, target_modules=["q_proj", "down_proj"]), {"attn.q.weight", "ffn.down.weight"}),
    "boft of two factors": ("llama", lambda: peft.BOFTConfig(boft_block_size=8, boft_n_butterfly_factor=2, target_modules=QV), WEIGHTS),
    "hra": ("llama", lambda: peft.HRAConfig(r=4, target_modules=QV), WEIGHTS),
    "hra_gs": ("llama", lambda: peft.HRAConfig(r=4, apply_GS=True, init_weights=False, target_modules=QV), WEIGHTS),  # its usual start has equal pairs, which are orthogonalised with a loss
    "c3a": ("llama", lambda: peft.C3AConfig(block_size=8, target_modules=QV, block_size_pattern={"v_proj": 16}), BOTH),
    "miss": ("llama", lambda: peft.MissConfig(r=8, target_modules=QV), BOTH),
    "bat": ("llama", lambda: peft.MissConfig(r=4, init_weights="bat", target_modules=QV), BOTH),
    "road": ("llama", lambda: peft.RoadConfig(group_size=8, target_modules=QV), BOTH),
    "hira": ("llama", lambda: peft.HiraConfig(r=4, target_modules=QV), WEIGHTS),
    "gralora": ("llama", lambda: peft.GraloraConfig(r=4, alpha=6, gralora_k=2, target_modules=QV), BOTH),
    "neat": ("llama", lambda: peft.PeanutConfig(r=4, depth=0, scaling=2.0, target_modules=QV), BOTH),
    "beft": ("llama", lambda: peft.BeftConfig(target_modules=["v_proj"]), {"attn.v"}),
    "delora": ("llama", lambda: peft.DeloraConfig(r=4, delora_lambda=12, target_modules=QV, lambda_pattern={"v_proj": 9}), WEIGHTS),
    "ln_tuning": ("bert", lambda: peft.LNTuningConfig(target_modules=["LayerNorm"]), set()),
    "ln_tuning in the blocks": ("llama", lambda: peft.LNTuningConfig(task_type="CAUSAL_LM"), set()),
    "p-tuning": (
        "llama", lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=L, encoder_hidden_size=8), {"embed"}),
    "prompt": ("llama", lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=L), {"embed"}),
    "prefix": ("llama", lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=L), {"attn.heads"}),
}  # fmt: skip

#: What comes in, and is refused on the way out: a seed is not kept.
ONLY_IN = {"fourierft of another seed"}

#: What training leaves skew: it starts at 0, and its gradients are skew.
SKEW = "boft_R.default"


class Kernel:
    """In place of peft's CUDA kernel of two butterfly factors: blocks [n, count, b, b] along the diagonals of n matrices."""

    @staticmethod
    def forward(blocks: torch.Tensor) -> list[torch.Tensor]:
        return [torch.stack([torch.block_diag(*of_one) for of_one in blocks])]


@pytest.fixture
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """peft's own code of two factors, without CUDA, where a test's name of a folder asks for it."""
    there = "two factors" in request.node.name
    monkeypatch.setattr(peft.tuners.boft.layer, "get_fbd_cuda", lambda: Kernel if there else None)


def saved(name: str, folder: Path, **changes: Any) -> str:
    """A folder that peft wrote, of an adapter whose tensors have moved; ``changes`` are of its configuration. Returns the model's kind."""
    kind, config, _ = FOLDERS[name]
    torch.manual_seed(0)  # peft draws its starts
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        m = peft.get_peft_model(model(kind), config())
    g = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for n, p in sorted(m.named_parameters()):
            if p.requires_grad:
                moved = torch.randn(p.shape, generator=g) * 0.1
                p.add_(moved - moved.mT if n.endswith(SKEW) else moved)
    m.save_pretrained(folder)
    if changes:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return kind


def of_peft(kind: str, folder: Path) -> torch.Tensor:
    m = peft.PeftModel.from_pretrained(model(kind), folder).eval()
    with torch.no_grad():
        return m(**inputs(padded=False))[0]


def of_ours(m: torch.nn.Module, name: str) -> torch.Tensor:
    given = inputs(padded=False)
    if name == "prefix":
        given["position_ids"] = torch.arange(given["input_ids"].shape[1])[None] + L
    with torch.no_grad():
        return m.eval()(**given)[0]


@pytest.mark.usefixtures("kernel")
@pytest.mark.filterwarnings(
    "ignore:The cayley-neumann parameterization:UserWarning"
)  # said of every such folder of any version
@pytest.mark.parametrize("name", FOLDERS)
def test_in_and_out(name: str, tmp_path: Path) -> None:
    """The same outputs, the same bits in the folder that is written, and peft opens it."""
    kind = saved(name, tmp_path / "in")
    expected = of_peft(kind, tmp_path / "in")
    m = model(kind)
    base = of_ours(m, name)
    assert unipelt.import_peft(m, tmp_path / "in", "theirs") == "theirs"
    found = of_ours(m, name)
    n = min(found.shape[1], expected.shape[1]) if found.dim() == 3 else found.shape[0]
    torch.testing.assert_close(
        found[:, -n:] if found.dim() == 3 else found,
        expected[:, -n:] if found.dim() == 3 else expected,
        rtol=1e-5,
        atol=1e-5,
    )
    assert (found[..., -1, :] - base[..., -1, :]).abs().max() > 1e-2, "it does something"
    named = {e.site.full_name.partition("(")[0] for e in registry(m).attached["theirs"].plan.edits}
    assert named == FOLDERS[name][2]
    if name in ONLY_IN:
        with pytest.raises(PeltError, match="E0844"):
            unipelt.export_peft(m, tmp_path / "out", "theirs")
        return
    unipelt.export_peft(m, tmp_path / "out", "theirs")
    before, after = (load_file(tmp_path / d / "adapter_model.safetensors") for d in ("in", "out"))
    assert before.keys() == after.keys() and all(torch.equal(t, after[k]) for k, t in before.items())
    torch.testing.assert_close(of_peft(kind, tmp_path / "out"), expected, rtol=0, atol=0)
    unipelt.save(m, tmp_path / "own", "theirs", fold=False)
    other = model(kind)
    unipelt.attach(other, tmp_path / "own")
    assert torch.equal(of_ours(other, name), found)


@pytest.mark.parametrize(
    "method, sites",
    [
        ("lora", "[attn.q, ffn.down]"),
        ("rslora", "[attn.o]"),
        ("dora", "[attn.k.weight]"),
        ("randlora", "[attn.q, attn.v]"),
    ],
)
def test_out_and_in_again(method: str, sites: str, tmp_path: Path) -> None:
    m = model("llama")
    unipelt.apply(m, unipelt.load(method, arguments={"r": 3, "alpha": 5.0, "at": sites}), name="mine")
    with torch.no_grad():
        for p in m.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    unipelt.export_peft(m, tmp_path / "out", "mine")
    torch.testing.assert_close(of_peft("llama", tmp_path / "out"), of_ours(m, ""), rtol=1e-5, atol=1e-5)
    other = model("llama")
    unipelt.import_peft(other, tmp_path / "out", trainable=True)
    torch.testing.assert_close(of_ours(other, ""), of_ours(m, ""), rtol=1e-6, atol=1e-6)
    assert any(p.requires_grad for p in other.parameters())


def test_two_of_one_base_and_the_model_that_holds_it(tmp_path: Path) -> None:
    """An adapter of the model with its head goes onto the base alone."""
    saved("lora", tmp_path / "a")
    m = model("llama")
    unipelt.import_peft(m, tmp_path / "a", "one")
    unipelt.import_peft(m, tmp_path / "a", "two")
    unipelt.activate(m, "one")
    expected = of_ours(m, "")
    unipelt.activate(m, "two")
    assert torch.equal(of_ours(m, ""), expected)
    inner = model("llama").model
    unipelt.import_peft(inner, tmp_path / "a")
    assert len(registry(inner).attached["default"].plan.edits) == 6


@pytest.mark.parametrize(
    "changes, code",
    [
        ({"use_qalora": True}, "E0841"), ({"bias": "some"}, "E0841"), ({"init_lora_weights": "pissa"}, "E0841"),
        ({"peft_type": "POLY"}, "E0841"), ({"a_new_setting": "on"}, "E0841"), ({"lora_alpha": "six"}, "E0840"),
        ({"alpha_pattern": {"(": 3}}, "E0840"), ({"trainable_token_indices": [1]}, "E0841"), ({"r": 2.5}, "E0840"), ({"r": 5}, "E0842"),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_mean_something_else(changes: dict[str, Any], code: str, tmp_path: Path) -> None:
    saved("lora", tmp_path, **changes)
    refused(tmp_path, code)


@pytest.mark.parametrize(
    "name, changes, code, said",
    [
        ("boft", {"boft_block_size": 0, "boft_block_num": 4}, "E0841", "boft_block_"), ("boft", {"boft_dropout": 0.1}, "E0841", "boft_dropout"),
        ("shira", {"mask_type": "mine"}, "E0841", "mask_type"), ("shira", {"fan_in_fan_out": True}, "E0841", "fan_in_fan_out"), ("shira", {"r": 2}, "E0842", "shira_indices"),
        ("dora", {"use_rslora": True}, "E0841", "`use_dora` is True and `use_rslora` is True"),  # each of them there is
        ("lora", {"init_lora_weights": "pissa"}, "E0841", "here: `init_lora_weights` is 'pissa'\n"), ("lora", {"peft_type": "XLORA"}, "E0841", "those that have: "),
        ("randlora", {"save_projection": False}, "E0841", "save_projection"), ("randlora", {"sparse": True}, "E0841", "`sparse`"),
        ("randlora", {"very_sparse": True}, "E0841", "very_sparse"), ("randlora", {"randlora_dropout": 0.1}, "E0841", "randlora_dropout"),
        ("randlora", {"r": 4}, "E0842", "randlora_"),
        ("boft", {"boft_n_butterfly_factor": 3}, "E0841", "boft_n_butterfly_factor"),
        ("boft", {"boft_n_butterfly_factor": 2}, "E0842", "boft_R"),  # what peft writes without its kernel
    ],
    ids=str,
)  # fmt: skip
def test_settings_of_single_methods(name: str, changes: dict[str, Any], code: str, said: str, tmp_path: Path) -> None:
    saved(name, tmp_path, **changes)
    assert said in refused(tmp_path, code)


def refused(folder: Path, code: str, kind: str = "llama") -> str:
    m = model(kind)
    before, out = state(m), output(m)
    with pytest.raises(PeltError) as caught:
        unipelt.import_peft(m, folder)
    assert [d.code for d in caught.value.diagnostics] == [code], caught.value
    assert state(m) == before and torch.equal(output(m), out) and registry(m) is None
    return str(caught.value)


def test_broken_folders(tmp_path: Path) -> None:
    assert "no folder" in refused(tmp_path / "none", "E0840")
    (tmp_path / "empty").mkdir()
    assert "adapter_config.json" in refused(tmp_path / "empty", "E0840")
    saved("lora", tmp_path / "a")
    weights = tmp_path / "a" / "adapter_model.safetensors"
    whole = load_file(weights)
    first = sorted(whole)[0]
    for tensors, said in (
        ({k: t for k, t in whole.items() if k != first}, "lacks"),
        ({**whole, "base_model.model.lm_head.lora_C": torch.zeros(2)}, "lora_C"),
        ({**whole, first: torch.zeros(3, 7)}, "shape"),
        ({**whole, first: whole[first] * float("nan")}, "NaN"),
    ):
        save_file(tensors, weights)
        assert said in refused(tmp_path / "a", "E0842")
    save_file({k.replace("layers.2", "layers.9"): t for k, t in whole.items()}, weights)
    assert "layers.9" in refused(tmp_path / "a", "E0843")
    weights.write_bytes(b"no tensors")
    refused(tmp_path / "a", "E0840")
    weights.rename(weights.with_name("adapter_model.bin"))
    assert "pickle" in refused(tmp_path / "a", "E0840")
    (tmp_path / "a" / "adapter_config.json").write_text("[]")
    weights.with_name("adapter_model.bin").rename(weights)
    save_file(whole, weights)
    refused(tmp_path / "a", "E0840")
    saved("lora", tmp_path / "b")
    refused(tmp_path / "b", "E0843", "bert")


@pytest.mark.parametrize(
    "text, said",
    [
        ("use lora as lora gated by scalar_gate", "gate"), ("use pfeiffer as adapter", "not among peft's"),
        ("use lora as lora  use ia3 as ia3", "combines"), ("modify attn.q insert parallel form low_rank(4, 0.0, zeros) compose add tokens last 1", "tokens"), ("train *.bias", "no row"),
    ],
)  # fmt: skip
def test_what_peft_cannot_say(text: str, said: str, tmp_path: Path) -> None:
    gate = "gate scalar_gate { t: [] ~ zeros  g = tanh(t) }\n"
    m = model("bert")
    try:
        unipelt.apply(m, unipelt.parse(f"{gate}method mine {{ {text} }}"), name="mine")
    except PeltError as e:
        pytest.fail(f"the text is wrong: {e}")
    with pytest.raises(PeltError, match=said):
        unipelt.export_peft(m, tmp_path / "out", "mine")
    assert not (tmp_path / "out").exists()


def test_parts_of_a_fused_map_become_one_lora(tmp_path: Path) -> None:
    """Of different ranks and scales: what peft computes is the same but for rounding."""
    m = model("gpt2")
    rows = "use lora(r = 3, alpha = 5.0, at = attn.q) as q  use lora(r = 2, alpha = 8.0, at = attn.v) as v"
    unipelt.apply(m, unipelt.parse(f"method mine {{ {rows} }}"), name="mine")
    base = of_ours(model("gpt2"), "")
    randomise(m, "mine")
    with pytest.warns(UserWarning, match="equal but for rounding") as said:
        unipelt.export_peft(m, tmp_path / "out", "mine")
    assert said[0].filename == __file__
    found = of_ours(m, "")
    assert (found - base).abs().max() > 1e-2
    torch.testing.assert_close(of_peft("gpt2", tmp_path / "out"), found, rtol=1e-5, atol=1e-5)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == 5 and config["target_modules"] == ["c_attn"] and config["rank_pattern"] == {}
    again = model("gpt2")
    unipelt.import_peft(again, tmp_path / "out")
    torch.testing.assert_close(of_ours(again, ""), found, rtol=1e-5, atol=1e-5)


def test_a_part_of_a_fused_map_is_refused_elsewhere(tmp_path: Path) -> None:
    m = model("gpt2")
    unipelt.apply(m, unipelt.load("vera"))
    with pytest.raises(PeltError, match="fused"):
        unipelt.export_peft(m, tmp_path / "out")


def test_rules_of_serving_engines(tmp_path: Path) -> None:
    m = model("llama")
    unipelt.apply(m, unipelt.load("lora", arguments={"r": 4, "at": "[attn.q, attn.v]"}))
    unipelt.export_peft(m, tmp_path / "out", serving=True)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == QV and "modules_to_save" not in config
    assert serving_problem(config) is None
    for change, said in (
        ({"use_dora": True}, "LoRA"), ({"peft_type": "IA3"}, "LoRA"), ({"modules_to_save": ["score"]}, "score"), ({"rank_pattern": {"q": 2}}, "one rank"),
        ({"bias": "all"}, "biases"), ({"r": 1024}, "1024"), ({"target_modules": ["model.layers.0.self_attn.q_proj"]}, "last part"),
    ):  # fmt: skip
        assert said in str(serving_problem({**config, **change}))
    m = model("llama")
    unipelt.apply(m, unipelt.parse("method some { layers first 1  use lora as lora }"))
    with pytest.raises(PeltError, match="E0844"):
        unipelt.export_peft(m, tmp_path / "some", serving=True)


def test_folders_converted_from_pissa(tmp_path: Path) -> None:
    """peft writes what became of PiSSA as a LoRA of twice the rank for the plain base; unconverted it is for another base, and refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        m = peft.get_peft_model(
            model("llama"), peft.LoraConfig(r=4, lora_alpha=6, init_lora_weights="pissa", target_modules=QV)
        )
        config = m.peft_config["default"]
        config.init_lora_weights = True
        m.save_pretrained(tmp_path / "start")
        config.init_lora_weights = "pissa"
        g = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for p in m.parameters():
                if p.requires_grad:
                    p.add_(torch.randn(p.shape, generator=g) * 0.1)
        m.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=tmp_path / "start")
        m.save_pretrained(tmp_path / "as it is")
    ours = model("llama")
    unipelt.import_peft(ours, tmp_path / "converted", "theirs")
    with torch.no_grad():
        torch.testing.assert_close(of_ours(ours, ""), m.eval()(**inputs(padded=False))[0], rtol=1e-5, atol=1e-5)
    unipelt.export_peft(ours, tmp_path / "out", "theirs")
    before, after = (load_file(tmp_path / d / "adapter_model.safetensors") for d in ("converted", "out"))
    assert before.keys() == after.keys() and all(torch.equal(t, after[k]) for k, t in before.items())
    assert "pissa" in refused(tmp_path / "as it is", "E0841")


def changed(folder: Path, change: Any) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_delora_of_another_base(tmp_path: Path) -> None:
    saved("delora", tmp_path)
    key = "base_model.model.model.layers.0.self_attn.q_proj.delora_w_norm"
    changed(tmp_path, lambda t: t.update({key: t[key] * 1.1}))
    assert "another base" in refused(tmp_path, "E0842")


def test_copies_of_what_the_model_has_once(tmp_path: Path) -> None:
    """Those that each module has besides must be copies, and may be missing."""
    saved("randlora", tmp_path)
    expected = of_peft("llama", tmp_path)
    key = "base_model.model.model.layers.0.self_attn.q_proj.randlora_B"
    changed(tmp_path, lambda t: t.update({key: t[key] + 1}))
    assert "is to be a copy of `base_model.randlora_B`" in refused(tmp_path, "E0842")
    changed(tmp_path, lambda t: t.pop(key))
    m = model("llama")
    unipelt.import_peft(m, tmp_path)
    torch.testing.assert_close(of_ours(m, ""), expected, rtol=1e-5, atol=1e-5)
    changed(tmp_path, lambda t: t.pop("base_model.randlora_B"))
    assert "lacks the tensor `base_model.randlora_B`" in refused(tmp_path, "E0842")


def test_tensors_that_are_one_and_differ(tmp_path: Path) -> None:
    """Where ours is one tensor for several modules and the folder has one for each, they must agree."""
    m = model("llama")
    unipelt.apply(m, unipelt.parse("method mine { modify attn.q insert parallel form { A: [d_in, 2] ~ zeros per kind  B: [2, d_out] ~ zeros  delta = z @ A @ B } compose scaled(2.0) }"), name="mine")  # fmt: skip
    plan = registry(m).attached["mine"].plan

    def source(e: Any, label: str) -> Source:
        return Source(f"{e.site.block}.{label}", "same")

    numbers = {
        f"{e.site.block}.{label}": torch.zeros(plan.tensors[n].shape)
        for e in plan.edits
        for label, n in e.tensors.items()
    }
    found, used = filled(plan, source, numbers, tmp_path)
    assert found.keys() == plan.tensors.keys() and used == numbers.keys()
    numbers["layers.1.A"] = numbers["layers.1.A"] + 1
    with pytest.raises(PeltError, match="`layers.1.A` in .* is shared, and another module's has other numbers"):
        filled(plan, source, numbers, tmp_path)


def test_arguments_that_differ_between_modules(tmp_path: Path) -> None:
    """peft has patterns for some arguments, and one value of the others for all modules."""
    m = model("llama")
    unipelt.apply(
        m,
        unipelt.parse(
            "method mine { use hra(r = 2, at = attn.q.weight) as a  use hra(r = 4, at = attn.v.weight) as b }"
        ),
        name="mine",
    )
    with pytest.raises(PeltError, match="`r` differs between its modules, and peft has one `r`"):
        unipelt.export_peft(m, tmp_path / "out", "mine")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name, change, said",
    [
        ("trained tokens", {"token_indices": [3, 5, 11, 80]}, "below 80"), ("trained tokens", {"token_indices": "all"}, "no list"),
        ("trained tokens", {"token_indices": [3, -1]}, "no list"), ("fourierft", {"random_loc_seed": "a"}, "no seed"), ("fourierft", {"random_loc_seed": None}, "no seed"),
    ],
)  # fmt: skip
def test_fields_that_decide_whole_numbers(name: str, change: dict[str, Any], said: str, tmp_path: Path) -> None:
    saved(name, tmp_path, **change)
    assert said in refused(tmp_path, "E0840")


@pytest.mark.parametrize(
    "change, said",
    [(lambda t: t + 40, r"no places in a weight \[32, 32\]"), (lambda t: -t - 1, "no places"), (lambda t: t * 0, "a place twice"), (lambda t: t[:, 1:], "shape"), (lambda t: t[0], "shape"), (lambda t: t.float(), "no places")],
)  # fmt: skip
def test_places_that_a_folder_keeps(change: Any, said: str, tmp_path: Path) -> None:
    saved("shira", tmp_path)
    key = "base_model.model.model.layers.0.self_attn.q_proj.shira_indices"
    changed(tmp_path, lambda t: t.update({key: change(t[key]).contiguous()}))
    assert re.search(said, refused(tmp_path, "E0842"))


def test_places_that_were_drawn_here(tmp_path: Path) -> None:
    """Any places go out, in the order in which they were drawn."""
    m = model("llama")
    unipelt.apply(m, unipelt.load("shira_r", arguments={"r": 2}), name="mine")
    randomise(m, "mine")
    unipelt.export_peft(m, tmp_path / "out", "mine")
    torch.testing.assert_close(of_peft("llama", tmp_path / "out"), of_ours(m, ""), rtol=1e-5, atol=1e-5)
    other = model("llama")
    unipelt.apply(other, unipelt.load("shira"), name="mine")
    with pytest.raises(PeltError, match="`shira` is not among peft's"):
        unipelt.export_peft(other, tmp_path / "other", "mine")


@pytest.mark.parametrize(
    "count, known", [("3 * d_in + 3 * d_out", True), ("3 * d_in + 2 * d_out", False), ("3 * d_in", False)]
)
def test_recognition_of_a_rank_in_a_sum(count: str, known: bool) -> None:
    form = f"frozen I: [{count}] ~ choice(d_in * d_out)  c: [{count}] ~ zeros  delta = z @ scatter(c, I, d_in, d_out)"
    method = unipelt.parse(f"method mine {{ modify attn.v, ffn.up insert parallel form {{ {form} }} compose add }}")
    assert ("shira_r(r = 3)" in recognise(method).sentence) == known


def test_a_pair_that_is_too_small(tmp_path: Path) -> None:
    """VeRA's shared factors are as large as the largest map: a smaller one would be read with zeros in it."""
    saved("vera of several sizes", tmp_path)
    changed(tmp_path, lambda t: t.update({"base_model.vera_B": t["base_model.vera_B"][:32].contiguous()}))
    assert "vera_B" in refused(tmp_path, "E0842")


def test_recognition_of_a_list_of_another_length() -> None:
    """Recognition asks how the library's own method starts, with as many rows and its own ids."""
    method = unipelt.load("trainable_tokens", arguments={"n": 4, "which": "listed(3, 5, 11, 12)"})
    assert "trainable_tokens" in recognise(method).sentence


def test_attach_takes_a_folder_of_peft(tmp_path: Path) -> None:
    kind = saved("lora", tmp_path)
    m = model(kind)
    assert unipelt.attach(m, tmp_path, "theirs", trainable=True) == "theirs"
    torch.testing.assert_close(of_ours(m, ""), of_peft(kind, tmp_path), rtol=1e-5, atol=1e-5)
    assert any(p.requires_grad for p in m.parameters())
    for given in ({"dtype": torch.bfloat16}, {"force": True}, {"arguments": {"alpha": 3.0}}):
        with pytest.raises(PeltError, match="another library's"):
            unipelt.attach(model(kind), tmp_path, **given)


def test_the_same_method_with_other_names_for_its_tensors(tmp_path: Path) -> None:
    m = model("gpt2")
    rows = "modify attn.q insert parallel form { P: [d_in, 3] ~ normal(1.0)  Q: [3, d_out] ~ zeros  delta = z @ P @ Q } compose h + 2 * delta"
    unipelt.apply(m, unipelt.parse(f"method mine {{ {rows} }}"), name="mine")
    with pytest.raises(PeltError, match=r"with other tensors: `[PQ]`"):
        unipelt.export_peft(m, tmp_path / "out", "mine")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("d", declarations(), ids=lambda d: d.name)
def test_a_declaration_has_what_its_method_has(d: Any) -> None:
    method = unipelt.load(d.name)
    assert d.lines or {t.name for row in unipelt.analyse(method).rows for t in row.tensors} == {*d.tensors, *d.decided}
    assert {*d.arguments, *d.derived} - {""} <= set(method.arguments) and set(d.patterns) <= set(d.arguments)
