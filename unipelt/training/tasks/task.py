"""The interface of a kind of task. The kinds are in the files beside this one, their table is `options.KINDS`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, TypeAdapter, ValidationError

from ...language.report.diagnostics import error
from .. import data as reading
from ..data import Split
from ..options import TaskOptions
from . import template

if TYPE_CHECKING:
    import torch

    from ...compiler.labels import Labels

#: The label of a token that takes no part in a loss (torch's own default).
IGNORED = -100
Example = dict[str, Any]
#: Padded tensors of several examples, by name.
Batch = dict[str, "torch.Tensor"]
#: For each of several predictions a value for each of the task's input columns.
Inputs = Sequence[Sequence[Any]]
#: A prediction, of plain values.
Answer = dict[str, Any]
#: What a model says about one example: plain numbers, lists or small tensors on the CPU, so that processes can exchange it.
Output = Any
#: Called with the number of examples done so far, and that of all.
Tick = Callable[[int, int], None]
#: A block around the outputs of a batch, by the positions of its examples.
Around = Callable[[Sequence[int]], AbstractContextManager[Any]]
#: From a model's outputs and the batch's labels, divided by the number of labels of all batches of a step.
LossFunction = Callable[..., "torch.Tensor"]


@dataclass(frozen=True)
class Encoded:
    """Examples as a model reads them. ``truncated`` counts those that were longer than the maximum.

    ``aside`` has, for each example, what its outputs are read with and the model does not see; ``references`` what
    scoring compares with, one for each row of the data (a row may have several examples).
    """

    examples: list[Example]
    truncated: int = 0
    aside: Sequence[Any] = ()
    references: Sequence[Any] = ()

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> Example:
        return self.examples[i]


@dataclass(frozen=True)
class Task:
    """A kind of task with its columns: plain data, and what a run asks of it. The types say what a record may hold.

    ``texts`` are the columns read, ``label`` the column of the answer. Evaluation has two halves: ``outputs`` says for a
    batch what the model says about each example, ``score`` makes the metrics of all examples' outputs. Between them
    outputs may come from several processes.
    """

    kind: ClassVar[str]
    #: The class of transformers that is loaded, where the model does not decide it (`auto_for`).
    auto: ClassVar[str]
    #: The options of `TaskOptions` that mean something to this kind, besides those that every kind has.
    asks: ClassVar[tuple[str, ...]] = ()
    #: The class of transformers that makes a model's inputs of what the task reads.
    reader: ClassVar[str] = "AutoTokenizer"
    #: Whether a pretrained model does the task as it is: nothing in its head is new.
    pretrained: ClassVar[bool] = False
    #: Tokens per example where the user names no maximum.
    length: ClassVar[int] = 128
    #: The columns that a prediction reads, where neither data nor the user name them.
    usual: ClassVar[tuple[str, ...]] = ("text",)
    #: Whether a prediction is made of the outputs of one example for each input, so that `Predicting.around` reaches them all.
    by_example: ClassVar[bool] = False

    texts: tuple[str, ...] = ()
    label: str | None = None
    max_length: Annotated[int, Field(ge=2)] = 128
    padding: Literal["longest", "max_length"] = "longest"

    # ------------------------------------------------------------ from data

    @classmethod
    def suits(cls, split: Split, options: TaskOptions, base: Any) -> bool:
        """Whether a user who names no task means this one. ``base`` is the model's configuration, or None."""
        raise NotImplementedError

    @classmethod
    def find(cls, split: Split, options: TaskOptions, base: Any) -> Self:
        """The task for a training split: its columns, by convention or as the user names them, and its labels."""
        raise NotImplementedError

    @classmethod
    def made(cls, options: TaskOptions, texts: Sequence[str], label: str | None, **own: Any) -> Self:
        """The task with its columns and with the options that are given and that it asks for; ``own`` are its other fields."""
        asked = {f.name: getattr(options, f.name) for f in fields(cls) if f.name in cls.asks and f.name not in own}
        given = {name: value for name, value in asked.items() if value is not None}
        length = cls.length if options.max_length is None else options.max_length
        return cls(texts=tuple(texts), label=label, max_length=length, padding=options.padding, **given, **own)

    @classmethod
    def named(cls, options: TaskOptions, head: Labels, **own: Any) -> Self:
        """The task that the options name, for predictions of an adapter with this head."""
        texts = template.parse(options.pattern).columns if options.pattern else options.text or cls.usual
        return cls.made(options, texts, options.label, **own)

    def in_order_of(self, head: Labels) -> Self:
        """The task with its labels in the order of a head, not in the order of the data."""
        return self

    def fit(self, base: Any, tokenizer: Any) -> Self:
        """The task with what depends on the model and its tokenizer; an error if they cannot do it."""
        return self

    @property
    def reads_text(self) -> bool:
        """Whether the inputs are tokens; else the ``tokenizer`` of every method here is another reader (`training.readers`)."""
        return self.reader == "AutoTokenizer"

    @property
    def longest(self) -> str | None:
        """In words how long an example may be; longer ones are cut. None where nothing is cut."""
        return f"{self.max_length} tokens"

    def classes(self, split: Split) -> list[str]:
        """The class of each row, for samples with a number of rows of each."""
        raise error("E0620", f"`--shots` counts examples of each class, and {self.kind} has none",
                    help="use `--train-size`")  # fmt: skip

    # ------------------------------------------------------------ as plain data

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """The task of a record that `to_json` wrote, also an earlier one: a field that is new since has its default."""
        names = [f.name for f in fields(cls)]
        lacking = next((n for n in ("texts", "labels") if n in names and not record.get(n)), None)
        if lacking:
            raise error("E0615", f"the task's record is incomplete: it has no `{lacking}`", help="train again")
        known = json.dumps({n: record[n] for n in names if n in record})
        try:
            found = TypeAdapter(cls).validate_json(known, strict=True)
        except ValidationError as e:
            wrong = e.errors(include_url=False)[0]
            place = ".".join(map(str, wrong["loc"]))
            raise error("E0615", f"the task's record is damaged: `{place}` is {repr(wrong['input'])[:80]}: {wrong['msg'].lower()}",
                        help="train again") from None  # fmt: skip
        wrong_value = found.damage()
        if wrong_value is not None:
            raise error("E0615", f"the task's record is damaged: {wrong_value}", help="train again")
        return found

    def damage(self) -> str | None:
        """What is wrong with a record whose values all have the right type; None if nothing is."""
        return None

    # ------------------------------------------------------------ the model

    @property
    def metric(self) -> tuple[str, bool]:
        """The metric that chooses the best checkpoint, and whether more is better."""
        return "loss", False

    def model_options(self) -> dict[str, Any]:
        """What is set in the model's configuration."""
        return {}

    @classmethod
    def auto_for(cls, base: Any) -> str:
        """The class of transformers that is loaded for a model of this configuration."""
        return cls.auto

    @property
    def loss_function(self) -> LossFunction | None:
        """The loss, where it is not the model's own."""
        return None

    def weight(self, batch: Mapping[str, torch.Tensor], prompted: bool = False) -> int:
        """How many examples or tokens the loss of a batch averages. ``prompted``: the method puts rows before the tokens."""
        labels = batch.get("labels")
        if labels is not None and labels.dim() > 1 and not labels.is_floating_point():
            return int((labels != IGNORED).sum())
        return len(next(iter(batch.values())))

    def in_training(self) -> Self:
        """The task as it is evaluated while training goes on: without what takes long."""
        return self

    def for_training(self, encoded: Encoded) -> Encoded:
        """The examples for training, where they differ from those for evaluation."""
        return encoded

    @classmethod
    def check_model(cls, name: str, model: Any) -> None:
        """Refuse a model called ``name`` that loads for this task but is not made for it."""

    def try_out(self, model: Any, encoded: Encoded, tokenizer: Any) -> None:
        """Refuse a model that cannot read what its reader makes; tokens are checked when they are made."""

    @property
    def pseudo_tokens(self) -> int:
        """How many of the tokens of each example are pseudo-tokens, which a method fills."""
        return 0

    @property
    def label_words(self) -> Sequence[str] | None:
        """The words of the classes, where the model's configuration does not say them."""
        return None

    def check_plan(self, plan: Any) -> None:
        """Refuse a method that this task would train wrongly."""
        declared = next((i.name for i in plan.inputs if not i.marks), None)
        if declared is not None:
            raise error("E0648", f"`{plan.method.name}` reads the argument `{declared}` of the forward pass, and a run gives texts only",
                        help=f"train it in a loop of your own, with `model(**batch, {declared}=…)`, or choose a method without `input`")  # fmt: skip
        filled = next((i.count for i in plan.inputs if i.marks), 0)
        given, name, pattern = self.pseudo_tokens, plan.method.name, getattr(self, "pattern", None)
        if given and not filled:
            raise error("E0647", f"the pattern has {given} pseudo-tokens, and `{name}` fills none",
                        help="leave `{prompt:…}` out, or choose a method whose composition fills, such as one of P-tuning")  # fmt: skip
        if filled and not given:
            raise error("E0647", f"`{name}` fills the pseudo-tokens of a pattern, and "
                        + ("this pattern has none" if pattern else f"this {self.kind} has no pattern"),
                        help=f'`--pattern "{{prompt:{filled}}} {pattern or "{text}"}"` (for sequence-classification '
                        "and pet), or choose a method that puts its rows before the tokens")  # fmt: skip
        if given != filled:
            raise error("E0647", f"the pattern has {given} pseudo-tokens, and `{name}` makes {filled} for it",
                        help="give the method as many (`--set`), or write others into the pattern")  # fmt: skip

    @property
    def table(self) -> tuple[str, ...]:
        """The columns of a table of predictions; without any, predictions are printed as lines of text."""
        return ()

    # ------------------------------------------------------------ encoding

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns that a prediction needs."""
        return self.texts

    def read_inputs(self, split: Split) -> list[Sequence[Any]]:
        """The values of the columns that a prediction needs, a sequence for each row."""
        columns = [reading.texts_of(split, reading.named(split, c, "text")) for c in self.inputs]
        return list(zip(*columns))

    def encode(self, split: Split, tokenizer: Any) -> Encoded:
        """A split with its answers. Columns are looked up again, as another file may lack them."""
        raise NotImplementedError

    def encode_inputs(self, inputs: Inputs, tokenizer: Any) -> Encoded:
        """Examples without answers, for predictions."""
        raise NotImplementedError

    def cut_of(self, inputs: Inputs, tokenizer: Any) -> int:
        """How many of the inputs of a prediction are longer than what is read of them."""
        return self.encode_inputs(inputs, tokenizer).truncated

    def length_of(self, example: Example) -> int:
        """How long an example is, so that a batch is made of examples of like length."""
        return len(example["input_ids"])

    def collate(self, examples: Sequence[Example], tokenizer: Any) -> Batch:
        """A padded batch."""
        raise NotImplementedError

    # ------------------------------------------------------------ scores and predictions

    def outputs(self, model: Any, batch: Batch, encoded: Encoded, chosen: Sequence[int]) -> list[Output]:
        """One output for each of the ``chosen`` examples, which ``batch`` holds. The model is in evaluation mode."""
        raise NotImplementedError

    def score(self, encoded: Encoded, outputs: Sequence[Output], tokenizer: Any) -> dict[str, float]:
        """Metrics from one output for each example, in their order: each is counted once."""
        raise NotImplementedError

    def predict(self, model: Any, inputs: Inputs, tokenizer: Any, how: Predicting) -> list[Answer]:
        """A record for each input, of plain values."""
        raise NotImplementedError


@dataclass(frozen=True)
class Predicting:
    """How predictions are made: examples in a batch, tokens of a generated answer, who is told of the progress.

    ``around`` is a block around the outputs of a batch, given the positions of its examples: their adapters, as it may be.
    Tasks that are not `by_example` do not ask for it.
    """

    batch_size: int = 64
    max_new_tokens: int | None = None
    tick: Tick | None = field(default=None, compare=False)
    around: Around | None = field(default=None, compare=False)


def pad(examples: Sequence[Example], tokenizer: Any, task: Task, leave: Sequence[str] = ("labels",)) -> dict[str, Any]:
    """Token ids and masks padded to the longest example, or to the task's maximum where outputs must not depend on the batch.

    At the right, whatever the tokenizer prefers: models with a table of positions count pads at the left as text.
    """
    inputs = [{k: v for k, v in e.items() if k not in leave} for e in examples]
    batch = tokenizer.pad(
        inputs, padding="max_length" if task.padding == "max_length" else True, max_length=task.max_length,
        padding_side="right", return_tensors="pt", verbose=False,
    )  # fmt: skip
    return dict(batch)


def tokenized(tokenizer: Any, room: int, *texts: Any, **how: Any) -> tuple[Any, list[bool]]:
    """The tokens of texts, at most ``room`` of each, and which texts were longer."""
    whole = tokenizer(*texts, **how, truncation=False, verbose=False)["input_ids"]
    found = tokenizer(*texts, **how, truncation=True, max_length=room, verbose=False)
    return found, [len(a) > len(b) for a, b in zip(whole, found["input_ids"])]


def rows_of(found: Mapping[str, Sequence[Any]]) -> list[Example]:
    """The result of a tokenizer as one dictionary for each text."""
    return [dict(zip(found, row)) for row in zip(*found.values())]


def spread(examples: Sequence[Example], batch: dict[str, Any], key: str = "labels", fill: int = IGNORED) -> Any:
    """A value for each token, at the places where the attention mask is 1."""
    import torch

    values = torch.full_like(batch["input_ids"], fill)
    values[batch["attention_mask"].bool()] = torch.tensor([t for e in examples for t in e[key]])
    return values


def need_offsets(tokenizer: Any, what: str) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise error("E0634", f"{what} needs to know where tokens are in the text, which this tokenizer ({type(tokenizer).__name__}) "
                    "does not tell", help="use a model with a fast tokenizer (a tokenizer.json)")  # fmt: skip
