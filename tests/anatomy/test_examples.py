"""Small inputs of models of every kind, guessed from the models; no type is known by name, so any must do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from shrunk import shrunk
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from unipelt.anatomy.examples import examples, first_that_runs, joined
from unipelt.language.report.diagnostics import PeltError


class Answers(TorchDispatchMode):
    """Branches on numbers that meta tensors do not have are answered."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ == "_local_scalar_dense" and args[0].is_meta:
            return args[0].dtype == torch.bool or 1
        return func(*args, **(kwargs or {}))


#: The type, its class, the input that must be there.
MODELS = [
    ("bert", "BertForMaskedLM", "input_ids"), ("roberta", "RobertaModel", "input_ids"), ("gpt2", "GPT2LMHeadModel", "input_ids"),
    ("llama", "LlamaForCausalLM", "input_ids"), ("gemma2", "Gemma2ForCausalLM", "input_ids"), ("phi3", "Phi3ForCausalLM", "input_ids"),
    ("gpt_neox", "GPTNeoXForCausalLM", "input_ids"), ("bloom", "BloomForCausalLM", "input_ids"), ("falcon", "FalconForCausalLM", "input_ids"),
    ("mamba", "MambaForCausalLM", "input_ids"), ("modernbert", "ModernBertForMaskedLM", "input_ids"), ("xlnet", "XLNetLMHeadModel", "input_ids"),
    ("deberta-v2", "DebertaV2ForMaskedLM", "input_ids"), ("distilbert", "DistilBertModel", "input_ids"), ("layoutlm", "LayoutLMModel", "bbox"),
    ("canine", "CanineModel", "input_ids"), ("t5", "T5ForConditionalGeneration", "decoder_input_ids"),
    ("bart", "BartForConditionalGeneration", "decoder_input_ids"), ("led", "LEDForConditionalGeneration", "decoder_input_ids"),
    ("pegasus", "PegasusForConditionalGeneration", "decoder_input_ids"), ("vit", "ViTModel", "pixel_values"), ("dinov2", "Dinov2Model", "pixel_values"),
    ("swin", "SwinModel", "pixel_values"), ("convnext", "ConvNextModel", "pixel_values"), ("resnet", "ResNetModel", "pixel_values"),
    ("segformer", "SegformerModel", "pixel_values"), ("vivit", "VivitModel", "pixel_values"), ("timesformer", "TimesformerModel", "pixel_values"),
    ("clip", "CLIPModel", "pixel_values"), ("siglip", "SiglipModel", "pixel_values"), ("vilt", "ViltModel", "pixel_values"),
    ("qwen2_vl", "Qwen2VLForConditionalGeneration", "input_ids"), ("llava", "LlavaForConditionalGeneration", "input_ids"),
    ("whisper", "WhisperForConditionalGeneration", "decoder_input_ids"), ("wav2vec2", "Wav2Vec2Model", "input_values"),
    ("wav2vec2-bert", "Wav2Vec2BertModel", "input_features"), ("audio-spectrogram-transformer", "ASTModel", "input_values"),
    ("speech_to_text", "Speech2TextForConditionalGeneration", "decoder_input_ids"), ("encodec", "EncodecModel", "input_values"),
    ("patchtst", "PatchTSTModel", "past_values"), ("time_series_transformer", "TimeSeriesTransformerModel", "past_time_features"),
    ("decision_transformer", "DecisionTransformerModel", "states"), ("pix2struct", "Pix2StructForConditionalGeneration", "flattened_patches"),
    ("perceiver", "PerceiverModel", "inputs"),
]  # fmt: skip
#: Those whose passes on meta tensors fail inside the model, whatever goes in: their masks are made elsewhere, or read numbers.
NOT_ON_META = {"wav2vec2", "led", "encodec", "xlnet", "vilt"}
MORE: dict[str, dict[str, Any]] = {
    "time_series_transformer": {"prediction_length": 4, "context_length": 8},
    "perceiver": {"num_latents": 8, "d_latents": 64, "num_self_attends_per_block": 2},
}


def built(model_type: str, cls: str, device: str) -> nn.Module:
    torch.manual_seed(0)
    with torch.device(device):
        return getattr(transformers, cls)(shrunk(model_type, **MORE.get(model_type, {}))).eval()


@pytest.mark.parametrize("model_type, cls, name", MODELS, ids=[m[0] for m in MODELS])
def test_a_pass_with_real_tensors(model_type: str, cls: str, name: str) -> None:
    model = built(model_type, cls, "cpu")
    tried: list[dict[str, Any]] = []
    inputs, out = first_that_runs(model, run=lambda i: (tried.append(i), model(**i))[1])
    assert name in inputs and len(tried) <= 6, [sorted(t) for t in tried]
    assert all(torch.isfinite(t).all() for t in out.to_tuple() if isinstance(t, torch.Tensor))
    assert inputs.get("use_cache", False) is False


@pytest.mark.parametrize("model_type, cls, name", [m for m in MODELS if m[0] not in NOT_ON_META], ids=lambda v: str(v))
def test_a_pass_on_meta(model_type: str, cls: str, name: str) -> None:
    model = built(model_type, cls, "meta")

    def run(inputs: dict[str, Any]) -> Any:
        assert all(t.is_meta for t in inputs.values() if isinstance(t, torch.Tensor))
        with Answers():
            return model(**inputs)

    assert name in first_that_runs(model, run=run)[0]


def test_a_text_has_different_tokens_and_none_with_a_task() -> None:
    model = built("llama", "LlamaForCausalLM", "cpu")
    model.config.pad_token_id, model.config.image_token_id = 6, 8
    ids = next(examples(model, tokens=7))["input_ids"][0].tolist()
    assert len(ids) == 7 == len(set(ids)) and not {6, 8, model.config.bos_token_id, model.config.eos_token_id} & set(
        ids
    )


def test_inputs_are_where_the_model_is_and_of_its_type() -> None:
    model = built("vit", "ViTModel", "meta").to(torch.bfloat16)
    first = next(examples(model))["pixel_values"]
    assert first.is_meta and first.dtype == torch.bfloat16 and max(first.shape[-2:]) <= 64


def test_the_picture_tower_of_a_model_takes_patches_and_their_grid() -> None:
    tower = built("qwen2_vl", "Qwen2VLForConditionalGeneration", "cpu").model.visual
    inputs, _ = first_that_runs(tower)
    n = inputs["hidden_states"].shape[0]
    assert inputs["grid_thw"].prod() == n and n <= 16


def test_a_text_with_a_picture_in_its_tokens_places() -> None:
    model = built("qwen2_vl", "Qwen2VLForConditionalGeneration", "cpu")
    found = next(i for i in examples(model) if "pixel_values" in i and "input_ids" in i)
    assert (found["input_ids"] == model.config.image_token_id).sum() == 4
    seen: list[int] = []
    model.model.visual.register_forward_hook(lambda *a: seen.append(1))
    first_that_runs(model, [found])
    assert seen


@pytest.mark.parametrize("model_type, cls, token", [
    ("deepseek_vl", "DeepseekVLForConditionalGeneration", "image_token_id"), ("glmasr", "GlmAsrForConditionalGeneration", "audio_token_id"),
    ("minicpmv4_6", "MiniCPMV4_6ForConditionalGeneration", "image_token_id"),
])  # fmt: skip
def test_what_stands_in_a_text_has_as_many_places_as_the_model_makes_of_it(
    model_type: str, cls: str, token: str
) -> None:
    """The base's word is asked where the model has none; a sound is as a picture is; so are patches in one row."""
    model = built(model_type, cls, "cpu")
    text, _ = first_that_runs(model)
    inputs, _ = first_that_runs(model, joined(model, text))
    assert token in vars(model.config) and inputs["input_ids"].shape[1] > text["input_ids"].shape[1]


class Two(nn.Module):
    """Two arguments whose names say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 3)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return self.first(a) + self.first(b)


@pytest.mark.parametrize("module, shape", [
    (nn.Linear(6, 3), (1, 5, 6)), (nn.Conv2d(2, 3, 3), (1, 2, 32, 32)), (nn.Embedding(9, 4), (1, 5)), (Two(), (1, 5, 6)),
    (nn.Sequential(nn.Linear(7, 2), nn.ReLU(), nn.Linear(2, 2)), (1, 5, 7)),
    (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.LazyLinear(2)), (1, 3, 32, 32)),
    (nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, batch_first=True), 2, enable_nested_tensor=False), (1, 5, 8)),
    (nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, batch_first=True), 1), (1, 5, 8)), (nn.GRU(6, 4), (1, 5, 6)),
], ids=lambda v: type(v).__name__)  # fmt: skip
def test_modules_without_a_configuration(module: nn.Module, shape: tuple[int, ...]) -> None:
    inputs, _ = first_that_runs(module)
    assert all(tuple(t.shape) == shape for t in inputs.values()) and len(inputs) == len(list(inputs))


def test_a_pass_leaves_the_modes_as_they_were() -> None:
    model = built("bert", "BertModel", "cpu").train()
    model.encoder.eval()
    before = [m.training for m in model.modules()]
    with torch.enable_grad():
        _, out = first_that_runs(model)
        assert torch.is_grad_enabled() and not out[0].requires_grad
    assert [m.training for m in model.modules()] == before


def test_a_picture_that_is_too_small_leaves_the_windows_as_they_were() -> None:
    model = built("swin", "SwinModel", "cpu")
    picture = torch.linspace(-1, 1, 3 * 224 * 224).mul(37).sin().reshape(1, 3, 224, 224)
    with torch.no_grad():
        before = model(pixel_values=picture).last_hidden_state
        first_that_runs(model)
        assert torch.equal(model(pixel_values=picture).last_hidden_state, before)


def test_what_a_pass_sets_in_a_module_or_its_configuration_is_put_back() -> None:
    class Adapts(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            self.window, self.seen, self.config.window = x.shape[1], x, x.shape[1]
            self.register_buffer("kept", x)
            return super().forward(x)

    module = Adapts(3, 3)
    module.window, module.config = 9, transformers.PretrainedConfig(window=9)
    first_that_runs(module)
    assert module.window == module.config.window == 9 and not hasattr(module, "seen") and not hasattr(module, "kept")
    assert [n for n, _ in module.named_buffers()] == []


def test_hooks_that_a_model_hangs_on_itself_in_its_first_pass_go_with_the_mark_that_they_hang() -> None:
    """With the mark alone gone the next pass would hang them again, and record every layer twice."""
    model: Any = built("vit", "ViTModel", "cpu")
    picture = torch.zeros(1, 3, 224, 224)
    expected = model(pixel_values=picture, output_hidden_states=True).hidden_states
    other: Any = built("vit", "ViTModel", "cpu")
    first_that_runs(other, run=lambda i: other(**i, output_hidden_states=True))
    for _ in range(2):
        found = other(pixel_values=picture, output_hidden_states=True).hidden_states
        assert len(found) == len(expected) and all(map(torch.equal, found, expected))


class Strange(nn.Module):
    def forward(self, session: Any, phase: Any) -> Any:
        return session.open(phase)


def test_inputs_that_cannot_be_guessed_are_named() -> None:
    with pytest.raises(PeltError) as caught:
        first_that_runs(Strange())
    found = caught.value.diagnostics[0]
    assert (
        found.code == "E0595"
        and "`session`, `phase`" in found.message
        and 'example={"session": …' in (found.help or "")
    )


def test_what_the_most_plausible_pass_raised_is_said_in_one_line() -> None:
    class Raises(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            raise RuntimeError("no\nsuch   thing " + "x" * 500)

    with pytest.raises(PeltError) as caught:
        first_that_runs(Raises(3, 3))
    assert (
        "RuntimeError: no such thing x" in caught.value.diagnostics[0].message
        and len(caught.value.diagnostics[0].message) < 400
    )


def test_an_example_that_is_given_is_the_only_one() -> None:
    module = nn.Linear(6, 3)
    assert first_that_runs(module, given={"input": torch.ones(2, 6)})[1].shape == (2, 3)
    with pytest.raises(PeltError, match="E0595.*given example"):
        first_that_runs(module, given={"input": torch.ones(2, 5)})
