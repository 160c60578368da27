"""Training on a Wan 2.1 folder, small and random: from the command to an evaluated checkpoint.

Every part is of the published classes and is loaded by from_pretrained from its published layout.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanImageToVideoPipeline,
    WanTransformer3DModel,
)
from published_bundle import write_base
from safetensors.torch import load_file
from small_runs import FRAMES, HEIGHT, WIDTH, entries, wan_training, write_config, write_dataset
from typer.testing import CliRunner

from ego_world_model import cli
from ego_world_model.data import DatasetReader
from ego_world_model.evaluation.clips import command
from ego_world_model.training.augmentation import Augmentation
from ego_world_model.training.clips import ClipBatch, ClipCache
from ego_world_model.training.config import WorldModelTraining, parse
from ego_world_model.training.losses import RegionWeights
from ego_world_model.training.objectives import NoiseSettings, WorldModelObjective
from ego_world_model.training.start import checkpoint_config, new_model
from ego_world_model.training.windows import (
    WindowCache,
    WindowSampler,
    WindowSettings,
    window_starts,
)
from ego_world_model.world_model import WorldModel
from ego_world_model.world_model.backbones import Condition
from ego_world_model.world_model.checkpoint import PartSpec
from ego_world_model.world_model.encoders import WanEncoders
from ego_world_model.world_model.wan import WanAutoencoder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("wan21"))


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("train"), episodes=3)


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("held_out"), episodes=2, seed=50)


@pytest.fixture(scope="module")
def cache(train: Path, tmp_path_factory: pytest.TempPathFactory) -> ClipCache:
    folder = tmp_path_factory.mktemp("cache")
    return ClipCache.build(DatasetReader(train), folder, width=WIDTH, height=HEIGHT)


def settings(base: Path, train: Path, held_out: Path, **changes: Any) -> WorldModelTraining:
    return parse(WorldModelTraining, wan_training(base, train, held_out, **changes), "test")


def started(base: Path, train: Path, held_out: Path, **changes: Any) -> WorldModel:
    """The model that a run starts from."""
    torch.manual_seed(0)
    config = settings(base, train, held_out, **changes)
    return new_model(config, checkpoint_config(config, 10.0, None), None)


# ------------------------------------------------------------------------------------ end to end


def test_from_the_command_to_an_evaluated_checkpoint(
    base: Path, train: Path, held_out: Path, tmp_path: Path
) -> None:
    """20 steps of the command, then the checkpoint imagines with prompt and guidance, and the
    evaluation command measures it."""
    lora = {"rank": 4, "alpha": 8, "targets": ["to_q", "to_v"]}
    backbone = {"base": str(base), "dtype": "bfloat16", "lora": lora}
    document = wan_training(
        base,
        train,
        held_out,
        backbone={"name": "wan_i2v", "kwargs": backbone},
        gradient_checkpointing=True,
        control_guidance=1.5,
        loop={"accumulate": 2, "validate_minutes": 0.05},
    )
    config = write_config(tmp_path / "config.yaml", document)
    run = tmp_path / "run"
    arguments = ["train", "world-model", str(config), "--run", str(run)]
    done = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    log = entries(run)
    assert [entry["step"] for entry in log] == list(range(1, 21))
    assert np.mean([e["loss"] for e in log[-5:]]) < 0.95 * np.mean([e["loss"] for e in log[:5]])
    assert {"hand", "background"} <= set(entries(run, "validation")[-1])
    assert (run / "strips" / "000020.png").is_file()
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))

    stored = {path.name for path in (run / "checkpoint").iterdir()}
    assert {"config.json", "control.safetensors", "backbone.safetensors"} <= stored
    assert "autoencoder.safetensors" not in stored  # the base holds it
    weights = load_file(run / "checkpoint" / "backbone.safetensors")
    assert all("lora" in name or "patch_embedding" in name for name in weights)
    assert {name.split(".")[4] for name in weights if "lora" in name} == {"to_q", "to_v"}
    moved = weights["transformer.patch_embedding.weight"][:, -16:]
    assert moved.abs().max() > 0  # geometry is read by now

    model = WorldModel.from_pretrained(run / "checkpoint")
    assert (model.config.fps, model.config.guidance, model.config.control_guidance) == (10, 2, 1.5)
    clip = DatasetReader(held_out).episode(0, stop=FRAMES)
    trajectory = command(clip)
    options = {"intrinsics": clip.camera.matrix, "seed": 0}
    cup, other = (
        model.imagine(clip.images[0], trajectory, prompt=prompt, **options).frames
        for prompt in ("pick up the cup", "the")
    )
    assert cup.shape == (1, FRAMES, HEIGHT, WIDTH, 3)
    assert (cup != other).any()
    arguments = ["evaluate", "--model", str(run / "checkpoint"), "--data", str(held_out)]
    arguments += ["--out", str(tmp_path / "evaluation"), "--clips", "2", "--scenes", "0"]
    done = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "hand" in (tmp_path / "evaluation" / "report.md").read_text()


def test_a_run_goes_on_from_a_checkpoint(
    base: Path, train: Path, held_out: Path, tmp_path: Path
) -> None:
    """`init` takes LoRA, input layer and control of a checkpoint on the same base."""
    model = started(base, train, held_out)
    with torch.no_grad():
        for parameter in (*model.control.parameters(), *model.backbone.parameters()):
            if parameter.requires_grad:
                parameter.add_(0.1)
    model.save_pretrained(tmp_path / "checkpoint")
    again = started(base, train, held_out, init=str(tmp_path / "checkpoint"), autoencoder=None)
    expected = model.backbone.stored_state()
    for name, value in again.backbone.stored_state().items():
        assert torch.equal(value, expected[name]), name


# ----------------------------------------------------------------------------- the start of a run


def test_before_the_first_step_the_model_is_its_base(
    base: Path, train: Path, held_out: Path
) -> None:
    """Under the condition that the published pipeline prepares, the model that a run starts from
    answers as the published transformer, whatever geometry the joints write."""
    model = started(base, train, held_out)
    vae = AutoencoderKLWan.from_pretrained(base / "vae")
    transformer = WanTransformer3DModel.from_pretrained(base / "transformer")
    pipeline = WanImageToVideoPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=transformer,
    )
    torch.manual_seed(3)
    image = torch.rand(1, 3, HEIGHT, WIDTH) * 2 - 1
    noisy, condition = pipeline.prepare_latents(
        image, 1, 16, HEIGHT, WIDTH, FRAMES, dtype=torch.float32, device=torch.device("cpu")
    )
    motion = condition[:, 4:]
    text, tokens = torch.randn(1, 512, 24), torch.randn(1, 5, 32)
    ours = Condition.from_control(
        model.autoencoder.encode_reference(image),
        motion,
        torch.randn(1, 16, *motion.shape[2:]),
        text,
        tokens,
    )
    sigma = torch.tensor([0.6])
    with torch.no_grad():
        (velocity,) = transformer(
            torch.cat([noisy, condition], dim=1),
            sigma * 1000,
            text,
            tokens,
            return_dict=False,
        )
        clean = model.backbone(noisy, sigma, ours)
    torch.testing.assert_close(clean, noisy - 0.6 * velocity, atol=1e-5, rtol=1e-5)


def test_motion_replaces_the_encoded_black_frames_of_the_base(
    base: Path, train: Path, held_out: Path
) -> None:
    """The injection of the paper and of the published weights: where no joint is, the condition's
    later frames are zero, which is not what the base puts there (encoded black frames)."""
    model = started(base, train, held_out)
    image = torch.rand(1, 3, HEIGHT, WIDTH) * 2 - 1
    reference = model.autoencoder.encode_reference(image)
    joints = torch.zeros(1, FRAMES, 42, 3)
    unseen = torch.zeros(1, FRAMES, 42, dtype=torch.bool)
    signal = model.control(joints, torch.eye(3)[None] * 40, reference, valid=unseen)
    condition = Condition.from_control(reference, signal.motion, signal.geometry)
    assert torch.equal(condition.motion[:, :, 0], reference)
    assert condition.motion[:, :, 1:].abs().max() == 0
    video = torch.cat([image[:, :, None], torch.zeros(1, 3, FRAMES - 1, HEIGHT, WIDTH)], dim=2)
    assert model.autoencoder.encode(video)[:, :, 1:].abs().max() > 0.01


def test_only_what_the_checkpoint_stores_is_trained(
    base: Path, train: Path, held_out: Path
) -> None:
    kwargs = {"base": str(base), "dtype": "bfloat16", "lora": {"rank": 2}}
    model = started(base, train, held_out, backbone={"name": "wan_i2v", "kwargs": kwargs})
    trained = {n for n, p in model.backbone.named_parameters() if p.requires_grad}
    assert trained == set(model.backbone.stored_state())
    assert all(p.requires_grad for p in model.control.parameters())


def test_the_velocity_loss_is_that_of_flow_matching(
    base: Path, train: Path, held_out: Path
) -> None:
    """Against the formula: mean squared difference of the transformer's answer and noise - clean,
    region weights (1 + M) on the frames that each latent stands for."""
    model = started(base, train, held_out).eval()
    weights = RegionWeights(hand=1.0, arm=0.0, object=0.0, uncovered=0.0)
    objective = WorldModelObjective(
        model.control,
        model.backbone,
        model.autoencoder,
        weights,
        NoiseSettings(pure=0.0, lowest=0.2),
        loss="velocity",
        reference_weight=1.0,
        pixel_weight=0.0,
    )
    torch.manual_seed(1)
    clean = torch.randn(1, 16, 3, HEIGHT // 8, WIDTH // 8)
    masks = torch.zeros(1, FRAMES, HEIGHT, WIDTH, dtype=torch.uint8)
    masks[:, 5:, :, : WIDTH // 2] = 1  # a hand in the frames of latent 2, left half
    batch = ClipBatch(
        video=torch.zeros(1, 1, 3, HEIGHT, WIDTH),
        masks=masks,
        joints=torch.rand(1, FRAMES, 42, 3) + 0.3,
        valid=torch.ones(1, FRAMES, 42, dtype=torch.bool),
        intrinsics=torch.tensor([[[40.0, 0, 31.5], [0, 40.0, 23.5], [0, 0, 1]]]),
        latents=clean,
        text=torch.randn(1, 512, 24),
        image=torch.randn(1, 5, 32),
    )
    generator = torch.Generator().manual_seed(7)
    sigma = objective.noise.draw(1, generator)
    noise = torch.randn(clean.shape, generator=generator)
    with torch.no_grad():
        condition = objective.condition(batch, clean[:, :, 0])
        noisy = (1 - sigma) * clean + sigma * noise
        velocity = (noisy - model.backbone(noisy, sigma, condition)) / sigma
        cells = torch.ones(1, 1, 3, HEIGHT // 8, WIDTH // 8)
        cells[:, :, 2, :, : WIDTH // 16] = 2.0
        cells[:, :, 1:] /= cells[:, :, 1:].mean()
        expected = (cells * (velocity - (noise - clean)).square()).mean()
        got = objective(batch, 0.0, torch.Generator().manual_seed(7))["loss"]
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
def test_noise_levels_follow_their_distribution(distribution: str) -> None:
    """Median and bounds: the shift moves the middle level from 1/2 to s / (1 + s)."""
    noise = NoiseSettings(pure=0.0, lowest=0.0, distribution=distribution, shift=3.0)
    levels = noise.draw(20_000, torch.Generator().manual_seed(0))
    assert abs(float(levels.median()) - 0.75) < 0.01
    assert levels.min() >= 0 and levels.max() <= 1
    # a quarter lies below the level that the distribution's quartile is shifted to
    quartile = 0.25 if distribution == "uniform" else float(torch.sigmoid(torch.tensor(-0.6745)))
    shifted = 3 * quartile / (1 + 2 * quartile)
    assert abs(float((levels < shifted).float().mean()) - 0.25) < 0.01


# ---------------------------------------------------------------------------------- cached windows


@pytest.fixture(scope="module")
def windows(base: Path, cache: ClipCache, tmp_path_factory: pytest.TempPathFactory) -> WindowCache:
    return build(base, cache, tmp_path_factory.mktemp("windows"))


def build(base: Path, cache: ClipCache, folder: Path, **changes: Any) -> WindowCache:
    index = window_starts(cache, FRAMES, WindowSettings(every=3))[:, None] + np.arange(FRAMES)
    options = {
        "autoencoder": WanAutoencoder(base=str(base)).eval(),
        "encoders": PartSpec(name="wan", kwargs={"base": str(base)}),
    }
    return WindowCache.build(cache, index, folder, **(options | changes))


def test_a_window_holds_what_the_model_would_compute(
    base: Path, cache: ClipCache, windows: WindowCache
) -> None:
    """Latents of the whole window, tokens of its first frame, embedding of the task under way."""
    assert windows.index[:, 0].tolist() == [0, 3, 14, 17, 28, 31]
    row = 3  # starts at frame 3 of the second episode
    batch = windows.gather(np.array([row]))
    frames = (
        torch.from_numpy(np.array(cache.images[17:26])).permute(3, 0, 1, 2)[None].float() / 127.5
        - 1
    )
    encoders = WanEncoders(base=str(base)).eval()
    with torch.no_grad():
        latents = WanAutoencoder(base=str(base)).encode(frames)
        tokens = encoders.encode_image(frames[:, :, 0])
        text = encoders.encode_text("the cup")
    torch.testing.assert_close(batch.latents, latents, atol=5e-3, rtol=2e-3)  # kept in float16
    torch.testing.assert_close(batch.image, tokens, atol=5e-3, rtol=2e-3)
    torch.testing.assert_close(batch.text, text)
    assert torch.equal(batch.video[:, 0], frames[:, :, 0])
    np.testing.assert_array_equal(batch.joints[0], cache.positions[17:26])
    assert cache.instruction(17) == "the cup" and cache.instruction(14 + 7) == "pick up the cup"


def test_windows_are_encoded_again_only_when_something_changed(
    base: Path, cache: ClipCache, windows: WindowCache, tmp_path: Path
) -> None:
    """The same autoencoder, encoders, frames and windows are reused; another autoencoder is not."""
    encoded = []
    build(base, cache, tmp_path, report=encoded.append)
    assert encoded
    encoded.clear()
    build(base, cache, tmp_path, report=encoded.append)
    assert not encoded
    other = WanAutoencoder(base=str(base)).eval()
    with torch.no_grad():
        next(other.parameters()).add_(0.01)
    changed = build(base, cache, tmp_path, autoencoder=other, report=encoded.append)
    assert encoded
    assert (changed.latents[:] != windows.latents[:]).any()
    encoded.clear()
    build(base, cache, tmp_path, autoencoder=other, encoders=None, report=encoded.append)
    assert encoded and not (tmp_path / "image.npy").exists()


def test_joints_and_prompts_are_left_out_as_often_as_asked(windows: WindowCache) -> None:
    augmentation = Augmentation(
        mirror=0.0, colour=0.0, hide_joints=0.0, hide_all=0.5, drop_prompt=0.25
    )
    sampler = WindowSampler(windows, np.random.default_rng(0), augmentation=augmentation)
    batch = sampler.sample(400)
    hidden = ~batch.valid.flatten(1).any(dim=1)
    empty = (batch.text == windows.text([""])).flatten(1).all(dim=1)
    assert 0.4 < float(hidden.float().mean()) < 0.6
    assert 0.17 < float(empty.float().mean()) < 0.33


def test_what_does_not_fit_cached_latents_is_refused(
    base: Path, train: Path, held_out: Path, windows: WindowCache
) -> None:
    """Each message names the setting and the remedy."""
    with pytest.raises(ValueError, match="set mirror and colour to 0"):
        WindowSampler(windows, np.random.default_rng(0), augmentation=Augmentation())
    with pytest.raises(ValueError, match="encoders need `windows`"):
        settings(base, train, held_out, windows=None)
    with pytest.raises(ValueError, match=r"stages\[0\].*frames must be num_frames \(9\)"):
        settings(base, train, held_out, stages=[{"frames": 5, "batch": 1}])
    with pytest.raises(ValueError, match="set pixel_weight to 0"):
        model = started(base, train, held_out)
        WorldModelObjective(
            model.control,
            model.backbone,
            model.autoencoder,
            None,
            NoiseSettings(),
            pixel_weight=1.0,
        )
    with pytest.raises(ValueError, match="give one of --autoencoder.*got none"):
        started(base, train, held_out, autoencoder=None)


def test_data_without_masks_train_when_nothing_is_weighed_by_them(
    base: Path, train: Path, tmp_path: Path
) -> None:
    """Real recordings have no masks: `weights: null` takes them, anything else says so."""
    reader = DatasetReader(train)
    episodes = [replace(reader.episode(i), masks=None) for i in range(2)]
    with pytest.raises(ValueError, match="set `weights: null`"):
        ClipCache.build(episodes, tmp_path / "a", width=WIDTH, height=HEIGHT)
    cache = ClipCache.build(episodes, tmp_path / "b", width=WIDTH, height=HEIGHT, masks=False)
    assert len(cache) == 2 and not cache.masks.any()
    config = wan_training(base, train, train, weights=None)
    assert parse(WorldModelTraining, config, "test").weights is None
    assert json.loads((tmp_path / "b" / "tasks.json").read_text())[0][1] == [7, "pick up the cup"]
