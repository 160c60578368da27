"""What will the camera see? The newest frame and the coming motion → imagined frames.

A lifecycle node that owns no algorithm: it loads a checkpoint, keeps the model busy in a thread of
its own with the newest frame and motion, and publishes what comes out. The action ``imagine``
answers "what if" for given motions and goes before the continuous rollouts.
"""

from __future__ import annotations

import sys
import time
from functools import partial

from rclpy.executors import MultiThreadedExecutor

from ego_world_model.kinematics import HandKinematics
from ego_world_model.ros.camera_frames import CameraIntake
from ego_world_model.ros.camera_mount import declare_camera_mount
from ego_world_model.ros.conversions import MessageError
from ego_world_model.ros.imagine_action import ImagineAction
from ego_world_model.ros.model_node import ModelNode, started
from ego_world_model.ros.reference_frames import MissingInput
from ego_world_model.ros.robot_description import load_robot
from ego_world_model.ros.rollout_inputs import Assembled, RolloutInputs, reject
from ego_world_model.ros.rollout_publisher import RolloutPublisher
from ego_world_model.ros.rollouts import STAGES, imagine, model_slots
from ego_world_model.ros.run import run_node
from ego_world_model.ros.world_model_settings import declare_settings, sampling
from ego_world_model.world_model import ImaginationCancelled, WorldModel


class WorldModelNode(ModelNode):
    """Publishes ``imagined/…`` and serves ``imagine``; see the module and ``declare_settings``."""

    def __init__(self) -> None:
        self._model: WorldModel | None = None
        self._publisher: RolloutPublisher | None = None
        self._action: ImagineAction | None = None
        super().__init__(
            "world_model",
            model="world model",
            product="rollout",
            declare_settings=declare_settings,
        )
        robot = load_robot(
            self,
            self._diagnostics,
            self._settings.embodiment,
            silence=self._settings.silence_timeout,
        )
        self._kinematics = HandKinematics(robot)
        self._mount = declare_camera_mount(self, robot)
        self._images = CameraIntake(self)
        self._inputs: RolloutInputs | None = None

    # ---------------------------------------------------------------- lifecycle

    def _load(self) -> WorldModel:
        return WorldModel.from_pretrained(self._settings.checkpoint, device=self._settings.device)

    def _adopt(self, model: WorldModel) -> str:
        config = model.config
        self._model = model
        self._join_graph(config.num_frames)
        self._inputs.expect(model_slots(model), config.horizon)
        self._action.serve(model)
        return f"{config.num_frames} frames of {config.width}x{config.height} at {config.fps:g} Hz"

    def _leave_graph(self) -> None:
        if self._publisher is not None:
            self._publisher.destroy()
        if self._action is not None:
            self._action.destroy()

    def _join_graph(self, num_frames: int) -> None:
        """Subscribe, advertise and serve, at the first configuration, for the node's life.

        Not earlier, so that what is missing is said from then; and not anew each time, because an
        executor that spins meanwhile can fail on entities that vanish under it.
        """
        if self._inputs is not None:
            return
        settings = self._settings
        self._inputs = RolloutInputs(
            self,
            self._diagnostics,
            images=self._images,
            motion_source=settings.motion_source,
            kinematics=self._kinematics,
            camera=self._mount,
            max_staleness=settings.max_staleness,
            joint_tolerance=settings.joint_tolerance,
            joint_time_offset=settings.joint_time_offset,
            silence_timeout=settings.silence_timeout,
            on_image=self._thread.wake,
            give_way=lambda: self._thread.job_waiting or not self._active,
        )
        self._publisher = RolloutPublisher(
            self,
            checkpoint=settings.checkpoint,
            num_frames=num_frames,
            now=self._now,
            on_frame=partial(self._diagnostics.tick, "imagined"),
        )
        self._action = ImagineAction(
            self,
            checkpoint=settings.checkpoint,
            thread=self._thread,
            frames=self._inputs.frames,
            now=self._now,
            count=self._diagnostics.count,
            eye=self._images.eye,
            max_candidates=settings.max_candidates,
        )

    def _set_active(self, active: bool) -> None:
        super()._set_active(active)
        if self._action is not None:
            self._action.active = active
        if self._publisher is not None and not active:
            self._publisher.stop()

    def _forget(self) -> None:
        if self._action is not None:
            self._action.serve(None)
        self._model = None

    # ---------------------------------------------------------------- continuous rollouts

    def _work(self) -> None:
        """In the model's thread, whenever a frame came and no goal waits: at most one rollout."""
        model, publisher, inputs = self._model, self._publisher, self._inputs
        if not self._active or model is None or publisher is None or inputs is None:
            return
        if time.monotonic() < self._next_start:
            return
        if self._settings.only_when_subscribed and not publisher.wanted:
            return
        started = time.monotonic()
        frames_before = inputs.frames.received
        try:
            assembled = inputs.assemble(self._now())
            self._next_start = started + (self._period(model))
            self._imagine(model, publisher, assembled, started)
        except MissingInput as error:
            self._diagnostics.count(f"waits for {error.topic}")
        except MessageError as error:
            reject(self._diagnostics, error)
        except ImaginationCancelled:
            self._next_start = 0.0
            self._diagnostics.count("rollouts given up for a goal or shutdown")
        else:
            skipped = inputs.frames.received - frames_before
            self._diagnostics.count("frames skipped while computing", skipped)

    def _imagine(
        self,
        model: WorldModel,
        publisher: RolloutPublisher,
        assembled: Assembled,
        started: float,
    ) -> None:
        reference = assembled.reference
        staleness = (self._now() - reference.received) * 1e-9
        imagined = imagine(
            model,
            reference,
            [assembled.motion],
            assembled.q,
            sampling(self),
            lambda step, steps: self._active and not self._thread.job_waiting,
        )
        latency = time.monotonic() - started
        publisher.publish(imagined, latency=latency)
        self._diagnostics.count("rollouts")
        self._diagnostics.latency("staleness", staleness)
        for stage in STAGES:
            self._diagnostics.latency(stage, imagined.timings[stage])
        self._diagnostics.latency("rollout", latency)

    def _period(self, model: WorldModel) -> float:
        return self.get_parameter("period").value or model.config.horizon

    def _now(self) -> int:
        return self.get_clock().now().nanoseconds


def main(args: list[str] | None = None) -> int:
    """Runs the node until it is interrupted."""
    return run_node(
        partial(started, WorldModelNode),
        args,
        executor=partial(MultiThreadedExecutor, num_threads=4),
    )


if __name__ == "__main__":
    sys.exit(main())
