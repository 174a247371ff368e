"""The commands that make new methods from old: generate, vary, cross, neighbours, equal. Only budgets need torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..language.diagnostics import error
from ..language.ir import Method
from .output import emit, say, table

SHOWN = 40


def generate_command(
    spec: str, out: Path | None, model: str | None, task: str, params: str | None, size: str | None, sample: int | None,
    seed: int, as_json: bool,
) -> None:  # fmt: skip
    from ..language.loading import definition
    from ..variants.space import space_of

    found, names = definition(spec)
    _report([space_of(found, names)], names, out, model, task, params, size, sample, seed, as_json)


def vary_command(spec: str, row: str | None, slots: dict[str, str | None], out: Path | None, as_json: bool) -> None:
    from ..language.loading import definition
    from ..variants.operators import vary
    from ..variants.space import space_of

    found, names = definition(spec)
    varied = vary(found, names, {k: _listed(v) for k, v in slots.items() if v}, row)
    _report([space_of(varied, names, one=True)], names, out, None, "base", None, None, None, 0, as_json)


def cross_command(a: str, b: str, row_a: str | None, row_b: str | None, out: Path | None, as_json: bool) -> None:
    from ..language.library import Names
    from ..language.loading import definition
    from ..variants.operators import cross
    from ..variants.space import space_of

    (one, mine), (other, theirs) = definition(a), definition(b)
    names = Names({**theirs.own, **mine.own}, {**theirs.imported, **mine.imported})
    _report([space_of(cross(one, other, names, row_a, row_b), names, one=True)], names, out, None, "base", None, None, None, 0, as_json)


def neighbours_command(spec: str, row: str | None, out: Path | None, as_json: bool) -> None:
    from ..language.loading import definition
    from ..variants.operators import neighbours
    from ..variants.space import space_of

    found, names = definition(spec)
    spaces = [space_of(d, names, one=True) for d in neighbours(found, names, row)]
    _report(spaces, names, out, None, "base", None, None, None, 0, as_json, origin=spec)


def equal_command(a: str, b: str, as_json: bool) -> bool:
    """Whether two methods mean the same at their arguments; otherwise the first difference."""
    from ..language.canonical import difference
    from ..language.loading import load

    one, other = load(a), load(b)
    found = difference(one, other)
    if as_json:
        emit({"ok": True, "equal": found is None, "difference": None if found is None else
              {"at": found[0], "first": found[1], "second": found[2]}})  # fmt: skip
    elif found is None:
        print(f"{one.name} and {other.name} are equal: the same function, starts and trained tensors")
    else:
        print(f"{one.name} and {other.name} differ, first at {found[0]}:\n  {one.name}: {found[1]}\n  {other.name}: {found[2]}")
    return found is None


def _listed(text: str | None) -> list[str]:
    """Alternatives of an option: separated by `|`, or by commas outside of brackets."""
    if not text:
        return []
    sign = "|" if "|" in text else ","
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "([") - (c in ")]")
        if c == sign and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [p.strip() for p in (*parts, text[start:]) if p.strip()]


def _report(
    spaces: Sequence[Any], names: Any, out: Path | None, model: str | None, task: str, params: str | None,
    size: str | None, sample: int | None, seed: int, as_json: bool, origin: str | None = None,
) -> None:  # fmt: skip
    from ..variants.generate import Generated, generate
    from ..variants.write import write

    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise error("E0801", f"`{out}` exists and is not empty", help="give another `--out`")
    test = _budget(model, task, params, size)
    total = Generated(sum(len(s) for s in spaces))
    known = _meaning_of(origin)
    with _bar(min(total.size, sample or total.size), as_json) as tick:
        for space in spaces:
            g = generate(space, sample, seed, test, tick)
            total.tried += g.tried
            total.dropped += g.dropped
            total.twins += g.twins
            for m in g.members:
                if known is None or _lines(m.method) != known:
                    total.members.append(m)
    taken: set[str] = set()
    for i, m in enumerate(total.members):
        name, n = m.name, 2
        while name in taken:
            name, n = f"{m.name}_{n}", n + 1
        taken.add(name)
        if name != m.name:
            total.members[i] = replace(m, name=name, definition=replace(m.definition, name=name))
    files = write(total.members, names, out) if out is not None else []
    if as_json:
        emit({"ok": True, **total.to_json(), "folder": str(out) if out else None})
        return
    rows = [{"method": m.name, **_sizes(m.method, params), "what it is": m.sentence} for m in total.members]
    if rows:
        table(rows[:SHOWN], list(rows[0]))
    if len(rows) > SHOWN:
        print(f"… and {len(rows) - SHOWN} more\n")
    looked = f"{total.tried:,} of {total.size:,} members" if total.tried < total.size else f"{total.size:,} members"
    say(f"{looked}: {len(total.members)} kept, {len(total.dropped)} dropped, {len(total.twins)} mean the same as another")
    for reason, n, example in total.reasons():
        say(f"  {n:>4} × {reason}\n         for example {', '.join(f'{k} {v}' for k, v in example.columns)}")
    if files:
        say(f"written to {out}: one file for each")


def _lines(method: Method) -> list[tuple[str, str]]:
    from ..language.canonical import canonical
    from ..language.meaning import meaning

    return canonical(meaning(method)).lines()


def _meaning_of(origin: str | None) -> list[tuple[str, str]] | None:
    if origin is None:
        return None
    from ..language.loading import load

    return _lines(load(origin))


def _sizes(method: Method, params: str | None) -> dict[str, Any]:
    from ..variants.budget import size_arguments

    if params is None:
        return {}
    return {"sizes": ", ".join(f"{k} = {method.arguments[k]}" for k in size_arguments(method))}


def _budget(model: str | None, task: str, params: str | None, size: str | None) -> Any:
    """A test of members on a model: a plan must be possible, at the budget if one is given."""
    if model is None:
        if params is not None:
            raise error("E0805", "a number of parameters is that of a model", help="name it with `--model`")
        return None
    import unipelt

    from ..training.models import load_config_model
    from ..variants.budget import solve

    loaded = load_config_model(model, task)
    base = 0

    def count(method: Method) -> int:
        nonlocal base
        found = unipelt.plan(loaded, method).counts
        base = found.base
        return found.trained

    def test(method: Method) -> Method:
        count(method)
        return solve(method, _target(params, base), count, size) if params is not None else method

    return test


def _target(text: str, base: int) -> int:
    """``0.5%`` of the base's parameters, or a number."""
    try:
        value = float(text.rstrip("%").replace("_", "").replace(",", ""))
    except ValueError:
        value = -1
    target = round(value / 100 * base) if text.endswith("%") else round(value)
    if target < 1:
        raise error("E0805", f"`--params {text}` is no number of parameters", help="for example 0.5% or 500000")
    return target


def _bar(total: int, as_json: bool) -> Any:
    """Ticks of a bar on a terminal; nothing elsewhere."""
    import contextlib

    if as_json or not sys.stderr.isatty():
        return contextlib.nullcontext(None)

    @contextlib.contextmanager
    def shown() -> Any:
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("members", total=total)
            yield lambda done: progress.update(task, completed=done)

    return shown()
