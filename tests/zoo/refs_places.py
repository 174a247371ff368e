"""References of methods that stand at several places: prompts in two towers, invertible adapters, special tokens, routed parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peft
import small
import torch
from recorded import by_recording
from reference import Seen, apart, by_formula, library, reference, run
from torch import nn
from torch.nn import functional as F
from transformers import CLIPModel

import unipelt
from unipelt.runtime.registry import record

# ---------------------------------------------------------------- live peft, with arguments of its own


def beside(
    method: unipelt.Method, config: peft.PeftConfig, into: Callable[[str, nn.Module], torch.Tensor], ours: dict[str, Any],
    theirs: dict[str, Any], rows: int = 0, scale: float = 0.3,
) -> float:  # fmt: skip
    """How far outputs and gradients are apart, ours at the tokens behind peft's first ``rows``; ``into`` gives our tensors, trained and
    frozen, of peft's model, and from the gradients of its parameters ours."""
    base = peft.get_peft_model(small.model("llama"), config).eval()
    g = torch.Generator().manual_seed(3)
    learned = {n: p for n, p in base.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for n in sorted(learned):
            learned[n].add_(torch.randn(learned[n].shape, generator=g) * scale)
    given = small.inputs(padded=False)
    expected = base(**given, **theirs)[0][:, rows:]
    model = small.model("llama").eval()
    unipelt.apply(model, method)
    with torch.no_grad():
        for n, t in unipelt.state_dict(model).items():
            t.copy_(into(n, base))
    out = model(**given, **ours)[0]
    weights = torch.randn(out.shape, generator=g)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    own = record(model, "default").trained()
    assert sum(p.numel() for p in own.values()) == sum(p.numel() for p in learned.values())
    with torch.no_grad():
        for p in learned.values():
            p.copy_(p.grad if p.grad is not None else torch.zeros_like(p))
    worst = apart(out.detach(), expected.detach())
    largest = max(float(p.grad.abs().max()) for p in own.values() if p.grad is not None)
    for n, p in own.items():
        assert p.grad is not None, n
        worst = max(worst, float((p.grad - into(n, base).detach()).abs().max()) / largest)
    return worst


def _poly(name: str, splits: int) -> float:
    config = peft.PolyConfig(
        r=2, n_tasks=4, n_skills=3, n_splits=splits, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )

    def into(name: str, theirs: nn.Module) -> torch.Tensor:
        layer, kind, tensor = name.split(".")[1], name.split(".")[3], name.rpartition(".")[2]
        at = theirs.base_model.model.model.layers[int(layer)].self_attn.get_submodule(f"{kind}_proj")
        if tensor == "Z":  # [tasks, parts · skills] there
            logits = at.poly_router["default"].module_logits
            return logits.view(4, splits, 3).permute(1, 2, 0).reshape(_shape(splits, 3, 4))
        found = at.poly_lora_A["default"] if tensor == "A" else at.poly_lora_B["default"]
        return found.reshape(_shape(*found.shape))

    task = torch.tensor([2, 0, 3])
    return beside(library(name, tasks=4, n=3, r=2, splits=splits), config, into, {"task": task}, {"task_ids": task})


def _shape(*sizes: int) -> tuple[int, ...]:
    return sizes


@reference("polytropon", by="peft", against="peft's Poly")
def _() -> float:
    return _poly("polytropon", 1)


@reference("mhr", by="peft", against="peft's Poly with several splits")
def _() -> float:
    return _poly("mhr", 4)


@reference("cpt", by="peft", against="peft's CPT, all tokens of one type, vectors inside and outside of the ball")
def _() -> float:
    ids = [5, 9, 2, 33, 7]
    config = peft.CPTConfig(cpt_token_ids=ids, cpt_mask=[1] * 5, cpt_tokens_type_mask=[2] * 5, opt_projection_epsilon=13.6, num_virtual_tokens=5,
                            task_type="CAUSAL_LM", tokenizer_name_or_path="none")  # fmt: skip

    def into(name: str, theirs: nn.Module) -> torch.Tensor:
        prompt = theirs.prompt_encoder["default"]
        if name.endswith("E"):
            return prompt.embedding.weight
        return prompt.delta_embedding.weight  # which a pass has projected

    found = beside(library("cpt", l=5, eps=13.6), config, into, {}, {"labels": None}, rows=5)
    within = 13.6 * (small.WIDTH / 2048) ** 0.5
    model = small.model("llama", dtype=torch.float64)
    unipelt.apply(model, library("cpt", l=5, eps=13.6))
    own = small.randomise(model, scale=0.3)
    before = next(t.clone() for n, t in own.items() if n.endswith("D"))
    unipelt.after_step(model)
    after = next(t for n, t in record(model, "default").trained().items() if n.endswith("D"))
    assert (before.norm(dim=1) > within).any() and (before.norm(dim=1) < within).any()
    return max(found, apart(after.detach(), torch.stack([v * min(1.0, within / float(v.norm())) for v in before])))


# ---------------------------------------------------------------- invertible adapters


@reference("invertible_adapter", by="recording", against="adapters/bert-seq_bn_inv, with an adapter in each layer")
def _() -> float:
    names = {"F_1": "F.0.weight", "f_1": "F.0.bias", "F_2": "F.2.weight", "f_2": "F.2.bias",
             "G_1": "G.0.weight", "g_1": "G.0.bias", "G_2": "G.2.weight", "g_2": "G.2.bias",
             "down": "adapter_down.0.weight", "b_down": "adapter_down.0.bias", "up": "adapter_up.weight", "b_up": "adapter_up.bias"}  # fmt: skip

    def source(name: str) -> tuple[str, Callable[[torch.Tensor], torch.Tensor]]:
        parts = name.split(".")
        theirs = names[parts[-1]]
        at = "invertible_adapters.ad" if len(parts) == 2 else f"encoder.layer.{parts[2]}.output.adapters.ad"
        return f"{at}.{theirs}", (lambda t: t.T) if theirs.endswith("weight") else (lambda t: t)

    return by_recording("adapters/bert-seq_bn_inv", library("invertible_adapter") + library("pfeiffer", r=8), source)


def coupled(t: torch.Tensor, w: dict[str, torch.Tensor]) -> torch.Tensor:
    """NICE, forwards."""
    first, second = t.chunk(2, -1)
    first = first + F.linear(torch.relu(F.linear(second, w["F_1"].T, w["f_1"])), w["F_2"].T, w["f_2"])
    return torch.cat(
        [first, second + F.linear(torch.relu(F.linear(first, w["G_1"].T, w["g_1"])), w["G_2"].T, w["g_2"])], -1
    )


@reference(
    "mad_x_language",
    by="formula",
    against="NICE (Dinh et al. 2015) behind the embeddings; of what enters the head it makes the last state",
)
def _() -> float:
    worst, seen = 0.0, set()
    tensors: dict[str, torch.Tensor] = {}
    for s in run(library("mad_x_language", r=4), "llama"):
        seen.add(s.row)
        if s.row == "invertible":
            tensors = s.t
            worst = max(worst, apart(s.out, coupled(s.h, s.t)))
        elif s.row == "inverse":
            worst = max(worst, apart(coupled(s.out, tensors), s.h))
    assert seen == {"invertible", "language", "inverse"}
    return worst


# ---------------------------------------------------------------- special tokens, pruned prompts, own skills


@reference(
    "pasta",
    by="formula",
    against="a vector added to the first and to the last real token of each text, before each layer",
)
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        out = s.h.clone()
        for i, length in enumerate([7, 5, 7]):  # the second text has two pads
            out[i, 0 if s.row == "front" else length - 1] += s.e
        return out

    return by_formula(library("pasta"), formula, "bert")


@reference(
    "c_poly", by="formula", against="example by example: mean skills by the task's logits, and the task's own LoRA"
)
def _() -> float:
    def formula(s: Seen) -> torch.Tensor:
        rows = []
        for x, h, task in zip(s.x, s.h, s.task.tolist()):
            if s.row == "own":
                rows.append(h + x @ s.A[task] @ s.B[task] / 4)
                continue
            w = torch.sigmoid(s.Z.reshape(3, -1)[:, task])
            A, B = (torch.tensordot(w / w.sum(), t.reshape(3, *t.shape[-2:]), 1) for t in (s.A, s.B))
            rows.append(h + x @ A @ B / 4)
        return torch.stack(rows)

    return by_formula(library("c_poly", tasks=4), formula)


@reference(
    "xprompt",
    by="formula",
    against="rows and pieces by their summed |w ∂w|, set to zero from the given share of the steps on",
)
def _() -> float:
    model = small.model("bert_labels", dtype=torch.float64)
    method = library("xprompt", l=6, tokens_kept=0.5, pieces=4, pieces_kept=0.25, cut=0.5, start="normal(0.5)")
    unipelt.apply(model, method, head=False)
    (P,) = record(model, "default").trained().values()
    rows, pieces = torch.zeros(6, dtype=torch.float64), torch.zeros(6, 4, dtype=torch.float64)
    worst = 0.0
    for step in range(1, 5):
        P.grad = None
        model(**small.inputs(padded=False), labels=torch.tensor([0, 1, 0])).loss.backward()
        with torch.no_grad():
            P.sub_(P.grad)
        plain = P.detach().clone()
        unipelt.progress(model, step / 4)
        unipelt.after_step(model)
        if step / 4 < 0.5:
            product = plain * P.grad
            rows += product.sum(-1).abs()
            pieces += product.view(6, 4, 8).sum(-1).abs()
        else:
            kept = torch.zeros(24, dtype=torch.float64).index_fill(0, pieces.flatten().topk(6).indices, 1).view(6, 4, 1)
            alive = torch.zeros(6, dtype=torch.float64).index_fill(0, rows.topk(3).indices, 1).view(6, 1, 1)
            plain = (plain.view(6, 4, 8) * kept * alive).view(6, 32)
        worst = max(worst, apart(P, plain))
    assert 0 < int((P == 0).sum()) < P.numel()
    return worst


# ---------------------------------------------------------------- two towers


def by_hand(
    model: CLIPModel, ids: torch.Tensor, picture: torch.Tensor, words: torch.Tensor, pictures: torch.Tensor | None,
    deep: Callable[[str, int], torch.Tensor | None] = lambda tower, layer: None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The embeddings of texts and pictures, with rows behind the first token of the one and behind the parts of the other, which
    ``deep(tower, layer)`` replaces before a block."""
    n, text, vision = words.shape[-2], model.text_model, model.vision_model
    e = text.embeddings.token_embedding(ids)
    h = text.embeddings(inputs_embeds=torch.cat([e[:, :1], words.expand(len(ids), -1, -1), e[:, 1:]], 1))
    later = torch.full((h.shape[1], h.shape[1]), -torch.inf, dtype=h.dtype).triu(1)[None, None]
    for i, block in enumerate(text.encoder.layers):
        rows = deep("text", i)
        h = h if rows is None else torch.cat([h[:, :1], rows.expand(len(ids), -1, -1), h[:, 1 + n :]], 1)
        h = _first(block(h, attention_mask=later))
    ends = ids.argmax(-1) + n
    texts = model.text_projection(text.final_layer_norm(h)[torch.arange(len(ids)), ends])
    h = vision.pre_layrnorm(vision.embeddings(picture))
    parts = h.shape[1]
    if pictures is not None:
        h = torch.cat([h, pictures.expand(len(picture), -1, -1)], 1)
    for i, block in enumerate(vision.encoder.layers):
        rows = deep("vision", i)
        h = h if rows is None else torch.cat([h[:, :parts], rows.expand(len(picture), -1, -1)], 1)
        h = _first(block(h, attention_mask=None))
    images = model.visual_projection(vision.post_layernorm(h[:, 0]))
    return F.normalize(texts, dim=-1), F.normalize(images, dim=-1)


def _first(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def towers(
    method: unipelt.Method, given: Callable[[dict[str, torch.Tensor]], dict[str, Any]], **more: torch.Tensor
) -> float:
    """How far both embeddings of a pass, and those of each input alone, are from the ones by hand; ``given(tensors)`` are the rows."""
    model = small.model("clip", dtype=torch.float64)
    unipelt.apply(model, method)
    small.randomise(model)
    state = {n: t.detach() for n, t in unipelt.state_dict(model).items()}
    inputs = {**small.both(model), **more}
    with torch.no_grad():
        out = model(**inputs)
        with unipelt.inputs(model, **more):
            alone = [
                F.normalize(getattr(found, "pooler_output", found), dim=-1)
                for found in (
                    model.get_text_features(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]),
                    model.get_image_features(pixel_values=inputs["pixel_values"]),
                )
            ]
        with unipelt.disabled(model):
            expected = by_hand(model, inputs["input_ids"], inputs["pixel_values"], **given(state))
    pairs = zip((out.text_embeds, out.image_embeds, *alone), (*expected, *expected), strict=True)
    return max(apart(a, b) for a, b in pairs)


@reference(
    "coop", by="formula", against="context vectors between the first token and the others, CLIP's towers by hand"
)
def _() -> float:
    return towers(library("coop", l=3), lambda t: {"words": next(iter(t.values())), "pictures": None})


@reference(
    "cocoop", by="formula", against="context vectors plus a network of each picture's feature, CLIP's towers by hand"
)
def _() -> float:
    feature = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def given(t: dict[str, torch.Tensor]) -> dict[str, Any]:
        own = {n.rpartition(".")[2]: v for n, v in t.items()}
        shift = F.linear(torch.relu(F.linear(feature, own["W1"].T, own["b1"])), own["W2"].T, own["b2"])
        return {"words": own["P"] + shift[:, None], "pictures": None}

    return towers(library("cocoop", l=3, d_image=6, m=4), given, image=feature)


@reference(
    "maple",
    by="formula",
    against="rows of both towers, those of the pictures maps of those of the texts, block by block",
)
def _() -> float:
    def given(t: dict[str, torch.Tensor]) -> dict[str, Any]:
        def mapped(rows: torch.Tensor, front: str) -> torch.Tensor:
            W, b = (next(v for n, v in t.items() if front in n and n.endswith(e)) for e in (".F", ".b"))
            return F.linear(rows, W.T, b)

        P, Q = t["words.P"], t["deep_words.Q"]

        def deep(tower: str, layer: int) -> torch.Tensor | None:
            if not 1 <= layer < 3:
                return None
            return Q[layer - 1] if tower == "text" else mapped(Q[layer - 1], f"layers.{layer}.")

        return {"words": P, "pictures": mapped(P, "embed.pictures."), "deep": deep}

    return towers(library("maple", l=2, deep=2, d_text=small.WIDTH), given)
