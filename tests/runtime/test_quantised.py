"""Bases whose weights are kept as codes. Stand-ins keep the public contract of the libraries; the libraries are used where they are there."""

import pytest
import torch
from torch import nn
from names import name as named
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

import unipelt
from unipelt.anatomy.find import find
from unipelt.anatomy.matrices import matrix

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


def swapped(make, model=None):
    model = base() if model is None else model
    for path, module in list(model.model.named_modules()):
        if isinstance(module, nn.Linear):
            host, _, name = path.rpartition(".")
            setattr(model.model.get_submodule(host), name, make(module))
    return model


def bitsandbytes_int8(model=None):
    library = pytest.importorskip("bitsandbytes")

    def make(plain):
        own = library.nn.Linear8bitLt(
            plain.in_features, plain.out_features, bias=False, has_fp16_weights=False, threshold=6.0
        )
        own.load_state_dict(plain.state_dict())
        return own.to("cpu")

    return swapped(make, model)


def bitsandbytes_4bit(model=None):
    library = pytest.importorskip("bitsandbytes")

    def make(plain):
        own = library.nn.Linear4bit(plain.in_features, plain.out_features, bias=False, quant_type="nf4")
        own.load_state_dict(plain.state_dict())
        return own.to("cpu")

    return swapped(make, model)


def quanto(model=None):
    library, model = pytest.importorskip("optimum.quanto"), base() if model is None else model
    library.quantize(model.model, weights=library.qint8)
    library.freeze(model.model)
    return model


def torchao(model=None):
    library, model = pytest.importorskip("torchao.quantization"), base() if model is None else model
    library.quantize_(model.model, library.Int8WeightOnlyConfig())
    return model


KINDS = {"int8": lambda model=None: swapped(Int8Map, model), "packed": lambda model=None: swapped(Packed, model), "bitsandbytes int8": bitsandbytes_int8,
         "bitsandbytes 4-bit": bitsandbytes_4bit, "quanto": quanto, "torchao": torchao}  # fmt: skip


@pytest.fixture(params=list(KINDS))
def model(request):
    return KINDS[request.param]()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def steps(model, optimizer):
    """The losses of four steps on the texts themselves."""
    losses = []
    for _ in range(4):
        loss = model(IDS, labels=IDS).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


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
    assert torch.equal(logits(model), wanted)
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


# ---------------------------------------------------------------- bases that no anatomy describes


_SIZES = dict(vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
              intermediate_size=128, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2)  # fmt: skip
OTHERS = {
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**_SIZES)),
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**_SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64)
    ),
}


def other(family, kind=None):
    torch.manual_seed(0)
    plain = OTHERS[family]().eval()
    return plain if kind is None else KINDS[kind](plain)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", OTHERS)
def test_sites_are_found_and_proved_as_without_quantisation(family, kind):
    """Linear maps are known by the sizes that they say, whatever operations of a library a pass shows."""
    wanted, found = find(other(family)), find(other(family, kind))
    assert [(s.label, s.view, dict(s.sizes), s.x, s.residual, s.norm) for s in found.sites] == [
        (s.label, s.view, dict(s.sizes), s.x, s.residual, s.norm) for s in wanted.sites
    ]
    assert all(s.proof == "proved" for s in found.sites)


@pytest.mark.parametrize("spec", ["lora", "mam", "unipelt_apl_causal"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", OTHERS)
def test_a_found_base_trains_and_its_adapter_comes_back(family, kind, spec, tmp_path):
    model = other(family, kind).train()
    unipelt.apply(model, unipelt.load(named(spec)), seed=0)
    parameters = [p for g in unipelt.parameter_groups(model, lr=1.0) for p in g["params"]]
    optimizer = torch.optim.SGD(parameters, lr=0.05)
    before = {n: t.clone() for n, t in unipelt.state_dict(model).items()}
    losses = steps(model, optimizer)
    assert losses[-1] < losses[0]
    assert any(not torch.equal(t, before[n]) for n, t in unipelt.state_dict(model).items())
    model.eval()
    wanted = logits(model)
    unipelt.save(model, tmp_path / "adapter")
    with pytest.raises(unipelt.PeltError):
        unipelt.merge(model)
    unipelt.remove(model)
    assert not torch.allclose(logits(model), wanted, atol=1e-5)
    unipelt.attach(model, tmp_path / "adapter")
    assert torch.allclose(logits(model), wanted, atol=1e-5)


class SelfPacking(Packed):
    """As bitsandbytes' 4-bit map on some CPUs: once it is called in evaluation mode without a gradient, none flows any more."""

    def __init__(self, plain):
        super().__init__(plain)
        self.weight.quant_state = type(
            "State", (), {"shape": tuple(plain.weight.shape), "packing_format_for_cpu": False}
        )()

    def forward(self, x):
        state = self.weight.quant_state
        state.packing_format_for_cpu |= not self.training and not x.requires_grad
        return super().forward(x).detach() if state.packing_format_for_cpu else super().forward(x)


@pytest.mark.parametrize("family", [*OTHERS, "llama"])
def test_no_pass_of_ours_packs_a_map_for_good(family):
    model = swapped(SelfPacking, other(family) if family in OTHERS else base()).train()
    plan = unipelt.apply(model, unipelt.parse(LORA), seed=0)
    assert not [w for w in plan.warnings if "packed" in w]
    model(IDS, labels=IDS).loss.backward()
    gradients = [p.grad for g in unipelt.parameter_groups(model, lr=1.0) for p in g["params"]]
    assert gradients and all(g is not None for g in gradients)
    assert all(m.training for m in model.modules())
    assert not any(m.weight.quant_state.packing_format_for_cpu for m in model.modules() if isinstance(m, SelfPacking))


def test_a_plan_says_that_maps_are_packed():
    model = swapped(SelfPacking).eval()
    logits(model)  # by the user
    said = [w for w in unipelt.plan(model, unipelt.parse(LORA)).warnings if "packed" in w]
    assert (
        len(said) == 1
        and "load the base anew" in said[0]
        and "`model.layers.0.self_attn.q_proj` and 13 others" in said[0]
    )


def test_packed_codes_are_read_as_they_were():
    library = KINDS["bitsandbytes 4-bit"]
    model, plain = library(), library()
    model.eval()
    logits(model)  # on some CPUs the codes are packed now
    for a, b in zip(model.model.layers, plain.model.layers):
        read, wanted = matrix(a.self_attn.q_proj), matrix(b.self_attn.q_proj)
        assert torch.allclose(read, wanted, atol=0.01 * float(wanted.abs().max()))
    model.state_dict()
    model.train()
    embedded = torch.randn(1, 8, 64, requires_grad=True)
    model.model.layers[0].self_attn.o_proj(embedded).sum().backward()
    assert embedded.grad is not None
