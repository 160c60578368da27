"""What a joint-control module is (stored in a checkpoint's config.json) and what it returns."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from torch import Tensor

from ego_world_model.world_model.controls.arguments import require_sizes

Compat = Literal["ours", "released"]
Occlusion = Literal["soft", "hard", "none"]
Propagation = Literal["z_buffer", "average"]


@dataclass(frozen=True, kw_only=True)
class ControlConfig:
    """Sizes and constants of a :class:`JointControl`.

    Lengths marked "metres" are sizes at the joint: they are projected to the latent grid with the
    joint's own depth, so a hand keeps its relative sharpness at every distance, image size and
    stride. The released formulation has fixed constants and reads only the first block.

    Attributes:
        num_joints: J, joint slots (42, plus the extra slots a checkpoint declares).
        latent_channels: C of the reference latent, and of the motion features.
        geometry_channels: G of the geometry map.
        spatial_stride: pixels per latent cell.
        temporal_stride: frames per latent after the first; 1 keeps the frame rate.
        compat: "ours" (paper's soft formulation with validity masks) or "released" (exactly what
            the published weights were trained with).
        hidden_channels: width of the temporal head.
        embed_channels: width of the coordinate embedding, and of the identity embedding.

        occlusion: how hidden source joints are found: "soft" product, "hard" test, or "none".
        propagation: what a cell takes where joints meet: "z_buffer" weighs them by nearness to the
            camera as well, "average" by their Gaussians alone (the paper's ablation without
            occlusion-aware propagation).
        geometry_embedding: write position and identity of the joints into the geometry map; False
            leaves it zero (the paper's ablation without 3-D geometric embeddings).
        finger_radius: metres; Gaussian radius of the area that a joint hides of its own hand. A
            tilted flat hand does not hide itself, so this is no wider than a finger.
        hand_radius: metres; the same for joints of the other hand: wider, because between its
            joints lie palm and bones.
        occlusion_margin: metres by which a joint must lie behind another to be half hidden by it;
            joints of one flat hand differ by less and so never hide each other.
        occlusion_softness: metres over which hiding sets in around the margin.
        motion_radius: metres; Gaussian radius of source pooling and of feature propagation.
        geometry_radius: metres; Gaussian radius with which joint embeddings are written.
        min_motion_sigma, min_geometry_sigma: latent cells; lower bounds of those radii, because a
            Gaussian much narrower than a cell falls between the cells.
        max_sigma: latent cells; upper bound of those radii, for joints right before the lens.
        depth_gain: initial gamma of the z-buffer, metres (it multiplies 1/z); learnt. The published
            weights use 1. Far above, one joint fills a whole cell, and where inside it the others
            lie is lost: on a coarse grid that costs more than hidden joints do.
        frequencies: sinusoids per coordinate in the embedding.
        shortest_wavelength: latent cells; the finest sinusoid of u and v.
        offset_channels: identity channels that also carry the joint's offset from each cell's
            centre, which tells a small model where inside a cell the joint is; 0 omits them.
        near: metres; a joint nearer than this, or behind the camera, is treated as invalid.
        normalize: end the geometry head with a LayerNorm over channels.
    """

    num_joints: int = 42
    latent_channels: int = 16
    geometry_channels: int = 16
    spatial_stride: int = 8
    temporal_stride: int = 4
    compat: Compat = "ours"
    hidden_channels: int = 64
    embed_channels: int = 32

    occlusion: Occlusion = "soft"
    propagation: Propagation = "z_buffer"
    geometry_embedding: bool = True
    finger_radius: float = 0.011
    hand_radius: float = 0.025
    occlusion_margin: float = 0.035
    occlusion_softness: float = 0.005
    motion_radius: float = 0.018
    geometry_radius: float = 0.012
    min_motion_sigma: float = 0.7
    min_geometry_sigma: float = 0.6
    max_sigma: float = 6.0
    depth_gain: float = 2.0
    frequencies: int = 8
    shortest_wavelength: float = 1.0
    offset_channels: int = 8
    near: float = 0.05
    normalize: bool = True

    def __post_init__(self) -> None:
        require_sizes(
            **{
                name: getattr(self, name)
                for name in (
                    "num_joints",
                    "latent_channels",
                    "geometry_channels",
                    "spatial_stride",
                    "temporal_stride",
                    "hidden_channels",
                    "embed_channels",
                    "frequencies",
                )
            }
        )
        if self.compat not in ("ours", "released"):
            raise ValueError(f"control config: compat must be ours or released, got {self.compat}")
        if self.occlusion not in ("soft", "hard", "none"):
            raise ValueError(
                f"control config: occlusion must be soft, hard or none, got {self.occlusion}"
            )
        if self.propagation not in ("z_buffer", "average"):
            raise ValueError(
                f"control config: propagation must be z_buffer or average, got {self.propagation}"
            )
        if self.compat == "released" and not (
            self.propagation == "z_buffer" and self.geometry_embedding
        ):
            raise ValueError(
                "control config: the released formulation has no ablations; leave propagation and "
                "geometry_embedding out"
            )
        if self.compat == "released" and self.embed_channels % 2:
            raise ValueError("control config: embed_channels must be even for compat='released'")

    def to_dict(self) -> dict[str, Any]:
        """For config.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ControlConfig:
        """From config.json.

        Raises:
            ValueError: if a key is unknown, which means a newer or a different module.
        """
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(
                f"control config has unknown keys {', '.join(unknown)}; the checkpoint was made by "
                "another version of this package"
            )
        return cls(**values)


@dataclass(frozen=True)
class ControlSignal:
    """What the joints say to the video model; it depends on neither noise nor denoising step.

    Attributes:
        motion: (B, C, t, h, w) reference features carried along the joints. Frames > 0 replace the
            image condition there; frame 0 of the condition keeps the reference latent itself.
        geometry: (B, G, t, h, w) where which joint is, in the order of time.
        visibility: (B, J) in 0..1, how far each joint is seen in the reference frame.
    """

    motion: Tensor
    geometry: Tensor
    visibility: Tensor
