"""Which parameters `train PATHS` means on a model, and where each is used (tied weights are views of one tensor)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod

from torch import nn

from ..anatomy.base import base_modules, base_parameters
from ..anatomy.find import find
from ..anatomy.quantised import whole_shape
from ..anatomy.sites import Site, SiteMap, Stack
from ..language.check.methods import names_norm
from ..language.report.diagnostics import PeltError, error, near
from ..language.sites import STACKS, signature, site_name
from ..language.syntax.nodes import Path
from .coverage import no_stack
from .hosting import Parameter, hosts, instead, left_out, towers_alone, why_not

#: What to do where a model has no head.
HEADLESS = "load the model with a head, as AutoModelForSequenceClassification does (`--task sequence-classification`)"

_NORMS = ("layernorm", "rmsnorm", "groupnorm", "batchnorm", "instancenorm")


def is_norm(module: nn.Module) -> bool:
    return any(n in type(module).__name__.lower() for n in _NORMS)


def parameters_of(model: nn.Module) -> dict[str, Parameter]:
    """Every parameter once, by the first path that holds it."""
    uses: dict[int, list[tuple[str, str]]] = {}
    first: dict[int, tuple[str, nn.Parameter]] = {}
    tied = _tied_elsewhere(model)
    for full, p in base_parameters(model):
        path, _, name = full.rpartition(".")
        key = tied.get(id(p), id(p))
        uses.setdefault(key, []).append((path, name))
        first.setdefault(key, (full, p))
    return {path: _parameter(model, path, tuple(uses[key]), p) for key, (path, p) in first.items()}


def _parameter(model: nn.Module, path: str, uses: tuple[tuple[str, str], ...], p: nn.Parameter) -> Parameter:
    host, _, name = path.rpartition(".")
    shape = whole_shape(model.get_submodule(host), name, p)
    return Parameter(path, uses, prod(shape), shape)


def _tied_elsewhere(model: nn.Module) -> dict[int, int]:
    """Of weights that are kept elsewhere (offloaded): which one of those here stands for the same one.

    In memory tied weights are one object; accelerate puts an empty one at each place.
    """
    here = dict(base_parameters(model))
    pairs = [(here.get(a), here.get(b)) for a, b in (getattr(model, "all_tied_weights_keys", None) or {}).items()]
    return {id(a): id(b) for a, b in pairs if a is not None and b is not None and a.is_meta and b.is_meta}


def _stack(path: Path, sites: SiteMap) -> str | None:
    """The stack that a path names; None where its first part is no stack of the model."""
    first = path.parts[0]
    return first if len(path.parts) > 1 and first in {s.name for s in sites.stacks} else None


def stacks_named(paths: tuple[Path, ...], sites: SiteMap) -> list[Stack]:
    """The stacks that some paths speak of: those they name, every one for a path that names none."""
    named = [_stack(p, sites) for p in paths]
    return [s for s in sites.stacks if None in named or s.name in named]


def select(
    model: nn.Module, sites: SiteMap, paths: tuple[Path, ...], layers: Mapping[str, frozenset[int]] | None
) -> tuple[list[Parameter], list[str]]:
    """The parameters that the paths of one `train` clause name, and what is to be said of them.

    A path that names none is an error, as is one that names none that can be trained; what cannot among others is left
    out, and said. ``layers`` are those of each stack that is spoken of, None for all.
    """
    everything = parameters_of(model)
    root = f"{sites.prefix}." if sites.prefix else ""
    chosen: dict[str, tuple[Parameter, Path]] = {}
    notes: list[str] = []
    for path in paths:
        found = _matching(model, sites, everything, path, root)
        if layers is not None:
            inside = tuple(f"{root}{sites.stack(s).blocks[i]}." for s, chosen in layers.items() for i in chosen)
            within = [p for p in found if any(m.startswith(inside) or f"{m}.".startswith(inside) for m, _ in p.uses)]
            if found and not within:
                raise error("E0510", f"`train {path}` names no parameter of the layers that `layers` selects", path.span,
                            help=f"put what is outside the layers into a part of its own without `layers`: `use {{ train {path} }}`, "
                            "and what else the method has into another")  # fmt: skip
            found = within
        if not found and sites.unknown and signature(".".join(path.parts)) is not None and path.parts != ("head",):
            raise PeltError(sites.unknown)
        if not found and names_norm(path) and _bare_norms(model):
            notes.append(
                f"`train {path}`: the norms of this {type(model).__name__} have no parameters, so nothing of them is trained"
            )
            continue
        if not found:
            raise error("E0510", f"`train {path}` names no parameter of this {type(model).__name__}", path.span,
                        help=_help(path, sites))  # fmt: skip
        can = [p for p in found if hosts(model, sites, p)]
        left = [p for p in found if p not in can]
        if not can:
            raise error("E0511", f"the parameter `{left[0].path}` {'; '.join(why_not(model, sites, left[0]))}", path.span,
                        help=instead(model, sites, left[0], everything.values()))  # fmt: skip
        notes += left_out(model, sites, str(path), left, len(found))
        if _stack(path, sites) is None:
            notes += towers_alone(sites, str(path), can)
        for p in can:
            chosen.setdefault(p.path, (p, path))
    return [p for p, _ in chosen.values()], notes


def _bare_norms(model: nn.Module) -> bool:
    """Whether a model has norms, and none of them has a parameter."""
    norms = [m for _, m in base_modules(model) if is_norm(m)]
    return bool(norms) and not any(True for m in norms for _ in m.parameters())


def _help(named: Path, sites: SiteMap) -> str:
    path = str(named)
    if names_norm(named):
        return "norms are named together: `train *.norm.*`"
    if path == "head":
        return HEADLESS
    if path.endswith("*.bias"):
        return "there are no biases: choose another method"
    if sites.unknown:
        return "for example *.bias, *.norm.*, *, or the path of a module"
    return (
        near(path, [*sites.names(), "*.bias", "*.norm.*", "head", "*"]) or "for example *.bias, *.norm.*, head, block"
    )


def _matching(
    model: nn.Module, sites: SiteMap, everything: dict[str, Parameter], path: Path, root: str
) -> list[Parameter]:
    stack = _stack(path, sites)
    parts = path.parts if stack is None else path.parts[1:]
    if parts[0] == "head" and len(parts) == 1:
        return head_parameters(sites, everything)
    front = sites.stack(stack).module if stack is not None else ""
    if front:
        everything = {
            n: p for n, p in everything.items() if any(m == front or m.startswith(f"{front}.") for m, _ in p.uses)
        }
    found, rest = _sites_of(path, sites)
    if found:
        modules = tuple(dict.fromkeys(map(_module, found)))
        return [
            p for p in everything.values()
            if any(_under(m, n, module, rest) for m, n in p.uses for module in modules)
        ]  # fmt: skip
    if front:
        root = f"{front}."
    aliases = {p.path: [a for m, n in p.uses for a in _aliases(model, m, n, root)] for p in everything.values()}
    matched = [p for p in everything.values() if any(_glob(parts, a) for a in aliases[p.path])]
    named = site_name(str(path))[0] is not None or path.parts[0] in STACKS
    if not matched and stack is None and named and len(path.parts) > 1:
        raise PeltError([no_stack(path.parts[0], sites, model, path.span)])
    return matched


def _sites_of(path: Path, sites: SiteMap) -> tuple[list[Site], tuple[str, ...]]:
    """The sites that the front of a path names, and what stands behind it; none if it names no site."""
    stack = _stack(path, sites)
    parts = path.parts if stack is None else path.parts[1:]
    cuts = ((sites.named(".".join(parts[:cut]), stack), parts[cut:]) for cut in range(len(parts), 0, -1))
    # `attn.q.weight` is the parameter of that name at `attn.q`, not all of the module that a row at the weight would change
    return next(((found, rest) for found, rest in cuts if found and not found[0].kind.is_weight), ([], parts))


def trained_along(paths: tuple[Path, ...], sites: SiteMap) -> list[str]:
    """What is trained beyond what the paths name, in words: a fused module's parameters are copied whole."""
    named = [(path, _sites_of(path, sites)[0]) for path in paths]
    asked = {s.name for _, found in named for s in found}
    out = []
    for path, found in named:
        modules = {s.view.module for s in found if s.view.columns is not None}
        others = dict.fromkeys(f"`{s.name}`" for s in sites.sites if s.view.module in modules and s.name not in asked)
        if others:
            out.append(f"`train {path}` trains {' and '.join(others)} too: one module of the base serves them all")
    return out


def _module(s: Site) -> str:
    # a sublayer's own parameters are those of the module that x enters; its h may leave a dropout
    return s.x if s.kind.is_sublayer and s.x is not None else s.view.module


def _under(module: str, name: str, front: str, rest: tuple[str, ...]) -> bool:
    if module != front and not module.startswith(f"{front}."):
        return False
    return not rest or _glob(rest, [*module[len(front) :].split("."), name])


def numbers_of(p: Parameter, sites: SiteMap) -> dict[str, int]:
    """``layer`` and ``depth`` of the block that a parameter belongs to; nothing outside the blocks."""
    root = f"{sites.prefix}." if sites.prefix else ""
    for stack in sites.stacks:
        for layer, block in enumerate(stack.blocks):
            if any(f"{m}.".startswith(f"{root}{block}.") for m, _ in p.uses):
                return {"depth": stack.depth} | ({} if stack.shared else {"layer": layer})
    return {}


def head_parameters(sites: SiteMap, everything: dict[str, Parameter]) -> list[Parameter]:
    fronts = sites.head
    return [p for p in everything.values() if any(m == f or m.startswith(f"{f}.") for m, _ in p.uses for f in fronts)]


def copy_name(path: str, sites: SiteMap) -> str:
    """What the copy of the parameter of a path is called: by its path from the base."""
    return path.removeprefix(f"{sites.prefix}.") if sites.prefix else path


def has_head(model: nn.Module, copies: Iterable[str]) -> bool:
    """Whether copies, by their names, are of the whole head of a model."""
    sites, names = find(model), set(copies)
    head = [copy_name(p.path, sites) for p in head_parameters(sites, parameters_of(model))]
    return bool(head) and names.issuperset(head)


def _aliases(model: nn.Module, module: str, name: str, root: str) -> list[list[str]]:
    """The path's parts: as they are, with a norm module called `norm` whatever the architecture calls it, and with a bias that a
    module has among other parameters called `bias`."""
    parts = module[len(root) :].split(".") if module.startswith(root) else module.split(".")
    own = [p for p in parts if p] + [name]
    found = [own, [*own[:-2], "norm", name]] if is_norm(model.get_submodule(module)) else [own]
    bias = name.endswith("_bias") or name.startswith("bias_")  # as of torch's attention and its recurrent layers
    return [*found, [*own[:-1], name.replace("_bias", "").replace("bias_", ""), "bias"]] if bias else found


def _glob(pattern: tuple[str, ...], parts: list[str]) -> bool:
    """Whether dotted parts fit a pattern in which ``*`` stands for any number of parts."""
    parts = [p for p in parts if p]
    if not pattern:
        return not parts
    if pattern[0] == "*":
        return any(_glob(pattern[1:], parts[i:]) for i in range(len(parts) + 1))
    return bool(parts) and pattern[0] == parts[0] and _glob(pattern[1:], parts[1:])
