"""Does the simulated robot keep real time beside the other nodes of the graph?

    python benchmarks/real_time.py --seconds 30

Starts robot_sim (640x480, 15 Hz), hand_kinematics and, in the second row, the world model; then
reads their own reports on /diagnostics. The real-time factor is the share of the pictures due that
were taken in time; nothing waits for late pictures, so a slow machine skips them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
START = 30.0  # seconds for imports, the first task and the model's weights


def environment() -> dict[str, str]:
    """The simulated demo's: loopback only, shared memory that holds images."""
    variables = {**os.environ, "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST", "MUJOCO_GL": "egl"}
    variables.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    for name in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"):
        variables.setdefault(name, str(ROOT / "config" / "fastdds_local.xml"))
    return variables


def listen(seconds: float) -> tuple[dict[str, dict[str, str]], float, float]:
    """The nodes' newest reports after ``seconds``, and received joint states and images per s."""
    import rclpy
    from diagnostic_msgs.msg import DiagnosticArray
    from sensor_msgs.msg import Image, JointState

    from ego_world_model.ros.qos import subscribe
    from ego_world_model.ros.topics import IMAGE, JOINT_STATES

    rclpy.init()
    node = rclpy.create_node("benchmark_listener")
    reports: dict[str, dict[str, str]] = {}
    counts = {IMAGE: 0, JOINT_STATES: 0}

    def on_diagnostics(message: DiagnosticArray) -> None:
        for status in message.status:
            reports[status.name] = {value.key: value.value for value in status.values}

    def count(topic: str) -> None:
        counts[topic] += 1

    subscribe(node, DiagnosticArray, "/diagnostics", on_diagnostics, depth=50)
    subscribe(node, Image, IMAGE, lambda _: count(IMAGE), depth=10, raw=True)
    subscribe(node, JointState, JOINT_STATES, lambda _: count(JOINT_STATES), depth=100, raw=True)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        rclpy.spin_once(node, timeout_sec=0.1)
    node.destroy_node()
    rclpy.shutdown()
    return reports, counts[JOINT_STATES] / seconds, counts[IMAGE] / seconds


def measure(nodes: list[str], seconds: float) -> str:
    """One row of the table."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", f"ego_world_model.ros.{name}_node"]
            + ["--ros-args", "--log-level", "warn"],
            env=os.environ,
            cwd=ROOT / "benchmarks",  # not the root, whose sources hide the installed package
        )
        for name in nodes
    ]
    try:
        time.sleep(START)
        reports, joints, images = listen(seconds)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(20)
    robot = reports.get("/robot_sim", {})
    hands = reports.get("/hand_kinematics", {})
    return (
        f"{' + '.join(nodes):45s} {robot.get('real-time factor', '?'):>16s} {images:8.1f} "
        f"{joints:14.1f}   {robot.get('rendering median', '?'):>9s}   "
        f"{hands.get('latency p99', '?'):>9s}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="measured time per row")
    parser.add_argument("--without-model", action="store_true", help="only the first row")
    options = parser.parse_args()
    os.environ.update(environment())
    print(f"{'nodes':45s} real-time factor images/s joint states/s   rendering   p99 of hands")
    rows = [["robot_sim", "hand_kinematics"]]
    if not options.without_model:
        rows.append(["robot_sim", "hand_kinematics", "world_model"])
    for nodes in rows:
        print(measure(nodes, options.seconds), flush=True)


if __name__ == "__main__":
    main()
