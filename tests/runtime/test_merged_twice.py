"""A second adapter is merged behind a first: the model computes what both computed together, and each comes out again."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from names import name
from small import model, output, randomise, state
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import unipelt
from unipelt import PeltError


def with_two(kind: str, first: str, second: str, scale: float = 0.2, **options: Any) -> torch.nn.Module:
    m = model(kind, **options)
    for i, (n, method) in enumerate((("a", first), ("b", second))):
        unipelt.apply(m, unipelt.load(name(method)), n, seed=i)
        randomise(m, n, seed=i + 3, scale=scale)
    return m


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize(
    "first, second",
    [
        ("lora", "lora"), ("lora", "ia3"), ("ia3", "lora"), ("lora", "dora"), ("dora", "lora"), ("full", "lora"), ("lora", "full"),
        ("full", "partial"), ("ia3", "ln_tuning"), ("oft", "hra"),
    ],
)  # fmt: skip
def test_one_after_the_other_is_both_together(kind: str, first: str, second: str) -> None:
    m = with_two(kind, first, second)
    unipelt.activate(m, "a", "b")
    both, base = output(m), copy.deepcopy(m.state_dict())
    unipelt.activate(m, "b")
    alone = output(m)
    unipelt.activate(m, "a")
    assert min((both - alone).abs().max(), (both - output(m)).abs().max()) > 1e-2
    unipelt.merge(m, "a")
    one = output(m)
    unipelt.merge(m, "b")
    unipelt.merge(m, "a")  # merged already
    torch.testing.assert_close(output(m), both, rtol=1e-4, atol=1e-4)
    unipelt.unmerge(m, "b")
    assert torch.equal(output(m), one), "the first is merged as it was, to the bit"
    unipelt.merge(m, "b")
    unipelt.unmerge(m, "a")
    torch.testing.assert_close(output(m), alone, rtol=1e-4, atol=1e-4)
    unipelt.unmerge(m)
    assert all(torch.equal(t, base[n]) for n, t in m.state_dict().items()) and unipelt.active(m) == ("a",)


def plain(m: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in m.state_dict().items() if "unipelt" not in n.split(".")}


def test_a_second_that_cannot_be_merged_leaves_the_first() -> None:
    m = with_two("bert", "lora", "lora")
    unipelt.apply(m, unipelt.load(name("parallel_adapter")), "c")
    unipelt.activate(m, "a")
    unipelt.merge(m, "a")
    before, merged = plain(m), output(m)
    with pytest.raises(PeltError, match="E0563"):
        unipelt.merge(m, "c")
    with torch.no_grad():
        next(iter(unipelt.state_dict(m, "b").values())).fill_(float("inf"))
    with pytest.raises(PeltError, match="E0561"):
        unipelt.merge(m, "b")
    assert all(torch.equal(t, before[n]) for n, t in plain(m).items()) and torch.equal(output(m), merged)
    unipelt.unmerge(m)
    assert unipelt.active(m) == ("a",)


def test_an_interruption_leaves_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the values are being written."""
    m = with_two("bert", "lora", "ia3")
    unipelt.activate(m, "a")
    base = copy.deepcopy(m.state_dict())
    unipelt.merge(m, "a")
    merged, calls = output(m), []
    original = torch.Tensor.copy_
    mine = {p.data_ptr() for n, p in m.named_parameters() if n.endswith("attention.self.key.weight")}

    def copy_(self: torch.Tensor, *given: Any, **more: Any) -> torch.Tensor:
        if self.data_ptr() in mine:
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
        return original(self, *given, **more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(torch.Tensor, "copy_", copy_)
        unipelt.merge(m, "b")
    assert len(calls) > 2 and torch.equal(output(m), merged)
    unipelt.unmerge(m)
    assert all(torch.equal(t, base[n]) for n, t in m.state_dict().items())


def test_two_in_a_plain_folder_of_several_files(tmp_path: Path) -> None:
    """In the base's type, with what generation and chats need; it opens without this library, and the model is as before."""
    m = with_two("llama", "lora", "ia3", scale=0.05, dtype=torch.bfloat16)
    unipelt.activate(m, "a", "b")
    m.generation_config.update(temperature=0.7, do_sample=True)  # type: ignore[union-attr, operator]
    words = Tokenizer(WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", pad_token="<unk>")
    tokenizer.chat_template = "{% for m in messages %}a {{ m.content }}{% endfor %}"
    wanted, before = output(m), state(m)
    folder = unipelt.save_merged(m, tmp_path / "plain", ["a", "b"], tokenizer=tokenizer, max_shard_size="20KB")
    assert state(m) == before and torch.equal(output(m), wanted) and unipelt.active(m) == ("a", "b")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 3 and (folder / "model.safetensors.index.json").exists()
    again, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert again.dtype == torch.bfloat16 and not any(info.values()) and again.generation_config.temperature == 0.7
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert (output(again.eval()) - wanted).abs().max() / wanted.abs().max() < 0.05  # bfloat16 has eight bits
    assert AutoTokenizer.from_pretrained(folder).chat_template == tokenizer.chat_template
    for wrong in ("much", "5 pounds"):
        with pytest.raises(PeltError, match="E0750"):
            unipelt.save_merged(m, tmp_path / "no", ["a", "b"], max_shard_size=wrong)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["plain"] and state(m) == before
    unipelt.apply(m, unipelt.load(name("lora")), "c")
    unipelt.activate(m, "a", "b", "c")
    with pytest.raises(PeltError, match="E0560"):
        unipelt.save_merged(m, tmp_path / "no", ["a", "b"])
    assert unipelt.active(m) == ("a", "b", "c")
