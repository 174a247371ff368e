"""Spaces: counted, sampled, written; what is dropped is said; the members work like any other method."""

from __future__ import annotations

import json

import pytest
import torch
from names import name as named
from names import spec

import unipelt
from unipelt.language.analyse.canonical import difference
from unipelt.language.library import library_definition
from unipelt.language.check.names import Names
from unipelt.language.loading import check, definition
from unipelt.language.syntax.parser import parse as parse_file
from unipelt.variants.budget import size_arguments, solve
from unipelt.variants.generate import generate
from unipelt.variants.operators import cross, neighbours, vary
from unipelt.language.check.space import space_of
from unipelt.variants.write import file_of, write

AROUND_MAM = spec("""
method around_mam(r: int = 64, l: int = 30) {
  modify  attn | ffn | attn.heads
  insert  sequential | parallel
  form    bottleneck(r) | low_rank(r) | attend(l)
  compose add | scaled(4.0) | share_softmax
  require params <= 1%
}""")


def space(text: str, one: bool = False):
    file = parse_file(spec(text))
    return space_of(
        file.definitions[-1],
        Names({(d.kind if d.kind == "method" else d.what, d.name): d for d in file.definitions}),
        one,
    )


def known(name: str):
    return library_definition("method", named(name))


def test_around_mam_has_27_legal_distinct_members_of_54():
    g = generate(space(AROUND_MAM))
    assert (g.size, g.tried, len(g.members), len(g.dropped), len(g.twins)) == (54, 54, 27, 24, 3)
    assert {n for _, n, _ in g.reasons()} == {12, 6}
    assert all(d.diagnostic.code in ("E0301", "E0347") for d in g.dropped)
    # a prefix does not read z, so how it is inserted makes no difference
    assert all(dict(t.columns)["form"].startswith(spec("attend")) for t in g.twins)


def test_from_three_methods_the_unified_view_is_found():
    """From adapter, prefix tuning and LoRA alone, over the four columns, the paper's new methods come out and are named."""
    text = """method three(r: int = 64, l: int = 30) {
      modify attn, ffn | ffn | attn.heads | attn.q, attn.v
      insert sequential | parallel
      form bottleneck(r, relu) | low_rank(r) | attend(l)
      compose add | scaled(4.0) | share_softmax
    }"""
    names = {m.recognised.whole.name for m in generate(space(text)).members if m.recognised.whole is not None}
    assert names >= {
        named(n)
        for n in ("parallel_adapter", "multi_head_parallel_adapter", "scaled_parallel_adapter", "prefix_tuning", "lora")
    }


def test_cross_of_scaled_parallel_adapter_and_prefix_tuning_finds_mams_parts():
    g = generate(space_of(cross(known("scaled_parallel_adapter"), known("prefix_tuning"), Names()), Names()))
    found = {m.sentence for m in g.members}
    assert {f"this is {named('scaled_parallel_adapter')}", f"this is {named('prefix_tuning')}"} <= found and len(
        g.members
    ) == 4


def test_arguments_may_be_alternatives_too():
    g = generate(
        space(
            "method m(r: int in {2, 4}, act: activation in {relu, tanh}) { modify ffn insert parallel form bottleneck(r, act) compose add }"
        )
    )
    assert [m.name for m in g.members] == ["r2_actrelu", "r2_acttanh", "r4_actrelu", "r4_acttanh"]
    assert [m.method.arguments["r"] for m in g.members] == [2, 2, 4, 4]


def test_a_space_of_a_million_is_sampled_without_being_made():
    sites = " | ".join(
        ["attn", "ffn", "block", "attn.q", "attn.k", "attn.v", "attn.o", "ffn.up", "ffn.down", "ffn.hidden"]
    )
    ranks = ", ".join(map(str, range(1, 101)))
    text = f"""method large(r: int in {{{ranks}}}, s: int in {{{ranks}}}) {{
      modify {sites} insert parallel | sequential form bottleneck(r) | low_rank(r) compose scaled(s) | add | rescale | h - s * delta | h * s + delta
    }}"""
    big = space(text)
    assert len(big) == 100 * 100 * 10 * 2 * 2 * 5
    a, b = generate(big, sample=60, seed=3), generate(big, sample=60, seed=3)
    assert a.tried == 60 and [m.index for m in a.members] == [m.index for m in b.members]
    assert [m.index for m in a.members] != [m.index for m in generate(big, sample=60, seed=4).members]


def test_a_broken_requirement_drops_a_member_with_its_reason():
    text = 'method m(r: int in {3, 4}) { modify ffn insert parallel form { require divides(r, 12), "r divides twelve" A: [d_in, r] ~ zeros B: [r, d_out] ~ zeros delta = z @ A @ B } compose add require r > 3, "r is large" }'
    g = generate(space(text))
    assert [m.method.arguments["r"] for m in g.members] == [4]
    assert [(r, n) for r, n, _ in g.reasons()] == [("E0360: r is large", 1)]


def test_members_are_files_that_check(tmp_path):
    text = """
    compose halved = h + 0.5 * delta
    form twice(r: int) { A: [d_in, r] ~ zeros  B: [r, d_out] ~ zeros  delta = 2 * z @ A @ B }
    method mine(r: int = 3, unused: int = 2) { modify ffn | attn  insert parallel  form twice(r) | bottleneck(r)  compose halved | add }
    """
    s = space(text)
    g = generate(s)
    files = write(g.members, s.names, tmp_path / "out")
    assert len(files) == len(g.members) == 8
    for file, m in zip(files, g.members):
        ((checked, *_),) = [[c for c in check(file) if c.kind == "method"]]
        assert not checked.diagnostics
        assert unipelt.load(file, m.name).rows == m.method.rows
        assert "unused" not in file.read_text() and m.sentence[1:] in file.read_text()
    with pytest.raises(unipelt.PeltError, match="E0801"):
        write(g.members, s.names, tmp_path / "out")


def test_vary_and_neighbours():
    g = generate(
        space_of(
            vary(known("mam"), Names(), {"form": [spec("attend(l)"), spec("attend_mlp(l, mid)")]}, row="prefix"),
            Names(),
        )
    )
    assert [m.sentence for m in g.members] == [
        f"{named('mam')} with its prefix replaced by {named('prefix_tuning')}",
        f"this is {named('mam')}",
    ]
    with pytest.raises(unipelt.PeltError, match="has 2 rows"):
        vary(known("mam"), Names(), {"insert": ["parallel"]})
    spaces = neighbours(known("ia3"), Names())
    assert {c.what for d in spaces for c in space_of(d, Names(), one=True).choices} == {"modify", "form", "compose"}
    assert sum(len(generate(space_of(d, Names(), one=True)).members) for d in spaces) > 15


def test_a_method_that_uses_a_space_is_refused():
    with pytest.raises(unipelt.PeltError, match="E0220"):
        unipelt.parse(AROUND_MAM + "\nmethod m { use around_mam }", "m")


def test_one_method_is_no_space():
    with pytest.raises(unipelt.PeltError, match="E0800"):
        space_of(known("lora"), Names())


# ---------------------------------------------------------------- on models


@pytest.fixture(scope="module")
def models():
    from small import model

    return {kind: model(kind) for kind in ("bert", "gpt2", "llama")}


def test_equal_budgets(models):
    m = models["bert"]

    def count(method):
        return unipelt.plan(m, method).counts.trained

    for target in (3000, 5000, 20000):
        for name, size in {"parallel_adapter": "r", "lora": "r", "prefix_tuning": "l", "pfeiffer": "r"}.items():
            method = solve(unipelt.load(named(name)), target, count, size)
            found = count(method)
            assert size in size_arguments(method)
            value = method.arguments[size]
            near = [count(method(**{size: v})) for v in (value - 1, value + 1) if v > 0]
            assert all(abs(found - target) <= abs(n - target) for n in near)
    with pytest.raises(unipelt.PeltError, match="no argument"):
        solve(unipelt.load(named("bitfit")), 100, count)
    with pytest.raises(unipelt.PeltError, match="even with"):
        solve(unipelt.load(named("parallel_adapter")), 10, count, "r")


@pytest.mark.parametrize("name, size, target", [
    ("oft", "b", 1000), ("hra", "r", 700), ("compacter", "r", 1500), ("shira", "one_in", 900), ("c3a", "b", 1000),
])  # fmt: skip
def test_budgets_of_sizes_that_must_divide_a_width_or_that_make_a_method_smaller(name, size, target, models):
    def count(method):
        return unipelt.plan(models["bert"], method).counts.trained

    method, away, refused = unipelt.load(named(name)), [], 0
    for n in range(1, 33):
        try:
            away.append(abs(count(method(**{size: n})) - target))
        except unipelt.PeltError:
            refused += 1
    assert (refused == 0) == (name == "shira")
    assert abs(count(solve(method, target, count, size)) - target) == min(away) < target / 2


def test_a_method_that_no_size_makes_possible_says_why(models, tmp_path):
    file = tmp_path / "m.pelt"
    file.write_text(
        spec("method m(r: int = 2) { require r < 1 modify ffn insert parallel form low_rank(r) compose add }")
    )
    with pytest.raises(unipelt.PeltError, match="E0360"):
        solve(unipelt.load(file), 100, lambda m: unipelt.plan(models["bert"], m).counts.trained)


@pytest.mark.parametrize("turn, kind", [*enumerate(["bert", "gpt2", "llama"])])
def test_every_member_of_a_large_space_takes_a_training_step(turn, kind, models):
    from small import inputs, randomise

    found, names = definition("examples/spaces/unified_view.pelt")
    members = generate(space_of(found, names)).members
    assert len(members) >= 150
    m, batch = models[kind], inputs()
    for member in members[turn::6]:
        unipelt.apply(m, member.method(**{k: 3 for k in ("r", "l") if k in member.method.arguments}), seed=1)
        randomise(m)  # some crossings start dead, such as h * 0
        before = {n: t.clone() for n, t in unipelt.state_dict(m).items()}
        groups = unipelt.parameter_groups(m, "default", 0.1)
        optimizer = torch.optim.SGD([p for g in groups for p in g["params"]], lr=0.1)
        m(**batch)[0].square().mean().backward()
        optimizer.step()
        after = unipelt.state_dict(m)
        assert all(torch.isfinite(t).all() for t in after.values()), member.name
        assert any(not torch.equal(after[n], before[n]) for n in after), member.name
        unipelt.remove(m, "default")
        m.zero_grad()


def test_the_command_line(tmp_path, monkeypatch, capsys):
    from unipelt.cli import show, spaces

    file = tmp_path / "s.pelt"
    file.write_text(AROUND_MAM)
    spaces.generate(str(file), asked=spaces.SpaceOptions(tmp_path / "out"), as_json=True)
    said = json.loads(capsys.readouterr().out)
    assert (said["size"], said["kept"], said["dropped"], said["duplicates"]) == (54, 27, 24, 3)
    assert len(list((tmp_path / "out").iterdir())) == 27
    assert not show.equal_methods(named("lora"), named("rslora"), True)
    assert show.equal_methods(named("mean_head"), named("probing_mean"), True)


def test_requirements_are_asked_of_the_size_that_meets_the_budget(models, tmp_path, capsys):
    """r = 64 breaks both; the r that trains about 1,000 parameters breaks neither."""
    from unipelt.cli import spaces

    file = tmp_path / "s.pelt"
    file.write_text(
        spec("""method m(r: int = 64) {
      require params <= 20%
      require r <= 8, "too large"
      modify attn | ffn insert parallel form low_rank(r) compose add
    }""")
    )
    models["bert"].config.save_pretrained(tmp_path / "model")
    asked = spaces.SpaceOptions(model=str(tmp_path / "model"), params="1000")
    spaces.generate(str(file), asked=asked, as_json=True)
    assert json.loads(capsys.readouterr().out)["kept"] == 2
    with pytest.raises(unipelt.PeltError, match="E0360"):
        spaces.generate(str(file), asked=spaces.SpaceOptions(model=str(tmp_path / "model")), as_json=True)


def test_files_hold_only_what_they_need():
    s = space("form a(r: int) { A: [d_in, r] ~ zeros B: [r, d_out] ~ zeros delta = z @ A @ B } form b { delta = z } "
              "method m(r: int = 2) { modify ffn | attn insert parallel form a(r) compose add }")  # fmt: skip
    text = file_of(generate(s).members[0], s.names)
    assert "form a" in text and "form b" not in text


# ---------------------------------------------------------------- several spaces, what stands around the rows, mistakes


def test_several_spaces_are_one():
    """A member of one space that means what a member of another means is kept once; names stay apart."""
    a = space("method a { modify ffn | attn insert parallel form low_rank(4) compose add }")
    b = space("method b { modify ffn insert parallel | sequential form low_rank(4) compose add }")
    g = generate(a, b)
    assert (g.size, g.tried, len(g.members), len(g.twins)) == (4, 4, 3, 1)
    assert len({m.name for m in g.members}) == 3 and g.twins[0].of == g.members[0].name
    drawn = generate(a, b, sample=3, seed=1)
    assert drawn.tried == 3 and len(drawn.members) + len(drawn.twins) == 3


def test_the_origin_is_no_member():
    s = space("method a { modify ffn | attn insert parallel form low_rank(4) compose add }")
    origin = unipelt.parse(spec("method mine { modify ffn insert parallel form low_rank(4) compose add }"))
    g = generate(s, origin=origin)
    assert [m.columns for m in g.members] == [(("modify", "attn"),)] and [t.of for t in g.twins] == ["mine"]


def test_vary_keeps_requirements_and_trained_copies():
    text = spec("""method mine(r: int = 4) {
      require r <= 8, "r is small"
      use { layers last 2 modify ffn insert parallel form low_rank(r) compose add } as low
      use { layers first 1 train *.norm.* lr 0.5 } as norms
      train *.bias
    }""")
    definition_ = parse_file(text).definitions[0]
    g = generate(space_of(vary(definition_, Names(), {"insert": ["parallel", "sequential"]}), Names()))
    own = unipelt.parse(text)
    assert len(g.members) == 2
    for m in g.members:
        assert m.method.requires == own.requires and m.method.rows[0].layers == own.rows[0].layers
        found = {(str(p), t.layers, t.lr) for t in m.method.trains for p in t.paths}
        assert found == {(str(p), t.layers, t.lr) for t in own.trains for p in t.paths}
    assert not difference(g.members[0].method, own)


def test_a_space_without_members_says_why(tmp_path, capsys):
    from unipelt.cli import spaces

    file = tmp_path / "s.pelt"
    file.write_text(spec("method s { modify ffn | attn insert parallel form attend(3) compose add }"))
    with pytest.raises(unipelt.PeltError) as caught:
        spaces.generate(str(file), asked=spaces.SpaceOptions(tmp_path / "out"))
    assert {d.code for d in caught.value.diagnostics} == {"E0347"} and not (tmp_path / "out").exists()


def test_equal_reads_methods_of_files_and_full_folders_are_refused(tmp_path, capsys):
    from unipelt.cli import show, spaces

    file = tmp_path / "two.pelt"
    file.write_text(spec("method a(r: int = 8) { use lora(r) }\nmethod b { use lora }\n"))
    assert show.equal_methods(f"{file}:a", f"{file}:b", False)
    assert not show.equal_methods(f"{file}:a", named("rslora"), True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("mine")
    with pytest.raises(unipelt.PeltError, match="E0801"):
        spaces.vary(f"{file}:a", insert="parallel", asked=spaces.SpaceOptions(tmp_path / "full"))
    with pytest.raises(unipelt.PeltError, match="is no folder"):
        spaces.vary(f"{file}:a", insert="parallel", asked=spaces.SpaceOptions(tmp_path / "full" / "kept"))
    capsys.readouterr()
    spaces.vary(f"{file}:a", insert="parallel", asked=spaces.SpaceOptions(tmp_path / "one"))
    assert "1 member: 1 kept, 0 dropped, 0 mean the same as another" in capsys.readouterr().err
