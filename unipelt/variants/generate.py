"""Enumerating a space: what does not type-check or breaks a requirement is dropped with its reason, what means the same
is kept once, and each survivor gets a name made of its columns and a sentence that says what it is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..language.syntax import nodes as S
from ..language.analyse.canonical import canonical
from ..language.types.arguments import parameters
from ..language.report.diagnostics import Diagnostic, PeltError, error
from ..language.types.infer import Inference
from ..language.ir import Method
from ..language.loading import resolve
from ..language.analyse.meaning import meaning
from ..language.types.rows import require
from ..language.sites import SIZES
from ..language.sizes import Size
from ..language.types.values import NumberType, Value
from .recognise import Recognised, recognise
from ..language.check.space import Space, drawn

#: The most members that are enumerated. A larger space needs a sample.
MAX_MEMBERS = 100_000
#: A further test of a member, such as a plan on a model. It raises `PeltError`, or returns the method to keep.
Test = Callable[[Method], Method]


@dataclass(frozen=True, slots=True)
class Member:
    """A survivor: its number in the space, its name, definition and method, and what it was recognised as."""

    index: int
    name: str
    definition: S.MethodDef
    method: Method
    columns: tuple[tuple[str, str], ...]
    recognised: Recognised

    @property
    def sentence(self) -> str:
        return self.recognised.sentence


@dataclass(frozen=True, slots=True)
class Drop:
    """A member that is no method, with its first mistake."""

    index: int
    columns: tuple[tuple[str, str], ...]
    diagnostic: Diagnostic


@dataclass(frozen=True, slots=True)
class Twin:
    """A member that means the same as an earlier one."""

    index: int
    columns: tuple[tuple[str, str], ...]
    of: str


@dataclass
class Generated:
    """A space after enumeration. ``tried`` of its ``size`` members were tried."""

    size: int
    tried: int = 0
    members: list[Member] = field(default_factory=list)
    dropped: list[Drop] = field(default_factory=list)
    twins: list[Twin] = field(default_factory=list)

    def reasons(self) -> list[tuple[str, int, Drop]]:
        """Why members were dropped: (reason, how many, one of them), the commonest first."""
        first: dict[str, Drop] = {}
        count: Counter[str] = Counter()
        for d in self.dropped:
            reason = f"{d.diagnostic.code}: {d.diagnostic.message}"
            first.setdefault(reason, d)
            count[reason] += 1
        return [(reason, n, first[reason]) for reason, n in count.most_common()]

    def to_json(self) -> dict[str, Any]:
        return {
            "size": self.size, "tried": self.tried, "kept": len(self.members), "dropped": len(self.dropped),
            "duplicates": len(self.twins),
            "members": [{"name": m.name, "index": m.index, "columns": dict(m.columns), "is": m.sentence} for m in self.members],
            "reasons": [{"reason": r, "count": n, "example": dict(d.columns)} for r, n, d in self.reasons()],
            "duplicate_of": [{"columns": dict(t.columns), "of": t.of} for t in self.twins],
        }  # fmt: skip


def _outcome(
    space: Space, index: int, test: Test | None, seen: dict[Any, str], names: set[str]
) -> Member | Drop | Twin:
    """What becomes of a member. ``seen`` (what has been met, by `key_of`) and ``names`` (those taken) are filled."""
    columns, brief = space.columns(index), space.columns(index, brief=True)
    name = _free(_name(space.definition.name, brief), names)
    definition = space.member(index, name)
    try:
        method = resolve(definition, space.names)
        if test is not None:
            method = test(method)  # may change the arguments that the requirements read
        _require(method)
        key = key_of(method)
    except PeltError as e:
        return Drop(index, brief, e.diagnostics[0])
    if key in seen:
        return Twin(index, columns, seen[key])
    seen[key] = name
    names.add(name)
    found = recognise(method)
    return Member(index, name, _documented(definition, method, found), method, columns, found)


def key_of(method: Method) -> Any:
    """A key that two methods share if they mean the same at their arguments."""
    return tuple(canonical(meaning(method)).lines())


def _require(method: Method) -> None:
    """Check the requirements that depend on the arguments alone; a share of parameters needs a model."""
    inf = Inference(parameters(method.params, True), {n: Size.of(n) for n in SIZES})
    inf.names["params"] = Value(NumberType())
    for r in method.requires:
        require(r, inf)
    if inf.problems:
        raise PeltError(inf.problems)


def generate(
    *spaces: Space, sample: int | None = None, seed: int = 0, test: Test | None = None, origin: Method | None = None,
    tick: Callable[[int], None] | None = None,
) -> Generated:  # fmt: skip
    """Enumerates one or several spaces as one, or a sample of them. Deterministic for a seed.

    What means the same as ``origin`` (the method that the spaces were made from) is no member.
    """
    out = Generated(sum(s.size for s in spaces))
    if min(out.size, sample or out.size) > MAX_MEMBERS:
        raise error("E0791", f"this space has {out.size:,} members, and at most {MAX_MEMBERS:,} are looked at" if out.size < 10**15
                    else f"this space has about 10^{len(str(out.size)) - 1} members, and at most {MAX_MEMBERS:,} are looked at",
                    help="draw some at random with `--sample N` (`sample=N`), or leave alternatives out")  # fmt: skip
    seen: dict[Any, str] = {key_of(origin): origin.name} if origin is not None else {}
    names: set[str] = set()
    for space, index in _members(spaces, sample, seed):
        found = _outcome(space, index, test, seen, names)
        out.tried += 1
        if isinstance(found, Member):
            out.members.append(found)
        elif isinstance(found, Drop):
            out.dropped.append(found)
        else:
            out.twins.append(found)
        if tick:
            tick(out.tried)
    return out


def _members(spaces: Sequence[Space], sample: int | None, seed: int) -> Iterator[tuple[Space, int]]:
    """The chosen members of all spaces, each as its space and its number there."""
    for n in drawn(sum(s.size for s in spaces), sample, seed):
        for space in spaces:
            if n < space.size:
                yield space, n
                break
            n -= space.size


def _documented(definition: S.MethodDef, method: Method, found: Recognised) -> S.MethodDef:
    """The definition with its sentence as docstring, its arguments as they were bound, unused parameters left out."""
    bound = {p.name: p.default for p in method.params}
    params = [replace(p, default=bound.get(p.name, p.default)) for p in definition.params]
    used = {n.id for n in S.walk(replace(definition, params=())) if isinstance(n, S.Name)}
    used |= {p.parts[0] for p in S.walk(definition) if isinstance(p, S.Path)}
    needed = set(used)
    for p in reversed(params):
        if p.name in needed and p.default is not None:
            needed |= {n.id for n in S.walk(p.default) if isinstance(n, S.Name)}
    sentence = found.sentence[:1].upper() + found.sentence[1:] + "."
    return replace(definition, params=tuple(p for p in params if p.name in needed), doc=sentence)


# ---------------------------------------------------------------- names


def _name(space: str, columns: tuple[tuple[str, str], ...]) -> str:
    words = [_word(what, text) for what, text in columns]
    name = "_".join(w for w in words if w) or space
    return name if name[0].isalpha() else f"m_{name}"


def _word(what: str, text: str) -> str:
    """``attn.heads`` → attn_heads, ``scaled(4.0)`` → scaled_4, ``bottleneck(r)`` → bottleneck; an argument as r16."""
    text = re.sub(r"\.0\b", "", text)
    if what in ("form", "compose", "insert"):
        called = re.fullmatch(r"\w+\(.*\)|[\w.]+", text)
        head, _, inner = text.partition("(") if called else (text[:30], "", "")
        parts = inner[:-1].split(", ")
        shown = [a for a in parts if re.fullmatch(r"\d[\w.]*", a)]
        shown += [
            v for a in parts for k, _, v in [a.partition(" = ")] if re.fullmatch(r"\w+", v) and not k.startswith("init")
        ]
        text = "_".join([head or "block", *shown])
    elif what not in ("modify", "layers", "tokens"):
        text = what + text
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")[:48].strip("_")


def _free(name: str, taken: set[str]) -> str:
    free, n = name, 2
    while free in taken:
        free, n = f"{name}_{n}", n + 1
    return free
