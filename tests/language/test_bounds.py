"""What doubles from line to line, and what is long without end, is refused or described at once: a spec is untrusted text.

Without the bounds most of these would run for hours, or fill the memory.
"""

from __future__ import annotations

import fuzzing
import pytest

from unipelt.language import loading
from unipelt.language.analyse import canonical, meaning
from unipelt.language.report.diagnostics import PeltError
from unipelt.language.library import parse_path
from unipelt.language.check.names import names_of
from unipelt.language.syntax.nodes import MethodDef
from unipelt.resources import folder


def method(form: str = "low_rank(2)", head: str = "", sites: str = "ffn", compose: str = "add") -> str:
    return f"method m{head} {{ modify {sites} insert parallel form {form} compose {compose} }}"


def chain(first: str, step: str, n: int) -> str:
    return f"a0 = {first} " + " ".join(f"a{i} = {step.replace('_', f'a{i - 1}')}" for i in range(1, n))


def using(n: int, times: int) -> str:
    uses = (" ".join(f"use m{i - 1}(r) as a{j}" for j in range(times)) for i in range(1, n))
    return (
        method("low_rank(r)", "0(r: int = 2)")
        + "\n"
        + "\n".join(f"method m{i}(r: int = 2) {{ {u} }}" for i, u in enumerate(uses, 1))
    )


def parameters(n: int) -> str:
    return "(a0: int = 2, " + ", ".join(f"a{i}: int = a{i - 1} + a{i - 1}" for i in range(1, n)) + ")"


def calling(n: int) -> str:
    """Gates that call the one before twice."""
    gates = ["gate g0 { w: [d_in] ~ zeros  g = sigmoid(z @ w) }"]
    gates += [f"gate g{i} {{ a = g{i - 1}(z)  b = g{i - 1}(z)  g = a * b }}" for i in range(1, n)]
    return "\n".join((*gates, method(compose=f"h + g{n - 1}(z) * delta")))


#: name → (text, the mistakes that are found; none: it is a method)
CASES = {
    "methods that use each other ten times": (using(5, 10), {"E0227"}),
    "gates that call each other twice": (calling(40), {"E0227"}),
    "six hundred rows": ("method m { " + " ".join(f"use {{ modify ffn insert parallel form low_rank(2) compose add }} as r{i}" for i in range(600)) + " }", {"E0227"}),
    "sixty squares": (method(f"{{ {chain('2', '_ * _', 60)} delta = a59 * z }}"), {"E0318"}),
    "a polynomial of degree 2 ** 30": (
        "form f(r: int) { " + chain("r + d_in", "_ * (_ + r)", 30) + " A: [d_in, a29] ~ normal delta = z @ A }\n" + method("f(2)"), {"E0318"}),
    "a tower of powers": (method("low_rank(r)", "(r: int = 2**2**2**2**2**2)"), {"E0318"}),
    "a division by zero": (method("low_rank(r / 0)", "(r: int = 1)"), {"E0318"}),
    "sums of a tensor": (method(f"{{ {chain('z', '_ + _', 200)} delta = a199 }}"), set()),
    "parameters that double": (method("low_rank(a199)", parameters(200)), {"E0227"}),
    "a list of 5,000 numbers": (method(f"low_rank(r = [{', '.join(['4'] * 5000)}])"), {"E0227"}),
    "a chain of ninety conditions": (method(f"low_rank({'2 if layer < 1 else ' * 90}3)"), set()),
    "two thousand times a site": (method(sites=", ".join(["ffn"] * 2000)), set()),
    "a space of 9 ** 60 methods": (method("low_rank(a0)", "(" + ", ".join(f"a{i}: int in {{1, 2, 3, 4, 5, 6, 7, 8, 9}}" for i in range(60)) + ")"), set()),
    "an axis of 10 ** 12": (method("{ axis a = 10**12 A: [a] ~ zeros delta = z }"), {"E0317", "E0340"}),
    "an expression of the worst kind": (method(sites='module("(a+)+$")'), set()),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_grows_without_end_is_answered(name, tmp_path):
    text, codes = CASES[name]
    fuzzing.judge(text.encode(), tmp_path / "x.pelt")
    found = {d.code for c in loading.check(tmp_path / "x.pelt") for d in c.diagnostics}
    assert found <= codes and bool(found) == bool(codes), found


def test_rows_that_are_too_many_to_compare_are_said_to_be_so():
    rows = " ".join(
        f"use {{ modify ffn insert parallel form low_rank({i + 1}) compose add }} as r{i}" for i in range(33)
    )
    found = loading.parse(f"method m {{ {rows} }}")
    from unipelt.language.analyse.verdicts import verdicts

    assert verdicts(found)["rows commute"].value == "unknown"


def test_a_file_whose_definitions_grow_together_is_checked_so_far(monkeypatch):
    """Each definition is small enough and there are many: one mistake says where the check ended, and what came before stands."""
    monkeypatch.setattr(loading, "MAX_LINES", 40)
    large = "gate g0 { w: [d_in] ~ zeros  g = sigmoid(z @ w) }\ngate g1 { a = g0(z)  b = g0(z)  g = a * b }\n"
    text = large + "\n".join(
        f"method m{i} {{ modify ffn insert parallel form low_rank(2) compose h + g1(z) * delta }}" for i in range(30)
    )
    found = {c.name: c for c in loading.check_text(text, "many.pelt")}
    ((name, problem),) = [(c.name, d) for c in found.values() for d in c.diagnostics]
    assert problem.code == "E0227" and "split the file" in problem.help
    done = [c for c in found.values() if c.method is not None]
    assert 2 < len(done) < 30 and all(
        c.spoilt == (name,) for c in found.values() if c.kind == "method" and c.method is None and c.name != name
    )


def test_the_library_is_far_from_the_bound_on_a_file():
    for path in sorted(folder("specs").rglob("*.pelt")):
        names = names_of(parse_path(path), path)
        for d in parse_path(path).definitions:
            if isinstance(d, MethodDef):
                loading.resolve(d, names)
        assert names.lines < loading.MAX_LINES / 50, path.name


def test_a_number_that_no_float_holds_has_a_meaning():
    """It is what the argument is divided by, or divides."""
    canonical.canonical(meaning.meaning(loading.load("corda")(alpha=1e-308)))


def test_an_argument_that_has_the_name_of_a_size_is_refused_where_the_size_is_required_to_be_another():
    """The size is replaced by the other one, and the argument is not: the row was read again for ever."""
    row = "modify mixer.in insert parallel form { require d_mix == 2 * d_inner  b: [d_out] ~ zeros  delta = b } compose h + delta"
    with pytest.raises(PeltError) as e:
        loading.parse(f"method m(d_mix: int = 8) {{ {row} }}")
    assert [d.code for d in e.value.diagnostics] == ["E0231"]
