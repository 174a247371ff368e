"""The record of the library's methods (`specs/verified.json`) and the page made of it (`specs/README.md`) are current.

``python tests/zoo/test_record.py --write`` measures the references that are not recorded yet, counts, and writes both;
``--write all`` measures every reference anew, ``--write quick`` counts only where a method has changed.
"""

from __future__ import annotations

import io
import sys
import tokenize
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    ROOT = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "fidelity")]

import peft
import pytest
import test_references
from names import RENAMED, members, methods
from reference import REFERENCES, WITHIN, Reference
from trained import with_members

import unipelt
from unipelt.cli import overview
from unipelt.language.library import index
from unipelt.language.record import FILE, MODELS, Recorded, Verified, digest, record, written
from unipelt.resources import folder

pytestmark = pytest.mark.skipif(bool(RENAMED), reason="the record is of the library's own names")


@lru_cache(maxsize=1)
def models() -> dict[str, Any]:
    """The models whose parameters are counted, without weights."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        bert = BertForSequenceClassification(BertConfig())
        llama = LlamaForCausalLM(LlamaConfig(
            vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
            num_key_value_heads=8))  # fmt: skip
    return dict(zip(MODELS, (bert, llama)))


def counts(name: str) -> dict[str, int | str]:
    """Trained parameters with the default arguments on each model; the code of the first mistake where it is refused."""
    found: dict[str, int | str] = {}
    for model, built in models().items():
        try:
            found[model] = unipelt.plan(
                built, with_members(built, unipelt.load(name)), allow_future=True
            ).counts.trained
        except unipelt.PeltError as e:
            found[model] = e.diagnostics[0].code
        for member in unipelt.adapters(built):
            unipelt.remove(built, member)
    return found


def code_lines(path: Path) -> int:
    """Lines of Python without comments, docstrings and blank lines."""
    lines: set[int] = set()
    fresh = True  # a statement begins
    for t in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if t.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            fresh = True
        elif t.type not in (tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER):
            if not (fresh and t.type == tokenize.STRING):
                lines.update(range(t.start[0], t.end[0] + 1))
            fresh = False
    return len(lines)


def tuners() -> list[str]:
    return sorted(p.name for p in (Path(peft.__file__).parent / "tuners").iterdir() if (p / "__init__.py").is_file())


def python(name: str, references: list[Reference]) -> dict[str, int]:
    """Lines of the folder of peft's that has a method, where the method is compared with it and a folder is named like it."""
    spelt = {t.replace("_", ""): t for t in tuners()}
    tuner = spelt.get(name.replace("_", ""))
    if tuner is None or not any(r.by in ("peft", "recording") for r in references):
        return {}
    files = (Path(peft.__file__).parent / "tuners" / tuner).glob("*.py")
    return {f"peft/{tuner}": sum(code_lines(p) for p in files)}


def rounded(error: float) -> str:
    return f"{error:.0e}" if error else "0"


def fresh(everything: bool, quick: bool = False) -> dict[str, Recorded]:
    """The record as it should be: what is known already is kept where the method reads as it did."""
    known, found = {} if everything else record(), {}
    for name in methods():
        text = digest(unipelt.load(name))
        old = known.get(name)
        old = old if old is not None and old.text == text else None
        references = [r for r in REFERENCES if r.method == name]
        measured = {(v.by, v.against): v for v in old.verified} if old is not None else {}
        verified = filter(None, [measured.get((r.by, r.against)) or measure(r) for r in references])
        family = index()["method", name].stem
        numbers = old.counts if quick and old is not None else counts(name)
        found[name] = Recorded.of(unipelt.load(name), family, numbers, tuple(verified), python(name, references))
    return found


def measure(r: Reference) -> Verified | None:
    """None where the comparison fails: then the tests say so, and nothing is recorded."""
    print(f"{r.method}: {r.by}, {r.against}", file=sys.stderr)
    try:
        return Verified(r.by, r.against, rounded(r.measure()))
    except Exception as e:  # noqa: BLE001
        print(f"FAILED {r.method}: {r.by}, {r.against}: {type(e).__name__} {e}", file=sys.stderr)
        return None


# ---------------------------------------------------------------- tests


def test_every_method_is_verified_by_what_is_registered() -> None:
    """An entry for each method and for no other, and in it each of its references, close enough."""
    assert sorted(record()) == sorted(methods())
    for name, m in record().items():
        assert m.verified, f"{name} is compared with nothing"
        assert {(v.by, v.against) for v in m.verified} == {(r.by, r.against) for r in REFERENCES if r.method == name}
        assert all(float(v.error) <= WITHIN[v.by] for v in m.verified), name  # type: ignore[index]


def test_the_record_is_of_the_library_as_it_is() -> None:
    """Rows, verdicts and lines."""
    for name in methods():
        m = record()[name]
        now = Recorded.of(unipelt.load(name), index()["method", name].stem, m.counts, m.verified, m.python)
        assert now.to_json() == m.to_json(), f"{name} has changed: write the record anew"


@pytest.mark.parametrize("method", members())
def test_the_counts_are_those_of_a_plan(method: str) -> None:
    assert record()[method].counts == counts(method)


def test_the_page_is_current() -> None:
    assert (folder("specs") / overview.PAGE).read_text(encoding="utf-8") == overview.page(record())


def test_lines_of_python_are_counted_without_comments_and_docstrings(tmp_path: Path) -> None:
    file = tmp_path / "some.py"
    file.write_text('"""A module."""\n\n# a comment\ndef f(x):\n    """Says\n    nothing."""\n    y = """two\n    lines"""\n    return (x,\n            y)  # at the end\n')  # fmt: skip
    assert code_lines(file) == 5


if __name__ == "__main__":
    assert sys.argv[1:2] == ["--write"], __doc__
    assert test_references.IDS  # which has brought in every file of references
    warnings.simplefilter("ignore", FutureWarning)
    found = fresh(sys.argv[2:] == ["all"], sys.argv[2:] == ["quick"])
    (folder("specs") / FILE).write_text(written(found), encoding="utf-8", newline="\n")
    (folder("specs") / overview.PAGE).write_text(overview.page(found), encoding="utf-8", newline="\n")
