"""The README's tour: its specs check, its commands and its Python give the output that is printed there.

``python tests/test_readme.py --write`` writes today's output into the README, to be read before it is committed.
"""

from __future__ import annotations

import doctest
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FLAGS = doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL
TYPO = """method my_adapter(r: int = 16) {
  modify  ffn
  insert  parallel
  form {
    down: [d_in, r]  ~ normal(0.02)
    up:   [r, d_out] ~ zeros
    delta = relu(z @ down) @ up.T
  }
  compose ad
}
"""


def blocks(kind: str) -> list[str]:
    return [text for found, text in BLOCK.findall(README.read_text("utf-8")) if found == kind]


def playground(folder: Path) -> None:
    """What a reader of the tour has at hand: a spec with a mistake and a configuration."""
    from transformers import BertConfig

    (folder / "typo.pelt").write_text(TYPO, "utf-8")
    (folder / "bert.json").write_text(json.dumps({**BertConfig().to_dict(), "model_type": "bert"}), "utf-8")


def output_of(command: str, folder: Path) -> str:
    assert command.startswith("unipelt ")
    environment = {**os.environ, "COLUMNS": "120", "PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "unipelt.cli.main", *command.split()[1:]], cwd=folder, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120,
    )  # fmt: skip
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()).strip("\n")


def consoles() -> list[tuple[str, str]]:
    found = []
    for text in blocks("console"):
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            command, _, printed = part.partition("\n")
            found.append((command, printed.strip("\n")))
    return found


@pytest.mark.parametrize("command,printed", consoles(), ids=[c for c, _ in consoles()])
def test_commands_print_what_the_readme_shows(command: str, printed: str, tmp_path: Path) -> None:
    playground(tmp_path)
    assert printed, "the README shows no output"
    assert output_of(command, tmp_path) == printed


def test_python_prints_what_the_readme_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = "\n".join(blocks("python"))
    test = doctest.DocTestParser().get_doctest(text, {}, "README", str(README), 0)
    assert len(test.examples) > 15
    report: list[str] = []
    result = doctest.DocTestRunner(optionflags=FLAGS, verbose=False).run(test, out=report.append)
    assert not result.failed, "".join(report)


def test_specs_of_the_readme_check(tmp_path: Path) -> None:
    import unipelt

    for i, text in enumerate(blocks("pelt")):
        path = tmp_path / f"block{i}.pelt"
        path.write_text(text, "utf-8")
        found = unipelt.check(path)
        assert found and all(c.method is not None and not c.diagnostics for c in found)


def write() -> None:
    import contextlib
    import io
    import tempfile

    text = README.read_text("utf-8")
    with tempfile.TemporaryDirectory() as folder:
        playground(Path(folder))
        for block in blocks("console"):
            new = "".join(
                f"$ {c}\n{output_of(c, Path(folder))}\n" for c in re.findall(r"^\$ (.*)$", block, re.MULTILINE)
            )
            text = text.replace(f"```console\n{block}```", f"```console\n{new}```")
        os.chdir(folder)
        names: dict = {}
        for block in blocks("python"):
            new = ""
            if not (examples := doctest.DocTestParser().get_examples(block)):
                continue  # a sketch, which is not run
            for example in examples:
                lines = example.source.rstrip("\n").split("\n")
                new += "\n".join([f">>> {lines[0]}"] + [f"... {x}" for x in lines[1:]]) + "\n"
                if example.exc_msg is not None or "..." in example.want:
                    new += example.want
                    with contextlib.suppress(Exception):
                        exec(compile(example.source, "README", "single"), names)
                    continue
                buffer = io.StringIO()
                with contextlib.redirect_stdout(buffer):
                    exec(compile(example.source, "README", "single"), names)
                new += buffer.getvalue()
            text = text.replace(f"```python\n{block}```", f"```python\n{new}```")
    README.write_text(text, "utf-8")


if __name__ == "__main__" and "--write" in sys.argv:
    write()
