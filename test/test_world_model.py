"""The world model's contract: what imagine accepts, refuses and promises; safe checkpoints.

All on a small random model with the real parts (diffusers transformer, control, autoencoder).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_clips import NAMES, synthetic_episode

from ego_world_model.hands import EXTRA_SLOTS, NUM_SLOTS, HandTrajectory
from ego_world_model.world_model import (
    CheckpointError,
    ImaginationCancelled,
    WorldModel,
    WorldModelConfig,
)
from ego_world_model.world_model.acceleration import Acceleration, CacheSpec
from ego_world_model.world_model.backbones import Condition, WanBackbone
from ego_world_model.world_model.checkpoint import LoraFile, PartSpec, read_config
from ego_world_model.world_model.sampler import flow_sigmas, sample

BACKBONE = {
    "latent_channels": 4,
    "channels": 16,
    "stem_blocks": 1,
    "head_blocks": 1,
    "transformer": {
        "num_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "ffn_dim": 32,
    },
}


def small_model(num_frames: int = 5, **config: object) -> WorldModel:
    """A random model whose output depends on noise, joints and image."""
    torch.manual_seed(0)
    model = WorldModel(
        WorldModelConfig(
            fps=10.0,
            num_frames=num_frames,
            height=48,
            width=64,
            extra_slots=EXTRA_SLOTS,
            autoencoder=PartSpec(
                name="frame", kwargs={"latent_channels": 4, "channels": [8, 16, 16]}
            ),
            backbone=PartSpec(name="wan", kwargs=BACKBONE),
            **config,
        )
    )
    torch.nn.init.normal_(model.backbone.out.weight, std=0.1)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return small_model()


@pytest.fixture(scope="module")
def episode():
    return synthetic_episode(3, frames=8)


def trajectory(episode, *, slots: int = len(NAMES), frames: int = 8) -> HandTrajectory:
    return HandTrajectory(
        np.arange(frames) / episode.fps,
        episode.hand_positions[:frames, :slots],
        episode.hand_valid[:frames, :slots],
    )


def imagine(model, episode, trajectories, **options):
    options = {"seed": 1, "steps": 2} | options
    return model.imagine(episode.images[0], trajectories, episode.camera.matrix, **options)


def test_frames_have_the_models_shape_and_begin_with_the_reference(model, episode):
    """(K, T, h, w, 3) uint8; frame 0 is the camera's own frame, only resized."""
    result = imagine(model, episode, trajectory(episode))
    assert result.frames.shape == (1, 5, 48, 64, 3)
    assert result.frames.dtype == np.uint8
    np.testing.assert_allclose(result.times, [0, 0.1, 0.2, 0.3, 0.4])
    blocks = episode.images[0].reshape(48, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.abs(result.frames[0, 0].astype(float) - blocks).max() <= 1
    assert set(result.timings) == {"encode", "control", "denoise", "decode"}


def test_a_seed_fixes_the_frames_and_another_changes_them(model, episode):
    motion = trajectory(episode)
    first, again = (imagine(model, episode, motion).frames for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (imagine(model, episode, motion, seed=2).frames != first).any()


def test_candidates_equal_rollouts_made_one_by_one(model, episode):
    """K candidates from one image share encoding and noise, nothing else."""
    motion = trajectory(episode)
    other = HandTrajectory(motion.times, motion.positions + np.float32([0.05, 0, 0]), motion.valid)
    both = imagine(model, episode, [motion, other]).frames
    assert both.shape[0] == 2
    for k, single in enumerate((motion, other)):
        alone = imagine(model, episode, single).frames[0]
        assert np.abs(both[k].astype(int) - alone.astype(int)).max() <= 1
    assert np.abs(both[0].astype(int) - both[1].astype(int)).max() > 1


@pytest.mark.parametrize("max_batch", [1, 2])
def test_batches_do_not_change_the_frames(model, episode, max_batch: int):
    """Candidates computed a few at a time share the noise; progress counts all batches' steps."""
    motion = trajectory(episode)
    moved = [
        HandTrajectory(motion.times, motion.positions + np.float32([x, 0, 0]), motion.valid)
        for x in (0, 0.05, -0.05)
    ]
    seen = []
    options = {"control_guidance": 2.0, "on_step": lambda *s: seen.append(s)}
    whole = imagine(model, episode, moved, **options).frames
    seen.clear()
    result = imagine(model, episode, moved, max_batch=max_batch, **options)
    assert np.abs(result.frames.astype(int) - whole.astype(int)).max() <= 1
    total = 2 * (3 if max_batch == 1 else 2)
    assert seen == [(step, total) for step in range(1, total + 1)]
    assert set(result.timings) == {"encode", "control", "denoise", "decode"}


def test_control_guidance_leads_away_from_unknown_hands(model, episode):
    """0 gives what unknown joints give, 1 changes nothing and costs nothing, 2 goes further."""
    motion = trajectory(episode)
    unknown = motion.with_slots_masked(range(len(NAMES)))
    forwards = []
    handle = model.backbone.register_forward_hook(lambda *_: forwards.append(1))
    known, bare, none, one, two = (
        imagine(model, episode, m, steps=1, **options).frames.astype(float)
        for m, options in [
            (motion, {}),
            (unknown, {}),
            (motion, {"control_guidance": 0.0}),
            (motion, {"control_guidance": 1.0}),
            (motion, {"control_guidance": 2.0}),
        ]
    )
    handle.remove()
    assert len(forwards) == 1 + 1 + 2 + 1 + 2
    assert np.abs(known - bare).max() > 1
    assert np.abs(none - bare).max() <= 1
    np.testing.assert_array_equal(one, known)
    away = (two - known)[known != bare] * (known - bare)[known != bare]
    assert np.mean(away > 0) > 0.8


def test_noise_levels_and_solver_may_be_chosen(model, episode):
    """By the call, else by the checkpoint; four levels mean four steps."""
    motion, seen = trajectory(episode), []
    levels = [1.0, 0.9375, 2.5 / 3, 0.625]
    count = {"on_step": lambda *s: seen.append(s), "steps": None}
    explicit = imagine(model, episode, motion, sigmas=levels, **count).frames
    assert seen[-1] == (4, 4)
    declared = small_model(sigmas=tuple(levels), solver="unipc")
    unipc = imagine(declared, episode, motion, steps=None).frames
    assert (unipc != explicit).any()
    np.testing.assert_array_equal(
        imagine(declared, episode, motion, steps=None, solver="euler").frames, explicit
    )
    with pytest.raises(ValueError, match="steps and sigmas: give one of them"):
        imagine(model, episode, motion, sigmas=levels)
    with pytest.raises(ValueError, match="max_batch must be at least 1"):
        imagine(model, episode, motion, max_batch=0)
    with pytest.raises(CheckpointError, match="unknown solver 'heun'"):
        small_model(solver="heun")


def test_hand_slots_alone_are_enough(model, episode):
    """A 42-slot trajectory equals one whose extra slots are marked unknown."""
    full = trajectory(episode).with_slots_masked(range(NUM_SLOTS, len(NAMES)))
    np.testing.assert_array_equal(
        imagine(model, episode, trajectory(episode, slots=NUM_SLOTS)).frames,
        imagine(model, episode, full).frames,
    )


def test_image_size_does_not_move_the_hands(model, episode):
    """The camera matrix follows the image: half the image with its own matrix, same joints."""
    small = episode.camera.resized(64, 48)
    shrunk = episode.images[0].reshape(48, 2, 64, 2, 3).mean(axis=(1, 3)).round().astype(np.uint8)
    a = imagine(model, episode, trajectory(episode)).frames
    b = model.imagine(shrunk, trajectory(episode), small.matrix, seed=1, steps=2).frames
    assert np.abs(a.astype(int) - b.astype(int)).max() <= 2


def test_cancel_stops_within_one_step(model, episode):
    seen = []

    def stop_after_two(step: int, steps: int) -> bool:
        seen.append((step, steps))
        return step < 2

    with pytest.raises(ImaginationCancelled, match="step 2 of 5"):
        imagine(model, episode, trajectory(episode), steps=5, on_step=stop_after_two)
    assert seen == [(1, 5), (2, 5)]


def test_wrong_arguments_are_named(model, episode):
    motion = trajectory(episode)
    with pytest.raises(ValueError, match="whole horizon"):
        imagine(model, episode, trajectory(episode, frames=4))
    with pytest.raises(ValueError, match="43 slots"):
        imagine(model, episode, trajectory(episode, slots=43))
    with pytest.raises(ValueError, match="at least one"):
        imagine(model, episode, [])
    with pytest.raises(ValueError, match="steps"):
        imagine(model, episode, motion, steps=0)
    with pytest.raises(ValueError, match="text encoder"):
        imagine(model, episode, motion, prompt="pick up the cup")
    with pytest.raises(ValueError, match="uint8"):
        model.imagine(episode.images[0] / 255.0, motion, episode.camera.matrix)
    with pytest.raises(ValueError, match="intrinsics"):
        model.imagine(episode.images[0], motion, np.full((3, 3), np.nan))


def test_every_choice_survives_saving(tmp_path: Path):
    """Settings of inference are fields of config.json like any other."""
    saved = small_model(
        sigmas=(1.0, 0.5),
        solver="unipc",
        control_guidance=1.5,
        max_batch=4,
        loras=(LoraFile(path="fast.safetensors", name="fast", scale=0.5),),
        acceleration=Acceleration(cache=CacheSpec(name="first_block", kwargs={"threshold": 0.1})),
    )
    saved.save_pretrained(tmp_path)
    assert read_config(tmp_path)[0] == saved.config
    assert saved.config.relative_to(tmp_path).loras[0].path == str(tmp_path / "fast.safetensors")


def test_a_saved_model_imagines_the_same(model, episode, tmp_path: Path):
    model.save_pretrained(tmp_path)
    loaded = WorldModel.from_pretrained(tmp_path)
    assert loaded.config == model.config
    np.testing.assert_array_equal(
        imagine(loaded, episode, trajectory(episode)).frames,
        imagine(model, episode, trajectory(episode)).frames,
    )


def test_broken_checkpoints_say_which_file(model, tmp_path: Path):
    """Missing folder, missing part, one flipped byte, unknown field: each names what is wrong."""
    with pytest.raises(CheckpointError, match="no world-model checkpoint"):
        WorldModel.from_pretrained(tmp_path / "nothing")
    model.save_pretrained(tmp_path)
    weights = tmp_path / "backbone.safetensors"
    intact = weights.read_bytes()
    weights.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"backbone.safetensors is corrupt"):
        WorldModel.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"backbone.safetensors is missing"):
        WorldModel.from_pretrained(tmp_path)
    weights.write_bytes(intact)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"fps"', '"frame_rate"'))
    with pytest.raises(CheckpointError, match="frame_rate"):
        WorldModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(config.replace('"model"', '"network"'))
    with pytest.raises(CheckpointError, match="field 'model' is not understood"):
        WorldModel.from_pretrained(tmp_path)


def random_condition(batch: int = 2, frames: int = 5) -> Condition:
    reference = torch.randn(batch, 4, 6, 8)
    motion, geometry = torch.randn(batch, 4, frames, 6, 8), torch.randn(batch, 16, frames, 6, 8)
    return Condition.from_control(reference, motion, geometry)


def test_an_untrained_backbone_repeats_the_reference():
    """Residual preconditioning: at full noise the start of training is 'nothing moves'."""
    condition = random_condition()
    with torch.no_grad():
        clean = WanBackbone(**BACKBONE)(torch.randn(2, 4, 5, 6, 8), torch.ones(2), condition)
    still = condition.reference[:, :, None].expand_as(clean)
    torch.testing.assert_close(clean, still, atol=1e-5, rtol=0)


def test_without_noise_the_backbone_returns_its_input():
    """At sigma 0 the clean latents are known, whatever the network says."""
    backbone = WanBackbone(**BACKBONE)
    torch.nn.init.normal_(backbone.out.weight)
    latents = torch.randn(2, 4, 5, 6, 8)
    with torch.no_grad():
        clean = backbone(latents, torch.zeros(2), random_condition())
    torch.testing.assert_close(clean, latents, atol=1e-5, rtol=1e-5)


def test_the_fast_attention_computes_what_diffusers_computes():
    from diffusers import WanTransformer3DModel

    from ego_world_model.world_model.wan_attention import use_fast_attention

    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2), in_channels=8, out_channels=4, text_dim=16, freq_dim=32,
        rope_max_seq_len=64, **BACKBONE["transformer"],
    ).eval()  # fmt: skip
    latents, level, context = (
        torch.randn(2, 8, 3, 6, 8),
        torch.tensor([1e3, 3e2]),
        torch.randn(2, 1, 16),
    )
    with torch.no_grad():
        stock = transformer(latents, level, context, return_dict=False)[0]
        use_fast_attention(transformer)
        fast = transformer(latents, level, context, return_dict=False)[0]
    torch.testing.assert_close(fast, stock, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_sampler_reaches_what_a_perfect_denoiser_knows(steps: int):
    """Euler steps along a straight flow are exact, for any number of steps and any shift."""
    target, condition = torch.randn(1, 4, 5, 6, 8), random_condition(batch=1)
    reached = sample(
        lambda latents, sigma, condition: target,
        condition,
        torch.randn_like(target),
        flow_sigmas(steps, shift=3.0),
    )
    torch.testing.assert_close(reached, target)


def test_sigmas_are_shifted_once():
    assert flow_sigmas(4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    np.testing.assert_allclose(flow_sigmas(2, shift=3.0), [1.0, 0.75, 0.0])
