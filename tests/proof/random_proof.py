"""Random well-typed methods, each proved on a model that takes it (`random_methods`, `proof`)."""

from __future__ import annotations

from proof import Proof, prove
from random_methods import text

from unipelt.language.analyse.method import analyse
from unipelt.language.types.carried import carries
from unipelt.language.report.diagnostics import PeltError
from unipelt.language.loading import parse

#: In turn: decoders, of which every verdict asks something, and then whatever takes a method that they refuse.
FIRST = ("gpt2", "llama", "t5", "gpt2", "llama", "bart", "gpt2", "llama")
THEN = ("t5", "llama", "bert_head", "vit_head", "whisper", "albert_head", "mixtral")
#: Where a "no" is not shown at once: other models, draws and sizes of the tensors.
MORE = [(kind, seed, scale) for seed, scale in ((1, 0.05), (2, 1.0), (3, 0.3), (4, 2.0))
        for kind in ("llama", "gpt2", "t5", "bart", "bert_words", "bert_head", "mixtral")]  # fmt: skip


def proved(seed: int) -> Proof | str:
    """The proof of a random method, or the code of the mistake for which the checker refuses it."""
    try:
        method = parse(text(seed))
        analyse(method)
    except PeltError as e:
        return e.diagnostics[0].code
    refused: dict[str, str] = {}
    for kind in (FIRST[seed % len(FIRST)], *THEN):
        if kind in refused:
            continue
        several = any(carries(r) for r in method.rows)  # in one layer nothing is handed on
        proof = prove(method, [kind], layers=2 if several else 1, more=MORE)
        refused |= proof.refused
        if kind not in proof.refused:
            break
    proof.refused = refused
    return proof
