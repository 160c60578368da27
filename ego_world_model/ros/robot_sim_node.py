"""The simulated robot in real time: camera, depth, joint states, its own plan; obeys trajectories.

Joint states come from the newest plan, on a timer that nothing else delays; pictures come from the
simulation's own process (``simulation.remote``). Both follow the node's clock, so image and joint
states of one stamp show one configuration.

With ``execute`` the robot has no plan of its own: it is told tasks on ``instruction``, follows the
motion policy (``policy_execution``), and says on ``task/status`` what became of each.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image, JointState
from std_msgs.msg import Header, String
from trajectory_msgs.msg import JointTrajectory

from ego_world_model.embodiment import load_embodiment
from ego_world_model.ros.conversions import (
    MessageError,
    image_from_array,
    info_from_camera,
    joint_trajectory_to_message,
    stamp_from_nanoseconds,
)
from ego_world_model.ros.diagnostics import ERROR, WARN, Diagnostics
from ego_world_model.ros.joint_commands import executable_trajectory
from ego_world_model.ros.qos import advertise, send, subscribe, wanted
from ego_world_model.ros.robot_sim_settings import declare_settings
from ego_world_model.ros.run import StartError, run_node
from ego_world_model.ros.task_words import TaskWords
from ego_world_model.ros.topics import (
    CAMERA_INFO,
    DEPTH,
    IMAGE,
    JOINT_STATES,
    JOINT_TRAJECTORY,
    PLANNED,
    PREDICTED,
    TASK_STATUS,
)
from ego_world_model.simulation.instructed import FAILED, UNDER_WAY, TaskStatus
from ego_world_model.simulation.remote import (
    COARSE_STEP,
    Failure,
    Picture,
    Plan,
    RemoteTableTop,
    StartPose,
)

if TYPE_CHECKING:
    from ego_world_model.ros.policy_execution import PolicyExecution

OPTICAL_FRAME = "camera_color_optical_frame"
REAL_TIME = 0.95  # below this share of the pictures due, the report warns
_WINDOW = 10.0  # seconds over which that share is taken


class RobotSimNode(Node):
    """Publishes what a robot with a head camera publishes; see the module."""

    def __init__(self) -> None:
        super().__init__("robot_sim")
        self._settings = settings = declare_settings(self)
        try:
            self._robot = load_embodiment(settings.embodiment)
        except (ValueError, OSError) as error:
            raise StartError(f"parameter 'embodiment': {error}") from None
        self._camera = self._robot.camera.resized(settings.width, settings.height)
        self._diagnostics = Diagnostics(self)
        self._diagnostics.add_check(self._check)
        self._lock = threading.Lock()
        self._plan: Plan | None = None
        self._epoch = 0  # nanoseconds of the node's clock at simulated time 0
        self._last = 0.0
        self._due: deque[tuple[float, bool]] = deque()
        self.failure: str | None = None
        self._execution: PolicyExecution | None = None
        self._words = TaskWords(self, self._on_own_words)
        self._advertise()
        self._simulation = RemoteTableTop(
            settings.embodiment,
            horizon=settings.plan_horizon,
            resume_after=None if settings.resume_after < 0 else settings.resume_after,
            options=settings.table_options(),
            on_plan=self._on_plan,
            on_picture=self._on_picture,
            on_failure=self._on_failure,
            instructed=settings.execute,
            on_task=self._on_task,
            on_start_pose=self._on_start_pose,
        )
        if settings.instruction:
            self._words.take_over(settings.instruction, repeat=True)
        self.get_logger().info("the simulation starts")

    def _advertise(self) -> None:
        self._images = advertise(self, Image, IMAGE)
        self._infos = advertise(self, CameraInfo, CAMERA_INFO)
        self._depths = advertise(self, Image, DEPTH)
        self._joints = advertise(self, JointState, JOINT_STATES, depth=50)
        self._plans = advertise(self, JointTrajectory, PLANNED, latched=True, depth=1)
        self._joint_state = JointState(name=list(self._robot.joint_names))
        if self._settings.execute:
            from ego_world_model.ros.policy_execution import PolicyExecution

            self._statuses = advertise(self, String, TASK_STATUS, latched=True, depth=1)
            self._execution = PolicyExecution(
                self,
                self._diagnostics,
                self._robot,
                now=lambda: self._now()[1],
                simulated=lambda stamp: (stamp - self._epoch) * 1e-9,
                max_speed=self._settings.max_joint_speed,
            )
        else:
            self._commands = subscribe(
                self, JointTrajectory, JOINT_TRAJECTORY, self._on_command, reliable=True
            )
        # Timers follow the node's clock: simulated time that stands still stops the robot.
        self._timers_kept = [
            self.create_timer(1.0 / self._settings.joint_rate, self._publish_joints),
            self.create_timer(1.0 / self._settings.camera_rate, self._look),
            self.create_timer(1.0 / self._settings.plan_rate, self._publish_plan),
        ]

    # -------------------------------------------------------------------- time

    def _now(self) -> tuple[int, float]:
        """The node's clock in nanoseconds, and as simulated seconds (which never run back)."""
        now = self.get_clock().now().nanoseconds
        simulated = (now - self._epoch) * 1e-9
        if simulated < self._last - 1e-3:  # the clock was set back: go on from where we are
            self._epoch = now - round(self._last * 1e9)
            simulated = self._last
        self._last = max(self._last, simulated)
        return now, self._last

    def _header(self, simulated: float) -> Header:
        stamp = stamp_from_nanoseconds(self._epoch + round(simulated * 1e9))
        return Header(stamp=stamp, frame_id=OPTICAL_FRAME)

    # --------------------------------------------------------------- publishing

    def _publish_joints(self) -> None:
        plan = self._plan
        if plan is None:
            return
        now, simulated = self._now()
        if self._execution is not None:
            q = self._execution.step(simulated)
        elif plan.covers(simulated):
            q = plan.at(simulated)
        else:
            return  # the report says that the simulation stalls
        message = self._joint_state
        message.header.stamp = stamp_from_nanoseconds(now)
        message.position = q.tolist()
        self._joints.publish(message)
        self._diagnostics.tick("joint states")

    def _look(self) -> None:
        """Asks for the next picture."""
        if self._plan is None:
            return
        _, simulated = self._now()
        taken = not self._simulation.looking
        if taken:
            motion, waiting = None, False
            if self._execution is not None:
                motion = self._execution.motion(simulated)
                waiting = not self._execution.is_driven(simulated)
            depth = wanted(self._depths)
            self._simulation.look(simulated, depth=depth, motion=motion, waiting=waiting)
        moment = time.monotonic()
        self._due.append((moment, taken))
        while self._due[0][0] < moment - _WINDOW:
            self._due.popleft()
        if not taken:
            self._diagnostics.count("pictures skipped")

    def _publish_plan(self) -> None:
        plan = self._plan
        if plan is None:
            return
        _, simulated = self._now()
        if self._execution is not None:
            ahead = np.arange(0.0, self._settings.plan_horizon, COARSE_STEP)
            q = self._execution.at(simulated + ahead)
            plan = Plan(simulated, ahead, q, "", "follow")
        self._send_plan(plan, simulated)

    def _send_plan(self, plan: Plan, simulated: float) -> None:
        """What is left of the plan, stamped with the present."""
        offset = simulated - plan.start
        ahead = plan.times > offset + 1e-3
        if not ahead.any():
            return
        times = np.concatenate([[0.0], plan.times[ahead] - offset])
        q = np.vstack([plan.at(simulated), plan.q[ahead]])
        header = self._header(simulated)
        header.frame_id = ""
        message = joint_trajectory_to_message(times, q, self._robot.joint_names, header=header)
        send(self, self._plans, message)

    # --------------------------------------------------------------- simulation

    def _on_plan(self, plan: Plan) -> None:
        """A new plan (in the simulation's thread)."""
        with self._lock:
            first, previous = self._plan is None, self._plan
            if first:
                self._epoch = self.get_clock().now().nanoseconds
                if self._execution is not None:
                    self._execution.start(plan.q[0])
            self._plan = plan
        if self._execution is None:
            self._diagnostics.value("task", f"{plan.task}: {plan.instruction}")
            self._words.give(plan.instruction)
        if first:
            self.get_logger().info(
                f"the robot moves: {self._camera.width}x{self._camera.height} images at "
                f"{self._settings.camera_rate:g} Hz, joint states at "
                f"{self._settings.joint_rate:g} Hz"
            )
        if previous is None or plan.instruction != previous.instruction:
            self._send_plan(plan, plan.start)

    def _on_task(self, status: TaskStatus) -> None:
        """News of a task (in the simulation's thread)."""
        if status.state == UNDER_WAY:
            if self._execution is not None:
                self._execution.release()
            self._words.give(status.instruction)
        self._diagnostics.value("task", status)
        # rclpy allows one severity for each line of code
        if status.state == FAILED:
            self.get_logger().warning(f"task {status}")
        else:
            self.get_logger().info(f"task {status}")
        send(self, self._statuses, String(data=str(status)))

    def _on_start_pose(self, pose: StartPose) -> None:
        """The next scene is ready (in the simulation's thread)."""
        if self._execution is not None:
            self._execution.go_to(pose.q)

    def _on_own_words(self, text: str) -> None:
        """Somebody else says what to do, or with "" that he has said enough."""
        self.get_logger().info(f"told by somebody: {text}" if text else "the tasks go on")
        if self._execution is not None:
            self._simulation.instruct(text)
            self._execution.release()
        elif not text and self._plan is not None:
            self._words.give(self._plan.instruction)

    def _on_picture(self, picture: Picture) -> None:
        """A finished picture (in the simulation's thread)."""
        header = self._header(picture.time)
        send(self, self._images, image_from_array(picture.rgb, "rgb8", header=header))
        send(self, self._infos, info_from_camera(self._camera, header=header))
        if picture.depth is not None:
            send(self, self._depths, image_from_array(picture.depth, "16UC1", header=header))
        _, simulated = self._now()
        self._diagnostics.tick("image")
        self._diagnostics.latency("rendering", picture.render_seconds)
        self._diagnostics.latency("image age when published", simulated - picture.time)

    def _on_failure(self, failure: Failure) -> None:
        """A robot without its simulation has nothing left to do: the process ends."""
        self.failure = f"the simulation failed: {failure.text}"
        self.context.try_shutdown()

    def _on_command(self, message: JointTrajectory) -> None:
        plan = self._plan
        if plan is None:
            self._diagnostics.warn("trajectories rejected", "the simulation is still starting")
            return
        now, simulated = self._now()
        reaction = self._simulation.reaction
        begin = simulated + reaction
        try:
            times, q = executable_trajectory(
                message,
                self._robot,
                now=now + round(reaction * 1e9),
                q=plan.at(begin),
                max_speed=self._settings.max_joint_speed,
                topic=self.resolve_topic_name(JOINT_TRAJECTORY),
            )
        except MessageError as error:
            self._diagnostics.warn("trajectories rejected", str(error))
            return
        self._diagnostics.count("trajectories followed")
        self._simulation.follow(begin, times, q)

    # --------------------------------------------------------------- reporting

    def real_time_factor(self) -> float | None:
        """Share of the pictures due in the last seconds that were taken in time."""
        due = list(self._due)
        return sum(taken for _, taken in due) / len(due) if len(due) >= 5 else None

    def _check(self) -> tuple[bytes, str] | None:
        if self._execution is not None:
            self._refuse_a_real_robot()
        plan, factor = self._plan, self.real_time_factor()
        if plan is None:
            return WARN, "the simulation is starting"
        if self._execution is None:
            if not plan.covers(self._last):
                return ERROR, "the simulation stalls: its newest plan is over"
        elif not self._execution.is_driven(self._last):
            return WARN, (
                f"no chunk to follow on {self.resolve_topic_name(PREDICTED)}: the task waits for "
                "the motion policy"
            )
        if factor is None:
            return None
        self._diagnostics.value("real-time factor", f"{factor:.3f}")
        if factor < REAL_TIME:
            return WARN, (
                f"pictures come at {factor:.2f} of real time; lower camera_rate or the image size"
            )
        return None

    def _refuse_a_real_robot(self) -> None:
        """Another publisher of joint states may be a robot that obeys the policy, too."""
        topic = self.resolve_topic_name(JOINT_STATES)
        if self.count_publishers(topic) < 2:
            return
        own = (self.get_name(), self.get_namespace())
        others = [
            f"{info.node_namespace.rstrip('/')}/{info.node_name}"
            for info in self.get_publishers_info_by_topic(topic)
            if (info.node_name, info.node_namespace) != own
        ]
        if others:
            self.failure = (
                f"execute:=true moves the simulated robot only, but {', '.join(others)} publishes "
                f"{topic}, too: end it (or start the simulation in a namespace or domain of its "
                "own), or leave execute out"
            )
            self.context.try_shutdown()

    def destroy_node(self) -> None:
        """Ends the simulation before the publishers it uses."""
        self._simulation.close()
        super().destroy_node()


def main(args: list[str] | None = None) -> int:
    """Runs the node until it is interrupted."""
    return run_node(RobotSimNode, args)


if __name__ == "__main__":
    sys.exit(main())
