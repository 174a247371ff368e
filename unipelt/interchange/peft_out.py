"""peft's adapters, out: an adapter of a method that peft has becomes a folder that peft opens."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..anatomy.base import base_modules
from ..anatomy.matrices import stored_as_map
from ..compiler.plan import Plan, PlannedEdit
from ..compiler.trained import is_norm
from ..language.ir import Method, Row
from ..language.report.diagnostics import PeltError
from ..language.report.warned import warn
from ..runtime.hub import public_name
from ..runtime.references import load
from ..runtime.registry import record, unwrapped
from ..runtime.saving import state_dict
from ..variants.recognise import Match, arguments_of, recognise_row
from . import folders
from .declared import Declared, declarations, no_counterpart
from .convolutions import spread
from .factors import with_remedy
from .fused import by_map, joined
from .filling import Apart, Source, emptied
from .parameters import named, nested
from .peft_whole import besides
from .places import FRONT, depth, host, key, module_at, of_base, refuse_uncalled, sizes, sourced, widest
from .shapes import deciding, theirs
from .texts import freed

#: How the name of a class of transformers ends, and what peft calls the task.
TASKS = {
    "ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM", "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForSequenceClassification": "SEQ_CLS", "ForTokenClassification": "TOKEN_CLS", "ForQuestionAnswering": "QUESTION_ANS",
}  # fmt: skip


def export_peft(model: nn.Module, folder: str | Path, name: str = "default", *, serving: bool = False) -> Path:
    """Writes an attached adapter as a folder that peft opens (``PeftModel.from_pretrained(base, folder)``), and returns its path.

    The method is recognised by what it computes, whatever it is called; ``specs/peft.toml`` lists those that peft has. Other
    arguments at some modules become peft's patterns; a trained head and other modules that are trained whole are its ``modules_to_save``,
    and trained biases, of all modules or of those with rows, its ``bias``. Raises `PeltError` where
    peft has no such method, where a row other than LoRA's stands in a part of a fused map, where one stands at a map of torch's own
    attention, and where a row has a gate or tokens of its own, or several methods are combined; a method that merges can be handed on as a merged model (`unipelt.save_merged`). ``serving``
    keeps to what serving engines read: see `serving_problem`.
    """
    model = unwrapped(model)
    refuse_uncalled(model, map(host, record(model, name).plan.edits))
    try:
        return _export(model, Path(folder), name, serving)
    except PeltError as e:
        raise with_remedy(e, model, name) from None


def _export(model: nn.Module, place: Path, name: str, serving: bool) -> Path:
    attached = record(model, name)
    plan = attached.plan
    copied = {} if plan.edits else _norms(model, plan)
    d, matches = _recognised(model, plan) if plan.edits else (_of_copies(), {})
    other = next(
        ((e.row.name, n) for e in plan.edits for n in e.tensors if n not in d.tensors and n not in d.decided), None
    )
    if other is not None:
        raise no_counterpart(f"its row `{other[0]}` computes what `{d.name}` does, with other tensors: `{other[1]}`")
    values = state_dict(model, name)
    layers = depth(model)
    tensors: dict[str, torch.Tensor] = {}
    by_path = {host(e): _arguments(d, matches[e.row.name]) for e in plan.edits}
    parts_of = by_map(plan.edits) if d.of_modules else {}
    notes = []
    for path, own in parts_of.items():
        arguments = [_arguments(d, matches[e.row.name]) for e in own]
        both, by_path[path], note = joined(d, _outputs(model, own[0]), own, values, arguments)
        notes.append(note)
        for label, t in both.items():
            suffix, how = d.tensors[label]
            (tensors[key(d, suffix, path)],) = theirs(t, how, own[0])
    apart = replace(plan, edits=tuple(e for e in plan.edits if host(e) not in parts_of))

    fields = {f: deciding(values[plan.edits[0].tensors[n]], how, *rest) for n, (f, how, *rest) in d.decided.items()}

    def source(e: PlannedEdit, label: str) -> Source:
        return sourced(d, plan, fields, e, label, host(e), layers, by_path[host(e)])

    try:
        tensors |= emptied(apart, source, values)
    except Apart as e:
        raise no_counterpart(str(e)) from None
    for suffix, how in d.of_base.items():
        for path in {host(e) for e in plan.edits}:
            try:
                tensors[key(d, suffix, path)] = of_base(model.get_submodule(path), how)
            except TypeError as e:
                raise no_counterpart(str(e)) from None
    for label, suffix in d.copied.items():
        tensors |= {key(d, suffix, path): tensors[d.tensors[label][0]] for path in by_path}
    config = {**_config(model, d, plan.edits, matches, by_path, layers), **fields}
    trained = {c.parameter.path: values[c.name] for c in plan.copies}
    for path, norm in copied.items():
        for n, p in norm.named_parameters(recurse=False):  # peft copies modules whole
            tensors[f"{FRONT}{path}.{d.copies}.{n}"] = trained.get(f"{path}.{n}", p)
    if copied:
        config["target_modules"] = targets(model, set(copied))
    kept = [c for c in plan.copies if c.parameter.path.rpartition(".")[0] not in copied]
    beside, said = besides(model, d, kept, trained, set(by_path))
    tensors |= beside
    config |= said
    problem = serving_problem(config) if serving else None
    if problem is not None:
        raise no_counterpart(f"a serving engine would not read it: {problem}")
    folders.write(place, folders.PEFT, config, spread(model, d, nested(model, d, tensors) if d.parameters else tensors))
    if d.note:
        notes.append(d.note.format(**_arguments(d, next(iter(matches.values())))))
    for note in dict.fromkeys(notes):
        warn(note)
    return place


def _outputs(model: nn.Module, edit: PlannedEdit) -> int:
    """How many outputs the whole map has that an edit is in."""
    if edit.site.view.parameter:
        return edit.site.view.turn(model.get_parameter(host(edit))).shape[-1]
    module: Any = model.get_submodule(host(edit))
    return module.weight.shape[0 if isinstance(module, nn.Linear) else -1]


def _norms(model: nn.Module, plan: Plan) -> dict[str, nn.Module]:
    """The norms of which a method without rows trains copies."""
    paths = {c.parameter.path.rpartition(".")[0] for c in plan.copies if not c.head}
    found = {p: m for p in sorted(paths) if is_norm(m := model.get_submodule(p))}
    if not found or len(found) != len(paths):
        raise no_counterpart("it has no row, and trains parameters of the model itself")
    return found


def _of_copies() -> Declared:
    return next(d for d in declarations() if d.copies)


def _recognised(model: nn.Module, plan: Plan) -> tuple[Declared, dict[str, Match]]:
    """The one method of peft's that all rows are, and what each row is."""
    method = plan.method
    found: list[dict[str, Match]] = []
    side = widest(model, {host(e) for e in plan.edits})
    for row in method.rows:
        if row.gate is not None or row.tokens:
            raise no_counterpart(f"its row `{row.name}` has a gate, or tokens of its own")
        known = [m for m in recognise_row(method, row) if not m.biases and m.activation is None]
        found.append({})
        for m in known:  # the best of each name
            found[-1].setdefault(m.name, m)
        of_experts = any(e.site.view.parameter for e in plan.edits if e.row.name == row.name)
        for d in declarations():
            if not (d.widest or d.lines or d.parameters and of_experts):  # what recognition by itself tells
                continue
            arguments = arguments_of(method, row, _own(d), {d.widest: side} if d.widest else {})
            layers = _last(plan, row) if d.last else []
            if arguments is not None and layers is not None:
                found[-1][d.key] = Match(d.name, {**arguments, **dict(zip([d.last], layers))})
        if not found[-1] and of_experts:
            there = " and ".join(f"`{d.name}`" for d in declarations() if d.parameters)
            raise no_counterpart(f"its row `{row.name}` is at matrices of experts, where peft has {there} alone")
        if not found[-1]:
            raise no_counterpart(f"its row `{row.name}` is no method of the library")
    fitting = [d for d in declarations() if all(d.key in of_row for of_row in found)]
    if fitting:  # of several, the one in which it has plain numbers: what stands under one root here is not another's
        d = min(fitting, key=lambda d: sum(_is_long(v) for of_row in found for v in of_row[d.key].arguments.values()))
        return d, {row.name: of_row[d.key] for row, of_row in zip(method.rows, found)}
    names = list(dict.fromkeys(next(iter(of_row.values())).name for of_row in found))
    listed = " and ".join(f"`{n}`" for n in names)
    raise no_counterpart(f"it combines {listed}" if len(names) > 1 else f"{listed} is not among peft's")


def _is_long(value: Any) -> bool:
    """Whether a number has so many digits that nobody wrote it."""
    return isinstance(value, float) and value != float(f"{value:.8g}")


def _own(d: Declared) -> Method:
    """The method of ours that a declaration means, its arguments free."""
    plain = load(d.name)
    if not d.lines:
        return plain
    return freed(d.name, [p.name for p in plain.params if p.name in d.arguments], d.lines)


def _last(plan: Plan, row: Row) -> list[int] | None:
    """How many layers a row is in, where those are the last ones; None where they are not."""
    edits = [e for e in plan.edits if e.row.name == row.name]
    layers = sorted({e.site.layer for e in edits if e.site.layer is not None})
    depth_ = plan.sites.main[0].depth
    return [len(layers)] if layers and layers == list(range(depth_ - len(layers), depth_)) else None


def _arguments(d: Declared, match: Match) -> dict[str, Any]:
    return {n: match.arguments.get(n, v) for n, v in load(match.name).arguments.items() if n in d.arguments}


def _config(
    model: nn.Module,
    d: Declared,
    edits: tuple[PlannedEdit, ...] | list[PlannedEdit],
    matches: dict[str, Match],
    by_path: Mapping[str, dict[str, Any]],
    layers: int,
) -> dict[str, Any]:
    for m in matches.values():
        other = sorted(
            n for n in m.arguments if n not in d.arguments and n not in ("at", "init") and n not in d.derived
        )
        if other:
            raise no_counterpart(f"peft has no field for `{other[0]}` = {m.arguments[other[0]]}")
    common = {n: Counter(a[n] for a in by_path.values()).most_common(1)[0][0] for n in d.arguments}
    for n in d.arguments.keys() - d.patterns.keys():
        if any(a[n] != common[n] for a in by_path.values()):
            raise no_counterpart(f"`{n}` differs between its modules, and peft has one `{d.arguments[n]}`")
    config = {**settings(model, d), **{theirs_: common[ours_] for ours_, theirs_ in d.arguments.items()}}
    for ours_, theirs_ in d.patterns.items():
        config[theirs_] = {_pattern(p, by_path): a[ours_] for p, a in by_path.items() if a[ours_] != common[ours_]}
    if d.of_modules:
        at_parameters = {p for p in by_path if module_at(model, p) is None}
        config.setdefault("target_modules", targets(model, by_path.keys() - at_parameters))
        if at_parameters and not d.parameters:
            raise no_counterpart(
                f"`{min(at_parameters)}` has a matrix for each expert, and peft has `{d.name}` at linear maps alone"
            )
        if at_parameters:
            config[d.parameters["field"]] = named(model, at_parameters)
        if d.inputs:
            config[d.inputs] = targets(model, {host(e) for e in edits if e.site.side == "input"})
        config |= turned(model, d, by_path)
    of = sizes(edits, layers)
    for theirs_, factors in d.written.items():
        if not all(f in of for f in factors):
            raise no_counterpart(f"`{theirs_}` cannot be told of this model")
        value = 1
        for f in factors:
            value *= int(of[f])
        config[theirs_] = value
    return config


def settings(model: nn.Module, d: Declared) -> dict[str, Any]:
    """What peft's configuration says beside a method's arguments."""
    return {
        "peft_type": d.type, "task_type": next((t for end, t in TASKS.items() if type(model).__name__.endswith(end)), None),
        "base_model_name_or_path": public_name(str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")) or None,
        "inference_mode": True, **({"bias": d.biases[0]} if d.biases else {}), **{n: allowed[0] for n, allowed in d.settings.items()},
    }  # fmt: skip


def turned(model: nn.Module, d: Declared, paths: Iterable[str]) -> dict[str, bool]:
    """peft's field for maps that store their weight as [d_in, d_out], where the method has it."""
    name = "fan_in_fan_out"
    if name not in d.settings:
        return {}
    return {name: any(m is not None and stored_as_map(m) for m in (module_at(model, p) for p in paths))}


def _pattern(path: str, paths: Iterable[str]) -> str:
    """A key of peft's patterns that means one module: without the first part of its path, which some of peft's methods ask for
    before a key."""
    end = path.partition(".")[2]
    alone = end and not any(p != path and p.endswith(f".{end}") for p in paths)
    return re.escape(end if alone else path)


#: The largest rank that vLLM makes room for (its option ``max_lora_rank``).
LARGEST_RANK = 512


def serving_problem(config: Mapping[str, Any]) -> str | None:
    """Why a serving engine (vLLM, SGLang, LoRAX) would not read a configuration of peft's; None where it would.

    They take LoRA and rsLoRA alone, of one rank and one scale, without a trained head, DoRA or biases, at linear maps that they
    know by the last part of the path, of a rank of at most 512.
    """
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        return "it takes LoRA and rsLoRA alone"
    if config.get("modules_to_save"):
        return f"the trained module `{config['modules_to_save'][0]}` has no place there"
    if config.get("target_parameters"):
        return f"the parameter `{config['target_parameters'][0]}` is no linear map"
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        return "all modules have one rank and one scale there"
    if config.get("bias", "none") != "none" or config.get("lora_bias"):
        return "biases have no place there"
    if not 0 < int(config["r"]) <= LARGEST_RANK:
        return f"the rank {config['r']} is larger than {LARGEST_RANK}"
    whole = [t for t in config["target_modules"] if "." in t]
    return (
        f"modules are known by the last part of their paths, and `{whole[0]}` is one of several with that part"
        if whole
        else None
    )


def targets(model: nn.Module, paths: set[str]) -> list[str]:
    """Modules as peft names them: by the last part of their paths where that means no other, else by whole paths."""
    ends: dict[str, set[str]] = {}
    for n, m in base_modules(model):
        if n and isinstance(getattr(m, "weight", None), torch.Tensor):
            ends.setdefault(n.rpartition(".")[2], set()).add(n)
    short = {end for end, own in ends.items() if own <= paths}
    return sorted(short) + sorted(p for p in paths if p.rpartition(".")[2] not in short)
