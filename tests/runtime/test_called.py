"""What a method calls its tensors, lets, inputs, axes and rows makes no difference to what it computes and saves."""

from __future__ import annotations

import builtins
import keyword
from pathlib import Path

import pytest
import torch
from small import inputs, model, output, randomise, state
from torch import nn

import unipelt
from unipelt.language.syntax.parser import parse
from unipelt.runtime.edits import Edit
from unipelt.runtime.registry import record

#: Names of one's own that are attributes of modules, words of Python, or what the runtime calls something else.
WORDS = ["tensor_A", "torch", "F", "math", "nn", "self", "mask", "places", "rows", "lead", "given", "__debug__", "None"]
ATTRIBUTES = sorted(
    n
    for n in {
        *dir(Edit),
        *dir(nn.Linear(1, 1)),
        "row",
        "site",
        "part",
        "axes",
        "constants",
        "scalars",
        "shared",
        "lowered",
        "type",
    }
)
#: Where a name stands in a method. The tensor A comes behind it, so that `tensor_A` could be taken for it.
PLACES = {
    "tensor": "form { ?: [d_in, 2] ~ normal(1)  A: [2, d_out] ~ normal(1)  delta = z @ ? @ A } compose h + delta",
    "shared": "form { ?: [d_in, 2] ~ normal(1) per model  A: [2, d_out] ~ normal(1) per model  delta = z @ ? @ A } compose h + delta",
    "frozen": "form { frozen ?: [d_in, 2] ~ normal(1)  A: [2, d_out] ~ normal(1)  delta = z @ ? @ A } compose h + delta",
    "let": "form { A: [d_in, d_out] ~ normal(1)  ? = z @ A  delta = ? } compose h + delta",
    "of the composition": "form { A: [d_in, d_out] ~ normal(1)  delta = z @ A } compose { ?: [d_out] ~ normal(1)  out = h + ? * delta }",
    "input": "form { input ?: index(3)  b: [3, d_out] ~ normal(1)  delta = b[?] } compose h + delta",
}


def words() -> list[str]:
    """Those that are words of the language are left out: nothing can be called so."""
    found = []
    for n in dict.fromkeys((*WORDS, *ATTRIBUTES, *keyword.kwlist, *(b for b in dir(builtins) if len(b) < 5))):
        try:
            parse(f"form f {{ {n} = z }}", "x.pelt")
            found.append(n)
        except unipelt.PeltError:
            continue
    return found


def computed(place: str, name: str, folder: Path) -> torch.Tensor:
    """What a model puts out with the method, after saving it and attaching it to another."""
    m, base = model("bert"), model("bert")
    more = {name: torch.tensor([0, 2, 1])} if place == "input" else {}
    unipelt.apply(
        m, unipelt.parse(f"method m {{ modify attn.q, attn.v insert parallel {PLACES[place].replace('?', name)} }}")
    )
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():  # by place, not by name
        for t in record(m, "default").values().values():
            t.copy_(torch.randn(t.shape, generator=g) * 0.3)
    found = output(m, **inputs(), **more)
    unipelt.save(m, folder / place)
    unipelt.attach(base, folder / place)
    assert torch.equal(output(base, **inputs(), **more), found)
    return found


@pytest.mark.sampled(2)
@pytest.mark.parametrize("place", PLACES)
def test_a_name_makes_no_difference(place: str, tmp_path: Path) -> None:
    expected = computed(place, "a_", tmp_path)
    tried = words()
    assert len(tried) > 150
    hard = [n for n in (*WORDS, "row", "site", "type", "half", "to", "class") if n in tried]
    others = [n for n in tried if n not in hard]
    for name in (*hard, *others[list(PLACES).index(place) :: 60]):
        if name in ("W", "bias") or (place == "input" and name == "self"):
            continue  # names of the site, and the model's own argument
        assert torch.equal(computed(place, name, tmp_path), expected), name


def test_an_input_cannot_be_called_as_the_first_argument_of_every_method() -> None:
    m = model("bert")
    before = state(m)
    text = PLACES["input"].replace("?", "self")
    with pytest.raises(unipelt.PeltError) as caught:
        unipelt.apply(m, unipelt.parse(f"method m {{ modify attn.q insert parallel {text} }}"))
    assert [d.code for d in caught.value.diagnostics] == ["E0738"] and state(m) == before


@pytest.mark.parametrize("name", ["site", "layer", "model", "true", "training", "chance"])
def test_an_axis_is_not_called_as_what_stands_where_axes_do(name: str) -> None:
    with pytest.raises(unipelt.PeltError) as caught:
        unipelt.parse(
            f"method m {{ modify ffn insert parallel form {{ axis {name} = 2  delta = z }} compose h + delta }}"
        )
    assert [d.code for d in caught.value.diagnostics] == ["E0224"]


def test_a_state_dict_with_the_names_of_earlier_versions_is_read_whole() -> None:
    """Tensors were registered as a method calls them."""
    method = unipelt.parse(f"method m {{ modify attn.q insert parallel {PLACES['tensor'].replace('?', 'tensor_A')} }}")
    m, other = model("bert"), model("bert")
    unipelt.apply(m, method)
    unipelt.apply(other, method, seed=5)
    randomise(m)
    now = m.state_dict()
    assert any(n.endswith(".tensor_tensor_A") for n in now) and set(unipelt.state_dict(m)) == {
        f"encoder.layer.{i}.attn.q.m.{t}" for i in range(3) for t in ("A", "tensor_A")
    }
    former = {n.replace(".tensor_", ".", 1) if ".tensor_" in n else n: t for n, t in now.items()}
    assert set(former) != set(now)
    for kept in (former, now):
        fresh = model("bert")
        unipelt.apply(fresh, method, seed=5)
        fresh.load_state_dict(kept)
        assert torch.equal(output(fresh), output(m)) and not torch.equal(output(other), output(m))
