"""The published bundle becomes a checkpoint that imagines what the published inference would."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from published_bundle import (
    CONTROL,
    FRAMES,
    HEIGHT,
    INNER,
    RANK,
    WIDTH,
    Scene,
    dit_tensors,
    moving_scene,
    published_control,
    published_rollout,
    save_transformer,
    write_base,
    write_bundle,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from ego_world_model import cli
from ego_world_model.hands import HandTrajectory
from ego_world_model.world_model import CheckpointError, WorldModel
from ego_world_model.world_model.released import backbone_state, import_released

DIT = "dit.safetensors"
SIZE = {"num_frames": FRAMES, "height": HEIGHT, "width": WIDTH, "steps": 2, "guidance": 3.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("wan21"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("released") / "bundle", dit_tensors())


@pytest.fixture(scope="module")
def scene() -> Scene:
    return moving_scene()


@pytest.fixture(scope="module")
def published(base: Path, scene: Scene) -> Tensor:
    return published_rollout(base, scene, ["pick", "up", "the", "cup"])


def imagine(model: WorldModel, scene: Scene, prompt: str = "pick up the cup") -> Tensor:
    """The latents that the model decodes."""
    decoded = []
    decode = model.autoencoder.decode
    model.autoencoder.decode = lambda latents, frame: (
        decoded.append(latents) or decode(latents, frame)
    )
    times = np.arange(FRAMES) / model.config.fps
    trajectory = HandTrajectory(times, scene.joints, scene.valid)
    result = model.imagine(scene.image, trajectory, scene.camera, prompt=prompt, seed=0)
    model.autoencoder.decode = decode
    assert result.frames.shape == (1, FRAMES, HEIGHT, WIDTH, 3)
    return decoded[0]


# ---------------------------------------------------------------------------- what it imagines


@pytest.mark.parametrize("name", ["20_joints", "42_joints", "42_joints_missing"])
def test_the_formulation_used_here_is_the_published_one(shared: Path, name: str) -> None:
    """The control written in this test gives the published code's recorded outputs."""
    case = load_file(shared / "control_reference" / f"control_{name}.safetensors")
    weights = {k.removeprefix("weights."): v for k, v in case.items() if k.startswith("weights.")}
    inputs = (case[f"input.{n}"][0] for n in ("joints_cam", "intrinsics", "reference_latent"))
    motion, geometry = published_control(weights, *inputs)
    torch.testing.assert_close(motion, case["output.motion"], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(geometry, case["output.geometry"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prefix, infix", [("", ".default"), ("pipe.dit.", ".default"), ("", "")])
def test_a_guided_rollout_is_that_of_the_published_inference(
    base: Path, scene: Scene, published: Tensor, tmp_path: Path, prefix: str, infix: str
) -> None:
    """Two steps with guidance from one image, prompt and noise, whatever the keys' prefixes."""
    bundle = write_bundle(tmp_path / "bundle", dit_tensors(prefix, infix))
    import_released(bundle, base, tmp_path / "checkpoint", dtype=None, **SIZE)
    latents = imagine(WorldModel.from_pretrained(tmp_path / "checkpoint"), scene)
    torch.testing.assert_close(latents, published, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "mistake",
    [
        {"lora_scale": 0.9},
        {"motion_scale": 0.9},
        {"geometry_scale": 0.9},
        {"guidance": 2.9},
        {"crop": True},
    ],
    ids=str,
)
def test_the_comparison_would_notice(
    base: Path, scene: Scene, published: Tensor, mistake: dict[str, object]
) -> None:
    """A little less of any ingredient moves the latents far beyond the tolerance above."""
    wrong = published_rollout(base, scene, ["pick", "up", "the", "cup"], **mistake)
    assert (wrong - published).abs().max() > 1e-3


def test_the_prompt_counts(base: Path, bundle: Path, scene: Scene, tmp_path: Path) -> None:
    import_released(bundle, base, tmp_path / "checkpoint", dtype=None, **SIZE)
    model = WorldModel.from_pretrained(tmp_path / "checkpoint")
    assert (imagine(model, scene) - imagine(model, scene, "the cup")).abs().max() > 1e-3


def test_half_precision_is_the_default_and_runs(
    base: Path, bundle: Path, scene: Scene, published: Tensor, tmp_path: Path
) -> None:
    """Transformer and encoders in bfloat16 come near the full-precision rollout."""
    import_released(bundle, base, tmp_path / "checkpoint", **SIZE)
    model = WorldModel.from_pretrained(tmp_path / "checkpoint")
    assert model.backbone.transformer.blocks[0].attn1.to_q.weight.dtype == torch.bfloat16
    assert model.encoders.text_encoder.dtype == torch.bfloat16
    latents = imagine(model, scene)
    assert (latents - published).abs().mean() < 0.05 * published.abs().mean()


# ----------------------------------------------------------------------- what is read and written


def test_the_base_needs_no_weights_to_import(base: Path, bundle: Path, tmp_path: Path) -> None:
    """A 14B base neither has to fit into memory nor to be on the machine that imports."""
    shutil.copytree(base, tmp_path / "wan", ignore=shutil.ignore_patterns("*.safetensors"))
    import_released(bundle, tmp_path / "wan", tmp_path / "checkpoint", **SIZE)
    with pytest.raises(CheckpointError, match="vae is not a usable AutoencoderKLWan"):
        WorldModel.from_pretrained(tmp_path / "checkpoint")


def test_weights_are_stored_as_they_were_published(
    base: Path, bundle: Path, tmp_path: Path
) -> None:
    dit = {name: tensor.bfloat16() for name, tensor in dit_tensors().items()}
    half = write_bundle(tmp_path / "half", dit)
    import_released(half, base, tmp_path / "checkpoint", **SIZE)
    stored = load_file(tmp_path / "checkpoint" / "backbone.safetensors")
    assert len(stored) == len(dit)
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    patch = stored["transformer.patch_embedding.weight"]
    assert torch.equal(patch, dit["patch_embedding.weight"])


def test_a_whole_training_checkpoint_serves_as_well(
    base: Path, bundle: Path, tmp_path: Path
) -> None:
    """It holds the control module too, which is read from its own file, under either name."""
    control = load_file(bundle / CONTROL)
    other = tmp_path / "bundle"
    other.mkdir()
    save_file(dit_tensors("pipe.dit.") | {f"pipe.{k}": v for k, v in control.items()}, other / DIT)
    save_file(control, other / "hand_controller.safetensors")
    import_released(other, base, tmp_path / "checkpoint", **SIZE)
    stored = load_file(tmp_path / "checkpoint" / "control.safetensors")
    name = "joint_id_embed.weight"
    assert torch.equal(stored[name], control[f"hand_controler.{name}"])


def test_command(base: Path, bundle: Path, tmp_path: Path) -> None:
    """`import released` writes a checkpoint that loads, and says what it is."""
    out = tmp_path / "checkpoint"
    words = ["import", "released", bundle, "--base", base, "--out", out, "--frames", FRAMES]
    words += ["--height", HEIGHT, "--width", WIDTH, "--steps", 2, "--negative-prompt", "the"]
    result = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    assert f"9 frames of 64x32 at 16 Hz, LoRA of rank {RANK}" in result.output
    model = WorldModel.from_pretrained(out)
    assert (model.config.steps, model.config.shift, model.config.guidance) == (2, 5.0, 5.0)
    assert model.encoders.negative_prompt == "the"
    again = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert again.exit_code == 1 and "is in use; give a new or empty folder" in again.stderr


# --------------------------------------------------------------------------- what does not fit


def test_wrong_bundles_are_named(base: Path, bundle: Path, tmp_path: Path) -> None:
    def refused(dit: dict[str, Tensor]) -> str:
        other = write_bundle(tmp_path / "bundle", dit)
        with pytest.raises((ValueError, CheckpointError)) as error:
            import_released(other, base, tmp_path / "out", **SIZE)
        assert not (tmp_path / "out").exists(), "nothing is written after a mistake"
        return str(error.value)

    with pytest.raises(CheckpointError, match="hand-controller.safetensors not found"):
        import_released(tmp_path, base, tmp_path / "out")
    with pytest.raises(ValueError, match="unknown kind.*blocks.0.norm"):
        backbone_state({"blocks.0.norm.weight": torch.zeros(2)})
    dit, layer = dit_tensors(), "blocks.1.ffn.2.lora_A.default.weight"
    assert "missing ['transformer.blocks.1.ffn.net.2.lora_A" in refused(
        {name: tensor for name, tensor in dit.items() if name != layer}
    )
    assert f"several ranks: {{{RANK}:" in refused(dit | {layer: torch.zeros(RANK + 1, 48)})
    assert "wrong shapes" in refused(dit | {layer: torch.zeros(RANK, 47)})
    assert "twice" in refused(dit | {f"pipe.dit.{layer}": dit[layer].clone()})
    narrow = {"patch_embedding.weight": torch.zeros(INNER, 36, 1, 2, 2)}
    assert "it must read 52 channels" in refused(dit | narrow)
    with pytest.raises(CheckpointError, match="num_frames 10 must be 1 plus a multiple"):
        import_released(bundle, base, tmp_path / "out", **SIZE | {"num_frames": 10})


def test_other_models_are_refused_as_the_base(base: Path, bundle: Path, tmp_path: Path) -> None:
    """Text-to-video reads no condition, Wan 2.2 no image tokens, and one without encoders is half
    a base."""
    text_to_video = {"in_channels": 16, "image_dim": None, "added_kv_proj_dim": None}
    for changes in (text_to_video, {"image_dim": None, "added_kv_proj_dim": None}):
        other = tmp_path / f"wan{changes.get('in_channels', 36)}"
        shutil.copytree(base, other)
        save_transformer(other, **changes)
        with pytest.raises(CheckpointError, match="not those of Wan 2.1 image-to-video"):
            import_released(bundle, other, tmp_path / "out", **SIZE)
    shutil.copytree(base, tmp_path / "half", ignore=shutil.ignore_patterns("image_encoder"))
    with pytest.raises(CheckpointError, match="image_encoder is missing"):
        import_released(bundle, tmp_path / "half", tmp_path / "out", **SIZE)
    with pytest.raises(CheckpointError, match="transformer/config.json is missing"):
        import_released(bundle, tmp_path, tmp_path / "out", **SIZE)


@pytest.mark.parametrize("what", ["config", "weights"])
def test_a_checkpoint_refuses_another_base_in_the_place_of_its_own(
    base: Path, bundle: Path, tmp_path: Path, what: str
) -> None:
    """Also one with the same configs, as the 480p and 720p models have, that differs by weights."""
    wan = tmp_path / "wan"
    shutil.copytree(base, wan)
    import_released(bundle, wan, tmp_path / "checkpoint", dtype=None, **SIZE)
    WorldModel.from_pretrained(tmp_path / "checkpoint")
    torch.manual_seed(7)
    save_transformer(wan, **({"eps": 1e-5} if what == "config" else {}))
    with pytest.raises(CheckpointError, match="is not the base that .* was made on: transformer/"):
        WorldModel.from_pretrained(tmp_path / "checkpoint")


def test_a_base_that_moved_is_found_by_the_edited_path(
    base: Path, bundle: Path, tmp_path: Path
) -> None:
    """The record belongs to the part, not to the path."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(base, tmp_path / "wan")
    import_released(bundle, tmp_path / "wan", folder, dtype=None, **SIZE)
    (tmp_path / "wan").rename(folder / "wan")
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace(json.dumps(str(tmp_path / "wan")), '"wan"'))
    assert WorldModel.from_pretrained(folder).config.num_frames == FRAMES
