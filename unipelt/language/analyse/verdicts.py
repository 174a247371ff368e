"""What is known of a method without running it: the verdicts over its rows, and whether their order counts.

The rules for one row are in `rules`. No method has a name here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..types.algebra import Atom, Term, TooLarge, atoms
from ..check.methods import anywhere, open_paths, sites_of
from .method import analyse
from ..types.inputs import changes_length
from ..types.members import averaged, read_of
from ..ir import Method, Row
from ..once import once
from .meaning import meaning, row_meaning
from ..syntax.printer import to_text
from ..types.primitives import PRIMITIVES, entry_of
from ..types.typed import TypedRow
from .row_verdicts import RULES, Verdict, calls_at
from ..report.diagnostics import PeltError
from ..sites import signature, site_name
from ..syntax.nodes import NOWHERE, Path, Span
from ..types.values import CONSTANT, Placed

#: Pairs of unlike rows that are compared before giving up: half a second, and more than the rows of any real method make.
MOST_PAIRS = 100
#: What holds of a method where it holds of one of its rows.
_SOME = ("foldable",)
#: What is seen of a row in the model's output, so that another row may hide it.
_SEEN = ("causal", "padding-invariant", "cache-consistent", "deterministic in training")


def judged(typings: Sequence[TypedRow], otherwise: Span = NOWHERE) -> dict[str, Verdict]:
    """Every verdict over some rows: the first row that decides against it, else yes. ``otherwise`` is the place of
    trained copies, which decide where there are no rows."""
    typings = list(dict.fromkeys(typings))  # layers that are alike are one
    out = {}
    for name, (rule, why) in RULES.items():
        found = [_of_members(name, _bounded(rule, t), t) for t in typings]
        if name in _SEEN:
            found = [
                _beside(v, t.row, [o for o in typings if o.row is not t.row]) if v.value == "no" else v
                for t, v in zip(typings, found)
            ]
        out[name] = _all(
            found, [t.row.name for t in typings], name, Verdict("no" if name in _SOME else "yes", why, otherwise)
        )
    return out


def _bounded(rule: Callable[[TypedRow], Verdict], t: TypedRow) -> Verdict:
    """The verdict on a row, which is unknown where its normal form is too large."""
    try:
        return rule(t)
    except TooLarge as e:
        return Verdict("unknown", e.reason, t.row.span)


#: Verdicts that adapters which a row reads do not change: they act as outside training, and nothing of them is learned.
_OWN = ("deterministic in training",)


def _of_members(name: str, verdict: Verdict, t: TypedRow) -> Verdict:
    """The verdict on a row that reads adapters, which its own lines alone do not decide unless they decide against it."""
    read = read_of(t.row.parts, t.params)
    if not read or name in _OWN or (verdict.value == "no" and name not in _SOME and name != "identity at start"):
        return verdict
    if name in _SOME and (verdict.value == "yes" or not averaged(t.row.parts, t.params)):
        return verdict  # without weights the members' tensors are as they were saved, and nothing is made of them
    reason = f"on `{to_text(read[0].value)}`: what its members do is known where the method is attached"
    return Verdict("depends", reason, read[0].span)


def _beside(verdict: Verdict, row: Row, others: Sequence[TypedRow]) -> Verdict:
    """A "no" of a row, unless what the other rows do may leave nothing of it to be seen."""
    picks = verdict.span in [c.span for c in row.tokens or ()] or any(
        (e := entry_of(n)) is not None and e.picks for n in calls_at(row, verdict.span)
    )
    for o in others:
        if not o.site.is_weight and _passes_nothing_on(o):
            return Verdict(
                "unknown", f"`{o.row.name}` passes on nothing of what it is given, which may hide this", verdict.span
            )
        if picks and changes_length(o.row):
            return Verdict(
                "unknown",
                f"`{o.row.name}` adds tokens, and the one that is picked here may be one of them",
                verdict.span,
            )
    return verdict


def _passes_nothing_on(t: TypedRow) -> bool:
    """Whether the new ``h`` of a row reads nothing of what it is given, or only to multiply it by 0."""
    try:
        return (
            t.out.degree == CONSTANT
            or not t.row.tokens
            and not any(a.kind == "read" for a in atoms(row_meaning(t).out))
        )
    except TooLarge:
        return False


@once
def verdicts(method: Method) -> dict[str, Verdict]:
    """The method's verdicts. Checks the method."""
    typings = analyse(method).rows
    otherwise = method.trains[0].span if method.trains else method.span
    open_rows = [r for r in method.rows if open_paths(r, method.params)]
    found = _wherever(method, typings, open_rows, otherwise) if open_rows else judged(typings, otherwise)
    if len(method.rows) > 1:
        found["rows commute"] = rows_commute(method, typings)
    return found


def _wherever(method: Method, typings: Sequence[TypedRow], rows: Sequence[Row], otherwise: Span) -> dict[str, Verdict]:
    """The verdicts that are the same whatever sites an argument names; the others are unknown without it."""
    first = open_paths(rows[0], method.params)[0]
    unknown = Verdict("unknown", f"this is not known without `{first}`, which has no value", first.span)
    if len(rows) > 1 or len(open_paths(rows[0], method.params)) > 1:
        return dict.fromkeys(RULES, unknown)  # they might be at any two sites
    at_each = [judged([*typings, t], otherwise) for t in anywhere(method, rows[0])[0]]
    return {name: at_each[0][name] if len({v[name].value for v in at_each}) == 1 else unknown for name in RULES}


def rows_commute(method: Method, typings: Sequence[TypedRow]) -> Verdict:
    """Whether the order of rows that meet at a site makes no difference; where it does, the text's order counts."""
    placed = {t.row.name: t.out.placed for t in typings}
    sites = [{str(p) for p in sites_of(r.sites, method.params)} for r in method.rows]
    alike = [str(replace(method, rows=(replace(r, name="_"),), trains=(), requires=())) for r in method.rows]
    seen: set[tuple[str, str]] = set()  # pairs of rows whose like have been compared
    unknown: Verdict | None = None
    for row in method.rows:
        for path in open_paths(row, method.params):
            return Verdict(
                "unknown",
                f"where `{row.name}` meets other rows is not known without `{path}`, which has no value",
                path.span,
            )
    for i, a in enumerate(method.rows):
        for j, b in enumerate(method.rows[i + 1 :], i + 1):
            if not sites[i] & sites[j] and {_without_words(s) for s in sites[i]} & {
                _without_words(s) for s in sites[j]
            }:
                unknown = unknown or Verdict("unknown", f"`{a.name}` and `{b.name}` act at one place where a model has nothing "
                                             "between its words and `embed`", b.span)  # fmt: skip
            if any(_open(s) for s in sites[i] ^ sites[j]):
                unknown = unknown or Verdict("unknown", f"whether `{a.name}` and `{b.name}` meet at a module is not known without a model", b.span)  # fmt: skip
            meeting = _meeting(sites[i], sites[j])
            if not meeting or (alike[i], alike[j]) in seen:
                continue
            if len(seen) == MOST_PAIRS:
                return Verdict("unknown", f"more than {MOST_PAIRS} pairs of rows meet at a site", method.span)
            seen.add((alike[i], alike[j]))
            try:
                one, other = (
                    _left(replace(method, rows=pair, trains=())) for pair in (_at(meeting, a, b), _at(meeting, b, a))
                )
            except TooLarge as e:
                unknown = unknown or Verdict("unknown", e.reason, b.span)
                continue
            except PeltError as e:  # with the values that its arguments have by themselves it is no method
                unknown = unknown or Verdict("unknown", e.diagnostics[0].message, b.span)
                continue
            if one == other or _apart(placed[a.name], placed[b.name]):
                continue
            if a.layers == b.layers and a.tokens == b.tokens and not any(_loose(out) for _, out in (*one, *other)):
                return Verdict(
                    "no", f"`{a.name}` acts before `{b.name}` at a site of both, and the other order differs", b.span
                )
            unknown = unknown or Verdict("unknown", f"whether `{a.name}` and `{b.name}` differ in the other order is not known "
                                         "without numbers", b.span)  # fmt: skip
    return unknown or Verdict("yes", "rows that meet at a site give the same in either order", method.span)


def _open(site: str) -> bool:
    """Whether a model says which modules a site is."""
    found = signature(site_name(site)[1])
    return found is not None and found.by_path


def _without_words(site: str) -> str:
    """`embed` for `embed.words`: some models have nothing between the two."""
    return site.removesuffix(".words")


def _meeting(a: set[str], b: set[str]) -> set[str]:
    """The sites, without their stacks, at which two rows act in a stack of both."""
    pairs = [(site_name(one), site_name(other)) for one in a for other in b]
    return {
        at
        for (stack, at), (other, there) in pairs
        if at == there and (stack is None or other is None or stack == other)
    }


def _at(sites: set[str], *rows: Row) -> tuple[Row, ...]:
    """The rows at some sites, in every layer and stack: they then meet as they do where both are."""
    paths = tuple(Path(tuple(s.split("."))) for s in sorted(sites))
    return tuple(replace(r, layers=None, sites=paths) for r in rows)


def _left(method: Method) -> list[tuple[tuple[str, str, int], Term]]:
    """What each site is left with."""
    return [((s.site, s.layers, s.edit), s.out) for s in meaning(method).sites]


def _loose(part: Any) -> bool:
    """Whether a term calls what is linear (a mean, a range): the algebra does not look into it, so different forms may be equal."""
    if isinstance(part, Term):
        return any(_loose(f) for factors, _ in part.products for f in factors)
    if not isinstance(part, Atom):
        return False
    name = part.parts[0] if part.kind == "call" else ""
    entry = PRIMITIVES.get(name)
    linear = entry is not None and (entry.linear or entry.bilinear or entry.tied or name == "concat")
    return linear or str(name).startswith("[") or name == "if" or any(_loose(p) for p in part.parts)


def _apart(a: Placed | None, b: Placed | None) -> bool:
    """Whether two rows of the table put theirs at different places among the tokens, so that neither meets the other's."""
    if a is None or b is None:
        return False
    known = a.after.number is not None and b.after.number is not None
    return a.word != b.word or (known and a.after != b.after)


def _all(found: Sequence[Verdict], rows: Sequence[str], name: str, otherwise: Verdict) -> Verdict:
    """The verdict over all rows: one that decides comes before one that does not know. Of several rows the reason names its own."""
    order = ("yes", "depends", "unknown", "no") if name in _SOME else ("no", "depends", "unknown", "yes")
    if not found:
        return otherwise
    first = min(found, key=lambda v: order.index(v.value))
    alike = [(row, v) for row, v in zip(rows, found) if v.value == first.value]
    if len(set(rows)) == 1 or {(v.value, v.reason) for v in found} == {(first.value, first.reason)}:
        return first
    if first.value != order[-1]:  # one row decides
        return replace(first, reason=f"`{next(row for row, v in alike if v is first)}`: {first.reason}")
    reasons: dict[str, dict[str, None]] = {}
    for row, v in alike:
        reasons.setdefault(v.reason, {})[row] = None
    return replace(
        first, reason="; ".join(f"{', '.join(f'`{row}`' for row in of)}: {reason}" for reason, of in reasons.items())
    )
