"""Heads that belong to adapters: their own labels, loss, configuration; saved, switched, copied, trained in parallel."""

from __future__ import annotations

import copy
import json
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from names import name
from together import together
from torch import nn
from transformers import (
    BertConfig, BertForMultipleChoice, BertForQuestionAnswering, BertForSequenceClassification,
    BertForTokenClassification, BertModel, ElectraConfig, ElectraForTokenClassification, GPT2Config, GPT2ForSequenceClassification, GPT2ForTokenClassification,
    GPT2LMHeadModel, LlamaConfig, LlamaForSequenceClassification, LlamaForTokenClassification, RobertaConfig,
    RobertaForSequenceClassification,
)  # fmt: skip

import unipelt
from unipelt import PeltError

WIDTH, WORDS = 32, 60
_SIZES: dict[str, Any] = dict(
    hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=WORDS,
    max_position_embeddings=40, pad_token_id=0, initializer_range=0.2, num_labels=3,
)  # fmt: skip
_STILL: dict[str, Any] = dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
_GPT2: dict[str, Any] = dict(
    n_embd=WIDTH, n_layer=2, n_head=4, vocab_size=WORDS, n_positions=40, pad_token_id=0, initializer_range=0.2,
    resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=1, num_labels=3,
)  # fmt: skip
SEQUENCE: dict[str, tuple[Any, Any, dict]] = {
    "bert": (BertForSequenceClassification, BertConfig, {**_SIZES, **_STILL}),
    "roberta": (RobertaForSequenceClassification, RobertaConfig, {**_SIZES, **_STILL, "pad_token_id": 1}),
    "gpt2": (GPT2ForSequenceClassification, GPT2Config, _GPT2),
    "llama": (LlamaForSequenceClassification, LlamaConfig, {**_SIZES, "num_key_value_heads": 2}),
}
TOKEN: dict[str, tuple[Any, Any, dict]] = {
    "bert_tokens": (BertForTokenClassification, BertConfig, {**_SIZES, **_STILL}),
    "electra_tokens": (ElectraForTokenClassification, ElectraConfig, {**_SIZES, **_STILL, "embedding_size": WIDTH}),
    "gpt2_tokens": (GPT2ForTokenClassification, GPT2Config, {**_GPT2, "classifier_dropout": 0.0}),
    "llama_tokens": (
        LlamaForTokenClassification, LlamaConfig, {**_SIZES, "num_key_value_heads": 2, "classifier_dropout": 0.0}
    ),
}  # fmt: skip
KINDS = {**SEQUENCE, **TOKEN}


def build(kind: str = "bert", **changes: Any) -> Any:
    cls, config, options = KINDS[kind]
    torch.manual_seed(0)
    return cls(config(**{**options, **changes})).eval()


def batch(rows: int = 3, seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, WORDS, (rows, 7), generator=g)
    mask = torch.ones_like(ids)
    ids[1, 5:], mask[1, 5:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def targets(kind: str, n: int, rows: int = 3) -> torch.Tensor:
    g = torch.Generator().manual_seed(9)
    if kind in SEQUENCE:
        return torch.randint(0, n, (rows,), generator=g)
    found = torch.randint(0, n, (rows, 7), generator=g)
    found[0, 0] = -100
    return found


def logits(m: Any, **more: Any) -> torch.Tensor:
    with torch.no_grad():
        return m(**batch(), **more).logits.clone()


def lora(r: int = 4) -> Any:
    return unipelt.load(name("lora"))(r=r)


def refused(code: str, call: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(PeltError) as caught:
        call(*args, **options)
    assert caught.value.diagnostics[0].code == code, str(caught.value)
    return str(caught.value)


def last_map(m: Any) -> nn.Linear:
    return [x for n, x in m.named_modules() if isinstance(x, nn.Linear) and "unipelt" not in n.split(".")][-1]


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
        (["a", 3], None, "E0740"), ({0: "a"}, None, "E0740"), (2, "regresion", "E0741"), (None, "guess", "E0741"),
        (1, "single_label_classification", "E0741"), (2, 7, "E0741"),
    ],
)  # fmt: skip
def test_mistaken_labels(labels: Any, problem_type: Any, code: str) -> None:
    m = build()
    before = logits(m)
    refused(code, unipelt.apply, m, lora(), "a", labels=labels, problem_type=problem_type)
    assert unipelt.adapters(m) == {} and torch.equal(logits(m), before) and type(m.config) is BertConfig


def test_models_whose_head_has_no_labels() -> None:
    config = BertConfig(**_SIZES)
    bare = BertModel(config)
    assert "AutoModelForSequenceClassification" in refused("E0742", unipelt.plan, bare, lora(), labels=5)
    words = GPT2LMHeadModel(GPT2Config(**_GPT2))
    assert "AutoModelForSequenceClassification" in refused("E0743", unipelt.plan, words, lora(), labels=5)
    for cls in (BertForQuestionAnswering, BertForMultipleChoice):
        refused("E0743", unipelt.plan, cls(BertConfig(**{**_SIZES, "num_labels": 2})), lora(), labels=5)
        assert unipelt.plan(cls(BertConfig(**{**_SIZES, "num_labels": 2})), lora()).counts.head > 0
    refused("E0741", unipelt.plan, build("bert_tokens"), lora(), labels=5, problem_type="regression")
    for m in (bare, words):
        assert unipelt.labels(m) is None


def test_question_answering_has_a_head_of_its_own(tmp_path: Path) -> None:
    torch.manual_seed(0)
    m = BertForQuestionAnswering(BertConfig(**{**_SIZES, **_STILL, "num_labels": 2})).eval()
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


# ---------------------------------------------------------------- switching


def several(kind: str = "bert") -> Any:
    m = build(kind)
    unipelt.apply(m, lora(), "seven", labels=7, seed=1)
    unipelt.apply(m, lora(), "two", labels=["no", "yes"], seed=2)
    unipelt.apply(m, lora(), "base", seed=3)
    unipelt.apply(m, lora() + unipelt.load(name("mean_head")), "row", labels=5, seed=4, allow_future=True)
    unipelt.apply(m, unipelt.load(name("pfeiffer"))(r=2), "none", head=False, seed=5)
    return m


SHAPES = {"seven": 7, "two": 2, "base": 3, "row": 5, "none": 3}


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_switching_switches_the_labels(kind: str) -> None:
    m = several(kind)
    alone = {}
    for n, count in SHAPES.items():
        unipelt.activate(m, n)
        alone[n] = logits(m)
        assert alone[n].shape == (3, count) == (3, m.config.num_labels)
        labels = targets(kind, count)
        found = m(**batch(), labels=labels)
        assert torch.allclose(found.loss, nn.functional.cross_entropy(found.logits, labels), atol=1e-6)
        now = unipelt.labels(m)
        assert now == unipelt.labels(m, n) and now is not None and m.config.id2label == now.id2label
        assert m.config.label2id == now.label2id
        with unipelt.disabled(m):
            assert torch.equal(logits(m), logits(build(kind))) and m.config.num_labels == 3
    assert m.config.id2label == {i: f"LABEL_{i}" for i in range(3)}
    unipelt.activate(m, "two")
    assert m.config.id2label == {0: "no", 1: "yes"} and m.config.label2id == {"no": 0, "yes": 1}
    unipelt.activate(m)
    assert torch.equal(logits(m), logits(build(kind))) and m.config.num_labels == 3
    # together: the last head counts, and one in a row before all copies
    for names, count in ((("seven", "two"), 2), (("two", "seven"), 7), (("row", "seven"), 5), (("seven", "none"), 7),
                         (("none", "two"), 2), (("two", "base"), 3)):  # fmt: skip
        unipelt.activate(m, *names)
        assert logits(m).shape == (3, count) and m.config.num_labels == count
        labels = targets(kind, count)
        found = m(**batch(), labels=labels)
        assert torch.allclose(found.loss, nn.functional.cross_entropy(found.logits, labels), atol=1e-6)
    for n in SHAPES:
        unipelt.remove(m, n)
    assert torch.equal(logits(m), logits(build(kind)))


def test_a_row_for_each_token_at_a_head_that_pools_before() -> None:
    m = build()
    unipelt.apply(m, unipelt.parse("method m { modify head insert parallel form linear compose replace }"), "a", labels=5)
    refused("E0706", m, **batch())


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_after_an_adapter_whose_tensors_the_model_owns(kind: str) -> None:
    m = build(kind)
    alone = unipelt.plan(m, lora(), labels=5)
    unipelt.apply(m, unipelt.load(name("mam"))(l=2, r=2, mid=4), "mam", labels=2)
    planned = unipelt.apply(m, lora(), "a", labels=5)
    assert planned.counts == alone.counts and planned.sites == alone.sites and logits(m).shape == (3, 5)


def test_a_change_of_a_head_of_other_labels_is_refused() -> None:
    m = build("gpt2")
    unipelt.apply(m, lora(), "own", labels=5)
    text = "method m(r: int = 4) { modify head insert parallel form low_rank(r) compose add }"
    unipelt.apply(m, unipelt.parse(text), "change")
    assert "own" in unipelt.adapters(m) and unipelt.active(m) == ("change",)
    refused("E0746", unipelt.activate, m, "own", "change")
    assert unipelt.active(m) == ("change",) and logits(m).shape == (3, 3)


def test_removed_without_a_trace() -> None:
    m = build()
    config = m.config
    written, before = repr(config), dict(vars(m))
    hooks = {k: len(v) for k, v in before.items() if k.endswith("hooks")}
    unipelt.apply(m, lora(), "a", labels=5)
    unipelt.apply(m, lora(), "b")
    assert m.config is not config and repr(config) == written and m.bert.config is config
    unipelt.remove(m, "a")
    assert m.config is config
    unipelt.remove(m, "b")
    assert repr(config) == written and vars(m).keys() == before.keys()
    assert {k: len(v) for k, v in vars(m).items() if k.endswith("hooks")} == hooks


def test_the_shared_configuration_is_untouched_and_stays_shared() -> None:
    m = build()
    config = m.config
    torch.manual_seed(1)
    other = BertForSequenceClassification(config).eval()
    before, written = logits(other), repr(config)
    unipelt.apply(m, lora(), "a", labels=["x", "y"])
    m(**batch(), labels=torch.tensor([0, 1, 1]))
    assert repr(config) == written and other.config.num_labels == 3 and torch.equal(logits(other), before)
    m.config.output_hidden_states = True  # whatever is written to the one is read from the other
    assert config.output_hidden_states is True and m.bert.config.output_hidden_states is True
    config.output_hidden_states = False
    assert m.config.output_hidden_states is False
    m.config.id2label = {0: "p", 1: "q", 2: "r"}
    assert config.id2label == {0: "p", 1: "q", 2: "r"} and m.config.id2label == {0: "x", 1: "y"}
    assert m.config == config and isinstance(m.config, BertConfig) and type(m.config).__name__ == "BertConfig"
    assert m.config.to_dict()["id2label"] == config.to_dict()["id2label"], "what is saved is the base's"


def test_copies_of_a_configuration_stand_alone() -> None:
    m = build()
    unipelt.apply(m, lora(), "a", labels=["x", "y"])
    for made in (copy.deepcopy(m.config), copy.copy(m.config)):
        assert type(made) is BertConfig and made.num_labels == 2
        made.id2label = {0: "z"}
        made.hidden_size = 7
        assert m.config.id2label == {0: "x", 1: "y"} and m.config.hidden_size == WIDTH


def test_other_threads_see_their_own_labels() -> None:
    m = build()
    unipelt.apply(m, lora(), "a", labels=5)
    found: dict[str, int] = {}

    def look() -> None:
        found["other"] = m.config.num_labels

    with unipelt.disabled(m):
        worker = threading.Thread(target=look)
        worker.start()
        worker.join()
        found["here"] = m.config.num_labels
    assert found == {"other": 5, "here": 3}


def test_an_error_in_the_forward_leaves_no_labels_behind() -> None:
    m = build()
    unipelt.apply(m, lora(), "a", labels=5)
    with pytest.raises(IndexError):
        m(input_ids=torch.tensor([[WORDS + 5]]), labels=torch.tensor([1]))
    assert m(**batch()).loss is None


# ---------------------------------------------------------------- on disk


@pytest.mark.parametrize(
    ("kind", "spec"), [(k, "lora") for k in ("bert", "llama", "bert_tokens", "roberta")] + [(k, "lora+mean_head") for k in SEQUENCE]
)
def test_saved_and_attached(kind: str, spec: str, tmp_path: Path) -> None:
    m = build(kind)
    names = ["person", "place", "time", "none"]
    kind_of = None if kind in TOKEN else "multi_label_classification"
    unipelt.apply(m, unipelt.load(name(spec)), "a", labels=names, problem_type=kind_of, allow_future=True)
    with torch.no_grad():
        for t in unipelt.state_dict(m, "a").values():
            t.add_(0.1)
    wanted = logits(m)
    folder = unipelt.save(m, tmp_path / "a", "a")
    assert json.loads((folder / "adapter.json").read_text())["labels"] == {"names": names, "problem_type": kind_of}
    for count in (3, 4, 2):
        other = build(kind, num_labels=count)
        other.base_model.load_state_dict(build(kind).base_model.state_dict())
        base = logits(other)
        assert unipelt.attach(other, folder) == "a"
        assert torch.equal(logits(other), wanted)
        found = unipelt.labels(other, "a")
        assert found is not None and found.names == tuple(names) and found.problem_type == kind_of
        assert other.config.id2label == dict(enumerate(names))
        again = unipelt.save(other, tmp_path / f"again{count}", "a")
        one, two = (json.loads((f / "adapter.json").read_text()) for f in (folder, again))
        assert one["labels"] == two["labels"] and one["tensors"] == two["tensors"]
        with unipelt.disabled(other):
            assert torch.equal(logits(other), base)


def test_a_head_without_labels_of_its_own_is_saved_with_the_bases(tmp_path: Path) -> None:
    m = build(id2label={0: "no", 1: "yes", 2: "perhaps"}, label2id={"no": 0, "yes": 1, "perhaps": 2})
    unipelt.apply(m, lora(), "a")
    wanted = logits(m)
    folder = unipelt.save(m, tmp_path / "a", "a")
    fresh = build(num_labels=2)
    fresh.bert.load_state_dict(m.bert.state_dict(), strict=False)
    unipelt.attach(fresh, folder)
    assert torch.equal(logits(fresh), wanted) and fresh.config.id2label == {0: "no", 1: "yes", 2: "perhaps"}
    unipelt.remove(m, "a")
    unipelt.attach(m, folder)
    assert type(m.config) is BertConfig and m.config is m.bert.config, "the base's own labels are these"
    unipelt.remove(m, "a")
    unipelt.apply(m, lora(), "b", head=False)
    folder = unipelt.save(m, tmp_path / "b", "b")
    assert json.loads((folder / "adapter.json").read_text())["labels"] is None


def test_resumed_with_the_same_labels(tmp_path: Path) -> None:
    m = build()
    unipelt.apply(m, lora(), "a", labels=5)
    with torch.no_grad():
        for t in unipelt.state_dict(m, "a").values():
            t.add_(0.1)
    folder = unipelt.save(m, tmp_path / "a", "a", fold=False)
    fresh = build()
    unipelt.apply(fresh, lora(), "a", labels=5, seed=8)
    unipelt.restore(fresh, folder, "a")
    assert torch.equal(logits(fresh), logits(m))
    unipelt.apply(fresh, lora(), "b", labels=4)
    assert "labels" in refused("E0587", unipelt.restore, fresh, folder, "b")


def test_copied_and_pickled() -> None:
    m = several()
    for make in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        made = make(m)
        for n, count in SHAPES.items():
            unipelt.activate(m, n)
            unipelt.activate(made, n)
            assert torch.equal(logits(made), logits(m)) and made.config.num_labels == count
            labels = targets("bert", count)
            assert torch.equal(made(**batch(), labels=labels).loss, m(**batch(), labels=labels).loss)
        unipelt.activate(made, "seven")
        unipelt.activate(m, "two")
        assert made.config.num_labels == 7 and m.config.num_labels == 2, "each has its own switch"
        assert made.config.__dict__ is made.bert.config.__dict__ and made.config.__dict__ is not m.config.__dict__
        for n in SHAPES:
            unipelt.remove(made, n)
        assert made.config is made.bert.config and torch.equal(logits(made), logits(build()))


# ---------------------------------------------------------------- training, compiling, in parallel


def train(m: Any, kind: str, count: int, steps: int = 60) -> float:
    labels = targets(kind, count)
    optimizer = torch.optim.Adam(unipelt.parameter_groups(m, unipelt.active(m)[0], 2e-2))
    for _ in range(steps):
        optimizer.zero_grad()
        loss = m(**batch(), labels=labels).loss
        loss.backward()
        optimizer.step()
    return float(m(**batch(), labels=labels).loss.detach())


@pytest.mark.parametrize("kind", ["bert", "gpt2_tokens"])
def test_each_adapter_learns_its_own_labels(kind: str) -> None:
    m = build(kind)
    base = logits(m)
    unipelt.apply(m, lora(), "a", labels=6)
    assert train(m, kind, 6) < 0.1
    kept = logits(m)
    unipelt.apply(m, lora(), "b", labels=2)
    assert train(m, kind, 2) < 0.1
    unipelt.activate(m, "a")
    assert torch.equal(logits(m), kept)
    with unipelt.disabled(m):
        assert torch.equal(logits(m), base)


def test_with_the_trainer(tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments
    from transformers.utils import logging as hf

    m = build()
    unipelt.apply(m, lora(), "a", labels=6)
    b, labels = batch(6), targets("bert", 6, 6)
    rows = [{**{k: v[i] for k, v in b.items()}, "labels": labels[i]} for i in range(6)]
    arguments = TrainingArguments(str(tmp_path), max_steps=30, per_device_train_batch_size=2, learning_rate=2e-2,
                                  gradient_accumulation_steps=3, report_to=[], disable_tqdm=True, save_strategy="no",
                                  logging_steps=1, dataloader_pin_memory=False, use_cpu=True)  # fmt: skip
    verbosity = hf.get_verbosity()
    hf.set_verbosity_error()
    try:
        trainer = Trainer(model=m, args=arguments, train_dataset=rows)
        trainer.train()
    finally:
        hf.set_verbosity(verbosity)
    losses = [h["loss"] for h in trainer.state.log_history if "loss" in h]
    assert len(losses) == 30 and losses[0] > 1.0 and losses[-1] < 0.3
    found = trainer.predict(rows)
    assert found.predictions.shape == (6, 6) and (found.predictions.argmax(-1) == labels.numpy()).all()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo hides it, but not where it is an error
def test_compiled() -> None:
    m = several()
    for n in ("seven", "row"):
        unipelt.activate(m, n)
        compiled = torch.compile(m, backend="eager", fullgraph=True)
        labels = targets("bert", SHAPES[n])
        found = compiled(**batch(), labels=labels)
        wanted = m(**batch(), labels=labels)
        assert torch.allclose(found.loss, wanted.loss) and torch.allclose(found.logits, wanted.logits)


def _agrees(rank: int) -> bool:
    """Whether half a batch gives each of two processes the gradients of the whole."""
    m = several()
    unipelt.activate(m, "seven")
    b, labels = batch(4), targets("bert", 7, 4)
    wrapped = nn.parallel.DistributedDataParallel(m)
    mine = slice(2 * rank, 2 * rank + 2)
    wrapped(**{k: v[mine] for k, v in b.items()}, labels=labels[mine]).loss.backward()
    got = {n: p.grad.clone() for n, p in m.named_parameters() if p.grad is not None}
    whole = several()
    unipelt.activate(whole, "seven")
    whole(**b, labels=labels).loss.backward()
    wanted = {n: p.grad for n, p in whole.named_parameters() if p.grad is not None}
    return len(wanted) > 4 and got.keys() == wanted.keys() and all(torch.allclose(got[n], wanted[n], atol=1e-6) for n in wanted)


def test_on_two_processes() -> None:
    assert together(_agrees) == [True, True]
