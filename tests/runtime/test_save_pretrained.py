"""`save_pretrained` of a model with adapters writes the plain base, and each adapter's folder beside it; `attach` reads it."""

from __future__ import annotations

import copy
import io
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import inputs, model
from torch import nn

import unipelt
from unipelt.runtime.hub import FOLDER, INDEX

#: Rows, rows with a shared MLP (which folds), a head of one's own labels, copies of the base's parameters.
METHODS: dict[str, dict[str, Any]] = {"lora": {}, "prefix_tuning": {}, "probing_mean": {"labels": 5}, "bitfit": {}}


def wear(name: str = "a", method: str = "lora", m: nn.Module | None = None, seed: int = 1, **options: Any) -> nn.Module:
    m = model("bert_labels") if m is None else m
    unipelt.apply(m, unipelt.load(method), name, **{**METHODS[method], **options})
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for t in unipelt.state_dict(m, name).values():
            t.add_(0.1 * torch.randn(t.shape, generator=g))
    return m


def out(m: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return m(**inputs()).logits.clone()


def loaded(folder: Path) -> nn.Module:
    """The base by transformers alone; it must find neither more nor less in the folder than its own weights."""
    from transformers import BertForSequenceClassification

    m, said = BertForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(said.values()), said
    return m.eval()


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() < 1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_base_is_plain_and_the_adapter_lies_beside_it(method: str, tmp_path: Path) -> None:
    m = wear(method=method)
    acting, state = out(m), unipelt.state_dict(m, "a")
    m.save_pretrained(tmp_path)
    other = loaded(tmp_path)
    assert torch.equal(out(other), out(model("bert_labels")))
    assert other.config.num_labels == 3
    assert unipelt.attach(other, tmp_path) == "a" and unipelt.active(other) == ("a",)
    assert close(out(other), acting)
    found = unipelt.state_dict(other, "a")
    assert found.keys() == state.keys() and all(
        torch.equal(found[n], t) for n, t in state.items()
    )  # unfolded: it trains on as before
    assert torch.equal(out(m), acting)


def test_several_adapters_and_which_of_them_act(tmp_path: Path) -> None:
    m = wear("one")
    wear("two", "bitfit", m, seed=2)
    wear("three", "lora", m, seed=3)
    unipelt.activate(m, "three", "one")
    acting = out(m)
    m.save_pretrained(tmp_path)
    other = loaded(tmp_path)
    assert unipelt.attach(other, tmp_path) == "one"
    assert list(unipelt.adapters(other)) == ["one", "two", "three"] and unipelt.active(other) == ("three", "one")
    assert close(out(other), acting)
    unipelt.activate(m, "two")
    alone = loaded(tmp_path)
    assert unipelt.attach(alone, tmp_path, "two", trainable=True) == "two" and list(unipelt.adapters(alone)) == ["two"]
    assert close(out(alone), out(m))
    with pytest.raises(unipelt.PeltError, match=r"E0533.*`one`, `two`, `three`, and none named `four`"):
        unipelt.attach(alone, tmp_path, "four")
    assert list(unipelt.adapters(alone)) == ["two"]
    assert unipelt.attach(loaded(tmp_path), tmp_path / FOLDER.format("two")) == "two"


def test_a_single_one_may_get_another_name(tmp_path: Path) -> None:
    wear().save_pretrained(tmp_path)
    m = loaded(tmp_path)
    assert unipelt.attach(m, tmp_path, "mine") == "mine" and unipelt.active(m) == ("mine",)


def test_saved_again_with_fewer_adapters(tmp_path: Path) -> None:
    m = wear("one")
    wear("two", "bitfit", m)
    m.save_pretrained(tmp_path)
    unipelt.remove(m, "one")
    m.save_pretrained(tmp_path)
    other = loaded(tmp_path)
    unipelt.attach(other, tmp_path)
    assert list(unipelt.adapters(other)) == ["two"] and close(out(other), out(m))


def test_all_or_none_are_attached(tmp_path: Path) -> None:
    m = wear("one")
    wear("two", "bitfit", m)
    m.save_pretrained(tmp_path)
    (tmp_path / FOLDER.format("two") / "adapter.safetensors").write_bytes(b"other")
    other = wear("before", m=loaded(tmp_path), seed=4)
    acting = out(other)
    with pytest.raises(unipelt.PeltError, match="E0580"):
        unipelt.attach(other, tmp_path)
    assert list(unipelt.adapters(other)) == ["before"] == list(unipelt.active(other)) and torch.equal(
        out(other), acting
    )


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    m = wear("one")
    wear("two", "bitfit", m)
    with torch.no_grad():
        next(iter(unipelt.state_dict(m, "two").values())).fill_(float("nan"))
    with pytest.raises(unipelt.PeltError, match="E0573"):
        m.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_restore_reads_it_too(tmp_path: Path) -> None:
    m = wear("one")
    wear("two", "prefix_tuning", m)
    acting = out(m)
    m.save_pretrained(tmp_path)
    wear("new", "lora", m, seed=8)
    with torch.no_grad():
        for t in unipelt.state_dict(m, "two").values():
            t.zero_()
    unipelt.restore(m, tmp_path, "two")
    unipelt.activate(m, "two")
    assert torch.equal(out(m), acting)


# ---------------------------------------------------------------- the model's method


def test_the_method_goes_with_the_last_adapter() -> None:
    m, plain = wear("one"), model("bert_labels")
    wear("two", "bitfit", m)
    for name in ("one", "two"):
        assert "save_pretrained" in vars(m)
        unipelt.remove(m, name)
    for a, b in zip(m.modules(), plain.modules(), strict=True):
        assert vars(a).keys() == vars(b).keys() and len(a._state_dict_hooks) == len(b._state_dict_hooks)


def test_a_state_dict_of_the_model_is_whole_as_before(tmp_path: Path) -> None:
    m = wear()
    names = list(m.state_dict())
    assert any("unipelt" in n for n in names)
    m.save_pretrained(tmp_path)
    assert list(m.state_dict()) == names


def test_the_signature_is_transformers_own() -> None:
    import inspect

    m, plain = wear(), model("bert_labels")
    assert inspect.signature(m.save_pretrained) == inspect.signature(plain.save_pretrained)


@pytest.mark.parametrize("options", [{"max_shard_size": "20KB"}, {"variant": "mine"}])
def test_its_options_are_kept(options: dict[str, Any], tmp_path: Path) -> None:
    m = wear()
    m.save_pretrained(tmp_path, **options)
    files = {p.name for p in tmp_path.iterdir()}
    assert len([f for f in files if f.endswith(".safetensors")]) > 1 or "model.mine.safetensors" in files
    names = [n for f in tmp_path.glob("*.safetensors") for n in load_file(f)]
    assert sorted(names) == sorted(model("bert_labels").state_dict())


def test_copies_and_pickles_save_themselves(tmp_path: Path) -> None:
    m = wear()
    buffer = io.BytesIO()
    torch.save(m, buffer)
    buffer.seek(0)
    for i, other in enumerate((copy.deepcopy(m), torch.load(buffer, weights_only=False))):
        with torch.no_grad():
            for p in other.parameters():
                p.mul_(1.1)
        folder = tmp_path / str(i)
        other.save_pretrained(folder)
        again = loaded(folder)
        unipelt.attach(again, folder)
        assert close(out(again), out(other)) and not close(out(other), out(m))


def test_a_compiled_model_s_too(tmp_path: Path) -> None:
    m = wear()
    torch.compile(m, backend="eager").save_pretrained(tmp_path)
    other = loaded(tmp_path)
    unipelt.attach(other, tmp_path)
    assert close(out(other), out(m))


def test_a_part_of_the_model_is_written_alone_and_says_so(tmp_path: Path) -> None:
    m = wear()
    with pytest.warns(UserWarning, match="`a` are of the whole model.*save_pretrained of the model") as said:
        m.bert.save_pretrained(tmp_path)
    assert said[0].filename == __file__
    assert sorted(load_file(tmp_path / "model.safetensors")) == sorted(model("bert_labels").bert.state_dict())
    assert not (tmp_path / INDEX).exists()


def test_with_an_adapter_merged_into_the_base(tmp_path: Path) -> None:
    """What is written is what the model computes; what belongs to the base without the merge is not laid beside it."""
    m = wear("one")
    acting = out(m)
    unipelt.merge(m, "one")
    m.save_pretrained(tmp_path / "alone")
    unipelt.unmerge(m)
    wear("two", "bitfit", m)
    unipelt.activate(m, "one")
    unipelt.merge(m, "one")
    with pytest.warns(UserWarning, match="`two` are of the base without `one`") as said:
        m.save_pretrained(tmp_path / "beside")
    assert said[0].filename == __file__
    for folder in ("alone", "beside"):
        assert close(out(loaded(tmp_path / folder)), acting) and not (tmp_path / folder / INDEX).exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unipelt.save_merged(m, tmp_path / "merged", "one")  # says nothing of the others: they were not asked for
    assert close(out(loaded(tmp_path / "merged")), acting)


def test_of_a_state_dict_that_was_gathered(tmp_path: Path) -> None:
    """The Trainer gathers a sharded model's state dict and gives it to one process: what is written is what is in it."""
    m = wear()
    acting, given = out(m), {n: t.clone() for n, t in m.state_dict().items()}
    with torch.no_grad():
        for p in m.parameters():
            p.zero_()
    m.save_pretrained(tmp_path / "whole", state_dict=given)
    other = loaded(tmp_path / "whole")
    unipelt.attach(other, tmp_path / "whole")
    assert close(out(other), acting)
    with pytest.warns(UserWarning, match="`a` are not in the state dict") as said:
        m.save_pretrained(tmp_path / "base", state_dict=model("bert_labels").state_dict())
    assert said[0].filename == __file__
    assert not (tmp_path / "base" / INDEX).exists() and torch.equal(
        out(loaded(tmp_path / "base")), out(model("bert_labels"))
    )


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    wear().save_pretrained(tmp_path, is_main_process=False)
    assert not list(tmp_path.iterdir())


def test_to_the_hub(hub: Any, tmp_path: Path) -> None:
    m = wear()
    m.push_to_hub("ann/base")
    files = hub.repositories["ann/base"].files()
    assert {INDEX, "config.json", "model.safetensors", f"{FOLDER.format('a')}/adapter.safetensors"} <= set(files)
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    other = loaded(tmp_path)
    unipelt.attach(other, tmp_path)
    assert close(out(other), out(m))
    with pytest.raises(unipelt.PeltError, match=r"(?s)E0824.*a model with adapters beside it.*snapshot_download"):
        unipelt.attach(loaded(tmp_path), "ann/base")


# ---------------------------------------------------------------- the Trainer


def train(folder: Path, m: nn.Module, steps: int, resume: Any = None, **options: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    rows = [{**{k: v[i] for k, v in inputs().items()}, "labels": torch.tensor(i)} for i in range(3)]
    arguments = TrainingArguments(str(folder), max_steps=steps, per_device_train_batch_size=3, learning_rate=1e-2,
                                  lr_scheduler_type="constant", report_to=[], disable_tqdm=True, save_steps=2,
                                  dataloader_pin_memory=False, use_cpu=True, logging_strategy="no", **options)  # fmt: skip
    for part in m.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    trainer = Trainer(model=m, args=arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train(resume_from_checkpoint=resume)
    m.eval()
    return trainer


def test_the_trainer_saves_resumes_and_finds_its_best(tmp_path: Path) -> None:
    """transformers' Trainer as it is. Of two adapters the second is trained."""

    def both() -> nn.Module:
        return wear("b", "lora", wear("a", "bitfit"), seed=2)

    m = both()
    train(tmp_path / "run", m, 4).save_model(str(tmp_path / "done"))
    other = loaded(tmp_path / "done")
    unipelt.attach(other, tmp_path / "done")
    assert unipelt.active(other) == ("b",) and close(out(other), out(m))
    again = both()
    train(tmp_path / "run", again, 4, resume=str(tmp_path / "run" / "checkpoint-2"))
    assert close(out(again), out(m)) and not close(out(again), out(both()))
    middle = wear("x", "lora")
    unipelt.remove(middle, "x")
    assert unipelt.attach(middle, tmp_path / "run" / "checkpoint-2") == "b" and not close(out(middle), out(m))
    best = both()  # a step beyond any measure: the one before it was better
    trainer = train(tmp_path / "best", best, 4, eval_strategy="steps", eval_steps=2, load_best_model_at_end=True,
                    metric_for_best_model="eval_loss", greater_is_better=True)  # fmt: skip
    assert trainer.state.best_global_step == 2
    assert close(out(best), out(middle))


# ---------------------------------------------------------------- what is broken, and what is old


@pytest.mark.parametrize(("change", "code"), [
    (lambda t: t[:-9], "E0532"), (lambda t: "[]", "E0532"), (lambda t: "[" * 100_000, "E0532"), (lambda t: t + " " * 2**20, "E0532"),
    (lambda t: t.replace('"a"', '"../a"'), "E0532"), (lambda t: t.replace('"a"', "1"), "E0532"),
    (lambda t: json.dumps({**json.loads(t), "adapters": []}), "E0532"),
    (lambda t: json.dumps({**json.loads(t), "adapters": ["a", "a"]}), "E0532"),
    (lambda t: json.dumps({**json.loads(t), "active": ["b"]}), "E0532"),
    (lambda t: json.dumps({**json.loads(t), "active": {}}), "E0532"),
    (lambda t: json.dumps({**json.loads(t), "format": "unipelt-adapter/99.0"}), "E0579"),
    (lambda t: json.dumps({**json.loads(t), "format": "other/1.0"}), "E0532"),
    (lambda t: json.dumps({**json.loads(t), "adapters": ["a", "b"]}), "E0577"),
])  # fmt: skip
def test_a_broken_list(change: Any, code: str, tmp_path: Path) -> None:
    wear().save_pretrained(tmp_path)
    (tmp_path / INDEX).write_text(change((tmp_path / INDEX).read_text()))
    m = loaded(tmp_path)
    with pytest.raises(unipelt.PeltError, match=code):
        unipelt.attach(m, tmp_path)
    assert not unipelt.adapters(m)


def test_where_one_adapter_s_folder_is_wanted_the_others_are_named(tmp_path: Path) -> None:
    from unipelt.runtime.folder import verify

    wear().save_pretrained(tmp_path)
    with pytest.raises(unipelt.PeltError, match=r"(?s)E0577.*name one of the folders .*unipelt-\*"):
        verify(tmp_path)


def old(m: nn.Module, folder: Path, files: int = 1) -> None:
    """A folder as earlier versions left it: one state dict, with the names that tensors had then."""
    from transformers import BertForSequenceClassification

    state = {n: t.clone() for n, t in m.state_dict().items()}
    BertForSequenceClassification.save_pretrained(model("bert_labels"), folder)
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    for i in range(files):
        save_file(
            {n: state[n] for n in names[i::files]},
            folder / f"model-{i}.safetensors" if files > 1 else folder / "model.safetensors",
        )


@pytest.mark.parametrize("files", [1, 2])
def test_an_older_folder_says_how_its_adapter_is_recovered(files: int, tmp_path: Path) -> None:
    """What the message says is done, word for word."""
    import re

    import safetensors.torch

    m = wear()
    acting = out(m)
    old(m, tmp_path, files)
    method = unipelt.load("lora")
    base = copy.deepcopy(model("bert_labels"))
    with pytest.raises(unipelt.PeltError, match="E0531") as e:
        unipelt.attach(base, tmp_path)
    assert not unipelt.adapters(base)
    said = re.sub(r"\s*\n\s*=?\s*", " ", str(e.value))
    assert f"{tmp_path} has the adapter `a` inside its weights" in said
    names = {"model": base, "method": method, "unipelt": unipelt, "safetensors": safetensors}
    for call in re.findall(r"unipelt\.apply\(model, method, '\w+'\)|model\.load_state_dict\(.*?strict=False\)", said):
        exec(call, names)
    assert close(out(base), acting)
    unipelt.save(base, tmp_path / "recovered", "a")
    other = model("bert_labels")
    unipelt.attach(other, tmp_path / "recovered")
    assert close(out(other), acting)


def test_names_that_tensors_had_before_are_read(tmp_path: Path) -> None:
    """A head's copy was held by a twin of its module, and a gate's tensors had a colon in their names."""
    row = "modify ffn insert x form { A: [d_in, d_out] ~ normal(0.1)  delta = z @ A } compose h + delta"
    method = unipelt.parse(
        f"method inner() {{ {row} }} method m() {{ use inner() as part gated by token_gate  train head }}", name="m"
    )
    m = model("bert_labels")
    unipelt.apply(m, method, "a")
    with torch.no_grad():
        for p in unipelt.state_dict(m, "a").values():
            p.add_(0.3)
    edits = {path: e for path, e in m.named_modules() if hasattr(e, "scalars")}
    before: dict[str, torch.Tensor] = {}
    for name, t in m.state_dict().items():
        path, _, attribute = name.rpartition(".")
        if path in edits:
            label = next(
                n
                for n in edits[path].scalars
                if attribute in (n, n.replace(".", ":")) or attribute.endswith(n.replace(".", ":"))
            )
            attribute = f"twin.{label}" if hasattr(edits[path], "trained") else label.replace(".", ":")
        before[f"{path}.{attribute}"] = t.clone()
    assert any(".twin." in n for n in before) and any("gate:" in n for n in before)
    other = model("bert_labels")
    unipelt.apply(other, method, "a")
    assert not close(out(other), out(m))
    other.load_state_dict(before)  # strict: every tensor finds its place, and none is left over
    assert torch.equal(out(other), out(m))
