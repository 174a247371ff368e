"""`transformers.pipeline` on an adapted model: it says what the adapted model gives by hand, whatever acts at the time.

By hand means without a cache, and but for classification each text by itself, without padding; the pipelines take several
at once. Pipelines for questions, summaries and other texts from texts are no longer part of transformers 5.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from names import name as named
from tiny import PAD, build, put
from tiny_hf import write_tokenizer
from transformers import BertForMaskedLM, BertForTokenClassification, ViTImageProcessor, pipeline

import unipelt

NEAR, EFFECT = 1e-5, 1e-3
TEXTS = ["money return please", "when can my parcel arrive", "close"]
MASKED = ["money [MASK] please", "when can my [MASK] arrive", "[MASK] account"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    made = write_tokenizer(tmp_path_factory.mktemp("tokenizer"), ("[MASK]",), mask_token="[MASK]")
    assert made.pad_token_id == PAD
    return made


def adapted(model: Any, first: str, second: str, **options: Any) -> Any:
    """With the adapters `a` and `b`; `b` acts."""
    put(model, named(first), name="a", **options)
    put(model, named(second), name="b", noise=1)
    return model


def with_head(cls: Any) -> Any:
    """A BERT with another head, random as the rest."""
    config = build("bert_head").config
    torch.manual_seed(3)
    model = cls(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    return model.eval()


def apart(found: Any, wanted: Any) -> float:
    a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (found, wanted))
    return float((a - b).abs().max()) if a.shape == b.shape else float("inf")


def in_every_state(model: Any, by_pipeline: Any, by_hand: Any) -> list[Any]:
    """Compares while `a` acts, `b`, both, and none, with one pipeline; gives what was found. Any two states differ."""
    found = []
    for state in (("a",), ("b",), ("b", "a"), ()):
        unipelt.activate(model, *state)
        with torch.no_grad():
            found.append(by_pipeline())
            assert apart(found[-1], by_hand()) <= NEAR, state
    assert all(apart(x, y) > EFFECT for i, x in enumerate(found) for y in found[:i])
    unipelt.activate(model, "a")
    with torch.no_grad(), unipelt.disabled(model):
        assert apart(by_pipeline(), found[-1]) == 0.0
    assert apart(by_pipeline(), found[0]) == 0.0
    return found


def logits(model: Any, tokenizer: Any, texts: list[str]) -> list[torch.Tensor]:
    return [model(**tokenizer(t, return_tensors="pt")).logits[0] for t in texts]


def by_label(model: Any, answers: list[list[dict[str, Any]]]) -> list[list[float]]:
    """Scores in the order of the logits' columns, by the labels' names."""
    names = unipelt.labels(model).names
    return [[next(x["score"] for x in answer if x["label"] == n) for n in names] for answer in answers]


@pytest.mark.parametrize(
    ("kind", "first", "second"), [("bert_head", "unipelt_apl", "ia3"), ("gpt2_head", "mam", "lora")]
)
def test_text_classification(tokenizer, kind, first, second):
    """Some gates pool over pads too: the batch by hand is the one that the pipeline makes."""
    m = adapted(build(kind), first, second)
    answer = pipeline("text-classification", model=m, tokenizer=tokenizer, top_k=None)
    in_every_state(
        m, lambda: by_label(m, answer(TEXTS, batch_size=3)),
        lambda: m(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.softmax(-1),
    )  # fmt: skip


def test_labels_of_its_own(tokenizer):
    """The pipeline names the labels of the head that acts: as many as it has, and by what function it scores them."""
    m = build("bert_head")
    names = ["refund", "arrival", "closing", "else"]
    put(m, named("lora"), name="a", labels=names, problem_type="multi_label_classification")
    put(m, named("lora"), name="b", noise=1)
    answer = pipeline("text-classification", model=m, tokenizer=tokenizer)
    for state, function, labels in (
        (("a",), torch.sigmoid, names),
        (("b",), lambda t: t.softmax(-1), [f"LABEL_{i}" for i in range(3)]),
    ):
        unipelt.activate(m, *state)
        with torch.no_grad():
            wanted = [function(x) for x in logits(m, tokenizer, TEXTS)]
        found = answer(TEXTS, batch_size=2)
        assert [x["label"] for x in found] == [labels[w.argmax()] for w in wanted]
        assert apart([x["score"] for x in found], [w.max() for w in wanted]) <= NEAR
        assert {x["label"] for x in answer(TEXTS[0], top_k=None)} == set(labels)


def test_token_classification(tokenizer):
    m = adapted(with_head(BertForTokenClassification), "pfeiffer", "prefix_tuning")
    tag = pipeline("token-classification", model=m, tokenizer=tokenizer)

    def by_hand() -> list[float]:
        found = []
        for t in logits(m, tokenizer, TEXTS):
            scores, columns = t[1:-1].softmax(-1).max(-1)  # without [CLS] and [SEP]
            found += [10 * c + s for s, c in zip(scores.tolist(), columns.tolist())]
        return found

    def by_pipeline() -> list[float]:
        return [10 * m.config.label2id[x["entity"]] + x["score"] for words in tag(TEXTS, batch_size=3) for x in words]

    in_every_state(m, by_pipeline, by_hand)


def test_fill_mask(tokenizer):
    m = adapted(with_head(BertForMaskedLM), "lora", "scaled_parallel_adapter")
    fill = pipeline("fill-mask", model=m, tokenizer=tokenizer, top_k=m.config.vocab_size)

    def by_hand() -> list[torch.Tensor]:
        found = []
        for text, t in zip(MASKED, logits(m, tokenizer, MASKED)):
            at = tokenizer(text)["input_ids"].index(tokenizer.mask_token_id)
            found.append(t[at].softmax(-1))
        return torch.stack(found)

    def by_pipeline() -> list[list[float]]:
        ordered = [sorted(answer, key=lambda x: x["token"]) for answer in fill(MASKED, batch_size=3)]
        assert [x["token"] for x in ordered[0]] == list(range(m.config.vocab_size))
        return [[x["score"] for x in answer] for answer in ordered]

    in_every_state(m, by_pipeline, by_hand)


@pytest.mark.parametrize(
    ("kind", "first", "second"), [("gpt2", "mam", "bitfit"), ("llama", "prefix_tuning", "unipelt_apl_causal")]
)
def test_text_generation(tokenizer, kind, first, second):
    m = adapted(build(kind), first, second)
    tokenizer.padding_side = "left"
    write = pipeline(
        "text-generation", model=m, tokenizer=tokenizer, do_sample=False, max_new_tokens=6, return_tensors=True
    )

    def by_hand() -> list[list[int]]:
        found = []
        for text in TEXTS:
            ids = tokenizer(text, return_tensors="pt")["input_ids"]
            start = ids.shape[1]
            for _ in range(6):
                ids = torch.cat([ids, m(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
            found.append(ids[0, start:].tolist())
        return found

    def by_pipeline() -> list[list[int]]:
        return [answer[0]["generated_token_ids"][-6:] for answer in write(TEXTS, batch_size=3)]

    try:
        in_every_state(m, by_pipeline, by_hand)
    finally:
        tokenizer.padding_side = "right"


def test_image_classification():
    from PIL import Image

    m = adapted(build("vit_head"), "adapter_plus", "lora")
    pictures = [Image.effect_mandelbrot((20, 14), (-2 + i, -1.5, 1, 1.5), 30).convert("RGB") for i in range(3)]
    processor = ViTImageProcessor(size={"height": 12, "width": 12})
    look = pipeline("image-classification", model=m, image_processor=processor, top_k=3)
    in_every_state(
        m, lambda: by_label(m, look(pictures, batch_size=2)),
        lambda: m(**processor(pictures, return_tensors="pt")).logits.softmax(-1),
    )  # fmt: skip


def test_feature_extraction(tokenizer):
    m = adapted(build("bert"), "unipelt_apl", "adapter")
    features = pipeline("feature-extraction", model=m, tokenizer=tokenizer)
    in_every_state(
        m, lambda: features(TEXTS[1])[0],
        lambda: m(**tokenizer(TEXTS[1], return_tensors="pt")).last_hidden_state[0],
    )  # fmt: skip
