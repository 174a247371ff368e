"""`benchmarks/gpu.py` in its tiny form: every entry is measured in every part, and the record is written."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu() -> Any:
    spec = importlib.util.spec_from_file_location("gpu_benchmark", FILE)
    assert spec is not None and spec.loader is not None
    gpu = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gpu)
    return gpu


@pytest.mark.long
def test_the_tiny_form_measures_every_entry(gpu: Any, tmp_path: Path) -> None:
    record = gpu.main(["--tiny", "--backend", "none", "--rounds", "1", "--out", str(tmp_path / "gpu.json")])
    assert json.loads((tmp_path / "gpu.json").read_text()) == record
    entries = {"base", "base again", *gpu.METHODS, "peft lora", "peft prefix"}
    for part in ("training, eager", "decoding, batch 1, eager", "decoding, batch 32, eager"):
        assert record[part]["left out"] == {} and record[part]["rounds"] == 1
        assert record[part]["tokens a second"].keys() == entries
        assert {"lora / peft", "prefix / peft", "base again / base"} <= record[part]["time, ratios"].keys()


def test_without_a_gpu_only_the_tiny_form_runs(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--tiny" in capsys.readouterr().err
