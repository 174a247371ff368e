"""Which adapters act: for the model, for one thread, for each example of a batch; and what an optimiser is told of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import nn

from ..anatomy.interrupts import finish
from ..compiler.among import looks_behind
from ..compiler.labels import Labels, labels_of_base
from ..compiler.plan import Plan
from ..language.analyse.row_verdicts import batch_independent
from ..language.ir import Method
from ..language.report.diagnostics import PeltError, error
from ..language.types.carried import carries
from .heads import agree
from .prompts.pictures import pictured
from .registry import Registry, record, refuse_merged, registry, unwrapped
from .replaced import refuse_replaced
from .sharding import settle
from .mixture import Mixture
from .switch import Weighted
from .weighed import unweighable

if TYPE_CHECKING:
    from .bank import Bank


def receive(r: Registry, names: Iterable[str]) -> None:
    """Lets the tensors of exactly these adapters, as far as they are trainable, require a gradient. May be repeated."""
    wanted = frozenset(names)
    r.receiving |= wanted
    for n in r.receiving & r.attached.keys():
        for p in r.attached[n].trained().values():
            p.requires_grad_(n in wanted and r.attached[n].trainable)
    r.receiving = wanted


def adapters(model: nn.Module) -> dict[str, Method]:
    """The attached adapters by name, with their methods; those of a bank are in its ``names``."""
    r = registry(unwrapped(model))
    return {n: a.method for n, a in r.attached.items() if a.stacked is None} if r is not None else {}


def active(model: nn.Module) -> tuple[str, ...]:
    """The names of the adapters that act in this thread now, in order of application."""
    r = registry(unwrapped(model))
    chosen = r.switch.chosen if r is not None else ()
    return chosen.names if isinstance(chosen, Mixture) else chosen


def activate(model: nn.Module, *names: str | Mapping[str, float]) -> None:
    """Makes exactly these adapters act, in this order; only they receive gradients. No name: none acts.

    ``activate(model, {"a": 0.7, "b": 0.3})`` gives each a weight of its change, ``h + w (edit(h) - h)`` in this order: where changes
    are added up, as LoRA's, exactly their weighted sum. What has no change to weigh is refused with the reason: prompts, keys
    that share the tokens' softmax, rows that put something in h's place. (`unipelt.combine` makes a sum an adapter of its own.)

    This is one setting of the model, for all threads: what another thread activates acts here too, from the next pass on. To
    serve several users, choose in each thread: ``with unipelt.using(model, "ann"): …``. Raises `PeltError` for a name
    that the model does not have, and where a module at which an adapter acts was replaced.
    """
    model = unwrapped(model)
    acting = _weighed(model, names)
    r = _chosen(model, acting, "activate")
    for n in acting:
        refuse_replaced(model, n)
    settle(model)

    def commit() -> None:
        receive(r, acting)
        r.switch.active = acting

    finish(commit)


def labels(model: nn.Module, name: str | None = None) -> Labels | None:
    """What the logits' columns mean under an adapter or, without a name, now. None where they are no labels."""
    model = unwrapped(model)
    r = registry(model)
    if name is None:
        own = r.heads.own if r is not None else None
    else:
        bank = _banked(r, name)
        own = bank.plan.labels if bank is not None else record(model, name).plan.labels
    return own or labels_of_base(model)


def _chosen(model: nn.Module, names: Sequence[str], what: str) -> Registry:
    """The model's record, where it has all of these adapters and they can act together."""
    for n in names:
        if isinstance(n, (list, tuple)):
            given = ", ".join(map(repr, n))
            raise error(
                "E0588",
                "the names of adapters are given one after the other, not in a list",
                help=f"unipelt.{what}(model, {given})",
            )
        record(model, n)
    r = registry(model)
    if names and r is not None:
        refuse_merged(r)
    twice = [n for n, count in Counter(names).items() if count > 1]
    if twice:
        raise error("E0558", f"the adapter `{twice[0]}` is named twice", help="name it once")
    if r is None:
        raise error("E0550", "this model has no adapter", help="attach one: unipelt.apply(model, method, name=…)")
    agree(model, {n: r.attached[n].plan for n in names})
    if any("late" in r.attached[n].asks for n in names):
        found = looks_behind([e for n in names for e in r.attached[n].plan.edits])
        if found is not None:
            raise PeltError([found])
    return r


def _weighed(model: nn.Module, names: Sequence[Any]) -> tuple[str, ...]:
    """The names, or, of one that is a mapping, its names with their weights."""
    if len(names) != 1 or not isinstance(names[0], Mapping):
        return tuple(names)
    given = names[0]
    if not given:
        raise error("E0858", "the names of adapters have a weight each, and there is none",
                    help='unipelt.activate(model, {"a": 0.7, "b": 0.3}), or no argument at all for the base')  # fmt: skip
    for n, w in given.items():
        a = record(model, n)
        if isinstance(w, bool) or not isinstance(w, (int, float)) or not math.isfinite(w):
            raise error(
                "E0858",
                f"the weight of `{n}` is a finite number, not {w!r}",
                help='unipelt.activate(model, {"a": 0.7, "b": 0.3})',
            )
        if w != 1 and (why := unweighable(a.plan)):
            raise error("E0858", f"the adapter `{n}` acts as a whole or not at all: {why}", help=f"give it the weight 1, or leave `{n}` out")  # fmt: skip
    return Weighted.of({n: float(w) for n, w in given.items()})


@contextmanager
def using(model: nn.Module, *names: str | None | Sequence[str | None] | Mapping[str, float]) -> Iterator[nn.Module]:
    """Within the block exactly these adapters act in this thread, in this order; ``None`` alone is the base.

    ``with unipelt.using(model, "ann"): model.generate(…)``. Other threads, and what `activate` says to them, are not touched:
    this is how one model serves several users at once. Blocks nest, the innermost counts, and an exception restores what was.
    It chooses what acts, not what is trained: gradients reach the adapters that `activate` named. A backward pass that computes
    the forward pass again (gradient checkpointing) belongs inside the block.

    A mapping has names with weights, as in `activate`. A list has an adapter for each example of a batch: ``with unipelt.using(model, ["ann", None, "bob", "ann"])``. The frozen maps run
    once for all of them; methods may be mixed. A batch of twice as many (beams, several answers) has each example's in a run.

    Rows that adapters put among the tokens may differ in number: examples with fewer get pads, which the mask leaves out. Where heads
    have labels of different number, the logits are as wide as the widest, with -inf where an example has no such label.

    Raises `PeltError` for a name that the model does not have, for no name, for adapters that cannot act together, and, in a
    list, for those that select tokens or take arguments.
    """
    model = unwrapped(model)
    r = registry(model)
    first = names[0] if len(names) == 1 else None
    if isinstance(first, (list, tuple)) or _banked(r, first):
        with _mixed(model, first if isinstance(first, (list, tuple)) else [first]):  # type: ignore[list-item]
            yield model
        return
    if not names or (None in names and len(names) > 1):
        raise error("E0589", "`using` takes the names of the adapters that are to act, or None alone for the base",
                    help='with unipelt.using(model, "ann"): …')  # fmt: skip
    acting: tuple[str, ...] = _weighed(model, names) if names != (None,) else ()
    if names != (None,):
        r = _chosen(model, acting, "using")
    with nullcontext() if r is None else r.switch.holder.using(acting):
        yield model


@contextmanager
def _mixed(model: nn.Module, examples: Sequence[str | None]) -> Iterator[None]:
    """Each example of a batch has an adapter of its own."""
    if not examples or not all(n is None or isinstance(n, str) for n in examples):
        raise error("E0852", "a list for `using` has a name, or None for the base, for each example of a batch",
                    help='with unipelt.using(model, ["ann", None]): …')  # fmt: skip
    r = registry(model)
    names = [n for n in dict.fromkeys(examples) if n is not None]
    banks: dict[str, list[str]] = {}
    for n in names:
        if (bank := _banked(r, n)) is not None:
            banks.setdefault(bank.name, []).append(n)
        else:
            record(model, n)
    if r is None:
        yield
        return
    if names:
        refuse_merged(r)
    for n in (n for n in names if n in r.attached):
        a = r.attached[n]
        if a.alone is None:
            a.alone = alone(model, a.plan)
        if why := a.alone:
            raise error("E0853", f"the adapter `{n}` cannot share a batch with others: {why}",
                        help=f"run its examples by themselves: with unipelt.using(model, {n!r})")  # fmt: skip
    r.switch.mixes = True
    with ExitStack() as stack:
        held: dict[str, tuple[str, int]] = {}
        for b in sorted(banks):  # in one order for all threads, so that none waits for another that waits for it
            found = stack.enter_context(r.banks[b].held(banks[b]))
            held |= {n: (b, slot) for n, slot in found.items()}
        with r.switch.holder.using(r.switch.holder.mixture(examples, held)):
            yield


def _banked(r: Registry | None, name: Any) -> Bank | None:
    """The bank that has an adapter of this name."""
    return r.banked(name) if r is not None and r.banks and isinstance(name, str) else None


def alone(model: nn.Module, plan: Plan) -> str:
    """Why an adapter cannot act on some rows of a batch alone; nothing where it can."""
    if plan.inputs:
        return f"it takes the argument `{plan.inputs[0].name}`"
    texts = plan.sites.main[0].name if plan.sites.main and not pictured(model) else None
    for e in plan.edits:
        if e.site.side == "prompt" and (e.prompt is None or not e.prompt.grows):
            return f"`{e.row.name}` puts rows in the place of tokens"
        if e.prompt is not None and e.site.stack != texts:
            return f"`{e.row.name}` puts rows among the parts of a picture"
        if e.row.tokens or {"ids", "positions"} & set(e.row.reads):
            return f"`{e.row.name}` selects tokens"
        if carries(e.typing.acting):
            return f"`{e.row.name}` carries something from layer to layer"
        if e.site.rows is not None or e.grid is not None:
            return f"`{e.site.label}` does not keep examples apart"
        if batch_independent(e.typing).value == "no":
            return f"`{e.row.name}` lets the examples of a batch see each other"
        if e.site.attends:
            return f"the attention of `{e.site.label}` is computed past the interface of transformers"
    return ""


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block this thread sees the base model, as with ``using(model, None)``."""
    with using(model, None):
        yield model


def rates_of(model: nn.Module, names: Iterable[str] | None = None) -> dict[int, tuple[float, bool]]:
    """By the id of a trained parameter: the multiple of the learning rate that its method gives it, and whether it decays.

    Of the adapters ``names``, or of all. Vectors and scalars do not decay."""
    settle(model)
    found: dict[int, tuple[float, bool]] = {}
    for name in adapters(model) if names is None else names:
        refuse_replaced(model, name)
        a = record(model, name)
        multiples = {n: t.lr for n, t in a.plan.tensors.items()} | {c.name: c.lr for c in a.plan.copies}
        found |= {id(p): (multiples[n], p.dim() > 1) for n, p in a.trained().items()}
    return found


def parameter_groups(
    model: nn.Module, name: str = "default", lr: float | None = None, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Optimiser groups of an adapter: the method's multiples of the learning rate ``lr``, which must be given, and no decay on
    vectors and scalars.

    An optimiser that is made of all parameters, as the plain Trainer's, knows no multiples: give it one of these,
    ``Trainer(…, optimizers=(torch.optim.AdamW(groups), None))``.
    """
    if lr is None:
        raise TypeError("parameter_groups() needs a number for `lr`")
    lr, weight_decay = float(lr), float(weight_decay)
    model = unwrapped(model)
    rates = rates_of(model, [name])
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for p in record(model, name).trained().values():
        if p.requires_grad:
            multiple, decays = rates[id(p)]
            groups.setdefault((lr * multiple, weight_decay if decays else 0.0), []).append(p)
    return [{"params": ps, "lr": rate, "weight_decay": decay} for (rate, decay), ps in groups.items()]
