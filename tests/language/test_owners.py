"""Who owns a tensor at the heads is said by `show`, and hinted at by `check` where it is easily overlooked."""

from __future__ import annotations

import json

import pytest
import small
from names import name, spec
from typer.testing import CliRunner

import unipelt
from unipelt.cli.app import app
from unipelt.language.library import library_names
from unipelt.language.loading import check_text, load, parse
from unipelt.language.analyse.owned import hints, owned

AT_HEADS = """method m(l: int = 4) {{
  modify attn.heads
  insert parallel
  form {{
    P: [d_model, l] ~ normal(0.02){per}
    b: [d_in] ~ zeros
    w: [l, l] ~ zeros per layer, group
    delta = q * sum(x @ P @ w) + b
  }}
  compose {{ t: [] ~ ones{per}  out = h + t * delta }}
}}
"""


def text(per: str = "") -> str:
    return AT_HEADS.format(per=per)


def call(*arguments: str, code: int = 0) -> tuple[str, str]:
    done = CliRunner().invoke(app, [*arguments])
    assert done.exit_code == code, done.output
    return done.stdout, done.stderr


def test_the_owner_of_every_tensor_at_the_heads() -> None:
    found = {(o.tensor, o.owner, o.default) for o in owned(parse(text()))}
    assert found == {
        ("P", "site and head", True),
        ("b", "site and head", True),
        ("t", "site and head", True),
        ("w", "layer and group", False),
    }
    assert {(o.tensor, o.owner) for o in owned(parse(text(" per kind")))} >= {("P", "kind"), ("t", "kind")}
    assert not owned(load(name("lora"))), "elsewhere the default is the site, and nothing need be said"


@pytest.mark.parametrize(
    "per, shape",
    [
        ("", (small.HEADS, small.WIDTH, 4)),
        (" per head", (small.HEADS, small.WIDTH, 4)),
        (" per site", (small.WIDTH, 4)),
    ],
)
def test_what_is_said_is_what_is_made(per: str, shape: tuple[int, ...]) -> None:
    model = small.model("bert")
    unipelt.apply(model, parse(text(per)), "a")
    assert {tuple(v.shape) for k, v in unipelt.state_dict(model, "a").items() if k.endswith(".P")} == {shape}
    (said,) = [o.owner for o in owned(parse(text(per))) if o.tensor == "P"]
    assert ("head" in said) == (len(shape) == 3)


def test_show_prints_it(tmp_path) -> None:
    (tmp_path / "m.pelt").write_text(text())
    out, _ = call("show", str(tmp_path / "m.pelt"))
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "tensor row at sizes one for each" in lines
    assert (
        "P m attn.heads d_model × l site and head (the default here)" in lines
        and "w m attn.heads l × l layer and group" in lines
    )
    as_json = json.loads(call("show", str(tmp_path / "m.pelt"), "--json")[0])
    assert as_json["tensors"][0] == {
        "tensor": "P",
        "row": "m",
        "at": "attn.heads",
        "sizes": "d_model × l",
        "one for each": "site and head (the default here)",
    }
    assert "one for each" not in call("show", name("lora"))[0]


@pytest.mark.parametrize("per, hinted", [("", ["P", "t"]), (" per head", []), (" per site", []), (" per kind", [])])
def test_check_hints_where_no_size_is_a_heads(per: str, hinted: list[str], tmp_path) -> None:
    found = check_text(text(per), "m.pelt")
    assert not found[0].diagnostics and found[0].method is not None
    assert [h.message.split("`")[1] for h in found[0].hints] == hinted
    assert all(h.code == "E0380" and h.severity == "warning" for h in found[0].hints)
    (tmp_path / "m.pelt").write_text(text(per))
    out, err = call("check", str(tmp_path / "m.pelt"))  # a hint is no mistake
    assert err.count("warning[E0380]") == len(hinted) and ("1 method: all well, 2 hints" in out) == bool(hinted)
    as_json = json.loads(call("check", str(tmp_path / "m.pelt"), "--json")[0])
    assert as_json["ok"] and len(as_json["definitions"][0]["hints"]) == len(hinted)
    assert (
        not hinted
        or [r["level"] for r in json.loads(call("check", str(tmp_path / "m.pelt"), "--sarif")[0])["runs"][0]["results"]]
        == ["warning"] * 2
    )


def test_a_hint_is_given_once_for_two_sites_and_two_methods() -> None:
    shared = "form f(l: int) { P: [d_model, l] ~ zeros  delta = q * sum(x @ P) }\n"
    using = "method {} {{ modify attn.heads insert parallel form f(4) compose add }}\n"
    assert [len(c.hints) for c in check_text(shared + using.format("a") + using.format("b"), "m.pelt")] == [0, 1, 0]
    both = parse(spec("method m { modify attn.heads, cross.heads form { t: [] ~ ones delta = t } compose rescale }"))
    assert len(hints(both)) == 1 and [o.at for o in owned(both)] == ["attn.heads, cross.heads"]


def test_a_form_of_the_library_at_the_heads() -> None:
    (hint,) = hints(parse(spec("method m { modify attn.heads insert parallel form bottleneck(4) compose add }")))
    assert hint.message.startswith("`b_down`") and "a form of its own" in hint.help and hint.labels


def test_the_library_says_what_it_means() -> None:
    assert not [h for m in library_names("method") for h in hints(load(m))]
