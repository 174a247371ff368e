"""What makes a model's inputs of what a task reads: its tokenizer, or for pictures and sounds the processor beside it.

A model without a processor of its own is read to by its configuration: its picture's size and channels, or the rate of 16 kHz
of models that take samples. Pictures and sounds are never changed at random.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..language.report.diagnostics import PeltError, error
from .models import TRUSTED, load_tokenizer, loading
from .tasks.task import Task

if TYPE_CHECKING:
    import torch

#: The files that say how a processor is made.
WRITTEN = ("preprocessor_config.json", "processor_config.json")
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def load_reader(model: str, task: Task, config: Any) -> Any:
    """The reader of a model for a task; ``config`` is the model's configuration."""
    if task.reads_text:
        return load_tokenizer(model)
    if task.reader == "AutoImageProcessor":
        return _picture_reader(model, config, _processor(model, task.reader))
    if task.reader == "AutoProcessor":
        return _pictured_reader(model, _processor(model, task.reader))
    return _sound_reader(model, config, _processor(model, task.reader))


#: What makes the main input of a model that reads no text.
_MAKERS = {
    "pixel_values": "AutoImageProcessor", "input_values": "AutoFeatureExtractor", "input_features": "AutoFeatureExtractor",
}  # fmt: skip


def reader_beside(model: str, main_input: str) -> Any:
    """The tokenizer of a model that reads text, else the processor that lies beside it; None where there is none."""
    if main_input == "input_ids":
        return load_tokenizer(model)
    if main_input not in _MAKERS:
        return None
    try:
        return _processor(model, _MAKERS[main_input])
    except PeltError:  # it is not needed: some models come without
        return None


def _processor(model: str, auto: str) -> Any:
    """The processor that lies beside a model, or None."""
    import transformers

    place = Path(model)
    if place.is_dir() and not any((place / name).exists() for name in WRITTEN):
        return None
    what = {"AutoImageProcessor": "image processor", "AutoFeatureExtractor": "feature extractor"}
    with loading(model, what.get(auto, "processor")):
        return getattr(transformers, auto).from_pretrained(model, **TRUSTED)


# ---------------------------------------------------------------- pictures


@dataclass(frozen=True)
class ByConfig:
    """Resizes pictures to a size (bilinear) and maps their values to −1 … 1."""

    height: int
    width: int
    model_input_names: tuple[str, ...] = ("pixel_values",)

    def __call__(self, images: Sequence[Any], return_tensors: str = "pt", **_: Any) -> dict[str, Any]:
        import torch
        from PIL import Image

        found = []
        for picture in images:
            sized = picture.resize((self.width, self.height), Image.Resampling.BILINEAR)
            values = torch.frombuffer(bytearray(sized.tobytes()), dtype=torch.uint8)
            found.append(values.view(self.height, self.width, -1).permute(2, 0, 1).float() / 127.5 - 1)
        return {"pixel_values": torch.stack(found)}


@dataclass(frozen=True)
class PictureReader:
    """Makes a model's inputs of a picture of Pillow's: in the colours that the model has channels for, and by its processor."""

    processor: Any
    mode: str

    @property
    def model_input_names(self) -> list[str]:
        return list(self.processor.model_input_names)

    def save_pretrained(self, folder: Any) -> None:
        """Writes the processor beside a model; one made by the configuration is made again."""
        if hasattr(self.processor, "save_pretrained"):
            self.processor.save_pretrained(folder)

    def __call__(self, picture: Any) -> dict[str, torch.Tensor]:
        """``pixel_values`` [channels, height, width], and what else the processor makes."""
        found = self.processor(images=[picture.convert(self.mode)], return_tensors="pt")
        return {name: values[0] for name, values in found.items()}


def _picture_reader(model: str, config: Any, processor: Any) -> PictureReader:
    seen = getattr(config, "vision_config", None) or config
    channels = getattr(seen, "num_channels", 3)
    if channels not in MODES:
        raise error("E0651", f"`{model}` reads pictures of {channels} channels, and files have 1, 3 or 4",
                    help="choose another model")  # fmt: skip
    if processor is None:
        size = getattr(seen, "image_size", None) or 224
        height, width = (size, size) if isinstance(size, int) else tuple(size)
        processor = ByConfig(int(height), int(width))
    return PictureReader(processor, MODES[channels])


@dataclass(frozen=True)
class PicturedReader:
    """Makes a model's inputs of a picture with a prompt, by the processor of a vision-language model."""

    processor: Any

    @property
    def model_input_names(self) -> list[str]:
        return list(self.processor.model_input_names)

    @property
    def pad_id(self) -> int:
        tokenizer = self.processor.tokenizer
        return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id

    @property
    def talks(self) -> bool:
        return bool(getattr(self.processor, "chat_template", None))

    def save_pretrained(self, folder: Any) -> None:
        self.processor.save_pretrained(folder)

    def __call__(self, picture: Any, prompt: str) -> dict[str, torch.Tensor]:
        """What has a value for each token [tokens], and what the picture became, with its own first dimension."""
        if self.talks:
            asked = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}]
            text = self.processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
            more = {"add_special_tokens": False}
        else:
            text, more = f"{getattr(self.processor, 'image_token', '<image>')}\n{prompt}\n", {}
        found = self.processor(text=[text], images=[[picture.convert("RGB")]], return_tensors="pt", **more)
        tokens = found["input_ids"].shape
        # Some tokenizers end every text; the answer goes on instead.
        ended = found["input_ids"][0, -1].item() == self.processor.tokenizer.eos_token_id
        whole = tokens[1] - (ended and not self.talks)
        return {n: v[0, :whole] if v.shape == tokens else v for n, v in found.items()}

    def answer(self, text: str) -> list[int]:
        """The tokens of an answer with the one that ends it."""
        tokenizer = self.processor.tokenizer
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        return ids if tokenizer.eos_token_id is None else [*ids, tokenizer.eos_token_id]


def _pictured_reader(model: str, processor: Any) -> PicturedReader:
    if processor is None or not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise error("E0651", f"nothing in `{model}` says how it reads a picture with a text",
                    help="save the model's processor beside it: `AutoProcessor.from_pretrained(…).save_pretrained(folder)`")  # fmt: skip
    return PicturedReader(processor)


# ---------------------------------------------------------------- sounds


@dataclass(frozen=True)
class SoundReader:
    """Makes a model's inputs of sound at the ``rate`` (samples per second) of the model's feature extractor."""

    extractor: Any

    @property
    def rate(self) -> int:
        return int(self.extractor.sampling_rate)

    @property
    def window(self) -> float | None:
        """How many seconds the extractor reads at most; None where it has no bound."""
        return getattr(self.extractor, "chunk_length", None)

    @property
    def model_input_names(self) -> list[str]:
        return list(self.extractor.model_input_names)

    def save_pretrained(self, folder: Any) -> None:
        self.extractor.save_pretrained(folder)

    def __call__(self, samples: Any) -> dict[str, torch.Tensor]:
        """The inputs of one sound. ``samples`` are its values between −1 and 1 [samples], at the reader's rate."""
        found = self.extractor(samples, sampling_rate=self.rate, return_tensors="pt")
        return {name: values[0] for name, values in found.items()}

    def pad(self, sounds: Sequence[Mapping[str, Any]], longest: int | None) -> dict[str, torch.Tensor]:
        """Sounds as a batch, padded to the longest of them, or to ``longest`` samples."""
        import torch

        if longest is None and len({tuple(v.shape) for s in sounds for v in s.values()}) <= len(sounds[0]):
            return {name: torch.stack([s[name] for s in sounds]) for name in sounds[0]}
        how: dict[str, Any] = {"padding": True} if longest is None else {"padding": "max_length", "max_length": longest}
        return dict(self.extractor.pad([dict(s) for s in sounds], return_tensors="pt", **how))


def _sound_reader(model: str, config: Any, extractor: Any) -> SoundReader:
    if extractor is None and getattr(config, "conv_stride", None):  # it takes samples, as wav2vec 2.0 and its kin do
        from transformers import Wav2Vec2FeatureExtractor

        masked = getattr(config, "feat_extract_norm", "group") == "layer"
        extractor = Wav2Vec2FeatureExtractor(return_attention_mask=masked)
    if extractor is None or not hasattr(extractor, "sampling_rate"):
        raise error("E0651", f"nothing in `{model}` says how it reads sounds",
                    help="save the model's feature extractor beside it: "
                    "`AutoFeatureExtractor.from_pretrained(…).save_pretrained(folder)` writes a preprocessor_config.json")  # fmt: skip
    return SoundReader(extractor)
