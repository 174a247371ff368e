"""A run's model card: what it says of the run, and that a card by hand outlives every run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from unipelt.runtime.card import replaceable
from unipelt.runtime.hub import README
from unipelt.training import TrainConfig, train


@pytest.fixture(scope="module")
def config(spec, intents, bert, tmp_path_factory):
    return TrainConfig(method=f"{spec}:small", model=bert, data=intents, out=str(tmp_path_factory.mktemp("card") / "run"),
                       epochs=1, lr=1e-2, batch_size=16, max_length=16)  # fmt: skip


@pytest.fixture(scope="module")
def finished(config):
    return train(config)


def test_the_card_tells_the_run(config, finished):
    folder = Path(finished.folder)
    card = ModelCard.load(folder / README)
    scores = {(r.dataset_split, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert scores["test", "accuracy"] == pytest.approx(finished.metrics["test"]["accuracy"], abs=1e-6)
    assert not any(metric == "majority" for _, metric in scores) and card.data.datasets is None
    for part in ("| learning rate | 0.01 |", "| epochs | 1 |", "| train examples | 90 |", "| seed | 0 |",
                 f"| trained | {finished.counts['trained']:,} |", f"--model {Path(config.model).name}"):  # fmt: skip
        assert part in card.text, part
    assert replaceable(folder / README)


def test_what_is_for_others_names_no_place_of_this_machine(config, finished):
    for name in (README, "adapter.json", "method.pelt", "adapter.safetensors"):
        data = (Path(finished.folder) / name).read_bytes()
        for place in (config.model, config.data, config.out, str(Path(config.model).parent)):
            assert place.encode() not in data, (name, place)
    assert json.loads((Path(finished.folder) / "adapter.json").read_text())["base"]["name"] == Path(config.model).name


def test_a_card_by_hand_outlives_every_run(config, tmp_path):
    said = []
    here = replace(config, out=str(tmp_path / "run"))
    train(here)
    (tmp_path / "run" / README).write_text("# My own words\n")
    train(replace(here, overwrite=True), say=said.append)
    assert (tmp_path / "run" / README).read_text() == "# My own words\n"
    assert any("it is kept" in line for line in said)


def test_overwriting_takes_an_unedited_card_away_first(config, tmp_path):
    """A run that is cut short must not leave the card of another."""
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            raise KeyboardInterrupt

    here = replace(config, out=str(tmp_path / "run"))
    train(here)
    with pytest.raises(KeyboardInterrupt):
        train(replace(here, overwrite=True), callbacks=[Stop()])
    assert not (tmp_path / "run" / README).exists()
