"""Time of a rollout by stage, for one and for eight candidates, alone or inside a live graph.

python benchmarks/rollout.py                          # offline: this process computes
python benchmarks/rollout.py --checkpoint FOLDER --threads 1
python benchmarks/rollout.py --live 30                # reads a running graph's /diagnostics
"""

from __future__ import annotations

import argparse
import os
import resource
import time

import numpy as np

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the node sets it

STAGES = ("encode", "control", "denoise", "decode")


def offline(checkpoint: str, device: str, threads: int, counts: list[int], repeats: int) -> None:
    """Imagine the neutral pose of a G1 with hands that drift apart, and print a table."""
    import torch

    from ego_world_model.embodiment import load_embodiment
    from ego_world_model.kinematics import HandKinematics
    from ego_world_model.world_model import WorldModel

    if threads:
        torch.set_num_threads(threads)
    model = WorldModel.from_pretrained(checkpoint, device=device)
    config = model.config
    robot = load_embodiment("g1_dex3")
    times = np.arange(config.num_frames) / config.fps
    q = np.repeat(robot.neutral[None], len(times), axis=0)
    for side, sign in (("left", 1.0), ("right", -1.0)):
        q[:, robot.joint_names.index(f"{side}_shoulder_yaw_joint")] += 0.2 * sign * times
    motion = HandKinematics(robot).trajectory(times, q, extra_slots=config.extra_slots)
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    print(
        f"{checkpoint} on {device}, {torch.get_num_threads()} thread(s): {config.num_frames} "
        f"frames of {config.width}x{config.height}, {config.steps} step(s), horizon "
        f"{config.horizon:.1f} s; median of {repeats}, ms\n"
    )
    print(f"| candidates | {' | '.join(STAGES)} | whole | peak memory MiB |")
    print("| --- " * (len(STAGES) + 3) + "|")
    for count in counts:
        rounds = []
        for _ in range(repeats + 1):
            start = time.perf_counter()
            result = model.imagine(image, [motion] * count, robot.camera.matrix, seed=0)
            whole = time.perf_counter() - start
            rounds.append([*(result.timings[stage] for stage in STAGES), whole])
        cells = [f"{ms:.0f}" for ms in np.median(rounds[1:], axis=0) * 1e3]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(f"| {count} | {' | '.join(cells)} | {peak} |", flush=True)


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
    parser.add_argument("--checkpoint", default="tiny", help="name or folder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's choice")
    parser.add_argument("--candidates", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--live", type=float, metavar="SECONDS", help="read a running graph")
    given = parser.parse_args()
    if given.live:
        live(given.live)
    else:
        offline(
            given.checkpoint, given.device, given.threads, given.candidates, max(1, given.repeats)
        )


if __name__ == "__main__":
    main()
