"""Training: it learns, a killed run continues exactly, clips are cut and mirrored correctly."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_clips import NAMES, synthetic_episode

from ego_world_model.hands import EXTRA_SLOTS, SLOT_NAMES
from ego_world_model.training import config as configs
from ego_world_model.training.clips import Augmentation, ClipCache, ClipSampler, mirrored_slots
from ego_world_model.training.config import AutoencoderTraining, Stage, WorldModelTraining
from ego_world_model.training.loop import LoopSettings, Trainer
from ego_world_model.training.losses import RegionWeights
from ego_world_model.training.objectives import (
    AutoencoderObjective,
    NoiseSettings,
    WorldModelObjective,
)
from ego_world_model.training.runs import _batches
from ego_world_model.world_model import JointControl
from ego_world_model.world_model.autoencoders import FrameAutoencoder
from ego_world_model.world_model.backbones import WanBackbone

CONFIGS = Path(__file__).resolve().parent.parent / "config" / "training"


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> ClipCache:
    episodes = [synthetic_episode(seed, frames=12) for seed in range(3)]
    folder = tmp_path_factory.mktemp("cache")
    return ClipCache.build(episodes, folder, width=64, height=48, extra_slots=EXTRA_SLOTS)


def world_model_trainer(cache: ClipCache, folder: Path, steps: int) -> Trainer:
    torch.manual_seed(0)
    control = JointControl(num_joints=46, latent_channels=4, spatial_stride=8, temporal_stride=1)
    backbone = WanBackbone(
        latent_channels=4,
        channels=16,
        stem_blocks=1,
        head_blocks=1,
        transformer=dict(num_layers=1, num_attention_heads=2, attention_head_dim=16, ffn_dim=32),
    )
    objective = WorldModelObjective(
        control,
        backbone,
        FrameAutoencoder(latent_channels=4, channels=(8, 16, 16)),
        RegionWeights(),
        NoiseSettings(),
        decoder_from=0.3,
    )
    rng = np.random.default_rng(0)
    draw = _batches(
        ClipSampler(cache, rng, augmentation=Augmentation()),
        [Stage(until=0.5, frames=3, batch=3, max_stride=2), Stage(frames=5, batch=2)],
    )
    settings = LoopSettings(
        max_steps=steps,
        learning_rate=3e-3,
        warmup_steps=3,
        precision="fp32",
        log_steps=1,
        workers=2,
    )
    return Trainer(objective, draw, rng, folder, settings, report=lambda line: None)


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").open()]


def test_a_killed_run_continues_exactly(cache: ClipCache, tmp_path: Path):
    """Stopping and resuming gives the very weights, averages and losses of an unbroken run."""
    whole = world_model_trainer(cache, tmp_path / "whole", 10)
    whole.run()
    world_model_trainer(cache, tmp_path / "broken", 10).run(stop=lambda step: step == 4)
    torch.randn(7)  # whatever a new process would have drawn meanwhile
    resumed = world_model_trainer(cache, tmp_path / "broken", 10)
    assert resumed.step == 4
    resumed.run()
    assert losses(tmp_path / "broken") == losses(tmp_path / "whole")
    expected = whole.objective.state_dict()
    for name, value in resumed.objective.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
    for name, value in resumed.average.parameters.items():
        torch.testing.assert_close(value, whole.average.parameters[name], rtol=0, atol=0)


def test_a_state_cut_off_while_saving_is_not_used(cache: ClipCache, tmp_path: Path):
    """A half-written new state beside the old one: the old one is resumed."""
    world_model_trainer(cache, tmp_path, 10).run(stop=lambda step: step == 3)
    (tmp_path / "state.new").mkdir()
    (tmp_path / "state.new" / "module.safetensors").write_bytes(b"half")
    assert world_model_trainer(cache, tmp_path, 10).step == 3


def test_the_autoencoder_learns(cache: ClipCache, tmp_path: Path):
    """Forty steps on three clips more than halve the reconstruction loss."""
    torch.manual_seed(0)
    autoencoder = FrameAutoencoder(latent_channels=8, channels=(16, 32, 32))
    rng = np.random.default_rng(0)
    draw = _batches(ClipSampler(cache, rng), [Stage(frames=3, batch=4, max_stride=3)])
    settings = LoopSettings(
        max_steps=40, learning_rate=4e-3, warmup_steps=5, precision="fp32", log_steps=1
    )
    objective = AutoencoderObjective(autoencoder, RegionWeights(), latent_noise=0.1)
    Trainer(objective, draw, rng, tmp_path, settings, report=lambda line: None).run()
    curve = losses(tmp_path)
    assert np.mean(curve[-5:]) < 0.5 * np.mean(curve[:3])
    sample = ClipSampler(cache, rng).sample(6, 4)
    autoencoder.eval()
    with torch.no_grad():
        latents = autoencoder.encode(sample.video.transpose(1, 2))
        decoded = autoencoder.decode(latents, sample.reference)
    assert 0.7 < float(latents.std()) < 1.4  # unit variance, from running statistics
    torch.testing.assert_close(decoded[:, :, 0], sample.reference, rtol=0, atol=0)


def test_the_encoder_stays_fixed_while_the_world_model_trains(cache: ClipCache, tmp_path: Path):
    """The decoder learns from `decoder_from` on, the encoder and its statistics never."""
    trainer = world_model_trainer(cache, tmp_path, 6)
    autoencoder = trainer.objective.autoencoder
    before = {name: value.clone() for name, value in autoencoder.state_dict().items()}
    trainer.run(stop=lambda step: step == 2)
    after_two = {name: value.clone() for name, value in autoencoder.state_dict().items()}
    trainer.run()
    for name, value in autoencoder.state_dict().items():
        if name.startswith(("encoder.", "standardise.")):
            assert torch.equal(value, before[name]), name
    decoder = "decoder.stem.weight"
    assert torch.equal(after_two[decoder], before[decoder])
    assert not torch.equal(autoencoder.state_dict()[decoder], before[decoder])


def test_clips_keep_images_joints_and_camera_together(cache: ClipCache):
    """Mirrored or not, a joint's projection lies on its hand in the mask."""
    augmentation = Augmentation(mirror=0.5, colour=0.0, hide_joints=0.0)
    sampler = ClipSampler(cache, np.random.default_rng(5), augmentation=augmentation)
    hits = total = 0
    for _ in range(8):
        clip = sampler.sample(2, 3, max_stride=2)
        for side, label in (("left", 1), ("right", 2)):
            slot = SLOT_NAMES.index(f"{side}_index_mcp")
            points = torch.einsum("bij,btj->bti", clip.intrinsics, clip.joints[:, :, slot])
            pixels = (points[..., :2] / points[..., 2:]).round().long()
            for b in range(2):
                for t in range(3):
                    u, v = pixels[b, t].tolist()
                    if 0 <= u < 64 and 0 <= v < 48:
                        total += 1
                        hits += int(clip.masks[b, t, v, u]) == label
    assert total > 30
    assert hits > 0.8 * total  # the other hand or the ball may lie in front


def test_mirroring_swaps_every_slot_with_its_partner():
    swap = mirrored_slots(EXTRA_SLOTS)
    assert NAMES[swap[NAMES.index("left_thumb_tip")]] == "right_thumb_tip"
    assert NAMES[swap[NAMES.index("right_forearm")]] == "left_forearm"
    np.testing.assert_array_equal(swap[swap], np.arange(len(NAMES)))


def test_uncovered_background_is_weighted():
    """Where the reference shows a hand that has left, errors count more than elsewhere."""
    masks = torch.zeros(1, 2, 1, 3, dtype=torch.uint8)
    masks[0, 0, 0, 0] = 1  # left by a hand
    masks[0, 1, 0, 1] = 2  # entered by a hand
    gone, hand, still = RegionWeights()(masks)[0, 0, 0]
    assert hand > gone > still > 0


def test_clips_in_which_an_object_is_carried_can_be_asked_for(cache: ClipCache):
    """Such clips are rare in data and the only ones that teach objects to follow hands."""
    sampler = ClipSampler(cache, np.random.default_rng(0))
    clips = sampler.sample(12, 6, carried=1.0)
    columns = torch.arange(64, dtype=torch.float32)
    for masks in clips.masks:
        inside = (masks == 5).float()
        seen = inside.sum(dim=(1, 2)) >= 8
        centre = (inside.sum(dim=1) @ columns)[seen] / inside.sum(dim=(1, 2))[seen]
        rows = (inside.sum(dim=2) @ columns[:48])[seen] / inside.sum(dim=(1, 2))[seen]
        assert seen.sum() >= 3
        assert np.hypot(float(np.ptp(centre)), float(np.ptp(rows))) >= 4


def test_shipped_configs_parse():
    autoencoder = configs.load(AutoencoderTraining, CONFIGS / "tiny_autoencoder.yaml", {})
    model = configs.load(
        WorldModelTraining,
        CONFIGS / "tiny_world_model.yaml",
        {"loop": {"deadline_minutes": 3.0, "max_steps": None}},
    )
    assert autoencoder.data.extra_slots == model.data.extra_slots == EXTRA_SLOTS
    assert model.loop.deadline_minutes == 3.0
    others = [*CONFIGS.glob("wan_*.yaml"), CONFIGS / "tiny_more.yaml"]
    assert len(others) >= 2
    for path in others:
        configs.load(WorldModelTraining, path, {})


def test_a_wrong_config_names_the_key(tmp_path: Path):
    path = tmp_path / "wrong.yaml"
    path.write_text((CONFIGS / "tiny_world_model.yaml").read_text() + "\nlerning_rate: 1\n")
    with pytest.raises(ValueError, match="lerning_rate"):
        configs.load(WorldModelTraining, path, {})
