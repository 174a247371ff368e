"""What a row says of its training: a `penalty`, which is added to the loss, and what happens `after step`.

A penalty is one number for the pass. After each step of the optimiser lines are assigned to the row's tensors, or named: they
read tensors and their gradients, and nothing of a pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from ..sites import NUMBERS, TensorType
from ..syntax.nodes import Later, Let, Param
from .declared import TensorTyping
from .draws import DRAWN
from .infer import Inference
from .typed import Binding, Part
from .values import NumberType, Poison, Value, WordType

_PASS = "belongs to a pass of the model, and `after step` stands between two of them"


class Trained:
    """Checks what belongs to training in a row; mistakes go to ``inf``."""

    inf: Inference
    bindings: list[Binding]
    params: dict[str, Param]

    def later(self, s: Later, part: Part) -> None:
        """A `penalty` or an `after step`, which stand in a form."""
        if part != "form":
            self.inf.fail("E0386", f"`{s.word}` stands in a form, and this is a {'gate' if part == 'gate' else 'composition'}", s.span,
                          help=f"write `{s.word} …` into the row's form")  # fmt: skip
        elif s.word == "penalty":
            self._penalty(s)
        else:
            self._after(s)

    def _penalty(self, s: Later) -> None:
        e = s.values[0]
        v = self.inf.infer(e)
        self.bindings.append(Binding("penalty", "penalty", v, self.inf.nodes or {}, e))
        if isinstance(v.type, WordType) or (isinstance(v.type, TensorType) and (v.type.axes or v.type.sizes)):
            over = sorted(getattr(v.type, "axes", ()))
            shown = ", ".join({"token": "tokens"}.get(a, a) for a in sorted(over, key=lambda a: a == "batch"))
            self.inf.fail("E0386", f"a penalty is one number for the pass, and this is {v.type}", e.span,
                          help=f"reduce it: `mean(…, {shown})`" if over else "add its entries up: `sum(…)`")  # fmt: skip

    def _after(self, s: Later) -> None:
        inf = self.inf
        own = {t.name: t for b in self.bindings if isinstance(t := b.declared, TensorTyping) and not t.part}
        names, hidden, remedies = dict(inf.names), dict(inf.hidden), dict(inf.remedies)
        kept = {
            n for n, v in names.items() if n in own or n in self.params or n in NUMBERS or isinstance(v.type, Poison)
        }
        gone = names.keys() - kept
        inf.names = {n: v for n, v in names.items() if n in kept}
        inf.hidden |= dict.fromkeys((*gone, "h", "out", *DRAWN), _PASS)
        inf.remedies |= dict.fromkeys((*gone, "h", "out", *DRAWN), "read the row's tensors, or `gradient(…)` of one")
        inf.stepping = True
        for line in s.body:
            inf.nodes = {}
            value = inf.infer(line.value)
            self._assigned(line, value, own)
            self.bindings.append(Binding(line.names[0], "after", value, inf.nodes, line.value))
            inf.names[line.names[0]] = value if line.names[0] not in own else names[line.names[0]]
        inf.stepping = False
        inf.names, inf.hidden, inf.remedies = names, hidden, remedies

    def _assigned(self, s: Let, value: Value, own: Mapping[str, TensorTyping]) -> None:
        name, inf = s.names[0], self.inf
        drawn = sorted(value.reads & {*DRAWN})
        if len(s.names) > 1:
            inf.fail("E0387", "a line of `after step` has one name on the left", s.span, help="write a line for each")
        elif drawn:
            inf.fail(
                "E0387", f"`{drawn[0]}` {_PASS}", s.value.span, help="read the row's tensors, or `gradient(…)` of one"
            )
        elif name not in own:
            return
        elif own[name].owner.shared:
            inf.fail("E0387", f"`{name}` is one tensor for several places (`per {own[name].owner.each}`), each of which would assign to it",
                     s.span, help="let each place have its own: `per site`")  # fmt: skip
        elif not isinstance(value.type, (Poison, NumberType)) and value.type != own[name].type:
            inf.fail("E0387", f"`{name}` is {own[name].type}, and what it becomes after a step is {value.type}", s.value.span,
                     where=inf.bindings(*getattr(value.type, "sizes", ()), *own[name].type.sizes), help="write what has its type")  # fmt: skip
