"""The command `unipelt export`: an adapted model as an ONNX file."""

from __future__ import annotations

from os.path import isfile
from pathlib import Path
from typing import Annotated, Any

import typer

from ..language.diagnostics import error
from .options import AsJson, Base, Force, Rebound
from .output import emit, guarded, say


@guarded
def export(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="The `--out` folder of `unipelt train`, or a saved adapter's.")],
    out: Annotated[str, typer.Option("--out", "-o", help="The file to write, with the ending .onnx.")],
    model: Base = None,
    task: Annotated[
        str | None, typer.Option(help="Of an adapter that no run made: the task whose model it is for, as in `train`; default: base.")
    ] = None,
    merged: Annotated[bool, typer.Option("--merge", help="Merge the adapter first: a smaller graph, where the method merges.")] = False,
    force: Force = False,
    arguments: Rebound = None,
    as_json: AsJson = False,
) -> None:
    """Write a saved adapter with its model as an ONNX file, and compare the file with the model (with onnxruntime)."""
    from ..runtime.exporting import INSTALL, check_place

    check_place(Path(out))  # before the seconds that a model takes

    import unipelt

    from ..training.models import quiet
    from ..training.resolve import read_arguments

    adapted, tokenizer, name = _load(folder, model, task, force, read_arguments(arguments or []))
    if merged:
        unipelt.merge(adapted, name)
    with quiet():
        apart = unipelt.export_onnx(adapted, out, tokenizer.model_input_names if tokenizer is not None else ())
    if as_json:
        emit({"ok": True, "file": out, "bytes": Path(out).stat().st_size, "checked": apart is not None, "difference": apart})
    elif apart is None:
        say(f"written to {out}, not compared with the model: that needs onnxruntime ({INSTALL})")
    else:
        say(f"written to {out}: it gives what the model gives, to {apart:.1g}")


def _load(folder: str, model: str | None, task: str | None, force: bool, arguments: dict[str, Any]) -> tuple[Any, Any, str]:
    """An adapted model, its tokenizer if it reads text, and the adapter's name."""
    import unipelt

    from ..runtime.hub import MANIFEST, TASK, located
    from ..training.models import load_plain, load_tokenizer, quiet
    from ..training.saved import load_run

    place = located(folder)
    if isfile(place / TASK) or not isfile(place / MANIFEST):
        if task is not None and isfile(place / TASK):
            raise typer.BadParameter(f"the run in {folder} has its task already: leave --task out")
        run = load_run(folder, model, force, arguments, say)
        return run.model, run.tokenizer, run.name
    if model is None:
        raise error("E0757", f"the adapter in `{place}` does not say where its base is", help="name it with `--model`")
    adapted = load_plain(model, task or "base")
    with quiet():
        name = unipelt.attach(adapted, place, force=force, arguments=arguments)
    reads_text = adapted.main_input_name == "input_ids"
    return adapted, load_tokenizer(model) if reads_text else None, name
