"""Conversations: the tokenizer's own template makes their text, and the assistant's turns are what is learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...language.report.diagnostics import error
from .. import data as reading
from ..data import Split, kind_of_value
from .task import IGNORED, Example

COLUMNS = ("messages", "conversations", "conversation")
ASSISTANT = "assistant"
Talk = list[dict[str, Any]]


def column_of(split: Split, text: Sequence[str] | None) -> str | None:
    """The column of conversations, if there is one."""
    names = list(text or COLUMNS)[: 1 if text else None]
    return next((c for c in names if any(isinstance(row.get(c), list) for row in split.rows)), None)


def conversations_of(split: Split, column: str) -> list[Talk]:
    """A column of conversations: lists of messages with a role and a content; the assistant speaks last."""

    def wrong(value: Any) -> str:
        if not isinstance(value, list) or not value:
            return f"is {kind_of_value(value) if value != [] else 'empty'}, not a list of messages"
        for message in value:
            if not isinstance(message, dict):
                return f"holds {kind_of_value(message)} among its messages"
            if not all(isinstance(message.get(k), str) for k in ("role", "content")):
                return "has a message without the texts `role` and `content`"
        last = value[-1]["role"]
        return "" if last == ASSISTANT else f"ends with the role `{last}`, not with `{ASSISTANT}`"

    remedy = 'write `[{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]`'
    return reading.values_of(split, column, wrong, remedy)


def need_template(tokenizer: Any) -> None:
    if not getattr(tokenizer, "chat_template", None):
        raise error("E0637", "the tokenizer has no chat template", help="use a model that has been trained on conversations, or "
                    "columns of prompts and completions without `--chat`")  # fmt: skip


def question(given: Any) -> Talk:
    """A text as the user's turn; a conversation without the assistant's last turn."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    return list(given[:-1]) if given and given[-1]["role"] == ASSISTANT else list(given)


def prompt_ids(talk: Talk, tokenizer: Any) -> list[int]:
    """The tokens of a conversation in which the assistant speaks next."""
    return _ids(_text(talk, tokenizer, asked=True), tokenizer)[0]


def example(talk: Talk, tokenizer: Any, room: int, whole: bool) -> tuple[Example, bool]:
    """A conversation's tokens; labels are those of the assistant's turns, or of the ``whole``. Also whether it was cut.

    What is too long loses its end, or its beginning where nothing of the assistant's would be left.
    """
    ids, labels = _labelled(talk, tokenizer)
    if whole:
        labels = list(ids)
    cut = len(ids) > room
    if cut:
        front = any(x != IGNORED for x in labels[1:room])
        ids, labels = (ids[:room], labels[:room]) if front else (ids[-room:], labels[-room:])
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}, cut


def _labelled(talk: Talk, tokenizer: Any) -> tuple[list[int], list[int]]:
    if "{% generation" in tokenizer.chat_template or "{%- generation" in tokenizer.chat_template:
        # The template itself says which of its words are the assistant's.
        found = tokenizer.apply_chat_template(talk, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        pairs = zip(found["input_ids"], found["assistant_masks"])
        return list(found["input_ids"]), [i if mine else IGNORED for i, mine in pairs]
    text = _text(talk, tokenizer)
    turns = []
    for i, message in enumerate(talk):
        if message["role"] != ASSISTANT:
            continue
        before, after = _text(talk[:i], tokenizer, asked=True), _text(talk[: i + 1], tokenizer)
        if not (after.startswith(before) and text.startswith(after)):
            raise error("E0638", "the chat template writes the beginning of a conversation otherwise once it goes on, so that the "
                        "assistant's turns cannot be told", help="use a template with `{% generation %}` marks, or `--loss all`")  # fmt: skip
        turns.append((len(before), len(after)))
    ids, offsets = _ids(text, tokenizer)
    labels = [i if any(a <= start < b for a, b in turns) else IGNORED for i, (start, _) in zip(ids, offsets)]
    return ids, labels


def _text(talk: Talk, tokenizer: Any, asked: bool = False) -> str:
    try:
        return tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=asked)
    except Exception as e:  # noqa: BLE001 - a template raises what it likes, such as for a role that it does not know
        raise error("E0638", f"the chat template refuses a conversation: {reading.said(e)}",
                    help="write the roles that the model was trained on, in their order") from None  # fmt: skip


def _ids(text: str, tokenizer: Any) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokens and their places; the template has written the special ones already."""
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return list(found["input_ids"]), list(found["offset_mapping"])
