"""Controls at equal budget: same start, same clips, finished runs kept, paired differences."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_clips import NAMES, synthetic_episode

from ego_world_model.data import DatasetWriter
from ego_world_model.hands import EXTRA_SLOTS
from ego_world_model.training import ablation, config
from ego_world_model.training.ablation import Ablation, Method, run_ablation
from ego_world_model.training.ablation_report import Comparison, write_report
from ego_world_model.training.clips import ClipCache
from ego_world_model.training.latents import LatentSampler, encode_frames
from ego_world_model.training.loop import LoopSettings
from ego_world_model.world_model.autoencoders import FrameAutoencoder
from ego_world_model.world_model.checkpoint import PartSpec
from ego_world_model.world_model.parts import CONTROLS

CONFIG = Path(__file__).resolve().parent.parent / "config" / "training" / "ablation.yaml"


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> ClipCache:
    episodes = [synthetic_episode(seed, frames=12) for seed in range(2)]
    folder = tmp_path_factory.mktemp("cache")
    return ClipCache.build(episodes, folder, width=64, height=48, extra_slots=EXTRA_SLOTS)


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> Ablation:
    """Two methods of two training steps on three synthetic episodes."""
    root = tmp_path_factory.mktemp("data") / "episodes"
    episodes = [synthetic_episode(seed, frames=20) for seed in range(3)]
    first = episodes[0]
    with DatasetWriter(
        root,
        embodiment=first.embodiment,
        fps=first.fps,
        camera=first.camera,
        joint_names=first.joint_names,
        slot_names=NAMES,
        depth=False,
    ) as writer:
        for episode in episodes:
            writer.write(episode)
    transformer = {
        "num_layers": 1,
        "num_attention_heads": 1,
        "attention_head_dim": 16,
        "ffn_dim": 16,
    }
    small = {"channels": 8, "stem_blocks": 1, "head_blocks": 1, "transformer": transformer}
    return Ablation(
        train=str(root),
        tests=(str(root),),
        clips=3,
        extra_slots=EXTRA_SLOTS,
        backbone=PartSpec(name="wan", kwargs={"latent_channels": 12, **small}),
        loop=LoopSettings(max_steps=2, warmup_steps=1, precision="fp32"),
        batch=2,
        methods=(
            Method(name="ours", about="ours", control=PartSpec(name="joint"), seeds=(0, 1)),
            Method(name="masks", about="masks", control=PartSpec(name="mask_hand")),
        ),
    )


def test_runs_grow_a_table_and_are_not_repeated(settings: Ablation, tmp_path: Path) -> None:
    """Every method of the config is trained and measured once; the report has its row."""
    results, said = tmp_path / "results", []
    run_ablation(settings, tmp_path / "run", results, only=("masks",), report=said.append)
    assert [path.name for path in results.iterdir()] == ["masks-0.json"]
    before = (results / "masks-0.json").stat().st_mtime_ns
    write_report(settings, results, tmp_path / "report.md", command="the command")
    assert "1 of 3 runs" in (tmp_path / "report.md").read_text()
    assert "| masks |" not in (tmp_path / "report.md").read_text()  # nothing to compare it with

    run_ablation(settings, tmp_path / "run", results, report=said.append)
    assert {path.name for path in results.iterdir()} == {
        "masks-0.json",
        "ours-0.json",
        "ours-1.json",
    }
    assert (results / "masks-0.json").stat().st_mtime_ns == before
    result = json.loads((results / "ours-1.json").read_text())
    assert result["steps"] == 2 and len(result["clips"]) == 3
    assert all(clip["hand_psnr"] > 0 for clip in result["clips"])
    write_report(settings, results, tmp_path / "report.md", command="the command")
    report = (tmp_path / "report.md").read_text()
    assert "3 of 3 runs" in report and "| ours | 2 |" in report and "| masks | 1 |" in report


def test_an_interrupted_run_leaves_no_result_and_goes_on(
    settings: Ablation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop in the middle of training keeps the state, and the next call ends the run."""
    only_ours = replace(settings, methods=settings.methods[:1])
    run = ablation.Trainer.run
    monkeypatch.setattr(
        ablation.Trainer, "run", lambda trainer: run(trainer, stop=lambda step: step == 1)
    )
    with pytest.raises(KeyboardInterrupt):
        run_ablation(only_ours, tmp_path / "run", tmp_path / "results", report=lambda line: None)
    assert not list((tmp_path / "results").iterdir())
    monkeypatch.undo()
    said: list[str] = []
    run_ablation(only_ours, tmp_path / "run", tmp_path / "results", report=said.append)
    assert any(line.startswith("resumed at step 1") for line in said)
    assert (tmp_path / "results" / "ours-0.json").is_file()


def test_an_unknown_method_is_named(settings: Ablation, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ourz; the config has ours, masks"):
        run_ablation(settings, tmp_path, tmp_path, only=("ourz",))


def test_all_methods_start_from_the_same_backbone(settings: Ablation, tmp_path: Path) -> None:
    """Controls draw different random numbers; the backbones beside them must not differ."""
    bench = ablation._Bench(settings, tmp_path, lambda line: None)
    ours, masks = (bench._model(method, 7).backbone.state_dict() for method in settings.methods)
    for name, value in ours.items():
        assert torch.equal(value, masks[name]), name
    other = bench._model(settings.methods[0], 8).backbone.state_dict()
    assert any(not torch.equal(value, other[name]) for name, value in ours.items())


def test_the_shipped_config_names_known_controls_and_three_seeds_for_the_ablation() -> None:
    shipped = config.load(Ablation, CONFIG, {})
    assert {method.control.name for method in shipped.methods} <= set(CONTROLS)
    seeds = {method.name: len(method.seeds) for method in shipped.methods}
    assert all(seeds[name] >= 3 for name in ("ours", "oca", "oca_op"))
    runs = list(shipped.runs())
    assert len(runs) == sum(seeds.values())
    assert len({method.name for method, _ in runs[: len(seeds)]}) == len(seeds)  # one each first


def test_latents_are_encoded_once_and_again_for_another_autoencoder(
    cache: ClipCache, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    autoencoder = FrameAutoencoder(latent_channels=4, channels=(8, 16, 16)).eval()
    latents = encode_frames(cache, autoencoder, tmp_path)
    frames = torch.from_numpy(np.array(cache.images[3:5])).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        expected = autoencoder.encode_frames(frames).numpy()
    np.testing.assert_allclose(latents[3:5], expected, atol=2e-3)
    written = (tmp_path / "latents.npy").stat().st_mtime_ns
    encode_frames(cache, autoencoder, tmp_path)
    assert (tmp_path / "latents.npy").stat().st_mtime_ns == written
    with torch.no_grad():
        autoencoder.encoder.out.bias.add_(1.0)
    assert not np.allclose(encode_frames(cache, autoencoder, tmp_path)[3:5], expected, atol=1e-2)


def test_clips_of_latents_stay_within_an_episode(cache: ClipCache) -> None:
    """A clip's frames are evenly spaced frames of one episode, with that episode's camera."""
    index = np.arange(len(cache.images), dtype=np.float16).reshape(-1, 1, 1, 1)
    sampler = LatentSampler(cache, index, np.random.default_rng(0), frames=4, stride=3)
    clips = sampler.sample(64)
    frames = clips.latents[:, 0, :, 0, 0].numpy().astype(int)
    assert (np.diff(frames, axis=1) == 3).all()
    assert (frames // 12 == frames[:, :1] // 12).all()  # episodes have 12 frames
    np.testing.assert_array_equal(clips.joints.numpy(), cache.positions[frames])
    with pytest.raises(ValueError, match="no episode has the 13 frames"):
        LatentSampler(cache, index, np.random.default_rng(0), frames=5, stride=3)


def _result(method: str, seed: int, values: list[float | None]) -> dict:
    clips = [
        {
            "data": "held_out",
            "episode": number // 2,
            "first_frame": number,
            "heavy": number < 2,
            "hand_psnr": value,
        }
        for number, value in enumerate(values)
    ]
    return {"method": method, "seed": seed, "clips": clips}


def test_differences_are_paired_by_clip_and_seed() -> None:
    """Clips differ far more than methods; a paired difference must not see that."""
    base = [10.0, 30.0, 20.0, None, 40.0, 15.0]
    worse = [None if value is None else value - 0.5 for value in base]
    comparison = Comparison(
        [
            _result("ours", 0, base),
            _result("ours", 1, [None if value is None else value + 3 for value in base]),
            _result("peer", 0, worse),
        ]
    )
    difference = comparison.difference("peer", "ours", "hand_psnr")
    assert (difference.mean, difference.low, difference.high) == pytest.approx((0.5, 0.5, 0.5))
    assert (difference.clips, difference.seeds) == (
        5,
        1,
    )  # seed 1 has no partner, one clip no value
    assert comparison.value("ours", "hand_psnr", "occlusion-heavy").mean == pytest.approx(21.5)
    assert comparison.value("ours", "hand_psnr", "plain").clips == 3
    assert comparison.seed_spread("ours", "hand_psnr") == pytest.approx(3 / np.sqrt(2))
    assert np.isnan(comparison.seed_spread("peer", "hand_psnr"))
