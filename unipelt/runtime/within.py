"""Heads where a module computes its attention past transformers' interface: edits are put into what it computes, while it runs.

Only such a module has a ``forward`` of ours, and only while an adapter has edits at its heads. Within it, in its thread, torch's
functions are seen (`anatomy.own_attention`); what is no attention goes through as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..anatomy.own_attention import DISTANCES, Core, OwnAttention, parted
from ..language.report.diagnostics import error
from .attention import attend, edited
from .edits import Edit
from .hooks import Hook
from .kernels import Call, kernel_of
from .seam import Seam, seam_of
from .taps import first_entered
from ..anatomy.stand_in import StandIn


class Within(StandIn):
    """Stands in for the ``forward`` of a module with edits at the heads of an attention that it computes itself."""

    def __init__(self, module: nn.Module):
        super().__init__(module, "forward")
        self.hook = Hook(module, self.called, before=True)

    def put(self) -> None:
        super().put()
        self.hook.put()  # torch's encoders call no module in their fast path, which they leave where a module has hooks

    def take(self) -> None:
        self.hook.take()
        super().take()

    def called(self, module: nn.Module, args: tuple) -> None:
        """Nothing is done before a call."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module: nn.Module = self.owner
        seam = seam_of(module)
        if seam is None or not (edits := seam.live("attention")):
            return self.own()(*args, **kwargs)
        if torch.compiler.is_compiling():
            raise error("E0547", f"{type(module).__name__} computes attention by itself: edits at its heads are put in while it runs, and a "
                        "compiler would not see them", help="run the model as it is, or compile it without this adapter")  # fmt: skip
        with _Serving(module, seam, edits, first_entered(args, kwargs).shape[:-1].numel()) as serving:
            out = self.own()(*args, **kwargs)
        if serving.served != 1:
            raise serving.otherwise()
        return out


class _Serving(OwnAttention):
    """Puts edits into the one attention that a module computes."""

    def __init__(self, module: nn.Module, seam: Seam, edits: list[tuple[str, Edit]], tokens: int):
        super().__init__()
        self.module, self.seam, self.edits, self.tokens, self.served = module, seam, edits, tokens, 0
        self.distances = edits[0][1].site.attends == DISTANCES
        self.heads: int = edits[0][1].site.sizes["heads"]
        self.wants_mass = any("log_mass" in e.needs for _, e in edits)

    def otherwise(self) -> Exception:
        """The error for a call that computed something else than the call by which the heads were found."""
        many = "several times" if self.served else "in a way that is not known"
        return error("E0547", f"`{self.seam.path}` computed its attention {many} in this call: nothing was done at its heads",
                     help="take another site, or call the model as it was when its sites were found")  # fmt: skip

    def serve(self, found: tuple[torch.Tensor | None, ...]) -> None:
        """One attention is being served, whose tensors have the heads that the site has."""
        self.served += 1
        if self.served > 1 or any(t is None or t.shape[0] * t.shape[2] != self.tokens for t in found):
            raise self.otherwise()

    def attends(self, function: Callable, args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = {**dict(zip(names, args)), **kwargs}
        q, k, v = (given[n] for n in names[:3])
        query = parted(q, self.heads)
        mask = given.get("attn_mask")
        if q.dim() == 3:  # batch and heads in one
            k, v = (t.reshape(query.shape[0], -1, *t.shape[-2:]) if query is not None else t for t in (k, v))
            if mask is not None and mask.dim() == 3 and query is not None:
                mask = mask.reshape(query.shape[0], -1, *mask.shape[-2:]) if len(mask) == len(q) else mask[:, None]
        kernel = kernel_of("sdpa")
        self.serve((query if k.dim() == 4 and kernel is not None else None,))
        assert query is not None and kernel is not None
        causal = bool(given.get("is_causal"))
        if causal and query.shape[2] == 1 < k.shape[2]:  # what torch says of that: the first key alone is seen
            mask = torch.arange(k.shape[2], device=q.device)[None] == 0
        kwargs = {
            "is_causal": causal and mask is None,
            "scaling": given.get("scale"),
            "dropout": given.get("dropout_p", 0.0),
        }
        out, _ = attend(_sdpa, kernel, self.seam, self.edits, Call(self.module, query, k, v, mask, kwargs))
        return out.transpose(1, 2).reshape(*q.shape[:-1], v.shape[-1])

    def yields(self, core: Core) -> torch.Tensor:
        h, q = parted(core.out, self.heads), parted(core.scores.q, self.heads)
        self.serve((h, q))
        assert h is not None and q is not None
        mass = core.scores.mass
        if mass is not None:
            mass = mass.reshape(h.shape[:-1])
        given = {"q": q, "scale": core.scores.scale}
        rest = [(e, {**self.seam.gather(name, e, None, self.module), **given}) for name, e in self.edits]
        return edited(self.seam, rest, h, mass).reshape(core.out.shape)


def _sdpa(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None,
    is_causal: bool, scaling: float | None, dropout: float,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """torch's function, called as those of transformers' interface are."""
    out = functional.scaled_dot_product_attention(
        query, key, value, mask, dropout, is_causal, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return out.transpose(1, 2), None
