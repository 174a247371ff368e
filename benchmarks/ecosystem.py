"""Trainers of other libraries on a tiny Llama and on MiniLM: train, stop, resume to the same end, reload; the reference of DPO.

    pip install trl sentence-transformers setfit lightning
    python benchmarks/ecosystem.py [--only dpo] [--out benchmarks/results/ecosystem.json]

A trainer whose library is not installed is listed as not run.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import tempfile
import traceback
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from jobs import model as base_folder
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

import unipelt
from unipelt.training import Reference, for_trainer

WORDS = "the a cat dog bird sees hears likes small large red blue and or not very today never often here there".split()
STEPS, CUT = 6, 4
CHECKS: dict[str, Callable[[Path], dict[str, Any]]] = {}
NEEDS = {
    "sft": "trl",
    "dpo": "trl",
    "grpo": "trl",
    "sentences": "sentence-transformers",
    "setfit": "setfit",
    "lightning": "lightning",
}
#: Files of a checkpoint that hold the base.
WHOLE = ("model.safetensors", "pytorch_model.bin")


def check(f: Callable[[Path], dict[str, Any]]) -> Callable[[Path], dict[str, Any]]:
    CHECKS[f.__name__] = f
    return f


def reader() -> PreTrainedTokenizerFast:
    names = ["<pad>", "<s>", "</s>", "<unk>", *WORDS]
    found = Tokenizer(models.WordLevel({w: i for i, w in enumerate(names)}, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=found, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def llama(folder: Path) -> nn.Module:
    """Random, of two layers; on disk too, for trainers that load their reference again."""
    place = folder / "llama"
    if not place.exists():
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                             num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0)  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(place)
        reader().save_pretrained(place)
    return LlamaForCausalLM.from_pretrained(place)


def adapted(folder: Path, method: str = "lora", **arguments: Any) -> nn.Module:
    m = llama(folder)
    unipelt.apply(m, unipelt.load(method, arguments=arguments), name="mine", seed=1)
    return m


def sentence(i: int, n: int = 6) -> str:
    return " ".join(WORDS[(i * 7 + k * (i + 3)) % len(WORDS)] for k in range(n))


class Stop(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_training_stop = state.global_step == CUT
        return control


def options(folder: Path, **more: Any) -> dict[str, Any]:
    return {"output_dir": str(folder), "max_steps": STEPS, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "report_to": [],
            "disable_tqdm": True, "save_steps": 2, "use_cpu": True, "seed": 3, "logging_steps": 1, "bf16": False, **more}  # fmt: skip


def held(folder: Path, make: Callable[[Path, Path], Any], model_of: Callable[[Any], nn.Module]) -> dict[str, Any]:
    """Trains twice, the second time with a stop; ``make(base folder, out)`` gives a Trainer."""
    whole = for_trainer(make(folder, folder / "whole"))
    whole.train()
    cut = for_trainer(make(folder, folder / "cut"))
    cut.add_callback(Stop())
    cut.train()
    again = for_trainer(make(folder, folder / "cut"))
    again.train(resume_from_checkpoint=str(folder / "cut" / f"checkpoint-{CUT}"))
    a, b = unipelt.state_dict(model_of(whole), "mine"), unipelt.state_dict(model_of(again), "mine")
    start = unipelt.state_dict(model_of(make(folder, folder / "new")), "mine")
    place = folder / "whole" / f"checkpoint-{STEPS}"
    files = {p.name: p.stat().st_size for p in place.iterdir()}
    return {
        "moved": max(float((a[n] - start[n]).abs().max()) for n in a),
        "resumed": max(float((a[n] - b[n]).abs().max()) for n in a),
        "whole model written": sorted(set(WHOLE) & set(files)),
        "adapter bytes": files.get("adapter.safetensors", 0),
        "expected bytes": sum(t.numel() * t.element_size() for t in a.values()),
        "losses": [round(h["loss"], 4) for h in whole.state.log_history if "loss" in h],
        "checkpoint": str(place),
    }


def comes_back(folder: Path, found: dict[str, Any], m: nn.Module) -> dict[str, Any]:
    """Whether a fresh base with the checkpoint's adapter gives what the trained model gives."""
    ids = torch.arange(4, 12)[None]
    other = llama(folder)
    unipelt.attach(other, found.pop("checkpoint"))
    with torch.no_grad():
        return {**found, "reloaded": float((other.eval()(ids).logits - m.eval()(ids).logits).abs().max())}


@check
def sft(folder: Path) -> dict[str, Any]:
    import trl

    rows = Dataset.from_list([{"text": sentence(i)} for i in range(24)])
    made: list[Any] = []

    def make(place: Path, out: Path) -> Any:
        args = trl.SFTConfig(**options(out, max_length=16))
        made.append(trl.SFTTrainer(model=adapted(place), args=args, train_dataset=rows, processing_class=reader()))
        return made[-1]

    found = held(folder, make, lambda t: t.model)
    return comes_back(folder, found, made[0].model)


@check
def dpo(folder: Path) -> dict[str, Any]:
    import trl

    rows = Dataset.from_list(
        [
            {"prompt": sentence(i), "chosen": " " + sentence(i + 1, 3), "rejected": " " + sentence(i + 2, 3)}
            for i in range(24)
        ]
    )
    made: list[Any] = []

    def make(place: Path, out: Path) -> Any:
        m = adapted(place)
        args = trl.DPOConfig(**options(out, max_length=32))
        made.append(
            trl.DPOTrainer(model=m, ref_model=Reference(m), args=args, train_dataset=rows, processing_class=reader())
        )
        return made[-1]

    found = held(folder, make, lambda t: t.model)
    found = comes_back(folder, found, made[0].model)
    # a policy that goes on from an adapter that was trained before: the reference is that adapter
    unipelt.save(made[0].model, folder / "tuned", "mine")
    m = llama(folder)
    unipelt.attach(m, folder / "tuned", "start")
    unipelt.attach(m, folder / "tuned", "mine", trainable=True)
    unipelt.activate(m, "mine")
    args = trl.DPOConfig(**options(folder / "second", max_length=32))
    second = for_trainer(
        trl.DPOTrainer(
            model=m, ref_model=Reference(m, "start"), args=args, train_dataset=rows, processing_class=reader()
        )
    )
    second.train()
    later = [h["loss"] for h in second.state.log_history if "loss" in h]
    return {
        **found,
        "first loss less ln 2": found["losses"][0] - math.log(2),
        "first loss less ln 2, from an adapter": later[0] - math.log(2),
    }


@check
def grpo(folder: Path) -> dict[str, Any]:
    import trl

    rows = Dataset.from_list([{"prompt": sentence(i)} for i in range(24)])
    made: list[Any] = []

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float(len(set(c.split()))) for c in completions]

    def make(place: Path, out: Path) -> Any:
        args = trl.GRPOConfig(**options(out, max_completion_length=6, num_generations=2, beta=0.1))
        t = trl.GRPOTrainer(
            model=adapted(place), reward_funcs=reward, args=args, train_dataset=rows, processing_class=reader()
        )
        t.ref_model = Reference(t.model)
        made.append(t)
        return t

    found = held(folder, make, lambda t: t.model)
    found = comes_back(folder, found, made[0].model)
    kl = [h["kl"] for h in made[0].state.log_history if "kl" in h]
    return {**found, "first kl": kl[0] if kl else None, "last kl": kl[-1] if kl else None}


def sentence_model() -> Any:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    inner = Transformer(str(base_folder("minilm", Path())))
    st = SentenceTransformer(modules=[inner, Pooling(inner.get_word_embedding_dimension())], device="cpu")
    unipelt.apply(unipelt_part(st), unipelt.load("lora", arguments={"r": 2}), name="mine", seed=1)
    return st


def unipelt_part(st: Any) -> nn.Module:
    return next(m for m in st.modules() if isinstance(m, transformers.PreTrainedModel))


@check
def sentences(folder: Path) -> dict[str, Any]:
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.losses import CosineSimilarityLoss

    rows = Dataset.from_list(
        [{"sentence1": sentence(i), "sentence2": sentence(i + 1), "score": (i % 5) / 4} for i in range(24)]
    )
    made: list[Any] = []

    def make(place: Path, out: Path) -> Any:
        st = sentence_model()
        args = SentenceTransformerTrainingArguments(**options(out))
        made.append(SentenceTransformerTrainer(model=st, args=args, train_dataset=rows, loss=CosineSimilarityLoss(st)))
        return made[-1]

    found = held(folder, make, lambda t: unipelt_part(t.model))
    other = AutoModel.from_pretrained(base_folder("minilm", Path()))
    unipelt.attach(other, found.pop("checkpoint"))
    ids = torch.arange(100, 110)[None]
    with torch.no_grad():
        gone = other.eval()(ids)[0] - unipelt_part(made[0].model).eval()(ids)[0]
    return {**found, "reloaded": float(gone.abs().max())}


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference between the tensors of an adapter."""
    return max(float((a[n] - b[n]).abs().max()) for n in a)


def values(m: nn.Module) -> dict[str, torch.Tensor]:
    return {n: t.detach().clone() for n, t in unipelt.state_dict(m, "mine").items()}


@check
def setfit(folder: Path) -> dict[str, Any]:
    """SetFit's Trainer hands no checkpoint on; the Trainer of sentence-transformers that it holds takes one."""
    from setfit import SetFitModel, Trainer, TrainingArguments
    from sklearn.linear_model import LogisticRegression

    rows = Dataset.from_list([{"text": sentence(i), "label": i % 2} for i in range(8)])
    texts = [sentence(i) for i in range(20, 30)]

    def run(out: Path, stop: bool = False, resume: Path | None = None) -> Any:
        m = SetFitModel(model_body=sentence_model(), model_head=LogisticRegression())
        args = TrainingArguments(output_dir=str(out), max_steps=STEPS, batch_size=4, save_strategy="steps", save_steps=2, save_total_limit=None,
                                 report_to=[], show_progress_bar=False, body_learning_rate=1e-2, seed=3)  # fmt: skip
        t = for_trainer(Trainer(model=m, args=args, train_dataset=rows))
        if stop:
            t.st_trainer.add_callback(Stop())
        if resume is not None:
            t.st_trainer.train = functools.partial(t.st_trainer.train, resume_from_checkpoint=str(resume))
        t.train()
        return m

    before = values(unipelt_part(sentence_model()))
    whole = run(folder / "whole")
    run(folder / "cut", stop=True)
    again = run(folder / "cut", resume=folder / "cut" / f"checkpoint-{CUT}")
    after = values(unipelt_part(whole.model_body))
    place = folder / "whole" / f"checkpoint-{STEPS}"
    files = {p.name: p.stat().st_size for p in place.iterdir()}
    other = AutoModel.from_pretrained(base_folder("minilm", Path()))
    unipelt.attach(other, place)
    ids = torch.arange(100, 110)[None]
    with torch.no_grad():
        gone = other.eval()(ids)[0] - unipelt_part(whole.model_body).eval()(ids)[0]
    return {
        "moved": apart(after, before),
        "resumed": apart(after, values(unipelt_part(again.model_body))),
        "other predictions": sum(a != b for a, b in zip(whole.predict(texts).tolist(), again.predict(texts).tolist())),
        "whole model written": sorted(set(WHOLE) & set(files)),
        "adapter bytes": files.get("adapter.safetensors", 0),
        "expected bytes": sum(t.numel() * t.element_size() for t in after.values()),
        "reloaded": float(gone.abs().max()),
    }


@check
def lightning(folder: Path) -> dict[str, Any]:
    """The three lines: groups for the optimiser, `after_step`, and the adapter's tensors in place of the model's in a checkpoint."""
    import lightning as L

    class Policy(L.LightningModule):
        strict_loading = False  # a checkpoint has no base

        def __init__(self) -> None:
            super().__init__()
            self.model = adapted(folder, "adalora")

        def training_step(self, batch: Any, _: int) -> Any:
            unipelt.progress(self.model, self.global_step / STEPS)
            return self.model(input_ids=batch, labels=batch).loss

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(unipelt.parameter_groups(self.model, "mine", lr=1e-2))

        def optimizer_step(self, *args: Any) -> None:
            super().optimizer_step(*args)  # the gradients stay until the next step's zero_grad
            unipelt.after_step(self.model)

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["state_dict"] = values(self.model)

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            found = checkpoint["state_dict"]
            with torch.no_grad():
                for n, t in unipelt.state_dict(self.model, "mine").items():
                    t.copy_(found.pop(n))

    # an epoch is one step: in the middle of one Lightning goes on with a plain loader's first rows
    rows = torch.randint(4, 20, (4, 8), generator=torch.Generator().manual_seed(0))

    def fit(steps: int, start: Path | None = None) -> tuple[Any, Any]:
        policy = Policy()
        t = L.Trainer(max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                      accelerator="cpu", default_root_dir=folder)  # fmt: skip
        t.fit(policy, torch.utils.data.DataLoader(rows, batch_size=4), ckpt_path=start)
        return policy, t

    before = values(Policy().model)
    policy, _ = fit(STEPS)
    _, stopped = fit(CUT)
    stopped.save_checkpoint(folder / "cut.ckpt")
    again, resumed = fit(STEPS, folder / "cut.ckpt")
    held_there = torch.load(folder / "cut.ckpt", weights_only=False)["state_dict"]
    after = values(policy.model)
    unipelt.save(policy.model, folder / "saved", "mine", fold=False)
    other = llama(folder)
    unipelt.attach(other, folder / "saved")
    ids = torch.arange(4, 12)[None]
    with torch.no_grad():
        gone = float((other.eval()(ids).logits - policy.model.eval()(ids).logits).abs().max())
    return {
        "moved": apart(after, before), "resumed": apart(after, values(again.model)), "steps": [stopped.global_step, resumed.global_step],
        "whole model written": not held_there.keys() <= after.keys(), "reloaded": gone,
    }  # fmt: skip


@check
def accelerate(folder: Path) -> dict[str, Any]:
    """A loop of one's own: the same lines; `save_state` and `load_state` hold the adapter by accelerate's hooks."""
    from accelerate import Accelerator

    def run(steps: int, start: Path | None = None, end: Path | None = None) -> tuple[nn.Module, list[float]]:
        accelerator = Accelerator(cpu=True)
        m = adapted(folder)
        optimizer = torch.optim.AdamW(unipelt.parameter_groups(m, "mine", lr=1e-2))
        model, optimizer = accelerator.prepare(m, optimizer)

        def write(models: list[Any], weights: list[Any], out: str) -> None:
            weights.clear()
            unipelt.save(m, Path(out) / "adapter", "mine", fold=False)

        def read(models: list[Any], out: str) -> None:
            models.clear()
            unipelt.restore(m, Path(out) / "adapter", "mine")

        accelerator.register_save_state_pre_hook(write)
        accelerator.register_load_state_pre_hook(read)
        if start is not None:
            accelerator.load_state(str(start))
        losses = []
        for step in range(CUT if start is not None else 0, steps):
            unipelt.progress(m, step / STEPS)
            ids = torch.randint(4, 20, (4, 8), generator=torch.Generator().manual_seed(step))
            loss = model(input_ids=ids, labels=ids).loss
            accelerator.backward(loss)
            optimizer.step()
            unipelt.after_step(m)
            optimizer.zero_grad()
            losses.append(round(float(loss.detach()), 4))
        if end is not None:
            accelerator.save_state(str(end))
        accelerator.free_memory()
        return m, losses

    before = values(adapted(folder))
    m, losses = run(STEPS)
    run(CUT, end=folder / "cut")
    again, _ = run(STEPS, start=folder / "cut")
    after = values(m)
    files = {p.name for p in (folder / "cut").rglob("*") if p.is_file()}
    unipelt.save(m, folder / "saved", "mine")
    other = llama(folder)
    unipelt.attach(other, folder / "saved")
    ids = torch.arange(4, 12)[None]
    with torch.no_grad():
        gone = float((other.eval()(ids).logits - m.eval()(ids).logits).abs().max())
    return {
        "moved": apart(after, before), "resumed": apart(after, values(again)), "whole model written": sorted(set(WHOLE) & files),
        "losses": losses, "reloaded": gone,
    }  # fmt: skip


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=sorted(CHECKS))
    parser.add_argument("--out")
    given = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    found: dict[str, Any] = {}
    for name in given.only or CHECKS:
        needs = NEEDS.get(name)
        if needs and installed(needs) is None:
            found[name] = {"not run": f"{needs} is not installed"}
        else:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    found[name] = CHECKS[name](Path(folder))
                except Exception as e:
                    traceback.print_exc()
                    found[name] = {"failed": f"{type(e).__name__}: {e}"[:300]}
        print(f"{name:12s} {json.dumps(found[name])}", flush=True)
    record: dict[str, Any] = {
        "versions": {n: installed(n) for n in ("torch", "transformers", "accelerate", *sorted({*NEEDS.values()}))},
        "checks": found,
    }
    if given.out:
        place = Path(given.out)
        if given.only and place.exists():  # the others stay as they were
            old = json.loads(place.read_text())
            record = {
                "versions": {**old["versions"], **{n: v for n, v in record["versions"].items() if v is not None}},
                "checks": {**old["checks"], **found},
            }
        place.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
