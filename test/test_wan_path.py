"""The full path of published models, small and random: encode → control → sample → decode.

A stride-4 AutoencoderKLWan with a WanTransformer3DModel of the image-to-video layout, and the parts
of Stable Video Diffusion, go through the same ``WorldModel.imagine`` as the shipped model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    AutoencoderKLWan,
    UNetSpatioTemporalConditionModel,
    WanTransformer3DModel,
)

from ego_world_model.hands import HandTrajectory
from ego_world_model.world_model import CheckpointError, WorldModel, WorldModelConfig
from ego_world_model.world_model.backbones import Condition
from ego_world_model.world_model.checkpoint import PartSpec
from ego_world_model.world_model.svd import UNetBackbone
from ego_world_model.world_model.wan import WanAutoencoder, WanI2VBackbone

VAE = {"base_dim": 8, "num_res_blocks": 1, "dim_mult": [1, 2, 2, 2]}  # z 16, 8x down, 4x in time
TRANSFORMER = {
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 32,
    "ffn_dim": 64,
    "text_dim": 24,
    "freq_dim": 32,
}
SVD_VAE = {
    "block_out_channels": (32, 32, 32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "layers_per_block": 1,
}
UNET = {
    "block_out_channels": (32, 32),
    "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    "num_attention_heads": (2, 2),
    "layers_per_block": 1,
    "cross_attention_dim": 16,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 24,
}
LORA = {"rank": 4}


@pytest.fixture(scope="module")
def wan_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Wan 2.1 image-to-video folder in diffusers' layout."""
    folder = tmp_path_factory.mktemp("wan")
    torch.manual_seed(0)
    AutoencoderKLWan(**VAE).save_pretrained(folder / "vae")
    transformer = WanTransformer3DModel(**TRANSFORMER, in_channels=36, out_channels=16)
    transformer.save_pretrained(folder / "transformer")
    return folder


@pytest.fixture(scope="module")
def svd_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Stable Video Diffusion folder in diffusers' layout."""
    folder = tmp_path_factory.mktemp("svd")
    torch.manual_seed(0)
    AutoencoderKLTemporalDecoder(**SVD_VAE).save_pretrained(folder / "vae")
    UNetSpatioTemporalConditionModel(**UNET).save_pretrained(folder / "unet")
    return folder


def wan_config(base: Path | str, **changes: object) -> WorldModelConfig:
    values = {
        "fps": 16,
        "num_frames": 9,
        "height": 64,
        "width": 96,
        "autoencoder": PartSpec(name="wan", kwargs={"base": str(base)}),
        "backbone": PartSpec(name="wan_i2v", kwargs={"base": str(base), "lora": LORA}),
        "steps": 3,
        "shift": 5.0,
    }
    return WorldModelConfig(**(values | changes))


def svd_config(base: Path) -> WorldModelConfig:
    return WorldModelConfig(
        fps=7,
        num_frames=5,
        height=64,
        width=96,
        autoencoder=PartSpec(name="temporal_decoder", kwargs={"base": str(base)}),
        backbone=PartSpec(name="unet", kwargs={"base": str(base)}),
        steps=2,
    )


def trajectory(config: WorldModelConfig, speed: float = 0.1) -> HandTrajectory:
    """Both hands' joints in a row, drifting right."""
    times = np.arange(config.num_frames) / config.fps
    positions = np.zeros((len(times), 42, 3), np.float32)
    positions[..., 0] = np.linspace(-0.1, 0.1, 42) + speed * times[:, None]
    positions[..., 2] = 0.5
    return HandTrajectory(times, positions)


def imagine(model: WorldModel, **options: object) -> np.ndarray:
    image = np.random.default_rng(0).integers(0, 255, (120, 200, 3), np.uint8)
    intrinsics = np.array([[180.0, 0, 99.5], [0, 180.0, 59.5], [0, 0, 1]])
    trajectories = [trajectory(model.config), trajectory(model.config, -0.4)]
    seen = []
    result = model.imagine(
        image, trajectories, intrinsics, seed=0, on_step=lambda *s: seen.append(s), **options
    )
    c = model.config
    assert result.frames.shape == (2, c.num_frames, c.height, c.width, 3)
    assert set(result.timings) == {"encode", "control", "denoise", "decode"}
    assert len(seen) == c.steps and seen[-1] == (c.steps, c.steps)
    return result.frames


def train_a_little(model: WorldModel) -> None:
    """Move what a training run would move away from its zero initialisation."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.backbone.named_parameters():
            if "lora_B" in name or "patch_embedding" in name or "conv_in" in name:
                parameter.add_(0.05 * torch.randn_like(parameter))


@pytest.mark.parametrize("kind", ["wan", "svd"])
def test_published_layout_imagines_and_survives_saving(
    kind: str, wan_base: Path, svd_base: Path, tmp_path: Path
) -> None:
    config = wan_config(wan_base) if kind == "wan" else svd_config(svd_base)
    model = WorldModel(config).eval()
    train_a_little(model)
    frames = imagine(model)
    assert (frames[0, 0] == frames[1, 0]).all()  # the reference
    assert (frames[0, 1:] != frames[1, 1:]).any()  # other joints, other future
    model.save_pretrained(tmp_path / "checkpoint")
    stored = {path.name for path in (tmp_path / "checkpoint").iterdir()}
    assert stored == {"README.md", "config.json", "control.safetensors", "backbone.safetensors"}
    assert (tmp_path / "checkpoint" / "backbone.safetensors").stat().st_size < 400_000
    again = WorldModel.from_pretrained(tmp_path / "checkpoint")
    np.testing.assert_array_equal(imagine(again), frames)


def test_a_base_beside_the_checkpoint_moves_with_it(wan_base: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "wan").symlink_to(wan_base)
    model = WorldModel(wan_config(wan_base))
    model.config = wan_config("../wan")
    model.save_pretrained(tmp_path / "a" / "checkpoint")
    (tmp_path / "a").rename(tmp_path / "b")
    assert WorldModel.from_pretrained(tmp_path / "b" / "checkpoint").config.num_frames == 9


def test_a_missing_base_names_its_folder(wan_base: Path, tmp_path: Path) -> None:
    model = WorldModel(wan_config(wan_base))
    model.config = wan_config(tmp_path / "gone")
    model.save_pretrained(tmp_path / "checkpoint")
    with pytest.raises(CheckpointError, match="gone.*vae is missing"):
        WorldModel.from_pretrained(tmp_path / "checkpoint")


def test_the_text_to_video_layout_is_refused_when_it_reads_too_much(tmp_path: Path) -> None:
    transformer = WanTransformer3DModel(**TRANSFORMER, in_channels=64, out_channels=16)
    transformer.save_pretrained(tmp_path / "transformer")
    with pytest.raises(CheckpointError, match="64 input channels, more than the 52"):
        WanI2VBackbone(base=str(tmp_path))


def test_new_input_channels_start_without_effect(wan_base: Path) -> None:
    """Before training, our transformer answers as the published one does."""
    base = WanTransformer3DModel.from_pretrained(wan_base / "transformer")
    backbone = WanI2VBackbone(base=str(wan_base), lora=LORA).eval()
    assert backbone.transformer.config.in_channels == 52
    torch.manual_seed(3)
    noisy, motion = torch.randn(2, 1, 16, 3, 8, 12).unbind()
    condition = Condition(motion[:, :, 0], motion, torch.randn(1, 16, 3, 8, 12))
    sigma = torch.tensor([0.7])
    mask = torch.zeros(1, 4, 3, 8, 12)
    mask[:, :, 0] = 1
    with torch.no_grad():
        velocity = base(
            torch.cat([noisy, mask, motion], dim=1),
            sigma * 1000,
            torch.zeros(1, 512, 24),
            return_dict=False,
        )[0]
        clean = backbone(noisy, sigma, condition)
    torch.testing.assert_close(clean, noisy - 0.7 * velocity, atol=1e-5, rtol=1e-4)


def test_unet_answers_as_svd_preconditions(svd_base: Path) -> None:
    """The published formula, x0 = c_skip x + c_out F(c_in x), at a noise level in the middle."""
    base = UNetSpatioTemporalConditionModel.from_pretrained(svd_base / "unet")
    backbone = UNetBackbone(base=str(svd_base)).eval()
    torch.manual_seed(3)
    clean, noise, motion = torch.randn(3, 1, 4, 3, 8, 12).unbind()
    reference, s = torch.randn(1, 4, 8, 12), 0.6
    noisy, level = (1 - s) * clean + s * noise, s / (1 - s)
    exploded = clean + level * noise
    condition = Condition(reference, motion, torch.randn(1, 16, 3, 8, 12))
    inputs = [
        exploded / (level**2 + 1) ** 0.5,
        (reference / 0.18215)[:, :, None].expand(-1, -1, 3, -1, -1),
    ]
    with torch.no_grad():
        answer = base(
            torch.cat(inputs, dim=1).transpose(1, 2),
            torch.tensor([0.25 * np.log(level)]),
            torch.zeros(1, 1, 16),
            torch.tensor([[6.0, 127.0, 0.02]]),
            return_dict=False,
        )[0].transpose(1, 2)
        expected = exploded / (level**2 + 1) - level / (level**2 + 1) ** 0.5 * answer
        ours = backbone(noisy, torch.tensor([s]), condition)
        pure_noise = backbone(noise, torch.ones(1), condition)
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    assert torch.isfinite(pure_noise).all()


def test_the_image_alone_gives_the_first_latent_of_a_video(wan_base: Path) -> None:
    """Encoding [image, zeros] whole and keeping latent 0 equals encoding the image."""
    autoencoder = WanAutoencoder(base=str(wan_base)).eval()
    assert (autoencoder.spatial_stride, autoencoder.temporal_stride) == (8, 4)
    image = torch.rand(1, 3, 64, 96) * 2 - 1
    video = torch.zeros(1, 3, 9, 64, 96)
    video[:, :, 0] = image
    with torch.no_grad():
        latents = autoencoder.encode(video)
        alone = autoencoder.encode_reference(image)
        decoded = autoencoder.decode(latents, image)
    assert latents.shape == (1, 16, 3, 8, 12)
    torch.testing.assert_close(latents[:, :, 0], alone, atol=1e-4, rtol=1e-4)
    assert decoded.shape == video.shape
    assert torch.equal(decoded[:, :, 0], image)


def test_frames_that_do_not_fit_the_temporal_stride_are_refused(wan_base: Path) -> None:
    with pytest.raises(CheckpointError, match="num_frames 10 .*stride 4"):
        WorldModel(wan_config(wan_base, num_frames=10))
