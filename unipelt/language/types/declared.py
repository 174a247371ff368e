"""What a row declares: tensors with their sizes, their owners, how they start and learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..report.diagnostics import Label, counted, instead, put
from .draws import DRAWN, PROGRESS
from .fitting import plain
from .infer import Inference
from .initialisers import INITIALISERS, Initialiser
from .integers import beyond
from .owners import OWNERS, Owner
from ..syntax.printer import to_text
from ..sites import COUNTED, SiteSignature, TensorType
from ..sizes import Size
from ..report.texts import inside
from ..syntax.nodes import (
    Apply,
    Expr,
    Name,
    Number,
    Param,
    Scope,
    Span,
    String,
    Tensor,
)  # fmt: skip
from .values import Distribution, IndexType, NumberType, Poison, Value, WordType

MAX_ENTRIES = 2**31
#: What differs from site to site, whatever owns the tensors that start from it. `h` is read where it is a weight.
OF_THE_BASE = frozenset(("W", "bias", "x", "h"))


@dataclass(frozen=True, slots=True)
class TensorTyping:
    """A declared tensor: its axes and sizes, who owns it, how it starts. ``below``: its entries are whole numbers less than that."""

    name: str
    type: TensorType
    owner: Owner
    start: Distribution | None
    exact: Expr | None
    frozen: bool
    lr: float | None
    declaration: Tensor
    part: str = ""  # "gate" for a tensor of the row's gate, whose names are apart from those of form and composition
    below: Size | None = None
    of_site: bool = False  # whether it starts from what is of one site: its weight, what enters, tensors of its own
    lender: str = ""  # the row that declares it, where that is another one

    @property
    def home(self) -> str:
        """Its label in the row that declares it."""
        return self.label.removeprefix(f"{self.lender}.") if self.lender else self.label

    @property
    def value(self) -> Value:
        kind = self.type if self.below is None else IndexType(self.type.axes, self.type.sizes, self.below)
        return Value(kind, learned=not self.frozen, reads=frozenset({self.name}))

    @property
    def label(self) -> str:
        """The last part of the tensor's name in a state dict."""
        return f"{self.part}.{self.name}" if self.part else self.name


@dataclass(frozen=True, slots=True)
class _Start:
    """How a tensor starts: drawn, or as what an expression gives. ``below`` and ``of_site`` are those of `TensorTyping`."""

    drawn: Distribution | None = None
    exact: Expr | None = None
    below: Size | None = None
    of_site: bool = False


class Declared:
    """Checks declarations of one row at one site; mistakes go to ``inf``."""

    inf: Inference
    site: SiteSignature
    params: dict[str, Param]
    bindings: list[Any]  # the lines before, of which some declare tensors
    varies: bool  # whether what was read last depends on the layer

    def _read(self, e: Expr) -> Value:
        v = self.inf.infer(e)
        self.varies = self.varies or "layer" in v.reads
        return v

    def _size(self, e: Expr, what: str) -> Size | None:
        v = self._read(e)
        if isinstance(v.type, Poison):
            return None
        if not isinstance(v.type, NumberType) or v.type.size is None:
            self.inf.fail(
                "E0340",
                f"{what}'s size is a whole number, not {v.type}",
                e.span,
                **self._whole(e, isinstance(v.type, NumberType)),
            )
            return None
        try:
            n = v.type.size.bind(self._arguments()).number
        except ZeroDivisionError:
            self.inf.fail("E0318", f"{what}'s size is divided by 0", e.span, help="divide it by something other than 0")
            return None
        if n is not None and (n.denominator != 1 or n < 1):
            defaults = [
                p.default.span for p in self.params.values() if p.default is not None and p.name in v.type.size.symbols
            ]
            said = f"{what}'s size must be a whole number of at least 1; here it is {float(n):g}"
            if len(defaults) == 1 and defaults[0].file and e.span.file:  # one mistake, of however many sizes
                self.inf.fail("E0343", said, defaults[0], labels=(Label(e.span, "the size"),))
            else:
                self.inf.fail("E0343", said, e.span)
            return None
        return v.type.size

    def _arguments(self) -> dict[str, int]:
        """The whole numbers that parameters have been given, or have by default."""
        values = {n: plain(p.default) for n, p in self.params.items() if p.default is not None}
        return {n: v for n, v in values.items() if isinstance(v, int) and not isinstance(v, bool)}

    def _whole(self, e: Expr, number: bool) -> dict[str, Any]:
        """What makes a parameter a size."""
        param = self.params.get(e.id) if isinstance(e, Name) else None
        if param is None or param.type != "float":
            return {
                "help": "round it: `floor(…)` or `ceil(…)`"
                if number
                else "write a number, a size of the site or a parameter of type `int`"
            }
        place = inside(param.span, r":\s*(float)\b")
        return {"help": f"give `{param.name}` the type `int`", "edits": put("int", place) if place else ()}

    def _tensor(self, s: Tensor, part: str) -> TensorTyping | None:
        self.varies = False
        sizes = [self._size(e, f"the tensor `{s.name}`") for e in s.shape]
        owner = self._owner(s)
        if any(size is None for size in sizes):
            return None
        t = TensorType(owner.axes, tuple(x for x in sizes if x is not None))
        before = [b.declared for b in self.bindings if isinstance(b.declared, TensorTyping)]
        start = self._start(s, t, before)
        if start is None:
            return None
        if start.below is not None and not s.frozen:
            self.inf.fail("E0374", f"`{s.name}` holds whole numbers, which are not trained", s.span,
                          help=f"keep them as they are drawn: `frozen {s.name}: …`")  # fmt: skip
        lr = multiple(self.inf, s.lr, self._read(s.lr)) if s.lr is not None else None
        if self.varies and owner.several_layers:
            which = "every layer" if owner.every_layer else "several layers"
            self.inf.fail("E0367", f"`{s.name}` is one tensor for {which} (`per {', '.join(owner.per)}`), so neither its sizes nor how it "
                          "starts and learns can depend on the layer", s.span,
                          help="let each layer have its own: `per layer`, or `per site`",
                          edits=put("layer", *(w.span for w in s.per if w.name in ("kind", "model", "layers"))))  # fmt: skip
        n = t.entries.number
        if n is not None and n > MAX_ENTRIES:
            self.inf.fail("E0346", f"the tensor `{s.name}` would have {int(n):,} entries, more than {MAX_ENTRIES:,}", s.span,
                          help="choose a smaller size")  # fmt: skip
        twice = next((x for x in before if (x.name, x.part) == (s.name, part)), None)
        if twice is not None:
            self.inf.fail("E0348", f"the tensor `{s.name}` is declared twice in this row", s.span,
                          labels=(Label(twice.declaration.span, "the first time"),))  # fmt: skip
        return TensorTyping(
            s.name, t, owner, start.drawn, start.exact, s.frozen, lr, s, part, start.below, start.of_site
        )

    def _start(self, s: Tensor, t: TensorType, before: Sequence[TensorTyping]) -> _Start | None:
        """How a tensor starts; None where nobody can say what it then holds. ``before``: the tensors declared above it."""
        if not s.exact:
            return self._drawn(s, t)
        word = s.start.function if isinstance(s.start, Apply) else s.start
        if isinstance(word, Name) and word.id in INITIALISERS and word.id not in self.inf.names:
            sign = inside(Span(s.span.file, s.span.start, s.start.span.start), r"(=)\s*$")
            self.inf.fail("E0301", f"there is no `{word.id}` here: it is a distribution", word.span,
                          help=f"write `~` before a distribution: `~ {to_text(s.start)}`", edits=put("~", sign) if sign else ())  # fmt: skip
            return _Start()
        return self._exact(s, t, before)

    def _drawn(self, s: Tensor, t: TensorType) -> _Start | None:
        start, below = self._distribution(s.start), None
        if start is not None and INITIALISERS[start.name].whole:
            below = self._below(s, start, t)
            if below is None:
                return None
        if start is not None and start.name == "values" and not self._as_many(s, start, t):
            return None
        if start is not None and INITIALISERS[start.name].matrix and len(t.sizes) < 2:
            self.inf.fail("E0371", f"`{start.name}` has rows and columns, and `{s.name}` is {t}", s.start.span,
                          help="declare two sizes, or start from another distribution, such as `normal(0.02)`")  # fmt: skip
        return _Start(start, below=below)

    def _exact(self, s: Tensor, t: TensorType, before: Sequence[TensorTyping]) -> _Start:
        value = self._read(s.start)
        of_layer = {*OF_THE_BASE, *(x.name for x in before if not x.owner.every_layer)}
        self.varies = self.varies or bool(value.reads & of_layer)  # each layer has its own
        anew = next((n for n in (*DRAWN, PROGRESS) if n in value.reads), None)
        if anew is not None:
            self.inf.fail("E0370", f"`{s.name}` starts as one value, and `{anew}` differs from one forward pass to the next", s.start.span,
                          help=f"leave `{anew}` out of the start")  # fmt: skip
        borrowed = sorted(n for n in value.reads if n in self.inf.names and "." in n)
        if borrowed:
            self.inf.fail("E0376", f"`{s.name}` starts from `{borrowed[0]}`, which is another row's", s.start.span,
                          help="start it from tensors of its own row")  # fmt: skip
        found = value.type.fits if isinstance(value.type, IndexType) else value.type
        if anew is None and not isinstance(found, Poison) and found != t:
            later = isinstance(value.type, TensorType) and bool(value.type.axes & {"batch", "token"})
            self.inf.fail("E0344", f"`{s.name}` is declared as {t} and starts as {value.type}", s.start.span,
                          help="a start is computed once, before any token: write it of `W` where the site has one, of tensors declared "
                          "above, or draw it, as in `~ constant(2)`" if later else "")  # fmt: skip
        of_site = bool(value.reads & {*OF_THE_BASE, *(x.name for x in before if x.of_site or not x.owner.shared)})
        return _Start(None, s.start, value.type.below if isinstance(value.type, IndexType) else None, of_site)

    def _below(self, s: Tensor, start: Distribution, t: TensorType) -> Size | None:
        """What whole numbers that are drawn are less than; distinct ones must be there as many as are asked for."""
        if start.name == "listed":
            return self._listed(s, start, t)
        bound = self.inf.infer(start.args[0]).type
        if not isinstance(bound, NumberType) or bound.size is None:
            if not isinstance(bound, Poison):
                self.inf.fail(
                    "E0372",
                    f"`{start.name}` takes a whole number, not {bound}",
                    s.start.span,
                    help=INITIALISERS[start.name].doc,
                )
            return None
        if start.name == "choice" and beyond(t.entries, bound.size):
            self.inf.fail("E0372", f"there are no {t.entries} distinct whole numbers below {bound.size}", s.start.span,
                          where=self.inf.bindings(t.entries, bound.size), help="draw fewer, or with `integers`, which draws each by itself")  # fmt: skip
        other = beyond(t.entries, bound.size) or beyond(bound.size, t.entries)
        if start.name == "permutation" and (other or len(t.sizes) != 1):
            self.inf.fail("E0372", f"a permutation of {bound.size} numbers has the sizes [{bound.size}], and `{s.name}` is {t}", s.start.span,
                          where=self.inf.bindings(t.entries, bound.size), help=f"declare `frozen {s.name}: [{bound.size.text}]`")  # fmt: skip
        return bound.size

    def _listed(self, s: Tensor, start: Distribution, t: TensorType) -> Size | None:
        """One more than the largest of the numbers of a list, which are as many as the tensor has entries."""
        numbers = [a.value for a in start.args if isinstance(a, Number)]
        if len(numbers) < len(start.args) or any(not isinstance(n, int) or n < 0 for n in numbers):
            self._wrong_list(
                "`listed` takes whole numbers of at least 0", s, "write the numbers themselves, as in `listed(3, 17)`"
            )
            return None
        return Size.of(max(numbers) + 1) if self._as_many(s, start, t) else None

    def _as_many(self, s: Tensor, start: Distribution, t: TensorType) -> bool:
        """Whether there are as many numbers in a list as the tensor has entries."""
        entries, listed = t.entries.bind(self._arguments()).number, len(start.args)
        if entries is None or entries == listed:
            return True
        said = f"`{s.name}` has {counted(int(entries), 'entry')}, and {counted(listed, 'number')} {'is' if listed == 1 else 'are'} listed"
        kept = "frozen " if s.frozen else ""
        self._wrong_list(said, s, f"declare `{kept}{s.name}: [{listed}]`, or list as many as there are")
        return False

    def _wrong_list(self, said: str, s: Tensor, remedy: str) -> None:
        self.inf.fail("E0372", said, s.start.span, help=remedy)

    def _owner(self, s: Tensor) -> Owner:
        if not s.per:
            return self.site.owner
        each, axes, span = "", set(), None
        for word in (self._scope_word(w) for w in s.per):
            if word.name in OWNERS:
                if word.name == "layers":
                    span = self._span(word)
                each = word.name if each in ("", "layers") or word.name != "layers" else each
                if span is not None and each not in ("layers", "kind"):
                    self.inf.fail("E0392", f"a group of layers is shared by itself or by each kind of site, not per {each}", word.span,
                                  help="write `per layers(k)`, or `per kind, layers(k)`")  # fmt: skip
            elif word.name in self.params and self.params[word.name].type == "scope":
                each = word.name  # an argument without a value
            elif word.name in self.inf.axes or (word.name in ("head", "group") and self.site.has_heads):
                axes.add(word.name)
            elif word.name == "expert":
                self.inf.fail("E0347", f"`{self.site.name}` has no axis `{word.name}`, and the row declares none", word.span,
                              help="declare it, as in `axis expert = 4`; the weights of a layer's own experts have it, as `ffn.experts.down.weight`")  # fmt: skip
                self.inf.axes[word.name] = Size.of(
                    COUNTED[word.name]
                )  # so that what names it further down is no mistake too
                axes.add(word.name)
            elif word.name in ("head", "group"):
                self.inf.fail("E0347", f"`{self.site.name}` has no axis `{word.name}`", word.span,
                              help="write `per site`, which is also what you get without it", edits=put("site", word.span))  # fmt: skip
            else:
                known = [*OWNERS, "head", "group", *self.inf.axes]
                self.inf.fail("E0342", f"`{word.name}` is neither an owner nor an axis", word.span,
                              **instead(word.name, known, word.span, f"owners: {', '.join(OWNERS)}"))  # fmt: skip
        return Owner(each or "site", frozenset(axes), span)

    def _span(self, word: Scope) -> Size | None:
        """How many layers a tensor is one for."""
        if word.argument is None:
            self.inf.fail("E0392", "`layers` does not say how many layers share the tensor", word.span,
                          help="write `layers(2)` for one tensor in two layers, or `layer` for one in each")  # fmt: skip
            return None
        varies, self.varies = self.varies, False
        found = self._size(word.argument, "a group of layers")
        if self.varies:
            self.inf.fail("E0392", "how many layers share the tensor depends on the layer", word.argument.span,
                          help="write a number, as in `layers(2)`")  # fmt: skip
        self.varies = varies
        return found

    def _scope_word(self, word: Scope) -> Scope:
        """A parameter of type `scope` stands for its argument, if it has one."""
        param = self.params.get(word.name)
        if param is None or param.type != "scope":
            return word
        return replace(word, name=param.default.id) if isinstance(param.default, Name) else word

    def _distribution(self, e: Expr, argument: bool = False) -> Distribution | None:
        """What a start is drawn from. Within an ``argument`` no name is a parameter: in `zeros: init = zeros` the second is the word."""
        if not argument and isinstance(e, Name) and e.id in self.params and self.params[e.id].type == "init":
            default = self.params[e.id].default
            return self._distribution(default, argument=True) if default is not None else None
        name = e.function if isinstance(e, Apply) else e
        args = tuple(a.value for a in e.args) if isinstance(e, Apply) else ()
        if isinstance(e, Number):
            self.inf.fail("E0341", f"`{to_text(e)}` is a number, not a distribution", e.span, help=f"write `constant({to_text(e)})`",
                          edits=put(f"constant({to_text(e)})", e.span))  # fmt: skip
            return None
        if not isinstance(name, Name) or name.id not in INITIALISERS:
            self.inf.fail("E0341", f"there is no distribution `{to_text(name)}`", e.span,
                          **instead(to_text(name), INITIALISERS, name.span, f"known: {', '.join(INITIALISERS)}"))  # fmt: skip
            return None
        spec = INITIALISERS[name.id]
        if not spec.arity[0] <= len(args) <= spec.arity[1]:
            self.inf.fail("E0321", f"`{spec.name}` takes {counted(spec.arity[0], 'argument')}, {len(args)} are given", e.span,
                          help=spec.doc)  # fmt: skip
            return None
        values: list[Expr] = []
        for a in args:
            v = self._read(a)
            good = WordType if spec.text else NumberType
            if not isinstance(v.type, (good, Poison)):
                self.inf.fail(
                    "E0331", f"`{spec.name}` takes {'a text' if spec.text else 'numbers'}, not {v.type}", a.span
                )
            if isinstance(v.type, NumberType) and v.type.value is not None:
                values.append(Number(v.type.value))
            elif "scale" in v.reads:
                self.inf.fail(
                    "E0373", f"`{to_text(a)}` is not known when tensors are drawn", a.span, help="write a number"
                )
            elif isinstance(v.type, WordType) and isinstance(v.type.word, (str, String)):
                values.append(v.type.word if isinstance(v.type.word, String) else String(v.type.word))
            else:
                values.append(a)
        self._drawable(spec, values, e)
        return Distribution(spec.name, tuple(values))

    def _drawable(self, spec: Initialiser, values: list[Expr], e: Expr) -> None:
        """Numbers of a distribution that no draw could have."""
        numbers = [v.value for v in values if isinstance(v, Number)]
        if len(numbers) < len(values) or not numbers:
            return
        last = numbers[-1]
        if spec.name == "uniform" and numbers[0] > last:
            said = f"`uniform` goes from the smaller number to the larger, not from {numbers[0]:g} to {last:g}"
        elif spec.positive and last <= 0:
            said = f"`{spec.name}` takes a number above 0, not {last:g}"
        elif spec.name == "normal" and last < 0:
            said = f"a standard deviation is at least 0, not {last:g}"
        else:
            return
        self.inf.fail("E0372", said, e.span, help=spec.doc)


def multiple(inf: Inference, lr: Expr, v: Value) -> float | None:
    """A learning-rate multiple, which has the value ``v``, as far as it is a number here."""
    if not isinstance(v.type, (NumberType, Poison)):
        inf.fail("E0345", f"a learning-rate multiple is a number, not {v.type}", lr.span)
    elif isinstance(v.type, NumberType) and v.type.value is not None:
        if v.type.value < 0:
            inf.fail("E0345", f"a learning-rate multiple is at least 0, not {v.type.value:g}", lr.span)
        return float(v.type.value)
    elif "scale" in v.reads:
        inf.fail("E0373", f"`{to_text(lr)}` is not known when training begins", lr.span, help="write a number")
    return None
