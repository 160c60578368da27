"""Small random feature networks with the files, calls and layouts of the published ones."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
)


class Inception(nn.Module):
    """(N, 3, H, W) uint8 → (N, 24) features, or logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 24, 8, stride=4)
        self.head = nn.Linear(24, 5)

    def forward(self, img: Tensor, return_features: bool = False, use_fp16: bool = False) -> Tensor:
        x = interpolate(img.to(torch.float32) / 127.5 - 1, size=(48, 48), mode="bilinear")
        features = torch.relu(self.layer(x)).mean([2, 3])
        return features if return_features else self.head(features)


class Vgg(nn.Module):
    """(N, 3, H, W) in 8-bit levels → (N, D) whose squared differences sum to the distance."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 5, stride=2)

    def forward(
        self,
        img: Tensor,
        resize_images: bool = True,
        return_features: bool = False,
        return_lpips: bool = False,
    ) -> Tensor:
        if resize_images:
            img = interpolate(img, size=(224, 224), mode="area")
        maps = torch.relu(self.layer(img / 127.5 - 1))
        if return_lpips:
            return maps.flatten(1) / float(maps.shape[2] * maps.shape[3]) ** 0.5
        return maps.mean([2, 3])


class I3d(nn.Module):
    """(N, 3, T, H, W) float → (N, 16) features; frames may not be fewer than ten."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv3d(3, 16, (10, 8, 8), stride=(1, 4, 4))

    def forward(
        self,
        x: Tensor,
        rescale: bool = False,
        resize: bool = False,
        return_features: bool = False,
    ) -> Tensor:
        if resize:
            x = interpolate(x, size=(x.shape[2], 32, 32), mode="trilinear")
        if rescale:
            x = x / 127.5 - 1
        features = torch.relu(self.layer(x)).mean([2, 3, 4])
        return features if return_features else features.softmax(1)


def write_networks(folder: Path) -> Path:
    """All four networks in ``folder``, with random weights."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    for file, module in (
        ("inception-2015-12-05.pt", Inception()),
        ("vgg16.pt", Vgg()),
        ("i3d_torchscript.pt", I3d()),
    ):
        torch.jit.script(module.eval()).save(str(folder / file))
    _write_clip(folder / "clip")
    return folder


def _write_clip(folder: Path) -> None:
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir()
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({token: k for k, token in enumerate(tokens)}))
    merges.write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(vocabulary), str(merges))
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    small = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text = {
        "vocab_size": len(tokens),
        "max_position_embeddings": 16,
        "bos_token_id": len(tokens) - 2,
        "eos_token_id": len(tokens) - 1,
        "pad_token_id": len(tokens) - 1,
    }
    config = CLIPConfig(
        text_config=small | text,
        vision_config=small | {"image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(folder)
