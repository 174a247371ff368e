"""Looking inside while training: weights do not notice, loggers hear, a picture shows it, a resumed run's report is whole."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from safetensors.torch import load_file
from tiny_hf import write_rows

import unipelt
from unipelt.language.report.diagnostics import PeltError
from unipelt.runtime.watch import Place, Seen
from unipelt.training import TrainConfig, Watching, report, train
from unipelt.training import picture as pictures

GATED = """
gate pooled { w: [d_in] ~ normal(0.5)  g = mean(sigmoid(z @ w), positions) }
method opened(r: int = 2) {
  use {
    modify attn.q, attn.v  insert parallel
    form { A: [d_in, r] ~ normal(0.1)  B: [r, d_out] ~ zeros  delta = drop(z, 0.1) @ A @ B }
    compose add
  } as low gated by pooled
  use {
    modify attn.heads  insert parallel
    form {
      E: [3, d_model] ~ normal(0.3) per kind
      K: [d_model, d_head] ~ normal(0.3) per group
      scores = q @ (E @ K).T * scale
      delta = softmax(scores) @ (E @ K)
    }
    compose { lam = sigmoid(logsumexp(scores) - log_mass)   out = (1 - lam) * h + lam * delta }
  } as prefix
}
"""


@pytest.fixture(scope="module")
def config(intents, bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("watching")
    (folder / "gated.pelt").write_text(GATED)
    return TrainConfig(
        method=str(folder / "gated.pelt"), model=bert, data=intents, out=str(folder / "watched"), epochs=3, lr=1e-2, batch_size=16,
        max_length=16, report=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def watched(config):
    return train(config)


def record(folder):
    return json.loads((Path(folder) / report.DATA).read_text())


def test_training_does_not_notice(config, watched, tmp_path):
    """The same weights, bit for bit, and the same metrics."""
    plain = train(replace(config, out=str(tmp_path / "plain"), report=False))
    one, other = (load_file(Path(r.folder) / "adapter.safetensors") for r in (watched, plain))
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    assert watched.metrics == plain.metrics and watched.history == plain.history
    assert not list(Path(plain.folder).glob("report.*"))


def test_the_report_says_what_happened(config, watched):
    found = record(watched.folder)
    assert (
        found["model"] == Path(config.model).name and found["method"] == "opened" and found["counts"] == watched.counts
    )
    steps = len(watched.history)
    assert [x["step"] for x in found["losses"]] == list(range(1, steps + 1))
    assert [e["epoch"] for e in found["evaluations"]] == [o["epoch"] for o in found["observations"]] == [1.0, 2.0, 3.0]
    places = {(p["row"], p["site"], p["layer"]): p for p in found["observations"][-1]["places"]}
    assert {k for k in places if k[0] == "low"} == {("low", s, n) for s in ("attn.q", "attn.v") for n in (0, 1)}
    assert all(
        p["edit"] > 0 and p["grad"] > 0 and p["gates"].keys() == {"gate"} for k, p in places.items() if k[0] == "low"
    )
    # the prefix's embedding is shared by the layers: its gradient has a place of its own
    assert places["prefix", "attn.heads", None]["grad"] > 0 and places["prefix", "attn.heads", None]["edit"] is None
    assert places["prefix", "attn.heads", 1]["gates"].keys() == {"lam"}
    assert set(places["low", "attn.q", 0]["gates"]["gate"]) == {"mean", "std", "min", "max"}
    best = json.loads((Path(watched.folder) / "metrics.json").read_text())["best_step"]
    assert found["best_step"] == best and best in [o["step"] for o in found["observations"]]


def test_what_is_logged_is_what_a_watch_sees(watched):
    """The kept weights over the validation examples, looked at once more."""
    from unipelt.training.data import prepare, read
    from unipelt.training.tasks.evaluation import Collator, evaluate

    config = json.loads((Path(watched.folder) / "metrics.json").read_text())["config"]
    split = prepare(read(config["data"]), None, 0)["validation"]
    encoded = watched.task.encode(split, watched.tokenizer)
    with unipelt.watch(watched.model, "trained") as seen:
        evaluate(
            watched.model, watched.task, encoded, Collator(watched.tokenizer, watched.task), config["eval_batch_size"]
        )
    found = record(watched.folder)
    kept = next(o for o in found["observations"] if o["step"] == found["best_step"])
    logged = {(p["row"], p["site"], p["layer"]): p for p in kept["places"]}
    for p in seen.to_json():
        same = logged[p["row"], p["site"], p["layer"]]
        assert same["edit"] == pytest.approx(p["edit"], rel=1e-6)
        for label, values in same["gates"].items():
            assert values == pytest.approx({k: p["gates"][label][k] for k in values}, rel=1e-5, abs=1e-7)


def test_a_resumed_runs_report_is_whole(config, watched, tmp_path):
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **_):
            if state.epoch and state.epoch >= 2:
                raise KeyboardInterrupt

    again = replace(config, out=str(tmp_path / "run"))
    with pytest.raises(KeyboardInterrupt):
        train(again, callbacks=[Stop()])
    resumed = train(replace(again, resume=True))
    assert record(resumed.folder) == record(watched.folder)


def test_loggers_of_a_trainer_hear_it(bert, tmp_path):
    """Any Trainer: here transformers' own, with a logger in front of the callback as those of `report_to` are."""
    from transformers import AutoModelForSequenceClassification, Trainer, TrainerCallback, TrainingArguments

    class Logger(TrainerCallback):
        heard: list = []

        def on_log(self, args, state, control, logs=None, **_):
            self.heard.append(dict(logs))

    model = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3)
    (tmp_path / "gated.pelt").write_text(GATED)
    unipelt.apply(model, unipelt.load(str(tmp_path / "gated.pelt")), "mine")
    rows = [{"input_ids": [2, 4 + i, 5, 3], "attention_mask": [1, 1, 1, 1], "labels": i % 3} for i in range(6)]
    arguments = TrainingArguments(str(tmp_path / "out"), max_steps=4, eval_strategy="steps", eval_steps=2, report_to=[],
                                  per_device_train_batch_size=2, disable_tqdm=True, save_strategy="no", use_cpu=True)  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, callbacks=[Logger()])
    trainer.add_callback(Watching(trainer, "mine"))
    trainer.train()
    logs = [x for x in Logger.heard if any(k.startswith("unipelt/") for k in x)]
    assert len(logs) == 2
    names = {k for x in logs for k in x}
    assert {"unipelt/low/attn.q/0/gate_mean", "unipelt/low/attn.v/1/gate_max", "unipelt/prefix/attn.heads/1/lam_std",
            "unipelt/low/attn.q/1/edit", "unipelt/low/attn.q/1/grad", "unipelt/prefix/attn.heads/grad"} <= names  # fmt: skip
    assert all(isinstance(v, (int, float)) for x in logs for v in x.values())
    assert [h["step"] for h in trainer.state.log_history if "unipelt/low/attn.q/0/edit" in h] == [2, 4]


def test_several_processes_see_as_one():
    """Each sees its own examples; together their sums are those of all."""
    place, other = Place("r", "s", 0), Place("r", "s", 1)
    a = {place: {"edit": [1.0, 2.0, 4.0, 2.0], "gates": {"g": ([2.0, 1.0, 0.6], [0.1, 0.9])}}}
    b = {
        place: {"edit": [3.0, 2.0, 12.0, 2.0], "gates": {"g": ([1.0, 0.2, 0.04], [0.2, 0.2])}},
        other: {"edit": None, "gates": {}},
    }
    edits, gates = Seen.read(a, b)
    assert edits == {place: 0.5} and gates.keys() == {place}
    g = gates[place]["g"]
    assert (g.count, g.min, g.max) == (3, 0.1, 0.9) and g.mean == pytest.approx(0.4)
    assert g.std == pytest.approx((0.64 / 3 - 0.16) ** 0.5)


# ---------------------------------------------------------------- the picture


def made(rows, layers=12, epochs=6, model="base", steps=20, head=0):
    """A report as the trainer's history would give it."""
    history = []
    for e in range(1, epochs + 1):
        for s in range((e - 1) * steps + 1, e * steps + 1):
            history.append({"step": s, "epoch": s / steps, "loss": 1 / s})
        history.append({"step": e * steps, "epoch": float(e), "eval_loss": 1 / e, "eval_accuracy": 1 - 1 / (e + 1)})
        seen = {"step": e * steps, "epoch": float(e)}
        for (row, site, labels), layer in itertools.product(rows, range(layers)):
            front = f"unipelt/{row}/{site}/{layer}"
            seen |= {f"{front}/edit": 0.1 + layer / 50, f"{front}/grad": 0.01 * e + layer / 90}
            for i, label in enumerate(labels):
                mean = 0.5 + (0.03 if i % 2 else -0.04) * e * layer / layers - (0.6 if "tanh" in label else 0)
                seen |= {
                    f"{front}/{label}_{k}": mean + d for k, d in (("mean", 0), ("std", 0), ("min", -0.1), ("max", 0.1))
                }
        if rows:
            seen[f"unipelt/{rows[0][0]}/{rows[0][1]}/grad"] = 0.3
            history.append(seen)
    counts = {"trained": 1_410_672, "stored": 1, "frozen": 0, "head": head, "base": 109_482_240}
    order = [(row, site) for row, site, _ in rows]
    return report.report_of(history, order, method="some_method", model=model, task="sequence-classification", counts=counts,
                            metric="accuracy", seed=0, best_step=steps * max(1, epochs - 1))  # fmt: skip


UNIPELT = [
    ("adapter", "ffn", ["gate"]),
    ("prefix", "attn.heads", ["G", "lam"]),
    ("lora", "attn.q", ["gate"]),
    ("lora", "attn.v", ["gate"]),
]
PICTURES = {
    "unipelt": made(UNIPELT, head=1538),
    "deep": made(UNIPELT, layers=32, epochs=3),
    "long": made(UNIPELT, epochs=40, steps=3),
    "signed": made([("zero_init", "attn.heads", ["tanh(t)"])], layers=32, epochs=2),
    "no gates": made([("lora", "attn.q", []), ("lora", "attn.v", [])], epochs=1),
    "many": made([("train", f"some.module.number{i}", []) for i in range(11)]),
    "nothing": made([], epochs=1, steps=1),
}


def boxes(figure):
    """Visible texts and their extents."""
    from matplotlib.text import Text

    renderer = figure.canvas.get_renderer()
    figure.draw(renderer)
    found = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    for axes in figure.findobj(lambda a: hasattr(a, "get_xticklabels")):
        # labels of ticks outside the limits are not drawn
        for axis, (low, high) in ((axes.xaxis, sorted(axes.get_xlim())), (axes.yaxis, sorted(axes.get_ylim()))):
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not low <= tick.get_loc() <= high:
                    found = [t for t in found if t not in (tick.label1, tick.label2)]
        if not axes.axison:
            own = axes.findobj(Text)
            found = [t for t in found if t not in own]
    return [(t.get_text(), t.get_window_extent(renderer)) for t in found]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", PICTURES)
def test_texts_neither_overlap_nor_leave_the_picture(name):

    with pictures.style(**pictures.STYLE):
        figure = pictures.figure(PICTURES[name])
        texts = boxes(figure)
    assert len(texts) > 10
    width, height = figure.canvas.get_width_height()
    for text, box in texts:
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, text
    for (a, one), (b, other) in itertools.combinations(texts, 2):
        inner = min(one.x1, other.x1) - max(one.x0, other.x0), min(one.y1, other.y1) - max(one.y0, other.y0)
        assert min(inner) < 1.0, (a, b, one, other)


def test_the_files_are_pictures():
    png, svg = (pictures.draw(PICTURES["unipelt"], form) for form in ("png", "svg"))
    assert png.startswith(b"\x89PNG\r\n\x1a\n") and ElementTree.fromstring(svg).tag.endswith("svg")
    for text in (
        "adapter at ffn: gate",
        "prefix at attn.heads: lam",
        "optimizer step",
        "epoch",
        "layer",
        "‖out − h‖ / ‖h‖",
    ):
        assert text.encode() in svg, text


def test_names_are_texts_not_markup():
    svg = pictures.draw(made(UNIPELT, model="$a$<script>&"), "svg")
    words = "".join(ElementTree.fromstring(svg).itertext())
    assert "$a$<script>&" in words and b"<script>" not in svg


def test_gates_of_one_kind_share_a_scale_and_signed_ones_have_their_own():
    maps = pictures.maps_of(PICTURES["unipelt"])
    assert [m.title for m in maps] == ["adapter at ffn: gate", "prefix at attn.heads: G", "prefix at attn.heads: lam",
                                       "lora at attn.q: gate", "lora at attn.v: gate"]  # fmt: skip
    assert all(m.share for m in maps) and not pictures.maps_of(PICTURES["signed"])[0].share


# ---------------------------------------------------------------- mistakes


def test_a_report_needs_evaluations_and_matplotlib(config, monkeypatch, tmp_path):
    with pytest.raises(PeltError, match="E0670"):
        replace(config, checkpoints=False).check()
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PeltError, match="E0671"):
        train(replace(config, out=str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_overwriting_replaces_an_earlier_report(config, watched, tmp_path):
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(watched.folder, folder)
    train(replace(config, out=str(folder), overwrite=True, report=False, epochs=1))
    assert not list(folder.glob("report.*"))


def test_a_failure_while_evaluating_leaves_nobody_watching(config, tmp_path):
    from transformers import TrainerCallback

    models = []

    class Fail(TrainerCallback):
        def on_evaluate(self, args, state, control, model=None, **_):
            models.append(model)
            raise ZeroDivisionError

    data = tmp_path / "data"
    for split in ("train", "validation"):
        write_rows(data / f"{split}.jsonl", [{"text": "my parcel", "label": str(i % 2)} for i in range(8)])
    with pytest.raises(ZeroDivisionError):
        train(replace(config, data=str(data), out=str(tmp_path / "run"), epochs=1), callbacks=[Fail()])
    assert all(m.watchers == () for m in models[0].modules() if hasattr(m, "watchers"))
