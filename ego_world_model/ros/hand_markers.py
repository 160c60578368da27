"""Hands as RViz markers: a sphere per joint and a line per bone, in the camera's optical frame."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rclpy.duration import Duration
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from ego_world_model.drawing import bone_colours, slot_colours
from ego_world_model.hands import HandJoints, bones
from ego_world_model.ros.conversions.hands import points_from_array

_HIDDEN_ALPHA = 0.3


class HandMarkers:
    """Builds the marker array of one kind of hands (current, predicted, ...).

    Args:
        namespace: of the markers, so that several kinds can be shown and hidden apart.
        radius: metres, of a joint's sphere.
        lifetime: seconds after which RViz removes markers that are not renewed.
        colour: (r, g, b) 0..1 of all of it; None: each finger its own, as in every picture.
        opacity: of joints that are not hidden; below 1 for ghosts.
    """

    def __init__(
        self,
        namespace: str,
        *,
        radius: float = 0.007,
        lifetime: float = 0.5,
        colour: tuple[float, float, float] | None = None,
        opacity: float = 1.0,
    ) -> None:
        self._colour = colour
        self._opacity = opacity
        self._namespace = namespace
        self._radius = radius
        self._lifetime = Duration(seconds=lifetime).to_msg()

    def message(
        self, hands: HandJoints, header: Header, visibility: NDArray[np.float32] | None = None
    ) -> MarkerArray:
        """Two markers: joints (spheres, faint where hidden) and bones (lines)."""
        joints = len(hands.valid)
        alpha = np.ones(joints) if visibility is None else np.asarray(visibility, float)
        alpha = self._opacity * (_HIDDEN_ALPHA + (1 - _HIDDEN_ALPHA) * alpha)
        rgba = np.column_stack([self._tint(slot_colours(joints)), alpha])
        points = points_from_array(hands.positions)
        present = np.flatnonzero(hands.valid).tolist()
        spheres = self._marker(header, 0, Marker.SPHERE_LIST)
        spheres.scale.x = spheres.scale.y = spheres.scale.z = 2 * self._radius
        spheres.points = [points[i] for i in present]
        spheres.colors = _colours(rgba[present])

        pairs = bones(hands.valid)
        lines = self._marker(header, 1, Marker.LINE_LIST)
        lines.scale.x = 0.6 * self._radius
        lines.points = [points[i] for pair in pairs for i in pair]
        ends = np.column_stack(
            [self._tint(bone_colours(pairs, joints)), alpha[[b for _, b in pairs]]]
        )
        lines.colors = _colours(np.repeat(ends, 2, axis=0))
        return MarkerArray(markers=[spheres, lines])

    def path(self, points: NDArray[np.floating], header: Header, number: int) -> Marker:
        """One line through points (N, 3) metres; ``number`` tells several of them apart."""
        line = self._marker(header, 2 + number, Marker.LINE_STRIP)
        line.scale.x = 0.4 * self._radius
        line.points = points_from_array(points)
        red, green, blue = self._colour or (1.0, 1.0, 1.0)
        line.color = ColorRGBA(r=red, g=green, b=blue, a=self._opacity)
        return line

    def _tint(self, colours: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(N, 3) 0..1 for the colours (N, 3) of the palette."""
        if self._colour is None:
            return colours / 255.0
        return np.tile(self._colour, (len(colours), 1))

    def _marker(self, header: Header, number: int, kind: int) -> Marker:
        marker = Marker(header=header, ns=self._namespace, id=number, type=kind)
        marker.lifetime = self._lifetime
        return marker


def _colours(rgba: NDArray[np.float64]) -> list[ColorRGBA]:
    return [ColorRGBA(r=r, g=g, b=b, a=a) for r, g, b, a in rgba.tolist()]
