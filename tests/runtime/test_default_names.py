"""One convention for the names of adapters, and for what may see the future."""

from __future__ import annotations

import inspect
import json
import warnings
from pathlib import Path

import pytest
import small
import torch
from names import name as named

import unipelt
from unipelt.language.report.diagnostics import PeltError
from unipelt.runtime.hub import MANIFEST

ONE = (
    "apply",
    "remove",
    "merge",
    "state_dict",
    "save",
    "restore",
    "save_merged",
    "watch",
    "gradient_norms",
    "parameter_groups",
)
FUTURE = "gate pooled { w: [d_in] ~ normal(1.0)  g = mean(sigmoid(z @ w), tokens) }\n" \
         "method m { use { modify ffn  insert parallel  form { A: [d_in, d_out] ~ normal(0.1)  delta = z @ A }  compose h + delta } as a gated by pooled }"  # fmt: skip


@pytest.mark.parametrize("function", ONE)
def test_an_adapter_that_is_not_named_is_the_default_one(function: str) -> None:
    parameter = inspect.signature(getattr(unipelt, function)).parameters["name"]
    assert parameter.default == "default"


def test_the_default_adapter_is_merged_unmerged_trained_and_removed_without_a_name() -> None:
    m = small.model("gpt2")
    before = small.state(m)
    unipelt.apply(m, unipelt.load(named("lora")))
    assert unipelt.parameter_groups(m, lr=1e-3)[0]["lr"] == 1e-3
    unipelt.merge(m)
    unipelt.unmerge(m, "default")
    unipelt.remove(m)
    assert small.state(m) == before


def test_unmerge_by_name() -> None:
    m = small.model("gpt2")
    unipelt.apply(m, unipelt.load(named("lora")), "a")
    unipelt.apply(m, unipelt.load(named("lora")), "b")
    unipelt.activate(m, "a")
    unipelt.merge(m, "a")
    merged = small.output(m)
    with pytest.raises(PeltError, match="E0562.*`b` is not merged; `a` is"):
        unipelt.unmerge(m, "b")
    with pytest.raises(PeltError, match="E0551"):
        unipelt.unmerge(m, "c")
    assert torch.equal(small.output(m), merged)
    unipelt.unmerge(m, "a")


def test_parameter_groups_need_a_rate() -> None:
    m = small.model("gpt2")
    unipelt.apply(m, unipelt.load(named("lora")))
    with pytest.raises(TypeError, match="`lr`"):
        unipelt.parameter_groups(m)


def test_what_was_allowed_when_it_was_made_is_allowed_when_it_is_attached(tmp_path: Path) -> None:
    m = small.model("gpt2")
    with pytest.raises(PeltError, match="E0530"):
        unipelt.apply(m, unipelt.parse(FUTURE))
    unipelt.apply(m, unipelt.parse(FUTURE), allow_future=True)
    folder = unipelt.save(m, tmp_path / "a")
    again = small.model("gpt2")
    assert unipelt.attach(again, folder) == "default"
    assert torch.equal(small.output(again), small.output(m))
    unipelt.remove(again)
    with pytest.raises(PeltError, match="E0530"):
        unipelt.attach(again, folder, allow_future=False)
    record = json.loads((folder / MANIFEST).read_text())
    assert record.pop("allow_future") is True
    (folder / MANIFEST).write_text(json.dumps(record))
    with pytest.warns(DeprecationWarning, match="allow_future=True"):
        unipelt.attach(again, folder)
    unipelt.remove(again)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unipelt.attach(again, folder, allow_future=True)
