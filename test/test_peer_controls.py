"""The peers' controls: each does what its paper says, on small cases worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hand_shapes import open_hand
from synthetic_clips import NAMES, synthetic_episode
from torch import Tensor
from torch.nn import functional as F

from ego_world_model.hands import EXTRA_SLOTS, HandTrajectory, bones, slot_index
from ego_world_model.world_model import WorldModel, WorldModelConfig
from ego_world_model.world_model.checkpoint import PartSpec
from ego_world_model.world_model.controls import Control, ControlSignal
from ego_world_model.world_model.controls.skeleton import bone_colours, draw_skeletons
from ego_world_model.world_model.parts import CONTROLS, build_control

PEERS = [name for name in CONTROLS if name != "joint"]
TRACKS = ["wan_move", "ati", "motion_stream"]
MASKS = ["mask_hand", "mask_hand_object"]
FOCAL, WIDE, HIGH = 121.0, 16, 12
THUMB, INDEX, RIGHT = (slot_index(n) for n in ("left_thumb_tip", "left_index_tip", "right_wrist"))


def peer(name: str, *, stride: int = 1, **options: Any) -> Any:
    torch.manual_seed(0)
    return build_control(name, **{"temporal_stride": stride, "latent_channels": 3, **options})


def intrinsics(batch: int = 1) -> Tensor:
    matrix = torch.tensor([[FOCAL, 0, 63.5], [0, FOCAL, 47.5], [0, 0, 1.0]])
    return matrix.expand(batch, 3, 3)


def at(column: float, row: float, depth: float = 0.45) -> Tensor:
    """The point that is seen at a place of the latent grid (cell centres are integers)."""
    x, y = (8 * (column + 0.5) - 0.5 - 63.5), (8 * (row + 0.5) - 0.5 - 47.5)
    return torch.tensor([x * depth / FOCAL, y * depth / FOCAL, depth])


def latent(channels: int = 3, batch: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, channels, HIGH, WIDE, generator=generator)


def tracks(paths: dict[int, list[Tensor]]) -> tuple[Tensor, Tensor]:
    """Joints (1, T, 42, 3) and valid (1, T, 42) of a few slots; the others are unknown."""
    frames = len(next(iter(paths.values())))
    joints, valid = torch.zeros(1, frames, 42, 3), torch.zeros(1, frames, 42, dtype=torch.bool)
    for slot, points in paths.items():
        joints[0, :, slot] = torch.stack(points)
        valid[0, :, slot] = True
    return joints, valid


def two_hands(frames: int = 9, slots: int = 46) -> tuple[Tensor, Tensor]:
    """Two open hands and forearms that drift to the right."""
    joints = torch.zeros(1, frames, slots, 3)
    drift = torch.linspace(0, 0.08, frames)[:, None, None] * torch.tensor([1.0, 0.3, 0.5])
    joints[0, :, :21] = open_hand() + torch.tensor([-0.08, 0.0, 0.45]) + drift
    joints[0, :, 21:42] = open_hand() + torch.tensor([0.05, 0.02, 0.5]) + drift
    for slot, x in zip(range(42, slots), (-0.15, 0.1, -0.12, 0.08), strict=False):
        joints[0, :, slot] = torch.tensor([x, 0.2, 0.4])
    return joints, torch.ones(1, frames, slots, dtype=torch.bool)


def masks_of(joints: Tensor) -> Tensor:
    """Some masks of every class, (B, T, H, W)."""
    shape = (*joints.shape[:2], 8 * HIGH, 8 * WIDE)
    return torch.randint(0, 7, shape, generator=torch.Generator().manual_seed(2)).byte()


def run(
    control: Any, joints: Tensor, valid: Tensor | None, z: Tensor, **given: Tensor
) -> ControlSignal:
    if control.reads_masks:
        given.setdefault("masks", masks_of(joints))
    return control(joints, intrinsics(len(joints)), z, valid, **given)


# What every control promises


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("stride,latents", [(1, 9), (4, 3)])
def test_maps_fit_the_backbone_and_gradients_reach_every_parameter(
    name: str, stride: int, latents: int
) -> None:
    control = peer(name, stride=stride, num_joints=46, latent_channels=5, geometry_channels=7)
    assert isinstance(control, Control)
    joints, valid = two_hands()
    signal = run(control, joints, valid, latent(5))
    assert signal.motion.shape == (1, 5, latents, HIGH, WIDE)
    assert signal.geometry.shape == (1, 7, latents, HIGH, WIDE)
    assert signal.visibility.shape == (1, 46)
    assert signal.motion.abs().sum() + signal.geometry.abs().sum() > 0
    target = torch.randn(signal.geometry.shape, generator=torch.Generator().manual_seed(3))
    if list(control.parameters()):
        (signal.geometry * target).sum().backward()
    for key, parameter in control.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("stride", [1, 4])
def test_unknown_joints_and_joints_behind_the_camera_count_for_nothing(
    name: str, stride: int
) -> None:
    control = peer(name, stride=stride, num_joints=46)
    joints, valid = two_hands()
    valid[:, 2:5, 8] = False
    valid[..., 30] = False
    clean = run(control, joints, valid, latent())
    for junk in (torch.nan, torch.inf, 0.4):
        dirty = torch.where(valid[..., None], joints, torch.tensor(junk))
        signal = run(control, dirty, valid, latent())
        assert torch.equal(signal.motion, clean.motion)
        assert torch.equal(signal.geometry, clean.geometry)
        assert torch.equal(signal.visibility, clean.visibility)
    behind = torch.where(valid[..., None], joints, joints * torch.tensor([1.0, 1.0, -1.0]))
    signal = run(control, behind, torch.ones_like(valid), latent())
    assert torch.equal(signal.motion, clean.motion)
    assert torch.equal(signal.geometry, clean.geometry)


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("stride", [1, 4])
def test_without_any_joint_nothing_moves(name: str, stride: int) -> None:
    control = peer(name, stride=stride, num_joints=46)
    joints, valid = two_hands()
    signal = run(control, joints, torch.zeros_like(valid), latent())
    assert (signal.motion == 0).all()
    assert (signal.visibility == 0).all()
    assert torch.isfinite(signal.geometry).all()
    if name in TRACKS or name == "skeleton":  # one value all over each frame (but for borders)
        inside = signal.geometry[..., 2:-2, 2:-2].flatten(3)
        assert (inside - inside[..., :1]).abs().max() < 1e-5


@pytest.mark.parametrize("name", PEERS)
def test_candidates_in_one_batch_equal_candidates_alone(name: str) -> None:
    control = peer(name, stride=4, num_joints=46)
    joints, valid = two_hands()
    joints = torch.cat([joints, joints.flip(1)])
    z, masks = latent(batch=2), masks_of(joints)
    given = {"masks": masks} if control.reads_masks else {}
    both = run(control, joints, valid.expand(2, -1, -1), z, **given)
    for i in range(2):
        given = {"masks": masks[i : i + 1]} if control.reads_masks else {}
        one = run(control, joints[i : i + 1], valid, z[i : i + 1], **given)
        torch.testing.assert_close(one.motion, both.motion[i : i + 1])
        torch.testing.assert_close(one.geometry, both.geometry[i : i + 1])


@pytest.mark.parametrize("name", PEERS)
def test_autocast_does_not_coarsen_the_control(name: str) -> None:
    control = peer(name, num_joints=46)
    joints, valid = two_hands(5)
    full = run(control, joints, valid, latent())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = run(control, joints, valid, latent())
    assert torch.equal(full.motion, cast.motion) and torch.equal(full.geometry, cast.geometry)
    half = run(control, joints, valid, latent().bfloat16())
    assert half.motion.dtype == half.geometry.dtype == torch.bfloat16


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize(
    "change,message",
    [
        ({"joints": torch.zeros(1, 5, 41, 3)}, r"joints must have shape \(B, T, 42, 3\)"),
        ({"joints": torch.ones(1, 4, 42, 3), "valid": None}, r"4 frames.*1 or 5.*resample"),
        ({"intrinsics": torch.eye(3)}, r"intrinsics must have shape \(1, 3, 3\)"),
        ({"reference_latent": torch.zeros(1, 4, 12, 16)}, r"reference_latent .*\(1, 3, h, w\)"),
        ({"valid": torch.ones(1, 5, 2, dtype=torch.bool)}, r"valid must have shape \(1, 5, 42\)"),
        ({"joints": torch.full((1, 5, 42, 3), torch.nan)}, "NaN or infinity where valid"),
    ],
)
def test_wrong_arguments_are_named(name: str, change: dict[str, Any], message: str) -> None:
    control = peer(name, stride=4)
    joints, valid = two_hands(5, 42)
    arguments = {
        "joints": joints,
        "intrinsics": intrinsics(),
        "reference_latent": latent(),
        "valid": valid,
    } | change
    if control.reads_masks:
        arguments["masks"] = masks_of(arguments["joints"])
    with pytest.raises(ValueError, match=message):
        control(**arguments)


@pytest.mark.parametrize("name", PEERS)
def test_sizes_that_make_no_sense_are_named(name: str) -> None:
    with pytest.raises(ValueError, match="spatial_stride must be >= 1"):
        peer(name, spatial_stride=0)


# Wan-Move


@pytest.mark.parametrize("stride", [1, 4])
def test_wan_move_puts_exactly_one_latent_cell_where_the_track_goes(stride: int) -> None:
    """From cell (3, 2) to (10, 7); with stride 4 the last frame of the latent decides."""
    away = [at(1.0, 9.0)] * (stride - 1)
    joints, valid = tracks({INDEX: [at(3.2, 1.8), *away, at(9.7, 7.4)]})
    z = latent()
    signal = run(peer("wan_move", stride=stride), joints, valid, z)
    expected = torch.zeros(3, HIGH, WIDE)
    expected[:, 7, 10] = z[0, :, 2, 3]
    assert torch.equal(signal.motion[0, :, 1], expected)
    assert (signal.geometry == 0).all()
    assert signal.visibility[0].nonzero().flatten().tolist() == [INDEX]


@pytest.mark.parametrize("front", [INDEX, RIGHT])
def test_where_hands_cross_the_z_buffer_knows_which_is_nearer_and_tracks_do_not(front: int) -> None:
    """Two joints, apart in frame 0, meet in one cell; the one nearer to its centre is INDEX's."""
    depth = {slot: 0.4 if slot == front else 0.6 for slot in (INDEX, RIGHT)}
    joints, valid = tracks(
        {
            INDEX: [at(2, 6, depth[INDEX]), at(8.1, 6, depth[INDEX])],
            RIGHT: [at(13, 6, depth[RIGHT]), at(7.8, 6, depth[RIGHT])],
        }
    )
    z = torch.zeros(1, 1, HIGH, WIDE)
    z[..., :8], z[..., 8:] = 1.0, -1.0  # how INDEX and RIGHT look
    tracked = run(peer("wan_move", latent_channels=1), joints, valid, z).motion[0, 0, 1, 6, 8]
    assert tracked == 1.0  # whoever is in front
    soft = run(peer("ati", latent_channels=1), joints, valid, z).motion[0, 0, 1, 6, 8]
    ours = run(peer("joint", latent_channels=1), joints, valid, z).motion[0, 0, 1, 6, 8]
    average = run(peer("joint", latent_channels=1, propagation="average"), joints, valid, z).motion[
        0, 0, 1, 6, 8
    ]
    sign = 1.0 if front == INDEX else -1.0
    assert sign * ours > 0.6  # at least four fifths of the weight
    assert abs(soft) < 0.3 and abs(average) < 0.3


def test_wan_move_resolves_ties_by_slot_and_never_sums() -> None:
    joints, valid = tracks({INDEX: [at(2, 6), at(8, 6)], THUMB: [at(5, 3), at(8, 6)]})
    z = latent()
    motion = run(peer("wan_move"), joints, valid, z).motion
    assert torch.equal(motion[0, :, 1, 6, 8], z[0, :, 3, 5])  # the thumb's slot is the lower one


@pytest.mark.parametrize("name", ["wan_move", "ati"])
def test_a_joint_outside_the_reference_image_copies_nothing(name: str) -> None:
    """Not even the bottom-right cell, which the published code would paste."""
    for start in (at(-2, 5), at(16.2, 12.3), at(20, 30)):
        joints, valid = tracks({INDEX: [start, at(5, 5)]})
        signal = run(peer(name), joints, valid, latent())
        assert (signal.motion == 0).all()
        assert (signal.geometry[:, :, 1] == 0).all()
        assert (signal.visibility == 0).all()


# ATI


def test_ati_writes_the_bilinear_feature_under_a_gaussian_and_its_weight() -> None:
    joints, valid = tracks({INDEX: [at(3.5, 2.0), at(10.3, 7.0)]})
    z, control = latent(), peer("ati", min_sigma=0.9)
    signal = run(control, joints, valid, z)
    feature = (z[0, :, 2, 3] + z[0, :, 2, 4]) / 2
    for column, row in ((10, 7), (11, 7), (10, 6), (8, 9)):
        distance2 = (column - 10.3) ** 2 + (row - 7.0) ** 2
        weight = math.exp(-distance2 / (2 * 0.9**2))
        found = signal.motion[0, :, 1, row, column]
        torch.testing.assert_close(found, weight * feature, atol=1e-5, rtol=1e-4)
        assert signal.geometry[0, 0, 1, row, column].item() == pytest.approx(weight, abs=1e-4)
    assert (signal.geometry[0, 0, 0] == 1).all()
    assert (signal.geometry[0, 1:] == 0).all()


def test_ati_is_as_wide_as_published_on_a_full_grid_and_never_narrower_than_asked() -> None:
    """exp(−220 d²), d = 2 over the 60 rows of a 480-row image: at 2 cells, exp(−220 (2/30)²)."""
    control = peer("ati")
    full = control.sigma(60, 104)
    assert math.exp(-(2.0**2) / (2 * full**2)) == pytest.approx(math.exp(-220 * (2 / 30) ** 2))
    assert control.sigma(12, 16) == 0.7


def test_ati_takes_the_mean_of_the_frames_in_view() -> None:
    """Of frames 1 to 4 the joint is unknown in one and outside the image in another."""
    path = [at(3, 3), at(6, 5), at(-9, 5), at(1, 1), at(9, 7)]
    joints, valid = tracks({INDEX: path})
    valid[0, 3, INDEX] = False
    signal = run(peer("ati", stride=4), joints, valid, latent())
    other, known = tracks({INDEX: [at(3, 3), *[at(7.5, 6.0)] * 4]})
    expected = run(peer("ati", stride=4), other, known, latent())
    torch.testing.assert_close(signal.motion, expected.motion, atol=1e-5, rtol=1e-5)


def test_ati_keeps_the_two_strongest_tracks_of_a_cell() -> None:
    ends = {THUMB: at(8.1, 6), INDEX: at(8.4, 6), RIGHT: at(8.8, 6)}
    starts = {THUMB: at(2, 2), INDEX: at(4, 4), RIGHT: at(6, 9)}
    z, control = latent(), peer("ati")
    joints, valid = tracks({slot: [starts[slot], ends[slot]] for slot in ends})
    three = run(control, joints, valid, z)
    valid[..., RIGHT] = False
    two = run(control, joints, valid, z)
    torch.testing.assert_close(three.motion[0, :, 1, 6, 8], two.motion[0, :, 1, 6, 8])
    torch.testing.assert_close(three.geometry[0, 0, 1, 6, 8], two.geometry[0, 0, 1, 6, 8])
    assert not torch.allclose(three.motion[0, :, 1, 6, 9], two.motion[0, :, 1, 6, 9])


# MotionStream


@pytest.mark.parametrize("stride", [1, 4])
def test_motion_stream_is_a_head_over_embeddings_written_to_cells(stride: int) -> None:
    """Against the same computed plainly: write every frame, join frames, two layers, norm."""
    control = peer("motion_stream", stride=stride)
    frames = 1 + 2 * stride
    joints, valid = tracks(
        {
            THUMB: [at(1 + k, 2.2) for k in range(frames)],
            RIGHT: [at(12 - k, 8) for k in range(frames)],
        }
    )
    written = torch.zeros(frames, HIGH, WIDE, control.identity.shape[1])
    for k in range(frames):
        written[k, 2, 1 + k], written[k, 8, 12 - k] = control.identity[[THUMB, RIGHT]]
    groups = [[0] * stride, *([1 + stride * i + f for f in range(stride)] for i in range(2))]
    joined = torch.stack([torch.cat([written[f] for f in group], dim=-1) for group in groups])
    hidden = F.silu(control.compress(joined))
    expected = control.norm(control.project(hidden)).permute(3, 0, 1, 2)[None]
    signal = run(control, joints, valid, latent())
    torch.testing.assert_close(signal.geometry, expected, atol=1e-5, rtol=1e-4)
    assert (signal.motion == 0).all()


def test_motion_stream_tells_every_joint_from_every_other() -> None:
    identity = peer("motion_stream", num_joints=46).identity
    distance = torch.cdist(identity, identity) + 9 * torch.eye(46)
    assert distance.min() > 0.5


# Wan-Fun


def flat_hand(joints: list[tuple[str, float, float]]) -> tuple[Tensor, Tensor]:
    """Pixels (1, 46, 2) and present (1, 46) of a few named joints."""
    pixels, present = torch.zeros(1, 46, 2), torch.zeros(1, 46, dtype=torch.bool)
    for name, x, y in joints:
        pixels[0, slot_index(name)] = torch.tensor([x, y])
        present[0, slot_index(name)] = True
    return pixels, present


def test_bones_are_drawn_between_the_joints_that_exist() -> None:
    """A three-jointed index finger (no DIP) and a forearm, whose every pixel is known."""
    pixels, present = flat_hand(
        [
            ("left_wrist", 20, 40),
            ("left_index_mcp", 20, 30),
            ("left_index_pip", 20, 20),
            ("left_index_tip", 40, 20),
            ("left_elbow", 20, 60),
        ]
    )
    drawn = draw_skeletons(pixels, present, 70, 60, line_width=2.0)[0]
    colours = bone_colours(46)
    for x, y, end in (
        (20, 35, "left_index_mcp"),
        (20, 25, "left_index_pip"),
        (30, 20, "left_index_tip"),
        (20, 50, "left_wrist"),
    ):
        torch.testing.assert_close(drawn[:, y, x], colours[slot_index(end)])
    # Two pixels wide: full on the line, half on its edge, nothing beyond.
    edge = drawn[:, 19:24, 30].sum(dim=0) / colours[slot_index("left_index_tip")].sum()
    torch.testing.assert_close(edge, torch.tensor([0.5, 1.0, 0.5, 0.0, 0.0]))
    assert (drawn[:, :, 45:] == 0).all() and (drawn[:, 63:] == 0).all()
    assert (drawn[:, 40:58, 24:] == 0).all() and (drawn[:, 24:, :18] == 0).all()


def test_hands_differ_in_colour_and_fingers_too() -> None:
    colours = bone_colours(46)[:42]  # two wrists (arms) and 40 finger joints
    distance = torch.cdist(colours, colours) + 9 * torch.eye(42)
    assert distance.min() > 0.05


def test_drawing_tile_by_tile_equals_measuring_every_pixel() -> None:
    generator = torch.Generator().manual_seed(4)
    pixels = torch.rand(3, 46, 2, generator=generator) * torch.tensor([150.0, 110.0]) - 10
    present = torch.rand(3, 46, generator=generator) > 0.4
    drawn = draw_skeletons(pixels, present, 93, 125, line_width=3.0)
    y, x = torch.meshgrid(torch.arange(93.0), torch.arange(125.0), indexing="ij")
    grid = torch.stack([x, y], dim=-1)
    for frame in range(3):
        pairs = bones(present[frame].numpy())
        distance = []
        for a, b in pairs:
            start, along = pixels[frame, a], pixels[frame, b] - pixels[frame, a]
            part = (((grid - start) @ along) / along.square().sum()).clamp(0, 1)
            distance.append((grid - start - part[..., None] * along).norm(dim=-1))
        nearest, which = torch.stack(distance).min(dim=0)
        colour = bone_colours(46)[torch.tensor([b for _, b in pairs])[which]]
        expected = colour * (2.0 - nearest).clamp(0, 1)[..., None]
        wrong = (drawn[frame].movedim(0, -1) - expected).abs().amax(dim=-1) > 1e-3
        assert wrong.float().mean() < 0.01  # equally near bones may paint either colour
        ink = drawn[frame].amax(dim=0) > 0
        assert (ink != (nearest < 2.0)).sum() < 5  # rounding at the very edge


def test_the_skeleton_reads_the_cells_it_is_drawn_in() -> None:
    control = peer("skeleton")
    thumb = [slot_index(f"left_{j}") for j in ("wrist", "thumb_tip")]
    joints, valid = tracks({thumb[0]: [at(3, 3)] * 2, thumb[1]: [at(3, 6), at(6, 3)]})
    signal = run(control, joints, valid, latent())
    empty = run(control, joints, torch.zeros_like(valid), latent())
    changed = (signal.geometry - empty.geometry).abs().amax(dim=1)[0] > 1e-5
    assert changed[0, 3:7, 3].all() and changed[1, 3, 3:7].all()
    assert not changed[:, 9:].any() and not changed[:, :, 9:].any()
    assert changed.sum(dim=(1, 2)).max() <= 6 * 3  # the bone's cells and their neighbours


def test_a_skeleton_needs_two_hands_of_slots() -> None:
    with pytest.raises(ValueError, match="num_joints >= 42"):
        peer("skeleton", num_joints=21)


# Mask2IV


@pytest.mark.parametrize("name,read", [("mask_hand", {1, 2}), ("mask_hand_object", {1, 2, 5})])
@pytest.mark.parametrize("stride", [1, 4])
def test_masks_change_the_cells_they_cover_if_their_class_is_read(
    name: str, read: set[int], stride: int
) -> None:
    control = peer(name, stride=stride)
    joints, valid = two_hands(1 + stride, 42)
    nothing = torch.zeros(1, 1 + stride, 8 * HIGH, 8 * WIDE, dtype=torch.uint8)
    empty = run(control, joints, valid, latent(), masks=nothing)
    seen = {}
    for number in range(1, 7):
        masks = nothing.clone()
        masks[0, -1, 8 * 5 + 7, 8 * 3] = number  # one pixel in the corner of cell (3, 5)
        signal = run(control, joints, valid, latent(), masks=masks)
        changed = (signal.geometry - empty.geometry).abs().amax(dim=1)[0].nonzero().tolist()
        assert changed == ([[1, 5, 3]] if number in read else [])
        seen[number] = signal.geometry[0, :, 1, 5, 3]
        assert (signal.motion == 0).all()
    for a in read:
        assert all(not torch.allclose(seen[a], seen[b]) for b in read - {a})


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_control_is_steered_by_masks_and_not_by_joints(name: str) -> None:
    control = peer(name)
    joints, valid = two_hands(3, 42)
    masks = masks_of(joints)
    a = run(control, joints, valid, latent(), masks=masks)
    b = run(control, joints.flip(1), valid, latent(), masks=masks)
    assert torch.equal(a.geometry, b.geometry)


@pytest.mark.parametrize("name", MASKS)
def test_unfit_masks_are_named(name: str) -> None:
    control = peer(name)
    joints, valid = two_hands(3, 42)
    with pytest.raises(ValueError, match=r"masks must have shape \(1, 3, 96, 128\)"):
        run(control, joints, valid, latent(), masks=masks_of(joints)[:, :, ::2])
    with pytest.raises(ValueError, match="integer classes"):
        run(control, joints, valid, latent(), masks=masks_of(joints).float())


# In a world model

METHODS = [
    *((name, {}) for name in PEERS),
    ("joint", {"propagation": "average", "geometry_embedding": False}),
    ("joint", {"geometry_embedding": False}),
]


@pytest.mark.parametrize("name,kwargs", METHODS)
def test_a_world_model_with_each_control_is_saved_loaded_and_imagines(
    name: str, kwargs: dict[str, Any], tmp_path: Path
) -> None:
    """The same frames after loading, and others when the hands go elsewhere."""
    torch.manual_seed(0)
    frames = 3
    model = WorldModel(
        WorldModelConfig(
            fps=10.0,
            num_frames=frames,
            height=48,
            width=64,
            extra_slots=EXTRA_SLOTS,
            autoencoder=PartSpec(
                name="frame", kwargs={"latent_channels": 4, "channels": [8, 16, 16]}
            ),
            backbone=PartSpec(
                name="wan",
                kwargs={
                    "latent_channels": 4,
                    "channels": 16,
                    "stem_blocks": 1,
                    "head_blocks": 1,
                    "transformer": {
                        "num_layers": 1,
                        "num_attention_heads": 2,
                        "attention_head_dim": 16,
                        "ffn_dim": 32,
                    },
                },
            ),
            control=PartSpec(name=name, kwargs=kwargs),
        )
    ).eval()
    torch.nn.init.normal_(model.backbone.out.weight, std=0.1)
    episode = synthetic_episode(3, frames=8)
    masks = masks_of(torch.zeros(1, frames, 1))[0, :, :48, :64].numpy()

    def imagine(world: WorldModel, command: np.ndarray, masks: np.ndarray) -> np.ndarray:
        valid = np.tile(episode.hand_valid[0], (frames, 1))
        trajectory = HandTrajectory(np.arange(frames) / 10.0, command, valid)
        given = {"masks": masks} if world.control.reads_masks else {}
        return world.imagine(
            episode.images[0], trajectory, episode.camera.matrix, seed=0, **given
        ).frames

    assert episode.hand_positions.shape[1] == len(NAMES)
    command = episode.hand_positions[:frames].copy()
    model.save_pretrained(tmp_path)
    loaded = WorldModel.from_pretrained(tmp_path)
    assert loaded.config == model.config
    there = imagine(loaded, command, masks)
    np.testing.assert_array_equal(there, imagine(model, command, masks))
    command[1:, :, :2] += 0.04
    elsewhere = imagine(loaded, command, masks[:, ::-1, ::-1])
    assert (there[:, 1:] != elsewhere[:, 1:]).any()
