"""Make a film of the motion policy: one scene, two instructions, side by side.

python examples/policy_animation.py --model tiny --scene 3 --out docs/images/policy.webp

Drawn on the pictures: where the policy wants the hands 0.5 s after its last look.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ego_world_model.evaluation.policy.loop import LoopOptions
from ego_world_model.evaluation.policy.methods import EXPERT, Method
from ego_world_model.evaluation.policy.pictures import write_swap_film
from ego_world_model.evaluation.policy.swap import KINDS, PairSearch, SwapJob, pair_line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help=".webp, .gif or .png to write")
    parser.add_argument("--model", default="tiny", help="shipped name or checkpoint folder")
    parser.add_argument("--expert", action="store_true", help="show the scripted expert instead")
    parser.add_argument("--modality", default="TID", help="inputs to give: T, I, ID, TI or TID")
    parser.add_argument("--robot", default="g1_dex3")
    parser.add_argument("--kind", default="object", choices=KINDS, help="what the words differ in")
    parser.add_argument("--scene", type=int, default=0, help="number within the run of seeds")
    parser.add_argument("--run", type=int, default=7, help="run of seeds of the test split")
    options = parser.parse_args()
    os.environ.setdefault("MUJOCO_GL", "egl")
    method = Method(EXPERT) if options.expert else Method("policy", options.model, options.modality)
    pair = pair_line(PairSearch(options.robot, options.kind, options.scene, options.run))["pair"]
    if pair is None:
        parser.error(f"scene {options.scene} allows no two instructions; choose another")
    loop = LoopOptions(oversample=3)
    jobs = [
        SwapJob(
            method, options.robot, options.kind, options.scene, tuple(wanted), options.run, loop
        )
        for wanted in pair
    ]
    for answer in write_swap_film(jobs, options.out):
        print(f"{answer['instruction']}: {answer['outcome']}")


if __name__ == "__main__":
    main()
