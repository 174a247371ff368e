"""The model card: what the hub reads of it, what people read of it, what it must not tell, whose it is."""

from __future__ import annotations

import warnings

import pytest
import small
from huggingface_hub import ModelCard

import unipelt
from unipelt.runtime.card import PLACE, replaceable, unsealed
from unipelt.runtime.hub import README, is_hub_name, public_name

SPEC = '''
gate each { w: [d_in] ~ normal(0.02)  g = sigmoid(z @ w) }
method mine(r: int = 2, s: float = 0.5) {
  """A low-rank edit, *gated* | by <each> token."""
  use {
    modify attn.q, attn.v   insert parallel
    form { A: [d_in, r] ~ normal(0.3)  B: [r, d_out] ~ zeros  delta = z @ A @ B }
    compose h + s * delta
  } as low gated by each
}
'''
CARD = {
    "task": "sequence-classification", "metrics": {"validation": {"loss": 0.25, "accuracy": 0.5, "examples": 8}, "test": {"accuracy": 0.75}},
    "data": {"name": "intents", "train examples": 90}, "training": {"learning rate": 1e-3, "epochs": 3, "dropout": None}, "license": "apache-2.0",
}  # fmt: skip


def saved(folder, card=CARD, base="some/base", kind="bert_labels"):
    model = small.model(kind)
    model.config._name_or_path = base
    unipelt.apply(model, unipelt.parse(SPEC), "mine")
    unipelt.save(model, folder, "mine", card=card)
    return (folder / README).read_text()


def test_the_hub_reads_its_metadata(tmp_path):
    card = ModelCard(saved(tmp_path / "a"))
    data = card.data
    assert data.base_model == "some/base" and data.base_model_relation == "adapter" and data.license == "apache-2.0"
    assert data.library_name == "unipelt" and data.pipeline_tag == "text-classification" and "mine" in data.tags
    results = {(r.dataset_split, r.metric_type): r.metric_value for r in data.eval_results}
    assert results == {("validation", "loss"): 0.25, ("validation", "accuracy"): 0.5, ("test", "accuracy"): 0.75}
    assert {(r.task_type, r.dataset_name) for r in data.eval_results} == {("text-classification", "intents")}
    assert data.metrics == ["loss", "accuracy"]


def test_people_read_the_row_the_formula_and_the_counts(tmp_path):
    text = saved(tmp_path / "a")
    trained = small.LAYERS * 2 * (small.WIDTH * 2 * 2 + small.WIDTH)
    for part in (
        "| low | `attn.q, attn.v` | `parallel` | `z @ A @ B` | `h + s * delta` | `each()` |", "h ← h + g · (s · Δ)",
        "| r | int | 2 |", f"| trained | {trained:,} |", "| mergeable | no |", "| learning rate | 0.001 |", "| epochs | 3 |",
        "| train examples | 90 |", "| validation | 0.25 | 0.5 | 8 |", "AutoModelForSequenceClassification", 'from_pretrained("some/base")',
        f'unipelt.attach(model, "{PLACE}")', f"unipelt eval {PLACE} --data DATA",
    ):  # fmt: skip
        assert part in text, part
    assert r"\*gated\* | by \<each\> token" in text  # a docstring is text, not markup


def test_a_line_of_the_table_has_as_many_cells_as_its_head(tmp_path):
    tables = [block for block in saved(tmp_path / "a").split("\n\n") if block.startswith("| ")]
    assert len(tables) > 5
    for table in tables:
        widths = {line.replace("\\|", "").count("|") for line in table.splitlines()}
        assert len(widths) == 1, table


@pytest.mark.parametrize(
    "base, tag", [("bert", "feature-extraction"), ("gpt2", "text-generation"), ("bert_labels", "text-classification")]
)
def test_every_kind_of_model_has_a_card(tmp_path, base, tag):
    model = small.model(base)
    unipelt.apply(model, unipelt.parse(SPEC), "mine")
    unipelt.save(model, tmp_path / "a", "mine", card={})
    card = ModelCard.load(tmp_path / "a" / README)
    assert card.data.pipeline_tag == tag and card.data.base_model is None and card.data.license is None
    assert "## Results" not in card.text and "## Training" not in card.text and "unipelt eval" not in card.text


def test_a_saved_adapter_without_a_card_has_no_readme(tmp_path):
    model = small.model("bert")
    unipelt.apply(model, unipelt.parse(SPEC))
    unipelt.save(model, tmp_path / "a")
    assert not (tmp_path / "a" / README).exists()


# ---------------------------------------------------------------- paths


@pytest.mark.parametrize(
    "name, hub, public",
    [
        ("user/model", True, "user/model"),
        ("bert-base-uncased", True, "bert-base-uncased"),
        ("./mine", False, "mine"),
        ("/data/models/mine/", False, "mine"),
        ("~/mine", False, "mine"),
        ("a/b/c", False, "c"),
        ("..", False, ".."),
        ("C:\\models\\mine", False, "mine"),
        ("user/..", False, ".."),
        ("", False, ""),
    ],
)
def test_names_and_paths_are_told_apart(name, hub, public):
    assert is_hub_name(name) is hub and public_name(name) == public


def test_a_local_folder_is_no_hub_name(tmp_path, monkeypatch):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    assert is_hub_name("models/mine")
    monkeypatch.chdir(tmp_path)
    assert not is_hub_name("models/mine") and public_name("models/mine") == "mine"


def test_no_path_of_this_machine_is_told(tmp_path):
    base = tmp_path / "secret-place" / "tiny"
    base.mkdir(parents=True)
    text = saved(tmp_path / "a", base=str(base))
    assert "tiny" in text and ModelCard(text).data.base_model is None
    for file in (tmp_path / "a").iterdir():
        assert b"secret-place" not in file.read_bytes() and str(tmp_path).encode() not in file.read_bytes(), file
    assert "--model tiny" in text


# ---------------------------------------------------------------- whose card


def test_a_card_as_it_was_written_is_written_anew(tmp_path):
    first = saved(tmp_path / "a")
    assert unsealed(first) is not None and replaceable(tmp_path / "a" / README) and replaceable(tmp_path / "none")
    second = saved(tmp_path / "a", {**CARD, "license": "mit"})
    assert "license: mit" in second and unsealed(second) is not None


@pytest.mark.parametrize("edited", [True, False])
def test_a_card_by_hand_is_kept(tmp_path, edited):
    text = saved(tmp_path / "a").replace("## Use", "## Use, and my own words") if edited else "# My adapter\n"
    (tmp_path / "a").mkdir(exist_ok=True)
    (tmp_path / "a" / README).write_text(text)
    assert not replaceable(tmp_path / "a" / README)
    model = small.model("bert_labels")
    unipelt.apply(model, unipelt.parse(SPEC), "mine")
    with pytest.warns(UserWarning, match="it is kept") as said:
        unipelt.save(model, tmp_path / "a", "mine", card=CARD)
    assert said[0].filename == __file__
    assert (tmp_path / "a" / README).read_text() == text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unipelt.save(model, tmp_path / "a", "mine")
    assert (tmp_path / "a" / README).read_text() == text
    assert unipelt.attach(small.model("bert_labels"), tmp_path / "a", force=True) == "mine"


def test_what_is_no_text_is_kept(tmp_path):
    (tmp_path / README).write_bytes(b"\xff\xfe\x00")
    (tmp_path / "folder").mkdir()
    assert not replaceable(tmp_path / README) and not replaceable(tmp_path / "folder")
