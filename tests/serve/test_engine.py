"""One thread owns the model and writes for all: what each gets is what it gets alone, and nobody's trouble is another's."""

from __future__ import annotations

import json
import shutil
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from served import METHODS, Heard, Plain, adapted, alone, write_adapter

import unipelt
from unipelt.runtime.registry import registry
from unipelt.language.report.diagnostics import PeltError
from unipelt.serve.decoding import Decoding, Model
from unipelt.serve.engine import Engine
from unipelt.serve.jobs import Completed, Completion
from unipelt.serve.opening import open_engine
from unipelt.serve.options import ServeOptions
from unipelt.serve.refusals import Refusal
from unipelt.serve.sampling import Sampling

PROMPTS = ([2, 5, 9], [2, 14, 6, 8, 21], [2, 19])


@pytest.fixture
def opened(base: str, folder: Path, heard: Heard):
    """Makes engines on the test's own folder of adapters, and ends them."""
    made: list[Engine] = []

    def make(start: bool = True, **options: Any) -> Engine:
        e = open_engine(base, [folder], ServeOptions(**{"reload": 0, **options}), heard)
        made.append(e)
        return e.__enter__() if start else e

    yield make
    for e in made:
        if e.alive:
            e.stop(0)


def ask(e: Engine, name: str | None, prompt: list[int] | None = None, n: int = 6, seconds: float = 60, **more: Any) -> Completion:  # fmt: skip
    job = Completion(name, seconds, prompt=prompt or PROMPTS[0], max_tokens=n, **more)
    e.submit(job)
    return job


def answer(job: Completion) -> Completed:
    return job.future.result(60)


def refused(what: Callable[[], Any]) -> Refusal:
    with pytest.raises(Refusal) as caught:
        what()
    return caught.value


def in_model(e: Engine) -> set[str]:
    """What the model itself says that it has."""
    r = registry(e.shelf.model)
    return set(unipelt.adapters(e.shelf.model)) | {n for b in (r.banks.values() if r else ()) for n in b.names}


def long(e: Engine, name: str | None = "ann", n: int = 160) -> tuple[Completion, threading.Event]:
    """A text that is written for long, and an event that says that it has begun."""
    begun = threading.Event()
    job = ask(e, name, [2, 14, 6], n, stop=["nothing says this"], heard=lambda text: begun.set())
    assert begun.wait(30)
    return job, begun


# ---------------------------------------------------------------- equal to running alone


def test_each_gets_what_it_gets_alone(opened, plain: Plain, heard: Heard) -> None:
    e = opened(start=False)
    wanted = [(name, prompt, 4 + i) for i, name in enumerate([*METHODS, None]) for prompt in PROMPTS]
    jobs = [Completion(name, 60, prompt=prompt, max_tokens=n) for name, prompt, n in wanted]
    with e:
        for job in jobs:
            e.submit(job)
        found = [answer(job).ids for job in jobs]
    assert found == [plain.write(*given) for given in wanted]
    assert max(n for _, n in heard.batches) == len(METHODS) + 1, "all adapters ran together"
    assert len(set(found)) > 12


@pytest.mark.parametrize("earlier", ["ann", "eve"])
def test_new_texts_join_what_runs(earlier: str, opened, plain: Plain, heard: Heard) -> None:
    e = opened()
    first, _ = long(e, earlier)
    others = ["bob", "cy", None, "eve" if earlier == "ann" else "ann"]
    late = [ask(e, name, PROMPTS[1], 4 + 2 * i) for i, name in enumerate(others)]
    assert [answer(j).ids for j in late] == [plain.write(n, PROMPTS[1], 4 + 2 * i) for i, n in enumerate(others)]
    assert not first.future.done() and max(n for _, n in heard.batches) == 5
    assert answer(first).ids == plain.write(earlier, [2, 14, 6], 160)


def test_chance_depends_on_the_seed_alone(opened) -> None:
    e = opened()
    how = {"n": 12, "sampling": Sampling(temperature=1.5, top_p=0.9, seed=7)}
    alone = answer(ask(e, "ann", **how)).ids
    jobs = [ask(e, "bob", PROMPTS[1], 12), ask(e, "ann", **how), ask(e, None, sampling=Sampling(temperature=2.0))]
    assert answer(jobs[1]).ids == alone
    other = Sampling(temperature=1.5, top_p=0.9, seed=8)
    assert answer(ask(e, "ann", n=12, sampling=other)).ids != alone
    greedy = answer(ask(e, "ann", n=12)).ids
    assert answer(ask(e, "ann", n=12, sampling=Sampling(temperature=1.5, top_p=1e-9))).ids == greedy


def test_pieces_make_the_text_and_stops_end_it(opened) -> None:
    e = opened()
    found = {(n, k): answer(ask(e, n, PROMPTS[k], 12)) for n in METHODS for k in range(3)}
    (name, k), whole = next((given, f) for given, f in found.items() if len(set(f.text.split())) > 5)
    words = whole.text.split()
    stop = f"{words[3]} {words[4]}"
    pieces: list[str] = []
    found = answer(ask(e, name, PROMPTS[k], 12, stop=[stop, "nobody says this"], heard=pieces.append))
    assert found.reason == "stop" and found.text == whole.text[: whole.text.index(stop)]
    assert "".join(pieces) == found.text and len(pieces) > 1


def test_one_at_a_time_mixes_nothing(opened, plain: Plain, heard: Heard) -> None:
    e = opened(one_at_a_time=True)
    jobs = [ask(e, name, PROMPTS[1]) for name in ("ann", "bob", "cy", "ann")]
    assert [answer(j).ids for j in jobs] == [plain.write(n, PROMPTS[1], 6) for n in ("ann", "bob", "cy", "ann")]
    assert {n for _, n in heard.batches} == {1}


def test_eight_threads(opened, plain: Plain) -> None:
    e = opened(max_adapters=3, max_batch=6)
    names = [*METHODS, None]
    wanted = {(n, k): plain.write(n, PROMPTS[k], 5) for n in names for k in range(3)}
    wrong: list[Any] = []

    def run(t: int) -> None:
        for i in range(8):
            name, k = names[(t + i) % len(names)], (t * i) % 3
            try:
                if (found := answer(ask(e, name, PROMPTS[k], 5)).ids) != wanted[name, k]:
                    wrong.append((name, k, found))
            except Exception as x:  # noqa: BLE001
                wrong.append(x)

    threads = [threading.Thread(target=run, args=(t,)) for t in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(120)
    assert wrong == []


# ---------------------------------------------------------------- folders


def test_few_in_memory_many_served(opened, plain: Plain, heard: Heard) -> None:
    e = opened(max_adapters=2)
    for _ in range(2):
        for name in METHODS:
            assert answer(ask(e, name)).ids == plain.write(name, PROMPTS[0], 6)
            assert len(e.shelf) <= 2
    assert heard.adapters == {"loaded": 10, "evicted": 8}
    assert in_model(e) == {x.placed.inside for x in e.shelf._now.values()}
    answer(ask(e, "eve"))
    assert heard.adapters["loaded"] == 10, "what is in memory is not read again"


def test_what_needs_room_waits_for_it(opened, plain: Plain) -> None:
    e = opened(max_adapters=1)
    first, _ = long(e, n=60)
    second = ask(e, "bob")
    assert answer(second).ids == plain.write("bob", PROMPTS[0], 6)
    assert first.future.done() and len(e.shelf) == 1


def test_a_new_folder_is_served_and_a_removed_one_is_not(opened, folder: Path, plain: Plain, tmp_path: Path) -> None:
    e = opened(reload=0.05)
    assert refused(lambda: ask(e, "zoe")).code == "model_not_found"
    shutil.copytree(folder / "ann", tmp_path / "zoe")
    (tmp_path / "zoe").rename(folder / "zoe")
    running, _ = long(e, "bob")
    shutil.rmtree(folder / "bob")
    wait(lambda: {"zoe"} <= set(e.catalogue.table.entries) and "bob" not in e.catalogue.table.entries)
    assert answer(ask(e, "zoe")).ids == plain.write("ann", PROMPTS[0], 6)
    assert refused(lambda: ask(e, "bob")).status == 404
    assert answer(running).ids == plain.write("bob", [2, 14, 6], 160), "what ran ended under what it began with"
    wait(lambda: e.shelf.names == ["zoe"] and len(in_model(e)) == 1)


def test_a_changed_folder_is_read_beside_what_runs(opened, folder: Path, plain: Plain, heard: Heard) -> None:
    e = opened()
    running, _ = long(e, "ann")
    shutil.rmtree(folder / "ann")
    shutil.copytree(folder / "di", folder / "ann")
    e.catalogue.refresh()
    assert answer(ask(e, "ann")).ids == plain.write("di", PROMPTS[0], 6)
    assert not running.future.done() and len(e.shelf) == 2
    assert answer(running).ids == plain.write("ann", [2, 14, 6], 160)
    wait(lambda: len(e.shelf) == 1 and len(in_model(e)) == 1)
    assert heard.adapters == {"loaded": 2, "replaced": 1}


POISON: dict[str, Callable[[Path], Any]] = {
    "no tensors": lambda f: (f / "adapter.safetensors").unlink(),
    "cut short": lambda f: (f / "adapter.safetensors").write_bytes((f / "adapter.safetensors").read_bytes()[:-9]),
    "no JSON": lambda f: (f / "adapter.json").write_text("{"),
    "deep JSON": lambda f: (f / "adapter.json").write_text("[" * 100_000),
    "another method": lambda f: (f / "method.pelt").write_text("method x { train *.weight }"),
    "an import": lambda f: (f / "method.pelt").write_text('import "/etc/passwd"\nmethod x { train *.weight }'),
    "another base": lambda f: edited(f, lambda m: m["base"]["samples"].update(dict.fromkeys(m["base"]["samples"], [9.0]))),
    "no object": lambda f: (f / "adapter.json").write_text("[]"),
}  # fmt: skip


def edited(folder: Path, change: Callable[[Any], Any]) -> None:
    found = json.loads((folder / "adapter.json").read_text())
    change(found)
    (folder / "adapter.json").write_text(json.dumps(found))


def test_poisoned_folders_stop_nothing(opened, folder: Path, plain: Plain, heard: Heard, caplog: Any) -> None:
    for i, poison in enumerate(POISON.values()):
        poison(Path(shutil.copytree(folder / "ann", folder / f"bad{i}")))
    (folder / "pickled").mkdir()
    (folder / "pickled" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "pickled" / "adapter_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    nan = adapted(plain.model.config._name_or_path)
    unipelt.attach(nan, folder / "ann", "nan")
    with torch.no_grad():
        for p in registry(nan).attached["nan"].values().values():
            p.fill_(3e38)  # finite, and what it computes is not
    unipelt.save(nan, folder / "huge", "nan")
    bad = [f"bad{i}" for i in range(len(POISON))] + ["pickled", "huge"]
    e = opened()
    running, _ = long(e)
    for name in [*bad, *bad]:
        why = refused(lambda name=name: answer(ask(e, name)))
        assert (why.status, why.code) == (500, "adapter_unusable") and "/" not in why.message, name
    assert heard.adapters == {"loaded": 1, "failed": len(bad)}, "a folder that failed is not read again as it is"
    assert answer(running).ids == plain.write("ann", [2, 14, 6], 160)
    assert len(in_model(e)) == 1 and "pickle" in caplog.text

    shutil.rmtree(folder / "bad0")
    shutil.copytree(folder / "di", folder / "bad0")
    e.catalogue.refresh()
    assert answer(ask(e, "bad0")).ids == plain.write("di", PROMPTS[0], 6), "mended, it is read again"
    POISON["cut short"](folder / "bad0")
    e.catalogue.refresh()
    assert answer(ask(e, "bad0")).ids == plain.write("di", PROMPTS[0], 6), "broken, it goes on as it was"


def test_names_are_looked_up_and_never_become_paths(opened, folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "ann", tmp_path / "outside")
    (folder / "linked").symlink_to(tmp_path / "outside")
    shutil.copytree(folder / "ann", folder / "base")
    shutil.copytree(folder / "ann", folder / "a name")
    shutil.copytree(folder / "ann", folder / ".hidden")
    (folder / "empty").mkdir()
    e = opened()
    for name in ("../outside", str(tmp_path / "outside"), "linked", "ann/../ann", "ann/", "", ".", "..", "a name", "ann\0", ".hidden", "empty", "ANN", "x" * 9999):  # fmt: skip
        why = refused(lambda name=name: ask(e, name))
        assert (why.status, why.code, why.param) == (404, "model_not_found", "model") and len(why.message) < 300, name
    assert "did you mean `eve`?" in refused(lambda: ask(e, "evee")).message
    reasons = {Path(f).name: r for f, r in e.catalogue.table.refused.items()}
    assert reasons == {"linked": "it is a link", "base": "the base has that name", "a name": reasons["a name"]}
    assert set(e.catalogue.table.entries) == set(METHODS)


def test_folders_of_peft_are_read(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a bank finds no memory nothing is left in the model, and the next request may find some."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = peft.get_peft_model(adapted(base), settings)
        model.save_pretrained(tmp_path / "of_peft")

    def full(*_: Any, **__: Any) -> Any:
        raise MemoryError

    with open_engine(base, [tmp_path / "of_peft"]) as e:
        with monkeypatch.context() as patch:
            patch.setattr(unipelt, "bank", full)
            assert refused(lambda: answer(ask(e, "of_peft"))).code == "adapter_unusable"
        assert not in_model(e)
        assert answer(ask(e, "of_peft", PROMPTS[1], 8)).ids == alone(model.eval(), PROMPTS[1], 8)
        assert len(in_model(e)) == 1 and not unipelt.adapters(e.shelf.model), "it is in a bank, and there alone"


# ---------------------------------------------------------------- limits, ends, faults


def wait(holds: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_limits(opened) -> None:
    e = opened(max_input=8, max_tokens=50, max_queue=4)
    assert refused(lambda: ask(e, "ann", [2] * 9)).code == "context_length_exceeded"
    assert refused(lambda: ask(e, "ann", n=51)).code == "too_many_tokens"
    other = opened(max_input=5000, max_tokens=5000)
    why = refused(lambda: ask(other, None, [5] * 1990, 20))
    assert why.code == "context_length_exceeded" and "2000" in why.message
    why = refused(lambda: answer(ask(other, "eve", [5] * 1990, 9)))
    assert why.code == "context_length_exceeded" and "3 of the adapter's own" in why.message


def test_the_queue_is_bounded_and_cancelled_texts_leave(opened, plain: Plain) -> None:
    e = opened(max_batch=1, max_queue=2)
    first, _ = long(e)
    waiting = [ask(e, "bob"), ask(e, "cy")]
    why = refused(lambda: ask(e, "di"))
    assert (why.status, why.code) == (429, "queue_full")
    waiting[0].cancel()
    first.cancel()
    e.wake()
    for job in (waiting[0], first):
        assert refused(lambda job=job: answer(job)).code == "cancelled"
    assert answer(waiting[1]).ids == plain.write("cy", PROMPTS[0], 6)
    wait(lambda: e.running == e.waiting == 0)
    assert all(not x.users for x in e.shelf._now.values())


def test_who_waits_too_long_is_told(opened, plain: Plain) -> None:
    e = opened(max_batch=1)
    first, _ = long(e)
    assert refused(lambda: answer(ask(e, "bob", seconds=0.02))).status == 504
    assert answer(first).ids == plain.write("ann", [2, 14, 6], 160)
    assert refused(lambda: answer(ask(e, "ann", n=1000, seconds=0.1, stop=["never"]))).code == "timeout"


def test_a_stop_ends_what_runs_and_refuses_what_is_new(opened, plain: Plain) -> None:
    e = opened(max_batch=1)
    first, _ = long(e, n=100)
    second = ask(e, "bob")
    e.refuse_new()
    assert refused(lambda: ask(e, "ann")).status == 503
    e.stop()
    assert answer(first).ids == plain.write("ann", [2, 14, 6], 100)
    assert answer(second).ids == plain.write("bob", PROMPTS[0], 6) and not e.alive


def test_a_stop_without_grace_leaves_nobody_waiting(opened) -> None:
    e = opened(max_batch=1)
    first, _ = long(e, n=1000)
    second = ask(e, "bob")
    e.stop(0)
    assert {refused(lambda j=j: answer(j)).status for j in (first, second)} == {503}
    assert all(not x.users for x in e.shelf._now.values())


def test_a_pass_that_fails_ends_its_texts_alone(opened, plain: Plain, monkeypatch: pytest.MonkeyPatch) -> None:
    e = opened(one_at_a_time=True)
    true = Model.scores
    broken = {n: answer(ask(e, n)) and e.shelf._now[n].placed.inside for n in ("ann", "bob")}

    def scores(self: Any, ids: torch.Tensor, mask: torch.Tensor, cache: Any, who: Any) -> torch.Tensor:
        if broken["ann"] in who and ids.shape[1] == 1 and mask.shape[1] > 40:
            raise RuntimeError("out of memory at 0x7f")
        found = true(self, ids, mask, cache, who)
        return found * float("nan") if mask.shape[1] > 5 and broken["bob"] in who else found

    monkeypatch.setattr(Model, "scores", scores)
    first, _ = long(e, "ann")
    why = refused(lambda: answer(first))
    assert (why.status, why.code) == (500, "internal") and "0x7f" not in why.message
    assert refused(lambda: answer(ask(e, "bob", [2] * 6, n=50))).code == "not_finite"
    assert answer(ask(e, "cy", n=60)).ids == plain.write("cy", PROMPTS[0], 60)
    assert answer(ask(e, "ann")).ids == plain.write("ann", PROMPTS[0], 6)


@pytest.mark.parametrize("what", ["no folder", "a task", "no decoder"])
def test_what_cannot_be_opened(what: str, base: str, bert: str, folder: Path) -> None:
    with pytest.raises(PeltError) as caught:
        if what == "no folder":
            open_engine(base, [folder.parent / "adapterz"])
        elif what == "a task":
            open_engine(bert, [folder.parent])
        else:
            mamba(folder.parent / "mamba", base)
            open_engine(str(folder.parent / "mamba"), [folder])
    (d,) = caught.value.diagnostics
    assert d.code == ("E0860" if what == "no folder" else "E0861")
    assert {"no folder": "did you mean `adapters`?", "a task": "--task", "no decoder": "decoder"}[what] in str(d.help)


def mamba(folder: Path, base: str) -> None:
    from transformers import AutoTokenizer, MambaConfig, MambaForCausalLM

    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    MambaForCausalLM(MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=40, state_size=4, time_step_rank=4)).save_pretrained(folder)  # fmt: skip


def test_learned_positions_and_adapters_added_one_by_one(tmp_path: Path) -> None:
    """GPT-2 has a table of positions, which pads in front must not shift."""
    from tiny_hf import write_gpt2

    base = write_gpt2(tmp_path / "gpt2")
    model = adapted(base)
    for i, (name, (method, arguments)) in enumerate(METHODS.items()):
        write_adapter(model, tmp_path / "adapters" / name, method, arguments, i)
    plain = Plain(model)
    with open_engine(base, [tmp_path / "adapters"]) as e:
        jobs = [ask(e, name, prompt, 5) for name in METHODS for prompt in PROMPTS]
        assert [answer(j).ids for j in jobs] == [plain.write(name, prompt, 5) for name in METHODS for prompt in PROMPTS]


def test_adapters_of_one_method_stand_in_banks(opened, folder: Path, plain: Plain, heard: Heard) -> None:
    """Twenty of one method: two banks, which are closed with their last adapters."""
    for i in range(20):
        shutil.copytree(folder / "ann", folder / f"ann{i}")
    e = opened(max_adapters=22)
    jobs = [ask(e, f"ann{i}", PROMPTS[i % 3]) for i in range(20)] + [ask(e, "bob"), ask(e, "eve")]
    assert [answer(j).ids for j in jobs[:20]] == [plain.write("ann", PROMPTS[i % 3], 6) for i in range(20)]
    assert [answer(j).ids for j in jobs[20:]] == [plain.write(n, PROMPTS[0], 6) for n in ("bob", "eve")]
    r = registry(e.shelf.model)
    assert r is not None and sorted(len(b) for b in r.banks.values()) == [1, 1, 4, 16]
    assert not unipelt.adapters(e.shelf.model)
    for i in range(20):
        shutil.rmtree(folder / f"ann{i}")
    e.catalogue.refresh()
    assert answer(ask(e, "bob")).ids == plain.write("bob", PROMPTS[0], 6)
    assert [len(b) for b in r.banks.values()] == [1, 1] and e.shelf.names == ["bob", "eve"]


def test_a_window_over_the_last_tokens(base: str, tmp_path: Path) -> None:
    """A cache that forgets: its rows cannot be joined, and run with those they began with."""
    from transformers import AutoTokenizer, MistralConfig, MistralForCausalLM

    place = tmp_path / "windowed"
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.save_pretrained(place)
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        sliding_window=6, initializer_range=0.2, bos_token_id=2, eos_token_id=3, pad_token_id=0,
    )  # fmt: skip
    MistralForCausalLM(config).save_pretrained(place)
    model = adapted(str(place))
    for i, name in enumerate(("ann", "bob", "di")):
        write_adapter(model, tmp_path / "adapters" / name, *METHODS[name], i)
    plain = Plain(model)
    with open_engine(str(place), [tmp_path / "adapters"]) as e:
        assert e.work.base.batches and not e.work.base.joins  # type: ignore[attr-defined]
        wanted = [(n, p, 4 + i) for n in ("ann", "bob", "di") for i, p in enumerate((*PROMPTS, list(range(4, 16))))]
        jobs = [ask(e, *given) for given in wanted]
        assert [answer(j).ids for j in jobs] == [plain.write(*given) for given in wanted]


def test_what_a_model_cannot_do_together_it_does_alone(base: str, folder: Path, plain: Plain, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """A model whose rows depend on one another, and one whose cache does not let a row leave."""
    true, order = Model.scores, Decoding._order

    def scores(self: Any, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        return true(self, ids, *rest) * (1 + 0.1 * (len(ids) - 1))

    def fails(self: Any, keep: list[int]) -> None:
        if keep:
            raise NotImplementedError
        order(self, keep)

    for name, other in (("scores", scores), ("_order", fails)):
        with monkeypatch.context() as patch:
            patch.setattr(Model if name == "scores" else Decoding, name, other)
            with open_engine(base, [folder]) as e:
                assert not e.work.base.batches  # type: ignore[attr-defined]
                jobs = [ask(e, n, PROMPTS[k], 5) for n in ("ann", "eve") for k in range(3)]
                assert [answer(j).ids for j in jobs] == [plain.write(n, PROMPTS[k], 5) for n in ("ann", "eve") for k in range(3)]  # fmt: skip
