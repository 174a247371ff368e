"""The command that writes hidden states of a data set into a file."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Annotated

import typer

from ..training.options import Opening, TaskOptions, check
from .options import AsJson, Data
from .output import emit, say, table


def features(
    data: Data,
    out: Annotated[str, typer.Option("--out", "-o", help="The file to write, with the ending .safetensors.")],
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[WHAT]",
            help="A number of blocks, for what leaves the last of them; a method, for what leaves the blocks below everything it "
            "changes; the folder of a run or a saved adapter. Without one: the model as it is.",
        ),
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option(help="Of an adapter's model: behind how many blocks. Default: behind all, and the last norm."),
    ] = None,
    pool: Annotated[
        str,
        typer.Option(
            metavar="<mean|first|last|none>",  # the words of `states.Pool`, which needs torch
            help="One vector for each row: the mean of its tokens, the first or the last; none: one for each token.",
        ),
    ] = "mean",
    split: Annotated[str | None, typer.Option(help="train, validation or test; default: all.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in a pass.")] = 64,
    *,
    opening: Opening,
    task: TaskOptions,
    as_json: AsJson = False,
) -> None:
    """Write the hidden states of a data set, with labels and row numbers: of a layer, of what a method leaves alone, of an adapted model."""
    task.check()
    check(opening)

    from ..training.states import check_place
    from ..training.states import features as states_of

    check_place(out)  # before the seconds that a model takes

    from ..training.bars import Ticker

    with ExitStack() as bars:
        found = states_of(
            what, data, opening=opening, options=task, layer=layer, pool=pool, split=split, batch_size=batch_size, say=say,  # type: ignore[arg-type]
            tick=lambda name: bars.enter_context(Ticker(name, False if as_json else None)),
        )  # fmt: skip
    found.save(out)
    shapes = {n: list(t.shape) for n, t in found.tensors.items()}
    if as_json:
        about = {k: v for k, v in found.about.items() if not k.endswith(".ids")}
        emit({"ok": True, "file": out, "tensors": shapes, "about": about, "notes": list(found.notes)})
        return
    for note in found.notes:
        say(note)
    table([{"tensor": n, "shape": " × ".join(map(str, s))} for n, s in shapes.items()], ["tensor", "shape"])
    say(
        f"written to {out}: of {found.about['layer'] if isinstance(found.about['layer'], str) else 'layer ' + str(found.about['layer'])}"
    )
