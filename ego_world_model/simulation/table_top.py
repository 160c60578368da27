"""The simulated robot at its table: time, configuration, objects and the head camera.

The simulation is kinematic: joints follow their plan exactly, objects follow the hand that holds
them. It is meant for pictures of moving hands, not for contact forces.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ego_world_model.camera import CameraPose, PinholeCamera
from ego_world_model.embodiment import Embodiment
from ego_world_model.kinematics import HandKinematics
from ego_world_model.simulation.goals import Goal, Referee
from ego_world_model.simulation.motion import Disturbance, FollowedPlan, JointPlan
from ego_world_model.simulation.objects_motion import ObjectMotion, ObjectState
from ego_world_model.simulation.renderer import Observation, SceneRenderer
from ego_world_model.simulation.scene import SPLITS, Scene, make_scene
from ego_world_model.simulation.tasks import ANYTHING, TaskPlan, TaskPlanner, Wanted

_STEP = 0.02  # seconds; objects advance on this grid, so the result does not depend on the caller
_PLAN_AHEAD = 4.0  # seconds before the end of a plan at which the next one is begun


@dataclass(frozen=True)
class SceneState:
    """All that a picture needs: time (s), q (nq,) rad, object poses (N, 7), manipulated ones."""

    time: float
    q: NDArray[np.float64]
    object_poses: NDArray[np.float64]
    manipulated: frozenset[int]


@dataclass(frozen=True)
class _Segment:
    """A plan that runs from ``start`` seconds on."""

    start: float
    plan: JointPlan | FollowedPlan
    goal: Goal

    @property
    def end(self) -> float:
        return self.start + self.plan.duration


class TableTop:
    """A robot doing one task after the other at a table.

    Args:
        robot: the embodiment; MJCF, with two hands and a ``workspace``.
        seed: scene, tasks and motion are a function of (split, seed, task).
        split: "train", "validation" or "test"; they share no object, texture or seed.
        task: do only this task (see ``TASKS``); None mixes them.
        width, height: of rendered images, pixels.
        background_planning: plan the next task in a thread while this one runs, so that
            ``advance`` never waits; the result then depends on timing.
        camera_jitter: mount the camera a little off its nominal place, as on real robots; off
            where whoever watches assumes the nominal mount.
        still: what a task does not need (the other hand, the torso) rests; else it may wander.
        disturbance: radians by which the arms stray from their plan (standard deviation of a slow
            noise), so that who learns from ``plan`` sees how to come back.

    Raises:
        ValueError: for an unknown split or task, or a robot that lacks what the table needs.
    """

    def __init__(
        self,
        robot: Embodiment,
        *,
        seed: int,
        split: str = "train",
        task: str | None = None,
        width: int = 640,
        height: int = 480,
        background_planning: bool = False,
        camera_jitter: bool = True,
        still: bool = False,
        disturbance: float = 0.0,
    ) -> None:
        rng = np.random.default_rng((SPLITS.index(split) if split in SPLITS else 0, seed, 1))
        large = task == "bimanual" or (task is None and rng.random() < 0.15)
        self.robot = robot
        self.scene: Scene = make_scene(
            robot,
            seed=seed,
            split=split,
            width=width,
            height=height,
            large_object=large,
            camera_jitter=camera_jitter,
        )
        self._only = task
        self._stray = Disturbance(robot, disturbance, seed) if disturbance else None
        self._planner = TaskPlanner(robot, self.scene, rng, still=still)
        kinematics = HandKinematics(robot)
        self._motion = ObjectMotion(robot, kinematics, self.scene)
        self._referee = Referee(robot, kinematics, self.scene)
        # Kinematics are not thread-safe, and planning may run in a thread of its own.
        self._foresight = ObjectMotion(robot, HandKinematics(robot), self.scene)
        self._objects = ObjectState.initial(self.scene)
        self._stepped = 0.0
        self.time = 0.0
        first = self._planner.plan(task, self._planner.start_pose(), self._objects)
        self._segments = [_Segment(0.0, first.plan, first.goal)]
        self._executor = ThreadPoolExecutor(1, "planner") if background_planning else None
        self._pending: Future[TaskPlan] | None = None
        self._renderer: SceneRenderer | None = None

    # ---------------------------------------------------------------- state

    @property
    def camera(self) -> PinholeCamera:
        """Intrinsics of the rendered images."""
        return self.scene.camera

    @property
    def camera_pose(self) -> CameraPose:
        """Mount of the camera, jittered from the nominal one."""
        return self.scene.camera_pose

    @property
    def task(self) -> str:
        """The current instruction in words."""
        return self.goal.instruction

    @property
    def task_name(self) -> str:
        """The kind of the current task, one of ``TASKS`` or "follow"."""
        return self.goal.task

    @property
    def goal(self) -> Goal:
        """What the current task is to achieve."""
        return self._segment(self.time).goal

    @property
    def target_position(self) -> NDArray[np.float64] | None:
        """(3,) metres in the root frame, centre of the object that the task is about, if any."""
        target = self.goal.target
        return None if target is None else self._objects.poses[target, :3].copy()

    def achieved(self, goal: Goal) -> bool:
        """Whether a goal holds now; see ``Referee.achieved``."""
        return self._referee.achieved(goal, self.joint_positions, self._objects)

    @property
    def task_end(self) -> float:
        """Seconds of ``time`` at which the motion of the current task ends."""
        return self._segment(self.time).end

    @property
    def objects(self) -> ObjectState:
        """Where the objects are now and what holds them."""
        return self._objects

    @property
    def joint_positions(self) -> NDArray[np.float64]:
        """(nq,) radians now, in ``robot.joint_names`` order."""
        return self._actual_q(self.time)

    def state(self) -> SceneState:
        """A snapshot for a renderer, possibly in another thread."""
        return SceneState(
            self.time, self.joint_positions, self._objects.poses.copy(), self._objects.touched
        )

    # ---------------------------------------------------------------- time

    def advance(self, dt: float) -> None:
        """Let ``dt`` seconds pass."""
        self.time += dt
        self._plan_until(self.time)
        while self._stepped + _STEP <= self.time + 1e-9:
            self._stepped += _STEP
            q = self._actual_q(self._stepped)
            self._objects = self._motion.step(self._objects, q, _STEP)
        while len(self._segments) > 1 and self._segments[1].start <= self._stepped:
            self._segments.pop(0)

    def plan(self, times: ArrayLike) -> NDArray[np.float64]:
        """(T, nq) radians that the robot is to have ``times`` (T,) seconds from now.

        With background planning a plan that is not ready yet is a rest at the last one's end.
        """
        times = self.time + np.asarray(times, dtype=np.float64)
        self._plan_until(float(times.max()))
        return self._q_at(times)

    def follow(self, times: ArrayLike, q: ArrayLike) -> None:
        """Drop the scripted tasks and obey a joint trajectory from now on, then hold its end.

        Args:
            times: (T,) seconds from now, rising. q: (T, nq) radians; clipped to joint limits.
                Coupled joints follow their drivers, whatever q says of them.

        Raises:
            ValueError: if the shapes differ, or a number is not finite, or times do not rise.
        """
        times, q = np.asarray(times, dtype=np.float64), np.asarray(q, dtype=np.float64)
        if times.ndim != 1 or q.shape != (len(times), len(self.robot.joint_names)):
            raise ValueError(
                f"a joint trajectory is times (T,) and q (T, {len(self.robot.joint_names)}), "
                f"got {times.shape} and {q.shape}"
            )
        if not (np.isfinite(times).all() and np.isfinite(q).all()):
            raise ValueError("the joint trajectory holds NaN or infinity")
        if times[0] < 0 or (np.diff(times) <= 0).any():
            raise ValueError("times of the joint trajectory must be >= 0 and rise")
        if times[0] > 0:  # begin where the robot is
            times = np.concatenate([[0.0], times])
            q = np.vstack([self.joint_positions, q])
        q = self.robot.coupled(np.clip(q, self.robot.lower, self.robot.upper))
        plan = FollowedPlan(times, q)
        self._pending = None
        self._segments = [_Segment(self.time, plan, Goal("follow", "follow a joint trajectory"))]

    def resume_tasks(self) -> None:
        """Go back to scripted tasks from the present configuration, after ``follow``."""
        if self._segments[-1].goal.task == "follow":
            planned = self._planner.plan(self._only, self.joint_positions, self._objects)
            self._segments = [_Segment(self.time, planned.plan, planned.goal)]

    def begin(self, task: str, wanted: Wanted = ANYTHING) -> Goal:
        """Drop what is under way and begin a task now; the goal, which is of another task where no
        plan for this one was found."""
        self._pending = None
        planned = self._planner.plan(task, self.joint_positions, self._objects, wanted)
        self._segments = [_Segment(self.time, planned.plan, planned.goal)]
        return planned.goal

    def propose(self, task: str, wanted: Wanted = ANYTHING) -> Goal:
        """What ``begin`` would set out for from here, without beginning it; of another task where
        no plan for this one was found. May run in a thread while nothing else plans."""
        return self._planner.plan(task, self.joint_positions, self._objects, wanted).goal

    # ---------------------------------------------------------------- pictures

    def render(self, *, masks: bool = False, depth: bool = True) -> Observation:
        """What the head camera sees now. Always call it from the same thread."""
        if self._renderer is None:
            self._renderer = SceneRenderer(self.scene, self.robot)
        state = self.state()
        return self._renderer.render(
            state.q, state.object_poses, manipulated=state.manipulated, depth=depth, masks=masks
        )

    def close(self) -> None:
        """Free the renderer and the planning thread."""
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    # ---------------------------------------------------------------- internals

    def _segment(self, time: float) -> _Segment:
        return next((s for s in reversed(self._segments) if s.start <= time), self._segments[0])

    def _actual_q(self, time: float) -> NDArray[np.float64]:
        """(nq,) radians of the robot, which may stray from its plan."""
        q = self._q_at(np.array([time]))[0]
        return q if self._stray is None else self._stray(q, time)

    def _q_at(self, times: NDArray[np.float64]) -> NDArray[np.float64]:
        out = np.empty((len(times), len(self.robot.joint_names)))
        for i, time in enumerate(times):
            segment = self._segment(float(time))
            out[i] = segment.plan.at(np.array([time - segment.start]))[0]
        return out

    def _plan_until(self, time: float) -> None:
        """Append tasks until the plans reach ``time``."""
        while self._segments[-1].goal.task != "follow":
            last = self._segments[-1]
            if self._executor is None:
                if last.end > time:
                    return
                planned = self._next_task(last, self._objects, self._stepped)
            else:
                if self._pending is None and last.end - self.time < _PLAN_AHEAD:
                    self._pending = self._executor.submit(
                        self._next_task, last, self._objects, self._stepped
                    )
                if self._pending is None or not self._pending.done():
                    return
                planned, self._pending = self._pending.result(), None
            start = max(last.end, self.time) if self._executor else last.end
            self._segments.append(_Segment(start, planned.plan, planned.goal))

    def _next_task(self, last: _Segment, objects: ObjectState, since: float) -> TaskPlan:
        """Plan from where ``last`` ends, with the objects where it will have left them."""
        times = np.arange(since + _STEP, last.end + _STEP, _STEP)
        for time in times:
            q = last.plan.at(np.array([time - last.start]))[0]
            objects = self._foresight.step(objects, q, _STEP)
        end = last.plan.at(np.array([last.plan.duration]))[0]
        return self._planner.plan(self._only, end, objects)
