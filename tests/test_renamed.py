"""Methods are data: with every definition of the library renamed at random, everything stays the same.

A copy of ``specs/`` is renamed consistently (whole words; docstrings and comments keep theirs, model types too).
In a process that sees only the copy, every method must plan and compute exactly what the original does, and the
compiler's and the language's tests must stay green.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


SCRIPT = """
import hashlib, json, sys, torch, unipelt
from names import RENAMED
from tiny import batch, build, look, small
from unipelt.runtime.registry import record

torch.set_num_threads(1)
back = {v: k for k, v in RENAMED.items()}
result = {}
for method in sorted((e.name for e in unipelt.library() if e.kind == "method"), key=lambda n: back.get(n, n)):
    for kind in ("bert_head", "gpt2", "llama"):
        m = build(kind)
        key = f"{back.get(method, method)} {kind}"
        try:
            plan = unipelt.apply(m, small(method), allow_future=True)
        except unipelt.PeltError as e:
            result[key] = [d.code for d in e.diagnostics]
            continue
        own = record(m, "default").trained()
        # by place, not by name: names of rows are those of methods, and draws depend on them
        with torch.no_grad():
            for i, t in enumerate(own.values()):
                t.copy_(torch.randn(t.shape, generator=torch.Generator().manual_seed(i)) * 0.3)
        out = look(m, batch(kind))["logits"]
        with unipelt.disabled(m):
            effect = float((out[:, -1] - look(m, batch(kind))["logits"][:, -1]).abs().max())
        c = plan.counts
        result[key] = [hashlib.sha256(out.numpy().tobytes()).hexdigest(), list(out.shape), effect > 1e-3,
                       [c.trained, c.stored, c.frozen, c.head], len(plan.edits), len(plan.folds),
                       plan.properties["mergeable"][:3]]
print(json.dumps(result))
"""


@pytest.mark.long
def test_every_method_computes_the_same_under_another_name(other: tuple[dict[str, str], dict[str, str]]) -> None:
    names, env = other
    plain = {k: v for k, v in env.items() if k not in ("UNIPELT_SPECS", "UNIPELT_RENAMED")}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT], env=e, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for e in (plain, env)
    ]
    outs = [p.communicate(timeout=300) for p in running]
    assert [p.returncode for p in running] == [0, 0], [e[-2000:] for _, e in outs]
    original, under_other_names = (json.loads(o) for o, _ in outs)
    assert len(original) >= 3 * 28 and set(original) == set(under_other_names)
    for key, value in original.items():
        assert under_other_names[key] == value, key
    computed = {k: v for k, v in original.items() if len(v) == 7}
    assert len(computed) > 70 and all(v[2] for v in computed.values())
    assert len({v[0] for v in computed.values()}) > 60, "different methods differ"


@pytest.mark.long
@pytest.mark.parametrize(
    "suite,least",
    [
        ("compiler/test_evaluator.py compiler/test_initialise.py language/test_check.py language/test_types.py", 300),
        ("fidelity", 60),
        ("behaviour/test_grid.py::test_cell", 150),
    ],
)
def test_the_suite_stays_green(other: tuple[dict[str, str], dict[str, str]], suite: str, least: int) -> None:
    _, env = other
    paths = [str(ROOT / "tests" / p) for p in suite.split()]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "-p", "no:cacheprovider", *paths],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > least and ("skipped" not in done.stdout or suite == "fidelity")
