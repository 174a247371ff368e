"""Hidden states of a data set: those of the model's own passes, row for row, and good enough for a learner of another library."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from names import name as named
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_hf import write_intents, write_rows
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.models.bert.modeling_bert import BertLayer

import unipelt
from unipelt.language.report.diagnostics import PeltError
from unipelt.training import Opening, TaskOptions, TrainConfig, features, load_run, train

SHORT = TaskOptions(max_length=16)


def rows_of(data: str, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(data) / f"{split}.jsonl").read_text().splitlines()]


def states(model: Any, folder: str, texts: list[str], layer: int | None) -> list[torch.Tensor]:
    """One text at a time, so nothing is padded: [tokens, d] of each."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    with torch.no_grad():
        for text in texts:
            given = tokenizer(text, return_tensors="pt")
            given = {k: v for k, v in given.items() if k in ("input_ids", "attention_mask")}
            out = model(**given, output_hidden_states=True)
            found.append(out.last_hidden_state[0] if layer is None else out.hidden_states[layer][0])
    return found


@pytest.mark.parametrize("layer", [0, 1, 2, None])
@pytest.mark.parametrize("pool", ["mean", "first", "last", "none"])
def test_they_are_the_models_own(layer: int | None, pool: Any, bert: str, intents: str) -> None:
    found = features(layer, intents, opening=Opening(model=bert), options=SHORT, pool=pool, split="test", batch_size=5)
    rows = rows_of(intents, "test")
    wanted = states(AutoModel.from_pretrained(bert).eval(), bert, [r["text"] for r in rows], layer)
    pooled = {"mean": lambda t: t.mean(0), "first": lambda t: t[0], "last": lambda t: t[-1], "none": lambda t: t}[pool]
    together = torch.cat if pool == "none" else torch.stack
    torch.testing.assert_close(found["test.features"], together([pooled(t) for t in wanted]), rtol=1e-4, atol=1e-5)
    assert [found.about["labels"][i] for i in found["test.labels"]] == [r["label"] for r in rows]
    assert found["test.rows"].tolist() == list(range(len(rows))) and found.splits == ["test"]
    if pool == "none":
        assert found["test.lengths"].tolist() == [len(t) for t in wanted]


def test_an_adapted_models_are_those_with_its_adapter_and_without_the_rows_of_a_prompt(
    gpt2: str, intents: str, tmp_path: Path
) -> None:
    method = named("prompt_tuning+lora")
    train(TrainConfig(method=method, model=gpt2, data=intents, out=str(tmp_path / "run"), max_steps=2, lr=0.5, max_length=16,
                      checkpoints=False, set={"l": 3}))  # fmt: skip
    run = load_run(tmp_path / "run")
    texts = [r["text"] for r in rows_of(intents, "test")]
    plain = features(None, intents, opening=Opening(model=gpt2), options=SHORT, split="test")
    for layer in (1, None):
        found = features(str(tmp_path / "run"), intents, layer=layer, split="test", pool="none")
        wanted = []
        tokenizer = AutoTokenizer.from_pretrained(gpt2)
        for text in texts:
            given = tokenizer(text, return_tensors="pt")
            given.pop("token_type_ids", None)
            with torch.no_grad():
                out = run.model(**given, output_hidden_states=True)
            wanted.append(out.hidden_states[-1 if layer is None else layer][0])  # the last is behind the last norm
        assert found["test.lengths"].tolist() == [len(t) for t in wanted], "the rows of the prompt are left out"
        torch.testing.assert_close(found["test.features"], torch.cat(wanted), rtol=1e-4, atol=1e-5)
    adapted = features(str(tmp_path / "run"), intents, split="test")
    assert (adapted["test.features"] - plain["test.features"]).abs().max() > 1e-2
    assert adapted.about["method"] and adapted.about["layer"] == "the whole base"


def test_what_is_above_does_not_run(bert: str, intents: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row is a pass, which ends where its states are taken."""
    ran: Counter[int] = Counter()
    own = BertLayer.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        ran[id(self)] += 1
        return own(self, *args, **kwargs)

    def passes(layer: int) -> list[int]:
        """Of each layer, in their order."""
        ran.clear()
        features(layer, intents, opening=Opening(model=bert), options=SHORT, split="test", batch_size=1)
        return list(ran.values())

    monkeypatch.setattr(BertLayer, "forward", counted)
    rows = len(rows_of(intents, "test"))
    passes(0)  # what is found of such a model is remembered
    before, same = passes(0)  # it is tried on this one by passes of the whole model
    assert before == same < 4
    assert passes(1) == [before + rows, before]
    assert passes(2) == [before + rows] * 2


def test_a_method_names_the_blocks_that_it_leaves_alone(bert: str, intents: str, tmp_path: Path) -> None:
    """Those that a frozen trunk keeps: probing all of them, an edit of the last layer those below it."""
    spec = tmp_path / "top.pelt"
    spec.write_text("method top { layers last 1  modify attn.q insert parallel form { A: [d_in, 2] ~ normal(0.1) "
                    "B: [2, d_out] ~ normal(0.1) delta = z @ A @ B } compose add }\n")  # fmt: skip
    for what, layer in ((named("probing"), 2), (str(spec), 1)):
        found = features(what, intents, opening=Opening(model=bert), options=SHORT, split="test")
        same = features(layer, intents, opening=Opening(model=bert), options=SHORT, split="test")
        assert torch.equal(found["test.features"], same["test.features"]) and found.about["layer"] == layer
    with pytest.raises(PeltError, match="E0783"):
        features(named("lora"), intents, opening=Opening(model=bert), options=SHORT)


def test_a_support_vector_machine_learns_from_the_file(bert: str, tmp_path: Path) -> None:
    svm = pytest.importorskip("sklearn.svm", reason="the learner is scikit-learn's")
    data = write_intents(tmp_path / "data", train=60, test=60)
    features("1", data, opening=Opening(model=bert), options=SHORT).save(tmp_path / "x.safetensors")
    t = load_file(tmp_path / "x.safetensors")
    machine = svm.LinearSVC(random_state=0).fit(t["train.features"].numpy(), t["train.labels"].numpy())
    assert machine.score(t["test.features"].numpy(), t["test.labels"].numpy()) > 0.8, "a third is chance"
    with safe_open(tmp_path / "x.safetensors", "pt") as f:
        about = {k: json.loads(v) for k, v in f.metadata().items()}
    assert (
        about["layer"] == 1 and about["labels"] == ["arrival", "closing", "refund"] and str(tmp_path) not in str(about)
    )


def test_rows_keep_their_ids_and_their_order_and_texts_need_no_labels(llama: str, tmp_path: Path) -> None:
    """Batches are made by length; what comes back is in the order of the file."""
    texts = ["money", "i want my money please", "money return", "can you close my account to the parcel", "late"]
    rows = [{"id": f"x{i}", "text": t} for i, t in enumerate(texts)]
    file = write_rows(tmp_path / "texts.jsonl", rows)
    found = features(1, file, opening=Opening(model=llama), options=SHORT, batch_size=2)
    (split,) = found.splits
    wanted = states(AutoModelForCausalLM.from_pretrained(llama).eval().model, llama, texts, 1)
    torch.testing.assert_close(
        found[f"{split}.features"], torch.stack([t.mean(0) for t in wanted]), rtol=1e-4, atol=1e-5
    )
    assert found.about[f"{split}.ids"] == [r["id"] for r in rows] and f"{split}.labels" not in found.tensors


@pytest.mark.parametrize(
    "what, more, code",
    [
        (3, {}, "E0785"), (-1, {}, "E0785"), (1, {"pool": "max"}, "E0620"), (1, {"split": "dev"}, "E0608"), (1, {"opening": Opening()}, "E0757"),
        (1, {"layer": 1}, "E0620"), ("prooobing", {}, "E0401"), (1, {"batch_size": 0}, "E0620"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_asked(what: Any, more: dict[str, Any], code: str, bert: str, intents: str) -> None:
    with pytest.raises(PeltError) as caught:
        features(what, intents, **{"opening": Opening(model=bert), "options": SHORT, **more})
    assert caught.value.diagnostics[0].code == code, caught.value


def test_a_file_is_not_written_over(bert: str, intents: str, tmp_path: Path) -> None:
    found = features(1, intents, opening=Opening(model=bert), options=SHORT, split="test")
    for place, code in (
        ("x.pt", "E0785"),
        ("there.safetensors", "E0611"),
        ("there.safetensors/x.safetensors", "E0785"),
    ):
        (tmp_path / "there.safetensors").write_text("mine")
        with pytest.raises(PeltError, match=code):
            found.save(tmp_path / place)
    assert [f.name for f in tmp_path.iterdir()] == ["there.safetensors"]
    assert unipelt.__version__ == found.about["unipelt"]


@pytest.mark.parametrize("kind", ["vit", "resnet", "whisper"])
def test_pictures_and_sounds(kind: str, tmp_path: Path) -> None:
    """A map of a picture has its pixels as positions; nothing of them is padding."""
    from tiny_tasks import drawn, sounded, splits, write_vit, write_whisper

    data = splits(tmp_path / "data", sounded if kind == "whisper" else drawn, 6, 6)
    if kind == "vit":
        folder = write_vit(tmp_path / "model")
    elif kind == "whisper":
        folder = write_whisper(tmp_path / "model")
    else:
        from transformers import ResNetConfig, ResNetForImageClassification

        torch.manual_seed(0)
        config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 2], layer_type="basic")
        ResNetForImageClassification(config).save_pretrained(folder := str(tmp_path / "model"))
    for layer in (1, None):
        found = features(layer, data, opening=Opening(model=folder), pool="none", split="test")
        means = features(layer, data, opening=Opening(model=folder), split="test", batch_size=4)
        rows = found["test.features"].split(found["test.lengths"].tolist())
        assert len(rows) == 6 and len(found["test.labels"]) == 6 and min(map(len, rows)) > 1
        torch.testing.assert_close(torch.stack([r.mean(0) for r in rows]), means["test.features"], rtol=1e-4, atol=1e-5)
        assert (
            means["test.features"].shape[1]
            == {"vit": 32, "resnet": 12, "whisper": means["test.features"].shape[1]}[kind]
        )
