"""`unipelt push`, and a name on the hub wherever a command takes a folder."""

import json
from pathlib import Path

import pytest
from test_commands import call, parsed


@pytest.fixture(scope="module")
def run(spec, intents, bert, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    call("train", f"{spec}:small", "--model", bert, "--data", intents, "--out", out, "--epochs", 1, "--lr", "1e-2",
         "--batch-size", 16, "--max-length", 16)  # fmt: skip
    return out


def test_a_run_goes_to_the_hub_and_comes_back(hub, run, intents, bert, tmp_path):
    shown, said = call("push", run, "me/intents", "--dry-run")
    assert "adapter.safetensors" in shown and "would go" in said and not hub.asked
    found = parsed("push", run, "me/intents", "--yes")
    assert found["ok"] and found["commit"] == hub.repositories["me/intents"].branches["main"]
    there = hub.repositories["me/intents"].files()
    assert {f["file"]: f["bytes"] for f in found["files"]} == {
        n: len(d) for n, d in there.items() if n != ".gitattributes"
    }
    for place in (bert, intents, str(run)):
        assert not any(place.encode() in data or str(Path(place).parent).encode() in data for data in there.values()), (
            place
        )

    for command in (
        ["eval", "me/intents", "--data", intents],
        ["predict", "me/intents", "my money"],
        ["merge", "me/intents", "--out", tmp_path / "no"],
    ):
        assert "E0827" in call(*command, code=1)[1] and "--model" in call(*command, code=1)[1]
    metrics = json.loads((run / "metrics.json").read_text())["metrics"]
    assert parsed("eval", "me/intents", "--model", bert, "--data", intents)["metrics"] == metrics["test"]
    assert parsed("predict", "me/intents", "my money", "--model", bert) == parsed("predict", run, "my money")
    call("merge", "me/intents", "--model", bert, "--out", tmp_path / "plain")
    assert (tmp_path / "plain" / "model.safetensors").is_file() and not (tmp_path / "no").exists()


def test_a_saved_adapters_method_is_a_method(hub, run, spec, bert):
    call("push", run, "me/intents", "--yes")
    wanted = parsed("show", f"{spec}:small")
    for place in (run, "me/intents"):
        assert parsed("show", place)["formula"] == wanted["formula"]
        assert "are equal" in call("equal", place, f"{spec}:small")[0]
        assert parsed("plan", place, "--model", bert)["plan"]["counts"]["trained"] > 0


def test_nobody_is_pushed_for_unasked(hub, run):
    assert (
        "--yes" in call("push", run, "me/intents", code=2)[1]
        and "--yes" in call("push", run, "me/intents", "--json", code=2)[1]
    )
    assert "exclude each other" in call("push", run, "me/intents", "--yes", "--dry-run", code=2)[1]
    assert not hub.asked


def test_refusals_have_a_remedy_and_a_code(hub, run, tmp_path):
    for command, code, said in (
        (["show", "me/intnts"], 1, "check the spelling"),
        (["show", tmp_path], 1, "has no method.pelt"),
        (["show", "lroa/"], 1, "E0401"),
        (["eval", "me/intnts", "--data", "x"], 1, "check the spelling"),
        (["push", tmp_path / "nowhere", "me/intents", "--yes"], 1, "there is no folder"),
        (["push", run, "intents", "--yes"], 1, "user/name"),
    ):
        out, err = call(*command, code=code)
        assert "= help" in err and said in err and not out, command
    hub.status = 500
    assert "answers 500" in call("eval", "me/intents", "--data", "x", code=3)[1]
