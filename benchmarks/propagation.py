"""How well carried features match the true latents, by the sharpness of the z-buffer.

No training: the control's motion map is held against the latents of the frames that really follow,
in cells that one hand covers and in cells where both hands' joints project.

    python benchmarks/propagation.py --data datasets/occlusion_test
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ego_world_model.data import DatasetReader, Episode
from ego_world_model.evaluation.clips import command, evaluation_clips
from ego_world_model.world_model import WorldModel
from ego_world_model.world_model.parts import build_control

NEAR = 0.8
"""Cells within which a joint counts as lying in a cell."""
COVERED = 0.4
"""Share of a cell's pixels that hands must cover."""


@dataclass(frozen=True)
class ClipForm:
    """Clips of the ablation: nine frames at 5 Hz, at the model's size."""

    height: int
    width: int
    extra_slots: tuple[str, ...]
    fps: float = 5.0
    num_frames: int = 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="held-out dataset with masks")
    parser.add_argument("--clips", type=int, default=60)
    parser.add_argument("--gains", type=float, nargs="+", default=[1, 2, 5, 10, 20, 100])
    options = parser.parse_args()
    model = WorldModel.from_pretrained("tiny")
    config = model.config
    form = ClipForm(config.height, config.width, config.extra_slots)
    sizes = {
        "num_joints": config.num_slots,
        "latent_channels": model.autoencoder.latent_channels,
        "spatial_stride": model.autoencoder.spatial_stride,
        "temporal_stride": 1,
        "geometry_embedding": False,
    }
    controls = {"average": build_control("joint", propagation="average", **sizes)}
    for gain in options.gains:
        controls[f"z-buffer, {gain:g} m"] = build_control("joint", depth_gain=gain, **sizes)
    errors: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in controls}
    for clip in evaluation_clips(DatasetReader(options.data), form, options.clips):
        for name, pair in clip_errors(model.autoencoder, controls, clip, form).items():
            errors[name].append(pair)
    print("mean squared error of latents | cells of one hand | cells of both hands")
    for name, pairs in errors.items():
        one, both = (torch.cat(column) for column in zip(*pairs, strict=True))
        print(
            f"{name:28}  | {one.mean():.3f} (n = {len(one)}) | {both.mean():.3f} (n = {len(both)})"
        )


@torch.inference_mode()
def clip_errors(
    autoencoder: nn.Module, controls: dict[str, nn.Module], clip: Episode, form: ClipForm
) -> dict[str, tuple[Tensor, Tensor]]:
    """{control: (errors in cells of one hand, errors in cells of both)}, reference frame apart."""
    video = torch.from_numpy(clip.images).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = autoencoder.encode(video[None].transpose(1, 2))  # (1, C, T, h, w)
    trajectory = command(clip, form.extra_slots)
    joints, valid = torch.from_numpy(trajectory.positions), torch.from_numpy(trajectory.valid)
    matrix = torch.from_numpy(clip.camera.matrix).float()
    left, right = hand_cells(joints, valid, matrix, latents.shape[-2:], autoencoder.spatial_stride)
    hands = torch.from_numpy(np.isin(clip.masks, (1, 2))).float()
    covered = F.avg_pool2d(hands[:, None], autoencoder.spatial_stride)[:, 0] > COVERED
    both, one = (left & right & covered)[1:], ((left ^ right) & covered)[1:]
    out = {}
    for name, control in controls.items():
        signal = control(joints[None], matrix[None], latents[:, :, 0], valid=valid[None])
        error = (signal.motion - latents).square().mean(dim=1)[0, 1:]  # (T-1, h, w)
        out[name] = (error[one], error[both])
    return out


def hand_cells(
    joints: Tensor, valid: Tensor, matrix: Tensor, grid: torch.Size, stride: int
) -> tuple[Tensor, Tensor]:
    """(T, h, w) bool each: cells in which a joint of the left and of the right hand lies."""
    projected = joints @ matrix.T
    cells = (projected[..., :2] / projected[..., 2:] + 0.5) / stride - 0.5  # (T, J, 2)
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    centres = torch.stack([columns, rows], dim=-1)  # (h, w, 2)
    distance = torch.linalg.norm(cells[:, :, None, None] - centres, dim=-1)
    distance = distance.masked_fill(~valid[:, :, None, None], torch.inf)
    return distance[:, :21].amin(dim=1) < NEAR, distance[:, 21:42].amin(dim=1) < NEAR


if __name__ == "__main__":
    main()
