"""Training runs on tiny models: they learn, repeat, resume after a kill, save small folders, and are put to use again."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from names import name as named
from tiny_hf import WORDS, write_intents, write_rows

import unipelt
from unipelt.language.report.diagnostics import PeltError
from unipelt.training import TrainConfig, evaluate_run, load_run, merge_run, predict_run, train
from unipelt.training import data as reading
from unipelt.training.folder import CHECKPOINTS, open_folder
from unipelt.training.models import load_tokenizer
from unipelt.training.tasks.evaluation import Collator
from unipelt.training.tasks.task import IGNORED
from unipelt.training.tasks.causal_lm import CausalLM
from unipelt.training.tasks.classification import classification_metrics
from unipelt.training.trainer import last_checkpoint


def code(call, *args, **kwargs):
    with pytest.raises(PeltError) as caught:
        call(*args, **kwargs)
    return caught.value.diagnostics[0].code, str(caught.value)


@pytest.fixture(scope="session")
def config(spec, intents, bert, tmp_path_factory):
    return TrainConfig(
        method=f"{spec}:small", model=bert, data=intents, out=str(tmp_path_factory.mktemp("runs") / "first"),
        epochs=6, lr=1e-2, batch_size=8, max_length=16, set={"rate": 0.1},
    )  # fmt: skip


@pytest.fixture(scope="session")
def finished(config):
    torch.set_num_threads(1)
    said = []
    return train(config, say=said.append), said


def weights(folder):
    return load_file(Path(folder) / "adapter.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ---------------------------------------------------------------- a run


def test_it_learns_and_says_so(finished):
    result, said = finished
    assert result.metrics["test"]["accuracy"] > 0.8 > result.metrics["test"]["majority"] * 2
    first, last = (sum(h["loss"] for h in part) for part in (result.history[:10], result.history[-10:]))
    assert last < 0.7 * first
    assert any(line.startswith("learning rate") for line in said)
    assert sum("validation accuracy" in line for line in said) == 6


def test_a_head_of_the_library_in_mixed_precision(config, tmp_path):
    """Its hooks are the model's own, and accelerate binds another `forward` to the model when it takes autocast away."""
    asked = replace(config, method=named("lora"), head="mean", set={}, epochs=1, max_steps=2, precision="bf16")
    result = train(replace(asked, out=str(tmp_path / "run")))
    assert evaluate_run(load_run(result.folder), config.data)[0] == result.metrics["test"]


def test_the_folder_is_small_and_complete(finished, bert):
    result, _ = finished
    folder = Path(result.folder)
    record = json.loads((folder / "metrics.json").read_text())
    assert record["metrics"] == result.metrics and record["config"]["epochs"] == 6
    base = sum(f.stat().st_size for f in Path(bert).glob("*.safetensors"))
    for place in (folder, *(folder / CHECKPOINTS).iterdir()):
        tensors = weights(place)
        assert sum(t.numel() for t in tensors.values()) == result.counts["trained"] + result.counts["head"]
        assert not (place / "model.safetensors").exists()
        assert (place / "adapter.safetensors").stat().st_size < base / 2
    assert not [f for f in folder.rglob("*") if f.name.startswith(".") or f.suffix == ".part"]


def test_the_best_checkpoint_is_kept(config, finished):
    result, _ = finished
    record = json.loads((Path(result.folder) / "metrics.json").read_text())
    states = [json.loads(f.read_text()) for f in Path(result.folder).rglob("trainer_state.json")]
    state = max(states, key=lambda s: s["global_step"])
    accuracies = {h["step"]: h["eval_accuracy"] for h in state["log_history"] if "eval_accuracy" in h}
    assert accuracies[record["best_step"]] == max(accuracies.values())
    assert result.metrics["validation"]["accuracy"] == max(accuracies.values())
    best = Path(result.folder) / CHECKPOINTS / f"checkpoint-{record['best_step']}"
    assert same(weights(best), weights(result.folder))


def test_the_same_seed_gives_the_same_weights(config, finished, tmp_path):
    again = train(replace(config, out=str(tmp_path / "again")))
    assert same(weights(again.folder), weights(config.out)) and again.metrics == finished[0].metrics
    other = train(replace(config, out=str(tmp_path / "other"), seed=1, epochs=1))
    assert not same(weights(other.folder), weights(config.out))


def test_the_base_is_untouched(finished, bert):
    from transformers import BertModel

    fresh = BertModel.from_pretrained(bert).eval()
    model = finished[0].model.eval()
    ids = torch.tensor([[2, 5, 9, 3]])
    with torch.no_grad(), unipelt.disabled(model):
        assert torch.equal(model.bert(ids).last_hidden_state, fresh(ids).last_hidden_state)


def test_nothing_is_printed_unless_asked(config, tmp_path, capfd):
    train(replace(config, out=str(tmp_path / "run"), epochs=1))
    assert capfd.readouterr() == ("", "")


def test_without_checkpoints(config, tmp_path):
    result = train(replace(config, out=str(tmp_path / "run"), checkpoints=False))
    assert not (tmp_path / "run" / CHECKPOINTS).exists()
    assert result.metrics["test"]["accuracy"] > 0.7


def test_arguments_and_sums_of_methods(config, tmp_path, spec):
    one = train(replace(config, out=str(tmp_path / "a"), epochs=1, set={"r": 2}))
    # 2 layers × 2 projections × (32 r + 32 r)
    assert one.counts["trained"] == 2 * 2 * 64 * 2
    both = train(
        replace(config, out=str(tmp_path / "b"), epochs=1, method=f"{spec}:small+{spec}:bent", set={"small.r": 4})
    )
    assert both.counts["trained"] == 2 * 2 * 64 * 4 + 2 * 64 * 4
    _, message = code(train, replace(config, out=str(tmp_path / "c"), set={"rnak": 2}))
    assert "rnak" in message and not (tmp_path / "c").exists()


@pytest.mark.parametrize("share, rate", [(0.01, 1e-3), (0.5, 5e-5)])
def test_the_default_rate_follows_the_trained_share(config, share, rate):
    from types import SimpleNamespace

    from unipelt.training.run import learning_rate

    plan = SimpleNamespace(counts=SimpleNamespace(trained=int(1000 * share), base=1000))
    found, why = learning_rate(replace(config, lr=None), plan)
    assert found == rate and f"{rate:g}" in why
    assert learning_rate(config, plan)[0] == config.lr


# ---------------------------------------------------------------- resuming

KILLED = """
import os, signal, sys
import torch
from transformers import TrainerCallback
from unipelt.training import TrainConfig, train

class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(1)
train(TrainConfig(**eval(sys.argv[1])), callbacks=[Kill()])
"""


def test_a_killed_run_resumes_exactly(config, finished, tmp_path):
    """Killed in the middle of an epoch (of 12 steps); going on from the middle of one, and from the end of one."""
    killed = replace(config, out=str(tmp_path / "run"), save_steps=20)
    arguments = {**killed.__dict__, "set": dict(killed.set)}
    command = [sys.executable, "-c", KILLED, repr(arguments), "43"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "run" / "metrics.json").exists()
    shutil.copytree(tmp_path / "run", tmp_path / "earlier")
    shutil.rmtree(tmp_path / "earlier" / CHECKPOINTS / "checkpoint-40")
    for place, steps in (("run", [40]), ("earlier", [12, 24, 36])):
        step = int(last_checkpoint(tmp_path / place / CHECKPOINTS).name.rpartition("-")[2])
        assert step in steps
        said = []
        resumed = train(replace(killed, out=str(tmp_path / place), resume=True), say=said.append)
        assert f"resuming at step {step}" in said
        assert same(weights(resumed.folder), weights(config.out))
        assert resumed.metrics == finished[0].metrics
        assert resumed.history == finished[0].history


def test_a_checkpoint_cut_short_is_passed_over(config, finished, tmp_path):
    copy = tmp_path / CHECKPOINTS
    shutil.copytree(Path(config.out) / CHECKPOINTS, copy)
    broken = copy / "checkpoint-999"
    shutil.copytree(next(copy.iterdir()), broken)
    (broken / "trainer_state.json").write_text('{"global_step": 99')
    assert last_checkpoint(copy).name == "checkpoint-72" and not broken.exists()


def test_resuming_needs_the_same_run(config, finished, tmp_path):
    found, message = code(train, replace(config, resume=True, batch_size=4))
    assert found == "E0612" and "batch_size: 8 then, 4 now" in message
    assert code(train, replace(config, resume=True))[0] == "E0618"
    assert code(train, replace(config, resume=True, out=str(tmp_path / "none")))[0] == "E0612"


def test_a_run_is_not_overwritten_by_accident(config, tmp_path):
    out = tmp_path / "run"
    short = replace(config, out=str(out), epochs=1)
    train(short)
    assert code(train, short)[0] == "E0611"
    again = train(replace(short, overwrite=True, seed=3))
    assert json.loads((out / "metrics.json").read_text())["config"]["seed"] == 3
    assert again.folder == str(out)
    (out / "thesis.tex").write_text("years of work")
    found, message = code(train, replace(short, overwrite=True))
    assert found == "E0611" and "thesis.tex" in message and (out / "thesis.tex").exists()
    assert (out / "adapter.safetensors").exists()


# ---------------------------------------------------------------- putting it to use


def test_a_saved_run_gives_the_same_answers(finished, intents):
    run = load_run(finished[0].folder)
    metrics, split, cut = evaluate_run(run, intents)
    assert (split, cut) == ("test", 0) and metrics == finished[0].metrics["test"]
    rows = reading.read(intents)["test"].rows
    answers = predict_run(run, [[r["text"]] for r in rows])
    right = sum(a["label"] == r["label"] for a, r in zip(answers, rows, strict=True))
    assert right / len(rows) == metrics["accuracy"]
    assert abs(sum(answers[0]["probabilities"].values()) - 1) < 1e-4
    assert code(evaluate_run, run, intents, "nothing")[0] == "E0608"
    assert code(predict_run, run, [["a", "b"]])[0] == "E0607"


def test_an_unfinished_run_is_refused(tmp_path):
    assert code(load_run, tmp_path / "nowhere")[0] == "E0615"
    found, message = code(load_run, tmp_path)
    assert found == "E0615" and "--resume" in message


@pytest.mark.parametrize("text", ["{}", '{"config": []}', "[]", '{"config"'])
def test_a_damaged_record_of_a_run_is_refused(config, tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    found, message = code(open_folder, tmp_path, replace(config, resume=True))
    assert found == "E0615" and "--overwrite" in message
    (tmp_path / "task.json").write_text(text.replace("config", "task"))
    assert code(load_run, tmp_path)[0] == "E0615"


def test_merging_writes_a_plain_model(finished, tmp_path):
    from transformers import AutoModelForSequenceClassification

    run = load_run(finished[0].folder)
    batch = dict(run.tokenizer(["money return please", "close my account"], return_tensors="pt", padding=True))
    with torch.no_grad():
        wanted = run.model(**batch).logits
    merge_run(run, tmp_path / "plain")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    assert not [n for n, _ in plain.named_modules() if "unipelt" in n]
    assert plain.config.id2label == {0: "arrival", 1: "closing", 2: "refund"}
    with torch.no_grad():
        torch.testing.assert_close(plain(**batch).logits, wanted, atol=1e-5, rtol=1e-5)
    assert code(merge_run, load_run(finished[0].folder), tmp_path / "plain")[0] == "E0611"


def test_merging_what_cannot_be_merged_names_the_part(config, spec, tmp_path):
    train(replace(config, method=f"{spec}:bent", set={}, out=str(tmp_path / "run"), epochs=1))
    _, message = code(merge_run, load_run(tmp_path / "run"), tmp_path / "plain")
    assert "bent" in message and not (tmp_path / "plain").exists()


# ---------------------------------------------------------------- language models


@pytest.mark.parametrize("which", ["gpt2", "llama"])
def test_a_language_model_learns_completions(which, request, spec, completions, tmp_path):
    result = train(TrainConfig(
        method=f"{spec}:small", model=request.getfixturevalue(which), data=completions, out=str(tmp_path / "run"),
        epochs=8, lr=2e-2, batch_size=8, max_length=16, set={"r": 8},
    ))  # fmt: skip
    assert result.task.loss == "completion" and result.task.kind == "causal-lm"
    assert result.metrics["validation"]["loss"] < result.history[0]["loss"] / 2
    run = load_run(tmp_path / "run")
    metrics, split, _ = evaluate_run(run, completions)
    assert split == "validation" and metrics["loss"] == pytest.approx(result.metrics["validation"]["loss"], abs=1e-6)
    answers = predict_run(run, [["i want my money return"]], max_new_tokens=4)
    assert answers[0]["completion"].split()[0] in WORDS


def test_a_method_that_sees_the_future_is_refused_on_a_causal_model(spec, completions, gpt2, tmp_path):
    config = TrainConfig(
        method=f"{spec}:pooling", model=gpt2, data=completions, out=str(tmp_path / "run"), epochs=1, max_length=16
    )
    _, message = code(train, config)
    assert "later" in message and not (tmp_path / "run").exists()
    assert train(replace(config, allow_future=True)).counts["trained"]


def test_the_loss_counts_the_completion_only(gpt2, completions):
    tokenizer = load_tokenizer(gpt2)
    split = reading.read(completions)["train"]
    task = CausalLM(("prompt",), "completion", loss="completion", max_length=16)
    encoded = task.encode(split, tokenizer)
    for example, row in zip(encoded.examples, split.rows, strict=True):
        counted = [t for t in example["labels"] if t != IGNORED]
        assert tokenizer.decode(counted) == f"{row['completion']} [SEP]"
        assert example["input_ids"][0] == tokenizer.bos_token_id
    whole = replace(task, loss="all").encode(split, tokenizer)
    assert all(e["labels"] == e["input_ids"] for e in whole.examples)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_takes_no_part_in_the_loss(gpt2, completions, side):
    tokenizer = load_tokenizer(gpt2)
    tokenizer.padding_side = side
    task = CausalLM(("prompt",), "completion", loss="all", max_length=16)
    encoded = task.encode(reading.read(completions)["train"], tokenizer)
    batch = Collator(tokenizer, task)(encoded.examples[:5])
    assert ((batch["labels"] == IGNORED) == (batch["attention_mask"] == 0)).all()
    kept = batch["labels"] != IGNORED
    assert (batch["labels"][kept] == batch["input_ids"][kept]).all()


def test_cut_examples_are_counted_and_keep_their_completion(gpt2, completions):
    tokenizer = load_tokenizer(gpt2)
    split = reading.read(completions)["train"]
    encoded = CausalLM(("prompt",), "completion", loss="completion", max_length=5).encode(split, tokenizer)
    assert encoded.truncated == sum(len(r["prompt"].split()) + 3 > 5 for r in split.rows) > 0
    for example, row in zip(encoded.examples, split.rows, strict=True):
        assert len(example["input_ids"]) <= 5
        assert tokenizer.decode(example["input_ids"]).endswith(f"{row['completion']} [SEP]")


# ---------------------------------------------------------------- data and metrics


def test_pairs_of_texts(config, tmp_path):
    rows = [
        {"premise": f"{p} please", "hypothesis": h, "label": int(p == h)}
        for p in ("money", "late")
        for h in ("money", "late")
    ]
    for name in ("train", "validation"):
        write_rows(tmp_path / "data" / f"{name}.jsonl", rows * 4)
    result = train(replace(config, data=str(tmp_path / "data"), out=str(tmp_path / "run"), epochs=1))
    assert result.task.texts == ("premise", "hypothesis")
    answers = predict_run(load_run(tmp_path / "run"), [["money please", "late"]])
    assert answers[0]["text"] == ["money please", "late"] and answers[0]["label"] in ("0", "1")


def test_a_small_sample_keeps_every_label_and_says_what_it_is(config, tmp_path):
    said = []
    result = train(replace(config, train_size=2, batch_size=2, epochs=1, out=str(tmp_path / "run")), say=said.append)
    assert result.task.labels == tuple(sorted(WORDS)) and len(result.history) == 1
    assert any("2 of 90 rows" in line for line in said)


def test_long_texts_are_cut_and_counted(config, tmp_path):
    said = []
    train(replace(config, max_length=4, epochs=1, out=str(tmp_path / "run")), say=said.append)
    assert any("longer than 4 tokens and are cut" in line for line in said)
    found, message = code(train, replace(config, max_length=100, out=str(tmp_path / "b")))
    assert found == "E0617" and "at most 64" in message


def test_mistakes_in_the_data_come_before_the_model(config, tmp_path):
    data = write_intents(tmp_path / "data")
    write_rows(data / "validation.jsonl", [{"text": "a", "label": "refnud"}])
    found, message = code(train, replace(config, data=str(data), out=str(tmp_path / "run"), model=config.model))
    assert found == "E0606" and "refund" in message and not (tmp_path / "run").exists()


def test_models_that_are_none(config, tmp_path):
    found, message = code(train, replace(config, model=str(tmp_path / "no"), out=str(tmp_path / "run")))
    assert found == "E0613" and "no model folder" in message
    (tmp_path / "empty").mkdir()
    assert code(train, replace(config, model=str(tmp_path / "empty"), out=str(tmp_path / "run")))[0] == "E0613"


@pytest.mark.parametrize("change", [{"epochs": 0}, {"lr": -1.0}, {"warmup": 2.0}, {"scheduler": "magic"}, {"task": "poetry"},
                                    {"train_size": 0}, {"dropout": 1.0}, {"resume": True, "overwrite": True}])  # fmt: skip
def test_options_that_mean_nothing(config, change):
    assert code(train, replace(config, **change))[0] == "E0620"


def test_classification_metrics_agree_with_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(200, 5, generator=generator)
    labels = torch.randint(0, 4, (200,), generator=generator)
    found = classification_metrics(scores, labels)
    guess = scores.argmax(-1)
    assert found["accuracy"] == pytest.approx(sklearn.accuracy_score(labels, guess))
    assert found["macro_f1"] == pytest.approx(sklearn.f1_score(labels, guess, average="macro"), abs=1e-6)
    assert found["loss"] == pytest.approx(sklearn.log_loss(labels, scores.double().softmax(-1), labels=range(5)))
