"""`unipelt merge` of a quantised base says what it wrote."""

import torch
from codes import coded
from safetensors.torch import load_file
from test_commands import call, parsed
from transformers import AutoModelForSequenceClassification

import unipelt
from unipelt.training import adapters
from unipelt.training.models import load_as, load_plain, quiet

LORA = "method m { modify attn.q insert parallel form { A: [d_in, 4] ~ normal(0.1) B: [4, d_out] ~ normal(0.1) delta = z @ A @ B } compose add }"


def test_how_large_the_folder_is_against_the_quantised_base(bert, tmp_path, monkeypatch):
    with quiet():
        model = coded(load_plain(bert, "sequence-classification"), "bert.encoder")
    unipelt.apply(model, unipelt.parse(LORA))
    unipelt.save(model, tmp_path / "adapter")
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        wanted = model(ids).logits
    merge = ("merge", tmp_path / "adapter", "--model", bert, "--force")
    assert "quantised" not in "".join(call(*merge, "--out", tmp_path / "plain"))
    monkeypatch.setattr(adapters, "load_as", lambda *args: coded(load_as(*args), "bert.encoder"))
    said = "".join(call(*merge, "--out", tmp_path / "one"))
    found = parsed(*merge, "--out", tmp_path / "two")["dequantised"]
    file = tmp_path / "two" / "model.safetensors"
    assert found["weights"] == sum("codes" in str(type(p)) for p in model.parameters()) > 0
    assert found["folder_bytes"] == file.stat().st_size
    saved = sum(3 * p.numel() - 4 * len(p) for p in model.parameters() if "codes" in str(type(p)))
    assert abs(found["folder_bytes"] - found["base_bytes"] - saved) < 20_000  # the file's header
    assert f"{found['weights']} weights were quantised" in said and "times the quantised base" in said
    with torch.no_grad():
        assert torch.allclose(
            AutoModelForSequenceClassification.from_pretrained(tmp_path / "two").eval()(ids).logits, wanted, atol=1e-4
        )
    assert load_file(file).keys() == load_file(tmp_path / "plain" / "model.safetensors").keys()
