"""Joint control: published weights reproduced, occlusion right on every grid, masks exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hand_shapes import look_from, open_dex3_hand, open_hand
from safetensors.torch import load_file, save_file
from torch import Tensor

from ego_world_model.hands import slot_index
from ego_world_model.world_model.controls import ControlConfig, JointControl

# (cells wide, cells high, focal length in pixels): the tiny model's and a full-size Wan's grid.
GRIDS = {"tiny": (16, 12, 121.0), "full": (104, 60, 786.0)}


def intrinsics(grid: str) -> Tensor:
    width, height, focal = GRIDS[grid]
    cx, cy = (8 * width - 1) / 2, (8 * height - 1) / 2
    return torch.tensor([[[focal, 0, cx], [0, focal, cy], [0, 0, 1.0]]])


def latent(grid: str, batch: int = 1, channels: int = 16) -> Tensor:
    width, height, _ = GRIDS[grid]
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1))


def moving_hand(frames: int, grid_slots: int = 42) -> tuple[Tensor, Tensor]:
    """A left hand that drifts to the right: joints (1, T, J, 3) and valid (1, T, J)."""
    joints = torch.zeros(1, frames, grid_slots, 3)
    drift = torch.linspace(0, 0.1, frames)[:, None, None] * torch.tensor([1.0, 0.3, 0.2])
    joints[0, :, :21] = open_hand() + torch.tensor([-0.05, 0.0, 0.45]) + drift
    valid = torch.zeros(1, frames, grid_slots, dtype=torch.bool)
    valid[..., :21] = True
    return joints, valid


def control(**options: object) -> JointControl:
    torch.manual_seed(0)
    return JointControl(**options).eval()


@pytest.mark.parametrize("name", ["20_joints", "42_joints", "42_joints_missing"])
@pytest.mark.parametrize("prefix", ["", "hand_controler."])
def test_published_weights_give_the_published_output(
    shared: Path, tmp_path: Path, name: str, prefix: str
) -> None:
    case = load_file(shared / "control_reference" / f"control_{name}.safetensors")
    path = tmp_path / "hand-controller.safetensors"
    save_file({prefix + k[8:]: v for k, v in case.items() if k.startswith("weights.")}, path)
    module = JointControl.from_released(path)
    with torch.no_grad():
        signal = module(
            case["input.joints_cam"], case["input.intrinsics"], case["input.reference_latent"]
        )
    if name.startswith("42"):
        assert sum(p.numel() for p in module.parameters()) == 22_000
    assert set(module.state_dict()) == {k[8:] for k in case if k.startswith("weights.")}
    motion, geometry = case["output.motion"], case["output.geometry"]
    assert (signal.motion - motion)[:, :, 1:].abs().max() < 1e-4
    assert (signal.geometry - geometry).abs().max() < 1e-4


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("tilt", [0, 30, 45])
def test_open_hand_is_fully_visible(grid: str, tilt: int) -> None:
    joints, valid = moving_hand(1)
    joints[0, 0, :21] = look_from(open_hand(), tilt) + torch.tensor([0.0, 0.0, 0.45])
    seen = control(temporal_stride=1)(joints, intrinsics(grid), latent(grid), valid).visibility
    assert seen[0, :21].min() > 0.9
    assert (seen[0, 21:] == 0).all()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("turn", [-30, 30])
def test_open_robot_hand_is_fully_visible_and_hides_a_hand_behind(grid: str, turn: int) -> None:
    """A G1's Dex3 hand, turned so far that its thumb does not point along the line of sight."""
    robot_joints, robot_valid = open_dex3_hand(turn)
    joints, valid = moving_hand(1)
    joints[0, 0, :21] = robot_joints + torch.tensor([0.0, 0.0, 0.45])
    joints[0, 0, 21:] = joints[0, 0, :21] * (0.55 / 0.45)
    valid[0, 0, :21] = valid[0, 0, 21:] = robot_valid
    seen = control(temporal_stride=1)(joints, intrinsics(grid), latent(grid), valid).visibility[0]
    assert seen[:21][robot_valid].min() > 0.9
    assert seen[21:].max() < 0.1


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_joints_behind_another_hand_are_hidden(grid: str, mode: str) -> None:
    joints, valid = moving_hand(1)
    front = open_hand() + torch.tensor([0.0, 0.0, 0.45])
    joints[0, 0, :21] = front
    joints[0, 0, 21:] = front * (0.55 / 0.45)  # the right hand, exactly behind the left
    valid[:] = True
    module = control(temporal_stride=1, occlusion=mode)
    seen = module(joints, intrinsics(grid), latent(grid), valid).visibility[0]
    assert seen[:21].min() > 0.9
    assert seen[21:].max() < 0.1


def test_without_occlusion_every_joint_in_view_is_visible() -> None:
    joints, valid = moving_hand(1)
    joints[0, 0, 21:] = joints[0, 0, :21] * 1.2
    valid[:] = True
    module = control(temporal_stride=1, occlusion="none")
    seen = module(joints, intrinsics("tiny"), latent("tiny"), valid).visibility
    assert (seen > 0.999).all()


@pytest.mark.parametrize("stride", [1, 4])
def test_invalid_joints_change_nothing_whatever_their_values(stride: int) -> None:
    joints, valid = moving_hand(9)
    valid[:, 4:7, 8] = False  # a joint that comes and goes
    module = control(temporal_stride=stride)
    clean = module(joints, intrinsics("tiny"), latent("tiny"), valid)
    for junk in (torch.nan, torch.inf, 0.4):
        dirty = torch.where(valid[..., None], joints, torch.tensor(junk))
        dirty.requires_grad_(True)
        signal = module(dirty, intrinsics("tiny"), latent("tiny"), valid)
        assert torch.equal(signal.motion, clean.motion)
        assert torch.equal(signal.geometry, clean.geometry)
        assert torch.equal(signal.visibility, clean.visibility)
        (signal.motion.sum() + signal.geometry.square().sum()).backward()
        assert torch.isfinite(dirty.grad).all()
        assert (dirty.grad[~valid] == 0).all()
        assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


def test_a_joint_behind_the_camera_counts_as_invalid() -> None:
    joints, valid = moving_hand(5)
    joints[:, :, 0, 2] = -0.3
    absent = valid.clone()
    absent[..., 0] = False
    module = control()
    behind = module(joints, intrinsics("tiny"), latent("tiny"), valid)
    without = module(joints, intrinsics("tiny"), latent("tiny"), absent)
    assert torch.equal(behind.motion, without.motion)
    assert torch.equal(behind.geometry, without.geometry)


def test_no_valid_joint_gives_no_motion() -> None:
    joints, valid = moving_hand(5)
    signal = control()(joints, intrinsics("tiny"), latent("tiny"), torch.zeros_like(valid))
    assert (signal.motion == 0).all()
    assert torch.isfinite(signal.geometry).all()


@pytest.mark.parametrize("stride,latents", [(1, 17), (4, 5)])
def test_latent_frames_follow_the_temporal_stride(stride: int, latents: int) -> None:
    joints, valid = moving_hand(17, 46)
    module = control(num_joints=46, temporal_stride=stride, geometry_channels=24)
    z = latent("tiny")
    signal = module(joints, intrinsics("tiny"), z, valid)
    assert signal.motion.shape == (1, 16, latents, 12, 16)
    assert signal.geometry.shape == (1, 24, latents, 12, 16)
    # Frame 0 alone makes latent 0; the past never depends on the future.
    first = module(joints[:, : 1 + stride], intrinsics("tiny"), z, valid[:, : 1 + stride])
    torch.testing.assert_close(first.motion, signal.motion[:, :, :2])
    torch.testing.assert_close(first.geometry, signal.geometry[:, :, :2])


def test_frames_that_do_not_fill_the_stride_are_refused() -> None:
    joints, valid = moving_hand(16)
    with pytest.raises(ValueError, match=r"16 frames.*13 or 17.*resample"):
        control()(joints, intrinsics("tiny"), latent("tiny"), valid)


def test_the_nearer_joint_wins_where_two_meet() -> None:
    """Two joints seen apart meet at the image centre: the cell takes the nearer one's colour."""
    near, far = slot_index("left_index_tip"), slot_index("right_index_tip")
    joints, valid = torch.zeros(1, 2, 42, 3), torch.zeros(1, 2, 42, dtype=torch.bool)
    valid[..., [near, far]] = True
    joints[0, 0, near] = torch.tensor([-0.15, 0.0, 0.40])
    joints[0, 0, far] = torch.tensor([0.15, 0.0, 0.60])
    joints[0, 1, near, 2], joints[0, 1, far, 2] = 0.40, 0.60
    z = torch.zeros(1, 1, 12, 16)
    z[..., :8], z[..., 8:] = 1.0, -1.0  # what the nearer joint, and the farther one, look like
    module = control(latent_channels=1, temporal_stride=1)
    signal = module(joints, intrinsics("tiny"), z, valid)
    centre = signal.motion[0, 0, 1, 5:7, 7:9]
    assert (centre > 0.5).all()
    assert signal.motion[0, 0, 1].abs().max() <= 1.0


@pytest.mark.parametrize("grid", GRIDS)
def test_motion_is_bounded_by_the_reference_and_zero_far_from_joints(grid: str) -> None:
    joints, valid = moving_hand(5)
    joints[0, :, 21:] = joints[0, :, :21] + 0.001  # many joints on the same cells
    valid[:] = True
    width, height, _ = GRIDS[grid]
    signal = control(temporal_stride=1, occlusion="none")(
        joints, intrinsics(grid), torch.ones(1, 16, height, width), valid
    )
    assert signal.motion.max() <= 1.0 + 1e-5
    assert signal.motion.max() > 0.95
    assert signal.motion[..., 0, -1].abs().max() < 1e-3  # the far corner


def test_a_hand_that_stays_keeps_its_latent_and_one_that_moves_takes_it_along() -> None:
    joints, valid = moving_hand(2)
    joints[:, 1] = joints[:, 0] + torch.tensor([8 * 4 * 0.45 / 121.0, 0.0, 0.0])  # 4 cells right
    z = torch.zeros(1, 16, 12, 16)
    z[..., :8] = 1.0
    signal = control(temporal_stride=1)(joints, intrinsics("tiny"), z, valid)
    torch.testing.assert_close(
        signal.motion[:, :, 1, :, 4:], signal.motion[:, :, 0, :, :-4], atol=2e-3, rtol=0
    )


def test_gradients_reach_joints_latent_and_every_parameter() -> None:
    joints, valid = moving_hand(5)
    joints.requires_grad_(True)
    z = latent("tiny").requires_grad_(True)
    module = control()
    signal = module(joints, intrinsics("tiny"), z, valid)
    (signal.motion.square().mean() + (signal.geometry * z[:, :, None]).mean()).backward()
    assert (joints.grad[valid].abs().sum(dim=-1) > 0).all()
    assert (z.grad.abs() > 0).any()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("grid", GRIDS)
def test_geometry_tells_an_eighth_of_a_cell(grid: str) -> None:
    """A linear reading of the untrained geometry map finds a fingertip inside its cell."""
    focal, count = GRIDS[grid][2], 250
    tip = slot_index("right_index_tip")
    steps = torch.rand(count, 2, generator=torch.Generator().manual_seed(2)) - 0.5  # cells
    joints, valid = torch.zeros(count, 1, 42, 3), torch.zeros(count, 1, 42, dtype=torch.bool)
    valid[..., tip] = True
    joints[:, 0, tip, :2] = (steps + 0.5) * 8 * 0.45 / focal  # around cell (8, 6) of 16 x 12
    joints[:, 0, tip, 2] = 0.45
    matrix = torch.tensor([[focal, 0, 63.5], [0, focal, 47.5], [0, 0, 1.0]])
    with torch.no_grad():
        geometry = control(temporal_stride=1)(
            joints, matrix.expand(count, 3, 3), latent("tiny", count), valid
        ).geometry
    patch = geometry[:, :, 0, 5:8, 7:10]
    features = torch.cat([patch.flatten(1), torch.ones(count, 1)], dim=1).double()
    readout = torch.linalg.lstsq(features[:200], steps[:200].double()).solution
    error = (features[200:] @ readout - steps[200:]).abs().max()
    assert error < 0.125


def test_without_geometry_embedding_only_the_motion_is_left() -> None:
    """OCA + OP of the paper: the same motion, an empty geometry map, one parameter."""
    joints, valid = moving_hand(9)
    arguments = joints, intrinsics("tiny"), latent("tiny"), valid
    ours, bare = control(), control(geometry_embedding=False)
    assert [name for name, _ in bare.named_parameters()] == ["log_depth_gain"]
    expected, signal = ours(*arguments), bare(*arguments)
    assert torch.equal(signal.motion, expected.motion)
    assert torch.equal(signal.visibility, expected.visibility)
    assert signal.geometry.shape == expected.geometry.shape
    assert (signal.geometry == 0).all()


def test_averaging_is_the_z_buffer_blind_to_depth() -> None:
    """OCA alone: equal depths give the same motion, unequal ones do not, and nothing is learnt."""
    joints, valid = moving_hand(5)
    joints[..., 2] = 0.45
    average = control(propagation="average", geometry_embedding=False)
    assert not list(average.parameters())
    for tilted in (False, True):
        joints[..., 2] += tilted * torch.linspace(0, 0.3, 42)
        arguments = joints, intrinsics("tiny"), latent("tiny"), valid
        a, b = average(*arguments).motion, control()(*arguments).motion
        assert torch.allclose(a, b, atol=1e-5) != tilted


def test_a_saved_module_computes_the_same(tmp_path: Path) -> None:
    joints, valid = moving_hand(5, 46)
    module = control(num_joints=46, latent_channels=12, geometry_channels=24)
    module.save_pretrained(tmp_path)
    loaded = JointControl.from_pretrained(tmp_path)
    assert loaded.config == module.config
    z = latent("tiny", channels=12)
    a, b = (m(joints, intrinsics("tiny"), z, valid) for m in (module, loaded))
    assert torch.equal(a.geometry, b.geometry) and torch.equal(a.motion, b.motion)


def test_candidates_in_one_batch_equal_candidates_alone() -> None:
    joints, valid = moving_hand(9)
    joints = torch.cat([joints, joints.flip(1)])
    valid = valid.expand(2, -1, -1)
    module = control()
    k = intrinsics("tiny").expand(2, 3, 3)
    both = module(joints, k, latent("tiny", 2), valid)
    moving_camera = module(joints, k[:, None].expand(2, 9, 3, 3), latent("tiny", 2), valid)
    for i in range(2):
        one = module(joints[i : i + 1], k[:1], latent("tiny", 2)[i : i + 1], valid[i : i + 1])
        torch.testing.assert_close(one.geometry, both.geometry[i : i + 1])
        torch.testing.assert_close(one.motion, both.motion[i : i + 1])
    torch.testing.assert_close(moving_camera.geometry, both.geometry)


def test_autocast_does_not_coarsen_the_control() -> None:
    joints, valid = moving_hand(5)
    module = control()
    full = module(joints, intrinsics("tiny"), latent("tiny"), valid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = module(joints, intrinsics("tiny"), latent("tiny"), valid)
    assert torch.equal(full.geometry, cast.geometry)


@pytest.mark.parametrize(
    "change,message",
    [
        ({"joints": torch.zeros(1, 5, 41, 3)}, r"joints must have shape \(B, T, 42, 3\)"),
        ({"intrinsics": torch.eye(3)}, r"intrinsics must have shape \(1, 3, 3\)"),
        ({"reference_latent": torch.zeros(1, 12, 12, 16)}, r"reference_latent .*\(1, 16, h, w\)"),
        ({"valid": torch.ones(1, 5, 2, dtype=torch.bool)}, r"valid must have shape \(1, 5, 42\)"),
        ({"joints": torch.full((1, 5, 42, 3), torch.nan)}, "NaN or infinity where valid"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Tensor], message: str) -> None:
    joints, valid = moving_hand(5)
    arguments = {
        "joints": joints,
        "intrinsics": intrinsics("tiny"),
        "reference_latent": latent("tiny"),
        "valid": valid,
    }
    with pytest.raises(ValueError, match=message):
        control()(**(arguments | change))


def test_unfit_weights_and_configs_are_named(tmp_path: Path) -> None:
    path = tmp_path / "hand-controller.safetensors"
    with pytest.raises(FileNotFoundError, match="hand-controller"):
        JointControl.from_released(path)
    path.write_bytes(b"not a safetensors file")
    with pytest.raises(ValueError, match="not a readable safetensors"):
        JointControl.from_released(path)
    save_file({"lora.weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="joint_id_embed.weight is missing"):
        JointControl.from_released(path)
    with pytest.raises(ValueError, match="unknown keys depth_gains"):
        ControlConfig.from_dict({"depth_gains": 3.0})
    with pytest.raises(ValueError, match="occlusion must be"):
        JointControl(occlusion="fuzzy")
    with pytest.raises(ValueError, match="propagation must be"):
        JointControl(propagation="sum")
    for ablation in ({"propagation": "average"}, {"geometry_embedding": False}):
        with pytest.raises(ValueError, match="released formulation has no ablations"):
            JointControl(compat="released", **ablation)
