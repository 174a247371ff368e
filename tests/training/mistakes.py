"""What a mistake is answered with: one code, and each message with a remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from unipelt.language.report.diagnostics import PeltError


def mistakes(code: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[list[str], str]:
    """The messages of a call that must fail with that code, and the help of the first."""
    with pytest.raises(PeltError) as caught:
        call(*args, **kwargs)
    found = caught.value.diagnostics
    assert {d.code for d in found} == {code}, found
    assert all(d.help for d in found), "each mistake comes with a remedy"
    return [d.message for d in found], found[0].help


def mistake(code: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[str, str]:
    """The first message of a call that must fail with that code, and its help."""
    messages, help_ = mistakes(code, call, *args, **kwargs)
    return messages[0], help_
