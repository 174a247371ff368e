"""The commands that make new methods from old: generate, vary, cross, neighbours, equal. Only budgets need torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..language.report.diagnostic import Diagnostic
from ..language.report.diagnostics import PeltError, counted, error, plural
from ..language.ir import Method
from ..language.check.names import Names
from ..language.syntax.nodes import MethodDef
from ..training.options import Option, at_least, check
from ..training.bars import Ticker
from .options import AsJson, MethodName, RowName
from .output import emit, say, table, tell

SHOWN = 40


@dataclass(frozen=True, slots=True)
class SpaceOptions:
    """The options of a space: how many members are tried, on which model, and where they are written."""

    out: Annotated[Path | None, Option("Write each member as a `.pelt` file into this new folder.", short="-o")] = None
    model: Annotated[str | None, Option("Keep what goes onto this model (folder or configuration).", short="-m")] = None
    task: Annotated[str, Option("The model's task, as for `plan`.")] = "base"
    params: Annotated[str | None, Option("Equal budget: solve each member's size, as in 0.5% or 500000.")] = None
    size: Annotated[str | None, Option("The argument to solve; default: the one that counts most.")] = None
    sample: Annotated[int | None, Option("Look at so many members, drawn at random.", "generate", rule=at_least(1))] = (
        None
    )
    seed: Annotated[int, Option(None, "generate")] = 0


def generate(
    space: Annotated[
        str, typer.Argument(metavar="SPACE", help="A `.pelt` file whose method has alternatives (`file.pelt:name`).")
    ],
    *,
    asked: SpaceOptions,
    as_json: AsJson = False,
) -> None:
    """Enumerate a space of methods: drop what is no method, keep each meaning once, say what each member is."""
    from ..language.loading import definition
    from ..language.check.space import space_of

    found, names = definition(space)
    of = space_of(found, names)
    _sound(found, names)
    _enumerate([of], names, asked, as_json)


def vary(
    method: MethodName,
    modify: Annotated[str | None, typer.Option(help="Sites to try, as in attn,ffn.")] = None,
    insert: Annotated[str | None, typer.Option(help="Insertions to try, as in parallel,sequential.")] = None,
    form: Annotated[str | None, typer.Option(help="Forms to try, as in 'bottleneck(r),low_rank(r)'.")] = None,
    compose: Annotated[str | None, typer.Option(help="Compositions to try, as in 'add,scaled(4.0)'.")] = None,
    row: RowName = None,
    *,
    asked: SpaceOptions,
    as_json: AsJson = False,
) -> None:
    """A method's variants: columns of its row with other contents."""
    from ..language.loading import definition
    from ..language.check.space import space_of
    from ..variants import operators

    found, names = definition(method)
    slots = {"modify": modify, "insert": insert, "form": form, "compose": compose}
    varied = operators.vary(found, names, {k: _listed(v) for k, v in slots.items() if v}, row)
    _sound(varied, names)
    _enumerate([space_of(varied, names, one=True)], names, asked, as_json)


def cross(
    first: MethodName,
    second: MethodName,
    row_a: Annotated[str | None, typer.Option(help="The first parent's row, where it has several.")] = None,
    row_b: Annotated[str | None, typer.Option(help="The second parent's.")] = None,
    *,
    asked: SpaceOptions,
    as_json: AsJson = False,
) -> None:
    """The offspring of two methods: each column from either parent."""
    from ..language.loading import definition
    from ..language.check.space import space_of
    from ..variants import operators

    (one, mine), (other, theirs) = definition(first), definition(second)
    names = mine.and_of(theirs)
    crossed = operators.cross(one, other, names, row_a, row_b)
    _enumerate([space_of(crossed, names, one=True)], names, asked, as_json)


def neighbours(method: MethodName, row: RowName = None, *, asked: SpaceOptions, as_json: AsJson = False) -> None:
    """Every method one column away."""
    from ..language.loading import definition, resolve
    from ..language.check.space import space_of
    from ..variants import operators

    found, names = definition(method)
    spaces = [space_of(d, names, one=True) for d in operators.neighbours(found, names, row)]
    _enumerate(spaces, names, asked, as_json, resolve(found, names))


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


def _enumerate(
    spaces: Sequence[Any], names: Any, asked: SpaceOptions, as_json: bool, origin: Method | None = None
) -> None:
    """The members of some spaces, written and shown."""
    from ..variants.generate import generate
    from ..variants.write import refuse_full, write

    check(asked)
    if asked.out is not None:
        refuse_full(asked.out)  # before the work
    test = _budget(asked)
    total = sum(s.size for s in spaces)
    most = min(total, asked.sample or total)
    with Ticker("trying", False if as_json else None, unit="member") as tick:
        found = generate(*spaces, sample=asked.sample, seed=asked.seed, test=test, origin=origin,
                         tick=lambda done: tick(done, most))  # fmt: skip
    if not found.members and found.dropped:
        raise PeltError(_why([d.diagnostic for _, _, d in found.reasons()]))
    files = write(found.members, names, asked.out) if asked.out is not None else []
    if as_json:
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
    """The mistakes that dropped all members, each once. Those without a place name a member: one for each remedy is shown."""
    kinds: dict[tuple, Diagnostic] = {}
    for d in found:
        kinds.setdefault((d.code, d.span.start, d.message if d.span.file else d.help), d)
    return list(kinds.values())


def _sizes(method: Method, params: str | None) -> dict[str, Any]:
    from ..variants.budget import size_arguments

    if params is None:
        return {}
    return {"sizes": ", ".join(f"{k} = {method.arguments[k]}" for k in size_arguments(method))}


def _budget(asked: SpaceOptions) -> Any:
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
        return unipelt.plan(loaded, method).counts.trained

    def test(method: Method) -> Method:
        if target is not None:  # requirements are asked of the sizes that are tried, not of the one that was written
            base = unipelt.plan(loaded, replace(method, requires=())).counts.base
            method = solve(method, target(base), count, asked.size)
        unipelt.plan(loaded, method)
        return method

    return test


def _target(text: str) -> Callable[[int], int]:
    """Reads `--params`: ``0.5%`` of the base's parameters, or a number. Returns a function of the base's parameters."""
    share = text.strip().endswith("%")
    try:
        value = float(text.strip().rstrip("%").replace("_", "").replace(",", ""))
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise error("E0805", f"`--params {text}` is no number of parameters", help="for example 0.5% or 500000")
    return lambda base: max(1, round(value / 100 * base if share else value))
