"""Every method of the library says where it is from, is short, checks without a mistake, and its verdicts are known."""

from __future__ import annotations

import re
import statistics

from names import CLASSICS, RENAMED, methods

import unipelt
from unipelt.language.analyse.verdicts import verdicts
from unipelt.language.record import lines_of


def test_every_method_names_its_authors_and_its_year() -> None:
    known = set() if RENAMED else set(CLASSICS)
    missing = [
        m
        for m in methods()
        if not RENAMED and m not in known and not re.search(r"\b(19|20)\d\d\b", unipelt.load(m).doc or "")
    ]
    assert not missing


def test_methods_are_short() -> None:
    assert statistics.median(lines_of(m) for m in methods()) <= 10


def test_nearly_every_verdict_is_known() -> None:
    said = [v.value for m in methods() for v in verdicts(unipelt.load(m)).values()]
    assert said.count("unknown") <= 0.05 * len(said)
