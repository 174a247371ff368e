"""A folder that `unipelt.save` wrote, without a run: merged without a task; evaluated and used with one that is named."""

import json
from pathlib import Path

import pytest
import torch
from test_commands import call, parsed
from tiny_tasks import write_masked

import unipelt
from unipelt.training.models import load_plain, quiet

NAMES = ["refund", "closing", "arrival"]  # in another order than sorted, which a data set would give
TASK = ("--task", "sequence-classification", "--max-length", 32)


@pytest.fixture(scope="module")
def made(spec, bert, tmp_path_factory):
    """A classifier with labels of its own, its adapter's folder and its logits on a batch."""
    folder = tmp_path_factory.mktemp("by_hand") / "adapter"
    with quiet():
        model = load_plain(bert, "sequence-classification")
    both = unipelt.load(spec, "small") + unipelt.parse("method whole { train head }")
    unipelt.apply(model, both, labels=NAMES, seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for t in unipelt.state_dict(model).values():
            t.copy_(torch.randn(t.shape, generator=generator) * 0.5)
    unipelt.save(model, folder)
    ids = torch.tensor([[2, 5, 9, 15, 20, 3]])
    with torch.no_grad():
        return folder, ids, model(input_ids=ids).logits


def test_it_merges_without_a_task(made, bert, tmp_path):
    folder, ids, wanted = made
    call("merge", folder, "--model", bert, "--out", tmp_path / "plain")
    from transformers import AutoModelForSequenceClassification

    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    assert [plain.config.id2label[i] for i in range(3)] == NAMES
    with torch.no_grad():
        assert torch.allclose(plain(input_ids=ids).logits, wanted, atol=1e-4)


def test_it_predicts_and_scores_with_the_labels_that_are_stored(made, bert, intents, tmp_path):
    folder, _, _ = made
    lines = (Path(intents) / "test.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    found = parsed("predict", folder, "--model", bert, *TASK, *texts)["predictions"]
    assert {tuple(p["probabilities"]) for p in found} == {tuple(NAMES)}
    right = [json.loads(line)["label"] for line in lines]
    share = sum(p["label"] == r for p, r in zip(found, right, strict=True)) / len(right)
    scored = parsed("eval", folder, "--model", bert, *TASK, "--data", intents)["metrics"]
    assert scored["accuracy"] == pytest.approx(share) and len({p["label"] for p in found}) > 1
    # a file that lacks a class is scored by the same head
    rows = [line for line in lines if json.loads(line)["label"] != "closing"]
    (tmp_path / "two.jsonl").write_text("\n".join(rows))
    own = [(p["label"], r) for p, r in zip(found, right) if r != "closing"]
    scored = parsed("eval", folder, "--model", bert, *TASK, "--data", tmp_path / "two.jsonl")["metrics"]
    assert scored["accuracy"] == pytest.approx(sum(a == b for a, b in own) / len(own))


def test_what_is_wrong_is_said(made, bert, intents, tmp_path):
    folder, _, _ = made
    for command in (("predict", folder, "please"), ("eval", folder, "--data", intents)):
        err = call(*command, "--model", bert, code=1)[1]
        assert "error[E0668]" in err and "--task" in err
    assert "error[E0757]" in call("merge", folder, "--out", tmp_path / "plain", code=1)[1]
    (tmp_path / "other.jsonl").write_text(
        '{"text": "money", "label": "refund"}\n{"text": "late", "label": "unknown"}\n'
    )
    err = call("eval", folder, "--model", bert, *TASK, "--data", tmp_path / "other.jsonl", code=1)[1]
    assert "error[E0669]" in err and "`unknown`" in err


def test_a_cloze_predicts_with_the_words_that_are_named(spec, tmp_path):
    """A label's probability is that of its word among the words, where the mask stands."""
    from transformers import AutoTokenizer

    bert = write_masked(tmp_path / "masked")
    with quiet():
        model = load_plain(bert, "pet")
    unipelt.apply(model, unipelt.load(spec, "small"), seed=3)
    with torch.no_grad():
        for t in unipelt.state_dict(model).values():
            t.fill_(0.3)
    unipelt.save(model, tmp_path / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(bert)
    ids = tokenizer("i want my money [MASK]", return_tensors="pt")["input_ids"]
    words = tokenizer.convert_tokens_to_ids(["refund", "arrival"])
    with torch.no_grad():
        wanted = model(input_ids=ids).logits[0, (ids[0] == tokenizer.mask_token_id).nonzero().item(), words].softmax(-1)
    command = ("predict", tmp_path / "adapter", "--model", bert, "--task", "pet", "--max-length", 32, "i want my money")
    pattern = ("--pattern", "{text} {mask}")
    for given, labels in (("refund,arrival", ["refund", "arrival"]), ("0=refund,1=arrival", ["0", "1"])):
        (found,) = parsed(*command, *pattern, "--words", given)["predictions"]
        assert found["probabilities"] == pytest.approx(dict(zip(labels, wanted.tolist())), abs=1e-5)
        assert found["label"] == labels[int(wanted.argmax())] and abs(wanted[0] - wanted[1]) > 1e-4
    assert "`--words bad,good`" in call(*command, *pattern, code=1)[1]
    assert "error[E0640]" in call(*command, "--words", "refund,arrival", code=1)[1]


def test_a_second_adapter_is_merged_into_what_the_first_made(made, spec, bert, tmp_path):
    folder, ids, _ = made
    with quiet():
        model = load_plain(bert, "sequence-classification")
        unipelt.attach(model, folder)
        unipelt.apply(model, unipelt.load(spec, "small"), name="second", seed=5)
    with torch.no_grad():
        for t in unipelt.state_dict(model, "second").values():
            t.fill_(0.1)
        unipelt.save(model, tmp_path / "second", "second")
        unipelt.activate(model, "default", "second")
        wanted = model(input_ids=ids).logits
    call("merge", folder, "--model", bert, "--out", tmp_path / "one")
    small = ("--max-shard-size", "50KB")
    call("merge", folder, "--and", tmp_path / "second", "--model", bert, *small, "--out", tmp_path / "both")
    assert len(list((tmp_path / "both").glob("model-*.safetensors"))) > 1
    assert "E0611" in call("merge", folder, "--model", bert, "--out", tmp_path / "both", code=1)[1]
    call("merge", tmp_path / "second", "--model", tmp_path / "one", "--force", "--out", tmp_path / "two")
    from transformers import AutoModelForSequenceClassification

    for plain in ("two", "both"):
        merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / plain).eval()
        with torch.no_grad():
            assert torch.allclose(merged(input_ids=ids).logits, wanted, atol=1e-4), plain


def test_a_merged_model_of_pictures_keeps_its_processor(spec, tmp_path):
    from transformers import AutoImageProcessor, ViTConfig, ViTForImageClassification, ViTImageProcessor

    sizes = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(**sizes, image_size=8, patch_size=4)).eval()
    model.save_pretrained(tmp_path / "base")
    call_it = ("merge", tmp_path / "adapter", "--model", tmp_path / "base", "--out")
    unipelt.apply(model, unipelt.load(spec, "small"))
    unipelt.save(model, tmp_path / "adapter")
    call(*call_it, tmp_path / "without")  # a base without a processor merges, too
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "base")
    call(*call_it, tmp_path / "plain")
    read = AutoImageProcessor.from_pretrained(tmp_path / "plain")(torch.zeros(3, 20, 20), return_tensors="pt")
    merged = ViTForImageClassification.from_pretrained(tmp_path / "plain").eval()
    with torch.no_grad():
        assert torch.allclose(merged(**read).logits, model(**read).logits, atol=1e-5)
