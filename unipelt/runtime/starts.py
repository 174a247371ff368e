"""Starting values of an adapter's tensors, and the data that some of them need when a method is attached."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Union, runtime_checkable

import torch
from torch import nn

from ..anatomy.columns import taken
from ..anatomy.quantised import as_map, unreadable, values
from ..compiler.evaluator import Context, constants, evaluate
from ..compiler.initialise import draw, generator
from ..compiler.named import Named, spread
from ..compiler.plan import Plan, PlannedEdit, PlannedTensor, whole
from ..language.types.declared import weights_read
from ..language.report.diagnostics import error
from ..language.sites import TensorType
from ..language.syntax.lines import lines_for
from ..language.syntax.nodes import Let, String, Tensor
from ..language.types.values import Distribution
from .edits import BaseCall
from .offload import value_of


@runtime_checkable
class Tokenizer(Protocol):
    """Gives the ids of a text: ``tokenizer(text, add_special_tokens=False)["input_ids"]``."""

    def __call__(self, text: str, /, **options: Any) -> Any: ...


LabelWords = Union[Sequence[str], Mapping[int, str]]


@dataclass(frozen=True)
class StartData:
    """What starts may need: a tokenizer, the words of the class labels."""

    tokenizer: Tokenizer | None = None
    labels: tuple[str, ...] = ()

    @staticmethod
    def of(model: nn.Module, plan: Plan, tokenizer: Tokenizer | None, label_words: LabelWords | None) -> StartData:
        """What a plan needs of what is given; what is missing is a `PeltError` that says so."""
        if plan.needs and tokenizer is None:
            raise error("E0521", f"this method needs {plan.needs[0]}", help="pass tokenizer=…")
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


def start(
    model: nn.Module, t: PlannedTensor, e: PlannedEdit, seed: int, data: StartData, planned: Plan
) -> torch.Tensor:  # fmt: skip
    """The starting value of a tensor, in float32, or in int64 where it holds whole numbers."""
    if t.exact is None:
        assert t.start is not None

        def embeddings(d: Distribution, rows: int, g: torch.Generator) -> torch.Tensor:
            return _embeddings(model, d, rows, g, data) * (_scale(model) if e.site.scaled else 1.0)

        return draw(t.start, t.copies, t.sizes, generator(seed, t.name), embeddings)
    own = next(x for x in e.typing.tensors if e.tensors[x.label] == t.name)
    part = next(b for b in (e.row.form, e.row.compose, e.row.gate or ()) if own.declaration in b)
    before = [*(() if part is e.row.form else e.row.form), *part[: part.index(own.declaration)]]
    needed = [s for s in lines_for(before, t.exact) if isinstance(s, (Tensor, Let))]
    context = Context({**constants(planned.method.params, e.sizes, e.constants), **_shapes(e), **_map(model, (t.exact, *needed), e)}, e.sizes,
                      {n: BaseCall(model.get_submodule(v.module), v.columns) for n, v in e.site.bases.items()},
                      axes=e.lengths)  # fmt: skip
    with torch.no_grad():
        for s in needed:
            if isinstance(s, Tensor):
                label = s.name if part is not e.row.gate or s not in part else f"gate.{s.name}"
                first = planned.tensors[e.tensors[label]]
                context.names[s.name] = Named(start(model, first, e, seed, data, planned), first.axes)
            else:
                context.names[s.names[0]] = evaluate(s.value, context)
        value = evaluate(t.exact, context)
    assert isinstance(value, Named)
    return spread(value, t.axes, len(t.sizes)).expand(t.shape).clone()


def selecting_texts(model: nn.Module, plan: Plan, data: StartData) -> dict[str, tuple[int, ...]]:
    """The ids of the texts by which rows select tokens (`tokens since "…"`)."""
    found = {c.text for e in plan.edits for c in e.typing.tokens if c.text is not None}
    words: Any = model.get_input_embeddings() if found else None  # type: ignore[operator]
    return {text: tuple(_ids(text, data, words.num_embeddings)) for text in found}


def _shapes(e: PlannedEdit) -> dict[str, Named]:
    """What enters the site, of which a start knows the sizes alone (`width(z)`)."""
    types = {n: v.type for n in ("z", "x", "h") if (v := e.typing.values.get(n)) is not None}
    return {n: Named(torch.zeros([whole(s) for s in t.sizes])) for n, t in types.items() if isinstance(t, TensorType)}


def _map(model: nn.Module, exact: Sequence[Any], e: PlannedEdit) -> dict[str, Any]:
    """``W`` [d_in, d_out] and ``bias`` [d_out] of the projection at a site, in float32, where an exact start reads them."""
    if not any(weights_read(part) for part in exact):
        return {}
    module, columns = model.get_submodule(e.site.view.module), e.site.view.columns
    if not isinstance(getattr(module, "weight", None), torch.Tensor):
        raise unreadable(module, "weight")
    W = as_map(module, values(module, "weight", value_of(module, "weight")).detach().float())
    bias = (
        value_of(module, "bias").detach().float()
        if getattr(module, "bias", None) is not None
        else W.new_zeros(W.shape[-1])
    )
    return {"W": Named(taken(W, columns)), "bias": Named(taken(bias, columns))}


def _embeddings(model: nn.Module, d: Distribution, rows: int, g: torch.Generator, data: StartData) -> torch.Tensor:
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
    sampled = table[torch.randint(table.shape[0], (rows - len(meant),), generator=g)]
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
