"""Two thousand inputs that nobody would write: nothing but diagnostics (`benchmarks/fuzz.py` takes half a million).

All are read, checked and their mistakes rendered; every sixteenth is also laid out and described.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice

import fuzzing
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import deferred

CHUNK = 320
#: Of what is damaged, and of what is drawn: longer ones meet no more codes, and take a quarter more time.
LONGEST, DEEPEST = 450, 11


def outcomes(inputs: Iterator[bytes], place) -> Counter:
    seen: Counter = Counter()
    for i, data in enumerate(islice(inputs, CHUNK)):
        try:
            seen[fuzzing.judge(data, place, wholly=i % 16 == 0)] += 1
        except Exception as e:  # the input is what one wants to see
            raise AssertionError(f"{type(e).__name__}: {e}, for the input\n{data!r}") from e
    return seen


@pytest.mark.parametrize("chunk", range(4))
def test_damaged_definitions(chunk, tmp_path):
    seen = outcomes(fuzzing.mutants(chunk, LONGEST), tmp_path / "x.pelt")
    assert seen.total() == CHUNK and min(seen[k] for k in ("text", "mistakes", "method")) > CHUNK // 20, seen


@pytest.mark.parametrize("chunk", range(2))
def test_sentences_of_the_grammar(chunk, tmp_path):
    """Random walks over its rules: nearly all parse, hardly any means something."""
    seen = outcomes(fuzzing.sentences(chunk, DEEPEST), tmp_path / "x.pelt")
    assert seen.total() == CHUNK and seen["mistakes"] > CHUNK // 4, seen


@seed(1)
@settings(
    max_examples=240,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)
@given(text=deferred(fuzzing.derived))  # made by who runs it: it reads the library
def test_what_hypothesis_derives(text, tmp_path_factory):
    fuzzing.judge(text.encode(), tmp_path_factory.getbasetemp() / "derived.pelt")
