"""The commands that make methods from others: what a wrong option is answered with, once, and that nothing is written then."""

import json

import pytest
from names import spec
from test_commands import call, parsed

SPACES = """
method four(r: int = 4) { modify ffn | attn   insert parallel   form bottleneck(r) | low_rank(r)   compose add }
method fixed(s: float = 1.0) {
  modify ffn | attn   insert parallel
  form { A: [d_in, d_out] ~ zeros   delta = s * (z @ A) }   compose add
}
method trained { train *.bias }
method two(r: int = 2) { use one(r) as a   use one(r + 1) as b }
method one(r: int = 2) { modify ffn   insert parallel   form bottleneck(r)   compose add }
"""
BERT = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
        "vocab_size": 50}  # fmt: skip


@pytest.fixture
def desk(tmp_path, monkeypatch):
    (tmp_path / "mine.pelt").write_text(spec(SPACES))
    (tmp_path / "bert.json").write_text(json.dumps(BERT))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("options, code, said, remedy", [
    (["four", "-m", "bert.json", "--params", "5"], "E0804", "parameters even with r = 1, more than 5", "ask for more"),
    (["four", "-m", "bert.json", "--params", "0.0001%"], "E0804", "even with r = 1, more than 1", "ask for more"),
    (["four", "-m", "bert.json", "--params", "1e11"], "E0804", "fewer than 100,000,000,000 parameters for any `r`", "ask for fewer"),
    (["four", "-m", "bert.json", "--params", "900", "--size", "rr"], "E0804", "`rr` is no size", "did you mean `r`?"),
    (["four", "-m", "bert.json", "--params", "900", "--size", "width"], "E0804", "`width` is no size", "its sizes: r"),
    (["fixed", "-m", "bert.json", "--params", "900"], "E0804", "no argument of", "leave `--params` out"),
    (["four", "--params", "0.5%"], "E0805", "is that of a model", "`--model`"),
    (["four", "-m", "bert.json", "--size", "r"], "E0805", "`--params`, which is not given", "leave `--size` out"),
    *((["four", "-m", "bert.json", "--params", text], "E0805", f"`--params {text}` is no number", "0.5% or 500000")
      for text in ("many", "nan", "inf", "0", "-5%", "%")),
])  # fmt: skip
def test_a_budget_that_cannot_be_met(desk, options, code, said, remedy):
    before = sorted(desk.iterdir())
    out, err = call(
        "generate", f"mine.pelt:{options[0]}", *options[1:], "--out", "new", code=2 if code == "E0805" else 1
    )
    assert err.count("error[") == 1 and f"error[{code}]" in err and said in err and "= help" in err and remedy in err
    assert not out and sorted(desk.iterdir()) == before


def test_a_budget_that_can(desk):
    found = parsed("generate", "mine.pelt:four", "-m", "bert.json", "--params", "2_000", "--out", "new")
    assert len(found["members"]) == 4 and len(list((desk / "new").glob("*.pelt"))) == 4


@pytest.mark.parametrize("options", [[], ["--insert", ""], ["--modify", " , ", "--form", "|"]])
def test_vary_without_alternatives(desk, options):
    before = sorted(desk.iterdir())
    _, err = call("vary", "mine.pelt:one", *options, "--out", "new", code=1)
    assert "error[E0803]: nothing is varied" in err and "--insert parallel,sequential" in err
    assert sorted(desk.iterdir()) == before


@pytest.mark.parametrize("command, code, said, remedy", [
    (["generate", "mine.pelt:fuor"], "E0401", "mine.pelt has no method `fuor`", "did you mean `four`?"),
    (["generate", "mine.pelt:nothing"], "E0401", "mine.pelt has no method `nothing`", "it has: four, fixed, trained, two, one"),
    (["generate", "mine.pelt"], "E0406", "mine.pelt has 5 methods, so one must be named", "mine.pelt:NAME"),
    (["generate", "mine.pelt:one"], "E0800", "one method", "`|`"),
    (["vary", "no_such_method_at_all", "--insert", "parallel"], "E0401", "no method named `no_such_method_at_all`", "unipelt list"),
    (["neighbours", "mine.pelt:trained"], "E0802", "`trained` has no row: it only trains parameters", "the four columns"),
    (["neighbours", "mine.pelt:two", "--row", "c"], "E0802", "`two` has no row `c`", "its rows: a, b"),
    (["neighbours", "mine.pelt:two", "--row", "bb"], "E0802", "`two` has no row `bb`", "did you mean `b`?"),
    (["vary", "mine.pelt:two", "--insert", "parallel"], "E0802", "`two` has 2 rows, so one must be named", "`--row`"),
    (["cross", "mine.pelt:one", "mine.pelt:two"], "E0802", "`two` has 2 rows", "a, b"),
])  # fmt: skip
def test_methods_and_rows_that_there_are_not(desk, command, code, said, remedy):
    before = sorted(desk.iterdir())
    _, err = call(*command, "--out", "new", code=1)
    assert err.count("error[") == 1 and f"error[{code}]" in err and said in err and "= help" in err and remedy in err
    assert sorted(desk.iterdir()) == before


def test_a_space_of_more_members_than_can_be_counted_through_is_sampled(desk):
    choices = ", ".join(f"a{i}: float in {{1, 2, 3, 4}}" for i in range(40))
    body = " + ".join(f"a{i}" for i in range(40))
    (desk / "vast.pelt").write_text(f"method vast({choices}) {{ modify ffn  insert parallel  form {{ w: [d_in, d_out] ~ zeros  "
                                    f"delta = ({body}) * (z @ w) }}  compose h + delta }}")  # fmt: skip
    out, _ = call("check", "vast.pelt")
    assert f"space vast: ok ({4**40:,} members)" in out
    found = parsed("generate", "vast.pelt", "--sample", "2")
    assert found["size"] == 4**40 and found["tried"] == 2


OWN = """
method own(r: int = 2, places: sites = [attn.q, attn.v]) {
  modify places   insert parallel   form { A: [d_in, d_out] ~ zeros   delta = z @ A }   compose h - delta
}
method heads(l: int = 2) { modify attn.heads   insert parallel   form attend(l)   compose share_softmax }
method beside(r: int = 2) { modify attn   insert sequential   form low_rank(r)   compose add }
"""


def test_members_are_named_after_what_they_do(desk):
    """A body of its own counts as what it binds, and a parameter for sites as its sites."""
    (desk / "own.pelt").write_text(spec(OWN))
    found = parsed("cross", "own.pelt:own", "mine.pelt:one")["members"]
    names = [m["name"] for m in found]
    assert "attn_q_attn_v_z_A_h_delta" in names and "ffn_bottleneck_add" in names
    _, err = call("cross", "own.pelt:own", "own.pelt:heads", code=0)
    example = next(line for line in err.splitlines() if "for example" in line)
    assert "form z @ A" in example or "form softmax" in example
    assert all(len(line) < 200 and "~" not in line for line in err.splitlines())


@pytest.mark.parametrize("command", [
    ["vary", "mine.pelt:one", "--form", "bottleneck(r),low_rank(r)"], ["cross", "mine.pelt:one", "own.pelt:beside"],
    ["neighbours", "mine.pelt:one"],
])  # fmt: skip
def test_every_way_to_new_methods_takes_a_budget(desk, command):
    import unipelt
    from unipelt.training.models import load_config_model

    (desk / "own.pelt").write_text(spec(OWN))
    parsed(*command, "-m", "bert.json", "--params", "3000", "--out", "new")
    model = load_config_model("bert.json", "base")
    counts = {unipelt.plan(model, unipelt.load(str(f))).counts.trained for f in (desk / "new").glob("*.pelt")}
    assert counts and all(abs(n - 3000) < 400 for n in counts)
