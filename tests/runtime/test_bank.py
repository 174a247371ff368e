"""A bank of adapters: what it computes, what it holds, what it reads back, and what threads and a crash make of it."""

from __future__ import annotations

import copy
import linecache
import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupted import first_and_last, interrupt, lines
from names import name as named
from one_by_one import alone, batch
from small import model, randomise, state
from torch import nn

import unipelt
from unipelt.language.report.diagnostics import PeltError
from unipelt.runtime.registry import registry

#: Of each family one: products, scales, a weight, copies of parameters, frozen draws that all share, keys and values, gates,
#: turns, and an LSTM over rows among the tokens, which is computed for one adapter after the other.
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"r": 2}, "ia3": {}, "pfeiffer": {"r": 3}, "prefix_tuning": {"l": 3}, "dora": {"r": 2}, "ln_tuning": {}, "vera": {"r": 3},
    "mam": {"l": 2, "r": 3}, "unipelt_apl_causal": {}, "llama_adapter": {"l": 2}, "loha": {"r": 2}, "oft": {}, "prefix_tuning_mlp": {"l": 2}, "p_tuning_prepended": {"l": 2},
}  # fmt: skip
TINY = {"r": 2}


def load(name: str = "lora", **arguments: Any) -> unipelt.Method:
    return unipelt.load(named(name), arguments=arguments or METHODS.get(name))


def values(m: nn.Module, method: unipelt.Method, *names: str) -> dict[str, dict[str, torch.Tensor]]:
    """Random tensors for some adapters, which a model gets attached one by one."""
    found = {}
    for i, n in enumerate(names):
        unipelt.apply(m, method, name=n, seed=0, allow_future=True)
        randomise(m, n, seed=i + 1)
        found[n] = unipelt.state_dict(m, n)
    return found


def run(m: nn.Module, who: Any, x: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad(), unipelt.using(m, who):
        return m(**x)[0]


# ---------------------------------------------------------------- what it computes


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("name", METHODS)
def test_a_batch_from_a_bank_equals_each_adapter_by_itself(kind: str, name: str) -> None:
    twin, m = (model(kind, dtype=torch.float64) for _ in range(2))
    own = values(twin, load(name), "ann", "bob", "eve")
    unipelt.apply(m, load("lora"), name="carl")
    randomise(m, "carl", seed=9)
    plain = unipelt.state_dict(m, "carl")
    unipelt.apply(twin, load("lora"), name="carl")
    for n, p in unipelt.runtime.registry.record(twin, "carl").trained().items():
        p.data.copy_(plain[n])
    bank = unipelt.bank(m, load(name), slots=3, allow_future=True)
    for n, t in own.items():
        bank.add(n, t)
    who = ["bob", None, "ann", "carl", "bob", "eve"]
    x = batch(len(who))
    real = x["attention_mask"].bool()
    for examples in (who, ["ann"] * len(who)):
        expected = alone(twin, examples, x)
        torch.testing.assert_close(run(m, examples, x)[real], expected[real], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(run(m, "eve", x)[real], run(twin, "eve", x)[real], rtol=1e-9, atol=1e-9)
    for n, t in own.items():
        assert all(torch.equal(t[k], v) for k, v in bank.state_dict(n).items())


def test_generation_with_a_cache_and_beams() -> None:
    twin, m = model("llama"), model("llama")
    bank = unipelt.bank(m, load("mam"), slots=4)
    for n, t in values(twin, load("mam"), "ann", "bob").items():
        bank.add(n, t)
    who: list[str | None] = ["bob", None, "ann"]
    x = batch(3, padded=False)
    for beams in (1, 3):
        options = {"max_new_tokens": 5, "do_sample": False, "num_beams": beams, "pad_token_id": 0, "eos_token_id": None}
        expected = []
        for i, n in enumerate(who):
            with unipelt.using(twin, n):
                expected.append(twin.generate(**{k: t[i : i + 1] for k, t in x.items()}, **options))
        with unipelt.using(m, who):
            assert unipelt.active(m) == ("bob", "ann")
            assert torch.equal(m.generate(**x, **options), torch.cat(expected))


# ---------------------------------------------------------------- what it holds


def test_neither_modules_nor_memory_grow_with_the_adapters(tmp_path: Path) -> None:
    m = model("llama")
    before = state(m)
    own = values(model("llama"), load(**TINY), "one", "two")
    bank = unipelt.bank(m, load(**TINY), slots=4, folder=tmp_path)
    bank.add("first", own["one"])
    modules, held = len([*m.modules()]), bank.bytes
    each = sum(t.numel() * t.element_size() for t in own["one"].values())
    assert held == 4 * each
    for i in range(30):
        bank.add(f"n{i}", own["two"])
    run(m, ["n3", "n20", "first"], batch(3))
    assert (len([*m.modules()]), bank.bytes) == (modules, held)
    assert (
        sum(t.numel() * t.element_size() for t in m.buffers()) >= held and len(bank.resident) == 4 and len(bank) == 31
    )
    assert not any("unipelt" in n for n in m.state_dict()), "what is on disk is not saved a second time"
    bank.close()
    assert state(m) == before and registry(m) is None
    bank.close()
    with pytest.raises(PeltError, match=r"E0854.*closed"):
        bank.add("more", own["one"])


def test_frozen_draws_are_held_once_and_others_are_refused() -> None:
    m, twin = model("llama"), model("llama")
    own = values(twin, load("vera"), "ann")["ann"]
    bank = unipelt.bank(m, load("vera"), slots=50)
    bank.add("ann", own)
    frozen = {n: t for n, t in own.items() if ".A" in n or ".B" in n}
    assert bank.bytes < 50 * sum(t.numel() * 4 for t in own.values())
    other = {n: t + 1 if n in frozen else t for n, t in own.items()}
    assert frozen
    with pytest.raises(PeltError, match="E0856"):
        bank.add("bob", other)
    assert bank.names == ("ann",)


def test_the_longest_unused_adapter_makes_room(tmp_path: Path) -> None:
    m = model("llama")
    own = values(model("llama"), load(**TINY), "ann", "bob", "eve")
    bank = unipelt.bank(m, load(**TINY), slots=2, folder=tmp_path)
    for n, t in own.items():
        bank.add(n, t)
    assert set(bank.resident) == {"ann", "bob"} and bank.reads == 0
    x = batch(1)
    first = run(m, "ann", x)
    run(m, "eve", x)
    assert set(bank.resident) == {"ann", "eve"} and bank.reads == 1
    assert torch.equal(run(m, "ann", x), first) and bank.reads == 1
    with pytest.raises(PeltError, match="E0855"):
        run(m, ["ann", "bob", "eve"], batch(3))
    assert torch.equal(run(m, ["ann"], x), first)


# ---------------------------------------------------------------- folders


def test_a_bank_is_opened_again_and_its_folders_are_adapters(tmp_path: Path) -> None:
    m = model("llama")
    own = values(model("llama"), load(**TINY), "ann", "bob")
    with unipelt.bank(m, load(**TINY), slots=1, folder=tmp_path) as bank:
        for n, t in own.items():
            bank.add(n, t)
        before = [run(m, n, batch(2)) for n in own]
    again = model("llama")
    with unipelt.bank(again, tmp_path / "ann", slots=1, folder=tmp_path) as bank:
        assert bank.names == ("ann", "bob") and bank.resident == ()
        assert all(torch.equal(run(again, n, batch(2)), t) for n, t in zip(own, before))
        bank.evict("ann")
        assert not (tmp_path / "ann").exists() and (tmp_path / "bob").exists()
    unipelt.attach(again, tmp_path / "bob", "bob")
    assert torch.equal(run(again, "bob", batch(2)), before[1])


def test_adapters_of_folders_are_read_back_from_there(tmp_path: Path) -> None:
    twin, m = model("llama"), model("llama")
    own = values(twin, load("prefix_tuning_mlp"), "ann", "bob")
    for n in own:
        unipelt.save(twin, tmp_path / n, n)
    with unipelt.bank(m, tmp_path / "ann", slots=1) as bank:
        bank.add("ann", tmp_path / "ann")
        bank.add("bob", str(tmp_path / "bob"))
        for n in ("bob", "ann", "bob"):
            torch.testing.assert_close(run(m, n, batch(2, False)), run(twin, n, batch(2, False)), rtol=1e-5, atol=1e-5)
        bank.evict("ann")
        assert (tmp_path / "ann").exists(), "the user's own folder stays"


@pytest.mark.parametrize(
    "kind, code", [("bytes", "E0580"), ("cut", "E0580"), ("gone", "E0577"), ("another", "E0857"), ("manifest", "E0578")]
)
def test_what_is_not_what_was_added_is_noticed(kind: str, code: str, tmp_path: Path) -> None:
    m = model("llama")
    own = values(model("llama"), load(**TINY), "ann", "bob")
    bank = unipelt.bank(m, load(**TINY), slots=1, folder=tmp_path)
    for n, t in own.items():
        bank.add(n, t)
    good = run(m, "ann", batch(1))
    file = tmp_path / "bob" / "adapter.safetensors"
    data = bytearray(file.read_bytes())
    if kind == "bytes":
        data[-3] ^= 1
        file.write_bytes(bytes(data))
    elif kind == "cut":
        file.write_bytes(bytes(data[:-8]))
    elif kind == "manifest":
        (tmp_path / "bob" / "adapter.json").write_text("{")
    else:
        shutil.rmtree(tmp_path / "bob")
        if kind == "another":
            shutil.copytree(tmp_path / "ann", tmp_path / "bob")
    for _ in range(2):
        with pytest.raises(PeltError, match=code):
            run(m, "bob", batch(1))
        assert torch.equal(run(m, "ann", batch(1)), good), "the slot is free again, and others act"
    bank.replace("bob", own["bob"])
    assert not torch.equal(run(m, "bob", batch(1)), good)


def test_broken_folders_in_a_banks_folder_are_listed(tmp_path: Path) -> None:
    own = values(model("llama"), load(**TINY), "ann")["ann"]
    with unipelt.bank(model("llama"), load(**TINY), folder=tmp_path) as bank:
        bank.add("ann", own)
        bank.add("bob", own)
    (tmp_path / "bob" / "adapter.json").write_text("{")
    (tmp_path / "no.name").mkdir()
    with pytest.warns(UserWarning, match=r"bob .*; no\.name") as said:
        bank = unipelt.bank(model("llama"), load(**TINY), folder=tmp_path)
    assert said[0].filename == __file__
    assert bank.names == ("ann",)


def killed(call: Callable[[], object], at: int) -> bool:
    """Runs a call in a process of its own, which is killed before the step of that number that changes the disk."""
    process = os.fork()
    if process == 0:
        left = at

        def counted(function: Any) -> Any:
            def step(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)

            return step

        for n in ("mkdir", "rename", "fsync"):
            setattr(os, n, counted(getattr(os, n)))
        try:
            call()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(process, 0)[1])


def test_a_bank_that_is_killed_at_any_write_loses_nothing(tmp_path: Path) -> None:
    own = values(tiny(), load(**TINY), "a", "b", "c", "d")
    start, folder, m = tmp_path / "start", tmp_path / "bank", tiny()
    with unipelt.bank(m, load(**TINY), slots=1, folder=start) as bank:
        for n, v in (("ann", "a"), ("bob", "b"), ("carl", "c")):
            bank.add(n, own[v])

    def change() -> None:
        bank.replace("ann", own["d"])
        bank.evict("bob")
        bank.add("new", own["d"])

    ends = set()
    for at in range(100):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(start, folder)
        with unipelt.bank(m, load(**TINY), slots=1, folder=folder) as bank:
            dead = killed(change, at)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            bank = unipelt.bank(m, load(**TINY), slots=1, folder=folder)
        found = {
            n: next(v for v, t in own.items() if all(torch.equal(t[k], x) for k, x in bank.state_dict(n).items()))
            for n in bank.names
        }
        bank.close()
        stages = [{"ann": "a", "bob": "b", "carl": "c"}, {"ann": "d", "bob": "b", "carl": "c"}, {"ann": "d", "carl": "c"},
                  {"ann": "d", "carl": "c", "new": "d"}]  # fmt: skip
        assert found in stages
        ends.add(stages.index(found))
        if not dead:
            break
    assert ends == {0, 1, 2, 3} and not dead


# ---------------------------------------------------------------- threads


def tiny() -> nn.Module:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    return BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=30)
    ).eval()


def test_a_thousand_adapters_under_traffic(tmp_path: Path) -> None:
    """Eight threads ask, two change: every answer is that of a version which the adapter had while the block lasted."""
    m, twin, method = tiny(), tiny(), load(**TINY)
    kinds = 20
    pool = [*values(twin, method, *(f"v{i}" for i in range(kinds))).values()]
    x = {"input_ids": torch.arange(3, 9)[None].expand(4, -1)}
    answers = [run(twin, f"v{i}", {"input_ids": x["input_ids"][:1]})[0] for i in range(kinds)]
    base = run(twin, None, x)[0]
    for i in range(kinds):
        unipelt.save(twin, tmp_path / "saved" / f"v{i}", f"v{i}")
    bank = unipelt.bank(m, method, slots=40, folder=tmp_path / "bank")
    now = {f"u{i}": 0 for i in range(1000)}
    for i, n in enumerate(now):
        bank.add(n, tmp_path / "saved" / f"v{i % kinds}")
    held, stop, wrong, served = bank.bytes, threading.Event(), [], []

    def change(k: int) -> None:
        step = 0
        while not stop.is_set():
            i = (step * 7 + k * 3) % 40 * 2 + k
            if step % 5 == 4:
                bank.evict(f"u{i}")
                bank.add(f"u{i}", pool[(i + now[f"u{i}"] + 1) % kinds])
            else:
                bank.replace(f"u{i}", pool[(i + now[f"u{i}"] + 1) % kinds])
            now[f"u{i}"] += 1
            step += 1

    def ask(k: int) -> None:
        g = torch.Generator().manual_seed(k)
        for _ in range(40):
            ids = torch.randint(0, 100 if k % 2 else 1000, (3,), generator=g).tolist()
            before = [now[f"u{i}"] for i in ids]
            try:
                out = run(m, [f"u{ids[0]}", None, *(f"u{i}" for i in ids[1:])], x)
            except PeltError as e:
                if e.diagnostics[0].code != "E0551":  # it was evicted for a moment
                    wrong.append(str(e))
                continue
            after = [now[f"u{i}"] + 1 for i in ids]
            for row, i, low, high in zip((0, 2, 3), ids, before, after):
                if not any(torch.allclose(out[row], answers[(i + v) % kinds], atol=1e-5) for v in range(low, high + 1)):
                    wrong.append(f"u{i}")
            if not torch.allclose(out[1], base, atol=1e-5):
                wrong.append("base")
            served.append(len(ids))

    changing = [threading.Thread(target=change, args=(k,)) for k in range(2)]
    for t in changing:
        t.start()
    try:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(ask, range(8)))
    finally:
        stop.set()
        for t in changing:
            t.join()
    assert not wrong and sum(served) > 800
    assert sum(now.values()) > 10 and bank.reads > 100 and bank.bytes == held and len(bank) == 1000
    assert not registry(m).switch.holder.blocks and bank._table.counts()["used"] == 0


def test_a_block_goes_on_with_what_it_began_with(tmp_path: Path) -> None:
    m = model("llama")
    own = values(model("llama"), load(**TINY), "ann", "bob")
    bank = unipelt.bank(m, load(**TINY), slots=2, folder=tmp_path)
    bank.add("ann", own["ann"])
    bank.add("gone", own["ann"])
    x = batch(1)
    with torch.no_grad(), unipelt.using(m, "ann"):
        first = m(**x)[0]
        bank.replace("ann", own["bob"])
        bank.evict("gone")
        bank.add("new", own["bob"])
        assert torch.equal(m(**x)[0], first)
        assert not torch.equal(run(m, "new", x), first)
        with pytest.raises(PeltError, match="E0592"):
            bank.close()
    assert torch.equal(run(m, "ann", x), run(m, "new", x)) and not torch.equal(run(m, "ann", x), first)
    with pytest.raises(PeltError, match=r"E0551"):
        run(m, "gone", x)


def test_who_finds_all_slots_in_use_waits_and_not_for_ever(tmp_path: Path) -> None:
    m = model("llama")
    own = values(model("llama"), load(**TINY), "ann", "bob")
    bank = unipelt.bank(m, load(**TINY), slots=1, folder=tmp_path, patience=0.2)
    for n, t in own.items():
        bank.add(n, t)
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with unipelt.using(m, "ann"):
            held.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    with pytest.raises(PeltError, match=r"E0855.*0\.2 s"):
        run(m, "bob", batch(1))
    with pytest.raises(PeltError, match=r"E0592.*another thread"):
        bank.close()
    bank._table.patience = 20
    with ThreadPoolExecutor(1) as one:
        waiting = one.submit(run, m, "bob", batch(1))
        time.sleep(0.05)
        assert not waiting.done()
        leave.set()
        assert waiting.result(20).isfinite().all()
    thread.join()
    bank.close()


def test_ctrl_c_at_any_line_leaves_no_adapter_in_use_and_no_thread_waiting(tmp_path: Path) -> None:
    m = tiny()
    own = values(tiny(), load(**TINY), "a", "b")
    bank = unipelt.bank(m, load(**TINY), slots=2, folder=tmp_path, patience=5)
    for n in ("ann", "bob", "eve"):
        bank.add(n, own["a"])
    right = {"a": run(m, "ann", {"input_ids": torch.arange(3, 9)[None]})}
    bank.replace("bob", own["b"])
    right["b"] = run(m, "bob", {"input_ids": torch.arange(3, 9)[None]})
    assert not torch.equal(right["a"], right["b"])

    def block() -> None:
        with unipelt.using(m, ["ann", "eve"]):
            pass

    calls: dict[str, Callable[[], None]] = {
        "block": block, "replace": lambda: bank.replace("bob", own["b"]),
        "come and go": lambda: (bank.add("new", own["b"]), bank.evict("new"))[0],
    }  # fmt: skip
    here = ("runtime/slots.py", "runtime/bank.py", "runtime/acting.py", "runtime/switch.py", "runtime/mixture.py")
    for what, call in calls.items():
        passed = lines(call, here)
        # a trace stops at a lock's `with` before it is released, where Python lets no Ctrl-C in
        steps = [at for at in first_and_last(passed) if "with self._" not in linecache.getline(*passed[at - 1])]
        assert len(steps) > 20
        for at in steps[::2] if what == "block" else steps[::6]:
            run(m, "bob", {"input_ids": torch.arange(3, 9)[None]})  # so that something has to be read
            assert interrupt(call, at, here), (what, at)
            assert not bank._table.in_use and not bank._table._writing, (what, at)
            for n, v in (("ann", "a"), ("eve", "a"), ("bob", "b")):
                assert torch.equal(run(m, n, {"input_ids": torch.arange(3, 9)[None]}), right[v]), (what, at)
            if "new" in bank:
                bank.evict("new")
    run(m, ["ann", "bob"], {"input_ids": torch.arange(3, 9)[None].expand(2, -1)})


# ---------------------------------------------------------------- what is refused


def test_tensors_without_a_folder_stay_in_slots() -> None:
    m = model("llama")
    own = values(model("llama"), load(**TINY), "ann", "bob", "eve")
    bank = unipelt.bank(m, load(**TINY), slots=2)
    bank.add("ann", own["ann"])
    bank.add("bob", own["bob"])
    with pytest.raises(PeltError, match="E0855"):
        bank.add("eve", own["eve"])
    bank.replace("bob", own["eve"])
    assert torch.equal(next(iter(bank.state_dict("bob").values())), next(iter(own["eve"].values())))
    bank.evict("ann")
    bank.add("eve", own["eve"])
    assert bank.names == ("bob", "eve") and torch.equal(run(m, "bob", batch(1)), run(m, "eve", batch(1)))


def test_what_does_not_fit_is_refused_and_the_bank_is_as_it_was(tmp_path: Path) -> None:
    twin, m = model("llama"), model("llama")
    own = values(twin, load(**TINY), "ann")["ann"]
    values(twin, load("lora", r=3), "wide")
    values(twin, load("ia3"), "other")
    for n in ("wide", "other"):
        unipelt.save(twin, tmp_path / n, n)
    unipelt.save(_on_another_base(), tmp_path / "foreign", "ann")
    bank = unipelt.bank(m, load(**TINY), slots=2)
    bank.add("ann", own)
    before = run(m, "ann", batch(1))
    unipelt.apply(m, load("ia3"), name="carl")
    first, *_ = own
    cases: list[tuple[str, str, Any]] = [
        ("E0553", "ann", own), ("E0553", "carl", own), ("E0553", "bank", own), ("E0552", "no.name", own), ("E0856", "x", tmp_path / "wide"),
        ("E0856", "x", tmp_path / "other"), ("E0571", "x", tmp_path / "foreign"), ("E0577", "x", tmp_path / "nowhere"),
        ("E0585", "x", {n: t for n, t in own.items() if n != first}), ("E0586", "x", {**own, "y": own[first]}),
        ("E0587", "x", {**own, first: own[first][1:]}), ("E0584", "x", {**own, first: own[first] * torch.nan}),
    ]  # fmt: skip
    for code, n, given in cases:
        with pytest.raises(PeltError, match=code):
            bank.add(n, given)
    for call in (lambda: bank.replace("bob", own), lambda: bank.evict("bob"), lambda: bank.state_dict("bob")):
        with pytest.raises(PeltError, match="E0551"):
            call()
    assert bank.names == ("ann",) and torch.equal(run(m, "ann", batch(1)), before)
    assert bank._table.counts() == {"free": 1, "idle": 0, "used": 1}


def _on_another_base() -> nn.Module:
    m = model("llama", seed=3)
    unipelt.apply(m, load(**TINY), name="ann")
    return m


def test_what_an_adapter_in_a_bank_does_not_do(tmp_path: Path) -> None:
    m = model("llama")
    bank = unipelt.bank(m, load(**TINY), name="users")
    bank.add("ann", values(model("llama"), load(**TINY), "ann")["ann"])
    base = run(m, None, batch(1))
    calls = [
        lambda: unipelt.activate(m, "ann"), lambda: unipelt.save(m, tmp_path / "x", "ann"), lambda: unipelt.remove(m, "users"),
        lambda: unipelt.merge(m, "ann"), lambda: unipelt.state_dict(m, "users"), lambda: copy.deepcopy(m),
        lambda: run(m, ["users"], batch(1)),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(PeltError, match="E0854"):
            call()
    with pytest.raises(PeltError, match="E0854"), unipelt.using(m, "ann", "ann"):
        pass
    with pytest.raises(PeltError, match="E0553"):
        unipelt.apply(m, load("ia3"), name="ann")
    assert unipelt.adapters(m) == {} and torch.equal(run(m, None, batch(1)), base)
    with pytest.warns(UserWarning, match="`users` are banks") as said:
        m.save_pretrained(tmp_path / "model")
    assert said[0].filename == __file__


@pytest.mark.parametrize("name, code", [("per_user_prefixes", "E0853"), ("loreft", "E0853")])
def test_a_method_that_cannot_share_a_batch_makes_no_bank(name: str, code: str) -> None:
    m = model("llama")
    before = state(m)
    with pytest.raises(PeltError, match=code):
        unipelt.bank(m, unipelt.load(named(name)), allow_future=True)
    with pytest.raises(PeltError, match="E0855"):
        unipelt.bank(m, load(**TINY), slots=0)
    assert state(m) == before
