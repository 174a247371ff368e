"""Records one pass of a model: every tensor operation, every call of a module, and what attention functions are given.

What the finder of sites reads. Tensors are told apart by identity; all are kept until the recording is dropped. It works on
the meta device as well: a branch on a number that is not there is answered with yes (or with no), and a number with one.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from .axes import axes
from .base import base_modules, base_parameters
from .brought import are_brought
from .calls import experts_together, interface_watched
from .evaluating import evaluating
from .interrupts import ended_by
from .own_attention import DISTANCES, SDPA, SOFTMAX, Core, OwnAttention
from .passed import first_left, first_tensor
from .sizes import weight_shape

#: A tensor's identity: its own, and how often it was written in place before.
Key = int
#: Operations that yield the numbers they are given, in the same order, perhaps in another shape or type.
SAME = frozenset("view _unsafe_view clone _to_copy native_dropout reshape alias detach lift_fresh contiguous".split())
#: Operations by which a weight stays that weight: views of it, and copies.
_OF_WEIGHT = SAME | frozenset(
    "t transpose expand permute unsqueeze squeeze select slice split split_with_sizes chunk unbind".split()
)
#: Operations by which a weight that is scaled by itself and by other parameters stays that weight (standardised, or as a length and a direction).
_SCALES = frozenset(
    "native_batch_norm _weight_norm_interface sub mul div mean var var_mean std sqrt rsqrt norm linalg_vector_norm".split()
)
#: Types of what operations are given that holds no tensors.
_NO_TENSORS = frozenset(
    [type(None), bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format]
)
#: Operations that contract what they are given with a weight.
CONTRACTS = frozenset("mm addmm bmm baddbmm linear convolution _grouped_mm grouped_mm_fallback".split())
#: Operations whose first operand that is a matrix stands on the left of the product, and where that operand is.
LEFT = {"mm": 0, "bmm": 0, "_grouped_mm": 0, "grouped_mm_fallback": 0, "addmm": 1, "baddbmm": 1}


def of_weight(op: str, dimensions: int) -> bool:
    """Whether an operation yields the weight that it is given, or matrices of one that has many."""
    return op in _OF_WEIGHT or (op == "index" and dimensions > 2)


@dataclass(slots=True)
class Step:
    """One operation. ``weight`` is the path of the parameter it contracts with, ``module`` of the module that ran it.

    A linear map's call is one step (``projection``: ``weight`` is then the module's path), and so is that of an attention
    function of transformers' interface (``attention``: ``ins`` are query, key and value).
    """

    op: str
    ins: list[Key]
    outs: list[Key]
    module: str
    at: int
    function: Any = None
    args: tuple = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    weight: str = ""


@dataclass(slots=True, eq=False)
class Call:
    """One call of a module: its first tensor, all that entered, the first that left, and the steps between (``stop`` not included)."""

    path: str
    module: nn.Module
    start: int
    first: Key | None
    entered: list[Key]
    left: Key | None = None
    stop: int = 0
    order: int = 0  # in which it was left, among all calls
    number: int = 0  # among all calls, as they were entered
    outer: tuple[str, ...] = ()  # the paths of the modules that were running, outermost first
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None  # of the first tensor that entered and that left


@dataclass(slots=True)
class Attended:
    """An attention that a module computes past transformers' interface, by torch's function or written out (``how``): the steps
    by which its output was made, the shapes of queries and output, and the innermost call of a module that holds it all."""

    how: str
    start: int
    stop: int
    q: tuple[int, ...]
    out: tuple[int, ...]
    within: Call | None


@dataclass(slots=True)
class Recording:
    """What one pass did, in order. ``parameters`` and ``shapes`` are by key."""

    steps: list[Step] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    shapes: dict[Key, tuple[int, ...]] = field(default_factory=dict)
    floating: set[Key] = field(default_factory=set)
    parameters: dict[Key, str] = field(default_factory=dict)
    #: Attention modules that ask transformers' interface: path → whether later tokens are hidden, as they say.
    asking: dict[str, bool] = field(default_factory=dict)
    made_by: dict[Key, Step] = field(default_factory=dict)
    inputs: set[Key] = field(default_factory=set)
    kept: list[Any] = field(default_factory=list)
    times: Counter[str] = field(default_factory=Counter)  # how often a module is called, by path
    attended: list[Attended] = field(default_factory=list)
    #: The dimension of each token's numbers, of values in which it is not the last one (see `axes`).
    axes: dict[Key, int] = field(default_factory=dict)
    #: Parameters by their first path → who read them: the innermost module that ran and holds it, else the innermost one.
    readers: dict[str, set[str]] = field(default_factory=dict)

    def of(self, path: str) -> list[Call]:
        """The calls of a module, in order."""
        return [c for c in self.calls if c.path == path]

    def width(self, key: Key) -> int:
        """How many numbers a value has for each token."""
        return self.shapes[key][self.axes.get(key, -1)]

    def positions(self, key: Key) -> int:
        """How many tokens a value has, those of all examples."""
        return prod(self.shapes[key]) // max(1, self.width(key))

    def norms(self, call: Call) -> bool:
        """Whether a call is that of a norm: it computes, and projects nothing."""
        steps = self.steps[call.start : call.stop]
        bare = bool(steps) and not any(s.weight for s in steps)
        return bare and any("norm" in s.op or s.op in ("rsqrt", "mean", "var_mean") for s in steps)

    def origin(self, key: Key) -> Key:
        """The value that a copy or a view in another shape was made of."""
        step = self.made_by.get(key)
        while step is not None and step.op in SAME and step.ins:
            key = step.ins[0]
            step = self.made_by.get(key)
        return key


def record(model: nn.Module, run: Callable[[], Any]) -> Recording:
    """The recording of one pass in evaluation mode, without gradients. Nothing of it stays in the model.

    Where the pass fails on the meta device, with every branch taken that a number decides, another is tried that takes none.
    """
    try:
        return _recorded(_Mode(model), run)
    except Exception:
        if not any(p.is_meta for p in model.parameters()):
            raise
        return _recorded(_Mode(model, answer=False), run)


def _recorded(mode: _Mode, run: Callable[[], Any]) -> Recording:
    model = mode.model
    grouped = experts_together() if any(p.is_meta for p in model.parameters()) else nullcontext()
    with evaluating(model), _fast_paths_off(), grouped, mode.hooks(), mode.attention(), _Lists(), _Own(mode), mode:
        run()
    return mode.finished()


@contextmanager
def _fast_paths_off() -> Iterator[None]:
    """torch's fused encoder layers call none of their modules."""
    before = torch.backends.mha.get_fastpath_enabled()
    with ended_by(lambda: torch.backends.mha.set_fastpath_enabled(before)):
        torch.backends.mha.set_fastpath_enabled(False)
        yield


def _tensors(x: Any) -> list[torch.Tensor]:
    """The tensors in what an operation or a module is given, in order. (Plain containers are walked here: it takes a third of
    the time that torch's own walk does, which knows the others.)"""
    if isinstance(x, torch.Tensor):
        return [x]
    kind = type(x)
    if kind in _NO_TENSORS:
        return []
    if kind is tuple or kind is list:
        return [t for v in x for t in _tensors(v)]
    if kind is dict:
        return [t for v in x.values() for t in _tensors(v)]
    leaves = tree_flatten(x)[0]
    return [t for t in leaves if isinstance(t, torch.Tensor)]


class _Lists(TorchFunctionMode):
    """Lists of numbers by which a tensor on meta is indexed become tensors that have numbers: on meta they would have none."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__getitem__ and args[0].is_meta:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            known = tuple(torch.tensor(i, device="cpu") if isinstance(i, list) and i else i for i in index)
            return func(args[0], known if isinstance(args[1], tuple) else known[0])
        return func(*args, **(kwargs or {}))


class _Own(OwnAttention):
    """Notes attention that modules compute past transformers' interface."""

    def __init__(self, mode: _Mode):
        super().__init__()
        self.mode = mode

    def place(self) -> tuple[int, list[Call]]:
        return len(self.mode.r.steps), [*self.mode.stack]

    def attends(self, function: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
        place = self.place()
        out = function(*args, **kwargs)
        q = args[0] if args else kwargs.get("query")
        if isinstance(q, torch.Tensor):
            self.note(SDPA, place, place, q, out)
        return out

    def yields(self, core: Core) -> None:
        self.note(DISTANCES if core.scores.distances else SOFTMAX, *core.places, core.scores.q, core.out)

    def note(self, how: str, first: Any, last: Any, q: torch.Tensor, out: torch.Tensor) -> None:
        held = [a for a, b in zip(first[1], last[1]) if a is b]
        stop = len(self.mode.r.steps)
        found = Attended(how, last[0], stop, tuple(q.shape), tuple(out.shape), held[-1] if held else None)
        self.mode.r.attended.append(found)


class _Mode(TorchDispatchMode):
    def __init__(self, model: nn.Module, answer: bool = True):
        super().__init__()
        self.model, self.answer = model, answer
        self.r = Recording()
        self.versions: Counter[int] = Counter()
        self.stack: list[Call] = []
        self.left = 0  # calls that were left
        self.paths: dict[nn.Module, str] = {}
        for n, m in base_modules(model):
            self.paths.setdefault(m, n)
        self.parts: list[tuple[int, int, Step]] = []  # steps that stand for those from … to
        for n, p in [*((n, b) for n, b in model.named_buffers()), *base_parameters(model)]:
            self.r.parameters[self.key(p)] = n
        self.of_weight = dict(self.r.parameters)
        self.first: dict[Key, str] = {}
        self.holders: dict[str, set[str]] = {}
        for n, p in base_parameters(model):
            self.holders.setdefault(self.first.setdefault(self.key(p), n), set()).add(n.rpartition(".")[0])
        #: What accelerate brings: by each path of a parameter, its first. The tensor that stands there now is put away meanwhile.
        self.brought: dict[str, str] = {}
        if are_brought(model):
            self.brought = {n: self.first[self.key(p)] for n, p in base_parameters(model)}
            self.r.kept.append([p for _, p in base_parameters(model)])

    def key(self, t: torch.Tensor) -> Key:
        return id(t) << 10 | self.versions[id(t)]

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        if name == "_local_scalar_dense" and args[0].is_meta:
            return self.answer if args[0].dtype == torch.bool else 1.0 if args[0].is_floating_point() else 1
        if name == "nonzero" and args[0].is_meta:
            out = torch.zeros(args[0].numel(), args[0].dim(), dtype=torch.long, device="meta")
        elif name == "_grouped_mm" and args[0].is_meta:  # whose form for meta tensors takes one type of numbers only
            out = args[0].new_empty(*args[0].shape[:-1], args[1].shape[-1])
        else:
            out = func(*args, **kwargs)
        given, made = _tensors((args, kwargs)), _tensors(out)
        if name == "constant_pad_nd" and made[0].shape == given[0].shape:  # by nothing
            name = "clone"
        self.keep(given)
        if self.brought:
            self.know_brought()
        ins = [self.key(t) for t in given]
        for read in {self.first[i] for i in ins if i in self.first}:
            self.read(read)
        written = [t for t in made if any(t is u for u in given)]
        for t in written:
            self.versions[id(t)] += 1
            if t._base is not None:  # what is written into a part is in the whole
                self.keep([t._base])
                ins.append(self.key(t._base))
                self.versions[id(t._base)] += 1
                made.append(t._base)
        self.keep(made)
        step = Step(
            name,
            ins,
            [self.key(t) for t in made],
            self.stack[-1].path if self.stack else "",
            len(self.r.steps),
            func,
            args,
            kwargs,
        )
        r = self.r
        if (
            ins
            and ins[0] in self.of_weight
            and (
                of_weight(name, len(self.r.shapes[ins[0]]))
                or (name in _SCALES and all(i in self.of_weight for i in ins))
            )
        ):
            self.of_weight.update((o, self.of_weight[ins[0]]) for o in step.outs)
        elif name in CONTRACTS:
            weights = [i for i in ins if i in self.of_weight]
            whole = [self.of_weight[i] for i in weights if len(self.r.shapes.get(i, (1, 1))) > 1]  # not a bias
            step.weight = whole[-1] if whole and len(weights) < len(ins) else ""
        r.steps.append(step)
        return out

    def know_brought(self) -> None:
        """Names the parameters that accelerate has brought to the modules that run: they are other tensors than those before the pass."""
        for call in self.stack:
            for n, p in call.module._parameters.items():
                path = f"{call.path}.{n}" if call.path else n
                if p is not None and path in self.brought and (key := self.key(p)) not in self.of_weight:
                    self.r.kept.append(p)
                    self.of_weight[key], self.first[key] = path, self.brought[path]

    def read(self, parameter: str) -> None:
        running = [c.path for c in reversed(self.stack)] or [""]
        reader = next((p for p in running if p in self.holders[parameter]), running[0])
        self.r.readers.setdefault(parameter, set()).add(reader)

    def keep(self, tensors: list[torch.Tensor]) -> None:
        self.r.kept.append(tensors)
        for t in tensors:
            k = self.key(t)
            self.r.shapes[k] = tuple(t.shape)
            if t.is_floating_point():
                self.r.floating.add(k)

    # ------------------------------------------------------------ modules

    @contextmanager
    def hooks(self) -> Iterator[None]:
        handles: list[Any] = []
        with ended_by(lambda: [h.remove() for h in handles]):
            for m in self.paths:
                handles.append(m.register_forward_pre_hook(self.enter, with_kwargs=True))
                handles.append(m.register_forward_hook(self.leave, with_kwargs=True))
            yield

    def enter(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        first, entered = first_tensor(args, kwargs), _tensors((args, kwargs))
        self.keep(entered)
        call = Call(
            self.paths[module],
            module,
            len(self.r.steps),
            None if first is None else self.key(first),
            [self.key(t) for t in entered],
        )
        call.outer = tuple(c.path for c in self.stack)
        call.number = len(self.r.calls)
        if not self.stack:
            self.r.inputs.update(call.entered)
        self.stack.append(call)
        self.r.calls.append(call)

    def leave(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        call = self.stack.pop()
        left = first_left(output)
        call.stop, call.order = len(self.r.steps), self.left
        self.left += 1
        if left is not None:
            self.keep([left])
            call.left = self.key(left)
        if call.first is not None and call.left is not None:
            call.shapes = self.r.shapes[call.first], self.r.shapes[call.left]
        if call.shapes is not None and self.linear(call, left, isinstance(output, torch.Tensor)):
            ins, outs = [k for k in (call.first,) if k is not None], [k for k in (call.left,) if k is not None]
            step = Step("projection", ins, outs, call.path, call.start, weight=call.path)
            self.parts.append((call.start, call.stop, step))

    def linear(self, call: Call, left: torch.Tensor | None, whole: bool) -> bool:
        """Whether a call is that of a linear map: the module has one weight, and does nothing but contract with it."""
        shape = weight_shape(call.module)
        entered = self.r.shapes[call.first] if call.first is not None else ()
        module: Any = call.module
        axis = -1 - len(module.kernel_size) if isinstance(module, nn.modules.conv._ConvNd) else -1
        if shape is None or left is None or len(entered) < -axis or (entered[axis], left.shape[axis]) != shape:
            return False
        if isinstance(call.module, nn.Linear) or getattr(call.module, "in_features", None) == shape[0]:
            return whole  # a router that is a linear map by its type yields what it makes of it too
        inside = [s for s in self.r.steps[call.start : call.stop] if s.op not in _OF_WEIGHT]
        return len(inside) == 1 and bool(inside[0].weight)

    # ------------------------------------------------------------ attention

    @contextmanager
    def attention(self) -> Iterator[None]:
        """Sees the calls of functions that modules get from transformers' interface, in this thread."""
        with interface_watched(self.attends) if "transformers" in sys.modules else nullcontext():
            yield

    def attends(self, module: nn.Module, function: Callable, args: tuple, kwargs: dict[str, Any]) -> Any:
        names = ("query", "key", "value")
        given = [a for a in args[:3]] + [kwargs[n] for n in names[len(args) :] if n in kwargs]
        start = len(self.r.steps)
        out = function(module, *args, **kwargs)
        left = first_left(out)
        if module in self.paths and left is not None and len(given) == 3:
            self.keep([*given, left])
            path = self.paths[module]
            causal = kwargs.get("is_causal")
            self.r.asking[path] = bool(getattr(module, "is_causal", False) if causal is None else causal)
            step = Step("attention", [self.key(t) for t in given], [self.key(left)], path, start)
            self.parts.append((start, len(self.r.steps), step))
        return out

    # ------------------------------------------------------------ the end

    def finished(self) -> Recording:
        """The recording with each linear map's and each attention function's call as one step."""
        r, at = self.r, 0
        steps: list[Step] = []
        parts = sorted(self.parts, key=lambda p: (p[0], -p[1]))
        places: list[int] = []  # of the steps before, where they are now
        for start, stop, step in parts:
            if (
                start < at or stop <= start
            ):  # within one that stands for it already, or it computes nothing that is seen
                continue
            for s in r.steps[at:start]:
                places.append(len(steps))
                steps.append(s)
            places += [len(steps)] * (stop - start)
            steps.append(step)
            at = stop
        for s in r.steps[at:]:
            places.append(len(steps))
            steps.append(s)
        places.append(len(steps))
        held: list[Call | Attended] = [*r.calls, *r.attended]
        for c in held:
            c.start, c.stop = places[c.start], places[c.stop]
        for i, s in enumerate(steps):
            s.at = i
        r.steps = steps
        for s in steps:
            for o in s.outs:
                r.made_by[o] = s
        r.parameters = self.of_weight
        r.axes = axes(steps, r.shapes, {p: m for m, p in self.paths.items()})
        r.times = Counter(c.path for c in r.calls)
        return r
