"""Every state of the parser × what may stand there and does not fit: the message is one of ours, in words of the language.

The states are enumerated from the LALR table itself: a breadth-first walk over its stacks finds a shortest text that
leads to each. Words that the lexer tells apart, but that the language treats alike, have a few to stand for them.
"""

from __future__ import annotations

import re
from collections import deque
from functools import cache

import pytest
from lark.parsers.lalr_analysis import Shift

from unipelt.language.syntax import errors as syntax_errors
from unipelt.language.report.diagnostics import Diagnostic
from unipelt.language.syntax.parser import _try
from unipelt.language.syntax.errors import explain
from unipelt.language.syntax.tables import load

STARTS = ("start", "expr")
#: How much of a stack tells two of them apart; with 3, no further state is found.
DEEP = 2
TABLE = load().parser.parser._parse_table
TERMINALS = sorted({t for row in TABLE.states.values() for t in row if t.isupper() or t == "$END"})
TEXTS = {
    **{t: t.lstrip("_").lower() for t in TERMINALS}, **syntax_errors._SIGNS, "NAME": "a", "NUMBER": "2", "STRING": '"s"',
    "LONGSTRING": '"""d"""', "$END": "",
}  # fmt: skip
#: Keywords that `explain` speaks of by name, and one of each kind of the others.
KEYWORDS = {
    "_METHOD",
    "_IMPORT",
    "_FORM",
    "_MODIFY",
    "_COMPOSE",
    "_GATE",
    "_IF",
    "_PER",
    "_AS",
    "FROZEN",
    "_AXIS",
    "_FIRST",
}
TRIED = [t for t in TERMINALS if not (t.startswith("_") or t == "FROZEN") or t in KEYWORDS]
#: What a message begins with. Whatever begins otherwise is not ours.
OURS = re.compile(
    r"expected (?P<words>.+), found (`.+`|a string|a docstring|the end of the text)$"
    r"|`.+` is not closed$|`.+` does not begin a (clause|statement)$|`.+` needs something to name$"
    r"|`.+` is a word of the language and cannot name a tensor or a value$"
    r"|`[:=]` does not belong after `\w+`: its value follows directly$|`.+` is not a number$|`.+` means nothing here$"
)
WORDS = re.compile(
    r"a (definition|clause|statement|selection) \(`[^()]+(?:\([^()]*\)[^()]*)*\)|an expression|an operator"
    r"|a name|a number|a string|a docstring|the end of the text|`[^`]+`"
)


def stepped(stack: tuple[int, ...], terminal: str) -> tuple[int, ...] | None:
    """The stack after a terminal, or nothing where it does not fit."""
    states = list(stack)
    while terminal in TABLE.states[states[-1]]:
        action, target = TABLE.states[states[-1]][terminal]
        if action is Shift:
            return (*states, target)
        if target.expansion:
            del states[-len(target.expansion) :]
        states.append(TABLE.states[states[-1]][target.origin.name][1])
    return None


@cache
def reached(start: str, deep: int = DEEP) -> dict[int, tuple[tuple[int, ...], tuple[str, ...]]]:
    """Every state in which a terminal can be awaited: the stack and the terminals of a shortest text that leads there."""
    first = (TABLE.start_states[start],)
    found = {first[-1]: (first, ())}
    todo, seen = deque([(first, ())]), {first[-deep:]}
    while todo:
        stack, terminals = todo.popleft()
        for terminal in (t for t in TABLE.states[stack[-1]] if t.isupper()):
            new = stepped(stack, terminal)
            if new is not None and new[-deep:] not in seen:
                seen.add(new[-deep:])
                todo.append((new, (*terminals, terminal)))
                found.setdefault(new[-1], (new, (*terminals, terminal)))
    return found


def named(message: str) -> list[str]:
    """What a message says is expected, word by word; nothing else may stand between them than commas and `or`."""
    said = OURS.fullmatch(message)
    assert said, message
    words = said["words"] or ""
    rest = WORDS.sub("", words)
    assert re.fullmatch(r"[, or]*", rest), (message, rest)
    return [m[0] for m in WORDS.finditer(words)]


def failures(start: str, stack: tuple[int, ...], terminals: tuple[str, ...]) -> list[tuple[str, Diagnostic]]:
    """What is said where a terminal that does not fit follows on a text."""
    front = " ".join(TEXTS[t] for t in terminals)
    found = []
    for terminal in TRIED:
        if stepped(stack, terminal) is None:
            text = f"{front} {TEXTS[terminal]}".strip()
            _, failure = _try(text, start)
            if failure is not None:  # where a keyword is awaited nowhere, it is a name
                found.append((text, explain(failure, text, "state", 0)))
    return found


@pytest.mark.parametrize("start", STARTS)
def test_every_state_that_can_fail_has_a_human_message(start: str) -> None:
    states = reached(start)
    assert len(states) >= (190 if start == "start" else 40)
    tried = 0
    for stack, terminals in states.values():
        for text, d in failures(start, stack, terminals):
            tried += 1
            words = named(d.message)
            assert len(words) < 7 and "nothing" not in words, (text, d.message)
            everything = " ".join([d.message, d.label, d.help, *(m.text for m in d.labels)])
            unknown = [w for w in re.findall(r"\b_?[A-Z]{2,}\b|\$END|Token\(", everything) if w not in ("NAME", "SITE")]
            assert not unknown, (text, everything)
            assert len(d.message) < 300 and 0 <= d.span.start <= d.span.end <= len(text) + 1, (text, d)
    assert tried > (4000 if start == "start" else 500)


def test_what_is_expected_is_what_can_follow() -> None:
    """Each single word that a message names can be written there."""
    words = {f"`{TEXTS[t]}`": t for t in TERMINALS if t not in ("NAME", "NUMBER", "STRING", "LONGSTRING", "$END")}
    words |= {"a name": "NAME", "a number": "NUMBER", "a string": "STRING"}
    for stack, terminals in reached("start").values():
        for text, d in failures("start", stack, terminals)[:3]:
            first = len(" ".join(TEXTS[t] for t in terminals)) + bool(terminals)
            for word in named(d.message) if d.span.start == first else ():
                if word in words:
                    assert stepped(stack, words[word]) is not None, (text, d.message, word)


def test_a_deeper_walk_finds_what_a_text_of_the_language_needs() -> None:
    """States that only the deeper walk meets fail with the same messages."""
    rest = {s: v for s, v in reached("start", 3).items() if s not in reached("start")}
    assert len(rest) > 20
    for stack, terminals in rest.values():
        for text, d in failures("start", stack, terminals):
            assert OURS.fullmatch(d.message), (text, d.message)
