"""Delay-aware execution: what is late is dropped, chunks are joined without a step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ego_world_model.embodiment import Embodiment, load_embodiment
from ego_world_model.kinematics import HandKinematics, matrix_from_6d
from ego_world_model.policy.chunk import HandChunk
from ego_world_model.policy.execution import ChunkExecutor, border_ratios, jitter
from ego_world_model.policy.filtering import TemporalOrthogonalFilter
from ego_world_model.policy.limits import JointLimits, JointSpeeds
from ego_world_model.policy.targets import JointTargets, Limited, joint_targets

TIMES = 0.1 * np.arange(1, 17)


@pytest.fixture(scope="module", params=["g1_dex3", "h1_2_inspire", "h1_inspire"])
def limits(request: pytest.FixtureRequest) -> JointLimits:
    return JointLimits(HandKinematics(load_embodiment(request.param)))


@pytest.fixture(scope="module")
def g1() -> JointLimits:
    return JointLimits(HandKinematics(load_embodiment("g1_dex3")))


def arms(robot: Embodiment) -> np.ndarray:
    return robot.indices(tuple(name for hand in robot.hands.values() for name in hand.arm))


def swing(robot: Embodiment, times: np.ndarray) -> np.ndarray:
    """(N, nq) radians: both arms go round at an even speed, far from each other."""
    q = np.repeat(robot.neutral[None], len(times), axis=0)
    for side, hand in robot.hands.items():
        pitch, roll, elbow = robot.indices((hand.arm[0], hand.arm[1], hand.arm[3]))
        q[:, roll] += 0.2 if side == "left" else -0.2
        q[:, pitch] += 0.2 * np.sin(2.5 * times)
        q[:, elbow] += 0.2 * np.cos(2.5 * times)
    return q


def as_targets(start: np.ndarray, q: np.ndarray) -> JointTargets:
    none = np.zeros((len(q), 2))
    nothing = Limited(np.zeros_like(q, bool), np.zeros_like(q, bool), np.zeros(len(q), bool))
    return JointTargets(TIMES[: len(q)], q, start, none, none, nothing)


def swinging(robot: Embodiment, observed: float) -> JointTargets:
    q = swing(robot, observed + np.concatenate([[0.0], TIMES]))
    return as_targets(q[0], q[1:])


def test_without_a_chunk_the_robot_holds(g1: JointLimits) -> None:
    q = g1.kinematics.robot.neutral
    executor = ChunkExecutor(g1, q, 5.0)
    assert np.array_equal(executor.at([0.0, 5.0, 9.0]), np.repeat(q[None], 3, axis=0))
    assert executor.at(6.0).shape == q.shape and executor.end == 5.0


def test_a_chunk_runs_to_its_end_and_is_held(g1: JointLimits) -> None:
    robot = g1.kinematics.robot
    chunk = swinging(robot, 0.0)
    executor = ChunkExecutor(g1, chunk.start, 0.0)
    merge = executor.push(chunk, 0.0, 0.0)
    assert merge.dropped == 0 and merge.difference < 1e-12 and merge.slowed == 0.0
    assert executor.end == pytest.approx(1.6)
    after_ramp = TIMES[merge.ramp <= TIMES]
    assert np.abs(executor.at(after_ramp) - chunk.q[merge.ramp <= TIMES]).max() < 1e-9
    assert np.array_equal(executor.at([1.6, 30.0]), np.repeat(chunk.q[-1:], 2, axis=0))


def test_steps_that_passed_are_dropped_and_the_past_stays(g1: JointLimits) -> None:
    """0.35 s late: three steps are gone, and what was commanded until then is not changed."""
    robot = g1.kinematics.robot
    executor = ChunkExecutor(g1, swing(robot, np.zeros(1))[0], 0.0)
    executor.push(swinging(robot, 0.0), 0.0, 0.0)
    until = np.linspace(0.0, 0.85, 50)
    before = executor.at(until)
    merge = executor.push(swinging(robot, 0.5), 0.5, 0.85)
    assert merge.dropped == 3 and executor.end == pytest.approx(2.1)
    assert np.abs(executor.at(until) - before).max() < 1e-12


def test_a_chunk_that_agrees_with_the_motion_changes_nothing(g1: JointLimits) -> None:
    robot = g1.kinematics.robot
    executor = ChunkExecutor(g1, swing(robot, np.zeros(1))[0], 0.0)
    executor.push(swinging(robot, 0.0), 0.0, 0.0)
    ahead = np.linspace(0.5, 1.6, 60)
    before = executor.at(ahead)
    merge = executor.push(swinging(robot, 0.3), 0.3, 0.5)
    assert np.abs(executor.at(ahead) - before).max() < 1e-9 and merge.slowed == 0.0


def test_a_chunk_that_is_all_past_is_left_out(g1: JointLimits) -> None:
    robot = g1.kinematics.robot
    executor = ChunkExecutor(g1, robot.neutral, 0.0)
    merge = executor.push(swinging(robot, 0.0), 0.0, 1.7)
    assert merge.dropped == 16 and merge.ramp == 0.0
    assert np.array_equal(executor.at(3.0), robot.neutral)


def test_the_motion_goes_over_smoothly(limits: JointLimits) -> None:
    """To a chunk elsewhere: no jump, speeds within limits at any rate, its end is reached."""
    robot = limits.kinematics.robot
    start = robot.neutral
    executor = ChunkExecutor(limits, start, 0.0)
    executor.push(as_targets(start, np.repeat(start[None], 16, axis=0)), 0.0, 0.05)
    goal = start.copy()
    goal[arms(robot)] = np.clip(
        start[arms(robot)] + 0.3, robot.lower[arms(robot)], robot.upper[arms(robot)]
    )
    jump = as_targets(goal, np.repeat(goal[None], 16, axis=0))
    merge = executor.push(jump, 0.2, 0.4)
    assert merge.difference == pytest.approx(0.3, abs=0.05) and merge.dropped == 2
    times = np.arange(0.3, 2.0, 0.004)
    q = executor.at(times)
    assert (np.abs(np.diff(q, axis=0)) <= limits.speed * 0.004 + 1e-9).all()
    assert np.abs(q[-1] - goal).max() < 1e-9
    assert (q >= robot.lower).all() and (q <= robot.upper).all()


def test_too_short_a_ramp_is_held_to_the_top_speed(g1: JointLimits) -> None:
    robot = g1.kinematics.robot
    slow = JointLimits(g1.kinematics, speeds=JointSpeeds(arm=0.2))
    start, goal = robot.neutral, robot.neutral.copy()
    goal[arms(robot)[0]] += 0.25
    executor = ChunkExecutor(slow, start, 0.0)
    merge = executor.push(as_targets(goal, np.repeat(goal[None], 16, axis=0)), 0.0, 0.9)
    assert merge.slowed > 0.1
    times = np.arange(0.9, 1.6, 0.01)
    assert (np.abs(np.diff(executor.at(times), axis=0)) <= slow.speed * 0.01 + 1e-9).all()


def noisy_chunks(
    fk: HandKinematics, duration: float, period: float, seed: int
) -> list[tuple[float, HandChunk]]:
    """Chunks of the swing, each off by its own 6 mm, and each step by 0.5 mm and 3 mrad more."""
    rng = np.random.default_rng(seed)
    chunks = []
    for observed in np.arange(0.0, duration, period):
        states = [fk.hand_state(q) for q in swing(fk.robot, observed + TIMES)]
        translation = np.array([state.translation for state in states])
        translation += 0.006 * rng.normal(size=3) + 0.0005 * rng.normal(size=translation.shape)
        six = np.array([state.rotation for state in states])
        rotation = matrix_from_6d(six + 0.003 * rng.normal(size=six.shape))
        fingers = np.array([state.fingers for state in states])
        state = states[0]
        chunk = HandChunk(TIMES, translation, rotation, fingers, state.valid, state.finger_names)
        chunks.append((float(observed), chunk))
    return chunks


def executed(
    limits: JointLimits, chunks: list[tuple[float, HandChunk]], delay: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times (N,) at 20 Hz, q (N, nq) as commanded there, and borders (B,) of chunks."""
    executor = ChunkExecutor(limits, swing(limits.kinematics.robot, np.zeros(1))[0], 0.0)
    smoother = TemporalOrthogonalFilter()
    times, q, borders, done = [], [], [], 0.0
    for observed, chunk in chunks:
        smooth, start = smoother.push(observed, chunk), executor.at(observed)
        targets = joint_targets(smooth, limits.kinematics, start, limits=limits)
        now = observed + delay
        grid = np.arange(round(done / 0.05), round(now / 0.05)) * 0.05
        times.append(grid)
        q.append(executor.at(grid))
        done = now
        executor.push(targets, observed, now)
        borders.append(now)
    return np.concatenate(times), np.vstack(q), np.array(borders[1:-1])


def test_the_step_across_a_border_is_like_those_inside(limits: JointLimits) -> None:
    """A chunk every 0.3 s, 0.15 s late, each with an error of its own: no border above 1.5 times
    the median step, while joining them bare would jump by more."""
    chunks = noisy_chunks(limits.kinematics, 4.5, 0.3, 0)
    times, q, borders = executed(limits, chunks, 0.15)
    moving = times > 0.5
    ratios = border_ratios(times[moving], q[moving], borders[borders > 0.6])
    assert len(ratios) > 8 and ratios.max() <= 1.5
    # The bare difference between what two successive raw chunks say of the same time.
    starts = [swing(limits.kinematics.robot, np.array([observed]))[0] for observed, _ in chunks]
    said = [
        joint_targets(chunk, limits.kinematics, start, limits=limits).q
        for start, (_, chunk) in zip(starts, chunks, strict=True)
    ]
    jumps = [np.linalg.norm(b[1] - a[4]) for a, b in zip(said[:-1], said[1:], strict=True)]
    assert max(jumps) > 1.5 * np.median(np.linalg.norm(np.diff(q[moving], axis=0), axis=1))


def test_filtering_makes_the_motion_calmer(g1: JointLimits) -> None:
    """A chunk every 0.1 s, of each the first step: jitter with and without filtering."""
    chunks = noisy_chunks(g1.kinematics, 4.0, 0.1, 1)
    smoother = TemporalOrthogonalFilter()
    raw = np.array([chunk.translation[0] for _, chunk in chunks])
    smooth = np.array([smoother.push(at, chunk).translation[0] for at, chunk in chunks])
    times = np.array([at for at, _ in chunks])
    assert jitter(times[16:], smooth[16:]) < 0.02 * jitter(times[16:], raw[16:])


def test_hands_are_kept_apart_while_chunks_are_blended(g1: JointLimits) -> None:
    """Both motions keep the margin, one with the left hand above and one with the right hand
    above; their blend would not."""
    kinematics, robot = g1.kinematics, g1.kinematics.robot
    start = robot.neutral
    state = kinematics.hand_state(start)
    middle = state.translation.mean(axis=0)
    up = np.array([0.0, -0.09, 0.02])

    def crossed(sign: float) -> np.ndarray:
        wanted = np.stack([middle + sign * up, middle - sign * up])
        chunk = HandChunk(
            TIMES,
            np.linspace(0, 1, 16)[:, None, None] * (wanted - state.translation) + state.translation,
            np.repeat(matrix_from_6d(state.rotation)[None], 16, axis=0),
            np.repeat(state.fingers[None], 16, axis=0),
            state.valid,
            state.finger_names,
        )
        return joint_targets(chunk, kinematics, start, limits=g1).q[-1]

    over, under = crossed(1.0), crossed(-1.0)
    assert min(g1.clearance.gap(over), g1.clearance.gap(under)) >= g1.margin - 1e-6
    assert g1.clearance.gap(0.5 * (over + under)) < g1.margin
    executor = ChunkExecutor(g1, over, 0.0)
    merge = executor.push(as_targets(under, np.repeat(under[None], 16, axis=0)), 0.0, 0.1)
    gaps = [g1.clearance.gap(q) for q in executor.at(np.arange(0.0, 2.0, 0.01))]
    assert min(gaps) >= g1.margin - 1e-6 and merge.slowed > 0


def test_chunks_that_cannot_be_meant_are_refused(g1: JointLimits) -> None:
    """From the future, out of order, before the motion, of another robot; the motion goes on."""
    robot = g1.kinematics.robot
    executor = ChunkExecutor(g1, swing(robot, np.zeros(1))[0], 1.0)
    executor.push(swinging(robot, 1.0), 1.0, 1.1)
    before = executor.at(2.0)
    good = swinging(robot, 1.2)
    narrow = replace(good, q=good.q[:, :-1])
    for targets, observed, now, said in (
        (good, 1.3, 1.2, "cannot arrive"),
        (good, 0.9, 1.2, "order of observations"),
        (narrow, 1.2, 1.3, "joints"),
    ):
        with pytest.raises(ValueError, match=said):
            executor.push(targets, observed, now)
    assert np.array_equal(executor.at(2.0), before)
    executor.reset(robot.neutral, 0.0)
    assert executor.push(swinging(robot, 0.0), 0.0, 0.1).dropped == 1
    with pytest.raises(ValueError, match="ramp"):
        ChunkExecutor(g1, robot.neutral, 0.0, ramp=0.0)


def test_jitter_is_the_mean_squared_jerk() -> None:
    """Of t³ it is 36 at any rate, of anything up to t² nothing."""
    for step in (0.01, 0.1):
        times = step * np.arange(20)
        assert jitter(times, times**3) == pytest.approx(36.0)
        assert jitter(times, np.stack([times**2, times], axis=1)) < 1e-9
    with pytest.raises(ValueError, match="evenly"):
        jitter([0.0, 0.1, 0.3, 0.4], np.zeros(4))
    with pytest.raises(ValueError, match="at least 4"):
        jitter([0.0, 0.1], np.zeros(2))


def test_border_ratio_compares_with_the_median_step() -> None:
    """Steps of 1 and one of 3 at the border."""
    values = np.cumsum([0, 1, 1, 1, 3, 1, 1.0])[:, None]
    times = 0.1 * np.arange(7)
    assert border_ratios(times, values, [0.35]) == pytest.approx([3.0])
    with pytest.raises(ValueError, match="rests"):
        border_ratios(times, np.zeros((7, 1)), [0.35])
