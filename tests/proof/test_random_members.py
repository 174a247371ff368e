"""Random methods as trained adapters that another method reads: a weighted sum of what they do with one weight of 1 is that one."""

from __future__ import annotations

import pytest
import small
import torch
from calibrated import batches
from random_methods import text

import unipelt
from unipelt.language.check.methods import sites_of
from unipelt.runtime.registry import record

SEEDS = range(28, 36)
KINDS = ("bert", "llama")
READING = {
    "out": "form { axis member = of w: [] ~ zeros per member delta = sum(w * of.out, member) } compose { out = delta }",
    "delta": "form { axis member = of w: [] ~ zeros per member delta = sum(w * of.delta, member) } compose h + delta",
    "average": "form { axis member = of w: [] ~ zeros per member delta = of.delta(w) } compose h + delta",
}
#: Why a random method is no member: it adds tokens, has whole numbers, acts on other sites or layers; a mistake in it.
REFUSED = {"E0421", "E0422", "E0512"}


def tokenizer(text: str, **_: object) -> dict[str, list[int]]:
    """Whatever a text is, it is a token that stands in the inputs."""
    return {"input_ids": small.inputs()["input_ids"][0, 2:3].tolist()}


def what_it_does(method: unipelt.Method, kind: str, reading: str) -> str | None:
    """Compares a member that acts by itself with what is read of it; the code of the mistake where that is refused."""
    m = small.model(kind, dtype=torch.float64)
    sites = list(dict.fromkeys(str(p) for r in method.rows for p in sites_of(r.sites, method.params)))
    picking = unipelt.parse(
        f"method pick(of: adapters, at: sites) {{ modify at insert sequential {READING[reading]} }}"
    )
    try:
        for seed, name in enumerate(("first", "second")):
            unipelt.apply(
                m, method, name=name, seed=seed, head=False, allow_future=True,
                tokenizer=tokenizer, data=batches(2, labels=kind == "llama"), batches=2,
            )  # fmt: skip
            small.randomise(m, name, seed=seed + 3)
        unipelt.activate(m, "second")
        wanted = small.output(m)
        unipelt.apply(
            m, picking(of=["first", "second"], at=f"[{', '.join(sites)}]"), name="pick", head=False, allow_future=True
        )
    except unipelt.PeltError as e:
        return e.diagnostics[0].code
    with torch.no_grad():
        for n, w in record(m, "pick").trained().items():
            assert n.endswith(".w"), "members are not trained"
            w.copy_(torch.tensor([0.0, 1.0]))
    found = small.output(m)
    assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-9), (reading, str(method), str(record(m, "pick").method))
    return None


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_read_of_a_random_member_is_what_it_does(seed: int) -> None:
    try:
        method = unipelt.parse(text(seed))
    except unipelt.PeltError:
        return
    if method.trains or any("chance" in r.reads for r in method.rows):
        return  # copies take no part, and what is drawn differs from pass to pass
    for reading in READING:
        said = {what_it_does(method, kind, reading) for kind in KINDS}
        assert said <= {*REFUSED, None}


def test_most_random_methods_are_members() -> None:
    """So that the test above compares something."""
    found = 0
    for seed in SEEDS:
        try:
            method = unipelt.parse(text(seed))
        except unipelt.PeltError:
            continue
        found += not method.trains and what_it_does(method, "bert", "delta") is None
    assert found >= 5
