"""The labels of a head: how many, what they are called, what kind of problem they are; which heads can have their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from ..anatomy.base import base_modules
from ..anatomy.sites import SiteMap
from ..language.report.diagnostics import PeltError, error, near, repeated
from ..language.report.texts import half_of_a_character

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
MAX_LABELS = 2**20
#: transformers' losses (`loss_type` of a model) over a head that has one column for each label.
_EXAMPLE = ("ForSequenceClassification", "ForImageClassification", "ForVideoClassification", "ForAudioClassification")
_TOKEN = ("ForTokenClassification",)

HeadUse = Literal["row", "copy", "edit", ""]


@dataclass(frozen=True, slots=True)
class Labels:
    """Names of a head's labels, in the order of the logits' columns, and its problem type.

    Without a problem type it follows from each batch, as in transformers: one label is a regression, whole numbers are
    classes, anything else is one yes or no for each label.
    """

    names: tuple[str, ...]
    problem_type: str | None = None

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self.names[:3])) + (", …" if len(self) > 3 else "")
        return f"<{len(self)} labels: {shown}>"

    def __len__(self) -> int:
        return len(self.names)

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.names))

    @property
    def label2id(self) -> dict[str, int]:
        return {n: i for i, n in enumerate(self.names)}

    def to_json(self) -> dict[str, Any]:
        return {"names": list(self.names), "problem_type": self.problem_type}


def read_labels(labels: int | Sequence[str] | Labels, problem_type: str | None = None) -> Labels:
    """Labels from their number or their names, in the order of the columns. Raises `PeltError`."""
    if isinstance(labels, Labels):
        names, problem_type = labels.names, problem_type or labels.problem_type
    elif isinstance(labels, int) and not isinstance(labels, bool):
        _number(labels)
        names = tuple(f"LABEL_{i}" for i in range(labels))  # transformers' own names for labels without one
    elif isinstance(labels, Sequence) and not isinstance(labels, (str, bytes)):
        _number(len(labels))
        names = tuple(labels)
    else:
        raise error("E0740", f"labels are a number or a list of names, not {labels!r}", help="labels=3, or labels=[…]")
    bad = [n for n in names if not isinstance(n, str) or not n.strip()]
    if bad:
        raise error("E0740", f"labels are named by texts, not {bad[0]!r}")
    half = next((n for n in names if half_of_a_character(n) is not None), None)
    if half is not None:
        raise error(
            "E0740", f"the label {half!r} holds half of a character, which is no Unicode", help="correct its name"
        )
    twice = repeated(names)
    if twice:
        raise error("E0740", f"two labels are named {twice[0]!r}")
    if problem_type is not None and problem_type not in PROBLEM_TYPES:
        raise error("E0741", f"there is no problem type {problem_type!r}",
                    help=near(str(problem_type), PROBLEM_TYPES) or f"it is one of {', '.join(PROBLEM_TYPES)}")  # fmt: skip
    if problem_type == PROBLEM_TYPES[0] and len(names) == 1:
        raise error("E0741", "a single label is not chosen among others",
                    help="two labels for yes and no, or problem_type='regression' for a number")  # fmt: skip
    return Labels(names, problem_type)


def _number(n: int) -> None:
    if not 1 <= n <= MAX_LABELS:
        raise error("E0740", f"a head has at least one label and at most {MAX_LABELS:,}, not {n:,}")


def read_json(record: Any, place: str) -> Labels | None:
    """What `Labels.to_json` wrote, in a file that anyone may have written."""
    if record is None:
        return None
    names = record.get("names") if isinstance(record, dict) else None
    if not isinstance(names, list) or set(record) != {"names", "problem_type"}:
        raise error("E0578", f"{place} is broken: its `labels` are not names with a problem type")
    try:
        return read_labels(names, record["problem_type"])
    except PeltError as e:
        raise error("E0578", f"{place} is broken: {e.diagnostics[0].message}") from None


def labels_of_base(model: Any) -> Labels | None:
    """What the model's own head scores by its configuration; None where its columns are no labels."""
    if getattr(model, "loss_type", None) not in (*_EXAMPLE, *_TOKEN) or not hasattr(model, "config"):
        return None
    config = vars(model.config)  # past what an adapter's head makes the configuration read as
    names = config.get("id2label")
    if not isinstance(names, Mapping):
        return None
    return Labels(tuple(str(names[i]) for i in sorted(names)), config.get("problem_type"))


def scores_examples(model: Any, sites: SiteMap) -> bool:
    """Whether the head gives one score for each example, of a pooled state. A decoder's scores every token, and pools the scores."""
    return getattr(model, "loss_type", None) in _EXAMPLE and (len(sites.main) != 1 or not sites.main[0].causal)


def own_labels(
    model: Any, sites: SiteMap, labels: int | Sequence[str] | Labels | None, problem_type: str | None
) -> Labels | None:
    """The labels of an adapter's own head, checked against the model; None where nothing is said of them."""
    if labels is None and problem_type is None:
        return None
    kind = type(model).__name__
    base = labels_of_base(model)
    if not sites.head:
        raise error("E0742", f"this {kind} has no head that labels could belong to",
                    help="load it with AutoModelForSequenceClassification or AutoModelForTokenClassification; the number of "
                    "labels in its configuration does not matter")  # fmt: skip
    if base is None:
        raise error("E0743", f"the columns of this {kind}'s head are no labels",
                    help="leave labels out: the adapter's copy of the head has the model's own columns; for labels, load "
                    "AutoModelForSequenceClassification or AutoModelForTokenClassification")  # fmt: skip
    found = read_labels(base.names if labels is None else labels, problem_type)
    if model.loss_type in _TOKEN and found.problem_type not in (None, PROBLEM_TYPES[0]):
        raise error("E0741", f"{kind} chooses one label for each token, which is no {found.problem_type}")
    return found


def label_map(model: nn.Module, sites: SiteMap) -> str | None:
    """The path of the linear map that ends the head, with a row for each of the base's labels."""
    base = labels_of_base(model)
    if base is None or not sites.head:
        return None
    head = base_modules(model.get_submodule(sites.head[-1]), sites.head[-1])
    last = [n for n, m in head if isinstance(m, nn.Linear) and m.out_features == len(base)]
    return last[-1] if last else None
