"""Ctrl-C at a chosen line of a call, for the tests of calls that are all or nothing."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from names import name as named
from small import model, output, randomise
from torch import nn

import unipelt
from unipelt.runtime.registry import registry

_OURS = ("runtime", "compiler")


def _run(call: Callable[[], Any], at: int | None, parts: Sequence[str] = _OURS) -> list[tuple[str, int]]:
    """Runs a call and notes the lines of some parts of the package; raises `KeyboardInterrupt` before the line ``at``."""
    passed: list[tuple[str, int]] = []
    files = tuple(str(Path(unipelt.__file__).parent / part) for part in parts)

    def line(frame: Any, event: str, _: Any) -> Any:
        if event == "line":
            passed.append((frame.f_code.co_filename, frame.f_lineno))
            if len(passed) == at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return line

    def enter(frame: Any, event: str, _: Any) -> Any:
        return line if frame.f_code.co_filename.startswith(files) else None

    before, gradients = sys.gettrace(), torch.is_grad_enabled()
    sys.settrace(enter)
    try:
        call()
    finally:
        sys.settrace(before)
        torch.set_grad_enabled(gradients)  # Ctrl-C may come before the end of `torch.no_grad`, too, which is torch's
    return passed


def lines(call: Callable[[], Any], parts: Sequence[str] = _OURS) -> list[tuple[str, int]]:
    """The lines that a call runs, in their order: file and number."""
    return _run(call, None, parts)


def first_and_last(passed: Sequence[tuple[str, int]]) -> list[int]:
    """Where each line is run for the first time and for the last time, counted from 1."""
    last = {line: at for at, line in enumerate(passed, 1)}
    first = {line: len(passed) - at for at, line in enumerate(reversed(passed))}
    return sorted({*first.values(), *last.values()})


def interrupt(call: Callable[[], Any], at: int, parts: Sequence[str] = _OURS) -> bool:
    """Interrupts a call before its line ``at``, counted from 1; False where it had fewer."""
    try:
        _run(call, at, parts)
    except KeyboardInterrupt:
        return True
    return False


# ---------------------------------------------------------------- the calls


@dataclass
class Case:
    """A model and a call of it."""

    model: nn.Module
    call: Callable[[], Any]


def seen(m: nn.Module) -> dict[str, Any]:
    """All that a user can see of a model: hooks, names, flags, values, what acts, what it answers."""
    parts = {
        path: (sorted(map(repr, map(type, (*x._forward_hooks.values(), *x._forward_pre_hooks.values(), *x._state_dict_hooks.values())))),
               [n for n in ("forward", "save_pretrained") if n in vars(x)], len(x._forward_hooks_with_kwargs),
               len(x._forward_hooks_always_called), len(x._forward_pre_hooks_with_kwargs), getattr(x, "out_features", None))
        for path, x in m.named_modules()
    }  # fmt: skip
    values = {n: (p.requires_grad, tuple(p.shape), p.detach().numpy().tobytes()) for n, p in m.named_parameters()}
    r = registry(m)
    mine = None if r is None else (list(r.attached), r.switch.active, list(r.switch.holder.blocks), r.switch.holder.rows, r.switch.holder.given,
                                   r.merged is not None, r.watched, r.input_hooks.declared, list(r.input_hooks.prompts))  # fmt: skip
    watchers = sum(len(getattr(x, "watchers", ())) for x in m.modules())
    config: Any = m.config
    return {"parts": parts, "values": values, "record": mine, "watchers": watchers, "labels": dict(config.id2label),
            "answers": output(m).numpy().tobytes()}  # fmt: skip


def _method(name: str, **arguments: Any) -> Any:
    return unipelt.load(named(name))(**arguments)


def _model(*names: str, active: tuple[str, ...] = ()) -> nn.Module:
    """A classifier with some adapters, of which some act."""
    made: dict[str, Any] = {
        "a": lambda m: unipelt.apply(m, _method("lora", r=2), "a"),
        "b": lambda m: unipelt.apply(m, _method("prompt_tuning", l=2), "b"),
        "c": lambda m: unipelt.apply(m, _method("prefix_tuning", l=2), "c", labels=2),
        "d": lambda m: unipelt.apply(m, _method("bitfit"), "d", labels=4),
        "e": lambda m: unipelt.apply(m, unipelt.parse(_EXPERT), "e"),
    }
    m = model("bert_labels")
    for i, n in enumerate(names):
        made[n](m)
        randomise(m, n, seed=i + 1)
    if names:
        unipelt.activate(m, *active)
    return m


_EXPERT = """
method e(r: int = 2) {
  modify ffn
  insert parallel
  form {
    input expert: index(3)
    A: [3, d_model, r] ~ normal(0.1)
    delta = z @ A[expert] @ A[expert].T
  }
  compose h + delta
}
"""


def _block(block: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    with block(*args, **kwargs):
        pass


def _apply(folder: Path) -> Case:
    m = _model()
    return Case(m, lambda: unipelt.apply(m, _method("prefix_tuning", l=2), "new", labels=2))


def _apply_second(folder: Path) -> Case:
    m = _model("a", active=("a",))
    return Case(m, lambda: unipelt.apply(m, _method("prompt_tuning", l=2), "new"))


def _remove(folder: Path) -> Case:
    m = _model("a", "b", "c", active=("a", "c"))
    return Case(m, lambda: unipelt.remove(m, "c"))


def _remove_last(folder: Path) -> Case:
    m = _model("b", active=("b",))
    return Case(m, lambda: unipelt.remove(m, "b"))


def _activate(folder: Path) -> Case:
    m = _model("a", "b", "c", active=("b",))
    return Case(m, lambda: unipelt.activate(m, "a", "c"))


def _merge(folder: Path) -> Case:
    m = _model("d", active=("d",))
    return Case(m, lambda: unipelt.merge(m, "d"))


def _merge_second(folder: Path) -> Case:
    m = _model("b", "a", active=("a",))
    return Case(m, lambda: unipelt.merge(m, "a"))


def _unmerge(folder: Path) -> Case:
    case = _merge(folder)
    case.call()
    return Case(case.model, lambda: unipelt.unmerge(case.model, "d"))


def _saved(folder: Path, *names: str) -> None:
    if not any(folder.iterdir()):
        m = _model(*names, active=names)
        for n in names:
            unipelt.save(m, folder / n, n, fold=False)
        m.save_pretrained(folder / "all")  # type: ignore[operator]


def _restore(folder: Path) -> Case:
    _saved(folder, "c", "a")
    m = _model("c", "a", active=("c",))
    randomise(m, "c", seed=9)
    return Case(m, lambda: unipelt.restore(m, folder / "c", "c"))


def _attach(folder: Path) -> Case:
    _saved(folder, "c", "a")
    m = _model()
    return Case(m, lambda: unipelt.attach(m, folder / "c", "new"))


def _attach_second(folder: Path) -> Case:
    _saved(folder, "c", "a")
    m = _model("b", active=("b",))
    return Case(m, lambda: unipelt.attach(m, folder / "c", "new", trainable=True))


def _attach_all(folder: Path) -> Case:
    _saved(folder, "c", "a")
    m = _model("b", active=("b",))
    return Case(m, lambda: unipelt.attach(m, folder / "all"))


def _kept(block: Callable[[nn.Module, Path], Any]) -> Callable[[Path], Case]:
    def prepare(folder: Path) -> Case:
        m = _model("a", "b", "e", active=("a", "e"))
        return Case(m, lambda: block(m, Path(tempfile.mkdtemp(dir=folder))))

    return prepare


#: Calls that change a model, and calls that leave it as it is; each makes a model and a call of it, given an empty folder.
CASES: dict[str, Callable[[Path], Case]] = {
    "apply": _apply, "apply a second": _apply_second, "remove": _remove, "remove the last": _remove_last, "activate": _activate,
    "merge": _merge, "merge one of two": _merge_second, "unmerge": _unmerge, "restore": _restore, "attach": _attach,
    "attach a second": _attach_second, "attach all": _attach_all,
    "using": _kept(lambda m, _: _block(unipelt.using, m, "b", "a")), "disabled": _kept(lambda m, _: _block(unipelt.disabled, m)),
    "inputs": _kept(lambda m, _: _block(unipelt.inputs, m, expert=1)), "with_rows": _kept(lambda m, _: _block(unipelt.with_rows, m)),
    "watch": _kept(lambda m, _: _block(unipelt.watch, m, "b")), "save": _kept(lambda m, p: unipelt.save(m, p / "s", "a")),
    "save_pretrained": _kept(lambda m, p: m.save_pretrained(p / "s")),  # type: ignore[operator]
    "save_merged": lambda folder: _saving_merged(folder),
    "state_dict": _kept(lambda m, _: unipelt.state_dict(m, "b")), "plan": _kept(lambda m, _: unipelt.plan(m, _method("lora"))),
    "parameter_groups": _kept(lambda m, _: unipelt.parameter_groups(m, "a", 0.1)),
}  # fmt: skip


def _saving_merged(folder: Path) -> Case:
    m = _model("a", active=("a",))
    return Case(m, lambda: unipelt.save_merged(m, Path(tempfile.mkdtemp(dir=folder)) / "s", "a"))


def wrong(name: str, folder: Path, at: int, ends: tuple[Any, Any]) -> str | None:
    """What is wrong with a call that is interrupted at a line: its model is neither as before nor as after, or it cannot be done again."""
    case = CASES[name](folder)
    if not interrupt(case.call, at):
        return None
    left = seen(case.model)
    if left not in ends:
        bad = [k for k in left if all(left[k] != end[k] for end in ends)] or list(left)
        return f"{name}, line {at}: neither as before nor as after: {', '.join(bad)}"
    if left == ends[0]:
        case.call()
        if seen(case.model) != ends[1]:
            return f"{name}, line {at}: called again it does something else"
    return None


def ends(name: str, folder: Path) -> tuple[list[tuple[str, int]], tuple[Any, Any]]:
    """The lines that a call runs, and what its model is before and after."""
    case = CASES[name](folder)
    before = seen(case.model)
    passed = lines(case.call)
    return passed, (before, seen(case.model))
