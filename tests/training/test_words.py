"""Training words in any trainer: `penalty` reaches the loss once, `after step` is carried out, both go on in a resumed run."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from names import methods, name
from safetensors.torch import load_file
from small import checkpoint_activations, inputs, model, output, randomise
from torch import nn
from transformers import TrainerCallback

import unipelt
from unipelt.language.analyse.canonical import difference
from unipelt.language.syntax.nodes import Later
from unipelt.runtime.edits import Edit
from unipelt.runtime.registry import record
from unipelt.runtime.seam import edit_at
from unipelt.training import TrainConfig, Words, load_run, train

#: Singular values that a budget prunes, with a penalty: r of each site becomes `left` on average.
TEXT = """
method pruned(r: int = 4, left: float = 1.5, gamma: float = 0.3) {
  modify attn.q, attn.v  insert parallel
  form {
    A: [d_in, r] ~ normal(0.3)   E: [r] ~ normal(0.5)   B: [r, d_out] ~ normal(0.3)
    frozen one: [r, r] ~ identity
    frozen s: [r] ~ zeros
    penalty gamma * sum(sum((A.T @ A - one) ** 2))
    p = softmax(z @ A)
    penalty gamma * sum(mean(p, positions, batch) ** 2)
    delta = z @ A * E @ B
    after step {
      s = 0.8 * s + 0.2 * abs(E * gradient(E))
      E = E * among(s, left + (r - left) * (1 - progress) ** 3)
    }
  }
  compose h + delta
}
"""
METHOD = unipelt.parse(TEXT)


def worn(kind: str = "bert_labels", **arguments: Any) -> nn.Module:
    m = model(kind)
    for part in m.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    unipelt.apply(m, METHOD(**arguments), allow_future=True)
    return m.train()


def batch(n: int = 6, language: bool = False) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(5)
    ids = torch.randint(2, 20, (n, 7), generator=g)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": ids.clone() if language else torch.arange(n) % 2,
    }


def by_hand(m: nn.Module, x: dict[str, torch.Tensor], gamma: float = 0.3) -> torch.Tensor:
    """The penalty of the plain layers of a pass, by other code: what enters a layer's queries enters its values."""
    entered: list[torch.Tensor] = []
    layers = [p for n, p in m.named_modules() if n.endswith("self.query") or n.endswith("self_attn.q_proj")]
    hooks = [p.register_forward_pre_hook(lambda _, a: entered.append(a[0].detach()), prepend=True) for p in layers]
    m(**x)
    for h in hooks:
        h.remove()
    total = torch.zeros(())
    for n, t in unipelt.state_dict(m).items():
        if n.endswith(".A"):
            layer = int(next(part for part in n.split(".") if part.isdigit()))
            total = total + torch.linalg.matrix_norm(t.T @ t - torch.eye(4)) ** 2
            total = total + torch.einsum("bti,ir->btr", entered[layer], t).softmax(-1).mean((0, 1)).square().sum()
    return gamma * total


# ---------------------------------------------------------------- as plain torch


def of_training() -> list[str]:
    """The methods of the library that add to the loss or do something after a step; those over trained adapters need some."""
    found = {n: unipelt.load(n) for n in methods()}
    return [
        n
        for n, m in found.items()
        if any(isinstance(s, Later) for r in m.rows for s in r.form) and all(p.type != "adapters" for p in m.params)
    ]


def own(module: nn.Module, label: str) -> torch.Tensor:
    """A tensor by the row's name for it; one of Python's or torch's own gets another."""
    return getattr(module, label if label in module.state_dict() else f"{label}_")


def printed(text: unipelt.Method, m: nn.Module) -> dict[Edit, nn.Module]:
    """A module of the printed text for each edit, with its tensors and their gradients, in the order of places."""
    found: dict[str, Any] = {"__name__": "printed"}
    exec(compile(text.torch_source(), "<printed>", "exec"), found)
    classes = [c for c in found.values() if isinstance(c, type) and c.__module__ == "printed"]
    out = {}
    for planned in record(m, "default").plan.edits:
        e = edit_at(m, "default", planned)
        c = next(
            c
            for c in classes
            if re.search(rf"The row `{e.row.name}` at [^:]*\b{re.escape(e.site.name)}[,:]", c.__doc__ or "")
        )
        sizes = {**planned.sizes, "depth": m.config.num_hidden_layers}
        module = c(**{n: sizes[n] for n in c.__init__.__annotations__ if n != "return"}).double()
        for label, t in e.tensors().items():
            mine = own(module, label)
            mine.data.copy_(t.detach())
            mine.grad = t.grad.clone() if t.grad is not None else None
        out[e] = module
    return out


def test_methods_of_training_are_those_that_are_compared() -> None:
    assert set(of_training()) >= {name(n) for n in ("adalora", "sora", "lora_moe", "sorsa")}


def has_text(method: str) -> bool:
    """Whether a method can be printed as torch modules; `unipelt show --torch` says why not (E0590)."""
    try:
        return bool(unipelt.load(method).torch_source())
    except unipelt.PeltError as e:
        assert {d.code for d in e.diagnostics} == {"E0590"}
        return False


@pytest.mark.parametrize("method", [*filter(has_text, of_training()), "pruned"])
def test_printed_modules_do_in_training_what_the_edits_do(method: str) -> None:
    text = METHOD if method == "pruned" else unipelt.load(method)
    m = model("bert_labels", dtype=torch.float64)
    for part in m.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    unipelt.apply(m, text, allow_future=True)
    randomise(m)
    x = {**inputs(), "labels": torch.tensor([0, 2, 1])}
    entered: dict[Edit, tuple[Any, ...]] = {}
    for e in (e for e in m.modules() if isinstance(e, Edit)):
        e.register_forward_pre_hook(lambda e, args: entered.__setitem__(e, args))
    unipelt.progress(m, 0.3)
    m.train()(**x).loss.backward()
    modules = printed(text, m)
    penalties = []
    for e, module in modules.items():
        h, given, mask = (*entered[e], None)[:3]
        if hasattr(module, "penalty"):
            values = {**given, "h": h, "mask": mask}
            penalties.append(module.penalty(**{n: values[n] for n in module.penalty.__annotations__ if n != "return"}))
    assert bool(penalties) == (unipelt.penalties(m) != 0) and len(penalties) in (0, len(modules))
    assert float(sum(p.detach() for p in penalties)) == pytest.approx(float(unipelt.penalties(m).detach()), rel=1e-10)
    before = {e: {label: t.clone() for label, t in e.tensors().items()} for e in modules}
    stepping = [module for module in modules.values() if hasattr(module, "after_step")]
    for progress in (0.3, 0.6):  # what a step does may begin late in training
        unipelt.progress(m, progress)
        unipelt.after_step(m)
        if stepping:
            entering = inspect.signature(stepping[0].after_step).parameters
            given = {"progress": torch.tensor(progress, dtype=torch.float64)} if "progress" in entering else {}
            together = bool(entering.keys() - {"progress"})
            for module in stepping[:1] if together else stepping:
                module.after_step(*[stepping] * together, **given)
        for e, module in modules.items():
            for label, t in e.tensors().items():
                assert torch.allclose(own(module, label), t, rtol=1e-10, atol=1e-12), label
    changed = any(not torch.equal(t, before[e][label]) for e in modules for label, t in e.tensors().items())
    assert changed == bool(stepping) and (penalties or stepping)


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("lowering", [True, False])
@pytest.mark.parametrize("kind", ["bert_labels", "llama"])
def test_a_penalty_is_in_the_loss_and_is_what_it_says(kind: str, lowering: bool) -> None:
    x, m = batch(language=kind == "llama"), worn(kind)
    with torch.no_grad():
        wanted = by_hand(m, x)
    out = m(**x)
    found = unipelt.penalties(m)
    logits, labels = out.logits, x["labels"]
    if kind == "llama":
        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    loss = torch.nn.functional.cross_entropy(logits, labels)
    assert torch.allclose(found, wanted, rtol=1e-5) and torch.allclose(out.loss, loss + found, rtol=1e-5)
    assert torch.equal(m(**x, return_dict=False)[0], out.loss)
    own = [p for n, p in unipelt.state_dict(m).items() if n.endswith(".A")]
    assert len(own) == 6
    zero = worn(kind, gamma=0.0)
    assert torch.allclose(zero(**x).loss, loss, rtol=1e-5) and unipelt.penalties(zero) == 0
    m.eval()
    assert torch.allclose(m(**x).loss, torch.nn.functional.cross_entropy(
        m(**x).logits[:, :-1].flatten(0, 1) if kind == "llama" else m(**x).logits, labels)) and unipelt.penalties(m) == 0  # fmt: skip
    with unipelt.disabled(m.train()):
        m(**x)
        assert unipelt.penalties(m) == 0


def gradients(m: nn.Module, *parts: dict[str, Any], share: float = 1.0) -> list[torch.Tensor]:
    m.zero_grad()
    for part in parts:
        (m(**part).loss * share).backward()
    return [p.grad.clone() for p in m.parameters() if p.grad is not None]


def test_it_counts_once_however_many_parts_a_batch_has() -> None:
    """A penalty of the tensors alone, whose gradient is the same for every part."""
    text = TEXT.replace("penalty gamma * sum(mean(p, positions, batch) ** 2)", "")
    for kind in ("bert_labels", "llama"):
        x = batch(language=kind == "llama")
        m = model(kind)
        unipelt.apply(m, unipelt.parse(text), allow_future=True)
        m.train()
        for part in m.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
        parts = [{n: t[i : i + 2] for n, t in x.items()} for i in (0, 2, 4)]
        whole = gradients(m, x)
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(whole, gradients(m, *parts, share=1 / 3)))
        if kind == "llama":  # whose loss is divided by the number of labels of the whole batch
            whole_labels = x["labels"][:, 1:].numel()
            counted = gradients(m, *[{**p, "num_items_in_batch": torch.tensor(whole_labels)} for p in parts])
            assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(whole, counted))


def test_layers_that_are_computed_again() -> None:
    x, m = batch(), worn()
    plain = gradients(m, x)
    checkpoint_activations(m, False)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(plain, gradients(m, x))) and len(plain) == 18 + 4, (
        "with the head"
    )
    checkpoint_activations(m, True)
    m.enable_input_require_grads()
    with pytest.raises(unipelt.PeltError) as e:
        gradients(m, x)
    assert [d.code for d in e.value.diagnostics] == ["E0771"]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own, of what its tracer looks at
def test_it_compiles_into_one_graph() -> None:
    x, m = batch(), worn()
    wanted = gradients(m, x)
    compiled = torch.compile(m, backend="eager", fullgraph=True)
    found = gradients(compiled, x)
    torch._dynamo.reset()
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(wanted, found))


# ---------------------------------------------------------------- after a step


def test_lines_after_a_step_by_hand() -> None:
    x, m = batch(), worn()
    s = {n: torch.zeros(4) for n in unipelt.state_dict(m) if n.endswith(".E")}
    optimizer = torch.optim.SGD([p for p in m.parameters() if p.requires_grad], 1e-2)
    for step in range(1, 5):
        loss = m(**x).loss
        loss.backward()
        grads = {n: unipelt.runtime.registry.record(m, "default").trained()[n].grad.clone() for n in s}
        optimizer.step()
        E = {n: unipelt.state_dict(m)[n].clone() for n in s}
        unipelt.progress(m, step / 4)
        unipelt.after_step(m)
        s = {n: 0.8 * s[n] + 0.2 * (E[n] * grads[n]).abs() for n in s}
        budget = round((1.5 + 2.5 * (1 - step / 4) ** 3) * len(s))
        least = torch.cat(list(s.values())).sort(descending=True).values[budget - 1]
        for n in s:
            now = unipelt.state_dict(m)
            assert torch.allclose(now[n[:-1] + "s"], s[n], rtol=1e-5)
            assert torch.equal(now[n], torch.where(s[n] >= least, E[n], 0))
        optimizer.zero_grad()
    left = sum(int((unipelt.state_dict(m)[n] != 0).sum()) for n in s)
    assert left == 9, "1.5 at each of 6 places"


def test_only_what_is_trained_and_acts_changes() -> None:
    m = worn()
    before = {n: t.clone() for n, t in unipelt.state_dict(m).items()}
    unipelt.progress(m, 1.0)
    with unipelt.disabled(m):
        unipelt.after_step(m)
    assert all(torch.equal(before[n], t) for n, t in unipelt.state_dict(m).items())
    unipelt.after_step(m)
    assert not all(torch.equal(before[n], t) for n, t in unipelt.state_dict(m).items())


# ---------------------------------------------------------------- trainers


def plain(
    folder: Path,
    m: nn.Module,
    steps: int,
    resume: Any = None,
    parts: int = 1,
    callbacks: Any = (),
    language: bool = False,
) -> Any:
    """transformers' Trainer as it is, with the callback."""
    from transformers import Trainer, TrainingArguments

    x = batch(12, language)
    rows = [{n: t[i] for n, t in x.items()} for i in range(12)]
    arguments = TrainingArguments(str(folder), max_steps=steps, per_device_train_batch_size=6 // parts, gradient_accumulation_steps=parts,
                                  learning_rate=1e-2, lr_scheduler_type="constant", report_to=[], disable_tqdm=True, save_steps=3,
                                  dataloader_pin_memory=False, use_cpu=True, logging_steps=1, seed=3)  # fmt: skip
    trainer = Trainer(model=m, args=arguments, train_dataset=rows, callbacks=[Words(), *callbacks])
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_the_plain_trainer_carries_them_out_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            control.should_training_stop = state.global_step == 3
            return control

    m = worn()
    with torch.no_grad():
        first = by_hand(m, {n: t for n, t in batch(12).items() if n != "labels"})
    trainer = plain(tmp_path / "a", m, 8)
    with torch.no_grad():
        assert by_hand(m, {n: t for n, t in batch(12).items() if n != "labels"}) < first / 2, "the penalty falls"
    assert trainer.state.log_history[0]["loss"] > first * 0.9, "it is in the loss that the Trainer logs"
    left = sum(int((t != 0).sum()) for n, t in unipelt.state_dict(m).items() if n.endswith(".E"))
    assert left == 9
    broken = worn()
    plain(tmp_path / "b", broken, 8, callbacks=[Stop()])
    again = worn()
    plain(tmp_path / "b", again, 8, resume=str(tmp_path / "b" / "checkpoint-3"))
    whole, resumed = unipelt.state_dict(m), unipelt.state_dict(again)
    assert all(torch.equal(t, resumed[n]) for n, t in whole.items()) and any(n.endswith(".s") for n in whole)


def test_accumulated_parts_give_the_same_run(tmp_path: Path) -> None:
    runs = []
    for parts in (1, 3):
        m = model("llama")  # whose loss is divided by the labels of all parts; BERT's is not, and that is none of ours
        text = TEXT.replace("penalty gamma * sum(mean(p, positions, batch) ** 2)", "")
        unipelt.apply(m, unipelt.parse(text), allow_future=True)
        runs.append(plain(tmp_path / str(parts), m, 2, parts=parts, language=True).state.log_history[0]["loss"])
    assert abs(runs[0] - runs[1]) < 1e-3 * runs[0]


def test_unipelts_own_trainer_carries_them_out(bert: str, intents: str, tmp_path: Path) -> None:
    spec = tmp_path / "pruned.pelt"
    spec.write_text(TEXT)

    def left(folder: Path) -> tuple[int, int, float]:
        saved = unipelt.state_dict(load_run(folder).model, "trained")
        E = [t for n, t in saved.items() if n.endswith(".E")]
        A = [t for n, t in saved.items() if n.endswith(".A")]
        return sum(int((t != 0).sum()) for t in E), len(E), sum(float(((a.T @ a - torch.eye(4)) ** 2).sum()) for a in A)

    config = TrainConfig(method=f"{spec}", model=bert, data=intents, out=str(tmp_path / "run"), epochs=1, batch_size=8, lr=2e-2,
                         max_length=32, seed=1)  # fmt: skip
    first = unipelt.apply(__import__("transformers").AutoModel.from_pretrained(bert), METHOD, allow_future=True)
    kept, places, penalty = left(train(config).folder)
    assert kept == round(1.5 * places) and places == len([t for t in first.tensors if t.endswith(".E")])
    untouched = TrainConfig(**{**config.__dict__, "out": str(tmp_path / "other"), "set": {"gamma": 0.0}})
    assert penalty < left(train(untouched).folder)[2] / 2, "the penalty falls"


def ranks_left(tensors: dict[str, torch.Tensor]) -> tuple[int, int]:
    """How many singular values are not 0, and at how many places."""
    E = [t for n, t in tensors.items() if n.endswith(".E")]
    return sum(int((t != 0).sum()) for t in E), len(E)


class StopAt(TrainerCallback):
    """Ends a run as if it were killed there."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise InterruptedError


def test_adalora_reaches_its_target_in_a_run_that_is_taken_up_again(bert: str, intents: str, tmp_path: Path) -> None:
    config = TrainConfig(method=name("adalora"), set={"r": 4, "target": 2}, model=bert, data=intents, out=str(tmp_path / "run"), epochs=1,
                         batch_size=8, train_size=48, lr=2e-2, max_length=16, seed=1, save_steps=2)  # fmt: skip
    whole = load_file(Path(train(config).folder) / "adapter.safetensors")
    left, places = ranks_left(whole)
    assert places and left == 2 * places
    broken = replace(config, out=str(tmp_path / "broken"))
    with pytest.raises(InterruptedError):
        train(broken, callbacks=[StopAt(5)])
    said: list[str] = []
    train(replace(broken, resume=True), say=said.append)
    assert "resuming at step 4" in said
    again = load_file(tmp_path / "broken" / "adapter.safetensors")
    assert whole.keys() == again.keys() and all(torch.equal(t, again[n]) for n, t in whole.items())


def test_adalora_reaches_its_target_in_the_plain_trainer(tmp_path: Path) -> None:
    found = []
    for end in (None, 4):
        m = model("bert_labels")
        unipelt.apply(m, unipelt.load(name("adalora"))(r=4, target=2))
        if end is None:
            plain(tmp_path / "a", m, 7)
        else:
            with pytest.raises(InterruptedError):
                plain(tmp_path / "b", m, 7, callbacks=[StopAt(end)])
            m = model("bert_labels")
            unipelt.apply(m, unipelt.load(name("adalora"))(r=4, target=2))
            assert ranks_left(unipelt.state_dict(m))[0] == 0, "singular values start at 0"
            plain(tmp_path / "b", m, 7, resume=str(tmp_path / "b" / "checkpoint-3"))
        found.append(unipelt.state_dict(m))
    assert ranks_left(found[0]) == (2 * 6, 6)
    assert all(torch.equal(t, found[1][n]) for n, t in found[0].items())


# ---------------------------------------------------------------- what is known without running


def test_what_training_adds_has_a_part_in_what_a_method_means(tmp_path: Path) -> None:
    for old, new in (
        ("0.8", "0.7"),
        ("gamma * sum(sum", "2 * gamma * sum(sum"),
        ("1 - progress", "2 - progress"),
        ("abs(E * gradient(E))", "abs(E)"),
    ):
        assert old in TEXT and difference(METHOD, unipelt.parse(TEXT.replace(old, new, 1))) is not None
    renamed = TEXT.replace("E", "Q").replace("frozen one", "frozen eye").replace(" - one)", " - eye)")
    assert difference(METHOD, unipelt.parse(renamed)) is None
    again = unipelt.parse(str(METHOD))
    assert again == METHOD and difference(again, METHOD) is None
    m = worn().eval()
    wanted = output(m, **inputs())
    folder = unipelt.save(m, tmp_path / "saved")
    other = model("bert_labels")
    unipelt.attach(other, folder)
    assert torch.equal(output(other, **inputs()), wanted)
    assert unipelt.plan(other, METHOD).properties["batch-independent"] == "yes", "a penalty changes no output"
