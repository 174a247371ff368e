"""The model card: ``README.md`` beside an adapter, with the hub's metadata, the method as a row of the table, its formula,
counts and verdicts on the base, how it was trained, what it reached, and how it is loaded.

Nothing of this machine is told: a base or data set that lies here is called by its folder's name. Non-goal: prose about
uses and limits, which nobody but the author can write; a card that has been edited is never written over.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..compiler.plan import Plan
from ..language.report.diagnostics import error
from ..language.write.document import markdown_table
from ..language.write.columns import COLUMNS, columns_met, rows_of
from ..language.files import contents
from ..language.write.formula import as_text
from ..language.report.render import escape
from .hub import is_hub_name, public_name

#: What stands for the adapter's place until it is pushed somewhere.
PLACE = "FOLDER-OR-HUB-NAME"
#: Endings of transformers' classes: the auto class that loads them, the hub's name of what they do.
_CLASSES = (
    ("ForSequenceClassification", "AutoModelForSequenceClassification", "text-classification"),
    ("ForTokenClassification", "AutoModelForTokenClassification", "token-classification"),
    ("ForQuestionAnswering", "AutoModelForQuestionAnswering", "question-answering"),
    ("ForImageClassification", "AutoModelForImageClassification", "image-classification"),
    ("ForMaskedLM", "AutoModelForMaskedLM", "fill-mask"),
    ("ForCausalLM", "AutoModelForCausalLM", "text-generation"),
    ("LMHeadModel", "AutoModelForCausalLM", "text-generation"),
    ("ForConditionalGeneration", "AutoModelForSeq2SeqLM", "text2text-generation"),
    ("Model", "AutoModel", "feature-extraction"),
)
#: The most bytes a card of ours may have.
LARGEST = 2**20
#: Floats among metrics that say something of the data only.
_NO_SCORES = ("majority",)
#: The marker of a card as it was written, with a hash of everything before it.
_MARKER = re.compile(r"\n<!-- written by unipelt \S+; (?P<hash>[0-9a-f]{16}) -->\n\Z")


def parts_of(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a record that is a mapping, an empty one where it is something else."""
    found = record.get(name)
    return found if isinstance(found, Mapping) else {}


def model_card(model: Any, plan: Plan, card: Mapping[str, Any]) -> str:
    """The text of an adapter's card.

    Of ``card`` it reads ``metrics`` (by split, then by name), ``data`` (a mapping with a ``name``), ``training`` (options
    by name), ``task``, ``license``, ``language``, ``pipeline_tag``, ``tags`` and
    ``picture`` (a file beside the card); everything is optional.
    """
    base = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
    auto, tag = _kind(model)
    parts = [
        f"# {_text(plan.method.name)} on {_text(public_name(base) or plan.model)}",
        _text(plan.method.doc or "").strip(),
        "An adapter made with unipelt, whose method is written down in `method.pelt`: rows of the unified view's table (He et al. "
        "2022) of parameter-efficient tuning.",
        _method(plan), _counts(plan), _properties(plan), _training(card), _results(card), _picture(card),
        _use(base, auto, card) if getattr(model, "config", None) is not None else _use_plain(plan.model),
    ]  # fmt: skip
    data = metadata(base, tag, plan, card).to_yaml(line_break="\n")
    return sealed(f"---\n{data}\n---\n\n" + "\n\n".join(p for p in parts if p) + "\n")


#: What a card's parts are, where there is something to read in them.
_PARTS: dict[str, tuple[type, str]] = {"metrics": (Mapping, "a dict of dicts, by split"), "data": (Mapping, "a dict"), "training": (Mapping, "a dict"),
                                       "tags": (list, "a list of texts")}  # fmt: skip


def check_card(card: Mapping[str, Any]) -> None:
    """Raises a `PeltError` where a card could not be written: a part of another kind, or something that holds itself."""
    for name, (kind, what) in _PARTS.items():
        value = card.get(name)
        inner = value.values() if name == "metrics" and isinstance(value, Mapping) else ()
        if value is not None and not (isinstance(value, kind) and all(isinstance(v, Mapping) for v in inner)):
            raise error(
                "E0593",
                f"`{name}` in the argument `card` is {what}, not {value!r}"[:200],
                help="write it so, or leave it out",
            )
    try:
        json.dumps(dict(card), default=str)
    except (TypeError, ValueError, RecursionError) as e:
        raise error(
            "E0593",
            f"the argument `card` cannot be written as JSON: {e}",
            help="give texts, numbers, lists and dicts of these",
        ) from None


def metadata(base: str, tag: str | None, plan: Plan, card: Mapping[str, Any]) -> Any:
    """The front matter, as the hub's own library writes it."""
    from huggingface_hub import EvalResult, ModelCardData

    tag = card.get("pipeline_tag") or tag
    data = dict(card.get("data") or {})
    title = public_name(str(data.get("name") or "")) or "unnamed data"
    results = [
        EvalResult(tag or "other", _slug(title), title, metric, round(value, 6), dataset_split=split)
        for split, metrics in (card.get("metrics") or {}).items()
        for metric, value in metrics.items() if isinstance(value, float) and metric not in _NO_SCORES
    ]  # fmt: skip
    names = list(dict.fromkeys(r.metric_type for r in results))
    return ModelCardData(
        base_model=base if is_hub_name(base) else None, base_model_relation="adapter" if is_hub_name(base) else None,
        library_name="unipelt", license=card.get("license"),
        language=card.get("language"), pipeline_tag=tag, datasets=[title] if data.get("hub") else None,
        tags=["unipelt", "adapter", "parameter-efficient-fine-tuning", plan.method.name, *card.get("tags", ())], metrics=names or None,
        model_name=f"{plan.method.name} on {public_name(base) or plan.model}" if results else None, eval_results=results or None,
    )  # fmt: skip


# ---------------------------------------------------------------- whose card it is


def sealed(text: str) -> str:
    """The text with the marker by which it is known again."""
    from importlib.metadata import version

    return f"{text}\n<!-- written by unipelt {version('unipelt')}; {_hash(text)} -->\n"


def unsealed(text: str) -> str | None:
    """The text without its marker; None if it is not as it was written."""
    found = _MARKER.search(text)
    return text[: found.start()] if found and _hash(text[: found.start()]) == found["hash"] else None


def replaceable(path: Path) -> bool:
    """Whether there is no card, or one that nobody has edited since it was written."""
    if not os.path.lexists(path):
        return True
    if os.path.islink(path):
        return False  # somebody put it there
    try:
        return unsealed(contents(path, LARGEST).decode("utf-8")) is not None
    except (OSError, UnicodeDecodeError):
        return False


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---------------------------------------------------------------- sections


def _kind(model: Any) -> tuple[str, str | None]:
    name = type(model).__name__
    if getattr(model, "main_input_name", "") == "input_features":
        return "AutoModelForSpeechSeq2Seq", "automatic-speech-recognition"
    return next(((auto, tag) for end, auto, tag in _CLASSES if name.endswith(end)), ("AutoModel", None))


def _method(plan: Plan) -> str:
    m = plan.method
    rows = rows_of([m])
    parts = ["## Method", markdown_table(rows, columns_met(rows, ("row", *COLUMNS)))]
    if m.rows:
        parts.append(f"```\n{as_text(m)}\n```")
    if m.params:
        arguments = [
            {"argument": p.name, "type": p.type, "value": _text(str(m.arguments.get(p.name, "")))} for p in m.params
        ]
        parts.append(markdown_table(arguments, ["argument", "type", "value"]))
    places = [
        {"row": e["row"], "site": e["site"], "layers": e["layers"], "parameters": f"{e['parameters']:,}"}
        for e in plan.table()
    ]
    parts += ["Where it acts:", markdown_table(places, ["row", "site", "layers", "parameters"])]
    return "\n\n".join(parts)


def _counts(plan: Plan) -> str:
    c = plan.counts
    words = {"trained": "without the head", "stored": "after folding what does not read the input", "frozen": "drawn from the seed, computed at the start or taken from trained adapters, and kept",
             "head": "trained with the adapter", "base": f"{plan.model}, never changed"}  # fmt: skip
    rows = [
        {"parameters": k, "count": f"{getattr(c, k):,}", "of the base": f"{100 * getattr(c, k) / c.base:.3g} %" if c.base else "", "": w}
        for k, w in words.items() if getattr(c, k)
    ]  # fmt: skip
    return "## Parameters\n\n" + markdown_table(rows, ["parameters", "count", "of the base", ""])


def _properties(plan: Plan) -> str:
    rows = [
        {"property": k, "verdict": v.partition(": ")[0], "because": v.partition(": ")[2]}
        for k, v in plan.properties.items()
    ]
    return "## Properties\n\n" + markdown_table(rows, ["property", "verdict", "because"])


def _training(card: Mapping[str, Any]) -> str:
    data, options = dict(card.get("data") or {}), dict(card.get("training") or {})
    rows = [
        {"data": _text(k), "": _text(public_name(v) if k == "name" and isinstance(v, str) else str(v))}
        for k, v in data.items()
        if k != "hub"
    ]
    parts = [markdown_table(rows, ["data", ""])] if rows else []
    options = {**({"task": card["task"]} if card.get("task") else {}), **options}
    if options:
        parts.append(
            markdown_table(
                [{"option": _text(k), "value": _text(_number(v))} for k, v in options.items()], ["option", "value"]
            )
        )
    return "\n\n".join(["## Training", *parts]) if parts else ""


def _results(card: Mapping[str, Any]) -> str:
    metrics = card.get("metrics") or {}
    names = list(dict.fromkeys(n for m in metrics.values() for n in m))
    if not names:
        return ""
    rows = [
        {"split": _text(split), **{_text(n): _text(_number(m.get(n, ""))) for n in names}}
        for split, m in metrics.items()
    ]
    return "## Results\n\n" + markdown_table(rows, ["split", *map(_text, names)])


def _picture(card: Mapping[str, Any]) -> str:
    name = card.get("picture")
    return f"![Loss, metric, gates, edits and gradients of the run]({quote(name)})" if name else ""


def _use(base: str, auto: str, card: Mapping[str, Any]) -> str:
    shown = escape(public_name(base)) or "THE-BASE-MODEL"
    local = "" if is_hub_name(base) else "  # the base lay in a folder of this name"
    parts = [
        "## Use",
        f"```python\nfrom transformers import {auto}\nimport unipelt\n\n"
        f'model = {auto}.from_pretrained({json.dumps(shown)}){local}\nunipelt.attach(model, "{PLACE}")\n```',
    ]
    if card.get("task"):
        model = "" if is_hub_name(base) else f" --model {shlex.quote(shown)}"
        parts.append(f'```\nunipelt eval {PLACE} --data DATA{model}\nunipelt predict {PLACE} "TEXT"{model}\n```')
    return "\n\n".join(parts)


def _use_plain(kind: str) -> str:
    """Where no library makes the base from a name."""
    code = f'model = …  # the {_text(kind)} with the weights that the adapter was made on\nunipelt.attach(model, "{PLACE}")'
    return f"## Use\n\n```python\nimport unipelt\n\n{code}\n```"


def _number(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return str(value)


def _text(text: str) -> str:
    """Plain text in Markdown: one line, in which nothing is markup and every character is seen."""
    return re.sub(r"([\\`*_\[\]<>#])", r"\\\1", escape(" ".join(text.split())))


def _slug(title: str) -> str:
    return re.sub(r"[^\w./-]+", "-", title) or "unnamed"
