"""Frozen trunks, computed once: blocks below every edit give the same hidden states for a text in each epoch.

The states behind the last of these blocks are kept for each example, and the blocks are passed over while they are there: later
epochs compute only what is above. Probing, top layers and deep variants train many times faster so; the results are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import __version__
from ..anatomy.base import base_modules
from ..anatomy.find import find
from ..compiler.untouched import Cut, below_edits, below_modules
from ..language.report.diagnostics import PeltError, error
from ..language.report.warned import warn
from ..runtime import caches
from ..runtime.registry import registry, unwrapped
from ..anatomy.stand_in import StandIn
from .kept_rows import KeptRows
from .stem import stem_of

#: What a pass may be given that does not change hidden states.
_SILENT = (
    "labels",
    "return_dict",
    "num_items_in_batch",
    "start_positions",
    "end_positions",
    "use_cache",
    "logits_to_keep",
)
_FILE = "trunk-{}.sqlite"


class Trunk:
    """The blocks of a model that run once. ``blocks`` is how many, ``hits`` and ``misses`` count examples; ``close()`` ends it."""

    def __init__(self, model: nn.Module, cut: Cut, rows: KeptRows, stem: tuple[str, ...] = ()):
        self.model, self.cut, self.blocks, self.rows = model, cut, cut.blocks, rows
        self.hits = self.misses = 0
        self.keys: list[bytes] = []
        self.lengths: list[int] = []
        self.given: torch.Tensor | None = None  # what the last block is to yield in this pass
        self.single: bool | None = None  # whether a block yields one tensor
        self.warned = False
        self.blocks_of = [
            Block(self, model.get_submodule(cut.path(i)), i == self.blocks - 1) for i in range(self.blocks)
        ]
        self.stand_ins: list[StandIn] = [*self.blocks_of, *(Below(self, model.get_submodule(p)) for p in stem)]
        self.norms = _norms_of_batches(model, cut)
        self.handles = [
            model.register_forward_pre_hook(self._enter, with_kwargs=True),
            model.register_forward_hook(self._leave, always_call=True),
        ]
        for s in self.stand_ins:
            s.put()

    def __repr__(self) -> str:
        return f"<trunk: {self.cut}, {self.hits} examples from the cache, {self.misses} computed>"

    def __enter__(self) -> Trunk:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """All blocks run in each pass again."""
        for s in self.stand_ins:
            s.take()
        for h in self.handles:
            h.remove()
        self.rows.close()
        self.stand_ins, self.handles, self.norms = [], [], {}

    # ------------------------------------------------------------ a pass

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.keys, self.given = [], None
        found = _keys(args, kwargs, getattr(module, "config", None))
        if found is None or torch.compiler.is_compiling() or self._norms_batches():
            return
        self.keys, self.lengths = found
        if self.single is None:  # the first pass shows what a block yields
            return
        rows = [self.rows.get(k) for k in self.keys]
        if any(r is None for r in rows):
            return
        p = next(self.blocks_of[-1].block.parameters())
        width = kwargs["input_ids"].shape[1] if "input_ids" in kwargs else max(len(r) for r in rows if r is not None)
        self.given = torch.stack([_padded(r, width) for r in rows if r is not None]).to(p.device)
        self.hits += len(rows)

    def _norms_batches(self) -> bool:
        """Whether a norm below takes the mean of the batch now: then nothing is kept or read, which is said once."""
        path = next((p for p, m in self.norms.items() if m.training), None)
        if path is not None and not self.warned:
            self.warned = True
            warn(f"the blocks run in each pass: {_over_batches(path)}")
        return path is not None

    def _leave(self, *_: Any) -> None:
        self.keys, self.given = [], None

    def keep(self, hidden: torch.Tensor) -> None:
        if len(hidden) == len(self.keys):
            self.misses += len(self.keys)
            self.rows.put({k: row[:n] if n >= 0 else row for k, row, n in zip(self.keys, hidden, self.lengths)})


class Block(StandIn):
    """Stands in for the forward of a block of the trunk."""

    def __init__(self, trunk: Trunk, block: nn.Module, last: bool):
        super().__init__(block, "forward")
        self.trunk, self.block, self.last = trunk, block, last

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        t = self.trunk
        entered = args[0] if args else next(iter(kwargs.values()))
        if t.given is not None:
            hidden = _like(t.given, entered) if self.last else entered
            return hidden if t.single else (hidden,)
        with torch.no_grad():
            out = self.own()(*args, **kwargs)
        if isinstance(out, torch.Tensor):
            out = _like(out, entered)
        if t.keys:
            single = isinstance(out, torch.Tensor)
            hidden = (
                out
                if single
                else out[0]
                if isinstance(out, tuple) and not any(o is not None for o in out[1:])
                else None
            )
            if hidden is None:
                t.keys = []  # more than hidden states leaves the block: nothing is kept
            else:
                t.single = single
                if self.last:
                    t.keep(hidden)
        return out


class Below(StandIn):
    """Stands in for the forward of a module below the trunk, which nothing but the trunk reads: its output has a shape, and no values."""

    def __init__(self, trunk: Trunk, module: nn.Module):
        super().__init__(module, "forward")
        self.trunk = trunk
        self.shapes: dict[
            tuple[int, ...], tuple[int, ...]
        ] = {}  # of an example that leaves, by that of one that enters

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        entered = args[0] if args else next(iter(kwargs.values()), None)
        if not isinstance(entered, torch.Tensor) or entered.dim() < 2:
            return self.own()(*args, **kwargs)
        one = tuple(entered.shape[1:])
        if self.trunk.given is not None and one in self.shapes:
            empty = torch.full((), torch.nan, dtype=self.trunk.given.dtype, device=entered.device)
            return _like(empty.expand(len(entered), *self.shapes[one]), entered)
        with torch.no_grad():
            out = self.own()(*args, **kwargs)
        if not isinstance(out, torch.Tensor):
            return out
        if len(out) == len(entered):
            self.shapes[one] = tuple(out.shape[1:])
        return _like(out, entered)


def _like(hidden: torch.Tensor, entered: torch.Tensor) -> torch.Tensor:
    """Hidden states that ask for a gradient where those that entered do: checkpoints with ``use_reentrant=True`` need it."""
    return hidden.detach().requires_grad_() if entered.requires_grad else hidden


def _keys(args: tuple[Any, ...], kwargs: Mapping[str, Any], config: Any) -> tuple[list[bytes], list[int]] | None:
    """A key for each example of a pass, and how many of its positions are kept (-1: all); None where the pass is to run as it is."""
    wanted = ("output_hidden_states", "output_attentions")
    asked = any(kwargs.get(n) if kwargs.get(n) is not None else getattr(config, n, False) for n in wanted)
    if asked or caches.given(kwargs) is not None:
        return None
    kwargs = {**{str(i): a for i, a in enumerate(args)}, **kwargs}  # of whatever names
    tensors = {n: v for n, v in kwargs.items() if isinstance(v, torch.Tensor) and n not in _SILENT}
    others = {n: v for n, v in kwargs.items() if not isinstance(v, torch.Tensor) and n not in _SILENT and v is not None}
    sizes = {t.shape[0] for t in tensors.values() if t.dim()}
    if (
        len(sizes) != 1
        or any(t.requires_grad for t in tensors.values())
        or not all(isinstance(v, (int, float, str)) for v in others.values())
    ):
        return None
    (n,) = sizes
    lengths = _lengths(tensors, n)
    of_pass = repr(sorted(others.items())).encode()
    keys = []
    for i in range(n):
        key = hashlib.sha256(of_pass)
        for name, t in sorted(tensors.items()):
            row = t[i]
            if lengths[i] >= 0 and row.dim() == 1:
                row = row[: lengths[i]]
            row = row.detach().cpu().contiguous()
            key.update(f"{name} {row.dtype} {list(row.shape)} ".encode())
            key.update(row.reshape(-1).view(torch.uint8).numpy().tobytes())
        keys.append(key.digest())
    return keys, lengths


def _lengths(tensors: Mapping[str, torch.Tensor], n: int) -> list[int]:
    """How many positions are before the padding, where all of it is on the right of token ids; else -1, and a row is kept as it is."""
    mask, ids = tensors.get("attention_mask"), tensors.get("input_ids")
    if (
        mask is None
        or ids is None
        or mask.shape != ids.shape
        or any(t.dim() != 2 or t.shape != ids.shape for t in tensors.values())
    ):
        return [-1] * n
    real = mask.long().sum(1)
    right = (mask.long() == (torch.arange(mask.shape[1], device=mask.device) < real[:, None]).long()).all(1)
    return [int(r) if ok else -1 for r, ok in zip(real.tolist(), right.tolist())]


def _padded(row: torch.Tensor, width: int) -> torch.Tensor:
    """A row with zeros where padding is: nothing above reads it, and no loss counts it."""
    return row if len(row) >= width else torch.cat([row, row.new_zeros(width - len(row), *row.shape[1:])])


# ---------------------------------------------------------------- which blocks


def cache_trunk(model: Any, folder: str | Path | None = None, *, most: int = 4 * 2**30) -> Trunk:
    """Keeps the hidden states behind the blocks that lie below everything that is trained, and passes over these blocks later.

    One line before training, in any Trainer or loop: ``trunk = unipelt.training.cache_trunk(model)``, and ``trunk.close()`` behind it
    (or ``with``). The first pass of each example computes, the later ones read. ``folder`` keeps them for other runs, in a
    file for each model and cut; ``most`` bounds the bytes, in memory and in the file. Passes that ask for hidden states, attentions or a
    cache run as they are.

    Raises `PeltError` with the reason where no block lies below, where something random acts there (dropout while training), or where
    nothing is known of the model's blocks.
    """
    model = unwrapped(model)
    cut = cut_of(model)
    if isinstance(cut, str):
        raise error("E0783", f"no block runs once: {cut}",
                    help="train without the cache; where dropout is the reason, set the base's to 0 (`--dropout 0`)")  # fmt: skip
    stem = stem_of(model, cut)
    if stem is None:
        raise error(
            "E0783",
            "no block runs once: what stands between the blocks cannot do without them",
            help="train without the cache",
        )
    key = _model_key(model, cut)
    path = Path(folder) / _FILE.format(key[:16]) if folder is not None else None
    return Trunk(model, cut, KeptRows(path, key, most), stem)


def cut_of(model: nn.Module) -> Cut | str:
    """Where a model that is trained can be cut, or why it cannot."""
    cut = cut_below(model)
    return cut if isinstance(cut, str) else _varies(model, cut) or cut


def cut_below(model: nn.Module) -> Cut | str:
    """The blocks that lie below everything that is edited or trained, or why there are none."""
    sites = find(model)
    if sites.unknown or not sites.stacks:
        return "nothing is known of this model's blocks"
    stack = sites.main[0]
    if stack.shared:
        return "its blocks share one module"
    r = registry(model)
    edits = [e for a in r.staying.values() for e in a.plan.edits] if r is not None else []
    found = [(stack.depth, ""), *below_edits(edits, stack, sites), *below_modules(_trained(model), stack, sites)]
    lowest, why = min(found, key=lambda f: f[0])
    if lowest < 1:
        return f"{why}, and no block lies below" if why else "the model has no block"
    return Cut(stack, lowest, sites.prefix)


def _trained(model: nn.Module) -> list[str]:
    """The modules of the base whose parameters are trained, or copies of them; a copy of a head is above all."""
    own = [
        path
        for path, m in base_modules(model)
        if any(p is not None and p.requires_grad for p in m._parameters.values())
    ]
    r = registry(model)
    for a in r.staying.values() if r is not None else ():
        own += [c.parameter.path.rpartition(".")[0] for c in a.plan.copies if not c.head]
    return own


def _varies(model: nn.Module, cut: Cut) -> str:
    """Why a text would not have the same states each time while the model trains; nothing where it has.

    Whatever drops in the base model counts that is not in a later block: what stands between its tokens and its blocks is
    known by no name.
    """
    for path, m in base_modules(model):
        if cut.above(path):
            continue
        rates = [m.p] if isinstance(m, nn.modules.dropout._DropoutNd) else [
            v for n, v in vars(m).items() if isinstance(v, float) and any(word in n for word in ("drop", "jitter", "noise"))
        ]  # fmt: skip
        if any(rate > 0 for rate in rates):
            return f"`{path}` drops at random while the model trains"
    training = next((path for path, m in _norms_of_batches(model, cut).items() if m.training), None)
    return _over_batches(training) if training is not None else ""


def _norms_of_batches(model: nn.Module, cut: Cut) -> dict[str, nn.Module]:
    """The norms in the trunk that take the mean of a batch in train mode. In evaluation mode they do as the others."""
    kinds = nn.modules.batchnorm._BatchNorm
    return {p: m for p, m in base_modules(model) if isinstance(m, kinds) and not cut.above(p)}


def _over_batches(path: str) -> str:
    return f"`{path}` norms over the batch in train mode: keep it in evaluation mode, as `unipelt train` and `for_trainer` do"


def _model_key(model: nn.Module, cut: Cut) -> str:
    """What the hidden states are computed by: the frozen weights of the base without its later blocks, their dtype, this version."""
    found = hashlib.sha256(
        f"{__version__} {torch.__version__} {type(model).__name__} {cut.stack.name} {cut.blocks}".encode()
    )
    config = getattr(model, "config", None)
    found.update(repr(getattr(config, "_attn_implementation", "")).encode())
    for path, module in base_modules(model):
        if cut.above(path):
            continue
        for n, p in sorted({**module._parameters, **module._buffers}.items()):
            if p is not None and not p.requires_grad and p.device.type != "meta":
                found.update(f"{path}.{n} {p.dtype} {list(p.shape)} ".encode())
                found.update(p.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@contextmanager
def cached(model: nn.Module, how: str, say: Callable[[str], None]) -> Iterator[None]:
    """``--cache-trunk``: off; auto, where it can be; or a folder, which must work. ``say`` is told what comes of it."""
    if how == "off":
        yield
        return
    try:
        trunk = cache_trunk(model, None if how == "auto" else how)
    except PeltError as e:
        if how != "auto":
            raise
        say(e.diagnostics[0].message)
        yield
        return
    with trunk:
        say(f"{trunk.cut} for each example, and {'are' if trunk.blocks > 1 else 'is'} read later")
        yield
