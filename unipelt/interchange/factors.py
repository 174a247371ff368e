"""What an adapter does to a base's weights, as two factors for each linear map: the best of a rank (singular values), and what they leave out.

A change of a bias comes along; other modules that the adapter changes (norms, a head) are given whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from ..anatomy.base import NAME, children
from ..anatomy.matrices import as_map, stored_as_map
from ..anatomy.sizes import weight_shape
from ..compiler.plan import Plan
from ..compiler.trained import parameters_of
from ..language.report.diagnostics import PeltError, error
from ..runtime.arithmetic import ROUNDING
from ..runtime.merge import changes_of, refuse_changes
from .declared import REFUSED, by_factors, no_counterpart

MERGED = "hand on the merged model: `unipelt merge`, or `unipelt.save_merged`"
#: Told how many linear maps are done, and of how many.
Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Pair:
    """The change of one linear map: ``down`` [d_in, r] times ``up`` [r, d_out], and that of its bias; how large it was and what is
    left out of it (Frobenius)."""

    down: torch.Tensor
    up: torch.Tensor
    size: float
    left_out: float


@dataclass
class Factored:
    """The factors of each map and the changes of biases [d_out], by the map's path; other modules with all their tensors."""

    pairs: dict[str, Pair] = field(default_factory=dict)
    biases: dict[str, torch.Tensor] = field(default_factory=dict)
    whole: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """The largest of all maps; 1 at least."""
        return max((p.down.shape[1] for p in self.pairs.values()), default=1) or 1

    def padded(self, path: str, model: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
        """The factors of a map in the rank of all, with zeros beyond its own; zeros alone where only its bias changes."""
        d_in, d_out = as_map(host := model.get_submodule(path), host.weight).shape  # type: ignore[arg-type]
        down, up = torch.zeros(d_in, self.rank), torch.zeros(self.rank, d_out)
        if path in self.pairs:
            own = self.pairs[path]
            down[:, : own.down.shape[1]], up[: own.up.shape[0]] = own.down, own.up
        return down, up

    @property
    def maps(self) -> list[str]:
        return list({**self.pairs, **self.biases})

    @property
    def left_out(self) -> dict[str, float]:
        """For each map the share of its change that the factors leave out."""
        return {path: p.left_out / p.size for path, p in self.pairs.items()}

    @property
    def overall(self) -> float:
        """The share that is left out of all changes together."""
        total = sum(p.size**2 for p in self.pairs.values())
        return (sum(p.left_out**2 for p in self.pairs.values()) / total) ** 0.5 if total else 0.0


def factored(model: nn.Module, name: str, rank: int | None = None, tick: Tick = lambda done, total: None) -> Factored:
    """The factors of an attached adapter, of a rank, or of as many as it needs. Raises `PeltError` where it does not merge, and where
    what it changes is tied to something else or no module's own."""
    if rank is not None and rank < 1:
        raise error("E0850", f"`rank` is {rank}", help="give 1 or more, or leave it out")
    plan = refuse_changes(model, name).plan
    uses = {path: p.uses for path, p in parameters_of(model).items()}
    total = len({e.site.view.module for e in plan.edits} | {m for m in _copied(plan) if is_map(model.get_submodule(m))})
    heads = {c.parameter.path for c in plan.copies if c.head}
    found = Factored()
    for path, new in changes_of(model, name):
        old = model.get_parameter(path).detach()
        if new.shape == old.shape and torch.equal(new, old.to(new.dtype)):
            continue
        if len(uses[path]) > 1:
            other = next(f"{m}.{a}" for m, a in uses[path] if f"{m}.{a}" != path)
            raise no_counterpart(f"it changes `{path}`, which is tied to `{other}`", MERGED)
        place, _, attribute = path.rpartition(".")
        module = model.get_submodule(place)
        if path in heads or not is_map(module):
            if children(module):
                raise no_counterpart(
                    f"it changes `{path}`, which is neither a linear map's nor a module's of its own", MERGED
                )
            found.whole.setdefault(place, _tensors(module))[attribute] = new.float()
        elif attribute == "bias":
            found.biases[place] = (new - old.to(new.dtype)).float()
        else:
            found.pairs[place] = pair(as_map(module, new) - as_map(module, old.to(new.dtype)), rank)
            tick(min(len(found.pairs), total), total)
    if not found.pairs and not found.biases:
        raise no_counterpart("it changes no linear map", "export it as the method that it is")
    return found


def _tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {n: t.detach() for n, t in module.state_dict().items() if NAME not in n.split(".")}


def _copied(plan: Plan) -> set[str]:
    return {c.parameter.path.rpartition(".")[0] for c in plan.copies if not c.head}


def is_map(module: nn.Module) -> bool:
    """Whether a module is a linear map that two factors can stand beside, as every library of them has it."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return weight_shape(module) is not None
    return isinstance(module, nn.Linear) or stored_as_map(module) and not isinstance(module, nn.Embedding)


def pair(change: torch.Tensor, rank: int | None) -> Pair:
    """The best two factors of a change [d_in, d_out] of at most a rank; singular values that are rounding have no place in them."""
    U, S, V = torch.linalg.svd(change.double(), full_matrices=False)
    needed = int((S > ROUNDING * S.max()).sum())
    k = needed if rank is None else min(rank, needed)
    root = S[:k].sqrt()
    return Pair(
        (U[:, :k] * root).float().cpu(), (root[:, None] * V[:k]).float().cpu(), float(S.norm()), float(S[k:].norm())
    )


def with_remedy(e: PeltError, model: nn.Module, name: str) -> PeltError:
    """The refusal of an adapter that peft has no method for, with what can be done where the adapter merges."""
    try:
        if all(d.code == REFUSED for d in e.diagnostics):
            refuse_changes(model, name)
            how = f"`unipelt export ... --to peft --as {by_factors().name} --rank 8`, or `unipelt.export_as_lora`"
            help_ = f"it merges, so what it does can be written as two factors for each map, with what they leave out: {how}"
            return PeltError([replace(d, help=help_) for d in e.diagnostics])
    except PeltError:
        pass
    return e
