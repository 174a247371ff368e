"""The committed grid: which property is tested of which method on which model, and why a cell is blank.

A blank cell's reason is checked: it must be the one that `blank` finds on the model itself, so that a cell can neither
be left out without cause nor keep a cause that has gone. `python tests/behaviour/grid.py NAME` prints the rows of a
method; with `--write` in place of a name the whole file is written as it is found, for the difference to be judged.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from properties import Case

FILE = Path(__file__).with_name("grid.json")
#: Models of `tiny` by kind.
MODELS = {
    "bert": "BertModel", "bert_head": "BertForSequenceClassification", "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM", "t5": "T5ForConditionalGeneration", "bart": "BartForConditionalGeneration",
    "mbart": "MBartForConditionalGeneration", "whisper": "WhisperForConditionalGeneration",
    "distilbert_head": "DistilBertForSequenceClassification", "albert": "AlbertModel", "opt": "OPTForCausalLM",
    "vit_head": "ViTForImageClassification",
    # built otherwise
    "phi3": "Phi3ForCausalLM", "gpt_neox": "GPTNeoXForCausalLM", "mixtral": "MixtralForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM", "gemma2": "Gemma2ForCausalLM", "smolvlm": "SmolVLMForConditionalGeneration",
    "modernbert": "ModernBertModel", "deberta_v2_head": "DebertaV2ForSequenceClassification", "granite": "GraniteForCausalLM",
}  # fmt: skip
#: Those on which the suite tries every cell: none, for want of minutes. It takes some of each (`in_turn`), `benchmarks/grid.py` all.
ALWAYS: tuple[str, ...] = ()
Cell = tuple[str, str, str]  # method, model, property
CACHED = ("dynamic cache", "static cache", "greedy", "beams")
DECODING = (*CACHED, "padded generation")
ROUNDED = ("bfloat16", "autocast")
PADDING = ("padding left", "padding right", "padding seen")


def read() -> dict[str, Any]:
    from names import name as named

    grid = json.loads(FILE.read_text(encoding="utf-8"))
    return {**grid, "methods": {named(method): cells for method, cells in grid["methods"].items()}}


def refusal(case: Case) -> str | None:
    """Why the method does not go onto the model at all."""
    import unipelt

    try:
        _ = case.plan
    except unipelt.PeltError as e:
        d = e.diagnostics[0]
        return f"{d.code}: {d.message}"
    return None


def base_switches(case: Case) -> bool:
    """Whether a model by itself computes the same in SDPA and in eager attention."""
    from properties.ways import switches

    return case.bases.once((case.kind, "attention"), lambda: switches(case))


def base_rounds(case: Case, name: str) -> bool:
    """Whether a model by itself is near the float32 one in bfloat16, or under autocast: a router may choose another expert."""
    from properties.ways import rounds

    return case.bases.once((case.kind, name), lambda: rounds(case, name))


def blank(case: Case) -> dict[str, list[str]]:
    """Reason → the properties that stay blank for it, of a method on a model."""
    from properties.counting import of_one_size

    from unipelt.language.syntax.nodes import Apply, dotted

    said, edits = case.plan.properties, case.plan.edits
    out: dict[str, list[str]] = {}
    taken: set[str] = set()

    def leave(reason: str, *properties: str) -> None:
        new = [p for p in properties if p not in taken]
        taken.update(new)
        if new:
            out.setdefault(reason, []).extend(new)

    if said["mergeable"] == "yes":
        leave("it merges", "merge refused")
    else:
        leave(f"not mergeable; {said['mergeable']}", "merged")
    if any("training" in e.row.reads for e in edits):
        leave("it says what it does otherwise in training", "train mode")
    if said["deterministic in training"] != "yes":
        leave("it draws at random in training", "train mode")
    if any(e.site.kind.is_weight and "W" in e.typing.reads for e in edits):
        leave("it takes off what it is given, so of two the second counts", "side by side")
    if any("inserted" in e.typing.reads for e in edits):
        leave("it has a value for each row of its prompt, and two prompts have more", "side by side")
    if case.written is None:
        leave("an encoder keeps no cache and writes nothing", *DECODING)
        leave("an encoder sees later tokens by itself", "later token")
    elif case.plan.leaks:
        leave(f"sees the future, so it is refused on causal models unless allow_future; {said['causal']}", *DECODING)
    elif said["cache-consistent"] != "yes":
        leave("reads other positions than the chunk of a cached step; the plan warns of it", *DECODING)
    if not of_one_size(case.plan):
        leave("what the formulas call by one name differs in size from place to place", "counted")
    far = [name for name in ROUNDED if not base_rounds(case, name)]
    if far:  # an expert is chosen within rounding then, and which of the ways of rounding chooses another is chance
        leave(f"the base itself, without the method, is not near float32: {', '.join(far)}", *ROUNDED)
    if any(isinstance(n, Apply) and dotted(n.function) == "top" for e in edits for n in e.row.nodes):
        leave("which is the largest may be another within rounding", *ROUNDED)
    if not base_switches(case):
        leave("the base itself, without the method, does not compute the same in SDPA and eager attention", "attention")
    if not case.tokens:
        leave("pictures have no padding", *PADDING)
    if case.written is not None and case.prompts() is None:
        leave("sound has no padding", "padded generation")
    for side in ("left", "right"):
        if case.tokens and not case.base_holds(side):
            leave(f"the base itself, without the method, changes beside padding at the {side}", f"padding {side}")
    if said["padding-invariant"] == "yes":
        leave("pads take no part", "padding seen")
    else:
        leave(f"pads take part; {said['padding-invariant']}", "padding left", "padding right", "padded generation")
    return out


def left_blank(cell: dict[str, list[str]]) -> set[str]:
    return {p for properties in cell.values() for p in properties}


def unmet(case: Case, name: str) -> str | None:
    """Why a cell does not hold."""
    from properties import PROPERTIES

    try:
        PROPERTIES[name](case)
        changed = case.bases.take_back()
        return f"not given back as they were: {changed}" if changed else None
    except Exception as e:  # noqa: BLE001
        place = next((f for f in reversed(traceback.extract_tb(e.__traceback__)) if "behaviour" in f.filename), None)
        case.bases.kept.clear()
        return f"{type(e).__name__} in {place.name if place else '?'}: {' '.join(str(e).split())[:200]}"


def row(spec: str) -> dict[str, Any]:
    """Model → the reason of its refusal, or its blank cells by reason."""
    from properties import Case
    from tiny import Bases

    cases = [Case(spec, kind, Bases()) for kind in MODELS]
    return {case.kind: refusal(case) or blank(case) for case in cases}


def filled(grid: dict[str, Any]) -> list[Cell]:
    """Every cell that is no blank, method by method and model by model."""
    return [
        (spec, kind, name) for spec, row in grid["methods"].items() for kind, cell in row.items()
        if isinstance(cell, dict) for name in grid["properties"] if name not in left_blank(cell)
    ]  # fmt: skip


def in_turn(cells: Sequence[Cell]) -> list[Cell]:
    """Some of the cells: each property on each model, of the methods that can meet there the one that has met least so far."""
    possible: dict[tuple[str, str], list[str]] = {}
    for spec, kind, name in cells:
        possible.setdefault((kind, name), []).append(spec)
    met: Counter[str | tuple[str, str]] = Counter()
    chosen = set()
    for (kind, name), specs in possible.items():
        spec = min(specs, key=lambda s: (met[s, name], met[s, kind], met[s]))
        met.update([spec, (spec, name), (spec, kind)])
        chosen.add((spec, kind, name))
    return [c for c in cells if c in chosen]


def in_brief(cells: Sequence[Cell]) -> list[Cell]:
    """Each method with each property once, on the model that it has met least so far; then each of its models that it has not met."""
    possible: dict[tuple[str, str], list[str]] = {}
    for spec, kind, name in cells:
        possible.setdefault((spec, name), []).append(kind)
    met: Counter[tuple[str, str]] = Counter()
    chosen = []
    for (spec, name), kinds in sorted(possible.items(), key=lambda item: len(item[1])):
        kind = min(kinds, key=lambda k: met[spec, k])
        met[spec, kind] += 1
        chosen.append((spec, kind, name))
    for spec, kind, name in cells:
        if not met[spec, kind]:
            met[spec, kind] += 1
            chosen.append((spec, kind, name))
    return chosen


def once_each(cells: Sequence[Cell]) -> list[Cell]:
    """Each method in one cell, with the property that has been met least so far, on the model that has; then properties that
    no method has met."""
    chosen: list[Cell] = []
    met: Counter[str] = Counter()
    for part in (0, 2):
        for key in dict.fromkeys(c[part] for c in cells):
            if not met[key]:
                chosen.append(min((c for c in cells if c[part] == key), key=lambda c: (met[c[2]], met[c[1]])))
                met.update(chosen[-1])
    return chosen


def bare(cell: str | dict[str, list[str]]) -> Any:
    """A cell without the wording of diagnostics and verdicts, which may change: code, or kinds of reason."""
    if isinstance(cell, str):
        return cell.split(":")[0]
    return {reason.split(";")[0]: properties for reason, properties in cell.items()}


def found() -> dict[str, Any]:
    """The whole grid, as it is found on the models."""
    from names import CLASSICS
    from properties import PROPERTIES

    rows = {name: row(name) for name in sorted(CLASSICS)}  # the others have their properties in `tests/zoo`
    cells = len(rows) * len(MODELS) * len(PROPERTIES)
    filled = sum(len(PROPERTIES) - len(left_blank(c)) for r in rows.values() for c in r.values() if isinstance(c, dict))
    return {
        "properties": {n: (f.__doc__ or "").split("\n")[0] for n, f in PROPERTIES.items()}, "models": MODELS,
        "counts": {"cells": cells, "filled": filled, "blank": cells - filled}, "methods": rows,
    }  # fmt: skip


def text(grid: dict[str, Any]) -> str:
    """One line for each method on a model."""

    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False)

    def block(entries: dict[str, Any], depth: int) -> str:
        inner = ",\n".join(f"{' ' * depth}{line(k)}: {line(v)}" for k, v in entries.items())
        return f"{{\n{inner}\n{' ' * (depth - 1)}}}"

    methods = ",\n".join(f"  {line(name)}: {block(cells, 3)}" for name, cells in grid["methods"].items())
    return (
        f'{{\n "properties": {block(grid["properties"], 2)},\n "models": {block(grid["models"], 2)},\n'
        f' "counts": {line(grid["counts"])},\n "methods": {{\n{methods}\n }}\n}}\n'
    )


if __name__ == "__main__":
    sys.path.append(str(FILE.parents[1]))  # as tests/conftest.py does
    if sys.argv[1:] == ["--write"]:
        FILE.write_text(text(found()), encoding="utf-8")
    else:
        print(json.dumps({name: row(name) for name in sys.argv[1:]}, indent=1, ensure_ascii=False))
