"""Losses and latency of the hand kinematics node over real DDS, idle and beside a busy model.

    python benchmarks/graph.py --seconds 60 --load none --load torch --load world_model

Three processes beside the node: a robot (30 Hz camera images, 200 Hz joint states), a listener on
``hands/joints``, and the load. Latency of a frame is the time from the *later* of two calls of
``publish`` (the image; the first joint state at or behind its stamp) to the listener's callback:
both transports and the node. All processes read one monotonic clock.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
IMAGE_SIZE = (640, 480)
EXECUTORS = {
    "single": "rclpy.executors.SingleThreadedExecutor",
    "events": "rclpy.experimental.EventsExecutor",
}
NODE = """
import sys, rclpy.executors, rclpy.experimental
from ego_world_model.ros.hand_kinematics_node import HandKinematicsNode
from ego_world_model.ros.run import run_node
sys.exit(run_node(HandKinematicsNode, executor={executor}))
"""
WARM_UP = 3.0  # seconds for discovery and first calls, not counted


def publish_robot(seconds: float, image_rate: float, joint_rate: float) -> dict[str, Any]:
    """Plays camera and joints from two threads; returns publish times by stamp."""
    import threading

    import rclpy
    from sensor_msgs.msg import CameraInfo, Image, JointState
    from std_msgs.msg import Header

    from ego_world_model.embodiment import load_embodiment
    from ego_world_model.ros.conversions import (
        image_from_array,
        info_from_camera,
        stamp_from_nanoseconds,
    )
    from ego_world_model.ros.qos import advertise

    rclpy.init()
    node = rclpy.create_node("benchmark_robot")
    robot = load_embodiment("g1_dex3")
    images = advertise(node, Image, "camera/color/image_raw")
    infos = advertise(node, CameraInfo, "camera/color/camera_info")
    joints = advertise(node, JointState, "joint_states", depth=50)
    camera = robot.camera.resized(*IMAGE_SIZE)
    noise = np.random.default_rng(0).integers(0, 255, (*IMAGE_SIZE[::-1], 3), np.uint8)
    image = image_from_array(noise, "rgb8")
    wait_for_subscribers(
        lambda: images.get_subscription_count() and joints.get_subscription_count()
    )
    end = time.monotonic() + seconds + WARM_UP
    published: dict[str, list[tuple[int, float]]] = {"image": [], "joints": []}

    def play_joints() -> None:
        message = JointState(name=list(robot.joint_names))
        for _ in paced(joint_rate, end + 0.2):
            stamp = time.time_ns()
            wave = 0.05 * np.sin(stamp * 1e-9)
            message.header.stamp = stamp_from_nanoseconds(stamp)
            message.position = np.clip(robot.neutral + wave, robot.lower, robot.upper).tolist()
            published["joints"].append((stamp, time.monotonic()))
            joints.publish(message)

    thread = threading.Thread(target=play_joints)
    thread.start()
    for _ in paced(image_rate, end):
        stamp = time.time_ns()
        image.header.stamp = stamp_from_nanoseconds(stamp)
        image.header.frame_id = "camera_color_optical_frame"
        published["image"].append((stamp, time.monotonic()))
        images.publish(image)
        header = Header(stamp=image.header.stamp, frame_id=image.header.frame_id)
        infos.publish(info_from_camera(camera, header=header))
    thread.join()
    time.sleep(0.5)  # let the last messages leave
    node.destroy_node()
    rclpy.shutdown()
    return published


def listen(seconds: float) -> dict[str, Any]:
    """Receives hands/joints until stopped; returns receive times by stamp and the node's report."""
    import rclpy
    from diagnostic_msgs.msg import DiagnosticArray
    from rclpy.executors import ExternalShutdownException

    from ego_world_model.msg import HandJoints
    from ego_world_model.ros.conversions import nanoseconds
    from ego_world_model.ros.qos import subscribe

    rclpy.init()
    node = rclpy.create_node("benchmark_listener")
    received: list[tuple[int, float]] = []
    report: dict[str, str] = {}

    def on_hands(message: HandJoints) -> None:
        received.append((nanoseconds(message.header.stamp), time.monotonic()))

    def on_diagnostics(message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.endswith("hand_kinematics"):
                report.update({value.key: value.value for value in status.values})

    subscribe(node, HandJoints, "hands/joints", on_hands, depth=50)
    subscribe(node, DiagnosticArray, "/diagnostics", on_diagnostics, depth=50)
    with contextlib.suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.spin(node)
    return {"received": received, "report": report}


def compute(kind: str) -> None:
    """Computes until stopped.

    ``torch``: layers on all cores at the node's own priority, worse than any graph of ours.
    ``world_model``: rollouts of the shipped model as the world_model node makes them (all cores
    but one, niceness 10).
    """
    cores = os.cpu_count() or 1
    if kind == "world_model":
        os.nice(10)
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    torch.set_num_threads(cores if kind == "torch" else max(1, cores - 1))
    if kind == "torch":
        layer = torch.nn.Conv3d(64, 64, 3, padding=1)
        clip = torch.randn(1, 64, 17, 24, 32)
        with torch.inference_mode():
            while True:
                layer(clip)
    from ego_world_model.embodiment import load_embodiment
    from ego_world_model.kinematics import HandKinematics
    from ego_world_model.world_model import WorldModel

    model = WorldModel.from_pretrained("tiny")
    robot = load_embodiment("g1_dex3")
    times = np.arange(model.config.num_frames) / model.config.fps
    trajectory = HandKinematics(robot).trajectory(
        times, np.repeat(robot.neutral[None], len(times), 0), extra_slots=model.config.extra_slots
    )
    image = np.zeros((*IMAGE_SIZE[::-1], 3), np.uint8)
    while True:
        model.imagine(image, trajectory, robot.camera.resized(*IMAGE_SIZE).matrix)


def paced(rate: float, end: float) -> Any:
    """Yields at ``rate`` Hz until ``end`` (monotonic); late ticks are caught up, never skipped."""
    due = time.monotonic()
    while due < end:
        time.sleep(max(0.0, due - time.monotonic()))
        yield due
        due += 1.0 / rate


def wait_for_subscribers(ready: Any, timeout: float = 20.0) -> None:
    """Discovery takes a moment; a benchmark without a subscriber measures nothing."""
    deadline = time.monotonic() + timeout
    while not ready():
        if time.monotonic() > deadline:
            raise SystemExit("the hand kinematics node did not subscribe within 20 s")
        time.sleep(0.05)


def summarise(robot: dict[str, Any], listener: dict[str, Any]) -> dict[str, float]:
    """Losses and latency in ms of the frames behind the warm-up."""
    joints = np.array(robot["joints"], dtype=object)
    joint_stamps = joints[:, 0].astype(np.int64)
    received = {stamp: when for stamp, when in listener["received"]}
    start = robot["image"][0][1] + WARM_UP
    frames = [(stamp, when) for stamp, when in robot["image"] if when >= start]
    latencies = []
    for stamp, when in frames:
        if stamp in received:
            bracket = np.searchsorted(joint_stamps, stamp)
            latencies.append(received[stamp] - max(when, joints[bracket, 1]))
    ms = np.array(latencies) * 1e3
    quantiles = np.percentile(ms, [50, 99, 100]) if len(ms) else [np.nan] * 3
    return {
        "frames": len(frames),
        "lost": len(frames) - len(latencies),
        "median": float(quantiles[0]),
        "p99": float(quantiles[1]),
        "max": float(quantiles[2]),
    }


def cpu_seconds(pid: int) -> float:
    """CPU time that a process has used, its start included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(load: str, options: argparse.Namespace) -> dict[str, Any]:
    """One row of the table."""
    environment = {**os.environ, "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    environment.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    for variable in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"):
        environment.setdefault(variable, str(ROOT / "config" / "fastdds_local.xml"))

    def start(*command: str, **more: Any) -> subprocess.Popen[str]:
        # Not in the checkout's root, whose sources hide the installed package.
        return subprocess.Popen(
            [sys.executable, *command], env=environment, text=True, cwd=ROOT / "benchmarks", **more
        )

    def role(*arguments: str, **more: Any) -> subprocess.Popen[str]:
        return start(__file__, *arguments, "--seconds", str(options.seconds), **more)

    node = start(
        *("-c", NODE.format(executor=EXECUTORS[options.executor]), "--ros-args"),
        *("-p", f"nice:={options.nice}", "--log-level", "warn"),
    )
    listener = role("--role", "listener", stdout=subprocess.PIPE)
    busy = None if load == "none" else role("--role", f"load-{load}")
    try:
        if busy is not None:
            time.sleep(8.0)  # importing torch is not the load that is meant
            if busy.poll() is not None:
                raise SystemExit(f"the load {load!r} ended at once; see its error above")
        robot = role("--role", "robot", stdout=subprocess.PIPE)
        published = json.loads(robot.communicate()[0])
        cpu = cpu_seconds(node.pid)
        listener.send_signal(signal.SIGINT)
        heard = json.loads(listener.communicate(timeout=30)[0])
    finally:
        for process in (node, listener, busy):
            if process is not None and process.poll() is None:
                process.terminate()
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    print(f"{process.args[1:3]} did not end on SIGTERM", file=sys.stderr)
                    process.kill()
    row = summarise(published, heard)
    row["cpu"] = 100.0 * cpu / (options.seconds + WARM_UP)
    return {"load": load, **row, "in_node": heard["report"].get("latency p99", "?")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="measured time per row")
    parser.add_argument(
        "--load", action="append", choices=["none", "torch", "world_model"], help="repeatable"
    )
    parser.add_argument("--image-rate", type=float, default=30.0)
    parser.add_argument("--joint-rate", type=float, default=200.0)
    parser.add_argument("--executor", choices=list(EXECUTORS), default="single")
    parser.add_argument("--nice", type=int, default=0, help="niceness of the node")
    parser.add_argument("--role", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role == "robot":
        print(json.dumps(publish_robot(options.seconds, options.image_rate, options.joint_rate)))
    elif options.role == "listener":
        print(json.dumps(listen(options.seconds)))
    elif options.role and options.role.startswith("load-"):
        with contextlib.suppress(KeyboardInterrupt):
            compute(options.role.removeprefix("load-"))
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves no processes behind
        print(
            "load         frames   lost   median ms   p99 ms   max ms   p99 inside the node"
            "   CPU % of the node, start included"
        )
        for load in options.load or ["none", "torch"]:
            row = measure(load, options)
            print(
                f"{row['load']:12s} {row['frames']:6d} {row['lost']:6d} {row['median']:11.2f} "
                f"{row['p99']:8.2f} {row['max']:8.2f}   {row['in_node']:>19s}   {row['cpu']:5.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
