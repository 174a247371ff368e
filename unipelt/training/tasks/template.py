"""Templates of inputs: columns in braces, `{mask}` where a word is wanted, `{prompt:3}` for three pseudo-tokens (P-tuning).

"{text} Question type: {mask}."        "{prompt:3} {text} {prompt:3} {mask}"        "summarize: {article}"
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...language.report.diagnostics import error, near
from .. import data as reading
from ..data import Split
from ..options import TaskOptions

MASK, PROMPT = "mask", "prompt"


@dataclass(frozen=True)
class Part:
    """A literal text, a column's value, the mask, or ``rows`` pseudo-tokens."""

    kind: str
    text: str = ""
    rows: int = 0


@dataclass(frozen=True)
class Template:
    parts: tuple[Part, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(p.text for p in self.parts if p.kind == "column"))

    @property
    def masks(self) -> int:
        return sum(p.kind == MASK for p in self.parts)

    @property
    def rows(self) -> int:
        """How many pseudo-tokens there are."""
        return sum(p.rows for p in self.parts)

    def before_mask(self) -> Template:
        """What a causal model has read when it predicts the word."""
        place = next(i for i, p in enumerate(self.parts) if p.kind == MASK)
        return Template(self.parts[:place])

    def after_mask(self) -> Template:
        place = next(i for i, p in enumerate(self.parts) if p.kind == MASK)
        return Template(self.parts[place + 1 :])

    def render(self, values: Sequence[str]) -> str:
        """The text with a value for each column, where there is neither mask nor pseudo-token."""
        filled = dict(zip(self.columns, values, strict=True))
        return "".join(filled[p.text] if p.kind == "column" else p.text for p in self.parts)


def asked(options: TaskOptions, split: Split | None) -> Template | None:
    """The template that is asked for. It says which columns are read, and a split has them."""
    if options.pattern is None:
        return None
    if options.text:
        raise error("E0620", "`--pattern` names the columns that are read, so `--text` is one too many",
                    help="give one of them")  # fmt: skip
    found = parse(options.pattern)
    if split is not None:
        for column in found.columns:
            reading.named(split, column, "pattern")
    return found


def parse(pattern: str) -> Template:
    """A template from its text; braces are doubled to stand for themselves, `\\n` and `\\t` are a new line and a tab."""
    text = pattern.replace("\\n", "\n").replace("\\t", "\t")
    parts: list[Part] = []
    try:
        pieces = list(string.Formatter().parse(text))
    except ValueError as e:
        raise error("E0640", f"the pattern `{pattern}` is not well formed: {e}",
                    help="write columns in braces, as in `{text}`, and `{{` for a brace") from None  # fmt: skip
    for literal, name, spec, conversion in pieces:
        if literal:
            parts.append(Part("text", literal))
        if name is None:
            continue
        if name == PROMPT:
            count = reading.whole_number(spec or "")
            if count is None or count < 1:
                raise error("E0640", f"`{{prompt{':' if spec else ''}{spec}}}` does not say how many pseudo-tokens it stands for",
                            help="write `{prompt:3}`")  # fmt: skip
            parts.append(Part(PROMPT, rows=count))
        elif not name:
            raise error("E0640", f"the pattern `{pattern}` has braces with no name in them",
                        help="write a column's, as in `{text}`")  # fmt: skip
        elif spec or conversion:
            given = "{" + name + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "") + "}"
            raise error("E0640", f"`{given}` gives a number or a format to `{name}`, and only `prompt` takes a number",
                        help=near(name.lower(), (PROMPT,)) or f"write `{{{name}}}`, or `{{{PROMPT}:3}}` for three pseudo-tokens")  # fmt: skip
        else:
            parts.append(Part(MASK) if name == MASK else Part("column", name))
    found = Template(tuple(parts))
    if not found.columns:
        raise error("E0640", f"the pattern `{pattern}` reads no column", help="write one in braces, as in `{text}`")
    if found.masks > 1:
        raise error(
            "E0640", f"the pattern `{pattern}` has {found.masks} masks, and one word is wanted", help="leave one"
        )
    return found


# ---------------------------------------------------------------- tokens


@dataclass(frozen=True)
class Encoding:
    """The tokens of a filled template. ``marks`` say for each token which pseudo-token it is, 0 for those of the text."""

    ids: list[int]
    marks: list[int]
    cut: bool

    def example(self, marked: bool) -> dict[str, Any]:
        marks = {"pseudo_tokens": self.marks} if marked else {}
        return {"input_ids": self.ids, "attention_mask": [1] * len(self.ids), **marks}


def encode(
    template: Template, values: Sequence[str], tokenizer: Any, room: int, front: Sequence[int] = (), back: Sequence[int] = ()
) -> Encoding:  # fmt: skip
    """The template with a value for each of its columns, between the tokens ``front`` and ``back``.

    Where it is longer than ``room`` tokens, the longest value loses its end, and no other part anything.
    """
    filled = dict(zip(template.columns, values, strict=True))
    cut = False
    while True:
        ids, marks = _tokens(template, filled, tokenizer)
        over = len(front) + len(ids) + len(back) - room
        if over <= 0:
            zeros = [0] * len(front), [0] * len(back)
            return Encoding([*front, *ids, *back], [*zeros[0], *marks, *zeros[1]], cut)
        longest = max(filled, key=lambda c: len(filled[c]))
        shorter = _shortened(filled[longest], over, tokenizer)
        if not shorter or len(shorter) >= len(filled[longest]):
            raise error("E0641", f"the pattern without its texts is longer than {room} tokens",
                        help="give a larger `--max-length`")  # fmt: skip
        filled[longest], cut = shorter, True


def _tokens(template: Template, filled: Mapping[str, str], tokenizer: Any) -> tuple[list[int], list[int]]:
    ids: list[int] = []
    marks: list[int] = []
    # An id that no model reads as padding, by which some count positions and some find the end of a text.
    known = (tokenizer.unk_token_id, tokenizer.eos_token_id, 0, 1)
    pseudo = next(i for i in known if i is not None and i not in (tokenizer.pad_token_id, tokenizer.mask_token_id))
    count = 0
    text = ""
    for part in (*template.parts, None):
        if part is not None and part.kind != PROMPT:
            text += (
                tokenizer.mask_token if part.kind == MASK else filled[part.text] if part.kind == "column" else part.text
            )
            continue
        found = segment(text, tokenizer, first=not ids)
        ids, marks = ids + found, marks + [0] * len(found)
        text = ""
        if part is not None:
            ids += [pseudo] * part.rows
            marks += range(count + 1, count + part.rows + 1)
            count += part.rows
    return ids, marks


def segment(text: str, tokenizer: Any, first: bool) -> list[int]:
    """The tokens of a stretch of text, which follows others unless it is the ``first``: as they were in the whole text."""
    if not first and text[:1].isspace() and "\n" not in text[: len(text) - len(text.lstrip())]:
        text = lead(tokenizer) + text.lstrip()
    return ids_of(text.rstrip(" ") if first or text.strip() else "", tokenizer)


def _shortened(value: str, over: int, tokenizer: Any) -> str:
    offsets = tokenizer(value, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    keep = len(offsets) - over
    return value[: offsets[keep - 1][1]].rstrip() if keep > 0 else ""


def ids_of(text: str, tokenizer: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def lead(tokenizer: Any) -> str:
    """What goes before a single word so that it gets the tokens it has inside a text: a blank, if the tokenizer makes it part of words."""
    whole, first = ids_of("a the", tokenizer), ids_of("a", tokenizer)
    for blank in ("", " "):
        if whole == first + ids_of(f"{blank}the", tokenizer):
            return blank
    return ""


def borders(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens that the tokenizer puts around a text."""
    whole, inner = tokenizer("a", verbose=False)["input_ids"], ids_of("a", tokenizer)
    place = next((i for i in range(len(whole)) if whole[i : i + len(inner)] == inner), 0)
    return list(whole[:place]), list(whole[place + len(inner) :])
