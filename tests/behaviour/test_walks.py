"""Random sequences of what people do to a model with adapters: after each step it computes what a fresh model computes that has the same tensors.

What is computed once and kept, hung and taken down must never show. The fresh model evaluates its rows as they are written. ``UNIPELT_WALKS=200`` walks more.
"""

from __future__ import annotations

import copy
import os
import pickle
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from names import name as named
from torch import nn

import unipelt
from unipelt.runtime.registry import record, registry

pytestmark = pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing.* is deprecated:FutureWarning")

WEIGHT = "method weight { modify attn.v.weight form { B: [d_in, d_out] ~ normal(0.05) delta = (z + B) * 1.1 } compose replace }"
METHODS = {
    n: unipelt.load(named(n))
    for n in ("lora", "dora", "oft", "mam", "prefix_tuning", "ia3", "prompt_tuning", "pfeiffer", "bitfit")
}
METHODS |= {"unipelt": unipelt.load(named("unipelt_apl_causal")), "weight": unipelt.parse(WEIGHT)}
STEPS = 10
SHAPES = ((1, 1), (2, 5), (3, 1), (2, 7))


class Walk:
    """A model on its way; ``names`` has its adapters with their methods, ``done`` what was done."""

    def __init__(self, seed: int, folder: Path):
        self.rng, self.folder = random.Random(seed), folder
        self.kind = self.rng.choice(["llama", "gpt2", "bert"])
        self.model = still(small.model(self.kind, dtype=torch.float64))
        self.names: dict[str, str] = {}
        self.done = [self.kind]
        while not self.names:
            self.add()

    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.rng.randrange(10**6))

    def batch(self) -> dict[str, torch.Tensor]:
        rows, length = self.rng.choice(SHAPES)
        mask = torch.ones(rows, length, dtype=torch.long)
        eager = (
            self.model.config._attn_implementation == "eager"
        )  # whose mask is -inf in float64, so that pads are no numbers
        if length > 2 and not eager and self.rng.random() < 0.4:
            mask[0, :2] = 0
        return {"input_ids": torch.randint(2, 60, (rows, length), generator=self.generator()), "attention_mask": mask}

    def fresh(self) -> nn.Module:
        """A model that was never anything else, with the same tensors and adapters."""
        own, r = self.model, registry(self.model)
        found = still(small.model(self.kind, dtype=torch.float64))
        found.set_attn_implementation(own.config._attn_implementation)
        merged = r.merged
        values = dict(own.named_parameters()) | (
            dict(merged.originals) | dict(merged.replaced) if merged is not None else {}
        )
        with torch.no_grad():
            for n, p in found.named_parameters():
                p.copy_(values[n])
        for name, method in self.names.items():
            unipelt.apply(found, METHODS[method], name, allow_future=True, lowering=False)
            with torch.no_grad():
                for n, t in record(found, name).values().items():
                    t.copy_(record(own, name).values()[n])
        acting = merged.names if merged is not None else r.switch.active
        unipelt.activate(found, *([dict(acting.weights)] if hasattr(acting, "weights") else acting))
        return found.train(own.training)

    def check(self) -> None:
        fresh = self.fresh()
        within = 1e-5 if self.model.config._attn_implementation == "eager" else 1e-8  # it takes the softmax in float32
        for _ in range(self.rng.randint(1, 3)):
            batch, mode = self.batch(), self.rng.choice(MODES)
            for _ in range(self.rng.randint(1, 3)):
                found = output(self.model, batch, mode)
            wanted = output(fresh, batch, torch.no_grad)
            real = batch["attention_mask"].bool()
            torch.testing.assert_close(
                found[real], wanted[real], rtol=within, atol=within, msg=lambda m: f"{self}: {m}"
            )
        sdpa = self.model.config._attn_implementation == "sdpa"  # prompts of different lengths are padded
        if sdpa and registry(self.model).merged is None and self.rng.random() < 0.3:
            self.check_mixed(fresh, within)
        if self.kind == "llama" and not self.model.training and self.rng.random() < 0.2:
            ids = torch.randint(2, 60, (2, 4), generator=self.generator())
            found, wanted = (
                m.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, pad_token_id=0)
                for m in (self.model, fresh)
            )
            assert torch.equal(found, wanted), str(self)

    def check_mixed(self, fresh: nn.Module, within: float) -> None:
        """A batch whose examples have adapters of their own."""
        batch = self.batch()
        names = [self.rng.choice([None, *self.names]) for _ in batch["input_ids"]]
        found = []

        def together() -> None:
            with unipelt.using(self.model, names):
                found.append(output(self.model, batch, torch.no_grad))

        refusing(together)
        for i, name in enumerate(names if found else ()):
            with unipelt.using(fresh, name):
                wanted = output(fresh, {n: t[i : i + 1] for n, t in batch.items()}, torch.no_grad)[0]
            real = batch["attention_mask"][i].bool()
            torch.testing.assert_close(
                found[0][i][real], wanted[real], rtol=within, atol=within, msg=lambda m: f"{self}; mixed {names}: {m}"
            )

    def __str__(self) -> str:
        return f"{', '.join(self.done)}; {self.names}, acting: {registry(self.model).switch.active}"

    # ------------------------------------------------------------ steps

    def own(self) -> list[nn.Parameter]:
        return [p for n, p in self.model.named_parameters() if "unipelt" in n]

    def noise(self, t: torch.Tensor) -> torch.Tensor:
        return torch.randn(t.shape, generator=self.generator(), dtype=torch.float64).to(t.dtype) * 0.05

    def add(self) -> None:
        method = self.rng.choice([*METHODS])
        name = f"{method}_{len(self.done)}"
        try:
            unipelt.apply(self.model, METHODS[method], name, allow_future=True)
        except unipelt.PeltError:
            return
        small.randomise(self.model, name, seed=self.rng.randrange(1000))
        self.names[name] = method

    def remove(self) -> None:
        if len(self.names) > 1:
            unipelt.remove(self.model, name := self.rng.choice([*self.names]))
            del self.names[name]

    def activate(self) -> None:
        unipelt.activate(self.model, *self.rng.sample([*self.names], self.rng.randint(0, min(2, len(self.names)))))

    def weigh(self) -> None:
        refusing(lambda: unipelt.activate(self.model, {self.rng.choice([*self.names]): self.rng.random()}))

    def write(self) -> None:
        with torch.no_grad():
            for p in self.own():
                p.add_(self.noise(p))

    def other_data(self) -> None:
        for p in self.own():
            p.data = p.data + self.noise(p)
            if self.rng.random() < 0.5:
                p.data = p.data * 1.01

    def past_the_count(self) -> None:
        for p in self.own():
            p.data.copy_(p.data + self.noise(p))
        self.model.eval()

    def load(self) -> None:
        state = {
            n: t + self.noise(t) if "unipelt" in n and t.is_floating_point() else t
            for n, t in self.model.state_dict().items()
        }
        self.model.load_state_dict(state, assign=self.rng.random() < 0.5)

    def train(self) -> None:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        if not unipelt.active(self.model) or not trained:
            return
        if self.rng.random() < 0.5:
            self.model.train()
        optimizer = torch.optim.SGD(trained, 1e-2)
        for _ in range(2):
            self.model(**self.batch())[0].square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        if self.rng.random() < 0.7:
            self.model.eval()

    def mode(self) -> None:
        self.model.train(self.rng.random() < 0.3)

    def another_base(self) -> None:
        p = self.rng.choice([p for n, p in self.model.named_parameters() if "unipelt" not in n])
        if self.rng.random() < 0.5:
            with torch.no_grad():
                p.mul_(1.1)
        else:
            p.data = p.data * 1.1

    def save_and_attach(self) -> None:
        active, name = unipelt.active(self.model), self.rng.choice([*self.names])
        folder = unipelt.save(self.model, self.folder / f"{name}_{len(self.done)}", name, fold=False)
        unipelt.remove(self.model, name)
        unipelt.attach(self.model, folder, name, allow_future=True)
        unipelt.activate(self.model, *active)
        self.names[name] = self.names.pop(name)

    def merge(self) -> None:
        if len(active := unipelt.active(self.model)) == 1:
            refusing(lambda: unipelt.merge(self.model, active[0]))

    def unmerge(self) -> None:
        if registry(self.model).merged is not None:
            unipelt.unmerge(self.model)

    def duplicate(self) -> None:
        whole = (
            self.model.is_gradient_checkpointing or self.rng.random() < 0.5
        )  # whose hooks transformers cannot pickle
        self.model = copy.deepcopy(self.model) if whole else pickle.loads(pickle.dumps(self.model))

    def other_attention(self) -> None:
        self.model.set_attn_implementation(self.rng.choice(["eager", "sdpa"]))

    def cast(self) -> None:
        self.model.float()
        output(self.model, self.batch(), torch.no_grad)
        self.model.double()

    def checkpointing(self) -> None:
        if self.rng.random() < 0.5:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            self.model.gradient_checkpointing_disable()

    def use_another(self) -> None:
        with unipelt.using(self.model, self.rng.choice([None, *self.names])):
            output(self.model, self.batch(), torch.no_grad)

    def in_a_thread(self) -> None:
        batch = self.batch()
        thread = threading.Thread(target=output, args=(self.model, batch, torch.no_grad))
        thread.start()
        thread.join()

    ALWAYS = ("unmerge", "duplicate", "other_attention", "in_a_thread", "mode")  # while something is merged, too
    ELSE = ("add", "remove", "activate", "activate", "weigh", "write", "other_data", "past_the_count", "load", "train", "another_base",
            "save_and_attach", "merge", "use_another", "cast", "checkpointing")  # fmt: skip

    def step(self) -> None:
        chosen = self.rng.choice(self.ALWAYS if registry(self.model).merged is not None else self.ALWAYS + self.ELSE)
        self.done.append(chosen)
        getattr(self, chosen)()


MODES: tuple[Callable[[], Any], ...] = (torch.no_grad, torch.no_grad, torch.inference_mode, torch.enable_grad)


def output(m: nn.Module, batch: dict[str, torch.Tensor], mode: Callable[[], Any]) -> torch.Tensor:
    with mode():
        return m(**batch)[0].detach().clone()


def refusing(call: Callable[[], Any]) -> None:
    """What may be refused, and then changes nothing."""
    try:
        call()
    except unipelt.PeltError:
        pass


def still(m: nn.Module) -> nn.Module:
    """The model in evaluation, which draws nothing in training either."""
    for module in m.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return m.eval()


@pytest.mark.parametrize("seed", range(int(os.environ.get("UNIPELT_WALKS", "12"))))
def test_nothing_of_what_was_shows(seed: int, tmp_path: Path) -> None:
    walk = Walk(seed, tmp_path)
    walk.check()
    for _ in range(STEPS):
        walk.step()
        walk.check()
