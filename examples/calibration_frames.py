"""Pictures and joint states of the simulated robot with a displaced camera, to try calibration on.

python examples/calibration_frames.py --out pictures
ego-world-model calibrate pictures --out calibration.yaml
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from ego_world_model.calibration import corrected_mount
from ego_world_model.embodiment import load_embodiment
from ego_world_model.media import write_png
from ego_world_model.simulation import TableTop


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="image folder to write")
    parser.add_argument("--robot", default="g1_dex3", help="embodiment name or YAML file")
    parser.add_argument("--frames", type=int, default=40)
    parser.add_argument("--every", type=float, default=0.8, help="seconds between frames")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--turn", type=float, nargs=3, default=(4, -3, 2), help="degrees")
    parser.add_argument("--shift", type=float, nargs=3, default=(20, -25, 15), help="mm")
    options = parser.parse_args()
    robot = load_embodiment(options.robot)
    mount = corrected_mount(
        robot.camera_pose, np.radians(options.turn), np.array(options.shift) / 1e3
    )
    displaced = replace(robot, camera_pose=mount)
    sim = TableTop(displaced, seed=options.seed, split="test", camera_jitter=False)
    frames = []
    for number in range(options.frames):
        sim.advance(options.every)
        name = f"{number:04d}.png"
        write_png(options.out / name, sim.render(depth=False).rgb)
        joints = dict(zip(robot.joint_names, sim.joint_positions.tolist()))
        frames.append({"image": name, "joints": joints})
    sim.close()
    (options.out / "frames.json").write_text(json.dumps({"frames": frames}, indent=1) + "\n")
    print(f"{options.out}: {options.frames} frames; true correction {options.shift} mm, ", end="")
    print(f"rotation vector {options.turn} degrees, in the nominal optical frame")


if __name__ == "__main__":
    main()
