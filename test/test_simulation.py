"""The simulated table: smooth motion within limits, objects that follow, exact pictures."""

from __future__ import annotations

import numpy as np
import pytest

from ego_world_model.embodiment import Embodiment, load_embodiment
from ego_world_model.hands import SLOT_NAMES
from ego_world_model.kinematics import HandKinematics
from ego_world_model.simulation import MASK_CLASSES, TASKS, SceneRenderer, TableTop, make_scene
from ego_world_model.simulation.objects import entries


@pytest.fixture(scope="module")
def robot() -> Embodiment:
    return load_embodiment("g1_dex3")


def _motion(robot: Embodiment, task: str | None, seed: int, seconds: float) -> np.ndarray:
    """(T, nq) radians at 50 Hz."""
    sim = TableTop(robot, seed=seed, task=task, width=64, height=48)
    out = []
    for _ in range(int(seconds * 50)):
        out.append(sim.joint_positions)
        sim.advance(0.02)
    sim.close()
    return np.array(out)


@pytest.mark.parametrize("task", [*TASKS])
def test_tasks_move_smoothly_within_limits_above_the_table(robot: Embodiment, task: str) -> None:
    sim = TableTop(robot, seed=11, task=task, width=64, height=48)
    table = sim.scene.table_height
    q = _motion(robot, task, 11, 8.0)
    assert (q >= robot.lower - 1e-9).all() and (q <= robot.upper + 1e-9).all()
    speed = np.diff(q, axis=0) * 50
    acceleration = np.diff(speed, axis=0) * 50
    assert np.abs(speed).max() < 4.0  # rad/s
    assert np.abs(acceleration).max() < 60.0  # rad/s^2: no jumps
    points = HandKinematics(robot).slot_positions(q, [n for n in SLOT_NAMES if n in robot.slots])
    assert points[..., 2].min() > table + 0.01
    sim.close()


def test_the_same_seed_gives_the_same_motion(robot: Embodiment) -> None:
    assert np.array_equal(_motion(robot, None, 5, 4.0), _motion(robot, None, 5, 4.0))
    assert not np.array_equal(_motion(robot, None, 5, 4.0), _motion(robot, None, 6, 4.0))


def test_splits_share_no_object_or_texture() -> None:
    sets = [set(entries(split).tolist()) for split in ("train", "validation", "test")]
    assert all(sets) and not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])


@pytest.mark.parametrize("task", ["grasp", "bimanual"])
def test_a_grasped_object_follows_the_hand_and_stays_where_it_is_put(
    robot: Embodiment, task: str
) -> None:
    for seed in range(3, 9):
        sim = TableTop(robot, seed=seed, task=task, width=64, height=48)
        if sim.task_name == task:
            break
        sim.close()
    assert sim.task_name == task
    start = sim.state().object_poses.copy()
    instruction, highest = sim.task, np.zeros(len(start))
    while sim.task == instruction:
        sim.advance(0.05)
        lifted = sim.state().object_poses[:, 2] - start[:, 2]
        highest = np.maximum(highest, lifted)
    end = sim.state()
    (moved,) = np.flatnonzero(highest > 0.03)
    assert sim.scene.objects[moved].name in instruction and moved in end.manipulated
    assert end.object_poses[moved, 2] == pytest.approx(start[moved, 2], abs=0.02)
    assert np.linalg.norm(end.object_poses[moved, :2] - start[moved, :2]) > 0.005
    sim.close()


def test_crossing_hides_one_hand_behind_the_other(robot: Embodiment) -> None:
    """At some moment a joint of the lower hand projects into the upper hand's mask."""
    hidden = 0
    fk = HandKinematics(robot)
    sim = TableTop(robot, seed=2, task="cross", width=128, height=96)
    for _ in range(60):
        sim.advance(0.1)
        mask = sim.render(masks=True, depth=False).masks
        joints = fk.hand_joints(sim.joint_positions, sim.camera_pose)
        pixels = sim.camera.project(joints.positions)
        for side, other in ((0, 2), (1, 1)):
            slots = np.flatnonzero(joints.valid[21 * side : 21 * side + 21]) + 21 * side
            inside = [s for s in slots if sim.camera.contains(pixels[s])]
            at = np.round(pixels[inside]).astype(int)
            hidden += int((mask[at[:, 1], at[:, 0]] == other).sum()) if len(at) else 0
    sim.close()
    assert hidden > 20


def test_pictures_match_the_camera_model(robot: Embodiment) -> None:
    """Object centres project to the middle of their pixels, and depth is the distance along z."""
    scene = make_scene(robot, seed=3, width=320, height=240)
    renderer = SceneRenderer(scene, robot)
    fk = HandKinematics(robot)
    q = robot.neutral.copy()
    for side in ("left", "right"):  # arms out of the way
        q[robot.joint_names.index(f"{side}_shoulder_pitch_joint")] = 1.5
    poses = np.tile([0.0, 3.0, -3.0, 1, 0, 0, 0], (len(scene.objects), 1))
    ball = next(i for i, o in enumerate(scene.objects) if o.name.endswith("ball"))
    radius = scene.objects[ball].radius
    for place in ((0.4, 0.1, 0.1), (0.5, -0.15, 0.05), (0.35, 0.0, 0.15)):
        poses[ball, :3] = place
        seen = renderer.render(q, poses, masks=True)
        rows, columns = np.nonzero(seen.masks == MASK_CLASSES.index("other_object"))
        centre = np.linalg.inv(fk.camera_pose(q, scene.camera_pose)) @ (*place, 1)
        middle = ((columns.min() + columns.max()) / 2, (rows.min() + rows.max()) / 2)
        assert np.abs(scene.camera.project(centre[:3]) - middle).max() < 1.0
        nearest = seen.depth[rows, columns].min()
        assert nearest == pytest.approx(centre[2] - radius, abs=0.01)
    renderer.close()


def test_joints_project_onto_the_rendered_hand(robot: Embodiment) -> None:
    sim = TableTop(robot, seed=4, task="fingers", width=320, height=240)
    fk, on_hand, total = HandKinematics(robot), 0, 0
    for _ in range(10):
        sim.advance(0.4)
        mask = sim.render(masks=True, depth=False).masks
        joints = fk.hand_joints(sim.joint_positions, sim.camera_pose)
        pixels = sim.camera.project(joints.positions[joints.valid])
        at = np.round(pixels[sim.camera.contains(pixels)]).astype(int)
        classes = mask[at[:, 1], at[:, 0]]
        on_hand += int(np.isin(classes, (1, 2)).sum())
        total += len(at)
    sim.close()
    assert total > 60 and on_hand / total > 0.85


def test_outside_trajectories_are_obeyed_and_clipped(robot: Embodiment) -> None:
    sim = TableTop(robot, seed=1, width=64, height=48)
    sim.advance(0.5)
    q = np.repeat(sim.joint_positions[None], 2, axis=0)
    elbow = robot.joint_names.index("left_elbow_joint")
    q[1, elbow] = 99.0
    sim.follow([0.5, 1.0], q)
    assert sim.plan([0.75])[0, elbow] == pytest.approx((q[0, elbow] + robot.upper[elbow]) / 2)
    for _ in range(30):
        sim.advance(0.1)
    assert sim.joint_positions[elbow] == pytest.approx(robot.upper[elbow])
    sim.resume_tasks()
    assert sim.task_name in TASKS
    with pytest.raises(ValueError, match="NaN"):
        sim.follow([0.5, 1.0], np.full_like(q, np.nan))
    with pytest.raises(ValueError, match="rise"):
        sim.follow([0.5, 0.5], q)
    sim.close()


def test_the_plan_is_what_happens(robot: Embodiment) -> None:
    sim = TableTop(robot, seed=8, width=64, height=48)
    sim.advance(1.0)
    times = np.arange(1, 17) * 0.1
    planned = sim.plan(times)
    happened = []
    for _ in times:
        sim.advance(0.1)
        happened.append(sim.joint_positions)
    assert np.abs(planned - np.array(happened)).max() < 1e-9
    sim.close()


def test_unknown_names_are_refused(robot: Embodiment) -> None:
    with pytest.raises(ValueError, match="unknown task 'juggle'; tasks are reach"):
        TableTop(robot, seed=0, task="juggle")
    with pytest.raises(ValueError, match="unknown split 'eval'"):
        TableTop(robot, seed=0, split="eval")
