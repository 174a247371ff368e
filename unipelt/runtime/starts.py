"""Starting values of an adapter's tensors, and the data that some of them need when a method is attached."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Union, runtime_checkable

import torch
from torch import nn

from ..anatomy.base import base_parameters
from ..anatomy.columns import taken
from ..anatomy.matrices import as_map, matrix
from ..anatomy.quantised import unreadable, values
from ..compiler.at_attach import data_needed, lines_of_starts
from ..compiler.evaluator import Context, bind, constants, evaluate
from ..compiler.initialise import start
from ..compiler.named import Named, spread
from ..compiler.plan import Plan, PlannedEdit, PlannedTensor, whole
from ..compiler.random import Source
from ..language.syntax.lines import names_in
from ..language.report.diagnostics import error
from ..language.sites import TensorType
from ..language.syntax.nodes import Let, Name, String, Tensor, rewrite
from ..language.syntax.printer import to_text
from ..language.types.primitives import entry_of
from ..language.types.values import Distribution
from .calibration import Batches, Key, key_of, measure
from .base_call import BaseCall
from .offload import value_of


@runtime_checkable
class Tokenizer(Protocol):
    """Gives the ids of a text: ``tokenizer(text, add_special_tokens=False)["input_ids"]``."""

    def __call__(self, text: str, /, **options: Any) -> Any: ...


LabelWords = Union[Sequence[str], Mapping[int, str]]


@dataclass(frozen=True)
class StartData:
    """What starts may need: a tokenizer, the words of the class labels, what batches of data have told, trained adapters."""

    tokenizer: Tokenizer | None = None
    labels: tuple[str, ...] = ()
    measured: Mapping[Key, torch.Tensor] = field(default_factory=dict)
    given: Mapping[str, torch.Tensor] = field(
        default_factory=dict
    )  # the values of trained adapters, by the tensors' names

    @staticmethod
    def of(model: nn.Module, plan: Plan, tokenizer: Tokenizer | None, label_words: LabelWords | None, batches: Batches, seed: int) -> StartData:  # fmt: skip
        """What a plan needs of what is given; what is missing is a `PeltError` that says so."""
        texts = StartData._of_texts(model, plan, tokenizer, label_words)
        return replace(texts, measured=measure(model, plan, batches, seed))

    @staticmethod
    def _of_texts(
        model: nn.Module, plan: Plan, tokenizer: Tokenizer | None, label_words: LabelWords | None
    ) -> StartData:
        """Those of a tokenizer and of words."""
        of_data = data_needed(plan.edits)
        needing = next((n for n in plan.needs if n not in of_data), None)
        if needing is not None and tokenizer is None:
            raise error("E0521", f"this method needs {needing}", help="pass tokenizer=…")
        wanted = [t.name for t in plan.tensors.values() if t.start is not None and t.start.name == "label_words"]
        if not wanted:
            return StartData(tokenizer)
        known = (
            plan.labels.id2label
            if plan.labels is not None
            else getattr(getattr(model, "config", None), "id2label", None)
        )
        words = label_words if label_words is not None else known or {}
        found = [words[k] for k in sorted(words)] if isinstance(words, Mapping) else list(words)
        if label_words is None and all(re.fullmatch(r"LABEL_\d+", str(w)) for w in found):
            raise error("E0730", f"`{wanted[0]}` starts from the words of the class labels, and none are known",
                        help='pass label_words=["bad", "good"], or labels=["bad", "good"]')  # fmt: skip
        if not found or not all(isinstance(w, str) and w.strip() for w in found):
            raise error("E0730", f"label words are texts, one for each class, not {found!r}"[:200])
        return StartData(tokenizer, tuple(found))


class Starts:
    """The starting values of a plan's tensors. What the lines before an exact start bind is worked out once at a site, whatever
    number of tensors read it; only the site that was asked for last is remembered.

    Without ``data`` values will follow, and these are zeros.
    """

    def __init__(self, model: nn.Module, planned: Plan, seed: int, data: StartData | None):
        self.model, self.planned, self.seed, self.data = model, planned, seed, data
        self.last: tuple[PlannedEdit, dict[str, torch.Tensor]] | None = None

    def of(self, t: PlannedTensor, e: PlannedEdit) -> torch.Tensor:
        """The starting value of a tensor of an edit: a draw in float32 (in int64 where it holds whole numbers), what is
        computed in that or the weight's own dtype, if longer."""
        if self.data is None:
            return torch.zeros(t.shape)
        if t.name in self.data.given:
            return self.data.given[t.name]
        if t.exact is None:
            return self._draw(t, e)
        if self.last is None or self.last[0] is not e:
            self.last = None  # what it holds is as large as a weight
            self.last = e, self._exact(e)
        return self.last[1][t.name]

    def _draw(self, t: PlannedTensor, e: PlannedEdit) -> torch.Tensor:
        def embeddings(d: Distribution, rows: int, g: Source) -> torch.Tensor:
            assert self.data is not None
            return _embeddings(self.model, d, rows, g, self.data) * (_scale(self.model) if e.site.scaled else 1.0)

        return start(t, self.seed, embeddings)

    def _exact(self, e: PlannedEdit) -> dict[str, torch.Tensor]:
        """The exact starts of an edit by the tensors' names, line by line."""
        needed = lines_of_starts(e)
        read = _map(self.model, needed, e)
        like = read["W"].data if read else _like(self.model, e)
        context = Context({**constants(self.planned.method.params, e.sizes, e.constants), **_shapes(e), **read}, e.sizes,
                          {n: BaseCall(self.model.get_submodule(v.module), v.columns) for n, v in e.site.bases.items()},
                          axes=e.lengths)  # fmt: skip
        found: dict[str, torch.Tensor] = {}
        wanted = {id(s) for s in needed}
        with torch.no_grad():
            for part, front in ((e.row.form, ""), (e.row.gate or (), "gate."), (e.row.compose, "")):
                inner = context if not front else replace(context, names=dict(context.names))
                for s in part:
                    if id(s) in wanted and isinstance(s, (Tensor, Let)):
                        self._line(s, front, e, inner, like, found)
        return found

    def _line(self, s: Tensor | Let, front: str, e: PlannedEdit, c: Context, like: torch.Tensor, found: dict[str, torch.Tensor]) -> None:  # fmt: skip
        found_of = self.data.measured if self.data is not None else {}
        if isinstance(s, Let):
            bind(measured(s, e, found_of, c, like), c)
            return
        t = self.planned.tensors[e.tensors[front + s.name]]
        if t.exact is None:
            drawn = self._draw(t, e)
            c.names[s.name] = Named(drawn.to(like.device if t.below is not None else like), t.axes)
            return
        value = evaluate(measured(t.exact, e, found_of, c, like), c)
        assert isinstance(value, Named)
        found[t.name] = spread(value, t.axes, len(t.sizes)).expand(t.shape).clone(memory_format=torch.contiguous_format)
        c.names[s.name] = Named(found[t.name], t.axes)


def _like(model: nn.Module, e: PlannedEdit) -> torch.Tensor:
    """A number of the type and at the place in which what an edit starts from is computed, if that is not a weight."""
    places = (model.get_submodule(e.site.view.module), model)  # other adapters there have no say
    own = next(
        (p for m in places for _, p in base_parameters(m) if p.is_floating_point() and p.device.type != "meta"),
        torch.zeros(()),
    )
    return torch.zeros((), dtype=at_least(own.dtype, torch.float32), device=own.device)


def measured(line: Any, e: PlannedEdit, found: Mapping[Key, torch.Tensor], c: Context, like: torch.Tensor) -> Any:
    """A line or an expression with names in place of what data have told, which the context gets."""

    def change(n: Any) -> Any:
        entry = entry_of(n)
        if entry is None or not entry.data:
            return n
        name = f":{to_text(n)}"
        c.names[name] = Named(found[key_of(e, n)].to(like))
        return Name(name)

    return rewrite(line, change)


def selecting_texts(model: nn.Module, plan: Plan, data: StartData) -> dict[str, tuple[int, ...]]:
    """The ids of the texts by which rows select tokens (`tokens since "…"`)."""
    found = {c.text for e in plan.edits for c in e.typing.tokens if c.text is not None}
    if found and data.tokenizer is None:
        raise error("E0521", f"this method needs the ids of the text {min(found)!r}", help="pass tokenizer=…")
    words: Any = model.get_input_embeddings() if found else None  # type: ignore[operator]
    return {text: tuple(_ids(text, data, words.num_embeddings)) for text in found}


def at_least(dtype: torch.dtype, other: torch.dtype) -> torch.dtype:
    """The one of two floating dtypes that has more bits, the first of two equally long ones."""
    return other if other.itemsize > dtype.itemsize else dtype


def _shapes(e: PlannedEdit) -> dict[str, Named]:
    """What enters the site, of which a start knows the sizes alone (`width(z)`)."""
    types = {n: v.type for n in ("z", "x", "h") if (v := e.typing.values.get(n)) is not None}
    return {n: Named(torch.zeros([whole(s) for s in t.sizes])) for n, t in types.items() if isinstance(t, TensorType)}


def _map(model: nn.Module, exact: Sequence[Any], e: PlannedEdit) -> dict[str, Any]:
    """``W`` [d_in, d_out] and ``bias`` [d_out] of the projection at a site, in 32 bits at least, where an exact start reads them; the
    parameter that a site is."""
    if not names_in(*exact) & {"W", "bias"}:
        return {}
    view = e.site.view
    module, columns = model.get_submodule(view.module), view.columns
    name = e.site.parameter if e.site.kind.is_weight else "weight"
    if isinstance(getattr(module, name, None), torch.Tensor):
        own = values(module, name, value_of(module, name)).detach()
        W = view.turn(own) if view.parameter else as_map(module, own)
    elif name == "weight":
        W = matrix(module)
    else:
        raise unreadable(module, name)
    W = W.to(at_least(W.dtype, torch.float32))
    if view.parameter:
        return {"W": Named(taken(W, columns), tuple(e.site.kind.own_axes))}
    bias = (
        value_of(module, "bias").detach().to(W.dtype)
        if getattr(module, "bias", None) is not None
        else W.new_zeros(W.shape[-1])
    )
    return {"W": Named(taken(W, columns)), "bias": Named(taken(bias, columns))}


def _embeddings(model: nn.Module, d: Distribution, rows: int, g: Source, data: StartData) -> torch.Tensor:
    """Word embeddings [rows, d]: of a text, of the class labels' words (each the mean of its tokens), of sampled tokens."""
    words: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
    table = values(words, "weight", value_of(words, "weight")).detach().float().cpu()
    if d.args and isinstance(d.args[0], String):
        found = _ids(d.args[0].value, data, len(table))
        return table[torch.tensor((found * (rows // len(found) + 1))[:rows])]
    meant = (
        [table[torch.tensor(_ids(w, data, len(table)))].mean(0) for w in data.labels[:rows]]
        if d.name == "label_words"
        else []
    )
    sampled = table[g.integers((rows - len(meant),), table.shape[0])]
    return torch.cat([torch.stack(meant), sampled]) if meant else sampled


@torch.no_grad()
def _scale(model: nn.Module) -> float:
    """By what the module of the words multiplies its table's entries: rows that start from words stand behind that."""
    words: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
    table = values(words, "weight", value_of(words, "weight")).detach().float()
    longest = table.norm(dim=-1).argmax()
    yielded = words.forward(longest[None].to(words.weight.device))  # type: ignore[union-attr, arg-type]
    return float(yielded.float().norm().cpu() / table[longest].norm().cpu())


def _ids(text: str, data: StartData, words: int) -> list[int]:
    """A text's tokens, of which the model has an embedding each."""
    assert data.tokenizer is not None
    given = data.tokenizer(text, add_special_tokens=False)
    found = (
        list(given["input_ids"])
        if isinstance(given, Mapping) and isinstance(given.get("input_ids"), Sequence)
        else None
    )
    if found is None or not all(isinstance(i, int) and 0 <= i < words for i in found):
        raise error("E0522", f"the tokenizer has other ids for the text {text!r} than the model's, which are whole numbers below {words}",
                    help="pass the model's own tokenizer")  # fmt: skip
    if not found:
        raise error("E0522", f"the text {text!r} has no tokens", help="give a text of words that the tokenizer knows")
    return found
