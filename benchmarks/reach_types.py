"""The architectures that transformers can build: one class for each model type, and which kind of data it reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto import modeling_auto as auto

KINDS = ("text", "vision", "speech", "multimodal", "other")
#: Where a type has several classes, the first task of these that it serves; else the one of `AutoModel`.
_TASKS = (
    "SEQ_TO_SEQ_CAUSAL_LM",
    "SPEECH_SEQ_2_SEQ",
    "IMAGE_TEXT_TO_TEXT",
    "MASKED_LM",
    "CAUSAL_LM",
    "IMAGE_CLASSIFICATION",
)
_WORDS = ("CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "MASKED_LM")
_BOTH = ("MULTIMODAL_LM", "IMAGE_TEXT_TO_TEXT", "ZERO_SHOT_IMAGE_CLASSIFICATION", "VISUAL_QUESTION_ANSWERING", "ZERO_SHOT_OBJECT_DETECTION",
         "RETRIEVAL")  # fmt: skip
_SOUND = (
    "CTC",
    "AUDIO_CLASSIFICATION",
    "SPEECH_SEQ_2_SEQ",
    "TEXT_TO_WAVEFORM",
    "TEXT_TO_SPECTROGRAM",
    "AUDIO_XVECTOR",
    "RNNT",
    "TDT",
)
_PICTURES = ("IMAGE", "IMAGE_CLASSIFICATION", "OBJECT_DETECTION", "BACKBONE", "SEMANTIC_SEGMENTATION", "VIDEO_CLASSIFICATION",
             "DEPTH_ESTIMATION", "UNIVERSAL_SEGMENTATION", "KEYPOINT_MATCHING", "MASK_GENERATION")  # fmt: skip
_SERIES = ("TIME_SERIES_PREDICTION", "TIME_SERIES_CLASSIFICATION", "DECISION")
_SOUND_INPUTS = ("input_features", "input_values", "audio_values", "audio_codes", "audio_mel")
_PICTURE_INPUTS = ("pixel_values", "pixel_values_videos", "flattened_patches")
_SERIES_INPUTS = ("past_values", "past_time_features", "states")

#: Architectures that people use now, LoRA on which is set beside peft's.
USED = (
    "gemma2 gemma3 gemma3_text phi phi3 phi4_multimodal granite qwen3 qwen3_moe qwen3_next mixtral gpt_oss deepseek_v3 llama4 gpt_neox bloom "
    "falcon mamba falcon_h1 jamba modernbert deberta-v2 clip siglip qwen2_vl qwen2_5_vl smolvlm idefics3 wav2vec2 whisper dinov2 swin convnext "
    "segformer distilbert xlnet led longformer resnet olmo2 cohere2 glm4 t5gemma"
).split()


#: Types of which no configuration makes a small model, so that one pass takes seconds of a core: how many times as long they may take.
LONGER = {
    # pictures of 512 or 1,024 pixels: thousands of tokens
    **dict.fromkeys(("sam", "sam2", "sam3_tracker", "sam_hq", "pp_formulanet"), 10),
    # fifty-five blocks of convolutions
    "align": 10,
    # eight pictures of a film at once
    "videoprism": 10,
    # a recurrence that torch's own operations compute for 64 tokens at once, however few there are
    "kimi_linear": 10,
}


@dataclass(frozen=True)
class Type:
    """A model type, the class that is built of it, and the task it was chosen for."""

    name: str
    cls: str
    task: str

    @property
    def built(self) -> Any:
        """The class; None where this installation has it not."""
        try:
            cls = getattr(transformers, self.cls, None)
            getattr(cls, "forward", None)  # a stand-in for a class whose libraries are missing raises
            return cls
        except ImportError:
            return None

    @property
    def generates(self) -> bool:
        """Whether it is a language model of one stack, so that its tokens may see no later ones."""
        return self.task in ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT")


def types() -> Iterator[Type]:
    """Every registered type, causal language models first."""
    tables = {t: dict(getattr(auto, f"MODEL_FOR_{t}_MAPPING_NAMES")) for t in _TASKS}
    names = sorted(set(auto.MODEL_MAPPING_NAMES) | {n for table in tables.values() for n in table})
    found = []
    for name in names:
        both = _serves(name, _BOTH)
        task = next((t for t in _TASKS if name in tables[t] and not (both and t == "IMAGE_CLASSIFICATION")), "")
        cls = tables[task][name] if task else auto.MODEL_MAPPING_NAMES[name]
        found.append(Type(name, cls if isinstance(cls, str) else cls[0], task))
    order = (
        "CAUSAL_LM",
        "SEQ_TO_SEQ_CAUSAL_LM",
        "MASKED_LM",
        "SPEECH_SEQ_2_SEQ",
        "IMAGE_CLASSIFICATION",
        "IMAGE_TEXT_TO_TEXT",
        "",
    )
    yield from sorted(found, key=lambda t: order.index(t.task))


def kind(found: Type) -> str:
    """Which kind of data a type reads, by the tasks it is registered for and its main input."""
    name = found.name
    main = getattr(found.built, "main_input_name", "input_ids")
    main = main[0] if isinstance(main, list) else main
    parts = " ".join(getattr(CONFIG_MAPPING[name], "sub_configs", None) or {})
    reads = any(w in parts for w in ("text", "decoder", "llm", "language"))
    sees = any(w in parts for w in ("vision", "audio", "encoder", "image"))
    if (
        found.task == "IMAGE_TEXT_TO_TEXT"
        or (found.task not in _WORDS and _serves(name, _BOTH))
        or (reads and sees and main == "input_ids")
    ):
        return "multimodal"
    if found.task in _WORDS and main == "input_ids":
        return "multimodal" if "vision" in parts or "audio" in parts else "text"
    if _serves(name, _SOUND) or main in _SOUND_INPUTS or any(w in name for w in ("audio", "speech", "codec")):
        return "speech"
    if _serves(name, _PICTURES) or main in _PICTURE_INPUTS or any(w in name for w in ("vision", "vit")):
        return "vision"
    if _serves(name, _SERIES) or main in _SERIES_INPUTS:
        return "other"
    return "text"


def _serves(name: str, tasks: tuple[str, ...]) -> bool:
    return any(name in getattr(auto, f"MODEL_FOR_{t}_MAPPING_NAMES", {}) for t in tasks)
