"""Patterns and words: what the model reads, the score of a word by hand, each mistake, and evaluation without training."""

import json

import pytest
from mistakes import mistakes
import tiny_tasks as tiny
import torch
import torch.nn.functional as F
from tiny_hf import write_rows

from unipelt.training import TrainConfig, data, evaluate_run, load_run, predict_run, train
from unipelt.training.config import TaskOptions
from unipelt.training.models import load_config, load_model, load_tokenizer
from unipelt.training.saved import load_base
from unipelt.training.tasks import task_for, task_from_json
from unipelt.training.tasks.evaluation import Collator, outputs_of
from unipelt.training.tasks.task import IGNORED
from unipelt.training.tasks.pet import words_for
from unipelt.training.tasks.template import borders, encode, parse

PATTERN, WORDS = "{text} type : {mask} .", "refund,arrival,closing"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {"masked": tiny.write_masked(folder / "masked"), "gpt2": tiny.write_chatty(folder / "gpt2", "gpt2"),
            "t5": tiny.write_t5(folder / "t5"), "bytes": tiny.write_byte_level(folder / "bytes")}  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return tiny.splits(tmp_path_factory.mktemp("rows"), tiny.classified)


def fitted(models, name, split, **options):
    options = {"pattern": PATTERN, "words": WORDS, "max_length": 32, **options}
    tokenizer = load_tokenizer(models[name])
    base = load_config(models[name])
    task = task_for(split, TaskOptions(**options), base).fit(base, tokenizer)
    return task, tokenizer


def scored(task, tokenizer, folder, split, size):
    model = load_model(folder, task, tokenizer, 0).eval()
    encoded = task.encode(split, tokenizer)
    found = outputs_of(model, task, encoded, Collator(tokenizer, task), size)
    return model, encoded, torch.stack([found[i] for i in range(len(encoded))])


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize("side", ["left", "right"])
def test_scores_of_a_masked_model_by_hand(models, rows, side):
    split = data.read(rows)["test"]
    task, tokenizer = fitted(models, "masked", split, words="refund|money,arrival,closing")
    tokenizer.padding_side = side
    assert task.masked and task.single
    model, encoded, found = scored(task, tokenizer, models["masked"], split, 5)
    for row, scores in zip(split.rows, found):
        ids = tokenizer(f"{row['text']} type : [MASK] .", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            shares = model(ids).logits[0, (ids[0] == tokenizer.mask_token_id).nonzero().item()].log_softmax(-1)
        one = {w: shares[tokenizer.convert_tokens_to_ids(w)] for w in ("refund", "money", "arrival", "closing")}
        wanted = torch.stack([(one["refund"] + one["money"]) / 2, one["arrival"], one["closing"]])
        torch.testing.assert_close(scores, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("words", [WORDS, "refund no,arrival no|arrival,closing"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_scores_of_a_causal_model_by_hand(models, rows, words, side):
    """A word of several tokens has their joint probability; what stands behind the mask does not matter."""
    split = data.read(rows)["test"]
    task, tokenizer = fitted(models, "gpt2", split, words=words)
    tokenizer.padding_side = side
    assert not task.masked and task.single == (words == WORDS)
    model, encoded, found = scored(task, tokenizer, models["gpt2"], split, 5)

    def joint(text, word):
        prefix = [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            shares = model(torch.tensor([prefix + ids])).logits[0].log_softmax(-1)
        return sum(shares[len(prefix) - 1 + i, t] for i, t in enumerate(ids))

    for row, scores in zip(split.rows, found):
        groups = [[joint(f"{row['text']} type :", w) for w in group.split("|")] for group in words.split(",")]
        wanted = torch.stack([torch.stack(g).mean() for g in groups])
        torch.testing.assert_close(scores, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "name, words", [("masked", WORDS), ("gpt2", WORDS), ("gpt2", "refund no,arrival no|arrival,closing")]
)
def test_the_loss_is_over_the_labels(models, rows, name, words):
    """The cross-entropy over the labels' scores; a step over several batches weighs each example alike."""
    split = data.read(rows)["test"]
    task, tokenizer = fitted(models, name, split, words=words)
    model, encoded, found = scored(task, tokenizer, models[name], split, 18)
    labels = torch.tensor(encoded.references)
    whole = task.collate(encoded.examples, tokenizer)
    assert torch.equal(task.right(whole["labels"]), labels)
    parts = [task.collate(encoded.examples[a:b], tokenizer) for a, b in ((0, 4), (4, 18))]
    items = sum((b["labels"] != IGNORED).sum() for b in parts)

    def loss(batch, number):
        given = {k: v for k, v in batch.items() if k != "labels"}
        with torch.no_grad():
            return task.loss_function(model(**given), batch["labels"], num_items_in_batch=number)

    wanted = F.cross_entropy(found, labels)
    torch.testing.assert_close(loss(whole, None), wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sum(loss(b, items) for b in parts), wanted, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- what is read


def test_long_texts_lose_their_end_and_the_pattern_nothing(models, rows):
    split = data.read(rows)["test"]
    task, tokenizer = fitted(models, "masked", split, max_length=12)
    encoded = task.encode_inputs([("money " * 30,), ("late",)], tokenizer)
    texts = [tokenizer.decode(e["input_ids"]) for e in encoded.examples]
    assert encoded.truncated == 1
    assert texts == [
        "[CLS] money money money money money money type : [MASK] . [SEP]",
        "[CLS] late type : [MASK] . [SEP]",
    ]
    task, tokenizer = fitted(models, "masked", split, max_length=5)
    mistakes("E0641", task.encode_inputs, [("money",)], tokenizer)


def test_pseudo_tokens_are_numbered_and_marked(models, rows):
    """Before, inside and after the text; the ids there are no padding, and the mask counts them."""
    split = data.read(rows)["test"]
    task, tokenizer = fitted(models, "masked", split, pattern="{prompt:2} {text} {prompt:1} {mask} {prompt:3}")
    encoded = task.encode_inputs([("money late",), ("i",)], tokenizer)
    batch = task.collate(encoded.examples, tokenizer)
    assert batch["pseudo_tokens"].tolist() == [[0, 1, 2, 0, 0, 3, 0, 4, 5, 6, 0], [0, 1, 2, 0, 3, 0, 4, 5, 6, 0, 0]]
    assert batch["attention_mask"].sum(-1).tolist() == [11, 10]
    assert (batch["input_ids"][batch["pseudo_tokens"] > 0] != tokenizer.pad_token_id).all()
    text = batch["input_ids"].masked_fill(batch["pseudo_tokens"] > 0, tokenizer.pad_token_id)
    assert tokenizer.decode(text[0], skip_special_tokens=False).replace("[PAD] ", "") == "[CLS] money late [MASK] [SEP]"


def test_pieces_have_the_tokens_of_the_whole(models):
    """A tokenizer that takes the blank in front into the word: pseudo-tokens in between change no other token."""
    tokenizer = load_tokenizer(models["bytes"])
    whole = encode(parse("{text} my {mask} the"), ("i want money",), tokenizer, 50, *borders(tokenizer))
    cut = encode(
        parse("{prompt:2} {text} {prompt:1} my {mask} {prompt:1} the"),
        ("i want money",),
        tokenizer,
        50,
        *borders(tokenizer),
    )
    left = [i for i, m in zip(cut.ids, cut.marks) if not m]
    # the very first word has no blank in front when it begins the text
    assert left[1:] == whole.ids[1:] and tokenizer.decode(left).strip() == tokenizer.decode(whole.ids).strip()


def test_words_have_the_blank_that_stands_before_the_mask(models, rows):
    from unipelt.training.tasks.pet import word_ids

    tokenizer = load_tokenizer(models["bytes"])
    assert tokenizer.convert_ids_to_tokens(word_ids("money", parse("{text} {mask}"), tokenizer)) == ["Ġmoney"]
    assert "Ġ" not in tokenizer.convert_ids_to_tokens(word_ids("money", parse("{text} ({mask})"), tokenizer))[0]


# ---------------------------------------------------------------- words


def test_words_in_each_way(tmp_path):
    labels, titles = ["0", "1"], ["bad", "good"]
    assert words_for("terrible,great", labels, titles) == (("terrible",), ("great",))
    assert words_for("1=great|fine, 0=terrible", labels, titles) == (("terrible",), ("great", "fine"))
    assert words_for("good=great,bad=terrible", labels, titles) == (("terrible",), ("great",))
    assert words_for(None, labels, ["very_bad", "good"]) == (("very bad",), ("good",))
    for value in ({"0": "terrible", "good": ["great", "fine"]}, ["terrible", ["great", "fine"]]):
        (tmp_path / "w.json").write_text(json.dumps(value))
        assert words_for(str(tmp_path / "w.json"), labels, titles) == (("terrible",), ("great", "fine"))


@pytest.mark.parametrize("words, what", [
    ("great", "1 words for 2 labels"), ("0=a,2=b", "no label `2`"), ("0=a", "`1` has no word"), ("0=a,b", "some words only"),
    ("a,", "empty word"), (None, "are numbers"), ("none.json", "cannot be read"),
])  # fmt: skip
def test_words_that_do_not_fit(words, what):
    messages, _ = mistakes("E0643", words_for, words, ["0", "1"], ["0", "1"])
    assert what in messages[0]


def test_a_masked_model_fills_one_token(models, rows):
    split = data.read(rows)["test"]
    messages, _ = mistakes("E0644", fitted, models, "masked", split, words="refund no,arrival,zebra")
    assert (
        "`refund no` is 2 tokens (`refund`, `no`)" in messages[0]
        and "`zebra` is not in the model's vocabulary" in messages[1]
    )
    messages, _ = mistakes("E0644", fitted, models, "masked", split, words="refund,money,refund")
    assert "`refund` and `refund` are the same" in messages[0]


@pytest.mark.parametrize("pattern, what", [
    ("{text} is", "has no `{mask}`"), ("{mask} {text} {mask}", "has 2 masks"), ("{mask}", "reads no column"), (None, "a pattern is missing"),
])  # fmt: skip
def test_patterns_that_are_none(models, rows, pattern, what):
    messages, _ = mistakes("E0640", fitted, models, "masked", data.read(rows)["test"], pattern=pattern)
    assert what in messages[0]


def test_models_that_do_not_serve(models, rows, bert):
    split = data.read(rows)["test"]
    messages, _ = mistakes("E0640", fitted, models, "gpt2", split, pattern="{mask} : {text}")
    assert "does not see `{text}`" in messages[0]
    assert "no mask token" in mistakes("E0642", fitted, {"b": bert}, "b", split)[0][0]
    task, tokenizer = fitted(models, "t5", split)
    mistakes("E0633", load_model, models["t5"], task, tokenizer, 0)
    messages, help_ = mistakes("E0603", fitted, models, "masked", split, pattern="{txt} {mask}")
    assert "`txt`" in messages[0] and "`text`" in help_


def test_a_text_that_holds_the_mask_itself(models, tmp_path):
    split = data.read_file(
        write_rows(tmp_path / "d.jsonl", [{"text": "my [MASK] money", "label": i} for i in range(3)])
    )
    task, tokenizer = fitted(models, "masked", split)
    messages, _ = mistakes("E0646", task.encode, split, tokenizer)
    assert "line 1" in messages[0] and "[MASK]" in messages[0]


# ---------------------------------------------------------------- a run


def test_it_is_plain_data(models, rows):
    task, _ = fitted(models, "gpt2", data.read(rows)["test"], words="refund no,arrival|late,closing")
    assert task_from_json(json.loads(json.dumps(task.to_json()))) == task


@pytest.mark.parametrize("name", ["masked", "gpt2"])
def test_without_training_and_with_few_examples(models, rows, tmp_path, name):
    options = {"pattern": PATTERN, "words": WORDS, "max_length": 32}
    before, split, _ = evaluate_run(load_base(models[name], TaskOptions(**options), rows), rows)
    assert split == "test" and before["examples"] == 18
    (tmp_path / "full.pelt").write_text(tiny.FULL)
    said = []
    result = train(TrainConfig(
        method=str(tmp_path / "full.pelt"), model=models[name], data=rows, out=str(tmp_path / "run"), shots=16, epochs=8, lr=5e-3,
        batch_size=8, dropout=0.0, **options,
    ), say=said.append)  # fmt: skip
    assert any("16 rows of each of 3 classes" in line for line in said)
    assert result.metrics["test"]["accuracy"] > max(0.7, before["accuracy"])
    run = load_run(tmp_path / "run")
    (answer,) = predict_run(run, [("i want my money return",)])
    assert set(answer) == {"text", "label", "word", "probability", "probabilities"}
    assert answer["word"] == WORDS.split(",")[int(answer["label"])]


def test_tasks_with_a_new_head_need_a_run(bert, intents):
    mistakes("E0645", load_base, bert, TaskOptions(), intents)
