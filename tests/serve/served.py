"""A tiny decoder with adapters of several methods, and what it gives without a server: what the tests of the server share."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from names import name as named

from unipelt.serve.listener import Listener

#: Adapters by name, each a method with arguments. The last one puts rows among the tokens.
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "ann": ("lora", {"r": 2}), "bob": ("ia3", {}), "cy": ("prefix_tuning", {"l": 3}), "di": ("pfeiffer", {"r": 3}),
    "eve": ("prompt_tuning", {"l": 3}),
}  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}{% if add_generation_prompt %}you{% endif %}"
)


class Heard(Listener):
    def __init__(self) -> None:
        self.adapters: Counter[str] = Counter()
        self.batches: list[tuple[int, int]] = []

    def adapter(self, what: str) -> None:
        self.adapters[what] += 1

    def batch(self, texts: int, adapters: int) -> None:
        self.batches.append((texts, adapters))


def adapted(base: str, auto: str = "AutoModelForCausalLM") -> Any:
    import transformers

    return getattr(transformers, auto).from_pretrained(base).eval()


def write_adapter(model: Any, folder: Path, method: str, arguments: dict[str, Any], seed: int, **more: Any) -> None:
    """An adapter of chance, left in the model under its folder's name."""
    from small import randomise

    import unipelt

    unipelt.apply(model, unipelt.load(named(method), arguments=arguments), name=folder.name, seed=seed, **more)
    randomise(model, folder.name, seed)
    unipelt.save(model, folder, folder.name)
    model.eval()


def alone(model: Any, prompt: list[int], n: int) -> tuple[int, ...]:
    """What a model writes by itself, without the token that ends it."""
    import torch

    ids = torch.tensor([prompt])
    out = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False, pad_token_id=0
    )
    return tuple(t for t in out[0, len(prompt) :].tolist() if t != model.generation_config.eos_token_id)


class Plain:
    """The base with all adapters, asked as anybody would: what the server must give, too."""

    def __init__(self, model: Any):
        self.model = model

    def write(self, adapter: str | None, prompt: list[int], n: int) -> tuple[int, ...]:
        import unipelt

        with unipelt.using(self.model, adapter):
            return alone(self.model, prompt, n)
