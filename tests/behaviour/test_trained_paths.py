"""`train PATHS` on models of any kind: a copy acts, or the plan says that there is none. Never a copy that nothing reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as T
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutputWithNoAttention

import unipelt
from unipelt.anatomy import stored
from unipelt.anatomy.base import base_modules, base_of
from unipelt.anatomy.find import find
from unipelt.anatomy.search import search
from unipelt.language import cache
from names import name as named
from tiny import DESCRIBED, build

SIZES: dict[str, Any] = dict(
    vocab_size=64,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=32,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
GROUPED: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
STATES: dict[str, Any] = {**SIZES, "state_size": 4, "time_step_rank": 4}
SOUND: dict[str, Any] = dict(
    vocab_size=32,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    conv_dim=(16, 16),
    conv_stride=(4, 4),
    conv_kernel=(8, 8),
    num_feat_extract_layers=2,
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=4,
)
PICTURES: dict[str, Any] = dict(num_channels=3, hidden_sizes=[16, 32], depths=[1, 1], num_stages=2, image_size=32)


def model_of(config: Any, task: str = "AutoModel") -> nn.Module:
    torch.manual_seed(0)
    return getattr(T, task).from_config(config).eval().requires_grad_(False)  # torch takes other kernels for gradients


def batch(model: nn.Module) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    reads = getattr(model, "main_input_name", "")
    if reads == "pixel_values":
        return {reads: torch.randn(2, 3, 32, 32, generator=g)}
    if reads == "input_values":
        return {reads: torch.randn(2, 400, generator=g)}
    return {"input_ids": torch.randint(3, 60, (2, 7), generator=g)}


def out(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """All numbers that a model yields."""
    with torch.no_grad():
        found = model(**inputs).values()
    return torch.cat([t.flatten() for t in found if isinstance(t, torch.Tensor)])


def method(paths: str) -> Any:
    return unipelt.parse(f"method m {{ train {paths} }}")


def every_copy_acts(model: nn.Module, paths: str) -> unipelt.Plan:
    """Each copy by itself changes the output; all of them merge to what they gave; the base comes back."""
    inputs = batch(model)
    before = out(model, inputs)
    plan = unipelt.apply(model, method(paths), "a", seed=0)
    for group in unipelt.parameter_groups(model, "a", 1e-3):
        for p in group["params"]:
            p.requires_grad_(False)  # as the base's: torch takes other kernels for gradients
    g = torch.Generator().manual_seed(3)
    tensors = unipelt.state_dict(model, "a")
    with torch.no_grad():
        for n, t in tensors.items():
            kept = t.clone()
            t.add_(torch.randn(t.shape, generator=g))
            # what is added to all keys alike changes no attention
            assert n.endswith("key.bias") or not torch.equal(out(model, inputs), before), n
            t.copy_(kept)
        assert torch.equal(out(model, inputs), before)
        for t in tensors.values():
            t.add_(torch.randn(t.shape, generator=g) * 0.1)
    now = out(model, inputs)
    unipelt.merge(model, "a")
    torch.testing.assert_close(out(model, inputs), now, rtol=1e-4, atol=1e-5)
    unipelt.unmerge(model)
    unipelt.remove(model, "a")
    assert torch.equal(out(model, inputs), before)
    return plan


# ---------------------------------------------------------------- read past the module that holds it

MIXERS = {
    "mamba": T.MambaConfig(**STATES),
    "jamba": T.JambaConfig(
        **{**SIZES, "num_key_value_heads": 2},
        mamba_d_state=4,
        mamba_dt_rank=4,
        attn_layer_period=2,
        attn_layer_offset=1,
        num_experts=1,
        use_mamba_kernels=False,
    ),
    "falcon_mamba": T.FalconMambaConfig(**STATES),
}


@pytest.mark.parametrize("paths", ["*.bias", "*"])
@pytest.mark.parametrize("kind", MIXERS)
def test_what_a_mixer_reads_past_its_children_is_trained_in_its_place(kind: str, paths: str) -> None:
    """A Mamba mixer takes the bias of its convolution and never calls that: a twin of the mixer computes in its place."""
    model = model_of(MIXERS[kind])
    mixer = next(n for n, m in base_modules(model) if hasattr(m, "conv1d"))
    plan = every_copy_acts(model, paths)
    assert f"{mixer}.conv1d.bias" in {c.parameter.path for c in plan.copies}
    assert not any("leaves out" in w for w in plan.warnings)
    assert not any("forward" in vars(m) for m in model.modules())


def test_biases_that_act_are_trained_where_others_are_left_out() -> None:
    model = build("bert")
    base_of(model).encoder.own_bias = nn.Parameter(torch.ones(3))
    plan = every_copy_acts(model, "*.bias")
    (said,) = [w for w in plan.warnings if "leaves out" in w]
    assert "leaves out 1 of" in said and "`encoder.own_bias` belongs to a BertEncoder, which holds blocks" in said


@pytest.mark.parametrize("paths", ["*.bias", "*", "*.bias, *.dense.weight"])
def test_a_head_that_reads_what_its_children_hold(paths: str) -> None:
    """MobileBERT's reads the bias and the weights of maps that it never calls: its own twin has the copies."""
    config = T.MobileBertConfig(**SIZES, embedding_size=16, intra_bottleneck_size=16, num_feedforward_networks=1)
    model = model_of(config, "AutoModelForMaskedLM")
    assert find(model).read_past["cls.predictions.bias"] == ("cls.predictions",)
    plan = every_copy_acts(model, paths)
    assert any(c.parameter.path == "cls.predictions.bias" for c in plan.copies)


class Pooled(T.ConvNextForImageClassification):
    """Reads the weight of its head, and does not call that."""

    def forward(self, pixel_values: torch.Tensor) -> Any:
        pooled = self.convnext(pixel_values).pooler_output
        return ImageClassifierOutputWithNoAttention(logits=pooled @ self.classifier.weight.t() + self.classifier.bias)


def test_a_head_that_the_model_itself_reads_is_refused() -> None:
    torch.manual_seed(0)
    model = Pooled(T.ConvNextConfig(**PICTURES, num_labels=3)).eval().requires_grad_(False)
    said = r"E0511.*`classifier\.weight` belongs to a Linear, but the model itself, a Pooled, reads past that module"
    with pytest.raises(unipelt.PeltError, match=said):
        unipelt.plan(model, method("*.norm.*"))
    plan = unipelt.plan(model, method("*.bias"), head=False)
    assert "`classifier.bias` belongs to a Linear" in "".join(plan.warnings)
    assert not any("classifier" in c.name for c in plan.copies)


def test_who_reads_a_parameter_is_stored_with_the_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.FOLDER, str(tmp_path))
    maps = []
    for _ in range(3):  # found, from memory, from the folder
        maps.append(find(model_of(MIXERS["mamba"])).read_past)
        if len(maps) == 2:
            stored.forget()
    stored.forget()
    assert "layers.0.mixer.conv1d.bias" in maps[0] and maps[1] == maps[0] == maps[2]


@pytest.mark.parametrize("kind", DESCRIBED)
def test_models_with_an_anatomy_read_parameters_where_they_are_held(kind: str) -> None:
    """So nothing need be recorded of them."""
    model = build(kind)
    base = base_of(model)
    sites, _ = search(model, base, next((n for n, m in base_modules(model) if m is base), ""))
    assert not sites.read_past


# ---------------------------------------------------------------- biases on other axes, parametrised weights


@pytest.mark.parametrize("kind", ["convnext", "convnextv2"])
def test_biases_of_norms_over_channels(kind: str) -> None:
    config = {"convnext": T.ConvNextConfig, "convnextv2": T.ConvNextV2Config}[kind](**PICTURES)
    every_copy_acts(model_of(config), "*.bias")


def test_the_bias_of_a_norm_over_another_axis() -> None:
    class Channels(nn.LayerNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.transpose(1, -1)).transpose(1, -1)

    model = nn.Sequential(nn.Conv1d(3, 4, 1), Channels(4)).eval()
    unipelt.apply(model, method("*.bias"), "a")
    with torch.no_grad():
        unipelt.state_dict(model, "a")["1.bias"].add_(torch.arange(4.0))
        x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
        now = model(x)
        with unipelt.disabled(model):
            torch.testing.assert_close(now, model(x) + torch.arange(4.0)[:, None])


@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm"])
def test_biases_beside_a_weight_that_is_parametrised(kind: str) -> None:
    config = {"wav2vec2": T.Wav2Vec2Config, "hubert": T.HubertConfig, "wavlm": T.WavLMConfig}[kind](**SOUND)
    plan = unipelt.plan(model_of(config), method("*.bias"))
    assert any("pos_conv_embed.conv.bias" in c.name for c in plan.copies)
    every_copy_acts(model_of(config), "*.pos_conv_embed.conv.bias, *.feature_projection.*")


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "orthogonal"])
def test_parametrised_weights_of_torch(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), getattr(nn.utils.parametrizations, kind)(nn.Linear(4, 4)), nn.Tanh()).eval()
    x = torch.randn(2, 4)
    before = model(x)
    unipelt.apply(model, method("*.bias"), "a")
    with torch.no_grad():
        unipelt.state_dict(model, "a")["1.bias"].add_(1.0)
        torch.testing.assert_close(model(x), torch.tanh(torch.atanh(before) + 1.0), rtol=1e-4, atol=1e-5)
    unipelt.remove(model, "a")
    assert torch.equal(model(x), before)


# ---------------------------------------------------------------- towers


def test_a_plan_says_where_all_biases_lie_beside_the_text() -> None:
    seen = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=8
    )
    made = T.Gemma3Config(text_config={**GROUPED, "sliding_window": 8}, vision_config=seen, mm_tokens_per_image=4)
    model = model_of(made, "AutoModelForImageTextToText")
    said = "all that `train *.bias` names lies in `model.vision_tower`: nothing changes for inputs"
    assert any(said in w for w in unipelt.plan(model, method("*.bias")).warnings)
    for paths in ("*", "vision.*.bias"):  # the text's own; what is named needs no note
        assert not any("nothing changes for inputs" in w for w in unipelt.plan(model, method(paths)).warnings)


_OLMO = dict(
    vocab_size=32,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=16,
)


def test_norms_without_parameters_are_said_and_the_rest_trains() -> None:
    """OLMo's norms have none; a method that trains them beside its own tensors is not refused for that."""
    torch.manual_seed(0)
    model = T.AutoModelForCausalLM.from_config(T.OlmoConfig(**_OLMO)).eval()
    plan = unipelt.plan(model, unipelt.load(named("adapter"))(r=2))
    assert any("the norms of this OlmoForCausalLM have no parameters" in w for w in plan.warnings)
    assert plan.counts.trained > 0 and not plan.copies
