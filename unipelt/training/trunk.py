"""Frozen trunks, computed once: blocks below every edit give the same hidden states for a text in each epoch.

The states behind the last of these blocks are kept for each example, and the blocks are passed over while they are there: later
epochs compute only what is above. Probing, top layers and deep variants train many times faster so; the results are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import __version__
from ..anatomy.base import NAME, base_modules
from ..anatomy.find import find
from ..anatomy.sites import Stack
from ..language.report.diagnostics import error
from ..runtime.registry import registry, unwrapped
from ..runtime.stand_in import StandIn
from .kept_rows import KeptRows

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

    def __init__(self, model: nn.Module, stack: Stack, blocks: int, rows: KeptRows, first: str):
        self.model, self.stack, self.blocks, self.rows = model, stack, blocks, rows
        self.hits = self.misses = 0
        self.keys: list[bytes] = []
        self.lengths: list[int] = []
        self.given: torch.Tensor | None = None  # what the last block is to yield in this pass
        self.single: bool | None = None  # whether a block yields one tensor
        paths = [f"{first}.{b}" if first else b for b in stack.blocks[:blocks]]
        self.stand_ins = [Block(self, model.get_submodule(p), i == blocks - 1) for i, p in enumerate(paths)]
        self.handles = [
            model.register_forward_pre_hook(self._enter, with_kwargs=True),
            model.register_forward_hook(self._leave, always_call=True),
        ]
        for s in self.stand_ins:
            s.put()

    def __repr__(self) -> str:
        return (
            f"<trunk: blocks 0–{self.blocks - 1} run once, {self.hits} examples from the cache, {self.misses} computed>"
        )

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
        self.stand_ins, self.handles = [], []

    # ------------------------------------------------------------ a pass

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.keys, self.given = [], None
        found = _keys(args, kwargs, self.stack.causal, getattr(module, "config", None))
        if found is None or torch.compiler.is_compiling():
            return
        self.keys, self.lengths = found
        if self.single is None:  # the first pass shows what a block yields
            return
        rows = [self.rows.get(k) for k in self.keys]
        if any(r is None for r in rows):
            return
        p = next(self.stand_ins[-1].block.parameters())
        width = kwargs["input_ids"].shape[1] if "input_ids" in kwargs else max(len(r) for r in rows if r is not None)
        self.given = torch.stack([_padded(r, width) for r in rows if r is not None]).to(p.device)
        self.hits += len(rows)

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


def _like(hidden: torch.Tensor, entered: torch.Tensor) -> torch.Tensor:
    """Hidden states that ask for a gradient where those that entered do: checkpoints with ``use_reentrant=True`` need it."""
    return hidden.detach().requires_grad_() if entered.requires_grad else hidden


def _keys(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], causal: bool, config: Any
) -> tuple[list[bytes], list[int]] | None:
    """A key for each example of a pass, and how many of its positions are kept (-1: all); None where the pass is to run as it is."""
    wanted = ("output_hidden_states", "output_attentions")
    asked = any(kwargs.get(n) if kwargs.get(n) is not None else getattr(config, n, False) for n in wanted)
    if args or asked or kwargs.get("past_key_values") is not None:
        return None
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
    found = below(model)
    if isinstance(found, str):
        raise error("E0783", f"no block runs once: {found}", help="train without the cache")
    stack, blocks, first = found
    dropped = _random(model, stack, blocks, first)
    if dropped:
        raise error("E0783", f"no block runs once: `{dropped}` drops at random while the model trains",
                    help="set the base's dropout to 0 (`--dropout 0`, or in its configuration)")  # fmt: skip
    key = _model_key(model, stack, blocks, first)
    path = Path(folder) / _FILE.format(key[:16]) if folder is not None else None
    return Trunk(model, stack, blocks, KeptRows(path, key, most), first)


def below(model: nn.Module) -> tuple[Stack, int, str] | str:
    """The stack, how many of its blocks lie below every edit and every trained tensor, and the base's path; or why there are none."""
    sites = find(model)
    if sites.unknown or not sites.stacks:
        return "nothing is known of this model's blocks"
    stack = sites.main[0]
    if stack.shared:
        return "its blocks share one module"
    lowest, why = stack.depth, ""
    r = registry(model)
    for a in r.staying.values() if r is not None else ():
        for e in a.plan.edits:
            s = e.site
            at = s.layer if s.layer is not None and s.stack == stack.name else None
            if at is None and s.layer is None:
                at = 0 if s.kind.side == "prompt" or s.kind.times in ("input", "stacks") and s.name != "final" else None
            if at is not None and at < lowest:
                lowest, why = at, f"`{s.label}` is edited"
    blocks = {f"{sites.prefix}.{b}" if sites.prefix else b: i for i, b in enumerate(stack.blocks)}
    above = {*sites.head, *(s.view.module for s in sites.sites if s.name == "final")}
    for path in _trained(model):
        block = next((i for b, i in blocks.items() if path == b or path.startswith(f"{b}.")), None)
        over = any(path == h or path.startswith(f"{h}.") for h in above) or ".pooler." in f".{path}."
        at = block if block is not None else stack.depth if over else 0
        if at < lowest:
            lowest, why = at, f"`{path}` is trained"
    if lowest < 1:
        return f"{why or 'the model has no block'}, in front of the first block" if why else "the model has no block"
    return stack, lowest, sites.prefix


def _trained(model: nn.Module) -> Iterator[str]:
    """The modules that hold trained parameters, an adapter's copies by the module that they are copies of."""
    for path, module in base_modules(model):
        if any(p is not None and p.requires_grad for p in module._parameters.values()):
            yield path
    r = registry(model)
    for a in r.staying.values() if r is not None else ():
        yield from (c.parameter.path.rpartition(".")[0] for c in a.plan.copies)


def _random(model: nn.Module, stack: Stack, blocks: int, first: str) -> str:
    """A module of the trunk, or in front of it, that drops at random while the model trains."""
    after = [f"{first}.{b}" if first else b for b in stack.blocks[blocks:]]
    inside = [f"{first}.{b}" if first else b for b in stack.blocks[:blocks]]
    for path, m in base_modules(model):
        if any(path == b or path.startswith(f"{b}.") for b in after):
            continue
        in_block = any(path.startswith(f"{b}.") or path == b for b in inside)
        in_front = not in_block and "embed" in path
        rates = (
            [m.p]
            if isinstance(m, nn.Dropout)
            else [v for n, v in vars(m).items() if "drop" in n and isinstance(v, float)]
        )
        if (in_block or in_front) and any(rate > 0 for rate in rates):
            return path
    return ""


def _model_key(model: nn.Module, stack: Stack, blocks: int, first: str) -> str:
    """What the hidden states are computed by: the frozen weights in front of and in the trunk, their dtype, this version."""
    after = [f"{first}.{b}." if first else f"{b}." for b in stack.blocks[blocks:]]
    found = hashlib.sha256(f"{__version__} {torch.__version__} {type(model).__name__} {stack.name} {blocks}".encode())
    config = getattr(model, "config", None)
    found.update(repr(getattr(config, "_attn_implementation", "")).encode())
    for path, module in base_modules(model):
        for n, p in sorted({**module._parameters, **module._buffers}.items()):
            whole = f"{path}.{n}"
            if p is not None and not any(whole.startswith(b) for b in after) and NAME not in whole.split("."):
                if not p.requires_grad and p.device.type != "meta":
                    found.update(f"{whole} {p.dtype} {list(p.shape)} ".encode())
                    found.update(p.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@contextmanager
def cached(model: nn.Module, how: str) -> Iterator[Trunk | None]:
    """``--cache-trunk``: off; auto, where it can be; or a folder, which must work."""
    if how == "off":
        yield None
        return
    if how == "auto" and isinstance(below(model), str):
        yield None
        return
    with cache_trunk(model, None if how == "auto" else how) as trunk:
        yield trunk
