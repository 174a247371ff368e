"""The commands that make new methods from old: generate, vary, cross, neighbours, equal. Only budgets need torch."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..language.report.diagnostics import Diagnostic, PeltError, counted, error, plural
from ..language.ir import Method
from ..language.check.names import Names
from ..language.syntax.nodes import MethodDef
from .output import emit, say, table, tell

SHOWN = 40


@dataclass(frozen=True, slots=True)
class Asked:
    """What is to become of a space: how much of it is looked at, on which model, and where its members are written."""

    out: Path | None = None
    model: str | None = None
    task: str = "base"
    params: str | None = None
    size: str | None = None
    sample: int | None = None
    seed: int = 0
    as_json: bool = False


def generate_command(spec: str, asked: Asked) -> None:
    from ..language.loading import definition
    from ..language.check.space import space_of

    found, names = definition(spec)
    space = space_of(found, names)
    _sound(found, names)
    _enumerate([space], names, asked)


def vary_command(spec: str, row: str | None, slots: Mapping[str, str | None], asked: Asked) -> None:
    from ..language.loading import definition
    from ..variants.operators import vary
    from ..language.check.space import space_of

    found, names = definition(spec)
    varied = vary(found, names, {k: _listed(v) for k, v in slots.items() if v}, row)
    _sound(varied, names)
    _enumerate([space_of(varied, names, one=True)], names, asked)


def cross_command(a: str, b: str, row_a: str | None, row_b: str | None, asked: Asked) -> None:
    from ..language.loading import definition
    from ..variants.operators import cross
    from ..language.check.space import space_of

    (one, mine), (other, theirs) = definition(a), definition(b)
    names = mine.and_of(theirs)
    _enumerate([space_of(cross(one, other, names, row_a, row_b), names, one=True)], names, asked)


def neighbours_command(spec: str, row: str | None, asked: Asked) -> None:
    from ..language.loading import definition, resolve
    from ..variants.operators import neighbours
    from ..language.check.space import space_of

    found, names = definition(spec)
    spaces = [space_of(d, names, one=True) for d in neighbours(found, names, row)]
    _enumerate(spaces, names, asked, resolve(found, names))


def equal_command(a: str, b: str, as_json: bool) -> bool:
    """Whether two methods mean the same at their arguments; otherwise the first difference."""
    from ..language.analyse.canonical import difference
    from ..training.resolve import resolve_method

    one, other = resolve_method(a), resolve_method(b)
    found = difference(one, other)
    if as_json:
        emit({"ok": True, "equal": found is None, "difference": None if found is None else
              {"at": found[0], "first": found[1], "second": found[2]}})  # fmt: skip
    elif found is None:
        tell(f"{one.name} and {other.name} are equal: the same function, starts and trained tensors")
    else:
        tell(
            f"{one.name} and {other.name} differ, first at {found[0]}:\n  {one.name}: {found[1]}\n  {other.name}: {found[2]}"
        )
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


def _sound(space: MethodDef, names: Names) -> None:
    """Refuses a space with a mistake: its members would be dropped one by one for it."""
    from ..language.check.alternatives import check_space

    problems = check_space(space, names)
    if problems:
        raise PeltError(problems)


def _enumerate(spaces: Sequence[Any], names: Any, asked: Asked, origin: Method | None = None) -> None:
    """The members of some spaces, written and shown."""
    from ..variants.generate import generate
    from ..variants.write import refuse_full, write

    if asked.out is not None:
        refuse_full(asked.out)  # before the work
    test = _budget(asked)
    total = sum(s.size for s in spaces)
    with _bar(min(total, asked.sample or total), asked.as_json) as tick:
        found = generate(*spaces, sample=asked.sample, seed=asked.seed, test=test, origin=origin, tick=tick)
    if not found.members and found.dropped:
        raise PeltError(_why([d.diagnostic for _, _, d in found.reasons()]))
    files = write(found.members, names, asked.out) if asked.out is not None else []
    if asked.as_json:
        emit({"ok": True, **found.to_json(), "folder": str(asked.out) if asked.out else None})
        return
    rows = [{"method": m.name, **_sizes(m.method, asked.params), "what it is": m.sentence} for m in found.members]
    if rows:
        table(rows[:SHOWN], list(rows[0]))
    if len(rows) > SHOWN:
        tell(
            f"… and {len(rows) - SHOWN} more, which `--json` lists{'' if asked.out is None else f' and {asked.out} holds'}\n"
        )
    members = plural("member", found.size)
    looked = f"{found.tried:,} of {found.size:,} {members}" if found.tried < found.size else f"{found.size:,} {members}"
    twins = len(found.twins)
    say(
        f"{looked}: {len(found.members)} kept, {len(found.dropped)} dropped, {twins} {'means' if twins == 1 else 'mean'} the same as another"
    )
    for reason, n, example in found.reasons():
        say(f"  {n:>4} × {reason}\n         for example {', '.join(f'{k} {v}' for k, v in example.columns)}")
    if files:
        say(f"written to {asked.out}: {counted(len(files), 'file')}")


def _why(found: Sequence[Diagnostic]) -> list[Diagnostic]:
    """The mistakes for which no member is left, each once: of those without a place, which name a member, one for each remedy."""
    kinds: dict[tuple, Diagnostic] = {}
    for d in found:
        kinds.setdefault((d.code, d.span.start, d.message if d.span.file else d.help), d)
    return list(kinds.values())


def _sizes(method: Method, params: str | None) -> dict[str, Any]:
    from ..variants.budget import size_arguments

    if params is None:
        return {}
    return {"sizes": ", ".join(f"{k} = {method.arguments[k]}" for k in size_arguments(method))}


def _budget(asked: Asked) -> Any:
    """A test of members on a model: a plan must be possible, at the budget if one is given."""
    if asked.params is None and asked.size is not None:
        raise error("E0805", "`--size` names the argument that is solved for `--params`, which is not given",
                    help="give `--params` too, or leave `--size` out")  # fmt: skip
    target = _target(asked.params) if asked.params is not None else None
    if asked.model is None:
        if target is not None:
            raise error("E0805", "a number of parameters is that of a model", help="name it with `--model`")
        return None
    import unipelt

    from ..training.models import load_config_model
    from ..variants.budget import solve

    loaded = load_config_model(asked.model, asked.task)

    def count(method: Method) -> int:
        return unipelt.plan(loaded, replace(method, requires=())).counts.trained

    def test(method: Method) -> Method:
        if target is not None:  # requirements are asked of the size that is found, not of the one that was written
            base = unipelt.plan(loaded, replace(method, requires=())).counts.base
            method = solve(method, target(base), count, asked.size)
        unipelt.plan(loaded, method)
        return method

    return test


def _target(text: str) -> Callable[[int], int]:
    """From the parameters of a base those that are wanted: ``0.5%`` of them, or a number."""
    share = text.strip().endswith("%")
    try:
        value = float(text.strip().rstrip("%").replace("_", "").replace(",", ""))
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise error("E0805", f"`--params {text}` is no number of parameters", help="for example 0.5% or 500000")
    return lambda base: max(1, round(value / 100 * base if share else value))


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
