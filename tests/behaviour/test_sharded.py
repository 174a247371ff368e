"""Two processes on the CPU (gloo), once for all methods that differ there: DDP and FSDP2 train what one process trains.

Everything is in float64, and Adam's eps is large: it divides a gradient that vanishes (a key's bias has none) by its own
size, which would turn rounding into steps.
"""

from __future__ import annotations

import copy
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import batch, build, distance, look, loss, put, small
from together import together

import unipelt

#: What differs between them: tensors of a site; of a group or head; shared by layers (an MLP of prefixes); a prompt,
#: which the model's own hooks place; trained copies of norms, biases and the head; a head of its own; frozen draws.
CASES = (
    ("llama", "lora"), ("llama", "unipelt_apl_causal"), ("llama", "mam"), ("llama", "llama_adapter"),
    ("gpt2", "prompt_tuning"), ("gpt2", "full"), ("bert_head", "adapter"), ("bert_head", "bitfit"),
    ("bert_head", "unipelt_apl"), ("bert_head", "lora+mean_head"), ("bert", "fixed"), ("bert_head", "weights"),
)  # fmt: skip
FIXED = """
method fixed(r: int = 4) {
  modify attn.q, attn.v
  insert parallel
  form {
    A: [d_in, r]  ~ normal(0.5) frozen
    B: [r, d_out] ~ normal(0.5) per model frozen
    d: [r]        ~ ones
    b: [d_out]    ~ zeros per layer
    delta = ((z @ A) * d) @ B + b
  }
  compose add
}
"""
#: Copies of one of a module's parameters: the other one is the base's, and sharded with it.
WEIGHTS = "method weights() { train *.norm.weight, ffn.up.weight }"
#: For which a whole model is saved, too.
GATHERED = ("lora", "weights", "unipelt_apl")
EXACT = 1e-12
STEPS = 3


def method(name: str) -> Any:
    if name in ("fixed", "weights"):
        return unipelt.parse({"fixed": FIXED, "weights": WEIGHTS}[name])
    first, *more = (small(part) for part in name.split("+"))
    for other in more:
        first = first + other
    return first


def blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    lists = [
        m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and "unipelt" not in type(m[0]).__module__
    ]
    return list(max(lists, key=lambda m: sum(p.numel() for p in m.parameters())))


def train(model: torch.nn.Module, acting: torch.nn.Module, given: list[dict]) -> tuple[dict, dict]:
    """A few steps on the mean of the losses of ``given``; the first step's gradients and the trained tensors, whole."""
    optimizer = torch.optim.AdamW(unipelt.parameter_groups(model, "a", 1e-2), eps=1e-4)
    first: dict[str, torch.Tensor] = {}
    for _ in range(STEPS):
        optimizer.zero_grad()
        sum(loss(acting, b) / len(given) for b in given).backward()
        if not first:
            first = {n: whole(p.grad).clone() for n, p in trained_parameters(model).items()}
        optimizer.step()
    return first, {n: t.clone() for n, t in unipelt.state_dict(model, "a").items()}


def trained_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    from unipelt.runtime.registry import record
    from unipelt.runtime.sharding import settle

    settle(model)
    return record(model, "a").trained()


def whole(t: torch.Tensor) -> torch.Tensor:
    return t.full_tensor() if hasattr(t, "full_tensor") else t


def largest(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference, as a share of the largest entry where that is above 1."""
    assert a.keys() == b.keys(), sorted(set(a) ^ set(b))
    size = max(1.0, *(float(t.abs().max()) for t in b.values()))
    return max(float((a[n] - b[n]).abs().max()) for n in a) / size


def code(call: Any, *args: Any, **options: Any) -> str:
    try:
        call(*args, **options)
    except unipelt.PeltError as e:
        return e.diagnostics[0].code
    return "nothing was raised"


def look_into(kind: str, spec: str, rank: int, folder: Path) -> None:
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    from torch.distributed.fsdp import fully_shard

    given = [batch(kind, rows=2, seed=i) for i in range(2)]
    alone = build(kind, torch.float64)
    put(alone, method(spec))
    spread, sharded = copy.deepcopy(alone), copy.deepcopy(alone)
    start = {n: t.clone() for n, t in unipelt.state_dict(alone, "a").items()}
    gradients, weights = train(alone, alone, given)
    assert largest(start, weights) > 1e-3 and largest(gradients, {n: 0 * g for n, g in gradients.items()}) > 1e-3

    parallel = torch.nn.parallel.DistributedDataParallel(spread)
    found, after = train(spread, parallel, [given[rank]])
    assert largest(found, gradients) < EXACT and largest(after, weights) < EXACT, "DDP"

    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    for block in blocks(sharded):
        fully_shard(block, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    assert largest(unipelt.state_dict(sharded, "a"), start) == 0
    found, after = train(sharded, sharded, [given[rank]])
    assert largest(found, gradients) < EXACT and largest(after, weights) < EXACT, "FSDP2"

    # saved from the shards: read by one process, and by the shards again
    plain = look(alone, given[0])
    assert distance(look(sharded, given[0]), plain) < EXACT
    for fold in (False, True):
        place = folder / f"{kind}-{spec}-{fold}"
        unipelt.save(sharded, place, "a", fold=fold)
        other = build(kind, torch.float64)
        unipelt.attach(other, place, "b", allow_future=True)
        assert distance(look(other, given[0]), plain) < EXACT, f"saved, fold={fold}"
    if spec in GATHERED:  # as the Trainer does: all gather, and the first writes
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(sharded, options=options)
        place = folder / f"{kind}-{spec}-pretrained"
        if rank == 0:
            sharded.save_pretrained(place, state_dict=state)
            other = type(build(kind)).from_pretrained(place, dtype=torch.float64).eval()
            unipelt.attach(other, place, "b", allow_future=True)
            assert distance(look(other, given[0]), plain) < EXACT, "save_pretrained"
        dist.barrier()
    with torch.no_grad():
        for p in trained_parameters(sharded).values():
            p.add_(1)
    assert largest(unipelt.state_dict(sharded, "a"), weights) > 1e-3
    unipelt.restore(sharded, folder / f"{kind}-{spec}-False", "a")
    assert largest(unipelt.state_dict(sharded, "a"), weights) < EXACT
    with unipelt.disabled(sharded):
        assert distance(look(sharded, given[0]), look(build(kind, torch.float64), given[0])) < EXACT
    assert code(unipelt.merge, sharded, "a") == "E0660"
    assert code(unipelt.apply, sharded, small("lora"), name="late") == "E0556"
    assert list(unipelt.adapters(sharded)) == ["a"]


def work(rank: int, folder: Path) -> list[str]:
    problems = []
    for kind, spec in CASES:
        try:
            look_into(kind, spec, rank, folder)
        except AssertionError:
            problems.append(f"{kind} {spec}: {traceback.format_exc(limit=1)}")
    return problems


@pytest.mark.long
def test_two_processes_train_what_one_trains(tmp_path):
    for problems in together(work, tmp_path):
        assert not problems, "\n".join(problems)
    kept = {(k, s): (False, True, *(["pretrained"] if s in GATHERED else [])) for k, s in CASES}
    assert {p.name for p in tmp_path.iterdir()} == {f"{k}-{s}-{f}" for (k, s), found in kept.items() for f in found}
