"""Folders with several adapters, each in a subfolder: peft's ``save_pretrained``, and ``save_all_adapters`` of AdapterHub's."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import peft
import pytest
import torch
from names import RENAMED
from safetensors.torch import load_file
from small import inputs, model, output, state
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

import unipelt
from unipelt.cli.app import app
from unipelt.language.report.diagnostics import PeltError
from unipelt.runtime.registry import registry

pytestmark = [
    pytest.mark.skipif(bool(RENAMED), reason="the declarations call methods by their names"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Could not find a config file in:UserWarning"),
]
TARGETS = {"default": ["q_proj"], "ann": ["q_proj", "v_proj"], "bob": ["up_proj"]}


def saved(folder: Path, names: Sequence[str], kind: str = "llama") -> dict[str, torch.Tensor]:
    """Writes a folder of peft's with some adapters; what peft's model yields with each."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        m = peft.get_peft_model(model(kind), config(names[0]), adapter_name=names[0])
        for n in names[1:]:
            m.add_adapter(n, config(n))
        g = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for n, p in sorted(m.named_parameters()):
                if "lora_" in n:
                    p.add_(torch.randn(p.shape, generator=g) * 0.1)
        m.save_pretrained(folder)
    found = {}
    for n in names:
        m.set_adapter(n)
        with torch.no_grad():
            found[n] = m.eval()(**inputs(padded=False))[0]
    return found


def config(name: str) -> peft.LoraConfig:
    return peft.LoraConfig(r=2, target_modules=TARGETS[name], task_type="CAUSAL_LM")


def of_ours(m: torch.nn.Module, name: str) -> torch.Tensor:
    unipelt.activate(m, name)
    with torch.no_grad():
        return m.eval()(**inputs(padded=False))[0]


@pytest.mark.parametrize("names", [("ann", "bob"), ("default", "ann", "bob"), ("bob",)], ids="+".join)
@pytest.mark.parametrize("bring", [unipelt.import_peft, unipelt.attach], ids=["import_peft", "attach"])
def test_all_come_in_and_each_goes_out(bring: object, names: tuple[str, ...], tmp_path: Path) -> None:
    expected = saved(tmp_path / "in", names)
    m = model("llama")
    last = bring(m, tmp_path / "in")  # type: ignore[operator]
    assert last == ("default" if "default" in names else names[-1])
    assert set(unipelt.adapters(m)) == set(names) and unipelt.active(m) == (last,)
    for n in names:
        torch.testing.assert_close(of_ours(m, n), expected[n], rtol=1e-5, atol=1e-5)
        unipelt.export_peft(m, tmp_path / "out" / n, n)
        own = tmp_path / "in" if n == "default" else tmp_path / "in" / n
        a, b = (load_file(at / "adapter_model.safetensors") for at in (own, tmp_path / "out" / n))
        assert a.keys() == b.keys() and all(torch.equal(t, b[k]) for k, t in a.items())


def test_one_of_them_by_its_name(tmp_path: Path) -> None:
    expected = saved(tmp_path, ("default", "ann", "bob"))
    m = model("llama")
    assert unipelt.import_peft(m, tmp_path, "bob") == "bob" and set(unipelt.adapters(m)) == {"bob"}
    assert (
        unipelt.import_peft(m, tmp_path, "mine") == "mine"
    )  # the one that lies in the folder itself, under another name
    assert set(unipelt.adapters(m)) == {"bob", "mine"}
    torch.testing.assert_close(of_ours(m, "bob"), expected["bob"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(of_ours(m, "mine"), expected["default"], rtol=1e-5, atol=1e-5)


def test_a_name_that_none_of_them_has(tmp_path: Path) -> None:
    saved(tmp_path, ("ann", "bob"))
    for bring in (unipelt.import_peft, unipelt.attach):
        m = model("llama")
        with pytest.raises(PeltError, match=r"E0533.*holds the adapters `ann`, `bob`, and none named `eve`"):
            bring(m, tmp_path, "eve")
        assert registry(m) is None


def test_checkpoints_beside_an_adapter_are_none_of_their_own(tmp_path: Path) -> None:
    saved(tmp_path, ("default",))
    for n in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / "checkpoint-20").mkdir(exist_ok=True)
        shutil.copy(tmp_path / n, tmp_path / "checkpoint-20" / n)
    m = model("llama")
    assert unipelt.import_peft(m, tmp_path) == "default" and set(unipelt.adapters(m)) == {"default"}


@pytest.mark.parametrize("broken", ["ann", "bob"])
def test_all_or_none(broken: str, tmp_path: Path) -> None:
    saved(tmp_path, ("ann", "bob"))
    path = tmp_path / broken / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "r": 3}))
    m = model("llama")
    before, out = state(m), output(m)
    with pytest.raises(PeltError, match=f"of the adapter `{broken}`: "):
        unipelt.import_peft(m, tmp_path)
    assert state(m) == before and torch.equal(output(m), out) and registry(m) is None


def test_several_of_adapterhub(tmp_path: Path) -> None:
    m = model("bert")
    outputs = {}
    for n, arguments in (("ann", {"r": 2}), ("bob", {"r": 3, "alpha": 6.0})):
        unipelt.apply(m, unipelt.load("lora", arguments={**arguments, "at": "[attn.q, attn.v]"}), n)
        with torch.no_grad():
            for i, (_, p) in enumerate(sorted(unipelt.state_dict(m, n).items())):
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.1)
        outputs[n] = of_ours(m, n)
        unipelt.export_adapters(m, tmp_path / n, n)
    for bring in (unipelt.import_adapters, unipelt.attach):
        again = model("bert")
        assert bring(again, tmp_path) == "bob" and set(unipelt.adapters(again)) == {"ann", "bob"}
        for n, expected in outputs.items():
            torch.testing.assert_close(of_ours(again, n), expected, rtol=1e-5, atol=1e-5)


def call(*words: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(w) for w in words])
    assert done.exit_code == code, (done.output, done.stderr if done.stderr_bytes else "")
    return done.output


def test_the_command_line(tmp_path: Path) -> None:
    expected = saved(tmp_path / "theirs", ("default", "ann", "bob"))
    model("llama").save_pretrained(tmp_path / "base")
    words = Tokenizer(WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<unk>").save_pretrained(
        tmp_path / "base"
    )
    to = ("-m", tmp_path / "base", "-o", tmp_path / "ours")
    found = json.loads(call("import", tmp_path / "theirs", *to, "--json"))
    assert found["ok"] and {n: a["folder"] for n, a in found["adapters"].items()} == {
        n: str(tmp_path / "ours" / n) for n in expected
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "ours", "theirs"], "and nothing is left beside"
    for n, output_ in expected.items():
        m = model("llama")
        unipelt.attach(m, tmp_path / "ours" / n, n)
        torch.testing.assert_close(of_ours(m, n), output_, rtol=1e-5, atol=1e-5)
    shutil.rmtree(tmp_path / "ours")
    said = call("import", tmp_path / "theirs" / "ann", *to)
    assert str(tmp_path / "ours") in said and (tmp_path / "ours" / "method.pelt").exists()
    shutil.rmtree(tmp_path / "ours")
    path = tmp_path / "theirs" / "bob" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "r": 3}))
    assert "`bob`" in call("import", tmp_path / "theirs", *to, code=1) and not (tmp_path / "ours").exists()
    path.write_text(json.dumps({**json.loads(path.read_text()), "task_type": "SEQ_CLS"}))
    said = call("import", tmp_path / "theirs", *to, code=2)
    assert (
        "`ann` for causal-lm" in said
        and "`bob` for sequence-classification" in said
        and not (tmp_path / "ours").exists()
    )
