"""Keypoint and segmentation estimator for single frames: one small U-Net, two heads.

It exists to measure, so it is trained on real (simulated) frames only and never sees an imagined
one. Each slot has a spatial heatmap on a stride-4 grid (a softmax over the grid's cells) and a
sub-cell offset; segmentation is predicted at full resolution through a pixel shuffle.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ego_world_model.hands import SLOT_NAMES
from ego_world_model.perception.labels import CLASS_NAMES

STRIDE = 4
"""Pixels per heatmap cell."""

_SHIPPED = Path(__file__).parent.parent / "checkpoints" / "keypoints"


@dataclass(frozen=True)
class EstimatorConfig:
    """What the estimator looks at and for.

    Attributes:
        slots: names of the hand slots it finds, in the order of its heatmaps.
        width, height: image size in pixels; frames of another size are resized to it.
        channels: feature channels at strides 4, 8, 16 and 32.
        classes: names of the segmentation classes.
    """

    slots: tuple[str, ...]
    width: int = 128
    height: int = 96
    channels: tuple[int, ...] = (48, 72, 96, 96)
    classes: tuple[str, ...] = CLASS_NAMES

    def __post_init__(self) -> None:
        object.__setattr__(self, "slots", tuple(self.slots))
        object.__setattr__(self, "channels", tuple(self.channels))
        object.__setattr__(self, "classes", tuple(self.classes))
        unknown = [name for name in self.slots if name not in SLOT_NAMES]
        if unknown or not self.slots:
            raise ValueError(f"slots must be names of hand slots, got unknown {unknown}")
        step = STRIDE * 2 ** (len(self.channels) - 1)
        if self.width % step or self.height % step:
            raise ValueError(
                f"width and height must be multiples of {step} for {len(self.channels)} levels, "
                f"got {self.width}x{self.height}"
            )

    @property
    def slot_numbers(self) -> tuple[int, ...]:
        """Numbers of ``slots`` among the 42."""
        return tuple(SLOT_NAMES.index(name) for name in self.slots)


class _ResBlock(nn.Module):
    """Two 3x3 convolutions around a skip, with group normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.GroupNorm(8, channels),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.GroupNorm(8, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x + self.body(x))


class EstimatorNetwork(nn.Module):
    """(B, 3, H, W) in [-1, 1] → heatmap logits, offsets and class logits."""

    def __init__(self, config: EstimatorConfig) -> None:
        super().__init__()
        first, *deeper = config.channels
        self.num_slots = len(config.slots)
        self.num_classes = len(config.classes)
        self.stem = nn.Conv2d(3 * STRIDE**2, first, 3, padding=1)
        self.entry = _ResBlock(first)
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        above = first
        for channels in deeper:
            self.down.append(
                nn.Sequential(
                    nn.Conv2d(above, channels, 3, stride=2, padding=1), _ResBlock(channels)
                )
            )
            self.up.append(nn.Conv2d(channels, above, 1))
            above = channels
        self.bottom = _ResBlock(above)
        self.merge = nn.ModuleList(_ResBlock(channels) for channels in config.channels[:-1])
        self.keypoints = nn.Conv2d(first, 3 * self.num_slots, 1)
        self.segmentation = nn.Sequential(
            nn.Conv2d(first, 2 * first, 1),
            nn.SiLU(),
            nn.Conv2d(2 * first, self.num_classes * STRIDE**2, 1),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Heatmap logits (B, K, h, w), offsets in cells (B, K, 2, h, w), classes (B, C, H, W)."""
        x = self.entry(self.stem(F.pixel_unshuffle(images, STRIDE)))
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(x)
        x = self.bottom(x)
        for up, merge in zip(reversed(self.up), reversed(self.merge), strict=True):
            skip = skips.pop()
            x = merge(skip + F.interpolate(up(x), size=skip.shape[-2:], mode="nearest"))
        keypoints = self.keypoints(x)
        heat, offset = keypoints.split([self.num_slots, 2 * self.num_slots], dim=1)
        offset = offset.unflatten(1, (self.num_slots, 2))
        return heat, offset, F.pixel_shuffle(self.segmentation(x), STRIDE)


def cell_centres(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """(2, h, w) pixel coordinates (u, v) of the centres of an h x w grid of heatmap cells."""
    centre = (STRIDE - 1) / 2  # a pixel's centre lies at its integer coordinate
    v, u = torch.meshgrid(
        torch.arange(height, device=device) * STRIDE + centre,
        torch.arange(width, device=device) * STRIDE + centre,
        indexing="ij",
    )
    return torch.stack([u, v])


def decode_keypoints(heat: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Heatmap logits (B, K, h, w), offsets (B, K, 2, h, w) → pixels (B, K, 2), confidence (B, K).

    The strongest cell wins; the 3x3 cells around it vote with their probability, each for its
    centre plus its offset. Confidence is the probability of those nine cells.
    """
    b, k, h, w = heat.shape
    probability = heat.flatten(2).softmax(-1)
    best = probability.argmax(-1, keepdim=True)  # (B, K, 1)
    row, column = best // w, best % w
    step = torch.arange(-1, 2, device=heat.device)
    rows = row + step.repeat_interleave(3)  # (B, K, 9)
    columns = column + step.repeat(3)
    inside = (rows >= 0) & (rows < h) & (columns >= 0) & (columns < w)
    index = rows.clamp(0, h - 1) * w + columns.clamp(0, w - 1)
    weight = probability.gather(-1, index) * inside
    votes = cell_centres(h, w, heat.device) + STRIDE * offset  # (B, K, 2, h, w)
    votes = votes.flatten(3).gather(-1, index[:, :, None].expand(b, k, 2, 9))
    confidence = weight.sum(-1)
    return (votes * weight[:, :, None]).sum(-1) / confidence[..., None], confidence


@dataclass(frozen=True)
class FramePrediction:
    """What the estimator reads off N frames of size H x W.

    Attributes:
        pixels: (N, K, 2) float32, (u, v) of each slot in the frames' own pixels.
        confidence: (N, K) float32 in [0, 1].
        classes: (N, H, W) uint8, see ``CLASS_NAMES``.
    """

    pixels: NDArray[np.float32]
    confidence: NDArray[np.float32]
    classes: NDArray[np.uint8]

    def hand_mask(self) -> NDArray[np.bool_]:
        """(N, H, W) pixels of either hand."""
        return (self.classes == 1) | (self.classes == 2)


class KeypointEstimator:
    """Hand keypoints and segmentation of RGB frames.

    >>> estimator = KeypointEstimator.from_pretrained()
    >>> prediction = estimator(frames)          # (N, H, W, 3) uint8
    """

    def __init__(self, config: EstimatorConfig, network: EstimatorNetwork | None = None) -> None:
        self.config = config
        self.network = network if network is not None else EstimatorNetwork(config)
        self.network.to(memory_format=torch.channels_last)  # 1.7x faster convolutions on CPUs

    @classmethod
    def from_pretrained(cls, folder: str | Path | None = None) -> KeypointEstimator:
        """The estimator in a checkpoint folder; without one, that for Dex3 and Inspire hands.

        Raises:
            FileNotFoundError: if config.json or model.safetensors is missing.
            ValueError: if the weights do not fit the configuration.
        """
        folder = _SHIPPED if folder is None else Path(folder)
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"no {name} in keypoint checkpoint {folder}; train one with "
                    "'ego-world-model train keypoints CONFIG.yaml'"
                )
        config = EstimatorConfig(**json.loads((folder / "config.json").read_text()))
        network = EstimatorNetwork(config)
        try:
            network.load_state_dict(load_file(folder / "model.safetensors"))
        except RuntimeError as error:
            raise ValueError(f"weights in {folder} do not fit its config.json: {error}") from error
        return cls(config, network)

    def with_slots(self, names: Sequence[str]) -> KeypointEstimator:
        """This estimator with further slots, to be trained on: what it knows is kept, the heatmaps
        of slots that it lacked are random. Its own slots stay, also those not in ``names``.
        """
        wanted = {*self.config.slots, *names}
        slots = tuple(name for name in SLOT_NAMES if name in wanted)
        if slots == self.config.slots:
            return self
        larger = KeypointEstimator(replace(self.config, slots=slots))
        state, own = larger.network.state_dict(), self.network.state_dict()
        row = torch.tensor([slots.index(name) for name in self.config.slots])
        # Rows of the head: a heatmap for each slot, then an offset (u, v) for each.
        offset = len(slots) + 2 * row[:, None] + torch.arange(2)
        rows = torch.cat([row, offset.flatten()])
        for name, value in own.items():
            if name.startswith("keypoints."):
                state[name][rows] = value
            else:
                state[name] = value
        larger.network.load_state_dict(state)
        return larger

    def save(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(asdict(self.config), indent=2) + "\n")
        # Half precision halves the file and moves no keypoint by more than a tenth of a pixel.
        state = {
            name: value.half().contiguous() for name, value in self.network.state_dict().items()
        }
        save_file(state, folder / "model.safetensors")

    @torch.inference_mode()
    def __call__(self, frames: ArrayLike, *, batch_size: int = 32) -> FramePrediction:
        """Keypoints and classes of frames (N, H, W, 3) uint8 of any size."""
        frames = np.asarray(frames)
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise ValueError(
                f"frames must be uint8 (N, H, W, 3), got {frames.dtype} {frames.shape}"
            )
        height, width = frames.shape[1:3]
        self.network.eval()
        parts = [
            self._predict(torch.from_numpy(frames[i : i + batch_size]), height, width)
            for i in range(0, len(frames), batch_size)
        ]
        pixels, confidence, classes = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
        return FramePrediction(pixels, confidence, classes)

    def _predict(self, frames: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
        images = frames.permute(0, 3, 1, 2).float() / 127.5 - 1
        size = (self.config.height, self.config.width)
        resized = size != (height, width)
        if resized:
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        heat, offset, classes = self.network(images.contiguous(memory_format=torch.channels_last))
        pixels, confidence = decode_keypoints(heat, offset)
        if resized:
            classes = F.interpolate(classes, size=(height, width), mode="bilinear")
            scale = torch.tensor([width / size[1], height / size[0]])
            pixels = (pixels + 0.5) * scale - 0.5
        return pixels, confidence, classes.argmax(1).to(torch.uint8)
