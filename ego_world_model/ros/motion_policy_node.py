"""Where will the hands move? Camera frame, robot state and instruction → a chunk of motion.

A lifecycle node that owns no algorithm: it loads a policy, feeds it the newest complete frame at a
steady rate in a thread of its own, and publishes what comes out, as hand joints for the world
model, as joint targets for a robot, and as ghost hands for people.
"""

from __future__ import annotations

import sys
import time
from functools import partial

import numpy as np

from ego_world_model.ros import quiet_threads  # noqa: F401  before torch

# isort: split
from ego_world_model.kinematics import HandKinematics
from ego_world_model.policy.chunk import HandChunk
from ego_world_model.policy.filtering import TemporalOrthogonalFilter
from ego_world_model.policy.limits import JointLimits
from ego_world_model.policy.policy import MotionPolicy
from ego_world_model.policy.targets import JointTargets, joint_targets
from ego_world_model.ros.camera_frames import CameraIntake
from ego_world_model.ros.camera_mount import declare_camera_mount
from ego_world_model.ros.conversions import MessageError
from ego_world_model.ros.instruction import Instruction
from ego_world_model.ros.model_node import ModelNode, started
from ego_world_model.ros.motion_policy_settings import declare_settings, sampling
from ego_world_model.ros.policy_inputs import Observation, PolicyInputs
from ego_world_model.ros.prediction_publisher import PredictionPublisher
from ego_world_model.ros.robot_description import load_robot
from ego_world_model.ros.rollout_inputs import reject
from ego_world_model.ros.run import run_node

SMOOTHED = 2
"""Chunks that are averaged (docs/policy_execution.md says why no more)."""


class MotionPolicyNode(ModelNode):
    """Publishes ``hands/predicted`` and ``joint_trajectory/predicted``; see the module."""

    def __init__(self) -> None:
        self._policy: MotionPolicy | None = None
        self._inputs: PolicyInputs | None = None
        self._publisher: PredictionPublisher | None = None
        self._filter = TemporalOrthogonalFilter(most=SMOOTHED)
        self._filtered = 0  # ns, the newest frame in the filter
        self._busy = False
        self._fresh_start = False
        super().__init__(
            "motion_policy",
            model="motion policy",
            product="chunk",
            declare_settings=declare_settings,
        )
        self._instruction = Instruction(self, self._instructed)
        self._robot = load_robot(
            self,
            self._diagnostics,
            self._settings.embodiment,
            silence=self._settings.silence_timeout,
        )
        self._kinematics = HandKinematics(self._robot)  # the policy's thread alone uses it later
        self._limits = JointLimits(self._kinematics)
        self._mount = declare_camera_mount(self, self._robot)
        self._images = CameraIntake(self)
        self._diagnostics.value("instruction", self._instruction.text or "(none)")

    # ---------------------------------------------------------------- lifecycle

    def _load(self) -> MotionPolicy:
        policy = MotionPolicy.from_pretrained(
            self._settings.checkpoint, device=self._settings.device
        )
        for hand in self._robot.hands.values():
            policy.layout.columns(hand.fingers)  # a hand that it does not know is said now
        return policy

    def _adopt(self, policy: MotionPolicy) -> str:
        self._policy = policy
        self._join_graph()
        return f"chunks of {policy.config.chunk} steps at {policy.config.fps:g} Hz"

    def _leave_graph(self) -> None:
        if self._publisher is not None:
            self._publisher.destroy()

    def _join_graph(self) -> None:
        """Subscribe and advertise at the first configuration, for the node's life."""
        if self._inputs is not None:
            return
        self._publisher = PredictionPublisher(
            self, self._robot, joint_time_offset=self._settings.joint_time_offset
        )
        self._inputs = PolicyInputs(
            self,
            self._diagnostics,
            images=self._images,
            kinematics=self._kinematics,
            camera=self._mount,
            settings=self._settings,
            on_frame=self._frame_complete,
        )

    def _set_active(self, active: bool) -> None:
        super()._set_active(active)
        self._fresh_start = True
        if self._inputs is not None and not active:
            self._inputs.clear()

    def _forget(self) -> None:
        self._policy = None

    # ---------------------------------------------------------------- callbacks

    def _frame_complete(self) -> None:
        if self._busy:
            self._diagnostics.count("frames skipped while computing")
        self._thread.wake()

    def _instructed(self, text: str) -> None:
        self.get_logger().info(f"instruction: {text or '(none)'}")
        self._diagnostics.value("instruction", text or "(none)")
        # What was predicted for other words says nothing about these.
        self._fresh_start = True

    # ---------------------------------------------------------------- in the policy's thread

    def _work(self) -> None:
        """Whenever a frame came: at most one chunk."""
        policy, inputs, publisher = self._policy, self._inputs, self._publisher
        if not self._active or policy is None or inputs is None or publisher is None:
            return
        how, now = sampling(self), time.monotonic()
        if now < self._next_start:
            return
        self._busy = True
        try:
            observation = inputs.take()
            if observation is None:
                return
            self._next_start = max(self._next_start + how.period, now)
            self._publish_chunk(policy, publisher, observation, now)
        except MessageError as error:
            reject(self._diagnostics, error)
        finally:
            self._busy = False

    def _publish_chunk(
        self,
        policy: MotionPolicy,
        publisher: PredictionPublisher,
        observation: Observation,
        started: float,
    ) -> None:
        how, kinematics, q = sampling(self), self._kinematics, observation.q
        if self._fresh_start:
            self._fresh_start = False
            self._filter.reset()
        chunk = policy.predict(
            observation.image,
            kinematics.hand_state(q, self._mount),
            observation.camera.matrix,
            instruction=self._instruction.text or None,
            depth=observation.depth,
            seed=how.seed,
            steps=how.steps,
        )
        predicted = time.monotonic()
        if self._fresh_start:
            self._diagnostics.count("chunks dropped: the instruction changed")
            return
        if how.smoothing:
            chunk = self._smoothed(chunk, observation)
        targets = joint_targets(chunk, kinematics, q, self._mount, limits=self._limits)
        hands = targets.trajectory(kinematics, self._mount, extra_slots=self._robot.extra_slots)
        if not self._active or self._fresh_start:
            return
        publisher.publish(observation.frame, targets, hands)
        self._report(observation, targets, started, predicted)

    def _smoothed(self, chunk: HandChunk, observation: Observation) -> HandChunk:
        """The chunk averaged with the one before, as far as they speak of the same moments."""
        stamp = observation.frame.stamp
        if stamp <= self._filtered:  # time was set back
            self._filter.reset()
        self._filtered = stamp
        root_from_camera = self._kinematics.camera_pose(observation.q, self._mount)
        return self._filter.push(stamp * 1e-9, chunk, root_from_camera)

    def _report(
        self,
        observation: Observation,
        targets: JointTargets,
        started: float,
        predicted: float,
    ) -> None:
        finished = time.monotonic()
        report = self._diagnostics
        report.count("chunks")
        report.tick("chunk")
        report.latency("chunk", finished - started)
        report.latency("predict", predicted - started)
        report.latency("joint targets", finished - predicted)
        age = (self.get_clock().now().nanoseconds - observation.frame.stamp) * 1e-9
        report.latency("age when published", age)
        report.sample("tracking error", 1e3 * float(np.nanmax(targets.position_error)), "mm")
        turned = float(np.degrees(np.nanmax(targets.rotation_error)))
        report.sample("tracking error of rotation", turned, "deg")
        report.value("limits", targets.explain(self._robot) or "none")


def main(args: list[str] | None = None) -> int:
    """Runs the node until it is interrupted."""
    return run_node(partial(started, MotionPolicyNode), args)


if __name__ == "__main__":
    sys.exit(main())
