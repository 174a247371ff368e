"""Arguments that a method declares: an index picks what an example gets, a tensor comes with it; ensembles of members."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from names import name
from small import WIDTH, inputs, model, randomise
from test_prompts import SMALL, fails, ids, method, out

import unipelt

BIAS = "modify ffn form { input task: index(3) b: [3, d_out] ~ normal(0.5) delta = b[task] } compose add"
PER_TASK = {
    "bias": BIAS,
    "low_rank": "modify attn.q insert parallel form { input task: index(3) A: [d_in, 2] ~ normal(0.5) "
                "B: [3, 2, d_out] ~ normal(0.5) delta = z @ A @ B[task] } compose add",
    "prefix": "modify attn.heads insert parallel form { input task: index(3) P: [3, 4, d_head] ~ normal(0.5) per group "
              "V: [3, 4, d_head] ~ normal(0.5) per group scores = q @ P[task].T * scale "
              "delta = softmax(scores) @ V[task] } compose share_softmax",
    "gate": "use { modify ffn insert sequential form low_rank(2) compose add } as a "
            "gated by { input task: index(3) w: [3] ~ normal(0.5) g = sigmoid(w[task]) }",
    "prompt": "modify embed form { input task: index(3) P: [3, 4, d_out] ~ normal(0.5) delta = P[task] } "
              "compose prepend(delta, h)",
    "range": "modify ffn form { input task: index(3) b: [3, 2, d_out] ~ normal(0.5) delta = sum(b[task, 0 : 1], 0) } compose add",
}  # fmt: skip


@pytest.mark.parametrize("lowering", [True, False])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("what", PER_TASK)
def test_each_example_gets_what_it_would_get_alone(what: str, kind: str, lowering: bool) -> None:
    m = model(kind)
    unipelt.apply(m, method(f"method m {{ {PER_TASK[what]} }}"), lowering=lowering)
    randomise(m)
    batch = inputs(padded=False)
    tasks = torch.tensor([2, 0, 1])
    together = out(m, **batch, task=tasks)
    for i, t in enumerate(tasks.tolist()):
        alone = out(m, **{k: v[i : i + 1] for k, v in batch.items()}, task=t)
        assert torch.allclose(together[i : i + 1], alone, atol=1e-5)
    other = out(m, **batch, task=[2, 1, 1])
    assert torch.equal(other[[0, 2]], together[[0, 2]]) and (other[1] - together[1]).abs().max() > 1e-3


def test_only_what_is_picked_is_trained() -> None:
    m = model("bert")
    unipelt.apply(m, method(f"method m {{ {BIAS} }}"))
    m(**inputs(), task=torch.tensor([0, 2, 2]))[0].square().sum().backward()
    for group in unipelt.parameter_groups(m, "default", 1.0):
        for p in group["params"]:
            assert (p.grad.abs().amax(1) > 0).tolist() == [True, False, True]


def test_a_tensor_comes_with_each_example() -> None:
    m = model("bert", dtype=torch.float64)
    text = "modify ffn form { input image: [2, 5] A: [5, d_out] ~ normal(0.5) delta = sum(image @ A, 0) } compose add"
    plan = unipelt.apply(m, method(f"method m {{ {text} }}"))
    assert [str(i) for i in plan.inputs] == ["a tensor [2, 5] for each example"]
    image, batch = torch.randn(3, 2, 5), inputs(padded=False)
    together = out(m, **batch, image=image)
    for i in range(3):
        assert torch.allclose(
            out(m, **{k: v[i : i + 1] for k, v in batch.items()}, image=image[i]), together[i], atol=1e-6
        )
    same = out(m, **batch, image=image[0])
    assert torch.allclose(same[0], together[0], atol=1e-6) and (same[1] - together[1]).abs().max() > 1e-3
    fails("E0733", lambda: m(**batch, image=image[:2]), "[2, 2, 5] for 3 examples")
    fails("E0733", lambda: m(**batch, image=torch.ones(3, 2, 5, dtype=torch.long)), "int64")


def test_what_is_wrong_with_an_argument_is_said() -> None:
    m, batch = model("bert_labels"), inputs()
    before = out(m, **batch)
    plan = unipelt.apply(m, method(f"method m {{ {BIAS} }}"), name="mine")
    assert "input task: a whole number from 0 to 2 for each example" in str(plan)
    assert plan.to_json()["inputs"] == {"task": "a whole number from 0 to 2 for each example"}
    fails("E0731", lambda: m(**batch), "`mine`", "`task`", "from 0 to 2", "unipelt.inputs")
    fails("E0733", lambda: m(**batch, task=3), "3")
    fails("E0733", lambda: m(**batch, task=-1), "-1")
    fails("E0733", lambda: m(**batch, task=[0, 1]), "[2] for 3 examples")
    fails("E0733", lambda: m(**batch, task=torch.zeros(3)), "float32")
    fails("E0733", lambda: m(**batch, task="two"), "two")
    fails("E0543", lambda: m.bert(**batch), "takes an argument")
    fails("E0543", lambda: m.bert.encoder.layer[0](torch.zeros(1, 2, WIDTH)), "`task`")
    with unipelt.disabled(m):
        assert torch.equal(out(m, **batch, task=99), before) and torch.equal(out(m, **batch), before)
    unipelt.activate(m)
    assert torch.equal(out(m, **batch, task=1), before)
    unipelt.remove(m, "mine")
    assert torch.equal(out(m, **batch), before)


def test_an_argument_of_the_models_own_cannot_be_declared_anew() -> None:
    text = BIAS.replace("task", "token_type_ids")
    said = fails("E0738", lambda: unipelt.plan(model("bert"), method(f"method m {{ {text} }}")), "`token_type_ids`")
    assert "another name" in said
    unipelt.plan(model("llama"), method(f"method m {{ {text} }}"))


def test_a_block_gives_arguments_and_blocks_nest() -> None:
    m, batch = model("bert"), inputs()
    fails("E0732", lambda: unipelt.inputs(m, task=1).__enter__(), "`task`")
    unipelt.apply(m, method(f"method m {{ {BIAS} }}"))
    found = [out(m, **batch, task=t) for t in range(3)]
    with unipelt.inputs(m, task=1):
        assert torch.equal(out(m, **batch), found[1])
        with unipelt.inputs(m, task=torch.tensor([2, 2, 2])):
            assert torch.equal(out(m, **batch), found[2])
        assert torch.equal(out(m, **batch, task=0), found[0])  # the call itself counts first
        assert torch.equal(out(m, **batch), found[1])
        seen = []
        thread = threading.Thread(target=lambda: seen.append(fails("E0731", lambda: m(**batch))))
        thread.start()
        thread.join()
        assert seen, "a block is that of its own thread"
    fails("E0731", lambda: m(**batch))
    fails("E0732", lambda: unipelt.inputs(m, tsk=1).__enter__(), "`task`")
    with pytest.raises(ZeroDivisionError):
        with unipelt.inputs(m, task=1):
            raise ZeroDivisionError
    fails("E0731", lambda: m(**batch))


@pytest.mark.parametrize("beams", [1, 2])
def test_a_block_serves_generation(beams: int) -> None:
    m, tokens = model("gpt2"), ids(shape=(2, 5))
    unipelt.apply(m, unipelt.load(name("prompt_ensemble"))(n=3, l=4))
    randomise(m)
    options = dict(max_new_tokens=4, do_sample=False, num_beams=beams, attention_mask=torch.ones_like(tokens), **SMALL)
    with unipelt.inputs(m, member=torch.tensor([2, 0])):
        together = m.generate(input_ids=tokens, **options)
    for i, member in enumerate((2, 0)):
        with unipelt.inputs(m, member=member):
            alone = m.generate(input_ids=tokens[i : i + 1], **{**options, "attention_mask": torch.ones(1, 5)})
        assert torch.equal(together[i : i + 1], alone)


def test_two_adapters_share_an_argument_by_its_name() -> None:
    m, batch = model("bert"), inputs()
    unipelt.apply(m, method(f"method m {{ {BIAS} }}"), name="three")
    unipelt.apply(m, method(f"method m {{ {BIAS.replace('3', '5')} }}"), name="five")
    out(m, **batch, task=4)
    unipelt.activate(m, "three", "five")
    out(m, **batch, task=2)
    fails("E0733", lambda: m(**batch, task=4), "from 0 to 2")
    twin = copy.deepcopy(m)
    assert torch.equal(out(twin, **batch, task=1), out(m, **batch, task=1))


def test_saved_and_attached(tmp_path) -> None:
    m, batch = model("bert"), inputs()
    unipelt.apply(m, unipelt.load(name("prompt_ensemble"))(n=3, l=4))
    randomise(m)
    folder = unipelt.save(m, tmp_path / "saved")
    fresh = model("bert")
    unipelt.attach(fresh, folder)
    assert torch.equal(out(fresh, **batch, member=[0, 1, 2]), out(m, **batch, member=[0, 1, 2]))
    fails("E0731", lambda: fresh(**batch), "`member`")


def test_an_encoder_of_several_prompts_folds_to_several_prompts(tmp_path) -> None:
    m, batch = model("bert"), inputs()
    text = """method m(n: int = 3, l: int = 2) {
      modify embed
      form { input member: index(n) E: [n, l, d_out] ~ normal(1.0) W: [d_out, d_out] ~ normal(0.2) delta = tanh(E @ W)[member] }
      compose prepend(delta, h)
    }""".replace("W", "U")
    plan = unipelt.apply(m, method(text))
    assert plan.counts.stored == 3 * 2 * WIDTH < plan.counts.trained
    folder = unipelt.save(m, tmp_path / "saved")
    fresh = model("bert")
    unipelt.attach(fresh, folder)
    assert torch.allclose(out(fresh, **batch, member=[0, 1, 2]), out(m, **batch, member=[0, 1, 2]), atol=1e-5)


# ---------------------------------------------------------------- ensembles


def test_prompts_in_one_batch_equal_each_prompt_alone() -> None:
    """One pass over n times the batch; a prompt of the ensemble is what it is as an adapter of its own."""
    m, batch = model("bert_labels"), inputs()
    unipelt.apply(m, unipelt.load(name("prompt_ensemble"))(n=3, l=4), head=False)
    randomise(m)
    calls = []
    handle = m.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    with torch.no_grad():
        found = unipelt.ensemble(m, {**batch, "labels": torch.tensor([0, 1, 2])})
    handle.remove()
    assert calls == [9] and found.logits.shape == (3, 3, 3)
    (P,) = unipelt.state_dict(m).values()
    for i in range(3):
        other = model("bert_labels")
        unipelt.apply(other, unipelt.load(name("prompt_tuning"))(l=4), head=False)
        (own,) = unipelt.state_dict(other).values()
        with torch.no_grad():
            own.copy_(P[i])
        assert torch.allclose(found.logits[i], out(other, **batch), atol=1e-5)
    shares = found.logits.softmax(-1).mean(0)
    assert torch.allclose(found.probabilities, shares) and torch.allclose(shares.sum(-1), torch.ones(3))
    for b in range(3):
        best = found.logits[:, b].argmax(-1).tolist()
        assert found.votes[b].tolist() == pytest.approx([best.count(c) / 3 for c in range(3)])


def test_an_ensemble_of_a_language_model_and_of_other_rows() -> None:
    m, batch = model("gpt2"), inputs(padded=False)
    unipelt.apply(m, method(f"method m {{ {BIAS} }}"))
    with torch.no_grad():
        found = unipelt.ensemble(m, batch, over="task")
    assert found.logits.shape[:3] == (3, 3, 7)
    for i in range(3):
        assert torch.allclose(found.logits[i], out(m, **batch, task=i), atol=1e-5)


def test_an_ensemble_needs_members() -> None:
    m, batch = model("bert_labels"), inputs()
    fails("E0736", lambda: unipelt.ensemble(m, batch), "no acting adapter declares")
    two = BIAS.replace("task", "language")
    unipelt.apply(m, method(f"method m {{ use {{ {BIAS} }} as a use {{ {two} }} as b }}"))
    fails("E0736", lambda: unipelt.ensemble(m, batch), "language, task")
    fails("E0736", lambda: unipelt.ensemble(m, batch, over="tsk"), "`task`")
    with unipelt.inputs(m, language=1):
        assert unipelt.ensemble(m, batch, over="task").logits.shape == (3, 3, 3)
    base = model("bert")
    unipelt.apply(base, method(f"method m {{ {BIAS} }}"))
    fails("E0736", lambda: unipelt.ensemble(base, batch), "no logits")
