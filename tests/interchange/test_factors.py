"""What has no counterpart in peft goes out as a LoRA: live peft computes what the adapter does, and the share left out is true."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from names import RENAMED, name
from safetensors.torch import load_file
from small import entering, model, output, randomise, state

import unipelt
from unipelt.language.report.diagnostics import PeltError

pytestmark = [
    pytest.mark.skipif(bool(RENAMED), reason="the declarations call methods by their names"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning"),
]


def adapted(kind: str, method: str, **options: object) -> torch.nn.Module:
    m = model(kind)
    unipelt.apply(m, unipelt.load(name(method)), "mine", **options)
    randomise(m, "mine", scale=0.05)
    return m


@pytest.mark.parametrize(
    "kind, method, options",
    [
        ("llama", "lora+ia3", {}), ("bert", "dora", {}), ("gpt2", "ia3", {}), ("llama", "full", {}), ("bert", "bitfit", {}),
        ("bert_labels", "ia3", {"labels": 3}), ("vit", "ia3", {}),
    ],
)  # fmt: skip
def test_peft_computes_what_the_adapter_does(kind: str, method: str, options: dict, tmp_path: Path) -> None:
    """Fused maps, biases, norms, embeddings and a head included; the model stays as it is."""
    m = adapted(kind, method, **options)
    expected, before = output(m), state(m)
    found = unipelt.export_as_lora(m, tmp_path / "out", "mine")
    assert state(m) == before and torch.equal(output(m), expected) and found.error < 1e-5
    theirs = peft.PeftModel.from_pretrained(model(kind), tmp_path / "out").eval()
    with torch.no_grad():
        got = theirs(**entering(m))[0]
    assert (model(kind)(**entering(m))[0] - expected).abs().max() > 1e-2, "it does something"
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5)


def test_a_rank_that_is_too_small_is_the_best_of_its_size_and_says_what_it_leaves_out(tmp_path: Path) -> None:
    m = adapted("llama", "lora+ia3")
    found = unipelt.export_as_lora(m, tmp_path / "out", "mine", rank=3)
    assert found.rank == 3 and found.error == max(found.left_out.values()) > 0.1
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    left = total = 0.0
    unipelt.merge(m, "mine")
    for path, share in found.left_out.items():
        change = (m.get_submodule(path).weight - model("llama").get_submodule(path).weight).detach().double()
        A, B = (tensors[f"base_model.model.{path}.lora_{n}.weight"].double() for n in "AB")
        S = torch.linalg.svdvals(change)
        far = float((change - B @ A).norm())
        assert far == pytest.approx(float(S[3:].norm()), rel=1e-4), "no three factors are nearer"
        assert share == pytest.approx(far / float(change.norm()), rel=1e-4)
        left, total = left + far**2, total + float(change.norm()) ** 2
    assert found.overall == pytest.approx((left / total) ** 0.5, rel=1e-4)


def test_a_bfloat16_base_needs_no_more_rank(tmp_path: Path) -> None:
    """The change is known in float64: rounded to the base's type it would have every rank, and be another."""
    m = model("llama", dtype=torch.bfloat16)
    unipelt.apply(m, unipelt.load(name("lora"), arguments={"r": 2}), "mine")
    unipelt.apply(m, unipelt.load(name("lora"), arguments={"r": 3}), "other")
    randomise(m, "mine", scale=0.01), randomise(m, "other", scale=0.01)
    assert unipelt.export_as_lora(m, tmp_path / "out", "mine").rank == 2
    assert unipelt.combine(m, {"mine": 1.0, "other": 1.0}, "both").rank == 5


def test_one_rank_for_a_serving_engine(tmp_path: Path) -> None:
    m = adapted("llama", "lora+ia3")
    found = unipelt.export_as_lora(m, tmp_path / "out", "mine", rank=4, serving=True)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 4 == found.rank and not config.get("rank_pattern")
    with pytest.raises(PeltError, match="biases have no place"):
        unipelt.export_as_lora(adapted("gpt2", "ia3"), tmp_path / "no", "mine", serving=True)


@pytest.mark.parametrize(
    "kind, method, code, words",
    [
        ("llama", "prefix_tuning", "E0563", "not an affine function"), ("gpt2", "full", "E0844", "tied to `lm_head.weight`"),
        ("llama", "ln_tuning", "E0844", "no linear map"),
    ],
)  # fmt: skip
def test_what_two_factors_cannot_say(kind: str, method: str, code: str, words: str, tmp_path: Path) -> None:
    m = adapted(kind, method)
    before = state(m)
    with pytest.raises(PeltError, match=words) as caught:
        unipelt.export_as_lora(m, tmp_path / "out", "mine")
    assert caught.value.diagnostics[0].code == code and state(m) == before and not (tmp_path / "out").exists()


def test_a_plain_export_names_the_remedy_where_there_is_one(tmp_path: Path) -> None:
    with pytest.raises(PeltError, match="E0844") as caught:
        unipelt.export_peft(adapted("llama", "lora+ia3"), tmp_path / "out", "mine")
    assert "`unipelt export ... --to peft --as lora --rank 8`" in str(caught.value)
    with pytest.raises(PeltError, match="E0844") as caught:
        unipelt.export_peft(adapted("llama", "lora+prefix_tuning"), tmp_path / "out", "mine")
    assert "--as" not in str(caught.value)


def resnet() -> torch.nn.Module:
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], num_labels=3)
    return ResNetForImageClassification(config).eval()


POINT, WIDE = (f"resnet.encoder.stages.1.layers.1.layer.{i}.convolution" for i in (0, 1))


def test_a_convolution_of_one_position_is_a_linear_map_to_peft_too(tmp_path: Path) -> None:
    """Its factors are convolutions there; they go out, are opened, and come back to the bit."""
    m, x = resnet(), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    unipelt.apply(m, unipelt.parse(f'method c {{ use lora(r=2, at=[module("{POINT}")]) }}'), "mine")
    randomise(m, "mine")
    wanted = m(pixel_values=x).logits
    unipelt.export_peft(m, tmp_path / "own", "mine")
    unipelt.export_as_lora(m, tmp_path / "as", "mine")
    for folder in ("own", "as"):
        theirs = peft.PeftModel.from_pretrained(resnet(), tmp_path / folder).eval()
        torch.testing.assert_close(theirs(pixel_values=x).logits, wanted, rtol=1e-5, atol=1e-5)
    back = resnet()
    unipelt.import_peft(back, tmp_path / "own", "mine")
    assert torch.equal(back(pixel_values=x).logits, wanted)
    unipelt.export_peft(back, tmp_path / "again", "mine")
    a, b = (load_file(tmp_path / d / "adapter_model.safetensors") for d in ("own", "again"))
    assert a.keys() == b.keys() and all(torch.equal(t, b[k]) for k, t in a.items())


def test_what_peft_has_at_no_convolution_and_we_at_no_wide_one(tmp_path: Path) -> None:
    m = resnet()
    unipelt.apply(m, unipelt.parse(f'method c {{ use lokr(f=2, at=[module("{POINT}")]) }}'), "mine")
    with pytest.raises(PeltError, match="is a convolution"):
        unipelt.export_peft(m, tmp_path / "no", "mine")
    theirs = peft.get_peft_model(resnet(), peft.LoraConfig(r=2, target_modules=[WIDE]))
    theirs.save_pretrained(tmp_path / "wide")
    other = resnet()
    before = state(other)
    with pytest.raises(PeltError) as caught:
        unipelt.import_peft(other, tmp_path / "wide", "mine")
    assert caught.value.diagnostics[0].code.startswith("E") and state(other) == before
