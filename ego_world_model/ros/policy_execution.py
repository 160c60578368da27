"""Moves the simulated robot along the motion policy's chunks: in real time, without jumps.

What the joints do is decided here, at the robot's own clock, and told to the simulation with every
picture: joint states never wait for a renderer, and picture and joint states agree.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rclpy.node import Node
from trajectory_msgs.msg import JointTrajectory

from ego_world_model.embodiment import Embodiment
from ego_world_model.kinematics import HandKinematics
from ego_world_model.policy.execution import ChunkExecutor
from ego_world_model.policy.limits import JointLimits
from ego_world_model.policy.targets import JointTargets, Limited
from ego_world_model.ros.conversions import MessageError, nanoseconds
from ego_world_model.ros.diagnostics import Diagnostics
from ego_world_model.ros.joint_commands import check_speed, checked_trajectory
from ego_world_model.ros.qos import subscribe
from ego_world_model.ros.topics import PREDICTED
from ego_world_model.simulation.motion import Track

_SILENT = 3.0  # seconds without a chunk after which nobody drives the robot
_RETURN_SPEED = 1.0  # rad/s, peak of a joint on its way to a start pose


class PolicyExecution:
    """Subscribes to ``joint_trajectory/predicted`` and knows where the joints are at any time.

    All times are simulated seconds. Methods may be called from any thread.

    Args:
        now: simulated time now.
        simulated: a stamp in nanoseconds as simulated time.
        max_speed: rad/s; a chunk that asks more is refused.
    """

    def __init__(
        self,
        node: Node,
        diagnostics: Diagnostics,
        robot: Embodiment,
        *,
        now: Callable[[], float],
        simulated: Callable[[int], float],
        max_speed: float,
    ) -> None:
        self._diagnostics = diagnostics
        self._robot = robot
        self._now, self._simulated = now, simulated
        self._max_speed = max_speed
        self._lock = threading.Lock()
        limits = JointLimits(HandKinematics(robot))
        self._executor = ChunkExecutor(limits, robot.neutral, 0.0)
        self._started = False
        self._last_chunk = -np.inf
        self._return: tuple[float, Track] | None = None
        self._not_before = -np.inf
        self._path: list[tuple[float, NDArray[np.float64]]] = []
        self._topic = node.resolve_topic_name(PREDICTED)
        self._subscription = subscribe(
            node, JointTrajectory, PREDICTED, self._take, depth=2, reliable=True
        )

    def start(self, q: NDArray[np.float64]) -> None:
        """Rest at q (nq,) rad until the first chunk."""
        with self._lock:
            self._executor.reset(q, self._now())
            self._started = True

    def at(self, times: ArrayLike) -> NDArray[np.float64]:
        """(T, nq) rad at times (T,) from now on; behind the last chunk the robot rests."""
        times = np.asarray(times, dtype=np.float64)
        with self._lock:
            if self._return is not None:
                start, track = self._return
                return self._robot.coupled(track.at(times - start))
            return self._robot.coupled(self._executor.at(times))

    def is_driven(self, now: float) -> bool:
        """Whether chunks come, or the robot goes somewhere by itself."""
        return self._return is not None or now - self._last_chunk < _SILENT

    def step(self, now: float) -> NDArray[np.float64]:
        """(nq,) rad at ``now``, which is remembered for ``motion``."""
        q = self.at([now])[0]
        if not self._path or now > self._path[-1][0] + 1e-6:
            self._path.append((now, q))
        return q

    def motion(self, until: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """All steps since the last call, and one at ``until``: times (T,) and q (T, nq) rad."""
        self.step(until)
        path, self._path = self._path, self._path[-1:]
        return np.array([time for time, _ in path]), np.stack([q for _, q in path])

    def go_to(self, q: NDArray[np.float64]) -> None:
        """Obey no chunk, and go to q (nq,) rad smoothly; until ``release``."""
        now = self._now()
        present = self.at([now])[0]
        track = Track.starting_at(np.arange(len(q)), np.full(len(q), _RETURN_SPEED), present)
        track.move(q, at_least=1.0)
        with self._lock:
            self._return = (now, track)

    def release(self) -> None:
        """Obey chunks again, those of frames that are still to come."""
        now = self._now()
        present = self.at([now])[0]
        with self._lock:
            if self._return is not None:
                self._return = None
                self._executor.reset(present, now)
                self._not_before = now

    def _take(self, message: JointTrajectory) -> None:
        now = self._now()
        observed = self._simulated(nanoseconds(message.header.stamp))
        if not self._started or self._return is not None or observed < self._not_before:
            self._diagnostics.count("chunks ignored: the scene changes")
            return
        begin = time.monotonic()
        try:
            targets = self._targets(message, now)
            with self._lock:
                merge = self._executor.push(targets, observed, now)
        except ValueError as error:  # MessageError, and what the executor refuses
            text = str(error) if isinstance(error, MessageError) else f"{self._topic}: {error}"
            self._diagnostics.warn("chunks rejected", text)
            return
        self._last_chunk = now
        report = self._diagnostics
        report.count("chunks followed")
        report.latency("chunk age", now - observed)
        report.latency("joining a chunk", time.monotonic() - begin)
        report.sample("change of mind", merge.difference, "rad")
        if merge.dropped == len(targets.times):
            report.warn("chunks too late", f"{self._topic}: the whole chunk had passed on arrival")

    def _targets(self, message: JointTrajectory, now: float) -> JointTargets:
        """The chunk in a message.

        Raises:
            MessageError: what no robot may follow.
        """
        if nanoseconds(message.header.stamp) == 0:
            raise MessageError(
                self._topic,
                "header.stamp",
                "is 0",
                "stamp it with the camera frame that it was predicted from",
            )
        hold = self.at([now])[0]
        times, q = checked_trajectory(message, self._robot, q=hold, topic=self._topic)
        check_speed(times, q, self._robot, max_speed=self._max_speed, topic=self._topic)
        if times[0] > 0:
            times, q = np.concatenate([[0.0], times]), np.vstack([hold, q])
        q = self._robot.coupled(q)
        unknown = np.full((len(q) - 1, 2), np.nan)  # what was asked for is not in the message
        free = np.zeros(q[1:].shape, bool)
        limited = Limited(free, free, free[:, 0])
        return JointTargets(times[1:], q[1:], q[0], unknown, unknown, limited)
