"""A model's sites as data: which module, which side of it, which slice, and what is in scope there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Literal

import torch

from ..language.report.diagnostics import Diagnostic
from ..language.sites import SITES, Side, SiteSignature, signature
from .columns import Columns
from .layout import Layout


#: What `Site.proof` says of a place that was found.
PROVED, NOT_YET = "proved", "not yet proved"


@dataclass(frozen=True, slots=True)
class View:
    """A module (path from the model that was given) and, where projections are fused, the site's columns of its output.

    ``enters``: what enters the module is meant instead of what leaves it (an embedding that no module yields).
    ``parameter``: one of the module's own parameters is meant, which has several matrices, and these columns of each;
    ``turned``: as it is stored, each is [d_out, d_in].
    """

    module: str
    columns: Columns | None = None
    enters: bool = False
    layout: Layout | None = None  # where the numbers lie, if [batch, token, d] is not sure
    parameter: str = ""
    turned: bool = False

    @property
    def path(self) -> str:
        """Of the module, or of the parameter that is meant."""
        return f"{self.module}.{self.parameter}" if self.parameter else self.module

    def turn(self, t: torch.Tensor) -> torch.Tensor:
        """The parameter that is meant with [d_in, d_out] of each matrix, from how it is stored or back."""
        return t.mT if self.turned else t

    @property
    def lies(self) -> Layout:
        """Where the numbers lie: [batch, token, d] unless `layout` says otherwise."""
        return self.layout or Layout()


@dataclass(frozen=True, slots=True)
class Stack:
    """One tower of blocks. A model that is no encoder–decoder has one, named ``""``.

    ``depth`` counts the layers that run, ``blocks`` are the modules that serve them (paths from the base model, as in
    `Site.block`). ``shared``: fewer modules than layers, so no module is one layer. ``module`` is the path, from the
    model that was given, of the module whose forward takes the stack's tokens and their mask (``""``: the model itself).
    ``learned_positions``: ``embed`` lies behind something that adds positions, ``embed.words`` before it. ``main``: a
    site's name without a tower means this one too. Beside the language tower of a model, its pictures' is not.
    """

    name: str
    depth: int
    blocks: tuple[str, ...]
    causal: bool
    shared: bool
    learned_positions: bool
    module: str
    main: bool = True

    @property
    def calls(self) -> int:
        """How often a block's module is called in a pass."""
        return self.depth // len(self.blocks)

    def __repr__(self) -> str:
        return f"<stack {self.name or self.module}: {self.depth} layers>"


@dataclass(frozen=True, slots=True)
class Site:
    """One place in a model. ``h`` is found at ``side`` of ``view``; ``x`` and ``residual`` enter the named modules.

    ``block`` is the block's path from the base model (so that names do not depend on the head a model carries).
    ``layer`` is the block's number in its stack. ``tokens`` names the stack whose tokens are the axis ``token`` here (a
    decoder's ``cross.k`` and ``cross.v`` read the encoder's); ``causal`` is about those. ``x_leaves``: ``x`` is what
    leaves its module. ``rows``: here a module flattens batch and tokens to one dimension; they are those of what enters
    this module. ``factor``: by what the model multiplies h before it adds it to the residual, or before the first block reads
    it (None: by learned numbers, one for each entry), ``keeps``: by what the residual (None as there); ``scaled``: whether the module there has
    multiplied the entries of the table of words already. ``proof`` says how the place is known:
    ``proved`` by the numbers of a pass, or ``not yet proved``; nothing where an anatomy is read again with adapters in the model. A module that is named by its path has its ``path`` from the
    base, and ``lacks`` what cannot be read there (no linear map has no ``W``). ``attends`` is about heads: how
    their module computes attention, ``""`` by a function of transformers' interface, ``sdpa`` by a call of torch's, ``softmax``
    written out, ``distances`` so with a bias for each head and key (see `own_attention`).
    ``next_to_map``: nothing stands between h and the linear map that could absorb an edit. ``with_others``: what the map
    here yields (h, or what is made of h) is summed with what experts yield. ``also`` are the other modules that use a parameter which is edited here (a tied one).
    """

    name: str
    view: View
    sizes: Mapping[str, int]
    stack: str = ""
    layer: int | None = None
    block: str = ""
    x: str | None = None
    residual: str | None = None
    norm: str | None = None
    bases: Mapping[str, View] = field(default_factory=dict)
    causal: bool = False
    tokens: str = ""
    x_leaves: bool = False
    rows: str | None = None
    factor: float | None = 1.0
    keeps: float | None = 1.0
    scaled: bool = False
    proof: str = ""
    path: str = ""
    lacks: frozenset[str] = frozenset()
    attends: str = ""
    next_to_map: bool = True
    with_others: bool = False
    also: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<site {self.label}>"

    @property
    def kind(self) -> SiteSignature:
        """What the language says of the sites of that name."""
        found = signature(self.name)
        assert found is not None
        found = found.without(self.lacks) if self.lacks else found
        return found if self.next_to_map else replace(found, into="")

    def holding(self, parameter: SiteSignature) -> Site | None:
        """The site that is a parameter of this one's module, or of its sublayer's norm; None where it has no norm."""
        path = f"{self.path}.{parameter.parameter}" if self.path else ""
        if not parameter.of_norm:
            return replace(self, name=parameter.name, path=path)
        return None if self.norm is None else replace(self, name=parameter.name, path=path, view=View(self.norm))

    @property
    def side(self) -> Side:
        return self.kind.side

    @property
    def parameter(self) -> str:
        """What the module calls the parameter that h is, or of which a projection's map is made."""
        return self.view.parameter or self.kind.parameter

    @property
    def label(self) -> str:
        """``encoder.layer.0.attn.q``: the front of the names of the tensors that live here."""
        if self.path:
            return self.path
        front = self.block or self.stack
        return f"{front}.{self.name}" if front else self.name

    @property
    def full_name(self) -> str:
        """``decoder.attn.q``, or ``attn.q`` where there is one stack."""
        return f"{self.stack}.{self.name}" if self.stack else self.name


@dataclass(frozen=True, slots=True)
class SiteMap:
    """Everything that is known of one model's sites."""

    anatomy: str  # "" where the sites were found by what flows where
    prefix: str  # path of the base model inside the model, "" if it is the model
    stacks: tuple[Stack, ...]  # in the order of the data flow
    sites: tuple[Site, ...]
    head: tuple[str, ...]  # modules of the head, outermost first; the last yields the logits
    refused: Mapping[str, str] = field(default_factory=dict)  # sites that are left out, by full name, with the reason
    uncovered: Mapping[str, str] = field(
        default_factory=dict
    )  # projections that no site covers, by path, with the reason
    #: Parameters, by their first path, that other modules read than those that hold them → which (of maps that were found).
    read_past: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unknown: tuple[Diagnostic, ...] = ()  # where nothing is known of the sites: with what asking for one is answered

    def __repr__(self) -> str:
        known = "nothing known" if self.unknown else f"anatomy {self.anatomy}" if self.anatomy else "found"
        return f"<site map: {len(self.sites)} sites, {known}>"

    @property
    def known(self) -> Literal["anatomy", "found", "unknown"]:
        """How the sites are known: an anatomy says them, or a pass showed them; or that nothing is known of them."""
        return "unknown" if self.unknown else "anatomy" if self.anatomy else "found"

    @property
    def proof(self) -> str:
        """What every site's `Site.proof` says, or ``some proved``; nothing where it was not asked again."""
        proofs = {s.proof for s in self.sites}
        return proofs.pop() if len(proofs) == 1 else "some proved" if proofs else ""

    @property
    def untried(self) -> bool:
        """Whether no site of it is known for sure: it was found, or read from an anatomy of one's own, without weights."""
        return self.proof == NOT_YET

    @property
    def main(self) -> tuple[Stack, ...]:
        """The stacks that a name without a tower means: what the model's own tokens pass, in the order of the data flow."""
        return tuple(s for s in self.stacks if s.main) or self.stacks

    def stack(self, name: str) -> Stack:
        return next(s for s in self.stacks if s.name == name)

    def tower(self, stack: Stack) -> str:
        """The path of the smallest module that holds a stack's blocks and where its tokens enter: it may be called by itself."""
        paths = [s.view.module for s in self.sites if s.stack == stack.name and s.kind.times == "input"]
        parts = [p.split(".") for p in (stack.module, *paths)]
        common = takewhile(lambda names: len(set(names)) == 1, zip(*parts))
        return ".".join(names[0] for names in common) if paths else stack.module

    def named(self, name: str, stack: str | None = None) -> list[Site]:
        """The sites of a name (also ``attn.q.weight``), of one stack or (without one) of every main stack; that of an input is the first one's, and
        what lies between stacks is found whatever they are called."""
        if (kind := signature(name)) is not None and kind.of:
            return [held for s in self.named(kind.of, stack) if (held := s.holding(kind)) is not None]
        main = [s.name for s in self.main]
        if stack is None and name in SITES and SITES[name].times == "input":
            main = main[:1]
        elif name in SITES and SITES[name].times == "between":
            main = [s.name for s in self.stacks]
        return [
            s
            for s in self.sites
            if s.name == name and (s.stack in main or not s.stack if stack is None else s.stack == stack)
        ]

    def entered(self) -> list[Site]:
        """Where the model's tokens enter it, first without their positions."""
        return sorted(
            (s for n in self.names() for s in self.named(n) if s.kind.times == "input"), key=lambda s: s.kind.positions
        )

    def names(self) -> list[str]:
        return list(dict.fromkeys(s.name for s in self.sites))


def whole_block(s: Site, block: str) -> bool:
    """Whether a site is a sublayer that the block of this path is as a whole, so that its sum is made outside (see `around`)."""
    return s.kind.is_sublayer and s.view.module == block
