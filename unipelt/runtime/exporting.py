"""A model with its adapters as one ONNX file, compared with the model before it is kept.

Nothing here helps `torch.export`, which takes an adapted model as any other; what is added are the inputs that the model
and its adapters read, with their free axes, and the comparison.
"""

from __future__ import annotations

import importlib.util
import inspect
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..anatomy.evaluating import evaluating
from ..anatomy.interrupts import ended_by
from ..anatomy.find import config_of
from ..language.report.diagnostics import error
from .acting import disabled
from .registry import registry, unwrapped

INSTALL = "pip install 'unipelt[onnx]'"
#: Rows and tokens of the batch that is traced, and of those that are compared: a free axis must not be one of its sizes.
TRACED, COMPARED = (2, 8), ((1, 8), (3, 5), (4, 11))
#: Largest difference, as a share of the largest entry where that is above 1. Another order of float32's sums costs 1e-6.
TOLERANCE = 1e-4
ROWS, TOKENS, DECODER_TOKENS = "batch", "tokens", "decoder_tokens"


def export_onnx(model: nn.Module, path: str | Path, names: Sequence[str] = ()) -> float | None:
    """Writes the model, with the adapters that act or are merged, as an ONNX file; rows and tokens are free axes.

    ``names`` are the model's inputs, as its tokenizer names them; by default ids and mask. Inputs that adapters declare come
    behind them. The file holds one pass in evaluation mode, without a cache, and no loss. Returns the largest difference
    between file and model over batches of other sizes, padded ones among them, as a share of the largest entry where that
    is above 1; None where onnxruntime is not installed. The file is whole or not there: where its tensors take more than
    2 GB, they lie beside it, in ``PATH.data``. Raises `PeltError`.
    """
    place = Path(path)
    check_place(place)
    model = unwrapped(model)
    with evaluating(model):
        return trace(model, names).write(place)


def check_place(place: Path) -> None:
    """Refuses a file that could not be written, or is there already."""
    if place.suffix != ".onnx":
        raise error("E0751", f"`{place.name}` does not end in `.onnx`",
                    help="name the file so; `torch.export.export` takes the model as it is, for other formats")  # fmt: skip
    for taken in (place, _data(place)):
        if os.path.lexists(taken):
            raise error("E0611", f"`{taken}` exists", help="name another file")
    missing = [p for p in ("onnx", "onnxscript") if importlib.util.find_spec(p) is None]
    if missing:
        raise error("E0752", f"writing ONNX needs {' and '.join(missing)}, not installed here", help=INSTALL)


def _data(place: Path) -> Path:
    return place.with_name(f"{place.name}.data")


# ---------------------------------------------------------------- what goes in


@dataclass(frozen=True)
class Input:
    """An input of the file: integers below ``count``, or numbers; the sizes of its free axes have names."""

    name: str
    axes: tuple[str | int, ...]
    count: int = 0

    def draw(self, sizes: dict[str, int], generator: torch.Generator) -> torch.Tensor:
        shape = [a if isinstance(a, int) else sizes[a] for a in self.axes]
        if self.count:
            return torch.randint(self.count, shape, generator=generator)
        return torch.randn(shape, generator=generator)


def _inputs(model: nn.Module, names: Sequence[str]) -> list[Input]:
    config = config_of(model)
    main = getattr(model, "main_input_name", "input_ids")
    tokens: tuple[str | int, ...] = (ROWS, TOKENS)
    found: list[Input]
    if main == "pixel_values" and all(hasattr(config, n) for n in ("image_size", "num_channels")):
        size = config.image_size if isinstance(config.image_size, (list, tuple)) else [config.image_size] * 2
        found = [Input(main, (ROWS, config.num_channels, *size))]
    elif main == "input_ids":
        takes = inspect.signature(model.forward).parameters
        counts = {"input_ids": config.get_text_config().vocab_size, "attention_mask": 2,
                  "token_type_ids": getattr(config, "type_vocab_size", None) or 1}  # fmt: skip
        found = [
            Input(n, tokens, counts[n])
            for n in dict.fromkeys(("input_ids", "attention_mask", *names))
            if n in takes and n in counts
        ]
        if getattr(config, "is_encoder_decoder", False) and "decoder_input_ids" in takes:
            found.append(Input("decoder_input_ids", (ROWS, DECODER_TOKENS), counts["input_ids"]))
    else:
        raise error("E0754", f"a {type(model).__name__} reads `{main}`, and what that looks like is not known here",
                    help="call torch.onnx.export on the model itself, with a batch of yours")  # fmt: skip
    r = registry(model)
    for planned in r.inputs.values() if r is not None else ():
        axes: tuple[str | int, ...] = tokens if planned.marks else (ROWS, *planned.sizes)
        found.append(Input(planned.name, axes, (planned.count or 0) + planned.marks))  # pseudo-tokens count from 1
    return found


def _batch(model: nn.Module, inputs: Sequence[Input], rows: int, tokens: int) -> list[torch.Tensor]:
    """Random values; the last row is shorter, with its padding at the right."""
    generator = torch.Generator().manual_seed(rows * tokens)
    like = next(p for p in model.parameters() if p.is_floating_point())
    found = {i.name: i.draw({ROWS: rows, TOKENS: tokens, DECODER_TOKENS: tokens - 2}, generator) for i in inputs}
    if "attention_mask" in found:
        found["attention_mask"] = torch.ones_like(found["attention_mask"])
        if rows > 1:
            found["attention_mask"][-1, -2:] = 0
    return [t.to(like.device, like.dtype if t.is_floating_point() else t.dtype) for t in found.values()]


class _OnePass(nn.Module):
    """The tensors that a model gives for named inputs, by position."""

    def __init__(self, model: nn.Module, names: Sequence[str], batch: Sequence[torch.Tensor]):
        super().__init__()
        self.model, self.names = model, list(names)
        self.fixed = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
        found = model(**dict(zip(self.names, batch)), **self.fixed, return_dict=True)
        self.outputs = [n for n, t in found.items() if isinstance(t, torch.Tensor)]

    def forward(self, *given: torch.Tensor) -> tuple[torch.Tensor, ...]:
        found = self.model(**dict(zip(self.names, given)), **self.fixed, return_dict=True)
        return tuple(found[n] for n in self.outputs)


# ---------------------------------------------------------------- what comes out


@dataclass(frozen=True)
class Traced:
    """One pass of a model, as it is and as a program of torch.export."""

    whole: _OnePass
    inputs: Sequence[Input]
    program: torch.export.ExportedProgram

    def apart(self, run: Callable[[dict[str, torch.Tensor]], Sequence[torch.Tensor]]) -> tuple[float, str]:
        """The largest difference to the model over batches of other sizes, and the output that has it."""
        worst = (0.0, self.whole.outputs[0])
        for rows, tokens in COMPARED:
            batch = _batch(self.whole, self.inputs, rows, tokens)
            for name, a, b in zip(
                self.whole.outputs, self.whole(*batch), run(dict(zip(self.whole.names, batch))), strict=True
            ):
                far = (
                    float((a - b.to(a)).abs().max() / max(1.0, float(a.abs().max())))
                    if a.shape == b.shape
                    else float("inf")
                )
                worst = max(worst, (far if far == far else float("inf"), name))
        return worst

    def write(self, place: Path) -> float | None:
        """Writes the ONNX file where it agrees with the model; gives the difference, if onnxruntime is there to find it."""
        made = _translate(self)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as staging:
                file = Path(staging) / place.name  # its name stands in it, where the tensors have a file of their own
                made.save(file)
                difference = None if importlib.util.find_spec("onnxruntime") is None else _difference(self, file)
                for part in sorted(file.parent.iterdir(), key=lambda f: f.name == place.name):
                    os.replace(part, place.with_name(part.name))
        except OSError as e:
            raise error("E0753", f"`{place}` could not be written: {e.strerror or e}") from e
        return difference


def trace(model: nn.Module, names: Sequence[str] = ()) -> Traced:
    """A model in evaluation mode, by torch.export; ``names`` are as for `export_onnx`. Raises `PeltError`."""
    inputs = _inputs(model, names)
    batch = _batch(model, inputs, *TRACED)
    free = tuple({n: torch.export.Dim.DYNAMIC for n, a in enumerate(i.axes) if isinstance(a, str)} for i in inputs)

    def attempt() -> Traced:
        whole = _OnePass(model, [i.name for i in inputs], batch).eval()
        return Traced(whole, inputs, torch.export.export(whole, tuple(batch), dynamic_shapes={"given": free}))

    try:
        return attempt()
    except Exception as e:
        what, remedy = f"the {type(model).__name__}", "it cannot without an adapter either: try another model"
        r = registry(model)
        if r is not None and r.switch.live:
            try:
                with disabled(model):
                    attempt()
            except Exception:  # noqa: BLE001
                pass
            else:
                acting = ", ".join(f"`{n}` ({r.attached[n].plan.method.name})" for n in r.switch.live)
                what, remedy = (
                    f"the {type(model).__name__} with {acting}",
                    "it can without: merge the adapter first, if it merges",
                )
        raise error("E0755", f"{what} cannot be exported: {_reason(e)}", help=remedy) from e


def _translate(traced: Traced) -> Any:
    axes = tuple({n: a for n, a in enumerate(i.axes) if isinstance(a, str)} for i in traced.inputs)
    try:
        with _quiet():
            return torch.onnx.export(
                traced.program, dynamo=True, verbose=False, dynamic_shapes={"given": axes},
                input_names=traced.whole.names, output_names=traced.whole.outputs,
            )  # fmt: skip
    except Exception as e:
        raise error("E0755", f"the {type(traced.whole.model).__name__} can be exported, but not as ONNX: {_reason(e)}",
                    help="`torch.export.save` keeps it as a program of torch") from e  # fmt: skip


def _reason(e: BaseException) -> str:
    """What was said first of all: exporters wrap what went wrong in advice."""
    while e.__cause__ is not None:
        e = e.__cause__
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    text = lines[0] if lines else type(e).__name__
    return text if len(text) <= 300 else text[:297] + "…"


def _difference(traced: Traced, file: Path) -> float:
    import onnxruntime

    def run(batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        found = session.run(None, {n: t.cpu().numpy() for n, t in batch.items() if n in kept})
        return [torch.from_numpy(a) for a in found]

    try:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        kept = {i.name for i in session.get_inputs()}  # the exporter leaves out what nothing reads
        far, name = traced.apart(run)
    except Exception as e:
        raise error("E0756", f"onnxruntime cannot run the file: {_reason(e)}",
                    help="nothing was written; a model in float32 has the best chance") from e  # fmt: skip
    if far > TOLERANCE:
        raise error("E0756", f"the file gives other `{name}` than the model, {far:.2g} apart",
                    help="nothing was written; please report it")  # fmt: skip
    return far


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says of itself: functions of its own that are deprecated, packages that it does not need,
    and that axes of one name are one axis, which is meant."""
    log = logging.getLogger("torch.onnx")
    before = log.level
    with ended_by(lambda: log.setLevel(before)), warnings.catch_warnings():
        log.setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"(torch|copyreg|onnx)")
        warnings.filterwarnings("ignore", "# The axis name: .* will not be used, since it shares", UserWarning)
        yield
