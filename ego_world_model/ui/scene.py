"""Hands and camera in three dimensions, in a viser scene whose world is the camera's optical frame.

Current hands are solid, imagined hands are ghosts, violet ones stand where the policy wants the
hands to be, and thin trails show where wrists and finger tips are about to go. Meshes are batched
and keep their number of instances, so one frame's update is two small messages per hand set.
"""

from __future__ import annotations

import math

import numpy as np
import trimesh
import viser
from numpy.typing import ArrayLike, NDArray

from ego_world_model.camera import PinholeCamera
from ego_world_model.drawing import bone_colours, slot_colours
from ego_world_model.hands import SLOTS_PER_HAND, HandTrajectory, bones

PREDICTED = (199, 158, 255)
"""Colour of predicted hands: violet, which no finger of the palette has."""

JOINT_RADIUS = 0.008
BONE_RADIUS = 0.0055
_TRAIL_SLOTS = (0, 4, 8, 12, 16, 20)  # wrist and finger tips of one hand


class HandModel:
    """One pair of hands: balls at the joints, rods along the bones.

    Args:
        name: scene tree name.
        opacity: below 1 for ghosts.
        colour: (r, g, b) 0..255 of all of it; None: each finger its own.
    """

    def __init__(
        self,
        server: viser.ViserServer,
        name: str,
        *,
        opacity: float = 1.0,
        colour: tuple[int, int, int] | None = None,
    ) -> None:
        self._colour = colour
        self._server = server
        self._name = name
        self._opacity = None if opacity >= 1 else opacity
        self._ball = trimesh.creation.icosphere(subdivisions=2, radius=JOINT_RADIUS)
        self._rod = trimesh.creation.cylinder(radius=BONE_RADIUS, height=1.0, sections=12)
        self._pattern: bytes = b""
        self._slots: NDArray[np.intp] = np.zeros(0, np.intp)
        self._bones: NDArray[np.intp] = np.zeros((0, 2), np.intp)
        self._balls: viser.BatchedMeshHandle | None = None
        self._rods: viser.BatchedMeshHandle | None = None

    def show(self, positions: ArrayLike, valid: ArrayLike) -> None:
        """Move the hands to (J, 3) metres; a change of ``valid`` (J,) rebuilds the meshes."""
        positions = np.asarray(positions, dtype=np.float32)
        valid = np.asarray(valid, dtype=bool)
        if valid.tobytes() != self._pattern or self._balls is None:
            self._build(positions, valid)
            return
        self._balls.batched_positions = positions[self._slots]
        self._balls.visible = True
        if self._rods is not None:
            middle, wxyz, scale = rods(positions, self._bones)
            self._rods.batched_positions = middle
            self._rods.batched_wxyzs = wxyz
            self._rods.batched_scales = scale
            self._rods.visible = True

    def hide(self) -> None:
        for handle in (self._balls, self._rods):
            if handle is not None:
                handle.visible = False

    def _build(self, positions: NDArray[np.float32], valid: NDArray[np.bool_]) -> None:
        for handle in (self._balls, self._rods):
            if handle is not None:
                handle.remove()
        self._balls = self._rods = None
        self._pattern = valid.tobytes()
        self._slots = np.flatnonzero(valid)
        pairs = bones(valid)
        self._bones = np.array(pairs, dtype=np.intp).reshape(-1, 2)
        if not len(self._slots):
            return
        self._balls = self._server.scene.add_batched_meshes_simple(
            f"{self._name}/joints",
            self._ball.vertices,
            self._ball.faces,
            np.tile((1.0, 0, 0, 0), (len(self._slots), 1)),
            positions[self._slots],
            batched_colors=self._tint(slot_colours(len(valid))[self._slots]),
            opacity=self._opacity,
            cast_shadow=False,
            receive_shadow=False,
        )
        if pairs:
            middle, wxyz, scale = rods(positions, self._bones)
            self._rods = self._server.scene.add_batched_meshes_simple(
                f"{self._name}/bones",
                self._rod.vertices,
                self._rod.faces,
                wxyz,
                middle,
                batched_scales=scale,
                batched_colors=self._tint(bone_colours(pairs, len(valid))),
                opacity=self._opacity,
                cast_shadow=False,
                receive_shadow=False,
            )

    def _tint(self, colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if self._colour is None:
            return colours
        return np.tile(np.array(self._colour, np.uint8), (len(colours), 1))


def rods(
    positions: NDArray[np.float32], pairs: NDArray[np.intp]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Centres (B, 3), orientations wxyz (B, 4) and scales (B, 3) of unit rods along z."""
    start, end = positions[pairs[:, 0]], positions[pairs[:, 1]]
    along = end - start
    length = np.linalg.norm(along, axis=1)
    direction = along / np.maximum(length, 1e-9)[:, None]
    # Shortest rotation from z to the direction: (1 + d.z, z x d), normalised. Opposite to z it
    # vanishes, and half a turn about x does the same.
    wxyz = np.stack(
        [1 + direction[:, 2], -direction[:, 1], direction[:, 0], np.zeros(len(pairs))], axis=1
    )
    norm = np.linalg.norm(wxyz, axis=1, keepdims=True)
    wxyz = np.where(norm > 1e-6, wxyz / np.maximum(norm, 1e-6), (0, 1, 0, 0))
    scale = np.ones((len(pairs), 3))
    scale[:, 2] = np.maximum(length, 1e-6)
    return (start + end) / 2, wxyz.astype(np.float32), scale.astype(np.float32)


class HandScene:
    """Everything that stands in the 3-D view.

    Args:
        camera_pitch: radians that the camera looks down; turns the view so that the room is level.
    """

    def __init__(self, server: viser.ViserServer, *, camera_pitch: float = 0.83) -> None:
        self._server = server
        self._camera: PinholeCamera | None = None
        self._frustum: viser.CameraFrustumHandle | None = None
        self._trail_shown = False
        up = np.array([0.0, -math.cos(camera_pitch), -math.sin(camera_pitch)])
        forward = np.array([0.0, -math.sin(camera_pitch), math.cos(camera_pitch)])
        server.scene.set_up_direction(tuple(up))
        server.scene.add_grid(
            "/grid",
            width=1.6,
            height=1.6,
            plane="xz",
            wxyz=(math.cos(camera_pitch / 2), math.sin(camera_pitch / 2), 0, 0),
            position=tuple(0.35 * forward - 0.55 * up),
            cell_size=0.1,
            section_size=0.4,
            cell_color=(58, 62, 72),
            section_color=(78, 84, 98),
            shadow_opacity=0.0,
        )
        server.scene.add_frame("/camera", axes_length=0.04, axes_radius=0.0015, origin_radius=0.003)
        self.current = HandModel(server, "/hands")
        self.ghost = HandModel(server, "/imagined", opacity=0.35)
        self.predicted = HandModel(server, "/predicted", opacity=0.4, colour=PREDICTED)
        server.scene.configure_environment_map(None)
        server.scene.configure_default_lights(enabled=False)
        server.scene.add_light_ambient("/light/ambient", intensity=1.0)
        server.scene.add_light_directional(
            "/light/key", intensity=1.7, position=tuple(up - forward + (-0.5, 0, 0))
        )
        self._up, self._forward = up, forward
        self._aimed = False
        self._aim(0.22 * forward - 0.36 * up)

    def show_hands(self, positions: ArrayLike, valid: ArrayLike) -> None:
        """Move the solid hands; the first ones seen also direct the view to them."""
        positions, valid = np.asarray(positions, dtype=np.float32), np.asarray(valid, dtype=bool)
        if not self._aimed and valid.any():
            self._aim(np.median(positions[valid], axis=0))
            self._aimed = True
        self.current.show(positions, valid)

    def _aim(self, hands: NDArray[np.floating]) -> None:
        """Look at ``hands`` (3,) from behind the camera's left shoulder, and slightly past them:
        they come to lie in the lower half of the window, which the pictures leave free."""
        position = hands - 1.05 * self._forward + 0.8 * self._up + (-0.75, 0, 0)
        target = hands + 0.42 * self._up
        camera = self._server.initial_camera
        camera.position, camera.look_at, camera.up = tuple(position), tuple(target), tuple(self._up)
        camera.fov = math.radians(40)
        for client in self._server.get_clients().values():
            client.camera.position, client.camera.look_at = tuple(position), tuple(target)

    def show_camera(self, camera: PinholeCamera) -> None:
        """Draw the frustum of the live camera."""
        if camera == self._camera:
            return
        self._camera = camera
        self._frustum = self._server.scene.add_camera_frustum(
            "/camera/frustum",
            fov=2 * math.atan(camera.height / (2 * camera.fy)),
            aspect=camera.width / camera.height * camera.fy / camera.fx,
            scale=0.05,
            thickness=0.002,
            color=(255, 171, 64),
            cast_shadow=False,
            receive_shadow=False,
        )

    def show_motion(self, trajectory: HandTrajectory) -> None:
        """Draw trails of wrists and finger tips, in the reference camera; dark is now."""
        motion = trajectory.in_reference()
        colours = slot_colours(motion.num_slots)
        segments, shades = [], []
        fade = np.linspace(0.35, 1.0, max(1, len(motion) - 1))
        for slot in (base + i for base in (0, SLOTS_PER_HAND) for i in _TRAIL_SLOTS):
            seen = motion.valid[:-1, slot] & motion.valid[1:, slot]
            ends = np.stack([motion.positions[:-1, slot], motion.positions[1:, slot]], axis=1)
            tint = fade[seen, None] * colours[slot]
            segments.append(ends[seen])
            shades.append(np.repeat(tint[:, None], 2, axis=1))
        points = np.concatenate(segments)
        if not len(points):
            self.clear_motion()
            return
        self._server.scene.add_line_segments(
            "/trails",
            points.astype(np.float32),
            np.concatenate(shades).astype(np.uint8),
            thickness=0.003,
        )
        self._trail_shown = True

    def clear_motion(self) -> None:
        if self._trail_shown:
            self._server.scene.remove_by_name("/trails")
            self._trail_shown = False
        self.ghost.hide()
