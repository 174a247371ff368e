"""`unipelt show` and `unipelt diff`: tables, formulas and pictures that say what the method is."""

from __future__ import annotations

import json
import re
import sys
import xml.etree.ElementTree as ET

import pytest
from names import members, name as named
from test_commands import call

import unipelt
from unipelt.cli import output
from unipelt.cli import show as shown
from unipelt.cli.picture import drawn, picture
from unipelt.language.write.diagram import diagram
from unipelt.language.write.document import markdown_table
from unipelt.language.write.columns import rows_of
from unipelt.language.write.formula import TEX, as_latex, as_text, write
from unipelt.language.loading import load
from unipelt.language.syntax.parser import parse_expression

METHODS = members()


@pytest.mark.parametrize(
    ("text", "unicode", "tex"),
    [
        ("h + s * (a @ B).T", "h + s · (a B)ᵀ", r"h + s \cdot \left(a\, B\right)^{\top}"),
        (
            "(1 - lam) * h + lam * delta",
            "(1 − λ) · h + λ · Δ",
            r"\left(1 - \lambda\right) \cdot h + \lambda \cdot \Delta",
        ),
        ("alpha / r * x", "α / r · x", r"\frac{\alpha}{r} \cdot x"),
        ("a / (b * c) - (d - e)", "a / (b · c) − (d − e)", r"\frac{a}{b \cdot c} - \left(d - e\right)"),
        ("sigmoid(-x ** 2)", "σ(-x^2)", r"\sigma(-x^{2})"),
        ("attn.k(P_k)", "attn.k(P_k)", r"\operatorname{attn.k}(P_{\mathrm{k}})"),
        ("sqrt(d_model)", "sqrt(d_model)", r"\sqrt{d_{\mathrm{model}}}"),
    ],
)
def test_expressions(text, unicode, tex):
    e = parse_expression(text)
    assert write(e) == unicode and TEX.text(e) == tex


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
        assert p.title in said and p.node in said or not p.inside
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


LONG = """
method long_names(r: int = 8) {{
  use {lora}(r = 4 if layer < depth / 2 else 16, at = encoder.attn.q) as low_rank_update_of_the_queries_of_the_encoder gated by {gate}
  use {lora}(r, at = [attn.k, cross.heads.q]) as low_rank_update_of_the_keys
  use {mixture}(r) as a_mixture
  use {prompt}() as rows_before_the_tokens
  use {prefix}(l = 4) as prefix
  train *.bias, *.norm.*, embed.words
}}
method {mixture}(r: int = 4) {{
  layers last 2   modify decoder.cross.heads   insert sequential
  form {{
    axis expert = 2
    A: [d_in, r] ~ zeros per expert
    B: [r, d_out] ~ zeros per expert
    w: [d_in] ~ zeros per expert
    p = softmax(z @ w, expert)
    delta = sum(p * (z @ A @ B), expert)
  }}
  compose {{ s: [] ~ ones   g = {gate}(z)   out = h + s * g * delta }}
}}
"""


def _long(tmp_path):
    (tmp_path / "long.pelt").write_text(
        LONG.replace("cross.heads.q", "cross.v").format(
            lora=named("lora"),
            gate=named("token_gate"),
            prompt=named("p_tuning"),
            prefix=named("prefix_tuning"),
            mixture="mixture",
        )
    )
    return load(str(tmp_path / "long.pelt"), "long_names")


def test_nothing_in_a_picture_is_cut_off_or_covers_something_else(tmp_path):
    from matplotlib.patches import Ellipse, FancyBboxPatch
    from matplotlib.text import Annotation

    for m in (_long(tmp_path), *(load(named(n)) for n in ("unipelt_apl", "p_tuning", "prompt_tuning"))):
        figure = drawn(m)
        (axes,) = figure.axes
        renderer = figure.canvas.get_renderer()
        texts = [(t.get_text(), t.get_window_extent(renderer)) for t in axes.texts if t.get_text()]
        for i, (text, box) in enumerate(texts):
            assert "…" not in text
            assert (
                figure.bbox.x0 <= box.x0
                and box.x1 <= figure.bbox.x1
                and figure.bbox.y0 <= box.y0
                and box.y1 <= figure.bbox.y1
            ), text
            assert not [other for other, o in texts[:i] if box.overlaps(o)], text
            for shape in axes.patches:
                edge = shape.get_window_extent(renderer)
                if isinstance(shape, (Ellipse, FancyBboxPatch)) and edge.overlaps(box):
                    assert edge.x0 <= box.x0 and box.x1 <= edge.x1 and edge.y0 <= box.y0 and box.y1 <= edge.y1, text
        nodes = [p for p in axes.patches if isinstance(p, Ellipse)]
        tips = [a.xy for a in axes.texts if isinstance(a, Annotation)]
        for node in nodes:  # an arrow ends at a node, and not in what is written there
            (x, y), half = node.center, node.width / 2
            assert (x + half, y) in [(pytest.approx(a), pytest.approx(b)) for a, b in tips]
            assert not any(abs(a - x) < half - 0.01 and abs(b - y) < 0.1 for a, b in tips)


def test_what_is_learned_is_coloured_and_scales_and_gates_are_boxes(tmp_path):
    panels = {p.title: p for p in diagram(_long(tmp_path))}
    mixture = panels["a_mixture"]
    assert mixture.place == "decoder.cross.heads; layers last 2"
    assert [(b.kind, b.label) for b in mixture.boxes] == [
        ("learned", "A"), ("learned", "B"), ("learned", "· p"), ("function", "sum"), ("learned", "· s · g")]  # fmt: skip
    assert mixture.change == "s · g · Δ" and mixture.node == "+"
    assert [(b.kind, b.label) for b in panels["low_rank_update_of_the_keys"].boxes][-1] == ("plain", "· 16.0 / r")


def test_the_way_of_an_adapter():
    (panel, _) = diagram(load(named("adapter")))
    assert [(b.kind, b.label) for b in panel.boxes] == [
        ("learned", "down + b_down"),
        ("function", "act"),
        ("learned", "up + b_up"),
    ]
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
    assert (
        markdown_table([{"modify": "a|b<c", "doc": "a|b<c"}], ["modify", "doc"]).splitlines()[-1]
        == "| `a\\|b<c` | a\\|b&lt;c |"
    )
    assert shown._tex("a_b%{x}\\") == r"a\_b\%\{x\}\textbackslash{}"


def test_diff(capsys):
    assert not shown.diff_methods(named("lora"), named("rslora"), True)
    said = json.loads(capsys.readouterr().out)
    assert [r["column"] for r in said["columns"]] == ["compose"]
    assert shown.diff_methods(named("mean_head"), named("probing_mean"), False)
    assert "mean the same" in capsys.readouterr().out
    assert not shown.diff_methods(named("mam"), named("unipelt_ap"), False)
    assert "gated by" in capsys.readouterr().out


def test_every_symbol_of_a_count_is_told(capsys):
    """A reader of the formula alone knows each of its words: it is an argument, or its meaning stands below."""
    for method in METHODS:
        m = load(method)
        found = shown.described(m)
        words = {
            w
            for text in found["parameters"].values()
            for w in re.findall(r"[A-Za-z_]\w*", re.sub(r"every .*|the model.*", "", text))
        }
        assert words - {"folded", "min", "max", "last", "first", "floor", "layer", "depth", "if", "else"} <= {
            *m.arguments,
            *found["symbols"],
        }, method


@pytest.mark.parametrize("width", [24, 40, 80, 120])
def test_a_table_breaks_no_word_and_loses_none(width, capsys, monkeypatch):
    monkeypatch.setattr(output, "WIDTH", width)
    shown.show_methods([named("unipelt_apl"), named("llama_adapter")], [], "text", None, False)
    said = capsys.readouterr().out
    rows = rows_of([load(named("unipelt_apl")), load(named("llama_adapter"))])
    for row in rows:
        for text in row.values():
            assert all(word in said.split() for word in text.split()), text
    longest = max(len(word) for row in rows for text in row.values() for word in text.split())
    assert max(map(len, said.splitlines())) <= max(width, longest + 10, 30)


TOP = """
method top(r: int = 8) from {adapter}(r) {{ layers last 2 }}
method wide(r: int = 9) from {adapter}(r) {{ }}
method plain(r: int = 8) from {adapter}(r) {{ }}
method named(r: int = 8) from plain(r) {{ form {bottleneck}(r, act = relu) }}
method slow(k: int = 2) {{ layers first k   train block lr 0.1 }}
"""


def test_layers_and_rates_stand_in_every_table(tmp_path, capsys):
    mine = tmp_path / "mine.pelt"
    mine.write_text(TOP.format(adapter=named("pfeiffer"), bottleneck=named("bottleneck")))
    for form, row in (
        ("markdown", "| top | top | `ffn` |"),
        ("latex", r"top & top & \texttt{ffn}"),
        ("text", "top      top"),
    ):
        shown.show_methods([f"{mine}:top", f"{mine}:plain"], [], form, None, False)
        said = capsys.readouterr().out
        line = next(x for x in said.splitlines() if x.startswith(row))
        assert "layers" in said and "last 2" in line
    shown.show_methods([f"{mine}:slow"], [], "text", None, False)
    assert re.search(r"train +block +first k +0\.1", capsys.readouterr().out)


def test_a_diff_says_what_differs_and_nothing_else(tmp_path, capsys):
    mine = tmp_path / "mine.pelt"
    mine.write_text(TOP.format(adapter=named("pfeiffer"), bottleneck=named("bottleneck")))

    def columns(a, b):
        shown.diff_methods(f"{mine}:{a}", f"{mine}:{b}", True)
        return [(r["column"], r[a], r[b]) for r in json.loads(capsys.readouterr().out)["columns"]]

    assert columns("top", "plain") == [("layers", "last 2", "–")]
    assert columns("plain", "named") == []  # `act = relu` is what `act` is anyway
    ((column, first, second),) = columns("plain", "wide")
    assert column == "form" and first.endswith("r = 8") and second.endswith("r = 9")


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
    ([ONE, "--picture", "folder.svg"], "E0810", "`folder.svg` is a folder", "the name of a file"),
    ([ONE, "--set", "r=eight"], "E0301", "there is no `eight`", "`r` takes a whole number, for example 8"),
    ([f"{named('lora')}.pelt"], "E0121", "there is no file", "is a method of the library: leave `.pelt` out"),
    ([f"{named('lora')}(r=8)"], "E0401", "no method named", "arguments are given apart"),
    ([named("lora").upper()], "E0401", "no method named", f"did you mean `{named('lora')}`?"),
    ([ONE, "--set", "r"], "E0621", "`r` is not an argument", "`name=value`"),
    ([ONE, "--set", "=4"], "E0621", "`=4` is not an argument", "`name=value`"),
    ([ONE, "--set", "r=4", "--set", "r=5"], "E0621", "`r` is given twice", "give it once"),
    ([f"{TWO}+{TWO}", "--set", "rr=4"], "E0621", "none of `two`, `two` has an argument `rr`", "did you mean `r`?"),
    ([f"{TWO}+{TWO}", "--set", "one.r=4"], "E0621", "an argument `one.r`", "their arguments are r"),
    ([f"{ONE}+{TWO}"], "E0403", "the argument `r` of `two` would be called `two_r`", "name its arguments there"),
])  # fmt: skip
def test_what_cannot_be_shown(arguments, code, said, remedy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.pelt").write_text(METHODS_OF_A_USER)
    (tmp_path / "folder.svg").mkdir()
    out, err = call("show", *arguments, code=2 if code == "E0812" else 1)
    assert not out and err.count("error[") == 1 and f"error[{code}]" in err and said in err
    assert "= help" in err and remedy in err and {f.name for f in tmp_path.iterdir()} == {"mine.pelt", "folder.svg"}


@pytest.mark.parametrize("file", ["m.svg", "m.png"])
def test_a_picture_where_nothing_draws(file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as where it is not installed
    _, err = call("show", named("lora"), "--picture", tmp_path / file, code=1)
    assert (
        "error[E0811]" in err
        and "matplotlib" in err
        and "pip install matplotlib" in err
        and not list(tmp_path.iterdir())
    )


def test_a_union_whose_second_method_brings_the_name_that_its_argument_would_get():
    one, two = (unipelt.parse(METHODS_OF_A_USER.replace("two_r", "one_r"), n) for n in ("one", "two"))
    with pytest.raises(
        unipelt.PeltError, match="E0403.*the argument `r` of `one` would be called `one_r` beside that of `two`"
    ):
        two + one
    assert (one + two).arguments == {"r": 4, "one_r": 3, "two_r": 8}
