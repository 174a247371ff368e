"""Rows among the tokens of a model: where they can be put, and what stands in the way.

Rows that enter a block behind others have their places in the sequence from the start, so that masks, positions, caches and labels
are of one length everywhere. In the blocks before, whatever stands at those places is hidden from the tokens: their attention does
not look there (`runtime.prompts.veils`). So nothing else there may let tokens read one another.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence

from torch import nn

from ..anatomy.sites import Site, SiteMap, Stack
from ..language.ir import Row
from ..language.report.diagnostics import Diagnostic
from ..language.types.inputs import changes_length, places_rows
from .plan import PlannedEdit, PlannedPrompt


def no_rows(model: nn.Module, sites: SiteMap, row: Row, site: Site) -> Diagnostic | None:
    """Why a row of the table cannot act where tokens enter the model, or rows a block. Masks and positions must grow with rows."""
    name, first = type(model).__name__, sites.main[0]
    beside = site.stack not in {s.name for s in sites.main}  # a tower of pictures beside that of a text
    tower = model.get_submodule(sites.tower(sites.stack(site.stack))) if beside else model
    entering = getattr(tower, "main_input_name", "input_ids")
    # rows among the parts of a picture are put there behind the embeddings: nothing else of a call has an entry for each part
    widths = {
        b.sizes["d_model"] for b in sites.named("block", site.stack)
    }  # several: parts are put together on the way
    alone = beside or len(sites.stacks) == 1
    pictures = entering == "pixel_values" and alone and len(widths) == 1 and changes_length(row)
    if places_rows(row) and entering != "input_ids" and not pictures:
        return Diagnostic("E0739", f"prompts are rows among tokens, and this {name} reads none", row.span,
                          help="prefix tuning does the same in every layer")  # fmt: skip
    if site.view.enters:
        return Diagnostic("E0739", f"no module of this {name} yields what `{site.name}` means, so nothing can be put there",
                          row.span, help=" or ".join(f"put it at `{s.name}`" for s in sites.entered() if not s.view.enters))  # fmt: skip
    if not places_rows(row):
        return None
    if site.kind.among and (without := _no_places(model, sites, row, site, pictures)):
        return without
    if pictures:
        return None
    if site.stack != first.name:
        return Diagnostic("E0739", f"rows stand among the tokens that the model reads, and those enter the {first.name} of this "
                          f"{name}, not its {site.stack}", row.span,
                          help=f"modify {first.name + '.' if site.kind.among else ''}{site.name}; in the {site.stack} prefix tuning "
                          "does the same in every layer")  # fmt: skip
    entered = model.get_submodule(first.module) if len(sites.main) > 1 else model
    still = site.kind.positions and first.learned_positions and changes_length(row)
    if still and "position_ids" not in inspect.signature(entered.forward).parameters:
        return Diagnostic("E0739", f"at `{site.name}` the tokens keep their positions, and this {name} takes none, so rows would shift "
                          "them", row.span, help="put them at `embed.words`, where the tokens' positions shift")  # fmt: skip
    return None


# ---------------------------------------------------------------- rows that enter a block


def _no_places(model: nn.Module, sites: SiteMap, row: Row, site: Site, pictures: bool) -> Diagnostic | None:
    """Why rows cannot enter a block behind others."""
    name, stack = type(model).__name__, sites.stack(site.stack)
    if stack.shared or site.layer is None:
        return Diagnostic("E0739", f"one module serves several layers of this {name}, so rows would enter each of them", row.span,
                          help="put them at `embed`")  # fmt: skip
    if pictures and entrance(sites, stack.name) is None:
        return Diagnostic("E0739", f"no module of this {name} yields what enters its first block, so rows would have no places there",
                          row.span, help="prefix tuning does the same in every layer")  # fmt: skip
    for layer in range(site.layer):
        if any(s.layer == layer for s in sites.named("mixer", stack.name)):
            how = "in a mixer that is no attention"
        elif not any(s.layer == layer for s in veiled(sites, stack.name, site.layer)):
            how = "past the attention interface of transformers"
        else:
            continue
        return Diagnostic("E0739", f"rows that enter block {site.layer} are hidden from the attention of the blocks before it, and in block "
                          f"{layer} of this {name} tokens read one another {how}", row.span,
                          help="put them at `embed`, or in front of the first block: layers first 1")  # fmt: skip
    return None


def misplaced(prompt: PlannedPrompt, stack: Stack, row: Row, pictures: bool) -> Diagnostic | None:
    """Why rows that enter a block cannot stand where they are put: in the blocks before, tokens would be as far apart as behind."""
    if pictures or stack.learned_positions or prompt.leads:
        return None
    return Diagnostic("E0739", "the positions of this model are counted in each block anew, so tokens with places for rows between them would "
                      "be farther apart in the blocks before as well", row.span, help="put the rows before the tokens: prepend(delta, h)")  # fmt: skip


def entrance(sites: SiteMap, stack: str) -> Site | None:
    """Where the parts of a picture leave their embeddings."""
    return next(
        (
            s
            for s in sites.sites
            if s.kind.times == "input" and s.stack == stack and s.kind.positions and not s.view.enters
        ),
        None,
    )


def veiled(sites: SiteMap, stack: str, layer: int) -> Sequence[Site]:
    """The attentions of a stack before a block, which do not look at the rows that enter it."""
    return [
        s for s in sites.named("attn.heads", stack)
        if s.layer is not None and s.layer < layer and not s.attends and s.side == "attention"
    ]  # fmt: skip


def late(edits: Iterable[PlannedEdit]) -> list[PlannedEdit]:
    """The edits whose rows enter a block behind others."""
    return [e for e in edits if e.prompt is not None and e.late is not None and e.late > 0]


def looks_behind(edits: Sequence[PlannedEdit]) -> Diagnostic | None:
    """An edit that would read the places of rows that come later, where both act."""
    for placed in late(edits):
        for e in edits:
            if e.prompt is not None or e.site.stack != placed.site.stack or not _before(e.site, placed):
                continue
            inserted = next((c.span for c in e.typing.tokens if c.word == "inserted"), None)
            read = inserted or e.typing.out.chunk
            if read is not None:
                what = "selects rows" if inserted else "reads other tokens"
                where = f"in block {e.site.layer}" if e.site.layer is not None else f"at `{e.site.name}`"
                return Diagnostic("E0739", f"`{e.row.name}` {what} {where}, where those that `{placed.row.name}` puts before block "
                                  f"{placed.late} are not there yet", read, help=f"let it act from block {placed.late} on: layers {placed.late} .. depth")  # fmt: skip
    return None


def _before(site: Site, placed: PlannedEdit) -> bool:
    assert placed.late is not None
    return site.kind.times == "input" or (site.layer is not None and site.layer < placed.late)
