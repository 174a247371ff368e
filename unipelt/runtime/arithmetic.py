"""Arithmetic on adapters: sums, averages, TIES, DARE and compression, whose result is an adapter that can be saved.

What is added up is what an adapter does to the base's weights: ``W_new - W`` at each linear map, as merging computes it. So
adapters of different methods can be added, subtracted and scaled, exactly, if each merges. The sum becomes two factors by its
singular values. An average of tensors (a soup) is another thing: it needs one method, and no merging.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from ..anatomy.matrices import as_map
from ..anatomy.spelled import spelled
from ..compiler.plan import Plan
from ..language.ir import as_file
from ..language.loading import parse
from ..language.report.diagnostics import error, near
from .attach import install, unchanged
from .checkpoint import fill
from .members import Resolved
from .merge import changes_of
from .registry import record, unwrapped
from .saving import state_dict

How = Literal["sum", "ties", "dare", "dare_ties", "average"]
#: A row of two factors. Its start is of no account: the values follow.
ROW = """method {name} {{
  modify {sites}  insert parallel
  form {{ A: [d_in, {r}] ~ zeros  B: [{r}, d_out] ~ zeros  delta = z @ A @ B }}
  compose add
}}
"""
#: Singular values below this share of the largest are rounding.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Combined:
    """What `combine` made: the adapter's name, the rank of its factors (None for an average), and for each linear map the share of
    its change that the rank leaves out, ‖Δ - A B‖ / ‖Δ‖ (Frobenius)."""

    name: str
    rank: int | None
    left_out: Mapping[str, float]

    @property
    def error(self) -> float:
        """The largest share."""
        return max(self.left_out.values(), default=0.0)


def combine(
    model: nn.Module, weights: Mapping[str, float], name: str = "combined", *, how: str = "sum", rank: int | None = None,
    density: float = 0.5, seed: int = 0,
) -> Combined:  # fmt: skip
    """Makes one adapter of several attached ones, attaches it (active alone, not trained) and says how exact it is.

    ``weights`` has a factor for each adapter, of any sign: ``{"maths": 1.0, "toxic": -0.5}``. ``how`` is

    - ``"sum"``: Σ w Δ of what each does to the weights (task arithmetic, Ilharco et al. 2023);
    - ``"ties"``: of each the ``density`` largest entries; where signs differ, the mean of those with the heavier sign (Yadav et al. 2023);
    - ``"dare"``: of each a random share ``density`` of the entries, divided by it, then the sum (Yu et al. 2024); ``"dare_ties"``: then TIES;
    - ``"average"``: Σ w t / Σ w of the tensors of adapters of one method (a soup, Wortsman et al. 2022).

    ``rank`` is that of the factors A and B: by default as many as the sum needs, with fewer the best there are (SVD). One adapter
    alone is compressed so. Raises `PeltError`, the model as it was, for an adapter that does not merge, for one that trains
    parameters or biases of the base beside its rows, and where methods are to be averaged that differ.
    """
    model = unwrapped(model)
    names = list(weights)
    factors = {n: float(w) for n, w in weights.items()}
    if how not in get_args(How):
        raise error(
            "E0850", f"`how` is {how!r}", help=near(how, get_args(How)) or f"it is one of {', '.join(get_args(How))}"
        )
    if not names or not all(torch.isfinite(torch.tensor(w)) for w in factors.values()):
        raise error(
            "E0850",
            "`weights` has a finite number for each adapter, and at least one",
            help='give them as {"a": 0.7, "b": 0.3}',
        )
    if not 0 < density <= 1:
        raise error("E0850", f"`density` is {density:g}", help="it is a share of the entries: more than 0, at most 1")
    if rank is not None and rank < 1:
        raise error("E0850", f"`rank` is {rank}", help="give 1 or more, or leave it out")
    for n in names:
        record(model, n)
    with unchanged(model):
        return (
            _average(model, factors, name) if how == "average" else _sum(model, factors, name, how, rank, density, seed)
        )


def _average(model: nn.Module, weights: Mapping[str, float], name: str) -> Combined:
    total = sum(weights.values())
    if abs(total) < 1e-12:
        raise error(
            "E0850",
            "the weights add up to 0, and an average divides by their sum",
            help='use `how="sum"`, or other weights',
        )
    first, *others = weights
    method = record(model, first).method
    values = {n: state_dict(model, n) for n in weights}
    for n in others:
        same = as_file(record(model, n).method) == as_file(method)
        if not same or {k: t.shape for k, t in values[n].items()} != {k: t.shape for k, t in values[first].items()}:
            raise error("E0851", f"`{first}` and `{n}` are of different methods, and their tensors do not correspond",
                        help='add up what they do: `how="sum"`')  # fmt: skip
    frozen = {k for k, t in record(model, first).plan.tensors.items() if t.frozen}
    apart = next(
        (k for n in others for k in frozen if k in values[n] and not torch.equal(values[n][k], values[first][k])), None
    )
    if apart is not None:
        raise error(
            "E0851", f"`{apart}` is frozen, and not the same in all of them", help="average adapters of one seed"
        )
    mean = {}
    for k, t in values[first].items():
        parts = [values[n][k].double() * (w / total) for n, w in weights.items()]
        mean[k] = t if k in frozen or not t.is_floating_point() else torch.stack(parts).sum(0).to(t.dtype)
    a = record(model, first)
    install(
        model,
        Resolved(method),
        name,
        a.seed,
        check=lambda plan: None,
        head=None,
        allow_future=True,
        labels=a.plan.labels,
        trainable=False,
    )
    fill(model, name, mean)
    return Combined(name, None, {})


def _sum(
    model: nn.Module, weights: Mapping[str, float], name: str, how: str, rank: int | None, density: float, seed: int
) -> Combined:
    found = {n: _of_maps(model, n) for n in weights}
    paths = sorted({p for of in found.values() for p in of})
    if not paths:
        raise error("E0851", "none of the adapters changes a weight", help="train one first")
    g = torch.Generator().manual_seed(seed)
    parts: dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}
    for p in paths:
        changes = [(weights[n], of[p]) for n, of in found.items() if p in of]
        parts[p] = torch.linalg.svd(_joined(changes, how, density, g), full_matrices=False)
    needed = max(int((S > ROUNDING * S.max().clamp(min=1e-30)).sum()) for _, S, _ in parts.values())
    r = max(1, needed if rank is None else min(rank, needed))
    sites, _ = spelled(model, paths)
    method = parse(ROW.format(name="combined", sites=", ".join(sites), r=r), name="combined")
    plans: list[Plan] = []
    install(
        model,
        Resolved(method),
        name,
        0,
        check=plans.append,
        head=None,
        allow_future=False,
        labels=None,
        trainable=False,
    )
    values: dict[str, torch.Tensor] = {}
    left_out: dict[str, float] = {}
    for e in plans[0].edits:
        U, S, V = parts[e.site.view.module]
        k = min(r, len(S))
        A, B = U.new_zeros(len(U), r), U.new_zeros(r, V.shape[1])
        A[:, :k], B[:k] = U[:, :k] * S[:k].sqrt(), S[:k, None].sqrt() * V[:k]
        values |= {e.tensors["A"]: A.float(), e.tensors["B"]: B.float()}
        left_out[e.site.view.module] = float(S[k:].norm() / S.norm().clamp(min=1e-30))
    fill(model, name, values)
    return Combined(name, r, left_out)


def _of_maps(model: nn.Module, name: str) -> dict[str, torch.Tensor]:
    """What an adapter adds to the weight of each linear map, [in, out] in float64, by the map's path."""
    found = {}
    for path, new in changes_of(model, name):
        module, _, attribute = path.rpartition(".")
        host = model.get_submodule(module)
        own = any(c.parameter.path == path for c in record(model, name).plan.copies)
        if own or attribute != "weight":
            raise error("E0851", f"`{name}` changes `{path}`, which two factors at a linear map cannot say",
                        help="leave out what trains biases, norms or a head, or average adapters of one method")  # fmt: skip
        old = model.get_parameter(path).detach()
        found[module] = as_map(host, new).double() - as_map(host, old).double()
    return found


def _joined(
    changes: Sequence[tuple[float, torch.Tensor]], how: str, density: float, g: torch.Generator
) -> torch.Tensor:
    """One change of a weight, made of several with their factors."""
    given: list[Any] = [t * w for w, t in changes]
    if how.startswith("dare"):
        given = [t * (torch.rand(t.shape, generator=g) < density).to(t) / density for t in given]
    if how == "ties":
        given = [_largest(t, density) for t in given]
    whole = torch.stack(given)
    if not how.endswith("ties"):
        return whole.sum(0)
    sign = whole.sum(0).sign()
    agrees = (whole.sign() == sign) & (whole != 0)
    return (whole * agrees).sum(0) / agrees.sum(0).clamp(min=1)


def _largest(t: torch.Tensor, density: float) -> torch.Tensor:
    """The entries of the largest size, a share of all; 0 elsewhere."""
    k = max(1, round(density * t.numel()))
    least = t.abs().flatten().topk(k).values[-1]
    return torch.where(t.abs() >= least, t, torch.zeros((), dtype=t.dtype))
