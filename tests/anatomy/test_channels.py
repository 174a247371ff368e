"""What the finder finds where tokens lie in rows and columns, or behind their numbers: convolutional networks, stages, windows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as T
from torch import nn

import unipelt
from unipelt.anatomy.find import find
from unipelt.anatomy.sites import PROVED, Site, SiteMap

SCALED = unipelt.parse("method scaled { modify mixer  compose { s: [d_out] ~ ones  out = h * s } }")
_SWIN: dict[str, Any] = dict(image_size=16, patch_size=2, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4)
#: Each with sites that it must have.
MODELS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "resnet": (T.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2]), ("mixer", "mixer.in", "mixer.out", "block")),
    "bit": (T.BitConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[2, 2], num_groups=2), ("mixer", "block")),
    "mobilenet_v2": (T.MobileNetV2Config(depth_multiplier=0.25, image_size=32), ("mixer", "mixer.in", "mixer.out")),
    "poolformer": (T.PoolFormerConfig(hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1]), ("ffn", "ffn.up", "ffn.down", "block")),
    "segformer": (T.SegformerConfig(hidden_sizes=[8, 16], depths=[1, 1], num_encoder_blocks=2, num_attention_heads=[1, 2], sr_ratios=[2, 1],
                                    patch_sizes=[7, 3], strides=[4, 2], mlp_ratios=[2, 2]), ("attn", "ffn", "ffn.up", "ffn.down", "ffn.hidden")),
    "pvt_v2": (T.PvtV2Config(image_size=32, hidden_sizes=[8, 16, 16, 16], depths=[2, 1, 1, 1], num_attention_heads=[1, 2, 2, 2],
                             mlp_ratios=[2, 2, 2, 2], sr_ratios=[2, 1, 1, 1]), ("attn", "attn.q", "ffn", "ffn.up")),
    "cvt": (T.CvtConfig(embed_dim=[8, 16], depth=[1, 2], num_heads=[1, 2], patch_sizes=[7, 3], patch_stride=[4, 2], patch_padding=[2, 1],
                        mlp_ratio=[2.0, 2.0], cls_token=[False, True], stride_kv=[2, 2], stride_q=[1, 1], padding_kv=[1, 1], padding_q=[1, 1],
                        kernel_qkv=[3, 3], qkv_projection_method=["dw_bn"] * 2, qkv_bias=[True] * 2, drop_rate=[0.0] * 2,
                        attention_drop_rate=[0.0] * 2, drop_path_rate=[0.0] * 2), ("attn", "attn.q", "attn.k", "attn.v", "ffn")),
    "swinv2": (T.Swinv2Config(**_SWIN), ("attn", "attn.q", "ffn")),
    "timesformer": (T.TimesformerConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=32,
                                        patch_size=16, num_frames=2), ("attn.q", "attn.o", "attn.heads", "ffn")),
    "vitdet": (T.VitDetConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=32, pretrain_image_size=32, patch_size=8),
               ("attn", "ffn", "ffn.up", "block")),
}  # fmt: skip


def built(kind: str, meta: bool = False) -> Any:
    torch.manual_seed(0)
    with torch.device("meta" if meta else "cpu"):
        model = T.AutoModel.from_config(MODELS[kind][0]).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.2)  # so that a picture is not lost behind a few layers
    return model.requires_grad_(False)


def picture(n: int = 32, examples: int = 1) -> torch.Tensor:
    return torch.randn(examples, 3, n, n, generator=torch.Generator().manual_seed(1))


def trained(model: Any) -> list[torch.Tensor]:
    return [p for g in unipelt.parameter_groups(model, lr=1.0) for p in g["params"]]


def draw(model: Any) -> None:
    """Random numbers for all that is trained."""
    with torch.no_grad():
        for p in trained(model):
            p.normal_(0, 0.3, generator=torch.Generator().manual_seed(2))


def places(sites: SiteMap) -> set[Any]:
    return {
        (s.label, s.view.module, s.view.columns, s.view.layout, s.x, s.residual, tuple(s.sizes.items()))
        for s in sites.sites
    }


@pytest.mark.parametrize("kind", MODELS)
def test_its_sites_are_found_and_proved(kind: str) -> None:
    found = find(built(kind))
    for name in MODELS[kind][1]:
        proofs = {s.proof for s in found.named(name)}
        assert PROVED in proofs, (name, found.refused)
    assert places(found) <= places(find(built(kind, meta=True)))


@pytest.mark.parametrize("kind", ["resnet", "mobilenet_v2"])
def test_the_numbers_of_a_token_are_its_channels(kind: str) -> None:
    """As a hook by hand has it, for pictures of any size, several at a time."""
    model = built(kind)
    unipelt.apply(model, SCALED, head=False)
    given = trained(model)
    scales = [torch.rand(p.shape[-1], generator=torch.Generator().manual_seed(i)) + 0.5 for i, p in enumerate(given)]
    with torch.no_grad():
        for p, s in zip(given, scales, strict=True):
            p.copy_(s.reshape(p.shape))
    mixers = find(built(kind)).named("mixer")
    got = {n: model(pixel_values=picture(n, 2)).last_hidden_state for n in (32, 64)}
    unipelt.remove(model)
    for s, scale in zip(mixers, scales, strict=True):

        def hook(_: nn.Module, args: tuple, out: torch.Tensor, scale: torch.Tensor = scale) -> torch.Tensor:
            return out * scale[:, None, None]

        model.get_submodule(s.view.module).register_forward_hook(hook)
        assert s.sizes["d_model"] == len(scale)
    for n, t in got.items():
        torch.testing.assert_close(t, model(pixel_values=picture(n, 2)).last_hidden_state)


def test_a_convolution_of_one_position_is_a_projection_that_merges() -> None:
    model = built("resnet")
    base = model(pixel_values=picture()).last_hidden_state
    unipelt.apply(model, unipelt.load("lora", arguments={"r": 2, "at": "[mixer.in, mixer.out]"}), head=False)
    draw(model)
    adapted = model(pixel_values=picture()).last_hidden_state
    unipelt.merge(model)
    torch.testing.assert_close(model(pixel_values=picture()).last_hidden_state, adapted, rtol=1e-4, atol=1e-4)
    unipelt.unmerge(model)
    unipelt.remove(model)
    assert not torch.allclose(adapted, base) and torch.equal(model(pixel_values=picture()).last_hidden_state, base)


def test_one_that_computes_with_other_numbers_than_its_weight_does_not_merge() -> None:
    """Bit standardises its weights at each call."""
    model = built("bit")
    where = 'module("encoder[.]stages[.]0[.]layers[.]1[.]conv1")'
    plan = unipelt.plan(model, unipelt.load("lora", arguments={"r": 2, "at": f"[{where}]"}), head=False)
    assert plan.properties["mergeable"] != "yes"
    assert not find(model).named("mixer.in")


def test_rows_and_columns_are_tokens() -> None:
    """UniPELT's gates read each token, in projections, at heads and behind the feed-forward layer, where these have [batch, rows, columns, d]."""
    config = T.SamVisionConfig(hidden_size=16, output_channels=8, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8,
                               mlp_dim=32, window_size=2, global_attn_indexes=[1], initializer_range=0.1)  # fmt: skip
    torch.manual_seed(0)
    model = T.SamVisionModel(config).eval()
    base = model(pixel_values=picture()).last_hidden_state
    unipelt.apply(model, unipelt.load("unipelt_apl", arguments={"ra": 2, "l": 2, "rl": 2, "mid": 4}), head=False)
    draw(model)
    one, two = (model(pixel_values=t).last_hidden_state for t in (picture(), torch.cat([picture(), picture() + 1])))
    torch.testing.assert_close(two[:1], one)  # an example's gates read that example
    assert not torch.allclose(one, base)
    unipelt.remove(model)
    assert torch.equal(model(pixel_values=picture()).last_hidden_state, base)


def test_a_module_of_stages_is_no_block() -> None:
    model = built("pvt_v2")
    (stack,) = find(model).stacks
    assert stack.blocks == tuple(
        f"encoder.layers.{i}.blocks.{j}" for i, n in enumerate(model.config.depths) for j in range(n)
    )


def test_a_convolution_among_maps_of_tokens_is_a_part_of_their_feed_forward_layer() -> None:
    site = {n: find(built("segformer")).named(n)[0] for n in ("ffn.up", "ffn.down")}
    assert [site[n].view.module.rpartition(".")[2] for n in site] == ["fc1", "fc2"]


def test_a_stored_map_says_how_tokens_lie(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from unipelt.anatomy import stored

    monkeypatch.setenv("UNIPELT_CACHE", str(tmp_path))
    stored.forget()
    first = find(built("resnet", meta=True))
    stored.forget()  # so that it is read from the folder
    assert find(built("resnet", meta=True)).sites == first.sites
    assert _laid_out(first) == {-3}


def _laid_out(sites: SiteMap) -> set[int]:
    mixers: list[Site] = sites.named("mixer")
    return {s.view.layout.axis for s in mixers if s.view.layout is not None}


def test_zeros_say_nothing_against_a_sublayer() -> None:
    """Behind many layers with small random weights nothing is left of a picture: what cannot be told is not refused."""
    model = built("resnet")
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    proofs = {s.proof for s in find(model).named("mixer")}
    assert proofs and PROVED not in proofs


@pytest.mark.parametrize("made", [lambda: nn.Conv1d(4, 4, 1), lambda: nn.Linear(4, 4)])
def test_a_weight_that_is_made_of_others_is_not_merged(made: Any) -> None:
    """Weight norm is a parametrisation: what a merge would write is no parameter."""
    model = nn.Sequential(nn.Sequential(nn.utils.parametrizations.weight_norm(made())))
    unipelt.apply(model, unipelt.load("lora", arguments={"r": 2, "at": '[module("0.0")]'}), head=False)
    with pytest.raises(unipelt.PeltError, match="E0563.*is made of other parameters"):
        unipelt.merge(model)


class ByNeighbours(nn.Module):
    """A feed-forward layer of convolutions, which moves its tokens about inside and hides some."""

    def __init__(self, d: int):
        super().__init__()
        self.up, self.down = nn.Conv1d(d, 2 * d, 3), nn.Conv1d(2 * d, d, 3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        inner = torch.relu(self.up(nn.functional.pad(x.transpose(1, 2) * mask, (1, 1))))
        return (self.down(nn.functional.pad(inner * mask, (1, 1))) * mask).transpose(1, 2)


class Attends(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(d, d) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (m(x).unflatten(-1, (2, -1)).transpose(1, 2) for m in (self.q, self.k, self.v))
        return self.o(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


class Layer(nn.Module):
    def __init__(self, d: int):
        super().__init__()
        self.attends, self.ff, self.norm = Attends(d), ByNeighbours(d), nn.LayerNorm(d)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.norm(x + self.attends(x))
        return x + self.ff(x, mask)


class Sounds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(8) for _ in range(2))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, mask)
        return x


def test_a_feed_forward_layer_that_moves_its_tokens_about_inside_is_one_module() -> None:
    torch.manual_seed(0)
    found = find(Sounds().eval(), example={"x": torch.randn(1, 6, 8), "mask": torch.ones(1, 1, 6)})
    assert [(s.view.module, s.x, s.proof) for s in found.named("ffn")] == [
        (f"layers.{i}.ff", f"layers.{i}.ff", PROVED) for i in range(2)
    ]
    assert not found.named("ffn.up") and not found.named("mixer")
