"""Time of a rollout by stage inside a live graph; ``ego-world-model bench`` times it alone.

python benchmarks/rollout.py --live 30                # reads a running graph's /diagnostics
"""

from __future__ import annotations

import argparse
import time

STAGES = ("encode", "control", "denoise", "decode")


def live(seconds: float) -> None:
    """Listen to the ``world_model`` node's diagnostics and print its last report."""
    import rclpy
    from diagnostic_msgs.msg import DiagnosticArray

    rclpy.init()
    node = rclpy.create_node("rollout_benchmark")
    reports: dict[str, dict[str, str]] = {}

    def take(array: DiagnosticArray) -> None:
        for status in array.status:
            reports[status.name] = {pair.key: pair.value for pair in status.values}

    node.create_subscription(DiagnosticArray, "/diagnostics", take, 10)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        rclpy.spin_once(node, timeout_sec=0.5)
    node.destroy_node()
    rclpy.shutdown()
    found = {name: values for name, values in reports.items() if name.endswith("world_model")}
    if not found:
        raise SystemExit(
            "no /diagnostics from a world_model node; start a graph on this machine and domain: "
            "ego-world-model up g1 sim:=true"
        )
    for name, values in found.items():
        print(f"{name}: {values.get('rollouts', '0')} rollouts, last 10 s\n")
        print("| stage | median | p99 | max |\n| --- | --- | --- | --- |")
        for key in (*STAGES, "rollout", "staleness"):
            cells = [values.get(f"{key} {column}", "-") for column in ("median", "p99", "max")]
            print(f"| {key} | {' | '.join(cells)} |")
        rates = [f"{key} {value}" for key, value in sorted(values.items()) if key.endswith("rate")]
        print(f"\n{', '.join(rates)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--live", type=float, metavar="SECONDS", default=30.0, help="how long")
    live(parser.parse_args().live)


if __name__ == "__main__":
    main()
