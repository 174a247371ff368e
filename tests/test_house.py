"""How the house stands: who may import whom, what checking needs, and that Python knows no method by name."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "unipelt"
FILES = sorted(PACKAGE.rglob("*.py"))
#: No arrow runs back up (`cli`, `serve`, `training` and `variants` stand on top).
ORDER = {
    "resources": -1,
    "language": 0,
    "anatomy": 1,
    "compiler": 2,
    "runtime": 3,
    "training": 4,
    "variants": 4,
    "interchange": 5,
    "serve": 6,
    "cli": 7,
    "": 8,
}
ORDINARY = {"adapter", "full", "probing", "prefix", "block", "head", "partial", "linear", "add", "replace"}


def imports(path: Path) -> list[tuple[str, int]]:
    """Every module that a file imports, anywhere in it, as an absolute name with its line."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    package = list(parts if path.name == "__init__.py" else parts[:-1])
    package = package[:-1] if path.name == "__init__.py" else package
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(a.name, node.lineno) for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            front = package[: len(package) - node.level + 1] if node.level else []
            if path.name == "__init__.py" and node.level:
                front = list(parts[:-1])[: len(parts) - node.level]
            base = ".".join([*front, *(node.module or "").split(".")]).strip(".")
            found += [(f"{base}.{a.name}", node.lineno) for a in node.names]
    return found


def part(module: str) -> str:
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 and pieces[1] in ORDER else ""


def test_there_is_something_to_look_at() -> None:
    assert len(FILES) > 40 and {part(".".join(f.relative_to(ROOT).with_suffix("").parts)) for f in FILES} >= {
        "language",
        "anatomy",
        "compiler",
        "runtime",
        "training",
        "cli",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    own = part(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for module, line in imports(path):
        if module.split(".")[0] != "unipelt":
            if own == "language":
                assert module.split(".")[0] not in ("torch", "transformers", "safetensors", "numpy"), (
                    f"{path}:{line} {module}"
                )
            continue
        other = part(module)
        if (
            other == "" and module.count(".") <= 1 and own != ""
        ):  # `import unipelt`: the public API, for what stands on top
            assert ORDER[own] >= ORDER["training"], f"{path}:{line} imports {module}"
        else:
            assert ORDER[other] <= ORDER[own], f"{path}:{line} imports {module}"
            assert other == own or ORDER[other] < ORDER[own], f"{path}:{line}: {own} and {other} do not know each other"


def imported(node: ast.AST, package: list[str], modules: Iterable[str]) -> set[str]:
    """The modules that a syntax tree imports at any depth; what only type checkers read is left out."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return set().union(*(imported(n, package, modules) for n in node.orelse))
    if isinstance(node, ast.Import):
        return {a.name for a in node.names}
    if isinstance(node, ast.ImportFrom):
        front = package[: len(package) - node.level + 1] if node.level else []
        base = ".".join([*front, *([node.module] if node.module else [])])
        return {name if (name := f"{base}.{a.name}") in modules else base for a in node.names}
    return set().union(*(imported(n, package, modules) for n in ast.iter_child_nodes(node)))


def test_no_files_import_one_another_in_a_circle() -> None:
    modules = {}
    for path in FILES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts).removesuffix(".__init__")] = (path, list(parts[:-1]))
    direct = {
        name: imported(ast.parse(path.read_text()), package, modules) & modules.keys() - {name}
        for name, (path, package) in modules.items()
    }
    reached: dict[str, set[str]] = {}
    for name in direct:
        seen, left = set(), list(direct[name])
        while left:
            if (m := left.pop()) not in seen:
                seen.add(m)
                left += direct[m]
        reached[name] = seen
    circles = {frozenset(m for m in reached[n] if n in reached[m]) for n in direct if n in reached[n]}
    assert sorted(map(sorted, circles)) == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 500


def test_only_the_table_of_types_walks_a_row_to_find_out_types() -> None:
    """Who wants a type looks it up in a `TypedRow`: elsewhere no function both infers and goes through form, gate and composition."""
    walking = {"form", "gate", "compose", "parts", "bindings"}
    found, inferring = [], 0
    for path in FILES:
        if path.is_relative_to(PACKAGE / "language" / "types"):
            continue
        for function in (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.FunctionDef)):
            read = {n.attr for n in ast.walk(function) if isinstance(n, ast.Attribute)}
            called = read | {n.id for n in ast.walk(function) if isinstance(n, ast.Name)}
            infers = bool(called & {"Inference", "infer", "RowChecker", "check_row"})
            inferring += infers
            if infers and read & walking:
                found.append(f"{path.relative_to(PACKAGE)}: {function.name}")
    assert found == [] and inferring > 3


def run(script: str, folder: Path = ROOT, **env: str) -> str:
    import os

    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **env},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_checking_every_spec_needs_neither_torch_nor_transformers_nor_pydantic() -> None:
    script = f"""
import json, sys
from pathlib import Path
import unipelt
from unipelt.language import library
checked = unipelt.check(Path({str(ROOT / "specs")!r}))
bad = [c.name for c in checked if c.diagnostics]
kinds = [c.kind for c in checked]
texts = [str(c.method) and c.properties for c in checked if c.method]
print(json.dumps([bad, len(kinds), len(texts), [m for m in sys.modules if m.split('.')[0] in
    ("torch", "transformers", "pydantic", "numpy", "safetensors", "rich", "typer")]]))
"""
    bad, definitions, methods, heavy = json.loads(run(script))
    assert bad == [] and definitions > 40 and methods > 28 and heavy == []


def test_importing_the_package_is_light() -> None:
    heavy = run(
        "import sys, unipelt; print([m for m in sys.modules if m.split('.')[0] in ('torch', 'transformers', 'lark')])"
    )
    assert heavy.strip() == "[]"


def definitions() -> set[str]:
    text = "\n".join(p.read_text() for p in (ROOT / "specs").rglob("*.pelt"))
    return set(re.findall(r"^(?:method|form|gate|compose)[ \t]+(\w+)", text, re.MULTILINE))


def test_python_knows_no_method_by_name() -> None:
    names = definitions() - ORDINARY
    assert len(names) > 30
    found = []
    for path in FILES:
        tree = ast.parse(path.read_text())
        docs = {
            id(n.body[0].value)
            for n in ast.walk(tree)
            if isinstance(n, (ast.Module, ast.ClassDef, ast.FunctionDef)) and n.body and isinstance(n.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and id(node) not in docs
                and node.value in names
            ):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.value!r}")
    assert found == []


def test_no_paths_or_hosts_of_a_machine() -> None:
    bad = re.compile(r"(?<![\w./])/(?:work|home|Users|root|mnt)/\w|localhost(?!:8000)|127\.0\.0\.1|\b10\.\d+\.\d+\.\d+")
    texts = [
        *FILES,
        *(ROOT / "specs").rglob("*.pelt"),
        *(ROOT / "grammar").rglob("*"),
        ROOT / "README.md",
        ROOT / "pyproject.toml",
    ]
    texts += [p for p in (ROOT / "tests").rglob("*.py") if p != Path(__file__)]
    hits = [str(p.relative_to(ROOT)) for p in texts if p.is_file() and bad.search(p.read_text(errors="replace"))]
    assert hits == []


def test_the_wheel_holds_grammar_and_specs(tmp_path: Path) -> None:
    """Built where the build backend is at hand; everywhere its configuration is read."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = config["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included == {"grammar": "unipelt/_data/grammar", "specs": "unipelt/_data/specs"}
    try:
        import hatchling  # noqa: F401
    except ImportError:
        return
    built = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            str(ROOT),
            "--no-deps",
            "--no-build-isolation",
            "-q",
            "-w",
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    away = tmp_path / "away"
    with zipfile.ZipFile(wheel) as z:
        z.extractall(away)
    assert {p.name for p in (away / "unipelt/_data/specs").glob("*.pelt")} == {
        p.name for p in (ROOT / "specs").glob("*.pelt")
    }
    script = "import unipelt; print(unipelt.__file__, len([e for e in unipelt.library() if e.kind == 'method']))"
    out = run(script, tmp_path, PYTHONPATH=str(away))
    assert str(away) in out and int(out.split()[-1]) > 28


def test_another_library_can_be_named(tmp_path: Path) -> None:
    (tmp_path / "one.pelt").write_text("method only { train *.bias }\n")
    script = "import unipelt; print([e.name for e in unipelt.library()])"
    assert run(script, UNIPELT_SPECS=str(tmp_path)).strip() == "['only']"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={"UNIPELT_SPECS": str(tmp_path / "gone"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and "UNIPELT_SPECS" in done.stderr


def test_the_code_is_laid_out_and_linted() -> None:
    for command in (["check", "-q"], ["format", "--check", "-q"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "unipelt", "tests", "benchmarks", "examples"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_no_two_files_of_tests_have_one_name():
    """They are imported by their names alone, so that of two the second would not run."""
    names = sorted(p.name for p in (ROOT / "tests").rglob("test_*.py"))
    assert [a for a, b in zip(names, names[1:]) if a == b] == []
