"""The action ``imagine``: K candidate futures in one batch, with feedback, cancel and messages."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, TimeoutError

import rclpy.node
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import ReentrantCallbackGroup

from ego_world_model.action import Imagine
from ego_world_model.ros.camera_frames import frame_from_message
from ego_world_model.ros.conversions import MessageError, nanoseconds
from ego_world_model.ros.model_thread import ModelThread
from ego_world_model.ros.motion_source import HandMotion
from ego_world_model.ros.reference_frames import Reference, ReferenceFrames, reference_from_frame
from ego_world_model.ros.rollouts import (
    Sampling,
    imagine,
    model_slots,
    rollout_messages,
)
from ego_world_model.world_model import ImaginationCancelled, WorldModel

# How often a goal that waits for its turn looks whether it was cancelled (seconds).
_POLL = 0.02


class ImagineAction:
    """Serves ``imagine``; goals are refused until ``serve`` gave it a model and ``active`` is set.

    A goal that cannot be met is accepted and then aborted, because only a result can carry the
    message that says why. Goals wait for one another in the order they came; each goes before
    the continuous rollouts.

    Args:
        now: the node's clock, nanoseconds.
        count: adds one to a counter of the diagnostics.
        eye: which half of a goal's image is meant where it is twice as wide as its CameraInfo.
        max_candidates: refuse goals with more (memory grows with their number).
    """

    def __init__(
        self,
        node: rclpy.node.Node,
        *,
        checkpoint: str,
        thread: ModelThread,
        frames: ReferenceFrames,
        now: Callable[[], int],
        count: Callable[[str], None],
        eye: str = "none",
        max_candidates: int = 16,
    ) -> None:
        self._model: WorldModel | None = None
        self._checkpoint = checkpoint
        self._thread = thread
        self._frames = frames
        self._now = now
        self._node = node
        self._count = count
        self._eye = eye
        self._max_candidates = max_candidates
        self._log = node.get_logger()
        self.active = False
        self._server = ActionServer(
            node,
            Imagine,
            "imagine",
            execute_callback=self._execute,
            goal_callback=self._on_goal,
            cancel_callback=lambda _: CancelResponse.ACCEPT,
            callback_group=ReentrantCallbackGroup(),
        )

    def serve(self, model: WorldModel | None) -> None:
        """Imagine with this model from now on; None: with none.

        The server itself stays for the node's life: an executor that spins in another thread can
        fail on an action server that is destroyed under it.
        """
        self._model = model

    def destroy(self) -> None:
        """Stop serving; only once no executor spins any more."""
        self._server.destroy()

    def _on_goal(self, _: Imagine.Goal) -> GoalResponse:
        if not self.active:
            self._log.warning("refused an imagine goal: this node is not active; activate it first")
        return GoalResponse.ACCEPT if self.active else GoalResponse.REJECT

    def _execute(self, goal: ServerGoalHandle) -> Imagine.Result:
        started = time.monotonic()
        try:
            model = self._model
            if model is None:
                raise RuntimeError("no model is loaded; configure and activate the node first")
            motions = self._motions(goal.request, model)
            reference = self._reference(goal.request, motions, model.config.horizon)
            sampling = _sampling(goal.request, self._node.get_parameter("prompt").value)
            job = self._thread.submit(
                lambda: self._run(goal, model, reference, motions, sampling, started)
            )
            rollouts = self._wait(goal, job)
        except (ImaginationCancelled, CancelledError) as reason:
            return self._stopped(goal, str(reason))
        except (ValueError, RuntimeError) as error:  # MessageError is a ValueError
            return self._failed(goal, str(error))
        self._count("goals succeeded")
        goal.succeed()
        return Imagine.Result(success=True, rollouts=rollouts)

    def _motions(self, request: Imagine.Goal, model: WorldModel) -> list[HandMotion]:
        count = len(request.candidates)
        if not 1 <= count <= self._max_candidates:
            raise MessageError(
                "imagine",
                "candidates",
                f"holds {count} trajectories",
                f"send 1 to {self._max_candidates} (parameter max_candidates)",
            )
        return [
            HandMotion.from_message(
                candidate, topic=f"imagine: candidates[{i}]", slot_names=model_slots(model)
            )
            for i, candidate in enumerate(request.candidates)
        ]

    def _reference(
        self, request: Imagine.Goal, motions: list[HandMotion], horizon: float
    ) -> Reference:
        """The image of the goal, or the newest frame that every candidate can start from."""
        now = self._now()
        if request.image.width:
            stamp = nanoseconds(request.image.header.stamp)
            info = request.camera_info
            # as it comes from a camera with two eyes, or the eye alone: CameraInfo tells
            eye = self._eye if request.image.width == 2 * info.width else "none"
            reference = reference_from_frame(
                frame_from_message(request.image, stamp, topic="imagine: image", eye=eye),
                info,
                received=now,
                info_topic="imagine: camera_info",
            )
            for motion in motions:
                motion.check(reference.stamp, reference.frame_id, horizon)
            return reference
        return self._frames.newest_for(motions, horizon, now)

    def _run(
        self,
        goal: ServerGoalHandle,
        model: WorldModel,
        reference: Reference,
        motions: list[HandMotion],
        sampling: Sampling,
        started: float,
    ) -> list:
        """In the model's thread: imagine with feedback after every step."""

        def feedback(stage: str, step: int, steps: int) -> None:
            if not self._node.context.ok():
                return
            elapsed = time.monotonic() - started
            goal.publish_feedback(
                Imagine.Feedback(stage=stage, step=step, steps=steps, elapsed=elapsed)
            )

        def on_step(step: int, steps: int) -> bool:
            feedback("denoise", step, steps)
            if step >= steps:
                feedback("decode", step, steps)
            return not (goal.is_cancel_requested or self._thread.closing or not self.active)

        feedback("encode", 0, sampling.steps or model.config.steps)
        imagined = imagine(model, reference, motions, None, sampling, on_step)
        latency = time.monotonic() - started
        return rollout_messages(imagined, checkpoint=self._checkpoint, latency=latency)

    def _wait(self, goal: ServerGoalHandle, job: Future) -> list:
        """The job's result; a goal that is cancelled while it waits for its turn never starts."""
        while True:
            try:
                return job.result(timeout=_POLL)
            except TimeoutError:
                if job.done():  # the job itself raised it
                    raise
                if goal.is_cancel_requested:
                    job.cancel()

    def _stopped(self, goal: ServerGoalHandle, reason: str) -> Imagine.Result:
        if not goal.is_cancel_requested:
            return self._failed(goal, "the node was deactivated or shut down; activate it first")
        self._count("goals canceled")
        goal.canceled()
        return Imagine.Result(success=False, message=reason or "cancelled before it started")

    def _failed(self, goal: ServerGoalHandle, message: str) -> Imagine.Result:
        if not self._node.context.ok():  # nobody can be told any more
            return Imagine.Result(success=False, message=message)
        self._count("goals aborted")
        self._log.error(f"imagine goal failed: {message}")
        goal.abort()
        return Imagine.Result(success=False, message=message)


def _sampling(request: Imagine.Goal, prompt: str) -> Sampling:
    """The goal's sampling fields, in which 0 and negative mean "your choice"."""
    return Sampling(
        steps=int(request.steps) or None,
        guidance=float(request.guidance) or None,
        seed=int(request.seed),
        prompt=prompt,
    )
