"""Methods are data: with every definition of the library renamed at random, everything stays the same.

A copy of ``specs/`` is renamed consistently (whole words; docstrings and comments keep theirs, model types too).
In a process that sees only the copy, every method must plan, compute and learn from exactly what the original does, and
tests of the compiler, of the language and of every property of the grid must stay green.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
from computed import computed

ROOT = Path(__file__).resolve().parent.parent
_HEADER = re.compile(r"^(method|form|gate|compose|anatomy)[ \t]+([A-Za-z_]\w*)", re.MULTILINE)
_PIECES = re.compile(r'"""[\s\S]*?"""|"[^"\n]*"|#[^\n]*|[A-Za-z_][\w]*(?:\.[\w.*]+)?|[\s\S]')


def renaming(seed: int) -> dict[str, str]:
    """A new name for every definition; anatomies apart, as a model type may be called like one."""
    rng = random.Random(seed)
    found: dict[str, str] = {}
    for path in sorted((ROOT / "specs").rglob("*.pelt")):
        for kind, name in _HEADER.findall(path.read_text()):
            if kind != "anatomy":
                found.setdefault(name, "".join(rng.choices("abcdefghijklmnop", k=10)) + "_zz")
    assert len(set(found.values())) == len(found)
    return found


_ANATOMY = re.compile(r'(^anatomy +|^ *like: *")(\w+)', re.MULTILINE)


def renamed(text: str, names: dict[str, str], anatomies: dict[str, str]) -> str:
    """The text with whole words replaced, not in docstrings and comments; anatomies get names of their own."""
    text = _ANATOMY.sub(lambda m: m[1] + anatomies[m[2]], text)
    out = []
    for m in _PIECES.finditer(text):
        word = m[0]
        out.append(names.get(word, word) if word[0].isalpha() or word[0] == "_" else word)
    return "".join(out)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], dict[str, str]]:
    """The renaming, and the environment of a process that sees only the renamed library."""
    folder = tmp_path_factory.mktemp("renamed") / "specs"
    names, rng = renaming(11), random.Random(12)
    found = {n for p in (ROOT / "specs").rglob("*.pelt") for _, n in _ANATOMY.findall(p.read_text())}
    anatomies = {n: "".join(rng.choices("qrstuv", k=8)) for n in sorted(found)}
    for i, path in enumerate(sorted((ROOT / "specs").rglob("*.pelt"))):
        target = folder / ("anatomy" if path.parent.name == "anatomy" else "") / f"file_{i}.pelt"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(renamed(path.read_text(), names, anatomies))
    env = {
        **os.environ,
        "UNIPELT_SPECS": str(folder),
        "UNIPELT_RENAMED": json.dumps(names),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "behaviour")]),
    }
    return names, env


def test_nothing_keeps_its_name(other: tuple[dict[str, str], dict[str, str]]) -> None:
    names, env = other
    script = "import json, unipelt; print(json.dumps([(e.kind, e.name) for e in unipelt.library()]))"
    out = subprocess.run([sys.executable, "-c", script], env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert out.returncode == 0, out.stderr
    found = json.loads(out.stdout)
    assert {n for k, n in found if k != "anatomy"} == set(names.values()) and not {n for _, n in found} & set(names)
    assert len(found) > 40 and {k for k, _ in found} == {"method", "form", "gate", "composition", "anatomy"}


@pytest.mark.long
def test_every_method_computes_the_same_under_another_name(other: tuple[dict[str, str], dict[str, str]]) -> None:
    _, env = other
    script = ROOT / "tests" / "computed.py"
    done = subprocess.run([sys.executable, script], env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    original, under_other_names = computed(), json.loads(done.stdout)
    assert len(original) >= 3 * 28 and set(original) == set(under_other_names)
    for key, value in original.items():
        assert under_other_names[key] == value, key
    went_on = [v for v in original.values() if "refused" not in v]
    assert len(went_on) > 70 and all(v["acts"] for v in went_on)
    for what in ("outputs", "gradients"):
        assert len({v[what] for v in went_on}) > 60, "different methods differ"


#: What is run under the other names, and how many tests each must at least have.
SUITE = {
    "compiler/test_evaluator.py": 50, "compiler/test_initialise.py": 20, "language/test_check.py": 150,
    "language/test_loading.py": 25, "language/test_types.py": 80,
    "behaviour/test_grid.py::test_cell": 10,
}  # fmt: skip


@pytest.mark.long
def test_the_suite_stays_green(other: tuple[dict[str, str], dict[str, str]], tmp_path: Path) -> None:
    _, env = other
    paths = [str(ROOT / "tests" / p) for p in SUITE]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-o",
        "addopts=",
        "-q",
        "-p",
        "no:cacheprovider",
        "--junit-xml",
        tmp_path / "found.xml",
    ]
    done = subprocess.run(
        [*command, *paths], env={**env, "UNIPELT_FEWER": "2"}, cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout[-3000:]
    found = list(ElementTree.parse(tmp_path / "found.xml").iter("testcase"))
    assert not [t.get("name") for t in found if t.find("skipped") is not None]
    passed = Counter((t.get("classname") or "").rpartition(".")[2] for t in found)
    for path, least in SUITE.items():
        assert passed[Path(path.split("::")[0]).stem] >= least, (path, passed)
