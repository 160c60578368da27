"""Pictures from the robot's head camera: colour, depth and class masks."""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray

from ego_world_model.embodiment import Embodiment
from ego_world_model.simulation.scene import CAMERA_NAME, Scene

MASK_CLASSES: tuple[str, ...] = (
    "background",
    "left_hand",
    "right_hand",
    "left_arm",
    "right_arm",
    "manipulated_object",
    "other_object",
)
"""Name of each value of a class mask."""


@dataclass(frozen=True)
class Observation:
    """What the head camera sees.

    Attributes:
        rgb: (H, W, 3) uint8. depth: (H, W) float32 metres along z, or None.
        masks: (H, W) uint8 indices into ``MASK_CLASSES``, or None.
    """

    rgb: NDArray[np.uint8]
    depth: NDArray[np.float32] | None
    masks: NDArray[np.uint8] | None


class SceneRenderer:
    """Renders a scene. Create and use it in one thread: it owns an OpenGL context."""

    def __init__(self, scene: Scene, robot: Embodiment) -> None:
        self._scene = scene
        self._data = mujoco.MjData(scene.model)
        self._qpos = _joint_addresses(scene.model, robot)
        self._renderer = mujoco.Renderer(scene.model, scene.camera.height, scene.camera.width)
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
        self._renderer.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        self._classes = _geom_classes(scene.model, robot)

    def render(
        self,
        q: NDArray[np.float64],
        object_poses: NDArray[np.float64],
        *,
        manipulated: frozenset[int] = frozenset(),
        depth: bool = True,
        masks: bool = False,
    ) -> Observation:
        """Picture of a state.

        Args:
            q: (nq,) radians in the embodiment's order.
            object_poses: (N, 7) metres and quaternion wxyz in the root frame.
            manipulated: numbers of the objects that count as manipulated in the masks.
        """
        data = self._data
        data.qpos[self._qpos] = q
        data.mocap_pos[:], data.mocap_quat[:] = object_poses[:, :3], object_poses[:, 3:]
        mujoco.mj_kinematics(self._scene.model, data)
        mujoco.mj_camlight(self._scene.model, data)
        self._renderer.update_scene(data, CAMERA_NAME)
        rgb = self._renderer.render()
        distance = mask = None
        if depth:
            self._renderer.enable_depth_rendering()
            distance = self._renderer.render()
            self._renderer.disable_depth_rendering()
        if masks:
            self._renderer.enable_segmentation_rendering()
            mask = self._class_mask(self._renderer.render(), manipulated)
            self._renderer.disable_segmentation_rendering()
        return Observation(rgb, distance, mask)

    def close(self) -> None:
        """Free the OpenGL context."""
        self._renderer.close()

    def _class_mask(
        self, segmentation: NDArray[np.int32], manipulated: frozenset[int]
    ) -> NDArray[np.uint8]:
        classes = self._classes.copy()
        model = self._scene.model
        for number in manipulated:
            body = model.body(f"object_{number}").id
            classes[model.geom_bodyid == body] = MASK_CLASSES.index("manipulated_object")
        geom = segmentation[..., 0]
        is_geom = segmentation[..., 1] == int(mujoco.mjtObj.mjOBJ_GEOM)
        return np.where(is_geom & (geom >= 0), classes[np.maximum(geom, 0)], 0).astype(np.uint8)


def _joint_addresses(model: mujoco.MjModel, robot: Embodiment) -> NDArray[np.intp]:
    """Address in qpos of each joint of the embodiment."""
    return np.array([model.joint(name).qposadr[0] for name in robot.joint_names], dtype=np.intp)


def _geom_classes(model: mujoco.MjModel, robot: Embodiment) -> NDArray[np.uint8]:
    """Class of each geom: hands from the wrist link on, arms from the first arm joint on."""
    body_class = np.zeros(model.nbody, np.uint8)
    roots: dict[int, int] = {}
    for side, hand in robot.hands.items():
        shoulder = int(model.joint(hand.arm[0]).bodyid[0])
        roots[shoulder] = MASK_CLASSES.index(f"{side}_arm")
        roots[model.body(hand.wrist).id] = MASK_CLASSES.index(f"{side}_hand")
    for body in range(1, model.nbody):
        name = model.body(body).name
        if name.startswith("object_"):
            body_class[body] = MASK_CLASSES.index("other_object")
        else:  # parents come first, so a class spreads down the tree
            body_class[body] = roots.get(body, body_class[model.body_parentid[body]])
    return body_class[model.geom_bodyid]
