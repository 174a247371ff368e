"""One typed row for layers that do not differ, and everything that is known of it found from there: nothing is inferred twice."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from names import name as named, spec
from torch import nn

import unipelt
from unipelt.cli.show import described
from unipelt.compiler.gates import gates
from unipelt.language.analyse.fold import fold_form
from unipelt.language.analyse.method import analyse
from unipelt.language.analyse.row_verdicts import RULES
from unipelt.language.ir import Method, Row
from unipelt.language.syntax.nodes import Let, walk
from unipelt.language.types.infer import Inference
from unipelt.language.write.diagram import diagram
from unipelt.runtime.seam import edit_at


def bert(layers: int) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        num_hidden_layers=layers, hidden_size=16, intermediate_size=32, num_attention_heads=2, vocab_size=20
    )
    return BertForSequenceClassification(config)


def expressions(row: Row) -> Iterator[Any]:
    for part in (row.insert, *row.form, *row.compose, *(row.gate or ())):
        yield from walk(part) if part is not None else ()


@pytest.fixture
def inferred(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any, Any]]:
    """Every expression that is inferred, with what infers it and the line: all live on, so that their identities are theirs alone."""
    found: list[tuple[Any, Any, Any]] = []
    anew = Inference._worked_out

    def worked_out(self: Inference, e: Any) -> Any:
        found.append((self, self.nodes, e))
        return anew(self, e)

    monkeypatch.setattr(Inference, "_worked_out", worked_out)
    return found


def test_each_expression_is_inferred_once_and_each_rule_asked_once(
    inferred: list[tuple[Any, Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: Counter[str] = Counter()

    def counted(name: str, rule: Any) -> Any:
        def call(t: Any) -> Any:
            asked[name] += 1
            return rule(t)

        return call

    for name, (rule, why) in list(RULES.items()):
        monkeypatch.setitem(RULES, name, (counted(name, rule), why))
    method = unipelt.load(named("mam"))
    own = {id(n) for r in method.rows for n in expressions(r)}
    model = bert(12)
    plan = unipelt.plan(model, method)
    rows = {e.typing for e in plan.edits}
    assert len(plan.edits) == 24 and {t.row.name for t in rows} == {r.name for r in method.rows} and len(rows) == 2
    assert plan.properties["causal"] == "yes" and asked == dict.fromkeys(RULES, len(rows))
    # everything else that is known of the method, in symbols
    assert described(method)["parameters"]["trained"] and len(diagram(method)) == 2 and method.torch_source()
    assert any(fold_form(t)[1] for t in rows) and any(gates(t) for t in rows)
    symbolic = analyse(method).rows
    assert asked == dict.fromkeys(RULES, len(rows) + len(symbolic))
    unipelt.apply(model, method)
    assert len({id(edit_at(model, "default", e).lowered) for e in plan.edits}) == len(rows)
    met = Counter((id(inference), id(line), id(e)) for inference, line, e in inferred if id(e) in own)
    assert max(met.values()) == 1, "a name that is written once stands in several lines where it is an argument's"
    assert len({inference for inference, _, _ in met}) == len(rows) + len(symbolic)


def test_layers_share_a_typed_row_unless_their_numbers_differ() -> None:
    def method_of(form: str, *more: str) -> Method:
        parameters = ", ".join(["r: int = 4", *more])
        return unipelt.parse(spec(f"method m({parameters}) {{ modify ffn insert parallel {form} compose add }}"))

    method = method_of("form low_rank(r)")
    with torch.device("meta"):
        model = bert(4)

    def shared(m: Method) -> list[int]:
        typed = [e.typing for e in unipelt.plan(model, m).edits]
        return [typed.index(t) for t in typed]

    assert shared(method) == [0, 0, 0, 0]
    assert shared(method(r="4 if layer < 2 else 8")) == [0, 0, 2, 2]
    assert shared(method(r=[4, 8, 8, 4])) == [0, 1, 1, 0]
    written = method_of("form { A: [d_in, r] ~ normal(0.1 / (layer + 1))  delta = z @ A @ A.T }")
    assert shared(written) == [0, 1, 2, 3]
    start = method_of("form { A: [d_in, r] ~ init  delta = z @ A @ A.T }", "init: init = normal(0.1 / (layer + 1))")
    assert shared(start) == [0, 1, 2, 3]
    assert {e.typing for e in unipelt.plan(model, method).edits} == {
        e.typing for e in unipelt.plan(model, method).edits
    }


def test_a_copy_and_a_pickle_know_their_expressions() -> None:
    (t,) = analyse(
        unipelt.parse(spec("method m(r: int = 4) { modify ffn insert parallel form bottleneck(r) compose add }"))
    ).rows
    for again in (copy.deepcopy(t), pickle.loads(pickle.dumps(t))):
        assert again.row == t.row and again.row is not t.row
        for line, before in zip(again.bindings, t.bindings):
            assert line.value == before.value and len(line.nodes) == len(before.nodes)
            if line.expression is not None:
                assert line.of(line.expression) == line.value


def test_a_new_expression_has_the_type_of_what_it_is_made_of() -> None:
    (t,) = analyse(
        unipelt.parse(spec("method m(r: int = 4) { modify ffn insert parallel form low_rank(r) compose add }"))
    ).rows
    delta = next(s.value for s in t.row.form if isinstance(s, Let) and s.names == ("delta",))
    new = unipelt.language.syntax.parser.parse_expression("2 * h")
    assert t.value(delta) is t.bindings[-2].value and str(t.value(new).type) == "batch, token, [d_model]"
    wrong = unipelt.language.syntax.parser.parse_expression("h @ nothing")
    assert str(t.value(wrong).type) == "unknown"
