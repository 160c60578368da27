"""Published LoRA files beside ours: a distilled LoRA and the joint LoRA, both active."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from published_bundle import BLOCKS, LAYERS, RANK, save_transformer
from safetensors.torch import save_file
from torch import Tensor, nn

from ego_world_model.world_model.checkpoint import CheckpointError, LoraFile
from ego_world_model.world_model.loras import attach_loras
from ego_world_model.world_model.wan import WanI2VBackbone

ALPHA = 2.0


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    save_transformer(folder)
    return folder


def backbone_with_ours(base: Path) -> WanI2VBackbone:
    """Our LoRA away from its zero initialisation, the same each time."""
    torch.manual_seed(1)
    backbone = WanI2VBackbone(base=str(base), lora={"rank": 3}).eval()
    for name, parameter in backbone.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return backbone.requires_grad_(False)


def adapters() -> dict[str, tuple[Tensor, Tensor]]:
    """Original name of a layer → the two factors, of all layers in all blocks."""
    torch.manual_seed(2)
    return {
        f"blocks.{block}.{layer}": (torch.randn(RANK, inputs), 0.1 * torch.randn(outputs, RANK))
        for block in range(BLOCKS)
        for layer, (inputs, outputs, _) in LAYERS.items()
    }


def original_names(down: str, up: str, *, alpha: float | None = None) -> dict[str, Tensor]:
    """As published for the original Wan code, e.g. blocks.0.self_attn.q.lora_down.weight."""
    tensors = {}
    for name, (a, b) in adapters().items():
        tensors[f"diffusion_model.{name}.{down}.weight"] = a
        tensors[f"diffusion_model.{name}.{up}.weight"] = b
        if alpha is not None:
            tensors[f"diffusion_model.{name}.alpha"] = torch.tensor(alpha)
    return tensors


def diffusers_names() -> dict[str, Tensor]:
    """As diffusers saves a Wan LoRA, e.g. transformer.blocks.0.attn1.to_q.lora_A.weight."""
    renamed = {"self_attn": "attn1", "cross_attn": "attn2"}
    tensors = {}
    for name, (a, b) in adapters().items():
        _, block, kind, part = name.split(".")
        if kind == "ffn":
            layer = f"ffn.net.{'0.proj' if part == '0' else '2'}"
        else:
            layer = f"{renamed[kind]}.to_{'out.0' if part == 'o' else part}"
        for side, tensor in (("A", a), ("B", b)):
            tensors[f"transformer.blocks.{block}.{layer}.lora_{side}.weight"] = tensor
    return tensors


def merged(backbone: WanI2VBackbone, scale: float) -> WanI2VBackbone:
    """The LoRA written into the weights by hand: W + scale B A."""
    factors = adapters()
    for number, block in enumerate(backbone.transformer.blocks):
        for layer, (_, _, find) in LAYERS.items():
            a, b = factors[f"blocks.{number}.{layer}"]
            find(block).base_layer.weight += scale * b @ a
    return backbone


@torch.no_grad()
def velocity(backbone: WanI2VBackbone) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    config = backbone.transformer.config
    return backbone.transformer(
        torch.randn(1, config.in_channels, 3, 4, 8, generator=generator),
        torch.tensor([700.0]),
        torch.randn(1, 512, config.text_dim, generator=generator),
        torch.randn(1, 5, config.image_dim, generator=generator),
        return_dict=False,
    )[0]


def attached(base: Path, path: Path, scale: float) -> WanI2VBackbone:
    backbone = backbone_with_ours(base)
    attach_loras(backbone, [LoraFile(path=str(path), name="fast", scale=scale)])
    return backbone


@pytest.mark.parametrize(
    ("tensors", "factor"),
    [
        (diffusers_names(), 1.0),
        (original_names("lora_A", "lora_B"), 1.0),
        (original_names("lora_down", "lora_up", alpha=ALPHA), ALPHA / RANK),
    ],
    ids=["diffusers", "original", "original_with_alpha"],
)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_lora_file_adds_to_ours_what_merging_it_by_hand_adds(
    tensors: dict[str, Tensor], factor: float, scale: float, base: Path, tmp_path: Path
) -> None:
    """In each published naming, at its own scale, while ours stays active at 1."""
    save_file(tensors, tmp_path / "fast.safetensors")
    ours = velocity(backbone_with_ours(base))
    both = velocity(attached(base, tmp_path / "fast.safetensors", scale))
    by_hand = velocity(merged(backbone_with_ours(base), scale * factor))
    torch.testing.assert_close(both, by_hand, atol=2e-4, rtol=1e-3)
    assert (both - ours).abs().max() > 0.05
    plain = WanI2VBackbone(base=str(base)).eval()
    assert (ours - velocity(plain)).abs().max() > 0.01  # ours does something too


def test_a_lora_of_the_input_layer_ignores_the_channels_that_we_added(
    base: Path, tmp_path: Path
) -> None:
    """A file made for the 36 channels of the base, on our layer that reads 52."""
    narrow = torch.randn(RANK, 36, 1, 2, 2)
    up = 0.1 * torch.randn(64, RANK, 1, 1, 1)
    name = "transformer.patch_embedding"
    file = diffusers_names() | {f"{name}.lora_A.weight": narrow, f"{name}.lora_B.weight": up}
    save_file(file, tmp_path / "fast.safetensors")
    both = velocity(attached(base, tmp_path / "fast.safetensors", 1.0))
    expected = merged(backbone_with_ours(base), 1.0)
    conv = expected.transformer.patch_embedding
    conv.weight[:, :36] += torch.einsum("or,ritph->oitph", up[:, :, 0, 0, 0], narrow)
    torch.testing.assert_close(both, velocity(expected), atol=2e-4, rtol=1e-3)


def test_several_files_are_active_at_once(base: Path, tmp_path: Path) -> None:
    save_file(diffusers_names(), tmp_path / "one.safetensors")
    save_file(original_names("lora_A", "lora_B"), tmp_path / "two.safetensors")
    backbone = backbone_with_ours(base)
    one = LoraFile(path=str(tmp_path / "one.safetensors"), name="one", scale=0.3)
    two = replace(one, path=str(tmp_path / "two.safetensors"), name="two", scale=0.4)
    attach_loras(backbone, [one, two])
    by_hand = velocity(merged(backbone_with_ours(base), 0.7))
    torch.testing.assert_close(velocity(backbone), by_hand, atol=2e-4, rtol=1e-3)


def test_files_that_cannot_be_used_are_named(base: Path, tmp_path: Path) -> None:
    def refused(tensors: dict[str, Tensor] | None, message: str, name: str = "fast") -> None:
        path = tmp_path / "lora.safetensors"
        path.unlink(missing_ok=True)
        if tensors is not None:
            save_file(tensors, path)
        backbone = WanI2VBackbone(base=str(base), lora={"rank": 3})
        with pytest.raises(CheckpointError, match=message):
            attach_loras(backbone, [LoraFile(path=str(path), name=name)])

    refused(None, "lora.safetensors is missing")
    refused({"unet.lora_A.weight": torch.zeros(2, 2)}, "holds no layer of a Wan transformer")
    wrong = {k: torch.zeros(7, 7) for k in diffusers_names()}
    refused(wrong, "does not fit this transformer")
    refused(diffusers_names(), "'joints', which is our own", name="joints")
    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(CheckpointError, match="text.safetensors does not fit"):
        attached(base, tmp_path / "text.safetensors", 1.0)


def test_a_backbone_that_is_no_published_transformer_takes_none(tmp_path: Path) -> None:
    from ego_world_model.world_model.backbones import WanBackbone

    with pytest.raises(CheckpointError, match="WanBackbone is not built on a published Wan"):
        attach_loras(WanBackbone(), [LoraFile(path="any.safetensors", name="fast")])
