"""Every method of the library agrees with its reference: peft, a recording, the published formula, a published count."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from names import RENAMED, methods
from reference import REFERENCES, WITHIN

for found in sorted(Path(__file__).parent.glob("refs_*.py")):
    importlib.import_module(found.stem)

pytestmark = [
    pytest.mark.skipif(bool(RENAMED), reason="a name decides nothing here that it does not decide elsewhere"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings(
        "ignore:Sparse invariant checks are implicitly disabled:UserWarning"
    ),  # as peft makes them
    # of peft: see `tests/fidelity/test_peft`
    pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type .*(RMSNorm|LayerNorm):UserWarning"),
]
IDS = [f"{r.method}-{r.by}-{i}" for i, r in enumerate(REFERENCES)]


@pytest.mark.parametrize("i", range(len(REFERENCES)), ids=IDS)
def test_a_method_agrees_with_its_reference(i: int, record_property) -> None:
    r = REFERENCES[i]
    error = r.measure()
    assert error <= WITHIN[r.by], f"{r.method} is {error:.1e} from {r.against}"


def test_references_are_of_methods_that_there_are() -> None:
    assert {r.method for r in REFERENCES} <= set(methods())
