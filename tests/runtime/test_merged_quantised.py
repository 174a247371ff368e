"""A model whose base is quantised is written as a plain folder: codes dequantised, the adapter added."""

import json

import pytest
import torch
from codes import Codes, coded
from safetensors.torch import load_file
from test_quantised import KINDS, refused
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import unipelt
from unipelt.anatomy.matrices import matrix
from unipelt.anatomy.quantised import is_quantised

LORA = """method m { modify attn.q, ffn.down insert parallel
  form { A: [d_in, 4] ~ normal(0.1)
         B: [4, d_out] ~ normal(0.1)
         delta = z @ A @ B } compose add }"""
DORA = """method m { modify attn.v.weight form { B: [d_in, d_out] ~ normal(0.02) delta = (z + B) * 1.1 } compose replace }"""
IDS = torch.arange(1, 9)[None]


def llama(tied=True, **more):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                                        intermediate_size=128, tie_word_embeddings=tied, **more)).train()  # fmt: skip


def swapped(kind):
    """Quantised in memory, through the library itself."""
    return lambda tmp_path: KINDS[kind](llama())


def loaded(library, config, model=llama):
    """Quantised as transformers does it on opening a folder."""

    def make(tmp_path):
        pytest.importorskip(library)
        model().save_pretrained(tmp_path / "base")
        return AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=config(), device_map="cpu").train()  # fmt: skip

    return make


def torchao_config():
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def nf4():
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


def quanto_config():
    from transformers import QuantoConfig

    return QuantoConfig(weights="int8")


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=64, n_embd=64, n_layer=2, n_head=4, n_inner=128, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
        )
    )


MADE = {
    "codes": lambda tmp_path: coded(llama()),
    "codes, a head of its own": lambda tmp_path: coded(llama(tied=False)),
    "quanto": swapped("quanto"),
    "torchao": swapped("torchao"),
    "bitsandbytes 4-bit": swapped("bitsandbytes 4-bit"),
    "torchao, loaded": loaded("torchao", torchao_config),
    "quanto, loaded": loaded("optimum.quanto", quanto_config),
    "bitsandbytes 4-bit, loaded": loaded("bitsandbytes", nf4),
    "bitsandbytes 4-bit, gpt2": loaded("bitsandbytes", nf4, gpt2),
}


def logits(model):
    """In train mode, without dropout: in evaluation bitsandbytes computes with rounder numbers on some CPUs."""
    with torch.no_grad():
        return model(IDS).logits


def close(a, b):
    return float((a - b).abs().max()) <= 1e-4 * float(b.abs().max())


@pytest.mark.parametrize("kind", MADE)
def test_the_folder_is_a_plain_model_with_the_quantised_models_outputs(kind, tmp_path):
    model = MADE[kind](tmp_path)
    untouched = logits(model)
    unipelt.apply(model, unipelt.parse(LORA))
    wanted, config = logits(model), model.config.to_dict()
    assert not close(untouched, wanted)
    refused("E0565", unipelt.merge, model)
    folder = unipelt.save_merged(model, tmp_path / "plain")
    assert torch.equal(logits(model), wanted) and model.config.to_dict() == config
    assert any(is_quantised(p) for p in model.parameters())
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    again, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    assert {type(p) for p in again.parameters()} == {nn.Parameter}
    assert {t.dtype for t in load_file(folder / "model.safetensors").values()} == {torch.float32}
    assert close(logits(again.train()), wanted)
    head, table = again.get_output_embeddings().weight, again.get_input_embeddings().weight
    assert (head is table) == (model.get_output_embeddings().weight is model.get_input_embeddings().weight)


def test_codes_that_were_packed_by_a_call_are_read_and_stay_packed(tmp_path):
    """Rows of several blocks have several scales."""
    model = MADE["bitsandbytes 4-bit, loaded"](tmp_path)
    wanted = [matrix(block.mlp.down_proj).clone() for block in model.model.layers]
    unipelt.apply(model.eval(), unipelt.parse(LORA))
    before = logits(model)  # on some CPUs the codes are packed now
    for block, W in zip(model.model.layers, wanted):
        assert torch.allclose(matrix(block.mlp.down_proj), W, atol=0.01 * float(W.abs().max()))
    folder = unipelt.save_merged(model, tmp_path / "plain")
    assert torch.equal(logits(model), before)
    again = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert (logits(again) - before).abs().max() < 0.05 * before.abs().max()


def test_two_adapters_and_one_of_the_weight_itself(tmp_path):
    model = coded(llama())
    unipelt.apply(model, unipelt.parse(LORA), name="a")
    unipelt.apply(model, unipelt.parse(DORA), name="b", seed=1)
    unipelt.activate(model, "a", "b")
    wanted = logits(model)
    folder = unipelt.save_merged(model, tmp_path / "plain", ["a", "b"])
    assert torch.equal(logits(model), wanted)
    assert close(logits(AutoModelForCausalLM.from_pretrained(folder).train()), wanted)


def test_a_table_whose_head_became_codes_is_no_longer_tied(tmp_path):
    model = llama()
    head = model.lm_head.weight.detach()
    model.lm_head.weight = nn.Parameter(Codes((head * 20).round().to(torch.int8), torch.full((64, 1), 0.05)), requires_grad=False)  # fmt: skip
    unipelt.apply(model, unipelt.parse(LORA))
    wanted = logits(model)
    folder = unipelt.save_merged(model, tmp_path / "plain")
    assert model.config.tie_word_embeddings
    assert close(logits(AutoModelForCausalLM.from_pretrained(folder).train()), wanted)


@pytest.mark.parametrize("kind", ["int8", "packed"])
def test_codes_that_nobody_here_can_read_are_refused_and_nothing_is_written(kind, tmp_path):
    model = KINDS[kind](llama())
    unipelt.apply(model, unipelt.parse(LORA))
    wanted = logits(model)
    refused("E0565", unipelt.save_merged, model, tmp_path / "plain")
    assert not list(tmp_path.iterdir()) and torch.equal(logits(model), wanted)


def test_codes_kept_beside_the_parameters_are_refused(tmp_path):
    """A map that no edit is at counts, too: its codes would be left out of the folder."""
    model = llama()
    unipelt.apply(model, unipelt.parse(LORA))
    other = model.model.layers[0].mlp.up_proj
    codes = other.weight.detach().to(torch.int32)
    del other.weight
    other.register_buffer("qweight", codes)
    refused("E0565", unipelt.save_merged, model, tmp_path / "plain")
    assert not list(tmp_path.iterdir())
