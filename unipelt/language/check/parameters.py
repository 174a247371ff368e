"""The parameters of a definition: known types, free names, defaults that fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..types.arguments import parameters
from ..report.diagnostics import Diagnostic, PeltError, instead
from .inline import short_enough, fitting, substitute
from ..types.fitting import PARAM_TYPES, WORDS, fits, words_of
from ..sites import NUMBERS, SIZES
from ..report.texts import inside
from ..syntax.nodes import Param


def check_parameters(given: Sequence[Param], owner: str) -> tuple[list[Diagnostic], list[Param]]:
    """What is wrong with them, and the parameters without the defaults that are at fault, so that each is reported once."""
    problems: list[Diagnostic] = []
    params: list[Param] = []
    grown: dict[str, Any] = {}
    for p in given:
        before = len(problems)
        try:
            if p.default is not None:
                grown[p.name] = short_enough(substitute(p.default, grown), owner, p.name, p.span)
        except PeltError as e:
            problems += e.diagnostics
        if p.type not in PARAM_TYPES:
            place = inside(p.span, r":\s*(\w+)") or p.span
            problems.append(Diagnostic("E0230", f"there is no type `{p.type}`", place,
                                       **instead(p.type, PARAM_TYPES, place, f"types: {', '.join(PARAM_TYPES)}")))  # fmt: skip
        elif p.name in SIZES or p.name in ("d_in", "d_out", *NUMBERS):
            problems.append(Diagnostic("E0231", f"`{p.name}` is a size of the site and no parameter's name", p.span,
                                       help="choose another name"))  # fmt: skip
        elif p.name in words_of(p.type):
            # In a text that the definition inherits, the parameter would stand where the word is meant.
            problems.append(Diagnostic("E0224", f"`{p.name}` is already the name of {WORDS[p.type]}", p.span,
                                       help="choose another name"))  # fmt: skip
        elif p.default is not None and not fits(p.default, p.type):
            problems.append(Diagnostic("E0232", f"the default of `{p.name}` does not fit its type {p.type}", p.default.span,
                                       **fitting(p.default, p.type)))  # fmt: skip
        params.append(p if len(problems) == before else replace(p, default=None))  # a mistake is reported once
    parameters(params, False, problems=problems)
    return problems, params
