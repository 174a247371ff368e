"""What a model says of the inputs it takes: the names of its forward, the numbers of its configuration, the shapes of its first maps."""

from __future__ import annotations

import inspect
import math
import re
from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from typing import Any, cast

import torch
from torch import nn

from .brought import device_of

#: Entries of configurations that hold the number of one token.
_SPECIAL = re.compile(r"token_(id|index)s?$|_token$|_ids$")
_PLAIN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
#: Where no configuration says how large a picture, a patch of it or a span of sound is.
_PATCH, _PICTURES = 16, (64, 32, 224)
_WAVES = (2000, 8000, 16000)
_SPANS = (64, 100, 128, 400, 1024)


class Asked:
    """Facts of one model. Nothing here runs it, and no type is known by name."""

    def __init__(self, module: nn.Module, tokens: int) -> None:
        self.module, self.tokens = module, tokens
        named = inspect.signature(module.forward).parameters
        self.takes_more = any(p.kind is p.VAR_KEYWORD for p in named.values())
        self.parameters = {n: p for n, p in named.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}  # fmt: skip
        self.required = [n for n, p in self.parameters.items() if p.default is p.empty]
        own = next((p for p in module.parameters() if p.dtype in _PLAIN), None)
        # Some models make a parameter apart from the others, on the CPU although the rest is on meta.
        places = Counter(p.device for p in module.parameters()) or Counter(b.device for b in module.buffers())
        self.device = places.most_common(1)[0][0] if places else torch.device("cpu")
        if self.words is not None:
            self.device = self.words.weight.device
        self.device = device_of(self.device, module)
        self.dtype = torch.float32 if own is None else own.dtype

    # ------------------------------------------------------------ the configuration

    @cached_property
    def configs(self) -> list[Any]:
        """The module's configuration and those within it, the outer ones first."""
        found: list[Any] = []
        left = [getattr(self.module, "config", None)]
        while left:
            config = left.pop(0)
            if config is None or any(config is c for c in found):
                continue
            found.append(config)
            left += [v for v in _entries(config).values() if hasattr(v, "to_dict")]
        return found

    def entry(self, *names: str) -> Any:
        """The first of these entries that some configuration has, not none."""
        for config in self.configs:
            for name in names:
                value = _entries(config).get(name)
                if value is not None:
                    return value
        return None

    def number(self, default: int, *names: str) -> int:
        """The same for a whole number; the first one of a list."""
        for config in self.configs:
            for name in names:
                value = _entries(config).get(name)
                value = value[0] if isinstance(value, (list, tuple)) and value else value
                if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                    return value
        return default

    @property
    def main(self) -> str:
        """The name of the module's main input: its own word for it, or the first argument of its forward."""
        name = getattr(self.module, "main_input_name", None)
        name = name[0] if isinstance(name, (list, tuple)) and name else name
        return str(name) if name in self.parameters else next(iter(self.parameters), "")

    # ------------------------------------------------------------ text

    @cached_property
    def words(self) -> nn.Embedding | None:
        """The table of the tokens the module reads."""
        ask = getattr(self.module, "get_input_embeddings", None)
        try:
            found = ask() if callable(ask) else None
        except Exception:  # noqa: BLE001 - models without text raise whatever they like where they are asked
            found = None
        weight = getattr(found, "weight", None)
        return (
            cast(Any, found)
            if isinstance(weight, torch.Tensor) and weight.dim() == 2 and not isinstance(found, nn.Linear)
            else None
        )

    def ids(self, count: int, after: int = 0) -> torch.Tensor:
        """[1, count] different tokens, none with a task of its own; from the ``after``-th one on."""
        size = self.words.weight.shape[0] if self.words is not None else self.number(64, "vocab_size")
        special = {v for c in self.configs for k, e in _entries(c).items() if _SPECIAL.search(k)
                   for v in (e if isinstance(e, (list, tuple)) else [e]) if isinstance(v, int)}  # fmt: skip
        usable = [i for i in range(min(size, 4 * (count + after) + 64)) if i not in special] or [0]
        start = (5 if len(usable) >= 5 + count + after else 0) + after
        return torch.tensor([[usable[(start + i) % len(usable)] for i in range(count)]], device=self.device)

    # ------------------------------------------------------------ pictures and sound

    @cached_property
    def channels(self) -> int:
        """A picture's."""
        maps = [m for m in self.module.modules() if isinstance(m, (nn.Conv2d, nn.Conv3d))]
        return self.number(maps[0].in_channels if maps else 3, "num_channels", "in_channels", "in_chans")

    @cached_property
    def patch(self) -> int:
        return self.number(_PATCH, "patch_size", "patch_sizes")

    @cached_property
    def merge(self) -> int:
        """How many patches along one side become one."""
        return self.number(2, "spatial_merge_size", "merge_kernel_size", "spatial_merge", "downsample_factor")

    def pictures(self) -> Iterator[tuple[int, int]]:
        """Sides in pixels: small ones, for models that take any; then the one that the configuration names."""
        step = self.patch * math.ceil(8 / self.patch)
        small = [max(64 // step, 1) * step, *(s for s in _PICTURES if s % self.patch == 0)]
        size = self.entry("image_size", "img_size", "input_size", "sample_size")
        if isinstance(size, dict):
            size = (size.get("height"), size.get("width"))
        size = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, (list, tuple)) else ()
        named = [(int(size[-2]), int(size[-1]))] if len(size) >= 2 and all(size[-2:]) else []
        yield from dict.fromkeys([(small[0], small[0]), *named, *((s, s) for s in small)])

    @cached_property
    def frames(self) -> int:
        """A film's pictures."""
        return self.number(0, "num_frames", "frames_per_clip")

    @cached_property
    def mels(self) -> list[int]:
        """The numbers of one span of sound: the configuration's word, then what the first maps read."""
        named = self.number(80, "num_mel_bins", "feature_projection_input_dim", "num_mels", "input_feat_per_channel", "n_mels",
                            "input_feat_size", "input_dim", "feature_size", "input_size")  # fmt: skip
        maps = [m for m in self.module.modules() if isinstance(m, (nn.Linear, nn.Conv1d))][:1]
        read = [m.in_features if isinstance(m, nn.Linear) else m.in_channels for m in maps]
        return list(dict.fromkeys([named, *read]))

    def spans(self, folded: bool = False) -> list[int]:
        """Lengths of sound in spans; those that the configuration names first where convolutions fold them to positions."""
        positions, length = self.number(0, "max_source_positions"), self.number(0, "max_length", "spec_size")
        named = [2 * positions, length]
        return list(
            dict.fromkeys(n for n in (*named, *_SPANS) if n)
            if folded
            else dict.fromkeys(n for n in (*_SPANS, *named) if n)
        )

    def waves(self) -> list[int]:
        """Lengths of sound in samples."""
        return list(_WAVES)

    # ------------------------------------------------------------ plain modules

    @cached_property
    def width(self) -> int:
        """The numbers of one token inside the model."""
        maps = [m for m in self.module.modules() if isinstance(m, nn.Linear)]
        default = maps[0].in_features if maps else 32
        return self.number(default, "hidden_size", "d_model", "dim", "n_embd", "embed_dim", "hidden_dim")

    def leaves(self) -> Iterator[nn.Module]:
        """The modules with parameters of their own, in order, the first one of each kind."""
        seen: set[type] = set()
        for m in self.module.modules():
            if m._parameters and type(m) not in seen:
                seen.add(type(m))
                yield m

    # ------------------------------------------------------------ tensors

    def real(self, *shape: int) -> torch.Tensor:
        """Numbers between -1 and 1 that do not repeat."""
        count = math.prod(shape)
        return torch.linspace(-1, 1, count, device=self.device).mul(37).sin().reshape(shape).to(self.dtype)

    def ones(self, *shape: int) -> torch.Tensor:
        return torch.ones(shape, dtype=torch.long, device=self.device)

    def whole(self, values: list[Any]) -> torch.Tensor:
        return torch.tensor(values, device=self.device)


def _entries(config: Any) -> dict[str, Any]:
    return dict(config) if isinstance(config, dict) else dict(getattr(config, "__dict__", {}))
