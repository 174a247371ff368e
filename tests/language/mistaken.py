"""Wrong methods: a mistake each, with the code of the error it must give and words of its message or remedy.

``⟦…⟧`` marks the place that the error must name, to the letter.
"""

from __future__ import annotations

from names import spec

CASES: dict[str, tuple[str, str, str]] = {}


def case(name: str, code: str, text: str, words: str = "") -> None:
    """``words``, divided by `;`, must all occur in the message, help, label or bindings."""
    assert name not in CASES
    CASES[name] = (code, spec(text), words)


def in_form(name: str, code: str, body: str, words: str = "", params: str = "r: int = 4", site: str = "ffn") -> None:
    """A method whose only mistake stands in its form."""
    case(name, code, f"method m({params}) {{ modify {site} insert parallel form {{ {body} }} compose add }}", words)


def in_compose(name: str, code: str, slot: str, words: str = "", site: str = "ffn") -> None:
    case(name, code, f"method m(r: int = 4) {{ modify {site} insert parallel form low_rank(r) compose {slot} }}", words)


def whole(name: str, code: str, clauses: str, words: str = "", params: str = "r: int = 4") -> None:
    case(name, code, f"method m({params}) {{ {clauses} }}", words)


# ---------------------------------------------------------------- sizes

in_form(
    "matmul", "E0312", "A: [d_in, r] ~ zeros delta = z @ A @ ⟦A⟧", "last size r; first size d_model; r = 4 (parameter)"
)
in_form("matmul_turned", "E0312", "A: [d_in, r] ~ zeros B: [r, d_out] ~ zeros delta = z @ A @ ⟦B.T⟧", "sizes of `@`")
in_form(
    "matmul_turn_helps", "E0312", "P: [r, d_in] ~ zeros Q: [r, d_out] ~ zeros delta = z @ ⟦P⟧ @ Q", "`P.T` would fit"
)
in_form(
    "matmul_near",
    "E0312",
    "A: [d_in, r] ~ zeros B: [rr, d_out] ~ zeros delta = z @ A @ ⟦B⟧",
    "did you mean `r`?",
    params="r: int = 4, rr: int = 4",
)
in_form(
    "plus",
    "E0310",
    "A: [d_in, r] ~ zeros b: [2*r] ~ zeros B: [r, d_out] ~ zeros delta = (z @ A + ⟦b⟧) @ B",
    "`+` do not agree: r and 2 r",
)
in_form("times", "E0310", "u: [r] ~ zeros delta = z * ⟦u⟧", "d_model and r")
in_form("matmul_scalar", "E0313", "b: [] ~ zeros delta = z @ ⟦b⟧", "has none; use `*`")
in_form("matmul_number", "E0313", "delta = z @ ⟦2⟧", "use `*`")
in_form("matmul_numbers", "E0318", "A: [⟦r @ 2⟧, 3] ~ zeros delta = z", "numbers take `*`")
in_form("transpose_vector", "E0314", "b: [r] ~ zeros delta = ⟦b.T⟧", "last two sizes")
in_form("fraction_symbol_ok_number_not", "E0343", "A: [d_in, ⟦1/3⟧] ~ zeros delta = z", "whole number")
in_form("zero_size", "E0343", "A: [d_in, ⟦0⟧] ~ zeros delta = z", "at least 1")
in_form("negative_size", "E0343", "A: [d_in, ⟦0 - 2⟧] ~ zeros delta = z", "at least 1; -2")
in_form("float_size", "E0340", "A: [d_in, ⟦2.5⟧] ~ zeros delta = z", "whole number")
in_form("float_parameter_size", "E0340", "A: [d_in, ⟦s⟧] ~ zeros delta = z", "whole number", params="s: float = 4.0")
in_form("tensor_size", "E0340", "b: [r] ~ zeros A: [d_in, ⟦b⟧] ~ zeros delta = z", "whole number; [r]")
in_form("huge_tensor", "E0346", "⟦A: [10**9, 10**9] ~ zeros⟧ delta = z", "1,000,000,000,000,000,000 entries; smaller")
in_form("huge_power", "E0318", "A: [d_in, ⟦10 ** 10 ** 10⟧] ~ zeros delta = z", "cannot be computed")
in_form("nested_powers", "E0318", "A: [⟦9 ** (9 ** 9)⟧] ~ zeros delta = z", "cannot be computed")
in_form("division_by_zero", "E0318", "A: [⟦r / 0⟧] ~ zeros delta = z", "cannot be computed")
in_form("index_empty", "E0319", "A: [8, d_out] ~ zeros delta = A[⟦4 : 2⟧, :]", "empty")
in_form("index_too_many", "E0319", "b: [8] ~ zeros delta = ⟦b[0 : 1, 0 : 1]⟧", "no 2 sizes")
in_form("index_float", "E0319", "b: [d_out] ~ zeros delta = b[0 : ⟦2.5⟧]", "whole number")

# ---------------------------------------------------------------- names

in_form("unknown_name", "E0301", "A: [d_in, r] ~ zeros B: [r, d_out] ~ zeros delta = z @ A @ ⟦C⟧", "no `C`; in scope")
in_form("near_name", "E0301", "down: [d_in, d_out] ~ zeros delta = z @ ⟦dwn⟧", "`down`")
in_form("near_size", "E0301", "down: [d_in, ⟦d_outt⟧] ~ zeros delta = z @ down", "`d_out`")
in_form("near_function", "E0320", "delta = ⟦reluu⟧(z)", "`relu`")
in_form("unknown_module", "E0320", "delta = ⟦attn.k⟧(z)", "no function `attn.k`; ffn.norm")
in_form("module_not_called", "E0322", "delta = ⟦ffn.norm⟧", "call it")
in_form("near_module", "E0301", "delta = ⟦ffn.nrm⟧", "`ffn.norm`")
in_form(
    "module_of_another_size",
    "E0312",
    "P: [r, d_ff] ~ zeros delta = heads(attn.v(⟦P⟧))",
    "d_model; d_ff",
    site="attn.heads",
)
in_form("h_in_form", "E0303", "delta = ⟦h⟧", "visible to compositions, not to forms")
in_form("q_elsewhere", "E0301", "delta = ⟦q⟧", "no `q`")
in_form("W_at_sublayer", "E0301", "delta = z @ ⟦W⟧", "no `W`")
in_form("too_many_arguments", "E0321", "delta = ⟦relu(z, 2)⟧", "takes 1 argument, 2 are given")
in_form("named_argument", "E0321", "delta = ⟦drop(z, p = 0.1)⟧", "by position")
in_form("word_in_arithmetic", "E0317", "delta = z + ⟦gelu⟧", "takes tensors and numbers")
in_form("function_of_word", "E0331", "delta = ⟦tanh(gelu)⟧", "takes a tensor")
in_form("dropout_range", "E0332", "delta = drop(z, ⟦1.5⟧)", "[0, 1)")
in_form("no_size_to_reduce", "E0333", "b: [] ~ zeros delta = z * ⟦sum(b)⟧", "no size")
in_form("reduce_word", "E0334", "delta = mean(z, ⟦gelu⟧)", "tokens")
in_form("reduce_absent_axis", "E0335", "b: [d_out] ~ zeros delta = mean(b, ⟦tokens⟧)", "no axis `token`")
in_form("branches", "E0316", "delta = z if r > 2 else ⟦1⟧", "branches differ")
in_form("z_without_insert", "E0303", "delta = ⟦z⟧", "no `insert`")
CASES["z_without_insert"] = ("E0303", CASES["z_without_insert"][1].replace(" insert parallel", ""), "no `insert`")

# ---------------------------------------------------------------- tensors

in_form("near_distribution", "E0341", "A: [d_in, d_out] ~ ⟦kaiming_unifrom(5)⟧ delta = z @ A", "`kaiming_uniform`")
in_form("unknown_distribution", "E0341", "A: [d_in, d_out] ~ ⟦cauchy⟧ delta = z @ A", "known: zeros")
in_form("distribution_arity", "E0321", "A: [d_in, d_out] ~ ⟦uniform(1)⟧ delta = z @ A", "takes 2 arguments; uniform")
in_form("distribution_argument", "E0331", "A: [d_in, d_out] ~ normal(⟦gelu⟧) delta = z @ A", "numbers")
in_form("text_for_number", "E0331", 'A: [d_in, d_out] ~ normal(⟦"a"⟧) delta = z @ A', "numbers")
in_form("near_scope", "E0342", "A: [d_in, d_out] ~ zeros per ⟦modle⟧ delta = z @ A", "`model`")
in_form("unknown_scope", "E0342", "A: [d_in, d_out] ~ zeros per ⟦galaxy⟧ delta = z @ A", "owners: model, kind")
in_form("head_at_sublayer", "E0347", "A: [d_in, d_out] ~ zeros per ⟦head⟧ delta = z @ A", "`ffn` has no axis `head`")
in_form("declared_twice", "E0348", "A: [d_in, d_out] ~ zeros ⟦A: [d_in, d_out] ~ ones⟧ delta = z @ A", "twice")
in_form("start_of_another_type", "E0344", "m: [r] = ⟦2 * x⟧ delta = z", "declared as [r]")
in_form("lr_is_a_word", "E0345", "A: [d_in, d_out] ~ zeros lr ⟦gelu⟧ delta = z @ A", "learning-rate")
in_form("rebinds_x", "E0224", "⟦x = 2 * z⟧ delta = z", "`x`; another name")
in_form("tensor_called_W", "E0224", "⟦W: [d_in, d_out] ~ zeros⟧ delta = z", "`W`; another name")
in_form("shadows_parameter", "E0223", "⟦r: [d_in, d_out] ~ zeros⟧ delta = z @ r", "parameter; rename")
in_form("let_shadows_parameter", "E0223", "⟦r = 2 * z⟧ delta = z", "parameter; rename")
in_form("false_requirement", "E0360", '⟦require 1 > 2, "one is not two"⟧ delta = z', "one is not two")
in_form("requirement_of_a_word", "E0361", "⟦require gelu⟧ delta = z", "condition")
in_form("heads_elsewhere", "E0336", "delta = ⟦heads(z @ z)⟧", "heads")
CASES["heads_elsewhere"] = (
    "E0336",
    spec(
        "method m { modify attn.heads insert parallel form { P: [3, d_ff] ~ zeros per site s = q @ ⟦heads(P)⟧.T delta = q } "
        "compose add }"
    ),
    "not the size of a set of heads",
)

# ---------------------------------------------------------------- slots

whole("no_modify", "E0218", "⟦insert parallel⟧ form low_rank(r) compose add", "does not say what it modifies; modify")
whole("no_compose", "E0218", "⟦modify ffn⟧ insert parallel form low_rank(r)", "compose h + delta")
whole(
    "slot_twice",
    "E0214",
    "modify ffn insert parallel form low_rank(r) compose add ⟦compose replace⟧",
    "`compose`; twice",
)
whole(
    "modify_twice", "E0214", "modify ffn ⟦modify attn⟧ insert parallel form low_rank(r) compose add", "`modify`; twice"
)
whole(
    "form_without_delta",
    "E0219",
    "modify ffn insert parallel ⟦form { A: [d_in, r] ~ zeros out = z }⟧ compose add",
    "does not bind `delta`; delta = …",
)
whole(
    "compose_without_out",
    "E0219",
    "modify ffn insert parallel form low_rank(r) ⟦compose { a = h + delta }⟧",
    "does not bind `out`; out = …",
)
whole("nothing", "E0212", "", "changes nothing")
CASES["nothing"] = ("E0212", spec("method ⟦m⟧ { }"), "changes nothing; modify")
whole("near_site", "E0302", "modify ⟦attn.qq⟧ insert parallel form low_rank(r) compose add", "no site; `attn.q`")
whole("unknown_site", "E0302", "modify ⟦wing⟧ insert parallel form low_rank(r) compose add", "sites: attn, cross")
whole("near_form", "E0225", "modify ffn insert parallel form ⟦lowrank⟧(r) compose add", "no form; `low_rank`")
whole("near_compose", "E0221", "modify ffn insert parallel form low_rank(r) compose ⟦ad⟧", "no composition; `add`")
whole("near_compose_call", "E0221", "modify ffn insert parallel form low_rank(r) compose ⟦scaledd⟧(2)", "`scaled`")
whole(
    "near_gate",
    "E0225",
    "use { modify ffn insert parallel form low_rank(r) compose add } as a gated by ⟦token_gat⟧",
    "no gate; `token_gate`",
)
whole("near_method", "E0225", "use ⟦lorra⟧(r)", "no method; `lora`")
case("near_base", "E0225", "method m(r: int = 4) from ⟦lorra⟧(r) { }", "no method; `lora`")
whole("near_parameter", "E0206", "use lora(⟦alpa = 2.0⟧)", "no parameter `alpa`; `alpha`; r: int")
whole(
    "surplus_argument",
    "E0206",
    "modify ffn insert parallel form low_rank(r, 0.0, zeros, ⟦3⟧) compose add",
    "takes 3; 4 are given",
)
whole("missing_argument", "E0207", "modify ffn insert parallel form ⟦low_rank⟧ compose add", "needs a value for `r`")
whole("argument_twice", "E0208", "use lora(r, ⟦r = 2⟧)", "`r` is given twice")
whole("argument_type", "E0209", "use lora(⟦2.5⟧)", "takes type int")
whole("argument_text", "E0209", 'use lora(⟦"eight"⟧)', "takes type int")
whole(
    "insert_at_weight",
    "E0305",
    "modify attn.q.weight insert ⟦parallel⟧ form { A: [d_in, r] ~ zeros B: [r, d_out] ~ zeros "
    "delta = A @ B } compose add",
    "does not apply",
)
whole(
    "insert_parallel_at_embed",
    "E0306",
    "modify embed insert ⟦parallel⟧ form { delta = z } compose add",
    "it is an input",
)
whole(
    "insert_number",
    "E0307",
    "modify ffn insert ⟦d_model⟧ form { A: [d_out] ~ zeros delta = z * A } compose add",
    "is a number",
)
whole("insert_unknown", "E0301", "modify ffn insert ⟦residul⟧ form { delta = z } compose add", "`residual`")
whole("unforwarded_name", "E0301", "modify ffn insert parallel form low_rank(r) compose scaled(⟦beta⟧)", "no `beta`")
in_compose("compose_reads_unbound", "E0301", "{ out = h + ⟦scores⟧ }", "no `scores`")
in_compose("out_wrong_size", "E0350", "{ u: [r] ~ zeros ⟦out = sum(h) * u⟧ }", "d_model; [r]")
in_compose("out_number", "E0350", "{ ⟦out = 2⟧ }", "the number 2")
in_compose("out_less", "E0350", "{ ⟦out = sum(h)⟧ }", "[d_model]")
in_compose("compose_expression", "E0310", "h + ⟦delta⟧", "d_model and d_q", site="attn")
CASES["compose_expression"] = (
    "E0310",
    spec(
        "method m(r: int = 4) { modify attn.q insert parallel form { A: [d_in, r] ~ zeros delta = z @ A } "
        "compose h + ⟦delta⟧ }"
    ),
    "d_q and r",
)
whole("delta_without_form", "E0303", "modify ffn compose ⟦h + delta⟧", "bound by a form")
CASES["delta_without_form"] = ("E0303", spec("method m { modify ffn compose h + ⟦delta⟧ }"), "bound by a form")
whole(
    "axis_left_over",
    "E0353",
    "modify ffn insert parallel form { axis expert = 2 A: [d_in, d_out] ~ zeros per expert "
    "delta = z @ A } compose { ⟦out = h + delta⟧ }",
    "expert; sum(…, expert)",
)
whole("axis_size", "E0343", "modify ffn insert parallel form { axis expert = ⟦0⟧ delta = z } compose add", "at least 1")
whole(
    "inserted_axis",
    "E0350",
    "modify ffn insert parallel form { A: [d_in, 2, d_out] ~ zeros delta = z @ A } compose { ⟦out = h + delta⟧ }",
    "[2, d_model]",
)
whole(
    "prepend_wide",
    "E0312",
    "modify embed form { P: [r, 2 * d_out] ~ zeros delta = P } compose prepend(⟦delta⟧, h)",
    "wide",
)
whole(
    "prepend_vector",
    "E0337",
    "modify embed form { P: [d_out] ~ zeros delta = P } compose prepend(⟦delta⟧, h)",
    "[l, d]",
)
whole(
    "gated_prepend",
    "E0351",
    "use { ⟦modify embed⟧ form { P: [r, d_out] ~ zeros delta = P } compose prepend(delta, h) } "
    "as a gated by { b: [] ~ zeros g = sigmoid(b) }",
    "length",
)
whole(
    "gate_without_g",
    "E0219",
    "use { modify ffn insert parallel form low_rank(r) compose add } as a gated by ⟦{ b: [] ~ zeros y = b }⟧",
    "does not bind `g`; g = …",
)
whole(
    "gate_reads_h",
    "E0303",
    "use { modify ffn insert parallel form low_rank(r) compose add } as a gated by { g = sigmoid(sum(⟦h⟧)) }",
    "not to forms and gates",
)
whole(
    "gate_is_a_word",
    "E0352",
    "use { modify ffn insert parallel form low_rank(r) compose add } as a gated by { ⟦g = gelu⟧ }",
    "a tensor or a number",
)
whole(
    "gate_without_argument",
    "E0222",
    "modify ffn insert parallel form { G = ⟦token_gate()⟧ delta = G * z } compose add",
    "first argument; (x)`",
)
whole("gated_twice", "E0217", "use inner as a gated by ⟦token_gate⟧", "gated already")
CASES["gated_twice"] = (
    "E0217",
    spec(
        "method inner { use { modify ffn insert parallel form { delta = z } compose add } as a gated by token_gate }\n"
        "method m { use inner as b gated by ⟦token_gate⟧ }"
    ),
    "gated already",
)

# ---------------------------------------------------------------- rows and methods

case("rows_of_one_name", "E0211", "method m { use lora ⟦use lora⟧ }", "two rows are named; as NAME")
case(
    "from_several",
    "E0216",
    "method two { use lora as a use lora as b }\nmethod m from two { ⟦compose add⟧ }",
    "several rows; `use … { … }`",
)
case(
    "overrides_several",
    "E0216",
    "method two { use lora as a use lora as b }\nmethod m { use two { ⟦insert sequential⟧ } }",
    "several rows",
)
case("cycle_use", "E0213", "method a { use b }\nmethod b { use ⟦a⟧ }", "uses itself; `a` → `b` → `a`")
case("cycle_self", "E0213", "method a from ⟦a⟧ { compose add }", "uses itself: `a` → `a`")
case("cycle_from", "E0213", "method a from b { }\nmethod b from c { }\nmethod c from ⟦a⟧ { }", "uses itself; `c` → `a`")
case("defined_twice", "E0201", "method a { use lora }\nmethod ⟦a⟧ { use lora }", "defined twice")
case("parameter_type", "E0230", "method m(r: ⟦innt⟧ = 4) { use lora }", "no type; `int`")
case("parameter_size", "E0231", "method m(⟦d_model: int = 4⟧) { use lora }", "size of the site")
case("default_text", "E0232", 'method m(r: int = ⟦"four"⟧) { use lora(r) }', "`r`; int")
case("default_float", "E0232", "method m(r: int = ⟦2.5⟧) { use lora(r) }", "`r`; int")
case(
    "default_activation",
    "E0232",
    "method m(act: activation = ⟦gellu⟧) { modify ffn insert parallel form bottleneck(2, act) compose add }",
    "`act`; activation",
)
case(
    "default_not_elementwise",
    "E0232",
    "method m(act: activation = ⟦softmax⟧) { modify ffn insert parallel form bottleneck(2, act) compose add }",
    "activation",
)
case(
    "default_init",
    "E0232",
    "method m(i: init = ⟦gelu⟧) { modify ffn insert parallel form bottleneck(2, relu, i) compose add }",
    "init",
)
case("default_bool", "E0232", "method m(b: bool = ⟦3⟧) { use lora }", "bool")
case("method_requirement", "E0360", 'method m { use lora ⟦require 2 > 3, "never"⟧ }', "never")
case("requirement_text", "E0360", "method m { use lora ⟦require divides(3, 4)⟧ }", "divides(3, 4)")
case(
    "space",
    "E0220",
    "method m { ⟦modify attn | ffn⟧ insert parallel form low_rank(4) compose add }",
    "space; one alternative",
)
case(
    "space_in_compose",
    "E0220",
    "method m { modify ffn insert parallel form low_rank(4) ⟦compose add | scaled(2)⟧ }",
    "space",
)

# ---------------------------------------------------------------- inputs, and rows among the tokens

in_form("input_word", "E0362", "input task: ⟦number(3)⟧ delta = z", "`index(n)` or has sizes; input task: index(8)")
in_form("input_without_count", "E0362", "input task: ⟦index⟧ delta = z", "`index()`")
in_form("input_count", "E0340", "input task: index(⟦0.5⟧) delta = z", "whole number")
in_form("input_size", "E0343", "input image: [⟦0⟧, d_out] delta = z", "at least 1")
in_form("input_parameter", "E0223", "⟦input r: index(3)⟧ delta = z", "parameter of the method")
in_form("input_reserved", "E0224", "⟦input z: index(3)⟧ delta = z", "meaning of its own")
in_form("input_bound", "E0369", "t: [d_out] ~ zeros ⟦input t: index(3)⟧ delta = z", "a value already")
in_form("input_twice", "E0369", "input t: index(3) ⟦input t: index(4)⟧ delta = z", "in two ways")
in_form("input_added", "E0317", "input t: index(3) delta = z + ⟦t⟧", "not index `3`")
in_form(
    "index_other_size",
    "E0363",
    "input t: index(3) b: [4, d_out] ~ zeros delta = b[⟦t⟧]",
    "counts 3, and this size is 4",
)
in_form(
    "index_twice", "E0363", "input t: index(3) b: [3, 3, d_out] ~ zeros delta = b[t, ⟦t⟧]", "for each example already"
)
in_form("index_of_input", "E0363", "input t: index(3) input b: [3, d_out] delta = b[⟦t⟧]", "for each example already")
in_form("index_number", "E0319", "b: [3, d_out] ~ zeros delta = b[⟦r⟧]", "a range")
in_form("index_tensor", "E0319", "b: [3, d_out] ~ zeros delta = b[⟦z⟧]", "a range")
whole(
    "input_clash",
    "E0369",
    "use { modify ffn form { input t: index(3) b: [3, d_out] ~ zeros delta = b[t] } compose add } as one\n"
    "use { modify attn form { ⟦input t: index(4)⟧ b: [4, d_out] ~ zeros delta = b[t] } compose add } as two",
    "in two ways",
)
whole(
    "placed_inside", "E0364", "modify ffn form { P: [r, d_out] ~ zeros delta = P } compose ⟦prepend(delta, h)⟧", "`ffn`"
)
whole(
    "placed_twice",
    "E0364",
    "modify embed form { P: [r, d_out] ~ zeros delta = P } compose append(delta, ⟦prepend(delta, h)⟧)",
    "once",
)
whole(
    "placed_by_a_form",
    "E0364",
    "modify embed insert sequential form { P: [r, d_out] ~ zeros delta = ⟦append(P, z)⟧ } compose replace",
    "composition",
)
whole(
    "prepend_behind",
    "E0331",
    "modify embed form { P: [r, d_out] ~ zeros delta = P } compose prepend(delta, h, ⟦0.5⟧)",
    "whole number",
)
whole(
    "fill_wide", "E0312", "modify embed form { P: [r, 2 * d_out] ~ zeros delta = P } compose fill(⟦delta⟧, h)", "wide"
)
in_form("lstm_gates", "E0312", "A: [d_in, 3 * r] ~ zeros U: [r, 4 * r] ~ zeros b: [4 * r] ~ zeros E: [2, d_in] ~ zeros "
        "y = lstm(E, ⟦A⟧, U, b) delta = z", "4 r")  # fmt: skip
in_form("called_form", "E0222", "delta = ⟦low_rank()⟧", "first argument")
in_form("called_form_parameter", "E0206", "delta = low_rank(z, 2, 0.0, zeros, ⟦3⟧)", "takes 3 arguments")
in_form("called_form_unknown", "E0320", "delta = ⟦low_rnk⟧(z, 2)", "no function")

# ---------------------------------------------------------------- tokens that are selected

SHIFTED = "form { b: [d_out] ~ zeros delta = b } compose h + delta"
whole("tokens_every", "E0397", f"modify block tokens ⟦every 2⟧ {SHIFTED}", "selects layers")
whole("tokens_half", "E0397", f"modify block tokens first ⟦0.5⟧ {SHIFTED}", "whole number")
whole("tokens_since_number", "E0397", f"modify block tokens since ⟦3⟧ {SHIFTED}", "takes a text")
whole("tokens_since_nothing", "E0397", f'modify block tokens since ⟦""⟧ {SHIFTED}', "takes a text")
whole("tokens_since_halves", "E0397", f"modify block tokens since ⟦[1.5]⟧ {SHIFTED}", "ids")
whole(
    "tokens_of_a_weight",
    "E0398",
    "modify attn.q.weight tokens ⟦first 2⟧ form { b: [d_out] ~ zeros delta = b } compose h + delta",
    "weight",
)
whole(
    "tokens_of_a_prompt",
    "E0398",
    "modify embed tokens ⟦last 1⟧ form { P: [r, d_out] ~ zeros delta = P } compose prepend(delta, h)",
    "rows",
)

# ---------------------------------------------------------------- what is carried along depth

in_form("carry_of_two_types", "E0390", "carry s = z then ⟦mean(s, tokens)⟧ delta = s", "at the next one")
in_form("carry_of_a_tensor", "E0390", "A: [d_in] ~ zeros carry s = ⟦A⟧ then s delta = z", "examples of a pass")
in_form("carry_of_a_number", "E0390", "carry s = ⟦2⟧ then s delta = z", "the number 2")
in_form("carry_of_what_is_there", "E0390", "s = z ⟦carry s = z then s⟧ delta = s", "has a value already")
in_form("carry_of_z", "E0224", "⟦carry z = z then z⟧ delta = z", "meaning of its own")
in_form("carry_of_an_argument", "E0223", "⟦carry r = z then r⟧ delta = z", "parameter")
in_form("carry_read_first", "E0301", "carry s = ⟦s⟧ then z delta = z", "there is no `s`")
in_form("carry_read_above", "E0301", "delta = ⟦s⟧ carry s = z then s", "there is no `s`")
in_form("carry_that_does_not_fit", "E0312", "A: [r, r] ~ zeros carry s = z then s @ ⟦A⟧ delta = s", "do not agree")
whole(
    "carry_in_a_composition",
    "E0390",
    "modify ffn insert parallel form { delta = z } compose { ⟦carry s = h then s + h⟧ out = s }",
    "composition",
)
whole(
    "carry_in_a_gate",
    "E0390",
    "use { modify ffn insert parallel form { delta = z } compose add } as a gated by { ⟦carry s = z then s⟧ g = mean(s) }",
    "a gate",
)
whole(
    "carry_of_a_weight",
    "E0390",
    "modify attn.q.weight form { ⟦carry s = z then s⟧ delta = s } compose h + delta",
    "same at every pass",
)
whole(
    "carry_outside_the_layers",
    "E0390",
    "modify final insert parallel form { ⟦carry s = z then s⟧ delta = s } compose h + delta",
    "outside the layers",
)
whole(
    "carry_beside_the_tokens",
    "E0390",
    "modify attn.heads insert parallel form { K: [r, d_head] ~ zeros scores = q @ K.T ⟦carry s = z then s⟧ delta = softmax(scores) @ K } "
    "compose share_softmax",
    "shares the softmax",
)
in_form("names_of_one_value", "E0391", "⟦a, b = z⟧ delta = z", "2 names on the left")
in_form("penalty_with_axes", "E0386", "penalty ⟦sum(z)⟧ delta = z", "one number for the pass")
in_form(
    "after_with_input", "E0303", "A: [d_in] ~ zeros after step { A = A * sum(⟦z⟧) } delta = z * A", "belongs to a pass"
)
in_form("layers_unsaid", "E0392", "A: [d_in, d_out] ~ zeros per ⟦layers⟧ delta = z @ A", "does not say how many layers")
whole("later_method_input", "E0215", "⟦input task: index(3)⟧ use lora", "belongs to one row")
whole("later_method_tensor", "E0215", "⟦A: [d_model] ~ zeros⟧ use lora", "belongs to one row; form")
