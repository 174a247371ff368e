"""Starting values: each distribution's bounds and moments, fans from the first size, draws that depend on
nothing else.
"""

from __future__ import annotations

import hashlib
import math

import pytest
import torch
from names import name
from small import model

import unipelt
from unipelt.compiler.initialise import draw
from unipelt.compiler import random
from unipelt.compiler.random import Counted, Generated, Source
from unipelt.language.report.diagnostics import PeltError
from unipelt.language.syntax.nodes import Number, String
from unipelt.language.types.values import Distribution


SOURCES = pytest.mark.parametrize("source", [Generated, Counted])


def start(
    what: str, *args: float, sizes: tuple[int, ...] = (768, 8), copies: tuple[int, ...] = (), seed: int = 0,
    source: type = Generated,
) -> torch.Tensor:  # fmt: skip
    return draw(Distribution(what, tuple(Number(a) for a in args)), copies, sizes, source(seed, "some.tensor"))


def test_kaiming_uniform_takes_its_fan_from_the_first_size() -> None:
    """nn.init on [d_in, r] takes the other one: a bound of .354 where it should be .036."""
    t = start("kaiming_uniform", math.sqrt(5))
    bound = 1 / math.sqrt(768)
    assert bound == pytest.approx(0.036, abs=1e-3)
    assert float(t.abs().max()) <= bound and float(t.abs().max()) > 0.99 * bound
    assert float(t.std()) == pytest.approx(bound / math.sqrt(3), rel=0.03)
    other = start("kaiming_uniform", math.sqrt(5), sizes=(8, 768))
    assert 0.99 / math.sqrt(8) < float(other.abs().max()) <= 1 / math.sqrt(8)


@pytest.mark.parametrize(
    ("what", "args", "mean", "std", "bound"),
    [
        ("zeros", (), 0, 0, 0),
        ("ones", (), 1, 0, 1),
        ("constant", (2.5,), 2.5, 0, 2.5),
        ("normal", (0.02,), 0, 0.02, None),
        ("normal", (3.0, 0.5), 3, 0.5, None),
        ("truncated_normal", (0.1,), 0, 0.1 * 0.8796, 0.2),
        ("uniform", (-1.0, 3.0), 1, 4 / math.sqrt(12), 3),
        ("kaiming_uniform", (0.0,), 0, math.sqrt(2 / 768), math.sqrt(6 / 768)),
        ("xavier_uniform", (), 0, math.sqrt(2 / 776), math.sqrt(6 / 776)),
        ("xavier_normal", (), 0, math.sqrt(2 / 776), None),
        ("torch_linear", (25.0,), 0, 0.2 / math.sqrt(3), 0.2),
    ],
)
@SOURCES
def test_moments_and_bounds(
    what: str, args: tuple[float, ...], mean: float, std: float, bound: float | None, source: type
) -> None:
    t = start(what, *args, source=source).double()
    error = max(std, 1e-9) / math.sqrt(t.numel())
    assert abs(float(t.mean()) - mean) < 4 * error
    assert float(t.std()) == pytest.approx(std, rel=0.03, abs=1e-9)
    if bound is not None:
        assert float(t.abs().max()) <= bound * (1 + 1e-6)
        assert float(t.abs().max()) >= 0.98 * bound


@SOURCES
def test_orthogonal_and_identity(source: type) -> None:
    for sizes in ((12, 5), (5, 12), (6, 6)):
        t = start("orthogonal", sizes=sizes, copies=(3,), source=source).double()
        small = min(sizes)
        gram = t.mT @ t if sizes[0] >= sizes[1] else t @ t.mT
        assert torch.allclose(gram, torch.eye(small, dtype=torch.float64).expand(3, -1, -1), atol=1e-5)
        assert (t[0] - t[1]).abs().max() > 0.1, "every copy is drawn on its own"
    assert torch.equal(start("identity", sizes=(4, 4), copies=(2,)), torch.eye(4).expand(2, 4, 4))


def test_copies_do_not_change_the_fan() -> None:
    assert float(start("kaiming_uniform", 0.0, sizes=(64, 4), copies=(50,)).abs().max()) <= math.sqrt(6 / 64)


@SOURCES
def test_draws_depend_on_seed_and_name_alone(source: type) -> None:
    d = Distribution("normal", (Number(1.0),))

    def one(seed: int, tensor: str) -> torch.Tensor:
        return draw(d, (), (5,), source(seed, tensor))

    torch.manual_seed(98)
    before = torch.get_rng_state()
    first = one(0, "a")
    torch.manual_seed(99)
    assert torch.equal(one(0, "a"), first)
    assert not torch.equal(one(1, "a"), first) and not torch.equal(one(0, "b"), first)
    state = torch.get_rng_state()
    one(0, "a")
    assert torch.equal(torch.get_rng_state(), state) and not torch.equal(before, state), (
        "the global generator is left alone"
    )


def test_counted_numbers_stay_for_ever() -> None:
    """Saved adapters have the seed of their frozen draws alone."""
    of = Counted(3, "vera.A")
    assert of.uniform((2,), 0.0, 1.0).tolist() == pytest.approx([0.5112397075, 0.8618636727], abs=1e-7)
    assert of.normal((2,)).tolist() == pytest.approx([1.2318840027, -1.3837465048], abs=1e-6)
    assert of.truncated((2,), 0.5).tolist() == pytest.approx([-0.0180944838, 0.5721415281], abs=1e-6)
    assert of.integers((3,), 1000).tolist() == [954, 346, 26] and of.permutation(6).tolist() == [1, 0, 4, 3, 5, 2]


def test_counted_numbers_are_those_of_splitmix() -> None:
    """Steele et al. 2014, in whole numbers of Python; the key is mixed once before the count."""

    def mixed(z: int) -> int:
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return z ^ (z >> 31)

    key = (int.from_bytes(hashlib.sha256(b"5:a.tensor").digest()[:8], "little") >> 1) - 2**62
    first = mixed(key % 2**64)
    wanted = [((mixed((first + i * 0x9E3779B97F4A7C15) % 2**64) >> 41) + 0.5) * 2.0**-23 for i in range(50)]
    assert Counted(5, "a.tensor").uniform((50,), 0.0, 1.0).tolist() == pytest.approx(wanted, abs=1e-7)


@pytest.mark.parametrize("what", [("normal", 1.0), ("uniform", 0.0, 1.0), ("integers", 1000)])
def test_counted_numbers_are_made_in_parts_and_do_not_repeat(what: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = start(*what, sizes=(1000,), source=Counted)
    monkeypatch.setattr(random, "_PART", 7)
    assert torch.equal(start(*what, sizes=(1000,), source=Counted), whole)
    assert what[0] == "integers" or len(whole.unique()) == 1000
    assert not torch.equal(start(*what, sizes=(1000,), source=Counted, seed=1), whole)
    with torch.device("meta"):
        assert torch.equal(start(*what, sizes=(1000,), source=Counted), whole)


def test_known_values_stay() -> None:
    """A change of these breaks `same seed, same tensors` for everyone who has a checkpoint's seed."""
    t = draw(
        Distribution("uniform", (Number(0.0), Number(1.0))), (), (3,), Generated(0, "encoder.layer.0.attn.q.lora.A")
    )
    assert t.tolist() == pytest.approx([0.718644738, 0.622855484, 0.245732069], abs=1e-8)


def test_word_embeddings_need_a_place_that_has_them() -> None:
    with pytest.raises(PeltError) as caught:
        start("sampled_tokens")
    assert caught.value.diagnostics[0].code == "E0520"
    seen = []

    def embeddings(d: Distribution, rows: int, g: Source) -> torch.Tensor:
        seen.append((d.name, rows))
        return torch.arange(rows * 2.0).reshape(rows, 2) + len(seen)

    t = draw(Distribution("tokens", (String("a text"),)), (2,), (3, 2), Generated(0, "x"), embeddings)
    assert seen == [("tokens", 3)] and t.shape == (2, 3, 2) and torch.equal(t[0], t[1])
    t = draw(Distribution("sampled_tokens"), (), (4, 3, 2), Generated(0, "x"), embeddings)
    assert len(seen) == 5 and t.shape == (4, 3, 2) and not torch.equal(t[0], t[1]), (
        "each of several prompts has its own"
    )


# ---------------------------------------------------------------- in a model


def attached(order: list[str], seed: int = 0) -> dict[str, torch.Tensor]:
    m = model("bert")
    for n in order:
        unipelt.apply(m, unipelt.load(name(n)), name=n, seed=seed)
    return {f"{n}:{k}": t.clone() for n in order for k, t in unipelt.state_dict(m, n).items()}


def test_the_same_seed_gives_the_same_tensors_whatever_else_is_attached() -> None:
    alone = attached(["lora"])
    beside = attached(["prefix_tuning", "lora", "pfeiffer"])
    assert alone and all(torch.equal(t, beside[n]) for n, t in alone.items())
    other = attached(["lora"], seed=1)
    drawn = [n for n, t in alone.items() if t.abs().max() > 0]
    assert drawn and not any(torch.equal(alone[n], other[n]) for n in drawn)
    assert len({t.flatten()[0].item() for n, t in alone.items() if n in drawn}) == len(drawn), "no two draws are alike"


def test_the_order_of_sites_does_not_matter() -> None:
    def tensors(sites: str) -> dict[str, torch.Tensor]:
        m = model("bert")
        text = f"method m {{ modify {sites} insert parallel form {name('low_rank')}(4) compose {name('add')} }}"
        unipelt.apply(m, unipelt.parse(text))
        return unipelt.state_dict(m)

    one, two = tensors("attn.q, attn.v"), tensors("attn.v, attn.q")
    assert set(one) == set(two) and all(torch.equal(one[n], two[n]) for n in one)


def test_exact_starts_and_learned_zero() -> None:
    m = model("bert")
    text = f"""method m {{ modify attn.q insert parallel
      form {{ A: [d_in, 2] ~ zeros B: [2, d_out] ~ ones n: [d_out] = norm(W, 0)
             delta = z @ A @ B + 0 * n }} compose {name("add")} }}"""
    unipelt.apply(m, unipelt.parse(text))
    tensors = unipelt.state_dict(m)
    W = m.encoder.layer[1].attention.self.query.weight.detach()
    assert torch.allclose(tensors["encoder.layer.1.attn.q.m.n"], W.norm(dim=1), atol=1e-6)
    assert bool((tensors["encoder.layer.1.attn.q.m.B"] == 1).all())
