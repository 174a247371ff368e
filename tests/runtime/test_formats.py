"""Adapters that earlier versions saved are opened for ever: the committed folders of ``tests/data/format-*``.

The folders are never written again. What they hold (bases, adapters, logits) says `tests/data/make_adapters.py`.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from names import name
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

import unipelt
from unipelt import resources
from unipelt.language.types.fitting import PARAM_TYPES
from unipelt.language.types.owners import OWNERS
from unipelt.language.ir import from_json
from unipelt.language.loading import parse
from unipelt.language.types.initialisers import INITIALISERS
from unipelt.language.types.primitives import PRIMITIVES
from unipelt.language.sites import NUMBERS, SITES, SIZES
from unipelt.language.versions import FORMAT, LANGUAGE_VERSION, Version

DATA = Path(__file__).resolve().parent.parent / "data"
CLASSES: dict[str, Any] = {"bert": (BertForSequenceClassification, BertConfig), "gpt2": (GPT2LMHeadModel, GPT2Config)}
RECORDED = {f.parent.name: json.loads(f.read_text()) for f in sorted(DATA.glob("format-*/outputs.json"))}
CASES = [(f, a) for f, found in RECORDED.items() for a in found["adapters"]]


def base(folder: str, kind: str) -> nn.Module:
    cls, config = CLASSES[kind]
    model = cls(config(**json.loads((DATA / folder / f"{kind}.json").read_text()))).eval()
    missing, surplus = model.load_state_dict(load_file(DATA / folder / f"{kind}.safetensors"), strict=False)
    assert not surplus and not any(n in dict(model.named_parameters()) for n in missing if n != "lm_head.weight")
    return model


def logits(model: nn.Module, folder: str) -> torch.Tensor:
    with torch.no_grad():
        return model(**{n: torch.tensor(v) for n, v in RECORDED[folder]["batch"].items()}).logits


def test_format_1_is_there() -> None:
    assert set(RECORDED["format-1"]["adapters"]) >= {"lora", "unipelt_apl", "prompt_tuning", "bitfit", "mean_head"}


@pytest.mark.parametrize(("folder", "adapter"), CASES, ids=[f"{f}-{a}" for f, a in CASES])
def test_a_saved_adapter_of_any_format_computes_what_it_did(folder: str, adapter: str) -> None:
    recorded = RECORDED[folder]["adapters"][adapter]
    model = base(folder, recorded["base"])
    before = logits(model, folder)
    assert unipelt.attach(model, DATA / folder / adapter) == "saved"
    wanted, found = torch.tensor(recorded["logits"]), logits(model, folder)
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() < 1e-4
    assert found.shape != before.shape or (found - before).abs().max() > 0.05, "the adapter acts"
    stored = sum(t.numel() for t in unipelt.state_dict(model, "saved").values())
    counts = recorded["counts"]
    assert stored == counts["stored"] + counts["frozen"] + counts["head"]
    unipelt.remove(model, "saved")
    assert torch.equal(logits(model, folder), before)


@pytest.mark.parametrize(("folder", "adapter"), CASES, ids=[f"{f}-{a}" for f, a in CASES])
def test_it_is_saved_again_with_the_same_values(folder: str, adapter: str, tmp_path: Path) -> None:
    model = base(folder, RECORDED[folder]["adapters"][adapter]["base"])
    unipelt.attach(model, DATA / folder / adapter)
    again = unipelt.save(model, tmp_path / "again", "saved")
    old, new = (load_file(f / "adapter.safetensors") for f in (DATA / folder / adapter, again))
    assert old.keys() == new.keys() and all(torch.equal(old[n], new[n]) for n in old)


# ---------------------------------------------------------------- versions


def changed(tmp_path: Path, **changes: Any) -> Path:
    """The committed LoRA of format 1 with some keys of its manifest changed."""
    folder = Path(shutil.copytree(DATA / "format-1" / "lora", tmp_path / "adapter"))
    manifest = json.loads((folder / "adapter.json").read_text())
    (folder / "adapter.json").write_text(
        json.dumps({k: v for k, v in {**manifest, **changes}.items() if v != "absent"})
    )
    return folder


MINE = Version.of(LANGUAGE_VERSION)
assert MINE is not None
NEWER = f"{MINE.major}.{MINE.minor + 1}"
FORMAT_MINE = Version.of(FORMAT.partition("/")[2])
assert FORMAT_MINE is not None


@pytest.mark.parametrize("language", [1, "1", "1.0", LANGUAGE_VERSION, *(f"1.{i}" for i in range(MINE.minor))])
def test_older_languages_are_read(tmp_path: Path, language: Any) -> None:
    model = base("format-1", "bert")
    assert unipelt.attach(model, changed(tmp_path, language=language)) == "saved"


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        (
            {"language": NEWER},
            "E0720",
            f"its language {NEWER} is newer than what this version of unipelt reads: 1.0 to",
        ),
        ({"language": "2.0"}, "E0720", "its language 2.0 is newer"),
        ({"language": 2}, "E0720", "its language 2.0 is newer"),
        ({"language": "0.9"}, "E0720", "its language 0.9 is older"),
        ({"language": "absent"}, "E0578", "its `language` is not a version"),
        ({"language": True}, "E0578", "its `language` is not a version"),
        ({"language": "1.x"}, "E0578", "its `language` is not a version"),
        ({"language": "1.1.1"}, "E0578", "its `language` is not a version"),
        ({"format": f"unipelt-adapter/1.{FORMAT_MINE.minor + 1}"}, "E0579", "its format 1."),
        ({"format": "unipelt-adapter/2"}, "E0579", "is newer than what this version of unipelt reads"),
        ({"format": "other-adapter/1"}, "E0579", "has the format 'other-adapter/1'"),
        ({"format": "unipelt-adapter/"}, "E0579", "this version reads"),
    ],
)
def test_newer_ones_are_refused_and_say_so(tmp_path: Path, changes: dict[str, Any], code: str, words: str) -> None:
    model = base("format-1", "bert")
    before = logits(model, "format-1")
    with pytest.raises(unipelt.PeltError) as e:
        unipelt.attach(model, changed(tmp_path, **changes))
    assert [d.code for d in e.value.diagnostics] == [code] and words in str(e.value)
    assert ("pip install -U unipelt" in str(e.value)) == ("than what this version of unipelt reads" in str(e.value))
    assert torch.equal(logits(model, "format-1"), before) and not unipelt.adapters(model)


def test_what_is_saved_says_its_versions(tmp_path: Path) -> None:
    model = base("format-1", "bert")
    unipelt.apply(model, unipelt.load(name("lora"))(r=2))
    manifest = json.loads((unipelt.save(model, tmp_path / "out") / "adapter.json").read_text())
    assert manifest["format"] == FORMAT and manifest["language"] == LANGUAGE_VERSION


def test_the_first_language_is_part_of_this_one() -> None:
    """Words are only added, and a language with more words has a newer version. Its IR is read."""
    first = json.loads((DATA / "format-1" / "language.json").read_text())
    words = set(
        re.findall(r"^_?[A-Z]+(?:\.2)?: /(\w+)\\b/", (resources.folder("grammar") / "pelt.lark").read_text(), re.M)
    )
    grown = False
    for kind, known in (("primitives", PRIMITIVES), ("initialisers", INITIALISERS)):
        for n, (least, most) in first[kind].items():
            low, high = known[n].arity
            assert low <= least and high >= most, f"{n} takes fewer arguments than it did"
        grown = grown or set(known) > set(first[kind])
    for kind, now in (("keywords", words), ("sites", set(SITES)), ("sizes", {*SIZES, *NUMBERS}),
                      ("types", set(PARAM_TYPES)), ("places", set(OWNERS))):  # fmt: skip
        assert set(first[kind]) <= now, f"the language lost one of its {kind}"
        grown = grown or now > set(first[kind])
    assert not grown or MINE > Version(1, 0)
    assert from_json(first["ir"]).arguments == {"r": 8, "alpha": 16.0, "dropout": 0.0}
    method = from_json(first["ir"])
    assert parse(str(method)) == method


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"language": NEWER}, "E0720"),
        ({"language": None}, "E0410"),
        ({"schema": "unipelt-ir/1.99"}, "E0411"),
        ({"schema": "unipelt-ir/2"}, "E0411"),
    ],
)
def test_a_newer_ir_is_refused(changes: dict[str, Any], code: str) -> None:
    first = json.loads((DATA / "format-1" / "language.json").read_text())["ir"]
    with pytest.raises(unipelt.PeltError) as e:
        from_json({**first, **changes})
    assert [d.code for d in e.value.diagnostics] == [code]
    assert changes == {"language": None} or "newer than what this version of unipelt reads" in str(e.value)
