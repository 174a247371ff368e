"""A row's formula as mathematics, in Unicode and in LaTeX, derived from the IR.

Products of matrices stand side by side, elementwise ones get a sign; what is written is what is evaluated, line by
line: the lets of the form, those of the composition, and the new ``h``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..analyse.method import analyse
from ..syntax import nodes as S
from .composition import composition
from .columns import columns_of
from ..ir import Method, Row
from ..syntax.printer import ATOM, POWER, Style, to_text

_GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "Δ", "lam": "λ", "sigma": "σ", "theta": "θ", "mu": "μ", "phi": "φ",
}  # fmt: skip
_GREEK_TEX = {**{k: f"\\{k}" for k in _GREEK}, "delta": r"\Delta", "lam": r"\lambda"}
_FUNCTIONS = {"sigmoid": "σ"}
_SIGNS = {"-": " − ", "@": " ", "*": " · ", "**": "^", "<=": " ≤ ", ">=": " ≥ ", "!=": " ≠ ", "==": " = "}
_SIGNS_TEX = {"@": r"\, ", "*": r" \cdot ", "<=": r" \le ", ">=": r" \ge ", "!=": r" \ne ", "==": " = "}


class Mathematics(Style):
    """Formulas in Unicode."""

    def variable(self, name: str) -> str:
        """The name of a tensor, a size or an argument."""
        head, _, tail = name.partition("_")
        head = _GREEK.get(head, head)
        return f"{head}_{tail}" if tail else head

    def function(self, name: str, args: Sequence[str]) -> str:
        return f"{_FUNCTIONS.get(name, name)}({', '.join(args)})"

    def transposed(self, text: str) -> str:
        return f"{text}ᵀ"

    def code(self, text: str) -> str:
        """What mathematics has no sign for."""
        return text

    def sign(self, op: str) -> str:
        return _SIGNS.get(op, super().sign(op))

    def name(self, e: S.Name) -> tuple[str, int]:
        return self.variable(e.id), ATOM

    def attr(self, e: S.Attr) -> tuple[str, int]:
        if e.name == "T":
            return self.transposed(self.text(e.value, ATOM)), ATOM
        return self.variable(S.dotted(e) or to_text(e)), ATOM

    def apply(self, e: S.Apply) -> tuple[str, int]:
        return self.function(S.dotted(e.function) or to_text(e.function), [self.text(a.value) for a in e.args]), ATOM

    def binary(self, e: S.Binary) -> tuple[str, int]:
        if e.op == "**":
            return f"{self.text(e.left, ATOM)}^{self.text(e.right, ATOM)}", POWER
        return super().binary(e)

    def index(self, e: S.Index | S.ListOf | S.String) -> tuple[str, int]:
        return self.code(to_text(e)), ATOM

    list = string = index  # type: ignore[assignment]


class Latex(Mathematics):
    """The same for LaTeX."""

    def group(self, text: str) -> str:
        return f"\\left({text}\\right)"

    def variable(self, name: str) -> str:
        if name.startswith("d_"):
            return f"d_{{\\mathrm{{{name[2:]}}}}}"
        head, _, tail = name.partition("_")
        head = _GREEK_TEX.get(head, head)
        if len(head) > 1 and not head.startswith("\\"):
            head = f"\\mathit{{{head}}}"
        tail = tail.replace("_", r"\_")
        return f"{head}_{{\\mathrm{{{tail}}}}}" if tail else head

    def function(self, name: str, args: Sequence[str]) -> str:
        if name == "sqrt" and len(args) == 1:
            return f"\\sqrt{{{args[0]}}}"
        shown = r"\sigma" if name == "sigmoid" else r"\operatorname{" + name.replace("_", r"\_") + "}"
        return f"{shown}({', '.join(args)})"

    def transposed(self, text: str) -> str:
        return rf"{text}^{{\top}}"

    def code(self, text: str) -> str:
        return f"\\texttt{{{text}}}".replace("_", r"\_")

    def sign(self, op: str) -> str:
        return _SIGNS_TEX.get(op, f" {op} ")

    def word(self, word: str) -> str:
        return rf"\text{{ {word} }}"

    def number(self, e: S.Number) -> tuple[str, int]:
        text, level = super().number(e)
        return text.replace("%", r"\%"), level

    def binary(self, e: S.Binary) -> tuple[str, int]:
        if e.op == "/":
            return f"\\frac{{{self.text(e.left)}}}{{{self.text(e.right)}}}", ATOM
        if e.op == "**":
            return f"{self.text(e.left, ATOM)}^{{{self.text(e.right)}}}", POWER
        return super().binary(e)


UNICODE, TEX = Mathematics(), Latex()
write = UNICODE.text


# ---------------------------------------------------------------- rows


def lines(row: Row, z: S.Expr | None = None, style: Mathematics = UNICODE) -> list[tuple[str, str]]:
    """(name, formula) of a row: ``z`` where it is read, the form's lets and what it carries, the gate, and last the new h."""
    out: list[tuple[str, str]] = []
    lets = [s for s in row.form if isinstance(s, S.Let) or (isinstance(s, S.Later) and s.names)]

    def line(s: S.Let | S.Later) -> tuple[str, str]:
        value: Any = s.value if isinstance(s, S.Let) else S.Then(s.names[0], s.values[0], s.values[1])
        return ", ".join(map(style.variable, s.names)), style.text(value)

    if z is not None and "z" in row.reads:
        out.append((style.variable("z"), style.text(z)))
    out += map(line, (*lets, *(s for s in row.gate or () if isinstance(s, S.Let))))
    out += [line(s) for s in row.compose if isinstance(s, S.Let) and s.names[0] != "out"]
    out.append((style.variable("h"), style.text(composition(row).new)))
    return out


class Written(NamedTuple):
    """A line of a formula: ``name sign text``. Where the name is empty, the text says what the lines below are."""

    name: str
    sign: str
    text: str


def formula(method: Method, style: Mathematics = UNICODE) -> list[tuple[str, list[Written]]]:
    """Every row by name with its lines, those of training behind the new h; trained copies in words."""
    typed = analyse(method)
    out = []
    for r in method.rows:
        at = typed.of(r)
        *lets, new = lines(at[0].acting if at else r, at[0].insert if at else r.insert, style)
        found = [*(Written(n, "=", f) for n, f in lets), Written(new[0], "←", new[1])]
        out.append((r.name, [*found, *of_training(r, style)]))
    for t in method.trains:
        out.append((t.name, [Written("train", " ", ", ".join(str(p) for p in t.paths))]))
    return out


def of_training(row: Row, style: Mathematics) -> list[Written]:
    """What a row adds to the loss, and what becomes of its tensors after each step."""
    later = [s for s in row.form if isinstance(s, S.Later)]
    penalties = [style.text(s.values[0]) for s in later if s.word == "penalty"]
    after = [line for s in later if s.word == "after step" for line in s.body]
    own = {s.name for s in row.form if isinstance(s, S.Tensor)}
    out = [Written("", "", "in training added to the loss")] * bool(penalties)
    out += [Written("penalty", "=", p) for p in penalties]
    out += [Written("", "", "after each step of training")] * bool(after)
    return out + [
        Written(style.variable(line.names[0]), "←" if line.names[0] in own else "=", style.text(line.value))
        for line in after
    ]


def place(row: Row, method: Method) -> str:
    """Where a row acts, as text: its sites, and the layers and tokens where these are chosen."""
    columns = columns_of(row, method)
    return "; ".join([columns["modify"], *(f"{c} {columns[c]}" for c in ("layers", "tokens") if columns[c])])


def as_text(method: Method) -> str:
    """The formula for a terminal."""
    parts: list[str] = []
    for name, found in formula(method):
        row = next((r for r in method.rows if r.name == name), None)
        parts.append(f"{name} at {place(row, method)}" if row is not None else name)
        width = max(len(line.name) for line in found)
        parts += [
            f"  {line.name:>{width}} {line.sign} {line.text}" if line.name else f"  {line.text}" for line in found
        ]
    return "\n".join(parts)


def as_latex(method: Method) -> str:
    """The formula as an ``align*`` environment."""
    rows: list[str] = []
    selected = {r.name: f", {to_text(S.Tokens(r.tokens))}" for r in method.rows if r.tokens}
    for name, found in formula(method, TEX):
        tokens = selected.get(name, "")
        for i, (n, sign, f) in enumerate(found):
            if n == "train":
                rows.append(f"& \\text{{train }} \\texttt{{{f}}}".replace("_", r"\_"))
                continue
            if not n:
                rows.append(rf"& \text{{{f}}}")
                continue
            n = r"\text{penalty}" if n == "penalty" else n
            sign = r"\leftarrow" if sign == "←" else sign
            note = rf" && \text{{{name}{tokens}}}".replace("_", r"\_") if i == 0 else ""
            rows.append(f"{n} &{sign} {f}{note}")
    return "\\begin{align*}\n" + " \\\\\n".join(f"  {r}" for r in rows) + "\n\\end{align*}"
