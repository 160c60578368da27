"""What a real lens would show of the simulated robot: pictures, depth and masks of MuJoCo, bent."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ego_world_model.camera import PinholeCamera
from ego_world_model.embodiment import Embodiment
from ego_world_model.hands import SLOTS_PER_HAND, HandJoints
from ego_world_model.simulation import MASK_CLASSES, Observation, SceneRenderer, make_scene

LENSES = {
    "plumb_bob": PinholeCamera(
        320, 240, 300.0, 301.0, 165.0, 122.0, (-0.3, 0.09, 0.001, -0.002, -0.01)
    ),
    "rational_polynomial": PinholeCamera(
        320,
        240,
        300.0,
        301.0,
        165.0,
        122.0,
        (2.0, 0.8, 0.0005, -0.001, 0.05, 2.4, 1.5, 0.2),
        "rational_polynomial",
    ),
    "equidistant": PinholeCamera(
        320, 240, 240.0, 241.0, 160.0, 118.0, (-0.02, 0.01, -0.004, 0.0), "equidistant"
    ),
}


def apart(robot: Embodiment) -> NDArray[np.float64]:
    """(nq,) rad: the G1's hands far apart, near the edges of the image, where lenses bend."""
    q = robot.neutral.copy()
    for side, sign in (("left", 1), ("right", -1)):
        q[robot.joint_names.index(f"{side}_shoulder_pitch_joint")] = -0.6
        q[robot.joint_names.index(f"{side}_shoulder_roll_joint")] = 0.6 * sign
    return q


@dataclass(frozen=True)
class View:
    """What one camera shows, of the same instant.

    Attributes:
        rgb: (H, W, 3) uint8. depth: (H, W) float32 m. masks: (H, W) uint8 in ``MASK_CLASSES``.
    """

    rgb: NDArray[np.uint8]
    depth: NDArray[np.float32]
    masks: NDArray[np.uint8]


class Lens:
    """Renders the robot at its table through a lens, and through the ideal pinhole beside it.

    Args:
        offset: metres by which the camera stands aside of its nominal mount, in its own frame.
    """

    def __init__(
        self, robot: Embodiment, lens: PinholeCamera, *, offset: tuple[float, ...] = (0, 0, 0)
    ) -> None:
        self._lens = lens
        self._ideal = lens.ideal()
        # Twice as fine and with a wide margin: every ray of the lens meets a rendered pixel.
        size = (6 * lens.width, 6 * lens.height)
        wide = PinholeCamera(*size, 2 * lens.fx, 2 * lens.fy, size[0] / 2, size[1] / 2)
        pose = robot.camera_pose
        pose = replace(pose, translation=pose.translation + pose.rotation @ np.array(offset))
        robot = replace(robot, camera=wide, camera_pose=pose)
        self._scene = make_scene(
            robot, seed=5, width=wide.width, height=wide.height, camera_jitter=False
        )
        self._renderer = SceneRenderer(self._scene, robot)
        self._wide = wide

    def __enter__(self) -> Lens:
        return self

    def __exit__(self, *_: object) -> None:
        self._renderer.close()

    def see(self, q: NDArray[np.float64]) -> tuple[View, View]:
        """What lens and ideal pinhole show of (nq,) rad; objects lie where the scene has them."""
        scene = self._scene
        poses = np.zeros((len(scene.objects), 7))
        poses[:, :3], poses[:, 3] = scene.object_positions, 1.0
        seen = self._renderer.render(q, poses, masks=True)
        return self._through(self._lens, seen), self._through(self._ideal, seen)

    def _through(self, camera: PinholeCamera, seen: Observation) -> View:
        columns, rows = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
        rays = camera.unproject(np.stack([columns, rows], axis=-1), np.ones(rows.shape))
        source = np.round(self._wide.project(rays)).astype(int)
        assert self._wide.contains(source).all(), "the margin is too narrow for this lens"
        x, y = source[..., 0], source[..., 1]
        return View(seen.rgb[y, x], seen.depth[y, x], seen.masks[y, x])


def share_on_hands(masks: NDArray[np.uint8], camera: PinholeCamera, hands: HandJoints) -> float:
    """Share of the finger joints inside the image that fall on their own hand's pixels."""
    pixels = camera.project(hands.positions)
    hit = []
    for slot in np.flatnonzero(hands.valid & camera.contains(pixels)):
        if slot % SLOTS_PER_HAND:  # the wrists' origins lie under the forearms' covers
            column, row = np.round(pixels[slot]).astype(int)
            name = "left_hand" if slot < SLOTS_PER_HAND else "right_hand"
            hit.append(masks[row, column] == MASK_CLASSES.index(name))
    assert len(hit) > 10
    return float(np.mean(hit))
