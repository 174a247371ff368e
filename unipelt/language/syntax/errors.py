"""What the parser could not read, said in human words: what was found, what could stand there, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..report.diagnostics import Diagnostic, Label, instead, nearest, put
from ..sites import SITES, STACKS
from .nodes import Span

_DEFINITIONS = ("method", "form", "compose", "gate", "anatomy")
_CLAUSES = ("modify", "insert", "form", "compose", "layers", "tokens", "train", "use")
_STATEMENTS = ("axis", "frozen", "input", "carry", "after", "penalty", "require")
_SIGNS = {
    "LBRACE": "{", "RBRACE": "}", "LPAR": "(", "RPAR": ")", "LSQB": "[", "RSQB": "]", "COLON": ":", "COMMA": ",",
    "EQUAL": "=", "DOT": ".", "VBAR": "|", "TILDE": "~", "STAR": "*", "SLASH": "/", "PLUS": "+", "MINUS": "-",
    "AT": "@", "POW": "**", "DOTDOT": "..", "COMPARE": "==",
}  # fmt: skip
_WORDS = {"NAME": "a name", "NUMBER": "a number", "STRING": "a string", "LONGSTRING": "a docstring",
          "$END": "the end of the text"}  # fmt: skip
_EXPRESSION = {"NAME", "NUMBER", "STRING", "LPAR", "LSQB", "MINUS"}
_OPERATORS = {"PLUS", "MINUS", "STAR", "SLASH", "AT", "POW", "COMPARE", "_IF", "DOT", "LPAR", "LSQB"}
_SELECTION = {"_ALL", "_FIRST", "_LAST", "_EVERY", "_SINCE", "_INSERTED"}
#: Where a gate of a row stands, and how a part of a form has one.
_GATED = (
    "put the row into `use { … } as name gated by a_gate`; within a form or composition call the gate: `g = a_gate(z)`"
)
_BRACKETS = re.compile(r'"""[\s\S]*?"""|"[^"\n]*"|#[^\n]*|(?P<bracket>[()\[\]{}])')
_HELP = {
    "'": "write strings in double quotes",
    ";": "leave it out: clauses and statements need no separator",
    "^": "a power is written `**`",
    "%": "`%` is only a percent sign; divisibility is `divides(b, d)`",
    "!": "not equal is written `!=`; there is no `not`: exchange the two sides of `if … else`",
    "&": "write one `require` for each condition",
    "\\": "lines may be broken anywhere without a sign",
}

#: What is written in the place of a sign that means nothing.
_INSTEAD = {";": "", "^": "**", "\\": ""}


def explain(failure: Any, text: str, file: str, offset: int) -> Diagnostic:
    """The diagnostic of an exception of lark, raised over ``text`` that begins at ``offset`` of its file."""
    if hasattr(failure, "token"):
        return _token(failure, text, file, offset)
    return _character(text, failure.pos_in_stream, file, offset)


def _character(text: str, at: int, file: str, offset: int) -> Diagnostic:
    """Nothing in the language begins with what stands here."""

    def span(length: int) -> Span:
        return Span(file, offset + at, offset + at + length)

    sign = text[at]
    if text.startswith('"""', at):
        return Diagnostic(
            "E0104", "a docstring is not closed", span(3), label="opened here", help='close it with `"""`'
        )
    if sign == '"':
        length = len(text[at:].split("\n", 1)[0])
        end = Span(file, offset + at + length, offset + at + length)
        return Diagnostic(
            "E0104", "a string is not closed on its line", span(length), help='close it with `"`', edits=put('"', end)
        )
    number = re.compile(r"[0-9.][\w.]*%?\w*").match(text, at)
    if number and any(c.isdigit() for c in number.group()):
        help_ = "a name begins with a letter; put an operator or a space after a number"
        return Diagnostic("E0103", f"`{_shown(number.group())}` is not a number", span(len(number.group())), help=help_)
    name = f"`{sign}`" if sign.isprintable() and not sign.isspace() else f"the character U+{ord(sign):04X}"
    help_ = _HELP.get(sign, "names are made of the letters a to z, digits and `_`" if sign.isalpha() else "remove it")
    quoted = re.compile(r"'([^'\"\n]*)'").match(text, at)
    if quoted:
        whole = span(len(quoted.group()))
        return Diagnostic("E0103", f"{name} means nothing here", whole, help=help_, edits=put(f'"{quoted[1]}"', whole))
    edits = put(_INSTEAD[sign], span(1)) if sign in _INSTEAD else ()
    return Diagnostic("E0103", f"{name} means nothing here", span(1), help=help_, edits=edits)


@dataclass(frozen=True, slots=True)
class _Unexpected:
    """A token that cannot stand where it does: the terminals that could, and the token ``before`` it. ``text`` begins at ``offset``
    of its file."""

    token: Any
    before: Any
    allowed: set[str]
    state: Any
    text: str
    file: str
    offset: int

    @property
    def at_end(self) -> bool:
        return self.token.type == "$END"

    @property
    def place(self) -> Span:
        """The token's first line; the end of what is written, where the text ends too early."""
        if self.at_end:
            return self.behind(len(self.text))
        start = self.token.start_pos
        return self.span(start, start + max(1, len(str(self.token).split("\n", 1)[0])))

    def span(self, start: int, end: int) -> Span:
        return Span(self.file, self.offset + start, self.offset + end)

    def behind(self, at: int) -> Span:
        """The empty place behind what is written before a place."""
        end = len(self.text[:at].rstrip())
        return self.span(end, end)

    @property
    def in_method(self) -> bool:
        """Whether the innermost open brace is that of a method or a row."""
        types = [getattr(v, "type", "") for v in self.state.value_stack]
        while types and types.pop() != "LBRACE":
            pass
        words = [t for t in types if t.startswith("_")]
        return bool(words) and words[-1] in ("_METHOD", "_USE")


def _token(failure: Any, text: str, file: str, offset: int) -> Diagnostic:
    state = failure.interactive_parser.parser_state
    last = state.value_stack[-1] if state.value_stack else None
    before = last if hasattr(last, "type") else None
    u = _Unexpected(failure.token, before, acceptable(state), state, text, file, offset)
    return next(d for look in _LOOKS if (d := look(u)) is not None)


def _ends_too_early(u: _Unexpected) -> Diagnostic | None:
    opened = _open_brackets(u.text) if u.at_end else []
    if not opened:
        return None
    sign = u.text[opened[-1]]
    return Diagnostic(
        "E0102", f"`{sign}` is not closed", u.span(opened[-1], opened[-1] + 1), label="opened here",
        labels=(Label(u.place, f"expected {expected(u.allowed)}"),), help=f"add `{_CLOSING[sign]}`",
        # Where a brace should close is plain at the end of the text; an expression may go on in many ways.
        edits=put("\n}", u.place) if sign == "{" else (),
    )  # fmt: skip


def _sign_behind_a_clause(u: _Unexpected) -> Diagnostic | None:
    if u.before is None or u.token.type not in ("EQUAL", "COLON") or str(u.before) not in _CLAUSES or not u.in_method:
        return None
    if re.compile(r":\s*\[").match(u.text, u.token.start_pos):  # a tensor called by a keyword, not a clause
        return None
    return Diagnostic("E0101", f"`{u.token}` does not belong after `{u.before}`: its value follows directly", u.place,
                      help=f"leave the `{u.token}` out", edits=put("", u.place))  # fmt: skip


def _clause_without_a_name(u: _Unexpected) -> Diagnostic | None:
    ends = [t.start_pos for t in (None if u.at_end else u.token, u.before) if t is not None]
    found = next((m for at in ends if (m := _EMPTY.search(u.text[:at]))), None) if u.in_method else None
    if found is None:
        return None
    return Diagnostic("E0101", f"`{found[1]}` needs something to name", u.span(*found.span(1)), help=_NAMES[found[1]])


def _keyword_as_a_name(u: _Unexpected) -> Diagnostic | None:
    """A keyword that was meant as a name, or a name that was meant as a keyword, may show itself one token later."""
    keyword = u.before if u.token.type in ("EQUAL", "COLON") else u.token
    if keyword is None or not _is_word(keyword.type):
        return None
    if not re.compile(r"\s*(?:=(?!=)|:)").match(u.text, keyword.end_pos):
        return None
    place = u.span(keyword.start_pos, keyword.end_pos)
    return Diagnostic("E0105", f"`{keyword}` is a word of the language and cannot name a tensor or a value", place, label="reserved",
                      help=f"choose another name, for example `{keyword}_`", edits=put(f"{keyword}_", place))  # fmt: skip


def _not_closed(u: _Unexpected) -> Diagnostic | None:
    opened = _unclosed(u)
    if opened is None:
        return None
    sign, end = _CLOSING[str(opened)], u.behind(u.token.start_pos)
    at = end.start - u.offset
    commented = "#" in u.text[u.text.rfind("\n", 0, at) + 1 : at]
    return Diagnostic(
        "E0102", f"`{opened}` is not closed", u.span(opened.start_pos, opened.end_pos), label="opened here",
        labels=(Label(u.place, f"expected {expected(u.allowed)}"),), help=f"add `{sign}`",
        edits=() if commented else put(("\n" if sign == "}" else "") + sign, end),
    )  # fmt: skip


def _number_with_two_points(u: _Unexpected) -> Diagnostic | None:
    token = u.token
    if token.type != "NUMBER" or u.allowed != {"NAME"} or u.text[token.start_pos - 1 : token.start_pos] != ".":
        return None
    begin = re.compile(r"[\w.]*$").search(u.text[: token.start_pos])
    whole = u.text[begin.start() if begin else token.start_pos : token.end_pos]
    place = u.span(token.end_pos - len(whole), token.end_pos)
    return Diagnostic("E0103", f"`{_shown(whole)}` is not a number", place, help="a number has one point")


def _anything_else(u: _Unexpected) -> Diagnostic:
    found = (
        f"`{_shown(str(u.token))}`" if u.token.type not in ("STRING", "LONGSTRING", "$END") else _WORDS[u.token.type]
    )
    help_, new = _help(u) or _other_help(u)
    new, place = new if isinstance(new, tuple) else (new, u.place)
    return Diagnostic("E0101", f"expected {expected(u.allowed)}, found {found}", u.place, help=help_,
                      edits=put(new, place) if new is not None else ())  # fmt: skip


_CLOSING = {"(": ")", "[": "]", "{": "}"}
_CLOSERS = {"LPAR": "RPAR", "LSQB": "RSQB", "LBRACE": "RBRACE"}


def _unclosed(u: _Unexpected) -> Any:
    """The innermost open bracket, where what is found can only stand behind its end."""
    opened = next((v for v in reversed(u.state.value_stack) if getattr(v, "type", "") in _CLOSERS), None)
    if opened is None or _CLOSERS[opened.type] not in u.allowed:
        return None
    ends = {*_CLOSERS.values()} - {_CLOSERS[opened.type]} if opened.type != "LBRACE" else set()
    ends |= {"LBRACE", "TILDE"} if opened.type != "LBRACE" else set()
    word = _is_word(u.token.type) and str(u.token) in (*_CLAUSES, *_DEFINITIONS)
    return opened if u.token.type in ends or word else None


def _is_word(terminal: str) -> bool:
    return terminal.startswith("_") or terminal == "FROZEN"


def _no_beginning(u: _Unexpected) -> Diagnostic | None:
    """A name stands where a clause or a statement begins, and is neither a keyword nor declared."""
    word, in_method, text = u.before, u.in_method, u.text
    if word is None or word.type != "NAME" or not {"COLON", "EQUAL"} <= u.allowed <= {"COLON", "EQUAL", "COMMA"}:
        return None
    place = u.span(word.start_pos, word.end_pos)
    shown = _shown(str(word))
    known = (*(("as", "gated", *_CLAUSES) if in_method else ()), *_STATEMENTS) if len(word) < 40 else ()
    rest = text[word.end_pos :].lstrip()
    otherwise: dict[str, Any] = {"help": f"a clause begins with {', '.join(f'`{c}`' for c in _CLAUSES[:-1])} or `{_CLAUSES[-1]}`" if in_method
                                 else f"a tensor is declared `{shown}: [sizes] ~ distribution`, a value `{shown} = expression`"}  # fmt: skip
    if in_method and str(word) == "gated":
        return Diagnostic(
            "E0101", "a gate belongs after a `use` and its name, not among the clauses of a row", place, help=_GATED
        )
    sites = {s.split(".")[0] for s in (*SITES, *STACKS)}
    if in_method and str(word) in sites and _LIST.search(text[: word.start_pos].rstrip()):
        otherwise = {"help": "separate several with commas", "edits": put(",", u.behind(word.start_pos))}
    elif rest[:1] == "~":
        otherwise = {"help": f"a tensor needs its sizes: `{shown}: [sizes] ~ distribution`"}
    elif rest[:1] == "[":
        otherwise = {"help": f"a tensor is declared `{shown}: [sizes] ~ distribution`",
                     "edits": put(":", u.span(word.end_pos, word.end_pos))}  # fmt: skip
    elif rest[:1] in ("(", "."):
        otherwise = {"help": "give the value a name: `name = …`"}
    found = instead(str(word), known, place, cutoff=0.7)
    return Diagnostic(
        "E0101", f"`{shown}` does not begin a {'clause' if in_method else 'statement'}", place, **(found if found["help"] else otherwise)
    )  # fmt: skip


#: A clause without what it names, in front of another clause that is then read as a name.
_EMPTY = re.compile(r"\b(modify|train|layers|tokens)\s+(?:modify|insert|form|compose|layers|tokens|train|use)\s*$")
_NAMES = {
    "modify": "name a site, for example `modify ffn`", "train": "name parameters, for example `train *.norm.*`",
    "layers": "select layers, for example `layers last 4`", "tokens": "select tokens, for example `tokens first 1`",
}  # fmt: skip
#: A list of sites, to which another word may belong.
_LIST = re.compile(r"\b(?:modify|train)\s+[\w.*]+(?:\s*,\s*[\w.*]+)*$")


def _help(u: _Unexpected) -> tuple[str, Any] | None:
    """What to do, and the text that stands in the token's place then, if that is plain."""
    token, text, allowed = u.token, u.text, u.allowed
    before = text[token.start_pos - 1 : token.start_pos]
    if "_METHOD" in allowed and token.type == "NAME":
        found = nearest(str(token), _DEFINITIONS) if len(token) < 40 else ""
        return (f"did you mean `{found}`?", found) if found else ("a file is a list of definitions", None)
    if "_METHOD" in allowed and token.type == "_IMPORT":
        return "put imports at the top of the file", None
    if "_METHOD" in allowed and token.type == "RBRACE":
        return "there is one `}` too many", ""
    if text.startswith("//", token.start_pos) or (token.type == "SLASH" and before == "/"):
        return "comments begin with `#`", None
    if token.type == "STAR" and before == "*":
        return "a power has a base and an exponent: `a ** b`", None
    if token.type == "EQUAL" and before == "=":
        return "a value is given with one `=`", ""
    if token.type == "COMPARE" and "EQUAL" in allowed:
        return "a value is given with one `=`", "="
    if token.type == "EQUAL" and "COMPARE" in allowed:
        return "equality is written `==`", "=="
    if token.type == "TILDE" and "LSQB" in allowed:
        return "a tensor needs its sizes: `name: [sizes] ~ distribution`", None
    if allowed == {"COLON"} and token.type in ("EQUAL", "COMMA", "RPAR"):
        return "a parameter has a type: `r: int = 8`", None
    return None


def _other_help(u: _Unexpected) -> tuple[str, Any]:
    """As `_help`, for words in the wrong dress; an edit may have a place of its own."""
    token, text, allowed, before = u.token, u.text, u.allowed, u.before
    word = _shown(str(token))
    if allowed == {"LSQB"} and token.type == "NAME":
        return f"write sizes in brackets: `[{word}]`", f"[{token}]"
    if allowed == {"NAME", "STAR"} and token.type == "LSQB":
        return "write sites without brackets: `modify attn.q, attn.v`", None
    if allowed == {"NAME"} and token.type == "STRING":
        return "write names without quotes", str(token)[1:-1]
    if allowed == {"STRING"} and token.type == "NAME":
        end = re.compile(r"[^\s;]*").match(text, token.start_pos)
        path = end.group() if end else str(token)
        place = u.span(token.start_pos, token.start_pos + len(path))
        return f'write the name of a file in quotes: `"{_shown(path)}"`', (f'"{path}"', place)
    if token.type == "NAME" and getattr(before, "type", "") == "NAME" and {"LBRACE", "LPAR"} <= allowed:
        return f"a name is one word: `{_shown(str(before))}_{word}`", ("_", u.span(before.end_pos, token.start_pos))
    if token.type == "COLON" and "DOTDOT" in allowed:
        return "a range is written `a .. b`", ".."
    if token.type == "LONGSTRING" and "_MODIFY" in allowed:
        return "put the docstring first in its definition", None
    if token.type == "_GATED":
        return _GATED, None
    if allowed == {"_BY"}:
        return "a row is `gated by` a gate", ("by ", u.span(token.start_pos, token.start_pos))
    return "", None


#: Who looks at a token, in turn; the last one always has something to say.
_LOOKS = (
    _ends_too_early, _sign_behind_a_clause, _clause_without_a_name, _keyword_as_a_name, _no_beginning, _not_closed,
    _number_with_two_points, _anything_else,
)  # fmt: skip


def acceptable(state: Any) -> set[str]:
    """The terminals that really can come next: the parse table's row, each followed through its reductions."""
    from lark.parsers.lalr_analysis import Shift

    table, end_state = state.parse_conf.states, state.parse_conf.end_state
    found = {"$END"} if state.state_stack[-1] == end_state else set()
    for terminal in table[state.state_stack[-1]]:
        if not (terminal.isupper() or terminal == "$END"):
            continue
        stack = list(state.state_stack)
        while terminal in table[stack[-1]]:
            action, target = table[stack[-1]][terminal]
            if action is Shift:
                found.add(terminal)
                break
            if target.expansion:
                del stack[-len(target.expansion) :]
            stack.append(table[stack[-1]][target.origin.name][1])
            if terminal == "$END" and stack[-1] == end_state:
                found.add(terminal)
                break
    return found


def expected(allowed: Iterable[str]) -> str:
    """`a clause (…), an operator or `}``: the terminals in the words of the language."""
    rest = set(allowed)
    words = []

    def group(test: bool, words_: str, members: Iterable[str]) -> None:
        if test:
            words.append(words_)
            rest.difference_update(members)

    group(
        "_METHOD" in rest,
        "a definition (`method`, `form`, `compose`, `gate` or `anatomy`)",
        {"_" + d.upper() for d in _DEFINITIONS} | {"_IMPORT", "$END"},
    )
    statement = {"_" + s.upper() for s in _STATEMENTS} | {"FROZEN", "NAME"}
    operator = {"PLUS", "STAR"} <= rest
    group(_SELECTION & rest != set(), "a selection (`all`, `first 4`, `last 4`, `2 .. 6`, …)", _SELECTION | _EXPRESSION)
    group(not operator and {"NUMBER", "LPAR"} <= rest, "an expression", _EXPRESSION)
    group(operator, "an operator", _OPERATORS)
    begins = "_MODIFY" in rest or "_AXIS" in rest
    clause = {"_" + c.upper() for c in _CLAUSES} | statement
    group("_MODIFY" in rest, "a clause (`modify`, `insert`, `form`, `compose`, …)", clause)
    group("_AXIS" in rest, "a statement (`name: [sizes] ~ …`, `name = …`, …)", statement)
    if begins:  # what may go on before the next one is only noise then
        rest &= {"RBRACE"}
    if words or len(rest) > 1:
        rest.discard("LONGSTRING")
    words += [_WORDS.get(t) or f"`{_SIGNS.get(t) or t.lstrip('_').lower()}`" for t in sorted(rest)]
    words = words[:6]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1] if words else "nothing"


def _open_brackets(text: str) -> list[int]:
    """Where the brackets stand that are never closed."""
    opened: list[int] = []
    pairs = {")": "(", "]": "[", "}": "{"}
    for match in _BRACKETS.finditer(text):
        sign = match["bracket"]
        if sign in ("(", "[", "{"):
            opened.append(match.start())
        elif sign and opened and text[opened[-1]] == pairs[sign]:
            opened.pop()
    return opened


def _shown(text: str, limit: int = 40) -> str:
    text = text.split("\n", 1)[0]
    return text if len(text) <= limit else text[: limit - 1] + "…"
