"""Inputs that nobody would write, and what the static half of the library must make of them: diagnostics or a method.

`mutants` yields damaged definitions of the library without end; `derived` is a hypothesis strategy over the grammar.
`judge` reads, checks and describes one input in every way that needs no model, and returns what became of it; whatever
it raises is a bug. Used by `test_fuzz.py` (20,000 inputs) and `benchmarks/fuzz.py` (as many as asked for).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

from unipelt.language import canonical, counts, document, formula, ir, library, loading, meaning, printer
from unipelt.language.diagnostics import PeltError
from unipelt.language.format import format_text
from unipelt.language.parser import parse
from unipelt.language.properties import verdicts
from unipelt.language.render import render
from unipelt.resources import folder

_TOKEN = re.compile(r'"""[\s\S]*?"""|"[^"\n]*"|#[^\n]*|[A-Za-z_]\w*|[0-9][\w.%]*|\*\*|\.\.|[<>=!]=|\s+|.')
_NUMBERS = ("0", "-1", "1", "2", "0.0", "0.5", "1e308", "1e-308", "999999999999", "100%", "0%", "64", "7", "1e400", "3.7")
_ODD = ("\0", "\ufeff", "\r", "\r\n", "\t", "\x0b", "\x7f", "é", "\u2028", "\U0001f600", '"', '"""', "#", "{", "}", "(", ")", "[", "]", "|")
_RAW = (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\x80", b"\x00", b"\xf4\x90\x80\x80")
_SIGNS = ("+", "-", "*", "/", "@", "**", "<", "==", ">=")
_KEYWORDS = frozenset("import method form gate compose anatomy for from modify insert layers tokens train use as gated by".split())


def pool() -> list[str]:
    """Texts to damage: every file of the library, each of its definitions alone, and its methods with all inlined."""
    texts: list[str] = []
    for path in sorted(folder("specs").rglob("*.pelt")):
        text = path.read_text("utf-8")
        texts.append(text)
        for d in parse(text, str(path)).definitions:
            texts.append(printer.to_text(d))
            if d.kind == "method" and not library.library_definition("anatomy", d.name):
                texts.append(str(loading.load(d.name)))
    return texts


def mutants(seed: int) -> Iterator[bytes]:
    """Damaged texts without end, the same for the same seed: one to four changes of bytes, words or lines."""
    rng = random.Random(seed)
    texts = [t for t in pool() if len(t) < 4000]  # a whole long file costs what fifty definitions do, and finds no more
    words = sorted({w for t in texts for w in _TOKEN.findall(t) if not w.isspace()})
    while True:
        text = rng.choice(texts)
        for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
            text = rng.choice(_CHANGES)(rng, text, words, texts)
        data = text.encode("utf-8", "surrogatepass")
        if rng.random() < 0.05:
            data = _bytes(rng, data)
        yield data[: 1 << 16]


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


def judge(data: bytes, place: Path) -> str:
    """What becomes of an input: ``text`` (no definition parses), ``mistakes``, or ``method``. Anything raised is a bug.

    ``place`` is a file that may be written over; the bytes are read from there, as a user's would be.
    """
    place.write_bytes(data)
    found = loading.check(place)
    outcome = "text" if any(c.kind == "file" for c in found) else "mistakes"
    for c in found:
        for d in c.diagnostics:
            render(d)
            assert d.code and d.message and (d.span is None or 0 <= d.span.start <= d.span.end), d
        if c.method is not None:
            outcome = "method"
            _described(c.method)
    if outcome != "text":
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
