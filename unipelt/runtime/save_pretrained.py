"""A model's own ``save_pretrained``, with adapters: the plain base, and each adapter's own folder beside it.

transformers writes what a state dict holds. It would put the adapters' tensors among the base's, where `from_pretrained`, which
knows no method, drops them. So a model with adapters has a `save_pretrained` of its own, which transformers' Trainer and
`push_to_hub` call as well. The base loads without this library; `unipelt.attach(model, folder)` brings the adapters back.

A checkpoint of the Trainer (``checkpoint-20``) keeps the adapters' tensors in its weights, too: the Trainer goes on from these.
"""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import exists, isdir, isfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..anatomy.base import NAME, base_modules
from ..anatomy.interrupts import ended_by
from ..language.report.diagnostics import PeltError, error
from ..language.files import contents, leaves, reason, replace
from ..language.report.source import refuse_link
from ..language.versions import FORMAT, UPDATE, named, refusal
from ..language.report.warned import warn
from .hub import FOLDER, INDEX
from .registry import Registry, registry
from .saving import content, save, state_dict
from .sharding import is_sharded
from ..anatomy.stand_in import StandIn
from .switch import ADAPTER_NAME, Weighted

#: The most bytes an index may have.
_LARGEST = 2**20
_METHOD = "save_pretrained"
#: What the thread's holder has while only the base is to be in a state dict.
_PLAIN = "plain"
_CHECKPOINT = re.compile(r"checkpoint-\d+")  # transformers.trainer_utils.PREFIX_CHECKPOINT_DIR
#: An adapter's tensors in a model's state dict.
_INSIDE = re.compile(rf"(?:^|\.){NAME}\.(?:adapters|shared)\.adapter_([A-Za-z0-9_\-]+)\.")


# ---------------------------------------------------------------- writing


class _OnlyBase:
    """Leaves adapters out of a state dict while `Saver` asks for one."""

    def __init__(self, r: Registry):
        self.switch = r.switch

    def __call__(self, module: nn.Module, state: dict[str, torch.Tensor], prefix: str, metadata: Any) -> None:
        if _PLAIN in self.switch.holder.values:
            for name in [n for n in state if NAME in n.split(".")]:
                del state[name]


class Saver(StandIn):
    """Stands in for the ``save_pretrained`` of a model that has adapters, or of a part of it (its base)."""

    def __init__(self, model: nn.Module, part: nn.Module, r: Registry):
        super().__init__(part, _METHOD)
        self.model, self.part, self.registry = model, part, r
        self.acts = False

    def put(self) -> None:
        if not self.acts:
            self._take_hook()
            self.part.register_state_dict_post_hook(_OnlyBase(self.registry))
            super().put()
            self.acts = True

    def take(self) -> None:
        self.acts = False
        super().take()
        self._take_hook()

    def _take_hook(self) -> None:
        hooks = self.part._state_dict_hooks
        for key in [k for k, h in hooks.items() if isinstance(h, _OnlyBase) and h.switch is self.registry.switch]:
            del hooks[key]

    def __call__(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> Any:
        if not self.acts:  # taken down, and another library has it still
            return self.own()(save_directory, *args, **kwargs)
        called = inspect.signature(self.own()).bind(save_directory, *args, **kwargs)
        folder, given = Path(save_directory), called.arguments.get("state_dict")
        names = _written(self.registry, self.part is self.model)
        if names:
            _write(self.model, self.registry, folder, names, given, bool(called.arguments.get("is_main_process", True)))
        if names and _CHECKPOINT.fullmatch(folder.name):
            return self.own()(*called.args, **called.kwargs)
        if given is not None:
            called.arguments["state_dict"] = {n: t for n, t in given.items() if NAME not in n.split(".")}
        values = self.registry.switch.holder.values
        with ended_by(lambda: values.pop(_PLAIN, None)):
            values[_PLAIN] = True
            return self.own()(*called.args, **called.kwargs)


def _written(r: Registry, whole: bool) -> list[str]:
    """The adapters that belong beside what is saved; a warning names those that do not."""
    if not whole:
        _warn(list(r.attached), "are of the whole model, and this is a part of it: only the part is written",
              "call save_pretrained of the model that was given to unipelt.apply, or unipelt.save for an adapter")  # fmt: skip
        return []
    if r.merged is not None:
        others = [n for n in r.attached if n not in r.merged.names and n not in r.banks]
        if others:
            _warn(others, f"are of the base without `{r.merged.name}`, which is merged into what is written: they are not written",
                  "unipelt.unmerge(model) first, or unipelt.save for each")  # fmt: skip
        return []
    if r.banks:
        _warn(
            list(r.banks),
            "are banks, whose adapters are in folders of their own: they are not written",
            "copy those folders",
        )
    return [n for n in r.attached if n not in r.banks]


def write_adapters(model: nn.Module, folder: Path, names: Sequence[str]) -> None:
    """Some adapters, unfolded, without the base: one as `unipelt.save` writes it, several beside each other. `unipelt.attach` and
    `unipelt.restore` read both. Of a sharded model all processes call it."""
    r = registry(model)
    assert r is not None
    if len(names) == 1:
        save(model, folder, names[0], fold=False)
    else:
        _write(model, r, folder, list(names), None, True)


def _write(
    model: nn.Module, r: Registry, folder: Path, names: list[str], given: Mapping[str, Any] | None, main: bool
) -> None:
    """The folders of some adapters, then the index; nothing where one of them could not be read again."""
    together = is_sharded(model) and given is None  # all processes gather what one writes
    if not (main or together):
        return
    tensors = {n: state_dict(model, n) for n in names} if given is None else _from(model, r, names, given)
    contents = {n: content(model, n, fold=False, state=given, tensors=t) for n, t in tensors.items()}
    if not main or not contents:
        return
    for n, found in contents.items():
        found.write(folder / FOLDER.format(n))
    acting = r.switch.active
    index: dict[str, Any] = {
        "format": FORMAT,
        "adapters": list(contents),
        "active": [n for n in acting if n in contents],
    }
    if isinstance(acting, Weighted):
        index["weights"] = {n: w for n, w in acting.weights.items() if n in contents}
    try:
        replace(folder / INDEX, (json.dumps(index, indent=1) + "\n").encode())
    except OSError as e:
        raise error("E0575", f"the adapters could not be written to {folder}: {reason(e)}") from e


def _from(
    model: nn.Module, r: Registry, names: list[str], given: Mapping[str, Any]
) -> dict[str, dict[str, torch.Tensor]]:
    """Each adapter's tensors, taken from the model's state dict: of a sharded model it was gathered by all processes."""
    paths = {id(m): path for path, m in model.named_modules()}
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name in names:
        a = r.attached[name]
        keys = {n: f"{paths[id(a.registered[n][0])]}.{a.registered[n][1]}" for n in a.names}
        if all(k in given for k in keys.values()):
            found[name] = {n: given[k].detach().reshape(a.shape(n)) for n, k in keys.items()}
    left = [n for n in names if n not in found]
    if left:
        _warn(left, "are not in the state dict that was given: they are not written", "unipelt.save for each")
    return found


def _warn(names: list[str], why: str, then: str) -> None:
    which = ", ".join(f"`{n}`" for n in names)
    warn(f"the adapters {which} {why} ({then})")


def hang(model: nn.Module, r: Registry) -> None:
    """Gives the model, and each part of it that can be saved by itself, a ``save_pretrained`` that knows of adapters; takes it
    away with the last adapter."""
    parts = dict(base_modules(model)) if r.staying else {}
    for path in [p for p in r.savers if p not in parts]:
        r.savers[path].take()
        del r.savers[path]
    for path, part in parts.items():
        if callable(getattr(type(part), _METHOD, None)):
            if path not in r.savers:
                r.savers[path] = Saver(model, part, r)
            r.savers[path].put()


# ---------------------------------------------------------------- reading


@dataclass(frozen=True)
class Beside:
    """Adapters beside a base: their folders by name, and which of them acted."""

    folders: dict[str, Path]
    active: tuple[str, ...]  # with their weights, if they had some

    def named(self, folder: Path, name: str | None) -> Beside:
        """The one of that name (a single one may get another), all of them without a name."""
        if name is None:
            return self
        if name not in self.folders and len(self.folders) > 1:
            raise error("E0533", f"{folder} holds the adapters {', '.join(f'`{n}`' for n in self.folders)}, and none named `{name}`",
                        help="name one of them; without a name all are attached")  # fmt: skip
        return Beside({name: self.folders.get(name, next(iter(self.folders.values())))}, ())


def beside(folder: Path) -> Beside | None:
    """The adapters that a model's ``save_pretrained`` wrote there; None where it wrote none."""
    path = folder / INDEX
    if not exists(path):
        return None
    refuse_link(path)
    try:
        found = json.loads(contents(path, _LARGEST))
    except (OSError, ValueError, RecursionError) as e:
        raise error("E0532", f"{path} is broken: {reason(e)}") from None
    version = named(found.get("format") if isinstance(found, dict) else None, FORMAT)
    if version is None:
        raise error("E0532", f"{path} is no list of adapters")
    if refusal(version, FORMAT):
        raise error(
            "E0579", f"the adapters in {folder} cannot be read: their format {refusal(version, FORMAT)}", help=UPDATE
        )
    names, active = found.get("adapters"), found.get("active")
    for key, value, known in (("adapters", names, None), ("active", active, names)):
        fine = isinstance(value, list) and all(isinstance(n, str) and ADAPTER_NAME.fullmatch(n) for n in value)
        if not fine or len(set(value)) < len(value) or (known is not None and not set(value) <= set(known)):
            raise error("E0532", f"{path} is broken: its `{key}` is not a list of names")
    if not names:
        raise error("E0532", f"{path} is broken: it lists no adapter")
    weights = found.get("weights", dict.fromkeys(active, 1))
    fine = isinstance(weights, dict) and set(weights) == set(active)
    if not fine or not all(type(w) in (int, float) and math.isfinite(w) for w in weights.values()):
        raise error("E0532", f"{path} is broken: its `weights` are not a number for each active adapter")
    return Beside({n: folder / FOLDER.format(n) for n in names}, Weighted.of({n: weights[n] for n in active}))


def inside(folder: Path) -> PeltError | None:
    """What to say of a model's folder whose weights hold adapters; None for any other folder."""
    names: list[str] = []
    files = []
    for path in sorted(p for p in folder.glob("*.safetensors") if isfile(p) and not leaves(p)) if isdir(folder) else ():
        try:
            with safe_open(path, framework="pt") as f:
                found = [m[1] for n in f.keys() if (m := _INSIDE.search(n))]
        except (SafetensorError, OSError):
            continue
        if found:
            files.append(path.name)
            names += [n for n in dict.fromkeys(found) if n not in names]
    if not names:
        return None
    which = ", ".join(f"`{n}`" for n in names)
    loaded = "; ".join(
        f"model.load_state_dict(safetensors.torch.load_file({str(folder / f)!r}), strict=False)" for f in files
    )
    return error("E0531", f"{folder} has the adapter{'s' if len(names) > 1 else ''} {which} inside its weights, without a method: "
                 "no folder of an adapter was written there",
                 help=f"load the base, apply the same method again (unipelt.apply(model, method, {names[0]!r})), then {loaded}; "
                 f"unipelt.save(model, 'a folder', {names[0]!r}) writes it in a form that can be attached")  # fmt: skip
