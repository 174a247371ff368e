"""Language models' tasks in detail: which tokens count, packing against one text to a row, conversations, generated answers."""

from dataclasses import replace

import pytest
from mistakes import mistake
import tiny_tasks as tiny
import torch
import torch.nn.functional as F
from tiny_hf import write_rows

import unipelt
from unipelt.training import TrainConfig, data, evaluate_run, train
from unipelt.training.config import TaskOptions
from unipelt.training.models import load_model, load_tokenizer
from unipelt.training.saved import load_base
from unipelt.training.tasks import task_for
from unipelt.training.tasks.evaluation import Collator, evaluate
from unipelt.training.tasks.task import IGNORED
from unipelt.training.tasks.causal_lm import CausalLM
from unipelt.training.tasks.generation import grouped, leaders, text_metrics
from unipelt.training.tasks.packing import packed


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "llama": tiny.write_chatty(folder / "llama"), "gpt2": tiny.write_chatty(folder / "gpt2", "gpt2"),
        "t5": tiny.write_t5(folder / "t5"), "bytes": tiny.write_byte_level(folder / "bytes"),
    }  # fmt: skip


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    return data.read(tiny.splits(tmp_path_factory.mktemp("talks"), tiny.talked))["train"]


def losses(model, batch):
    """The loss of every token that counts, in the order of rows and tokens."""
    labels = batch["labels"]
    logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, -labels.shape[1] :]
    found = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="none"
    )
    return found[labels[:, 1:].flatten() != IGNORED]


# ---------------------------------------------------------------- packing

METHODS = {
    "none": None,
    "projections": "method m { modify attn.q, attn.v insert parallel form { A: [d_in, 4] ~ normal(0.3)  B: [4, d_out] ~ normal(0.3)"
                   " delta = z @ A @ B } compose add }",
    "keys": "method m { modify attn.heads insert parallel form { P: [3, d_head] ~ normal(0.5) per group"
            " V: [3, d_head] ~ normal(0.5) per group scores = q @ P.T * scale delta = softmax(scores) @ V } compose share_softmax }",
}  # fmt: skip


@pytest.mark.parametrize("padding", ["longest", "max_length"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_packed_is_unpacked(models, talks, family, method, padding):
    """Loss by loss and gradient by gradient, with rows of unequal lengths, in training mode and in evaluation mode."""
    tokenizer = load_tokenizer(models[family])
    task = task_for(talks, TaskOptions(max_length=60, pack=True, padding=padding))
    model = load_model(models[family], task, tokenizer, 0, dropout=0.0).double()
    if METHODS[method]:
        unipelt.apply(model, unipelt.parse(METHODS[method]), name="m", seed=0)
    encoded = task.encode(talks.take(range(11)), tokenizer)
    rows = packed(encoded, 60)
    assert sum(len(e["input_ids"]) for e in rows.examples) == sum(len(e["input_ids"]) for e in encoded.examples)
    assert len(rows) < len(encoded) and len({len(e["input_ids"]) for e in rows.examples}) > 1
    for mode in (True, False):
        model.train(mode)
        one_by_one = torch.cat([losses(model, task.collate([e], tokenizer)) for e in encoded.examples])
        together = losses(model, task.collate(rows.examples, tokenizer))
        torch.testing.assert_close(together.sort().values, one_by_one.sort().values, rtol=1e-9, atol=1e-9)
        if METHODS[method]:
            wanted = torch.autograd.grad(one_by_one.sum(), [p for p in model.parameters() if p.requires_grad])
            found = torch.autograd.grad(together.sum(), [p for p in model.parameters() if p.requires_grad])
            for a, b in zip(found, wanted, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_cache_would_undo_packing(models, talks, family):
    """Why packs are read without a cache: with one, transformers does not look for packs, and texts see each other."""
    tokenizer = load_tokenizer(models[family])
    task = task_for(talks, TaskOptions(max_length=60, pack=True))
    model = load_model(models[family], task, tokenizer, 0).eval()
    batch = task.collate(packed(task.encode(talks.take(range(11)), tokenizer), 60).examples, tokenizer)
    assert batch["use_cache"] is False and "attention_mask" not in batch
    apart, mixed = losses(model, batch), losses(model, {**batch, "use_cache": True})
    assert (apart - mixed).abs().max() > 1e-3


def test_packs_are_full_and_whole(talks, models):
    tokenizer = load_tokenizer(models["llama"])
    encoded = task_for(talks, TaskOptions(max_length=60)).encode(talks, tokenizer)
    rows = packed(encoded, 60)
    texts = []
    for e in rows.examples:
        assert len(e["input_ids"]) <= 60 and e["position_ids"][0] == 0
        starts = [i for i, p in enumerate(e["position_ids"]) if p == 0]
        assert all(e["labels"][i] == IGNORED for i in starts)
        texts += [e["input_ids"][a:b] for a, b in zip(starts, [*starts[1:], None])]
    assert sorted(texts) == sorted(e["input_ids"] for e in encoded.examples)
    lengths = sum(len(t) for t in texts)
    assert len(rows) <= -(-lengths // 60) * 1.25


POOLING = """method m { modify attn.q insert parallel form {
  A: [d_in, 4] ~ normal(0.1)  B: [4, d_out] ~ zeros  w: [d_in] ~ zeros
  delta = z @ A @ B * running_mean(sigmoid(z @ w)) } compose add }"""
PLACING = (
    "method m { modify embed insert parallel form { P: [3, d_out] ~ normal(0.1) delta = P } compose prepend(delta, h) }"
)


@pytest.mark.parametrize(
    "spec, why", [(POOLING, "reads other positions"), (PLACING.replace(" insert parallel", ""), "tokens of its own")]
)
def test_packing_refuses_methods_that_look_across(models, talks, tmp_path, spec, why):
    (tmp_path / "m.pelt").write_text(spec)
    config = TrainConfig(method=str(tmp_path / "m.pelt"), model=models["llama"], data=talks.file, out=str(tmp_path / "run"), pack=True,
                         max_length=60, max_steps=1)  # fmt: skip
    message, _ = mistake("E0636", train, config)
    assert why in message and not (tmp_path / "run").exists()


# ---------------------------------------------------------------- conversations

TALK = [
    {"role": "user", "content": "my money"}, {"role": "assistant", "content": "refund"},
    {"role": "user", "content": "i want to leave"}, {"role": "assistant", "content": "closing please"},
]  # fmt: skip


def counted(example, tokenizer):
    return tokenizer.decode([t for t in example["labels"] if t != IGNORED])


def written(tmp_path, *talks):
    return data.read_file(write_rows(tmp_path / "d.jsonl", [{"messages": t} for t in talks]))


def test_the_assistants_turns_count(models, tmp_path):
    tokenizer = load_tokenizer(models["llama"])
    split = written(tmp_path, TALK)
    task = task_for(split, TaskOptions())
    assert task.chat and task.loss == "completion" and task.texts == ("messages",)
    (example,) = task.encode(split, tokenizer).examples
    assert counted(example, tokenizer) == "refund [SEP] closing please [SEP]"
    assert example["input_ids"] == tokenizer.apply_chat_template(TALK, tokenize=True)["input_ids"]
    (whole,) = task_for(split, TaskOptions(loss="all")).encode(split, tokenizer).examples
    assert whole["labels"] == whole["input_ids"] == example["input_ids"]


def test_a_template_may_mark_the_assistants_words(models, tmp_path):
    """Templates with `{% generation %}` say themselves what counts: here not the mark at the end of a turn."""
    tokenizer = load_tokenizer(models["llama"])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }} : {% if m['role'] == 'assistant' %}{%- generation %}{{ m['content'] }}"
        "{%- endgeneration %}{% else %}{{ m['content'] }}{% endif %} [SEP] {% endfor %}"
    )
    split = written(tmp_path, TALK)
    (example,) = task_for(split, TaskOptions()).encode(split, tokenizer).examples
    assert counted(example, tokenizer) == "refund closing please"


def test_prompts_in_a_chat_template(models, tmp_path):
    tokenizer = load_tokenizer(models["llama"])
    split = data.read_file(write_rows(tmp_path / "d.jsonl", [{"prompt": "my money", "completion": "refund"}] * 2))
    task = task_for(split, TaskOptions(chat=True))
    example = task.encode(split, tokenizer).examples[0]
    assert counted(example, tokenizer) == "refund [SEP]"
    assert tokenizer.decode(example["input_ids"]) == "user : my money [SEP] assistant : refund [SEP]"
    assert tokenizer.decode(task.prompt_ids(("my money",), tokenizer)) == "user : my money [SEP] assistant :"


def test_long_conversations_keep_something_to_learn(models, tmp_path):
    tokenizer = load_tokenizer(models["llama"])
    late = [{"role": "user", "content": " ".join(["the"] * 30)}, {"role": "assistant", "content": "refund"}]
    encoded = task_for(split := written(tmp_path, TALK, late), TaskOptions(max_length=10)).encode(split, tokenizer)
    assert encoded.truncated == 2 and all(len(e["input_ids"]) == 10 for e in encoded.examples)
    assert [counted(e, tokenizer) for e in encoded.examples] == ["refund [SEP]", "refund [SEP]"]


@pytest.mark.parametrize("talk, what", [
    (None, "null"), ([], "empty"), ("text", "a text"), (["hello"], "a text among"), ([{"role": "user"}], "without the texts"),
    ([{"role": "user", "content": "x"}], "ends with the role `user`"),
])  # fmt: skip
def test_conversations_that_are_none(tmp_path, talk, what):
    split = written(tmp_path, TALK, talk)
    message, _ = mistake("E0607", task_for(split, TaskOptions()).encode, split, None)
    assert "line 2" in message and what in message


def test_templates_that_do_not_serve(models, tmp_path, completions, bert):
    split = written(tmp_path, TALK)
    tokenizer = load_tokenizer(models["llama"])
    tokenizer.chat_template = "{{ messages | length }} {{ messages[-1]['content'] }}"
    mistake("E0638", task_for(split, TaskOptions()).encode, split, tokenizer)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    message, _ = mistake("E0638", task_for(split, TaskOptions()).encode, split, tokenizer)
    assert "roles must alternate" in message
    mistake("E0637", task_for(split, TaskOptions()).fit, None, load_tokenizer(bert))
    plain = data.read_file(write_rows(tmp_path / "t.jsonl", [{"text": "the money"}]))
    for options in ({"chat": True}, {"generate": True}, {"loss": "completion"}):
        mistake("E0603", task_for, plain, TaskOptions(**options))


# ---------------------------------------------------------------- patterns of prompts


def test_a_pattern_makes_the_prompt(models, tmp_path):
    tokenizer = load_tokenizer(models["llama"])
    rows = [{"instruction": "close", "input": "my account", "output": "closing"}]
    split = data.read_file(write_rows(tmp_path / "d.jsonl", rows))
    task = task_for(split, TaskOptions(pattern="{instruction} : {input} . "))
    assert task.texts == ("instruction", "input") == task.inputs and task.label == "output"
    (example,) = task.encode(split, tokenizer).examples
    assert tokenizer.decode(example["input_ids"]) == "[CLS] close : my account . closing [SEP]"
    assert counted(example, tokenizer) == "closing [SEP]"
    message, help_ = mistake("E0603", task_for, split, TaskOptions(pattern="{instruktion}"))
    assert "`instruktion`" in message and "`instruction`" in help_
    for wrong in ("{instruction", "no column", "{}", "{instruction!r}", "{prompt} {input}", "{prompt:0} {input}"):
        mistake("E0640", task_for, split, TaskOptions(pattern=wrong, task="causal-lm"))
    mistake("E0640", task_for, split, TaskOptions(pattern="{prompt:3} {input}", task="causal-lm"))
    mistake("E0620", task_for, split, TaskOptions(pattern="{input}", text=("input",), task="causal-lm"))


def test_options_of_other_tasks_are_refused(tmp_path):
    split = data.read_file(write_rows(tmp_path / "d.jsonl", [{"text": "a", "label": 0}, {"text": "a", "label": 1}]))
    message, help_ = mistake("E0620", task_for, split, TaskOptions(stride=4))
    assert "--stride" in message and "question-answering" in help_
    mistake("E0620", task_for, split, TaskOptions(pack=True))
    mistake("E0620", task_for, split, TaskOptions(max_target_length=3))


# ---------------------------------------------------------------- generated answers


def test_metrics_of_texts_by_hand():
    """Worked out by hand: 5 of 6 words are shared, 3 of 5 pairs, and the longest common subsequence has 5 words."""
    found = text_metrics(["the cat sat on the mat"], [["the cat is on the mat"]])
    assert found["rouge1"] == pytest.approx(5 / 6) and found["rouge2"] == pytest.approx(3 / 5) == found["rouge2"]
    assert found["rougeL"] == pytest.approx(5 / 6) and found["exact_match"] == 0
    # one trigram of 4 matches ("on the mat"), and no 4-gram of 3: sacrebleu smooths that one to 1 / (2 · 3)
    assert found["bleu"] == pytest.approx(100 * (5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25)
    same = text_metrics(["a b c d", "e f g h"], [["a b c d"], ["x", "e f  g h"]])
    assert same["bleu"] == pytest.approx(100) and same["exact_match"] == 1 and same["answers"] == 2
    assert same["chrf"] == pytest.approx(100) and same["rougeL"] == pytest.approx(1)


def test_references_of_unequal_number():
    two = text_metrics(["a b c d", "e f g h"], [["x y", "a b c d"], ["e f g h"]])
    assert two["exact_match"] == 1 and two["bleu"] == pytest.approx(100) and two["rouge1"] == 1


@pytest.mark.parametrize("answer, wanted, match", [
    ("so 9 * 2 = 18\n#### 18", "#### 18", 1), ("#### 1,800", "#### 1800", 1), ("#### 18.", "#### 18", 0), ("18", "#### 18", 0),
    ("#### 3 #### 18", "first #### 18", 1),
])  # fmt: skip
def test_exact_match_behind_a_mark(answer, wanted, match):
    assert text_metrics([answer], [[wanted]], "####")["exact_match"] == match


def test_equal_prompts_are_one_with_several_references():
    leads = leaders([[1, 2], [3], [1, 2], [1]])
    assert leads == [0, 1, 0, 3]
    assert grouped(leads, ["a", "b", "c", "d"]) == {0: ["a", "c"], 1: ["b"], 3: ["d"]}


def test_generation_asks_each_prompt_once(models, tmp_path):
    rows = [
        {"prompt": p, "completion": c} for p, c in (("my money", "refund"), ("late", "arrival"), ("my money", "charge"))
    ]
    split = data.read_file(write_rows(tmp_path / "d.jsonl", rows))
    tokenizer = load_tokenizer(models["gpt2"])
    task = task_for(split, TaskOptions(generate=True, max_target_length=3, max_length=16))
    model = load_model(models["gpt2"], task, tokenizer, 0)
    calls = []
    generate = model.generate
    model.generate = lambda **given: calls.append(given["input_ids"].tolist()) or generate(**given)
    encoded, collator = task.encode(split, tokenizer), Collator(tokenizer, task)
    metrics = evaluate(model, task, encoded, collator, 2)
    assert sum(len(c) for c in calls) == metrics["answers"] == 2 and metrics["examples"] == 3
    assert "bleu" not in evaluate(model, task.in_training(), encoded, collator, 2)


@pytest.mark.parametrize("family, prompt, written", [("gpt2", 62, 2), ("gpt2", 64, 0), ("t5", 10, 40)])
def test_answers_end_where_the_model_ends(models, family, prompt, written):
    """GPT-2's table of positions has 64 rows here, and T5 has no such table."""
    from unipelt.training.tasks.generation import generate

    task = CausalLM(("text",), max_length=64) if family == "gpt2" else task_of_t5()
    model = load_model(models[family], task, load_tokenizer(models[family]), 0).eval()
    model.generation_config.eos_token_id = None
    (answer,) = generate(model, [[5] * prompt], 40, family == "t5")
    assert len(answer) - (family == "t5") == written  # an encoder–decoder's answer has its start in front


def test_t5_is_trained_on_texts_of_any_length(models):
    """Its configuration says `n_positions`, which bounds nothing: it counts distances between tokens."""
    tokenizer = load_tokenizer(models["t5"])
    load_model(models["t5"], replace(task_of_t5(), max_length=1024), tokenizer, 0)


def task_of_t5():
    from unipelt.training.tasks.seq2seq import Seq2Seq

    return Seq2Seq(("source",), "target")


def test_decoders_labels(models, tmp_path):
    """The target ends with the end token, padding has no label, and the model's own loss is the mean of ours."""
    rows = [{"source": "my money", "target": "refund please"}, {"source": "late", "target": "arrival"}]
    split = data.read_file(write_rows(tmp_path / "d.jsonl", rows))
    tokenizer = load_tokenizer(models["t5"])
    task = task_for(split, TaskOptions(task="seq2seq", generate=False))
    encoded = task.encode(split, tokenizer)
    model = load_model(models["t5"], task, tokenizer, 0).eval()
    batch = task.collate(encoded.examples, tokenizer)
    assert all(e["labels"][-1] == tokenizer.eos_token_id for e in encoded.examples)
    assert (batch["labels"][1] == IGNORED).sum() == 1
    with torch.no_grad():
        own = model(**batch).loss.item()
    found = evaluate(model, task, encoded, Collator(tokenizer, task), 1)
    assert found["loss"] == pytest.approx(own, rel=1e-5) and found["tokens"] == int((batch["labels"] != IGNORED).sum())
    cut = task_for(split, TaskOptions(task="seq2seq", max_target_length=2)).encode(split, tokenizer)
    assert cut.truncated == 2 and all(
        len(e["labels"]) == 2 and e["labels"][-1] == tokenizer.eos_token_id for e in cut.examples
    )


def test_an_encoder_decoder_and_a_pair_of_columns_are_seq2seq(models, tmp_path, completions):
    from unipelt.training.models import load_config

    split = data.read(completions)["train"]
    assert task_for(split, TaskOptions(), load_config(models["t5"])).kind == "seq2seq"
    assert task_for(split, TaskOptions(), load_config(models["gpt2"])).kind == "causal-lm"
    task = task_for(split, TaskOptions(task="causal-lm"))
    message, _ = mistake("E0633", load_model, models["t5"], task, load_tokenizer(models["t5"]), 0)
    assert "t5" in message and "causal-lm" in message


# ---------------------------------------------------------------- a model without an adapter


def test_a_pretrained_model_is_evaluated_alone(models, completions):
    run = load_base(models["gpt2"], TaskOptions(max_length=16), completions)
    metrics, split, _ = evaluate_run(run, completions)
    assert split == "validation" and metrics["examples"] == 9 and "bleu" not in metrics
    with_answers, *_ = evaluate_run(run, completions, generate=True)
    assert with_answers["loss"] == metrics["loss"] and 0 <= with_answers["exact_match"] <= 1
