"""What a map says of the sites of one block, held against what was seen when the block was run again with nudges (`replay`).

Each question is asked of one site and answered with the reason why it is not what the map says, or with nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from .columns import taken
from .comparing import affine, blended, by_head, multiple, proportional, rows_of, same, totals, within
from .judge_experts import judged, nudges_of
from .own_attention import divides, parted
from .reasons import Open
from .replay import at_module, first_column, Nudge, nudged, Nudges, Seen
from .sites import Site, View, whole_block

#: What is received at each place of an attention function.
_RECEIVED = ("q", "k", "v")
#: The last linear map of a sublayer, by the last part of its name.
_LAST = ("o", "down", "out", "hidden")
#: What attention receives from other projections of a sublayer, by the last part of their names: all of that or some.
_INNER = {"q_a": ("q",), "q_b": ("q",), "kv_a": ("k", "v"), "kv_b": ("k", "v"), "in": ()}


@dataclass(slots=True)
class Block:
    """The sites of a block and what was seen of it. ``path`` is from the model that was given."""

    path: str
    sites: Sequence[Site]
    names: Mapping[int, str] = field(default_factory=dict)  # the paths of modules by their ids
    stream: float = 1.0  # how large the numbers are that enter
    parameters: Mapping[str, torch.Tensor] = field(default_factory=dict)  # those with several matrices, by path
    seen: dict[Nudges, Seen] = field(default_factory=dict)

    # ------------------------------------------------------------ what is tried

    def nudges(self) -> list[Nudges]:
        """All that must be tried so that every question below can be answered."""
        found: list[Nudges] = [self.later_tokens]
        for s in self.sites:
            part, at = _part(s), at_module(s.view)
            if s.view.parameter:
                found += nudges_of(s)
            elif s.kind.is_sublayer:
                found += [*self._of_input(s), self.weighed(s)]
            elif part in _RECEIVED and s.kind.has_weight:
                found.append(nudged(at, 1))
            elif part in _LAST:
                found += [nudged(at, 1), nudged(at, -2), self.pinned(s, at)]
            elif part in _INNER:
                found.append(nudged(at, 1))
            elif part in ("up", "gate"):
                found += [nudged(at, 1), nudged(at, -2), *([self.pinned(s, at)] if part == "up" else [])]
        return [n for n in dict.fromkeys(found) if n]

    def more_nudges(self) -> list[Nudges]:
        """What must be tried besides where a projection is seen in no attention function."""
        found: list[Nudges] = []
        for s in self.sites:
            if _part(s) in _RECEIVED and s.kind.has_weight and self._first_call(nudged(at_module(s.view), 1)) is None:
                q = self.named(f"{s.kind.sublayer}.q") or s
                found += [nudged(at_module(s.view), -2), nudged(at_module(s.view), 1, 0), first_column(q.view)]
                found += [
                    nudged(at_module(q.view), times, row) for times, row in ((-2, None), (1, 0))
                ]  # a key asks what it is, too
        return [n for n in dict.fromkeys(found) if n not in self.seen]

    @property
    def later_tokens(self) -> Nudges:
        """Other tokens enter the block behind the first (the last one alone may be padding)."""
        return (Nudge(self.path, enters=True, row=0, later=True),)

    def weighed(self, s: Site) -> Nudges:
        """A sublayer yields something as large as the residual stream, so that it counts in the sum."""
        return (Nudge(s.view.module, s.view.columns, s.view.enters, size=self.stream),)

    def _of_input(self, s: Site) -> list[Nudges]:
        return [] if s.x is None else [nudged(Nudge(s.x, enters=True), 1, 0)]

    def pinned(self, s: Site, at: Nudge) -> Nudges:
        """The sublayer reads something else, and a projection yields what it did."""
        own = self.sublayer(s)
        if own is None or own.x is None:
            return ()
        return (Nudge(own.x, enters=True), Nudge(at.module, at.columns, times=0.0))

    # ------------------------------------------------------------ what is looked up

    def sublayer(self, s: Site) -> Site | None:
        """The sublayer that a site lies in, as the map has it."""
        return self.named(s.kind.sublayer)

    def named(self, name: str) -> Site | None:
        return next((s for s in self.sites if s.name == name), None)

    def at(self, view: View, nudges: Nudges = ()) -> torch.Tensor | None:
        """What leaves a place (or enters, where the map says so), with some nudges."""
        seen = self.seen[nudges]
        found = (seen.entered if view.enters else seen.left).get(view.module)
        return None if found is None else taken(found, view.columns)

    def h(self, s: Site, nudges: Nudges = ()) -> torch.Tensor | None:
        """The tensor that an edit at a site changes."""
        return self.entered(s.view.module, nudges) if s.side == "input" else self.at(s.view, nudges)

    def callers(self) -> list[str]:
        """The modules that call attention functions, in order, by path; nothing for those that are not known."""
        return [self.names.get(id(m), "") for m, _ in self.seen[()].attention]

    def entered(self, module: str | None, nudges: Nudges = ()) -> torch.Tensor | None:
        return self.seen[nudges].entered.get(module or "")

    def modules(self) -> list[str]:
        """All modules that are looked at, by path."""
        front = f"{self.path}."
        # what a sum enters need not be a place of the map: a norm before a sublayer that it does not have
        found = [self.path, *(p for p in self.names.values() if p.startswith(front) and "." not in p[len(front) :])]
        for s in self.sites:
            found += [p for p in (s.view.module, s.x, s.residual, s.norm, *(v.module for v in s.bases.values())) if p]
        return list(dict.fromkeys(found))

    # ------------------------------------------------------------ the questions

    def wrong(self, s: Site) -> str:
        """Why a site is not what the map says; `Open` where that cannot be told; nothing where it is."""
        places = (s.view.module, s.x, None if whole_block(s, self.path) else s.residual)
        missing = [p for p in places if p and p not in self.seen[()].entered]
        if missing:
            return f"`{missing[0]}` is not passed through in `{self.path}`"
        return (
            judged(self.seen, self.sites, self.parameters, s) if s.view.parameter else self._sizes(s) or self._kind(s)
        )

    def _kind(self, s: Site) -> str:
        part = _part(s)
        if s.name == "block":
            return "" if s.view.module == s.x == self.path else f"`{s.view.module}` is not its block `{self.path}`"
        if s.kind.is_sublayer:
            return ("" if whole_block(s, self.path) else self._residual(s)) or self._reads(s)
        if s.kind.has_heads:
            return self._heads(s)
        if part == "input":
            own = self.sublayer(s) if s.kind.sublayer else self.named("block")
            if own is None:
                return Open(f"the map has no {s.name.split('.')[0]}")
            return "" if s.view.module == own.x else f"`{s.view.module}` is not what its {own.name} enters by"
        if part in _RECEIVED:
            return self._operand(s, _RECEIVED.index(part))
        if part in _LAST:
            return self._x(s) or self._last(s)
        if part in _INNER:
            return self._inside(s, part)
        if part in ("up", "gate"):
            return self._inner(s, part)
        return Open("nothing is known that could be tried")

    def _sizes(self, s: Site) -> str:
        """The last dimensions of what is there are those that the map names."""
        kind, here = s.kind, self.h(s)
        if kind.has_heads or here is None:
            return ""
        symbol = str(kind.h.sizes[-1])
        axis = s.view.lies.axis
        if here.dim() < -axis or here.shape[axis] != s.sizes.get(symbol):
            return f"`{s.view.module}` has {here.shape[max(axis, -here.dim())]} numbers there, and `{symbol}` is {s.sizes.get(symbol)}"
        enters = self.entered(s.rows)
        if enters is not None and here.numel() // here.shape[axis] != (tokens := enters.shape[:2].numel()):
            return f"`{s.view.module}` has some of the {tokens} tokens that enter `{s.rows}`, and not all"
        x = self.entered(s.x)
        size = s.sizes.get("d_x" if kind.has_weight else "d_model")
        if kind.x is not None and x is not None and (x.dim() < -axis or x.shape[axis] != size):
            return f"{x.shape[max(axis, -x.dim())]} numbers enter `{s.x}`, and the map says {size}"
        received = [q for _, q in self.seen[()].attention]
        known = {t.shape[-1] for q, _, v in received for t in (q, v)}
        if _part(s) in _RECEIVED and s.kind.has_weight and known and s.sizes.get("d_head") not in known:
            return f"attention receives heads of {min(known)}, and `d_head` is {s.sizes.get('d_head')}"
        return ""

    def _x(self, s: Site) -> str:
        """Where a site reads what its sublayer reads, that is what enters the named module."""
        own = self.sublayer(s)
        if own is None or s.kind.has_weight or s.x == own.x or same(self.entered(s.x), self.entered(own.x)):
            return ""
        return f"what enters `{s.x}` is not what `{own.name}` reads"

    def _residual(self, s: Site) -> str:
        h, r, x = self.at(s.view), self.entered(s.residual), self.entered(s.x)
        if r is not None and not r.any():
            return Open(f"zeros enter `{s.residual}`")
        if h is not None and x is not None and s.residual is None:
            return Open("no module is given the residual")
        if h is None or r is None or x is None:
            return f"`{s.full_name}` of `{self.path}` has no `{'residual' if h is not None else 'h'}`"
        unnamed = s.norm is None and proportional(x, self.seen[()].left.get(s.residual or ""))
        if not (multiple(x, r) or self._normed(s) or unnamed or self._mixed(s, x)):
            return f"`{s.x}` reads neither `{s.full_name}.residual` nor that behind `{s.full_name}.norm`"
        if h.numel() != r.numel():
            return f"`{s.view.module}` yields {list(h.shape)}, and the residual stream is {list(r.shape)}"
        return self._sum(s, ()) or self._sum(s, self.weighed(s))

    def _mixed(self, s: Site, x: torch.Tensor) -> bool:
        """Whether a sublayer without a norm reads a norm's output that is made of more than the stream, such as of what the first
        block read, too: then the sum says what the stream is."""
        seen = self.seen[()]
        norms = (
            p
            for p, t in seen.left.items()
            if p != self.path and multiple(x, t) and not multiple(seen.entered.get(p), t)
        )
        first = self.seen[self.later_tokens]
        return s.norm is None and any(not same(first.entered.get(p), seen.entered.get(p)) for p in norms)

    def _normed(self, s: Site) -> bool:
        """Whether the norm stands before the sublayer."""
        seen = self.seen[()]
        return same(seen.entered.get(s.norm or ""), self.entered(s.residual)) and multiple(
            self.entered(s.x), seen.left.get(s.norm or "")
        )

    def _sum(self, s: Site, nudges: Nudges) -> str:
        """The residual and the sublayer's output, and those of the sublayers beside it, are what goes on, or is normed first."""
        h, r = self.at(s.view, nudges), self.entered(s.residual, nudges)
        norm_in, norm_out = self.entered(s.norm, nudges), self.seen[nudges].left.get(s.norm or "")
        states = self._states(nudges)
        if r is not None and h is not None and None in (s.factor, s.keeps):
            axis, shape = s.view.lies.axis, h.shape
            h, r, *after = (t.movedim(axis, -1) if t.shape == shape else t for t in (h, r, *(on for _, on in states)))
            return "" if any(blended(h, r, on, s.factor, s.keeps) for on in after) else self._not_the_sum(s)
        for total in self._totals(s, r, h, nudges) if r is not None and h is not None else ():
            behind = same(total, norm_in) and any(p != s.norm and same(norm_out, on) for p, on in states)
            onward = any(same(total, on) for _, on in states)
            if (onward or behind) and (
                s.norm is None or self._normed(s) or behind or same(h, norm_out) or self._ends_with_norm(s)
            ):
                return ""
            if onward:
                return f"`{s.norm}` stands neither before `{s.full_name}` nor behind it"
        return self._not_the_sum(s)

    def _ends_with_norm(self, s: Site) -> bool:
        """Whether its norm is the last that a sublayer does, inside the module that yields h."""
        return same(self.at(s.view), self.seen[()].left.get(s.norm or ""))

    def _not_the_sum(self, s: Site) -> str:
        return f"`{s.full_name}.residual` + `{s.full_name}` in `{self.path}` is not what {self._after(s)}"

    def _after(self, s: Site) -> str:
        """Where the sum should be, in words."""
        layers = [t for t in self.sites if t.kind.is_sublayer]
        i = layers.index(s)
        return "leaves the block" if i + 1 == len(layers) else f"`{layers[i + 1].full_name}` is added to"

    def _states(self, nudges: Nudges) -> list[tuple[str, torch.Tensor]]:
        """What the block yields, and what enters its modules, by module."""
        seen = self.seen[nudges]
        out = [(self.path, seen.left[self.path])] if self.path in seen.left else []
        block = self.named("block")
        if out and block is not None and block.view.layout is not None:  # its sublayers may have their tokens otherwise
            out.append((self.path, block.view.layout.into(out[0][1])))
        return out + [(p, t) for p, t in (*seen.entered.items(), *seen.again) if p != self.path]

    def _totals(self, s: Site, r: torch.Tensor, h: torch.Tensor, nudges: Nudges) -> list[torch.Tensor]:
        """The residual with a sublayer's output, alone and with those of all that stand beside it."""
        others = (t for t in self.sites if t.kind.is_sublayer and t is not s)
        beside = [(t.factor, self.at(t.view, nudges)) for t in others if same(self.entered(t.residual, nudges), r)]
        return totals(r, s.keeps, h, s.factor, beside)

    def _reads(self, s: Site) -> str:
        """A sublayer reads ``x``; attention of every token, a feed-forward layer of none but its own (or without attention)."""
        with_x = self._of_input(s)[0]
        h, moved = self.at(s.view), self.at(s.view, with_x)
        if h is not None and not h.any():
            return Open("it yields zeros, as it does where its last map starts at zero")
        if h is None or moved is None or same(moved, h):
            return f"`{s.full_name}` is the same whatever enters `{s.x}`"
        for t in self.sites:
            after = t.kind.is_sublayer and t is not s and not same(self.entered(t.x, with_x), self.entered(t.x))
            if after and any(not same(self.at(s.view, n), h) for n in self._of_input(t)):
                return f"`{s.full_name}` changes with what enters `{t.x}`, which comes later"
        called = self._first_call(with_x) is not None
        rows, there = (rows_of(s.view.lies.into(t)) for t in (h, moved))
        mixes = len(rows) > 1 and not same(there[1:], rows[1:])
        if s.kind.cross:
            return (
                "" if called or not self.seen[()].attention else f"no attention function receives what enters `{s.x}`"
            )
        if s.name == "attn" and not mixes and len(rows) > 1 and h.shape[-2] > 1:
            return f"`{s.full_name}` is the same whatever other tokens there are: it is no attention"
        if s.name == "ffn" and mixes and called:
            return f"an attention function receives what enters `{s.x}`: it is no feed-forward layer"
        return ""

    # ------------------------------------------------------------ attention

    def _first_call(self, nudges: Nudges) -> int | None:
        """Which of the calls of attention functions is the first to receive something else."""
        for i, ((_, plain), (_, moved)) in enumerate(zip(self.seen[()].attention, self.seen[nudges].attention)):
            if not all(same(b, a) for a, b in zip(plain, moved)):
                return i
        return None

    def _its_calls(self, s: Site) -> set[int]:
        """The calls of the attention that a site belongs to: those of the module with its heads, and that which ``x`` moves first
        with all of the module that makes it (one stream's scores may be added to those of another)."""
        heads, own, callers = self.named(f"{s.kind.sublayer}.heads"), self.sublayer(s), self.callers()
        found = {i for i, m in enumerate(callers) if heads is not None and m == heads.view.module}
        if own is not None:
            first = {i for n in self._of_input(own) if (i := self._first_call(n)) is not None}
            within = {callers[i] for i in first} - {"", self.path}
            found |= first | {i for i, m in enumerate(callers) if m in within}
        return found

    def _operand(self, s: Site, place: int) -> str:
        """A nudge of a projection moves what attention receives at its place, all of it, and nothing at the other two."""
        one = nudged(at_module(s.view), 1)
        call = self._first_call(one)
        if call is None:
            return self._unseen(s, place)
        mine = self._its_calls(s)
        if mine and call not in mine:
            return f"what `{s.view.module}` yields goes to another attention function than that of `{s.kind.sublayer}`"
        plain, moved = (self.seen[n].attention[call][1] for n in ((), one))
        changed = [n for n, a, b in zip(_RECEIVED, plain, moved) if not same(b, a)]
        if changed != [_RECEIVED[place]]:
            return f"attention receives it as {' and '.join(changed)}, not as {_RECEIVED[place]} alone"
        a, b = plain[place].double(), moved[place].double()
        each = by_head((b - a).abs(), s.sizes.get("heads", 1))
        whole, width = each[0].numel(), int(s.sizes[str(s.kind.h.sizes[-1])])
        if any(bool((most <= within(plain[place]) * b.abs().max()).any()) for most in each):
            return f"of the {whole} numbers that attention receives as {_RECEIVED[place]} it does not move all"
        if whole % width or (place == 0 and whole != width):
            return f"it yields {width} numbers, and attention receives {whole} as {_RECEIVED[place]}"
        return ""

    def _unseen(self, s: Site, place: int) -> str:
        """As `_operand`, where no attention function was seen: by what enters the projection behind it, head by head.

        That is affine in the values, and in no others. A query moves its own token's alone, a key and a value those of others.
        """
        o, at = self.named(f"{s.kind.sublayer}.o"), at_module(s.view)
        entered = [
            self.entered(o.view.module if o else None, n) for n in ((), nudged(at, 1), nudged(at, -2), nudged(at, 1, 0))
        ]
        if any(t is None for t in entered):
            return Open(f"no attention function is seen in `{self.path}`, and no `{s.kind.sublayer}.o` either")
        zero, one, two, alone = (rows_of(t) for t in entered if t is not None)
        own = self.sublayer(s)
        if own is not None and not same(self.entered(own.x, nudged(at, 1)), self.entered(own.x)):
            return f"`{own.name}` reads something else with it"
        behind = o.view.module if o else ""
        size = self._head_behind(s, behind, zero)
        heads = zero.shape[-1] // size
        if heads != s.sizes.get("heads", heads) or heads * s.sizes.get("d_head", 0) != s.sizes.get("d_q", 0):
            return f"there are {heads} heads, and the map says {s.sizes.get('heads')} of {s.sizes.get('d_head')}"
        for z, a, b in zip(*(t.split(size if place < 2 else 1, -1) for t in (zero, one, two))):
            if same(a, z):
                return f"what enters `{behind}` does not move with it in every {'head' if place < 2 else 'number'}"
            if affine(z, a, b) != (place == 2):
                return f"what enters `{behind}` is {'not ' if place == 2 else ''}affine in it"
        others = len(zero) > 1 and not same(alone[1:], zero[1:])
        if len(zero) > 1 and others == (place == 0):
            return (
                "it moves other tokens, as no query does" if others else "it moves its own token alone, as queries do"
            )
        return self._shared(s) if place == 1 else ""

    def _head_behind(self, s: Site, behind: str, zero: torch.Tensor) -> int:
        """How many numbers of what enters the projection behind attention are one head's: those that one number of a query moves,
        where these are the first of several equal parts; else as the map says."""
        q = self.named(f"{s.kind.sublayer}.q")
        moved = None if q is None else self.entered(behind, first_column(q.view))
        whole, said = zero.shape[-1], s.sizes.get("heads", 1)
        if moved is not None:
            far = (rows_of(moved) - zero).abs().amax(0).double()
            found = (far > within(zero) * far.max()).tolist()
            n = sum(found)
            if 0 < n < whole and whole % n == 0 and all(found[:n]):
                return n
        return whole // said if whole % said == 0 else whole

    def _shared(self, s: Site) -> str:
        """Of a fused projection, a key has no columns of the query's or the values': these are known exactly."""
        for other in (self.named(f"{s.kind.sublayer}.{part}") for part in ("q", "v")):
            if other is not None and other.view.module == s.view.module:
                mine, theirs = s.view.columns, other.view.columns
                if (mine is None or theirs is None or mine.meets(theirs)) and not self._operand(
                    other, _RECEIVED.index(_part(other))
                ):
                    return f"it shares columns with `{other.name}`"
        return ""

    def _heads(self, s: Site) -> str:
        """An attention function is called by the module, with heads of one size in keys and values, and in groups."""
        mine = [i for i, m in enumerate(self.callers()) if m == s.view.module]
        if len(mine) != 1 and s.attends:
            return f"`{s.view.module}` computes {'several attentions' if mine else 'no attention that is known'}"
        if not mine:
            return Open(f"no attention function is seen in `{s.view.module}`")
        q, k, v = self.seen[()].attention[mine[0]][1]
        if not (d := q.shape[-1]) == v.shape[-1]:
            return f"heads have {d} numbers in queries and {v.shape[-1]} in values"
        if d != s.sizes.get("d_head"):
            return f"attention receives heads of {d}, and `d_head` is {s.sizes.get('d_head')}"
        heads, groups = (t.shape[-3] if t.dim() > 2 else 0 for t in (q, k))
        said, of = s.sizes.get("heads"), s.sizes.get("groups") or 0
        if s.attends and q.dim() == 3 and said and heads % said == 0:  # batch and heads in one
            heads, groups = said, groups * said // heads
        if s.attends and q.dim() > 4 and said and divides(q.shape, said):  # with windows beside them
            heads, groups = said, next((n for n in (said, of) if divides(k.shape, n)), 0)
        if heads != said or not of or groups not in (of, heads) or heads % of:
            return f"attention receives {heads} heads in {groups} groups, and the map says {said} in {of}"
        own = self.sublayer(s)
        if own is not None and (moved := [self._first_call(n) for n in self._of_input(own)]):
            if moved[0] not in mine:
                return f"it does not receive what `{own.name}` reads"
        return self._x(s) or (self._yields(s, mine[0]) if s.attends else "")

    def _yields(self, s: Site, call: int) -> str:
        """What the heads of an attention past transformers' interface yield is what the projection behind them reads."""
        o, found = self.named(f"{s.kind.sublayer}.o"), self.seen[()].heads.get(call)
        h = parted(found, s.sizes["heads"]) if found is not None else None
        if h is None:
            return f"what `{s.view.module}` yields has not {s.sizes['heads']} heads"
        into = self.entered(o.view.module if o else None)
        return "" if same(h.transpose(1, 2), into) else Open("what its heads yield is not what a projection reads")

    def _inside(self, s: Site, part: str) -> str:
        """It moves its sublayer's output, not what that reads, and of what attention receives what its name says."""
        own, one = self.sublayer(s), nudged(at_module(s.view), 1)
        if own is None:
            return Open(f"the map has no `{s.kind.sublayer}`")
        if not same(self.entered(own.x, one), self.entered(own.x)) or same(self.at(own.view, one), self.at(own.view)):
            return f"it is no part of `{own.name}`, or moves nothing there"
        call, wanted = self._first_call(one), _INNER[part]
        if not wanted:
            return ""
        if call is None:
            return Open(f"no attention function is seen in `{self.path}`")
        plain, moved = (self.seen[n].attention[call][1] for n in ((), one))
        changed = [n for n, a, b in zip(_RECEIVED, plain, moved) if not same(b, a)]
        return "" if set(changed) <= set(wanted) else f"attention receives it as {' and '.join(changed)}"

    # ------------------------------------------------------------ the other projections

    def _last(self, s: Site) -> str:
        """Nothing but what it yields enters the sublayer's output, as a sum with a factor or through a norm of its own."""
        own, at = self.sublayer(s), at_module(s.view)
        if own is None:
            return Open(f"the map has no `{s.kind.sublayer}`")
        h = [self.at(own.view, n) for n in ((), nudged(at, 1), nudged(at, -2))]
        into = [self.entered(own.view.module, n) for n in ((), nudged(at, 1), nudged(at, -2))]
        if any(t is None for t in h) or same(h[1], h[0]):
            return f"`{own.full_name}` does not change with what `{s.view.module}` yields"
        if not any(all(t is not None for t in ts) and affine(*ts) for ts in (h, into)):  # type: ignore[arg-type]
            return f"`{own.full_name}` is not affine in what `{s.view.module}` yields"
        if not s.with_others and (pinned := self.pinned(s, at)) and not same(self.at(own.view, pinned), h[0]):
            return f"`{own.full_name}` depends on more than what `{s.view.module}` yields"
        return ""

    def _inner(self, s: Site, part: str) -> str:
        """What enters ``ffn.down`` is affine in ``up`` and not in the gate; where it is not in ``up``, all of it comes from there."""
        own, down, at = self.sublayer(s), self.named(f"{s.kind.sublayer}.down"), at_module(s.view)
        if own is None or down is None:
            return Open(f"the map has no `{s.kind.sublayer}` with a `{s.kind.sublayer}.down`")
        ts = [self.entered(down.view.module, n) for n in ((), nudged(at, 1), nudged(at, -2))]
        if not same(self.entered(own.x, nudged(at, 1)), self.entered(own.x)):
            return f"`{own.name}` reads something else with it"
        zero, one, two = ts
        if zero is None or one is None or two is None or same(one, zero):
            return f"what enters `{down.view.module}` does not change with what `{s.view.module}` yields"
        wide = zero.shape[down.view.lies.axis]
        if wide != s.sizes.get("d_ff"):
            return f"{wide} numbers enter `{down.view.module}`, and `d_ff` is {s.sizes.get('d_ff')}"
        linear = affine(zero, one, two)
        if part == "gate":
            return f"what enters `{down.view.module}` is affine in it, which it is not in a gate" if linear else ""
        if not linear and not same(self.entered(down.view.module, self.pinned(s, at)), zero):
            return f"what enters `{down.view.module}` is not affine in it and depends on more: it is a gate"
        return ""

    def sees_later(self) -> bool | None:
        """Whether tokens see later ones in the block; None where what enters or leaves it has no entry for each token."""
        plain, moved = (self.seen[n].left.get(self.path) for n in ((), self.later_tokens))
        enters = self.entered(self.path)
        if plain is None or moved is None or enters is None or plain.numel() != enters.numel():
            return None
        a, b = rows_of(plain), rows_of(moved)
        return None if len(a) < 2 else not same(b[:1], a[:1])


def _part(s: Site) -> str:
    return s.name.rpartition(".")[2]
