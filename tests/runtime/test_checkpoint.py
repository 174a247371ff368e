"""Adapters on disk: what was saved comes back, and whatever is wrong with a folder is said while the model
stays as it was.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
from names import members, name, spec
from safetensors.torch import load_file, save_file
from small import LAYERS, WIDTH, inputs, model, output, randomise, state
from torch import nn

import unipelt
from unipelt.language.analyse.counts import counts
from unipelt.language.report.diagnostics import PeltError
from unipelt.language.versions import FORMAT
from unipelt.runtime.saving import fingerprint
from unipelt.runtime.folder import read_manifest, read_tensors
from unipelt.runtime.registry import registry
from unipelt.runtime.hub import MANIFEST, METHOD, WEIGHTS

METHODS = members()


def adapted(
    kind: str = "bert", method: str = "lora", as_name: str = "default", seed: int = 0, **arguments: Any
) -> nn.Module:
    m = model(kind)
    unipelt.apply(m, unipelt.load(name(method))(**arguments), name=as_name, allow_future=True)
    randomise(m, as_name, seed=seed + 1)
    return m


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return unipelt.save(adapted("bert_labels"), tmp_path / "out")


def rewrite(
    folder: Path,
    tensors: Callable[[dict[str, torch.Tensor]], Any] | None = None,
    manifest: Callable[[dict[str, Any]], Any] | None = None,
    method: str | None = None,
    listed: bool = True,
) -> None:
    """Changes a folder so that nothing but the change is wrong: hashes (and the list of tensors) follow."""
    found = json.loads((folder / MANIFEST).read_text())
    if tensors is not None:
        own = load_file(folder / WEIGHTS)
        tensors(own)
        save_file(own, folder / WEIGHTS)
        if listed:
            found["tensors"] = {n: {"shape": list(t.shape), "dtype": str(t.dtype)[6:]} for n, t in own.items()}
    if method is not None:
        (folder / METHOD).write_text(method)
    for n in (WEIGHTS, METHOD):
        found["sha256"][n] = hashlib.sha256((folder / n).read_bytes()).hexdigest()
    if manifest is not None:
        manifest(found)
    (folder / MANIFEST).write_text(json.dumps(found))


def refused(
    folder: Path, code: str, kind: str = "bert_labels", words: str = "", m: nn.Module | None = None, **options: Any
) -> str:
    """Attaching fails with that code and leaves the model as it was: one without adapters, and one with two."""
    bare = model(kind) if m is None else m
    before, out = state(bare), output(bare)
    with pytest.raises(PeltError) as caught:
        unipelt.attach(bare, folder, **options)
    assert [d.code for d in caught.value.diagnostics] == [code], str(caught.value)
    assert words in str(caught.value)
    assert state(bare) == before and torch.equal(output(bare), out) and unipelt.adapters(bare) == {}
    assert not any("unipelt" in n for n, _ in bare.named_modules())
    unipelt.apply(bare, unipelt.load(name("pfeiffer")), name="first")
    unipelt.apply(bare, unipelt.load(name("prefix_tuning")), name="second")
    for n in ("first", "second"):
        randomise(bare, n, seed=5)
    unipelt.activate(bare, "second", "first")
    before, out = state(bare), output(bare)
    with pytest.raises(PeltError):
        unipelt.attach(bare, folder, name="third", **options)
    assert state(bare) == before and torch.equal(output(bare), out)
    assert unipelt.active(bare) == ("second", "first") and set(unipelt.adapters(bare)) == {"first", "second"}
    return str(caught.value)


# ---------------------------------------------------------------- round trips


@pytest.mark.parametrize(("turn", "kind", "fold"), [(0, "bert_labels", True), (1, "gpt2", False), (2, "llama", True)])
def test_every_method_of_the_library_comes_back(tmp_path: Path, turn: int, kind: str, fold: bool) -> None:
    base = output(model(kind))
    seen = 0
    for n in METHODS[turn::3]:
        m = model(kind)
        try:
            plan = unipelt.apply(m, unipelt.load(n), allow_future=True)
        except PeltError:
            continue
        randomise(m)
        folder = unipelt.save(m, tmp_path / n, fold=fold)
        assert {p.name for p in folder.iterdir()} == {WEIGHTS, MANIFEST, METHOD}
        other = model(kind)
        assert unipelt.attach(other, folder) == "default" == unipelt.active(other)[0]
        wanted, found = output(m), output(other)
        assert wanted.shape == found.shape and (wanted - found).abs().max() < 2e-5, n
        assert wanted.shape != base.shape or (wanted - base).abs().max() > 1e-3, n
        stored = sum(t.numel() for t in load_file(folder / WEIGHTS).values())
        c = plan.counts
        assert stored == (c.stored if fold else c.trained) + c.frozen + c.head
        assert not any(p.requires_grad for p in other.parameters())
        if not fold or not plan.folds:
            assert unipelt.adapters(other)["default"] == unipelt.adapters(m)["default"]
            mine, theirs = unipelt.state_dict(m), unipelt.state_dict(other)
            assert set(mine) == set(theirs) and all(torch.equal(mine[k], theirs[k]) for k in mine)
        else:
            assert len((folder / METHOD).read_text()) > 0 and read_manifest(folder)["folded"]
        again = unipelt.save(other, tmp_path / f"{n}_again", fold=fold)
        assert load_file(again / WEIGHTS).keys() == load_file(folder / WEIGHTS).keys()
        unipelt.remove(other, "default")
        assert torch.equal(output(other), base)
        seen += 1
    assert seen >= 8


def test_a_folder_holds_its_own_definition(saved: Path) -> None:
    text = (saved / METHOD).read_text()
    method = unipelt.parse(text)
    assert method == unipelt.load(name("lora")) and str(method) + "\n" == text
    found = json.loads((saved / MANIFEST).read_text())
    assert found["arguments"] == {
        "r": 8,
        "alpha": 16.0,
        "dropout": 0.0,
        "at": "[attn.q, attn.v]",
        "init": "kaiming_uniform(sqrt(5))",
    }
    assert found["format"] == FORMAT
    assert set(found["tensors"]) == set(load_file(saved / WEIGHTS)) and found["base"]["class"] == "BertModel"
    for n in (WEIGHTS, METHOD):
        assert found["sha256"][n] == hashlib.sha256((saved / n).read_bytes()).hexdigest()
    assert "encoder.layer.0.attn.q." + name("lora") + ".A" in found["tensors"]


def test_names(saved: Path, tmp_path: Path) -> None:
    m = adapted("bert_labels", as_name="sst2-v_1")
    folder = unipelt.save(m, tmp_path / "deep" / "er" / "x", "sst2-v_1")
    other = model("bert_labels")
    assert unipelt.attach(other, folder) == "sst2-v_1" and unipelt.attach(other, folder, "sst2") == "sst2"
    assert set(unipelt.adapters(other)) == {"sst2-v_1", "sst2"} and unipelt.active(other) == ("sst2",)
    for bad in ("a.b", "", "../x", "a b"):
        with pytest.raises(PeltError):
            unipelt.attach(other, folder, bad or "\n")
    with pytest.raises(PeltError) as caught:
        unipelt.attach(other, folder)
    assert caught.value.diagnostics[0].code == "E0553"
    with pytest.raises(PeltError) as caught:
        unipelt.save(m, tmp_path / "y", "sst3")
    assert caught.value.diagnostics[0].code == "E0551" and not (tmp_path / "y").exists()
    with pytest.raises(PeltError) as caught:
        unipelt.save(model("bert"), tmp_path / "y")
    assert caught.value.diagnostics[0].code == "E0550"


def test_two_saved_adapters_in_one_model(tmp_path: Path) -> None:
    a, b = adapted(method="lora", as_name="a"), adapted(method="prefix_tuning", as_name="b", seed=3)
    unipelt.save(a, tmp_path / "a", "a")
    unipelt.save(b, tmp_path / "b", "b")
    m = model("bert")
    unipelt.attach(m, tmp_path / "a")
    unipelt.attach(m, tmp_path / "b")
    for n, alone in (("a", a), ("b", b)):
        unipelt.activate(m, n)
        assert torch.equal(output(m), output(alone))
    unipelt.activate(m, "a", "b")
    both = output(m)
    assert min((both - output(a)).abs().max(), (both - output(b)).abs().max()) > 1e-3


def test_trainable_and_restore(tmp_path: Path) -> None:
    m = adapted(method="prefix_tuning_mlp")
    raw, folded = unipelt.save(m, tmp_path / "raw", fold=False), unipelt.save(m, tmp_path / "folded")
    out = output(m)
    other = model("bert")
    unipelt.attach(other, raw, trainable=True)
    trained = {n for n, p in other.named_parameters() if p.requires_grad}
    assert trained and all("unipelt" in n for n in trained)
    randomise(other, seed=8)
    assert (output(other) - out).abs().max() > 1e-3
    unipelt.restore(other, raw)
    assert torch.equal(output(other), out)
    with pytest.raises(PeltError) as caught:
        unipelt.restore(other, folded)
    assert caught.value.diagnostics[0].code == "E0576" and torch.equal(output(other), out)


def test_a_folded_adapter_is_a_method_of_its_own(tmp_path: Path) -> None:
    m = adapted("llama", "unipelt_apl_causal")
    folder = unipelt.save(m, tmp_path / "f")
    method = unipelt.parse((folder / METHOD).read_text())
    other = model("llama")
    plan = unipelt.plan(other, method)
    unipelt.attach(other, folder)
    assert (
        plan.counts.trained
        == plan.counts.stored
        < unipelt.plan(m, unipelt.load(name("unipelt_apl_causal"))).counts.trained
    )
    assert (output(other) - output(m)).abs().max() < 2e-5
    assert method(**{"rl": 8}) == method


# ---------------------------------------------------------------- the base


def test_what_has_no_size_that_is_true_at_all_places_is_stored_as_it_is(tmp_path: Path) -> None:
    """Folded, k would be [min(d_in, d_out), min(d_in, d_out)], which has another text at each site."""
    method = unipelt.parse("""method m { modify attn.q, ffn.up, ffn.down  insert parallel
      form { A: [min(d_in, d_out), 40] ~ normal(0.3)  C: [40, min(d_in, d_out)] ~ normal(0.3)
             D: [d_in, min(d_in, d_out)] ~ normal(0.1)  E: [min(d_in, d_out), d_out] ~ normal(0.1)
             delta = z @ D @ (A @ C) @ E }  compose h + delta }""")
    m, other = model("llama"), model("llama")
    plan = unipelt.apply(m, method)
    randomise(m)
    unipelt.save(m, tmp_path / "a")
    unipelt.attach(other, tmp_path / "a")
    assert torch.equal(output(other), output(m))
    stored = sum(t.numel() for t in load_file(tmp_path / "a" / WEIGHTS).values())
    assert plan.counts.stored == plan.counts.trained == stored and not plan.folds
    assert str(counts(method)["stored"]) == str(counts(method)["trained"])  # the formula says nothing of a fold


def test_another_architecture_is_refused(saved: Path) -> None:
    assert "BertModel" in refused(saved, "E0570", "gpt2")
    refused(saved, "E0570", m=_bert(num_hidden_layers=2))
    refused(saved, "E0570", m=_bert(num_hidden_layers=2), force=True)


def _bert(**options: Any) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = dict(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, vocab_size=80, num_labels=3
    )
    return BertForSequenceClassification(BertConfig(**{**sizes, **options})).eval()


def test_other_weights_are_refused_unless_forced(saved: Path) -> None:
    other = model("bert_labels", seed=1)
    said = refused(saved, "E0571", m=other)
    assert "force=True" in said
    other = model("bert_labels", seed=1)
    assert unipelt.attach(other, saved, force=True) == "default"
    assert (output(other) - output(model("bert_labels", seed=1))).abs().max() > 1e-3


def test_a_single_fine_tuned_layer_is_other_weights(saved: Path) -> None:
    other = model("bert_labels")
    with torch.no_grad():
        other.bert.encoder.layer[1].output.dense.weight.mul_(1.5)
    assert "layer.1.output.dense.weight" in refused(saved, "E0571", m=other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_same_weights_in_another_dtype_are_the_same_base(saved: Path, dtype: torch.dtype) -> None:
    other = model("bert_labels", dtype=dtype)
    unipelt.attach(other, saved)
    assert unipelt.active(other) == ("default",)


def test_the_fingerprint_does_not_see_adapters_heads_or_merging(tmp_path: Path) -> None:
    bare = fingerprint(model("bert"))
    assert fingerprint(model("bert_labels"))["architecture"] == bare["architecture"]
    m = adapted()
    assert fingerprint(m) == bare
    unipelt.merge(m, "default")
    assert fingerprint(m) == bare
    folder = unipelt.save(m, tmp_path / "merged")
    other = model("bert")
    unipelt.attach(other, folder)
    assert (output(other) - output(m)).abs().max() < 1e-5


def test_another_number_of_labels(saved: Path) -> None:
    other = _bert(num_labels=5)
    other.bert.load_state_dict(model("bert_labels").bert.state_dict())
    name = unipelt.attach(other, saved)  # the head comes with the adapter, whatever the base's own number
    own = model("bert_labels")
    unipelt.attach(own, saved)
    assert output(other).shape[-1] == 3 and torch.equal(output(other), output(own))
    assert unipelt.labels(other, name) == unipelt.labels(own, name)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("gone", [WEIGHTS, MANIFEST, METHOD])
def test_a_missing_file(saved: Path, gone: str) -> None:
    (saved / gone).unlink()
    assert gone in refused(saved, "E0577")


def test_no_folder(tmp_path: Path, saved: Path) -> None:
    refused(tmp_path / "nowhere", "E0577")
    refused(saved / MANIFEST, "E0577")
    (saved / WEIGHTS).unlink()
    (saved / WEIGHTS).mkdir()
    refused(saved, "E0577")


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_truncated_weights(saved: Path, keep: int) -> None:
    data = (saved / WEIGHTS).read_bytes()
    (saved / WEIGHTS).write_bytes(data[:keep])
    refused(saved, "E0580")
    rewrite(saved)  # with a hash that fits, the file itself says so
    refused(saved, "E0583")


@pytest.mark.parametrize("where", [0, 8, 60, -1, -4000])
def test_one_flipped_byte(saved: Path, where: int) -> None:
    data = bytearray((saved / WEIGHTS).read_bytes())
    data[where] ^= 0x10
    (saved / WEIGHTS).write_bytes(bytes(data))
    assert "hash" in refused(saved, "E0580")


def test_a_header_that_claims_too_much(saved: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}).encode()
    (saved / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)
    rewrite(saved, manifest=lambda found: found.update(tensors={"a": {"shape": [10**12], "dtype": "float32"}}))
    refused(saved, "E0585")  # by the manifest, before the file is opened
    for claimed in (len(header), 2**62):
        (saved / WEIGHTS).write_bytes(claimed.to_bytes(8, "little") + header)
        rewrite(saved)
        with pytest.raises(PeltError) as caught:
            read_tensors(saved, read_manifest(saved))
        assert caught.value.diagnostics[0].code == "E0583"


# ---------------------------------------------------------------- tensors

A = f"encoder.layer.0.attn.q.{name('lora')}.A"


def test_a_missing_tensor(saved: Path) -> None:
    rewrite(saved, lambda t: t.pop(A))
    assert A in refused(saved, "E0585")


def test_a_surplus_tensor(saved: Path) -> None:
    rewrite(saved, lambda t: t.update({"encoder.layer.9.extra": torch.zeros(2)}))
    assert "encoder.layer.9.extra" in refused(saved, "E0586")


@pytest.mark.parametrize("shape", [(WIDTH, 9), (8, WIDTH), (WIDTH * 8,), (1, WIDTH, 8), ()])
def test_a_misshapen_tensor(saved: Path, shape: tuple[int, ...]) -> None:
    rewrite(saved, lambda t: t.update({A: torch.zeros(shape)}))
    assert A in refused(saved, "E0587")


def test_a_shape_other_than_the_manifest_says(saved: Path) -> None:
    rewrite(saved, lambda t: t.update({A: torch.zeros(3)}), listed=False)
    assert A in refused(saved, "E0582")
    rewrite(saved, lambda t: t.pop(A), listed=False)
    refused(saved, "E0581")


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
def test_a_tensor_that_is_no_number_of_the_right_kind(saved: Path, dtype: torch.dtype) -> None:
    rewrite(saved, lambda t: t.update({A: torch.zeros(WIDTH, 8, dtype=dtype)}))
    refused(saved, "E0582")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity(saved: Path, value: float) -> None:
    def spoil(t: dict[str, torch.Tensor]) -> None:
        t[A][3, 2] = value

    rewrite(saved, spoil)
    assert A in refused(saved, "E0584")


def test_nan_is_not_saved(saved: Path) -> None:
    m = adapted("bert_labels")
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    with torch.no_grad():
        next(p for n, p in m.named_parameters() if n.endswith("_A"))[0, 0] = float("nan")
    with pytest.raises(PeltError) as caught:
        unipelt.save(m, saved)
    assert caught.value.diagnostics[0].code == "E0573" and {p.name: p.read_bytes() for p in saved.iterdir()} == before


# ---------------------------------------------------------------- the manifest


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "E0578"),
        ("{", "E0578"),
        ("nonsense", "E0578"),
        ("[" * 100_000, "E0578"),
        ("[]", "E0579"),
        ("3", "E0579"),
        ("{}", "E0579"),
        ('{"format": "unipelt-adapter/2"}', "E0579"),
        ('{"format": ["unipelt-adapter/1"]}', "E0579"),
        ('{"peft_type": "LORA", "r": 8}', "E0579"),
        ('{"format": "unipelt-adapter/1"}', "E0578"),
    ],
    ids=range(11),
)
def test_a_broken_or_foreign_manifest(saved: Path, text: str, code: str) -> None:
    (saved / MANIFEST).write_text(text)
    refused(saved, code)


def test_a_manifest_that_is_not_utf8_or_is_huge(saved: Path) -> None:
    (saved / MANIFEST).write_bytes(b'{"format": "\xff"}')
    refused(saved, "E0578")
    (saved / MANIFEST).write_bytes(b" " * (17 * 2**20))
    assert "17,825,792 bytes" in refused(saved, "E0780")


@pytest.mark.parametrize(
    "change",
    [
        {"seed": "zero"},
        {"seed": [1]},
        {"seed": 1e400},
        {"base": 3},
        {"base": []},
        {"base": {"architecture": None, "samples": 3}},
        {"copies": 7},
        {"tensors": []},
        {"tensors": {"a": 3}},
        {"tensors": None},
        {"sha256": "x"},
        {"sha256": None},
        {"adapter": "a.b"},
        {"adapter": 3.5},
        {"head": "many"},
        {"labels": 3},
        {"labels": {"names": ["a", "b"]}},
        {"labels": {"names": ["a", "a", "b"], "problem_type": None}},
        {"labels": {"names": ["a", "b", 3], "problem_type": None}},
        {"labels": {"names": ["a", "b", "c"], "problem_type": "guess"}},
        {"labels": {"names": ["a", "b", "c"], "problem_type": ["regression"]}},
        {"labels": {"names": ["a", "b"], "problem_type": None}},
        {"folded": "x"},
    ],
    ids=lambda c: json.dumps(c),
)
def test_a_manifest_with_foreign_values_is_an_error(saved: Path, change: dict[str, Any]) -> None:
    rewrite(saved, manifest=lambda found: found.update(change))
    m = model("bert_labels")
    before = state(m)
    with pytest.raises(PeltError) as caught:
        unipelt.attach(m, saved)
    assert all(d.code.startswith("E05") for d in caught.value.diagnostics) and state(m) == before


def test_samples_of_another_kind(saved: Path) -> None:
    for values in (3, "x", [None] * 4, ["a"] * 4, [[1]] * 4, [], [0.0] * 5, [10**400] * 4):
        rewrite(
            saved,
            manifest=lambda found, values=values: found["base"]["samples"].update(
                {next(iter(found["base"]["samples"])): values}
            ),
        )
        refused(saved, "E0571")


# ---------------------------------------------------------------- the method


def test_a_tampered_method(saved: Path) -> None:
    text = (saved / METHOD).read_text()
    (saved / METHOD).write_text(text + "# a comment\n")
    assert METHOD in refused(saved, "E0580")


def test_a_method_of_other_sizes(saved: Path) -> None:
    text = (saved / METHOD).read_text()
    assert "r: int = 8" in text
    rewrite(saved, method=text.replace("r: int = 8", "r: int = 4"))
    refused(saved, "E0587")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('import "other.pelt"\nmethod m { use inner }', "E0202"),
        ('import "/etc/hosts"\nmethod m { }', "E0202"),
        ("method m {", "E0102"),
        ("method m { use wing }", "E0225"),
        ("", "E0406"),
        ("form f { delta = z }", "E0406"),
        (
            "method m(r: int = 1000000000) { modify ffn insert parallel form { A: [d_in, r] ~ zeros "
            "delta = sum(z @ A) * z } compose { out = h + delta } }",
            "E0346",
        ),
    ],
    ids=range(7),
)
def test_a_method_that_does_not_stand_alone_or_is_wrong(saved: Path, text: str, code: str) -> None:
    (saved / "other.pelt").write_text("method inner { train head }\n")
    rewrite(saved, method=text)
    refused(saved, code)


def test_a_method_file_of_other_bytes(saved: Path) -> None:
    (saved / METHOD).write_bytes(b"\xff\xfe")
    rewrite(saved)
    refused(saved, "E0124")
    (saved / METHOD).write_bytes(b" " * (2 << 20))
    rewrite(saved)
    refused(saved, "E0780")


# ---------------------------------------------------------------- whole or not there


class FullDisk:
    """Fails from the n-th call on, as a disk does that has no room left."""

    def __init__(self, n: int, then: Callable):
        self.left, self.then = n, then

    def __call__(self, *args: Any, **options: Any) -> Any:
        if self.left <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.left -= 1
        return self.then(*args, **options)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("call", "n"),
    [
        (c, n)
        for c in ("os.fsync", "os.rename", "write", "tempfile.mkdtemp", "os.chmod")
        for n in (0, 1, 2, 5)
        if (c, n) != ("os.rename", 1)
    ],  # one that works once and never again cannot be undone: below it fails only once
)
def test_a_full_disk_leaves_the_old_folder(saved: Path, monkeypatch: pytest.MonkeyPatch, call: str, n: int) -> None:
    import builtins
    import tempfile

    (saved / "notes.txt").write_text("mine")
    before, out = snapshot(saved), output(adapted("bert_labels"))
    m = adapted("bert_labels", seed=9)
    if call == "write":
        real = builtins.open
        full = FullDisk(n, lambda f, data: f.write(data))

        class Writer:
            def __init__(self, f: Any):
                self.f = f

            def __enter__(self) -> Any:
                return self

            def __exit__(self, *e: Any) -> None:
                self.f.close()

            def write(self, data: bytes) -> Any:
                return full(self.f, data)

            def __getattr__(self, attribute: str) -> Any:
                return getattr(self.f, attribute)

        monkeypatch.setattr(
            builtins,
            "open",
            lambda f, mode="r", *a, **k: Writer(real(f, mode, *a, **k)) if "w" in mode else real(f, mode, *a, **k),
        )
        expected = n < 3
    else:
        where, attribute = call.split(".")
        module = {"os": os, "tempfile": tempfile}[where]
        monkeypatch.setattr(module, attribute, FullDisk(n, getattr(module, attribute)))
        expected = n < {"os.fsync": 3, "os.rename": 2, "tempfile.mkdtemp": 1, "os.chmod": 1}[call]
    if not expected:
        unipelt.save(m, saved)
        monkeypatch.undo()
        assert snapshot(saved)[WEIGHTS] != before[WEIGHTS] and snapshot(saved)["notes.txt"] == b"mine"
        return
    with pytest.raises(PeltError) as caught:
        unipelt.save(m, saved)
    monkeypatch.undo()
    (d,) = caught.value.diagnostics
    assert d.code == "E0575" and os.strerror(errno.ENOSPC) in d.message
    assert snapshot(saved) == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name], "no litter beside it"
    other = model("bert_labels")
    unipelt.attach(other, saved)
    assert torch.equal(output(other), out)
    assert unipelt.active(m) == ("default",)


def test_a_full_disk_leaves_nothing_where_nothing_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", FullDisk(1, os.fsync))
    with pytest.raises(PeltError):
        unipelt.save(adapted(), tmp_path / "new")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_rename_that_fails_once_puts_the_old_folder_back(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, real, calls = snapshot(saved), os.rename, []

    def second_fails(a: Any, b: Any) -> None:
        calls.append((a, b))
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "full")
        real(a, b)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(PeltError):
        unipelt.save(adapted("bert_labels", seed=9), saved)
    monkeypatch.undo()
    assert len(calls) == 3 and snapshot(saved) == before and [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_saving_again_replaces_the_adapter_and_keeps_other_files(saved: Path) -> None:
    (saved / "notes.txt").write_text("mine")
    (saved / "sub").mkdir()
    (saved / "sub" / "state.bin").write_bytes(b"\0" * 9)
    before = snapshot(saved)
    m = adapted("bert_labels", "pfeiffer", seed=4)
    unipelt.save(m, saved)
    after = snapshot(saved)
    assert set(after) == set(before) and after["notes.txt"] == b"mine" and after["sub/state.bin"] == b"\0" * 9
    assert all(after[n] != before[n] for n in (WEIGHTS, MANIFEST, METHOD))
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]
    other = model("bert_labels")
    unipelt.attach(other, saved)
    assert torch.equal(output(other), output(m))


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(PeltError) as caught:
        unipelt.save(adapted(), tmp_path / "out")
    assert caught.value.diagnostics[0].code == "E0572" and (tmp_path / "out").read_text() == "a file"
    with pytest.raises(PeltError) as caught:
        unipelt.save(adapted(), tmp_path / "out" / "deeper")
    assert caught.value.diagnostics[0].code == "E0575"


def test_a_folder_may_move_and_be_read_only(saved: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "x"
    shutil.copytree(saved, moved)
    for p in moved.iterdir():
        p.chmod(0o444)
    other = model("bert_labels")
    unipelt.attach(other, moved)
    assert torch.equal(output(other), output(adapted("bert_labels")))


def test_the_card_is_kept(tmp_path: Path) -> None:
    folder = unipelt.save(adapted(), tmp_path / "x", card={"accuracy": 0.5, "path": Path("a")})
    assert read_manifest(folder)["card"] == {"accuracy": 0.5, "path": "a"}


def test_nothing_is_unpickled(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pickle

    def never(*a: Any, **k: Any) -> None:
        raise AssertionError("unpickled")

    for n in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, n, never)
    monkeypatch.setattr(torch, "load", never)
    unipelt.attach(model("bert_labels"), saved)


def test_inputs_are_padded_here() -> None:
    """The comparisons above see padding; without it some would be vacuous."""
    assert int((inputs()["attention_mask"] == 0).sum()) == 2 and LAYERS == 3


@pytest.mark.parametrize("lines", [
    "A: [d_in, 64] ~ normal(1)  C: [64, 1] ~ normal(1)  u = tanh(A @ C)  B: [d_in, 1] = u  K = exp(A @ C)  delta = z @ B @ K.T",
    "k = 2 * r  A: [d_in, 4] ~ normal(1) lr k  C: [4, 8] ~ normal(1)  D: [8, 1] ~ normal(1)  K = tanh(C @ D)  delta = z @ A @ K @ K.T @ A.T",
    "k = 0.5 * r  A: [d_in, 4] ~ normal(k)  C: [4, 8] ~ normal(1)  D: [8, 1] ~ normal(1)  K = tanh(C @ D)  delta = z @ A @ K @ K.T @ A.T",
    "n = 2 * r  A: [d_in, n] ~ normal(1)  C: [n, 64] ~ normal(1)  D: [64, 1] ~ normal(1)  K = tanh(C @ D)  delta = z @ A @ K @ K.T @ A.T",
])  # fmt: skip
def test_a_folded_form_names_nothing_that_folding_left_out(lines: str, tmp_path: Path) -> None:
    """What a tensor started from may be gone; lets that its sizes, its distribution or its rate read stay."""
    made = unipelt.parse(
        spec(f"method m(r: int = 2) {{ modify ffn insert parallel form {{ {lines} }} compose h + delta }}")
    )
    m, again = model("bert"), model("bert")
    unipelt.apply(m, made, "a")
    randomise(m, "a")
    assert unipelt.plan(model("bert"), made).folds
    unipelt.save(m, tmp_path / "saved", "a")
    unipelt.attach(again, tmp_path / "saved")
    torch.testing.assert_close(output(again), output(m))


def test_an_adapter_without_a_trained_head_comes_back_without_one(tmp_path: Path) -> None:
    m = model("bert_labels")
    unipelt.apply(m, unipelt.load(name("lora"))(r=2), head=False)
    randomise(m)
    unipelt.save(m, tmp_path / "a")
    other, x = model("bert_labels"), {"input_ids": torch.tensor([[3, 4, 5, 6]])}
    unipelt.attach(other, tmp_path / "a")
    assert not registry(other).attached["default"].plan.copies
    torch.testing.assert_close(other.eval()(**x).logits, m.eval()(**x).logits)
