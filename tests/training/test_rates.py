"""Multiples of the learning rate: the plan notes them, and the README shows the lines with which a plain Trainer or a loop keeps them."""

import re
from pathlib import Path

import pytest
import torch
from names import name as named

import unipelt
from unipelt.training import TrainConfig, train

ROOT = Path(__file__).resolve().parents[2]


def model():
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = dict(vocab_size=20, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    return BertForSequenceClassification(BertConfig(**sizes, max_position_embeddings=16))


def lines_of_the_readme():
    """What the README shows for any Trainer, and for a loop, as Python."""
    text = (ROOT / "README.md").read_text("utf-8")
    (trainer,) = re.findall(r"`(unipelt\.training\.for_trainer\(trainer\))`", text)
    (optimizer,) = re.findall(r"`(torch\.optim\.AdamW\(unipelt\.parameter_groups.*?\))`", text)
    return trainer, optimizer


@pytest.mark.parametrize("method, multiple, moved, others", [
    ("lora_plus", 16, lambda n: n.endswith(".B"), lambda n: n.endswith(".A")),
    ("partial", 0.1, lambda n: ".layer.1." in n, lambda n: "classifier" in n),
])  # fmt: skip
@pytest.mark.parametrize("way", ["trainer", "optimizer"])
def test_the_lines_of_the_readme_keep_the_multiples(way, method, multiple, moved, others, tmp_path):
    """The first step of Adam moves each entry that has a gradient by the learning rate."""
    from transformers import Trainer, TrainingArguments

    m = model()
    plan = unipelt.apply(m, unipelt.load(named(method)), name="sst2")
    (note,) = [w for w in plan.warnings if "multiple of the learning rate" in w]
    assert f"({multiple:g})" in note and "unipelt.parameter_groups" in note and note[:40] in str(plan)
    if method == "lora_plus":
        with torch.no_grad():  # A has no gradient where B is zero
            for n, p in m.named_parameters():
                if n.endswith("B"):
                    p.normal_()
    before = {n: t.clone() for n, t in unipelt.state_dict(m, "sst2").items()}
    rows = [{"input_ids": [1, 2 + i % 9, 3], "attention_mask": [1, 1, 1], "labels": i % 2} for i in range(8)]
    arguments = TrainingArguments(str(tmp_path), max_steps=1, per_device_train_batch_size=8, lr_scheduler_type="constant", report_to=[],
                                  use_cpu=True, save_strategy="no", disable_tqdm=True, max_grad_norm=0.0, learning_rate=1e-3)  # fmt: skip
    for_trainer, optimizer = lines_of_the_readme()
    scope = {"model": m, "name": "sst2", "torch": torch, "unipelt": unipelt}
    given = (eval(optimizer, scope), None) if way == "optimizer" else (None, None)
    trainer = Trainer(model=m, args=arguments, train_dataset=rows, optimizers=given)
    (eval(for_trainer, scope | {"trainer": trainer}) if way == "trainer" else trainer).train()
    step = {n: (t - before[n]).abs().max().item() for n, t in unipelt.state_dict(m, "sst2").items()}
    of = {True: [d for n, d in step.items() if moved(n)], False: [d for n, d in step.items() if others(n)]}
    assert all(of.values())
    assert max(of[True]) == pytest.approx(multiple * 1e-3, rel=0.02) and max(of[False]) == pytest.approx(1e-3, rel=0.02)


def test_what_learns_at_the_same_rate_is_not_noted():
    for text in ("method m { train head }", "method m { modify ffn insert parallel form { frozen A: [d_in, 2] ~ normal(1) lr 4  B: [2, d_out] ~ zeros  "
                 "delta = z @ A @ B } compose h + delta }"):  # fmt: skip
        assert not [w for w in unipelt.plan(model(), unipelt.parse(text)).warnings if "learning rate" in w]
    layered = unipelt.plan(model(), unipelt.load(named("lora_plus"))(ratio=[2, 8]))
    assert [w for w in layered.warnings if "(2 and 8)" in w]


def test_a_run_keeps_them_and_says_nothing(intents, bert, tmp_path):
    said = []
    train(TrainConfig(model=bert, method=named("lora_plus"), data=intents, out=str(tmp_path / "run"), max_length=8, max_steps=1,
                      checkpoints=False), say=said.append)  # fmt: skip
    assert said and not [line for line in said if "multiple of the learning rate" in line]
