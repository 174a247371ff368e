"""Attention that a module computes past transformers' interface: by torch's function, or as a softmax of products written out.

Both are recognised while the module runs, by what is done with its tensors: no name of a module or a model is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count
from math import prod
from typing import Any
from weakref import ref

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .packed import looked_into

#: How a module computes its attention, besides by a function of transformers' interface (``""``): by torch's function, written
#: out, and written out with a bias that each head has for each key, whatever the query is (ALiBi, Press et al. 2022).
SDPA, SOFTMAX, DISTANCES = "sdpa", "softmax", "distances"
#: What yields the numbers it is given, one by one or in another shape: scores stay scores there.
_EACH = frozenset(
    "to float half bfloat16 double type type_as contiguous clone view view_as reshape reshape_as flatten unflatten unsqueeze squeeze dropout dropout_ "
    "alpha_dropout masked_fill masked_fill_ clamp clamp_ clamp_min clamp_min_ maximum max minimum nan_to_num tanh tanh_".split()
)
_SUMS = frozenset("add add_ __add__ __iadd__ __radd__ sub sub_ subtract __sub__ __isub__".split())
_TIMES = frozenset("mul mul_ multiply __mul__ __rmul__ __imul__".split())
_OVER = frozenset("div div_ divide true_divide __truediv__ __itruediv__".split())
_MOVES = frozenset(
    "transpose swapaxes permute view flatten unflatten reshape contiguous to float expand t clone".split()
)
_PRODUCTS = frozenset("matmul __matmul__ bmm".split())


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """The scores of queries [batch and heads, tokens, d] for keys, or the weights made of them (``soft``).

    A score is ``scale · q · k`` with something added to it; ``shift`` [batch and heads, tokens, 1] is what was added to all
    scores of a query, which changes no weight. ``mass`` is log Σ exp(score − shift) over the keys that a query sees.
    """

    q: torch.Tensor
    k: torch.Tensor
    scale: float
    made: int
    place: Any
    soft: bool = False
    summed: bool = False  # whether anything was added yet: distances are added first
    distances: bool = False
    shift: torch.Tensor | None = None
    mass: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Core:
    """An attention that was written out: ``out = weights · v``, all [batch and heads, tokens or keys, d]; ``places`` are where
    its scores and its output were computed (see `OwnAttention.place`)."""

    scores: Scores
    v: torch.Tensor
    out: torch.Tensor
    places: tuple[Any, Any]


def parted(t: torch.Tensor, heads: int) -> torch.Tensor | None:
    """[batch, heads, tokens, d] of what has batch and heads in front, in one dimension or several; None where it has not."""
    return t.reshape(-1, heads, *t.shape[-2:]) if divides(t.shape, heads) else None


def divides(shape: Sequence[int], heads: int) -> bool:
    """Whether the dimensions in front of the last two are batch and so many heads. As many windows beside them may be either."""
    lead = shape[:-2]
    fits = (i for i in range(len(lead)) if prod(lead[i:]) == heads and heads not in lead[1:i])
    return len(lead) == 1 and lead[0] % heads == 0 or next(fits, None) is not None


class OwnAttention(TorchFunctionMode):
    """Sees torch's functions as this thread calls them, and tells of those that are attention. What it sees stays as it is,
    unless a subclass puts something else in its place."""

    wants_mass = False
    #: Whether what is added for each head and key stands for distances; None where that is to be found out.
    distances: bool | None = None

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, tuple[ref, Scores]] = {}
        #: By what a tensor was multiplied, where that is one number.
        self.factors: dict[int, tuple[ref, float]] = {}
        self.number = count()

    def attends(self, function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        """What stands for a call of `torch.nn.functional.scaled_dot_product_attention`."""
        return function(*args, **kwargs)

    def yields(self, core: Core) -> torch.Tensor | None:
        """What stands for the output of an attention that is written out, in its shape; None where it stays as it is."""
        return None

    def place(self) -> Any:
        """Where the pass is now."""
        return None

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            return self.attends(func, args, kwargs)
        if name == "multi_head_attention_forward":
            with self:
                return looked_into(func)(*args, **kwargs)
        if name in _PRODUCTS:
            a, b = (*args, *(kwargs[n] for n in ("input", "other", "mat2") if n in kwargs))[:2]
            return self._product(lambda: func(*args, **kwargs), a, b)
        if name in ("baddbmm", "baddbmm_"):
            a, b = (*args[1:3], *(kwargs[n] for n in ("batch1", "batch2") if n in kwargs))[:2]
            more = args[0] if args else kwargs.get("input")
            return self._product(lambda: func(*args, **kwargs), a, b, float(kwargs.get("alpha", 1.0)), more)
        if name == "einsum":
            return self._einsum(func, args, kwargs)
        if name == "softmax":
            return self._softmax(func, args, kwargs)
        out = func(*args, **kwargs)
        if name == "where" and len(args) == 3:
            self._each(out, [a for a in args[1:] if self.scores(a) is not None][:1])
        elif name in _SUMS:
            self._sum(out, name, args)
        elif name in _TIMES or name in _OVER:
            self._times(out, name in _OVER, args)
        elif name in _EACH:
            self._each(out, args[:1], name)
        elif name.endswith("_") and not name.endswith("__") and args:
            self._mark(args[0], None)  # other numbers are in it now
        if name in _MOVES and args and (f := self._factor(args[0])) != 1.0:
            self._multiplied(out, f)
        return out

    # ------------------------------------------------------------ what is known of tensors

    def scores(self, t: Any) -> Scores | None:
        found = self.known.get(id(t))
        return found[1] if found is not None and found[0]() is t else None

    def _mark(self, t: Any, s: Scores | None) -> None:
        if s is None:
            self.known.pop(id(t), None)
        elif isinstance(t, torch.Tensor):
            self.known[id(t)] = ref(t), s

    def _factor(self, t: Any) -> float:
        found = self.factors.get(id(t))
        return found[1] if found is not None and found[0]() is t else 1.0

    def _multiplied(self, t: Any, f: float) -> None:
        if isinstance(t, torch.Tensor):
            self.factors[id(t)] = ref(t), f

    # ------------------------------------------------------------ scores

    def _each(self, out: Any, given: Sequence[Any], name: str = "") -> None:
        """What a tensor's numbers became one by one has its scores, where they are as many in rows as long."""
        s = self.scores(given[0]) if given else None
        if s is not None:
            t = given[0]
            alike = isinstance(out, torch.Tensor) and out.shape[-2:] == t.shape[-2:] and out.numel() == t.numel()
            if alike and s.shift is not None:
                s = replace(s, shift=s.shift.reshape(*out.shape[:-1], 1))
                alike = not name.startswith("tanh")
            self._mark(out, s if alike else None)

    def _sum(self, out: Any, name: str, args: tuple) -> None:
        """A sum of scores with something: of two scores the first, whose sum all others enter."""
        found = [(s.made, i, s) for i, a in enumerate(args[:2]) if (s := self.scores(a)) is not None]
        if not found or len(args) < 2:
            return
        _, i, s = min(found, key=lambda f: f[:2])
        t, other = args[i], args[1 - i]
        alike = isinstance(out, torch.Tensor) and out.shape[-2:] == t.shape[-2:] and out.numel() == t.numel()
        if not alike or s.soft or ("sub" in name and i == 1):
            self._mark(out, None)
            return
        if not isinstance(other, torch.Tensor):
            other = torch.full((1,), float(other), device=t.device)
        every = (
            other.dim() == 0 or other.shape[-1] == 1 != t.shape[-1]
        )  # the scores of learned rows are not moved with them
        moved = other[..., None] if other.dim() == 0 else other if every else None
        if moved is None and not s.summed:
            moved = self._own_key(other, out.shape)
        s = replace(s, summed=s.summed or not every)
        self._mark(out, s if moved is None else _moved(s, -moved if "sub" in name else moved, out.shape, not every))

    def _own_key(self, bias: Any, shape: Sequence[int]) -> torch.Tensor | None:
        """Of a bias of each head for each key what it is at a query's own place, [batch and heads or 1, tokens, 1].

        The softmax takes it as distances from there, whatever is added for all keys, and so learned rows are at no distance.
        """
        if not isinstance(bias, torch.Tensor) or not bias.is_floating_point() or self.distances is False:
            return None
        (n, m), given = shape[-2:], bias.shape
        if len(given) < 3 or given[-1] != m or given[-2] != 1 or n > m:
            return None
        if self.distances is None and (given[-3] == 1 or n == 1):
            return None
        return bias[..., 0, m - n :].unsqueeze(-1)

    def _times(self, out: Any, over: bool, args: tuple) -> None:
        if len(args) < 2 or not isinstance(out, torch.Tensor):
            return
        t, other = args[:2]
        if self.scores(t) is None and not over:
            t, other = other, t
        s = self.scores(t)
        number = _number(other)
        f = 1.0 if number is None else 1 / number if over else number
        if s is None:
            if number is not None and isinstance(t, torch.Tensor):
                self._multiplied(out, self._factor(t) * f)
            return
        if s.soft:  # a mask of heads, or dropout
            self._mark(out, s if number is None and out.shape == t.shape else None)
        elif number is not None:
            shift = None if s.shift is None else s.shift * f
            self._mark(out, replace(s, scale=s.scale * f, shift=shift) if out.shape == t.shape else None)
        elif not isinstance(other, torch.Tensor):
            self._mark(out, None)
        elif other.dim() and other.shape[-1] == t.shape[-1] > 1 and out.shape == t.shape:  # a mask of keys
            self._mark(out, s)
        elif out.shape == t.shape and s.q.shape[:-1] == t.shape[:-1] and s.shift is None:  # a factor for each query
            self._mark(out, replace(s, q=s.q / other if over else s.q * other))
        else:
            self._mark(out, None)

    def _softmax(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        out = func(*args, **kwargs)
        t = args[0] if args else kwargs.get("input")
        s = self.scores(t)
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if s is not None and not s.soft and t is not None and dim in (-1, t.dim() - 1):
            mass = torch.logsumexp(t.to(out.dtype), -1) if self.wants_mass else None
            mass = mass if mass is None or s.shift is None else mass - s.shift.squeeze(-1)
            self._mark(out, replace(s, soft=True, mass=mass))
        return out

    # ------------------------------------------------------------ products

    def _product(
        self, run: Callable[[], torch.Tensor], a: Any, b: Any, alpha: float = 1.0, added: torch.Tensor | None = None
    ) -> Any:
        s = self.scores(a)
        if s is not None and s.soft:
            place = self.place()
            out = run()
            new = self.yields(Core(s, b, out, (s.place, place)))
            return out if new is None else new
        place = self.place()
        out = run()
        if _activations(a, b) and out.shape[:-2] == a.shape[:-2]:
            made = self._new(a, b.transpose(-1, -2), alpha * self._factor(b), place)
            made = replace(made, summed=added is not None)
            moved = self._own_key(added, out.shape)
            self._mark(out, made if moved is None else _moved(made, moved, out.shape, True))
        return out

    def _new(self, q: torch.Tensor, k: torch.Tensor, scale: float, place: Any) -> Scores:
        return Scores(q, k, scale, next(self.number), place)

    def _einsum(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        """A product of two tensors by the letters of their dimensions."""
        given = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
        letters = args[0].replace(" ", "") if isinstance(args[0], str) else ""
        ins, _, to = letters.partition("->")
        names = ins.split(",")
        place = self.place()
        out = func(*args, **kwargs)
        if len(given) != 2 or len(names) != 2 or "." in letters or not to:
            return out
        (a, b), (at, bt) = given, names
        s = self.scores(a)
        one = [c for c in at if c in bt and c not in to]
        lead = [c for c in at if c in bt and c in to]
        mine, others = ([c for c in x if c in to and c not in y] for x, y in ((at, bt), (bt, at)))
        if len(one) != 1 or len(mine) != 1 or len(others) != 1:
            return out
        if s is not None and s.soft:
            order = [to.index(c) for c in (*lead, mine[0], others[0])]
            v = b.permute([bt.index(c) for c in (*lead, one[0], others[0])])
            new = self.yields(Core(s, v, out.permute(order), (s.place, place)))
            return out if new is None else new.permute([order.index(i) for i in range(len(order))])
        if to[-2:] == others[0] + mine[0]:  # keys came first
            a, b, at, bt, mine, others = b, a, bt, at, others, mine
        if to == "".join((*(c for c in to if c in lead), mine[0], others[0])) and _activations(a, b):
            lead = [c for c in to if c in lead]
            q = a.permute([at.index(c) for c in (*lead, mine[0], one[0])])
            k = b.permute([bt.index(c) for c in (*lead, others[0], one[0])])
            self._mark(out, self._new(q, k, self._factor(b), place))
        return out


def _moved(s: Scores, by: torch.Tensor, shape: Sequence[int], distances: bool) -> Scores:
    """Scores of a shape to which something was added that is the same for all keys of a query."""
    by = by.expand(*shape[:-1], 1)
    return replace(s, shift=by if s.shift is None else s.shift + by, distances=s.distances or distances)


def _activations(a: Any, b: Any) -> bool:
    """Whether both sides of a product are what a module was given or made, with batch and heads in front."""
    return all(
        isinstance(t, torch.Tensor) and not isinstance(t, nn.Parameter) and t.dim() > 2 and t.is_floating_point()
        for t in (a, b)
    )


def _number(other: Any) -> float | None:
    """The number that a factor is; None where it is a tensor of several. On meta tensors have none that is known."""
    if isinstance(other, torch.Tensor):
        if other.dim():
            return None
        return float("nan") if other.is_meta else float(other.detach())
    return float(other) if isinstance(other, (int, float)) and other else None
