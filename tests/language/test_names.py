"""What a name means: the definition that the file sees in which it is written."""

from pathlib import Path

import pytest
from names import name as named, spec

from unipelt.language.analyse.canonical import difference
from unipelt.language.report.diagnostics import PeltError, nearest
from unipelt.language.loading import definition, load
from unipelt.language.check.space import space_of
from unipelt.variants.generate import generate
from unipelt.variants.operators import cross
from unipelt.variants.write import write

HALVES = "compose halved = h + delta / 2\n"
MEAN = "compose halved = (h + delta) / 2\n"


def files(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (folder / f"{name}.pelt").write_text(spec(text))
    return folder


@pytest.mark.parametrize("how", ["use lora(r)", "use lora(r) as low", "modify attn.q, attn.v"])
def test_a_file_s_own_definitions_do_not_change_the_library_s_methods(tmp_path, how):
    """LoRA composes with `scaled`. What the file calls so is not what LoRA's authors meant."""
    base = "" if how.startswith("use") else " from lora(r)"
    files(tmp_path, own=f"compose scaled(s: float) = h - s * delta\nmethod m(r: int = 8){base} {{ {how} }}\n")
    assert difference(load(tmp_path / "own.pelt"), load(named("lora"))) is None


def test_a_file_s_own_definition_is_what_it_means_itself(tmp_path):
    files(tmp_path, own="compose add = h - delta\nmethod m(r: int = 8) from parallel_adapter(r) { compose add }\n",
          said="method m(r: int = 8) from parallel_adapter(r) { compose h - delta }\n")  # fmt: skip
    assert difference(load(tmp_path / "own.pelt"), load(tmp_path / "said.pelt")) is None
    assert difference(load(tmp_path / "own.pelt"), load(named("parallel_adapter"))) is not None


def test_what_is_imported_means_what_it_means_in_its_own_file(tmp_path):
    """Both files define `halved`, and each means its own; so does a form that a form calls."""
    files(tmp_path,
          parts=MEAN + "form low(r: int) { t = twice(z)\n A: [d_in, r] ~ normal(0.02)\n delta = t @ A @ A.T }\n"
                "form twice { delta = z * 2 }\nmethod inner(r: int) { modify ffn\n insert parallel\n form low(r)\n compose halved }\n",
          mine='import "parts.pelt"\n' + HALVES + "form twice { delta = z * 3 }\nmethod m(r: int = 8) { use inner(r) }\n",
          said="method m(r: int = 8) { modify ffn\n insert parallel\n form { A: [d_in, r] ~ normal(0.02)\n delta = (z * 2) @ A @ A.T }\n"
               "compose (h + delta) / 2 }\n")  # fmt: skip
    assert difference(load(tmp_path / "mine.pelt"), load(tmp_path / "said.pelt")) is None


def test_a_file_sees_what_its_imports_see_and_its_own_first(tmp_path):
    """By two ways to one file there is one definition; between two there is none, unless the file has its own."""
    method = "method m(r: int = 8) from lora(r) { compose halved }\n"
    files(tmp_path, halves=HALVES, mean=MEAN, by_one='import "halves.pelt"\n', by_other='import "halves.pelt"\nimport "one_way.pelt"\n',
          hides='import "mean.pelt"\n' + HALVES,
          one_way='import "by_one.pelt"\nimport "by_other.pelt"\n' + method,
          hidden='import "hides.pelt"\nimport "by_one.pelt"\n' + method,
          own='import "halves.pelt"\nimport "mean.pelt"\n' + HALVES + method,
          unused='import "halves.pelt"\nimport "mean.pelt"\nmethod m(r: int = 8) from lora(r) { compose h + delta / 2 }\n')  # fmt: skip
    for name in ("one_way", "own", "unused"):
        assert difference(load(tmp_path / f"{name}.pelt"), load(tmp_path / "unused.pelt")) is None
    with pytest.raises(
        PeltError, match="E0228"
    ):  # `hides` has a `halved` of its own, which is another than that of `halves`
        load(tmp_path / "hidden.pelt")


def test_files_that_import_each_other(tmp_path):
    files(tmp_path, a='import "b.pelt"\n' + HALVES + "method m(r: int = 8) from inner(r) { modify attn.q, attn.v }\n",
          b='import "a.pelt"\nmethod inner(r: int = 8) from lora(r) { compose halved }\n')  # fmt: skip
    assert difference(load(tmp_path / "a.pelt", "m"), load(tmp_path / "b.pelt")) is None


def test_an_import_that_fails_does_not_hide_the_next(tmp_path):
    files(
        tmp_path,
        one="form f(r) { delta = z }\n",
        all='import "one.pelt"\nimport "two.pelt"\nmethod m from lora { compose add }\n',
    )
    with pytest.raises(PeltError) as e:
        load(tmp_path / "all.pelt")
    assert [d.code for d in e.value.diagnostics] == ["E0101", "E0205"]


def test_imports_that_fail_are_reported_up_to_a_bound(tmp_path):
    files(tmp_path, all="".join(f'import "no{i}.pelt"\n' for i in range(2000)) + "method m from lora { compose add }\n")
    with pytest.raises(PeltError) as e:
        load(tmp_path / "all.pelt")
    assert 1 < len(e.value.diagnostics) <= 50


@pytest.mark.parametrize("other", ["compose halved", "compose halved_again"])
def test_members_of_parents_that_mean_different_things_by_one_name(tmp_path, other):
    """A written member stands alone and is the method that it was found as, also where both parents' definitions meet in it."""
    files(
        tmp_path,
        a=HALVES + "method a(r: int = 8) from lora(r) { compose halved }\n",
        b=f"{MEAN}compose halved_again = (h + delta) / 2\nmethod b(r: int = 8) from parallel_adapter(r) {{ {other} }}\n",
    )
    (a, mine), (b, theirs) = definition(f"{tmp_path}/a.pelt"), definition(f"{tmp_path}/b.pelt")
    names = mine.and_of(theirs)
    members = generate(space_of(cross(a, b, names), names, one=True)).members
    written = write(members, names, tmp_path / "out")
    assert len(members) == 8
    for m, path in zip(members, written, strict=True):
        assert difference(load(path), m.method) is None, path.read_text()


def test_letters_in_another_order_are_the_nearest_word():
    assert nearest("haed", ["head", "head2", "had", "hard"]) == "head"
    assert nearest("heads", ["head", "tail"]) == "head"  # else that which shares most
