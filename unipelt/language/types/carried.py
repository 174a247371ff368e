"""What a row carries along depth: ``carry s = first then next``.

At the first layer in which the row acts s is ``first``, at each further one ``next``, in which the name stands for what the layer before
had. Both have one type. What is known of s is what is known of either, wherever it comes from: s stands in ``next`` itself.
"""

from __future__ import annotations

from dataclasses import replace

from ..ir import Row
from ..sites import SiteSignature, TensorType
from ..syntax.nodes import Later, Then
from ..syntax.printer import to_text
from .infer import Inference
from .softmax import shares_softmax
from .typed import Binding, Part
from .values import OTHER, POISON, Poison, Value, join

_FRONT = "carry."


def from_before(name: str) -> str:
    """Under which name, which is none of the language, what the layer before had enters a row."""
    return f"{_FRONT}{name}"


def is_from_before(name: str) -> bool:
    return name.startswith(_FRONT)


def carries(row: Row) -> tuple[str, ...]:
    """The names that a row carries along depth."""
    return tuple(n for s in row.form if isinstance(s, Later) and s.word == "carry" for n in s.names)


class Carried:
    """Checks `carry` lines; mistakes go to ``inf``."""

    inf: Inference
    site: SiteSignature
    row: Row
    bindings: list[Binding]

    def carry(self, s: Later, part: Part) -> None:
        name, (first, following) = s.names[0], s.values
        if problem := self._no_place(s, part):
            self.inf.fail("E0390", problem[0], s.span, help=problem[1])
            self.inf.names[name] = Value(POISON)
            return
        e = Then(name, first, following, span=s.span)
        value = self._value(e)
        self.inf.names[name] = value
        nodes = {**(self.inf.nodes or {}), id(e): (e, value)}
        self.bindings.append(Binding(name, part, value, nodes, e))  # type: ignore[arg-type]

    def _no_place(self, s: Later, part: Part) -> tuple[str, str] | None:
        """Why nothing can be carried here, and what to do."""
        name, site = s.names[0], self.site
        if part != "form":
            where = "a gate" if part == "gate" else "a composition"
            return f"`carry` stands in a form, and this is {where}", "write `carry …` into the row's form"
        if site.is_weight:
            said = f"`{site.name}` is the same at every pass, and what is carried from layer to layer belongs to one"
            return said, f"modify `{site.into}`" if site.into else "modify a site that tokens pass"
        if site.outside_the_layers:
            return f"`{site.name}` is outside the layers: there is no next one", "modify a site within the layers"
        if shares_softmax(self.row):
            said = (
                "a row that shares the softmax of the tokens carries nothing: its rows are made before there are scores"
            )
            return said, "take a composition that adds it: `compose add`"
        if name in self.inf.names:
            return f"`{name}` has a value already and cannot be carried", "choose another name"
        return None

    def _value(self, e: Then) -> Value:
        """What is known of what is carried: of ``first``, and of ``next``, once with what is known so far, until nothing new is."""
        inf = self.inf
        first = inf.infer(e.first)
        kind = first.type
        if isinstance(kind, Poison):
            inf.names[e.name] = first
            inf.infer(e.next)
            return first
        if not isinstance(kind, TensorType) or "batch" not in kind.axes:
            return inf.fail("E0390", f"what is carried belongs to the examples of a pass, and this is {kind}", e.first.span,
                            help="carry what is made of `z`; what all examples share is a tensor `per model`")  # fmt: skip
        known, nodes, said = self._carried(e, first), dict(inf.nodes or {}), len(inf.problems)
        while True:
            inf.names[e.name] = known
            inf.nodes = dict(nodes)
            del inf.problems[said:]
            following = inf.infer(e.next)
            if isinstance(following.type, Poison):
                return following
            if following.type != kind:
                sizes = (*kind.sizes, *getattr(following.type, "sizes", ()))
                return inf.fail("E0390", f"`{e.name}` is {kind} at the first layer, and at the next one {following.type}", e.next.span,
                                where=inf.bindings(*sizes), help=f"let `{to_text(e.first)}` and what stands behind `then` have one type")  # fmt: skip
            more = self._carried(e, join((known, following), kind))
            if _facts(more) == _facts(known):
                return known
            known = more

    def _carried(self, e: Then, value: Value) -> Value:
        """What s is to the lines below: it comes from other layers, so it is no affine function of what enters this one."""
        return replace(value, degree=OTHER, bends=value.bends or e.span, reads=value.reads | {from_before(e.name)})


def _facts(v: Value) -> tuple[object, ...]:
    """What is known of a value but for where: that may change without end."""
    seen = (v.future, v.padding, v.chunk, v.mixed, v.at_start, v.placed)
    return (*(x is not None for x in seen), v.learned, v.random, v.reads)
