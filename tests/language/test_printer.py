"""Tree to text and back: over the specs, by hand, and over random trees."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unipelt.language.syntax import nodes as S
from unipelt.language.report.diagnostics import PeltError
from unipelt.language.syntax.parser import parse, parse_expression
from unipelt.language.syntax.printer import canonical, to_text
from unipelt.language.syntax.build import RESERVED

from test_parser import VALID, specs_as_texts


def comes_back(tree):
    text = to_text(tree)
    again = parse(text)
    assert again == canonical(tree), text
    assert to_text(again) == text
    return text


@pytest.mark.parametrize("text", [*specs_as_texts(), VALID])
def test_specs_come_back(text):
    tree = parse(text)
    comes_back(tree)
    assert canonical(tree) == tree, "slots stand in the order layers, modify, insert, form, compose"


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("((a)+(b*c))", "a + b * c"),
        ("(a+b)*c", "(a + b) * c"),
        ("a-(b-c)", "a - (b - c)"),
        ("a*(b@c)", "a * (b @ c)"),
        ("(-a)**b", "(-a) ** b"),
        ("(a**b)**c", "(a ** b) ** c"),
        ("a**-(b)", "a ** -b"),
        ("-(a+b)", "-(a + b)"),
        ("- -a", "--a"),
        ("(a if b else c) if d else e", "(a if b else c) if d else e"),
        ("a if b else (c if d else e)", "a if b else c if d else e"),
        ("(a<b)==c", "(a < b) == c"),
        ("(a@b).T[ :r,:, i ]", "(a @ b).T[: r, :, i]"),
        ("f( x,act=relu, )", "f(x, act = relu)"),
        ("[a,[ ]]", "[a, []]"),
        ("1%", "1%"),
        ("4.0", "4.0"),
        (".00001", "1e-05"),
        ("1e300", "1e+300"),
    ],
)
def test_expressions(text, printed):
    tree = parse_expression(text)
    assert to_text(tree) == printed and parse_expression(printed) == tree


def test_a_method_in_canonical_form():
    text = """method m(r:int=4)from b(r){\"\"\"One.
      Two.\"\"\" form{w:[d_in]~zeros per site frozen down:[d_in,r]~init delta=z@down}|low_rank(r)
      modify attn,ffn|ffn   use{compose add form f}as row gated by g{insert x}  train*.bias lr 2 after step{E=1}}
      compose add=h+delta"""
    assert (
        comes_back(parse(text))
        == '''method m(r: int = 4) from b(r) {
  """One.
  Two.
  """
  modify attn, ffn | ffn
  form {
    w:           [d_in]    ~ zeros per site
    frozen down: [d_in, r] ~ init
    delta = z @ down
  } | low_rank(r)
  use {
    form    f
    compose add
  } as row gated by g {
    insert x
  }
  train  *.bias lr 2
  after step {
    E = 1
  }
}

compose add = h + delta
'''
    )


@pytest.mark.parametrize(
    "text",
    [
        'form f { """says "hi" """ }',
        'form f { """\n    deep\n  not""" }',
        "method m { layers (first + 1) .. 4 | (all) .. 2 tokens first first, since since }",
        "method m {}",
        "form f {}",
        "anatomy a for b {}",
        "form f { input t: index(2) input i: [v] carry s = a then b }",
        "method m { use lora gated by { g = 1 } use { } as x { } }",
        'method m { modify module("a.*b").weight }',
        "compose c { out, b = h }",
        "",
    ],
)
def test_corners_come_back(text):
    comes_back(parse(text))


def test_pieces_print_alone():
    (method,) = parse("method m(r: int = 1) { modify ffn form { a: [r] ~ zeros per layers(2) delta = a } }").definitions
    modify, form = method.clauses
    assert to_text(modify) == "modify ffn" and to_text(modify.alternatives[0][0]) == "ffn"
    assert to_text(form.alternatives[0].body[0]) == "a: [r] ~ zeros per layers(2)"
    assert to_text(form.alternatives[0]) == "{\n  a: [r] ~ zeros per layers(2)\n  delta = a\n}"
    assert to_text(method.params[0]) == "r: int = 1"


def test_what_cannot_be_written_is_refused():
    for node in (S.String('a"b'), S.Number(float("inf")), S.BodyDef("form", "f", doc='"""')):
        with pytest.raises(PeltError, match="E0130"):
            to_text(node)
    with pytest.raises(TypeError):
        to_text(3)


def test_negative_numbers_of_programs_come_back():
    tree = S.Binary("**", S.Number(-2), S.Number(-0.5))
    assert to_text(tree) == "(-2) ** -0.5" and parse_expression(to_text(tree)) == canonical(tree)


# ---------------------------------------------------------------- random trees

words = st.sampled_from(["a", "b1", "delta", "first", "all", "every", "formula", "T", "e5"])
values = words | st.sampled_from(sorted(RESERVED))  # values may be named like keywords
strings = st.text(st.characters(exclude_characters='"\n\0\r', exclude_categories=["Cs"]), max_size=5)
numbers = st.builds(
    S.Number, st.integers(0, 10**6) | st.floats(0, allow_infinity=False, allow_nan=False), st.booleans()
)
names = st.builds(S.Name, values)
callees = st.builds(lambda n, p: S.Attr(n, p) if p else n, names, st.none() | values)


def grow(inner):
    args = st.lists(st.builds(S.Arg, inner, st.none() | values), max_size=2).map(tuple)
    items = st.lists(inner | st.builds(S.Slice, st.none() | inner, st.none() | inner), min_size=1, max_size=2)
    return st.one_of(
        st.builds(S.Attr, inner, values),
        st.builds(S.Apply, callees, args),
        st.builds(S.Index, inner, items.map(tuple)),
        st.builds(S.Negative, inner),
        st.builds(S.Binary, st.sampled_from(["+", "-", "*", "/", "@", "**"]), inner, inner),
        st.builds(S.Compare, st.sampled_from(["==", "!=", "<=", ">=", "<", ">"]), inner, inner),
        st.builds(S.Choose, inner, inner, inner),
        st.builds(S.ListOf, st.lists(inner, max_size=2).map(tuple)),
    )


exprs = st.recursive(numbers | names | strings.map(S.String), grow, max_leaves=5)
some = st.recursive(numbers | names, grow, max_leaves=2)


def many(strategy, least=0, most=2):
    return st.lists(strategy, min_size=least, max_size=most).map(tuple)


calls = st.builds(S.Apply, names, many(st.builds(S.Arg, some, st.none() | values)))
scopes = st.builds(S.Scope, values, st.none() | some)
lets = st.builds(S.Let, many(words, 1), exprs)
statements = st.one_of(
    st.builds(S.Tensor, words, many(some), some, st.booleans(), st.booleans(), many(scopes), st.none() | some),
    lets,
    st.builds(S.Axis, words, some),
    st.builds(S.Require, some, st.none() | strings),
    st.builds(S.Later, st.just("penalty"), values=st.tuples(some)),
    st.builds(S.Later, st.just("carry"), st.tuples(words), values=st.tuples(some, some)),
    st.builds(S.Input, words, calls),
    st.builds(S.Input, words, st.none(), many(some)),
    st.builds(S.Later, st.just("after step"), body=many(lets)),
)
blocks = st.builds(S.Block, many(statements))
paths = st.builds(S.Path, many(values | st.just("*"), 1))
selections = st.one_of(
    st.sampled_from([S.Selection("all"), S.Selection("inserted")]),
    st.builds(S.Selection, st.sampled_from(["first", "last", "every", "since"]), st.tuples(some)),
    st.builds(S.Selection, st.just("range"), st.tuples(some, some)),
)
slots = st.one_of(
    st.builds(S.Modify, many(many(paths, 1), 1)),
    st.builds(S.Insert, many(some, 1)),
    st.builds(S.Form, many(calls | blocks, 1)),
    st.builds(S.Compose, many(some | blocks, 1)),
    st.builds(S.Layers, many(selections, 1)),
    st.builds(S.Tokens, many(selections, 1)),
    st.builds(S.Train, many(paths, 1), st.none() | some),
    statements,
)
uses = st.builds(
    S.Use, calls | st.builds(S.RowBlock, many(slots)), st.none() | values, st.none() | calls | blocks, many(slots)
)
docs = st.none() | st.sampled_from(["One.", "One.\n\n  Two.\nThree", '  deep\nand "quoted"', "ends in a backslash \\"])
params = many(st.builds(S.Param, values, values, st.none() | some))
definitions = st.one_of(
    st.builds(S.MethodDef, words, params, st.none() | calls, docs, many(slots | uses, most=3)),
    st.builds(S.BodyDef, st.sampled_from(["form", "compose", "gate"]), words, params, docs, many(statements)),
    st.builds(S.AnatomyDef, words, many(values, 1), docs, many(st.tuples(paths.map(str), strings))),
)
files = st.builds(S.File, many(st.builds(S.Import, strings)), many(definitions))
quick = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@quick
@given(exprs)
def test_random_expressions_come_back(tree):
    assert parse_expression(to_text(tree)) == tree


@quick
@given(files)
def test_random_files_come_back(tree):
    comes_back(tree)
