"""`model.forward(…)`, called past the hooks as some libraries do, gives what `model(…)` gives; where it cannot, it raises."""

from __future__ import annotations

import copy
import inspect
import io
import threading
from typing import Any

import pytest
import torch
from small import inputs, model
from torch import nn

import unipelt

ROWS = "form {{ P: [3, d_out] ~ normal(1.0)  delta = P }} compose prepend(delta, h)"
#: What enters through the model's own hooks, each by a method that reads it.
METHODS = {
    "rows": "method m() {{ modify {words} " + ROWS + " }}",
    "an argument": "method m() {{ modify ffn insert x form {{ input which: index(3)  P: [3, d_out] ~ normal(1.0)  delta = P[which] }} "
    "compose h + delta }}",
    "the mask": "method m() {{ modify ffn insert mean(x, tokens) form {{ A: [d_in, d_out] ~ normal(0.3)  delta = z @ A }} compose h + delta }}",
    "chance": "method m() {{ modify ffn insert x form {{ A: [d_in, d_out] ~ normal(0.3)  delta = z @ A }} compose h + chance * delta }}",
}


def wear(kind: str, what: str) -> nn.Module:
    m = model(kind)
    unipelt.apply(
        m, unipelt.parse(METHODS[what].format(words="embed.words" if kind == "bert" else "embed")), allow_future=True
    )
    return m


def ask(call: Any, what: str, **more: Any) -> torch.Tensor:
    torch.manual_seed(0)
    given = {"which": torch.tensor([0, 2, 1])} if what == "an argument" else {}
    with torch.no_grad():
        o = call(**inputs(), **given, **more)
    return o.logits if "logits" in o else o.last_hidden_state


@pytest.mark.parametrize("what", METHODS)
@pytest.mark.parametrize("kind", ["bert", "bert_labels", "gpt2", "llama"])
def test_forward_gives_what_the_model_gives(kind: str, what: str) -> None:
    m, other = wear(kind, what), wear(kind, what)
    with unipelt.disabled(m):
        base = ask(m.forward, "")
    first = ask(m.forward, what)  # of a model that was never called before
    assert (
        torch.equal(first, ask(other, what))
        and torch.equal(ask(m, what), first)
        and torch.equal(ask(m.forward, what), first)
    )
    assert first.shape == base.shape and not torch.allclose(first, base, atol=1e-3)


@pytest.mark.parametrize("method", ["lora", "probing_mean"])
def test_labels_of_one_s_own_have_a_loss(method: str) -> None:
    m = model("bert_labels")
    unipelt.apply(m, unipelt.load(method), labels=5)
    labels = torch.tensor([4, 0, 3])
    found = m.forward(**inputs(), labels=labels)
    assert (
        found.loss is not None
        and torch.equal(found.loss, m(**inputs(), labels=labels).loss)
        and found.logits.shape == (3, 5)
    )


def t5() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    m = T5ForConditionalGeneration(T5Config(vocab_size=80, d_model=32, d_kv=8, d_ff=48, num_heads=4, num_layers=2, pad_token_id=0,
                                            decoder_start_token_id=0)).eval()  # fmt: skip
    unipelt.apply(m, unipelt.parse(METHODS["rows"].format(words="embed")))
    return m, {**inputs(), "decoder_input_ids": inputs()["input_ids"][:, :4]}


def test_an_encoder_decoder_and_its_encoder() -> None:
    m, given = t5()
    with torch.no_grad():
        assert torch.equal(m.forward(**given).logits, m(**given).logits)
        states = m.get_encoder().forward(**inputs()).last_hidden_state
        assert torch.equal(states, m.get_encoder()(**inputs()).last_hidden_state) and states.shape[1] == 7 + 3


@pytest.mark.parametrize("what", ["rows", "an argument"])
def test_the_base_s_own_forward_is_refused_as_a_call_of_the_base_is(what: str) -> None:
    m = wear("gpt2", what)
    for call in (m.transformer, m.transformer.forward):
        with pytest.raises(unipelt.PeltError, match="E0543"):
            call(**inputs())
    assert torch.equal(ask(m.forward, what), ask(m, what))


def test_what_watches_sees_such_a_pass() -> None:
    m = wear("bert", "rows")
    seen = []
    for call in (m, m.forward):
        with unipelt.watch(m, "default") as s:
            ask(call, "rows")
        seen.append(str(s))
    assert seen[0] == seen[1] and "embed" in seen[0]


# ---------------------------------------------------------------- what is there is as it was


@pytest.mark.parametrize("what", METHODS)
def test_the_signature_is_the_model_s_own_and_nothing_stays(what: str) -> None:
    plain = model("bert")
    m = wear("bert", what)
    assert inspect.signature(m.forward) == inspect.signature(plain.forward)
    unipelt.apply(m, unipelt.load("lora"), "other")
    unipelt.remove(m, "default")
    assert "forward" not in vars(m) and torch.equal(ask(m.forward, ""), ask(m, ""))
    unipelt.remove(m, "other")
    assert torch.equal(ask(m.forward, ""), ask(plain, "")) and vars(m).keys() == vars(plain).keys()


def test_an_adapter_that_needs_no_hook_of_the_model_changes_no_forward() -> None:
    m = model("bert")
    unipelt.apply(m, unipelt.load("lora"))
    assert not any("forward" in vars(part) for part in m.modules())


@pytest.mark.parametrize("what", ["rows", "the mask"])
def test_a_copy_has_its_own(what: str) -> None:
    m = wear("bert", what)
    wanted = ask(m, what)
    buffer = io.BytesIO()
    torch.save(m, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(m), torch.load(buffer, weights_only=False)):
        assert torch.equal(ask(other.forward, what), wanted)
        with torch.no_grad():
            for p in other.parameters():
                p.mul_(1.5)
        changed = ask(other.forward, what)
        assert not torch.allclose(changed, wanted) and torch.equal(changed, ask(other, what))
        unipelt.remove(other, "default")
        assert "forward" not in vars(other) and torch.equal(ask(m.forward, what), wanted)


def test_after_a_pass_that_failed() -> None:
    m = wear("bert", "rows")
    wanted = ask(m, "rows")
    for call in (m, m.forward):
        with pytest.raises(IndexError):
            call(input_ids=torch.full((2, 3), 5_000))
        assert torch.equal(ask(m.forward, "rows"), wanted)


def test_in_threads() -> None:
    m = wear("bert", "rows")
    wanted, wrong = ask(m, "rows"), []

    def run(call: Any) -> None:
        for _ in range(20):
            with torch.no_grad():
                if not torch.equal(call(**inputs()).last_hidden_state, wanted):
                    wrong.append(call)

    threads = [threading.Thread(target=run, args=(c,)) for c in (m, m.forward, m, m.forward)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


@pytest.mark.parametrize("first", ["the adapter", "accelerate"])
def test_beside_a_library_that_has_a_forward_of_its_own(first: str) -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    class Counts(ModelHook):
        calls = 0

        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return args, kwargs

    counts = Counts()
    wanted = ask(wear("bert", "rows"), "rows")
    if first == "the adapter":
        m = wear("bert", "rows")
        add_hook_to_module(m, counts)
    else:
        m = add_hook_to_module(model("bert"), counts)
        unipelt.apply(m, unipelt.parse(METHODS["rows"].format(words="embed.words")))
        counts.calls = 0  # sites are searched by passes of the model as it is
    assert torch.equal(ask(m, "rows"), wanted) and counts.calls == 1
    assert torch.equal(ask(m.forward, "rows"), wanted) and counts.calls > 1
    before, plain = counts.calls, ask(model("bert"), "")
    unipelt.remove(m, "default")
    assert torch.equal(ask(m, ""), plain) and torch.equal(ask(m.forward, ""), plain) and counts.calls == before + 2
    remove_hook_from_module(m)
    assert torch.equal(ask(m.forward, ""), plain)


def test_generation_goes_on() -> None:
    m = wear("gpt2", "rows")
    ids = inputs(padded=False)["input_ids"]
    found = m.generate(ids, max_new_tokens=4, do_sample=False, pad_token_id=0)
    with torch.no_grad():
        assert torch.equal(m.forward(found[:, :-1]).logits[:, -1].argmax(-1), found[:, -1])
