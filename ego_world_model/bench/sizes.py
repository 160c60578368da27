"""World models of published sizes with random weights: as slow and as large as the real ones.

What a transformer, an encoder or an autoencoder takes depends on shapes and dtypes alone, so these
tell how fast the published weights would run on a machine that has none of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn

from ego_world_model.world_model.checkpoint import PartSpec, WorldModelConfig
from ego_world_model.world_model.encoders import WanEncoders
from ego_world_model.world_model.model import WorldModel
from ego_world_model.world_model.wan import TEXT_TOKENS

LORA_RANK = 64
PROMPT_TOKENS = 16
TEXT_WIDTH = 4096  # of UMT5-XXL
IMAGE_TOKENS, IMAGE_WIDTH = 257, 1280  # of CLIP ViT-H/14


@dataclass(frozen=True, kw_only=True)
class PublishedSize:
    """Of a Wan 2.1 transformer; heads are 128 wide.

    Attributes:
        layers, heads, ffn: transformer blocks, attention heads, width of the feed-forward layer.
        image_tokens: whether it attends to CLIP tokens, as image-to-video does.
    """

    layers: int
    heads: int
    ffn: int
    image_tokens: bool

    def transformer(self, layers: int) -> dict[str, Any]:
        """Arguments of WanTransformer3DModel beyond channels."""
        width = 128 * self.heads
        image = {"image_dim": IMAGE_WIDTH, "added_kv_proj_dim": width} if self.image_tokens else {}
        return {
            "num_layers": layers,
            "num_attention_heads": self.heads,
            "attention_head_dim": 128,
            "ffn_dim": self.ffn,
            "text_dim": TEXT_WIDTH,
            "freq_dim": 256,
            **image,
        }


SIZES: dict[str, PublishedSize] = {
    "wan-14b": PublishedSize(layers=40, heads=40, ffn=13824, image_tokens=True),
    "wan-1.3b": PublishedSize(layers=30, heads=12, ffn=8960, image_tokens=False),
}
"""Name → size. 1.3B is published for text-to-video only; here it reads our 52 channels too."""


def random_config(name: str, *, layers: int | None = None) -> WorldModelConfig:
    """What a checkpoint imported from the published bundle declares, at a published size.

    Args:
        name: of ``SIZES``.
        layers: transformer blocks, fewer than published; None: as many.

    Raises:
        ValueError: if there are not that many layers.
    """
    size = SIZES[name]
    if layers is not None and not 1 <= layers <= size.layers:
        raise ValueError(f"--layers {layers}: {name} has 1 to {size.layers} layers")
    settings = size.transformer(layers or size.layers)
    return WorldModelConfig(
        fps=16,
        num_frames=81,
        height=480,
        width=832,
        autoencoder=PartSpec(name="wan"),
        backbone=PartSpec(
            name="wan_i2v", kwargs={"settings": settings, "lora": {"rank": LORA_RANK}}
        ),
        control=PartSpec(name="joint", kwargs={"compat": "released", "occlusion": "hard"}),
        steps=50,
        shift=5.0,
    )


def build_random(
    name: str, config: WorldModelConfig, dtype: torch.dtype, device: str
) -> WorldModel:
    """A model with random weights, or without any on the device "meta".

    One that is cut to fewer layers goes without the encoders as well, which are larger than most of
    what is left.

    Args:
        name: of ``SIZES``; it says which encoders there are.
        config: of :func:`random_config`, perhaps with another size of rollout.
        dtype: of transformer and encoders; autoencoder and control are float32.
    """
    nowhere = torch.device("meta") if device == "meta" else init_empty_weights()
    with nowhere:
        model = WorldModel(config)
        image, layers = SIZES[name].image_tokens, config.backbone.kwargs["settings"]["num_layers"]
        whole = layers == SIZES[name].layers
        model.encoders = RandomEncoders(image=image) if whole else TokensOnly(image=image)
    for part in (model.backbone, model.encoders):
        nn.Module.to(part, dtype)
    model.config = replace(config, encoders=PartSpec(name="random"), guidance=5.0)
    if device != "meta":
        _fill(model, torch.device(device))
    return model.eval().requires_grad_(False)


class RandomEncoders(WanEncoders):
    """UMT5-XXL's encoder and CLIP ViT-H/14 of Wan 2.1 at their published sizes, without weights."""

    def __init__(self, *, image: bool) -> None:
        nn.Module.__init__(self)
        from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel

        self.negative_prompt = ""
        text = UMT5Config(
            vocab_size=256384,
            d_model=TEXT_WIDTH,
            d_kv=64,
            d_ff=10240,
            num_layers=24,
            num_heads=64,
            feed_forward_proj="gated-gelu",
        )
        vision = CLIPVisionConfig(
            hidden_size=IMAGE_WIDTH,
            intermediate_size=5120,
            num_hidden_layers=32,
            num_attention_heads=16,
            image_size=224,
            patch_size=14,
        )
        self.text_encoder = UMT5EncoderModel(text)
        self.tokenizer = _some_words
        self.image_encoder = CLIPVisionModel(vision) if image else None
        half = (0.5, 0.5, 0.5)
        self.image_processor = SimpleNamespace(image_mean=half, image_std=half) if image else None


class TokensOnly(nn.Module):
    """In the place of the encoders: tokens of their shapes, for nothing."""

    negative_prompt = ""

    def __init__(self, *, image: bool) -> None:
        super().__init__()
        self.register_buffer("text", torch.zeros(1, TEXT_TOKENS, TEXT_WIDTH))
        tokens = torch.zeros(1, IMAGE_TOKENS, IMAGE_WIDTH) if image else None
        self.register_buffer("image", tokens)

    def encode_text(self, prompt: str) -> Tensor:
        return self.text

    def encode_image(self, image: Tensor) -> Tensor | None:
        return self.image


def _some_words(prompts: list[str], **_: Any) -> Any:
    """In the place of a tokenizer: the same few tokens for every prompt."""
    from transformers import BatchEncoding

    ids = torch.arange(TEXT_TOKENS, device="cpu").expand(len(prompts), -1)
    mask = (ids < PROMPT_TOKENS).long()
    return BatchEncoding({"input_ids": ids * mask, "attention_mask": mask})


def _fill(model: nn.Module, device: torch.device) -> None:
    """Draw every parameter on the device, those that are shared once, and bring the buffers."""
    drawn: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter not in drawn:
                value = _draw(name, torch.empty_like(parameter, device=device))
                drawn[parameter] = nn.Parameter(value, requires_grad=False)
            setattr(module, name, drawn[parameter])
    model.to(device)


def _draw(name: str, empty: Tensor) -> Tensor:
    """Values that keep activations finite, which would otherwise not take their usual time."""
    if empty.ndim > 1:
        return empty.normal_(0, 0.02)
    return empty.fill_(1.0 if name == "weight" else 0.0)
