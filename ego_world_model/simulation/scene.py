"""One randomised scene: the robot, a table with objects, lights and a jittered head camera."""

from __future__ import annotations

from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray
from transforms3d.euler import euler2mat
from transforms3d.quaternions import mat2quat

from ego_world_model.camera import CameraPose, PinholeCamera
from ego_world_model.embodiment import Embodiment, Workspace
from ego_world_model.simulation.objects import (
    SPLITS,
    TableObject,
    entries,
    make_object,
    make_texture,
)

CAMERA_NAME = "head_camera"
_GEOM_TYPES = {
    "box": mujoco.mjtGeom.mjGEOM_BOX,
    "cylinder": mujoco.mjtGeom.mjGEOM_CYLINDER,
    "sphere": mujoco.mjtGeom.mjGEOM_SPHERE,
}
_OPTICAL_FROM_GL = np.diag([1.0, -1.0, -1.0])  # MuJoCo cameras look along -z with y up
__all__ = ["CAMERA_NAME", "SPLITS", "Scene", "make_scene"]


@dataclass(frozen=True)
class Scene:
    """A compiled scene.

    Attributes:
        model: MuJoCo model; the robot's root link is at the world origin.
        camera: intrinsics at the rendered size; camera_pose: jittered mount of the optical frame.
        origin: (3,) metres, the robot's ``workspace.origin``: the layout's zero, root frame.
        table_height: metres, table top above the root frame.
        objects: the objects in the order of their mocap bodies ``object_0``, ….
        object_positions: (N, 3) metres, where they stand at first (centres, root frame).
        object_yaws: (N,) radians.
    """

    model: mujoco.MjModel
    camera: PinholeCamera
    camera_pose: CameraPose
    origin: NDArray[np.float64]
    table_height: float
    objects: tuple[TableObject, ...]
    object_positions: NDArray[np.float64]
    object_yaws: NDArray[np.float64]


def make_scene(
    robot: Embodiment,
    *,
    seed: int,
    split: str = "train",
    width: int = 640,
    height: int = 480,
    large_object: bool = False,
    camera_jitter: bool = True,
) -> Scene:
    """Build a scene; the same arguments give the same scene.

    Splits share neither seeds nor catalogue entries (objects, textures). ``large_object`` puts a
    box for two hands in the middle. Without ``camera_jitter`` the camera sits at its nominal mount.

    Raises:
        ValueError: for an unknown split, or a robot without MJCF model, two hands or workspace.
    """
    workspace = _checked_workspace(robot)
    numbers = entries(split)
    rng = np.random.default_rng((SPLITS.index(split), seed))
    spec = mujoco.MjSpec.from_file(str(robot.model_path))
    origin = np.array(workspace.origin)
    table_height = float(origin[2] + rng.uniform(-0.03, 0.03))
    camera = robot.camera.ideal().resized(width, height)  # the renderer knows no lens
    jittered = _jittered(robot.camera_pose, rng)  # drawn in any case: the rest must not change
    camera_pose = jittered if camera_jitter else robot.camera_pose
    _add_camera(spec, camera, camera_pose)
    textures = rng.choice(numbers, 2, replace=False)
    _add_table(spec, (origin[0], origin[1], table_height), workspace.floor, textures, rng)
    _add_lights(spec, rng)
    objects, positions, yaws = _place_objects(numbers, table_height, large_object, rng)
    positions[:, :2] += origin[:2]
    for i, (item, position) in enumerate(zip(objects, positions, strict=True)):
        _add_object(spec, i, item, position)
    spec.visual.global_.offwidth = max(width, 640)
    spec.visual.global_.offheight = max(height, 480)
    spec.visual.quality.offsamples = 0  # multisampling triples the time on a software renderer
    spec.visual.map.znear = 0.02
    spec.visual.map.zfar = 6.0
    spec.stat.extent = 1.0
    model = spec.compile()
    return Scene(model, camera, camera_pose, origin, table_height, objects, positions, yaws)


def _checked_workspace(robot: Embodiment) -> Workspace:
    """The robot's workspace, once it is certain that the robot can work at the table."""
    if robot.urdf is not None or robot.model_path.suffix.lower() == ".urdf":
        raise ValueError(f"the simulation needs an MJCF model; {robot.name!r} names a URDF")
    if set(robot.hands) != {"left", "right"}:
        raise ValueError(
            f"the simulation needs a left and a right hand; {robot.name!r} describes "
            f"{', '.join(robot.hands) or 'none'} under hands"
        )
    if robot.workspace is None:
        raise ValueError(
            f"the simulation needs to know where {robot.name!r} has its table; add workspace: "
            "{origin: [x, y, z], floor: z} to its YAML"
        )
    return robot.workspace


def _jittered(pose: CameraPose, rng: np.random.Generator) -> CameraPose:
    """A mount as a real robot has it: up to 8 mm and 1.5 degrees from nominal."""
    turn = euler2mat(*np.radians(rng.uniform(-1.5, 1.5, 3)))
    return CameraPose(
        pose.link, turn @ pose.rotation, pose.translation + rng.uniform(-0.008, 0.008, 3)
    )


def _add_camera(spec: mujoco.MjSpec, camera: PinholeCamera, pose: CameraPose) -> None:
    spec.body(pose.link).add_camera(
        name=CAMERA_NAME,
        pos=pose.translation,
        quat=mat2quat(pose.rotation @ _OPTICAL_FROM_GL),
        resolution=[camera.width, camera.height],
        sensor_size=[camera.width * 1e-5, camera.height * 1e-5],
        focal_pixel=[camera.fx, camera.fy],
        # MuJoCo counts from the image centre, to the left and up.
        principal_pixel=[
            camera.width / 2 - (camera.cx + 0.5),
            camera.height / 2 - (camera.cy + 0.5),
        ],
    )


def _add_texture(spec: mujoco.MjSpec, name: str, number: int) -> None:
    image = make_texture(int(number))
    texture = spec.add_texture(
        name=name,
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        width=image.shape[1],
        height=image.shape[0],
        nchannel=3,
    )
    texture.data = image.tobytes()
    material = spec.add_material(name=name, specular=0.15, shininess=0.1)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name
    material.texrepeat = [2, 2]


def _add_table(
    spec: mujoco.MjSpec,
    origin: tuple[float, float, float],
    floor: float,
    textures: NDArray[np.int64],
    rng: np.random.Generator,
) -> None:
    x, y, height = origin
    _add_texture(spec, "table_top", textures[0])
    _add_texture(spec, "ground", textures[1])
    near = rng.uniform(0.18, 0.22)
    far, half_width = rng.uniform(0.75, 1.0), rng.uniform(0.45, 0.8)
    spec.worldbody.add_geom(
        name="table_top",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        pos=[x + (near + far) / 2, y, height - 0.02],
        size=[(far - near) / 2, half_width, 0.02],
        material="table_top",
        contype=0,
        conaffinity=0,
    )
    spec.worldbody.add_geom(
        name="ground",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        pos=[0, 0, floor],
        size=[4, 4, 0.1],
        material="ground",
        contype=0,
        conaffinity=0,
    )


def _add_lights(spec: mujoco.MjSpec, rng: np.random.Generator) -> None:
    spec.visual.headlight.ambient = [rng.uniform(0.25, 0.4)] * 3
    spec.visual.headlight.diffuse = [rng.uniform(0.1, 0.3)] * 3
    spec.visual.headlight.specular = [0.1] * 3
    warmth = rng.uniform(-0.06, 0.06)
    for _ in range(int(rng.integers(1, 3))):
        position = np.array([rng.uniform(-0.5, 1.0), rng.uniform(-1.2, 1.2), rng.uniform(1.2, 2)])
        power = rng.uniform(0.3, 0.55)
        spec.worldbody.add_light(
            pos=position,
            dir=-position / np.linalg.norm(position),
            type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
            castshadow=False,  # shadows cost a factor of ten on a software renderer
            diffuse=np.clip([power + warmth, power, power - warmth], 0, 1),
            specular=[0.25, 0.25, 0.25],
        )


def _place_objects(
    numbers: NDArray[np.int64], table_height: float, large_object: bool, rng: np.random.Generator
) -> tuple[tuple[TableObject, ...], NDArray[np.float64], NDArray[np.float64]]:
    """Two to four objects in reach, apart from each other, with distinct names."""
    chosen: list[TableObject] = []
    places: list[NDArray[np.float64]] = []
    if large_object:
        item = make_object(int(rng.choice(numbers)), large=True)
        chosen.append(item)
        places.append(np.array([rng.uniform(0.31, 0.34), rng.uniform(-0.02, 0.02)]))
    wanted = len(chosen) + int(rng.integers(1 if large_object else 2, 3 if large_object else 5))
    for _ in range(200):
        if len(chosen) == wanted:
            break
        item = make_object(int(rng.choice(numbers)))
        x = rng.uniform(0.42, 0.55) if large_object else rng.uniform(0.29, 0.4)
        place = np.array([x, rng.uniform(-0.24, 0.24)])
        apart = all(
            np.linalg.norm(place - other) > item.radius + placed.radius + 0.07
            for other, placed in zip(places, chosen, strict=True)
        )
        if apart and item.name not in [placed.name for placed in chosen]:
            chosen.append(item)
            places.append(place)
    heights = [table_height + item.height / 2 for item in chosen]
    positions = np.column_stack([np.array(places), heights])
    yaws = np.where([o.name.startswith("large") for o in chosen], 0.0, rng.uniform(-0.6, 0.6))
    return tuple(chosen), positions, np.asarray(yaws)


def _add_object(
    spec: mujoco.MjSpec, index: int, item: TableObject, position: NDArray[np.float64]
) -> None:
    body = spec.worldbody.add_body(name=f"object_{index}", mocap=True, pos=position)
    for part in item.parts:
        body.add_geom(
            type=_GEOM_TYPES[part.kind],
            size=part.size,
            pos=part.offset,
            rgba=[*part.rgb, 1.0],
            contype=0,
            conaffinity=0,
        )
