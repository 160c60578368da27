"""Publishes a finished rollout: whole, frame by frame in real time, and as markers."""

from __future__ import annotations

from collections.abc import Callable

from rclpy._rclpy_pybind11 import RCLError
from rclpy.lifecycle import LifecycleNode, LifecyclePublisher
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, Image
from visualization_msgs.msg import MarkerArray

from ego_world_model.msg import Rollout
from ego_world_model.ros.conversions import nanoseconds
from ego_world_model.ros.frame_player import DueFrame, FramePlayer
from ego_world_model.ros.hand_markers import HandMarkers
from ego_world_model.ros.qos import reliable_qos, wanted
from ego_world_model.ros.rollouts import Imagined, rollout_messages

# Frames of the motion that markers show: enough to see where the hands go, few enough to read.
_MARKER_FRAMES = 4


class RolloutPublisher:
    """The publishers of ``imagined/…`` and ``hands/planned_markers``; none works unheard.

    Args:
        num_frames: T of the model; image queues hold a whole rollout, because the frames whose
            turn passed while the model computed leave all at once.
        now: the node's clock, nanoseconds.
        on_frame: called when a paced frame was published.
    """

    def __init__(
        self,
        node: LifecycleNode,
        *,
        checkpoint: str,
        num_frames: int,
        now: Callable[[], int],
        on_frame: Callable[[], None],
    ) -> None:
        self._node = node
        self._checkpoint = checkpoint
        self._on_frame = on_frame
        depth = num_frames + 3
        self._image = self._advertise(Image, "imagined/image_raw", depth)
        self._info = self._advertise(CameraInfo, "imagined/camera_info", depth)
        self._rollout = self._advertise(Rollout, "imagined/rollout", 2)
        self._markers = self._advertise(MarkerArray, "hands/planned_markers", 2)
        self._player = FramePlayer(now, self._publish_frame)

    @property
    def wanted(self) -> bool:
        """Whether anyone listens to what is imagined."""
        return any(map(wanted, (self._image, self._info, self._rollout, self._markers)))

    def publish(self, imagined: Imagined, *, latency: float) -> None:
        """Publish the one future of ``imagined``; its frames follow when their turn comes."""
        if wanted(self._markers):
            self._markers.publish(planned_markers(imagined))
        if not any(map(wanted, (self._image, self._info, self._rollout))):
            self._player.stop()
            return
        (rollout,) = rollout_messages(imagined, checkpoint=self._checkpoint, latency=latency)
        self._rollout.publish(rollout)
        reference = imagined.reference
        self._player.play(
            [
                # The moment counts from the reference's arrival, by the clock that is slept on:
                # a camera's stamps may come from a clock of their own.
                DueFrame(
                    nanoseconds(image.header.stamp),
                    reference.received + round(time * 1e9),
                    (image, rollout.camera_info),
                )
                for image, time in zip(rollout.frames, rollout.times, strict=True)
            ]
        )

    def stop(self) -> None:
        """Forget frames that still wait for their turn."""
        self._player.stop()

    def destroy(self) -> None:
        """Stop and withdraw all publishers."""
        self._player.close()
        for publisher in (self._image, self._info, self._rollout, self._markers):
            self._node.destroy_lifecycle_publisher(publisher)

    def _publish_frame(self, frame: tuple[Image, CameraInfo]) -> None:
        image, info = frame
        try:
            self._image.publish(image)
            # Each frame's calibration carries its stamp, by which subscribers pair the two.
            self._info.publish(_with_header(info, image))
        except RCLError:
            if self._node.context.ok():
                raise
            return  # the graph was left between the frame's turn and here
        self._on_frame()

    def _advertise(self, kind: type, topic: str, depth: int) -> LifecyclePublisher:
        return self._node.create_lifecycle_publisher(
            kind,
            topic,
            reliable_qos(depth),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )


def planned_markers(imagined: Imagined) -> MarkerArray:
    """The conditioning motion in the reference camera: a few frames, fainter the later."""
    motion = imagined.trajectories[0].in_reference()
    steps = len(motion) - 1
    array = MarkerArray()
    chosen = sorted({round(steps * (i + 1) / _MARKER_FRAMES) for i in range(_MARKER_FRAMES)})
    for order, k in enumerate(chosen):
        draw = HandMarkers(f"planned {k}", lifetime=2 * motion.duration)
        fade = 1.0 - order / len(chosen)
        frame = draw.message(motion.frame(k), imagined.header, [fade] * motion.num_slots)
        array.markers.extend(frame.markers)
    return array


def _with_header(info: CameraInfo, image: Image) -> CameraInfo:
    return CameraInfo(
        header=image.header,
        width=info.width,
        height=info.height,
        distortion_model=info.distortion_model,
        d=info.d,
        k=info.k,
        r=info.r,
        p=info.p,
    )
