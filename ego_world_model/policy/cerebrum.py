"""The high level: a vision-language model and a depth encoder turn an observation into a prefix.

Visual tokens of the vision model (pixel-shuffled by the connector) and of the depth encoder are
added; the language model reads them, then the instruction. A pointing head looks the object of the
instruction up among the visual tokens, or among the finer patches of the vision model. Whatever is
absent (image, depth, words) is replaced by learned tokens, so that one model serves every
combination.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ResNetConfig, ResNetModel, SmolVLMConfig, SmolVLMModel

from ego_world_model.world_model.checkpoint import CheckpointError
from ego_world_model.world_model.pretrained import load_base

MODALITIES = ("text", "image", "depth")
TARGET_SCALE = 0.5
"""Metres that stand for 1 where the pointing head says where its object is."""


@dataclass(frozen=True, kw_only=True)
class CerebrumConfig:
    """The networks of the high level.

    Attributes:
        image_size: pixels of the square that images and depth are resized to.
        base: folder of a published SmolVLM-class model (transformers layout); its language model
            stays frozen. None: a new one from ``vlm``, all trained.
        vlm: arguments of ``SmolVLMConfig`` where there is no base.
        depth_base: folder of a published ResNet (such as ResNet-50); None: a new one from
            ``depth``, arguments of ``ResNetConfig``.
        words: most tokens of an instruction.
        pointing: where the pointing head looks: among visual "tokens", or among "patches" of image
            and depth, which are finer and learn names sooner.

    Raises:
        ValueError: for another ``pointing``.
    """

    image_size: int = 224
    base: str | None = None
    vlm: dict[str, Any] = field(default_factory=dict)
    depth_base: str | None = None
    depth: dict[str, Any] = field(default_factory=dict)
    words: int = 48
    pointing: str = "tokens"

    def __post_init__(self) -> None:
        if self.pointing not in ("tokens", "patches"):
            raise ValueError(f"pointing must be tokens or patches, got {self.pointing!r}")


@dataclass(frozen=True)
class Observation:
    """B observations as the networks read them.

    Attributes:
        image: (B, 3, S, S) in [-1, 1]. depth: (B, 1, S, S), 1 at the far end, 0 unknown.
        words: (B, L) token numbers; word_mask: (B, L) bool.
        present: (B, 3) bool, which of ``MODALITIES`` there are.
        hands: (B, 2, H) what is known of each hand, see ``policy.hand_features``.
        wrists: (B, 2, 3) metres, in the camera.
        known: (B, D) bool, dimensions of an action that the robot has.
    """

    image: Tensor
    depth: Tensor
    words: Tensor
    word_mask: Tensor
    present: Tensor
    hands: Tensor
    wrists: Tensor
    known: Tensor

    def __len__(self) -> int:
        return len(self.words)


@dataclass(frozen=True)
class Prefix:
    """What the cerebellum attends to.

    Attributes:
        tokens: (B, P, width); mask: (B, P) bool, those that mean something.
        summary: (B, 3, width): what is pointed at, left hand, right hand.
        pointing: (B, F) logits over visual tokens or patches, row by row.
        target: (B, 3) metres, where the pointing head believes its object to be, in the camera.
    """

    tokens: Tensor
    mask: Tensor
    summary: Tensor
    pointing: Tensor
    target: Tensor


class Cerebrum(nn.Module):
    """See the module's text.

    Args:
        hand_features: H, numbers known of each hand.

    Raises:
        CheckpointError: if a base is missing, or the image size does not give whole tokens.
    """

    def __init__(self, config: CerebrumConfig, *, hand_features: int) -> None:
        super().__init__()
        self.config = config
        if config.base is not None:
            self.vlm = load_base(SmolVLMModel, config.base, "")
            self.vlm.text_model.requires_grad_(False)
        else:
            self.vlm = SmolVLMModel(SmolVLMConfig(**config.vlm))
        if config.depth_base is not None:
            self.depth = load_base(ResNetModel, config.depth_base, "")
        else:
            self.depth = ResNetModel(ResNetConfig(**config.depth))
        width = self.vlm.config.text_config.hidden_size
        self.width = width
        patch = self.vlm.config.vision_config.patch_size
        shuffle = self.vlm.config.scale_factor
        self.side, rest = divmod(config.image_size, patch * shuffle)
        if rest:
            raise CheckpointError(
                f"image_size {config.image_size} must be a multiple of patch size x pixel shuffle "
                f"({patch} x {shuffle})"
            )
        self.pointing_side = self.side
        if config.pointing == "patches":
            self.pointing_side = config.image_size // patch
            self.fine = nn.Linear(self.vlm.config.vision_config.hidden_size, width)
            self.relief = nn.Conv2d(1, width, patch, stride=patch)
        self.depth_out = nn.Conv2d(self.depth.config.hidden_sizes[-1], width, 1)
        self.absent = nn.ParameterDict(
            {name: nn.Parameter(torch.randn(width) * 0.02) for name in MODALITIES}
        )
        self.hand = nn.Sequential(
            nn.Linear(hand_features + 6, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.sides = nn.Parameter(torch.randn(2, width) * 0.02)
        self.ask, self.offer, self.tell = (nn.Linear(width, width) for _ in range(3))
        self.place = nn.Linear(2, width)
        self.locate = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 3))
        self.train(self.training)

    def train(self, mode: bool = True) -> Cerebrum:
        """As of any module, but the depth encoder's batch statistics stay as they are: batches of
        several processes and threads must not write them, and a published encoder has good ones."""
        super().train(mode)
        for module in self.depth.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    @property
    def visual_tokens(self) -> int:
        return self.side**2

    def forward(self, seen: Observation) -> Prefix:
        batch, device = len(seen), seen.words.device
        text = seen.present[:, MODALITIES.index("text")]
        features = self.see(seen.image)
        pictured = self.vlm.connector(features).to(self.place.weight.dtype)
        measured = self.depth_tokens(self.depth_features(seen.depth))
        visual = self._fused(pictured, measured, seen)
        embedded = self.vlm.text_model.get_input_embeddings()(seen.words)
        embedded = torch.where(text[:, None, None], embedded, self.absent["text"].to(embedded))
        # without an instruction one learned word stands for it
        first = torch.zeros_like(seen.word_mask)
        first[:, 0] = True
        word_mask = torch.where(text[:, None], seen.word_mask, first)
        mask = torch.cat([word_mask.new_ones(batch, self.visual_tokens), word_mask], dim=1)
        read = self.vlm.text_model(
            inputs_embeds=torch.cat([visual.to(embedded), embedded], dim=1),
            attention_mask=mask.long(),
            use_cache=False,
        ).last_hidden_state  # (B, V + L, width)
        read = read.to(self.place.weight.dtype)
        last = self.visual_tokens + word_mask.sum(dim=1) - 1
        query = read[torch.arange(batch, device=device), last]
        if self.config.pointing == "patches":
            offered = self._patches(features, seen)
        else:
            offered = read[:, : self.visual_tokens]
        pointed, pointing = self._point(query, offered)
        target = TARGET_SCALE * self.locate(pointed)
        # how far each hand has to go, coarsely and finely: what a reach is made of
        way = (target[:, None] - seen.wrists.to(target)) / TARGET_SCALE
        hands = self.hand(torch.cat([seen.hands, 2 * way, torch.tanh(10 * way)], dim=-1))
        hands = hands + self.sides
        summary = torch.cat([pointed[:, None], hands], dim=1)
        return Prefix(
            torch.cat([read, summary], dim=1),
            torch.cat([mask, mask.new_ones(batch, 3)], dim=1),
            summary,
            pointing,
            target,
        )

    def see(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) → features of the patches (B, F, C)."""
        batch, _, height, width = image.shape
        patch = self.vlm.config.vision_config.patch_size
        everywhere = torch.ones(
            batch, height // patch, width // patch, dtype=torch.bool, device=image.device
        )
        pixels = image.to(self.vlm.vision_model.embeddings.patch_embedding.weight.dtype)
        return self.vlm.vision_model(pixels, patch_attention_mask=everywhere).last_hidden_state

    def depth_features(self, depth: Tensor) -> Tensor:
        """(B, 1, S, S) → (B, C, s, s); the one channel is repeated, as the encoder reads colour.

        Each place is normalised over its channels: the alignment loss compares features of one
        encoder with each other, and could else be lowered, or run away, by their size alone.
        """
        features = self.depth(depth.expand(-1, 3, -1, -1)).last_hidden_state.movedim(1, -1)
        return F.layer_norm(features, features.shape[-1:]).movedim(-1, 1)

    def depth_tokens(self, features: Tensor) -> Tensor:
        """(B, C, s, s) → (B, V, width), at the places of the visual tokens."""
        grid = self.depth_out(features)
        if grid.shape[-1] != self.side:
            grid = F.interpolate(grid, (self.side, self.side), mode="bilinear")
        return grid.flatten(2).transpose(1, 2)

    def frozen(self) -> Iterator[str]:
        """Names of the parameters that a base holds and training leaves alone."""
        return (name for name, parameter in self.named_parameters() if not parameter.requires_grad)

    def _patches(self, features: Tensor, seen: Observation) -> Tensor:
        """Features (B, F, C) and the depth beneath them → (B, F, width)."""
        fine = self.fine(features.to(self.place.weight.dtype))
        return self._fused(fine, self.relief(seen.depth).flatten(2).transpose(1, 2), seen)

    def _fused(self, pictured: Tensor, measured: Tensor, seen: Observation) -> Tensor:
        """What image and depth say, (B, K, width) each, added; learned tokens for the absent."""
        _, image, depth = seen.present.unbind(1)
        pictured = torch.where(image[:, None, None], pictured, self.absent["image"])
        return pictured + torch.where(depth[:, None, None], measured, self.absent["depth"])

    def _point(self, query: Tensor, offered: Tensor) -> tuple[Tensor, Tensor]:
        """What the query (B, width) asks for among ``offered`` (B, F, width), and the logits."""
        keys = self.offer(offered)
        logits = torch.einsum("bd,bfd->bf", self.ask(query), keys) / self.width**0.5
        weight = logits.softmax(dim=-1)
        found = torch.einsum("bf,bfd->bd", weight, self.tell(offered))
        where = weight @ grid_centres(self.pointing_side).to(weight)
        return query + found + self.place(where), logits


def grid_centres(side: int) -> Tensor:
    """(side^2, 2) x, y of the centres of a grid over the image in [-1, 1], row by row."""
    axis = (torch.arange(side) + 0.5) / side * 2 - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=-1)
