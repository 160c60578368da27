"""Times of a chunk of hand motion, stage by stage: python benchmarks/policy.py [--threads 1]"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from ego_world_model.embodiment import load_embodiment
from ego_world_model.kinematics import HandKinematics
from ego_world_model.policy import MotionPolicy


def median_ms(run: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median and 90th percentile of a call, ms."""
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times), float(np.quantile(times, 0.9))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", default="tiny", help="name or folder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    policy = MotionPolicy.from_pretrained(options.policy)
    robot = load_embodiment("g1_dex3")
    state = HandKinematics(robot).hand_state(robot.neutral)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (480, 640, 3), dtype=np.uint8)
    depth = rng.uniform(0.3, 1.0, (480, 640)).astype(np.float32)
    given = {"instruction": "grasp the red box with the left hand", "depth": depth}
    observation = policy.observe(image, state, robot.camera.matrix, **given)
    noise = torch.randn(1, policy.config.chunk, policy.layout.width)
    with torch.inference_mode():
        prefix = policy.cerebrum(observation)
        stages = {
            "prefix": lambda: policy.cerebrum(observation),
            "one step, keys and values included": lambda: policy.integrate(
                observation, prefix, noise, 1
            ),
            "full forward (prefix and one step)": lambda: policy.denoise(observation, noise, 1),
            "ten steps, prefix included": lambda: policy.denoise(observation, noise, 10),
            "predict, resizing included": lambda: policy.predict(
                image, state, robot.camera.matrix, **given
            ),
        }
        measured = {name: median_ms(run, options.repeats) for name, run in stages.items()}
    parameters = sum(p.numel() for p in policy.parameters())
    print(f"{options.policy}: {parameters / 1e6:.2f} M parameters, {options.threads} threads")
    for name, (median, p90) in measured.items():
        print(f"{name:36s} median {median:7.1f} ms   p90 {p90:7.1f} ms")
    full = measured["full forward (prefix and one step)"][0]
    print(f"ten steps cost {measured['ten steps, prefix included'][0] / full:.2f} full forwards")


if __name__ == "__main__":
    main()
