"""Time and peak memory of the joint control, in both formulations.

    python benchmarks/control.py [--threads 2] [--frames 81] [--height 480] [--width 832]

Each formulation runs in a process of its own, so that its peak memory is its own: the growth of the
process's resident set over what it held once the module and its inputs existed. CPU seconds are of
all threads together and tell what a busy machine hides.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time


def measure(compat: str, frames: int, height: int, width: int, threads: int) -> list[float]:
    """Medians of 5 runs after a warm-up: seconds, CPU seconds; and peak MB above the start."""
    import torch

    from ego_world_model.world_model.controls import JointControl

    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    module = JointControl(compat=compat, occlusion="hard" if compat == "released" else "soft")
    joints = torch.randn(1, frames, 42, 3, generator=generator) * 0.1
    joints[..., 2] += 0.5
    focal = 786.0 * width / 832
    intrinsics = torch.tensor([[[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]])
    latent = torch.randn(1, 16, height // 8, width // 8, generator=generator)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times, cpu = [], []
    with torch.inference_mode():
        for _ in range(6):
            start, busy = time.perf_counter(), time.process_time()
            module(joints, intrinsics, latent)
            times.append(time.perf_counter() - start)
            cpu.append(time.process_time() - busy)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return [statistics.median(times[1:]), statistics.median(cpu[1:]), peak]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--frames", type=int, default=81)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=832)
    args = parser.parse_args()
    print(f"{args.frames} frames at {args.height}x{args.width}, 42 joints, {args.threads} threads")
    for compat in ("ours", "released"):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            seconds, cpu, peak = pool.apply(
                measure, (compat, args.frames, args.height, args.width, args.threads)
            )
        print(f"{compat:9s} {seconds:6.3f} s   {cpu:6.3f} CPU-s   peak +{peak:.0f} MB")


if __name__ == "__main__":
    main()
