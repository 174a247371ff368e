"""Several adapters with heads of their own in one model: switched, saved, copied, trained, compiled, in parallel."""

from __future__ import annotations

import copy
import json
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from heads import SEQUENCE, TOKEN, WIDTH, WORDS, batch, build, logits, lora, refused, targets
from names import name
from together import together
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

import unipelt

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
    row = unipelt.parse("method m { modify head insert parallel form linear compose replace }")
    refused("E0350", unipelt.apply, build(), row, "a", labels=5)
    m = build()
    m.loss_type = "of one's own"  # whose head nothing is known of
    unipelt.apply(m, row, "a")
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
    ("kind", "spec"),
    [(k, "lora") for k in ("bert", "llama", "bert_tokens", "roberta")] + [(k, "lora+mean_head") for k in SEQUENCE],
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
    return (
        len(wanted) > 4
        and got.keys() == wanted.keys()
        and all(torch.allclose(got[n], wanted[n], atol=1e-6) for n in wanted)
    )


def test_on_two_processes() -> None:
    assert together(_agrees) == [True, True]
