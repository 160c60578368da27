"""Publishes a predicted chunk: as hand joints, as joint targets, and as ghost hands."""

from __future__ import annotations

import numpy as np
from rclpy.lifecycle import LifecycleNode, LifecyclePublisher
from rclpy.qos_overriding_options import QoSOverridingOptions
from std_msgs.msg import Header
from trajectory_msgs.msg import JointTrajectory
from visualization_msgs.msg import MarkerArray

from ego_world_model import msg
from ego_world_model.embodiment import Embodiment
from ego_world_model.hands import SLOT_NAMES, HandTrajectory, slot_index
from ego_world_model.policy.targets import JointTargets
from ego_world_model.ros.camera_frames import CameraFrame
from ego_world_model.ros.conversions import (
    hand_trajectory_to_message,
    joint_trajectory_to_message,
    stamp_from_nanoseconds,
)
from ego_world_model.ros.hand_markers import HandMarkers
from ego_world_model.ros.qos import reliable_qos, wanted
from ego_world_model.ros.topics import PREDICTED, PREDICTED_HANDS, PREDICTED_MARKERS

GHOST = (0.78, 0.62, 1.0)
"""Colour of predicted hands: violet, which no finger of the palette has."""

_LIFETIME = 1.0  # seconds for which ghosts stay without a new prediction


class PredictionPublisher:
    """The publishers of what the policy predicts.

    Args:
        robot: whose arm and finger joints the joint targets name; joints that follow another one
            are left to whoever drives them.
        joint_time_offset: seconds by which images are stamped later than joint states; joint
            targets run on the clock of the joint states.
    """

    def __init__(
        self, node: LifecycleNode, robot: Embodiment, *, joint_time_offset: float = 0.0
    ) -> None:
        self._node = node
        self._slot_names = SLOT_NAMES + robot.extra_slots
        self._joints = tuple(
            name for hand in robot.hands.values() for name in (*hand.arm, *hand.fingers)
        )
        self._columns = robot.indices(self._joints)
        self._offset_ns = round(joint_time_offset * 1e9)
        self._hands = self._advertise(msg.HandTrajectory, PREDICTED_HANDS)
        self._trajectory = self._advertise(JointTrajectory, PREDICTED)
        self._markers = self._advertise(MarkerArray, PREDICTED_MARKERS)

    def publish(self, frame: CameraFrame, targets: JointTargets, hands: HandTrajectory) -> None:
        """Publish what was predicted from ``frame``; stamps and camera frame are the frame's."""
        header = frame.header()
        # Joint targets leave first: a robot may wait for them.
        self._trajectory.publish(self._joint_message(frame.stamp, targets))
        self._hands.publish(
            hand_trajectory_to_message(
                hands, header=header, source="policy", slot_names=self._slot_names
            )
        )
        if wanted(self._markers):
            self._markers.publish(ghost_markers(hands, header))

    def destroy(self) -> None:
        """Withdraw all publishers."""
        for publisher in (self._hands, self._trajectory, self._markers):
            self._node.destroy_lifecycle_publisher(publisher)

    def _joint_message(self, stamp: int, targets: JointTargets) -> JointTrajectory:
        """The targets, and before them the state that they start from."""
        times = np.concatenate([[0.0], targets.times])
        q = np.vstack([targets.start, targets.q])[:, self._columns]
        header = Header(stamp=stamp_from_nanoseconds(stamp - self._offset_ns))
        return joint_trajectory_to_message(times, q, self._joints, header=header)

    def _advertise(self, kind: type, topic: str) -> LifecyclePublisher:
        return self._node.create_lifecycle_publisher(
            kind,
            topic,
            reliable_qos(2),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )


def ghost_markers(hands: HandTrajectory, header: Header) -> MarkerArray:
    """Ghosts half-way and at the end of the motion, and the wrists' paths, in the reference
    camera."""
    motion = hands.in_reference()
    array = MarkerArray()
    last = len(motion) - 1
    for name, k, opacity in (("half-way", last // 2, 0.2), ("end", last, 0.4)):
        draw = HandMarkers(f"predicted {name}", lifetime=_LIFETIME, colour=GHOST, opacity=opacity)
        array.markers.extend(draw.message(motion.frame(k), header).markers)
    draw = HandMarkers("predicted path", lifetime=_LIFETIME, colour=GHOST, opacity=0.6)
    for number, side in enumerate(("left", "right")):
        wrist = slot_index(f"{side}_wrist")
        if motion.valid[:, wrist].all():
            array.markers.append(draw.path(motion.positions[:, wrist], header, number))
    return array
