"""A saved checkpoint explains itself: README.md comes from config.json, never over a person's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ego_world_model.world_model import WorldModel, WorldModelConfig
from ego_world_model.world_model.card import MARKER
from ego_world_model.world_model.checkpoint import PartSpec

TRANSFORMER = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 16, "ffn_dim": 32}


@pytest.fixture
def model() -> WorldModel:
    torch.manual_seed(0)
    backbone = {"latent_channels": 4, "channels": 16, "transformer": TRANSFORMER}
    autoencoder = {"latent_channels": 4, "channels": (8, 8, 8)}
    model = WorldModel(
        WorldModelConfig(
            fps=10,
            num_frames=5,
            height=32,
            width=48,
            autoencoder=PartSpec(name="frame", kwargs=autoencoder),
            backbone=PartSpec(name="wan", kwargs=backbone),
        )
    )
    model.metadata = {
        "licence": "apache-2.0",
        "data": "450 simulated episodes",
        "steps": 5185,
        "validation": {"hand_psnr": 22.8},
        "limits": ["Blurs what a hand uncovers."],
    }
    return model


def card(folder: Path) -> str:
    return (folder / "README.md").read_text()


def test_card_says_what_the_checkpoint_is(model: WorldModel, tmp_path: Path) -> None:
    """Clock, size, parts with their sizes, licence, training, limits, and how to load it."""
    model.save_pretrained(tmp_path)
    text = card(tmp_path)
    count = sum(p.numel() for p in model.autoencoder.parameters())
    megabytes = (tmp_path / "autoencoder.safetensors").stat().st_size / 1e6
    for words in (
        "license: apache-2.0",
        "4 imagined frames out: 48x32 pixels at 10 Hz, a horizon of 0.40 s",
        "No text is read",
        f"| autoencoder | `frame` | {count:,} | autoencoder.safetensors, {megabytes:.2f} MB |",
        "| data | 450 simulated episodes |",
        "| steps | 5185 |",
        "| hand psnr | 22.8 |",
        "- Blurs what a hand uncovers.",
        "WorldModel.from_pretrained",
        "These weights: apache-2.0.",
    ):
        assert words in text


def test_card_follows_the_checkpoint(model: WorldModel, tmp_path: Path) -> None:
    """A generated card is written again at every save, as training saves again and again."""
    model.save_pretrained(tmp_path)
    model.metadata = {"steps": 6000}
    model.save_pretrained(tmp_path)
    text = card(tmp_path)
    assert "| steps | 6000 |" in text and "5185" not in text
    assert "not stated when it was saved" in text and "license:" not in text


@pytest.mark.parametrize("text", ["# By hand\n", ""])
def test_a_card_written_by_hand_is_kept(model: WorldModel, tmp_path: Path, text: str) -> None:
    """Also one that was generated and lost its marker line to an editor."""
    if not text:
        model.save_pretrained(tmp_path)
        text = card(tmp_path).replace(MARKER, "My own words.")
    (tmp_path / "README.md").write_text(text)
    model.metadata = {}
    model.save_pretrained(tmp_path)
    assert card(tmp_path) == text
