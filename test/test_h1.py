"""The H1 robots: the published kinematics, five-fingered hands with coupled joints, the table."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np
import pytest
from transforms3d.quaternions import quat2mat

from ego_world_model.embodiment import Embodiment, load_embodiment
from ego_world_model.hands import EXTRA_SLOTS, SLOT_NAMES, slot_index
from ego_world_model.kinematics import HandKinematics
from ego_world_model.simulation import MASK_CLASSES, TableTop

REFERENCES = {"h1_2_inspire": "fk_reference_h1_2.npz", "h1_inspire": "fk_reference_h1.npz"}


@pytest.fixture(scope="module", params=REFERENCES)
def robot(request: pytest.FixtureRequest) -> Embodiment:
    return load_embodiment(request.param)


@pytest.fixture(scope="module")
def fk(robot: Embodiment) -> HandKinematics:
    return HandKinematics(robot)


@pytest.fixture(scope="module")
def reference(robot: Embodiment, shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "robots/h1_inspire" / REFERENCES[robot.name]) as file:
        return dict(file)


def _sim(robot: Embodiment, task: str | None, seed: int, *, size: tuple[int, int]) -> TableTop:
    return TableTop(robot, seed=seed, task=task, width=size[0], height=size[1])


def test_every_link_agrees_with_the_published_robot(
    fk: HandKinematics, reference: dict[str, np.ndarray]
) -> None:
    """200 random configurations, followers given as the reference has them."""
    links = list(reference["link_names"])
    assert "L_thumb_distal" in links and reference["camera_link"].item() in links
    for q, positions, quaternions in zip(
        reference["q"], reference["pos"], reference["quat_wxyz"], strict=True
    ):
        poses = fk.link_poses(dict(zip(reference["joint_names"], q, strict=True)), links)
        assert np.abs(poses[:, :3, 3] - positions).max() < 1e-6
        rotations = np.array([quat2mat(quaternion) for quaternion in quaternions])
        assert np.abs(poses[:, :3, :3] - rotations).max() < 1e-6


def test_unnamed_followers_move_as_published(
    robot: Embodiment, fk: HandKinematics, reference: dict[str, np.ndarray]
) -> None:
    """A robot reports its driven joints only; the fingertips come out all the same."""
    names = [str(name) for name in reference["joint_names"]]
    followers = set(map(str, reference["mimic_joint"]))
    assert {c.follower for c in robot.couplings} == followers and len(followers) == 12
    tips = [
        f"{'left' if n[0] == 'L' else 'right'}{n[1:]}" for n in map(str, reference["tip_names"])
    ]
    for q, positions in zip(reference["q"], reference["tip_pos"], strict=True):
        driven = {n: v for n, v in zip(names, q, strict=True) if n not in followers}
        found = fk.slot_positions(robot.q_from(driven)[None], tips)[0]
        assert np.abs(found - positions).max() < 1e-6


def test_mujoco_agrees_on_the_same_model(
    robot: Embodiment, reference: dict[str, np.ndarray]
) -> None:
    model = mujoco.MjModel.from_xml_path(str(robot.model_path))
    data = mujoco.MjData(model)
    order = [model.joint(name).qposadr[0] for name in reference["joint_names"]]
    for q, positions in zip(reference["q"][::10], reference["pos"][::10], strict=True):
        data.qpos[order] = q
        mujoco.mj_kinematics(model, data)
        found = np.array([data.body(name).xpos for name in reference["link_names"]])
        assert np.abs(found - positions).max() < 1e-6


def test_limits_are_published_or_keep_the_followers_in_theirs(
    robot: Embodiment, reference: dict[str, np.ndarray]
) -> None:
    names = [str(name) for name in reference["joint_names"]]
    order = [names.index(name) for name in robot.joint_names]
    lower, upper = reference["lower"][order], reference["upper"][order]
    differ = (np.abs(robot.lower - lower) > 1e-6) | (np.abs(robot.upper - upper) > 1e-6)
    changed = {robot.joint_names[i] for i in np.flatnonzero(differ)}
    assert changed == {f"{side}_thumb_proximal_pitch_joint" for side in "LR"}
    for limit in (robot.lower, robot.upper):
        q = robot.coupled(limit)
        assert (q >= lower - 1e-6).all() and (q <= upper + 1e-6).all()
    pitch = robot.joint_names.index("L_thumb_proximal_pitch_joint")
    assert (robot.lower[pitch], robot.upper[pitch]) == pytest.approx((0.0, 0.5))


def test_inspire_fills_seventeen_slots_a_hand(robot: Embodiment, fk: HandKinematics) -> None:
    joints = fk.hand_joints(robot.neutral, extra_slots=EXTRA_SLOTS)
    assert joints.valid.sum() == 2 * 17 + len(EXTRA_SLOTS)
    missing = {n for n, ok in zip(SLOT_NAMES, joints.valid[:42], strict=True) if not ok}
    fingers = ("index", "middle", "ring", "pinky")
    assert missing == {f"{side}_{f}_dip" for side in ("left", "right") for f in fingers}


def test_neutral_pose_shows_both_hands(robot: Embodiment, fk: HandKinematics) -> None:
    joints = fk.hand_joints(robot.neutral)
    assert robot.camera.contains(robot.camera.project(joints.positions[joints.valid])).all()
    left, right = (joints.positions[slot_index(f"{s}_wrist")] for s in ("left", "right"))
    assert left[0] < right[0] and abs(left[1] - right[1]) < 0.01


def test_camera_looks_down_and_forward_from_the_colour_sensor(
    robot: Embodiment, fk: HandKinematics
) -> None:
    """Both robots carry the same camera at 50.8 degrees, on links of different conventions."""
    pose = fk.camera_pose({})
    assert pose[:3, 2] == pytest.approx((np.cos(0.886), 0.0, -np.sin(0.886)), abs=1e-3)
    assert pose[:3, 0] == pytest.approx((0.0, -1.0, 0.0), abs=1e-3)  # right in the image
    assert pose[1, 3] == pytest.approx(0.0325, abs=1e-5)


def test_inverse_kinematics_places_hands_and_bends_followers(
    robot: Embodiment, fk: HandKinematics
) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        q = robot.neutral.copy()
        for hand in robot.hands.values():
            q[robot.indices(hand.arm)] += rng.uniform(-0.3, 0.3, len(hand.arm))
            fingers = robot.indices(hand.fingers)
            q[fingers] = rng.uniform(robot.lower[fingers], robot.upper[fingers])
        q = robot.coupled(np.clip(q, robot.lower, robot.upper))
        wanted = fk.hand_state(q)
        solved = fk.solve(wanted, robot.neutral)
        got = fk.hand_state(solved)
        assert np.abs(got.translation - wanted.translation).max() < 1e-3
        assert np.abs(got.fingers - wanted.fingers).max() < 1e-9
        if all(hand.turns_freely for hand in robot.hands.values()):
            assert np.abs(got.rotation - wanted.rotation).max() < 1e-2
        assert np.array_equal(solved, robot.coupled(solved))
        assert (solved >= robot.lower - 1e-9).all() and (solved <= robot.upper + 1e-9).all()


def test_an_arm_of_five_joints_places_a_hand_that_it_cannot_turn() -> None:
    robot = load_embodiment("h1_inspire")
    fk = HandKinematics(robot)
    wanted = fk.hand_state(robot.neutral)
    wanted.rotation[0] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # palm and fingers as the camera sits
    got = fk.hand_state(fk.solve(wanted, robot.neutral))
    assert np.abs(got.translation - wanted.translation).max() < 1e-3
    assert np.abs(got.rotation[0] - wanted.rotation[0]).max() > 0.1


@pytest.mark.parametrize("task", ["reach", "grasp", "cross"])
def test_tasks_are_planned_and_fingers_stay_coupled(task: str) -> None:
    """Of three scenes most allow the task; what moves keeps to limits, couplings and table."""
    robot = load_embodiment("h1_2_inspire")
    fk, planned = HandKinematics(robot), 0
    for seed in range(3):
        sim = _sim(robot, task, seed, size=(64, 48))
        planned += sim.task_name == task
        q = sim.plan(np.arange(0.0, 4.0, 0.05))
        assert np.array_equal(q, robot.coupled(q))
        assert (q >= robot.lower - 1e-9).all() and (q <= robot.upper + 1e-9).all()
        assert np.abs(np.diff(q, axis=0)).max() / 0.05 < 4.0  # rad/s
        points = fk.slot_positions(q, [name for name in SLOT_NAMES if name in robot.slots])
        assert points[..., 2].min() > sim.scene.table_height + 0.01
        sim.close()
    assert planned >= 2


def test_commanded_followers_cannot_leave_their_drivers() -> None:
    robot = load_embodiment("h1_2_inspire")
    sim = _sim(robot, "idle", 0, size=(64, 48))
    q = np.repeat(sim.joint_positions[None], 2, axis=0)
    driver = robot.joint_names.index("L_index_proximal_joint")
    follower = robot.joint_names.index("L_index_intermediate_joint")
    q[1, driver], q[1, follower] = 1.0, 0.1
    sim.follow([0.5, 1.0], q)
    sim.advance(1.2)
    assert sim.joint_positions[[driver, follower]] == pytest.approx([1.0, 1.0])
    sim.close()


def test_pictures_show_the_hands_where_the_joints_are() -> None:
    robot = load_embodiment("h1_2_inspire")
    fk, on_hand, total = HandKinematics(robot), 0, 0
    sim = _sim(robot, "fingers", 4, size=(320, 240))
    for _ in range(5):
        sim.advance(0.5)
        seen = sim.render(masks=True, depth=False)
        joints = fk.hand_joints(sim.joint_positions, sim.camera_pose)
        for side, name in enumerate(("left_hand", "right_hand")):
            slots = slice(21 * side, 21 * side + 21)
            pixels = sim.camera.project(joints.positions[slots][joints.valid[slots]])
            at = np.round(pixels[sim.camera.contains(pixels)]).astype(int)
            on_hand += int((seen.masks[at[:, 1], at[:, 0]] == MASK_CLASSES.index(name)).sum())
            total += 17
        assert np.bincount(seen.masks.ravel(), minlength=7)[1:3].min() > 300  # pixels of a hand
    sim.close()
    assert on_hand / total > 0.85


def test_wire_orders_cover_the_robot() -> None:
    robot = load_embodiment("h1_2_inspire")
    body, hands = robot.state_orders["unitree_hg/LowState"], robot.state_orders["inspire/state"]
    assert len(body) == 27 and len(hands) == 12
    assert body[12] == "torso_joint" and body[13:15] == (
        "left_shoulder_pitch_joint",
        "left_shoulder_roll_joint",
    )
    assert hands[0] == "R_pinky_proximal_joint" and hands[11] == "L_thumb_proximal_yaw_joint"
    followers = {coupling.follower for coupling in robot.couplings}
    assert set(body) | set(hands) == set(robot.joint_names) - followers
