"""Text to tree: what every construct means, and that bad text gives the errors it should, in time."""

import json
import os
import pickle
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from unipelt.language.report import source, texts
from unipelt.language.syntax import tables
from unipelt.language.syntax import nodes as S
from unipelt.language.report.diagnostics import PeltError
from unipelt.language.syntax.parser import parse, parse_expression
from unipelt.language.syntax.printer import to_text
from unipelt.resources import folder

N = S.Name


def errors(text, entry=parse):
    with pytest.raises(PeltError) as caught:
        entry(text)
    return [(d.code, text[d.span.start : d.span.end]) for d in caught.value.diagnostics]


def only(text):
    (definition,) = parse(text).definitions
    return definition


def body(text):
    return only(f"form f {{ {text} }}").body


def clauses(text):
    return only(f"method m {{ {text} }}").clauses


# ---------------------------------------------------------------- the tables


def test_tables_are_those_of_the_grammar():
    shipped = (folder("grammar") / "pelt.tables.json").read_text(encoding="utf-8")
    assert shipped == tables.generate(), "run `python -m unipelt.language.syntax.tables`"
    json.loads(shipped)


def test_loading_needs_neither_interegular_nor_torch():
    code = (
        "import sys; sys.modules['interegular'] = None\n"
        "from unipelt.language.syntax.parser import parse\n"
        "from unipelt.language.report import render\n"
        "from unipelt.language.syntax import printer\n"
        "assert parse('method m { modify ffn }').definitions\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


# ---------------------------------------------------------------- every spec


def specs_as_texts():
    specs = folder("specs") if (Path(__file__).parents[2] / "specs").is_dir() else None
    for path in sorted(specs.rglob("*.pelt")) if specs else ():
        yield pytest.param(path.read_text(encoding="utf-8"), id=path.name)
    if design := os.environ.get("UNIPELT_DESIGN"):
        for path in sorted(Path(design).rglob("*.pelt")):
            yield pytest.param(path.read_text(encoding="utf-8"), id=path.name)
        page = (Path(design) / "language.md").read_text(encoding="utf-8")
        for n, block in enumerate(re.findall(r"```pelt\n(.*?)```", page, re.S)):
            yield pytest.param(block, id=f"block {n}")


@pytest.mark.parametrize("text", list(specs_as_texts()))
def test_specs_parse(text):
    parse(text)


# ---------------------------------------------------------------- what the constructs mean


def test_method():
    m = only('method m(r: int = 4, init: init) from lora(r) { """Doc.""" layers last 2 modify attn.q, ffn | *.norm }')
    assert m.name == "m" and m.doc == "Doc."
    assert m.params == (S.Param("r", "int", S.Number(4)), S.Param("init", "init"))
    assert m.base == S.Apply(N("lora"), (S.Arg(N("r")),))
    assert m.clauses == (
        S.Layers((S.Selection("last", (S.Number(2),)),)),
        S.Modify(((S.Path(("attn", "q")), S.Path(("ffn",))), (S.Path(("*", "norm")),))),
    )


def test_rows():
    (use,) = clauses("use { modify ffn insert x form f compose h * delta } as a gated by g(1) { modify attn }")
    assert use.name == "a" and use.gate == S.Apply(N("g"), (S.Arg(S.Number(1)),))
    assert [c.kind for c in use.target.clauses] == ["modify", "insert", "form", "compose"]
    assert use.target.clauses[2] == S.Form((S.Apply(N("f")),))
    assert use.overrides == (S.Modify(((S.Path(("attn",)),),)),)


def test_gated_by_a_block():
    (use,) = clauses("use lora gated by { w: [d_in] ~ normal(0.02) g = sigmoid(z @ w) }")
    assert isinstance(use.gate, S.Block) and [s.kind for s in use.gate.body] == ["tensor", "let"]


def test_slots_hold_alternatives():
    form, compose = clauses("form a | { delta = z } | b(1) compose add | s(2) | { out = h }")
    assert [type(v) for v in form.alternatives] == [S.Apply, S.Block, S.Apply]
    assert [type(v) for v in compose.alternatives] == [S.Name, S.Apply, S.Block]


@pytest.mark.parametrize(
    ("text", "word", "count"),
    [("all", "all", 0), ("first k", "first", 1), ("1 .. depth", "range", 2), ("every 2", "every", 1)],
)
def test_layers(text, word, count):
    (layers,) = clauses("layers " + text)
    assert layers.alternatives[0].word == word and len(layers.alternatives[0].values) == count


def test_tokens_name_parameters_like_the_words():
    (tokens,) = clauses("tokens first first, last last, since since, inserted")
    assert [s.word for s in tokens.selections] == ["first", "last", "since", "inserted"]
    assert tokens.selections[0].values == (N("first"),)


def test_tensors():
    a, b, c = body("frozen A: [max(d), 2 * r] ~ zeros per model, layers(k) lr 10 b: [] = norm(W, 0) c: [r] ~ init")
    assert a.frozen and not a.exact and [s.name for s in a.per] == ["model", "layers"] and a.lr == S.Number(10)
    assert a.per[1].argument == N("k")
    assert b.exact and b.shape == () and not b.frozen
    assert c.start == N("init")


def test_other_statements():
    lets = body('U, S, V = svd(W) axis e = n require r <= 1%, "small"')
    assert lets[0].names == ("U", "S", "V")
    assert lets[1] == S.Axis("e", N("n"))
    assert lets[2] == S.Require(S.Compare("<=", N("r"), S.Number(1, percent=True)), "small")


def test_inputs():
    a, b = body("input t: index(n) input i: [v, 3]")
    assert a == S.Input("t", S.Apply(N("index"), (S.Arg(N("n")),)))
    assert b == S.Input("i", shape=(N("v"), S.Number(3)))


def test_later_statements():
    c, d, e = body("carry s = a then b penalty g after step { E = 1 F = 2 }")
    assert c == S.Later("carry", ("s",), values=(N("a"), N("b")))
    assert d == S.Later("penalty", values=(N("g"),))
    assert e.word == "after step" and [x.names for x in e.body] == [("E",), ("F",)]


def test_short_composition_is_a_body():
    assert only("compose add = h + delta") == only("compose add { out = h + delta }")


def test_anatomy():
    a = only('anatomy t for bert, big { """Doc.""" block: "layer\\.\\d+" attn.q: "query" *.norm: "LayerNorm" }')
    assert a.models == ("bert", "big")
    assert a.entries == (("block", r"layer\.\d+"), ("attn.q", "query"), ("*.norm", "LayerNorm"))


def test_imports():
    assert [i.path for i in parse('import "a.pelt" import "b.pelt" compose c = h').imports] == ["a.pelt", "b.pelt"]


def test_module_is_a_part_of_a_path():
    (modify,) = clauses('modify encoder.module("layers\\.\\d").weight, ffn')
    assert modify.alternatives[0][0].parts == ("encoder", 'module("layers\\.\\d")', "weight")


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("a + b * c", "a + (b * c)"),
        ("a @ b * c", "(a @ b) * c"),
        ("a - b - c", "(a - b) - c"),
        ("-a ** b", "-(a ** b)"),
        ("a ** b ** c", "a ** (b ** c)"),
        ("2 ** -a", "2 ** (-a)"),
        ("-a * b", "(-a) * b"),
        ("a if b else c if d else e", "a if b else (c if d else e)"),
        ("a + 1 < b * 2", "(a + 1) < (b * 2)"),
        ("a.T.x(1)[0]", "((a.T).x(1))[0]"),
    ],
)
def test_precedence(text, same):
    assert parse_expression(text) == parse_expression(same)


def test_slices_and_lists():
    e = parse_expression("B[:, : d, r :, a : b, -1]")
    assert [type(i) for i in e.items] == [S.Slice] * 4 + [S.Negative]
    assert e.items[1] == S.Slice(None, N("d")) and e.items[2] == S.Slice(N("r"), None)
    assert parse_expression("[]") == S.ListOf(()) and len(parse_expression("[a, [b]]").items) == 2


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("1.0", 1.0), (".5", 0.5), ("1e-05", 1e-05), ("2E3", 2000.0)])
def test_numbers(text, value):
    number = parse_expression(text)
    assert number == S.Number(value) and type(number.value) is type(value)
    assert parse_expression(text + "%") == S.Number(value, percent=True)


def test_docstrings_are_dedented():
    assert only('form f { """One.\n\n     Two\n       three. \n  """ }').doc == "One.\n\nTwo\n  three."
    assert only('form f { """  """ }').doc is None


def test_spans_are_those_of_the_text():
    text = "# c\nform f(r: int) {\n  A: [d, (r)]  ~ zeros\n  delta = (z + 1) @ A\n}\n"
    f = only(text)

    def at(node):
        return text[node.span.start : node.span.end]

    assert at(f) == text[4:-1] and text[f.name_span.start : f.name_span.end] == "f"
    assert at(f.body[0]) == "A: [d, (r)]  ~ zeros" and at(f.body[0].shape[1]) == "r"
    assert at(f.body[1]) == "delta = (z + 1) @ A" and at(f.body[1].value) == "(z + 1) @ A"
    assert at(f.params[0]) == "r: int"


# ---------------------------------------------------------------- keywords


def test_keywords_end_at_a_word_boundary():
    assert [c.kind for c in clauses("modify ffn formula = 1 user = 2 modifying = 3")] == ["modify"] + ["let"] * 3
    assert only("compose formal = useful").name == "formal"
    assert errors("methodm { modify ffn }")[0][0] == "E0101"
    assert errors("method m { usefoo lora }") == [("E0101", "usefoo")]
    assert errors("method m { modifyffn insert x }") == [("E0101", "modifyffn")]


def test_keywords_are_free_where_a_value_stands():
    m = only("method m(form: int, use: use = 1) from b(form = use) { insert attn.form(modify, tokens = 1) }")
    assert [p.name for p in m.params] == ["form", "use"] and m.base.args[0] == S.Arg(N("use"), "form")
    assert body("all = 1 first = 2 last = all every = first")[3].names == ("every",)


@pytest.mark.parametrize("word", ["form", "use", "per", "if", "modify", "frozen", "then"])
def test_keywords_are_reserved(word):
    for text in (f"form f {{ {word} = 1 }}", f"method m {{ {word}: [r] ~ zeros }}", f"form {word} {{}}"):
        assert errors(text) == [("E0105", word)], text


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("text", "code", "at"),
    [
        ("metod m { }", "E0101", "metod"),
        ("method m { modfy ffn }", "E0101", "modfy"),
        ("form f { w [r] ~ zeros }", "E0101", "w"),
        ("form f { delta = }", "E0101", "}"),
        ("form f { delta = (z + 1 }", "E0102", "("),
        ("form f { delta = z", "E0102", "{"),
        ("form f { delta = g(z", "E0102", "("),
        ("form f { a = 1 } }", "E0101", "}"),
        ("form f(r = 1) {}", "E0101", "="),
        ("form f { a = 'x' }", "E0103", "'x'"),
        ("form f { a = 1; b = 2 }", "E0103", ";"),
        ("form f { a = b % c }", "E0103", "%"),
        ("form f { a = 12abc }", "E0103", "12abc"),
        ("form f { a = é }", "E0103", "é"),
        ("form f { a = \u00a0b }", "E0103", "\u00a0"),
        ('compose c = "abc\n', "E0104", '"abc'),
        ('form f { """abc }', "E0104", '"""'),
        ("form f { a = g\n(z) }", "E0106", "("),
        ("form f { a = g # c\n  [z] }", "E0106", "["),
        ("method m { form f\n(1) }", "E0106", "("),
        ('method m { modify mod("x") }', "E0107", 'mod("x")'),
        ("compose c = (a + b)(c)", "E0115", "a + b"),
        ("compose c = 1e999", "E0110", "1e999"),
        ("compose c = 123456789012345678901", "E0110", "123456789012345678901"),
        ('compose c = h import "a"', "E0117", 'import "a"'),
        ("form f { a = \0 }", "E0125", "\0"),
    ],
)
def test_mistakes(text, code, at):
    assert errors(text) == [(code, at)]
    with pytest.raises(PeltError) as caught:
        parse(text)
    assert str(caught.value).startswith(f"error[{code}]: ")


@pytest.mark.parametrize(
    "text",
    [
        'method m {\n """a \ud83d"""\n train head }',
        "method m {\n# \udcff\n train head }",
        "method m {\n tr\ud83dain head }",
    ],
)
def test_half_a_character_is_refused_before_it_cannot_be_saved(text):
    with pytest.raises(PeltError) as caught:
        parse(text)
    (d,) = caught.value.diagnostics
    assert d.code == "E0125" and "line 2" in d.message and str(caught.value).encode()


def test_each_broken_definition_gives_one_error_and_good_ones_none():
    good = "method good{0} {{ modify ffn }}\ncompose c{0} = h + delta\n"
    bad = [
        "method b { modfy ffn modfy attn }\n",
        "form f { w: [d ~ zeros delta = = z }\n",
        "compose k = h + * delta * * 2\n",
        "gate g { open = (z\n",
        "method never_closed {\n  modify ffn\n",
        'form with_string { a = "open }\n',
        "anatomy a for { x: y }\n",
    ]
    text = "".join(good.format(i) + b for i, b in enumerate(bad)) + good.format("z")
    assert len(errors(text)) == len(bad)
    lines = [text[: text.index(b)].count("\n") for b in bad]
    with pytest.raises(PeltError) as caught:
        parse(text)
    found = [text[: d.span.start].count("\n") for d in caught.value.diagnostics]
    assert found == lines


def test_unindented_slots_do_not_cut_a_method():
    text = "method m {\nmodify ffn\nform bottleneck(r)\ncompose add\n}\nmethod n { modify }\n"
    assert errors(text) == [("E0101", "}")]
    assert len(errors(text.replace("modify ffn", "modify ,"))) == 2


def test_an_open_docstring_does_not_swallow_the_rest():
    text = 'method a { """open\n modify ffn }\nmethod b { """closed""" modify ffn }\nmethod c { modify }\n'
    assert [c for c, _ in errors(text)] == ["E0104", "E0101"]


def test_what_parses_is_checked_beside_what_does_not():
    assert errors("form f { use = 1 }\nform g { a = b\n(c) }\nform h { a = }") == [
        ("E0105", "use"), ("E0106", "("), ("E0101", "}"),
    ]  # fmt: skip


def test_help_names_the_word():
    with pytest.raises(PeltError) as caught:
        parse("method m { modfy ffn }")
    assert "`modify`" in caught.value.diagnostics[0].help


def test_expressions():
    assert errors("", parse_expression) == [("E0101", "")]
    assert errors("a b", parse_expression) == [("E0101", "b")]
    assert errors("1 +", parse_expression)[0][0] == "E0101"
    assert errors("(a", parse_expression) == [("E0102", "(")]
    assert "found `b`" in str(pytest.raises(PeltError, parse_expression, "a b").value)


def test_errors_pickle():
    error = pytest.raises(PeltError, parse, "form f { a = }").value
    assert pickle.loads(pickle.dumps(error)).diagnostics == error.diagnostics


# ---------------------------------------------------------------- bounds

HOSTILE = {
    "brackets": "compose a = " + "(" * 1000 + "x" + ")" * 1000,
    "calls": "compose a = " + "f(" * 1000 + ")" * 1000,
    "lists": "compose a = " + "[" * 70 + "]" * 70,
    "rows": "method m " + "{ use " * 100 + "}" * 100,
    "minus": "compose a = " + "- " * 5000 + "x",
    "choices": "compose a = " + "a if b else " * 2000 + "c",
    "powers": "compose a = " + "2**" * 5000 + "2",
    "sums": "compose a = " + "1 + " * 8000 + "1",
    "dots": "compose a = h" + ".T" * 8000,
    "digits": "compose a = " + "1" * 400_000,
    "words": "method a { x = 1 }\n" * 20_000,
    "error at the end": "method a { x = 1 }\n" * 2_500 + "}",
    "all wrong": "method a { x }\n" * 4_000,
    "docstrings": 'method a { """' + "x\n" * 500_000 + '""" }',
    "bytes": "x" * (2 << 20),
    "openings": "form x(a (b) form x( " * 1_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts_are_answered_with_little_work(name):
    """Calls of functions are counted, of Python's and of C's: some 6 million take a second."""
    tables.load()
    calls = 0

    def count(*_):
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    try:
        parse(HOSTILE[name])
        assert name == "docstrings"
    except PeltError as e:
        assert 1 <= len(e.diagnostics) <= 50
        assert len(str(e)) < 100_000
    finally:
        sys.setprofile(None)
    assert calls < 12_000_000  # each call counts twice: as it begins and as it ends


def test_what_is_allowed_can_be_walked():
    deep = parse_expression("(" * 64 + "x" + ")" * 64 + " + 1" * 100)
    calls = parse_expression("f(" * 64 + "x" + ")" * 64)
    for tree in (deep, calls):
        assert S.rewrite(tree, lambda n: n) == tree and pickle.loads(pickle.dumps(tree)) == tree
    assert errors("f(" * 65 + ")" * 65, parse_expression)[0][0] == "E0108"
    assert errors("1" + " + 1" * 101, parse_expression)[0][0] == "E0109"


# ---------------------------------------------------------------- sources


def test_reading(tmp_path):
    path = tmp_path / "a.pelt"
    path.write_bytes(b"\xef\xbb\xbfcompose c =\r\n  h\r")
    read = source.read(path)
    assert read.text == "compose c =\n  h\n" and parse(read).definitions[0].name == "c"
    assert read.position(read.text.index("h")) == (2, 3) and read.line(2) == "  h" and read.line(3) == ""
    assert texts.lookup(str(path)) == read


@pytest.mark.parametrize(
    ("data", "code"),
    [(None, "E0121"), ("folder", "E0122"), (b"\xff", "E0124"), (b"a\0b", "E0125"), (b" " * ((1 << 20) + 1), "E0126")],
)
def test_reading_what_cannot_be_read(tmp_path, data, code):
    path = tmp_path / "a.pelt"
    if data == "folder":
        path.mkdir()
    elif data is not None:
        path.write_bytes(data)
    (d,) = pytest.raises(PeltError, source.read, path).value.diagnostics
    assert d.code == code and d.help and "a.pelt" in str(PeltError(d))


def test_the_registry_is_bounded():
    for i in range(1000):
        texts.remember(texts.Source(f"file {i}", ""))
    assert texts.lookup("file 999") and texts.lookup("file 0") is None


# ---------------------------------------------------------------- anything else

VALID = """\
import "x.pelt"
method m(r: int = 8, a: float = 1e-3) from b(r) {
  \"\"\"Doc.\"\"\"
  layers 1 .. depth  modify attn.q, *.bias | ffn  insert ffn.norm(h + residual)
  form { axis e = n  frozen A: [d_in, r] ~ normal(0.02) per e, layers(k) lr 1  delta = z @ A[: r] if x else -z ** 2 }
  compose scaled(a / r)  use { train head lr 0.1 } as row gated by g  require r <= 1%, "why"
}
compose add = h + delta  # comment
anatomy a for bert { block: "x" }
"""
PIECES = re.findall(r'"""|\w+|\s+|[^\w\s]', VALID) + ['"', "#", "\n", "{", "}", "'", "\0", "é", "1e", "%"]


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=40).map("".join)))
@example("\ufeff")
@example('"""')
def test_any_text_gives_a_tree_or_errors(text):
    for entry in (parse, parse_expression):
        try:
            entry(text)
        except PeltError as e:
            assert e.diagnostics and all(d.code.startswith("E01") for d in e.diagnostics)
            assert all(0 <= d.span.start <= d.span.end <= len(text) + 1 for d in e.diagnostics)
            str(e)


def test_any_mutation_gives_a_tree_or_errors():
    rng = random.Random(7)
    broken = 0
    for _ in range(250):
        text = VALID
        for _ in range(rng.randint(1, 3)):
            a, b = sorted(rng.randrange(len(text) + 1) for _ in range(2))
            b = min(b, a + rng.choice((0, 1, 1, 4, 30)))
            text = text[:a] + rng.choice((rng.choice(PIECES), "")) + text[b:]
        try:
            parse(text)
        except PeltError as e:
            broken += 1
            str(e)
    assert broken > 100


@pytest.mark.parametrize("short, whole", [("6", "6 .. 7"), ("k", "k .. k + 1"), ("0", "0 .. 1")])
def test_one_layer_is_short_for_the_range_that_holds_it_alone(short, whole):
    text = "method m(k: int = 3) {{ layers {} modify attn compose h * 2 }}"
    assert parse(text.format(short)) == parse(text.format(whole))
    assert f"layers {whole}" in " ".join(to_text(parse(text.format(short))).split())
