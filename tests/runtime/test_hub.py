"""Adapters on the hub: pushed without anything of this machine, loaded as they were, and nothing else fetched or trusted.

The hub's own client speaks HTTP with a small server in this process.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import small
import torch
from fake_hub import point_to

import unipelt
from unipelt.runtime.card import PLACE, replaceable
from unipelt.runtime.hub import MANIFEST, METHOD, README, WEIGHTS, repository

SPEC = """
method mine(r: int = 2) {
  modify attn.q, attn.v   insert parallel
  form { A: [d_in, r] ~ normal(0.3)  B: [r, d_out] ~ zeros  delta = z @ A @ B }
  compose add
}
"""
CARD = {"task": "sequence-classification", "metrics": {"test": {"accuracy": 0.75}}, "data": {"name": "intents"}}
USER = "zaphodqx"


@pytest.fixture
def offline(monkeypatch):
    from huggingface_hub import constants

    return lambda: monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def home(monkeypatch, tmp_path):
    place = tmp_path / "home" / USER
    place.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(place))
    monkeypatch.setenv("USER", USER)
    return place


def saved(folder: Path, **more) -> torch.Tensor:
    """An adapter in a folder, and the logits of the model with it."""
    model = small.model("bert_labels")
    model.config._name_or_path = str(folder.parent / "base")
    unipelt.apply(model, unipelt.parse(SPEC), "mine")
    small.randomise(model, "mine")
    unipelt.save(model, folder, "mine", card=CARD, **more)
    return small.output(model)


def files_of(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()}


def code(place, **more) -> tuple[str, str]:
    """The code and text of what attaching is answered with; the model is left as it was."""
    model = small.model("bert_labels")
    before = small.state(model)
    with pytest.raises(unipelt.PeltError) as e:
        unipelt.attach(model, place, **more)
    assert small.state(model) == before
    return e.value.diagnostics[0].code, str(e.value)


# ---------------------------------------------------------------- there and back


def test_what_is_pushed_is_loaded_bit_by_bit(hub, tmp_path):
    wanted = saved(tmp_path / "a")
    pushed = unipelt.push(tmp_path / "a", "me/mine")
    assert pushed.commit == hub.repositories["me/mine"].branches["main"] and pushed.url == f"{hub.url}/me/mine"
    model = small.model("bert_labels")
    assert unipelt.attach(model, "me/mine") == "mine"
    assert torch.equal(small.output(model), wanted)


def test_the_card_says_how_it_is_loaded_from_there(hub, tmp_path):
    saved(tmp_path / "a")
    unipelt.push(tmp_path / "a", "me/mine")
    card = hub.repositories["me/mine"].files()[README].decode()
    assert 'unipelt.attach(model, "me/mine")' in card and "unipelt eval me/mine" in card and PLACE not in card
    (tmp_path / README).write_text(card)
    assert replaceable(tmp_path / README)  # nobody has edited it
    assert PLACE in (tmp_path / "a" / README).read_text()


def test_a_revision_is_a_branch(hub, tmp_path):
    first, second = saved(tmp_path / "a"), None
    unipelt.push(tmp_path / "a", "me/mine")
    model = small.model("bert_labels")
    unipelt.apply(model, unipelt.parse(SPEC), "mine")
    small.randomise(model, "mine", seed=5)
    unipelt.save(model, tmp_path / "b", "mine")
    second = small.output(model)
    made = unipelt.push(tmp_path / "b", "me/mine", revision="wider")
    for place, wanted in (("me/mine", first), ("me/mine@wider", second), (f"me/mine@{made.commit}", second)):
        model = small.model("bert_labels")
        unipelt.attach(model, place)
        assert torch.equal(small.output(model), wanted), place
    assert not torch.equal(first, second)
    assert code("me/mine@wide")[0] == "E0821"


def test_an_adapter_goes_on_from_the_hub(hub, tmp_path):
    saved(tmp_path / "a", fold=False)
    unipelt.push(tmp_path / "a", "me/mine")
    model = small.model("bert_labels")
    unipelt.apply(model, unipelt.parse(SPEC), "mine")
    unipelt.restore(model, "me/mine", "mine")
    other = small.model("bert_labels")
    unipelt.attach(other, tmp_path / "a")
    assert torch.equal(small.output(model), small.output(other))


def test_without_a_network_what_was_fetched_is_used(hub, offline, tmp_path):
    wanted = saved(tmp_path / "a")
    unipelt.push(tmp_path / "a", "me/mine")
    unipelt.attach(small.model("bert_labels"), "me/mine")
    offline()
    asked = len(hub.asked)
    model = small.model("bert_labels")
    unipelt.attach(model, "me/mine")
    assert torch.equal(small.output(model), wanted) and len(hub.asked) == asked
    assert code("me/other")[0] == "E0823" and code("me/mine@wider")[0] == "E0823"


def test_a_folder_of_that_name_wins(hub, monkeypatch, tmp_path):
    wanted = saved(tmp_path / "me" / "mine")
    monkeypatch.chdir(tmp_path)
    model = small.model("bert_labels")
    unipelt.attach(model, "me/mine")
    assert torch.equal(small.output(model), wanted) and not hub.asked


# ---------------------------------------------------------------- what leaves


def _run(folder: Path, home: Path, base: str) -> None:
    """The records of a run beside an adapter, as `training.folder` writes them; with every place they may hold."""
    config = {"method": f"{home}/specs/secret.pelt:mine+mean_head", "model": base, "data": f"{home}/data/intents", "out": str(folder),
              "words": str(home / "words.json"), "set": {"r": "2"}, "epochs": 3}  # fmt: skip
    notes = [f"the file {home}/data/intents/train.jsonl has 2 empty rows", f"({home}/data/intents)"]
    texts = {
        "run.json": {"version": 1, "config": config},
        "task.json": {
            "version": 1,
            "model": base,
            "seed": 0,
            "eval_batch_size": 64,
            "task": {"kind": "sequence-classification"},
        },
        "metrics.json": {
            "version": 1,
            "folder": str(folder),
            "notes": notes,
            "config": config,
            "metrics": {"test": {"accuracy": 0.75}},
        },
    }
    for n, value in texts.items():
        (folder / n).write_text(json.dumps(value))


def test_nothing_of_this_machine_leaves(hub, home, tmp_path):
    folder = home / "runs" / "intents"
    saved(folder)
    _run(folder, home, str(home / "models" / "tiny"))
    (folder / "notes.txt").write_text("not for others")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "optimizer.pt").write_text("not for others")
    before = files_of(folder)
    unipelt.push(folder, "me/mine")
    there = hub.repositories["me/mine"].files()
    assert set(there) == {MANIFEST, METHOD, WEIGHTS, README, "run.json", "task.json", "metrics.json", ".gitattributes"}
    for n, data in there.items():
        for secret in (USER, str(home), str(tmp_path), str(Path.cwd()), "secret-place"):
            assert secret.encode() not in data, (n, secret)
    run, task, metrics = (json.loads(there[n]) for n in ("run.json", "task.json", "metrics.json"))
    assert run["config"] == {"method": "secret.pelt:mine+mean_head", "model": "tiny", "data": "intents", "out": "me/mine",
                             "words": "words.json", "set": {"r": "2"}, "epochs": 3}  # fmt: skip
    assert task["model"] is None and task["base"] == "tiny" and task["task"] == {"kind": "sequence-classification"}
    assert metrics["folder"] == "me/mine" and metrics["metrics"] == {"test": {"accuracy": 0.75}}
    assert metrics["notes"] == ["the file train.jsonl has 2 empty rows", "(intents)"]
    assert files_of(folder) == before


def test_a_place_beside_the_usual_ones_does_not_leave_either(hub, home, tmp_path):
    saved(home / "a")
    elsewhere = "/mnt-of-mine/big/data"
    _run(home / "a", Path(elsewhere), f"{elsewhere}/tiny")
    unipelt.push(home / "a", "me/mine")
    assert not any(b"mnt-of-mine" in data for data in hub.repositories["me/mine"].files().values())


def test_a_base_of_the_hub_keeps_its_name(hub, home):
    saved(home / "a")
    _run(home / "a", home, "some/base")
    unipelt.push(home / "a", "me/mine")
    there = hub.repositories["me/mine"].files()
    assert (
        json.loads(there["task.json"])["model"] == "some/base"
        and json.loads(there["run.json"])["config"]["model"] == "some/base"
    )


def test_a_card_by_hand_that_tells_a_place_is_not_pushed(hub, home):
    saved(home / "a")
    (home / "a" / README).write_text(f"# Mine\nTrained in {home}/a.\n")
    with pytest.raises(unipelt.PeltError, match="E0825") as e:
        unipelt.push(home / "a", "me/mine")
    assert f"{home}/a" in str(e.value) and README in str(e.value) and not hub.asked


def test_a_dry_run_asks_nobody(hub, tmp_path):
    saved(tmp_path / "a")
    made = unipelt.push(tmp_path / "a", "me/mine", dry_run=True)
    assert set(made.files) == {MANIFEST, METHOD, WEIGHTS, README} and made.commit is None and not hub.asked
    assert made.files[WEIGHTS] == (tmp_path / "a" / WEIGHTS).stat().st_size


# ---------------------------------------------------------------- into what is there


def test_a_card_that_was_edited_on_the_hub_is_kept(hub, tmp_path):
    saved(tmp_path / "a")
    unipelt.push(tmp_path / "a", "me/mine")
    repository = hub.repositories["me/mine"]
    repository.commit({**repository.files(), README: b"# My own words\n"})
    made = unipelt.push(tmp_path / "a", "me/mine")
    assert repository.files()[README] == b"# My own words\n" and README not in made.files
    assert any("by hand" in n for n in made.notes)
    (tmp_path / "a" / README).write_text("# Other words of mine\n")  # edited here too: the newer word holds
    unipelt.push(tmp_path / "a", "me/mine")
    assert repository.files()[README] == b"# Other words of mine\n"


def test_metadata_of_a_new_repository_are_no_words(hub, tmp_path):
    saved(tmp_path / "a")
    hub.put("me/mine", {".gitattributes": b"", README: b"---\nlicense: mit\n---\n"})
    unipelt.push(tmp_path / "a", "me/mine")
    assert b"unipelt.attach" in hub.repositories["me/mine"].files()[README]


def test_what_an_earlier_push_left_is_taken_away(hub, tmp_path):
    saved(tmp_path / "a")
    _run(tmp_path / "a", tmp_path, "some/base")
    unipelt.push(tmp_path / "a", "me/mine")
    (tmp_path / "a" / "task.json").unlink()
    unipelt.push(tmp_path / "a", "me/mine")
    assert "task.json" not in hub.repositories["me/mine"].files() and "run.json" in hub.repositories["me/mine"].files()


def test_a_repository_of_other_things_is_not_touched(hub, tmp_path):
    saved(tmp_path / "a")
    repository = hub.put("me/model", {"config.json": b"{}", "model.safetensors": b"", README: b"# A model\n"})
    with pytest.raises(unipelt.PeltError, match="E0826"):
        unipelt.push(tmp_path / "a", "me/model")
    assert len(repository.commits) == 1


def test_private_is_private(hub, tmp_path):
    saved(tmp_path / "a")
    unipelt.push(tmp_path / "a", "me/secret", private=True)
    assert hub.repositories["me/secret"].private
    hub.put("me/open", {".gitattributes": b""})
    with pytest.raises(unipelt.PeltError, match="E0826"):
        unipelt.push(tmp_path / "a", "me/open", private=True)
    assert len(hub.repositories["me/open"].commits) == 1


@pytest.mark.parametrize("name", ["mine", "a/b/c", "me/..", "me/mine@main", "", "me/mine.git"])
def test_names_that_are_none(hub, tmp_path, name):
    saved(tmp_path / "a")
    with pytest.raises(unipelt.PeltError, match="E0820"):
        unipelt.push(tmp_path / "a", name)
    assert not hub.asked


def test_only_a_whole_adapter_is_pushed(hub, tmp_path):
    with pytest.raises(unipelt.PeltError, match="E0577"):
        unipelt.push(tmp_path / "nowhere", "me/mine")
    saved(tmp_path / "a")
    data = bytearray((tmp_path / "a" / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (tmp_path / "a" / WEIGHTS).write_bytes(data)
    with pytest.raises(unipelt.PeltError, match="E0580"):
        unipelt.push(tmp_path / "a", "me/mine")
    assert not hub.asked


@pytest.mark.parametrize(
    "name, said", [("a/b@main", "--revision main"), ("a", "it is a folder here"), ("me/..", "`user/name`")]
)
def test_names_that_are_none_are_said_with_what_they_are(hub, tmp_path, monkeypatch, name, said):
    saved(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(unipelt.PeltError, match="E0820") as e:
        unipelt.push("a", name)
    assert said in str(e.value) and "= help" in str(e.value) and not hub.asked
    with pytest.raises(unipelt.PeltError, match="E0820.*`no branch` is no name of a branch"):
        unipelt.push("a", "me/mine", revision="no branch")


@pytest.mark.parametrize(
    "text, said", [("{", "is damaged"), ("[3]", "it holds no record"), ("[" * 100_000, "is damaged")]
)
def test_a_damaged_record_of_a_run_is_not_pushed(hub, tmp_path, text, said):
    saved(tmp_path / "a")
    (tmp_path / "a" / "metrics.json").write_text(text)
    before = files_of(tmp_path / "a")
    with pytest.raises(unipelt.PeltError, match="E0615") as e:
        unipelt.push(tmp_path / "a", "me/mine")
    assert "metrics.json" in str(e.value) and said in str(e.value) and "= help" in str(e.value)
    assert not hub.asked and files_of(tmp_path / "a") == before


# ---------------------------------------------------------------- what is not trusted


def test_only_the_adapters_files_are_fetched(hub, tmp_path):
    saved(tmp_path / "a")
    more = {
        "pytorch_model.bin": b"x",
        "code.py": b"x",
        f"deep/{WEIGHTS}": b"x",
        "adapter.json.txt": b"x",
        README: b"# x",
    }
    hub.put("me/mine", {**files_of(tmp_path / "a"), **more})
    unipelt.attach(small.model("bert_labels"), "me/mine")
    fetched = {line.rpartition("/")[2] for line in hub.asked if line.startswith("GET") and "/resolve/" in line}
    assert fetched == {MANIFEST, METHOD, WEIGHTS}
    assert {f.name for f in (tmp_path / "cache").rglob("snapshots/*/*")} == {MANIFEST, METHOD, WEIGHTS}


@pytest.mark.parametrize("file", [WEIGHTS, METHOD])
def test_a_changed_file_is_refused(hub, tmp_path, file):
    saved(tmp_path / "a")
    files = files_of(tmp_path / "a")
    data = bytearray(files[file])
    data[-2] ^= 1
    hub.put("me/mine", {**files, file: bytes(data)})
    assert code("me/mine")[0] == "E0580"


@pytest.mark.parametrize("bad", ["../evil", "a/../../evil", "/evil", "..\\evil", "~/evil", "a\nb"])
def test_names_that_lead_out_are_refused(hub, tmp_path, bad):
    saved(tmp_path / "a")
    hub.put("me/mine", {**files_of(tmp_path / "a"), bad: b"x"})
    found, text = code("me/mine")
    assert found == "E0824" and "leads out" in text
    assert not any("/resolve/" in line for line in hub.asked) and not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize("files, said", [
    ({MANIFEST: b"{}", METHOD: b"", "adapter_model.bin": b"x"}, "`adapter_model.bin` may be a pickle"),
    ({"adapter_config.json": b"{}", "adapter_model.safetensors": b""}, "peft"),
    ({"config.json": b"{}", "model.safetensors": b""}, "no adapter of unipelt"),
])  # fmt: skip
def test_what_is_no_adapter_is_not_fetched(hub, files, said):
    hub.put("me/mine", files)
    found, text = code("me/mine")
    assert found == "E0824" and said in text and not any("/resolve/" in line for line in hub.asked)


def test_what_is_too_large_is_not_fetched(hub, tmp_path, monkeypatch):
    from unipelt.runtime import hub as names

    saved(tmp_path / "a")
    unipelt.push(tmp_path / "a", "me/mine")
    hub.asked.clear()
    monkeypatch.setitem(names.FETCHED, WEIGHTS, 100)
    found, text = code("me/mine")
    assert found == "E0824" and "bytes" in text and not any("/resolve/" in line for line in hub.asked)


def test_a_hub_that_names_no_commit_is_not_trusted(hub, tmp_path):
    saved(tmp_path / "a")
    repository = hub.put("me/mine", files_of(tmp_path / "a"))
    repository.commits["../../x"] = repository.files()
    repository.branches["main"] = "../../x"
    assert code("me/mine")[0] == "E0824"


# ---------------------------------------------------------------- refusals


def test_what_is_not_there(hub, tmp_path, monkeypatch):
    found, text = code("me/mine")
    assert found == "E0821" and "no folder `me/mine` here" in text and "hf auth login" in text
    (tmp_path / "runs" / "intents").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "in `runs`: did you mean `intents`?" in code("runs/intent")[1]


@pytest.mark.parametrize("status, wanted", [(401, "E0822"), (403, "E0822"), (418, "E0823")])
def test_the_hubs_refusals(hub, tmp_path, status, wanted):
    saved(tmp_path / "a")
    hub.status = status
    with pytest.raises(unipelt.PeltError) as e:
        unipelt.push(tmp_path / "a", "me/mine")
    assert e.value.diagnostics[0].code == wanted and str(status) in str(e.value)


def test_a_repository_that_is_gated(hub, tmp_path):
    hub.status, hub.code = 403, "GatedRepo"
    found, text = code("me/mine")
    assert found == "E0822" and "`me/mine` is gated" in text and "ask for access" in text


def test_a_push_where_the_hub_is_switched_off(hub, tmp_path, offline):
    saved(tmp_path / "a")
    offline()
    with pytest.raises(unipelt.PeltError, match="E0823.*`me/mine` cannot be pushed: the hub is switched off") as e:
        unipelt.push(tmp_path / "a", "me/mine")
    assert "without HF_HUB_OFFLINE" in str(e.value) and not hub.asked


def test_a_file_that_has_not_the_size_that_the_hub_tells(hub, tmp_path):
    saved(tmp_path / "a")
    hub.put("me/mine", files_of(tmp_path / "a"))
    hub.sizes[METHOD] = 3
    found, text = code("me/mine")
    assert found == "E0824" and f"`{METHOD}` of `me/mine`" in text and "try again" in text


def test_no_network(hub, tmp_path, monkeypatch):
    saved(tmp_path / "a")
    unipelt.push(tmp_path / "a", "me/mine")
    unipelt.attach(small.model("bert_labels"), "me/mine")
    with socket.socket() as s:  # a port on which nobody listens
        s.bind((socket.inet_ntoa(b"\x7f\0\0\1"), 0))
        point_to(monkeypatch, f"http://{s.getsockname()[0]}:{s.getsockname()[1]}")
        found, text = code("me/mine")
        assert found == "E0823" and "HF_HUB_OFFLINE=1" in text
        assert code("me/other")[0] == "E0823"
        with pytest.raises(unipelt.PeltError, match="E0823"):
            unipelt.push(tmp_path / "a", "me/mine")


@pytest.mark.parametrize("place, wanted", [
    ("me/mine", ("me/mine", None)), ("me/mine@main", ("me/mine", "main")), ("me/mine@refs/pr/1", ("me/mine", "refs/pr/1")),
    ("mine", None), ("/me/mine", None), ("./me/mine", None), ("me/mine@", None), ("me/mine@../x", None),
    ("me/mine@a b", None), (Path("me/mine"), None), ("a/b/c", None),
])  # fmt: skip
def test_names_of_repositories(place, wanted):
    assert repository(place) == wanted
