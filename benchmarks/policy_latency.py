"""How late the motion policy's chunks are beside the running graph, over real DDS.

    python benchmarks/policy_latency.py --seconds 60 -- execute:=true policy_checkpoint:=FOLDER

Starts ``ego-world-model up g1 sim:=true`` with the launch arguments behind ``--``, waits for the
first rollout of the world model, and then listens. Two latencies are reported: of a chunk inside
the node (frame taken → messages sent, the node's own diagnostics), and from the camera's stamp to
the arrival of ``joint_trajectory/predicted`` in another process. Compare only runs of one machine
that does nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

WAIT = 180.0  # seconds in which everything must flow
ROWS = {
    "motion_policy": ("chunk", "predict", "joint targets", "age when published"),
    "robot_sim": ("chunk age", "joining a chunk", "image age when published"),
    "hand_kinematics": ("latency",),
    "world_model": ("rollout", "staleness"),
}
COUNTS = {
    "motion_policy": ("chunk rate", "image rate", "frames skipped while computing"),
    "robot_sim": ("real-time factor", "chunks followed", "task"),
    "hand_kinematics": ("hands rate", "joint state rate"),
    "world_model": ("rollouts", "imagined rate", "rejected /hands/predicted times"),
}


class Listener:
    """Hears predictions and every node's report, once ``open`` is set."""

    def __init__(self, node: Any) -> None:
        from diagnostic_msgs.msg import DiagnosticArray
        from trajectory_msgs.msg import JointTrajectory

        from ego_world_model.ros.qos import subscribe
        from ego_world_model.ros.topics import PREDICTED

        self._now = node.get_clock().now
        self.open = False
        self.ages: list[float] = []
        self.reports: dict[str, list[dict[str, str]]] = {}
        subscribe(node, JointTrajectory, PREDICTED, self._prediction, depth=50, reliable=True)
        subscribe(node, DiagnosticArray, "/diagnostics", self._report, depth=50)

    def latest(self, name: str) -> dict[str, str]:
        reports = self.reports.get(name)
        return reports[-1] if reports else {}

    def _prediction(self, message: Any) -> None:
        from ego_world_model.ros.conversions import nanoseconds

        if self.open:
            self.ages.append((self._now().nanoseconds - nanoseconds(message.header.stamp)) * 1e-9)

    def _report(self, array: Any) -> None:
        for status in array.status:
            name = status.name.rsplit("/", 1)[-1]
            values = {pair.key: pair.value for pair in status.values}
            self.reports.setdefault(name, []).append(values)


def cpu_seconds(parent: int) -> dict[str, float]:
    """CPU time so far of each node below ``up``, children (the simulation) included."""
    ticks, parents, names = {}, {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            pid = int(folder.name)
            parents[pid] = int(fields[1])
            ticks[pid] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            words = (folder / "cmdline").read_text().split("\0")
            names[pid] = next((Path(w).name for w in words if "/lib/ego_world_model/" in w), "")
    totals: dict[str, float] = {}
    for pid in ticks:
        above = pid
        while above in parents and parents[above] != parent:
            above = parents[above]
        if above in names and parents.get(above) == parent and names[above]:
            totals[names[above]] = totals.get(names[above], 0.0) + ticks[pid]
    return totals


def listen(up: subprocess.Popen[bytes], seconds: float) -> tuple[Listener, dict[str, float]]:
    """Reports and CPU use (cores) of ``seconds`` seconds after everything flows."""
    import rclpy

    rclpy.init(args=[])
    node = rclpy.create_node("benchmark_listener")
    listener = Listener(node)

    def hear(seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            rclpy.spin_once(node, timeout_sec=left)

    deadline = time.monotonic() + WAIT
    while "rollout median" not in listener.latest("world_model"):
        if up.poll() is not None or time.monotonic() > deadline:
            raise SystemExit("the graph did not come to imagine; see its messages")
        hear(0.2)
    hear(10.0)  # until no window of the reports reaches back to the start
    listener.reports.clear()
    listener.open = True
    before = cpu_seconds(up.pid)
    hear(seconds)
    used = {name: (t - before.get(name, 0.0)) / seconds for name, t in cpu_seconds(up.pid).items()}
    node.destroy_node()
    rclpy.shutdown()
    return listener, used


def tell(listener: Listener, used: dict[str, float]) -> None:
    """The table; percentiles of the nodes are the median and the worst of their 10 s windows."""
    print(f"{'latency, ms':44s} {'median':>8s} {'p90':>8s} {'p99':>8s} {'worst window p90':>17s}")
    for name, keys in ROWS.items():
        for key in keys:
            windows = [
                [float(r[f"{key} {p}"].split()[0]) for p in ("median", "p90", "p99")]
                for r in listener.reports.get(name, [])
                if f"{key} median" in r
            ]
            if windows:
                p50, p90, p99 = np.median(windows, axis=0)
                worst = max(w[1] for w in windows)
                print(f"{name + ': ' + key:44s} {p50:8.1f} {p90:8.1f} {p99:8.1f} {worst:17.1f}")
    if listener.ages:
        p50, p90, p99 = np.percentile(np.array(listener.ages) * 1e3, [50, 90, 99])
        print(f"{'camera stamp to arrival elsewhere':44s} {p50:8.1f} {p90:8.1f} {p99:8.1f}")
    print("\nnode              CPU, cores   at the end")
    for name, keys in COUNTS.items():
        last = listener.latest(name)
        said = ", ".join(f"{key} {last[key]}" for key in keys if key in last)
        print(f"{name:18s} {used.get(name, 0.0):9.2f}   {said}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--robot", default="g1")
    parser.add_argument("arguments", nargs="*", help="launch arguments, behind --")
    options = parser.parse_args()
    os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    profile = Path(__file__).resolve().parent.parent / "config" / "fastdds_local.xml"
    for variable in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"):
        os.environ.setdefault(variable, str(profile))
    command = Path(sys.prefix) / "bin" / "ego-world-model"
    words = ["up", options.robot, "sim:=true", "policy:=true", "--no-status", *options.arguments]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves no processes behind
    up = subprocess.Popen([sys.executable, str(command), *words], cwd=Path(__file__).parent)
    try:
        listener, used = listen(up, options.seconds)
    finally:
        up.send_signal(signal.SIGINT)
        up.wait(30)
    tell(listener, used)


if __name__ == "__main__":
    main()
