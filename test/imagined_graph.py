"""The neighbours of the ``world_model`` node, played by the test: robot, camera, listeners."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.action import ActionClient
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, JointState
from std_msgs.msg import Header
from support import NodeProcess, node, wait_until
from trajectory_msgs.msg import JointTrajectory

from ego_world_model.camera import PinholeCamera
from ego_world_model.embodiment import load_embodiment
from ego_world_model.hands import EXTRA_SLOTS, HandTrajectory
from ego_world_model.kinematics import HandKinematics
from ego_world_model.msg import HandTrajectory as HandTrajectoryMessage
from ego_world_model.msg import Rollout
from ego_world_model.ros.conversions import (
    hand_trajectory_to_message,
    image_from_array,
    info_from_camera,
    joint_trajectory_to_message,
    stamp_from_nanoseconds,
)
from ego_world_model.ros.qos import reliable_qos
from ego_world_model.world_model import WorldModel, WorldModelConfig
from ego_world_model.world_model.checkpoint import PartSpec

FRAME_ID = "camera_color_optical_frame"
TOPICS = {
    "image": "camera/color/image_raw",
    "info": "camera/color/camera_info",
    "joints": "joint_states",
    "plan": "joint_trajectory/planned",
    "hands": "hands/predicted",
}


def random_checkpoint(folder: Path, *, steps: int = 1, width: int = 128, height: int = 96) -> Path:
    """A checkpoint like the shipped one, but small, fast and random."""
    torch.manual_seed(0)
    transformer = dict(num_layers=1, num_attention_heads=2, attention_head_dim=16, ffn_dim=32)
    config = WorldModelConfig(
        fps=10.0,
        num_frames=17,
        height=height,
        width=width,
        extra_slots=EXTRA_SLOTS,
        autoencoder=PartSpec(name="frame", kwargs=dict(latent_channels=4, channels=(8, 8, 8))),
        backbone=PartSpec(
            name="wan",
            kwargs=dict(latent_channels=4, channels=16, transformer=transformer),
        ),
        steps=steps,
    )
    model = WorldModel(config)
    for parameter in model.parameters():
        if not parameter.any():  # layers that start as the identity would ignore the motion
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)
    return folder


class Robot:
    """Publishes what a robot does, 15 Hz camera and 100 Hz joint states, until told otherwise.

    Attributes:
        size: (width, height) of the camera; may be changed at any time, as may the rest.
        info_size: size that CameraInfo claims; None: the images' own.
        publishes: which of TOPICS are published.
        reach: seconds that the plan reaches ahead.
        joint_period: seconds between joint states.
        pose: (nq,) rad about which it sways; sway: rad.
        lens: what CameraInfo says; None: the robot's camera at ``info_size``.
        frame: the picture; None: one colour.
        compress: picture → data of a CompressedImage; None: raw images.
        hand_changes: fields of the hand trajectories to overwrite ("header": its frame_id).
    """

    def __init__(self, ros_node: Any) -> None:
        self.node = ros_node
        self.robot = load_embodiment("g1_dex3")
        self.kinematics = HandKinematics(self.robot)
        self.size = (160, 120)
        self.info_size: tuple[int, int] | None = None
        self.encoding = "rgb8"
        self.publishes = {"image", "info", "joints", "plan"}
        self.reach = 4.0
        self.joint_period = 0.01
        self.pose = self.robot.neutral
        self.sway = 0.1
        self.calibrated = True
        self.lens: PinholeCamera | None = None
        self.frame: np.ndarray | None = None
        self.compress: Callable[[np.ndarray], bytes] | None = None
        self.hand_changes: dict[str, Any] = {}
        kinds = {
            "image": Image,
            "info": CameraInfo,
            "joints": JointState,
            "plan": JointTrajectory,
            "hands": HandTrajectoryMessage,
        }
        self.publishers = {
            key: ros_node.create_publisher(kind, TOPICS[key], reliable_qos(10))
            for key, kind in kinds.items()
        }
        self._compressed = ros_node.create_publisher(
            CompressedImage, f"{TOPICS['image']}/compressed", reliable_qos(10)
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def camera(self) -> PinholeCamera:
        return self.robot.camera.resized(*self.size)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(5.0)

    def now(self) -> int:
        return self.node.get_clock().now().nanoseconds

    def header(self, stamp: int) -> Header:
        return Header(stamp=stamp_from_nanoseconds(stamp), frame_id=FRAME_ID)

    def q_at(self, seconds: np.ndarray) -> np.ndarray:
        """(T, nq) rad: both shoulders and the waist swing slowly."""
        q = np.repeat(self.pose[None], len(seconds), axis=0)
        wave = self.sway * np.sin(seconds)
        for name in ("left_shoulder_pitch_joint", "right_shoulder_pitch_joint", "waist_yaw_joint"):
            q[:, self.robot.joint_names.index(name)] += wave
        return q

    def image(self, stamp: int) -> Image:
        width, height = self.size
        pixels = np.full((height, width, 3), (200, 40, 90), np.uint8)
        if self.frame is not None:
            pixels = self.frame
        message = image_from_array(pixels, "rgb8", header=self.header(stamp))
        message.encoding = self.encoding
        return message

    def info(self, stamp: int) -> CameraInfo:
        camera = self.lens or self.robot.camera.resized(*(self.info_size or self.size))
        message = info_from_camera(camera, header=self.header(stamp))
        if not self.calibrated:
            message.k = np.zeros(9)
        return message

    def joints(self, stamp: int) -> JointState:
        q = self.q_at(np.array([stamp * 1e-9]))[0]
        return JointState(
            header=self.header(stamp), name=list(self.robot.joint_names), position=q.tolist()
        )

    def plan(self, stamp: int) -> JointTrajectory:
        times = np.arange(0.1, self.reach + 1e-6, 0.1)
        q = self.q_at(stamp * 1e-9 + times)
        return joint_trajectory_to_message(
            times, q, self.robot.joint_names, header=self.header(stamp)
        )

    def motion(self, *, duration: float = 1.6, offset: float = 0.0) -> HandTrajectory:
        """Hands of the neutral pose that move right by 5 cm/s, with elbows and forearms."""
        times = np.arange(0.0, duration + 1e-6, 0.1)
        q = np.repeat(self.robot.neutral[None], len(times), axis=0)
        still = self.kinematics.trajectory(times, q, extra_slots=EXTRA_SLOTS)
        positions = still.positions.copy()
        positions[..., 0] += (0.05 * times + offset)[:, None]
        return HandTrajectory(times, positions, still.valid)

    def hands(self, stamp: int) -> HandTrajectoryMessage:
        message = hand_trajectory_to_message(
            self.motion(), header=self.header(stamp), source="test"
        )
        changes = dict(self.hand_changes)
        message.header.frame_id = changes.pop("header", FRAME_ID)
        if "times" in changes:
            kept = len(changes["times"]) * len(message.slot_names)
            changes |= {"positions": message.positions[:kept], "valid": message.valid[:kept]}
        for name, value in changes.items():
            setattr(message, name, value)
        return message

    def _run(self) -> None:
        # CameraInfo goes before the image: their sizes are compared when the image is used.
        periods = {"joints": 0.0, "info": 0.07, "image": 0.07, "plan": 0.2, "hands": 0.07}
        due = dict.fromkeys(periods, 0)
        while not self._stop.wait(0.01):
            stamp = self.now()
            for key, period in periods.items():
                if stamp < due[key]:
                    continue
                due[key] = stamp + round((period or self.joint_period) * 1e9)
                if key not in self.publishes:
                    continue
                if key == "image" and self.compress is not None:
                    data = self.compress(self.frame)
                    message = CompressedImage(header=self.header(stamp), format="jpeg", data=data)
                    self._compressed.publish(message)
                else:
                    self.publishers[key].publish(getattr(self, key)(stamp))


class Listener:
    """Keeps what the node publishes, with the moment of arrival (ns)."""

    def __init__(self, ros_node: Any) -> None:
        self.rollouts: list[Rollout] = []
        self.images: list[tuple[int, Image]] = []
        self.infos: list[CameraInfo] = []
        self.status: DiagnosticStatus | None = None
        now = ros_node.get_clock().now
        ros_node.create_subscription(
            Rollout, "imagined/rollout", self.rollouts.append, reliable_qos(10)
        )
        ros_node.create_subscription(
            Image,
            "imagined/image_raw",
            lambda m: self.images.append((now().nanoseconds, m)),
            reliable_qos(30),
        )
        ros_node.create_subscription(
            CameraInfo, "imagined/camera_info", self.infos.append, reliable_qos(30)
        )
        ros_node.create_subscription(
            DiagnosticArray, "/diagnostics", self._take_status, reliable_qos(10)
        )

    def value(self, key: str) -> str:
        """A value of the node's last diagnostics, or an empty string."""
        values = self.status.values if self.status else []
        return {pair.key: pair.value for pair in values}.get(key, "")

    def wait_for_rollout(self, *, timeout: float = 60.0) -> Rollout:
        """A rollout that arrives from now on."""
        count = len(self.rollouts)
        wait_until(lambda: len(self.rollouts) > count, timeout=timeout, what="a rollout")
        return self.rollouts[count]

    def wait_for_status(self, text: str, *, timeout: float = 60.0) -> DiagnosticStatus:
        """Diagnostics of the node whose message contains ``text``."""

        def said() -> bool:
            return self.status is not None and text in self.status.message

        try:
            wait_until(said, timeout=timeout)
        except AssertionError:
            raise AssertionError(f"diagnostics never said {text!r}: {self.status}") from None
        assert self.status is not None
        return self.status

    def _take_status(self, array: DiagnosticArray) -> None:
        for status in array.status:
            if status.name.endswith("world_model"):
                self.status = status


@contextmanager
def world_model(checkpoint: Path | str, **parameters: Any) -> Iterator[NodeProcess]:
    """The node in its own process, loaded and active."""
    # not niced: beside a busy machine, tests would wait for their turn
    parameters = {"period": 0.2, "threads": 1, "niceness": 0, **parameters}
    with node(
        "world_model_node", parameters={"checkpoint": str(checkpoint), **parameters}
    ) as process:
        process.wait_for("loaded", timeout=240.0)
        yield process


@contextmanager
def ros_graph(domain: int) -> Iterator[Any]:
    """A node of the test's own, spun by a background thread for as long as a module's tests run."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    ros_node = rclpy.create_node("world_model_test", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(ros_node)

    def spin() -> None:
        with suppress(ExternalShutdownException):
            executor.spin()

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    yield ros_node
    executor.shutdown()
    thread.join(5.0)
    ros_node.destroy_node()
    rclpy.try_shutdown(context=context)


def call(ros_node: Any, kind: type, service: str, request: Any, *, timeout: float = 120.0) -> Any:
    """The response of a service."""
    client = ros_node.create_client(kind, service)
    try:
        assert client.wait_for_service(timeout), f"no service {service}"
        return finished(client.call_async(request), timeout=timeout)
    finally:
        ros_node.destroy_client(client)


def send(client: ActionClient, goal: Any, *feedback: Callable[[Any], None]) -> Any:
    """The handle of a goal that was accepted or rejected.

    rclpy notes a request only after it has sent it, so an answer that another thread takes at once
    is lost. The thread that takes answers therefore sends, too.
    """
    executor = client._node.executor
    return finished(finished(executor.create_task(client.send_goal_async, goal, *feedback)))


def ended(client: ActionClient, handle: Any) -> Any:
    """The status and result of a goal, once it has ended; see ``send``."""
    return finished(finished(client._node.executor.create_task(handle.get_result_async)))


def finished(future: Any, *, timeout: float = 120.0) -> Any:
    """The result of a ROS future that another thread completes."""
    wait_until(future.done, timeout=timeout, what="a ROS future")
    return future.result()
