"""The properties of the grid for what no method of the library edits by itself: the weights of experts."""

from __future__ import annotations


import pytest
from grid import blank, left_blank
from properties import PROPERTIES, Case

_LOW = "insert parallel form { A: [d_in, 2] ~ normal(0.3)  B: [2, d_out] ~ zeros  delta = z @ A @ B } compose add"
WEIGHTS = ", ".join(f"ffn.experts.{part}.weight" for part in ("up", "gate", "down"))
#: With a model that has such sites: experts alone, experts beside one that every token passes.
CASES = {
    "low": (f"modify {WEIGHTS} {_LOW}", "mixtral"),
    "low beside a shared expert": (f"modify {WEIGHTS} {_LOW}", "deepseek_v3"),
    "bent": (f"modify {WEIGHTS} compose {{ s: [d_out] ~ zeros  out = h * (1 + tanh(s)) }}", "mixtral"),
}  # fmt: skip


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", PROPERTIES, ids=lambda n: n.replace(" ", "-"))
@pytest.mark.parametrize("which", CASES, ids=lambda n: n.replace(" ", "-"))
def test_cell(which, name, bases, tmp_path):
    method, kind = CASES[which]
    (tmp_path / "m.pelt").write_text(f"method m {{ {method} }}")
    case = Case(str(tmp_path / "m.pelt"), kind, bases, tmp_path)
    if name in left_blank(blank(case)):
        pytest.skip("a blank cell of the grid")
    PROPERTIES[name](case)
