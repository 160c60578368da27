"""What the continuous rollouts read from the graph: frames, joint states and the coming motion."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, JointState
from trajectory_msgs.msg import JointTrajectory

from ego_world_model.camera import CameraPose
from ego_world_model.hands import NUM_SLOTS, SLOT_NAMES
from ego_world_model.kinematics import HandKinematics
from ego_world_model.kinematics.joint_buffer import JointBuffer, Match, influential_joints
from ego_world_model.msg import HandTrajectory
from ego_world_model.ros.camera_frames import CameraFrame, CameraIntake
from ego_world_model.ros.conversions import MessageError, nanoseconds
from ego_world_model.ros.diagnostics import Diagnostics
from ego_world_model.ros.input_watch import InputWatch
from ego_world_model.ros.motion_source import HandMotion, JointPlan, Motion
from ego_world_model.ros.pace import pace
from ego_world_model.ros.qos import subscribe
from ego_world_model.ros.reference_frames import MissingInput, Reference, ReferenceFrames
from ego_world_model.ros.topics import CAMERA_INFO, JOINT_STATES, PLANNED
from ego_world_model.world_model import ImaginationCancelled

MOTION_SOURCES = {
    "planned": PLANNED,
    "predicted": "hands/predicted",
}
"""Value of the parameter ``motion_source`` → the topic that the motion comes from."""

_PREDICTIONS = 3  # how many of the newest predictions are kept
# Joint states arrive a little after the image that they bracket; how long to wait (seconds).
_JOINT_STATE_WAIT = 0.05


@dataclass(frozen=True)
class Assembled:
    """All that one rollout needs; ``q`` (nq,) rad is None where the motion does not need it."""

    reference: Reference
    motion: Motion
    q: np.ndarray | None


def reject(diagnostics: Diagnostics, error: MessageError) -> None:
    """Count an input that cannot be used by topic and field, report it, and log it now and then."""
    field = re.sub(r"\[\d+\]", "[]", error.field)
    diagnostics.warn(f"rejected {error.topic} {field}", str(error))


class RolloutInputs:
    """Subscribes to everything that a rollout starts from and puts it together on demand.

    Args:
        images: how the camera's images come.
        motion_source: a key of :data:`MOTION_SOURCES`.
        kinematics: of the robot whose joints the graph speaks of; used from one thread only, the
            one that computes rollouts.
        joint_time_offset: seconds added to the stamps of joint states and planned joints.
        on_image: called for every camera frame, after it is stored.
        give_way: asked while joint states are waited for, which is long where a bag is halted.
    """

    def __init__(
        self,
        node: Node,
        diagnostics: Diagnostics,
        *,
        images: CameraIntake,
        motion_source: str,
        kinematics: HandKinematics,
        camera: CameraPose,
        max_staleness: float,
        joint_tolerance: float,
        joint_time_offset: float,
        silence_timeout: float,
        on_image: Callable[[], None],
        give_way: Callable[[], bool],
    ) -> None:
        self._node = node
        self._diagnostics = diagnostics
        self._kinematics = kinematics
        self._camera = camera
        self._images = images
        self._slot_names: tuple[str, ...] = SLOT_NAMES
        self._horizon = 0.0
        self._on_image = on_image
        self._give_way = give_way
        # Newest first; several predictions are kept, since one's frame may be lost on the way.
        self._motions: tuple[Motion, ...] = ()
        self._lock = threading.Lock()
        robot = kinematics.robot
        self._joints = JointBuffer(
            robot.joint_names,
            required=influential_joints(kinematics, camera, robot.extra_slots),
            couplings=robot.couplings,
            tolerance=joint_tolerance,
            time_offset=joint_time_offset,
        )
        # Where joint states are stamped late, so is the one behind a frame.
        self._joint_state_wait = _JOINT_STATE_WAIT + max(0.0, -joint_time_offset)
        self._unknown_joints: tuple[str, ...] = ()
        topic = MOTION_SOURCES[motion_source]
        self._motion_name = topic
        self._motion_topic = node.resolve_topic_name(topic)
        self._joint_topic = node.resolve_topic_name(JOINT_STATES)
        self.frames = ReferenceFrames(
            max_age=max_staleness,
            image_topic=images.topic,
            info_topic=node.resolve_topic_name(CAMERA_INFO),
        )
        from_plan = motion_source == "planned"
        watched = {
            images.topic: images.description,
            CAMERA_INFO: "camera calibration",
            topic: "planned joint trajectory" if from_plan else "hand trajectory",
        }
        if from_plan:
            watched[JOINT_STATES] = "joint states"
        self._watch = InputWatch(node, diagnostics, watched, after=silence_timeout)
        self._subscriptions = [
            images.subscribe(self._take_image, partial(reject, diagnostics), depth=5),
            subscribe(node, CameraInfo, CAMERA_INFO, self._take_info, depth=2),
            subscribe(
                node,
                JointTrajectory if from_plan else HandTrajectory,
                topic,
                self._take_plan if from_plan else self._take_hands,
                depth=2,
            ),
        ]
        if from_plan:
            self._subscriptions.append(
                subscribe(node, JointState, JOINT_STATES, self._take_joints, depth=50)
            )

    def expect(self, slot_names: tuple[str, ...], horizon: float) -> None:
        """What the loaded model asks of a motion: its slots, and seconds to reach ahead.

        Motions that came before were read for another model and are forgotten.
        """
        self._slot_names = slot_names
        self._horizon = horizon
        self._motions = ()

    def assemble(self, now: int) -> Assembled:
        """The newest frame from which the current motion covers the horizon, and the robot's
        state at it.

        Raises:
            MissingInput: something has not come yet.
            MessageError: something that came cannot be used.
            ImaginationCancelled: ``give_way`` said so.
        """
        motions = self._motions
        if not motions:
            raise MissingInput(
                self._motion_topic, "messages", "have not arrived", "publish the coming motion"
            )
        refusal: MessageError | None = None
        for motion in motions:
            try:
                return self._assemble(motion, now)
            except MessageError as error:
                refusal = refusal or error
        assert refusal is not None
        raise refusal

    def _assemble(self, motion: Motion, now: int) -> Assembled:
        began, paced = time.monotonic(), pace(self._node)

        def patient() -> bool:
            """Whether joint states may still come: by this clock, or by that of the inputs."""
            wait = self._joint_state_wait
            in_time = 0.0 <= pace(self._node) - paced <= wait  # not where the clock was set back
            return in_time or time.monotonic() - began <= wait

        def fit(stamp: int, frame_id: str) -> np.ndarray | None:
            motion.check(stamp, frame_id, self._horizon)
            return self._state_at(stamp, patient) if motion.needs_joint_state else None

        received, image, q = self.frames.newest_fitting(fit, now)
        return Assembled(self.frames.decode(received, image), motion, q)

    def _state_at(self, stamp: int, patient: Callable[[], bool]) -> np.ndarray:
        """(nq,) rad at ``stamp`` ns, waiting for the next joint state while ``patient``."""
        while True:
            with self._lock:
                found = self._joints.at(stamp)
            if found.q is not None:
                return found.q
            if found.match is not Match.WAIT or not patient():
                break
            if self._give_way():
                raise ImaginationCancelled
            time.sleep(0.002)
        if found.match is Match.EMPTY:
            raise MissingInput(
                self._joint_topic, "messages", "have not arrived", "start the robot's driver"
            )
        raise MessageError(
            self._joint_topic,
            "header.stamp",
            f"does not match the camera's: the frame is {found.match.value}",
            "publish joint states at 50 Hz or more, stamped by the clock that stamps the images; a "
            "constant delay belongs into joint_time_offset",
        )

    # ---------------------------------------------------------------- callbacks

    def _take_image(self, image: CameraFrame) -> None:
        self._watch.seen(self._images.topic)
        self._diagnostics.tick("images")
        self.frames.add_image(image, self._now())
        self._on_image()

    def _take_info(self, message: CameraInfo) -> None:
        self._watch.seen(CAMERA_INFO)
        self.frames.add_info(message)

    def _take_joints(self, message: JointState) -> None:
        self._watch.seen(JOINT_STATES)
        stamp = nanoseconds(message.header.stamp)
        try:
            with self._lock:
                self._joints.add(stamp, message.name, message.position)
        except ValueError as error:
            self._diagnostics.warn("rejected joint states", f"{self._joint_topic}: {error}")
        unknown = self._joints.unknown
        if unknown and unknown != self._unknown_joints:
            self._diagnostics.warn(
                "ignored joints",
                f"{self._joint_topic}: name holds joints that {self._kinematics.robot.name} does "
                f"not have, ignored: {', '.join(unknown[:6])}; set the parameter 'embodiment' if "
                "this is another robot",
            )
        self._unknown_joints = unknown

    def _take_plan(self, message: JointTrajectory) -> None:
        def parse() -> Motion:
            plan = JointPlan.from_message(
                message,
                self._kinematics,
                received=self._now(),
                topic=self._motion_topic,
                extra_slots=self._slot_names[NUM_SLOTS:],
                camera=self._camera,
            )
            # The plan runs on the clock of the joint states, rollouts on that of the camera.
            plan = replace(plan, stamp=plan.stamp + self._joints.time_offset_ns)
            last = self._motions[0] if self._motions else None
            return plan.after(last if isinstance(last, JointPlan) else None)

        self._take_motion(parse, keep=1)

    def _take_hands(self, message: HandTrajectory) -> None:
        self._take_motion(
            lambda: HandMotion.from_message(
                message, topic=self._motion_topic, slot_names=self._slot_names, stamped=True
            ),
            keep=_PREDICTIONS,
        )

    def _take_motion(self, parse: Callable[[], Motion], *, keep: int) -> None:
        """Put a sound motion before the old ones; a broken one leaves them in force."""
        self._watch.seen(self._motion_name)
        self._diagnostics.tick("motion")
        try:
            self._motions = (parse(), *self._motions)[:keep]
        except MessageError as error:
            reject(self._diagnostics, error)

    def _now(self) -> int:
        return self._node.get_clock().now().nanoseconds
