"""Classification of texts, tokens and spans in detail: metric values by hand, encodings, and each mistake with its place."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from mistakes import mistake
import tiny_tasks as tiny
import torch
from tiny_hf import write_rows

from unipelt.training import data
from unipelt.training.config import TaskOptions
from unipelt.training.models import load_model, load_tokenizer
from unipelt.training.tasks import task_for, task_from_json
from unipelt.training.tasks.evaluation import Collator, evaluate
from unipelt.training.tasks.task import IGNORED
from unipelt.training.tasks.classification import classification_metrics, multi_label_metrics, regression_metrics
from unipelt.training.tasks.question_answering import (
    QuestionAnswering,
    best_spans,
    exact,
    normalised,
    overlap,
    place_of,
)
from unipelt.training.tasks.template import lead
from unipelt.training.tasks.token_classification import entities_in, split_words, tag_metrics


def split_of(tmp_path, *rows):
    return data.read_file(write_rows(tmp_path / "d.jsonl", list(rows)))


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    return tiny.write_masked(tmp_path_factory.mktemp("masked"))


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    return load_tokenizer(tiny.write_byte_level(tmp_path_factory.mktemp("bytes")))


# ---------------------------------------------------------------- metrics of classes and numbers


def test_metrics_of_classes_by_hand():
    """Guesses 0 0 1 1, right 0 1 1 1: F1 of the classes is 2/3 and 4/5; Matthews' correlation is 2 / sqrt(12)."""
    scores = torch.tensor([[2.0, 0], [2, 0], [0, 2], [0, 2]])
    found = classification_metrics(scores, torch.tensor([0, 1, 1, 1]))
    assert found["accuracy"] == 0.75 == found["majority"]
    assert found["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert found["mcc"] == pytest.approx(2 / 12**0.5)


def test_metrics_of_several_labels_by_hand():
    """Of 4 given labels 3 are right, and 4 were wanted: micro F1 is 3/4. F1 of the labels: 1, 2/3, 0 with none wanted."""
    scores = torch.tensor([[1.0, 1, -1], [1, -1, 1]])
    found = multi_label_metrics(scores, torch.tensor([[1.0, 1, 0], [1, 1, 0]]))
    assert found["micro_f1"] == pytest.approx(3 / 4)
    assert found["macro_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert found["accuracy"] == 0.5


def test_metrics_of_numbers_by_hand():
    """1 2 3 against 1 3 2: mean squared error 2/3, both correlations 1/2."""
    found = regression_metrics(torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 3, 2]))
    assert found["mse"] == pytest.approx(2 / 3) == found["loss"]
    assert found["pearson"] == pytest.approx(0.5) == found["spearman"]
    curved = regression_metrics(torch.tensor([1.0, 2, 10]), torch.tensor([1.0, 2, 3]))
    assert curved["spearman"] == pytest.approx(1) and curved["pearson"] < 0.95
    same = regression_metrics(torch.tensor([1.0, 1]), torch.tensor([1.0, 2]))
    assert same["pearson"] == 0 == same["spearman"]


# ---------------------------------------------------------------- what a label column holds


@pytest.mark.parametrize("values, problem, labels", [
    ([0, 1], "single_label", ("0", "1")), (["b", "a"], "single_label", ("a", "b")), ([1.5, 2.0], "regression", ("label",)),
    ([1.0, 2.0], "regression", ("label",)), ([["b"], ["a", "b"]], "multi_label", ("a", "b")), ([[3], [11, 2]], "multi_label", ("2", "3", "11")),
    ([["a"], []], "multi_label", ("a",)), ([True, False], "single_label", ("False", "True")),
])  # fmt: skip
def test_the_problem_by_the_values(tmp_path, values, problem, labels):
    split = split_of(tmp_path, *({"text": "x", "label": v} for v in values))
    task = task_for(split, TaskOptions(task="sequence-classification"))
    assert (task.problem, task.labels) == (problem, labels)
    assert task_from_json(json.loads(json.dumps(task.to_json()))) == task


def test_numbers_in_csv(tmp_path):
    (tmp_path / "d.csv").write_text("text,label\na,1.5\nb,2\n")
    assert task_for(data.read_file(tmp_path / "d.csv"), TaskOptions()).problem == "regression"
    (tmp_path / "e.csv").write_text("text,label\na,1\nb,2\n")
    classes = data.read_file(tmp_path / "e.csv")
    assert task_for(classes, TaskOptions()).problem == "single_label"
    assert task_for(classes, TaskOptions(problem_type="regression")).problem == "regression"


def test_columns_of_flags(tmp_path, masked):
    split = split_of(tmp_path, {"text": "money", "spam": 1, "rude": 0}, {"text": "late", "spam": 1, "rude": 1})
    task = task_for(split, TaskOptions(task="sequence-classification", label="spam,rude"))
    assert task.problem == "multi_label" and task.labels == ("spam", "rude")
    tokenizer = load_tokenizer(masked)
    batch = task.collate(task.encode(split, tokenizer).examples, tokenizer)
    assert batch["labels"].tolist() == [[1.0, 0.0], [1.0, 1.0]]
    message, help_ = mistake("E0603", task_for, split, TaskOptions(task="sequence-classification", label="spam,rued"))
    assert "`rued`" in message and "`rude`" in help_
    wrong = split_of(tmp_path, {"text": "x", "spam": 1, "rude": 2})
    message, _ = mistake("E0607", task_for, wrong, TaskOptions(task="sequence-classification", label="spam,rude"))
    assert "line 1: `rude` is `2`" in message


@pytest.mark.parametrize(
    "value, what", [("a", "a text, not a list"), (["a", "a"], "`a` twice"), ([None], "null among"), ([""], "among")]
)
def test_lists_of_labels_that_are_none(tmp_path, value, what):
    split = split_of(tmp_path, {"text": "x", "label": ["a"]}, {"text": "x", "label": value})
    message, _ = mistake("E0607", task_for, split, TaskOptions())
    assert "line 2" in message and what in message


@pytest.mark.parametrize(
    "value, what", [("much", "`much`, not a number"), (None, "null"), (float("nan"), "nan"), (True, "true or false")]
)
def test_numbers_that_are_none(tmp_path, value, what):
    split = split_of(tmp_path, {"text": "x", "label": 0.5}, {"text": "x", "label": value})
    message, _ = mistake("E0607", task_for, split, TaskOptions(problem_type="regression"))
    assert "line 2" in message and what in message


def test_an_unknown_label_among_several(tmp_path, masked):
    task = task_for(split_of(tmp_path, {"text": "x", "label": ["spam", "rude"]}), TaskOptions())
    message, help_ = mistake(
        "E0606", task.encode, split_of(tmp_path, {"text": "x", "label": ["rued"]}), load_tokenizer(masked)
    )
    assert "line 1" in message and "`rude`" in help_


def test_shots_need_classes(tmp_path):
    numbers = split_of(tmp_path, {"text": "x", "label": 0.5})
    mistake("E0620", task_for(numbers, TaskOptions()).classes, numbers)


# ---------------------------------------------------------------- tokens


def test_entity_f1_by_hand():
    """Wanted: two persons and a place; found: one person right, one too short, the place with a wrong type."""
    wanted = [["B-per", "I-per", "O", "B-loc"], ["B-per", "I-per", "I-per"]]
    found = [["B-per", "I-per", "O", "B-per"], ["B-per", "I-per", "O"]]
    metrics = tag_metrics(found, wanted, True)
    assert metrics["precision"] == pytest.approx(1 / 3) == metrics["recall"] == metrics["entity_f1"]
    assert metrics["accuracy"] == pytest.approx(5 / 7)
    one_more = tag_metrics([*found, ["B-loc"]], [*wanted, ["O"]], True)
    assert one_more["precision"] == pytest.approx(1 / 4) and one_more["entity_f1"] == pytest.approx(2 / 7)
    assert tag_metrics([["O"]], [["O"]], True)["entity_f1"] == 0
    parts = tag_metrics([["noun", "verb"]], [["noun", "noun"]], False)
    assert parts == {"accuracy": 0.5, "macro_f1": pytest.approx((2 / 3 + 0) / 2)}


@pytest.fixture
def tags(tmp_path):
    rows = [
        {"tokens": ["the", "return", "charge"], "ner_tags": ["O", "B-x", "I-x"]},
        {"tokens": ["money"], "ner_tags": ["B-x"]},
    ]
    return split_of(tmp_path, *rows)


def test_first_tokens_bear_the_labels(tags, byte_level):
    """The tokenizer knows no `wonderful`, and takes the blank in front of a word as part of it."""
    assert lead(byte_level) == " "
    row = {"tokens": ["the", "wonderful", "money"], "ner_tags": ["O", "B-x", "I-x"]}
    task = task_for(tags, TaskOptions())
    assert task.labels == ("O", "B-x", "I-x") and task.entities and task.metric == ("entity_f1", True)
    split = data.Split("test", "d", (row,), (1,))
    encoded = task.encode(split, byte_level)
    example = encoded.examples[0]
    assert byte_level.decode(example["input_ids"]) == " the wonderful money"
    places = dict((word, place) for place, word in encoded.aside[0])
    assert len(example["input_ids"]) > 3
    assert {i: x for i, x in enumerate(example["labels"]) if x != IGNORED} == {places[0]: 0, places[1]: 1, places[2]: 2}


@pytest.mark.parametrize("side", ["left", "right"])
def test_cut_words_count_as_missed(tags, masked, side):
    tokenizer = load_tokenizer(masked)
    tokenizer.padding_side = side
    task = task_for(tags, TaskOptions(max_length=4))  # room for two words between the marks
    encoded = task.encode(tags, tokenizer)
    assert encoded.truncated == 1
    model = load_model(masked, task, tokenizer, 0)
    with torch.no_grad():  # whatever it reads, it says B-x
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 9.0, 0.0]))
    metrics = evaluate(model, task, encoded, Collator(tokenizer, task), 2)
    # it says B-x B-x O (the last word was cut off) and B-x; wanted are two entities, of which the second is right
    assert (
        metrics["accuracy"] == pytest.approx(2 / 4)
        and metrics["recall"] == 0.5
        and metrics["precision"] == pytest.approx(1 / 3)
    )


def test_labels_stay_with_their_words_on_both_sides(tags, masked):
    tokenizer = load_tokenizer(masked)
    task = task_for(tags, TaskOptions())
    for side in ("left", "right"):
        tokenizer.padding_side = side
        encoded = task.encode(tags, tokenizer)
        batch = task.collate(encoded.examples, tokenizer)
        marked = batch["labels"] != IGNORED
        assert tokenizer.decode(batch["input_ids"][marked]) == "the return charge money"
        assert batch["labels"][marked].tolist() == [0, 1, 2, 1]


def test_words_without_tokens_are_outside(tags, masked):
    tokenizer = load_tokenizer(masked)
    task = task_for(tags, TaskOptions(max_length=32))
    split = data.Split("test", "d", ({"tokens": ["the", " ", "money"], "ner_tags": ["O", "B-x", "B-x"]},), (1,))
    encoded = task.encode(split, tokenizer)
    assert [word for _, word in encoded.aside[0]] == [0, 2]
    model = load_model(masked, task, tokenizer, 0)
    assert evaluate(model, task, encoded, Collator(tokenizer, task), 1)["examples"] == 1


def test_entities_of_a_text():
    text = "Ann Lee's dog likes @bob in New York."
    words = split_words(text)
    assert words == ["Ann", "Lee's", "dog", "likes", "@bob", "in", "New", "York", "."]
    tags = ["B-per", "I-per", "O", "O", "B-per", "O", "B-loc", "I-loc", "O"]
    found = entities_in(text, words, tags)
    assert [(e["type"], e["text"], e["words"]) for e in found] == [
        ("per", "Ann Lee's", [0, 2]), ("per", "@bob", [4, 5]), ("loc", "New York", [6, 8]),
    ]  # fmt: skip
    assert all(text[slice(*e["characters"])] == e["text"] for e in found)


@pytest.mark.parametrize("row, what", [
    ({"tokens": ["a", "b"], "ner_tags": ["O"]}, "1 labels for 2 words"), ({"tokens": [], "ner_tags": []}, "no words"),
    ({"tokens": ["a", 3], "ner_tags": ["O", "O"]}, "a number among"), ({"tokens": ["a"], "ner_tags": "O"}, "a text, not a list"),
    ({"tokens": ["a"], "ner_tags": [None]}, "other than names"), ({"tokens": ["a"]}, "missing"),
])  # fmt: skip
def test_tags_that_are_none(tmp_path, row, what):
    split = split_of(tmp_path, {"tokens": ["a", "b"], "ner_tags": ["O", "B-x"]}, row)
    message, _ = mistake("E0607", task_for, split, TaskOptions())
    assert "line 2" in message and what in message


def test_tags_by_name(tmp_path, masked):
    split = split_of(tmp_path, {"tokens": ["a", "b"], "nertags": ["O", "B-x"]})
    message, help_ = mistake("E0603", task_for, split, TaskOptions())
    assert "`nertags`" in message and "--label nertags" in help_
    task = task_for(split, TaskOptions(label="nertags"))
    other = split_of(tmp_path, {"tokens": ["a"], "nertags": ["B-y"]})
    message, help_ = mistake("E0606", task.encode, other, load_tokenizer(masked))
    assert "`B-y`" in message and "`B-x`" in help_
    mistake("E0604", task_for, split_of(tmp_path, {"tokens": ["a"], "tags": ["O"]}), TaskOptions())
    numbers = task_for(split_of(tmp_path, {"tokens": ["a", "b"], "tags": [10, 2]}), TaskOptions())
    assert numbers.labels == ("2", "10") and numbers.metric[0] == "accuracy"


# ---------------------------------------------------------------- questions


def test_windows_are_no_longer_than_the_model_reads():
    """RoBERTa's table has entries that no token gets: a window as long as its configuration says would find none."""
    from transformers import RobertaConfig

    small = RobertaConfig(vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
                          max_position_embeddings=66)  # fmt: skip
    task = QuestionAnswering(("question", "context"), "answers", QuestionAnswering.length, stride=128)
    fast = SimpleNamespace(is_fast=True)
    assert (task.fit(small, fast).max_length, task.fit(small, fast).stride) == (64, 16)
    assert replace(task, max_length=50).fit(small, fast).max_length == 50


def test_answers_are_compared_as_squad_does():
    assert normalised("The  Cat's, a-hat!") == "cats ahat"
    assert exact("the Eiffel Tower", "Eiffel tower.") == 1 and exact("Eiffel", "Eiffel tower") == 0
    # 2 shared words, of 3 and 2 once the article is gone
    assert overlap("big Eiffel tower", "the Eiffel tower") == pytest.approx(2 * 2 / (3 + 2))
    assert overlap("", "") == 1 and overlap("x", "") == 0 and overlap("a", "the") == 1


def test_the_best_span_lies_in_the_context_and_is_not_long():
    characters = [None, None, (0, 3), (4, 7), (8, 11)]
    start, end = torch.tensor([9.0, 8, 1, 5, 0]), torch.tensor([9.0, 8, 7, 2, 1])
    best = best_spans(start, end, characters)
    # the largest sum that is a span: from token 3 to itself (an end at token 2 would lie before its start)
    assert best[0] == (8.0, 0, 3) and (7.0, 4, 7) in best and len(best) == 6
    assert best_spans(start, end, [None] * 5) == []
    long = [(i, i + 1) for i in range(60)]
    flat = torch.zeros(60)
    first, last = flat.clone(), flat.clone()
    first[0] = last[59] = 5.0
    assert all(b - a <= 30 for _, a, b in best_spans(first, last, long))


def test_windows_hold_the_answer_or_point_to_their_start(tmp_path, masked):
    tokenizer = load_tokenizer(masked)
    words = (["the"] * 20 + ["money"] + ["my"] * 9) * 2
    context = " ".join(words)
    start = context.rindex("money")
    split = split_of(
        tmp_path, {"question": "refund is", "context": context, "answers": {"text": ["money"], "answer_start": [start]}}
    )
    task = task_for(split, TaskOptions(max_length=24, stride=6))
    encoded = task.encode(split, tokenizer)
    assert (
        len(encoded) > 2
        and {w.row for w in encoded.aside} == {0}
        and all(len(e["input_ids"]) <= 24 for e in encoded.examples)
    )
    held = 0
    for example, window in zip(encoded.examples, encoded.aside):
        a, b = example["start_positions"], example["end_positions"]
        inside = place_of(window.characters, ("money", start))
        assert (a, b) == (inside or (0, 0))
        if inside:
            held += 1
            assert window.characters[a][0] == start and window.characters[b][1] == start + 5
    seen = {c for w in encoded.aside for c in w.characters if c is not None}
    assert held and len(seen) == len(words), "every word of the context is in some window"


@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_of_spans_is_the_models_own(tmp_path, masked, side):
    tokenizer = load_tokenizer(masked)
    tokenizer.padding_side = side
    import random

    rng = random.Random(0)
    split = split_of(tmp_path, *(tiny.asked(c, rng) for c in tiny.CLASSES * 2), {
        "question": "refund", "context": "money", "answers": {"text": ["money"], "answer_start": [0]}})  # fmt: skip
    task = task_for(split, TaskOptions(max_length=48))
    encoded = task.encode(split, tokenizer)
    model = load_model(masked, task, tokenizer, 0).eval()
    batch = task.collate(encoded.examples, tokenizer)
    for i, row in enumerate(split.rows):
        span = batch["input_ids"][i, batch["start_positions"][i] : batch["end_positions"][i] + 1]
        assert tokenizer.decode(span) == row["answers"]["text"][0]
    with torch.no_grad():  # one by one: in a batch the model's own loss counts pads among the candidates
        own = [model(**task.collate([e], tokenizer)).loss.item() for e in encoded.examples]
    found = evaluate(model, task, encoded, Collator(tokenizer, task), 3)
    assert found["loss"] == pytest.approx(sum(own) / len(own), rel=1e-5) and found["examples"] == 7


def test_questions_without_an_answer(tmp_path, masked):
    tokenizer = load_tokenizer(masked)
    none = {"question": "refund", "context": "the account", "answers": {"text": [], "answer_start": []}}
    one = {"question": "refund", "context": "the money", "answers": {"text": ["money"], "answer_start": [4]}}
    split = split_of(tmp_path, none, one)
    task = task_for(split, TaskOptions())
    assert task.unanswerable and not task_for(split_of(tmp_path, one), TaskOptions()).unanswerable
    encoded = task.encode(split_of(tmp_path, none, one), tokenizer)
    assert encoded.examples[0]["start_positions"] == 0
    spans = [[(3.0, 4, 9)], [(3.0, 4, 9)]]
    sure, unsure = 5.0, 1.0
    metrics = task.score(encoded, [(spans[0], sure, 0.0), (spans[1], unsure, 0.0)], tokenizer)
    assert metrics["exact_match"] == 1 == metrics["f1"]
    metrics = task.score(encoded, [(spans[0], unsure, 0.0), (spans[1], sure, 0.0)], tokenizer)
    assert metrics["exact_match"] == 0 == metrics["f1"]


@pytest.mark.parametrize("answers, code, what", [
    ({"text": ["money"], "answer_start": [0]}, "E0635", "`the m` at character 0, not `money`"), ("money", "E0607", "a text, not an object"),
    ({"text": ["money"]}, "E0607", "of the same length"), ({"text": [3], "answer_start": [0]}, "E0607", "other than texts"),
    ({"text": ["the"], "answer_start": [-1]}, "E0607", "no positions"),
])  # fmt: skip
def test_answers_that_are_none(tmp_path, answers, code, what):
    message, _ = mistake(
        code, task_for, split_of(tmp_path, {"question": "q", "context": "the money", "answers": answers}), TaskOptions()
    )
    assert "line 1" in message and what in message


def test_windows_that_cannot_be(tmp_path, masked):
    row = {
        "question": " ".join(["my"] * 40),
        "context": "the money",
        "answers": {"text": ["money"], "answer_start": [4]},
    }
    split = split_of(tmp_path, row)
    mistake("E0620", task_for, split, TaskOptions(max_length=20, stride=11))
    for length, stride in ((20, 10), (20, 1), (12, 3)):  # a long question leaves room to the context
        encoded = task_for(split, TaskOptions(max_length=length, stride=stride)).encode(split, load_tokenizer(masked))
        assert encoded.truncated == 1 and all(len(e["input_ids"]) <= length for e in encoded.examples)
        assert any(c is not None for w in encoded.aside for c in w.characters)
