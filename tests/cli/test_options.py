"""A field of a class of options is all that an option needs: the command line, the checks and the record of a run read it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from unipelt.cli.app import app
from unipelt.cli.options import with_options
from unipelt.language.report.diagnostics import PeltError
from unipelt.training.config import TrainConfig
from unipelt.training.options import Option, Rule, check, options_of


@dataclass(frozen=True)
class Baking:
    flour: Annotated[str, Option("Which flour.", short="-f")]
    grams: Annotated[int, Option("How much.", rule=Rule("must be even", lambda n: n % 2 == 0))] = 500
    oven: Annotated[Literal["gas", "electric"] | None, Option("Which oven.")] = None
    yeast: Annotated[bool, Option("Bake without yeast.", flag="--flat")] = True
    steam: Annotated[bool | None, Option("With steam or without.")] = None
    seeds: Annotated[tuple[str, ...], Option("Seeds, repeatable.")] = ()
    shapes: Annotated[tuple[str, ...] | None, Option("Shapes, with commas.")] = None
    more: Annotated[Mapping[str, Any], Option("Anything else.", flag="--set")] = field(default_factory=dict)
    secret: Annotated[int, Option("For another command.", "other")] = 3


made: list[Baking] = []


def bake(baking: Baking) -> bool:
    """Bake a loaf."""
    made.append(baking)
    return baking.grams > 0


def call(*arguments: str, code: int = 0) -> str:
    loaf = typer.Typer(rich_markup_mode=None)
    loaf.command()(with_options(bake))
    done = CliRunner().invoke(loaf, arguments)
    assert done.exit_code == code, done.output
    return done.output


def test_every_kind_of_field_is_read_and_has_its_default() -> None:
    call("-f", "rye")
    assert made.pop() == Baking("rye")
    call("--flour", "rye", "--grams", "8", "--oven", "gas", "--flat", "--no-steam", "--seeds", "a", "--seeds", "b",
         "--shapes", "round, long", "--set", "salt=2", "--set", "note=warm")  # fmt: skip
    more = {"salt": 2, "note": "warm"}
    assert made.pop() == Baking("rye", 8, "gas", False, False, ("a", "b"), ("round", "long"), more)
    call("-f", "rye", "--grams", "-2", code=1)  # a command that returns False has found mistakes
    call("--grams", "8", code=2)
    call("-f", "rye", "--secret", "4", code=2)
    said = call("--help")
    assert all(help_ in said for help_ in ("Which flour.", "[default: 500]", "NAME=VALUE", "--steam / --no-steam"))


@pytest.mark.parametrize("wrong, said, remedy", [
    ({"grams": 7}, "`--grams` must be even; it is 7", "change the option"),
    ({"oven": "gaz"}, "`--oven` is one of gas, electric; it is 'gaz'", "did you mean `gas`?"),
])  # fmt: skip
def test_a_value_is_checked_by_its_field(wrong: dict[str, Any], said: str, remedy: str) -> None:
    with pytest.raises(PeltError) as caught:
        check(Baking("rye", **wrong))
    (d,) = caught.value.diagnostics
    assert (d.code, d.message, d.help) == ("E0620", said, remedy)


def test_each_field_of_a_run_is_an_option_of_train() -> None:
    options = {p.name for p in typer.main.get_command(app).commands["train"].params}  # type: ignore[attr-defined]
    names = {f.name for f in fields(TrainConfig)}
    assert names == set(options_of(TrainConfig)) and names <= options and options - names <= {"as_json", "help"}
