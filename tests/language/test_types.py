"""What the checker infers of right methods: signatures, types, verdicts; the IR as text and as JSON."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from names import CLASSICS, name as named, spec

import unipelt
from unipelt.language.analyse.method import analyse
from unipelt.language.types.rows import check_row
from unipelt.language.types.typed import Sizes, TypedRow
from unipelt.language.analyse.counts import formula
from unipelt.language.report.diagnostics import PeltError
from unipelt.resources import folder
from unipelt.language.versions import TYPES_SCHEMA
from unipelt.language.write.typed import MethodData, json_schema as types_schema
from unipelt.language.ir import SCHEMA, Method, as_file, from_json, json_schema, to_json
from unipelt.language.loading import library, load, parse as parse_as_it_is
from unipelt.language.syntax.parser import parse as parse_file
from unipelt.language.syntax.printer import to_text
from unipelt.language.analyse.verdicts import verdicts
from unipelt.language.sites import SITES, signature
from unipelt.language.syntax.nodes import Let, Tensor


def parse(text: str, *more: str) -> Method:
    return parse_as_it_is(spec(text), *more)


METHODS = [e.name for e in library() if e.kind == "method"]


def typing(
    body: str, site: str = "ffn", params: str = "r: int = 4", compose: str = "add", insert: str = "insert parallel"
) -> TypedRow:
    (t,) = analyse(parse(f"method m({params}) {{ modify {site} {insert} form {{ {body} }} compose {compose} }}")).rows
    return t


def shown(t: TypedRow, name: str) -> str:
    return str(t.values[name].type)


def bound(t: TypedRow) -> set[str]:
    return {n for s in (*t.row.form, *t.row.compose) if isinstance(s, Let) for n in s.names}


# ---------------------------------------------------------------- signatures


@pytest.mark.parametrize(
    ("form", "site", "reads", "binds"),
    [
        ("attend(3)", "attn.heads", {"q", "scale"}, {"delta", "scores"}),
        ("attend_mlp(3, 5)", "attn.heads", {"q", "scale"}, {"delta", "scores", "H"}),
        ("bottleneck(3)", "ffn", {"z"}, {"delta"}),
        ("low_rank(3)", "attn.q", {"z"}, {"delta"}),
    ],
)
def test_what_a_form_reads_and_binds(form: str, site: str, reads: set[str], binds: set[str]) -> None:
    (t,) = analyse(
        parse(f"method m {{ modify {site} insert parallel form {form} compose {{ out = h + delta }} }}")
    ).rows
    assert t.row.reads & {"x", "z", "q", "k", "v", "W", "scale", "residual", "log_mass"} == reads
    assert bound(t) - {"out"} == binds


@pytest.mark.parametrize(("form", "missing"), [("bottleneck(3)", {"scores"}), ("low_rank(3)", {"scores"})])
def test_a_composition_that_reads_what_the_form_does_not_bind_does_not_fit(form: str, missing: set[str]) -> None:
    text = spec(f"method misfit {{ modify attn.heads insert parallel form {form} compose share_softmax }}")
    with pytest.raises(PeltError) as caught:
        parse(text)
    assert {d.code for d in caught.value.diagnostics} == {"E0301"}
    assert {m for m in missing if f"`{m}`" in str(caught.value)} == missing
    (label,) = caught.value.diagnostics[0].labels  # the mistake shows in the library; the label leads to this method
    assert text[label.span.start : label.span.end] == "misfit" and "misfit" in label.text
    assert parse(text.replace(spec(form), "attend(3)")).rows


def test_an_attention_form_does_not_fit_where_there_are_no_queries() -> None:
    with pytest.raises(PeltError) as caught:
        parse("method m { modify ffn insert parallel form attend(3) compose add }")
    assert "`q`" in str(caught.value)


# ---------------------------------------------------------------- types


@pytest.mark.parametrize("site", [s for s in SITES if not SITES[s].takes_rows])
def test_every_site_takes_its_own_h(site: str) -> None:
    (t,) = analyse(parse(f"method m {{ modify {site} compose {{ out = 2 * h }} }}")).rows
    found = signature(site)
    assert found is not None and t.out.type == found.h and "batch" in found.h.axes


def test_types_of_a_bottleneck_and_of_attention() -> None:
    t = typing("A: [d_in, r] ~ zeros B: [r, d_out] ~ zeros a = z @ A b = relu(a) delta = b @ B")
    assert [shown(t, n) for n in ("A", "a", "b", "delta")] == [
        "[d_model, r]",
        "batch, token, [r]",
        "batch, token, [r]",
        "batch, token, [d_model]",
    ]
    t = typing("P: [r, d_head] ~ zeros per group s = q @ P.T p = P.T u = sum(s) delta = s @ P", site="attn.heads")
    assert [shown(t, n) for n in ("P", "p", "s", "u", "delta")] == [
        "group, [r, d_head]",
        "group, [d_head, r]",
        "batch, head, token, [r]",
        "batch, head, token, []",
        "batch, head, token, [d_head]",
    ]


def test_head_refines_group_in_either_order() -> None:
    for product in ("q * g", "g * q", "q @ G", "sum(g) * q"):
        g = "g1: [d_head] ~ zeros per group G: [d_head, d_head] ~ zeros per group delta = " + product.replace("g", "g1")
        assert shown(typing(g, site="attn.heads"), "delta") == "batch, head, token, [d_head]"


def test_only_a_literal_one_stretches() -> None:
    t = typing("a: [1, d_out] ~ zeros b: [r, 1] ~ zeros c = a * b delta = sum(c, 0) * z")
    assert shown(t, "c") == "[r, d_model]" and shown(t, "delta") == "batch, token, [d_model]"
    with pytest.raises(PeltError) as caught:  # r may be 1, but it is not written so
        typing("a: [r] ~ zeros b: [d_out] ~ zeros delta = z * (a + b)")
    assert caught.value.diagnostics[0].code == "E0310"
    t = typing("b: [] ~ zeros delta = b * z")
    assert shown(t, "delta") == "batch, token, [d_model]"


def test_sizes_are_polynomials_not_texts() -> None:
    t = typing("A: [d_in, 2 * r - r] ~ zeros B: [(r + r) / 2, d_out] ~ zeros delta = z @ A @ B")
    assert shown(t, "A") == "[d_model, r]"
    t = typing("A: [r, d_in / r] ~ zeros B: [d_out * r / (r * r), d_out] ~ zeros delta = sum(A @ B, 0) * z")
    assert shown(t, "A") == "[r, d_model / r]"
    with pytest.raises(PeltError):
        typing("A: [d_in, r * r] ~ zeros B: [2 * r, d_out] ~ zeros delta = z @ A @ B")


def test_ranges_of_sizes() -> None:
    t = typing("A: [8, d_out] ~ zeros a = A[2 : 5, :] b = A[: r] c = A[-3 :] delta = sum(a, 0) * z")
    assert [shown(t, n) for n in "abc"] == ["[3, d_model]", "[r, d_model]", "[3, d_model]"]


def test_the_scope_by_default_is_the_site_and_its_heads() -> None:
    scopes = {
        "": ("site", {"head"}),
        "per group": ("site", {"group"}),
        "per layer": ("layer", set()),
        "per model": ("model", set()),
        "per kind, group": ("kind", {"group"}),
        "per site": ("site", set()),
    }
    for text, (place, axes) in scopes.items():
        (x,) = typing(f"P: [d_head] ~ zeros {text} delta = q * P", site="attn.heads").tensors
        assert (x.owner.each, set(x.type.axes)) == (place, axes), text
    (x,) = typing("P: [d_out] ~ zeros delta = z * P").tensors
    assert (x.owner.each, x.type.axes) == ("site", frozenset())


def test_a_scope_or_a_site_may_be_a_parameter() -> None:
    text = "form f(share: scope) { P: [d_out] ~ zeros per share delta = P * z }\n"
    text += (
        "method m(at: sites = [attn, ffn], share: scope = layer) { modify at insert parallel form "
        "f(share) compose add }"
    )
    for share, place in (("layer", "layer"), ("model", "model")):
        typings = analyse(parse(text, "m")(share=share)).rows
        assert [t.site.name for t in typings] == ["attn", "ffn"]
        assert {x.owner.each for t in typings for x in t.tensors} == {place}
    assert [t.site.name for t in analyse(parse(text, "m")(at="block")).rows] == ["block"]


def test_a_called_gate_brings_its_tensors_under_the_name_of_the_let() -> None:
    t = typing("G = token_gate(x) delta = G * z")
    assert [(x.name, str(x.type), x.owner.each) for x in t.tensors] == [
        ("G_w", "[d_model]", "site"),
        ("G_b", "[]", "site"),
    ]
    assert shown(t, "G") == "batch, token, []"
    t = typing("F = token_gate(x) G = token_gate(2 * x) delta = F * G * z")
    assert [x.name for x in t.tensors] == ["F_w", "F_b", "G_w", "G_b"]
    t = typing("A: [d_in, 3] ~ zeros B: [3, d_out] ~ zeros G = token_gate(z @ A) delta = G * z @ A @ B")
    assert {x.name: str(x.type) for x in t.tensors}["G_w"] == "[3]", "the gate is as wide as what it reads"
    t = typing("delta = (1 - token_gate(x)) * z")  # inside an expression: still apart from other tensors
    assert len(t.tensors) == 2 and len({x.name for x in t.tensors}) == 2


def test_a_wrapped_gate_keeps_names_apart_from_those_of_the_form() -> None:
    text = (
        "method m { use { modify ffn insert parallel form { w: [d_in] ~ ones delta = w * z } compose add "
        "} as a gated by token_gate }"
    )
    (t,) = analyse(parse(text)).rows
    assert sorted(x.label for x in t.tensors) == ["gate.b", "gate.w", "w"]
    assert t.out.type == SITES["ffn"].h


def test_weight_sites_check_though_they_are_not_built() -> None:
    text = """method dora(r: int = 8, alpha: float = 16.0) {
      modify attn.q.weight, attn.v.weight
      form { A: [d_in, r] ~ kaiming_uniform(sqrt(5)) B: [r, d_out] ~ zeros delta = A @ B }
      compose { m: [d_out] = norm(W, 0) V = W + alpha / r * delta out = m * V / stop_gradient(norm(V, 0)) }
    }"""
    q, v = analyse(parse(text)).rows
    assert [str(x.type) for x in q.tensors] == ["[d_model, r]", "[r, d_q]", "[d_q]"]
    assert str(v.out.type) == "[d_model, d_kv]"


def test_bound_arguments_are_numbers_in_a_plan_and_symbols_before() -> None:
    (row,) = parse("method m(r: int = 4) { modify ffn insert parallel form low_rank(r) compose add }").rows
    site = signature("ffn")
    assert site is not None
    method = parse("method m(r: int = 4) { modify ffn insert parallel form low_rank(r) compose add }")
    assert str(check_row(row, site, method.params).tensors[0].type) == "[d_model, r]"
    sizes = Sizes({"d_model": 32})
    assert str(check_row(row, site, method(r=7).params, sizes).tensors[0].type) == "[32, 7]"


def test_verdicts_of_words() -> None:
    def of(form: str, site: str = "attn.q") -> dict[str, str]:
        m = parse(
            (
                f"method m {{ modify {site} insert parallel form {{ A: [d_in, d_out] ~ zeros delta = {form} }} "
                f"compose add }}"
            )
        )
        return {k: v.value for k, v in verdicts(m).items()}

    asked = ("identity at start", "mergeable", "causal", "cache-consistent", "padding-invariant", "batch-independent",
             "deterministic in training")  # fmt: skip
    yes = {**dict.fromkeys(asked, "yes"), "foldable": "no"}
    assert of("z @ A") == yes
    assert of("relu(z @ A)") == {**yes, "mergeable": "no"}
    assert of("mean(z, tokens) @ A")["causal"] == of("mean(z, tokens) @ A")["cache-consistent"] == "no"
    assert of("mean(z, positions) @ A") == {**of("mean(z, tokens) @ A"), "padding-invariant": "no"}
    assert of("running_mean(z) @ A")["causal"] == "yes"
    assert of("first(z, positions) @ A")["causal"] == "yes" and of("last(z, positions) @ A")["causal"] == "no"
    assert of("z @ A", "ffn")["mergeable"] == "no" and of("2 * x @ A * sum(x)")["mergeable"] == "no"


# ---------------------------------------------------------------- the IR as text and JSON


@pytest.mark.parametrize("name", METHODS)
def test_text_and_json_of_a_library_method_give_it_back(name: str) -> None:
    method = load(name)
    text = str(method)
    again = parse_as_it_is(text)
    assert again == method and str(again) == text
    for word in ("from ", "import "):
        assert not any(line.strip().startswith(word) for line in text.split("\n")), "the text stands alone"
    data = json.loads(json.dumps(to_json(method)))
    assert data["schema"] == SCHEMA and from_json(data) == method and from_json(json.dumps(data)) == method
    assert {(s.name, s.per, s.lr) for r in from_json(data).rows for s in r.form if isinstance(s, Tensor)} == {
        (s.name, s.per, s.lr) for r in method.rows for s in r.form if isinstance(s, Tensor)
    }
    assert to_text(parse_file(text)) == to_text(as_file(method))


def test_texts_stand_alone_without_the_library() -> None:
    """In a process in which the library is empty, each text still elaborates and checks."""
    script = """
import json, sys
import unipelt.language.library as library
library.index = lambda: {}
library.library_definition = lambda what, name: None
library.library_names = lambda what: []
from unipelt.language.loading import parse
for text in json.load(sys.stdin):
    assert parse(text).name
print("all")
"""
    texts = json.dumps([str(load(n)) for n in METHODS])
    done = subprocess.run([sys.executable, "-c", script], input=texts, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.strip() == "all", done.stderr


def test_arguments_stay_in_the_text() -> None:
    method = load(named("lora"))(r=3, alpha=6, dropout=0.25, at="[attn.q, cross.q]")
    kept = {"r": 3, "alpha": 6.0, "dropout": 0.25, "at": "[attn.q, cross.q]", "init": "kaiming_uniform(sqrt(5))"}
    assert parse_as_it_is(str(method)).arguments == kept == method.arguments
    assert from_json(to_json(method)) == method != load(named("lora"))


def test_the_schema_of_the_ir_is_published_and_holds() -> None:
    schema = json_schema()
    assert schema["$id"] == SCHEMA and schema["type"] == "object" and {"rows", "params"} <= set(schema["properties"])
    published = json.loads((folder("grammar") / "unipelt-ir-1.schema.json").read_text("utf-8"))
    assert published == json.loads(json.dumps(schema)), "the IR changed: publish a new schema under a new version"
    for key in ("name", "params", "rows", "trains"):
        assert key in to_json(load(named("lora")))["method"]


@pytest.mark.parametrize(
    ("broken", "code"),
    [
        ("{", "E0410"),
        pytest.param("[" * 100_000, "E0410", id="nested"),
        ("[]", "E0411"),
        ("{}", "E0411"),
        ('{"schema": "unipelt-ir/999"}', "E0411"),
        ('{"schema": "unipelt-ir/1"}', "E0410"),
        ('{"schema": "unipelt-ir/1", "method": 3}', "E0410"),
        ('{"schema": "unipelt-ir/1", "method": {"name": "m", "rows": [{"name": 3}]}}', "E0410"),
    ],
)
def test_broken_json_is_refused(broken: str, code: str) -> None:
    with pytest.raises(PeltError) as caught:
        from_json(broken)
    assert [d.code for d in caught.value.diagnostics] == [code]


def test_a_tree_that_was_tampered_with_is_refused() -> None:
    data = to_json(load(named("lora")))
    data["method"]["rows"][0]["form"][0]["kind"] = "exec"
    with pytest.raises(PeltError) as caught:
        from_json(data)
    assert caught.value.diagnostics[0].code == "E0410"


def test_a_tree_that_no_text_gives_is_checked_too() -> None:
    """Texts are refused before they become one: a name with a meaning of its own is bound here."""
    text = "method m { modify ffn insert parallel form { A: [d_in, d_out] ~ zeros  y = z @ A  delta = y } compose h + delta }"
    method = from_json(json.dumps(to_json(parse(text))).replace('"y"', '"x"'))
    with pytest.raises(PeltError) as caught:
        analyse(method)
    (d,) = caught.value.diagnostics
    assert d.code == "E0224" and "`x` has a meaning of its own here" in d.message


# ---------------------------------------------------------------- formulas


def formulas(text: str) -> dict[str, str]:
    return formula(parse(text))


def test_formulas_of_counts() -> None:
    head = "method m(r: int = 4, top: int = 2) { "
    row = "insert parallel form { A: [d_in, r] ~ zeros B: [r, d_out] ~ zeros delta = z @ A @ B } compose add }"
    assert formulas(head + "modify ffn " + row)["trained"] == "2 L d_model r"
    assert formulas(head + "modify attn, ffn " + row)["trained"] == "4 L d_model r"
    assert formulas(head + "layers last top modify ffn " + row)["trained"] == "2 d_model min(top, L) r"
    assert formulas(head + "modify attn.k " + row)["trained"] == "L d_head groups r + L d_model r"
    shared = row.replace("zeros B", "zeros per kind B").replace("zeros delta", "zeros per model delta")
    assert formulas(head + "modify attn, ffn " + shared)["trained"] == "3 d_model r"
    frozen = formulas(head + "modify ffn " + row.replace("A:", "frozen A:"))
    assert (frozen["trained"], frozen["frozen"]) == ("L d_model r", "L d_model r")
    assert formulas("method m { train *.bias }")["trained"] == "every bias"
    assert (
        formulas("method m { layers first 3 train block }")["trained"]
        == "every parameter of `block` in min(3, L) layers"
    )
    assert formulas("method m { train head }") == {
        "trained": "0",
        "stored": "0",
        "frozen": "0",
        "head": "the model's own head",
    }
    assert formulas("method m { use lora(2) use { train *.norm.* } as n }")["trained"].endswith(
        " + every norm's parameters"
    )
    folds = formulas(
        "method m { modify ffn insert parallel form { E: [d_in, 9] ~ zeros F: [9, d_out] ~ zeros G = E @ F "
        "delta = z @ G } compose add }"
    )
    assert (folds["trained"], folds["stored"]) == ("18 L d_model", "L d_model^2 (folded)")


def test_every_type_of_the_api_is_a_value() -> None:
    method: Method = load(named("lora"))
    with pytest.raises(AttributeError):
        method.name = "other"  # type: ignore[misc]


def test_the_types_of_every_method_fit_on_a_page_and_go_to_json() -> None:
    from pydantic import TypeAdapter

    published = json.loads((folder("grammar") / "unipelt-types-1.schema.json").read_text("utf-8"))
    assert published == json.loads(json.dumps(types_schema())), "publish a new schema under a new version"
    assert published["$id"] == TYPES_SCHEMA
    fits = TypeAdapter(MethodData)
    for name in METHODS:
        found = analyse(load(name))
        lines = str(found).splitlines()
        if name in map(named, CLASSICS):  # others have more lines, or edit more sites
            assert 0 < len(lines) <= 60 and max(map(len, lines)) <= 160, name
        data = json.loads(json.dumps(found.to_json()))
        assert fits.dump_python(fits.validate_python(data), mode="json") == data
        assert [r["site"] for r in data["rows"]] == [t.place for t in found.rows]
        for row, t in zip(data["rows"], found.rows):
            if "require" not in str(load(name)):  # by which a size may be another one
                assert row["out"]["sizes"] == [str(s) for s in t.site.h.sizes]
            assert {b["name"] for b in row["bindings"] if b["owner"]} == {x.name for x in t.tensors}


def test_types_as_a_text() -> None:
    text = """method m(r: int = 4) {
      use {
        modify attn, ffn insert parallel
        form { A: [d_in, r] ~ normal(0.02) per kind  frozen s: [] ~ ones  delta = tanh(z @ A) @ A.T }
        compose h + s * delta
      } as a gated by { w: [d_in, 1] ~ zeros  g = sigmoid(mean(z, tokens) @ w) }
      train *.bias
    }"""
    assert str(analyse(parse(text))).splitlines() == [
        "a at attn, ffn",
        "  z       batch, token, [d_model]  affine                         = x",
        "  A       [d_model, r]             one for each kind              ~ normal(0.02)",
        "  s       []                       one for each site              frozen ~ ones",
        "  delta   batch, token, [d_model]  not affine                     = tanh(z @ A) @ A.T",
        "  gate w  [d_model, 1]             one for each site              ~ zeros",
        "  gate g  batch, [1]               not affine, sees later tokens  = sigmoid(mean(z, tokens) @ w)",
        "  out     batch, token, [d_model]  not affine                     = h + s * delta",
        "  out     batch, token, [d_model]  not affine, sees later tokens  = h + g * (out - h)",
        "",
        "train *.bias",
    ]


def test_equal_methods_of_two_files_have_places_of_their_own() -> None:
    text = spec("method m(r: int = 4) { modify ffn insert parallel form bottleneck(r) compose add }")
    one, other = parse_as_it_is(text, file="one.pelt"), parse_as_it_is(f"\n\n{text}", file="other.pelt")
    assert one == other
    places = [{k: v.span for k, v in verdicts(m).items()} for m in (one, other)]
    assert {s.file for s in places[1].values()} <= {"other.pelt", places[0]["identity at start"].file}
    assert all(places[1][k].start == s.start + 2 for k, s in places[0].items() if s.file == "one.pelt")
    assert any(s.file == "one.pelt" for s in places[0].values())
    assert analyse(one).rows[0].row is one.rows[0] and analyse(other).rows[0].row is other.rows[0]


def test_types_with_a_models_sizes() -> None:
    method = parse("method m(r: int = 4) { modify ffn insert parallel form low_rank(r) compose add }")
    sizes = {"d_model": 32, "layer": 0, "depth": 2}
    assert [str(t.type) for t in analyse(method, sizes).rows[0].tensors] == ["[32, 4]", "[4, 32]"]
    assert analyse(method, sizes) is analyse(method, dict(sizes)) is not analyse(method)
    for wrong in ({"d_modle": 32}, {"d_model": 0}, {"layer": -1}):
        with pytest.raises(PeltError, match=next(iter(wrong))):
            analyse(method, wrong)


def test_sizes_that_analyse_cannot_take() -> None:
    lora = unipelt.load(named("lora"))
    for sizes, said, remedy in (
        ({"d_modl": 3}, "`analyse` knows no size `d_modl`", "did you mean `d_model`?"),
        ({"d_model": 0}, "the size `d_model` of `analyse` is 0", "at least 1"),
        ({"d_model": "x"}, "whose keys are texts and whose values are whole numbers", "unipelt.analyse("),
    ):
        with pytest.raises(PeltError) as caught:
            unipelt.analyse(lora, sizes)
        (d,) = caught.value.diagnostics
        assert d.code == "E0593" and said in d.message and remedy in d.help
