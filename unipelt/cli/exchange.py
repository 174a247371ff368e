"""The commands that bring adapters in and take them elsewhere: import and export."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..language.report.diagnostics import error
from ..training.options import Opening, check, one_of
from .options import AllowFuture, AsJson, Folder
from .output import emit, say

#: What peft calls a task, and what `--task` does.
TASKS = {
    "CAUSAL_LM": "causal-lm", "SEQ_CLS": "sequence-classification", "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering", "SEQ_2_SEQ_LM": "seq2seq",
}  # fmt: skip


#: What opens an adapter that was written for another program.
OPENS = {
    "peft": "PeftModel.from_pretrained(base, {!r}) opens it", "adapters": "model.load_adapter({!r}) of `adapters` opens it",
    "gguf-lora": "`llama-cli -m base.gguf --lora {}` reads it",
}  # fmt: skip
#: What `export` writes.
WRITTEN = ("onnx", *OPENS)


def import_(
    folder: Annotated[
        str,
        typer.Argument(
            metavar="DIR", help="A folder of peft's (`save_pretrained`) or of AdapterHub's `adapters` (`save_adapter`)."
        ),
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="The base model.")],
    out: Annotated[
        str,
        typer.Option(
            "--out", "-o", help="The folder to write: an adapter of unipelt's, of several one in each subfolder."
        ),
    ],
    task: Annotated[
        str | None,
        typer.Option(help="The task whose model it is for, as in `train`, or base; default: what its folder says."),
    ] = None,
    allow_future: AllowFuture = False,
    as_json: AsJson = False,
) -> None:
    """Turn an adapter of peft's or of AdapterHub's into one of unipelt's, with the same values; of a folder of several all of them."""
    from ..interchange.folders import read, written_by
    from ..interchange.several import chosen

    if Path(out).exists():
        raise error("E0611", f"`{out}` exists", help="name another folder")
    found = {}
    for n, place in chosen(Path(folder), None).items():  # before the seconds that a model takes
        form = written_by(place)
        config, _ = read(place, form)
        found[n] = (form.library, config.get("peft_type"), _task(config, place))
    tasks = dict.fromkeys(t for _, _, t in found.values())
    if task is None and len(tasks) > 1:
        whose = ", ".join(f"`{n}` for {t}" for n, (_, _, t) in found.items())
        raise typer.BadParameter(f"the adapters are of several tasks ({whose}): name the folder of one, or --task")

    import unipelt

    from ..interchange.brought import import_adapter
    from ..training.models import load_plain

    loaded = load_plain(model, task or next(iter(tasks)))
    import_adapter(loaded, Path(folder), allow_future=allow_future)
    places = _saved(loaded, list(found), Path(out))
    texts = {n: str(method) for n, method in unipelt.adapters(loaded).items()}
    told = {
        n: {"folder": str(places[n]), "library": library, "peft_type": kind, "text": texts[n]}
        for n, (library, kind, _) in found.items()
    }
    if as_json:
        emit({"ok": True, **(next(iter(told.values())) if len(told) == 1 else {"folder": out, "adapters": told})})
    else:
        for at in places.values():
            say(f"written to {at}: unipelt.attach(model, {str(at)!r}) brings it onto the base")


def _saved(model: Any, names: Sequence[str], out: Path) -> dict[str, Path]:
    """Writes one adapter to a folder, several to subfolders of it by their names, all or none; where each is."""
    import unipelt

    from ..training.models import quiet

    with quiet():
        if len(names) == 1:
            unipelt.save(model, out, names[0], fold=False)
            return {names[0]: out}
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as room:
            whole = Path(room) / "all"
            for n in names:
                unipelt.save(model, whole / n, n, fold=False)
            whole.rename(out)
    return {n: out / n for n in names}


def _task(config: Mapping[str, Any], place: Path) -> str:
    """The task whose model a folder is for, as it says itself."""
    from ..interchange.adapterhub_heads import task_of
    from ..interchange.peft_out import TASKS as ENDS

    found = config.get("task_type") or next((t for end, t in ENDS.items() if task_of(place).endswith(end)), None)
    return TASKS.get(str(found), "base")


def export(
    folder: Folder,
    out: Annotated[
        str,
        typer.Option(
            "--out",
            "-o",
            help="The file to write, with the ending .onnx or .gguf; with `--to peft` or `--to adapters` a folder.",
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar=f"<{'|'.join(WRITTEN)}>",
            help="What to write: the model with the adapter, or the adapter alone for peft, AdapterHub's `adapters` or llama.cpp.",
        ),
    ] = "onnx",
    task: Annotated[
        str | None,
        typer.Option(
            help="Of an adapter that no run made: the task whose model it is for, as in `train`; default: the saved one's."
        ),
    ] = None,
    merged: Annotated[
        bool, typer.Option("--merge", help="Merge the adapter first: a smaller graph, where the method merges.")
    ] = False,
    serving: Annotated[
        bool, typer.Option("--serving", help="With `--to peft`: keep to what serving engines as vLLM read.")
    ] = False,
    as_: Annotated[
        str | None,
        typer.Option(
            "--as",
            help="With `--to peft` or `gguf-lora`, for what merges: write it as this method of two factors, as lora, by its singular values.",
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="Of the factors of `--as`; default: as many as it takes to leave nothing out."),
    ] = None,
    *,
    opening: Opening,
    as_json: AsJson = False,
) -> None:
    """Write a saved adapter with its model as an ONNX file, compared with the model by onnxruntime; or the adapter for peft or AdapterHub."""
    check(opening)
    one_of("to", to, WRITTEN)
    _check_as(to, as_, rank)
    if serving and to != "peft":
        raise typer.BadParameter("--serving goes with `--to peft`")
    if to != "onnx":
        if merged:
            raise typer.BadParameter("--merge is for ONNX: an adapter that is merged is none any more")
        if to == "gguf-lora":
            from ..interchange.gguf_out import check_place as check_gguf

            check_gguf(Path(out))
        if Path(out).exists():
            raise error("E0611", f"`{out}` exists", help="name another folder")
    else:
        from ..runtime.exporting import INSTALL, check_place

        check_place(Path(out))  # before the seconds that a model takes

    import unipelt

    from ..training.models import quiet
    from ..training.saved import load_adapted

    adapted, tokenizer, name = load_adapted(folder, opening, task, say)
    if as_ is not None:
        from ..training.bars import Ticker

        with Ticker("factors", False if as_json else None, "map") as tick:
            if to == "gguf-lora":
                made = unipelt.export_gguf(adapted, out, name, as_lora=True, rank=rank, tick=tick)
            else:
                made = unipelt.export_as_lora(adapted, out, name, rank=rank, serving=serving, tick=tick)
        assert made is not None
        if as_json:
            emit({"ok": True, **made.to_json()})
        else:
            say(f"written to {out} in rank {made.rank}: {OPENS[to].format(out)}")
            say(f"left out of the change of the weights: {made.overall:.2%}, and {made.error:.2%} at most at one map")
        return
    if to != "onnx":
        if to == "peft":
            unipelt.export_peft(adapted, out, name, serving=serving)
        elif to == "gguf-lora":
            unipelt.export_gguf(adapted, out, name)
        else:
            unipelt.export_adapters(adapted, out, name)
        if as_json:
            emit({"ok": True, "folder": out})
        else:
            say(f"written to {out}: {OPENS[to].format(out)}")
        return
    if merged:
        unipelt.merge(adapted, name)
    with quiet():
        apart = unipelt.export_onnx(adapted, out, tokenizer.model_input_names if tokenizer is not None else ())
    if as_json:
        size = Path(out).stat().st_size
        emit({"ok": True, "file": out, "bytes": size, "checked": apart is not None, "difference": apart})
    elif apart is None:
        say(f"written to {out}, not compared with the model: that needs onnxruntime ({INSTALL})")
    else:
        say(f"written to {out}: it gives what the model gives, to {apart:.1g}")


def _check_as(to: str, as_: str | None, rank: int | None) -> None:
    from ..interchange.declared import by_factors

    if as_ is not None and to not in ("peft", "gguf-lora"):
        raise typer.BadParameter("--as goes with `--to peft` and `--to gguf-lora`")
    if as_ is not None and as_ != by_factors().name:
        raise typer.BadParameter(f"--as takes `{by_factors().name}`: two factors beside each linear map")
    if rank is not None and as_ is None:
        raise typer.BadParameter("--rank goes with --as: an adapter that is exported as it is keeps its own")
