"""One imagined rollout between messages: a reference frame and motions in, Rollout messages out."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from std_msgs.msg import Header

from ego_world_model.hands import EXTRA_SLOTS, SLOT_NAMES, HandTrajectory
from ego_world_model.msg import Rollout
from ego_world_model.ros import quiet_threads  # noqa: F401  before torch
from ego_world_model.ros.conversions import (
    hand_trajectory_to_message,
    image_from_array,
    info_from_camera,
    stamp_from_nanoseconds,
)
from ego_world_model.ros.motion_source import Motion
from ego_world_model.ros.reference_frames import Reference
from ego_world_model.world_model import WorldModel

STAGES = ("encode", "control", "denoise", "decode")
"""What a rollout's time is spent on, in order."""


@dataclass(frozen=True)
class Sampling:
    """How to sample; None and negative values leave the choice to the checkpoint or to chance.

    Attributes:
        steps: denoising steps; None = the checkpoint's.
        guidance: classifier-free guidance scale; None = the checkpoint's.
        seed: noise seed; negative = a fresh one for every rollout.
        prompt: text for checkpoints that read one.
    """

    steps: int | None = None
    guidance: float | None = None
    seed: int = -1
    prompt: str = ""

    def with_seed(self) -> Sampling:
        """The same with a definite seed, so that it can be reported."""
        seed = self.seed if self.seed >= 0 else secrets.randbits(32)
        return Sampling(self.steps, self.guidance, seed, self.prompt)


@dataclass(frozen=True)
class Imagined:
    """K imagined futures of one reference frame.

    Attributes:
        frames: (K, T, h, w, 3) uint8 RGB.
        timings: seconds spent in each of :data:`STAGES`.
    """

    reference: Reference
    trajectories: tuple[HandTrajectory, ...]
    sources: tuple[str, ...]
    frames: np.ndarray
    timings: dict[str, float]
    seed: int

    @property
    def header(self) -> Header:
        """Stamp and frame of the reference."""
        return _header(self.reference, 0.0)


def model_times(model: WorldModel) -> np.ndarray:
    """(T,) seconds of the model's frames after the reference."""
    return np.arange(model.config.num_frames) / model.config.fps


def model_slots(model: WorldModel) -> tuple[str, ...]:
    """Names of the joint slots that the model is conditioned on."""
    return SLOT_NAMES + tuple(model.config.extra_slots)


def imagine(
    model: WorldModel,
    reference: Reference,
    motions: Sequence[Motion],
    q: np.ndarray | None,
    sampling: Sampling,
    on_step: Callable[[int, int], bool],
) -> Imagined:
    """Imagine every motion from one reference frame, in one batch.

    Args:
        q: (nq,) rad, the robot's state at the reference frame, for motions that need it.
        on_step: told (steps done, steps in all); returning False cancels.

    Raises:
        MessageError: a motion that does not fit the reference or the model's horizon.
        ImaginationCancelled: after ``on_step`` returned False.
    """
    times = model_times(model)
    for motion in motions:
        motion.check(reference.stamp, reference.frame_id, float(times[-1]))
    trajectories = tuple(motion.trajectory(reference.stamp, times, q) for motion in motions)
    sampling = sampling.with_seed()
    result = model.imagine(
        reference.image,
        trajectories,
        reference.camera.matrix,
        prompt=sampling.prompt,
        guidance=sampling.guidance,
        steps=sampling.steps,
        seed=sampling.seed,
        on_step=on_step,
    )
    return Imagined(
        reference=reference,
        trajectories=trajectories,
        sources=tuple(motion.source for motion in motions),
        frames=result.frames,
        timings=dict(result.timings),
        seed=sampling.seed,
    )


def rollout_messages(imagined: Imagined, *, checkpoint: str, latency: float) -> list[Rollout]:
    """The K futures as messages; ``latency`` in seconds from the request to the finished frames."""
    reference = imagined.reference
    height, width = imagined.frames.shape[2:4]
    camera = reference.camera.resized(width, height)
    return [
        Rollout(
            header=_header(reference, 0.0),
            checkpoint=checkpoint,
            seed=imagined.seed,
            times=trajectory.times.tolist(),
            frames=[
                image_from_array(pixels, "rgb8", header=_header(reference, time))
                for pixels, time in zip(frames, trajectory.times.tolist(), strict=True)
            ],
            camera_info=info_from_camera(camera, header=_header(reference, 0.0)),
            trajectory=hand_trajectory_to_message(
                trajectory,
                header=_header(reference, 0.0),
                source=source,
                slot_names=(SLOT_NAMES + EXTRA_SLOTS)[: trajectory.num_slots],
            ),
            latency=latency,
        )
        for frames, trajectory, source in zip(
            imagined.frames, imagined.trajectories, imagined.sources, strict=True
        )
    ]


def _header(reference: Reference, time: float) -> Header:
    """Header of the frame ``time`` seconds after the reference."""
    stamp = stamp_from_nanoseconds(reference.stamp + round(time * 1e9))
    return Header(stamp=stamp, frame_id=reference.frame_id)
