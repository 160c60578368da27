"""The control module: 3-D hand joints → motion and geometry maps on the video model's latent grid.

Appearance is pooled from the reference latent under each visible joint and carried to where the
joint goes, the nearest joint winning where several meet; beside it, an embedding of each joint's
position and identity is written to the grid. Both are computed once per rollout.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ego_world_model.world_model.controls import splat
from ego_world_model.world_model.controls.arguments import check_arguments, compute_dtype
from ego_world_model.world_model.controls.config import ControlConfig, ControlSignal
from ego_world_model.world_model.controls.embedding import (
    causal_head,
    grid_encoding,
    released_encoding,
)
from ego_world_model.world_model.controls.occlusion import (
    inside_image,
    joint_visibility,
    released_visibility,
)
from ego_world_model.world_model.controls.splat import GridJoints

WEIGHTS_NAME = "control.safetensors"
CONFIG_NAME = "control.json"
_RELEASED_PREFIX = "hand_controler."


class JointControl(nn.Module):
    """Joint control of a video model, ``JointControl(num_joints=46, temporal_stride=1, …)``.

    Keywords are the fields of :class:`ControlConfig`; ``compat="released"`` computes exactly what
    the published weights expect, with their state-dict keys.
    """

    reads_masks = False

    def __init__(self, num_joints: int = 42, latent_channels: int = 16, **options: Any) -> None:
        super().__init__()
        self.config = config = ControlConfig(
            num_joints=num_joints, latent_channels=latent_channels, **options
        )
        self.released = config.compat == "released"
        if not self.released and config.propagation == "z_buffer":
            self.log_depth_gain = nn.Parameter(torch.tensor(math.log(config.depth_gain)))
        if config.geometry_embedding:
            self._build_geometry()

    def _build_geometry(self) -> None:
        """Embeddings of the joints, and the temporal head that reads what they write."""
        config = self.config
        embed, hidden = config.embed_channels, config.hidden_channels
        encoded = embed if self.released else 6 * config.frequencies
        self.joint_id_embed = nn.Embedding(config.num_joints, embed)
        self.coord_encoder = nn.Sequential(
            nn.Linear(encoded, embed), nn.SiLU(), nn.Linear(embed, embed)
        )
        written = 2 * embed
        if not self.released and config.offset_channels:
            self.joint_offset_embed = nn.Embedding(config.num_joints, config.offset_channels)
            written += 2 * config.offset_channels
        self.causal_conv1 = nn.Conv3d(written + config.latent_channels, hidden, (3, 1, 1))
        self.causal_conv2 = nn.Conv3d(hidden, config.geometry_channels, (3, 1, 1))
        self.cross_norm: nn.Module = (
            nn.LayerNorm(config.geometry_channels) if config.normalize else nn.Identity()
        )

    @classmethod
    def from_config(cls, config: ControlConfig) -> JointControl:
        return cls(**config.to_dict())

    def forward(
        self,
        joints: Tensor,
        intrinsics: Tensor,
        reference_latent: Tensor,
        valid: Tensor | None = None,
    ) -> ControlSignal:
        """Control signal of B trajectories, computed in the dtype of the module's parameters.

        Args:
            joints: (B, T, J, 3) metres, optical frame of the camera at each time; frame 0 belongs
                to the reference image. Values of invalid joints are never read.
            intrinsics: (B, 3, 3) or (B, T, 3, 3), pixels of the model's image.
            reference_latent: (B, C, h, w) latent of the reference image.
            valid: (B, T, J) bool; None means all. The released formulation has no notion of it:
                there an invalid joint is the point (0, 0, 0), as it was in its training.

        Raises:
            ValueError: naming the argument whose shape or values do not fit.
        """
        valid = check_arguments(
            joints,
            intrinsics,
            reference_latent,
            valid,
            num_joints=self.config.num_joints,
            latent_channels=self.config.latent_channels,
        )
        # Sub-cell positions do not survive bfloat16, so autocast must not reach in here.
        with torch.autocast(joints.device.type, enabled=False):
            joints = joints.to(compute_dtype(self))
            return self._signal(joints, intrinsics, reference_latent, valid)

    def _signal(
        self, joints: Tensor, intrinsics: Tensor, reference_latent: Tensor, valid: Tensor
    ) -> ControlSignal:
        """The computation behind :meth:`forward`."""
        height, width = reference_latent.shape[-2:]
        grid = self._project(joints, intrinsics, valid)
        visibility = self._visibility(grid, height, width)
        row, column = splat.profiles(
            grid.uv[:, 0], grid.motion_sigma[:, 0], grid.present[:, 0], height, width
        )
        # The published module adds 1e-6; ours only keeps an empty Gaussian from dividing by zero.
        latent = reference_latent.to(joints.dtype)
        features = splat.pool(latent, row, column, 1e-6 if self.released else 1e-12)
        features = features * visibility[..., None]
        motion, structure = self._splat(grid, features, height, width)
        if structure is None:
            batch, _, *grid_shape = motion.shape
            geometry = motion.new_zeros(batch, self.config.geometry_channels, *grid_shape)
        else:
            geometry = causal_head(
                structure, motion, self.causal_conv1, self.causal_conv2, self.cross_norm
            )
        motion, geometry = (
            maps.unflatten(-1, (height, width)).to(reference_latent.dtype)
            for maps in (motion, geometry)
        )
        return ControlSignal(motion, geometry, visibility)

    def _project(self, joints: Tensor, intrinsics: Tensor, valid: Tensor) -> GridJoints:
        """Joints on the latent grid, in both formulations."""
        c = self.config
        if self.released:
            points = torch.where(valid[..., None], joints, 0.0)
            depth = points[..., 2].clamp_min(0.2)
        else:
            points, valid = splat.present_points(joints, valid, c.near)
            depth = points[..., 2]
        pixels, focal = splat.project(points, intrinsics, depth)
        metre = focal.prod(dim=-1).sqrt() / c.spatial_stride / depth
        if self.released:
            sigma = torch.full_like(depth, 2.0)
            uv = pixels / c.spatial_stride
            present = torch.ones_like(depth)
            return GridJoints(uv, 1 / depth / 5, depth, present, sigma, sigma, metre)
        uv = splat.pixels_to_cells(pixels, c.spatial_stride)
        motion, geometry = (
            (radius * metre).clamp(smallest, c.max_sigma)
            for radius, smallest in (
                (c.motion_radius, c.min_motion_sigma),
                (c.geometry_radius, c.min_geometry_sigma),
            )
        )
        return GridJoints(uv, 1 / depth, depth, valid.to(depth.dtype), motion, geometry, metre)

    def _visibility(self, grid: GridJoints, height: int, width: int) -> Tensor:
        """(B, J) visibility in the reference frame."""
        c = self.config
        uv, depth, present = grid.uv[:, 0], grid.depth[:, 0], grid.present[:, 0]
        if self.released:
            return released_visibility(uv, grid.disparity[:, 0])
        seen = joint_visibility(
            uv,
            depth,
            present,
            cells_per_metre=grid.cells_per_metre[:, 0],
            mode=c.occlusion,
            finger_radius=c.finger_radius,
            hand_radius=c.hand_radius,
            margin=c.occlusion_margin,
            softness=c.occlusion_softness,
        )
        return seen * inside_image(uv, height, width)

    def _embed(self, grid: GridJoints) -> Tensor:
        """(B, T, J, E) what each joint writes to the grid."""
        c = self.config
        if self.released:
            uvd = torch.cat([grid.uv, grid.disparity[..., None]], dim=-1)
            encoded = released_encoding(uvd, c.embed_channels)
        else:
            encoded = grid_encoding(grid.uv, grid.disparity, c.frequencies, c.shortest_wavelength)
        shape = (*grid.depth.shape, -1)
        parts = [self.coord_encoder(encoded), self.joint_id_embed.weight.expand(shape)]
        if not self.released and c.offset_channels:
            # Σ_j G_j(p) (u_j − p) a_j is linear in what is written: u_j·a_j and a_j go to the grid,
            # and `_offsets` subtracts p there.
            identity = self.joint_offset_embed.weight.expand(shape)
            parts += [identity * grid.uv[..., 0:1], identity * grid.uv[..., 1:2], identity]
        return torch.cat(parts, dim=-1)

    def _splat(
        self, grid: GridJoints, features: Tensor, height: int, width: int
    ) -> tuple[Tensor, Tensor | None]:
        """Motion (B, C, t, h·w) and structure (B, E, t, h·w), block by block.

        Without geometry embedding there is no structure.
        """
        batch, frames, joints = grid.depth.shape
        groups = splat.temporal_groups(frames, self.config.temporal_stride, features.device)
        steps, per = groups.shape
        shared = grid.motion_sigma is grid.geometry_sigma
        motion_profiles, geometry_profiles = (
            [
                p[:, groups].flatten(0, 1)  # (B·t, f, J, h or w)
                for p in splat.profiles(grid.uv, sigma, grid.present, height, width)
            ]
            for sigma in (grid.motion_sigma, grid.geometry_sigma)
        )
        embedded = (
            self._embed(grid)[:, groups].flatten(0, 1) if self.config.geometry_embedding else None
        )
        count = grid.present[:, groups].sum(dim=2)
        disparity = (grid.disparity * grid.present)[:, groups].sum(dim=2) / count.clamp_min(1)
        disparity, absent = disparity.flatten(0, 1), (count == 0).flatten(0, 1)
        features = features[:, None].expand(batch, steps, joints, -1).flatten(0, 1)
        motion, structure = [], []
        for block in splat.blocks(batch * steps, per * joints * height * width):
            heat = splat.heatmaps(*(p[block] for p in motion_profiles))
            if embedded is not None:
                fine = heat if shared else splat.heatmaps(*(p[block] for p in geometry_profiles))
                structure.append(splat.write(fine, embedded[block]))
            motion.append(
                self._propagate(heat.mean(dim=1), disparity[block], absent[block], features[block])
            )
        motion, structure = (
            torch.cat(parts).unflatten(0, (batch, steps)).transpose(1, 2) if parts else None
            for parts in (motion, structure)
        )
        return motion, structure if structure is None else self._offsets(structure, height, width)

    def _propagate(
        self, heat: Tensor, disparity: Tensor, absent: Tensor, features: Tensor
    ) -> Tensor:
        """Features carried to the joints' cells, the nearest joint winning (unless averaged).

        heat (n, J, p) in 0..1, disparity (n, J), absent (n, J), features (n, J, C) → (n, C, p).
        """
        if self.released:
            opacity = heat.sum(dim=1, keepdim=True)
            logits = torch.log(heat + 1e-6) + 5.0 * disparity[..., None]
        else:
            # Probability that some joint covers the cell. The cap keeps the logarithm finite.
            opacity = 1 - torch.log1p(-heat.clamp_max(1 - 1e-6)).sum(dim=1, keepdim=True).exp()
            logits = heat.clamp_min(1e-30).log()
            if self.config.propagation == "z_buffer":
                logits = logits + self.log_depth_gain.exp() * disparity[..., None]
            # Finite, so that a frame without any joint gives zeros (its opacity), not NaN.
            logits = logits.masked_fill(absent[..., None], -1e30)
        weights = torch.softmax(logits, dim=1)
        return features.transpose(1, 2) @ weights * opacity

    def _offsets(self, structure: Tensor, height: int, width: int) -> Tensor:
        """Turn written positions into offsets from each cell's centre; (B, E, t, h·w)."""
        m = self.config.offset_channels
        if self.released or not m:
            return structure
        embedded, across, down, identity = structure.split(
            [structure.shape[1] - 3 * m, m, m, m], dim=1
        )
        cells = torch.arange(height * width, device=structure.device)
        column, row = (cells % width).to(structure.dtype), (cells // width).to(structure.dtype)
        return torch.cat([embedded, across - column * identity, down - row * identity], dim=1)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``control.safetensors`` and ``control.json`` into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()},
            folder / WEIGHTS_NAME,
        )
        text = json.dumps(self.config.to_dict(), indent=2)
        (folder / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> JointControl:
        """Read what :meth:`save_pretrained` wrote."""
        folder = Path(folder)
        config = folder / CONFIG_NAME
        if not config.is_file():
            raise FileNotFoundError(f"{config} not found; a control folder holds {CONFIG_NAME}")
        control = cls(**ControlConfig.from_dict(json.loads(config.read_text("utf-8"))).to_dict())
        _load(control, _read(folder / WEIGHTS_NAME), folder / WEIGHTS_NAME)
        return control.eval()

    @classmethod
    def from_released(cls, path: str | Path, **options: Any) -> JointControl:
        """The published ``hand-controller.safetensors``; sizes are read from its tensors.

        Keys may carry the ``hand_controler.`` prefix of the full training checkpoint.

        Raises:
            FileNotFoundError, ValueError: naming the file and the tensors that do not fit.
        """
        path = Path(path)
        tensors = {k.removeprefix(_RELEASED_PREFIX): v for k, v in _read(path).items()}
        try:
            joints, embed = tensors["joint_id_embed.weight"].shape
            hidden, mixed = tensors["causal_conv1.weight"].shape[:2]
            geometry = tensors["causal_conv2.weight"].shape[0]
        except KeyError as error:
            raise ValueError(
                f"{path} is not a released hand controller: tensor {error.args[0]} is missing"
            ) from None
        control = cls(
            num_joints=joints,
            latent_channels=mixed - 2 * embed,
            geometry_channels=geometry,
            hidden_channels=hidden,
            embed_channels=embed,
            compat="released",
            occlusion="hard",
            **options,
        )
        _load(control, tensors, path)
        return control.eval()


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"control weights {path} not found")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error


def _load(control: JointControl, tensors: dict[str, Tensor], path: Path) -> None:
    expected = control.state_dict()
    missing, surplus = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    shapes = [
        f"{k} {tuple(tensors[k].shape)} instead of {tuple(v.shape)}"
        for k, v in expected.items()
        if k in tensors and tensors[k].shape != v.shape
    ]
    if missing or surplus or shapes:
        raise ValueError(
            f"{path} does not fit its config: missing {missing}, unexpected {surplus}, "
            f"wrong shapes {shapes}"
        )
    control.load_state_dict(tensors)
