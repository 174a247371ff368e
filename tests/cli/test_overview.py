"""`unipelt list --table`: rows, counts, verdicts, references of the library; and what it says of a method that is not recorded."""

from __future__ import annotations

import json

import pytest
from names import name
from typer.testing import CliRunner

from unipelt.cli import overview
from unipelt.cli.app import app
from unipelt.language import record
from unipelt.language.loading import library


def test_a_line_for_each_row_with_what_is_recorded() -> None:
    lora, mam = name("lora"), name("mam")
    found = {
        m["method"]: m
        for m in json.loads(CliRunner().invoke(app, ["list", lora, "--table", "--json"]).output)["methods"]
    }
    assert found[lora]["rows"][0] | {"row": ""} == {
        "row": "", "modify": "attn.q, attn.v", "insert": "parallel", "form": "low_rank(r, dropout, init)", "compose": "scaled(alpha / r)"
    }  # fmt: skip
    assert found[lora]["verdicts"]["mergeable"] == "yes" and found[lora]["lines"] == 6
    out = CliRunner().invoke(app, ["list", mam, "--table"]).output
    assert all(word in out for word in (mam, "attend_mlp(l, mid)", "share_softmax", "scaled(s)"))


def test_what_reads_otherwise_by_now_is_not_said_to_be_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    e = next(e for e in library() if e.name == name("lora"))
    monkeypatch.setattr(overview, "is_current", lambda: False)
    monkeypatch.setattr(overview, "digest", lambda method: "another text")
    m = overview.recorded([e])[e.name]
    assert not m.verified and not m.counts and m.rows and m.verdicts
    row = overview.rows(e.name, m)[0]
    assert row["verified by"] == "" and row["method"] == e.name


def test_a_refusal_and_the_words_of_verdicts() -> None:
    assert (
        overview.counted(294912) == "294,912"
        and overview.counted("E0512") == "refused: E0512"
        and not overview.counted("")
    )
    assert (
        overview.in_short({"identity at start": "yes", "mergeable": "no", "causal": "no"})
        == "starts as the base, sees later tokens"
    )


def test_lines_leave_out_docstring_and_comments(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.pelt"
    text = 'method mine {\n  """Two\n  lines."""\n  # a comment\n  modify ffn   # another\n\n  train *.bias\n}\n'
    file.write_text(text, encoding="utf-8")
    from unipelt.language.syntax.parser import parse

    definition = parse(text, str(file)).definitions[0]
    monkeypatch.setattr(record, "library_definition", lambda kind, of: definition)
    assert record.lines_of("mine") == 4
