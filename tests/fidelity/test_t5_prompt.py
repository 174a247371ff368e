"""peft's prompt for T5 is ours: it learns rows for the encoder and for the decoder, and uses the encoder's only.

An encoder–decoder has twice the rows in peft's table (one set for each stack), and the model's forward puts the first set before
the encoder's tokens and reads the second nowhere: the recorded gradient of those rows is zero.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fidelity_kit import EFFECT, GRADIENTS, OUTPUTS, effect, gradient_error, gradients, library, output_error
from recordings import FOLDER
from test_recordings import READ_IN_PART, build, read

import unipelt

NAME, ROWS = "peft/t5-prompt_tuning", 4


@pytest.mark.skipif(FOLDER is None, reason="the recordings are not here")
@pytest.mark.parametrize("lowering", [True, False])
def test_peft_s_prompt_is_ours_before_the_encoder_s_tokens(
    lowering: bool, record_property: Callable[..., None]
) -> None:
    metadata, tensors = read(NAME)
    model = build(metadata, tensors)
    (source,) = (n.removeprefix("adapter.") for n in tensors if n.startswith("adapter."))
    recorded, gradient = tensors[f"adapter.{source}"], tensors[f"grad.{source}"]
    assert len(recorded) == len(gradient) == 2 * ROWS
    assert bool((gradient[:ROWS].abs().amax(1) > 0).all()) and not gradient[ROWS:].any()

    inputs = {n: tensors[f"input.{n}"] for n in ("input_ids", "attention_mask", "decoder_input_ids")}
    with torch.no_grad():
        base = model(**inputs).logits
    assert output_error(base, tensors["output.base"]) <= OUTPUTS
    unipelt.apply(
        model,
        library("prompt_tuning", l=ROWS, start="normal(0.02)", at="embed.words"),
        name="recorded",
        lowering=lowering,
    )
    ((name, P),) = unipelt.state_dict(model, "recorded").items()
    with torch.no_grad():
        P.copy_(recorded[:ROWS])
    out = model(**inputs).logits
    (out * tensors["input.cotangent"]).sum().backward()
    found = output_error(out, tensors["output.logits"])
    worst, _ = gradient_error(gradients(model, "recorded"), {name: (source, lambda t: t[:ROWS])}, {source: gradient})
    record_property("recording", (NAME, found, worst, READ_IN_PART[NAME]))
    assert found <= OUTPUTS and worst <= GRADIENTS and effect(out.detach(), base) > EFFECT
    with torch.no_grad():
        P.copy_(recorded[ROWS:])  # the rows that peft does not read would be seen
        assert output_error(model(**inputs).logits, tensors["output.logits"]) > EFFECT
        with unipelt.disabled(model):
            assert torch.equal(model(**inputs).logits, base)
