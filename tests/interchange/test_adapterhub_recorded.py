"""Folders of AdapterHub's `adapters`, made of recorded tensors: its outputs, its bits on the way out again, or a refusal."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from names import RENAMED
from torch import nn

import unipelt
from unipelt.interchange import folders
from unipelt.language.report.diagnostics import PeltError
from unipelt.runtime.registry import registry

sys.path.append(str(Path(__file__).parents[1] / "fidelity"))
from recordings import FOLDER, listed

pytestmark = pytest.mark.skipif(bool(RENAMED), reason="the declarations call methods by their names")
NAMES = [n for n in listed(FOLDER) if n.startswith("adapters/")] if FOLDER is not None else []
#: What has no counterpart, and the setting that says so.
REFUSED = {
    "adapters/bert-dora": "use_dora", "adapters/bert-dvora": "use_dora", "adapters/bert-vera": "vera_d", "adapters/bert-seq_bn_inv": "inv_adapter",
}  # fmt: skip
#: What comes in, and is refused on the way out: of a folder with it the library makes NoReFT.
ONLY_IN = {"adapters/bert-direft"}
#: Outputs are recorded in float32, of the order of 1 to 5, by another version of transformers, which sums in another order.
APART = 3e-6


def recorded(name: str, at: Path) -> tuple[nn.Module, dict[str, str], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """A folder as the library writes it, of a recording: the plain model, what was recorded, and what the folder holds."""
    from test_recordings import build, read

    meta, tensors = read(name)
    model = build(meta, tensors)
    added = {n.partition(".")[2]: t for n, t in tensors.items() if n.startswith(("adapter.", "buffer."))}
    keys = {k: own for k, own in json.loads(meta["checkpoint_keys"]).items() if own is not None}
    # a base alone leaves out what its layers share (a fault of the library's); one with a head does not
    held = {k: added[own] for k, own in keys.items()} | {k: t for k, t in added.items() if "shared_parameters" in k}
    config = {
        "config": json.loads(meta["method_config"]), "name": meta["adapter_name"], "version": f"adapters.{meta['library_version']}",
        "model_type": model.config.model_type, "hidden_size": model.config.hidden_size, "model_class": meta["model_class"], "model_name": None,
    }  # fmt: skip
    folders.write(at, folders.ADAPTERS, config, held)
    return model, meta, tensors, held


def brought(model: nn.Module, at: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "where a text has fewer tokens")
        unipelt.import_adapters(model, at, "ad", allow_future=True)


def test_recordings_are_here() -> None:
    if FOLDER is None:
        pytest.skip("folders of recorded tensors were not read: UNIPELT_FIXTURES is not set")
    assert len(NAMES) == 37 and REFUSED.keys() <= set(NAMES)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in REFUSED])
def test_in_and_out(name: str, tmp_path: Path) -> None:
    model, meta, tensors, held = recorded(name, tmp_path / "in")
    brought(model, tmp_path / "in")
    given = {n[6:]: t for n, t in tensors.items() if n.startswith("input.") and n != "input.cotangent"}
    with torch.no_grad(), unipelt.with_rows(model):
        found = model(**given)[meta["output_key"]]
    expected = tensors[f"output.{meta['output_key']}"]
    if name == "adapters/bert-loreft":  # in the third text, of one token, both ends meet, and the import says so
        found, expected = found[:2], expected[:2]
    assert found.shape == expected.shape and (found - expected).abs().max() <= APART
    if name in ONLY_IN:
        with pytest.raises(PeltError, match="E0844"):
            unipelt.export_adapters(model, tmp_path / "out", "ad")
        return
    unipelt.export_adapters(model, tmp_path / "out", "ad")
    config, again = folders.read(tmp_path / "out", folders.ADAPTERS)
    assert again.keys() == held.keys()
    differ = {k for k, t in held.items() if not torch.equal(t, again[k])}
    if name == "adapters/bert-loreft":  # a rotation is stored as one of many pairs that make it
        assert differ == {k for k in held if "parametrizations" in k}
        other, *_ = recorded(name, tmp_path / "once more")
        brought(other, tmp_path / "out")
        mine, theirs = unipelt.state_dict(model, "ad"), unipelt.state_dict(other, "ad")
        assert all(torch.equal(t, theirs[n]) for n, t in mine.items())
    else:
        assert not differ
    before = json.loads((tmp_path / "in" / "adapter_config.json").read_text())
    for a, b in zip(*(c["config"].get("configs", [c["config"]]) for c in (before, config))):
        own = {k for k in a if a[k] != b.get(k)}
        assert own <= {"init_weights", "alpha"} and a.keys() <= b.keys(), (
            "but for starts, and the scale that a gate replaces"
        )
        assert "alpha" not in own or a["use_gating"]


@pytest.mark.parametrize("name", [n for n in NAMES if n in REFUSED])
def test_what_has_no_counterpart(name: str, tmp_path: Path) -> None:
    model, meta, tensors, _ = recorded(name, tmp_path)
    with pytest.raises(PeltError, match=REFUSED[name]):
        brought(model, tmp_path)
    assert registry(model) is None
    given: dict[str, Any] = {n: tensors[f"input.{n}"] for n in ("input_ids", "attention_mask")}
    with torch.no_grad():
        assert (model(**given)[meta["output_key"]] - tensors["output.base"]).abs().max() <= APART


def test_a_base_that_left_out_what_its_layers_share(tmp_path: Path) -> None:
    if FOLDER is None:
        pytest.skip("folders of recorded tensors were not read: UNIPELT_FIXTURES is not set")
    model, _, _, held = recorded("adapters/bert-compacter", tmp_path / "in")
    config, _ = folders.read(tmp_path / "in", folders.ADAPTERS)
    folders.write(tmp_path / "out", folders.ADAPTERS, config, {k: t for k, t in held.items() if "shared" not in k})
    with pytest.raises(
        PeltError,
        match=r"lacks the tensor `shared_parameters.ad.phm_rule`[\s\S]*save the adapter from a model with a head",
    ):
        brought(model, tmp_path / "out")
    assert registry(model) is None
