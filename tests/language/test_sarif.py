"""SARIF 2.1.0 of a check: the parts that its readers rely on, with the ranges that the diagnostics have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import unipelt
from unipelt.cli.app import app
from unipelt.language.report.diagnostics import Diagnostic, TextEdit, Label
from unipelt.language.report.pages import pages
from unipelt.language.report.sarif import to_sarif
from unipelt.language.report.texts import Source, remember
from unipelt.language.syntax.nodes import Span

TEXT = "method m(r: int = 8) {\n  modify fnn\n  insert parallel\n  form {\n    A: [d_in, r] ~ zeros\n    delta = z @ A @ A\n  }\n  compose h + delta\n}\n"
#: What the standard asks of an object (section 3 of SARIF 2.1.0), and what else of it is written here.
KEYS = {
    "log": ({"version", "runs"}, {"$schema"}),
    "run": ({"tool"}, {"results", "columnKind"}),
    "driver": ({"name"}, {"version", "semanticVersion", "rules"}),
    "rule": ({"id"}, {"shortDescription", "fullDescription", "help", "defaultConfiguration"}),
    "result": ({"message"}, {"ruleId", "ruleIndex", "level", "locations", "relatedLocations", "fixes"}),
    "location": ({"physicalLocation"}, {"id", "message"}),
    "physical": ({"artifactLocation"}, {"region"}),
    "fix": ({"artifactChanges"}, {"description"}),
    "change": ({"artifactLocation", "replacements"}, set()),
    "replacement": ({"deletedRegion"}, {"insertedContent"}),
}


def fits(kind: str, value: dict[str, Any]) -> dict[str, Any]:
    needed, allowed = KEYS[kind]
    assert needed <= set(value) <= needed | allowed, (kind, sorted(value))
    return value


def region_fits(region: dict[str, int], lines: list[str]) -> str:
    """The text of a region, by its lines and columns and by its characters alike."""
    assert 1 <= region["startLine"] <= region["endLine"] <= len(lines) + 1
    text = "\n".join(lines)
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    a = starts[region["startLine"] - 1] + region["startColumn"] - 1
    b = starts[region["endLine"] - 1] + region["endColumn"] - 1
    assert (a, b - a) == (region["charOffset"], region["charLength"])
    return text[a:b]


def log(*paths: Path, code: int) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["check", *map(str, paths), "--sarif"])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "a folder").mkdir()
    monkeypatch.chdir(tmp_path)
    path = Path("a folder/bröken.pelt")
    path.write_text(TEXT, "utf-8")
    return path


def test_a_log_is_what_the_standard_says(broken: Path) -> None:
    found = fits("log", log(broken, code=1))
    assert found["version"] == "2.1.0" and found["$schema"].endswith("sarif-2.1.0.json")
    (run,) = found["runs"]
    driver = fits("driver", fits("run", run)["tool"]["driver"])
    assert (
        driver["name"] == "unipelt"
        and driver["version"] == unipelt.__version__
        and run["columnKind"] == "unicodeCodePoints"
    )
    codes = [fits("rule", r)["id"] for r in driver["rules"]]
    assert codes == sorted(set(codes))
    lines = TEXT.split("\n")
    for result in run["results"]:
        fits("result", result)
        assert codes[result["ruleIndex"]] == result["ruleId"] and result["level"] == "error"
        rule, page = driver["rules"][result["ruleIndex"]], pages()[result["ruleId"]]
        assert rule["shortDescription"]["text"] == page.title and rule["help"]["text"] == page.remedy
        for place in (*result["locations"], *result.get("relatedLocations", ())):
            physical = fits("physical", fits("location", place)["physicalLocation"])
            assert physical["artifactLocation"]["uri"] == "a%20folder/br%C3%B6ken.pelt"
            region_fits(physical["region"], lines)


def test_there_is_a_result_for_each_diagnostic_with_its_range(broken: Path) -> None:
    (run,) = log(broken, code=1)["runs"]
    as_json = json.loads(CliRunner().invoke(app, ["check", str(broken), "--json"]).stdout)
    said = [d for c in as_json["definitions"] for d in c["diagnostics"]]
    assert [r["ruleId"] for r in run["results"]] == [d["code"] for d in said] == ["E0302"]
    lines = TEXT.split("\n")
    (result,), (d,) = run["results"], said
    region = result["locations"][0]["physicalLocation"]["region"]
    assert region_fits(region, lines) == "fnn" and (region["startLine"], region["startColumn"]) == (2, 10)
    assert (region["endLine"], region["endColumn"]) == (d["place"]["end_line"], d["place"]["end_column"])
    (fix,) = (fits("fix", f) for f in result["fixes"])
    (change,) = (fits("change", c) for c in fix["artifactChanges"])
    (replacement,) = (fits("replacement", r) for r in change["replacements"])
    assert region_fits(replacement["deletedRegion"], lines) == "fnn" and replacement["insertedContent"]["text"] == "ffn"
    assert "`ffn`" in fix["description"]["text"] and d["edits"][0]["text"] == "ffn"


def test_labels_are_related_locations_and_an_empty_region_has_no_length() -> None:
    remember(Source("mine.pelt", TEXT))
    end = len(TEXT.rstrip())
    d = Diagnostic("E0102", "open", Span("mine.pelt", 21, 22), "here", (Label(Span("mine.pelt", end, end), "there"),),
                   edits=(TextEdit(Span("mine.pelt", end, end), "}"),))  # fmt: skip
    (result,) = to_sarif([d], "1.2.3")["runs"][0]["results"]
    (related,) = result["relatedLocations"]
    assert related["id"] == 1 and related["message"]["text"] == "there"
    assert related["physicalLocation"]["region"]["charLength"] == 0
    assert region_fits(related["physicalLocation"]["region"], TEXT.split("\n")) == ""
    assert result["locations"][0]["message"]["text"] == "here"


def test_what_has_no_place_has_no_location() -> None:
    (result,) = to_sarif([Diagnostic("E0407", "the folder x holds no .pelt file")], "1.2.3")["runs"][0]["results"]
    assert result["locations"] == [] and "fixes" not in result


def test_a_folder_without_specs_is_a_result_too(tmp_path: Path) -> None:
    (run,) = log(tmp_path, code=1)["runs"]
    assert [r["ruleId"] for r in run["results"]] == ["E0407"]


def test_a_good_file_has_no_results(tmp_path: Path) -> None:
    (tmp_path / "good.pelt").write_text("method m { modify ffn compose 2 * h }\n")
    (run,) = log(tmp_path / "good.pelt", code=0)["runs"]
    assert run["results"] == [] and run["tool"]["driver"]["rules"] == []
