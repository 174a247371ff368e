"""A row's formula as mathematics, in Unicode and in LaTeX, derived from the IR.

Products of matrices stand side by side, elementwise ones get a sign; what is written is what is evaluated, line by
line: the lets of the form, those of the composition, and the new ``h``.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..syntax import nodes as S
from .composition import composition
from .columns import columns_of
from ..ir import Method, Row
from ..syntax.printer import to_text

_GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "Δ", "lam": "λ", "sigma": "σ", "theta": "θ", "mu": "μ", "phi": "φ",
}  # fmt: skip
_GREEK_TEX = {**{k: f"\\{k}" for k in _GREEK}, "delta": r"\Delta", "lam": r"\lambda"}
_FUNCTIONS = {"sigmoid": "σ"}
_SUM, _PRODUCT, _UNARY, _POWER, _ATOM = range(5)


@dataclass(frozen=True, slots=True)
class Style:
    """How a notation spells what differs between the two."""

    tex: bool

    def name(self, name: str) -> str:
        if self.tex and name.startswith("d_"):
            return f"d_{{\\mathrm{{{name[2:]}}}}}"
        head, _, tail = name.partition("_")
        greek = _GREEK_TEX if self.tex else _GREEK
        head = greek.get(head, head)
        if not self.tex:
            return f"{head}_{tail}" if tail else head
        if len(head) > 1 and not head.startswith("\\"):
            head = f"\\mathit{{{head}}}"
        tail = tail.replace("_", r"\_")
        return f"{head}_{{\\mathrm{{{tail}}}}}" if tail else head

    def call(self, name: str, args: list[str]) -> str:
        inner = ", ".join(args)
        if not self.tex:
            return f"{_FUNCTIONS.get(name, name)}({inner})"
        if name == "sqrt" and len(args) == 1:
            return f"\\sqrt{{{args[0]}}}"
        shown = r"\sigma" if name == "sigmoid" else r"\operatorname{" + name.replace("_", r"\_") + "}"
        return f"{shown}({inner})"


TEX, UNICODE = Style(True), Style(False)


def write(e: S.Expr, style: Style = UNICODE) -> str:
    """An expression in a notation."""
    return _at(e, _SUM, style)


def _at(e: S.Expr, least: int, style: Style) -> str:
    text, level = _written(e, style)
    if level >= least:
        return text
    return f"\\left({text}\\right)" if style.tex else f"({text})"


def _written(e: S.Expr, style: Style) -> tuple[str, int]:
    match e:
        case S.Number():
            return to_text(e).replace("%", r"\%" if style.tex else "%"), _ATOM
        case S.Name(id):
            return style.name(id), _ATOM
        case S.Attr(value, "T"):
            top = r"^{\top}" if style.tex else "ᵀ"
            return f"{_at(value, _ATOM, style)}{top}", _ATOM
        case S.Attr():
            return style.name(S.dotted(e) or to_text(e)), _ATOM
        case S.Negative(value):
            return f"-{_at(value, _UNARY, style)}", _UNARY
        case S.Binary(op, left, right) if op in "+-":
            sign = op if style.tex else {"+": "+", "-": "−"}[op]
            return f"{_at(left, _SUM, style)} {sign} {_at(right, _PRODUCT, style)}", _SUM
        case S.Binary("@", left, right):
            gap = r"\, " if style.tex else " "
            return f"{_at(left, _PRODUCT, style)}{gap}{_at(right, _UNARY, style)}", _PRODUCT
        case S.Binary("*", left, right):
            sign = r" \cdot " if style.tex else " · "
            return f"{_at(left, _PRODUCT, style)}{sign}{_at(right, _UNARY, style)}", _PRODUCT
        case S.Binary("/", left, right):
            if style.tex:
                return f"\\frac{{{_at(left, _SUM, style)}}}{{{_at(right, _SUM, style)}}}", _ATOM
            return f"{_at(left, _PRODUCT, style)} / {_at(right, _UNARY, style)}", _PRODUCT
        case S.Binary("**", left, right):
            base = _at(left, _ATOM, style)
            return (
                f"{base}^{{{_at(right, _SUM, style)}}}" if style.tex else f"{base}^{_at(right, _ATOM, style)}"
            ), _POWER
        case S.Apply(function, args):
            name = S.dotted(function) or to_text(function)
            return style.call(name, [_at(a.value, _SUM, style) for a in args]), _ATOM
        case S.Choose(then, test, other):
            words = (r"\text{ if }", r"\text{ else }") if style.tex else (" if ", " else ")
            return (
                f"{_at(then, _SUM, style)}{words[0]}{_at(test, _SUM, style)}{words[1]}{_at(other, _SUM, style)}",
                _SUM,
            )
        case S.Compare(op, left, right):
            sign = {"<=": r"\le" if style.tex else "≤", ">=": r"\ge" if style.tex else "≥", "!=": r"\ne" if style.tex else "≠",
                    "==": "="}.get(op, op)  # fmt: skip
            return f"{_at(left, _SUM, style)} {sign} {_at(right, _SUM, style)}", _SUM
    text = to_text(e)
    return (f"\\texttt{{{text}}}".replace("_", r"\_") if style.tex else text), _ATOM


# ---------------------------------------------------------------- rows


def insertion(row: Row) -> str:
    """What z is, as mathematics: ``z = x``."""
    e = row.insert
    if e is None:
        return ""
    if isinstance(e, S.Name) and e.id in ("parallel", "sequential"):
        heads = any(str(p).endswith("heads") for p in row.sites)
        return "h" if e.id == "sequential" else "q" if heads else "x"
    return write(e)


def lines(row: Row, style: Style = UNICODE) -> list[tuple[str, str]]:
    """(name, formula) of a row: z, the form's lets, the gate, and last the new h."""
    out: list[tuple[str, str]] = []
    lets = [s for s in row.form if isinstance(s, S.Let)]
    if row.insert is not None and any(
        isinstance(n, S.Name) and n.id == "z" for s in (*row.form, *(row.gate or ())) for n in S.walk(s)
    ):
        z = insertion(row)
        out.append((style.name("z"), z if not style.tex or len(z) == 1 else write(row.insert, style)))
    out += [(style.name(s.names[0]), write(s.value, style)) for s in lets]
    out += [(style.name(s.names[0]), write(s.value, style)) for s in row.gate or () if isinstance(s, S.Let)]
    for s in row.compose:
        if isinstance(s, S.Let) and s.names[0] != "out":
            out.append((style.name(s.names[0]), write(s.value, style)))
    out.append((style.name("h"), write(composition(row).new, style)))
    return out


def formula(method: Method, style: Style = UNICODE) -> list[tuple[str, list[tuple[str, str]]]]:
    """Every row by name with its lines; trained copies in words."""
    out = [(r.name, lines(r, style)) for r in method.rows]
    for t in method.trains:
        out.append((t.name, [("train", ", ".join(str(p) for p in t.paths))]))
    return out


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
        width = max(len(n) for n, _ in found)
        for i, (n, f) in enumerate(found):
            arrow = "←" if row is not None and i == len(found) - 1 else " " if n == "train" else "="
            parts.append(f"  {n:>{width}} {arrow} {f}")
    return "\n".join(parts)


def as_latex(method: Method) -> str:
    """The formula as an ``align*`` environment."""
    rows: list[str] = []
    for name, found in formula(method, TEX):
        for i, (n, f) in enumerate(found):
            if n == "train":
                rows.append(f"& \\text{{train }} \\texttt{{{f}}}".replace("_", r"\_"))
                continue
            sign = r"\leftarrow" if i == len(found) - 1 else "="
            note = rf" && \text{{{name}}}".replace("_", r"\_") if i == 0 else ""
            rows.append(f"{n} &{sign} {f}{note}")
    return "\\begin{align*}\n" + " \\\\\n".join(f"  {r}" for r in rows) + "\n\\end{align*}"
