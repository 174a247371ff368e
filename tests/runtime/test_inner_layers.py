"""`layers` at the head: the states of an inner layer are what a probe reads; and where a selection would mean nothing."""

from __future__ import annotations

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small import LAYERS, WIDTH, WORDS, checkpoint_activations, inputs, model, output, randomise, state
from torch import nn
from torch.utils.checkpoint import checkpoint

import unipelt
from unipelt.language.analyse.method import analyse
from unipelt.runtime.registry import record

POOLED = ("method probe { layers LAYERS  modify head  insert mean(x, tokens)  form { A: [d_in, d_out] ~ normal(0.1)  b: [d_out] ~ normal(1.0)  "
          "delta = z @ A + b }  compose { out = delta } }")  # fmt: skip
EACH = "method probe { layers LAYERS  modify head  insert parallel  form { A: [d_in, d_out] ~ normal(0.1)  delta = z @ A }  compose add }"
BLOCKS = "method blocks { modify block  form { b: [d_out] ~ normal(0.5)  delta = b }  compose add }"


def probe(layers: str, text: str = POOLED) -> unipelt.Method:
    return unipelt.parse(text.replace("LAYERS", layers))


def one(layer: int) -> str:
    return f"{layer} .. {layer + 1}"


def states(m: Any, **given: Any) -> tuple[torch.Tensor, ...]:
    """What leaves each layer of the base, as transformers has it, before any norm behind the last."""
    seen: dict[int, torch.Tensor] = {}
    blocks = m.bert.encoder.layer if hasattr(m, "bert") else m.model.layers if hasattr(m, "model") else m.transformer.h
    handles = [b.register_forward_hook(lambda _, __, left, i=i: seen.update({i: left if isinstance(left, torch.Tensor) else left[0]}))
               for i, b in enumerate(blocks)]  # fmt: skip
    with torch.no_grad():
        m(**(given or inputs()))
    for h in handles:
        h.remove()
    return tuple(seen[i] for i in range(len(blocks)))


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("lowering", [True, False])
def test_a_probe_reads_the_layer_that_it_names(layer: int, lowering: bool, tmp_path: Path) -> None:
    m = model("bert_labels")
    mask = inputs()["attention_mask"][..., None]
    found = states(m)[layer]
    assert all((found - other).abs().max() > 0.1 for i, other in enumerate(states(m)) if i != layer)
    plan = unipelt.apply(m, probe(one(layer)), lowering=lowering)
    tensors = unipelt.state_dict(m)
    assert list(tensors) == [f"encoder.layer.{layer}.head.probe.{n}" for n in "Ab"]
    expected = (found * mask).sum(1) / mask.sum(1) @ tensors[f"encoder.layer.{layer}.head.probe.A"] + tensors[
        f"encoder.layer.{layer}.head.probe.b"
    ]
    torch.testing.assert_close(output(m), expected)
    assert [e["layers"] for e in plan.table()] == [str(layer)] and plan.counts.head == WIDTH * 3 + 3
    unipelt.save(m, tmp_path / "a")
    again = model("bert_labels")
    unipelt.attach(again, tmp_path / "a")
    torch.testing.assert_close(output(again), output(m))


@pytest.mark.parametrize(
    "words, layer",
    [
        ("1", 1),
        ("depth - 2", LAYERS - 2),
        ("first 1", 0),
        ("last 1", LAYERS - 1),
        (f"every {LAYERS}", 0),
        ("(depth - 2) .. depth - 1", LAYERS - 2),
    ],
)
def test_any_selection_of_one_layer(words: str, layer: int) -> None:
    m, other = model("bert_labels"), model("bert_labels")
    unipelt.apply(m, probe(words))
    unipelt.apply(other, probe(one(layer)))
    assert torch.equal(output(m), output(other))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_language_model_reads_an_inner_layer_at_each_token(kind: str) -> None:
    m, ids = model(kind), inputs(padded=False)["input_ids"]
    plain, found = output(m, input_ids=ids), states(m, input_ids=ids)
    unipelt.apply(m, probe(one(1), EACH))
    (A,) = unipelt.state_dict(m).values()
    torch.testing.assert_close(output(m, input_ids=ids), plain + found[1] @ A)
    with_cache, without = (
        m.generate(input_ids=ids, max_new_tokens=4, do_sample=False, use_cache=c, pad_token_id=0) for c in (True, False)
    )
    assert torch.equal(with_cache, without)


def test_the_decoder_s_layers_are_meant_where_there_is_an_encoder() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=WORDS,
        d_model=WIDTH,
        d_kv=6,
        d_ff=48,
        num_layers=4,
        num_decoder_layers=2,
        num_heads=4,
        pad_token_id=0,
    )
    m: Any = T5ForConditionalGeneration(config).eval()
    given = {**inputs(), "decoder_input_ids": inputs()["input_ids"][:, :5]}
    with torch.no_grad():
        plain = m(**given, output_hidden_states=True)
    unipelt.apply(m, probe(one(0), EACH))
    (n,) = unipelt.state_dict(m)
    assert n == "decoder.block.0.head.probe.A"
    torch.testing.assert_close(
        output(m, **given), plain.logits + plain.decoder_hidden_states[1] @ unipelt.state_dict(m)[n]
    )
    with pytest.raises(unipelt.PeltError, match="E0516"):  # the encoder has a layer 3
        unipelt.plan(m, probe(one(3), EACH))


def test_a_layer_as_wide_as_it_is() -> None:
    """OPT's last states are projected to the width of its words."""
    from transformers import OPTConfig, OPTForCausalLM

    m = OPTForCausalLM(OPTConfig(vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, ffn_dim=48,
                                 word_embed_proj_dim=16, max_position_embeddings=32, do_layer_norm_before=False)).eval()  # fmt: skip
    unipelt.apply(m, probe(one(0), EACH))
    assert [t.shape for t in unipelt.state_dict(m).values()] == [(WIDTH, WORDS)]
    assert output(m, input_ids=inputs()["input_ids"]).shape[-1] == WORDS


@pytest.mark.parametrize("order", list(itertools.permutations("ab")), ids="".join)
@pytest.mark.parametrize("layer", [1, LAYERS - 1])
def test_edits_of_the_layer_are_in_what_is_read(order: tuple[str, ...], layer: int) -> None:
    """Whichever of the two was attached first."""
    m = model("bert_labels")
    methods = {"a": probe(one(layer)), "b": unipelt.parse(BLOCKS)}
    for n in order:
        unipelt.apply(m, methods[n], name=n)
    unipelt.activate(m, "b")
    found, mask = states(m)[layer], inputs()["attention_mask"][..., None]
    A, b = unipelt.state_dict(m, "a").values()
    unipelt.activate(m, "a", "b")
    torch.testing.assert_close(output(m), (found * mask).sum(1) / mask.sum(1) @ A + b)


def test_probes_of_two_layers_in_one_method() -> None:
    """A row for each layer; each reads its own."""
    m = model("bert_labels")
    both = unipelt.parse("method both { use { layers 0 .. 1  modify head  insert mean(x, tokens)  form { A: [d_in, d_out] ~ normal(0.1)  delta = z @ A } "
                         "compose add } as low  use { layers 2 .. 3  modify head  insert mean(x, tokens)  form { A: [d_in, d_out] ~ normal(0.1)  "
                         "delta = z @ A }  compose add } as high }")  # fmt: skip
    plain, found, mask = output(m), states(m), inputs()["attention_mask"][..., None]
    unipelt.apply(m, both)
    A = unipelt.state_dict(m)
    pooled = [(found[i] * mask).sum(1) / mask.sum(1) for i in (0, 2)]
    expected = plain + pooled[0] @ A["encoder.layer.0.head.low.A"] + pooled[1] @ A["encoder.layer.2.head.high.A"]
    torch.testing.assert_close(output(m), expected)


def test_labels_of_its_own() -> None:
    m = model("bert_labels")
    unipelt.apply(m, probe(one(0)), labels=5)
    assert output(m).shape == (3, 5)
    with unipelt.disabled(m):
        assert output(m).shape == (3, 3)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_the_layers_below_and_no_others(checkpointing: bool) -> None:
    m = model("bert_labels")
    low = unipelt.parse(
        "method low { modify attn.q  insert parallel  form { A: [d_in, 2] ~ normal(0.3)  B: [2, d_out] ~ normal(0.3)  delta = z @ A @ B } compose add }"
    )
    unipelt.apply(m, probe(one(1)) + low)
    if checkpointing:
        m.train()
        checkpoint_activations(m)
    m(**inputs(), labels=torch.tensor([0, 1, 2])).loss.backward()
    for n, p in record(m, "default").trained().items():
        below = "head" in n or int(n.split(".")[2]) <= 1
        assert (p.grad is not None and float(p.grad.abs().max()) > 0) is below, n


def test_checkpointing_that_would_lose_the_gradient_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a layer's whole call is checkpointed with reentry, what its hooks see has no gradient."""
    m: Any = model("bert_labels")
    unipelt.apply(m, probe(one(1)))
    acting = output(m)

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        inner = partial(nn.Module.__call__, self, **kwargs)
        return checkpoint(inner, *args, use_reentrant=True) if torch.is_grad_enabled() else inner(*args)

    monkeypatch.setattr(type(m.bert.encoder.layer[1]), "__call__", call)
    m.enable_input_require_grads()
    with pytest.raises(unipelt.PeltError, match="(?s)E0524.*use_reentrant"):
        m(**inputs(), labels=torch.tensor([0, 1, 2]))
    assert torch.equal(output(m), acting)  # without gradients nothing is lost


def test_compiled_whole() -> None:
    m = model("bert_labels")
    unipelt.apply(m, probe(one(1)))
    acting = output(m)
    torch.testing.assert_close(output(torch.compile(m, fullgraph=True, backend="aot_eager")), acting)


def test_watched() -> None:
    m = model("bert_labels")
    unipelt.apply(m, probe(one(1), EACH.replace("insert parallel", "insert mean(x, tokens)")))
    randomise(m)
    with unipelt.watch(m, "default") as seen:
        output(m)
    assert [str(p) for p in seen.edits] == ["probe/head/1"]


# ---------------------------------------------------------------- where it means nothing


ROWS = "form { P: [2, d_model] ~ normal(0.02)  delta = P }  compose prepend(delta, h)"


@pytest.mark.parametrize("text, code", [
    (f"layers first 2  modify embed  {ROWS}", "E0518"), (f"layers 0 .. depth  modify embed.words  {ROWS}", "E0518"),
    ("layers last 1  modify embed  compose h * 2", "E0518"), ("layers last 1  modify attn, embed  compose h * 2", "E0518"),
    ("layers last 1  modify head  compose h * 2", "E0519"), ("layers last 1  modify head  insert sequential  form { delta = tanh(z) }  compose add", "E0519"),
])  # fmt: skip
def test_a_selection_that_means_nothing_is_a_mistake_before_there_is_a_model(text: str, code: str) -> None:
    with pytest.raises(unipelt.PeltError) as e:
        analyse(unipelt.parse(f"method m {{ {text} }}"))
    assert [d.code for d in e.value.diagnostics] == [code]
    plain = text.replace(text[text.index("layers") : text.index("modify")], "")
    analyse(unipelt.parse(f"method m {{ {plain} }}"))
    analyse(unipelt.parse(f"method m {{ layers all  {plain} }}"))


@pytest.mark.parametrize("kind, text, code, said", [
    ("bert_labels", POOLED.replace("LAYERS", "first 2"), "E0519", "2 are selected"), ("bert_labels", POOLED.replace("LAYERS", "every 1"), "E0519", "3 are"),
    ("bert_labels", POOLED.replace("LAYERS", "5 .. 6"), "E0516", "none of the 3 layers"),
    ("bert_labels", "method m { layers first 2  modify attn.o, head  insert parallel  form { A: [d_in, d_out] ~ zeros  delta = z @ A }  compose add }",
     "E0519", "2 are selected"),
])  # fmt: skip
def test_a_selection_that_is_not_one_layer_is_a_mistake(kind: str, text: str, code: str, said: str) -> None:
    m = model(kind)
    before = state(m)
    for call in (unipelt.plan, unipelt.apply):
        with pytest.raises(unipelt.PeltError) as e:
            call(m, unipelt.parse(text))
        (d,) = e.value.diagnostics
        assert d.code == code and said in d.message
    assert state(m) == before


def test_layers_that_one_module_serves_cannot_be_told_apart_at_the_head_either() -> None:
    from transformers import AlbertConfig, AlbertForSequenceClassification

    m = AlbertForSequenceClassification(AlbertConfig(vocab_size=WORDS, embedding_size=16, hidden_size=WIDTH, num_hidden_layers=3,
                                                     num_attention_heads=4, intermediate_size=48)).eval()  # fmt: skip
    with pytest.raises(unipelt.PeltError, match="E0703"):
        unipelt.plan(m, probe(one(1)))
