"""The published bundle on a Wan base with its text and image encoders, all small and random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedTokenizerFast,
    UMT5Config,
    UMT5EncoderModel,
)

from ego_world_model.hands import HandTrajectory
from ego_world_model.world_model import CheckpointError, JointControl, WorldModel
from ego_world_model.world_model.released import backbone_state, import_released
from ego_world_model.world_model.wan import LORA_TARGETS

TEXT, IMAGE, INNER, RANK = 24, 32, 64, 4
SIZE = {"fps": 16, "num_frames": 5, "height": 32, "width": 48, "steps": 2, "guidance": 3.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random Wan 2.1 I2V folder with every part of the published one."""
    folder = tmp_path_factory.mktemp("wan21")
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=8, num_res_blocks=1, dim_mult=[1, 2, 2, 2])
    vae.save_pretrained(folder / "vae")
    WanTransformer3DModel(
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=INNER // 2,
        ffn_dim=48,
        text_dim=TEXT,
        freq_dim=32,
        in_channels=36,
        out_channels=16,
        image_dim=IMAGE,
        added_kv_proj_dim=INNER,
    ).save_pretrained(folder / "transformer")
    text = UMT5Config(
        vocab_size=16, d_model=TEXT, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0
    )
    UMT5EncoderModel(text).save_pretrained(folder / "text_encoder")
    words = {w: i for i, w in enumerate(["<pad>", "<unk>", "pick", "up", "the", "cup", "bad"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder / "tokenizer")
    vision = CLIPVisionConfig(
        hidden_size=IMAGE,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    CLIPVisionModel(vision).save_pretrained(folder / "image_encoder")
    CLIPImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    ).save_pretrained(folder / "image_processor")
    return folder


@pytest.fixture(scope="module")
def bundle(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``dit.safetensors`` in the original names, and ``hand-controller.safetensors``."""
    folder = tmp_path_factory.mktemp("bundle")
    torch.manual_seed(1)
    control = JointControl(compat="released", occlusion="hard").state_dict()
    save_file({f"hand_controler.{k}": v for k, v in control.items()}, folder / CONTROL)
    original = {
        **{f"self_attn.{n}": (INNER, INNER) for n in "qkvo"},
        **{f"cross_attn.{n}": (INNER, INNER) for n in "qkvo"},
        "ffn.0": (INNER, 48),
        "ffn.2": (48, INNER),
    }
    tensors = {
        "patch_embedding.weight": 0.1 * torch.randn(INNER, 52, 1, 2, 2),
        "patch_embedding.bias": torch.zeros(INNER),
    }
    for block in range(2):
        for layer, (inputs, outputs) in original.items():
            name = f"blocks.{block}.{layer}"
            tensors[f"{name}.lora_A.default.weight"] = torch.randn(RANK, inputs)
            tensors[f"{name}.lora_B.default.weight"] = 0.1 * torch.randn(outputs, RANK)
    save_file(tensors, folder / "dit.safetensors")
    return folder


CONTROL = "hand-controller.safetensors"


def imagine(model: WorldModel, **options: object) -> np.ndarray:
    times = np.arange(5) / 16
    positions = np.zeros((5, 42, 3), np.float32)
    positions[..., 0] = np.linspace(-0.1, 0.1, 42) + 0.2 * times[:, None]
    positions[..., 2] = 0.5
    image = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)
    intrinsics = np.array([[45.0, 0, 23.5], [0, 45.0, 15.5], [0, 0, 1]])
    trajectory = HandTrajectory(times, positions)
    return model.imagine(image, trajectory, intrinsics, seed=0, **options).frames


def test_bundle_becomes_a_checkpoint_that_reads_prompts(
    base: Path, bundle: Path, tmp_path: Path
) -> None:
    model = import_released(bundle, base, tmp_path / "checkpoint", dtype=None, **SIZE)
    cup = imagine(model, prompt="pick up the cup")
    assert cup.shape == (1, 5, 32, 48, 3)
    assert (cup != imagine(model, prompt="bad")).any()
    assert (cup != imagine(model, prompt="pick up the cup", guidance=1.0)).any()
    again = WorldModel.from_pretrained(tmp_path / "checkpoint")
    assert again.config.guidance == 3.0
    np.testing.assert_array_equal(imagine(again, prompt="pick up the cup"), cup)


def test_lora_of_the_bundle_acts_on_the_layer_it_was_trained_on(
    base: Path, bundle: Path, tmp_path: Path
) -> None:
    """Each adapted layer computes W x + B A x with the tensors of the original name."""
    from safetensors.torch import load_file

    model = import_released(bundle, base, tmp_path / "checkpoint", dtype=None, **SIZE)
    dit = load_file(bundle / "dit.safetensors")
    blocks = model.backbone.transformer.blocks
    for layer, name in (
        (blocks[1].attn2.to_out[0], "blocks.1.cross_attn.o"),
        (blocks[0].attn1.to_k, "blocks.0.self_attn.k"),
        (blocks[0].ffn.net[0].proj, "blocks.0.ffn.0"),
    ):
        x = torch.randn(3, layer.in_features)
        a, b = (dit[f"{name}.lora_{side}.default.weight"] for side in "AB")
        expected = layer.base_layer(x) + x @ a.T @ b.T
        torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)
    assert len(LORA_TARGETS) == 6
    torch.testing.assert_close(
        model.backbone.transformer.patch_embedding.weight, dit["patch_embedding.weight"]
    )


def test_a_base_with_image_tokens_needs_its_image_encoder(
    base: Path, bundle: Path, tmp_path: Path
) -> None:
    options = SIZE | {"guidance": 1.0}
    model = import_released(bundle, base, tmp_path, encoders=False, dtype=None, **options)
    with pytest.raises(ValueError, match="image encoder"):
        imagine(model)


def test_wrong_bundles_are_named(base: Path, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="hand-controller.safetensors"):
        import_released(tmp_path, base, tmp_path / "out")
    with pytest.raises(ValueError, match="unknown kind.*blocks.0.norm"):
        backbone_state({"blocks.0.norm.weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="vae is missing"):
        import_released(bundle, tmp_path, tmp_path / "out", encoders=False)
