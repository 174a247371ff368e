"""`unipelt show` and `unipelt diff`: tables, formulas and pictures that say what the method is."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ET

import pytest
from names import name as named
from test_commands import call

import unipelt
from unipelt.cli import show as shown
from unipelt.cli.picture import picture
from unipelt.language.diagram import diagram
from unipelt.language.document import markdown_table
from unipelt.language.formula import TEX, as_latex, as_text, write
from unipelt.language.loading import library, load
from unipelt.language.parser import parse_expression

METHODS = [e.name for e in library() if e.kind == "method"]


@pytest.mark.parametrize(
    ("text", "unicode", "tex"),
    [
        ("h + s * (a @ B).T", "h + s · (a B)ᵀ", r"h + s \cdot \left(a\, B\right)^{\top}"),
        ("(1 - lam) * h + lam * delta", "(1 − λ) · h + λ · Δ", r"\left(1 - \lambda\right) \cdot h + \lambda \cdot \Delta"),
        ("alpha / r * x", "α / r · x", r"\frac{\alpha}{r} \cdot x"),
        ("a / (b * c) - (d - e)", "a / (b · c) − (d − e)", r"\frac{a}{b \cdot c} - \left(d - e\right)"),
        ("sigmoid(-x ** 2)", "σ(-x^2)", r"\sigma(-x^{2})"),
        ("attn.k(P_k)", "attn.k(P_k)", r"\operatorname{attn.k}(P_{\mathrm{k}})"),
        ("sqrt(d_model)", "sqrt(d_model)", r"\sqrt{d_{\mathrm{model}}}"),
    ],
)
def test_expressions(text, unicode, tex):
    e = parse_expression(text)
    assert write(e) == unicode and write(e, TEX) == tex


@pytest.mark.parametrize("method", METHODS)
def test_formulas_end_in_the_new_h_and_name_every_tensor(method):
    m = load(method)
    text, tex = as_text(m), as_latex(m)
    assert text.count("←") == len(m.rows) == tex.count(r"\leftarrow")
    assert tex.count("{") == tex.count("}") and tex.count(r"\left(") == tex.count(r"\right)")
    for row in m.rows:
        for t in row.form:
            if t.kind == "tensor":
                assert re.search(rf"(?<!\w){t.name}(?![A-Za-z0-9_])", text), t.name


@pytest.mark.parametrize("method", METHODS)
def test_pictures_show_every_row_and_are_well_formed(method, tmp_path):
    m = load(method)
    root = ET.fromstring(picture(m, tmp_path / "m.svg").read_text())
    said = " ".join("".join(e.itertext()) for e in root.iter() if e.tag.endswith("text"))
    assert m.name in said
    for p in diagram(m):
        assert p.title in said and p.node in said or p.family == "train"
        assert (p.boxes and all(b.label[:20] in said for b in p.boxes)) or not p.boxes
        assert not p.gate or p.gate in said
    assert picture(m, tmp_path / "again.svg").read_bytes() == (tmp_path / "m.svg").read_bytes()


def test_a_picture_as_png(tmp_path):
    file = picture(load(named("unipelt_apl")), tmp_path / "m.png")
    assert file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(unipelt.PeltError, match="neither an SVG nor a PNG"):
        picture(load(named("lora")), tmp_path / "m.gif")
    with pytest.raises(unipelt.PeltError, match="no folder"):
        picture(load(named("lora")), tmp_path / "not" / "m.svg")


def test_the_way_of_an_adapter():
    (panel, _) = diagram(load(named("adapter")))
    assert [(b.kind, b.label) for b in panel.boxes] == [("learned", "down + b_down"), ("function", "act"), ("learned", "up + b_up")]
    assert (panel.source, panel.node, panel.formula) == ("h", "+", "h ← h + Δ")
    gated = diagram(load(named("unipelt_apl")))[0]
    assert gated.gate == named("sequence_gate") and gated.source == "ffn.norm(h + residual)"


def test_the_table_of_several(capsys):
    shown.show_methods([named("adapter"), named("lora")], [], "markdown", None, False)
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "| method | row | modify | insert | form | compose |" and len(out) == 5
    shown.show_methods([named("adapter"), named("lora")], [], "latex", None, False)
    out = capsys.readouterr().out
    assert out.count(r"\\") == 4 and "_" not in out.replace(r"\_", "")
    shown.show_methods([named("lora"), named("ia3")], [], "text", None, True)
    assert [m["name"] for m in json.loads(capsys.readouterr().out)["methods"]] == [named("lora"), named("ia3")]


def test_signs_of_a_document_are_escaped():
    assert markdown_table([{"modify": "a|b<c", "doc": "a|b<c"}], ["modify", "doc"]).splitlines()[-1] == "| `a\\|b<c` | a\\|b&lt;c |"
    assert shown._tex("a_b%{x}\\") == r"a\_b\%\{x\}\textbackslash{}"


def test_diff(capsys):
    assert not shown.diff_methods(named("lora"), named("rslora"), True)
    said = json.loads(capsys.readouterr().out)
    assert [r["column"] for r in said["columns"]] == ["compose"]
    assert shown.diff_methods(named("mean_head"), named("probing_mean"), False)
    assert "mean the same" in capsys.readouterr().out
    assert not shown.diff_methods(named("mam"), named("unipelt_ap"), False)
    assert "gated by" in capsys.readouterr().out


# ---------------------------------------------------------------- what cannot be shown

METHODS_OF_A_USER = """
method one(r: int = 4, two_r: int = 3) { use { modify attn   insert parallel   form wide(r + two_r)   compose h + delta } as a }
method two(r: int = 8) { use { modify ffn   insert parallel   form wide(r)   compose h + delta } as b }
form wide(r: int) { A: [d_in, r] ~ zeros   B: [r, d_out] ~ zeros   delta = z @ A @ B }
"""
ONE, TWO = "mine.pelt:one", "mine.pelt:two"


@pytest.mark.parametrize("arguments, code, said, remedy", [
    ([ONE, "--format", "html"], "E0812", "there is no format `html`", "text, markdown, latex"),
    ([ONE, TWO, "--set", "r=3"], "E0812", "`--set` binds the arguments of one method", "show one method"),
    ([ONE, TWO, "--picture", "both.svg"], "E0812", "a picture shows one method", "one after the other"),
    ([ONE, "--picture", "one.gif"], "E0810", "`one.gif` is neither an SVG nor a PNG", ".svg or .png"),
    ([ONE, "--picture", "one"], "E0810", "`one` is neither", ".svg or .png"),
    ([ONE, "--picture", "none/one.svg"], "E0810", "there is no folder `none`", "make it first"),
    ([ONE, "--set", "r"], "E0621", "`r` is not an argument", "`name=value`"),
    ([ONE, "--set", "=4"], "E0621", "`=4` is not an argument", "`name=value`"),
    ([ONE, "--set", "r=4", "--set", "r=5"], "E0621", "`r` is given twice", "give it once"),
    ([f"{TWO}+{TWO}", "--set", "rr=4"], "E0621", "none of `two`, `two` has an argument `rr`", "exists: `r`"),
    ([f"{TWO}+{TWO}", "--set", "one.r=4"], "E0621", "an argument `one.r`", "their arguments are r"),
    ([f"{ONE}+{TWO}"], "E0403", "the argument `r` of `two` would be called `two_r`", "name its arguments there"),
])  # fmt: skip
def test_what_cannot_be_shown(arguments, code, said, remedy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.pelt").write_text(METHODS_OF_A_USER)
    out, err = call("show", *arguments, code=1)
    assert not out and err.count("error[") == 1 and f"error[{code}]" in err and said in err
    assert "= help" in err and remedy in err and [f.name for f in tmp_path.iterdir()] == ["mine.pelt"]


@pytest.mark.parametrize("file", ["m.svg", "m.png"])
def test_a_picture_where_nothing_draws(file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as where it is not installed
    _, err = call("show", named("lora"), "--picture", tmp_path / file, code=1)
    assert "error[E0811]" in err and "matplotlib" in err and "pip install matplotlib" in err and not list(tmp_path.iterdir())


def test_a_union_whose_second_method_brings_the_name_that_its_argument_would_get():
    one, two = (unipelt.parse(METHODS_OF_A_USER.replace("two_r", "one_r"), n) for n in ("one", "two"))
    with pytest.raises(unipelt.PeltError, match="E0403.*the argument `r` of `one` would be called `one_r` beside that of `two`"):
        two + one
    assert (one + two).arguments == {"r": 4, "one_r": 3, "two_r": 8}
