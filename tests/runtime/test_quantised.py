"""Bases whose weights are kept as codes. Stand-ins keep the public contract of the libraries; the libraries are used where they are there."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import unipelt

LORA = """method m { modify attn.q, attn.o insert parallel
  form { A: [d_in, 4] ~ normal(0.1)
         B: [4, d_out] ~ normal(0.1)
         delta = z @ A @ B } compose add }"""
IDS = torch.arange(1, 9)[None]


class Int8Map(nn.Module):
    """int8 codes with a scale for each row, as bitsandbytes keeps them once a map was called."""

    def __init__(self, plain):
        super().__init__()
        self.in_features, self.out_features, self.bias = plain.in_features, plain.out_features, None
        self.scale = plain.weight.detach().abs().amax(1) / 127
        self.weight = nn.Parameter(
            (plain.weight.detach() / self.scale[:, None]).round().to(torch.int8), requires_grad=False
        )

    def forward(self, x):
        return x @ (self.weight.to(x.dtype) * self.scale[:, None].to(x.dtype)).T


class Packed(nn.Module):
    """Two numbers in each byte, in one column: the weight's shape says nothing of the map's."""

    def __init__(self, plain):
        super().__init__()
        self.in_features, self.out_features, self.bias = plain.in_features, plain.out_features, None
        self.plain = plain.weight.detach().clone()
        self.weight = nn.Parameter(torch.zeros(plain.weight.numel() // 2, 1, dtype=torch.uint8), requires_grad=False)

    def forward(self, x):
        return x @ self.plain.T


def base():
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
                         intermediate_size=128, tie_word_embeddings=False)  # fmt: skip
    return LlamaForCausalLM(config).eval()


def swapped(make):
    model = base()
    for path, module in list(model.model.named_modules()):
        if isinstance(module, nn.Linear):
            host, _, name = path.rpartition(".")
            setattr(model.model.get_submodule(host), name, make(module))
    return model


def bitsandbytes_int8():
    library = pytest.importorskip("bitsandbytes")

    def make(plain):
        own = library.nn.Linear8bitLt(
            plain.in_features, plain.out_features, bias=False, has_fp16_weights=False, threshold=6.0
        )
        own.load_state_dict(plain.state_dict())
        return own.to("cpu")

    return swapped(make)


def bitsandbytes_4bit():
    library = pytest.importorskip("bitsandbytes")

    def make(plain):
        own = library.nn.Linear4bit(plain.in_features, plain.out_features, bias=False, quant_type="nf4")
        own.load_state_dict(plain.state_dict())
        return own.to("cpu")

    return swapped(make)


def quanto():
    library, model = pytest.importorskip("optimum.quanto"), base()
    library.quantize(model.model, weights=library.qint8)
    library.freeze(model.model)
    return model


def torchao():
    library, model = pytest.importorskip("torchao.quantization"), base()
    library.quantize_(model.model, library.Int8WeightOnlyConfig())
    return model


KINDS = {"int8": lambda: swapped(Int8Map), "packed": lambda: swapped(Packed), "bitsandbytes int8": bitsandbytes_int8,
         "bitsandbytes 4-bit": bitsandbytes_4bit, "quanto": quanto, "torchao": torchao}  # fmt: skip


@pytest.fixture(params=list(KINDS))
def model(request):
    return KINDS[request.param]()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def refused(code, call, *args, **kwargs):
    with pytest.raises(unipelt.PeltError) as caught:
        call(*args, **kwargs)
    assert caught.value.diagnostics[0].code == code and caught.value.diagnostics[0].help


def test_an_adapter_is_saved_and_comes_back_and_a_merge_is_refused(model, tmp_path):
    untouched = logits(model)
    plan = unipelt.apply(model, unipelt.parse(LORA))
    assert plan.counts.base == sum(p.numel() for p in base().parameters())
    wanted = logits(model)
    assert not torch.allclose(wanted, untouched, atol=1e-2)
    unipelt.save(model, tmp_path / "adapter")
    refused("E0565", unipelt.merge, model)
    refused("E0565", unipelt.save_merged, model, tmp_path / "plain")
    assert not (tmp_path / "plain").exists() and torch.equal(logits(model), wanted)
    unipelt.remove(model)
    assert torch.equal(logits(model), untouched)
    unipelt.attach(model, tmp_path / "adapter")
    assert torch.equal(logits(model), wanted)
    # and what the refusal says: the base without quantisation takes the adapter and the merge
    plain = base()
    unipelt.attach(plain, tmp_path / "adapter", force=True)
    own = logits(plain)
    unipelt.merge(plain)
    assert torch.allclose(logits(plain), own, atol=1e-4)


def test_codes_are_not_trained(model):
    untouched = logits(model)
    refused("E0566", unipelt.apply, model, unipelt.parse("method m { train attn.q.weight }"))
    assert torch.equal(logits(model), untouched)


@pytest.mark.parametrize("kind", ["int8", "packed"])
def test_codes_that_nobody_here_can_read_are_not_taken_for_weights(kind):
    exact = "method m { modify attn.q insert parallel form { n: [d_in] = norm(W, 1) B: [d_in, d_out] ~ zeros delta = (z * n) @ B } compose add }"
    refused("E0565", unipelt.apply, KINDS[kind](), unipelt.parse(exact))


@pytest.mark.parametrize("kind", ["bitsandbytes int8", "bitsandbytes 4-bit", "quanto", "torchao"])
def test_an_exact_start_reads_the_values_and_not_the_codes(kind):
    exact = "method m { modify attn.q insert parallel form { n: [d_in] = norm(W, 1) B: [d_in, d_out] ~ zeros delta = (z * n) @ B } compose add }"
    quantised, plain = KINDS[kind](), base()
    for m in (quantised, plain):
        logits(m)
        unipelt.apply(m, unipelt.parse(exact))
    for n, t in unipelt.state_dict(plain).items():
        assert torch.allclose(unipelt.state_dict(quantised)[n].float(), t, rtol=0.1)
