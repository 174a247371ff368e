"""What is known of a row at a site without running it: each verdict with its reason and the place that decides it.

The facts come from the primitives' own rules (`primitives`, `infer`) and from the normal form (`meaning`); here they are
only read. What rows do to one another is `properties`. No method has a name here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..types.algebra import Atom, Term, add, scaled
from ..types.carried import carries, from_before
from ..types.draws import draw_of
from ..once import once
from ..types.rows import in_training
from ..types.selections import Chosen, late
from ..types.typed import Binding, TypedRow
from .fold import fold_form, is_decided
from ..types.initialisers import INITIALISERS
from ..types.inputs import changes_length
from ..ir import Row
from .meaning import RowMeaning, row_meaning
from .reader import CARRIED, reads
from ..types.primitives import entry_of
from ..sizes import Size
from ..report.texts import place
from ..syntax.printer import to_text
from .start import (
    FIRST_LAYER,
    at_start,
    called,
    calls_one_number,
    compares,
    may_cancel,
    multiplies_one_number,
    random_tensors,
    settled,
    undecided,
)
from ..syntax.nodes import NOWHERE, Apply, Choose, Index, Input, Later, Name, Number, Selection, Span, children, walk
from ..types.values import AFFINE, NumberType


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is found, why, and the text that decides it."""

    value: Literal["yes", "no", "unknown", "depends"]  # the last: on an argument, which the reason names
    reason: str
    span: Span = NOWHERE

    def to_json(self) -> dict[str, Any]:
        return {"value": self.value, "reason": self.reason, "at": place(self.span)}


def _out(row: Row) -> Span:
    """The line that binds the new h."""
    return row.compose[-1].span if row.compose and row.compose[-1].span.file else row.span


def _site(t: TypedRow) -> Span:
    """Where the row names the site."""
    named = (p.span for p in t.row.sites if p.span.file and str(p).endswith(t.site.name))
    return next(named, t.row.span)


@once
def causal(t: TypedRow) -> Verdict:
    """Whether position t of the edit sees no later position (for a model whose attention is causal)."""
    if t.out.future is not None and not _all_there(t):
        return _unless_it_cancels(
            t, Verdict("no", "this pools over the whole sequence, so every position sees the later ones", t.out.future)
        )
    if (choice := _chosen_late(t)) is not None:
        reason = (
            "which tokens are selected depends on the later ones"
            if choice.word == "since"
            else "the last tokens are others in a longer text"
        )
        return _unless_it_cancels(t, Verdict("no", reason, choice.span))
    if t.out.future is None and stands_behind(t):
        return Verdict("yes", "its rows stand behind the text, where no token sees them", t.out.chunk or t.row.span)
    if t.out.future is None and t.out.chunk is not None:
        return Verdict("yes", "the other positions that it reads are not later ones", t.out.chunk)
    return _apart_from_others(t, t.out.future)


def stands_behind(t: TypedRow) -> bool:
    """Whether the row puts rows behind the text. Of a causal model's tokens none sees them; what follows the last token, whichever
    that is in a text, is foretold from them."""
    return t.out.placed is not None and t.out.placed.word == "append"


def _drawn_anew(t: TypedRow) -> bool:
    """Whether a pass draws numbers for the edit, unless they come to nothing outside training."""
    return "chance" in t.out.reads and "chance" in called(row_meaning(t).out)


def _all_there(t: TypedRow) -> bool:
    """Whether the tokens of the site are an encoder's, which come at once."""
    return "encoder" in (t.stack, t.site.tokens)


def _chosen_late(t: TypedRow) -> Chosen | None:
    """The selection of tokens in which later tokens have a say, unless the row leaves h as it is."""
    choice = late(t.tokens)
    if choice is None or _all_there(t):
        return None
    edit = row_meaning(t)
    return choice if edit.out.products != edit.h.products else None


def _apart_from_others(t: TypedRow, read: Span | None) -> Verdict:
    if read is not None:
        return Verdict("yes", "the other positions that it reads are an encoder's, which are all there", read)
    return Verdict("yes", "nothing reads another position of the sequence", t.row.span)


def calls_at(row: Row, place: Span) -> list[Apply]:
    """The calls of a row that stand at a place, or have an argument there."""
    calls = (n for n in row.nodes if isinstance(n, Apply))
    return [n for n in calls if n.span == place or any(a.value.span == place for a in n.args)]


def _unless_it_cancels(t: TypedRow, verdict: Verdict, training: bool = False) -> Verdict:
    """The verdict on a call, unless its value may come to nothing: the normal form of the edit has no such call left, or it
    passes by what may be one number whatever it is given."""
    names = {n.function.id for n in calls_at(t.row, verdict.span) if isinstance(n.function, Name)}
    out = row_meaning(t, training).out
    if (names and not names & called(out)) or compares(out) or _levelled(t):
        what = "drops" if training else "reads of other positions"
        return Verdict("unknown", f"what this {what} may come to nothing", verdict.span)
    return verdict


def _at_some(t: TypedRow, verdict: Verdict) -> Verdict:
    """The verdict on what a row reads of other positions, where it changes only some tokens, which may not see it."""
    if verdict.value != "no" or not t.tokens:
        return verdict
    return Verdict("unknown", "it may not be seen at the tokens that are selected", verdict.span)


@once
def padding_invariant(t: TypedRow) -> Verdict:
    if t.out.padding is not None:
        return _at_some(t, _unless_it_cancels(t, Verdict("no", "pad positions take part here", t.out.padding)))
    return Verdict("yes", "pad positions are never read", t.row.span)


@once
def cache_consistent(t: TypedRow) -> Verdict:
    """Whether decoding with a cache equals one full pass: a step sees only its own chunk, so nothing may pool over it."""
    if _drawn_anew(t):
        return Verdict("no", "it differs from one forward pass to the next", t.row.span)
    if t.out.chunk is not None and not _all_there(t):
        reason = (
            "the rows stand behind the last token, and a step with a cache does not move them"
            if stands_behind(t)
            else "this reads other positions, and a step with a cache sees only its own chunk"
        )
        return _at_some(t, _unless_it_cancels(t, Verdict("no", reason, t.out.chunk)))
    if (choice := _chosen_late(t)) is not None:
        reason = "a step with a cache cannot change what was selected before, and the longer text selects other tokens"
        return _unless_it_cancels(t, Verdict("no", reason, choice.span))
    return _apart_from_others(t, t.out.chunk)


@once
def mergeable(t: TypedRow) -> Verdict:
    """Whether the edit can be absorbed by a linear map beside it: ``out`` affine in the input, at a site next to one."""
    row, site = t.row, t.site
    if _drawn_anew(t):
        return Verdict("no", "it differs from one forward pass to the next", row.span)
    if row.tokens:
        return Verdict("no", "it changes only some tokens", row.span)
    if changes_length(row):
        return Verdict("no", "it adds tokens", row.span)
    if t.out.placed is not None:
        return Verdict("no", "it replaces some tokens", row.span)
    if t.out.chunk is not None:
        return _unless_it_cancels(t, Verdict("no", "it reads other positions", t.out.chunk))
    if (handed := _handed_on(t)) is not None:
        return handed
    if t.out.degree > AFFINE:
        span = t.out.bends or row.span
        if _levelled(t):
            return Verdict("unknown", "shares sum to one, which may be all that is left of them", span)
        if _tied(t):
            return Verdict(
                "unknown", "a matrix that reads the input obeys equations of its own, by which it may cancel out", span
            )
        given = next((s.name for s in row.form if isinstance(s, Input) and s.span == span), None)
        if given is not None:
            return Verdict("no", f"it depends on `{given}`, which each call gives anew", span)
        if _degree(row_meaning(t).out) <= 1:
            return Verdict("unknown", "what is not affine in the input may come to nothing", span)
        return Verdict("no", "the output is not an affine function of the input", span)
    if site.is_weight and not site.has_weight:
        return Verdict("yes", f"it is `{site.name}` itself that is edited", _out(row))
    if site.has_weight:
        return Verdict("yes", "affine in the input of the projection, which absorbs it", _out(row))
    if site.into:
        # What a head reads may enter its map itself: that is known on a model.
        read = t.out.reads & reads(row_meaning(t).out)  # what cancels out is read by no map
        outside = sorted(read & {*dict(site.scope), *(("x",) if site.into != site.name else ())})
        for number in row.reads.intersection(site.numbers):
            return Verdict(
                "unknown", f"it reads `{number}`, which only the attention itself knows", _reading(row, number)
            )
        if not outside:
            end = "output" if site.side == "output" else "input"
            return Verdict("yes", f"affine in the {end} of `{site.into}`, which absorbs it", _out(row))
        return Verdict(
            "no", f"it reads `{outside[0]}`, which no linear map beside `{site.name}` reads", _reading(row, outside[0])
        )
    if site.side == "input" and site.cross:
        reason = f"only on a model is it known whether one linear map alone reads what enters `{site.name}`"
        return Verdict("unknown", reason, _site(t))  # the keys are made of another stack's tokens
    return Verdict("no", f"no linear map beside `{site.name}` could absorb it", _site(t))


def _handed_on(t: TypedRow) -> Verdict | None:
    """That the edit reads what is carried from layer to layer; None where it does not."""
    lines = (s for s in t.row.form if isinstance(s, Later) and t.out.reads & {*map(from_before, s.names)})
    if (line := next(lines, None)) is None:
        return None
    if not any(n.startswith(CARRIED) for n in reads(row_meaning(t).out)):
        return Verdict("unknown", "what it reads of other layers may come to nothing", line.span)
    if not _several(t.row.layers):
        return Verdict("unknown", "it may act in one layer alone, where it reads nothing of another", line.span)
    return Verdict("no", "it reads what other layers have carried to this one", line.span)


def _several(layers: Selection | None) -> bool:
    """Whether a row acts in more than one layer of a model that has some: as far as its selection tells that."""
    if layers is None or layers.word == "all":
        return True
    n = layers.values[0]
    return layers.word in ("first", "last") and isinstance(n, Number) and n.value > 1


def _degree(part: Any) -> float:
    """How often a term multiplies what a pass gives: 1 where it is affine in that; without end where it is called with anything
    that is not known to be linear."""
    if isinstance(part, Term):
        return max((sum(map(_degree, factors)) for factors, _ in part.products), default=0)
    if part.kind == "read":
        return 0 if part.parts[0] in ("W", "bias") else 1
    found = [_degree(p) for p in part.parts if isinstance(p, (Atom, Term))]
    if part.kind == "call" and len(part.parts) == 1:
        return math.inf  # something of another kind: what a trained adapter makes of the input
    if part.kind in ("chain", "times"):
        return sum(found)
    return math.inf if part.kind == "call" and any(found) else max(found, default=0)


def _levelled(t: TypedRow) -> bool:
    """Whether shares that sum to one are added up, or may meet a frozen tensor all of whose entries are one number: what they
    give may then be a number, whatever they are made of."""
    levels = any(
        x.frozen and x.start is not None and INITIALISERS[x.start.name].one_number and x.type.sizes for x in t.tensors
    )
    calls = [(n, e) for n in t.row.nodes if (e := entry_of(n)) is not None]
    shares = [n for n, e in calls if e.shares]
    totals = [n for n, e in calls if e.totals]
    return bool(shares) and (levels or any(n.args[0].value == s and _over(n, s) for n in totals for s in shares))


def _over(total: Apply, share: Apply) -> bool:
    """Whether a total is taken over what shares are shares of: over the tokens, those of entries are no number."""
    return set(share.args[1:]) <= set(total.args[1:]) if share.args[1:] else not total.args[1:]


def _tied(t: TypedRow) -> bool:
    """Whether entries that obey equations of their own read the input: a rotation by what is read, times its inverse."""
    return any(
        (e := entry_of(n)) is not None and e.tied and line.of(n).degree
        for line in t.bindings
        if line.expression is not None
        for n in walk(line.expression)
    )


def _reading(row: Row, name: str) -> Span:
    """Where a row reads a name of the scope; its insertion may say so in a word of its own."""
    found = (n.span for n in row.nodes if isinstance(n, Name) and n.id == name and n.span.file)
    return next(found, row.insert.span if row.insert is not None else row.span)


@once
def identity_at_start(t: TypedRow) -> Verdict:
    """Whether the first step starts from the pretrained function: ``out`` is ``h`` with every tensor at its start."""
    edit = row_meaning(t)
    start, h = at_start(edit.out, edit.tensors), at_start(edit.h, edit.tensors)
    if start.products == h.products:
        return _starts(t, edit)
    if carries(t.row):
        first: dict[Any, Any] = {**edit.tensors, FIRST_LAYER: None}
        if at_start(edit.out, first).products == at_start(edit.h, first).products:
            return Verdict(
                "unknown",
                "it is the identity at the first layer, and what is carried to the others decides",
                _out(t.row),
            )
    drawn = random_tensors(start, edit.tensors)
    told = settled(start, edit.tensors)
    if undecided(start, edit.tensors):
        return Verdict(
            "unknown", "an activation is asked for its value at a number, and it is an argument", _out(t.row)
        )
    if told and (drawn or any(edit.tensors[k].exact is not None or edit.tensors[k].start_value is None for k in told)):
        reason = (
            "what is drawn meets what starts as it is told, and may cancel out"
            if drawn
            else "nothing is drawn, and what the tensors start from may cancel out"
        )
        return Verdict("unknown", reason, _out(t.row))
    open_ = [edit.names[k] for k in drawn if not edit.tensors[k].start]
    if open_:
        return Verdict("unknown", f"how `{open_[0]}` starts is an argument that has no value", _declared(t, drawn[-1]))
    if drawn and calls_one_number(start, edit.tensors):
        return Verdict(
            "unknown",
            "what is drawn meets a module of the base that reads one number everywhere, and may cancel out",
            _out(t.row),
        )
    extra = add(start, scaled(h, Size.of(-1)))
    if drawn and multiplies_one_number(start, edit.tensors):
        return Verdict(
            "unknown", "what is drawn meets a matrix of one number everywhere, and may cancel out", _out(t.row)
        )
    if drawn and may_cancel(extra, drawn):
        return Verdict("unknown", "what is drawn obeys equations of its own, by which it may cancel out", _out(t.row))
    if drawn and compares(start):
        return Verdict("unknown", "what is drawn meets a comparison, which may be false everywhere", _out(t.row))
    given = [
        k
        for k in drawn
        if (begins := edit.tensors[k].start) is not None and begins.known is not None and begins.known.given
    ]
    if given:
        return Verdict(
            "unknown",
            f"`{edit.names[given[-1]]}` is a trained adapter's, and its numbers decide",
            _declared(t, given[-1]),
        )
    if drawn:
        name = edit.names[drawn[-1]]
        return Verdict(
            "no", f"`{name}` is drawn at random, and nothing after it starts at zero", _declared(t, drawn[-1])
        )
    if all(_known(a) for factors, _ in extra.products for a in factors):
        return Verdict("no", "the output is another function of the input from the start", _out(t.row))
    return Verdict("unknown", "what the edit is at the start is not known without numbers", _out(t.row))


def _known(part: Any) -> bool:
    """Whether a factor is made of what is read and of tensors, with nothing that the algebra does not look into."""
    if part.kind in ("read", "tensor", "unit"):
        return not any(isinstance(p, (Atom, Term)) for p in part.parts)
    return part.kind in ("chain", "times", "turned") and all(isinstance(p, Atom) and _known(p) for p in part.parts)


def _starts(t: TypedRow, edit: RowMeaning) -> Verdict:
    """The identity, with the tensor that makes it so: without its start it would be none."""
    for key, learned in edit.tensors.items():
        otherwise = {**edit.tensors, key: replace(learned, start=None, exact=None)}
        if at_start(edit.out, otherwise).products != at_start(edit.h, otherwise).products:
            own = next(x for x in t.tensors if x.label == key.split("/")[1])
            word = str(learned.start or to_text(own.declaration.start)).removesuffix("()")
            return Verdict("yes", f"`{edit.names[key]}` starts as {word}, so the output is `h`", _declared(t, key))
    return Verdict("yes", "what is added is zero at the start, and what multiplies is one", _out(t.row))


def _declared(t: TypedRow, key: Any) -> Span:
    """Where the tensor of that key is declared."""
    return next((x.declaration.span for x in t.tensors if x.label == key.split("/")[1]), t.row.span)


@once
def foldable(t: TypedRow) -> Verdict:
    """Whether learned tensors only make others, which can be computed once after training and stored in their place."""
    _, folds = fold_form(t)
    if not folds:
        choices = any(is_decided(n) for s in t.row.form for n in walk(s))
        left = ", and choices stay as they are" if choices else ""
        return Verdict("no", f"no line of the form computes anything from learned tensors alone{left}", t.row.span)
    names = sorted({n.id for f in folds for n in walk(f.value) if isinstance(n, Name)} & {x.name for x in t.tensors})
    made = f"{len(folds)} tensor{'s' * (len(folds) > 1)}"
    return Verdict(
        "yes",
        f"{', '.join(f'`{n}`' for n in names)} only make {made}, computed once after training",
        folds[0].value.span,
    )


@once
def batch_independent(t: TypedRow) -> Verdict:
    """Whether no example sees another: nothing is reduced over the examples of a batch."""
    if t.out.mixed is not None:
        return _unless_it_cancels(t, Verdict("no", "every example sees the others of its batch here", t.out.mixed))
    return Verdict("yes", "nothing is reduced over the batch", t.row.span)


@once
def deterministic(t: TypedRow) -> Verdict:
    """Whether training draws nothing at random in the edit (`drop`, `chance`)."""
    return next(_draws(t), Verdict("yes", "nothing is random in training", t.row.span))


def _draws(t: TypedRow) -> Iterator[Verdict]:
    """What is drawn in training on the way to ``out``, line by line."""
    for line in _read(in_training(t)):
        yield from _drawn(t, line, line.expression)


def _read(t: TypedRow) -> list[Binding]:
    """The lines that ``out`` reads, in order."""
    out: list[Binding] = []
    needed = {"out", "g"} if t.row.gate is not None else {"out"}
    for line in (*t.lines("insert"), *t.lines("form"), *t.lines("gate"), *t.lines("compose"))[::-1]:
        if line.expression is not None and line.name in needed:
            needed = (needed - {line.name}) | {n.id for n in walk(line.expression) if isinstance(n, Name)}
            out.append(line)
    return out[::-1]


def _drawn(t: TypedRow, line: Binding, e: Any) -> Iterator[Verdict]:
    entry = entry_of(e)
    match e:
        case Name("chance"):
            yield Verdict("no", "a number is drawn for each forward pass", e.span)
        case Index(Name(word)) if draw_of(e, t.values, t.axes) is not None:
            yield Verdict("no", f"`{word}` is drawn for each forward pass", e.span)
        case Choose(then, test, other):
            yield from _drawn(t, line, test)
            known = line.of(test).type
            taken = (
                (then, other)
                if not isinstance(known, NumberType) or known.value is None
                else (then if known.value else other,)
            )
            for branch in taken:
                yield from _drawn(t, line, branch)
        case Apply(_, (value, probability)) if entry is not None and entry.draws:
            yield from _drawn(t, line, value.value)
            if isinstance(line.of(value.value).type, NumberType):
                return  # a number is not dropped
            p = line.of(probability.value).type
            if not isinstance(p, NumberType) or p.value is None:
                asked = ", ".join(f"`{n.id}`" for n in walk(probability.value) if isinstance(n, Name))
                yield Verdict("depends", f"on {asked}: entries are dropped in training unless it is 0", e.span)
            elif p.value:
                yield _unless_it_cancels(
                    t, Verdict("no", "this drops entries at random in training", e.span), training=True
                )
        case _:
            for below in children(e):
                yield from _drawn(t, line, below)


#: Every verdict: its rule for a row at a site, and why trained copies of parameters never stand against it.
RULES: dict[str, tuple[Callable[[TypedRow], Verdict], str]] = {
    "identity at start": (identity_at_start, "trained copies of parameters start as the pretrained ones"),
    "mergeable": (mergeable, "trained copies of parameters merge by replacing them"),
    "causal": (causal, "trained parameters see no other position"),
    "cache-consistent": (cache_consistent, "trained parameters see no other position"),
    "padding-invariant": (padding_invariant, "pad positions are never read"),
    "batch-independent": (batch_independent, "trained parameters see one example at a time"),
    "foldable": (foldable, "trained copies of parameters are stored as they are"),
    "deterministic in training": (deterministic, "nothing is random in training"),
}
