"""Method × model × property, for every method of the library, with randomised tensors (see `properties` and `grid`)."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from grid import ALWAYS, MODELS, bare, blank, filled, in_turn, once_each, read, refusal, row
from names import CLASSICS, RENAMED, name as named
from properties import PROPERTIES, Case
from tiny import Bases, footprint, small

import unipelt

GRID = read()
METHODS = [named(n) for n in CLASSICS]  # the others have their properties in `tests/zoo`
CELLS = filled(GRID)
TURNS = in_turn([c for c in CELLS if c[1] not in ALWAYS])
#: With every definition renamed each method and each property once serves: a name is not the model's affair.
TRIED = once_each(CELLS) if RENAMED else [c for c in CELLS if c[1] in ALWAYS] + TURNS


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("spec", "kind", "name"), TRIED, ids=lambda v: v.replace(" ", "-"))
def test_cell(spec, kind, name, bases, tmp_path):
    PROPERTIES[name](Case(spec, kind, bases, tmp_path))


def test_every_method_of_the_library_is_in_the_grid():
    missing = [m for m in METHODS if m not in GRID["methods"]]
    proposed = json.dumps({m: row(m) for m in missing}, indent=1, ensure_ascii=False) if missing else ""
    assert not missing, (
        f"tests/behaviour/grid.json lacks {', '.join(missing)}; what is found on the models:\n{proposed}"
    )
    surplus = [m for m in GRID["methods"] if m not in METHODS]
    assert not surplus, f"tests/behaviour/grid.json has methods that the library lacks: {', '.join(surplus)}"
    assert GRID["properties"] == {n: (f.__doc__ or "").split("\n")[0] for n, f in PROPERTIES.items()}
    assert GRID["models"] == MODELS


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("spec", METHODS)
def test_every_blank_has_its_reason(spec, kind, bases):
    written, case = GRID["methods"][spec][kind], Case(spec, kind, bases)
    refused = refusal(case)
    if refused is None:
        assert bare(written) == bare(blank(case))
        return
    assert bare(written) == bare(refused)
    model = case.base()
    before = footprint(model)
    with pytest.raises(unipelt.PeltError, match=refused.split(":")[0]):
        unipelt.apply(model, small(spec), allow_future=True)
    assert footprint(model) == before


def test_every_property_meets_every_model_and_every_method_several():
    assert {c[1:] for c in TURNS} == {c[1:] for c in CELLS if c[1] not in ALWAYS}
    met = Counter(c[0] for c in TURNS)
    assert all(met[m] >= 5 for m in METHODS), met


def test_cells_are_counted(record_property):
    total = len(METHODS) * len(MODELS) * len(PROPERTIES)
    count = {"cells": total, "filled": len(CELLS), "blank": total - len(CELLS)}
    record_property("figure", f"grid: {len(METHODS)} methods x {len(MODELS)} models x {len(PROPERTIES)} properties: {len(CELLS)} "
                    f"cells filled ({len(set(TRIED))} of them tried here), {total - len(CELLS)} blank, each with its reason")  # fmt: skip
    assert GRID["counts"] == count


@pytest.mark.parametrize("name", ["gradients", "side by side"])
def test_what_a_row_reads_in_training_alone_rests_outside_it(name, bases):
    case = Case(named("loca"), "llama", bases)
    assert {n.rsplit(".", 1)[1] for n in case.resting} == {"a", "b"}
    PROPERTIES[name](case)


@pytest.mark.parametrize("name", ["diff_pruning", "lamda"])
def test_what_learns_with_other_values_or_in_training_alone_learns(name, bases):
    """Gates that start far beyond a clamp; vectors that are frozen when training has ended."""
    PROPERTIES["gradients"](Case(named(name), "llama", bases))


def test_what_never_learns_is_seen(tmp_path):
    form = "b: [d_out] ~ zeros c: [d_out] ~ constant(9) delta = b + relu(-abs(c)) * progress"
    (tmp_path / "m.pelt").write_text(f"method m {{ modify attn.q insert parallel form {{ {form} }} compose add }}")
    with pytest.raises(AssertionError, match=r"layers\.0\.attn\.q\.m\.c"):
        PROPERTIES["gradients"](Case(str(tmp_path / "m.pelt"), "llama", Bases()))
