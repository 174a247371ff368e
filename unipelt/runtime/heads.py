"""Heads that belong to adapters: which labels the logits mean now, the loss over them, and the configuration that says so.

A model's forward computes the loss with its own number of labels. Where an adapter has others, the model's first hook
takes ``labels`` off the batch and the last one adds the loss that transformers has for this kind of model. The
configuration, which other models may share, is never written: the model shows it through a view.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import nn

from ..compiler.labels import Labels, labels_of_base
from ..compiler.plan import Plan
from ..language.report.diagnostics import error
from .mixture import Mixture
from .switch import Switch

_TAKEN = "labels"


@dataclass
class _Scored:
    """As much of a configuration as a loss over labels reads, and writes: the problem type that it infers."""

    num_labels: int
    problem_type: str | None


class Heads:
    """The heads of a model's adapters, and whether one of them is merged into the base."""

    def __init__(self, switch: Switch):
        self.switch = switch
        self.rows: dict[str, Labels | None] = {}  # adapters with a head in a row; None: the base's labels
        self.copies: dict[str, Labels | None] = {}  # adapters with a copy of the base's head
        self.merged = False
        self.merged_labels: Labels | None = None

    def merge(self, labels: Labels | None) -> None:
        """The base has taken in an adapter, whose own labels its head scores now."""
        self.merged, self.merged_labels = True, labels

    def unmerge(self) -> None:
        self.merged, self.merged_labels = False, None

    @property
    def own(self) -> Labels | None:
        """The labels of the head that acts in this thread now; None where they are the base's.

        Copies of the head act before rows at it, whatever adapters they are of; of several the last one counts.
        """
        if self.merged:
            return self.merged_labels
        live = self.switch.live
        if isinstance(live, Mixture):  # those of all examples, if they have the same
            each = [self.of((n,) if n is not None else ()) for n in dict.fromkeys(live.examples)]
            return each[0] if all(labels == each[0] for labels in each) else None
        return self.of(live)

    def of(self, names: Collection[str]) -> Labels | None:
        """The labels of the head that acts where these adapters do."""
        for heads in (self.rows, self.copies):
            found = [n for n in names if n in heads]
            if found:
                return heads[found[-1]]
        return None

    def shown(self) -> Mapping[str, Any]:
        """The fields in which the configuration reads otherwise now."""
        return fields(self.own)

    def update(self, model: nn.Module, plans: Mapping[str, Plan]) -> None:
        """Brings the heads up to date with the attached adapters, and the model's configuration with the heads."""
        self.rows = {n: p.labels for n, p in plans.items() if p.head == "row"}
        self.copies = {n: p.labels for n, p in plans.items() if p.head == "copy"}
        if self.has_labels:
            show(model, self)
        else:
            unshow(model)

    @property
    def has_labels(self) -> bool:
        """Whether any attached adapter has labels of its own, so that the hooks below are needed."""
        return any(v is not None for v in (*self.rows.values(), *self.copies.values()))

    # ------------------------------------------------------------ hooks

    def take(self, model: nn.Module, args: tuple, kwargs: dict) -> Any:
        """Keeps ``labels`` from the model's forward, which would read them with the base's number of labels."""
        values = self.switch.holder.values
        values.pop(_TAKEN, None)
        if self.own is None:
            self._refuse_loss(model, args, kwargs)
            return None
        if kwargs.get("labels") is not None:
            values[_TAKEN] = kwargs["labels"]
            return args, {n: v for n, v in kwargs.items() if n != "labels"}
        names = list(inspect.signature(model.forward).parameters)[: len(args)] if args else []
        if "labels" in names and args[names.index("labels")] is not None:
            i = names.index("labels")
            values[_TAKEN] = args[i]
            return (*args[:i], None, *args[i + 1 :]), kwargs
        return None

    def _refuse_loss(self, model: nn.Module, args: tuple, kwargs: dict) -> None:
        """An error where a loss is asked for over examples whose heads have different labels."""
        live = self.switch.live
        if not isinstance(live, Mixture) or not any(self.of((n,)) is not None for n in live):
            return
        names = list(inspect.signature(model.forward).parameters)[: len(args)]
        if kwargs.get(_TAKEN) is not None or (_TAKEN in names and args[names.index(_TAKEN)] is not None):
            raise error("E0853", "the examples of this batch have heads with different labels, and no loss is over all of them",
                        help="leave `labels` out, and compute a loss for the rows of each adapter from the logits")  # fmt: skip

    def give(self, model: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        """Puts the loss before the other outputs, where transformers has it."""
        labels = self.switch.holder.values.pop(_TAKEN, None)
        own = self.own
        if labels is None or own is None:
            return None
        logits = output[0] if isinstance(output, tuple) else output["logits"]
        counted = {"num_items_in_batch": n} if (n := kwargs.get("num_items_in_batch")) is not None else {}
        # every loss over labels takes what it needs of these
        loss = model.loss_function(  # type: ignore[operator]
            labels=labels, logits=logits, pooled_logits=logits, **counted,
            config=_Scored(len(own), own.problem_type),
        )  # fmt: skip
        return (loss, *output) if isinstance(output, tuple) else type(output)(loss=loss, **output)


def fields(own: Labels | None) -> dict[str, Any]:
    """Labels as a configuration has them."""
    if own is None:
        return {}
    return {"id2label": own.id2label, "label2id": own.label2id, "problem_type": own.problem_type}


def agree(model: nn.Module, plans: Mapping[str, Plan]) -> None:
    """Refuses adapters that would act together where one changes a head of other labels than the one that acts."""
    whole = [p for p in plans.values() if p.head == "row"] or [p for p in plans.values() if p.head == "copy"]
    for name, p in plans.items():
        if whole and p.head == "edit" and _count(model, p) != _count(model, whole[-1]):
            raise error("E0746", f"the adapter `{name}` changes a head of {_count(model, p)} labels, and the head that would "
                        f"act has {_count(model, whole[-1])}", help="activate them one at a time")  # fmt: skip


def _count(model: nn.Module, plan: Plan) -> int:
    labels = plan.labels or labels_of_base(model)
    return len(labels) if labels is not None else 0


# ---------------------------------------------------------------- the configuration


def _field(name: str) -> property:
    def read(config: Any) -> Any:
        shown = config._heads.shown()
        return shown[name] if name in shown else config.__dict__.get(name)

    def write(config: Any, value: Any) -> None:
        config.__dict__[name] = value

    return property(read, write)


@lru_cache(maxsize=None)
def _view_of(kind: type) -> type:
    """A class for views of configurations of a class. A view has the same ``__dict__`` as what it is a view of."""

    def copied(view: Any, memo: dict) -> Any:
        if id(view._heads) in memo:  # the model is copied: the copy has a view of its own
            return _viewed(copy.deepcopy(view._viewed, memo), memo[id(view._heads)])
        return plain(view)

    def to_dict(view: Any) -> dict[str, Any]:
        # what is written down is what the base's parameters are: a merged head, but no head that is beside them
        return {**kind.to_dict(view), **fields(view._heads.merged_labels)}  # type: ignore[attr-defined]

    body: dict[str, Any] = {
        # called as a class (transformers asks for a configuration of its defaults so), it gives one that is no view
        "__new__": lambda cls, *args, **kwargs: kind(*args, **kwargs),
        "__slots__": ("_viewed", "_heads"), "__module__": kind.__module__, "__doc__": kind.__doc__,
        "__eq__": lambda view, other: view._viewed == (other._viewed if is_view(other) else other),
        "__deepcopy__": copied, "__copy__": lambda view: plain(view), "to_dict": to_dict,
        "__reduce__": lambda view: (_viewed, (view._viewed, view._heads)),
        "__reduce_ex__": lambda view, protocol: view.__reduce__(),
    }  # fmt: skip
    return type(kind.__name__, (kind,), body | {n: _field(n) for n in ("id2label", "label2id", "problem_type")})


def _viewed(config: Any, heads: Heads) -> Any:
    cls: Any = _view_of(type(config))  # type: ignore[arg-type]
    view: Any = object.__new__(cls)
    object.__setattr__(view, "__dict__", config.__dict__)
    object.__setattr__(view, "_viewed", config)
    object.__setattr__(view, "_heads", heads)
    return view


def plain(view: Any) -> Any:
    """A configuration of its own with what a view shows now."""
    config = copy.deepcopy(view._viewed)
    config.__dict__.update(copy.deepcopy(dict(view._heads.shown())))
    return config


def is_view(config: Any) -> bool:
    return hasattr(type(config), "_heads")


def show(model: nn.Module, heads: Heads) -> None:
    """Lets the model's configuration read as its acting head says."""
    if not is_view(model.config):
        model.config = _viewed(model.config, heads)


def unshow(model: nn.Module) -> None:
    config: Any = getattr(model, "config", None)
    if is_view(config):
        model.config = config._viewed
