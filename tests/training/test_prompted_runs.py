"""Runs with prompts: pseudo-tokens at the places of a pattern, rows among the tokens of each task, encoder–decoders."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_tasks as tiny
import torch
from mistakes import mistake
from names import name as named
from safetensors.torch import load_file

import unipelt
from unipelt.runtime.hub import METRICS
from unipelt.training import TrainConfig, data, evaluate_run, load_run, predict_run, train
from unipelt.training.config import TaskOptions
from unipelt.training.folder import CHECKPOINTS
from unipelt.training.models import load_config, load_model, load_tokenizer
from unipelt.training.tasks import task_for
from unipelt.training.tasks.evaluation import Collator, evaluate
from unipelt.training.tasks.task import IGNORED
from unipelt.training.tasks.template import encode, parse

PATTERN, WORDS = "{prompt:2} {text} {prompt:1} type : {mask} . {prompt:1}", "refund,arrival,closing"
BEFORE_THE_MASK = "{prompt:2} {text} {prompt:2} {mask}"
SOFT = """method soft(l: int = 4) {
  \"\"\"The pseudo-tokens as a table.\"\"\"
  modify embed.words  form { P: [l, d_out] ~ normal(0.5)  delta = P }  compose fill(delta, h)
}
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {"masked": tiny.write_masked(folder / "masked", 0.3), "gpt2": tiny.write_chatty(folder / "gpt2", "gpt2"),
            "t5": tiny.write_t5(folder / "t5")}  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return tiny.splits(tmp_path_factory.mktemp("rows"), tiny.classified)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return tiny.splits(tmp_path_factory.mktemp("pairs"), tiny.completed)


def config(model: str, rows: str, out: Path, **options) -> TrainConfig:
    given = {
        "max_length": 32,
        "epochs": 2,
        "lr": 2e-2,
        "batch_size": 15,
        "dropout": 0.0,
        "checkpoints": True,
        "best": False,
    }
    return TrainConfig(**{**given, "model": model, "data": rows, "out": str(out), **options})


def rows_in_text(text: str, tmp_path: Path) -> str:
    (tmp_path / "rows.pelt").write_text(text)
    return str(tmp_path / "rows.pelt")


# ---------------------------------------------------------------- patterns with pseudo-tokens

RUNS = {
    "pet": ("masked", {"pattern": PATTERN, "words": WORDS}),
    "pet-causal": ("gpt2", {"pattern": BEFORE_THE_MASK, "words": WORDS}),
    "classification": ("masked", {"pattern": "{prompt:1} {text} {prompt:3}", "task": "sequence-classification"}),
}


@pytest.mark.parametrize(
    "run, method", [("pet", "p_tuning"), ("pet-causal", "p_tuning_mlp"), ("classification", "p_tuning")]
)
def test_p_tuning_trains_resumes_and_is_used_again(run, method, models, rows, tmp_path):
    model, options = RUNS[run]
    asked = config(models[model], rows, tmp_path / "run", method=named(method), set={"l": "4"}, **options)
    result = train(asked)
    losses = [h["loss"] for h in result.history]
    assert sum(losses[-6:]) < 0.9 * sum(losses[:6])  # of an epoch
    (stored,) = (t for n, t in load_file(tmp_path / "run" / "adapter.safetensors").items() if "embed" in n)
    assert stored.shape == (4, 32)  # what makes the rows is folded away

    loaded = load_run(tmp_path / "run")
    again, _, _ = evaluate_run(loaded, rows)
    assert again == pytest.approx(result.metrics["test"], abs=1e-5)
    assert predict_run(loaded, [("i want my money return",)])[0]["label"] in ("0", "1", "2")

    shutil.copytree(tmp_path / "run", tmp_path / "killed")
    (tmp_path / "killed" / METRICS).unlink()
    checkpoints = sorted((tmp_path / "killed" / CHECKPOINTS).iterdir(), key=lambda p: int(p.name.rpartition("-")[2]))
    shutil.rmtree(checkpoints[-1])
    resumed = train(replace(asked, out=str(tmp_path / "killed"), resume=True))
    assert resumed.history == result.history and resumed.metrics == result.metrics
    mine, theirs = (load_file(tmp_path / f / "adapter.safetensors") for f in ("run", "killed"))
    assert all(torch.equal(t, theirs[n]) for n, t in mine.items())


@pytest.mark.parametrize("run", RUNS)
def test_scores_and_gradients_are_those_of_embeddings_fed_by_hand(run, models, rows, tmp_path):
    model, options = RUNS[run]
    tokenizer, base = load_tokenizer(models[model]), load_config(models[model])
    split = data.read(rows)["test"]
    task = task_for(split, TaskOptions(max_length=32, **options), base).fit(base, tokenizer)
    m = load_model(models[model], task, tokenizer, 0).double().eval()
    unipelt.apply(m, unipelt.parse(SOFT), head=False)
    batch = task.collate(task.encode(split, tokenizer).examples, tokenizer)
    labels = batch.pop("labels")
    ((_, P),) = unipelt.state_dict(m, "default").items()
    fed = P.detach().clone().requires_grad_()
    with unipelt.disabled(m):
        words = m.get_input_embeddings()(batch["input_ids"]).detach()
        marks = batch["pseudo_tokens"]
        embeds = torch.where(marks[..., None] > 0, fed[(marks - 1).clamp(min=0)], words)
        seen = {"inputs_embeds": embeds, "attention_mask": batch["attention_mask"]}
        wanted = m(**seen)
    found = m(**batch)
    assert sorted(marks[0][marks[0] > 0].tolist()) == [1, 2, 3, 4]
    assert float((found.logits - wanted.logits).detach().abs().max()) < 1e-10

    def loss(out):
        return (
            task.loss_function(out, labels)
            if task.loss_function
            else torch.nn.functional.cross_entropy(out.logits, labels)
        )

    loss(found).backward()
    (own,) = [p for g in unipelt.parameter_groups(m, "default", 1.0) for p in g["params"]]
    (gradient,) = torch.autograd.grad(loss(wanted), fed)
    assert float((own.grad - gradient).abs().max()) < 1e-10
    reached = gradient.abs().amax(1) > 1e-8
    assert bool(reached.all())


def test_rows_inside_and_behind_the_text_leave_the_mask_where_it_is(models, rows, tmp_path):
    """PET with pseudo-tokens, rows behind [CLS] and rows behind the text: the word is wanted at the mask."""
    text = """method m {
      use { modify embed.words form { P: [4, d_out] ~ normal(0.5) delta = P } compose fill(delta, h) } as soft
      use { modify embed.words form { Q: [2, d_out] ~ normal(0.5) delta = Q } compose prepend(delta, h, 1) } as front
      use { modify embed.words form { R: [3, d_out] ~ normal(0.5) delta = R } compose append(delta, h) } as back
    }"""
    tokenizer, base = load_tokenizer(models["masked"]), load_config(models["masked"])
    split = data.read(rows)["test"]
    task = task_for(split, TaskOptions(max_length=32, **RUNS["pet"][1]), base).fit(base, tokenizer)
    m = load_model(models["masked"], task, tokenizer, 0).double().eval()
    unipelt.apply(m, unipelt.parse(text))
    P, Q, R = (t for _, t in sorted(unipelt.state_dict(m, "default").items(), key=lambda x: x[0][-1]))
    encoded = task.encode(split, tokenizer)
    batch = task.collate(encoded.examples, tokenizer)
    labels = batch.pop("labels")
    with torch.no_grad():
        found = task.scores(m(**batch).logits, labels)
        for example, scores in zip(encoded.examples, found):
            with unipelt.disabled(m):
                e = m.get_input_embeddings()(torch.tensor(example["input_ids"])).clone()
                for j, k in enumerate(example["pseudo_tokens"]):
                    e[j] = P[k - 1] if k else e[j]
                whole = torch.cat([e[:1], Q, e[1:], R])[None]
                shares = m(inputs_embeds=whole).logits[0, example["place"] + 2].float().log_softmax(-1)
            wanted = torch.stack([shares[tokenizer.convert_tokens_to_ids(w)] for w in WORDS.split(",")])
            torch.testing.assert_close(scores, wanted, atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------- rows among the tokens of other tasks

AMONG = """method among(k: int = 1) {
  \"\"\"Rows behind the first tokens, and behind the text.\"\"\"
  use { modify embed.words form { P: [3, d_out] ~ normal(0.5) delta = P } compose prepend(delta, h, k) } as front
  use { modify embed.words form { Q: [2, d_out] ~ normal(0.5) delta = Q } compose append(delta, h) } as back
}
"""


def ends_loss(out, batch):
    return sum(
        torch.nn.functional.cross_entropy(out[f"{n}_logits"], batch[f"{n}_positions"]).item() / 2
        for n in ("start", "end")
    )


TASKS = {"token-classification": tiny.tagged, "question-answering": tiny.asked, "causal-lm": tiny.completed}


@pytest.mark.parametrize("kind", TASKS)
def test_what_is_scored_is_what_the_loss_is_about(kind, models, tmp_path):
    """The evaluation reads the entries that the model's own loss is over, wherever rows stand."""
    rows = tiny.splits(tmp_path / "rows", TASKS[kind], 9, 9)
    model = models["gpt2" if kind == "causal-lm" else "masked"]
    tokenizer, base = load_tokenizer(model), load_config(model)
    split = data.read(rows)["test"]
    text = {"text": ("source",), "label": "target"} if kind == "causal-lm" else {}
    task = task_for(
        split, TaskOptions(task=kind, max_length=40, stride=8 if kind == "question-answering" else None, **text), base
    )
    task = task.fit(base, tokenizer)
    m = load_model(model, task, tokenizer, 0).eval()
    unipelt.apply(m, unipelt.parse(AMONG), head=False)
    encoded, collate = task.encode(split, tokenizer), Collator(tokenizer, task)
    found = evaluate(m, task, encoded, collate, 4)["loss"]
    with torch.no_grad():
        batches = [collate([encoded[i]]) for i in range(len(encoded))]
        if kind == "question-answering":  # the model's own counts rows among the places where an answer may be
            losses = [ends_loss(m(**b), b) for b in batches]
        else:
            losses = [m(**b).loss.item() for b in batches]
    weights = [1 if kind == "question-answering" else int((b["labels"][:, 1:] != IGNORED).sum()) for b in batches]
    assert found == pytest.approx(sum(x * w for x, w in zip(losses, weights)) / sum(weights), abs=1e-5)


def test_the_first_token_counts_only_where_a_row_foretells_it(models, pairs, tmp_path):
    """A step's loss is the mean over as many tokens as have one: with rows behind the first token it has none."""
    options = {"task": "causal-lm", "text": ("source",), "label": "target", "loss": "all", "epochs": 1, "lr": 1e-9}
    found = {}
    for size in (15, 5):
        asked = config(models["gpt2"], pairs, tmp_path / f"run{size}", method=rows_in_text(AMONG, tmp_path), batch_size=size * 6,
                       accumulate=6 if size == 15 else 1, **options)  # fmt: skip
        found[size] = train(replace(asked, train_size=30, batch_size=30)).history[0]["loss"]
    assert found[15] == pytest.approx(found[5], abs=1e-5)  # in parts as in one


def test_a_prompt_starts_from_the_words_of_pet(models, rows, tmp_path):
    asked = config(models["masked"], rows, tmp_path / "run", method=named("prompt_tuning"), set={"l": "3", "start": "label_words"},
                   pattern="{text} type : {mask} .", words=WORDS, max_steps=1, lr=1e-12)  # fmt: skip
    result = train(asked)
    (P,) = unipelt.state_dict(result.model, "trained").values()
    ids = [result.tokenizer.convert_tokens_to_ids(w) for w in WORDS.split(",")]
    assert torch.allclose(P, result.model.get_input_embeddings().weight[ids], atol=1e-6)


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning_prepended"])
def test_a_prompt_before_an_encoder_trains_resumes_and_writes(method, models, pairs, tmp_path):
    asked = config(models["t5"], pairs, tmp_path / "run", method=named(method), set={"l": "6"}, task="seq2seq", text=("source",),
                   label="target", max_target_length=8, lr=0.3)  # fmt: skip
    result = train(asked)
    losses = [h["loss"] for h in result.history]
    assert sum(losses[-3:]) < 0.97 * sum(losses[:3])
    loaded = load_run(tmp_path / "run")
    again, _, _ = evaluate_run(loaded, pairs)
    assert again == pytest.approx(result.metrics["test"], abs=1e-4) and "bleu" in again
    assert set(predict_run(loaded, [("i want my money",)])[0]) == {"text", "completion"}
    shutil.copytree(tmp_path / "run", tmp_path / "killed")
    (tmp_path / "killed" / METRICS).unlink()
    shutil.rmtree(max((tmp_path / "killed" / CHECKPOINTS).iterdir(), key=lambda p: int(p.name.rpartition("-")[2])))
    assert train(replace(asked, out=str(tmp_path / "killed"), resume=True)).history == result.history


# ---------------------------------------------------------------- refused

PET = {"words": WORDS, "pattern": PATTERN}


@pytest.mark.parametrize("method, set_, options, said, remedy", [
    ("lora", {}, PET, "the pattern has 4 pseudo-tokens, and `lora` fills none", "{prompt:…}"),
    ("p_tuning", {"l": "4"}, {**PET, "pattern": "{text} {mask}"}, "`p_tuning` fills the pseudo-tokens of a pattern, and this pattern has none",
     '--pattern "{prompt:4} {text} {mask}"'),
    ("p_tuning", {}, {"task": "sequence-classification"}, "and this sequence-classification has no pattern", "{prompt:9}"),
    ("p_tuning", {"l": "6"}, PET, "the pattern has 4 pseudo-tokens, and `p_tuning` makes 6", "--set"),
    ("p_tuning", {"l": "3"}, PET, "the pattern has 4 pseudo-tokens, and `p_tuning` makes 3", "--set"),
])  # fmt: skip
def test_patterns_and_methods_that_do_not_fit(method, set_, options, said, remedy, models, rows, tmp_path):
    asked = config(models["masked"], rows, tmp_path / "run", method=named(method), set=set_, **options)
    message, help_ = mistake("E0647", train, asked)
    assert said.replace(f"`{method}`", f"`{named(method)}`") in message and remedy in help_
    assert not (tmp_path / "run").exists()


def test_a_run_has_no_argument_for_the_members_of_an_ensemble(models, rows, tmp_path):
    asked = config(
        models["masked"], rows, tmp_path / "run", method=named("prompt_ensemble"), task="sequence-classification"
    )
    message, help_ = mistake("E0648", train, asked)
    assert "reads the argument `member` of the forward pass" in message and "model(**batch, member=…)" in help_
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("pattern, said, remedy", [
    ("{promt:3} {text}", "`{promt:3}` gives a number or a format to `promt`", "did you mean `prompt`?"),
    ("{Prompt:3} {text}", "`{Prompt:3}`", "{prompt:3}"),
    ("{text:3}", "only `prompt` takes a number", "write `{text}`"),
    ("{text!r}", "`{text!r}` gives", "write `{text}`"),
    ("{prompt} {text}", "`{prompt}` does not say how many", "{prompt:3}"),
    ("{prompt:0} {text}", "`{prompt:0}` does not say how many", "{prompt:3}"),
    ("{} {text}", "no name in them", "{text}"),
    ("{prompt:3}", "reads no column", "{text}"),
])  # fmt: skip
def test_slips_in_a_pattern(pattern, said, remedy):
    message, help_ = mistake("E0640", parse, pattern)
    assert said in message and remedy in help_


def test_a_task_without_patterns_has_no_pseudo_tokens(models, tmp_path):
    rows = tiny.splits(tmp_path / "rows", tiny.tagged, 9, 9)
    message, _ = mistake("E0647", train, config(models["masked"], rows, tmp_path / "run", method=named("p_tuning")))
    assert "this token-classification has no pattern" in message


def test_pseudo_tokens_that_a_causal_model_does_not_see(models, rows, tmp_path):
    asked = config(models["gpt2"], rows, tmp_path / "run", method=named("p_tuning"), set={"l": "4"}, words=WORDS,
                   pattern="{prompt:2} {text} {mask} {prompt:2}")  # fmt: skip
    assert "does not see `{prompt:2}`, which comes after the mask" in mistake("E0640", train, asked)[0]


def test_rows_that_find_no_room_in_the_table_of_positions(models, rows, tmp_path):
    asked = config(models["masked"], rows, tmp_path / "run", method=named("prompt_tuning"), max_length=60, epochs=1,
                   set={"l": "5", "at": "embed.words"}, task="sequence-classification")  # fmt: skip
    message, help_ = mistake("E0617", train, asked)
    assert "64 positions" in message and "--max-length 59" in help_
    train(replace(asked, max_length=59))
    train(
        replace(asked, out=str(tmp_path / "still"), set={"l": "5", "at": "embed"})
    )  # where the tokens keep their positions


def test_no_pseudo_token_is_taken_for_padding(models):
    """By an id of padding some models find the end of a text, which pseudo-tokens may be."""
    tokenizer = load_tokenizer(models["gpt2"])
    tokenizer.unk_token = tokenizer.pad_token = tokenizer.eos_token
    found = encode(parse("{text} {prompt:2}"), ("money",), tokenizer, 20)
    assert found.marks[-2:] == [1, 2] and tokenizer.pad_token_id not in found.ids


# ---------------------------------------------------------------- pipelines


def test_pipelines_read_the_entries_of_the_text(models, tmp_path):
    from transformers import BertConfig, BertForMaskedLM, BertForTokenClassification, pipeline

    tokenizer = load_tokenizer(models["masked"])
    text = "i want my [MASK] return please"
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    m = BertForMaskedLM.from_pretrained(models["masked"]).eval()
    unipelt.apply(m, unipelt.parse(AMONG))
    with torch.no_grad(), unipelt.with_rows(m):
        shares = m(ids).logits[0, 4 + 3].softmax(-1)  # three rows stand behind [CLS]
    (best, *_) = pipeline("fill-mask", model=m, tokenizer=tokenizer, top_k=3)(text)
    assert best["token"] == int(shares.argmax()) and best["score"] == pytest.approx(float(shares.max()), abs=1e-6)

    torch.manual_seed(1)
    m = BertForTokenClassification(BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, num_labels=16,
        max_position_embeddings=64, initializer_range=0.1,
    )).eval()  # fmt: skip
    unipelt.apply(m, unipelt.parse(AMONG), head=False)
    text = "i want my money return please"
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad(), unipelt.with_rows(m):
        labels = m(ids).logits[0].argmax(-1).tolist()
    found = pipeline("token-classification", model=m, tokenizer=tokenizer, ignore_labels=[])(text)
    assert [x["word"] for x in found] == text.split()
    assert [x["entity"] for x in found] == [m.config.id2label[k] for k in labels[1 + 3 : 1 + 3 + 6]]
    assert len({x["entity"] for x in found}) > 1
