"""Inputs that nobody would write, and what the static half of the library must make of them: diagnostics or a method.

`mutants` yields damaged definitions of the library without end; `derived` is a hypothesis strategy over the grammar.
`judge` reads, checks and describes one input in every way that needs no model, and returns what became of it; whatever
it raises is a bug. Used by `test_fuzz.py` (20,000 inputs) and `benchmarks/fuzz.py` (as many as asked for).
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from hypothesis import strategies as st

from unipelt.language import ir, library, loading
from unipelt.language.analyse import canonical
from unipelt.language.analyse import counts
from unipelt.language.write import document
from unipelt.language.write import formula
from unipelt.language.analyse import meaning
from unipelt.language.syntax import printer
from unipelt.language.report.diagnostics import PeltError
from unipelt.language.syntax.format import format_text
from unipelt.language.syntax.parser import parse
from unipelt.language.analyse.verdicts import verdicts
from unipelt.language.report.render import render
from unipelt.language.sites import PARAMETERS
from unipelt.language.sites import SITES
from unipelt.language import words as vocabulary
from unipelt.resources import folder

_TOKEN = re.compile(r'"""[\s\S]*?"""|"[^"\n]*"|#[^\n]*|[A-Za-z_]\w*|[0-9][\w.%]*|\*\*|\.\.|[<>=!]=|\s+|.')
_NUMBERS = (
    "0",
    "-1",
    "1",
    "2",
    "0.0",
    "0.5",
    "1e308",
    "1e-308",
    "999999999999",
    "100%",
    "0%",
    "64",
    "7",
    "1e400",
    "3.7",
)
_ODD = (
    "\0",
    "\ufeff",
    "\r",
    "\r\n",
    "\t",
    "\x0b",
    "\x7f",
    "é",
    "\u2028",
    "\U0001f600",
    '"',
    '"""',
    "#",
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    "|",
)
_RAW = (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x80", b"\x00", b"\xf4\x90\x80\x80")
_SIGNS = ("+", "-", "*", "/", "@", "**", "<", "==", ">=")
_WORDS = {
    "NUMBER": ["0", "1", "2", "3", "0.5", "4", "1e-5", "1%"], "STRING": ['"adapters.pelt"', '"a.(b|c)"', '"x"', '""'],
    "LONGSTRING": ['"""A method."""', '""" """', '"""Two\nlines: { of it."""'],
}  # fmt: skip
_LADDER = frozenset("expr test sum product unary power postfix".split())  # each of them may be the next one alone
_KEYWORDS = frozenset(
    "import method form gate compose anatomy for from modify insert layers tokens train use as gated by".split()
)


def pool() -> list[str]:
    """Texts to damage: every file of the library, each of its definitions alone, its methods with all inlined, and the
    example of every word (some stand in no method of the library)."""
    texts = [w.example for w in vocabulary.words().values() if w.example]
    for path in sorted(folder("specs").rglob("*.pelt")):
        text = path.read_text("utf-8")
        texts.append(text)
        for d in parse(text, str(path)).definitions:
            texts.append(printer.to_text(d))
            if d.kind == "method" and not library.library_definition("anatomy", d.name):
                texts.append(str(loading.load(d.name)))
    return texts


def mutants(seed: int, longest: int = 900) -> Iterator[bytes]:
    """Damaged texts without end, the same for the same seed: one to four changes of bytes, words or lines.

    ``longest``: of the texts that are damaged, in characters. A whole long file costs what fifty definitions do, and finds
    no more.
    """
    rng = random.Random(seed)
    texts = [t for t in pool() if len(t) < longest]
    words = sorted({w for t in [*texts, *SITES, *PARAMETERS] for w in _TOKEN.findall(t) if not w.isspace()})
    while True:
        text = rng.choice(texts)
        for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
            text = rng.choice(_CHANGES)(rng, text, words, texts)
        data = text.encode("utf-8", "surrogatepass")
        if rng.random() < 0.05:
            data = _bytes(rng, data)
        yield data[: 1 << 16]


def sentences(seed: int, deepest: int = 14) -> Iterator[bytes]:
    """Texts that the grammar allows, without end: random walks over its rules, brought to an end where they get deep.

    ``deepest``: of the rules in each other, after which the shortest way out is taken. Most mean nothing, since any name may stand anywhere; it is the checker that must say so.
    """
    rng = random.Random(seed)
    grammar = _Grammar("start")
    words = {**_WORDS, "NAME": _names()}
    starts = [r for r in ("method", "form", "gate", "compose_short", "compose_long") if r in grammar.rules]
    while True:
        texts = [
            grammar.walk(rng, rng.choice(starts), rng.randint(4, deepest), words)
            for _ in range(rng.choice((1, 1, 1, 2, 3)))
        ]
        yield "\n".join(texts).encode()


class _Grammar:
    """The rules of the shipped grammar, for drawing from them."""

    def __init__(self, start: str):
        from lark import Lark

        self.lark = Lark((folder("grammar") / "pelt.lark").read_text("utf-8"), start=start, parser="lalr")
        terminals, rules, self.ignored = self.lark.grammar.compile([start], ())
        self.terminals = {t.name: t.pattern.value for t in terminals}
        self.rules: dict[str, list[list[str]]] = {}
        for r in rules:
            self.rules.setdefault(r.origin.name, []).append([s.name for s in r.expansion])
        height = dict.fromkeys(self.terminals, 0)
        while len(height) < len(self.terminals) + len(self.rules):
            for name, expansions in self.rules.items():
                known = [max((height[s] for s in e), default=0) + 1 for e in expansions if all(s in height for s in e)]
                if known and name not in height:
                    height[name] = min(known)
        self.least: dict[str, list[list[str]]] = {}
        self.likely = {
            n: [0.1 if e in (["STRING"], ["LSQB", "RSQB"]) else 1 for e in found] for n, found in self.rules.items()
        }
        for name, found in self.rules.items():
            heights = [max((height[s] for s in e), default=0) for e in found]
            self.least[name] = [e for e, h in zip(found, heights) if h == min(heights)]

    def text(self, terminal: str) -> str | None:
        """What a keyword or a sign looks like; None for a class of words."""
        pattern = self.terminals[terminal].replace("\\", "")
        return (
            None
            if terminal in _WORDS or terminal == "NAME"
            else pattern.removesuffix("b")
            if pattern.isalpha()
            else pattern
        )

    def walk(self, rng: random.Random, symbol: str, depth: int, words: dict[str, list[str]]) -> str:
        if symbol in words:
            return rng.choice(words[symbol])
        if symbol in self.terminals:
            return rng.choice(("==", "<=", ">=", "<", ">", "!=")) if symbol == "COMPARE" else self.text(symbol) or ""
        if depth <= 0 or (symbol in _LADDER and rng.random() < 0.5):
            expansion = rng.choice(self.least[symbol])
        else:
            expansion = rng.choices(self.rules[symbol], self.likely[symbol])[0]
        return " ".join([self.walk(rng, s, depth - 1, words) for s in expansion])


def _names() -> list[str]:
    """Words of the library; those that nearly every definition has are likelier."""
    texts = [*pool(), *SITES, *PARAMETERS]
    words = sorted({w for t in texts for w in re.findall(r"[A-Za-z_]\w*", t) if w not in _KEYWORDS and len(w) < 16})
    return words + 20 * "z h x q A B delta r l d_in d_out d_model attn ffn heads hidden relu zeros normal m f".split()


def derived() -> st.SearchStrategy[str]:
    """Definitions that the grammar allows, drawn by hypothesis over its rules down to expressions.

    The expressions come from `_Grammar.walk`: hypothesis takes each alternative as often as another, so the rungs from
    `expr` to `atom` would grow without end, and nearly every draw be thrown away.
    """
    from hypothesis.extra.lark import from_lark
    from lark import Lark

    rng, whole, words = random.Random(0), _Grammar("start"), {**_WORDS, "NAME": _names()}
    words["EXPR"] = [whole.walk(rng, "expr", depth, words) for depth in range(1, 12) for _ in range(60)]
    head, rest = (folder("grammar") / "pelt.lark").read_text("utf-8").split("// Expressions", 1)
    terminals = rest[rest.index("_IMPORT.2") :]
    short = Lark(f'{head}\ncall: NAME ("(" EXPR ")")?\nexpr: EXPR\n?item: EXPR\nEXPR: "0"\n{terminals}', parser="lalr")

    def part(start: str) -> st.SearchStrategy[str]:
        found, _, ignored = short.grammar.compile([start], ())
        explicit = dict.fromkeys(ignored, st.sampled_from((" ", "\n", "\t", " # a comment\n")))
        for name in {t.name for t in found} - set(ignored):
            explicit[name] = (st.sampled_from(words[name]) if name in words else st.just(whole.text(name))).map(
                " {} ".format
            )
        return from_lark(short, start=start, explicit=explicit)

    def some(what: str) -> st.SearchStrategy[str]:
        return st.lists(part(what), max_size=4).map("\n  ".join)

    row = st.builds(
        "modify {} insert parallel form {{ {} delta = {} }} compose add".format,
        part("paths"),
        some("statement"),
        part("expr"),
    )
    method = st.builds("method m {} {{ {} {} }}".format, st.one_of(st.just(""), part("params")), row, some("m_clause"))
    return st.one_of(method, method, *(part(rule) for rule in ("method", "form", "compose_long", "anatomy", "import_")))


def _pieces(text: str) -> tuple[list[str], list[int]]:
    pieces = _TOKEN.findall(text)
    return pieces, [i for i, p in enumerate(pieces) if not p.isspace()] or [0]


def _word(rng: random.Random, text: str, words: list[str], texts: list[str]) -> str:
    """A word is replaced by another, dropped, doubled or misspelt."""
    pieces, solid = _pieces(text)
    if not pieces:
        return rng.choice(words)
    i = rng.choice(solid)
    new = rng.choice((rng.choice(words), pieces[rng.choice(solid)], "", pieces[i] * 2, pieces[i][1:], pieces[i] + "x"))
    pieces[i] = new
    return "".join(pieces)


def _renamed(rng: random.Random, text: str, words: list[str], texts: list[str]) -> str:
    """A name gives way to another, a sign to another sign: what still parses is for the checker to refuse."""
    pieces, _ = _pieces(text)
    names = [i for i, p in enumerate(pieces) if p.isidentifier() and p not in _KEYWORDS]
    signs = [i for i, p in enumerate(pieces) if p in _SIGNS]
    if signs and rng.random() < 0.25:
        pieces[rng.choice(signs)] = rng.choice(_SIGNS)
    elif names:
        new = rng.choice((pieces[rng.choice(names)], rng.choice([w for w in words if w.isidentifier()])))
        pieces[rng.choice(names)] = new
    return "".join(pieces)


def _number(rng: random.Random, text: str, words: list[str], texts: list[str]) -> str:
    found = list(re.finditer(r"(?<![\w.])[0-9][\w.]*%?", text))
    if not found:
        return text
    m = rng.choice(found)
    return text[: m.start()] + rng.choice(_NUMBERS) + text[m.end() :]


def _moved(rng: random.Random, text: str, words: list[str], texts: list[str]) -> str:
    """Two words change places."""
    pieces, solid = _pieces(text)
    if not pieces:
        return text
    i, j = rng.choice(solid), rng.choice(solid)
    pieces[i], pieces[j] = pieces[j], pieces[i]
    return "".join(pieces)


def _line(rng: random.Random, text: str, words: list[str], texts: list[str]) -> str:
    """A line is dropped, doubled or moved."""
    lines = text.split("\n")
    line = lines.pop(rng.randrange(len(lines)))
    for _ in range(rng.choice((0, 1, 1, 2, 30))):
        lines.insert(rng.randint(0, len(lines)), line)
    return "\n".join(lines)


def _odd(rng: random.Random, text: str, words: list[str], texts: list[str]) -> str:
    i = rng.randint(0, len(text))
    return text[:i] + rng.choice(_ODD) * rng.choice((1, 1, 1, 2, 80)) + text[i + rng.choice((0, 0, 1, 5)) :]


def _spliced(rng: random.Random, text: str, words: list[str], texts: list[str]) -> str:
    """The front of one text and the end of another."""
    other = rng.choice(texts)
    return text[: rng.randint(0, len(text))] + other[rng.randint(0, len(other)) :]


def _bytes(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data or b" ")
    for _ in range(rng.choice((1, 1, 3, 10))):
        i = rng.randrange(len(changed))
        if rng.random() < 0.5:
            changed[i] ^= 1 << rng.randrange(8)
        else:
            changed[i:i] = rng.choice(_RAW)
    return bytes(changed)


def judge(data: bytes, place: Path, wholly: bool = True, codes: Counter[str] | None = None) -> str:
    """What becomes of an input: ``text`` (no definition parses), ``mistakes``, or ``method``. Anything raised is a bug.

    ``place`` is a file that may be written over; the bytes are read from there, as a user's would be. ``wholly``: what
    is read is also laid out and described (four times the work). ``codes`` counts the mistakes found.
    """
    place.unlink(missing_ok=True)  # to cut a file to nothing costs more than to make one
    place.write_bytes(data)
    found = loading.check(place)
    outcome = "text" if any(c.kind == "file" for c in found) else "mistakes"
    for c in found:
        for d in c.diagnostics:
            render(d)
            if codes is not None:
                codes[d.code] += 1
            assert d.code and d.message and (d.span is None or 0 <= d.span.start <= d.span.end), d
        if c.method is not None:
            outcome = "method"
            if wholly:
                _described(c.method)
    if wholly and outcome != "text":
        text = place.read_text("utf-8")
        laid_out = format_text(text)
        assert parse(laid_out) == parse(text), "the formatter changes the meaning"
        assert format_text(laid_out) == laid_out, "the formatter does not stand still"
    return outcome


def _described(method: ir.Method) -> None:
    """Everything that is said of a method without a model; its text must mean the method."""
    for verdict in verdicts(method).values():
        assert verdict.value and verdict.reason
    counts.formula(method)
    formula.as_text(method)
    formula.as_latex(method)
    document.rows_of([method])
    again = loading.parse(str(method))
    assert again.rows == method.rows and again.trains == method.trains, "the printed method is another"
    assert ir.from_json(ir.to_json(method)) == method, "JSON does not give the method back"
    try:
        canonical.canonical(meaning.meaning(method))
    except PeltError:
        pass  # a method with an argument of no value has a meaning only once it is bound


_CHANGES = (_renamed, _renamed, _renamed, _renamed, _word, _word, _number, _number, _moved, _line, _odd, _spliced)
