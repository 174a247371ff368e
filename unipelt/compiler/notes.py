"""What a plan says of the base: modules of torch that compute otherwise, or remember something, where an adapter is in a model;
windows and caps of attention where learned rows join its keys."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ..anatomy.base import base_modules
from ..anatomy.quantised import is_packed, stops_gradients
from ..anatomy.windows import cap, window
from ..language.types.softmax import shares_softmax
from .plan import PlannedEdit

#: What a plan says of a row whose verdict is no, and of one that no rule decides.
DECODES_OTHERWISE = (
    "reads other positions, so decoding with a cache differs (use_cache=False does not)",
    "may read other positions, and decoding with a cache differs then (use_cache=False does not)",
)
#: Of rows behind the text of a language model.
FORETELLS_THE_END = (
    "its rows stand behind the last token, and only what follows that is foretold from them: a token's logits are others once the text "
    "goes on, and a loss of the text's own next tokens does not train the rows"
)
READS_PADS = (
    "pad positions take part, so the output depends on how a batch is padded",
    "pad positions may take part, and the output depends on how a batch is padded then",
)


def of_the_base(model: nn.Module) -> list[str]:
    """Notes in words, for the person who applies a method."""
    modules = list(base_modules(model))
    counting = [n for n, m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None]
    fast = [n for n, m in modules if isinstance(m, nn.TransformerEncoderLayer)]
    packed = [n for n, m in modules if stops_gradients(m)]
    said = []
    if counting:
        said.append(
            f"{_named(counting)} keep{'s' * (len(counting) == 1)} a running mean and variance, which move in train mode and are no "
            "part of an adapter: keep such norms in eval mode while you train, as `unipelt train` and `for_trainer` do"
        )
    if fast:
        said.append(
            f"{_named(fast)} leave{'s' * (len(fast) == 1)} torch's fast path while there are adapters: in eval mode a disabled adapter's "
            "output is the base's up to rounding, and pads are computed as well"
        )
    if packed:
        said.append(
            f"{_named(packed)} {'is' if len(packed) == 1 else 'are'} packed for a CPU since a call in evaluation mode, and no gradient flows "
            "through: load the base anew, and train in train mode"
            + " (unpacking by `model.state_dict()` may mix up the scales of their codes)"
            * any(is_packed(m) for _, m in modules)
        )
    return said


def of_rows(said: str, rows: list[str]) -> str:
    """One note for all the rows it is true of."""
    names = [f"`{r}`" for r in dict.fromkeys(rows)]
    return f"row {names[0]}: {said}" if len(names) == 1 else f"rows {', '.join(names)}: {said}"


def of_attention(model: nn.Module, edits: Iterable[PlannedEdit]) -> list[str]:
    """How rows that share attention's softmax stand to its window and its cap."""
    reach: dict[str, list[int | None]] = {}
    capped: dict[str, float] = {}
    for e in edits:
        if e.site.kind.has_heads and shares_softmax(e.row):
            attention = model.get_submodule(e.site.view.module)
            reach.setdefault(e.row.name, []).append(
                None if e.site.kind.cross else window(attention, e.site.layer, getattr(model, "config", None))
            )
            if (most := cap(attention)) is not None:
                capped[e.row.name] = most
    said = []
    for row, found in reach.items():
        if bounds := {n for n in found if n is not None}:
            layers = f"{sum(n is not None for n in found)} of {len(found)} layers" if None in found else "every layer"
            width = " or ".join(map(str, sorted(bounds)))
            said.append(f"row `{row}`: in {layers} a token sees a window of {width} tokens; learned rows stand outside it, and every "
                        "token sees all of them")  # fmt: skip
    for row, most in capped.items():
        said.append(
            f"row `{row}`: the model caps the scores of its tokens at {most:g}; those of learned rows are as written, not capped"
        )
    return said


def _named(paths: list[str]) -> str:
    others = f" and {len(paths) - 1} others" if len(paths) > 2 else f" and `{paths[1]}`" if len(paths) == 2 else ""
    return f"`{paths[0]}`{others}"
