"""No two methods of the library are one method without a reason: by the normal form, all pairs, in seconds.

Two levels: methods that mean the same at their defaults (but for how tensors start), and methods that are one form with
other numbers, sizes or activations. A pair belongs to the library only if it is explained here; else the second is an
argument of the first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from functools import lru_cache

import pytest
from names import RENAMED, methods

import unipelt
from unipelt.language.analyse.canonical import Canonical, canonical
from unipelt.language.analyse.meaning import meaning

pytestmark = pytest.mark.skipif(bool(RENAMED), reason="a name decides nothing here that it does not decide elsewhere")

#: Groups that mean the same, and why each of its members is there.
SAME = {
    ("first_head", "probing_cls"): "a head that other methods add, and the published probe that is this head alone",
    ("mean_head", "probing_mean"): "a head that other methods add, and the published probe that is this head alone",
}
#: Groups that differ in numbers, sizes or activations only, besides those of `SAME`.
NUMBERS = {
    ("adapt_former", "scaled_parallel_adapter"): "two published names of one form, of other sizes and scale",
    ("lora", "rslora"): "the scale is another function of the rank, as published under its own name",
    ("shira", "shira_r"): "the number of entries is a share of the weight, as published, or a rank's, as in peft",
    (
        "shira_wm",
        "super_tuning",
    ): "the largest entries, found twice: by SHiRA as one of its masks, by super-tuning as the method",
    (
        "surm_circulant",
        "surm_toeplitz",
    ): "a Toeplitz matrix is a part of a circulant one of twice the size: only the size differs",
    (
        "miss_mini",
        "mora",
    ): "pieces of the input summed, a map, its outputs repeated: found twice, with other sizes of the pieces",
    ("mhr", "polytropon"): "the one routes each of several parts of the widths by itself; one part is the other",
    ("p_tuning_v2", "prefix_tuning"): "the one is the other with dropout on keys and values, which is 0 by default",
}


@lru_cache(maxsize=1)
def forms() -> dict[str, tuple[Canonical, Canonical]]:
    """Of each method what it means at its defaults, and its skeleton."""
    found = {n: meaning(unipelt.load(n)) for n in methods()}
    return {n: (canonical(m, starts=False), canonical(m, erase=True)) for n, m in found.items()}


def groups(key: Callable[[str], Hashable]) -> set[tuple[str, ...]]:
    """The methods that have a key in common, where several have."""
    alike: dict[Hashable, list[str]] = defaultdict(list)
    for n in forms():
        alike[key(n)].append(n)
    return {tuple(sorted(g)) for g in alike.values() if len(g) > 1}


def lines(c: Canonical) -> Hashable:
    """Everything of a form but from which distribution its trained tensors are drawn. A start that is computed is the method."""
    tensors = tuple(
        (t.text, t.start if t.text.startswith("frozen") or t.start.startswith("=") else "") for t in c.tensors
    )
    return tuple((line.what, line.text) for line in c.sites), tensors, c.trains, c.inputs


def meant(name: str) -> Hashable:
    return lines(forms()[name][0])


def shape(name: str) -> Hashable:
    return lines(forms()[name][1])


def test_methods_that_mean_the_same_are_explained() -> None:
    assert groups(meant) == set(SAME)


def test_methods_that_differ_in_numbers_only_are_explained() -> None:
    assert groups(shape) == set(SAME) | set(NUMBERS)


def test_the_normal_form_tells_and_joins() -> None:
    """Written otherwise it is found, and with another composition it is not."""
    texts = {
        "a": "method a(r: int = 4) { modify ffn insert parallel form { A: [d_in, r] ~ zeros B: [r, d_out] ~ zeros delta = z @ A @ B } compose h + 2.0 * delta }",
        "b": "method b(k: int = 4) { modify ffn insert parallel form { U: [d_in, k] ~ ones V: [k, d_out] ~ zeros delta = z @ (2.0 * U @ V) } compose add }",
        "c": "method c(r: int = 4) { modify ffn insert sequential form { A: [d_in, r] ~ zeros B: [r, d_out] ~ zeros delta = z @ A @ B } compose h + 2.0 * delta }",
    }
    found = {n: lines(canonical(meaning(unipelt.parse(t)), starts=False)) for n, t in texts.items()}
    assert found["a"] == found["b"] != found["c"]
