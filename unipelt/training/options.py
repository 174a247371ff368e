"""Options as one table: a field's name, type and default, and with them its help, its rules and how a command line writes it.

`unipelt train` and its like have what is listed here and in `config`: a new option is a new field. Plain data: no torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from ..language.report.diagnostics import PeltError, error, near
from .data import is_unicode

#: The kinds of task by name, each with its file in `tasks` and its class. Data are asked in this order which of them they suit.
KINDS = {
    "image-text-to-text": "pictured:ImageTextToText",
    "image-classification": "pictures:ImageClassification",
    "audio-classification": "sounds:AudioClassification",
    "question-answering": "question_answering:QuestionAnswering",
    "token-classification": "token_classification:TokenClassification",
    "pet": "pet:PET",
    "sequence-classification": "classification:SequenceClassification",
    "seq2seq": "seq2seq:Seq2Seq",
    "causal-lm": "causal_lm:CausalLM",
}


@dataclass(frozen=True)
class Rule:
    """What a value must be, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


def at_least(number: float) -> Rule:
    return Rule(f"must be at least {number}", lambda value: value >= number)


@dataclass(frozen=True)
class Option:
    """The properties of an option, besides the name, type and default of its field."""

    help: str | None = None
    commands: str = ""  # those that have it, where not all have it that take its class
    short: str | None = None  # another name on a command line, as `-o`
    flag: str | None = None  # its name on a command line, where that is not `--` and the field's
    rule: Rule | None = None
    choices: Sequence[str] = ()  # where the type does not list them
    may_change: bool = False  # when a run goes on, as it changes no result


@cache
def options_of(cls: Any) -> dict[str, tuple[Any, Option]]:
    """The options among the fields of a dataclass: type and properties by name."""
    hints: dict[str, Any] = get_type_hints(cls, include_extras=True)
    found = {f.name: get_args(hints[f.name]) for f in fields(cls) if get_origin(hints[f.name]) is Annotated}
    return {name: (parts[0], parts[1]) for name, parts in found.items()}


def flag(name: str) -> str:
    """The name of a field on a command line."""
    return f"--{name.replace('_', '-')}"


def choices(kind: Any) -> tuple[str, ...]:
    """The values of a `Literal`, also where None is another."""
    found = [kind] if get_origin(kind) is Literal else [k for k in get_args(kind) if get_origin(k) is Literal]
    return get_args(found[0]) if found else ()


def check(options: Any) -> None:
    """Refuse values that cannot mean anything, before a model is loaded."""
    for name, (kind, option) in options_of(type(options)).items():  # type: ignore[arg-type]
        value = getattr(options, name)
        if not is_unicode(value):  # it cannot be written down, which would be found when the run is saved
            raise error(
                "E0649", f"`{flag(name)}` holds half of a character, which is no Unicode", help="correct the option"
            )
        if value is None:
            continue
        allowed = option.choices or choices(kind)
        if allowed:
            one_of(name, value, allowed)
        if option.rule is not None and not option.rule.holds(value):
            raise wrong(name, option.rule.words, value)


def one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    """Refuse a value of an option that is none of its words."""
    if value not in allowed:
        raise wrong(name, f"is one of {', '.join(allowed)}", value, near(str(value), allowed))


def wrong(name: str, rule: str, value: object, remedy: str = "") -> PeltError:
    return error("E0620", f"`{flag(name)}` {rule}; it is {value!r}", help=remedy or "change the option")


# ---------------------------------------------------------------- what is written on a command line


def argument(text: str) -> tuple[str, Any]:
    """Splits ``r=16`` into a name and a value. A value that is no number stays a text."""
    name, sep, value = text.partition("=")
    if not sep or not name.strip() or not value.strip():
        raise error("E0621", f"`{text}` is not an argument", help="write it as `name=value`, as in `--set r=16`")
    value = value.strip()
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return name.strip(), number(value)
    return name.strip(), value


def read_arguments(texts: Sequence[str] | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for text in texts or ():
        name, value = argument(text)
        if name in found:
            raise error("E0621", f"the argument `{name}` is given twice", help="give it once")
        found[name] = value
    return found


# ---------------------------------------------------------------- the options of a task, and of a saved adapter

#: What a base may be loaded in.
FloatType = Literal["float32", "bfloat16", "float16"]
DType = Annotated[
    FloatType | None, Option("Of the base: float32, bfloat16 or float16. Default: the run's, else as it is stored.")
]
#: Which commands have an option of a task.
EVERYWHERE, SCORED, TRAINING = "train eval predict features", "train eval features", "train"


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """The options of a task. The data decide what is None."""

    task: Annotated[
        str | None,
        Option(f"One of {', '.join(KINDS)}. Default: the run's, or by the data.", EVERYWHERE, choices=tuple(KINDS)),
    ] = None
    text: Annotated[
        tuple[str, ...] | None,
        Option(
            "The text column; two, as in `premise,hypothesis`, for pairs. Or that of pictures or sounds.", EVERYWHERE
        ),
    ] = None
    label: Annotated[
        str | None,
        Option(
            "The column of labels, tags or answers; several of 0 and 1, as in `spam,rude`, for multi-label.", SCORED
        ),
    ] = None
    problem_type: Annotated[
        Literal["single_label", "multi_label", "regression"] | None,
        Option("single_label, multi_label or regression; default: by the values.", TRAINING),
    ] = None
    pattern: Annotated[
        str | None,
        Option("A template of the input, as in `{text} It was {mask}.`; `{prompt:3}` for pseudo-tokens.", EVERYWHERE),
    ] = None
    words: Annotated[
        str | None, Option("pet: the labels' words in their order, or `0=bad,1=good|fine`, or a JSON file.", EVERYWHERE)
    ] = None
    loss: Annotated[
        Literal["completion", "all"] | None, Option("causal-lm: count `completion` tokens only, or `all`.", SCORED)
    ] = None
    chat: Annotated[bool, Option("causal-lm: put prompts and answers into the tokenizer's chat template.", SCORED)] = (
        False
    )
    pack: Annotated[bool, Option("causal-lm: train on several examples in one row.", TRAINING)] = False
    stride: Annotated[
        int | None,
        Option("question-answering: tokens that windows of a long context share.", TRAINING, rule=at_least(1)),
    ] = None
    max_target_length: Annotated[
        int | None, Option("Tokens of a target or of a generated answer. Default: 128.", SCORED, rule=at_least(1))
    ] = None
    generate: Annotated[
        bool | None, Option("BLEU, chrF, ROUGE and exact match of generated answers; seq2seq does by itself.", SCORED)
    ] = None
    answer_after: Annotated[
        str | None, Option("Exact match looks behind the last of these marks, as in GSM8K's `####`.", SCORED)
    ] = None
    max_length: Annotated[
        int | None,
        Option(
            "Tokens per example; longer ones are cut, and counted. Default: 128, and 384 for question-answering.",
            EVERYWHERE,
            rule=at_least(2),
        ),
    ] = None
    seconds: Annotated[
        float | None,
        Option(
            "audio-classification: how much of a sound is read; the rest is cut, and counted. Default: 30.",
            EVERYWHERE,
            rule=at_least(0.25),
        ),
    ] = None
    padding: Annotated[
        Literal["longest", "max_length"], Option("`longest` in the batch, or `max_length`.", TRAINING)
    ] = "longest"

    def given(self) -> list[str]:
        """The options that are given and do not mean something to every task."""
        common = ("task", "text", "label", "max_length", "padding")
        return [
            f.name for f in fields(TaskOptions) if f.name not in common and getattr(self, f.name) not in (None, False)
        ]

    def check(self) -> None:
        check(self)


@dataclass(frozen=True)
class Opening:
    """How a saved adapter is attached to its base (see `unipelt.attach`); ``dtype`` is that of the base."""

    model: Annotated[str | None, Option("The base model; default: the one trained on.", short="-m")] = None
    force: Annotated[bool, Option("Attach to a base with other weights than the one trained on.")] = False
    dtype: DType = None
    arguments: Annotated[
        Mapping[str, Any],
        Option("Bind an argument anew that leaves the tensors as they are, as `drop=5`.", flag="--set"),
    ] = field(default_factory=dict)
