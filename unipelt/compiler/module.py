"""A method as plain PyTorch: a text with an `nn.Module` for each of its rows, which needs torch and nothing else.

The text is written from the checked method by the rules by which the code that runs is written (`recipe`), with the sizes as
arguments of the module. How a module is hooked into a model its docstring says: what it is called with and what it returns.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ..language.analyse.method import analyse
from ..language.types.declared import TensorTyping
from ..language.report.diagnostics import error
from ..language.types.infer import Inference
from ..language.types.indexing import INSERTED, POSITIONS, token_indices
from ..language.types.initialisers import INITIALISERS
from ..language.types.members import averaged, read_of
from ..language.ir import Method
from ..language.syntax.printer import to_text
from ..language.types.typed import Binding, TypedRow
from ..language.sites import SIZES, TensorType, axis_order
from ..language.sizes import Size
from ..language.syntax.nodes import Apply, Arg, Name, rewrite
from ..language.syntax.parser import parse_expression
from . import helpers
from .between import methods, stepping
from .code import Code, Num, Unwritten, Written, text_of
from .lines import needed
from .lower import lower
from .recipe import CHOSEN, GRID, MASK, PLACES, Body
from .words.mixing import CAUSAL
from .writer import Writer

#: What enters a module, as its docstring says it.
ENTERS = {
    "h": "what is modified", "x": "what the site reads", "residual": "the stream that h is added to", "q": "the queries",
    "scale": "the number that the scores are multiplied by", "log_mass": "log of the sum of exp(score) over each query's keys",
    "W": "the frozen weight", "bias": "the frozen bias", "chance": "a number drawn for each forward pass, uniform in [0, 1)",
    "progress": "how far training has come, from 0 to 1; 1 outside it",
    MASK: "1 at real tokens, 0 at padding; None where all are real",
    "ids": "the ids of the tokens",
    INSERTED: "the numbers of the rows of a prompt, from 0",
    POSITIONS: "the numbers of the tokens in their texts, from 0",
    CHOSEN: "true at the tokens that are selected",
    GRID: "which tokens are the parts of the picture",
    PLACES: "where the rows stand among the tokens, as positions or, for `fill`, as their numbers at each token",
}  # fmt: skip


def torch_source(method: Method) -> str:
    """A self-contained PyTorch text of a method: a module for each row, at each kind of site where its code differs.

    Raises `PeltError` where an argument has no value, or where there is no plain code for a row.
    """
    unbound = [p.name for p in method.params if p.default is None and p.type != "adapters"]
    if unbound:
        raise error(
            "E0408",
            f"`{method.name}` needs a value for `{unbound[0]}`",
            help=f"write {method.name}({unbound[0]}=…), or `--set {unbound[0]}=…`",
        )
    found: dict[tuple[str, str], list[str]] = {}  # the row and the text of its class, with the sites where it holds
    used: dict[str, None] = {}
    classes: dict[tuple[str, str], _Class] = {}
    for typed in analyse(method).rows:
        one = _Class(method, typed)
        found.setdefault((typed.row.name, one.body), []).append(typed.place)
        classes.setdefault((typed.row.name, one.body), one)
        used |= dict.fromkeys(one.helpers)
    several = {name for name, _ in found if sum(n == name for n, _ in found) > 1}
    parts = [inspect.getsource(getattr(helpers, n)).rstrip() for n in _with_theirs(list(used))]
    for (name, _), sites in found.items():
        title = _camel(name) + (_camel(sites[0]) if name in several else "")
        parts.append(classes[(name, _)].text(title, sites))
    text = "\n\n\n".join([_head(method), *parts]) + "\n"
    imports = ["import math", ""] if re.search(r"\bmath\.", text) else []
    imports += ["import torch", "from torch import nn"] if parts else []
    imports += ["from torch.nn import functional as F"] if re.search(r"\bF\.", text) else []
    return text.replace("\n\n\n", "\n\n" + "\n".join(imports) + "\n\n\n", 1) if imports else text


def _head(method: Method) -> str:
    """The text's docstring: what the method is, with its arguments, and what it trains besides its modules."""
    arguments = ", ".join(f"{p.name} = {to_text(p.default)}" for p in method.params if p.default is not None)
    lines = [f"{method.name}: {_plain(method.doc or 'a method of parameter-efficient tuning')}", ""]
    lines += [f"Arguments: {arguments}.", ""] if arguments else []
    for t in method.trains:
        lines += [f"Trained besides: a copy of each of the base's own parameters {', '.join(map(str, t.paths))}.", ""]
    lines += [
        "Each module is called where its docstring says, and what it returns takes the place of h. The base stays frozen."
    ]
    return '"""' + "\n".join(lines) + '\n"""'


def _with_theirs(names: list[str]) -> list[str]:
    """Helpers with those that they call, in an order in which they can be read."""
    known = [n for n, f in vars(helpers).items() if inspect.isfunction(f)]
    wanted = set(names)
    while True:
        called = {k for n in wanted for k in known if re.search(rf"\b{k}\(", inspect.getsource(getattr(helpers, n)))}
        if called <= wanted:
            return [n for n in known if n in wanted]
        wanted |= called


def _camel(name: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in re.split(r"[._]", name))


def _plain(text: str) -> str:
    """A docstring of a spec inside one of Python."""
    return text.replace("\\", "\\\\").replace('"""', "'''")


class _Class:
    """The module of a row at a site."""

    def __init__(self, method: Method, typed: TypedRow):
        self.method, self.row, self.typing = method, typed.acting, _renamed(typed)
        #: Arguments that are adapters: how many there are is an argument of the module.
        self.members = [p.name for p in method.params if p.type == "adapters"]
        self.symbols = {
            n: Num(f"self.{n}", size=Size.of(n)) for n in (*SIZES, "d_in", "d_out", "layer", "depth", *self.members)
        }
        self.values: dict[str, Written] = {"layer": self.symbols["layer"], "depth": self.symbols["depth"]}
        self.values[CAUSAL] = Num("self.causal")
        self.numbers: dict[str, Any] = {}
        self.by_layer: set[str] = set()  # arguments that are numbers once the layer is known
        try:
            self._arguments()
            self._body()
        except Unwritten as e:
            raise error(
                "E0590",
                f"there is no plain PyTorch text of the row `{self.row.name}` at `{typed.place}`: {e}",
                self.row.span,
            ) from None

    # ------------------------------------------------------------ what it is made of

    def _arguments(self) -> None:
        """The method's arguments as numbers and words."""
        w = Writer(self.values, self.symbols, {}, 1, None)
        for p in self.method.params:
            if p.type == "adapters":
                w.names[p.name] = self.values[p.name] = self.symbols[p.name]
                continue
            if p.default is None or p.type in ("init", "sites", "scope"):
                continue
            value = p.default.id if p.type == "activation" and isinstance(p.default, Name) else w.write(p.default)
            w.names[p.name] = self.values[p.name] = value
            if isinstance(value, int):
                self.numbers[p.name] = value
            elif isinstance(value, Num):
                self.by_layer.add(p.name)

    def _body(self) -> None:
        typing = self.typing
        tensors = {t.label: tuple(sorted(t.type.axes, key=axis_order)) for t in typing.tensors}
        sizes: dict[str, Written] = dict(self.symbols)
        for n in ("d_in", "d_out", "d_x"):
            if n not in typing.sizes:
                continue  # nothing is read there
            sizes[n] = Num(self._size(typing.sizes[n], "self."), size=typing.sizes[n])
        lengths = {n: Num(self._whole(s, "self."), size=s) for n, s in typing.axes.items()}
        low = lower(typing, frozenset({"added"}))
        body = Body(
            self.row,
            typing,
            low,
            self.values,
            sizes,
            tensors,
            _entering(typing),
            training=None,
            own="self.",
            lengths=lengths,
        )
        w = body.writer
        _, (result, *penalty) = body.text("h")
        lines = [*map(str, needed(w.lines, [result]))]
        added = [*map(str, needed(w.lines, penalty))]
        if any("torch.rand" in line for line in added):
            raise Unwritten("a penalty of what is drawn")
        own = {
            t.label: Code(f"self.{body.arguments[t.label]}", tensors[t.label], t.type.sizes)
            for t in typing.tensors
            if "." not in t.label
        }
        after = stepping(self.row, self.values, sizes, lengths, own, w.repeats)
        self.helpers = [*w.helpers, *(after.helpers if after else ())]
        self.helpers += ["at_all_places"] if after and after.asks else []
        self.names = body.arguments
        self.enters = self._entering(body, tensors, "\n".join([*lines, result]), always="h")
        text = "\n".join([*lines, result, *added, *penalty, *(after.lines if after else ())])
        used = [n for n in self.symbols if re.search(rf"\bself\.{n}\b", text)]
        made = [line for t in typing.tensors for line in self._tensor(t, tensors[t.label])]
        known = [
            n
            for n in self.symbols
            if n in used or any(re.search(rf"(?<![\w.]){n}\b", line.split("  #")[0]) for line in made)
        ]
        if re.search(r"\bself\.causal\b", text):
            used.append("causal")
        arguments = ", ".join(["self", *(f"{n}: int" for n in known), *["causal: bool"] * ("causal" in used)])
        parts = [[f"def __init__({arguments}) -> None:", "    super().__init__()", *(f"    self.{n} = {n}" for n in used),
                  *(f"    {line}" for line in made)]]  # fmt: skip
        parts.append(self._method("forward", self.enters, "", lines, result))
        self.said = self.enters
        if penalty:
            enters = self._entering(body, tensors, "\n".join([*added, *penalty]))
            self.said = [*dict.fromkeys([*self.enters, *enters])]
            parts.append(
                self._method(
                    "penalty", enters, "In training added to the loss, once for each place.", added, penalty[0]
                )
            )
        parts += methods(after) if after is not None else []
        self.sizes = known
        self.body = "\n\n".join("\n".join(f"    {line}".rstrip() for line in part) for part in parts)

    def _entering(self, body: Body, tensors: Mapping[str, Any], text: str, always: str = "") -> list[str]:
        """The names of what enters that a text reads."""
        words = set(re.findall(r"(?<![\w.])[A-Za-z_]\w*", text))
        return [n for n, a in body.arguments.items() if n not in tensors and (a in words or n == always)]

    def _method(self, name: str, enters: Sequence[str], says: str, lines: Sequence[str], result: str) -> list[str]:
        signature = ", ".join(["self", *(f"{self.names[n]}{_annotation(n, self.typing)}" for n in enters)])
        said = [f'    """{says}"""'] * bool(says)
        return [
            f"def {name}({signature}) -> torch.Tensor:",
            *said,
            *(f"    {line}" for line in lines),
            f"    return {result}",
        ]

    def _size(self, size: Size, front: str = "") -> str:
        """A size as an expression of Python."""
        text = size.bind(self.numbers).text
        text = re.sub(r"\[[^\]]*\]", lambda m: f"{m[0]}[{front}layer]", text)

        def word(m: re.Match[str]) -> str:
            if m[0] in self.numbers:  # within a call, as in `max(d_model, r)`
                return str(self.numbers[m[0]])
            if m[0] in self.by_layer:
                return f"({text_of(self.values[m[0]]).replace('self.', front)})"
            return front + m[0] if m[0] in self.symbols and not (m[0] == "layer" and front) else m[0]

        return re.sub(r"(?<![\w.])[A-Za-z_]\w*", word, text)

    def _whole(self, size: Size, front: str = "") -> str:
        """The size as a whole number of Python."""
        text, calls = re.subn(r"(?<![\w.])(ceil|floor)\(", r"math.\1(", self._size(size, front))
        return f"int({text})" if calls else text.replace(" / ", " // ")

    def _tensor(self, t: TensorTyping, axes: tuple[str, ...]) -> list[str]:
        """The lines that make a tensor as it starts."""
        lengths = [self._whole(self.typing.axes[a]) if a in self.typing.axes else f"{a}s" for a in axes]
        shape = [*lengths, *(self._whole(s) for s in t.type.sizes)]
        sizes = shape[len(axes) :]
        notes = [f"one for all sites that share it (per {t.owner.each})"] if t.owner.shared else []
        notes += [f"learns at {t.lr:g} times the rate"] if t.lr is not None else []
        before, value, note = self._start(t, shape, sizes)
        notes += [note] if note else []
        name = self.names_of(t)
        made = f'self.register_buffer("{name}", {value})' if t.frozen else f"self.{name} = nn.Parameter({value})"
        return [*before, made + (f"  # {'; '.join(notes)}" if notes else "")]

    def names_of(self, t: TensorTyping) -> str:
        return self.names[t.label]

    def _wide(self, e: Any) -> Any:
        """An expression with sizes in place of `width(…)`, of which there is nothing to ask when a tensor is made."""

        def size(n: Any) -> Any:
            match n:
                case Apply(Name("width"), (Arg(value=of),)):
                    found = Inference(dict(self.typing.values), {}).infer(of).type
                    return parse_expression(self._size(found.sizes[-1])) if isinstance(found, TensorType) else n
            return n

        return rewrite(e, size)

    def _start(self, t: TensorTyping, shape: list[str], sizes: list[str]) -> tuple[list[str], str, str]:
        """Lines before it, the tensor's first value, and what is to be said of it."""
        whole = ", ".join(shape)
        zeros = f"torch.zeros({whole}{', dtype=torch.int64' if t.below is not None else ''})"
        if t.exact is not None:
            return [], zeros, f"starts as {to_text(t.exact)}: copy that in"
        if t.start is None:
            return [], f"torch.zeros({whole})", ""
        w = Writer(self.values, {n: Num(n, size=Size.of(n)) for n in self.symbols}, {}, 1, None)
        w.names |= {n: Num(n) for n in ("layer", "depth", *self.members)}
        args = [text_of(w.write(self._wide(a))) for a in t.start.args] if not INITIALISERS[t.start.name].words else []
        empty = f"torch.empty({whole})" if shape else "torch.empty(())"
        fan_in, fan_out = (sizes[0], sizes[-1]) if sizes else ("1", "1")
        match t.start.name:
            case "zeros" | "ones" as kind:
                return [], f"torch.{kind}({whole or '()'})", ""
            case "constant":
                return [], f"{empty}.fill_({args[0]})", ""
            case "normal":
                mean, std = args if len(args) == 2 else ("0.0", args[0])
                return [], f"{empty}.normal_({mean}, {std})", ""
            case "truncated_normal":
                return [], f"nn.init.trunc_normal_({empty}, 0.0, {args[0]}, -2 * {args[0]}, 2 * {args[0]})", ""
            case "uniform":
                return [], f"{empty}.uniform_({args[0]}, {args[1]})", ""
            case "kaiming_uniform":
                return (
                    [f"bound = math.sqrt(6 / ((1 + {_bracket(args[0])} ** 2) * {_bracket(fan_in)}))"],
                    f"{empty}.uniform_(-bound, bound)",
                    "",
                )
            case "xavier_uniform":
                return [f"bound = math.sqrt(6 / ({fan_in} + {fan_out}))"], f"{empty}.uniform_(-bound, bound)", ""
            case "xavier_normal":
                return [], f"{empty}.normal_(0.0, math.sqrt(2 / ({fan_in} + {fan_out})))", ""
            case "torch_linear":
                return [f"bound = 1 / math.sqrt({args[0]})"], f"{empty}.uniform_(-bound, bound)", ""
            case "integers":
                return [], f"torch.randint({args[0]}, ({whole}{',' if len(shape) == 1 else ''}))", ""
            case "listed" if len(shape) == 1:
                return [], f"torch.tensor([{', '.join(args)}])", ""
            case "values" if shape == sizes:
                listed = (
                    f"torch.tensor([{', '.join(args)}], dtype=torch.get_default_dtype())"  # even where all are whole
                )
                return [], f"{listed}.reshape({whole})" if len(shape) > 1 else listed, ""
            case "choice" | "permutation" if len(shape) == 1:
                return [], f"torch.randperm({args[0]})[:{whole}]", ""
            case "identity":
                return [], f"torch.eye({', '.join(sizes[-2:])}).expand({whole}).clone()", ""
            case "orthogonal" if len(shape) == 2:
                return [], f"nn.init.orthogonal_({empty})", ""
        return [], zeros, f"starts as {to_text(t.declaration.start)}: copy that in"

    # ------------------------------------------------------------ as text

    def text(self, title: str, sites: list[str]) -> str:
        c = self.row.columns
        columns = [
            f"{word} {text}"
            for word, text in (("insert", c.insert), ("form", c.form), ("compose", c.compose), ("gated by", c.gate))
            if text
        ]
        lines = [f"The row `{self.row.name}` at {', '.join(sites)}: {_plain('; '.join(columns))}.", "", "Called with"]
        width = max(len(self.names[n]) for n in self.said)
        lines += [f"  {self.names[n]:<{width}}  {self._said(n)}" for n in self.said]
        doc = "\n".join(f"    {line}".rstrip() for line in lines)
        return f'class {title}(nn.Module):\n    """{doc.lstrip()}\n    """\n\n{self.body}'

    def _said(self, name: str) -> str:
        """What enters under a name, with its shape."""
        if name.endswith("()"):
            return f"a function of weights: `{name[:-2]}` of one adapter whose tensors are the members' sums with these weights"
        if name in self.typing.bases:
            return f"the frozen module `{name}`, called by itself"
        shape = {
            MASK: "[batch, tokens]",
            CHOSEN: "[batch, tokens]",
            GRID: "[rows, columns]",
            POSITIONS: "[batch, tokens]",
            INSERTED: "[batch, tokens]",
            "ids": "[batch, tokens]",
            PLACES: "[batch, …]",
            "scale": "",
            "chance": "[]",
            "progress": "[]",
        }.get(name)
        if shape is None:
            found = self.typing.values[name].type
            shape = (
                f"[{', '.join([*sorted(found.axes, key=axis_order), *(self._size(s) for s in found.sizes)])}]"
                if isinstance(found, TensorType)
                else "[batch]"
            )
        otherwise = "of each adapter, frozen" if "." in name else "an argument of the model's forward pass"
        return ": ".join(filter(None, [shape, ENTERS.get(name, otherwise)]))


def _bracket(text: str) -> str:
    return text if re.fullmatch(r"[\w.]+(\([\w.]*\))?", text) else f"({text})"


def _annotation(name: str, typing: TypedRow) -> str:
    if name in typing.bases:
        return ": nn.Module"
    if name.endswith("()"):
        return ""
    return {"scale": ": float", MASK: ": torch.Tensor | None"}.get(name, ": torch.Tensor")


def _renamed(typing: TypedRow) -> TypedRow:
    """Where what is read and what is modified differ in size, these are called d_in and d_out, whatever the site calls them."""
    d_in, d_out = typing.sizes.get("d_in"), typing.sizes["d_out"]
    if d_in is None or d_in == d_out or any(len(s.symbols) != 1 or s != Size.of(*s.symbols) for s in (d_in, d_out)):
        return typing
    names: Mapping[str, Size] = {next(iter(d_in.symbols)): Size.of("d_in"), next(iter(d_out.symbols)): Size.of("d_out")}

    def bound(t: Any) -> Any:
        return TensorType(t.axes, tuple(s.bind(names) for s in t.sizes)) if isinstance(t, TensorType) else t

    def line(b: Binding) -> Binding:
        t = b.declared
        return replace(b, declared=replace(t, type=bound(t.type))) if isinstance(t, TensorTyping) else b

    return replace(
        typing, bindings=tuple(map(line, typing.bindings)),
        values={n: v.typed(bound(v.type)) for n, v in typing.values.items()},
        sizes={n: s.bind(names) for n, s in typing.sizes.items()},
        bases={n: (a.bind(names), b.bind(names)) for n, (a, b) in typing.bases.items()},
    )  # fmt: skip


def _entering(typing: TypedRow) -> dict[str, tuple[str, ...]]:
    """What may enter a row, with its axes."""
    site = typing.site
    found = {n: tuple(sorted(t.axes, key=axis_order)) for n, t in site.types.items()}
    found |= {i.name: ("batch",) for i in typing.inputs}
    found |= dict.fromkeys(token_indices(typing.row.nodes), ("batch", "token"))
    called = averaged(typing.row.parts, typing.params)
    joined = [to_text(a) for a in read_of(typing.row.parts, typing.params)]
    for name in (*(f"{c}()" for c in called), *(j for j in joined if j in typing.values)):
        kind = typing.values[name].type
        assert isinstance(kind, TensorType)
        found[name] = tuple(sorted(kind.axes, key=axis_order))
    return found | {"chance": (), "progress": ()} | dict.fromkeys(site.numbers, ())
