"""Every site of the language: what its entry says is true of a model, of the counts, of the README and of the pictures.

Where a site is in mT5 (or, if mT5 has none, in a small model of `mixed`) is written down here by hand, module by module, and its
edits are compared with hooks made of that. An entry that says one thing less fails (the last test leaves out each in turn).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

import mixed
import pytest
import torch
from tiny import batch, build
from torch import nn

import unipelt
from unipelt.anatomy import stored
from unipelt.language.analyse.counts import counts
from unipelt.language.analyse.method import analyse
from unipelt.language.analyse.row_verdicts import causal, mergeable
from unipelt.language.sites import SITES, SiteSignature, signature
from unipelt.language.types.owners import Owner
from unipelt.language.write.diagram import diagram
from unipelt.runtime.registry import record

README = (Path(__file__).resolve().parents[2] / "README.md").read_text("utf-8")
HEADS, HEAD = 4, 6


@dataclass(frozen=True)
class At:
    """Where h is (what ``leaves`` or ``enters`` a module), what enters which module is z beside it, whose weight absorbs an edit."""

    h: str
    z: str | None
    into: str | None = None


_ATTN, _CROSS, _FF = "layer.0.SelfAttention", "layer.1.EncDecAttention", "layer.{last}.DenseReluDense"
#: In a block of mT5. A query is z at the heads.
INSIDE = {
    "attn": At("leaves layer.0.dropout", _ATTN, f"{_ATTN}.o"),
    "cross": At("leaves layer.1.dropout", _CROSS, f"{_CROSS}.o"),
    "ffn": At("leaves layer.{last}.dropout", _FF, f"{_FF}.wo"),
    "block": At("leaves .", "."),
    **{f"attn.{n}": At(f"leaves {_ATTN}.{n}", f"{_ATTN}.{n}", f"{_ATTN}.{n}") for n in "qkvo"},
    **{f"cross.{n}": At(f"leaves {_CROSS}.{n}", f"{_CROSS}.{n}", f"{_CROSS}.{n}") for n in "qkvo"},
    "ffn.gate": At(f"leaves {_FF}.wi_0", f"{_FF}.wi_0", f"{_FF}.wi_0"),
    "ffn.up": At(f"leaves {_FF}.wi_1", f"{_FF}.wi_1", f"{_FF}.wi_1"),
    "ffn.down": At(f"leaves {_FF}.wo", f"{_FF}.wo", f"{_FF}.wo"),
    "attn.heads": At(f"enters {_ATTN}.o", f"query {_ATTN}.q", f"{_ATTN}.o"),
    "cross.heads": At(f"enters {_CROSS}.o", f"query {_CROSS}.q", f"{_CROSS}.o"),
    "ffn.hidden": At(f"enters {_FF}.wo", _FF, f"{_FF}.wo"),
    "block.input": At("enters .", None),
    "attn.input": At(f"enters {_ATTN}", None),
    "cross.input": At(f"enters {_CROSS}", None),
    "ffn.input": At(f"enters {_FF}", None),
}
#: In a stack: both have a last norm, and tokens enter the encoder.
OUTSIDE = {
    "embed": At("leaves encoder.embed_tokens", None),
    "embed.words": At("leaves encoder.embed_tokens", None),
    "final": At("leaves {stack}.final_layer_norm", "{stack}.final_layer_norm"),
    "head": At("leaves lm_head", "lm_head", "lm_head"),
}
#: In a block of the mixed model, with the layers that have it.
MIXED = {
    "mixer": ((0, 2), At("leaves mixer", "mixer", "mixer.out_proj")),
    "mixer.in": ((0, 2), At("leaves mixer.in_proj", "mixer.in_proj", "mixer.in_proj")),
    "mixer.out": ((0, 2), At("leaves mixer.out_proj", "mixer.out_proj", "mixer.out_proj")),
    "mixer.input": ((0, 2), At("enters mixer", None)),
    "ffn.router": ((1, 2), At("leaves ffn.router", "ffn.router", "ffn.router")),
    **{f"attn.{n}": ((1,), At(f"leaves attn.{n}", f"attn.{n}", f"attn.{n}")) for n in ("q_a", "q_b", "kv_a", "kv_b")},
}
BETWEEN = {"projector": At("leaves projector", "projector")}
WHERE = INSIDE | OUTSIDE | {n: at for n, (_, at) in MIXED.items()} | BETWEEN
#: What is otherwise at some sites than at the rest.
OF_THE_ENCODER, WITHOUT_POSITIONS, PROBED, POOLED = {"cross.k", "cross.v"}, {"embed.words"}, {"head"}, {"head"}


def mt5() -> nn.Module:
    """In float64, its head's words apart from those of the embeddings."""
    model = build("mt5", torch.float64)
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    return model


def base(name: str) -> nn.Module:
    """The model that has a site."""
    return mixed.build() if name in {*MIXED, *BETWEEN} else mt5()


def inputs_of(name: str) -> dict[str, torch.Tensor]:
    return mixed.batch() if name in {*MIXED, *BETWEEN} else batch("mt5")


def spec(site: str, insert: str, form: str, more: str = "") -> unipelt.Method:
    return unipelt.parse(
        f"method m {{ {more} modify {site} insert {insert} form {{ {form} }} compose {{ out = h + delta }} }}"
    )


def places(model: nn.Module, name: str) -> Iterator[tuple[str, At]]:
    """The front of the names of the tensors that live at a site, with its modules' paths, wherever the model has it."""
    if name in BETWEEN:
        yield f"vision.{name}", BETWEEN[name]
        return
    if name in MIXED:
        layers, at = MIXED[name]
        for front in (f"text.layers.{i}" for i in layers):
            yield f"{front}.{name}", At(*(_path(front, p) for p in (at.h, at.z, at.into)))  # type: ignore[arg-type]
        return
    if name in OUTSIDE:
        at = OUTSIDE[name]
        for stack in ("encoder", "decoder") if "{stack}" in at.h else ("encoder",):
            paths = [p.format(stack=stack) if p else p for p in (at.h, at.z, at.into)]
            yield (name if name == "head" else f"{stack}.{name}"), At(*paths)  # type: ignore[arg-type]
        return
    for stack in ("encoder", "decoder"):
        for i, block in enumerate(model.get_submodule(stack).block):
            if name.split(".")[0] == "cross" and stack == "encoder":
                continue
            front, last = f"{stack}.block.{i}", len(block.layer) - 1
            inner = INSIDE[name]
            yield (
                f"{front}.{name}",
                At(*(_path(front, p.format(last=last) if p else None) for p in (inner.h, inner.z, inner.into))),
            )  # type: ignore[arg-type]


def _path(front: str, text: str | None) -> str | None:
    if text is None:
        return None
    *how, path = text.split(" ")
    return " ".join([*how, front if path == "." else f"{front}.{path}"])


def by_hand(model: nn.Module, name: str, tensors: dict[str, torch.Tensor]) -> None:
    """Hooks that add z @ A (without z: a constant) where h is."""

    def heads(t: torch.Tensor) -> torch.Tensor:
        return t.unflatten(-1, (HEADS, HEAD)).transpose(1, 2)

    for front, at in places(model, name):
        seen: dict[str, torch.Tensor] = {}
        how, path = at.h.split(" ")
        tensor = tensors[f"{front}.m.A"]

        def entered(m: nn.Module, args: tuple, kwargs: dict, seen: dict = seen) -> None:
            seen["z"] = args[0] if args else kwargs["hidden_states"]

        def queried(m: nn.Module, args: tuple, out: torch.Tensor, seen: dict = seen) -> None:
            seen["z"] = heads(out)

        def changed(h: torch.Tensor, seen: dict = seen, A: torch.Tensor = tensor) -> torch.Tensor:
            added = seen["z"] @ A if seen else A
            return h + (added.transpose(1, 2).flatten(2) if seen and seen["z"].dim() == 4 else added)

        if at.z is not None and at.z.startswith("query "):
            model.get_submodule(at.z.split(" ")[1]).register_forward_hook(queried)
        elif at.z is not None:
            model.get_submodule(at.z).register_forward_pre_hook(entered, with_kwargs=True)
        host = model.get_submodule(path)
        if how == "enters":
            host.register_forward_pre_hook(lambda m, args, f=changed: (f(args[0]), *args[1:]))
        else:
            host.register_forward_hook(
                lambda m, args, out, f=changed: f(out) if isinstance(out, torch.Tensor) else (f(out[0]), *out[1:])
            )


# ---------------------------------------------------------------- what is asked of a site


def readme(site: SiteSignature) -> None:
    """The README's table says what may be read there, and who owns a tensor there."""
    lines = re.findall(r"^\| (`.*)\|$", README, re.MULTILINE)
    rows = [[c.strip() for c in line.split(" | ")] for line in lines if line.count(" | ") == 4]
    named = {n: row for row in rows for n in _named(row[0])}
    assert site.name in named, f"the README's table of sites has no `{site.name}`"
    _, x, h, parallel, also = named[site.name]
    said, listed = site.described(), set(also.rstrip("| ").replace("`", "").split(", ")) - {""}
    listed = {
        a for a in listed if "." not in a or a.startswith(f"{site.sublayer}.")
    }  # of others in its row: their modules
    assert (x, h, parallel.strip("`")) == (said["x"] or "–", said["h"], said["insert parallel reads"] or "–")
    assert listed == set(said["also"].split(", ")) - {""}
    each = re.search(r"owned by its site, and at (.*?) by each head", README)
    assert each and (f"`{site.name}`" in each[1]) == (site.owner != Owner())


def _named(cell: str) -> list[str]:
    """``attn.q k v`` → attn.q, attn.k, attn.v."""
    found = []
    for group in re.findall(r"`([^`]+)`", cell):
        first, *rest = group.split(" ")
        found += [first, *(f"{first.split('.')[0]}.{n}" for n in rest)]
    return found


def pictured(site: SiteSignature) -> None:
    """A picture says in words what the base does there, and what enters it."""
    (panel,) = diagram(spec(site.name, "h", "b: [d_out] ~ zeros delta = b"))
    assert panel.inside and panel.site == site.name and panel.enters == ("" if site.x is None else "x")
    if site.x is not None:
        (panel,) = diagram(spec(site.name, "parallel", "A: [d_in, d_out] ~ zeros delta = z @ A"))
        assert panel.source == panel.enters == ("q" if WHERE[site.name].z.startswith("query") else "x")  # type: ignore[union-attr]


def judged(site: SiteSignature) -> None:
    """Whether a map absorbs an affine edit, whether tokens are an encoder's, which layers may be selected."""
    (typed,) = analyse(spec(site.name, "h", "A: [d_in, d_out] ~ zeros delta = z @ A")).rows
    assert (mergeable(typed).value == "yes") == (WHERE[site.name].into is not None)
    if site.x is not None:
        (typed,) = analyse(spec(site.name, "mean(x, tokens)", "A: [d_in, d_out] ~ zeros delta = z @ A")).rows
        assert (causal(typed).value == "yes") == (site.name in OF_THE_ENCODER)
    selected = site.name in {*INSIDE, *MIXED, *PROBED}
    try:
        spec(site.name, "sequential" if site.x is None else "x", "A: [d_in, d_out] ~ zeros delta = z @ A", "layers 1")
    except unipelt.PeltError as e:
        assert not selected and [d.code for d in e.diagnostics] == ["E0518"]
    else:
        assert selected


def counted(site: SiteSignature) -> None:
    """The formula of the counts, a plan's numbers and the tensors in the model are the same."""
    for per in ("", "per site", "per kind", "per layer", "per model", "per head" if site.has_heads else ""):
        method = spec(site.name, "h", f"b: [d_out, 2] ~ normal(1) {per} delta = sum(b, 1)")
        model = base(site.name)
        plan = unipelt.apply(model, method, head=False)
        found = counts(method)
        _common = dict(d_model=32, d_head=HEAD, heads=HEADS, groups=HEADS, d_ff=48, vocab=96, labels=96)
        encoder = {**_common, "L": 3, "L_gate": 3, "L_cross": 0, "L_encoder": 3, "L_decoder": 0}
        decoder = {**_common, "L": 2, "L_gate": 2, "L_cross": 2, "L_encoder": 0, "L_decoder": 2}
        stacks = (encoder, decoder)
        if site.name in {*MIXED, *BETWEEN}:  # only the language tower is meant
            layers = MIXED.get(site.name, ((),))[0]
            stacks = (
                {**mixed.SIZES, "L": mixed.LAYERS if site.name.startswith("mixer") else len(layers), "L_mixer": 2},
            )  # type: ignore[assignment]
        which, other = ("head", "trained") if site.name == "head" else ("trained", "head")
        own = record(model, "default").trained()
        total = sum(t.numel() for t in own.values())
        assert found[which].number(*stacks) == getattr(plan.counts, which) == total > 0, per
        assert found[other].number(*stacks) == getattr(plan.counts, other) == 0, per
        if site.name == "ffn.gate" and not per:  # many models have none
            assert found[which].number({**decoder, "L_gate": 0}) == 0
        if not per:
            fronts = [front for front, _ in places(model, site.name)]
            assert sorted(own) == sorted(f"{front}.m.b" for front in fronts)


def computed(site: SiteSignature) -> None:
    """An edit does what hooks do that are made by hand where the site is; merging puts it into the map that absorbs it."""
    at = WHERE[site.name]
    insert, form = ("sequential", "A: [d_out] ~ normal(1) delta = A") if at.z is None else (
        "parallel", "A: [d_in, d_out] ~ normal(1) delta = z @ A")  # fmt: skip
    model, inputs = base(site.name), inputs_of(site.name)
    plain = base(site.name)
    unipelt.apply(model, spec(site.name, insert, form), head=False)
    by_hand(plain, site.name, record(model, "default").trained())
    with torch.no_grad():
        found, expected, before = (m(**inputs)[0] for m in (model, plain, base(site.name)))
    assert torch.allclose(found, expected, rtol=0, atol=1e-9) and not torch.allclose(found, before, rtol=0, atol=1e-3)
    if at.into is not None:
        model = base(site.name)
        weights = {n: p.clone() for n, p in model.named_parameters()}
        unipelt.apply(model, spec(site.name, "sequential", "A: [d_in, d_out] ~ normal(0.1) delta = z @ A"), head=False)
        with torch.no_grad():
            found = model(**inputs)[0]
            unipelt.merge(model)
            assert torch.allclose(model(**inputs)[0], found, rtol=0, atol=1e-9)
        changed = {n for n, p in model.named_parameters() if n in weights and not torch.equal(p, weights[n])}
        assert changed == {f"{a.into}.weight" for _, a in places(model, site.name)}


def elsewhere(site: SiteSignature) -> None:
    """What shows on BERT alone: positions that rows take, a head that pools."""
    if site.takes_rows:
        model = build("bert", max_position_embeddings=8)
        unipelt.apply(model, unipelt.parse(
            f"method m {{ modify {site.name} form {{ P: [2, d_out] ~ zeros delta = P }} compose prepend(delta, h) }}"))  # fmt: skip
        if site.name in WITHOUT_POSITIONS:
            with pytest.raises(unipelt.PeltError) as e:
                model(**batch("bert"))
            assert [d.code for d in e.value.diagnostics] == ["E0534"]
        else:
            model(**batch("bert"))
    if site.name in POOLED:
        with pytest.raises(unipelt.PeltError) as e:
            unipelt.plan(build("bert_head"), spec(site.name, "x", "A: [d_in, d_out] ~ zeros delta = z @ A"))
        assert [d.code for d in e.value.diagnostics] == ["E0350"]


@pytest.fixture(autouse=True)
def _anatomy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed.teach(tmp_path, monkeypatch)


def shown(site: SiteSignature) -> None:
    """`unipelt sites` says by what the site is known, in words of the entry."""
    assert site.shown_by and not site.shown_by.endswith(".") and site.shown_by[0].islower()


#: The cheap ones first: most of what is left out fails there.
ASKED: tuple[Callable[[SiteSignature], None], ...] = (readme, shown, pictured, judged, counted, elsewhere, computed)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("ask", ASKED, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", SITES)
def test_what_an_entry_says_is_true(name: str, ask: Callable[[SiteSignature], None]) -> None:
    ask(SITES[name])


def test_every_site_is_written_down_by_hand() -> None:
    assert set(WHERE) == set(SITES), "say where the site is in mT5: INSIDE a block, or OUTSIDE; or in the MIXED model"


def test_the_weight_of_a_projection_is_a_site_of_its_own() -> None:
    method = unipelt.parse(
        "method m { modify attn.q.weight form { b: [d_out] ~ zeros delta = b } compose { out = h + delta } }"
    )
    (typed,), (panel,) = analyse(method).rows, diagram(method)
    assert typed.site.is_weight and mergeable(typed).value == "yes" and panel.inside == "the weight W"


def left_out() -> list[tuple[str, str]]:
    found = []
    for name, site in SITES.items():
        for f in fields(site):
            empty: Any = "" if f.default is MISSING else f.default
            if f.name not in ("name", "h") and getattr(site, f.name) != empty:
                found.append((name, f.name))
    return found


@pytest.fixture
def forgetting() -> Iterator[None]:
    """What is remembered of sites is asked anew, before and after."""
    signature.cache_clear()
    stored.forget()
    yield
    signature.cache_clear()
    stored.forget()


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("name", "column"), left_out())
@pytest.mark.usefixtures("forgetting")
def test_an_entry_that_says_less_fails(name: str, column: str, monkeypatch: pytest.MonkeyPatch) -> None:
    default = next(f.default for f in fields(SiteSignature) if f.name == column)
    site = replace(SITES[name], **{column: "" if default is MISSING else default})
    monkeypatch.setitem(SITES, name, site)
    with pytest.raises((Exception, pytest.fail.Exception)):  # whatever goes wrong first
        for ask in ASKED:
            ask(site)
