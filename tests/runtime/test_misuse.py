"""Every public function, called wrongly: the error names the argument, and the model is as it was."""

from __future__ import annotations

import contextlib
import inspect
import pickle
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from names import name as named
from small import inputs, model, output, randomise, state
from torch import nn

import unipelt
from unipelt.language.report.diagnostics import PeltError

LORA = unipelt.load(named("lora"))(r=2)
TEXT = "method mine { train *.bias }"

#: A right call of every public function, by the names of its arguments. Those of a model are given it by the test.
CALLS: dict[str, dict[str, Any]] = {
    "load": {"name": named("lora"), "method": None, "arguments": None, "head": None},
    "parse": {"text": TEXT, "name": None, "file": None},
    "check": {"path": "there-is-none.pelt"},
    "library": {},
    "analyse": {"method": LORA, "sizes": None},
    "plan": {"model": None, "method": LORA, "head": None, "allow_future": False, "labels": None, "problem_type": None, "example": None},
    "sites": {"model": None, "example": None},
    "apply": {"model": None, "method": LORA, "name": "new", "seed": 0, "head": None, "tokenizer": None, "label_words": None, "dtype": None,
              "allow_future": False, "lowering": True, "trainable": True, "labels": None, "problem_type": None, "example": None,
              "data": None, "batches": 32, "loss": None},
    "after_step": {"model": None},
    "penalties": {"model": None},
    "progress": {"model": None, "value": 0.5},
    "remove": {"model": None, "name": "a"},
    "activate": {"model": None, "*names": ("a",)},
    "active": {"model": None},
    "adapters": {"model": None},
    "labels": {"model": None, "name": None},
    "disabled": {"model": None},
    "using": {"model": None, "*names": ("a",)},
    "parameter_groups": {"model": None, "name": "a", "lr": 0.1, "weight_decay": 0.0},
    "inputs": {"model": None},
    "ensemble": {"model": None, "batch": {}, "over": None},
    "at_tokens": {"model": None, "output": torch.zeros(1, 2)},
    "with_rows": {"model": None},
    "merge": {"model": None, "name": "a"},
    "unmerge": {"model": None, "name": None},
    "save_merged": {"model": None, "folder": "new", "name": "a", "tokenizer": None, "max_shard_size": None},
    "export_onnx": {"model": None, "path": "new.onnx", "names": ()},
    "state_dict": {"model": None, "name": "a"},
    "save": {"model": None, "folder": "new", "name": "a", "fold": True, "card": None, "draws": False},
    "attach": {"model": None, "folder": "saved", "name": "new", "force": False, "trainable": False, "tokenizer": None, "allow_future": None,
               "arguments": None, "dtype": None},
    "restore": {"model": None, "folder": "saved", "name": "a"},
    "push": {"folder": "saved", "name": "user/name", "private": None, "revision": None, "dry_run": True},
    "combine": {"model": None, "weights": {"a": 1.0}, "name": "new", "how": "sum", "rank": None, "density": 0.5, "seed": 0},
    "import_peft": {"model": None, "folder": "saved", "name": None, "trainable": False},
    "export_as_lora": {"model": None, "folder": "new", "name": "a", "rank": None, "serving": False, "tick": len},
    "export_gguf": {"model": None, "path": "new.gguf", "name": "a", "as_lora": False, "rank": None, "tick": len},
    "bank": {"model": None, "method": LORA, "name": "new", "slots": 2, "folder": None, "labels": None, "allow_future": False, "dtype": None,
             "patience": 1.0, "force": False},
    "export_peft": {"model": None, "folder": "new", "name": "a", "serving": False},
    "import_adapters": {"model": None, "folder": "saved", "name": None, "trainable": False, "allow_future": False},
    "export_adapters": {"model": None, "folder": "new", "name": "a"},
    "watch": {"model": None, "name": "a"},
    "gradient_norms": {"model": None, "name": "a"},
}  # fmt: skip

#: Things of every kind, and which of them each argument takes.
POOL: dict[str, Any] = {
    "none": None, "yes": True, "count": 3, "rate": 0.5, "text": "words", "bytes": b"words", "path": Path("words"), "texts": ["a", "b"],
    "numbers": [1, 2], "dict": {"a": "b"}, "sizes": {"d_model": 3}, "method": LORA, "model": nn.Linear(2, 2), "class": nn.Linear, "dtype": torch.float32,
    "tensor": torch.zeros(2, 2), "thing": object(), "function": len,
}  # fmt: skip
TAKES = {
    "model": {"model"}, "method": {"method"}, "name": {"text"}, "names": {"texts"}, "seed": {"count"}, "folder": {"text", "path"}, "path": {"text", "path"},
    "labels": {"count", "texts"}, "problem_type": {"text"}, "tokenizer": {"function", "class", "model", "method"}, "label_words": {"texts", "dict"},
    "dtype": {"dtype"}, "lr": {"count", "rate", "tensor"}, "weight_decay": {"count", "rate", "tensor"}, "batch": {"dict", "sizes"}, "over": {"text"},
    "batches": {"count"}, "data": {"tensor"}, "loss": {"function", "class", "model", "method"}, "value": {"count", "rate"},
    "example": {"dict", "sizes"}, "output": {"tensor"}, "card": {"dict", "sizes"}, "weights": {"sizes"}, "slots": {"count"}, "max_shard_size": {"count"}, "patience": {"count", "rate", "tensor"}, "tick": {"function", "class", "model", "method"}, "how": {"text"}, "rank": {"count"}, "density": {"count", "rate", "tensor"}, "arguments": {"dict", "sizes"}, "revision": {"text"}, "text": {"text"}, "file": {"text"}, "sizes": {"sizes"},
}  # fmt: skip
FLAGS = {
    "head",
    "allow_future",
    "lowering",
    "trainable",
    "fold",
    "force",
    "private",
    "dry_run",
    "draws",
    "serving",
    "as_lora",
}
OTHERWISE = {
    ("load", "name"): {"text", "path"},
    ("load", "method"): {"text"},
    ("load", "head"): {"text"},
    ("bank", "method"): {"method", "text", "path"},
    ("save_merged", "tokenizer"): set(),
    ("apply", "label_words"): {"texts"},
}


def right(function: str, argument: str) -> set[str]:
    """The things of the pool that are of a right kind for an argument."""
    found = OTHERWISE.get((function, argument), {"yes"} if argument in FLAGS else TAKES.get(argument, set()))
    return found | ({"none"} if CALLS[function][argument] is None and argument != "model" else set())


def functions() -> list[str]:
    return [n for n in unipelt.__all__ if not inspect.isclass(getattr(unipelt, n))]


@pytest.fixture
def adapted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[nn.Module]:
    """A model with the adapter `a`, which also lies in the folder `saved` of the working directory; it must come out unchanged."""
    monkeypatch.chdir(tmp_path)
    m = model("bert_labels")
    unipelt.apply(m, LORA, "a")
    randomise(m, "a")
    unipelt.save(m, "saved", "a", fold=False)
    before, names, folder = state(m), unipelt.active(m), sorted(tmp_path.iterdir())
    yield m
    assert state(m) == before and unipelt.active(m) == names and list(unipelt.adapters(m)) == ["a"]
    assert sorted(tmp_path.iterdir()) == folder


def run(function: str, *args: Any, **kwargs: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = getattr(unipelt, function)(*args, **kwargs)
        if isinstance(found, contextlib.AbstractContextManager):
            with found:
                pass


def misused(function: str, argument: str | None, *args: Any, **kwargs: Any) -> str:
    """What is wrong with what is said of a wrong call."""
    try:
        run(function, *args, **kwargs)
    except (PeltError, TypeError) as e:
        said = e.diagnostics[0].message if isinstance(e, PeltError) else str(e)
        if (
            type(e) not in (PeltError, TypeError)
            or argument is not None
            and argument not in said.replace("problem type", "problem_type")
        ):
            return f"{function}: {argument} is not named: {type(e).__name__}: {said}"
    except Exception as e:  # noqa: BLE001 - which is what is looked for
        return f"{function}, {argument}: {type(e).__name__}: {e}"
    else:
        return f"{function}, {argument}: no error"
    return ""


def given(function: str, m: nn.Module) -> dict[str, Any]:
    return {n: m if n == "model" else v for n, v in CALLS[function].items() if not n.startswith("*")}


def test_every_public_function_is_called_wrongly() -> None:
    assert sorted(functions()) == sorted(CALLS)
    for function, arguments in CALLS.items():
        signature = inspect.signature(getattr(unipelt, function))
        single = [
            n for n, p in signature.parameters.items() if p.kind is not p.VAR_KEYWORD and p.kind is not p.VAR_POSITIONAL
        ]
        assert single == [n for n in arguments if not n.startswith("*")], function


@pytest.mark.parametrize("function", CALLS)
def test_an_argument_of_a_wrong_kind_is_named(function: str, adapted: nn.Module) -> None:
    call = given(function, adapted)
    wrong = []
    for argument in call:
        for key in POOL.keys() - right(function, argument):
            if said := misused(function, argument, **{**call, argument: POOL[key]}):
                wrong.append(f"{key}: {said}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("function", CALLS)
def test_arguments_in_a_wrong_order_too_few_and_unknown_ones(function: str, adapted: nn.Module) -> None:
    call = given(function, adapted)
    signature = inspect.signature(getattr(unipelt, function))
    places = [n for n in call if signature.parameters[n].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    needed = [n for n in places if signature.parameters[n].default is inspect.Parameter.empty]
    wrong = []
    for first, second in zip(places, places[1:]):
        swapped = {**call, first: call[second], second: call[first]}
        if type(call[first]) is not type(call[second]):
            wrong.append(
                misused(
                    function, None, *(swapped[n] for n in places), **{n: v for n, v in call.items() if n not in places}
                )
            )
    wrong += [misused(function, n, **{k: v for k, v in call.items() if k != n}) for n in needed]
    wrong.append(misused(function, "nobody", **call, nobody=1))
    if not any(n.startswith("*") for n in CALLS[function]):
        wrong.append(misused(function, None, *[*call.values(), *[1] * 20]))
    assert not any(wrong), "\n".join(filter(None, wrong))


@pytest.mark.parametrize("function", [f for f in CALLS if "model" in CALLS[f]])
def test_a_module_that_is_no_model(function: str, adapted: nn.Module) -> None:
    plain = nn.Linear(2, 2)
    before = state(plain)
    call = given(function, plain)
    if function in ("active", "adapters", "disabled", "with_rows", "at_tokens", "inputs", "labels", "sites"):
        run(function, **call)  # it has no adapter, which is an answer
    else:
        said = misused(function, None, *CALLS[function].get("*names", ()), **call) if "*names" not in CALLS[function] else \
            misused(function, None, plain, "a")  # fmt: skip
        assert not said, said
    assert state(plain) == before


@pytest.mark.parametrize(
    "function",
    [
        f
        for f in CALLS
        if "model" in CALLS[f] and {"name", "*names"} & set(CALLS[f]) and f not in ("apply", "attach", "bank")
    ],
)
@pytest.mark.parametrize("wrong", ["nobody", "", "a ", "a\0"])
def test_an_adapter_that_is_not_there(function: str, wrong: str, adapted: nn.Module) -> None:
    said = (
        misused(function, None, adapted, wrong)
        if "*names" in CALLS[function]
        else misused(function, None, **{**given(function, adapted), "name": wrong})
    )
    assert not said, said


@pytest.mark.parametrize("function", ["activate", "using"])
@pytest.mark.parametrize(
    "names",
    [
        (["a"],),
        (("a", "b"),),
        ({"a"},),
        ("a", 3),
        (3.5,),
        (b"a",),
        (LORA,),
        (nn.Linear(2, 2),),
        ("a", "a"),
        ({"a": "much"},),
    ],
)
def test_names_that_are_given_one_by_one(function: str, names: tuple, adapted: nn.Module) -> None:
    said = misused(function, None, adapted, *names)
    each = function == "using" and names == (["a"],)  # a name for each example of a batch
    assert not said or each, said


def test_the_message_shows_how_to_call(adapted: nn.Module) -> None:
    with pytest.raises(PeltError, match=r"E0593.*`model` of `apply`.*not a `Method`") as caught:
        unipelt.apply(LORA, adapted)
    assert caught.value.diagnostics[0].help.startswith("call unipelt.apply(model, method, name='default', seed=0, ")
    with pytest.raises(PeltError, match="E0593.*`model` of `remove`.*the class `BertForSequenceClassification`"):
        unipelt.remove(type(adapted), "a")  # type: ignore[arg-type]


def test_a_class_is_named_as_it_is_imported() -> None:
    for wrong, expected in (
        (lambda: unipelt.active("m"), "torch.nn.Module"),  # type: ignore[arg-type]
        (lambda: unipelt.at_tokens(model("bert"), [1]), "torch.Tensor"),  # type: ignore[arg-type]
        (lambda: unipelt.plan(model("bert"), "lora"), "unipelt.Method"),  # type: ignore[arg-type]
    ):
        with pytest.raises(PeltError, match=f"a `{re.escape(expected)}`"):
            wrong()


def test_numbers_of_other_libraries_are_numbers() -> None:
    m = model("bert_labels")
    unipelt.apply(m, LORA, "new", seed=np.int64(3), label_words=("good", "bad"))  # type: ignore[arg-type]
    assert unipelt.parameter_groups(m, "new", np.float32(0.5))[0]["lr"] == 0.5  # type: ignore[arg-type]
    assert torch.isfinite(output(m, **inputs())).all()


def test_the_functions_are_those_of_the_package_also_by_pickle() -> None:
    for function in functions():
        assert pickle.loads(pickle.dumps(getattr(unipelt, function))) is getattr(unipelt, function)


TEXT_START = 'method m { modify ffn  insert parallel  form { P: [2, d_model] ~ tokens("hi")  delta = z @ P.T @ P }  compose h + delta }'
MEMBERS = "method m { modify ffn  insert parallel  form { input member: index(3)  A: [3, d_model, 2] ~ normal(0.1)  delta = z @ A[member] @ A[member].T }  compose h + delta }"  # fmt: skip
CIRCLE: dict[str, Any] = {}
CIRCLE["a"] = CIRCLE
#: Arguments of a right kind, with a value that none can have.
VALUES: list[tuple[str, str, dict[str, Any]]] = [
    *(("E0593 dtype", "apply", {"dtype": d}) for d in (torch.int32, torch.bool, torch.complex64, torch.float8_e4m3fn)),
    ("E0593 dtype", "attach", {"dtype": torch.int64}),
    *(("E0593 card", "save", {"card": c}) for c in ({"metrics": 3}, {"metrics": {"test": 0.5}}, {"data": [1]}, {"training": "x"}, {"tags": 3}, CIRCLE)),
    *(("E0572", "save", {"folder": f}) for f in ("", ".", "..", "saved/..", "/")),
    *((f"E0594 {n}", f, {n: p}) for f, n in (("save", "folder"), ("save_merged", "folder"), ("export_onnx", "path"), ("attach", "folder"), ("restore", "folder"),
                                             ("push", "folder"), ("check", "path"))
      for p in ("a\0b.onnx", "a\ud800.onnx", Path("a\0b"))),
    *(("E0522", "apply", {"method": unipelt.parse(TEXT_START), "tokenizer": lambda text, given=given, **_: given})
      for given in (3, {}, {"input_ids": 3}, {"input_ids": "ab"}, {"input_ids": [10**6]}, {"input_ids": [-1]}, {"input_ids": [[1, 2]]}, {"input_ids": []})),
]  # fmt: skip


@pytest.mark.parametrize("code, function, wrong", VALUES, ids=lambda v: repr(v)[:40])
def test_a_value_that_none_can_have(code: str, function: str, wrong: dict[str, Any], adapted: nn.Module) -> None:
    with pytest.raises(PeltError) as caught:
        run(function, **{**given(function, adapted), **wrong})
    (d,) = caught.value.diagnostics
    assert d.code == code[:5] and code[6:] in d.message and d.help


@pytest.mark.parametrize(
    "batch", [{}, {"input_ids": "a text"}, {"input_ids": torch.tensor(1)}, {"input_ids": torch.ones(0, 4)}], ids=repr
)
def test_an_ensemble_needs_rows(batch: dict[str, Any]) -> None:
    m = model("bert_labels")
    unipelt.apply(m, unipelt.parse(MEMBERS))
    with pytest.raises(PeltError, match="E0736.*`batch`"):
        unipelt.ensemble(m, batch)


@pytest.mark.parametrize("other", [3, "bitfit", None])
def test_methods_add_up_with_methods(other: Any) -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        LORA + other


def test_no_arguments_are_no_arguments() -> None:
    m = model("bert_labels")
    with unipelt.inputs(m) as same:
        assert same is m
    assert unipelt.labels(nn.Linear(2, 2)) is None
