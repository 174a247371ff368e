"""The formatter: meaning, comments and docstrings are kept, and what it writes it leaves as it is."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_parser import VALID, specs_as_texts
from test_printer import files

from unipelt.language.report.diagnostics import PeltError
from unipelt.language.syntax.format import format_text
from unipelt.language.syntax.parser import parse
from unipelt.language.syntax.printer import to_text

_PIECES = re.compile(r'"""[\s\S]*?"""|"[^"\n]*"|(#[^\n]*)')


def comments(text: str) -> list[str]:
    return sorted(m[1].rstrip() for m in _PIECES.finditer(text) if m[1])


def holds(text: str) -> str:
    out = format_text(text)
    assert parse(out) == parse(text)
    assert comments(out) == comments(text)
    assert format_text(out) == out
    return out


@pytest.mark.parametrize("text", [*specs_as_texts(), VALID])
def test_specs(text):
    holds(text)


def test_an_example_of_everything():
    text = '''# of the file
import "a.pelt"   # not moved
# stands on its method

method m(r:int=4, # the rank
  s: float in {1.0,2.0} = 1.0) { """Doc."""


  # what is changed
  modify attn,ffn   # both
  insert  parallel  form { # the form
    A: [d_in,r] ~ zeros # down
    long_name: [r, d_out] ~ zeros # up

    # the product
    delta = z @ A @ # in the middle
      long_name
    # at its end
  } compose { out = h + s*delta } # a trailing one
  use {
    modify ffn # inner
    # dangling
  } as x gated by g { # override
    insert x }
}
compose a = h
compose b = h # short
gate g { # empty
}
anatomy t for u { block: "x.*" # blocks
  # more
  attn . q: "y"
}
# the end'''
    assert (
        holds(text)
        == '''import "a.pelt"

# of the file
# not moved
# stands on its method

# the rank
method m(r: int = 4, s: float in {1.0, 2.0} = 1.0) {
  """Doc."""
  # what is changed
  modify attn, ffn  # both
  insert parallel
  form {
    # the form
    A:         [d_in, r]  ~ zeros  # down
    long_name: [r, d_out] ~ zeros  # up

    # the product
    # in the middle
    delta = z @ A @ long_name
    # at its end
  }
  compose {
    out = h + s * delta
  }  # a trailing one
  use {
    modify ffn  # inner
    # dangling
  } as x gated by g {
    # override
    insert x
  }
}

compose a = h
compose b = h  # short

gate g {
  # empty
}

anatomy t for u {
  block:  "x.*"  # blocks
  # more
  attn.q: "y"
}
# the end
'''
    )


@pytest.mark.parametrize("text", ["", "\n\n", "# only\n", "\ufeffform f { delta = z }\r\n", "form f { delta = z }"])
def test_corners(text):
    holds(text)


def test_what_does_not_parse_is_said():
    with pytest.raises(PeltError):
        format_text("form f { delta = }")


quick = settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@quick
@given(files, st.integers(0, 2**32))
def test_random_files_with_random_comments(tree, seed):
    """Comments and blanks put between any two words of a random file come out again, and nothing else changes."""
    text = to_text(tree)
    draw = random.Random(seed)
    pieces = re.findall(r'"""[\s\S]*?"""|"[^"\n]*"|\s+|[^\s"]+', text)
    out = []
    for piece in pieces:
        if piece.isspace() and draw.random() < 0.2:
            note = f" # note {draw.randrange(99)}\n"
            piece = draw.choice([note, f"\n{note}", f"\n\n{note}\n\n"]) if "\n" in piece else piece
        out.append(piece)
    holds("".join(out))


ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "path", [p for d in ("specs", "examples") for p in sorted((ROOT / d).rglob("*.pelt"))], ids=lambda p: p.stem
)
def test_the_library_is_laid_out_by_its_own_formatter(path):
    text = path.read_text("utf-8")
    assert format_text(text) == text, f"unipelt fmt {path}"
