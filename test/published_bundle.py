"""The published bundle, small and random, and its rollout computed from the original formulation.

The rollout here uses plain diffusers and transformers modules and the bundle's tensors alone, none
of the package's own code, so that it can judge what an imported checkpoint imagines.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

TEXT, IMAGE, INNER, FFN, RANK, BLOCKS = 24, 32, 64, 48, 4, 2
FRAMES, HEIGHT, WIDTH = 9, 32, 64  # latents of 3 x 4 x 8
CONTROL = "hand-controller.safetensors"
WORDS = ["<pad>", "</s>", "<unk>", "pick", "up", "the", "cup"]

# Original name of an adapted layer → inputs, outputs, and where diffusers' block keeps it.
LAYERS: dict[str, tuple[int, int, Callable[[nn.Module], nn.Linear]]] = {
    "self_attn.q": (INNER, INNER, lambda block: block.attn1.to_q),
    "self_attn.k": (INNER, INNER, lambda block: block.attn1.to_k),
    "self_attn.v": (INNER, INNER, lambda block: block.attn1.to_v),
    "self_attn.o": (INNER, INNER, lambda block: block.attn1.to_out[0]),
    "cross_attn.q": (INNER, INNER, lambda block: block.attn2.to_q),
    "cross_attn.k": (INNER, INNER, lambda block: block.attn2.to_k),
    "cross_attn.v": (INNER, INNER, lambda block: block.attn2.to_v),
    "cross_attn.o": (INNER, INNER, lambda block: block.attn2.to_out[0]),
    "ffn.0": (INNER, FFN, lambda block: block.ffn.net[0].proj),
    "ffn.2": (FFN, INNER, lambda block: block.ffn.net[2]),
}


def save_transformer(folder: Path, **changes: object) -> None:
    """The transformer of the image-to-video layout, with other settings where they are given."""
    settings = {
        "num_layers": BLOCKS,
        "num_attention_heads": 2,
        "attention_head_dim": INNER // 2,
        "ffn_dim": FFN,
        "text_dim": TEXT,
        "freq_dim": 32,
        "in_channels": 36,
        "out_channels": 16,
        "image_dim": IMAGE,
        "added_kv_proj_dim": INNER,
    }
    WanTransformer3DModel(**(settings | changes)).save_pretrained(folder / "transformer")


def write_base(folder: Path) -> Path:
    """A small random Wan 2.1 I2V folder with every part of the published one."""
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=8, num_res_blocks=1, dim_mult=[1, 2, 2, 2])
    vae.save_pretrained(folder / "vae")
    save_transformer(folder)
    text = UMT5Config(
        vocab_size=16, d_model=TEXT, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0
    )
    UMT5EncoderModel(text).save_pretrained(folder / "text_encoder")
    words = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder / "tokenizer")
    vision = CLIPVisionConfig(
        hidden_size=IMAGE,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    CLIPVisionModel(vision).save_pretrained(folder / "image_encoder")
    CLIPImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    ).save_pretrained(folder / "image_processor")
    return folder


def dit_tensors(prefix: str = "", infix: str = ".default") -> dict[str, Tensor]:
    """``dit.safetensors`` in the original names."""
    torch.manual_seed(1)
    tensors = {
        "patch_embedding.weight": 0.1 * torch.randn(INNER, 52, 1, 2, 2),
        "patch_embedding.bias": 0.1 * torch.randn(INNER),
    }
    for block in range(BLOCKS):
        for layer, (inputs, outputs, _) in LAYERS.items():
            name = f"blocks.{block}.{layer}"
            tensors[f"{name}.lora_A{infix}.weight"] = torch.randn(RANK, inputs)
            tensors[f"{name}.lora_B{infix}.weight"] = 0.1 * torch.randn(outputs, RANK)
    return {prefix + name: tensor for name, tensor in tensors.items()}


def control_tensors() -> dict[str, Tensor]:
    """``hand-controller.safetensors``: the published names and shapes, 22,000 values."""
    shapes = {
        "joint_id_embed.weight": (42, 32),
        "coord_encoder.0.weight": (32, 32),
        "coord_encoder.0.bias": (32,),
        "coord_encoder.2.weight": (32, 32),
        "coord_encoder.2.bias": (32,),
        "causal_conv1.weight": (64, 80, 3, 1, 1),
        "causal_conv1.bias": (64,),
        "causal_conv2.weight": (16, 64, 3, 1, 1),
        "causal_conv2.bias": (16,),
        "cross_norm.weight": (16,),
        "cross_norm.bias": (16,),
    }
    torch.manual_seed(2)
    return {name: 0.2 * torch.randn(shape) for name, shape in shapes.items()}


def write_bundle(folder: Path, dit: dict[str, Tensor]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(dit, folder / "dit.safetensors")
    save_file({f"hand_controler.{k}": v for k, v in control_tensors().items()}, folder / CONTROL)
    return folder


# ----------------------------------------------------------------- the published formulation


@dataclass(frozen=True)
class Scene:
    """What is asked of both: image (H, W, 3) uint8, joints (T, 42, 3), valid (T, 42), K (3, 3)."""

    image: np.ndarray
    joints: np.ndarray
    valid: np.ndarray
    camera: np.ndarray


def moving_scene() -> Scene:
    """Two rows of joints that drift right and towards the camera; three of them are unknown."""
    times = np.arange(FRAMES) / 16
    joints = np.zeros((FRAMES, 42, 3), np.float32)
    joints[..., 0] = np.linspace(-0.2, 0.2, 42) + 0.3 * times[:, None]
    joints[..., 1] = np.where(np.arange(42) < 21, -0.05, 0.06)
    joints[..., 2] = np.linspace(0.4, 0.6, 42) - 0.1 * times[:, None]
    valid = np.ones((FRAMES, 42), bool)
    valid[:, 5:8] = False
    image = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)
    camera = np.array([[60.0, 0, 31.5], [0, 60.0, 15.5], [0, 0, 1]])
    return Scene(image, joints, valid, camera)


def published_control(
    weights: dict[str, Tensor], joints: Tensor, camera: Tensor, latent: Tensor
) -> tuple[Tensor, Tensor]:
    """Joints (T, J, 3), K (3, 3), reference latent (C, h, w) → motion, geometry (1, C, t, h, w).

    Every joint's heatmap is held in full and joints are compared pair by pair.
    """
    grid = camera.clone()
    grid[:2] /= 8
    image = joints @ grid.T
    depth = image[..., 2].clamp_min(0.2)
    uv, disparity = image[..., :2] / depth[..., None], 1 / depth / 5
    rates = torch.tensor([10000 ** (-i / 15) for i in range(16)])
    phase = torch.cat([uv, disparity[..., None]], -1)[..., None] * rates
    coded = torch.cat([phase.sin(), phase.cos()], -1).mean(-2)
    for layer in ("0", "2"):
        coded = F.linear(
            coded, weights[f"coord_encoder.{layer}.weight"], weights[f"coord_encoder.{layer}.bias"]
        )
        coded = F.silu(coded) if layer == "0" else coded
    identity = weights["joint_id_embed.weight"].expand(len(joints), -1, -1)
    embedded = torch.cat([coded, identity], -1)  # (T, J, 64)

    rows, columns = torch.meshgrid(
        *(torch.arange(n, dtype=torch.float32) for n in latent.shape[1:]), indexing="ij"
    )
    distance2 = (columns - uv[..., 0, None, None]) ** 2 + (rows - uv[..., 1, None, None]) ** 2
    heat = torch.exp(-distance2 / 8)  # (T, J, h, w), sigma 2
    seen = torch.ones(joints.shape[1])
    for i in range(len(seen)):
        for j in range(len(seen)):
            if disparity[0, i] < disparity[0, j] - 1e-3 and (uv[0, i] - uv[0, j]).norm() < 1:
                seen[i] = 0
    share = heat[0] / (heat[0].sum((-2, -1), keepdim=True) + 1e-6)
    feature = seen[:, None] * torch.einsum("jhw,chw->jc", share, latent)

    def reduced(x: Tensor) -> Tensor:
        return torch.cat([x[:1], torch.stack([group.mean(0) for group in x[1:].split(4)])])

    structure = reduced(torch.einsum("tjhw,tje->tehw", heat, embedded))
    heat, disparity = reduced(heat), reduced(disparity)
    weight = torch.softmax((heat + 1e-6).log() + 5 * disparity[..., None, None], dim=1)
    motion = torch.einsum("tjhw,jc->tchw", weight, feature) * heat.sum(1, keepdim=True)
    x = torch.cat([structure, motion], dim=1).transpose(0, 1)[None]
    for name in ("causal_conv1", "causal_conv2"):
        x = torch.cat([x[:, :, :1], x[:, :, :1], x], dim=2)
        x = F.silu(F.conv3d(x, weights[f"{name}.weight"], weights[f"{name}.bias"]))
    norm = weights["cross_norm.weight"], weights["cross_norm.bias"]
    geometry = F.layer_norm(x.movedim(1, -1), (x.shape[1],), *norm).movedim(-1, 1)
    return motion.transpose(0, 1)[None], geometry


def merged_transformer(base: Path, dit: dict[str, Tensor], scale: float) -> nn.Module:
    """The plain transformer with 52 input channels and W + scale B A in place of W."""
    folder = base / "transformer"
    config = WanTransformer3DModel.load_config(folder)
    transformer = WanTransformer3DModel.from_config(config, in_channels=52).eval()
    state = load_file(folder / "diffusion_pytorch_model.safetensors")
    state["patch_embedding.weight"] = dit["patch_embedding.weight"]
    state["patch_embedding.bias"] = dit["patch_embedding.bias"]
    transformer.load_state_dict(state)
    for number, block in enumerate(transformer.blocks):
        for layer, (_, _, find) in LAYERS.items():
            name = f"blocks.{number}.{layer}"
            a, b = (dit[f"{name}.lora_{side}.default.weight"] for side in "AB")
            find(block).weight.data += scale * b @ a
    return transformer


@torch.no_grad()
def published_rollout(
    base: Path,
    scene: Scene,
    words: list[str],
    *,
    lora_scale: float = 1.0,
    motion_scale: float = 1.0,
    geometry_scale: float = 1.0,
    guidance: float = 3.0,
    crop: bool = False,
) -> Tensor:
    """Latents (1, 16, t, h, w) after two guided Euler steps of the published inference.

    Other scales than 1, ``crop`` (the image's middle for the image tokens) and another guidance are
    mistakes that an import could make.
    """
    image = torch.from_numpy(scene.image).permute(2, 0, 1)[None] / 127.5 - 1
    vae = AutoencoderKLWan.from_pretrained(base / "vae").eval()
    video = torch.zeros(1, 3, FRAMES, HEIGHT, WIDTH)
    video[:, :, 0] = image
    mean, std = (
        torch.tensor(values).view(1, 16, 1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    condition = (vae.encode(video).latent_dist.mean - mean) / std
    joints = torch.from_numpy(np.where(scene.valid[..., None], scene.joints, 0))
    motion, geometry = published_control(
        control_tensors(), joints, torch.from_numpy(scene.camera).float(), condition[0, :, 0]
    )
    condition[:, :, 1:] = motion_scale * motion[:, :, 1:]

    known = torch.zeros(1, FRAMES, *condition.shape[-2:])
    known[:, 0] = 1
    known = torch.cat([known[:, :1].repeat(1, 4, 1, 1), known[:, 1:]], dim=1)
    mask = known.view(1, -1, 4, *known.shape[-2:]).transpose(1, 2)

    vision = CLIPVisionModel.from_pretrained(base / "image_encoder").eval()
    square = image[..., 16:48] if crop else image
    square = F.interpolate(square, (28, 28), mode="bicubic", align_corners=False)
    clip_mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    clip_std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    pixels = (0.5 * square + 0.5 - clip_mean) / clip_std
    tokens = vision(pixels, output_hidden_states=True).hidden_states[2]  # two of three layers

    umt5 = UMT5EncoderModel.from_pretrained(base / "text_encoder").eval()

    def embed(words: list[str]) -> Tensor:
        ids = torch.zeros(1, 512, dtype=torch.long)
        ids[0, : len(words)] = torch.tensor([WORDS.index(word) for word in words], dtype=torch.long)
        here = torch.arange(512)[None] < len(words)
        embedding = umt5(ids, attention_mask=here.long()).last_hidden_state
        embedding[~here] = 0
        return embedding

    transformer = merged_transformer(base, dit_tensors(), lora_scale)
    texts = embed(words), embed([])
    latents = torch.randn(condition.shape, generator=torch.Generator().manual_seed(0))
    levels = [5 * s / (1 + 4 * s) for s in (1.0, 0.5)] + [0.0]
    for level, after in zip(levels[:-1], levels[1:], strict=True):
        inputs = torch.cat([latents, mask, condition, geometry_scale * geometry], dim=1)
        with_text, without = (
            transformer(inputs, torch.tensor([1000 * level]), text, tokens).sample for text in texts
        )
        latents = latents + (after - level) * (without + guidance * (with_text - without))
    return latents
