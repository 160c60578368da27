"""A plan that moves the waist moves the camera: hands and world stay where MuJoCo shows them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run script/setup")
pytest.importorskip("ego_world_model.msg", reason="needs the built interfaces: run script/setup")

from lenses import share_on_hands

from ego_world_model.camera import CameraPose
from ego_world_model.embodiment import load_embodiment
from ego_world_model.kinematics import HandKinematics
from ego_world_model.ros.motion_source import JointPlan
from ego_world_model.simulation import MASK_CLASSES, SceneRenderer, make_scene

START = 10_000_000_000  # ns


@pytest.mark.parametrize("name", ["g1_dex3", "h1_2_inspire"])
def test_hands_and_world_of_a_waist_motion_are_where_mujoco_renders_them(name):
    """Each planned frame's joints fall on the rendered hands of that moment, and its camera pose
    takes what it sees of the table to where the reference frame sees it. The mount is off its
    nominal place, as a calibrated one is."""
    robot = load_embodiment(name)
    nominal = robot.camera_pose
    mount = CameraPose(nominal.link, nominal.rotation, nominal.translation + (0.02, 0.0, 0.01))
    robot = replace(robot, camera_pose=mount)
    fk = HandKinematics(robot)
    scene = make_scene(robot, seed=5, width=320, height=240, camera_jitter=False)
    renderer = SceneRenderer(scene, robot)
    poses = np.zeros((len(scene.objects), 7))
    poses[:, :3], poses[:, 3] = scene.object_positions, 1.0

    waist = robot.indices(robot.torso)
    times = np.arange(0.1, 2.0, 0.1)
    planned = np.repeat(robot.neutral[None], len(times), axis=0)
    planned[:, waist] += 0.1 * times[:, None]
    plan = JointPlan(START, times, planned, fk, camera=mount)
    moments = np.array([0.0, 0.8, 1.6])
    motion = plan.trajectory(START, moments, robot.neutral)

    camera = scene.camera
    reference = renderer.render(robot.neutral, poses, masks=True)
    assert np.linalg.norm(motion.camera_pose[-1, :3, 3]) > 0.005, "the camera moves"
    for k, moment in enumerate(moments):
        q = robot.neutral.copy()
        q[waist] += 0.1 * moment
        seen = renderer.render(q, poses, masks=True)
        assert share_on_hands(seen.masks, camera, motion.frame(k)) > 0.9

        still = np.argwhere(seen.masks == MASK_CLASSES.index("background"))[::97]
        points = camera.unproject(still[:, ::-1], seen.depth[still[:, 0], still[:, 1]])
        points = points @ motion.camera_pose[k, :3, :3].T + motion.camera_pose[k, :3, 3]
        at = camera.project(points)
        inside = camera.contains(at)
        columns, rows = np.round(at[inside]).astype(int).T
        free = reference.masks[rows, columns] == MASK_CLASSES.index("background")
        error = np.abs(reference.depth[rows, columns] - points[inside, 2])[free]
        assert len(error) > 200 and np.median(error) < 0.002
    renderer.close()
