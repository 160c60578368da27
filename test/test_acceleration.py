"""diffusers' levers for speed and memory on a small random Wan folder: each runs, and computes what
the plain model computes, as far as it claims to.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from published_bundle import FRAMES, HEIGHT, WIDTH, moving_scene, save_transformer, write_base
from safetensors.torch import save_file

from ego_world_model.hands import HandTrajectory
from ego_world_model.world_model import (
    CheckpointError,
    ImaginationCancelled,
    WorldModel,
    WorldModelConfig,
)
from ego_world_model.world_model.acceleration import (
    Acceleration,
    CacheSpec,
    GroupOffload,
    accelerate,
)
from ego_world_model.world_model.backbones import Condition
from ego_world_model.world_model.checkpoint import PartSpec
from ego_world_model.world_model.svd import UNetBackbone

BLOCKS, STEPS = 4, 6
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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """On a small Wan 2.1 folder whose transformer has four blocks; our LoRA away from zero."""
    folder = tmp_path_factory.mktemp("accelerated")
    base = write_base(folder / "base")
    save_transformer(base, num_layers=BLOCKS)
    model = WorldModel(
        WorldModelConfig(
            fps=16,
            num_frames=FRAMES,
            height=HEIGHT,
            width=WIDTH,
            autoencoder=PartSpec(name="wan", kwargs={"base": str(base)}),
            backbone=PartSpec(name="wan_i2v", kwargs={"base": str(base), "lora": {"rank": 2}}),
            encoders=PartSpec(name="wan", kwargs={"base": str(base)}),
            steps=STEPS,
            shift=3.0,
        )
    )
    torch.manual_seed(3)
    for name, parameter in model.backbone.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder / "checkpoint")
    return folder / "checkpoint"


@pytest.fixture(scope="module")
def plain(checkpoint: Path) -> WorldModel:
    return WorldModel.from_pretrained(checkpoint)


def load(checkpoint: Path, **levers: object) -> WorldModel:
    return WorldModel.from_pretrained(checkpoint, acceleration=Acceleration(**levers))


def imagine(model: WorldModel, **options: object) -> np.ndarray:
    """(1, T, h, w, 3) as integers."""
    scene = moving_scene()
    motion = HandTrajectory(np.arange(FRAMES) / 16, scene.joints, scene.valid)
    options = {"seed": 0} | options
    return model.imagine(scene.image, motion, scene.camera, **options).frames.astype(int)


GUIDED = {"prompt": "pick up the cup", "guidance": 3.0, "control_guidance": 2.0}


@contextmanager
def counted_blocks(model: WorldModel) -> Iterator[Counter]:
    """How often each part of the transformer's blocks really computes."""
    calls: Counter = Counter()
    handles = []
    for number, block in enumerate(model.backbone.transformer.blocks):
        for name in ("attn1", "ffn"):
            # One level below, as a cache takes the place of the module's own forward.
            inner = getattr(block, name)
            inner = inner.to_q if name == "attn1" else inner.net[0]

            def count(*_: object, key: tuple[str, int] = (name, number)) -> None:
                calls[key] += 1

            handles.append(inner.register_forward_hook(count))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


# ------------------------------------------------------------------------------------- caches

EXACT = {
    "first_block": {"threshold": 0.0},
    "taylorseer": {"cache_interval": 1},
    "mag": {"threshold": 0.0, "mag_ratios": [1.1]},
    "pyramid": {"spatial_attention_block_skip_range": 1},
}
REUSING = {
    "first_block": {"threshold": 10.0},
    "taylorseer": {"cache_interval": 3, "disable_cache_before_step": 2},
    "mag": {"threshold": 1.0, "mag_ratios": [1.0], "max_skip_steps": 2},
    "pyramid": {
        "spatial_attention_block_skip_range": 2,
        "spatial_attention_timestep_skip_range": [0, 1001],
    },
}


@pytest.mark.parametrize("name", EXACT)
def test_a_cache_that_may_reuse_nothing_changes_nothing(
    name: str, checkpoint: Path, plain: WorldModel
) -> None:
    model = load(checkpoint, cache=CacheSpec(name=name, kwargs=EXACT[name]))
    options = {} if name == "pyramid" else GUIDED
    with counted_blocks(model) as calls:
        frames = imagine(model, **options)
    np.testing.assert_array_equal(frames, imagine(plain, **options))
    assert set(calls.values()) == {STEPS * (3 if options else 1)}
    assert len(calls) == 2 * BLOCKS


@pytest.mark.parametrize(
    ("name", "saved"),
    [("first_block", "ffn"), ("taylorseer", "attn1"), ("mag", "ffn"), ("pyramid", "attn1")],
)
def test_a_cache_saves_work_and_forgets_it_between_rollouts(
    name: str, saved: str, checkpoint: Path, plain: WorldModel
) -> None:
    """Fewer evaluations, frames near the plain ones, and the same from every rollout."""
    model = load(checkpoint, cache=CacheSpec(name=name, kwargs=REUSING[name]))
    with counted_blocks(model) as calls:
        frames = imagine(model)
    assert calls[saved, BLOCKS - 1] < STEPS
    difference = np.abs(frames - imagine(plain)).mean()
    assert 0 < difference < 5, difference
    imagine(model, seed=7)
    with pytest.raises(ImaginationCancelled):
        imagine(model, seed=8, on_step=lambda step, steps: step < 3)
    np.testing.assert_array_equal(imagine(model), frames)


@pytest.mark.parametrize("name", ["first_block", "taylorseer", "mag"])
def test_branches_of_guidance_do_not_share_what_a_cache_keeps(name: str, checkpoint: Path) -> None:
    """With every scale near 1, guided frames are those without guidance, cache or not."""
    model = load(checkpoint, cache=CacheSpec(name=name, kwargs=REUSING[name]))
    nearly = {"prompt": "pick up the cup", "guidance": 1 + 1e-6, "control_guidance": 1 + 1e-6}
    alone = imagine(model, prompt="pick up the cup")
    assert np.abs(imagine(model, **nearly) - alone).max() <= 1


def test_pyramid_refuses_the_branches_that_it_would_mix(checkpoint: Path) -> None:
    model = load(checkpoint, cache=CacheSpec(name="pyramid", kwargs=REUSING["pyramid"]))
    with pytest.raises(ValueError, match="'pyramid' keeps one state.*first_block"):
        imagine(model, **GUIDED)


def test_mag_follows_the_number_of_steps(checkpoint: Path) -> None:
    """Its ratios are spread over the steps of each call, whatever the checkpoint's are."""
    model = load(checkpoint, cache=CacheSpec(name="mag", kwargs=REUSING["mag"]))
    imagine(model, steps=10)
    with counted_blocks(model) as calls:
        imagine(model, steps=4)
    with counted_blocks(model) as again:
        imagine(model, steps=4)
    assert calls == again
    assert calls["ffn", 0] < 4


# --------------------------------------------------------------------------- the other levers


def test_compiled_blocks_compute_the_same(checkpoint: Path, plain: WorldModel) -> None:
    # All of torch.compile but the C++ compiler, which takes minutes on a busy machine.
    model = load(checkpoint, compile={"fullgraph": True, "backend": "aot_eager"})
    frames = imagine(model, **GUIDED)
    blocks = model.backbone.transformer.blocks
    assert all(block._compiled_call_impl is not None for block in blocks)
    assert np.abs(frames - imagine(plain, **GUIDED)).max() <= 1


def test_layerwise_casting_stores_a_quarter_and_stays_close(
    checkpoint: Path, plain: WorldModel, tmp_path: Path
) -> None:
    model = load(checkpoint, layerwise_casting="float8_e4m3fn")
    block = model.backbone.transformer.blocks[0]
    assert block.attn1.to_q.base_layer.weight.dtype == torch.float8_e4m3fn
    assert block.attn1.to_q.lora_A["joints"].weight.dtype == torch.float32
    difference = np.abs(imagine(model) - imagine(plain)).mean()
    assert 0 < difference < 5, difference
    with pytest.raises(ValueError, match="layerwise_casting.*load the checkpoint without"):
        model.save_pretrained(tmp_path)


@pytest.mark.parametrize("offload_type", ["block_level", "leaf_level"])
def test_group_offload_computes_the_same(
    offload_type: str, checkpoint: Path, plain: WorldModel
) -> None:
    """From and to the CPU, as far as a machine without another device can tell."""
    model = load(checkpoint, group_offload=GroupOffload(offload_type=offload_type))
    hooked = [m for m in model.modules() if "group_offloading" in hooks(m)]
    parts = (model.backbone.transformer, model.encoders.text_encoder, model.encoders.image_encoder)
    assert all(any(m in hooked for m in part.modules()) for part in parts)
    assert not any(m in hooked for m in model.autoencoder.modules())
    np.testing.assert_array_equal(imagine(model, **GUIDED), imagine(plain, **GUIDED))


def hooks(module: torch.nn.Module) -> set[str]:
    return set(module._diffusers_hook.hooks) if hasattr(module, "_diffusers_hook") else set()


def test_offloaded_weights_stay_where_they_are_when_the_rest_moves(checkpoint: Path) -> None:
    """Moving the model to a device, here "meta", leaves to offloading what it manages."""
    model = load(checkpoint, group_offload=GroupOffload())
    model._move("meta", [model.backbone.transformer, model.encoders.text_encoder])
    assert model.device.type == "meta"
    assert model.encoders.place.device.type == "meta"
    for kept in (model.backbone.transformer, model.encoders.text_encoder):
        assert {p.device.type for p in kept.parameters()} == {"cpu"}


def test_streams_need_an_accelerator(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="group_offload does not run on cpu"):
        load(checkpoint, group_offload=GroupOffload(use_stream=True))


def test_an_attention_backend_is_used(checkpoint: Path, plain: WorldModel) -> None:
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    before = _AttentionBackendRegistry.get_active_backend()[0]
    try:
        model = load(checkpoint, attention_backend="_native_math")
        processor = model.backbone.transformer.blocks[0].attn1.processor
        assert processor._attention_backend == AttentionBackendName._NATIVE_MATH
        frames = imagine(model, **GUIDED)
    finally:
        _AttentionBackendRegistry.set_active_backend(before)
    assert np.abs(frames - imagine(plain, **GUIDED)).max() <= 1


def test_levers_work_together(checkpoint: Path, plain: WorldModel) -> None:
    model = load(
        checkpoint,
        cache=CacheSpec(name="first_block", kwargs={"threshold": 10.0}),
        layerwise_casting="float8_e4m3fn",
        group_offload=GroupOffload(num_blocks_per_group=2),
    )
    with counted_blocks(model) as calls:
        frames = imagine(model, **GUIDED)
    assert calls["ffn", 0] == 3 * STEPS > calls["ffn", 1]
    assert np.abs(frames - imagine(plain, **GUIDED)).mean() < 10


def test_the_small_backbone_takes_what_fits_it() -> None:
    """Our own attention of "tiny" cannot be replaced; its blocks can be skipped."""
    tiny = WorldModel.from_pretrained(
        "tiny", acceleration=Acceleration(cache=CacheSpec(name="first_block"))
    )
    assert tiny.config.acceleration.cache.name == "first_block"
    with pytest.raises(
        ValueError, match="attention_backend: this backbone's WanTransformer3DModel"
    ):
        WorldModel.from_pretrained("tiny", acceleration=Acceleration(attention_backend="native"))


def test_the_u_net_takes_casting_and_offloading_only() -> None:
    torch.manual_seed(0)
    motion, noisy = torch.randn(2, 1, 4, 3, 8, 12).unbind()
    condition = Condition(motion[:, :, 0], motion, torch.randn(1, 16, 3, 8, 12))

    def clean(**levers: object) -> torch.Tensor:
        torch.manual_seed(1)
        backbone = UNetBackbone(settings=UNET).eval()
        accelerate(backbone, None, Acceleration(**levers), "cpu")
        with torch.inference_mode():
            return backbone(noisy, torch.tensor([0.5]), condition)

    plain = clean()
    assert torch.equal(clean(group_offload=GroupOffload()), plain)
    cast = clean(layerwise_casting="float8_e4m3fn")
    assert 0 < (cast - plain).abs().mean() < 0.05 * plain.abs().mean()
    for lever in ({"cache": CacheSpec(name="mag")}, {"compile": {}}, {"attention_backend": "flex"}):
        with pytest.raises(ValueError, match=f"{next(iter(lever))}: .*leave it out"):
            clean(**lever)


# -------------------------------------------------------------------------------------- config


def test_a_checkpoint_names_lora_files_beside_it(
    checkpoint: Path, plain: WorldModel, tmp_path: Path
) -> None:
    """They act at their scale, and a model that carries them is not saved as if they were ours."""
    names = [f"transformer.blocks.0.ffn.net.2.lora_{side}.weight" for side in "AB"]
    torch.manual_seed(4)
    save_file(dict(zip(names, [torch.randn(2, 48), torch.randn(64, 2)])), tmp_path / "fast")
    (tmp_path / "checkpoint").mkdir()
    document = json.loads((checkpoint / "config.json").read_text())
    document["model"]["loras"] = [{"path": "../fast", "name": "fast", "scale": 0.5}]
    model = WorldModel.from_pretrained(copy_of(checkpoint, tmp_path / "checkpoint", document))
    assert (imagine(model) != imagine(plain)).any()
    with pytest.raises(ValueError, match="loras.*load the checkpoint without them"):
        model.save_pretrained(tmp_path / "saved")
    model.backbone.transformer.set_adapters(["joints", "fast"], weights=[1.0, 0.0])
    np.testing.assert_array_equal(imagine(model), imagine(plain))


def test_the_checkpoint_may_declare_its_acceleration(checkpoint: Path, tmp_path: Path) -> None:
    """As JSON; the argument of from_pretrained takes its place."""
    document = json.loads((checkpoint / "config.json").read_text())
    document["model"]["acceleration"] = {
        "cache": {"name": "first_block", "kwargs": {"threshold": 0.1}},
        "group_offload": {"offload_type": "leaf_level"},
    }
    declared = copy_of(checkpoint, tmp_path, document)
    model = WorldModel.from_pretrained(declared)
    assert model.config.acceleration == Acceleration(
        cache=CacheSpec(name="first_block", kwargs={"threshold": 0.1}),
        group_offload=GroupOffload(offload_type="leaf_level"),
    )
    assert model.backbone.transformer.is_cache_enabled
    none = WorldModel.from_pretrained(declared, acceleration=Acceleration())
    assert not none.backbone.transformer.is_cache_enabled


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cache": {"name": "magic"}}, "unknown cache 'magic'; known: first_block, mag"),
        ({"caches": {}}, "acceleration: unknown options caches; known: cache, compile"),
        ({"group_offload": {"level": 1}}, "acceleration.group_offload: unknown options level"),
        ({"compile": {"speed": 9}}, "unknown compile options speed"),
        ({"layerwise_casting": "int4"}, "layerwise_casting must be float8_e4m3fn or"),
        ({"group_offload": {"offload_type": "all"}}, "offload_type must be block_level or"),
    ],
)
def test_unknown_options_are_named(
    given: dict, message: str, checkpoint: Path, tmp_path: Path
) -> None:
    document = json.loads((checkpoint / "config.json").read_text())
    document["model"]["acceleration"] = given
    with pytest.raises(CheckpointError, match=message):
        WorldModel.from_pretrained(copy_of(checkpoint, tmp_path, document))


def test_unknown_options_of_a_cache_are_named(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="'first_block': unknown options limit; known: threshold"):
        load(checkpoint, cache=CacheSpec(name="first_block", kwargs={"limit": 1}))


def test_a_cache_that_finds_no_layer_says_so(checkpoint: Path) -> None:
    spec = CacheSpec(name="taylorseer", kwargs={"cache_identifiers": ["layers.*"]})
    with pytest.raises(ValueError, match="'taylorseer': its options match no layer"):
        load(checkpoint, cache=spec)


def test_an_attention_backend_that_is_not_installed_says_so(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="attention_backend 'xformers' does not run here"):
        load(checkpoint, attention_backend="xformers")


def copy_of(checkpoint: Path, folder: Path, document: dict) -> Path:
    """The checkpoint with another config.json."""
    for path in checkpoint.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(document))
    return folder
