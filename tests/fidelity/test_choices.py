"""Where the papers' codes differ in the activation or in how tensors start, the library's methods take it as an argument.

Another choice changes what is computed and how tensors start, never how many parameters there are.
"""

from __future__ import annotations

import pytest
import small
import torch
from names import name

import unipelt
from unipelt.language.syntax import nodes as S
from unipelt.language.ir import Method
from unipelt.language.library import library_definition, library_names

#: A method, its activation's default, its initialisers' defaults; from the papers' codes.
KAIMING = "kaiming_uniform(sqrt(5))"
PLACED = {"init_down": KAIMING, "init_up": "zeros"}
CHOICES: dict[str, tuple[str | None, dict[str, str]]] = {
    "adapter": ("gelu", {"init": "truncated_normal(0.001)"}),
    "pfeiffer": ("relu", {"init": "normal(0.02)"}),
    "adapter_drop": ("relu", {"init": "normal(0.02)"}),
    "adapter_drop_robust": ("relu", {"init": "normal(0.02)"}),
    "adapter_plus": ("gelu", {"init": "truncated_normal(0.01)"}),
    "parallel_adapter": ("relu", PLACED),
    "scaled_parallel_adapter": ("relu", PLACED),
    "scaled_parallel_adapter_learned": ("relu", PLACED),
    "multi_head_parallel_adapter": ("relu", {"init_down": "normal(0.02)", "init_up": "zeros"}),
    "mam": ("relu", PLACED),
    "unipelt_ap": ("relu", {"init": "normal(0.02)"}),
    "unipelt_ap_ungated": ("relu", {"init": "normal(0.02)"}),
    "unipelt_apl": ("relu", {"init": "normal(0.02)"}),
    "unipelt_apl_ungated": ("relu", {"init": "normal(0.02)"}),
    "unipelt_apl_causal": ("relu", {"init": "normal(0.02)"}),
    "unipelt_prefix": (None, {"init": "normal(0.02)"}),
    "unipelt_gated_prefix": (None, {"init": "normal(0.02)"}),
    "prefix_tuning": (None, {"init": "normal(0.02)"}),
    "p_tuning_v2": (None, {"init": "normal(0.02)"}),
    "lora": (None, {"init": KAIMING}),
    "rslora": (None, {"init": KAIMING}),
    "lora_plus": (None, {"init": KAIMING}),
}
#: Activations that are the same in every code that there is: P-tuning's encoders, and methods with one paper that names one.
ALIKE = {
    "p_tuning", "p_tuning_mlp", "p_tuning_prepended", "p_tuning_mlp_prepended", "adapt_former", "attempt", "auto_peft", "clip_adapter",
    "cocoop", "conv_adapter", "dense_lora", "hyper_prompt", "hyperformer", "hyperformer_pp", "idpg", "low_rank_adapter", "mona", "pals", "residual_prompt_tuning", "s4_design",
    "smear", "udapter",
}  # fmt: skip
#: What is no activation of an adapter: a threshold, a value that must not fall below 0.
THRESHOLDS = {"adalora", "adamole", "dylora", "lamda", "sora", "svdiff"}
SMALL = {"r": 2, "ra": 2, "rl": 2, "l": 2, "mid": 3}


def smaller(method: Method, **more: str) -> Method:
    return method(**{k: v for k, v in SMALL.items() if k in {p.name for p in method.params}}, **more)


def started(method: Method) -> dict[str, torch.Tensor]:
    model = small.model("gpt2" if method.name == name("unipelt_apl_causal") else "bert")
    unipelt.apply(model, method, "a", seed=0)
    return unipelt.state_dict(model, "a")


@pytest.mark.parametrize("method", CHOICES)
def test_defaults_are_the_codes(method: str) -> None:
    act, starts = CHOICES[method]
    found = {
        p.name: str(unipelt.load(name(method)).arguments[p.name])
        for p in unipelt.load(name(method)).params
        if p.type in ("activation", "init")
    }
    assert found == {**({"act": act} if act else {}), **starts}


@pytest.mark.parametrize("method", CHOICES)
def test_a_choice_reaches_the_tensors(method: str) -> None:
    """All ones in place of the default: some tensor starts at one that did not, none gets another shape."""
    base = smaller(unipelt.load(name(method)))
    first = started(base)
    for initialiser in CHOICES[method][1]:
        then = started(smaller(unipelt.load(name(method)), **{initialiser: "constant(1)"}))
        assert {k: v.shape for k, v in then.items()} == {k: v.shape for k, v in first.items()}
        changed = [k for k in then if not torch.equal(then[k], first[k])]
        assert changed and all(bool((then[k] == 1).all()) for k in changed), initialiser


@pytest.mark.parametrize("method", [m for m, (act, _) in CHOICES.items() if act])
def test_a_choice_reaches_what_is_computed(method: str) -> None:
    """The forms call `act`, and with the identity in its place the adapted model gives other numbers."""
    ids = torch.arange(1, 9)[None]
    out = []
    for act in (CHOICES[method][0], "identity_map"):
        model = small.model("gpt2" if method == "unipelt_apl_causal" else "bert")
        chosen = smaller(unipelt.load(name(method)), act=act, **dict.fromkeys(CHOICES[method][1], "normal(0.5)"))
        unipelt.apply(model, chosen, "a", seed=0)
        with torch.no_grad():
            out.append(model(input_ids=ids)[0])
    assert not torch.allclose(out[0], out[1], atol=1e-4)


def test_no_method_fixes_the_activation_of_an_adapter() -> None:
    for method in library_names("method"):
        fixed = {
            n.function.id
            for row in unipelt.load(method).rows for s in row.form for n in S.walk(s)
            if isinstance(n, S.Apply) and isinstance(n.function, S.Name) and n.function.id in ("relu", "gelu", "gelu_new", "silu")
        }  # fmt: skip
        assert not fixed or method in {name(m) for m in ALIKE | THRESHOLDS}, (method, fixed)


def test_no_definition_has_a_parameter_that_it_does_not_read() -> None:
    """An argument that nothing reads would be ignored in silence."""
    for kind in ("method", "form", "compose", "gate"):
        for defined in library_names(kind):
            definition = library_definition(kind, defined)
            read = {n.id for n in S.walk(definition) if isinstance(n, S.Name)} | {
                part for n in S.walk(definition) if isinstance(n, S.Path) for part in n.parts
            } | {n.name for n in S.walk(definition) if isinstance(n, S.Scope)}  # fmt: skip
            assert not {p.name for p in definition.params} - read, defined
