"""Generated answers: greedy, without padding at the front, and compared with what is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ...anatomy.positions import longest_text
from ...runtime.registry import registry, unwrapped
from .task import Tick


def generate(
    model: Any, prompts: Sequence[Sequence[int]], length: int, answers_only: bool, size: int = 64,
    tick: Tick | None = None,
) -> list[list[int]]:  # fmt: skip
    """Greedy continuations of prompts of token ids, at most ``length`` tokens long, as token ids.

    Prompts of equal length share a batch, so that none is padded: an answer depends on its prompt alone. ``answers_only`` says
    that the model gives back the answer without the prompt (encoder–decoders).
    """
    groups: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault(len(prompt), []).append(i)
    answers: list[list[int]] = [[] for _ in prompts]
    done = 0
    longest = longest_text(model, answer=answers_only)
    r = registry(unwrapped(model))
    rows = (
        r.input_hooks.moving if r is not None and not answers_only else 0
    )  # those of an encoder–decoder stand in its encoder
    for tokens, group in sorted(groups.items()):
        # A model with a table of positions can write no further than that, and a prompt's rows may take some of it.
        room = length if longest is None else min(length, longest - (0 if answers_only else tokens + rows))
        if room < 1:
            continue
        for start in range(0, len(group), size):
            chosen = group[start : start + size]
            ids = torch.tensor([list(prompts[i]) for i in chosen], device=model.device)
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=room, do_sample=False, num_beams=1,
                temperature=None, top_p=None, top_k=None, pad_token_id=model.config.pad_token_id,
            )  # fmt: skip
            for i, row in zip(chosen, out[:, 0 if answers_only else tokens :].tolist()):
                answers[i] = row
            done += len(chosen)
            if tick:
                tick(done, len(prompts))
    return answers


def decoded(answer: Sequence[int], tokenizer: Any) -> str:
    return tokenizer.decode(list(answer), skip_special_tokens=True).strip()


def text_metrics(
    answers: Sequence[str], references: Sequence[Sequence[str]], answer_after: str | None = None
) -> dict[str, float]:
    """BLEU and chrF (sacrebleu, 0 to 100), ROUGE F1 (the best over the references, 0 to 1), and the share of exact matches.

    Each answer is compared with one reference or several. With ``answer_after`` exact match looks behind that mark's last
    occurrence, as in GSM8K's `#### 18`.
    """
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    most = max(len(r) for r in references)
    # sacrebleu wants a stream of references for the first of each answer, one for the second, …; None where there is none.
    streams: list[Any] = [[r[i] if i < len(r) else None for r in references] for i in range(most)]
    kinds = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(kinds, use_stemmer=True)
    rouge = [scorer.score_multi(list(wanted), answer) for answer, wanted in zip(answers, references)]
    matches = [
        _final(a, answer_after) in {_final(w, answer_after) for w in wanted} for a, wanted in zip(answers, references)
    ]
    return {
        "bleu": float(sacrebleu.corpus_bleu(list(answers), streams).score),
        "chrf": float(sacrebleu.corpus_chrf(list(answers), streams).score),
        **{k: sum(r[k].fmeasure for r in rouge) / len(rouge) for k in kinds},
        "exact_match": sum(matches) / len(matches),
        "answers": len(answers),
    }


def _final(text: str, mark: str | None) -> str:
    """The part that exact match compares. A text without the mark matches no text that has it."""
    if mark is not None and mark in text:
        text = text.rpartition(mark)[2]
    elif mark is not None:
        return f"\0{text}"
    return " ".join(text.replace(",", "").split()) if mark is not None else " ".join(text.split())


def leaders(prompts: Sequence[Sequence[int]]) -> list[int]:
    """For each prompt the position of the first equal one. Only that one is answered, and the answers to all are its references."""
    first: dict[tuple[int, ...], int] = {}
    return [first.setdefault(tuple(p), i) for i, p in enumerate(prompts)]


def grouped(leads: Sequence[int], references: Sequence[str]) -> dict[int, list[str]]:
    """The references of each prompt that is generated for."""
    found: dict[int, list[str]] = {}
    for leader, text in zip(leads, references, strict=True):
        found.setdefault(leader, []).append(text)
    return found
