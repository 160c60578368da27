"""Training on latents that were encoded once: for many small runs on one frozen autoencoder.

Only for autoencoders that encode frames apart (temporal stride 1): there the latent of a frame does
not depend on the clip it is drawn in. Frames are not augmented, since their latents are fixed.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ego_world_model.hands import random_joint_mask
from ego_world_model.training.clips import ClipCache
from ego_world_model.training.losses import RegionWeights, latent_loss
from ego_world_model.training.objectives import NoiseSettings
from ego_world_model.world_model.backbones import Condition

_BATCH = 64


@dataclass(frozen=True)
class LatentClips:
    """B clips of T frames as latents; frame 0 is the reference.

    Attributes:
        latents: (B, C, T, h, w) float32.
        masks: (B, T, H, W) uint8 classes.
        joints: (B, T, J, 3) metres in the camera of each frame.
        valid: (B, T, J) bool.
        intrinsics: (B, 3, 3) pixels.
    """

    latents: Tensor
    masks: Tensor
    joints: Tensor
    valid: Tensor
    intrinsics: Tensor

    def __len__(self) -> int:
        return len(self.latents)

    def split(self, parts: int) -> list[LatentClips]:
        """The clips dealt out to at most ``parts`` batches of nearly equal size."""
        columns = {f.name: getattr(self, f.name).tensor_split(parts) for f in fields(self)}
        rows = (LatentClips(**{n: c[i] for n, c in columns.items()}) for i in range(parts))
        return [row for row in rows if len(row)]


def encode_frames(
    cache: ClipCache, autoencoder: nn.Module, folder: Path, *, report: Any = None
) -> NDArray[np.float16]:
    """(N, C, h, w) latents of all frames of ``cache``, computed once and kept in ``folder``.

    They are computed again when the autoencoder's weights or the frames have changed.

    Raises:
        ValueError: if the autoencoder compresses time.
    """
    if autoencoder.temporal_stride != 1:
        raise ValueError(
            "latents of single frames need an autoencoder of temporal stride 1, this one has "
            f"{autoencoder.temporal_stride}"
        )
    path, info = folder / "latents.npy", folder / "latents.json"
    key = {"autoencoder": _digest(autoencoder), "frames": list(cache.images.shape)}
    if info.exists() and path.exists() and json.loads(info.read_text()) == key:
        return np.load(path, mmap_mode="r")
    folder.mkdir(parents=True, exist_ok=True)
    info.unlink(missing_ok=True)
    count, parts = len(cache.images), []
    with torch.inference_mode():
        for start in range(0, count, _BATCH):
            frames = torch.from_numpy(np.array(cache.images[start : start + _BATCH]))
            frames = frames.permute(0, 3, 1, 2).float() / 127.5 - 1
            latents = autoencoder.encode(frames[:, :, None])[:, :, 0]
            parts.append(latents.half().numpy())
            if report is not None and start // _BATCH % 100 == 0:
                report(f"encoded {start} of {count} frames")
    np.save(path, np.concatenate(parts))
    info.write_text(json.dumps(key))
    return np.load(path, mmap_mode="r")


def _digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class LatentSampler:
    """Random clips of latents.

    Args:
        frames: frames per clip, the reference included.
        stride: every how many frames of an episode.
        hide_joints: probability that a clip has a random 10-30 % of its joints hidden.
        rng: drives everything drawn here, so that a resumed run continues exactly.
    """

    def __init__(
        self,
        cache: ClipCache,
        latents: NDArray[np.float16],
        rng: np.random.Generator,
        *,
        frames: int,
        stride: int,
        hide_joints: float = 0.0,
    ) -> None:
        self.cache, self.latents, self.rng = cache, latents, rng
        self.hide_joints = hide_joints
        self.offsets = stride * np.arange(frames)
        starts = [
            np.arange(first, after - self.offsets[-1])
            for first, after in zip(cache.first[:-1], cache.first[1:], strict=True)
        ]
        self.starts = np.concatenate(starts)
        if not len(self.starts):
            raise ValueError(f"no episode has the {self.offsets[-1] + 1} frames of a clip")

    def sample(self, batch: int) -> LatentClips:
        """``batch`` clips, each of their starts equally likely."""
        cache, starts = self.cache, self.rng.choice(self.starts, size=batch)
        index = starts[:, None] + self.offsets
        episodes = np.searchsorted(cache.first, starts, side="right") - 1
        valid = np.array(cache.valid[index])
        for row in np.flatnonzero(self.rng.random(batch) < self.hide_joints):
            valid[row] = random_joint_mask(valid[row], self.rng.uniform(0.1, 0.3), self.rng)
        latents = self.latents[index].astype(np.float32).swapaxes(1, 2)
        arrays = (latents, cache.masks[index], cache.positions[index], valid)
        return LatentClips(
            *(torch.from_numpy(np.ascontiguousarray(a)) for a in arrays),
            torch.from_numpy(np.array(cache.intrinsics[episodes])),
        )


class LatentObjective(nn.Module):
    """Denoise the future latents of a clip under a control; judged in latents alone.

    The weighted squared error of the clean latents; the same loss for every control, so that
    nothing but the control differs between runs.
    """

    def __init__(
        self, control: nn.Module, backbone: nn.Module, weights: RegionWeights, noise: NoiseSettings
    ) -> None:
        super().__init__()
        self.control, self.backbone = control, backbone
        self.weights, self.noise = weights, noise

    def forward(
        self, batch: LatentClips, progress: float, generator: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        clean = batch.latents
        masks = {"masks": batch.masks} if self.control.reads_masks else {}
        with torch.autocast(clean.device.type, enabled=False):
            signal = self.control(
                batch.joints, batch.intrinsics, clean[:, :, 0], valid=batch.valid, **masks
            )
        condition = Condition.from_control(clean[:, :, 0], signal.motion, signal.geometry)
        sigma = self.noise.draw(len(clean), generator)
        s = sigma.view(-1, 1, 1, 1, 1)
        noisy = (1 - s) * clean + s * torch.randn(clean.shape, generator=generator)
        predicted = self.backbone(noisy, sigma, condition)
        weight = self.weights(batch.masks)
        return {"loss": latent_loss(predicted[:, :, 1:], clean[:, :, 1:], weight)}
