"""The command line as its users meet it: output, JSON, exit codes, and that no traceback is ever shown."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from names import CLASSICS, members, name as named
from typer.testing import CliRunner

from unipelt.cli.app import app
from unipelt.language.loading import library


def call(*arguments, code=0):
    """Run a command in this process; (stdout, stderr)."""
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    return done.stdout, done.stderr


def parsed(*arguments, code=0):
    out, _ = call(*arguments, "--json", code=code)
    return json.loads(out)


@pytest.fixture
def broken(tmp_path):
    path = tmp_path / "broken.pelt"
    path.write_text(
        "method a { modify attn.q insert parallel form { B: [d_in, r] ~ zeros delta = z @ B } compose add }\n"
    )
    return path


@pytest.fixture
def method():
    """Some method of the library, whatever it is called, with an integer argument."""
    from unipelt.language.loading import load

    for entry in library():
        if entry.kind == "method":
            found = load(entry.name)
            if found.rows and any(p.type == "int" for p in found.params):
                return found
    raise AssertionError("the library has no method with an argument")


# ---------------------------------------------------------------- check


def test_check_a_good_file(spec):
    out, err = call("check", spec)
    assert "method small: ok" in out and "3 methods: all well" in out and not err
    found = parsed("check", spec)
    assert found["ok"] and [d["name"] for d in found["definitions"]] == ["small", "bent", "pooling"]
    assert found["definitions"][0]["properties"]["mergeable"]["value"] == "yes"
    assert found["definitions"][1]["properties"]["mergeable"]["value"] == "no"


def test_check_the_library():
    from unipelt.resources import folder

    out, _ = call("check", folder("specs"))
    assert "all well" in out


def test_check_a_broken_file(broken):
    out, err = call("check", broken, code=1)
    assert "error[E" in err and "broken.pelt:1:" in err and not out
    found = parsed("check", broken, code=1)
    diagnostic = found["definitions"][0]["diagnostics"][0]
    assert not found["ok"] and diagnostic["code"].startswith("E") and diagnostic["message"]


def test_check_what_is_not_there(tmp_path):
    _, err = call("check", tmp_path / "nowhere.pelt", code=1)
    assert "there is no file" in err
    call("check", tmp_path, code=1)


def test_the_quick_way_into_check_agrees(spec, broken):
    """`unipelt check` alone does without typer; what it prints and returns is the same."""
    for path, options, code in ((spec, ["--json"], 0), (str(broken), [], 1)):
        done = run("check", path, *options)
        out, err = call("check", path, *options, code=code)
        assert (done.returncode, done.stdout, done.stderr) == (code, out, err)


def run(*arguments, **more):
    """Run a command as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "unipelt.cli.main", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        timeout=100,
        **more,
    )


def test_check_imports_neither_torch_nor_typer(spec):
    program = (
        "import sys; sys.argv = ['unipelt', 'check', sys.argv[1]]\n"
        "from unipelt.cli.main import main\n"
        "try:\n main()\n"
        "except SystemExit as e:\n assert not e.code\n"
        "loaded = {'torch', 'transformers', 'typer', 'rich', 'pydantic', 'numpy'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", program, spec], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- list, show


def test_list():
    out, _ = call("list")
    methods = {e.name: Path(e.file).stem.replace("_", " ") for e in library() if e.kind == "method"}
    names = list(methods)
    shown: dict[str, str] = {}
    for line in filter(None, out.splitlines()):
        if not line.startswith("  "):
            family = line
        else:
            shown[line.split()[0]] = family
    assert shown == methods
    everything = parsed("list", "--all")["definitions"]
    assert {"method", "form", "composition", "gate"} <= {d["kind"] for d in everything}
    assert len(everything) > len(names) == len(parsed("list")["definitions"])


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_list_has_a_line_for_each_and_none_is_wider_than_the_terminal(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    lines = call("list", "--all")[0].splitlines()
    assert max(map(len, lines)) <= width
    assert len([line for line in lines if line.startswith("  ")]) == len(parsed("list", "--all")["definitions"])


def test_a_list_is_searched():
    words = {e.name for e in library() if e.kind == "method" and "gate" in f"{e.name} {e.doc}".lower()}
    found = {d["name"] for d in parsed("list", "GATE")["definitions"]}
    assert words and found == words  # whatever the case
    _, err = call("list", "zzz", code=1)
    assert "nothing in the library has `zzz`" in err and "`unipelt list --all`" in err


def test_help_has_a_short_form_and_shells_are_served(monkeypatch):
    for command in ([], ["show"], ["train"]):
        assert call(*command, "-h") == call(*command, "--help")
    assert "--install-completion" in call("-h")[0]
    first = names_of_library()[0]
    monkeypatch.setenv("_UNIPELT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"unipelt plan {first}")
    monkeypatch.setenv("COMP_CWORD", "2")
    done = CliRunner().invoke(app, [], prog_name="unipelt", complete_var="_UNIPELT_COMPLETE")
    assert set(done.output.split()) == {n for n in names_of_library() if n.startswith(first)}


def names_of_library():
    return [e.name for e in library() if e.kind == "method"]


def test_show(spec):
    out, _ = call("show", f"{spec}:small", "--set", "r=7")
    for part in ("A low-rank edit", "attn.q, attn.v", "parallel", "delta = drop(z, rate) @ A @ B", "mergeable"):
        assert part in out, part
    found = parsed("show", f"{spec}:small", "--set", "r=7")
    assert {a["argument"]: a["value"] for a in found["arguments"]} == {"r": 7, "rate": 0.0}
    assert found["rows"][0]["insert"] == "parallel" and "trained" in found["parameters"]
    assert found["properties"]["mergeable"]["value"] == "yes"


def test_show_types(spec):
    out, _ = call("show", f"{spec}:small", "--set", "r=7", "--typed")
    assert "small at attn.q" in out and "[d_model, r]" in out and "= drop(z, rate) @ A @ B" in out
    found = parsed("show", f"{spec}:small", "--typed")
    tensors = [b for b in found["rows"][0]["bindings"] if b["owner"]]
    assert found["ok"] and [b["value"]["sizes"] for b in tensors] == [["d_model", "r"], ["r", "d_q"]]
    for more in ([f"{spec}:small"], ["--torch"], ["--format", "latex"]):
        assert "E0812" in call("show", f"{spec}:small", "--typed", *more, code=2)[1]


def test_an_argument_that_is_bound_to_sites_is_shown_as_these(spec):
    """The table says what is modified, not what the argument is called that says it; so do differences."""
    path = Path(spec).with_name("anywhere.pelt")
    path.write_text(
        "method anywhere(at: sites = [attn.q, ffn]) { modify at insert parallel form { A: [d_in, d_out] ~ zeros delta = z @ A } compose h + delta }\n"
    )
    row = parsed("show", str(path))["rows"][0]
    assert row["modify"] == "attn.q, ffn"
    row = parsed("show", str(path), "--set", "at=[attn.v]")["rows"][0]
    assert row["modify"] == "attn.v"


def test_show_every_method_of_the_library():
    names = [e.name for e in library() if e.kind == "method"]
    for name in names if os.environ.get("UNIPELT_ALL") else names[::4]:
        assert name in call("show", name)[0]


def test_an_unknown_method_and_argument(method):
    _, err = call("show", method.name + "x", code=1)
    assert f"`{method.name}`" in err
    _, err = call("show", method.name, "--set", "nonsense=3", code=1)
    assert "nonsense" in err
    for wrong in ("r", "=3", "r="):
        assert "name=value" in call("show", method.name, "--set", wrong, code=1)[1]
    found = parsed("show", method.name + "x", code=1)
    assert not found["ok"] and found["diagnostics"][0]["help"]


# ---------------------------------------------------------------- plan


def test_plan_needs_no_weights(spec, tmp_path):
    from transformers import BertConfig

    BertConfig().save_pretrained(tmp_path)
    for model in (tmp_path, tmp_path / "config.json"):
        found = parsed("plan", f"{spec}:small", "--model", model, "--set", "r=8")["plan"]
        assert found["counts"]["trained"] == 12 * 2 * 2 * 768 * 8 == 294_912
    out, _ = call("plan", f"{spec}:small", "--model", tmp_path, "--set", "r=8")
    assert "294,912" in out and "attn.q" in out


def test_plan_refuses_what_leaks_on_a_causal_model(spec, gpt2):
    assert "later" in call("plan", f"{spec}:pooling", "--model", gpt2, "--task", "causal-lm", code=1)[1]
    call("plan", f"{spec}:pooling", "--model", gpt2, "--task", "causal-lm", "--allow-future")


def test_a_head_is_added_by_name(spec, bert):
    """Some head of the library, whatever it is called: a method all of whose rows stand at the head."""
    from unipelt.language.loading import load

    methods = [load(e.name) for e in library() if e.kind == "method"]
    heads = [m.name for m in methods if m.rows and all(str(p) == "head" for r in m.rows for p in r.sites)]
    model = ["--model", bert, "--task", "sequence-classification"]
    with_head = parsed("plan", f"{spec}:small", *model, "--head", heads[0])["plan"]
    assert heads[0] in {e["row"] for e in with_head["edits"]}
    # A name that ends in `_head` may be given without that.
    short = next((h.removesuffix("_head") for h in heads if h.endswith("_head")), heads[0])
    assert parsed("plan", f"{spec}:small", *model, "--head", short)["plan"]["counts"]["head"] > 0


def test_plan_without_a_model(spec, tmp_path):
    assert "no model folder" in call("plan", spec + ":small", "--model", tmp_path / "none", code=1)[1]
    assert "poetry" in call("plan", spec + ":small", "--model", tmp_path, "--task", "poetry", code=2)[1]


# ---------------------------------------------------------------- sites


def test_sites_of_a_folder_a_configuration_and_a_type(spec, bert, tmp_path):
    (tmp_path / "neox.json").write_text(json.dumps({"model_type": "gpt_neox", "hidden_size": 32, "num_hidden_layers": 2,
                                                    "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 64}))  # fmt: skip
    out, _ = call("sites", tmp_path / "neox.json")
    assert "layers 0–1" in out and "not yet proved" in out and "columns [0:8, 24:32, 48:56, …] per head" in out
    found = parsed("sites", tmp_path / "neox.json")
    assert found["ok"] and found["sites"]["known"] == "found" and found["sites"]["towers"][0]["depth"] == 2
    assert parsed("sites", bert)["sites"]["known"] == "found"
    assert "lm_head" in call("sites", "gpt2", "--task", "causal-lm")[0]
    assert parsed("plan", f"{spec}:small", "--model", "bert")["plan"]["model"] == "BertModel"


def test_sites_of_one_tower_and_of_no_model(tmp_path):
    out, _ = call("sites", "bart", "--tower", "decoder")
    assert "tower decoder" in out and "tower encoder" not in out
    _, err = call("sites", "bart", "--tower", "vision", code=1)
    assert "E0704" in err and "`encoder`, `decoder`" in err
    assert "E0613" in call("sites", "no_such_type", code=1)[1]
    assert not parsed("sites", tmp_path / "none.json", code=1)["ok"]


# ---------------------------------------------------------------- train, eval, predict, merge


@pytest.fixture(scope="module")
def trained(spec, intents, bert, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    found = parsed(
        "train", f"{spec}:small", "--model", bert, "--data", intents, "--out", out, "--epochs", 4, "--lr", "1e-2",
        "--batch-size", 8, "--max-length", 16,
    )  # fmt: skip
    return str(out), found


def test_train_eval_predict_merge(trained, intents, tmp_path):
    out, found = trained
    assert found["ok"] and set(found["metrics"]) == {"validation", "test"}
    again = parsed("eval", out, "--data", intents)
    assert again["split"] == "test" and again["metrics"] == found["metrics"]["test"]
    assert parsed("eval", out, "--data", intents, "--split", "validation")["metrics"] == found["metrics"]["validation"]
    text, _ = call("eval", out, "--data", intents)
    assert "accuracy" in text

    texts = tmp_path / "texts.txt"
    texts.write_text("i want my money\n\nclose my account\n")
    answers = parsed("predict", out, "when can it arrive", "--file", texts)["predictions"]
    assert [a["text"] for a in answers] == ["when can it arrive", "i want my money", "close my account"]
    assert all(a["label"] in ("refund", "arrival", "closing") for a in answers)
    assert "when can it arrive" in call("predict", out, "when can it arrive")[0]
    from_data = parsed("predict", out, "--file", Path(intents) / "test.jsonl")["predictions"]
    assert len(from_data) == 18

    assert parsed("merge", out, "--out", tmp_path / "plain")["ok"]
    assert (tmp_path / "plain" / "model.safetensors").is_file()


def test_a_run_is_not_repeated(trained, spec, intents, bert):
    out, _ = trained
    command = ["train", f"{spec}:small", "--model", bert, "--data", intents, "--out", out, "--epochs", 4, "--lr", "1e-2",
               "--batch-size", 8, "--max-length", 16]  # fmt: skip
    assert "--overwrite" in call(*command, code=1)[1]
    assert "complete" in call(*command, "--resume", code=3)[1]
    assert "seed: 0 then, 1 now" in call(*command, "--resume", "--seed", 1, code=1)[1]


KILLED = """
import os, signal, sys
from unipelt.training.progress import Progress

def on_step_end(self, args, state, control, **_):
    if state.global_step == 11:
        os.kill(os.getpid(), signal.SIGKILL)

Progress.on_step_end = on_step_end
from unipelt.cli.main import main
main()
"""


def test_a_killed_run_goes_on_to_the_same_end(spec, intents, bert, tmp_path):
    """Killed in the second of three epochs of 6 steps, with dropout, behind a checkpoint inside the epoch."""
    command = ["train", f"{spec}:small", "--model", bert, "--data", intents, "--epochs", 3, "--lr", "1e-2", "--set", "rate=0.2",
               "--max-length", 16, "--save-steps", 4, "--out"]  # fmt: skip
    whole = parsed(*command, tmp_path / "whole")
    done = subprocess.run([sys.executable, "-c", KILLED, *map(str, command), tmp_path / "killed"],
                          check=False, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert "no finished run" in call("eval", tmp_path / "killed", "--data", intents, code=1)[1]
    out, err = call(*command, tmp_path / "killed", "--resume", "--json")
    assert "resuming at step 8" in err
    killed = json.loads(out)
    assert killed["metrics"] == whole["metrics"] and killed["history"] == whole["history"]
    assert (tmp_path / "killed" / "adapter.safetensors").read_bytes() == (
        tmp_path / "whole" / "adapter.safetensors"
    ).read_bytes()


def test_bad_data_is_named_with_its_line(spec, bert, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"text": "a", "label": "x"}\n{"text": \n')
    _, err = call("train", f"{spec}:small", "--model", bert, "--data", data, "--out", tmp_path / "run", code=1)
    assert "line 2" in err and "error[E0602]" in err and not (tmp_path / "run").exists()


def test_usage_mistakes(spec, trained):
    assert "Missing option '--model'" in call("train", f"{spec}:small", code=2)[1]
    assert "No such command" in call("trian", code=2)[1]
    assert "--epochs" in call("train", f"{spec}:small", "--epochs", "many", code=2)[1]
    assert "--file" in call("predict", trained[0], code=2)[1]


@pytest.mark.parametrize("option, value", [
    ("--task", "poetry"), ("--padding", "shortest"), ("--scheduler", "cosin"), ("--precision", "bf61"), ("--loss", "some"),
    ("--problem-type", "regresion"), ("--optimizer", "adamm"), ("--epochs", "0"), ("--dropout", "2"),
])  # fmt: skip
def test_a_value_that_an_option_does_not_take_is_wrong_usage(option, value, spec, intents, bert, tmp_path):
    out, err = call("train", f"{spec}:small", "-m", bert, "-d", intents, "-o", tmp_path / "run", option, value, code=2)
    assert not out and f"`{option}`" in err and "= help" in err and not (tmp_path / "run").exists()


def test_a_plan_fits_eighty_columns_and_says_what_is_true_of_several_rows_once(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    from transformers import BertConfig

    (tmp_path / "bert.json").write_text(json.dumps({**BertConfig().to_dict(), "model_type": "bert"}), "utf-8")
    met = 0
    for method in members():
        command = [
            "plan",
            method,
            "--model",
            tmp_path / "bert.json",
            "--task",
            "sequence-classification",
            "--allow-future",
        ]
        done = CliRunner().invoke(app, [str(a) for a in command])
        if method not in map(named, CLASSICS) and done.exit_code == 1:
            assert "error[E0" in done.output  # BERT has no such site
            continue
        out, _ = call(*command)
        met += 1
        assert max(map(len, out.splitlines())) <= 80, out
        assert out.count("pad positions") <= 1 and out.count("trained") >= 1
    assert met >= len(CLASSICS)


def test_an_adapter_that_is_none(tmp_path, intents):
    for command in (
        ["eval", tmp_path, "--data", intents],
        ["predict", tmp_path, "x"],
        ["merge", tmp_path, "--out", "y"],
    ):
        assert "no finished run" in call(*command, code=1)[1]


def test_a_full_disk_is_said_plainly(spec, intents, bert, tmp_path):
    """A limit on the size of files stands for the full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        _, err = call(
            "train", f"{spec}:small", "--model", bert, "--data", intents, "--out", tmp_path / "run", "--epochs", 1,
            "--max-length", 16, code=3,
        )  # fmt: skip
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "could not be written" in err
    assert not (tmp_path / "run" / "metrics.json").exists()
    assert not (tmp_path / "run" / "adapter.json").exists()


def test_an_interruption_names_the_way_on(monkeypatch, spec, intents, bert, tmp_path):
    from unipelt.training import run as training

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupted)
    _, err = call("train", f"{spec}:small", "--model", bert, "--data", intents, "--out", tmp_path / "run", code=3)
    assert "interrupted" in err and "--resume" in err


def test_a_mistake_of_ours_is_no_traceback(monkeypatch):
    from unipelt.cli import methods

    def wrong(*_):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(methods, "list_library", wrong)
    _, err = call("list", code=3)
    assert "mistake in unipelt" in err and "division by zero" in err


def test_a_closed_pipe():
    done = subprocess.run(
        f"{sys.executable} -m unipelt.cli.main list --all | head -n 1", shell=True, check=False, capture_output=True, text=True,
        env={**os.environ},
    )  # fmt: skip
    assert done.stdout.count("\n") == 1 and not done.stderr


def test_sarif_says_too_that_there_is_nothing_to_fix(tmp_path):
    found = parsed("check", "--fix", "--sarif", tmp_path, code=1)
    assert [r["ruleId"] for r in found["runs"][0]["results"]] == ["E0407"]


@pytest.mark.parametrize(
    "command, alone", [("export", True), ("push", True), ("generate", True), ("train", False), ("--help", False)]
)
def test_only_what_processes_share_runs_under_a_launcher(command, alone, capsys):
    from unipelt.cli.main import _one_process

    if not alone:
        assert _one_process([command]) is None
        return
    with pytest.raises(SystemExit) as left:
        _one_process([command])
    assert left.value.code == 1 and f"error[E0667]: `unipelt {command}`" in capsys.readouterr().err
