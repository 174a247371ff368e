"""What configurations of the library `adapters` (AdapterHub) mean: the declarations of ``specs/adapters.toml``."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from typing import Any

from ..language.report.diagnostics import PeltError, error, near
from ..resources import folder
from ..runtime.references import load
from .texts import like

FILE = "adapters.toml"
REMEDY = "use it with `adapters`, or write the method down and add its names to `specs/adapters.toml`"
#: Fields that say in which layers, whatever the architecture.
LAYERS = ("leave_out", "layers")


def same(a: Any, b: Any) -> bool:
    """Whether two values of a configuration are one: 1 is 1.0, and neither is true."""
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


@dataclass(frozen=True)
class Family:
    """Models that keep what is added in the same places; see the head of ``specs/adapters.toml``."""

    models: Sequence[str]
    norms: str
    self: str
    intermediate: str
    output: str
    places: Mapping[str, str]
    kinds: Mapping[str, str]


@dataclass(frozen=True)
class Case:
    """One case of a step."""

    when: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    base: str = ""
    lines: str = ""
    gate: str = ""
    note: str = ""
    meeting: str = ""
    only_in: bool = False
    lost: Mapping[str, str] = field(default_factory=dict)
    each: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    arguments: Mapping[str, Sequence[str]] = field(default_factory=dict)
    tokens: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, Sequence[str]] = field(default_factory=dict)
    ignored: Sequence[str] = ()

    def fits(self, config: Mapping[str, Any]) -> bool:
        return all(any(same(config[f], v) for v in values) for f, values in self.when.items())


@dataclass(frozen=True)
class Sites:
    """The sites that a field of a configuration means, or that are always meant."""

    at: Sequence[str]
    field: str = ""
    entry: str = ""
    switch: str = ""

    def on(self, config: Mapping[str, Any]) -> bool:
        if self.switch and config[self.switch] is not True:
            return False
        value = config.get(self.field, True)
        return self.entry in value if self.entry else value is True


@dataclass(frozen=True)
class Architecture:
    """What the configurations of an architecture have in common."""

    name: str
    row: str
    fields: Mapping[str, Any]
    sites: tuple[Sites, ...]
    steps: Mapping[str, tuple[Case, ...]]
    ignored: Sequence[str] = ()
    training: Sequence[str] = ()
    again: Mapping[str, Any] = field(default_factory=dict)
    before: Mapping[str, Any] = field(default_factory=dict)
    several: bool = False
    unnamed: bool = False

    def meanings(self, norms: str) -> Iterator[Meaning]:
        """Everything that a configuration can say and the library reads, in models whose norms stand somewhere."""
        for cases in product(*self.steps.values()):
            if all(norms in c.when.get("norms", (norms,)) and not c.only_in for c in cases):
                yield Meaning(self, cases)

    def meant(self, config: Mapping[str, Any], norms: str) -> Meaning:
        """What a whole configuration means. Raises `PeltError` with the field that has no counterpart."""
        of_model = {**config, "norms": norms}
        cases = []
        for choices in self.steps.values():
            case = next((c for c in choices if c.fits(of_model)), None)
            if case is None:
                names = list(dict.fromkeys(f for c in choices for f in c.when if f != "norms"))
                said = ", ".join(f"`{f}` = {config[f]!r}" for f in names)
                raise error("E0841", f"an adapter of `adapters` with {said} has no counterpart here", help=REMEDY)
            cases.append(case)
        found = Meaning(self, tuple(cases))
        for name, value in config.items():
            if name not in found.read and not same(value, self.fields[name]):
                raise error(
                    "E0841", f"an adapter of `adapters` with `{name}` = {value!r} has no counterpart here", help=REMEDY
                )
        return found

    def of_version(self, config: Mapping[str, Any], minor: int) -> tuple[Mapping[str, Any], str]:
        """A configuration as a version 1.minor meant it, and what is to be said of that."""
        if not self.before or minor >= self.before["version"]:
            return config, ""
        given = {**self.fields, **config}
        meant = {**config, **{f: given[other] for f, other in self.before["fields"].items()}}
        return meant, self.before["note"] if any(given[f] != v for f, v in meant.items()) else ""

    def whole(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration with the defaults of the fields that it lacks. Raises `PeltError` for a field that is not known."""
        unknown = next((f for f in config if f not in self.fields), None)
        if unknown is not None:
            raise error("E0841", f"a configuration of `adapters` has the field `{unknown}` = {config[unknown]!r}, which is not known here",
                        help=near(unknown, self.fields) or REMEDY)  # fmt: skip
        for name, default in self.fields.items():
            if isinstance(default, list) and not isinstance(config.get(name, default), list):
                raise error("E0840", f"`{name}` in a configuration of `adapters` is {config[name]!r}, and no list")
        return {**self.fields, **config}


@dataclass(frozen=True)
class Meaning:
    """A method, in the words of a configuration: one case of each step."""

    architecture: Architecture
    cases: tuple[Case, ...]

    @property
    def base(self) -> str:
        return next(c.base for c in self.cases if c.base)

    @property
    def lines(self) -> str:
        return "\n".join(c.lines for c in self.cases if c.lines)

    @property
    def gate(self) -> str:
        return next((c.gate for c in self.cases if c.gate), "")

    @property
    def rows(self) -> dict[str, Mapping[str, Any]]:
        """Its rows by their names, "" where it is one, and the arguments that each has fixed."""
        return next((dict(c.each) for c in self.cases if c.each), {"": {}})

    def notes(self, config: Mapping[str, Any], said: Collection[str]) -> list[str]:
        """What is to be said of a configuration that comes in; ``said`` are the fields that it has itself."""
        silent = [c.note for c in self.cases if any(f not in said for f in c.when if f in config)]
        meet = [c.meeting for c in self.cases if all(config[c.arguments[n][0]] for n in c.tokens)]
        return [n for n in (*silent, *meet) if n]

    @property
    def arguments(self) -> dict[str, Sequence[str]]:
        return {n: a for c in self.cases for n, a in c.arguments.items()}

    @property
    def lost(self) -> dict[str, str]:
        """What to do where one of our tensors is missing, by its name."""
        return {n: t for c in self.cases for n, t in c.lost.items()}

    @property
    def tokens(self) -> dict[str, str]:
        return {n: t for c in self.cases for n, t in c.tokens.items()}

    @property
    def tensors(self) -> dict[str, Sequence[str]]:
        return {n: t for c in self.cases for n, t in c.tensors.items()}

    @property
    def read(self) -> set[str]:
        """The fields that are given a meaning, or that have none once the tensors are there."""
        own = self.architecture
        of_sites = {f for s in own.sites for f in (s.field, s.switch)}
        of_cases = {f for c in self.cases for f in (*c.when, *c.ignored, *(a[0] for a in c.arguments.values()))}
        return {*own.ignored, *own.training, *of_sites, *of_cases, *LAYERS, "architecture"}

    def values(self, config: Mapping[str, Any], layer: int, width: int) -> dict[str, Any]:
        """Our arguments in a layer; ``width`` is the model's. Raises `PeltError`."""
        kinds = load(self.base).arguments
        return {
            ours: like(kinds.get(ours, 0.0), _READ[how](config[theirs], theirs, layer, width), "adapters")
            for ours, (theirs, how) in self.arguments.items()
        }

    def written(self, arguments: Mapping[int, Mapping[str, Any]], width: int) -> dict[str, Any]:
        """The fields that say the arguments of some layers. Raises `KeyError` where no word of theirs says one."""
        first = next(iter(arguments.values()))
        found = {f: values[0] for c in self.cases for f, values in c.when.items() if f != "norms"}
        for ours, (theirs, how) in self.arguments.items():
            if how == "divides":
                by_layer = {str(n): _factor(a[ours], width) for n, a in arguments.items()}
                values = list(by_layer.values())
                found[theirs] = values[0] if len(set(values)) == 1 else {**by_layer, "default": values[0]}
            else:
                found[theirs] = _their_word(first[ours]) if how == "activation" else first[ours]
        return found


# ---------------------------------------------------------------- values


def _number(value: Any, name: str, layer: int = 0, width: int = 0) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise error("E0841", f"an adapter of `adapters` with `{name}` = {value!r} has no counterpart here", help=REMEDY)
    return value


def _activation(value: Any, name: str, layer: int, width: int) -> str:
    words: dict[str, str] = _file()["activations"]
    found = words.get(str(value).lower())
    if found is None:
        raise error("E0841", f"an adapter of `adapters` with `{name}` = {value!r} has no counterpart here",
                    help=f"its activations that have one: {', '.join(words)}")  # fmt: skip
    return found


def _divided(value: Any, name: str, layer: int, width: int) -> int:
    """The model's width by a factor, which may be one for each layer."""
    if isinstance(value, Mapping):
        value = value.get(str(layer), value.get("default"))
    if _number(value, name) <= 0:
        raise error("E0840", f"`{name}` in a configuration of `adapters` is {value!r}, and divides nothing")
    return max(1, int(width // value))


_READ = {"number": _number, "activation": _activation, "divides": _divided}


def _factor(size: int, width: int) -> int | float:
    """By what the width is divided, rounded down, for a size."""
    if width % size == 0:
        return width // size
    return width / size if int(width // (width / size)) == size else width / (size + 0.5)


def _their_word(ours: str) -> str:
    """Their word for an activation. Raises `KeyError`."""
    return {word: theirs for theirs, word in reversed(_file()["activations"].items())}[ours]


# ---------------------------------------------------------------- the file


@lru_cache(maxsize=1)
def _file() -> dict[str, Any]:
    return tomllib.loads((folder("specs") / FILE).read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def architectures() -> dict[str, Architecture]:
    """Those of the library's folder, by name."""
    found = {}
    for name, said in _file()["methods"].items():
        fields = dict(_file()["fields"][name])
        none = fields.pop("none")
        own = {
            **said,
            "fields": {**fields, **dict.fromkeys(none)},
            "sites": tuple(Sites(**s) for s in said["sites"]),
            "steps": {step: tuple(Case(**c) for c in cases) for step, cases in said["steps"].items()},
        }
        found[name] = Architecture(name, **own)
    return found


def architecture(config: Mapping[str, Any]) -> Architecture:
    """That of a configuration. Raises `PeltError`."""
    name = config.get("architecture")
    known = architectures().values()
    found = next((a for a in known if (a.name == name if name is not None else a.unnamed)), None)
    if found is None:
        raise error("E0841", f"the architecture {name!r} of `adapters` has no counterpart here",
                    help=near(str(name), architectures()) or f"those that have: {', '.join(architectures())}")  # fmt: skip
    return found


def family(model_type: str) -> Family:
    """Where models of a type keep what is added. Raises `PeltError`."""
    families = [Family(**said) for said in _file()["families"].values()]
    found = next((f for f in families if model_type in f.models), None)
    if found is None:
        known = [m for f in families for m in f.models]
        raise error("E0841", f"where `adapters` keeps its tensors in a model of the type `{model_type}` is not known here",
                    help=near(model_type, known) or f"known are {', '.join(known)}")  # fmt: skip
    return found


def heads() -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """For each class of transformers the heads of the library that its own can be."""
    return _file()["heads"]


def not_written(why: str) -> PeltError:
    return error("E0844", f"the adapter cannot be written for adapters: {why}",
                 help=f"it takes the architectures {', '.join(architectures())}, and unions of them; `specs/adapters.toml` has what of each")  # fmt: skip
