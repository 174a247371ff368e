"""Hidden states of a data set, with labels and row numbers, for whatever learns from fixed features: of a layer, of the blocks that
a method leaves alone, or of an adapted model."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from os.path import exists
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save as pack
from torch import nn

import unipelt

from ..anatomy.base import base_of
from ..anatomy.evaluating import evaluating
from ..anatomy.find import find
from ..compiler.untouched import Cut
from ..language.files import reason, replace
from ..language.report.diagnostics import error
from ..runtime.hub import public_name, repository
from ..runtime.prompts.outputs import at_tokens
from ..runtime.references import load
from . import data as reading
from .data import Split
from .models import load_config, load_model, quiet
from .options import Opening, TaskOptions, one_of, wrong
from .readers import load_reader
from .saved import load_run
from .tasks import task_for
from .tasks.evaluation import Collator, as_read, batches
from .tasks.task import Encoded, Task, Tick
from .trunk import cut_below

Pool = Literal["mean", "first", "last", "none"]
#: The columns in which a data set numbers its rows itself.
IDS = ("id", "idx", "guid")
WHOLE = "the whole base"


@dataclass(frozen=True)
class Features:
    """States by split: ``tensors`` has ``train.features`` [rows, d], or [all tokens, d] with ``train.lengths`` [rows] where nothing is
    pooled, ``train.rows`` [rows], the row's number in its split from 0, and, where the data have labels, ``train.labels``: numbers of
    classes [rows], 0 and 1 for each of several [rows, labels], numbers [rows], or a class for each token [all tokens]. ``about`` says
    what they are of, the names of the classes, and the rows' own ids."""

    tensors: dict[str, torch.Tensor]
    about: dict[str, Any]
    notes: tuple[str, ...] = field(default=())

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    @property
    def splits(self) -> list[str]:
        return [n.removesuffix(".features") for n in self.tensors if n.endswith(".features")]

    def save(self, path: str | Path) -> Path:
        """Writes a safetensors file, whole or not at all; ``about`` is in its metadata, each value as JSON."""
        place = check_place(path)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            about = {n: json.dumps(v, ensure_ascii=False) for n, v in self.about.items()}
            replace(place, pack({n: t.contiguous() for n, t in self.tensors.items()}, about))
        except OSError as e:
            raise error("E0785", f"`{place}` could not be written: {reason(e)}", help="name another file") from None
        return place


def check_place(path: str | Path) -> Path:
    """Refuses a file that is there already, or is named as another kind of file."""
    place = Path(path)
    if place.suffix != ".safetensors":
        raise error("E0785", f"`{place.name}` does not end in `.safetensors`", help="name the file so")
    if exists(place):
        raise error("E0611", f"`{place}` exists", help="name another file")
    return place


def features(
    what: str | int | None, data: str | Path, *, opening: Opening = Opening(), options: TaskOptions = TaskOptions(),
    layer: int | None = None, pool: Pool = "mean", split: str | None = None, batch_size: int = 64,
    tick: Callable[[str], Tick] | None = None, say: Callable[[str], None] = lambda text: None,
) -> Features:  # fmt: skip
    """The hidden states of a data set, in evaluation mode: ``unipelt.training.features("probing", "data", opening=Opening(model="bert"))``.

    ``what`` is a number, of blocks of ``opening.model``, whose last one's states are taken (0: what enters the first); a method, for the states
    that leave the blocks below everything that it edits or trains, which a frozen trunk keeps; the folder of a run or of a saved
    adapter, for the adapted model's; or None for the model as it is. ``layer`` chooses a number of blocks for the last two, by default what leaves the base
    model. ``pool`` makes one vector of a row's tokens: their mean (padding does not count), the first, the last, or, ``none``, leaves
    them. ``split`` names one; by default all are read. ``tick`` is asked for a function for each split. Raises `PeltError`.
    """
    one_of("pool", pool, get_args(Pool))
    if batch_size < 1:
        raise wrong("batch_size", "must be at least 1", batch_size)
    found = reading.read(data, split or "train")
    if split is not None and split not in found:
        raise error(
            "E0608", f"`{data}` has no {split} split; it has {', '.join(found.splits)}", help="name one of these"
        )
    model, task, reader, cut, of = _opened(what, data, found, opening, options, layer, say)
    tensors: dict[str, torch.Tensor] = {}
    about: dict[str, Any] = {**of, "pool": pool, "task": task.kind, "unipelt": unipelt.__version__}
    notes: list[str] = []
    for name in [split] if split else list(found.splits):
        rows = found[name]
        encoded = _encoded(task, rows, reader)
        task.try_out(model, encoded, reader)
        with quiet(), evaluating(model):
            own = _states(model, task, encoded, reader, cut, pool, batch_size, tick(name) if tick else None)
        tensors |= {f"{name}.{n}": t for n, t in own.items()}
        tensors[f"{name}.rows"] = torch.arange(len(rows))
        ids = next((c for c in IDS if c in rows.columns), None)
        if ids is not None:
            about[f"{name}.ids"] = [r.get(ids) for r in rows.rows]
        if encoded.truncated:
            notes.append(f"{encoded.truncated} examples of {name} are longer than {task.longest} and are cut")
    labels = getattr(task, "labels", None)
    if labels and any(n.endswith(".labels") for n in tensors):
        about["labels"] = list(labels)
    return Features(tensors, about, tuple(notes))


def _opened(
    what: str | int | None, data: str | Path, found: Any, opening: Opening, options: TaskOptions, layer: int | None,
    say: Callable[[str], None],
) -> tuple[Any, Task, Any, Cut | None, dict[str, Any]]:  # fmt: skip
    """The model, the task, the reader, behind which blocks the states are taken (None: behind the base), and what is said of them."""
    number = what if isinstance(what, int) else int(what) if what is not None and what.lstrip("-").isdigit() else None
    if isinstance(what, str) and number is None and (Path(what).is_dir() or repository(what) is not None):
        run = load_run(what, **vars(opening), say=say, options=options, data=data)
        cut = None if layer is None else _at(run.model, layer)
        about = {"adapter": public_name(what), "method": unipelt.adapters(run.model)[run.name].name, **_place(cut)}
        return run.model, run.task, run.tokenizer, cut, about
    if opening.model is None:
        raise error("E0757", "it is not said of which model", help="name it with `--model`, or the folder of a run")
    if opening.arguments and (what is None or number is not None):
        raise error("E0621", "a layer has no arguments", help="leave `--set` out")
    if layer is not None and what is not None:
        raise error("E0620", "`--layer` chooses a layer of a model or of an adapter", help="leave it out here")
    method = load(what, arguments=opening.arguments) if isinstance(what, str) and number is None else None
    base = load_config(opening.model)
    whole = reading.training_split(found) if "train" in found else next(iter(found.splits.values()))
    task = task_for(whole, options, base)
    reader = load_reader(opening.model, task, base)
    task = task.fit(base, reader)
    model = load_model(opening.model, task, reader, 0, dtype=opening.dtype)
    said: dict[str, Any] = {"model": public_name(opening.model)}
    if method is not None:
        unipelt.apply(model, method)
        below = cut_below(model)
        if isinstance(below, str):
            raise error("E0783", f"no block lies below what `{method.name}` changes: {below}",
                        help="name a layer by its number, or a method that edits the upper layers alone")  # fmt: skip
        unipelt.remove(model)
        return model, task, reader, below, {**said, "method": method.name, **_place(below)}
    wanted = layer if number is None else number
    cut = None if wanted is None else _at(model, wanted)
    return model, task, reader, cut, {**said, **_place(cut)}


def _place(cut: Cut | None) -> dict[str, Any]:
    return {"layer": WHOLE if cut is None else cut.blocks}


def _at(model: nn.Module, blocks: int) -> Cut:
    sites = find(model)
    if sites.unknown or not sites.stacks:
        raise error(
            "E0783",
            "nothing is known of this model's blocks",
            help="leave the layer out: the base model's states are taken",
        )
    stack = sites.main[0]
    if stack.shared:
        raise error(
            "E0783", "its blocks share one module", help="leave the layer out: the base model's states are taken"
        )
    if not 0 <= blocks <= stack.depth:
        raise error("E0785", f"there is no layer {blocks}: the model has {stack.depth} blocks",
                    help=f"give a number from 0, what enters the first, to {stack.depth}")  # fmt: skip
    return Cut(stack, blocks, sites.prefix)


def _encoded(task: Task, rows: Split, reader: Any) -> Encoded:
    """A split as the model reads it, with labels where it has them."""
    named = [task.label] if task.label else []
    lacks = bool(named) and any(n not in rows.columns for label in named for n in str(label).split(","))
    encoded = task.encode_inputs(task.read_inputs(rows), reader) if lacks else task.encode(rows, reader)
    if len(encoded) != len(rows):
        raise error("E0785", f"{task.kind} makes {len(encoded)} examples of the {len(rows)} rows of {rows.name}, and features are of a row",
                    help="name another `--task`, or shorter texts")  # fmt: skip
    return encoded


# ---------------------------------------------------------------- states


def _states(
    model: Any, task: Task, encoded: Encoded, reader: Any, cut: Cut | None, pool: str, size: int, tick: Tick | None
) -> dict[str, torch.Tensor]:
    collator = Collator(reader, task)
    states: dict[int, torch.Tensor] = {}
    labels: dict[int, torch.Tensor] = {}
    with _caught(model, cut) as caught:
        for chosen in batches(task, encoded, size):
            batch = as_read(collator([encoded[i] for i in chosen]), model.dtype)
            batch = {k: v.to(model.device) for k, v in batch.items()}
            given = batch.get("labels")
            if given is not None and (given.dim() == 1 or given.is_floating_point()):
                batch.pop("labels")  # they are of the rows, and a model needs no loss here
            caught.clear()
            with suppress(_Enough):
                model(**batch)
            hidden = _of_tokens(model, caught, len(chosen))
            mask = _mask(batch, hidden, pool)
            for row, i in enumerate(chosen):
                kept = hidden[row][mask[row]] if mask is not None else hidden[row]
                states[i] = _pooled(kept, pool).float().cpu()
                if given is None:
                    continue
                own = given[row]
                if given.dim() == 1 or given.is_floating_point():
                    labels[i] = own.cpu()
                elif pool == "none" and mask is not None and own.shape == mask[row].shape:
                    labels[i] = own[mask[row]].cpu()
            if tick:
                tick(len(states), len(encoded))
    order = range(len(encoded))
    if pool != "none":
        found = {"features": torch.stack([states[i] for i in order])}
    else:
        found = {
            "features": torch.cat([states[i] for i in order]),
            "lengths": torch.tensor([len(states[i]) for i in order]),
        }
    if len(labels) == len(encoded):
        token = labels[0].dim() == 1 and not labels[0].is_floating_point()
        found["labels"] = (torch.cat if token else torch.stack)([labels[i] for i in order])
    return found


class _Enough(Exception):
    """Ends a pass of which no more is asked."""


@contextmanager
def _caught(model: nn.Module, cut: Cut | None) -> Iterator[list[Any]]:
    """What leaves the place in a pass. At a block the pass ends there (`_Enough`); a whole base may be called several times."""
    caught: list[Any] = []

    def leaves(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        caught.append(output)
        if cut is not None:
            raise _Enough

    def enters(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        leaves(module, args, args[0] if args else next(iter(kwargs.values())))

    if cut is None:
        handle = _whole(model).register_forward_hook(leaves)
    elif cut.blocks:
        handle = model.get_submodule(cut.path(cut.blocks - 1)).register_forward_hook(leaves)
    else:
        handle = model.get_submodule(cut.path(0)).register_forward_pre_hook(enters, with_kwargs=True)
    try:
        yield caught
    finally:
        handle.remove()


def _whole(model: nn.Module) -> nn.Module:
    """The base model; of one that has none, the module that its blocks are in."""
    base = base_of(model)
    if base is not model:
        return base
    sites = find(model)
    return model.get_submodule(sites.main[-1].module) if sites.stacks and not sites.unknown else model


def _of_tokens(model: nn.Module, caught: Sequence[Any], rows: int) -> torch.Tensor:
    """The states [rows, positions, d] of a pass; maps of pictures [rows, d, height, width] have their pixels as positions."""
    output = caught[-1] if caught else None
    if isinstance(output, Mapping):
        output = output.get("last_hidden_state", next(iter(output.values()), None))
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    if isinstance(output, torch.Tensor) and output.dim() == 4 and len(output) == rows:
        return output.flatten(2).mT
    if not isinstance(output, torch.Tensor) or output.dim() != 3 or len(output) != rows:
        shape = f" of the shape {list(output.shape)}" if isinstance(output, torch.Tensor) else ""
        raise error("E0785", f"what leaves this place of the model are no hidden states of {rows} rows{shape}",
                    help="name another layer")  # fmt: skip
    return at_tokens(model, output)


def _mask(batch: Mapping[str, torch.Tensor], hidden: torch.Tensor, pool: str) -> torch.Tensor | None:
    """Which positions are no padding [rows, positions]; None where all are."""
    mask = batch.get("attention_mask")
    if mask is None:
        return None
    if mask.shape != hidden.shape[:2]:
        if bool((mask == 1).all()):
            return None
        raise error("E0785", f"the states have {hidden.shape[1]} positions and the inputs {mask.shape[-1]}, with padding among them: "
                    "which states are padding is not known", help="give `--batch-size 1`: then nothing is padded")  # fmt: skip
    return mask.bool().to(hidden.device)


def _pooled(states: torch.Tensor, pool: str) -> torch.Tensor:
    if pool == "none":
        return states
    return states[0] if pool == "first" else states[-1] if pool == "last" else states.float().mean(0)
