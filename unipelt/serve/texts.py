"""From texts to tokens and, piece by piece, back."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from typing import Any

from ..language.report.diagnostics import PeltError
from ..training.data import is_unicode
from ..training.tasks import chat
from ..training.tasks.causal_lm import beginning
from ..training.tasks.template import ids_of
from .refusals import wrong

#: What stands for the beginning of a character whose other bytes are in tokens to come.
_HALF = "\ufffd"


class Reader:
    """Reads prompts for any thread, with a tokenizer of its own (they are not made for two threads)."""

    def __init__(self, tokenizer: Any):
        self._tokenizer, self._reading = copy.deepcopy(tokenizer), threading.Lock()
        self.words = len(tokenizer)

    def prompt(self, given: str | Sequence[int]) -> list[int]:
        """The tokens of a text, or tokens that are given as such; with what the tokenizer puts in front."""
        if not isinstance(given, str):
            wrong_id = next((i for i in given if not 0 <= i < self.words), None)
            if wrong_id is not None:
                raise wrong("invalid_token", f"there is no token {wrong_id}: the model has {self.words}", "prompt")
            ids = list(given)
        else:
            need_unicode(given, "prompt")
            with self._reading:
                ids = beginning(self._tokenizer) + ids_of(given, self._tokenizer)
        if not ids:
            raise wrong("empty_prompt", "the prompt is empty: there is no token to go on from", "prompt")
        return ids

    def talk(self, messages: list[dict[str, str]]) -> list[int]:
        """The tokens of a conversation in which the assistant speaks next."""
        if not getattr(self._tokenizer, "chat_template", None):
            raise wrong(
                "no_chat_template", "the model's tokenizer has no chat template: use /v1/completions", "messages"
            )
        for m in messages:
            need_unicode(m["content"], "messages")
        with self._reading:
            try:
                return chat.prompt_ids(messages, self._tokenizer)
            except PeltError as e:
                raise wrong("chat_template", e.diagnostics[0].message, "messages") from None


def need_unicode(text: str, param: str) -> None:
    if not is_unicode(text):
        raise wrong("invalid_text", "the text holds half of a character, which is no Unicode", param)


class Written:
    """An answer while it is written: its tokens, its text, and how much of that cannot change any more.

    ``stop``: texts that end the answer and are no part of it.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()):
        self.ids: list[int] = []
        self._tokenizer, self._stop, self._told = tokenizer, tuple(stop), 0
        self._text: str | None = ""  # None: not decoded since the last token
        self.stopped = False

    def text(self) -> str:
        """The text so far, up to the first of the texts that end it."""
        if self._text is None:
            whole = self._tokenizer.decode(self.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            cut = min((at for s in self._stop if (at := whole.find(s)) >= 0), default=None)
            self.stopped = cut is not None
            self._text = whole[:cut]
        return self._text

    def add(self, token: int) -> None:
        self.ids.append(token)
        self._text = None
        if self._stop:
            self.text()

    def piece(self, ended: bool) -> str:
        """What has come since the last piece. Until the end, what may yet turn out to be something else is kept back."""
        text = self.text()
        sure = len(text) if ended or self.stopped else len(text) - self._unsure(text)
        piece, self._told = text[self._told : sure], max(self._told, sure)
        return piece

    def _unsure(self, text: str) -> int:
        half = len(text) - len(text.rstrip(_HALF))
        begun = (n for s in self._stop for n in range(1, len(s)) if text.endswith(s[:n]))
        return max([half, *begun])
