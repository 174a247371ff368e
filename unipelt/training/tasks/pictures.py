"""Image classification: a picture; a label, several labels at once, or a number."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ...language.report.diagnostics import error
from .. import data as reading
from ..data import Unreadable
from .media import FileClassification
from .task import Batch

#: What is read of all that Pillow can: nothing that runs other programs.
FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
#: Modes of Pillow with more than 8 bits a value, which it would clip.
DEEP = ("I", "F", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class ImageClassification(FileClassification):
    """Pictures become what the model's image processor makes of them, in grey or colour as the model reads them.

    Of an animation the first picture counts. Pictures are turned as their camera says (EXIF).
    """

    kind: ClassVar[str] = "image-classification"
    auto: ClassVar[str] = "AutoModelForImageClassification"
    reader: ClassVar[str] = "AutoImageProcessor"
    asks: ClassVar[tuple[str, ...]] = ("problem_type",)
    usual: ClassVar[tuple[str, ...]] = ("image",)
    column: ClassVar[str] = "image"

    def read(self, value: Any, reader: Any) -> tuple[dict[str, torch.Tensor], bool]:
        return reader(picture_of(value)), False

    def batch(self, inputs: Sequence[dict[str, torch.Tensor]], reader: Any) -> Batch:
        sizes = sorted({tuple(t.shape) for i in inputs for n, t in i.items() if n == "pixel_values"})
        if len(sizes) > 1:
            raise error("E0651", f"the image processor makes pictures of several sizes: {list(sizes[0])} and {list(sizes[1])}",
                        help="resize the pictures, or set `do_resize` and a `size` of height and width in its preprocessor_config.json")  # fmt: skip
        return {name: torch.stack([i[name] for i in inputs]) for name in inputs[0]}


def picture_of(value: Any) -> Any:
    """The picture of a cell, decoded, as one of Pillow's. Raises `Unreadable`."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise error("E0630", "reading pictures needs Pillow", help="pip install 'unipelt[media]'") from None
    picture = value if hasattr(value, "convert") else _decoded(value, Image, ImageOps)
    if picture.mode == "I;16":  # 16 bits of grey become 8
        picture = picture.point(lambda v: v / 256).convert("L")
    if picture.mode in DEEP:
        raise Unreadable(f"its values are Pillow's `{picture.mode}`, more than 8 bits", "save it with 8 bits a channel")
    return picture.convert("RGBA") if picture.has_transparency_data else picture


def _decoded(value: Any, Image: Any, ImageOps: Any) -> Any:
    raw = reading.bytes_of(value)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(raw), formats=FORMATS) as opened:
                picture = ImageOps.exif_transpose(opened)
                picture.load()
                return picture
    except Image.UnidentifiedImageError:
        raise Unreadable("it is no picture, or of a format that is not read" if raw else "it is empty",
                         f"save it as PNG or JPEG ({', '.join(FORMATS)} are read), or take it out") from None  # fmt: skip
    except Exception as e:  # noqa: BLE001 - whatever Pillow's decoders raise
        raise Unreadable(reading.said(e), "save it again, or take it out") from None
