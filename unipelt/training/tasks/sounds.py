"""Audio classification: a sound, and a label."""

from __future__ import annotations

import io
import wave
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from ...language.report.diagnostics import error, plural
from .. import data as reading
from ..data import Unreadable
from .media import FileClassification
from .task import Batch

PCM = "save it as 16-bit PCM (`ffmpeg -i in out.wav`, `sox in -b 16 out.wav`), or take it out"
#: Shorter sounds are followed by silence up to so many seconds: convolutions and masks of models need some frames.
SHORTEST = 0.25


@dataclass(frozen=True)
class AudioClassification(FileClassification):
    """Sounds are WAV files of whole numbers (PCM). Their channels are averaged, and their rate becomes the feature extractor's.

    At most ``seconds`` of a sound are read, or as many as the feature extractor's window has.
    """

    kind: ClassVar[str] = "audio-classification"
    auto: ClassVar[str] = "AutoModelForAudioClassification"
    reader: ClassVar[str] = "AutoFeatureExtractor"
    asks: ClassVar[tuple[str, ...]] = ("seconds",)
    usual: ClassVar[tuple[str, ...]] = ("audio",)
    column: ClassVar[str] = "audio"

    seconds: Annotated[float, Field(ge=SHORTEST, allow_inf_nan=False)] = 30.0

    @classmethod
    def check_problem(cls, problem: str) -> None:
        if problem != "single_label":
            raise error("E0620", f"transformers' models for {cls.kind} choose one label, and these data are {problem}",
                        help="give each sound one label")  # fmt: skip

    def fit(self, base: Any, tokenizer: Any) -> AudioClassification:
        return replace(self, seconds=min(self.seconds, tokenizer.window or self.seconds))

    @property
    def longest(self) -> str | None:
        return f"{self.seconds:g} {plural('second', self.seconds)}"

    def read(self, value: Any, reader: Any) -> tuple[dict[str, torch.Tensor], bool]:
        samples, rate = sound_of(value)
        samples = at_rate(samples, rate, reader.rate)
        room, least = int(self.seconds * reader.rate), int(SHORTEST * reader.rate)
        cut = len(samples) > room
        samples = torch.nn.functional.pad(samples[:room], (0, max(least - len(samples), 0)))
        return reader(samples.numpy()), cut

    def batch(self, inputs: Sequence[dict[str, torch.Tensor]], reader: Any) -> Batch:
        return reader.pad(inputs, int(self.seconds * reader.rate) if self.padding == "max_length" else None)


def sound_of(value: Any) -> tuple[torch.Tensor, int]:
    """The samples of a WAV file between −1 and 1, its channels averaged [samples], and their rate. Raises `Unreadable`."""
    raw = reading.bytes_of(value)
    try:
        with wave.open(io.BytesIO(raw)) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            frames = file.getnframes()
            held = file.readframes(frames)
    except (wave.Error, EOFError) as e:
        raise Unreadable(
            f"it is no WAV file of whole numbers ({reading.said(e)})" if raw else "it is empty", PCM
        ) from None
    if not held or not rate:
        raise Unreadable("it holds no sound", "record it again, or take it out")
    if len(held) < frames * channels * width:
        there = len(held) // (channels * width)
        raise Unreadable(
            f"it is cut off: it says {frames:,} samples, and {there:,} are there", "save it again, or take it out"
        )
    if width not in (1, 2, 3, 4):
        raise Unreadable(f"it has {8 * width} bits a sample", PCM)
    return _samples(held, width).view(-1, channels).mean(1), rate


def _samples(held: bytes, width: int) -> torch.Tensor:
    """Samples of 8 bits have no sign, all others have."""
    if width == 1:
        return torch.frombuffer(bytearray(held), dtype=torch.uint8).float() / 128 - 1
    # The bytes of each sample stand at the upper end of four.
    bytes_of = torch.frombuffer(bytearray(held), dtype=torch.uint8).view(-1, width)
    four = torch.nn.functional.pad(bytes_of, (4 - width, 0)).contiguous()
    return (four.view(torch.int32).view(-1).double() / 2**31).float()


def at_rate(samples: torch.Tensor, rate: int, wanted: int) -> torch.Tensor:
    """The sound at another rate, without what the new one cannot hold (scipy's polyphase filter)."""
    if rate == wanted:
        return samples
    from scipy.signal import resample_poly

    whole = gcd(rate, wanted)
    return torch.from_numpy(resample_poly(samples.double().numpy(), wanted // whole, rate // whole)).float()
