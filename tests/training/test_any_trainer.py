"""`for_trainer`: any Trainer keeps the adapters alone, resumes from them, takes the best, and gives the rates of the method."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from names import name as named
from small import model, output
from torch import nn
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainerCallback, TrainingArguments

import unipelt
from unipelt.language.report.diagnostics import PeltError
from unipelt.training import Reference, WithAdapters, Words, for_trainer
from unipelt.training.any_trainer import BESIDE
from unipelt.training.words import adapted_models

#: Rates of its own, a vector that does not decay, and a number that follows the steps.
METHOD = unipelt.parse("""
method rates(r: int = 3) {
  modify attn.q, attn.v  insert parallel
  form {
    A: [d_in, r] ~ normal(0.3) lr 4   B: [r, d_out] ~ normal(0.1)   b: [d_out] ~ normal(0.1)
    frozen n: [1] ~ zeros
    delta = z @ A @ B + b
    after step { n = n + 1 }
  }
  compose add
}
""")
WRITTEN = {"adapter.safetensors", "adapter.json", "method.pelt"}


def rows(n: int = 12) -> list[dict[str, torch.Tensor]]:
    ids = torch.randint(2, 20, (n, 7), generator=torch.Generator().manual_seed(5))
    return [
        {"input_ids": i, "attention_mask": torch.ones_like(i), "labels": torch.tensor(k % 2)} for k, i in enumerate(ids)
    ]


def arguments(folder: Path, cls: type = TrainingArguments, **more: Any) -> Any:
    return cls(str(folder), **{"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "weight_decay": 0.1, "report_to": [],
                               "disable_tqdm": True, "save_steps": 2, "dataloader_pin_memory": False, "use_cpu": True, "seed": 3, **more})  # fmt: skip


def made(folder: Path, m: nn.Module, cls: type[Trainer] = Trainer, callbacks: Any = (), **more: Any) -> Any:
    of = Seq2SeqTrainingArguments if cls is Seq2SeqTrainer else TrainingArguments
    given = arguments(folder, of, **more)
    return for_trainer(cls(model=m, args=given, train_dataset=rows(), eval_dataset=rows(6), callbacks=[*callbacks]))


def adapted(method: Any = METHOD, *names: str) -> nn.Module:
    m = model("bert_labels")
    for name in names or ("mine",):
        unipelt.apply(m, method, name=name, allow_future=True)
    unipelt.activate(m, *(names or ("mine",)))
    return m


class Stop(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_training_stop = state.global_step == 4
        return control


@pytest.mark.parametrize("cls", [Trainer, Seq2SeqTrainer], ids=lambda c: c.__name__)
def test_a_run_that_was_cut_short_ends_like_one_that_was_not(cls: type[Trainer], tmp_path: Path) -> None:
    m = adapted()
    base = {n: t.clone() for n, t in m.named_parameters() if not t.requires_grad}
    trainer = made(tmp_path / "whole", m, cls)
    trainer.train()
    made(tmp_path / "cut", adapted(), cls, [Stop()]).train()
    checkpoint = tmp_path / "cut" / "checkpoint-4"
    found = {p.name for p in checkpoint.iterdir()}
    assert WRITTEN <= found and not found & {"model.safetensors", "pytorch_model.bin", "config.json"}
    again = adapted()
    made(tmp_path / "cut", again, cls).train(resume_from_checkpoint=True)
    whole, resumed = unipelt.state_dict(m, "mine"), unipelt.state_dict(again, "mine")
    assert all(torch.equal(t, resumed[n]) for n, t in whole.items())
    assert {float(t) for n, t in whole.items() if n.endswith(".n")} == {6.0}, "`after step` was carried out"
    trainer.save_model(str(tmp_path / "end"))
    other = model("bert_labels")
    unipelt.attach(other, tmp_path / "end")
    assert torch.equal(output(other), output(m.eval()))
    assert base and all(torch.equal(t, base[n]) for n, t in m.named_parameters() if n in base), "the base stays"


def test_rates_and_decay_are_those_of_the_method(tmp_path: Path) -> None:
    m = adapted()
    trainer = made(tmp_path, m)
    optimizer = trainer.create_optimizer()
    names = {id(p): n for n, p in m.named_parameters()}
    found = {
        names[id(p)].rpartition("_")[2]: (g["lr"], g["weight_decay"])
        for g in optimizer.param_groups
        for p in g["params"]
    }
    assert {n: found[n] for n in "ABb"} == {"A": (4e-2, 0.1), "B": (1e-2, 0.1), "b": (1e-2, 0.0)}
    assert len([p for g in optimizer.param_groups for p in g["params"]]) == len(
        [p for p in m.parameters() if p.requires_grad]
    )


def test_an_optimiser_that_was_given_stays_as_it_is(tmp_path: Path) -> None:
    m = adapted()
    own = torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.5)
    trainer = for_trainer(Trainer(model=m, args=arguments(tmp_path), train_dataset=rows(), optimizers=(own, None)))
    assert trainer.create_optimizer() is own and [g["lr"] for g in own.param_groups] == [0.5]


@pytest.mark.parametrize("greater", [False, True])
def test_the_best_model_is_read_from_its_checkpoint(greater: bool, tmp_path: Path) -> None:
    m = adapted()
    trainer = made(tmp_path, m, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True, metric_for_best_model="loss",
                   greater_is_better=greater)  # fmt: skip
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    other = model("bert_labels")
    unipelt.attach(other, best)
    assert torch.equal(output(other), output(m.eval()))
    losses = {h["step"]: h["eval_loss"] for h in trainer.state.log_history if "eval_loss" in h}
    assert best.name == f"checkpoint-{(max if greater else min)(losses, key=lambda k: losses[k])}"
    if best.name != "checkpoint-6":  # so it is in one of the two directions
        unipelt.attach(other, tmp_path / "checkpoint-6", "last")
        unipelt.activate(other, "last")
        assert not torch.equal(output(other), output(m))


def test_several_adapters_are_written_beside_each_other(tmp_path: Path) -> None:
    m = adapted(METHOD, "a", "b")
    made(tmp_path, m).train()
    other = model("bert_labels")
    unipelt.attach(other, tmp_path / "checkpoint-6")
    assert set(unipelt.adapters(other)) == {"a", "b"} and torch.equal(output(other), output(m.eval()))
    again = adapted(METHOD, "a", "b")
    made(tmp_path, again, max_steps=8).train(resume_from_checkpoint=True)
    assert not torch.equal(output(again.eval()), output(other))


class Inside(nn.Module):
    """A model that holds one of transformers, and a map of its own that is trained, as a SentenceTransformer may."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = adapted()
        torch.manual_seed(7)
        self.last = nn.Linear(3, 2)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor, **more: Any) -> dict[str, torch.Tensor]:
        logits = self.last(self.inner(input_ids).logits)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def test_a_model_inside_another_and_what_is_trained_beside_it(tmp_path: Path) -> None:
    whole = Inside()
    made(tmp_path / "whole", whole).train()
    made(tmp_path / "cut", Inside(), callbacks=[Stop()]).train()
    assert {p.name for p in (tmp_path / "cut" / "checkpoint-4").iterdir()} >= {*WRITTEN, BESIDE}
    again = Inside()
    made(tmp_path / "cut", again).train(resume_from_checkpoint=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))
    (tmp_path / "cut" / "checkpoint-6" / BESIDE).write_bytes(b"no tensors")
    before = {n: t.clone() for n, t in again.state_dict().items()}
    with pytest.raises(PeltError, match="E0781"):
        made(tmp_path / "cut", again, max_steps=9).train(resume_from_checkpoint=True)
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in before.items())


def test_an_object_that_holds_a_trainer_and_one_that_is_taken_twice(tmp_path: Path) -> None:
    class Holder:
        def __init__(self, inner: Trainer):
            self.inner = inner

    trainer = Trainer(model=adapted(), args=arguments(tmp_path), train_dataset=rows(), callbacks=[Words()])
    holder = Holder(trainer)
    assert for_trainer(holder) is holder and isinstance(holder.inner, WithAdapters)
    assert for_trainer(trainer) is trainer
    assert sum(isinstance(c, Words) for c in trainer.callback_handler.callbacks) == 1


def test_models_are_found_in_what_is_no_module() -> None:
    m = adapted()
    assert adapted_models(SimpleNamespace(body=nn.Sequential(m), head="none")) == [m]
    assert adapted_models(SimpleNamespace(body=nn.Linear(1, 1))) == []


def test_what_is_no_trainer_or_has_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(PeltError, match="E0772"):
        for_trainer(model("bert_labels"))
    with pytest.raises(PeltError, match="E0550"):
        for_trainer(Trainer(model=model("bert_labels"), args=arguments(tmp_path), train_dataset=rows()))
    m = adapted()
    unipelt.save(m, tmp_path / "a", "mine")
    other = model("bert_labels")
    unipelt.attach(other, tmp_path / "a")
    with pytest.raises(PeltError, match="E0622"):
        for_trainer(Trainer(model=other, args=arguments(tmp_path), train_dataset=rows()))


def test_a_class_of_ones_own(tmp_path: Path) -> None:
    class Mine(WithAdapters, Trainer):
        pass

    Mine(model=adapted(), args=arguments(tmp_path, max_steps=2), train_dataset=rows()).train()
    assert WRITTEN <= {p.name for p in (tmp_path / "checkpoint-2").iterdir()}


def test_a_reference_is_the_base_or_an_adapter_as_it_was(tmp_path: Path) -> None:
    ids = {"input_ids": rows(2)[0]["input_ids"][None]}
    m = model("llama")
    base = m(**ids).logits
    unipelt.apply(m, unipelt.load(named("lora"))(r=2), name="dpo", allow_future=True)
    with torch.no_grad():
        for t in m.parameters():
            if t.requires_grad:
                t.add_(0.3)
    unipelt.save(m, tmp_path / "sft", "dpo")
    start = m(**ids).logits.detach()
    unipelt.attach(m, tmp_path / "sft", "sft")
    unipelt.activate(m, "dpo")
    m.train()
    torch.testing.assert_close(Reference(m)(**ids).logits, base)
    with torch.no_grad():
        for t in m.parameters():
            if t.requires_grad:
                t.add_(0.3)
    old = Reference(m, "sft")
    assert torch.allclose(old(**ids).logits, start, atol=1e-6) and not torch.allclose(m(**ids).logits, start, atol=1e-3)
    assert not old(**ids).logits.requires_grad and m.training and m(**ids).logits.requires_grad
    assert not list(old.parameters()) and old.config is m.config
    with pytest.raises(PeltError, match="E0773"):
        Reference(m, "dpo")
    with pytest.raises(PeltError, match="E0550"):
        Reference(model("llama"))
    with pytest.raises(PeltError, match="none"):
        Reference(m, "none")
