"""Times of a chunk of hand motion, stage by stage: python benchmarks/policy.py [--threads 1]

--published-size: random weights in the sizes of config/training/policy.yaml (SmolVLM2-500M at
512x512, ResNet-50, 16 layers of 1024), needs 6 GB: what a chunk would cost, not what it would be
worth.
"""

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
from ego_world_model.policy.cerebellum import CerebellumConfig
from ego_world_model.policy.cerebrum import CerebrumConfig
from ego_world_model.policy.checkpoint import PolicyConfig
from ego_world_model.policy.tokenizer import with_vocabulary, word_tokenizer

INSTRUCTION = "grasp the red box with the left hand"
# Sizes as in the published configurations of SmolVLM2-500M-Video-Instruct and ResNet-50.
VISION = {
    "image_size": 512,
    "patch_size": 16,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}
TEXT = {
    "model_type": "llama",
    "hidden_size": 960,
    "intermediate_size": 2560,
    "num_hidden_layers": 32,
    "num_attention_heads": 15,
    "num_key_value_heads": 5,
    "head_dim": 64,
}
DEPTH = {"embedding_size": 64, "hidden_sizes": [256, 512, 1024, 2048], "depths": [3, 4, 6, 3]}


def published_size() -> MotionPolicy:
    """Random weights in published sizes; normalisation of the shipped policy."""
    shipped = MotionPolicy.from_pretrained("tiny")
    tokenizer = word_tokenizer([INSTRUCTION])
    vlm = {"scale_factor": 4, "vision_config": VISION, "text_config": TEXT}
    config = PolicyConfig(
        fps=shipped.config.fps,
        fingers=shipped.config.fingers,
        cerebrum=CerebrumConfig(image_size=512, vlm=with_vocabulary(vlm, tokenizer), depth=DEPTH),
        cerebellum=CerebellumConfig(),
    )
    policy = MotionPolicy(config, shipped.normaliser, tokenizer)
    return policy.eval().requires_grad_(False)


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
    parser.add_argument("--published-size", action="store_true", help="random weights, see above")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    large = options.published_size
    policy = published_size() if large else MotionPolicy.from_pretrained(options.policy)
    robot = load_embodiment("g1_dex3")
    state = HandKinematics(robot).hand_state(robot.neutral)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (480, 640, 3), dtype=np.uint8)
    depth = rng.uniform(0.3, 1.0, (480, 640)).astype(np.float32)
    given = {"instruction": INSTRUCTION, "depth": depth}
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
    name = "published size" if large else options.policy
    print(f"{name}: {parameters / 1e6:.2f} M parameters, {options.threads} threads")
    for name, (median, p90) in measured.items():
        print(f"{name:36s} median {median:7.1f} ms   p90 {p90:7.1f} ms")
    full = measured["full forward (prefix and one step)"][0]
    print(f"ten steps cost {measured['ten steps, prefix included'][0] / full:.2f} full forwards")


if __name__ == "__main__":
    main()
