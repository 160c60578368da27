"""Joint targets of a chunk: tracking, limits, hands kept apart, and what is out of reach."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from ego_world_model.embodiment import Embodiment, load_embodiment
from ego_world_model.hands import slot_index
from ego_world_model.kinematics import HandKinematics, matrix_from_6d
from ego_world_model.policy.chunk import HandChunk
from ego_world_model.policy.limits import JointLimits, JointSpeeds
from ego_world_model.policy.targets import JointTargets, joint_targets
from ego_world_model.simulation import TableTop

ROBOTS = ("g1_dex3", "h1_2_inspire", "h1_inspire")
TIMES = 0.1 * np.arange(1, 17)


@pytest.fixture(scope="module", params=ROBOTS)
def robot(request: pytest.FixtureRequest) -> Embodiment:
    return load_embodiment(request.param)


@pytest.fixture(scope="module")
def fk(robot: Embodiment) -> HandKinematics:
    return HandKinematics(robot)


@pytest.fixture(scope="module")
def limits(fk: HandKinematics) -> JointLimits:
    return JointLimits(fk)


def chunk_of(fk: HandKinematics, reference: np.ndarray, q: np.ndarray) -> HandChunk:
    """What the hands do in q (N, nq), seen from the camera at ``reference`` (nq,)."""
    to_reference = np.linalg.inv(fk.camera_pose(reference))
    states = [fk.hand_state(state) for state in q]
    moved = [to_reference @ fk.camera_pose(state) for state in q]
    return HandChunk(
        TIMES[: len(q)],
        np.array(
            [s.translation @ m[:3, :3].T + m[:3, 3] for s, m in zip(states, moved, strict=True)]
        ),
        np.array(
            [m[:3, :3] @ matrix_from_6d(s.rotation) for s, m in zip(states, moved, strict=True)]
        ),
        np.array([s.fingers for s in states]),
        states[0].valid,
        states[0].finger_names,
    )


@pytest.fixture(scope="module")
def plans(robot: Embodiment) -> list[np.ndarray]:
    """Scripted motions (17, nq) at 10 Hz, the first configuration is that of the observation."""
    found = []
    for task, seed in (("reach", 0), ("grasp", 1), ("bimanual", 2)):
        sim = TableTop(robot, seed=seed, task=task, width=64, height=48, still=True)
        found += [sim.plan(start + np.concatenate([[0.0], TIMES])) for start in (0.0, 1.0)]
        sim.close()
    return found


def keeps_limits(targets: JointTargets, limits: JointLimits) -> bool:
    q = np.vstack([targets.start, targets.q])
    seconds = np.diff(np.concatenate([[0.0], targets.times]))[:, None]
    robot = limits.kinematics.robot
    return bool(
        (q >= robot.lower).all()
        and (q <= robot.upper).all()
        and (np.abs(np.diff(q, axis=0)) <= limits.speed * seconds + 1e-12).all()
        and np.array_equal(robot.coupled(q), q)
    )


def smallest_gap(targets: JointTargets, limits: JointLimits) -> float:
    """Metres between the hands from the start to the end, the way between steps included."""
    q = np.vstack([targets.start, targets.q])
    ways = [a + s * (b - a) for a, b in zip(q[:-1], q[1:], strict=True) for s in (0.25, 0.5, 0.75)]
    return min(limits.clearance.gap(state) for state in [*q, *ways])


def test_scripted_motion_is_tracked(
    robot: Embodiment, fk: HandKinematics, limits: JointLimits, plans: list[np.ndarray]
) -> None:
    """A motion that the robot can make comes out to 5 mm and 0.05 rad, fingers included."""
    for start, *rest in plans:
        chunk = chunk_of(fk, start, np.array(rest))
        targets = joint_targets(chunk, fk, start, limits=limits)
        assert targets.position_error.max() < 0.005
        if all(hand.turns_freely for hand in robot.hands.values()):
            assert targets.rotation_error.max() < 0.05
        for row, hand in enumerate(robot.hands.values()):
            fingers = targets.q[:, robot.indices(hand.fingers)]
            assert np.abs(fingers - chunk.fingers[:, row, : fingers.shape[1]]).max() < 1e-9
        assert keeps_limits(targets, limits)
        assert "wrist" not in targets.explain(robot) or not robot.hands["left"].turns_freely


def test_errors_are_those_of_the_joint_positions(
    robot: Embodiment, fk: HandKinematics, limits: JointLimits, plans: list[np.ndarray]
) -> None:
    """The reported error is the distance between the chunk and the hands at q."""
    start, q = plans[0][0], plans[0][1:]
    chunk = chunk_of(fk, start, q)
    chunk = replace(chunk, translation=chunk.translation + np.linspace(0, 0.3, 16)[:, None, None])
    targets = joint_targets(chunk, fk, start, limits=limits)
    found = chunk_of(fk, start, targets.q)
    metres = np.linalg.norm(found.translation - chunk.translation, axis=-1)
    assert np.abs(metres - targets.position_error).max() < 1e-9
    cosine = (
        np.trace(found.rotation.swapaxes(-1, -2) @ chunk.rotation, axis1=-2, axis2=-1) - 1
    ) / 2
    assert np.abs(np.cos(targets.rotation_error) - cosine).max() < 1e-9


def test_out_of_reach_is_approached_and_reported(
    robot: Embodiment, fk: HandKinematics, limits: JointLimits
) -> None:
    """Wrists sent a metre away stop where no other configuration of the arm is much closer."""
    start = robot.neutral
    chunk = chunk_of(fk, start, np.repeat(start[None], 16, axis=0))
    share = np.minimum(1.0, np.linspace(0.0, 2.0, 16))[:, None, None]
    chunk = replace(chunk, translation=chunk.translation + share * np.array([0.0, -0.5, 0.87]))
    targets = joint_targets(chunk, fk, start, limits=limits)
    assert keeps_limits(targets, limits)
    assert np.abs(np.diff(targets.q[-4:], axis=0)).max() < 0.05  # at rest, stretched out
    rng = np.random.default_rng(0)
    for row, (side, hand) in enumerate(robot.hands.items()):
        q = np.repeat(start[None], 8000, axis=0)
        arm = robot.indices(hand.arm)
        q[:, arm] = rng.uniform(robot.lower[arm], robot.upper[arm], (len(q), len(arm)))
        wrists = fk.hand_joints_batch(q)[0][:, slot_index(f"{side}_wrist")]
        closest = np.linalg.norm(wrists - chunk.translation[-1, row], axis=1).min()
        assert targets.position_error[-1, row] < closest + 0.03
        assert f"{side} wrist off by up to" in targets.explain(robot)


def test_too_fast_a_chunk_is_slowed_down(robot: Embodiment, fk: HandKinematics) -> None:
    """A jump: joints go as fast as they may, and catch up when it ends."""
    start = robot.neutral
    goal = start.copy()
    elbow = robot.joint_names.index("left_elbow_joint")
    goal[elbow] += 0.5
    chunk = chunk_of(fk, start, np.repeat(goal[None], 16, axis=0))  # a jump
    slow = JointLimits(
        fk, speeds=JointSpeeds(arm=0.8, fingers=1.0, joints={"left_elbow_joint": 0.6})
    )
    targets = joint_targets(chunk, fk, start, limits=slow)
    assert keeps_limits(targets, slow)
    assert targets.limited.speed[0, elbow] and targets.position_error[0, 0] > 0.01
    assert targets.position_error[-1].max() < 0.005
    assert not targets.limited.speed[-1].any()
    assert "at their top speed: " in targets.explain(robot)


def test_fingers_beyond_their_limits_are_clipped_and_said(
    robot: Embodiment, fk: HandKinematics, limits: JointLimits
) -> None:
    start = robot.neutral
    chunk = chunk_of(fk, start, np.repeat(start[None], 16, axis=0))
    targets = joint_targets(replace(chunk, fingers=chunk.fingers + 9.0), fk, start, limits=limits)
    assert keeps_limits(targets, limits)
    fingers = robot.indices(robot.hands["right"].fingers)
    assert np.allclose(targets.q[-1, fingers], robot.upper[fingers])
    assert targets.limited.position[-1, fingers].all()


def test_hands_sent_into_each_other_keep_their_margin(
    robot: Embodiment, fk: HandKinematics, limits: JointLimits
) -> None:
    """Both wrists are to meet in the middle, and to change places: the margin holds at every
    step and between steps, and the chunk after it leads the hands apart again."""
    start = robot.neutral
    assert limits.clearance.gap(start) > limits.margin
    still = chunk_of(fk, start, np.repeat(start[None], 16, axis=0))
    share = np.linspace(0, 1, 16)[:, None, None]
    for end in (still.translation.mean(axis=1, keepdims=True), still.translation[:, ::-1]):
        chunk = replace(still, translation=(1 - share) * still.translation + share * end)
        targets = joint_targets(chunk, fk, start, limits=limits)
        assert keeps_limits(targets, limits)
        assert limits.margin - 1e-6 < smallest_gap(targets, limits) < limits.margin + 0.03
        assert targets.limited.collision.any() and targets.position_error[-1].max() > 0.02
        assert "hands kept apart" in targets.explain(robot)
        back = joint_targets(still, fk, targets.q[-1], limits=limits)
        assert back.position_error[-1].max() < 0.005
        assert smallest_gap(back, limits) > limits.margin - 1e-6


def test_hands_that_are_too_close_already_only_part(
    robot: Embodiment, fk: HandKinematics, limits: JointLimits
) -> None:
    """A start inside the margin is no dead end: the gap never shrinks, and opens."""
    start = robot.neutral
    still = chunk_of(fk, start, np.repeat(start[None], 16, axis=0))
    near = JointLimits(fk, margin=-0.01)
    share = np.linspace(0, 1, 16)[:, None, None]
    middle = still.translation.mean(axis=1, keepdims=True)
    together = replace(still, translation=(1 - share) * still.translation + share * middle)
    close = joint_targets(together, fk, start, limits=near).q[-1]
    gap = limits.clearance.gap(close)
    assert gap < limits.margin - 0.005
    stay = joint_targets(
        chunk_of(fk, close, np.repeat(close[None], 16, axis=0)), fk, close, limits=limits
    )
    assert smallest_gap(stay, limits) > gap - 1e-6
    assert limits.clearance.gap(stay.q[-1]) >= limits.margin - 1e-6


def test_trajectory_starts_at_the_observation(
    robot: Embodiment, fk: HandKinematics, limits: JointLimits, plans: list[np.ndarray]
) -> None:
    """17 frames: the start at time 0 and the chunk's steps, extra slots included."""
    start, q = plans[2][0], plans[2][1:]
    targets = joint_targets(chunk_of(fk, start, q), fk, start, limits=limits)
    trajectory = targets.trajectory(fk, extra_slots=robot.extra_slots)
    assert np.allclose(trajectory.times, np.concatenate([[0.0], TIMES]))
    wanted, valid = fk.hand_joints_batch(np.vstack([start, q]), extra_slots=robot.extra_slots)
    hands = valid.copy()
    hands[42:] = False  # elbows are free
    if all(hand.turns_freely for hand in robot.hands.values()):
        assert np.abs(trajectory.positions - wanted)[:, hands].max() < 0.01
    assert np.array_equal(trajectory.positions[0], wanted[0])
    assert np.array_equal(trajectory.camera_pose, np.repeat(np.eye(4)[None], 17, axis=0))


def test_a_turned_torso_and_a_calibrated_mount_are_accounted_for(
    robot: Embodiment, fk: HandKinematics, limits: JointLimits
) -> None:
    """The chunk is meant in the camera that saw it, wherever the torso and the mount had it."""
    start = robot.neutral.copy()
    start[robot.indices(robot.torso)[0]] = 0.3
    mount = replace(robot.camera_pose, translation=robot.camera_pose.translation + 0.02)
    state = fk.hand_state(start, mount)
    repeat = np.repeat
    chunk = HandChunk(
        TIMES,
        repeat(state.translation[None], 16, axis=0),
        repeat(matrix_from_6d(state.rotation)[None], 16, axis=0),
        repeat(state.fingers[None], 16, axis=0),
        state.valid,
        state.finger_names,
    )
    targets = joint_targets(chunk, fk, start, mount, limits=limits)
    assert targets.position_error.max() < 1e-4
    nominal = joint_targets(chunk, fk, start, limits=limits)
    moved = fk.hand_state(nominal.q[-1], mount).translation - state.translation
    assert np.allclose(np.linalg.norm(moved, axis=1), 0.02 * np.sqrt(3), atol=2e-3)


def test_an_invalid_hand_stays_where_it_is(
    robot: Embodiment, fk: HandKinematics, limits: JointLimits, plans: list[np.ndarray]
) -> None:
    start, q = plans[0][0], plans[0][1:]
    chunk = chunk_of(fk, start, q)
    garbage = chunk.translation.copy()
    garbage[:, 0] = np.nan
    chunk = replace(chunk, translation=garbage, valid=np.array([False, True]))
    targets = joint_targets(chunk, fk, start, limits=limits)
    arm = robot.indices(robot.hands["left"].arm + robot.hands["left"].fingers)
    assert np.array_equal(targets.q[:, arm], np.repeat(start[None, arm], 16, axis=0))
    assert np.isnan(targets.position_error[:, 0]).all()
    assert targets.position_error[:, 1].max() < 0.005


def test_a_chunk_for_another_robot_or_of_nan_is_refused(
    robot: Embodiment, fk: HandKinematics, limits: JointLimits
) -> None:
    start = robot.neutral
    chunk = chunk_of(fk, start, np.repeat(start[None], 16, axis=0))
    other = replace(chunk, finger_names=(("claw",), chunk.finger_names[1]))
    with pytest.raises(ValueError, match="left fingers claw"):
        joint_targets(other, fk, start, limits=limits)
    bad = chunk.translation.copy()
    bad[3, 1, 0] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        joint_targets(replace(chunk, translation=bad), fk, start, limits=limits)
    with pytest.raises(ValueError, match="no such joint"):
        JointSpeeds(joints={"tail": 1.0}).of(robot)


def test_a_chunk_takes_at_most_30_ms_of_one_core(
    robot: Embodiment, fk: HandKinematics, limits: JointLimits, plans: list[np.ndarray]
) -> None:
    start, q = plans[2][0], plans[2][1:]
    chunk = chunk_of(fk, start, q)
    spent = []
    for _ in range(10):
        before = time.process_time()
        joint_targets(chunk, fk, start, limits=limits)
        spent.append(time.process_time() - before)
    assert min(spent) < 0.03
