"""A plan as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .plan import Plan


def plan_text(plan: "Plan") -> str:
    """A table of the plan's edits with the counts below it, in plain characters."""
    head = ("row", "site", "layers", "insert", "form", "compose", "parameters")
    rows = [
        tuple(f"{e[k]:,}" if k == "parameters" else _short(str(e[k]) + (f"  gated by {e['gate']}" if k == "compose" and e["gate"] else "")) for k in head)
        for e in plan.table()
    ]  # fmt: skip
    widths = [max(len(r[i]) for r in (head, *rows)) for i in range(len(head))]
    lines = [f"{plan.method.name} on {plan.model} ({plan.sites.depth} layers, anatomy {plan.sites.anatomy})", ""]
    for r in (head, tuple("-" * w for w in widths), *rows):
        cells = [c.rjust(w) if i == len(head) - 1 else c.ljust(w) for i, (c, w) in enumerate(zip(r, widths))]
        lines.append("  ".join(cells).rstrip())
    c = plan.counts
    share = f" ({100 * c.trained / c.base:.2f} % of the base's {c.base:,})" if c.base else ""
    lines += ["", f"trained {c.trained:,}{share}   stored {c.stored:,}   frozen {c.frozen:,}   head {c.head:,}"]
    lines += [f"note: {w}" for w in plan.warnings] + [f"needs: {n}" for n in plan.needs]
    return "\n".join(lines)


def _short(text: str, most: int = 44) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
