"""The command `unipelt export`: an adapted model as an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import AsJson, Base, DType, Force, Rebound
from .output import emit, guarded, say


@guarded
def export(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="The `--out` folder of `unipelt train`, or a saved adapter's.")
    ],
    out: Annotated[str, typer.Option("--out", "-o", help="The file to write, with the ending .onnx.")],
    model: Base = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="Of an adapter that no run made: the task whose model it is for, as in `train`; default: the saved one's."
        ),
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merge", help="Merge the adapter first: a smaller graph, where the method merges.")
    ] = False,
    force: Force = False,
    dtype: DType = None,
    arguments: Rebound = None,
    as_json: AsJson = False,
) -> None:
    """Write a saved adapter with its model as an ONNX file, and compare the file with the model (with onnxruntime)."""
    from ..runtime.exporting import INSTALL, check_place
    from ..training.config import TaskOptions, check_dtype

    check_dtype(dtype)
    check_place(Path(out))  # before the seconds that a model takes

    import unipelt

    from ..training.models import quiet
    from ..training.resolve import read_arguments
    from ..training.saved import Opening, has_task, load_adapted

    if task is not None and has_task(folder):
        raise typer.BadParameter(f"the run in {folder} has its task already: leave --task out")
    asked = Opening(model, force, read_arguments(arguments or []), dtype, TaskOptions(task=task))
    adapted, tokenizer, name = load_adapted(folder, asked, say)
    if merged:
        unipelt.merge(adapted, name)
    with quiet():
        apart = unipelt.export_onnx(adapted, out, tokenizer.model_input_names if tokenizer is not None else ())
    if as_json:
        emit(
            {
                "ok": True,
                "file": out,
                "bytes": Path(out).stat().st_size,
                "checked": apart is not None,
                "difference": apart,
            }
        )
    elif apart is None:
        say(f"written to {out}, not compared with the model: that needs onnxruntime ({INSTALL})")
    else:
        say(f"written to {out}: it gives what the model gives, to {apart:.1g}")
