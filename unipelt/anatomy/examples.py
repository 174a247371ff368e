"""Small inputs for a pass of any model, guessed from the model itself: its forward's signature, its configuration, its first maps.

What a model takes is text, pictures, films, sound, a time series, or what its first parameters fit. Each is a list of
guesses, most plausible first; that of the model's main input comes first, then the others and text beside them. Arguments
that must be given are made by their names. No type of model is known here. Who knows better gives ``example={…}``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch import nn

from ..language.report.diagnostics import error, PeltError
from .asked import Asked
from .evaluating import evaluating, untouched

Inputs = dict[str, Any]
TOKENS = 5
#: Passes that are tried before nothing is said to run. Each costs a start of the model only: wrong inputs fail early.
_TRIES = 60
#: Guesses that are looked at, and passes that are tried, of a text with something beside it.
_GUESSED, _JOINED = 80, 8
#: Lengths of text that are tried after the short one: some models fold tokens together.
_LONGER = (16, 64)


def examples(module: nn.Module, tokens: int = TOKENS) -> Iterator[Inputs]:
    """Arguments for ``module(**arguments)``, most plausible first, on the module's device and in its floating dtype.

    ``tokens`` is the length of a text. Models on meta get meta tensors. Nothing is run but, where a text with a picture is
    reached, the part of the model that turns the picture to tokens (to count them).
    """
    asked = Asked(module, tokens)
    said: set[tuple] = set()
    for guess in _guesses(asked):
        for full in _completed(asked, guess):
            key = tuple((n, tuple(v.shape) if isinstance(v, torch.Tensor) else str(v)) for n, v in sorted(full.items()))
            if key not in said:
                said.add(key)
                yield full


def joined(module: nn.Module, inputs: Inputs) -> Iterator[Inputs]:
    """The arguments that have what some pass had, and a picture or a sound beside it: few, as each is to be tried."""
    more = (
        g for g in islice(examples(module), _GUESSED)
        if g.keys() >= inputs.keys() and any(isinstance(v, torch.Tensor) and v.dim() > 1 and v.is_floating_point() for n, v in g.items() if n not in inputs)
    )  # fmt: skip
    return islice(more, _JOINED)


def first_that_runs(
    module: nn.Module,
    guesses: Iterable[Inputs] | None = None,
    given: Inputs | None = None,
    run: Callable[[Inputs], Any] | None = None,
) -> tuple[Inputs, Any]:
    """The first inputs that a pass takes, and what ``run`` yields of them (by default what the module yields).

    ``given``: inputs that somebody named; no others are tried. The passes are in evaluation mode without gradients, and leave
    the module as it was.
    Raises E0595 if none of them runs, with what the most plausible of them raised.
    """
    tried = [given] if given is not None else islice(examples(module) if guesses is None else guesses, _TRIES)
    failed: tuple[Inputs, Exception] | None = None
    for inputs in tried:
        try:
            with untouched(module), evaluating(module):
                return inputs, module(**inputs) if run is None else run(inputs)
        except Exception as e:  # noqa: BLE001 - whatever a strange model's forward raises
            failed = failed or (inputs, e)
    raise _none_runs(module, given, failed)


def _none_runs(module: nn.Module, given: Inputs | None, failed: tuple[Inputs, Exception] | None) -> PeltError:
    asked, name = Asked(module, TOKENS), type(module).__name__
    must = asked.required or [asked.main]
    if failed is None:
        text = f"no inputs could be guessed for {name}: it needs {_listed(must)}"
    else:
        inputs, e = failed
        what = f"{type(e).__name__}: {' '.join(str(e).split())[:160]}"
        text = (f"a pass of {name} with the given example fails: {what}" if given is not None else
                f"no inputs that were guessed run through {name}, which needs {_listed(must)}; the most plausible, {_listed(inputs)}, "
                f"failed: {what}")  # fmt: skip
    return error("E0595", text, help=f'give it inputs that run: example={{"{must[0]}": …}}')


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{n}`" for n in names)


# ---------------------------------------------------------------- which kinds of input


def _guesses(a: Asked) -> Iterator[Inputs]:
    kinds: dict[str, Callable[[Asked], Iterator[Inputs]]] = {
        "input_ids": _text, "decoder_input_ids": _text, "hidden_states": _patches, "grid_thw": _patches, "pixel_values": _pictures,
        "pixel_values_videos": _films, "input_features": _features, "input_values": _waves, "past_values": _series,
        "flattened_patches": _flattened, "latents": _latents, "states": _decisions, "inputs": _inputs, "inputs_embeds": _embedded,
    }  # fmt: skip
    if any(n in a.parameters for n in ("grid_thw", "spatial_shapes", "pixel_position_ids")):
        yield from _patches(a)
    ordered = [*([a.main] if a.main in kinds else []), *(n for n in kinds if n in a.parameters and n != a.main)]
    for name in ordered:
        yield from kinds[name](a)
        if name == "input_ids":
            yield from _beside_text(a)
            yield from _other_texts(a)
    if not a.configs or not ordered:
        yield from _plain(a)
    yield {}


def _completed(a: Asked, guess: Inputs) -> Iterator[Inputs]:
    """A guess as the forward takes it: with the arguments that must be there, with a decoder's tokens, without a cache."""
    found = {n: v for n, v in guess.items() if n in a.parameters}
    if guess and not found:
        return
    for name in a.required:
        if name not in found:
            made = _by_name(a, name, found)
            if made is None:
                return
            found[name] = made
    if "use_cache" in a.parameters or (a.takes_more and a.entry("use_cache") is True):
        yield from _with_decoder(a, {**found, "use_cache": False})
    if "use_cache" not in a.parameters:
        yield from _with_decoder(a, found)


def _with_decoder(a: Asked, found: Inputs) -> Iterator[Inputs]:
    """The same with a decoder's tokens, where there is one."""
    decodes = "decoder_input_ids" in a.parameters and "decoder_input_ids" not in found
    if decodes and a.entry("is_encoder_decoder"):
        for tokens in _decoded(a):
            yield {**found, "decoder_input_ids": tokens}
    if found:
        yield found
    if decodes and not a.entry("is_encoder_decoder"):
        yield {**found, "decoder_input_ids": a.ids(a.tokens, after=2)}


def _decoded(a: Asked) -> Iterator[torch.Tensor]:
    ids = a.ids(a.tokens, after=2)
    yield ids
    books = a.number(0, "num_codebooks")
    if books:
        yield ids.repeat(books, 1)
        yield ids[..., None].repeat(1, 1, books)


def _by_name(a: Asked, name: str, found: Inputs) -> Any:
    """A value for an argument that must be given, by what its name ends with; nothing where that says nothing."""
    picture = found.get("pixel_values")
    if name.endswith("pixel_values") or name == "prompt_masks":
        return picture if picture is not None else next(_pictures(a))["pixel_values"]
    length = next((v.shape[1] for v in found.values() if isinstance(v, torch.Tensor) and v.dim() > 1), a.tokens)
    if name.endswith("mask"):
        return a.ones(1, length)
    if name.endswith(("_ids", "task_inputs")):
        return a.ids(a.tokens)
    if name == "encoder_hidden_states":
        return a.real(1, a.tokens, a.number(a.width, "cross_attention_dim", "encoder_hidden_size"))
    if name.endswith(("embeds", "hidden_states")):
        return a.real(1, a.tokens, a.width)
    if name.endswith(("input_features", "audio_mel")):
        return next(_features(a))["input_features"]
    if name.endswith("input_values"):
        return next(_waves(a))["input_values"]
    if name in ("timestep", "timesteps", "freq"):
        return a.ones(1)
    return None


# ---------------------------------------------------------------- text


def _text(a: Asked) -> Iterator[Inputs]:
    yield from _texts(a, a.tokens)


def _texts(a: Asked, count: int) -> Iterator[Inputs]:
    name, ids = "input_ids", a.ids(count)
    layout = {"bbox": torch.zeros(1, count, 4, dtype=torch.long, device=a.device)} if "bbox" in a.parameters else {}
    yield {name: ids, "attention_mask": torch.ones_like(ids), **layout}
    yield {name: ids, **layout}
    if layout:
        yield {name: ids}


def _other_texts(a: Asked) -> Iterator[Inputs]:
    """Longer ones, and tokens of several books of codes at each place."""
    name = "input_ids"
    books = a.number(0, "num_codebooks", "num_quantizers")
    if books:
        ids = a.ids(a.tokens)
        yield {name: ids.repeat(books, 1)}
        yield {name: ids[..., None].repeat(1, 1, books)}
        yield {name: ids[:, None].repeat(1, books, 1)}
    for count in _LONGER:
        yield from _texts(a, count)


def _embedded(a: Asked) -> Iterator[Inputs]:
    yield {"inputs_embeds": a.real(1, a.tokens, a.width)}


def _inputs(a: Asked) -> Iterator[Inputs]:
    """A name that says nothing: tokens as the model's width, or sound."""
    for d in dict.fromkeys((a.number(a.width, "d_model"), a.width)):
        yield {"inputs": a.real(1, a.tokens, d)}
    for wave in _waves(a):
        yield {"inputs": wave["input_values"]}


def _beside_text(a: Asked) -> Iterator[Inputs]:
    """Text with something else: pictures in its tokens' places, or beside it."""
    ids = a.ids(a.tokens)
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    picture, sound = (
        "pixel_values" in a.parameters,
        next((n for n in ("input_features", "input_values") if n in a.parameters), ""),
    )
    if picture:
        yield from _in_place(a, "get_image_features", ("image_token_id", "image_token_index"), _pictures)
        for size in islice(_pictures(a), 12):
            yield {**text, **size}
    if sound:
        yield from _in_place(
            a,
            "get_audio_features",
            ("audio_token_id", "audio_token_index"),
            _features if sound == "input_features" else _waves,
        )
        for found in islice(_features(a) if sound == "input_features" else _waves(a), 6):
            yield {**text, **found}
    if "pixel_values_videos" in a.parameters:
        for film in islice(_films(a), 3):
            yield {**text, **film}
    if "visual_feats" in a.parameters:
        yield {**text, "visual_feats": a.real(1, 3, a.number(64, "visual_feat_dim")), "visual_pos": a.real(1, 3, 4)}


def _in_place(
    a: Asked, turns: str, tokens: tuple[str, str], guesses: Callable[[Asked], Iterator[Inputs]]
) -> Iterator[Inputs]:
    """Text in which a picture's tokens or a sound's stand, as many as the model makes of it by the method ``turns``, its own or its base's."""
    turn = next(
        (f for m in (a.module, getattr(a.module, "base_model", None)) if callable(f := getattr(m, turns, None))), None
    )
    token = a.entry(*tokens)
    if turn is None or not isinstance(token, int):
        return
    for guess in islice(guesses(a), 12):
        taken = {n: v for n, v in guess.items() if n in a.parameters}
        try:
            with untouched(a.module), evaluating(a.module):
                rows = _rows(turn(**taken))
        except Exception:  # noqa: BLE001 - this one does not fit
            continue
        if rows:
            ids = torch.cat([a.ids(2), torch.full((1, rows), token, device=a.device), a.ids(a.tokens - 2, after=2)], 1)
            kinds = {"mm_token_type_ids": (ids == token).long()} if "mm_token_type_ids" in a.parameters else {}
            yield {"input_ids": ids, "attention_mask": torch.ones_like(ids), **taken, **kinds}


def _rows(features: Any) -> int:
    """How many tokens a picture became."""
    found = getattr(features, "pooler_output", features)
    found = getattr(features, "last_hidden_state", None) if found is None else found
    if isinstance(found, (list, tuple)):
        return sum(_rows(f) for f in found)
    return found.shape[:-1].numel() if isinstance(found, torch.Tensor) and found.dim() > 1 else 0


# ---------------------------------------------------------------- pictures


def _pictures(a: Asked) -> Iterator[Inputs]:
    name = "pixel_values"
    if any(n in a.parameters for n in ("image_grid_thw", "spatial_shapes", "target_sizes", "image_position_ids")):
        yield from _patches(a)
    sizes = list(a.pictures())
    if a.frames and "pixel_values_videos" not in a.parameters:
        for h, w in sizes:
            yield {name: a.real(1, a.frames, a.channels, h, w)}
    for h, w in sizes:
        yield {name: a.real(1, a.channels, h, w)}
    tiles = a.number(4, "max_num_tiles")
    for h, w in sizes[:2]:
        for count in (1, 2):
            yield {name: a.real(1, count, a.channels, h, w)}
        if "aspect_ratio_ids" in a.parameters:
            used = a.whole([[[int(i == 0) for i in range(tiles)]]])
            yield {
                name: a.real(1, 1, tiles, a.channels, h, w),
                "aspect_ratio_ids": a.ones(1, 1),
                "aspect_ratio_mask": used,
            }
        if "image_sizes" in a.parameters:
            yield {name: a.real(1, a.channels, h, w), "image_sizes": a.whole([[h, w]])}
            yield {name: a.real(1, 2, a.channels, h, w), "image_sizes": a.whole([[h, w]])}
        if "patch_attention_mask" in a.parameters:
            yield {
                name: a.real(1, a.channels, h, w),
                "patch_attention_mask": a.ones(1, h // a.patch, w // a.patch).bool(),
            }
        if "pixel_mask" in a.parameters:
            yield {name: a.real(1, a.channels, h, w), "pixel_mask": a.ones(1, h, w)}


def _films(a: Asked) -> Iterator[Inputs]:
    for h, w in islice(a.pictures(), 2):
        for frames in dict.fromkeys(n for n in (a.frames, 2, 8) if n):
            yield {"pixel_values_videos": a.real(1, frames, a.channels, h, w)}


def _patches(a: Asked) -> Iterator[Inputs]:
    """Pictures that were cut to patches before: one row each, and how many there are along each side."""
    side = 2 * a.merge
    span = a.number(1, "temporal_patch_size")
    dims = a.channels * span * a.patch**2
    count = side * side
    places = [[i % side, i // side] for i in range(count)]
    if "image_grid_thw" in a.parameters or "grid_thw" in a.parameters:
        grid: Inputs = {n: a.whole([[1, side, side]]) for n in ("grid_thw", "image_grid_thw") if n in a.parameters}
        more: Inputs = {n: a.whole([a.merge]) for n in ("merge_sizes", "image_merge_sizes") if n in a.parameters}
        rows = "hidden_states" if "hidden_states" in a.parameters else "pixel_values"
        yield {rows: a.real(count, dims), **grid, **more}
        yield {rows: a.real(count, a.channels, a.patch, a.patch), **grid, **more}
    if "spatial_shapes" in a.parameters:
        yield {
            "pixel_values": a.real(1, count, dims),
            "pixel_attention_mask": a.ones(1, count),
            "spatial_shapes": a.whole([[side, side]]),
        }
    if "target_sizes" in a.parameters:  # patches in one row
        yield {"pixel_values": a.real(1, a.channels, a.patch, a.patch * count), "target_sizes": a.whole([[side, side]])}
    for name in ("pixel_position_ids", "image_position_ids"):
        if name in a.parameters:
            yield {"pixel_values": a.real(1, count, dims), name: a.whole([places])}
    if "hidden_states" in a.parameters and len(a.required) == 1:
        yield {"hidden_states": a.real(1, a.tokens, a.width)}
        yield {"hidden_states": a.real(1, a.width, a.tokens)}


def _flattened(a: Asked) -> Iterator[Inputs]:
    """Patches with their row and column in front."""
    dims = a.channels * a.patch**2
    places = torch.tensor([[i // 2 + 1, i % 2 + 1] for i in range(4)], device=a.device).to(a.dtype)
    yield {"flattened_patches": torch.cat([places, a.real(4, dims)], 1)[None], "attention_mask": a.ones(1, 4)}


# ---------------------------------------------------------------- sound and other series


def _features(a: Asked) -> Iterator[Inputs]:
    for mels in a.mels:
        first = next((m for m in a.module.modules() if isinstance(m, nn.Conv1d)), None)
        across = first is not None and first.in_channels == mels
        for spans in a.spans(folded=across):
            for turned in (across, not across):
                found: Inputs = {"input_features": a.real(*((1, mels, spans) if turned else (1, spans, mels)))}
                for name in ("input_features_mask", "attention_mask"):
                    if name in a.required:
                        found[name] = a.ones(1, spans)
                yield found
                if "input_features_mask" in a.parameters and "input_features_mask" not in found:
                    yield {**found, "input_features_mask": a.ones(1, spans)}
            yield {"input_features": a.real(1, 1, spans, mels)}


def _waves(a: Asked) -> Iterator[Inputs]:
    if a.entry("num_mel_bins") is not None:  # spans of sound under the other name
        for spans in a.spans(folded=True):
            yield {"input_values": a.real(1, spans, a.mels[0])}
    for samples in a.waves():
        yield {"input_values": a.real(1, samples)}
        yield {"input_values": a.real(1, 1, samples)}
    yield {"input_values": a.real(1, a.spans()[0], a.mels[0])}


def _latents(a: Asked) -> Iterator[Inputs]:
    yield {"latents": a.real(1, a.width, a.tokens)}
    yield {"latents": a.real(1, a.tokens, a.width)}


def _series(a: Asked) -> Iterator[Inputs]:
    context, ahead = a.number(32, "context_length"), a.number(4, "prediction_length")
    lags = a.entry("lags_sequence") or [0]
    past, times = context + max(lags), a.number(0, "num_time_features")
    size = a.number(1, "input_size")
    values = a.real(1, past) if size == 1 else a.real(1, past, size)
    if "past_time_features" in a.parameters:
        static = {n: v for n, v in {"static_categorical_features": torch.zeros(1, a.number(0, "num_static_categorical_features"), dtype=torch.long, device=a.device),
                                    "static_real_features": a.real(1, a.number(0, "num_static_real_features"))}.items() if v.numel()}  # fmt: skip
        yield {"past_values": values, "past_time_features": a.real(1, past, times), "past_observed_mask": torch.ones_like(values),
               "future_values": a.real(*(1, ahead, *values.shape[2:])), "future_time_features": a.real(1, ahead, times), **static}  # fmt: skip
    channels = a.number(1, "num_input_channels")
    yield {"past_values": a.real(1, context, channels)}
    yield {"past_values": a.real(1, context), "past_values_padding": torch.zeros(1, context, device=a.device), "freq": torch.zeros(1, 1, dtype=torch.long, device=a.device)}  # fmt: skip
    yield {"past_values": [a.real(context)], "freq": [0]}
    yield {"past_values": [a.real(context)]}


def _decisions(a: Asked) -> Iterator[Inputs]:
    n = a.tokens
    yield {"states": a.real(1, n, a.number(1, "state_dim")), "actions": a.real(1, n, a.number(1, "act_dim")), "rewards": a.real(1, n, 1),
           "returns_to_go": a.real(1, n, 1), "timesteps": torch.arange(n, device=a.device)[None], "attention_mask": a.ones(1, n)}  # fmt: skip


# ---------------------------------------------------------------- modules without a configuration


def _plain(a: Asked) -> Iterator[Inputs]:
    """What the first parameters fit: the same for every argument that must be given, but those whose names say more."""
    names = a.required or list(a.parameters)[:1]
    for leaf in a.leaves():
        for t in _fits(a, leaf):
            told = {n: made for n in names[1:] if (made := _by_name(a, n, {names[0]: t})) is not None}
            if told:
                yield {**dict.fromkeys(names, t), **told}
            yield dict.fromkeys(names, t)


def _fits(a: Asked, leaf: nn.Module) -> Iterator[torch.Tensor]:
    if isinstance(leaf, nn.Embedding):
        yield torch.arange(a.tokens, device=a.device)[None] % leaf.num_embeddings
    elif isinstance(leaf, nn.Conv2d):
        for side in (32, 64, 224):
            yield a.real(1, leaf.in_channels, side, side)
    elif isinstance(leaf, nn.Conv1d):
        yield a.real(1, leaf.in_channels, 64)
    elif isinstance(leaf, nn.Conv3d):
        yield a.real(1, leaf.in_channels, 16, 32, 32)
    elif isinstance(leaf, nn.MultiheadAttention):
        yield a.real(1, a.tokens, leaf.embed_dim)
    else:
        d = getattr(leaf, "in_features", None) or getattr(leaf, "input_size", None)
        weight = next((p for p in leaf._parameters.values() if p is not None and p.dim()), None)
        if d is None and weight is not None:
            d = weight.shape[-1]
        if isinstance(d, int):
            yield a.real(1, a.tokens, d)
            yield a.real(1, d)
