"""peft's LoRA of the matrices of experts (``target_parameters``), in and out: its folders to the bit, and live peft's outputs."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as T
from safetensors.torch import load_file, save_file
from torch import nn

import unipelt
from unipelt.interchange.peft_out import serving_problem
from unipelt.runtime.registry import record

sys.path.append(str(Path(__file__).parents[1] / "runtime"))
from test_weights_of_experts import EXPERTS, INNER, _SIZES, draw, ids, model_of, output

#: peft looks for the names of a pattern among modules alone when it warns, and among parameters when it reads them.
PATTERNS = "The following .*_pattern keys did not match any targeted module"
pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings(f"ignore:{PATTERNS}:RuntimeWarning"),
]
UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
SITES = "[ffn.experts.up.weight, ffn.experts.gate.weight, ffn.experts.down.weight]"
#: What a folder of peft's is made with.
SETTINGS: dict[str, dict[str, Any]] = {
    "both": dict(target_parameters=[UP, DOWN], r=3, lora_alpha=6),
    "one": dict(target_parameters=[DOWN], r=3, lora_alpha=6),
    "maps besides": dict(target_parameters=[UP, DOWN], r=2, lora_alpha=5, target_modules=["q_proj", "v_proj"]),
    "ranks of their own": dict(target_parameters=[UP, DOWN], r=3, lora_alpha=6, rank_pattern={r"0\.mlp\.experts\.gate_up_proj": 5, "q_proj": 2},
                               alpha_pattern={"down_proj": 11}, target_modules=["q_proj"]),
    "some layers": dict(target_parameters=[UP, f"model.layers.1.{DOWN}"], r=3, lora_alpha=6),
    "root of the rank": dict(target_parameters=[UP, DOWN], r=3, lora_alpha=6, use_rslora=True),
    "a map as a parameter": dict(target_parameters=[DOWN, "self_attn.q_proj.weight"], r=3, lora_alpha=6),
}  # fmt: skip


def base(kind: str = "mixtral") -> nn.Module:
    if kind != "qwen3_moe":
        return model_of(kind)
    torch.manual_seed(0)
    config = T.Qwen3MoeConfig(**_SIZES, num_experts=EXPERTS, moe_intermediate_size=INNER)
    return T.AutoModelForCausalLM.from_config(config).eval()


def of_peft(folder: Path, kind: str = "mixtral", **settings: Any) -> torch.Tensor:
    """Writes a folder with peft, and what peft's model yields."""
    config = peft.LoraConfig(**{"target_modules": [], "init_lora_weights": False, **settings})
    theirs = peft.get_peft_model(base(kind), config).eval()
    with torch.no_grad():
        for i, (n, p) in enumerate(theirs.named_parameters()):
            if "lora_" in n:
                p.copy_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))
    theirs.save_pretrained(folder)
    return output(theirs)


def opened(folder: Path, kind: str = "mixtral") -> torch.Tensor:
    """What live peft makes of a folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a key that peft has no place for
        warnings.filterwarnings("ignore", message=PATTERNS)
        return output(peft.PeftModel.from_pretrained(base(kind), str(folder)).eval())


@pytest.mark.filterwarnings("ignore:the parts of a fused")
@pytest.mark.parametrize("kind, settings", [*(("mixtral", s) for s in SETTINGS), ("qwen3_moe", "both"), ("gpt_oss", "both"), ("gpt_oss", "maps besides")])  # fmt: skip
def test_a_folder_comes_in_and_goes_out_to_the_bit(kind: str, settings: str, tmp_path: Path) -> None:
    theirs = of_peft(tmp_path / "theirs", kind, **SETTINGS[settings])
    ours = base(kind)
    before = output(ours)
    unipelt.import_peft(ours, tmp_path / "theirs")
    found = output(ours)
    torch.testing.assert_close(found, theirs, rtol=0, atol=1e-6)
    assert not torch.allclose(found, before, rtol=0, atol=1e-2)
    unipelt.export_peft(ours, tmp_path / "back")
    first, second = (load_file(tmp_path / n / "adapter_model.safetensors") for n in ("theirs", "back"))
    assert first.keys() == second.keys() and all(torch.equal(t, second[n]) for n, t in first.items())
    torch.testing.assert_close(opened(tmp_path / "back", kind), theirs, rtol=0, atol=1e-6)
    unipelt.save(ours, tmp_path / "ours")
    again = base(kind)
    unipelt.attach(again, tmp_path / "ours")
    assert torch.equal(output(again), found)
    config = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    first = json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())
    assert all(config[n] == first[n] for n in ("use_rslora", "r", "lora_alpha"))
    assert "is no linear map" in str(serving_problem(config))


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "gpt_oss"])
@pytest.mark.parametrize("at", [SITES, "[ffn.experts.up.weight]", "[ffn.experts.down.weight, attn.q]"])
def test_what_was_trained_here_is_opened_by_peft(kind: str, at: str, tmp_path: Path) -> None:
    """Gate and up have first factors of their own: for peft they stand beside each other."""
    ours = base(kind)
    unipelt.apply(ours, unipelt.load("lora")(r=2, alpha=5.0, at=at))
    draw(ours)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        unipelt.export_peft(ours, tmp_path / "a")
    assert any("one pair of factors" in str(n.message) for n in notes) == ("up" in at)
    torch.testing.assert_close(opened(tmp_path / "a", kind), output(ours), rtol=0, atol=1e-6)


def test_layers_are_said_by_whole_paths(tmp_path: Path) -> None:
    ours = base()
    method = f"method m {{ use lora(r = 2, at = {SITES}) {{ layers 1 }} use lora(r = 2, at = [ffn.experts.down.weight]) as other {{ layers 0 }} }}"
    unipelt.apply(ours, unipelt.parse(method))
    draw(ours)
    with pytest.warns(UserWarning, match="one pair of factors"):
        unipelt.export_peft(ours, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["target_parameters"] == ["down_proj", f"model.layers.1.{UP}"] and config["target_modules"] == []
    torch.testing.assert_close(opened(tmp_path / "a"), output(ours), rtol=0, atol=1e-6)


def test_what_has_no_place_is_refused(tmp_path: Path) -> None:
    ours = base()
    unipelt.apply(ours, unipelt.load("dora")(r=2, at=SITES))
    with pytest.raises(unipelt.PeltError, match=r"E0844.*`dora` is at matrices of experts.*`lora` and `rslora` alone"):
        unipelt.export_peft(ours, tmp_path / "a")
    unipelt.remove(ours)
    unipelt.apply(ours, unipelt.load("lora")(r=2, at=SITES))
    with pytest.raises(unipelt.PeltError, match=r"E0844.*serving engine.*no linear map"):
        unipelt.export_peft(ours, tmp_path / "a", serving=True)
    unipelt.remove(ours)
    turned = base()
    for layer in turned.model.layers:
        layer.mlp.experts.is_transposed = True  # peft goes by this
    unipelt.apply(turned, unipelt.load("lora")(r=2, at="[ffn.experts.down.weight]"))
    with pytest.raises(unipelt.PeltError, match="E0844.*inputs of the matrices.*for their outputs"):
        unipelt.export_peft(turned, tmp_path / "a")
    assert not (tmp_path / "a").exists()


BROKEN = {
    "no such parameter": (lambda c, t: c.update(target_parameters=["mlp.experts.w1"]), "E0843.*`mlp.experts.w1`"),
    "no list": (lambda c, t: c.update(target_parameters="mlp.experts.down_proj"), "E0840.*list of names"),
    "other experts": (lambda c, t: t.update({k: v[:-1] for k, v in t.items() if k.endswith("experts.lora_A.weight")}), "E0842.*4 experts"),
    "a missing factor": (lambda c, t: t.pop(next(k for k in t if k.endswith("base_layer.lora_B.weight"))), "E0842.*lacks the tensor"),
    "one parameter less": (lambda c, t: c.update(target_parameters=[UP]), "E084"),
    "no matrix": (lambda c, t: c.update(target_parameters=[UP, DOWN, "norm.weight"]), "E0841.*no matrix of a map"),
    "dora": (lambda c, t: c.update(use_dora=True), "E0841"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_broken_folders_are_refused_and_the_model_is_untouched(what: str, tmp_path: Path) -> None:
    of_peft(tmp_path, **SETTINGS["both"])
    config, tensors = (
        json.loads((tmp_path / "adapter_config.json").read_text()),
        load_file(tmp_path / "adapter_model.safetensors"),
    )
    change, match = BROKEN[what]
    change(config, tensors)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file({k: t.contiguous() for k, t in tensors.items()}, tmp_path / "adapter_model.safetensors")
    ours = base()
    before = output(ours)
    with pytest.raises(unipelt.PeltError, match=match):
        unipelt.import_peft(ours, tmp_path)
    assert torch.equal(output(ours), before) and not unipelt.adapters(ours)


def test_it_comes_into_the_base_of_the_model_and_into_one_that_holds_it(tmp_path: Path) -> None:
    of_peft(tmp_path, **SETTINGS["both"])
    whole, inner = base(), base().model
    with pytest.warns(UserWarning, match="one first factor"):
        unipelt.import_peft(whole, tmp_path)
        unipelt.import_peft(inner, tmp_path)
    with torch.no_grad():
        assert torch.equal(inner(input_ids=ids())[0], whole.model(input_ids=ids())[0])
    assert [t.shape for t in record(whole, "default").values().values()] == [
        t.shape for t in record(inner, "default").values().values()
    ]
