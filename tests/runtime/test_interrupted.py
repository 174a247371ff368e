"""Ctrl-C at any line of a call leaves the model as before or as after it. `benchmarks/interrupted.py` tries every line."""

from __future__ import annotations

import random
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupted import CASES, ends, first_and_last, interrupt, lines, wrong
from names import name as named
from small import model, output, state
from transformers.modeling_utils import AttentionInterface

import unipelt
from unipelt.anatomy import calls
from unipelt.anatomy.evaluating import evaluating
from unipelt.anatomy.find import find
from unipelt.runtime import attach, save_merged
from unipelt.anatomy.interrupts import ended_by

#: How many lines of each call are tried.
TRIED = 4


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", list(CASES))
def test_an_interrupted_call_is_all_or_nothing(name: str, tmp_path: Path) -> None:
    passed, two = ends(name, tmp_path)
    points = first_and_last(passed)
    assert len(points) > 5
    found = [wrong(name, tmp_path, at, two) for at in random.Random(name).sample(points, TRIED)]
    assert not [f for f in found if f]


def test_a_look_at_a_model_leaves_its_modes_hooks_and_attention_as_they_were() -> None:
    """At every line of it, the last ones, which put things back, among them."""
    m = model("bert").train()
    m.encoder.layer[1].eval()
    sites, before, ask = find(m), [x.training for x in m.modules()], AttentionInterface.get_interface

    def look() -> None:
        with evaluating(m), calls.calls(m, sites):
            pass

    passed = lines(look, ("anatomy",))
    assert len(passed) > 30
    for at in range(1, len(passed) + 1):
        assert interrupt(look, at, ("anatomy",))
        assert [x.training for x in m.modules()] == before and AttentionInterface.get_interface is ask, passed[at - 1]
        assert not any(x._forward_pre_hooks for x in m.modules()), passed[at - 1]
        with ThreadPoolExecutor(1) as other:  # none waits for ever
            assert other.submit(calls.lock.acquire, timeout=5).result(), passed[at - 1]
            other.submit(calls.lock.release).result()


def test_the_lock_of_a_look_is_let_go_whatever_instruction_is_the_last() -> None:
    """Ctrl-C comes between two calls on one line, too."""

    def interrupted(at: int) -> bool:
        passed = iter(range(1, at + 1))

        def step(frame: Any, event: str, _: Any) -> Any:
            if event == "opcode" and next(passed, at) == at:
                sys.settrace(None)
                raise KeyboardInterrupt
            return step

        def enter(frame: Any, event: str, _: Any) -> Any:
            frame.f_trace_opcodes = frame.f_code.co_filename == calls.__file__
            return step

        before = sys.gettrace()
        sys.settrace(enter)
        try:
            with calls._alone():
                pass
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
        return False

    tried = list(takewhile(interrupted, count(1)))
    assert len(tried) > 20
    with ThreadPoolExecutor(1) as other:
        assert other.submit(calls.lock.acquire, timeout=5).result()
        other.submit(calls.lock.release).result()


def test_a_removal_that_is_interrupted_twice_is_finished_by_calling_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    m = model("bert")
    before = state(m), output(m)
    unipelt.apply(m, unipelt.load(named("lora"))(r=2), "a")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(attach, "take_down", stop)
        with pytest.raises(KeyboardInterrupt):
            unipelt.remove(m, "a")
    assert torch.equal(output(m), before[1]) and unipelt.active(m) == ()
    for call in (
        unipelt.activate,
        unipelt.merge,
        unipelt.save,
        lambda m, n: unipelt.apply(m, unipelt.load(named("lora")), n),
    ):
        with pytest.raises(unipelt.PeltError) as caught:
            call(m, "a") if call is not unipelt.save else call(m, "nowhere", "a")  # type: ignore[operator]
        assert caught.value.diagnostics[0].code == "E0591"
    unipelt.remove(m, "a")
    assert state(m) == before[0] and torch.equal(output(m), before[1])


def test_what_is_in_use_is_neither_taken_out_nor_merged_over() -> None:
    m = model("bert")
    for n in ("a", "b"):
        unipelt.apply(m, unipelt.load(named("lora"))(r=2), n)
    with unipelt.using(m, "a"):
        for call, n in ((unipelt.remove, "a"), (unipelt.merge, "a"), (unipelt.merge, "b")):
            with pytest.raises(unipelt.PeltError) as caught:
                call(m, n)
            assert caught.value.diagnostics[0].code == "E0592"
    unipelt.merge(m, "b")
    with pytest.raises(unipelt.PeltError, match="`b` is merged"):
        unipelt.activate(m, "a")  # it would act on the merged base
    assert unipelt.active(m) == ()


def test_the_end_of_a_block_is_called_once_and_again_only_where_it_was_interrupted() -> None:
    calls: list[int] = []

    def end() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with ended_by(end):
        pass
    assert len(calls) == 1
    with pytest.raises(KeyboardInterrupt), ended_by(end):
        pass
    assert len(calls) == 3


def test_a_merged_model_is_as_before_where_the_end_of_its_save_is_interrupted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    m = model("bert")
    unipelt.apply(m, unipelt.load(named("lora"))(r=2), "a")
    before, times = state(m), []

    def once(model: Any, name: str | None) -> None:
        times.append(1)
        if len(times) == 1:
            raise KeyboardInterrupt
        unipelt.unmerge(model, name)

    monkeypatch.setattr(save_merged, "unmerge", once)
    with pytest.raises(KeyboardInterrupt):
        unipelt.save_merged(m, tmp_path / "x", "a")
    assert len(times) == 2 and state(m) == before and unipelt.active(m) == ("a",)
