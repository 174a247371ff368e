"""The tables of a record of `reach.py`: how many types each method works on, by kind, and why not on the others."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from reach_methods import METHODS, VISION, works
from reach_types import KINDS, USED

Record = Mapping[str, Any]
#: What is aimed at, in percent: kind, method, which of the types count.
_AIMS = (
    ("text", ("lora", "adapter"), 95), ("text", ("ia3", "bitfit"), 90), ("text", ("prefix_tuning", "mam", "unipelt"), 90),
    ("vision", ("lora", "adapter"), 85), ("speech", ("lora", "adapter"), 85), ("multimodal", ("lora",), 80), ("multimodal", (VISION,), 60),
)  # fmt: skip


def runs(t: Record) -> bool:
    return "methods" in t


def counts(t: Record, method: str) -> bool:
    """Whether a method has sense on a type: heads and keys need attention, biases must be there, prompts need tokens, a
    tower for pictures must have seen one; and what the record leaves out for a reason (`reach_model.senseless`) has none."""
    if not runs(t) or method in t.get("left out", {}):
        return False
    if method in ("prefix_tuning", "mam", "unipelt", "ia3"):
        return bool(t["softmax attention"])
    if method == "bitfit":
        return bool(t["biases"])
    if method == "prompt_tuning":
        return "input_ids" in t["inputs"]
    return method != VISION or VISION in t["methods"]


def share(types: Iterable[Record], method: str) -> tuple[int, int]:
    """(types on which a method works, types on which it has sense)."""
    found = [works(t["methods"].get(method)) for t in types if counts(t, method)]
    return sum(found), len(found)


def tables(types: Mapping[str, Record]) -> str:
    return "\n\n".join(
        t for t in (_by_kind(types), _aims(types), _used(types), _idle(types), _senseless(types), _reasons(types)) if t
    )


def _percent(a: int, b: int) -> str:
    return f"{a}/{b} ({100 * a / b:.0f} %)" if b else "–"


def _by_kind(types: Mapping[str, Record]) -> str:
    names = [*METHODS, VISION]
    lines = [f"| kind | types | run | {' | '.join(names)} |", f"|---|{'---|' * (len(names) + 2)}"]
    for kind in (*KINDS, "all"):
        chosen = [t for t in types.values() if kind in (t["kind"], "all")]
        if chosen:
            cells = [_percent(*share(chosen, m)) for m in names]
            lines.append(f"| {kind} | {len(chosen)} | {sum(map(runs, chosen))} | {' | '.join(cells)} |")
    return "\n".join(["of the types that run, those on which everything that is checked holds", "", *lines])


def written(text: str, types: Mapping[str, Record]) -> str:
    """A page with the table by kind as the record has it, in place of the one under its heading ``## Reach``."""
    table = [line for line in _by_kind(types).splitlines() if line.startswith("|")]
    table = [re.sub(r"(\d+)/(\d+) \(\d+ %\)", r"\1 of \2", line) for line in table]
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if i > lines.index("## Reach") and line.startswith("|"))
    stop = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    return "\n".join([*lines[:start], *table, *lines[stop:]]) + "\n"


def _aims(types: Mapping[str, Record]) -> str:
    lines = []
    for kind, methods, aim in _AIMS:
        for method in methods:
            good, all_of_them = share([t for t in types.values() if t["kind"] == kind], method)
            if all_of_them:
                lines.append(
                    f"{'met ' if 100 * good >= aim * all_of_them else 'open'}  {kind}, {method}: {_percent(good, all_of_them)}, aim {aim} %"
                )
    return "\n".join(lines)


def _used(types: Mapping[str, Record]) -> str:
    chosen = [types[n] for n in USED if n in types]
    cells = ", ".join(f"{m} {sum(works(t.get('methods', {}).get(m)) for t in chosen)}" for m in (*METHODS, VISION))
    return f"of the {len(chosen)} that people use ({len(USED)} are named): {cells}" if chosen else ""


def _idle(types: Mapping[str, Record]) -> str:
    """Types that were not built or not run, by reason."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, t in types.items():
        for key in ("unbuilt", "not run", "crashed"):
            if key in t:
                groups[f"{key}: {shape(t[key])}"].append(name)
    return _grouped("not tried", groups)


def _senseless(types: Mapping[str, Record]) -> str:
    """Types that a method's share does not count, though they have what it asks for by name, by reason."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, t in types.items():
        for method, why in t.get("left out", {}).items():
            groups[f"{method}: {shape(why)}"].append(name)
    return _grouped("without sense, so not counted", groups)


def _reasons(types: Mapping[str, Record]) -> str:
    """What does not work, by method and reason: tracebacks, wrong results, refusals."""
    found: dict[str, dict[str, list[str]]] = {k: defaultdict(list) for k in ("crashed", "wrong", "refused")}
    _each_failure(
        types, lambda what, name, method, check, why: found[what][f"{method}, {check}: {shape(why)}"].append(name)
    )
    titles = {"crashed": "tracebacks", "wrong": "wrong results", "refused": "refusals"}
    return "\n\n".join(filter(None, (_grouped(titles[k], g) for k, g in found.items())))


def _each_failure(types: Mapping[str, Record], say: Callable[[str, str, str, str, str], None]) -> None:
    for name, t in types.items():
        for method, result in t.get("methods", {}).items():
            if not works(result) and counts(t, method):
                for what in ("crashed", "wrong", "refused"):
                    for check, why in result.get(what, {}).items():
                        say(what, name, method, check, why)


def failures(types: Mapping[str, Record]) -> list[str]:
    """A line for each: type, method, check, reason."""
    lines: list[str] = []
    _each_failure(
        types, lambda what, name, method, check, why: lines.append(f"{name}  {method}  {what} {check}: {why}")
    )
    return lines


def shape(why: str) -> str:
    """A reason without the names and numbers of one model."""
    why = re.sub(r"`[^`]*`", "`…`", why)
    why = re.sub(r"\b[A-Z]\w*?(For|Model|Encoder|Decoder|Attention)\w*", "M", why)
    return re.sub(r"\[(\d+(, )?)+\]|\b\d[\d,.e-]*", "#", why)[:170]


def _grouped(title: str, groups: Mapping[str, list[str]]) -> str:
    if not groups:
        return ""
    lines = [f"{title}: {sum(map(len, groups.values()))}"]
    for reason, names in sorted(groups.items(), key=lambda g: -len(g[1])):
        lines.append(f"{len(names):4}  {reason}\n      {', '.join(names[:14])}{' …' if len(names) > 14 else ''}")
    return "\n".join(lines)


def beside_table(types: Mapping[str, Record]) -> str:
    """LoRA beside peft's: equal, otherwise, or why not tried."""
    lines = ["| type | modules | ours to peft's | |", "|---|---|---|---|"]
    for name, t in sorted(types.items()):
        error = t.get("error")
        lines.append(
            f"| {name} | {t.get('modules', '')} | {'' if error is None else f'{error:.1e}'} | {t.get('why', t.get('crashed', ''))} |"
        )
    equal = sum(bool(t.get("equal")) for t in types.values())
    return "\n".join([*lines, "", f"equal to 1e-5 on {equal} of {len(types)}"])
