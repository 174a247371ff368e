"""What a method is recognised as, it is: checked by number with the tensors laid upon each other."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from names import RENAMED, members, methods, name as named
from names import spec
from numbers_of import distance, outputs

from unipelt.language.syntax import nodes as S
from unipelt.language.analyse.canonical import Leaf, canonical
from unipelt.language.ir import Method
from unipelt.language.loading import definition, load, parse
from unipelt.language.analyse.meaning import bound, meaning
from unipelt.language.check.space import space_of
from unipelt.language.sizes import Size
from unipelt.resources import folder
from unipelt.variants import catalogue
from unipelt.variants.generate import generate
from unipelt.variants.operators import neighbours
from unipelt.variants.recognise import Match, recognise
from unipelt.variants.solve import solve

METHODS = members()


def claimed(match: Match, sites: tuple) -> Method:
    """The method that a match speaks of, put at the sites it names; ``gelu for relu`` is carried out."""
    known = load(match.name)(**match.arguments)
    if match.activation:
        new, old = match.activation
        known = S.rewrite(known, lambda n: S.Name(new) if n == S.Name(old) else n)
    row = known.rows[0]
    return replace(known, rows=(replace(row, sites=sites if match.sites else row.sites, gate=None),), trains=())


def biases(method: Method) -> frozenset[str]:
    """The numbers of the learned vectors that start at 0 and are only added."""
    found = canonical(meaning(method), erase=True)
    texts = " ".join(line.text for line in found.sites)
    return frozenset(
        t.what for t in found.tensors
        if re.fullmatch(r"\[#\]( per .*)?", t.text) and t.start.startswith("~ zeros") and not re.search(rf"[@(] *{t.what}\b|\b{t.what} [@]", texts)
    )  # fmt: skip


def check(method: Method, match: Match) -> None:
    row = replace(method.rows[0], gate=None)
    mine = replace(method, rows=(row,), trains=())
    theirs = claimed(match, row.sites)
    if match.biases:
        # the one has vectors that the other lacks: they are 0, and the others get their values in the same order
        one, two = outputs_without(mine), outputs_without(theirs)
        assert distance(one, two) < 1e-10, match
        return
    orders = [canonical(meaning(m), erase=True) for m in (mine, theirs)]  # starts have no part in it
    assert distance(outputs(mine, orders[0]), outputs(theirs, orders[1])) < 1e-10, match


def outputs_without(method: Method):
    zero = biases(method)
    found = canonical(meaning(method), erase=True)
    # numbers count on without the vectors, so that both methods' matrices get the same values
    kept = [k for i, k in enumerate(found.keys, 1) if f"t{i}" not in zero]
    gone = [k for i, k in enumerate(found.keys, 1) if f"t{i}" in zero]
    order = replace(found, keys=(*kept, *gone))
    return outputs(method, order, frozenset(f"t{i}" for i in range(len(kept) + 1, len(found.keys) + 1)))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_the_library_is_recognised(method):
    found = recognise(load(method))
    twins = {named("probing_cls"): named("first_head"), named("probing_mean"): named("mean_head")}
    own = twins.get(method, method)
    if len(load(method).rows) <= 1:
        assert found.whole is not None and found.whole.exact and found.whole.name == own and not found.whole.arguments
        assert found.sentence == f"this is {own}"
    else:
        assert own in found.sentence or "replaced" in found.sentence


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("method m { use lora(r = 4, alpha = 4.0) }", "this is lora(alpha = 4.0, r = 4)"),
        ("method m { modify ffn.up insert parallel form low_rank(8) compose add }", "this is lora(alpha = 8.0) at ffn.up"),
        ("method m { modify ffn insert parallel form bottleneck(64, gelu) compose add }",
         "this is parallel_adapter(act = gelu) at ffn with other starts"),
        ("method m { use prefix_tuning(3) as prefix use parallel_adapter { modify ffn } }",
         "mam with its prefix replaced by prefix_tuning(l = 3)"),
        ("method m { use prefix_tuning_mlp(30, 800) as prefix use lora as adapter }", "mam with its adapter replaced by lora"),
        ("method m { use lora gated by token_gate }", "this is lora, gated by token_gate"),
        ("method m { modify attn.heads insert parallel form bottleneck(64) compose add }",
         "this is multi_head_parallel_adapter with biases, with other starts"),
        ("method m { train *.bias }", "this is bitfit"),
        ("method m { use pfeiffer { layers first 2 } }", "this is pfeiffer, in layers first 2"),
        ("method m { use pfeiffer(48) }", "this is pfeiffer"),
        ("method m { use llama_adapter(4) { layers all } }", "this is llama_adapter(l = 4), in every layer"),
        ("method m(k: int = 2) { use llama_adapter { layers last k } }", "this is llama_adapter, in layers last 2"),
        ("method m { use adapter { insert sequential } }", "this is adapter"),
        ("method m { modify attn, ffn insert sequential form bottleneck(64, gelu, init_down = truncated_normal(0.001), "
         "init_up = truncated_normal(0.001)) compose add }", "this is adapter, without training *.norm.*"),
        ("method m { use lora train head, *.bias }", "this is lora, training *.bias, head"),
        ("method m { use partial(2, 0.2) }", "training block in layers last 2 at a rate of 0.2"),
        ("method m { layers last 2 train block lr 0.1 }", "this is partial"),
        ("method m { use mamba_lora_partial(gate = true) }", "this is mamba_lora_partial(gate = true)"),
        ("method m { use lily(k = 2) }", "this is lily(k = 2)"),
        ("method m { use oft_v2(k = 5, b = 16) }", "this is oft_v2(k = 5, b = 16)"),
        ("method m { use pro_lora(9, 3) }", "this is pro_lora(r = 9, u = 3)"),
        ("method m { use coft(16, 0.001) }", "this is coft(b = 16, eps = 0.001)"),
        ("method m { use mola(n = 2 + floor(4 * layer / depth)) }", "this is mola(n = floor(4 * layer / depth) + 2)"),
        ("method m { use llama_adapter_mm(views = 3, d_image = 512) }", "this is llama_adapter_mm(d_image = 1536)"),
        ("method m { use ra_sa(6, 2) }", "this is ra_sa(k = 2, r = 6)"),
        ("method m { use mam }", "this is mam"),
        ("method m { use mam(r = 16) }", "this is mam up to its arguments"),
        ("method m { use unipelt_apl_causal }", "this is unipelt_apl_causal"),
        ("method m { use mam train *.bias }", "this is mam up to its arguments, training *.bias"),
    ],
)  # fmt: skip
def test_sentences(text, sentence):
    found = recognise(parse(spec(text))).sentence
    assert found == spec(sentence) or set(re.findall(r"\w+", found)) == set(re.findall(r"\w+", spec(sentence)))


def test_factors_and_summands_that_read_the_same_stand_in_any_order() -> None:
    """Of products and sums whose parts differ in activations and numbers only."""
    form = "A: [d_in, d_out] ~ normal(0.1) delta = {}"
    texts = ["relu(z @ A) * tanh(z @ A)", "sigmoid(z @ A) + 0.5 * tanh(z @ A)", "(z @ A) ** 2 + (z @ A) ** 3"]
    for text in texts:
        method = parse(f"method m {{ modify ffn insert parallel form {{ {form.format(text)} }} compose add }}")
        assert recognise(method).whole is None
    k = Leaf("size", Size.of("k"))
    one, two = (Leaf("number", Size.of(n)) for n in (3, 4))
    more = Leaf("number", Size.of("k") + 1)
    pattern = (Leaf("any", ((Leaf("number", k.value),), (more,))), Leaf("number", k.value * k.value))
    nine, sixteen = (Leaf("number", Size.of(n)) for n in (9, 16))
    params = {p.name: p for p in parse("method m(k: int = 1) { train head }").params}
    for order in (((one,), (two,)), ((two,), (one,))):
        mine = Leaf("any", order)
        found = solve(list(zip(pattern, (mine, nine))), params)
        assert found is not None and found.arguments == {"k": 3}
        assert solve(list(zip(pattern, (mine, sixteen))), params) is None


LORA = "method m {{ modify attn.q, attn.v insert parallel form {{ {} delta = z @ A @ B }} compose h + 2 * delta }}"


def test_what_starts_or_is_called_otherwise_is_not_the_method() -> None:
    """LoRA with the zeros in its first matrix, one that asks for an argument, MAM with an adapter that starts otherwise."""
    exchanged = recognise(parse(LORA.format("A: [d_in, 8] ~ zeros B: [8, d_out] ~ kaiming_uniform(sqrt(5))")))
    assert exchanged.sentence == spec("this is lora with other starts")
    asking = "input a: index(3) A: [d_in, 8] ~ kaiming_uniform(sqrt(5)) B: [8, d_out] ~ zeros"
    assert recognise(parse(LORA.format(asking))).whole is None
    mam = "use prefix_tuning_mlp(30, 800) as prefix use scaled_parallel_adapter as adapter { form bottleneck(512, relu, normal(1.0), normal(3.0)) }"
    found = recognise(parse(spec(f"method m {{ {mam} }}")))
    assert found.sentence == spec("mam with its adapter replaced by scaled_parallel_adapter with other starts")


def test_a_method_that_is_new_is_called_new():
    found = recognise(parse(spec("method m { modify block insert sequential form low_rank(4) compose rescale }")))
    assert found.whole is None and found.sentence.startswith("new: modify block")


def test_nothing_in_a_large_space_is_mistaken():
    """Every member of the space that is said to be a known method computes what that method computes."""
    found, names = definition("examples/spaces/unified_view.pelt")
    g = generate(space_of(found, names))
    claims = [m for m in g.members if m.recognised.whole is not None]
    assert len(g.members) >= 150 and len(claims) >= 25
    for m in claims:
        check(m.method, m.recognised.whole)
    said = {m.recognised.whole.name for m in claims}
    assert {
        named(n)
        for n in ("prefix_tuning", "parallel_adapter", "scaled_parallel_adapter", "multi_head_parallel_adapter", "lora")
    } <= said


def test_the_check_sees_a_mistake():
    """A claim with a wrong argument, site or activation is refuted by the numbers."""
    method = parse(spec("method m { modify ffn insert parallel form bottleneck(64, gelu) compose scaled(4.0) }"))
    right = recognise(method).whole
    assert right is not None
    check(method, right)
    for wrong in (
        replace(right, arguments={**right.arguments, "s": 3.0}),
        replace(right, arguments={**right.arguments, "act": "tanh"}),
    ):
        with pytest.raises(AssertionError):
            check(method, wrong)


def test_the_nearest_of_a_neighbour_is_where_it_came_from() -> None:
    """Methods that differ in their layers or their gate only stand behind the one that has neither."""
    parent = named("pfeiffer")
    found, names = definition(parent)
    members = generate(*(space_of(d, names, one=True) for d in neighbours(found, names, None))).members
    new = [m.sentence for m in members if "nearest:" in m.sentence]
    assert new and all(f"nearest: {parent}, which differs in" in s for s in new), new


@pytest.mark.skipif(bool(RENAMED), reason="renamed specs have no catalogue")
def test_the_catalogue_is_of_these_specs() -> None:
    written = (folder("specs") / catalogue.FILE).read_text(encoding="utf-8")
    assert written == catalogue.generate(), "write it anew: python -m unipelt.variants.catalogue"


def test_without_a_catalogue_the_same_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    found = catalogue.catalogue()
    monkeypatch.setattr(catalogue, "FILE", "no such file")
    catalogue.catalogue.cache_clear()
    assert catalogue.catalogue() == found
    catalogue.catalogue.cache_clear()


@pytest.mark.skipif(bool(RENAMED), reason="a name decides nothing here that it does not decide elsewhere")
def test_every_method_of_the_library_is_recognised_as_itself_or_as_one_that_means_the_same() -> None:
    """A row with a declared axis, one whose sizes are rounded, one that selects tokens: whatever the library has."""
    lost = {}
    for name in methods():
        found = recognise(bound(load(name)))
        if found.whole is None or not found.whole.plain:
            lost[name] = found.sentence
    assert not lost
