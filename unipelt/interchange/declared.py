"""How methods of the library stand in peft's folders: the declarations of ``specs/peft.toml``, and a configuration held against them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from ..language.report.diagnostics import PeltError, error
from ..resources import folder

FILE = "peft.toml"
MERGED_THERE = "merge it with peft (`merge_and_unload`), and use the merged model"
#: Fields of every configuration of peft that say nothing of what is computed once the tensors are there.
_SILENT = frozenset(
    "auto_mapping base_model_name_or_path inference_mode peft_type peft_version revision task_type target_modules exclude_modules "
    "layers_to_transform layers_pattern modules_to_save tokenizer_name_or_path tokenizer_kwargs prompt_tuning_init_text "
    "encoder_hidden_size init_weights ensure_weight_tying loftq_config eva_config lora_ga_config".split()
)
#: Values that a field has where it is not used.
_UNUSED: tuple[Any, ...] = (None, False, 0, "", [], {})


@dataclass(frozen=True)
class Declared:
    """One method: see the head of ``specs/peft.toml`` for the fields."""

    name: str
    type: str
    at: str
    tensors: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    arguments: Mapping[str, str] = field(default_factory=dict)
    patterns: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, list[Any]] = field(default_factory=dict)
    written: Mapping[str, list[str]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    copies: str = ""
    biases: tuple[str, ...] = ()
    factors: Mapping[str, str] = field(default_factory=dict)
    shift: Mapping[str, str] = field(default_factory=dict)
    convolutions: bool = False
    parameters: Mapping[str, str] = field(default_factory=dict)
    of_base: Mapping[str, str] = field(default_factory=dict)
    copied: Mapping[str, str] = field(default_factory=dict)
    decided: Mapping[str, list[Any]] = field(default_factory=dict)
    listed: Mapping[str, str] = field(default_factory=dict)
    widest: str = ""
    lines: str = ""
    last: str = ""
    inputs: str = ""
    note: str = ""

    @property
    def of_modules(self) -> bool:
        """Whether its rows are at linear maps, each by the path of its module."""
        return self.at in ("output", "weight", "own")

    @property
    def key(self) -> str:
        """What tells it from others of the same method of ours."""
        return f"{self.name} {self.type}" if self.lines else self.name

    @property
    def derived(self) -> set[str]:
        """Our arguments that no field of peft's says by itself."""
        return {*self.listed, self.widest}

    @property
    def keys(self) -> tuple[str, ...]:
        """The ends of the keys of its rows."""
        return *(k for k, _ in self.tensors.values()), *self.copied.values()

    def entries(self, config: Mapping[str, Any], rows: int) -> dict[str, Any]:
        """Our arguments that are the count and the entries of a list, of numbers of so many rows. Raises `PeltError`."""
        found: dict[str, Any] = {}
        for ours, theirs in self.listed.items():
            value = config.get(theirs)
            if not isinstance(value, list) or not value or not all(type(v) is int and 0 <= v < rows for v in value):
                raise error(
                    "E0840",
                    f"the folder of peft's says `{theirs}` = {value!r}, and that is no list of numbers below {rows}",
                )
            found[ours] = f"listed({', '.join(map(str, value))})" if found else len(value)
        return found

    def problems(self, config: Mapping[str, Any]) -> list[str]:
        """Why a configuration does not mean this method: the settings that it has not."""
        known = {
            *(["bias"] if config.get("bias") in self.biases else []),
            *self.arguments.values(),
            *self.patterns.values(),
            *self.written,
            *self.ignored,
            self.inputs,
            self.parameters.get("field", ""),
            *_SILENT,
        }
        return [
            f"`{name}` is {value!r}"
            for name, value in config.items()
            if not (
                any(value == v and isinstance(value, bool) == isinstance(v, bool) for v in self.settings[name])
                if name in self.settings
                else name in known or any(value == u for u in _UNUSED)
            )
        ]

    def values(self, config: Mapping[str, Any], path: str = "") -> dict[str, Any]:
        """Our arguments, for the module of a path where some have others."""
        found = {}
        for ours, theirs in self.arguments.items():
            value = config.get(theirs)
            patterns = config.get(self.patterns.get(ours, "")) or {}
            value = next((v for k, v in patterns.items() if _fits(k, path)), value)
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                found[ours] = value
            elif value is not None:
                raise error("E0840", f"the folder of peft's says `{theirs}` = {value!r}, and that is no number")
        return found


def _fits(pattern: str, path: str) -> bool:
    """Whether a key of a pattern means the module of a path: as peft reads it, a regular expression of the path's end."""
    try:
        return re.match(rf"(.*\.)?({pattern})$", path) is not None
    except re.error:
        raise error("E0840", f"`{pattern}` in a pattern of peft's folder is no regular expression") from None


@lru_cache(maxsize=1)
def declarations() -> tuple[Declared, ...]:
    """Those of the library's folder, in the order of the file."""
    found = tomllib.loads((folder("specs") / FILE).read_text(encoding="utf-8"))
    return tuple(
        Declared(
            **{
                "name": said.pop("method", name),
                **said,
                "tensors": {n: tuple(t) for n, t in said.get("tensors", {}).items()},
            }
        )
        for name, said in found.items()
    )


def of_whole_numbers() -> tuple[str, ...]:
    """The ends of the keys of those tensors that are whole numbers."""
    return tuple(f".{k}" for d in declarations() for k, how in d.tensors.values() if how == "places")


def declared_for(config: Mapping[str, Any]) -> Declared:
    """The method that a configuration of peft means. Raises `PeltError` with what has no counterpart."""
    wanted = str(config.get("peft_type"))
    of_type = [d for d in declarations() if d.type == wanted]
    if not of_type:
        types = sorted({d.type for d in declarations()})
        raise error("E0841", f"peft's {wanted} has no counterpart here", help=f"those that have: {', '.join(types)}")
    problems = [d.problems(config) for d in of_type]
    fewest = min(map(len, problems))
    if not fewest:
        return of_type[problems.index([])]
    nearest = dict.fromkeys(p for of_one in problems if len(of_one) == fewest for p in of_one)
    raise error("E0841", f"an adapter of peft's {wanted} with these settings has no counterpart here: {' and '.join(nearest)}",
                help=MERGED_THERE)  # fmt: skip


#: The code of what peft has no place for.
REFUSED = "E0844"


def by_factors() -> Declared:
    """The method of peft's that is two factors beside a linear map."""
    return next(d for d in declarations() if d.factors)


def no_counterpart(why: str, remedy: str = "") -> PeltError:
    names = ", ".join(dict.fromkeys(f"`{d.name}`" for d in declarations()))
    return error(
        REFUSED,
        f"the adapter cannot be written for peft: {why}",
        help=remedy or f"peft takes {names}, at whole modules",
    )
