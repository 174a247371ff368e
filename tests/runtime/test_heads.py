"""Heads that belong to adapters: their own labels and loss, how they start, rows at the head, and mistaken labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from heads import GPT2, KINDS, SIZES, STILL, WIDTH, batch, build, last_map, logits, lora, refused, targets
from names import name
from torch import nn
from transformers import (
    BertConfig,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
)

import unipelt

# ---------------------------------------------------------------- shape and loss


@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_has_its_own_number_of_labels(kind: str) -> None:
    m = build(kind)
    base = logits(m)
    planned = unipelt.apply(m, lora(), "a", labels=5)
    assert logits(m).shape == (*base.shape[:-1], 5)
    assert planned.labels is not None and len(planned.labels) == 5
    with unipelt.disabled(m):
        assert torch.equal(logits(m), base)
    # the same as a base built with five labels whose last map has these values
    other = build(kind, num_labels=5)
    other.load_state_dict({n: t for n, t in build(kind).state_dict().items() if not n.startswith(("classifier.out_proj", "classifier.weight", "classifier.bias", "score"))}, strict=False)  # fmt: skip
    drawn = unipelt.state_dict(m, "a")
    head = [n for n in drawn if n.endswith(("classifier.weight", "classifier.out_proj.weight", "score.weight"))][0]
    assert last_map(other).weight.shape == drawn[head].shape
    with torch.no_grad():
        last_map(other).weight.copy_(drawn[head])
        if last_map(other).bias is not None:
            last_map(other).bias.copy_(drawn[head.replace("weight", "bias")])
    assert torch.allclose(logits(other), logits(m), atol=1e-6)
    labels = targets(kind, 5)
    wanted = other(**batch(), labels=labels).loss
    assert torch.allclose(m(**batch(), labels=labels).loss, wanted, atol=1e-6) and wanted > 0
    assert m.config.__dict__["problem_type"] is None, "the base's configuration is not written"


@pytest.mark.parametrize("kind", ["bert", "gpt2", "bert_tokens", "llama_tokens"])
def test_the_loss_has_its_gradient_in_the_adapter_alone(kind: str) -> None:
    m = build(kind)
    unipelt.apply(m, lora(), "a", labels=6)
    m(**batch(), labels=targets(kind, 6)).loss.backward()
    own = {id(p) for g in unipelt.parameter_groups(m, "a", 1.0) for p in g["params"]}
    assert {id(p) for p in m.parameters() if p.grad is not None} == own
    assert own == {id(p) for p in m.parameters() if p.requires_grad}


def test_outputs_as_tuples_and_arguments_by_position() -> None:
    m = build()
    unipelt.apply(m, lora(), "a", labels=5)
    labels = targets("bert", 5)
    whole = m(**batch(), labels=labels)
    loss, scores = m(**batch(), labels=labels, return_dict=False)
    assert list(whole) == ["loss", "logits"] and torch.equal(loss, whole.loss) and torch.equal(scores, whole.logits)
    (scores,) = m(**batch(), return_dict=False)
    assert torch.equal(scores, whole.logits) and m(**batch(), labels=None).loss is None
    b = batch()
    by_position = m(b["input_ids"], b["attention_mask"], None, None, None, labels)
    assert torch.equal(by_position.loss, whole.loss)
    with_states = m(**b, labels=labels, output_hidden_states=True)
    assert torch.equal(with_states.loss, whole.loss) and len(with_states.hidden_states) == 3


def test_problem_types() -> None:
    m = build()
    for kind, n, labels in (
        ("multi_label_classification", 4, torch.randint(0, 2, (3, 4)).float()),
        ("regression", 1, torch.randn(3)),
        ("regression", 2, torch.randn(3, 2)),
        ("single_label_classification", 5, targets("bert", 5)),
    ):
        unipelt.apply(m, lora(), "a", labels=n, problem_type=kind)
        found = m(**batch(), labels=labels)
        loss = {
            "multi_label_classification": nn.functional.binary_cross_entropy_with_logits,
            "regression": lambda x, y: nn.functional.mse_loss(x.squeeze(), y),
            "single_label_classification": nn.functional.cross_entropy,
        }[kind](found.logits, labels)
        assert torch.allclose(found.loss, loss) and m.config.problem_type == kind
        unipelt.remove(m, "a")
    # without one it follows from the batch, each time anew
    unipelt.apply(m, lora(), "a", labels=4)
    whole, shares = torch.tensor([0, 1, 3]), torch.rand(3, 4)
    assert torch.allclose(m(**batch(), labels=whole).loss, nn.functional.cross_entropy(logits(m), whole))
    wanted = nn.functional.binary_cross_entropy_with_logits(logits(m), shares)
    assert torch.allclose(m(**batch(), labels=shares).loss, wanted)


def test_a_problem_type_alone_keeps_the_bases_labels() -> None:
    m = build(id2label={0: "no", 1: "yes", 2: "perhaps"}, label2id={"no": 0, "yes": 1, "perhaps": 2})
    planned = unipelt.apply(m, lora(), "a", problem_type="multi_label_classification")
    assert planned.labels is not None and planned.labels.names == ("no", "yes", "perhaps")
    labels = torch.tensor([[1.0, 0, 1], [0, 0, 0], [1, 1, 1]])
    wanted = nn.functional.binary_cross_entropy_with_logits(logits(m), labels)
    assert torch.allclose(m(**batch(), labels=labels).loss, wanted)


def test_the_number_of_items_reaches_the_loss() -> None:
    """What the Trainer passes when it accumulates gradients: the sum over examples is divided by it."""
    for kind in ("bert", "bert_tokens"):
        m = build(kind)
        unipelt.apply(m, lora(), "a", labels=5)
        labels = targets(kind, 5)
        mean = m(**batch(), labels=labels).loss
        counted = int((labels != -100).sum())
        assert torch.allclose(m(**batch(), labels=labels, num_items_in_batch=2 * counted).loss, mean / 2)


@pytest.mark.parametrize("kind", ["bert_tokens", "gpt2_tokens", "bert", "gpt2"])
def test_beside_a_prompt(kind: str) -> None:
    """A prompt lengthens logits and labels alike, whichever adapter came first."""
    m = build(kind)
    unipelt.apply(m, lora(), "first", labels=4)
    unipelt.apply(m, unipelt.load(name("prompt_tuning"))(l=3), "prompt", labels=5)
    labels = targets(kind, 5)
    found = m(**batch(), labels=labels)
    scores = found.logits
    wanted = nn.functional.cross_entropy(scores.reshape(-1, 5), labels.reshape(-1))
    assert torch.allclose(found.loss, wanted, atol=1e-6)


# ---------------------------------------------------------------- starts


def test_the_last_map_is_drawn_from_the_adapters_seed_and_the_rest_copied() -> None:
    a, b, c = build("roberta"), build("roberta"), build("roberta")
    unipelt.apply(a, lora(), "x", seed=3, labels=5)
    unipelt.apply(b, unipelt.load(name("pfeiffer"))(r=2), "other", labels=2)
    unipelt.apply(b, lora(), "x", seed=3, labels=5)
    unipelt.apply(c, lora(), "x", seed=4, labels=5)
    x, y, z = (unipelt.state_dict(m, "x") for m in (a, b, c))
    assert all(torch.equal(x[n], y[n]) for n in x) and x.keys() == y.keys()
    assert not torch.equal(x["classifier.out_proj.weight"], z["classifier.out_proj.weight"])
    assert torch.equal(x["classifier.dense.weight"], a.classifier.dense.weight)
    assert x["classifier.out_proj.weight"].shape == (5, WIDTH) and not x["classifier.out_proj.bias"].any()
    assert 0.1 < float(x["classifier.out_proj.weight"].std()) < 0.3, "the configuration's initializer_range"


def test_counts_and_the_plan_on_the_meta_device() -> None:
    with torch.device("meta"):
        m = build()
    planned = unipelt.plan(m, lora(), labels=77)
    assert planned.counts.head == WIDTH * WIDTH + WIDTH + 77 * (WIDTH + 1)
    assert planned.counts.trained == unipelt.plan(m, lora()).counts.trained
    assert planned.to_json()["labels"]["names"][76] == "LABEL_76"
    assert json.loads(json.dumps(planned.to_json()))["copies"]["classifier.weight"] == [77, WIDTH]
    assert unipelt.plan(m, lora()).to_json()["labels"] is None
    unipelt.apply(m, lora(), "a", labels=77)
    assert unipelt.state_dict(m, "a")["classifier.weight"].shape == (77, WIDTH)


# ---------------------------------------------------------------- rows at the head


@pytest.mark.parametrize("spec", ["mean_head", "first_head", "lora+mean_head"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "roberta"])
def test_a_head_row_has_its_own_labels(kind: str, spec: str) -> None:
    m = build(kind)
    base = logits(m)
    planned = unipelt.apply(m, unipelt.load(name(spec)), "a", labels=5, allow_future=True)
    assert planned.copies == () and logits(m).shape == (3, 5)
    assert planned.counts.head == 5 * WIDTH + 5
    labels = targets(kind, 5)
    found = m(**batch(), labels=labels)
    assert torch.allclose(found.loss, nn.functional.cross_entropy(found.logits, labels))
    with unipelt.disabled(m):
        assert torch.equal(logits(m), base)


def test_a_row_that_changes_the_models_head_needs_one_of_the_adapters() -> None:
    m = build("gpt2")
    text = """method m(r: int = 4) { modify head insert parallel form low_rank(r) compose add }"""
    before = logits(m)
    assert "head=True" in refused("E0744", unipelt.apply, m, unipelt.parse(text), "a", labels=5)
    assert unipelt.adapters(m) == {} and torch.equal(logits(m), before)
    planned = unipelt.apply(m, unipelt.parse(text), "a", labels=5, head=True)
    assert logits(m).shape == (3, 5) and planned.copies
    own = unipelt.state_dict(m, "a")
    (B,) = (t for n, t in own.items() if n.endswith(".B"))
    assert B.shape == (4, 5)
    copied = logits(m)
    with torch.no_grad():
        B.add_(1.0)
    assert not torch.equal(logits(m), copied), "the row acts upon the adapter's own head"


def test_what_is_no_head_of_ones_own() -> None:
    m = build()
    refused("E0745", unipelt.plan, m, lora(), head=False, labels=5)
    unipelt.plan(m, unipelt.load(name("bitfit")), labels=5)
    refused("E0745", unipelt.plan, m, unipelt.load(name("bitfit")), head=False, labels=5)
    planned = unipelt.plan(m, unipelt.load(name("probing")), labels=5)
    assert planned.counts.trained == 0 and planned.counts.head == WIDTH * WIDTH + WIDTH + 5 * WIDTH + 5
    planned = unipelt.plan(m, unipelt.load(name("full")), labels=5)
    assert next(c for c in planned.copies if c.name == "classifier.bias").parameter.shape == (5,)


# ---------------------------------------------------------------- input with mistakes


@pytest.mark.parametrize(
    ("labels", "problem_type", "code"),
    [
        (0, None, "E0740"), (-1, None, "E0740"), (10**12, None, "E0740"), (2.5, None, "E0740"), (True, None, "E0740"),
        ("yes", None, "E0740"), ([], None, "E0740"), (["a", "a"], None, "E0740"), (["a", ""], None, "E0740"),
        (["a", 3], None, "E0740"), (["a", "b\ud83d"], None, "E0740"), ({0: "a"}, None, "E0740"), (2, "regresion", "E0741"), (None, "guess", "E0741"),
        (1, "single_label_classification", "E0741"), (2, 7, "E0741"),
    ],
)  # fmt: skip
def test_mistaken_labels(labels: Any, problem_type: Any, code: str) -> None:
    m = build()
    before = logits(m)
    refused(code, unipelt.apply, m, lora(), "a", labels=labels, problem_type=problem_type)
    assert unipelt.adapters(m) == {} and torch.equal(logits(m), before) and type(m.config) is BertConfig


def test_models_whose_head_has_no_labels() -> None:
    config = BertConfig(**SIZES)
    bare = BertModel(config)
    assert "AutoModelForSequenceClassification" in refused("E0742", unipelt.plan, bare, lora(), labels=5)
    words = GPT2LMHeadModel(GPT2Config(**GPT2))
    assert "AutoModelForSequenceClassification" in refused("E0743", unipelt.plan, words, lora(), labels=5)
    for cls in (BertForQuestionAnswering, BertForMultipleChoice):
        refused("E0743", unipelt.plan, cls(BertConfig(**{**SIZES, "num_labels": 2})), lora(), labels=5)
        assert unipelt.plan(cls(BertConfig(**{**SIZES, "num_labels": 2})), lora()).counts.head > 0
    refused("E0741", unipelt.plan, build("bert_tokens"), lora(), labels=5, problem_type="regression")
    for m in (bare, words):
        assert unipelt.labels(m) is None


def test_question_answering_has_a_head_of_its_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    m = BertForQuestionAnswering(BertConfig(**{**SIZES, **STILL, "num_labels": 2})).eval()
    positions = {"start_positions": torch.tensor([1, 2, 0]), "end_positions": torch.tensor([2, 3, 1])}
    with torch.no_grad():
        before = m(**batch(), **positions)
    unipelt.apply(m, lora(), "qa")
    with torch.no_grad():
        unipelt.state_dict(m, "qa")["qa_outputs.weight"].mul_(-2.0)
        acting = m(**batch(), **positions)
        assert not torch.allclose(acting.start_logits, before.start_logits) and acting.loss > 0
        with unipelt.disabled(m):
            assert torch.equal(m(**batch(), **positions).start_logits, before.start_logits)
    folder = unipelt.save(m, tmp_path / "qa", "qa")
    unipelt.remove(m, "qa")
    unipelt.attach(m, folder)
    with torch.no_grad():
        assert torch.equal(m(**batch(), **positions).loss, acting.loss)
