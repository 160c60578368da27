"""The keypoint estimator's own error on true frames, robot by robot: what it cannot tell.

Every number that the evaluation reads off imagined frames is to be seen beside these.

    python benchmarks/keypoints.py --data datasets/g1_test datasets/h1_test --estimator runs/other
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ego_world_model.data import DatasetReader
from ego_world_model.evaluation.clips import evaluation_clips
from ego_world_model.evaluation.judge import Judge
from ego_world_model.perception import KeypointEstimator


@dataclass(frozen=True)
class ClipForm:
    """Clips of the shipped model's length, rate and size."""

    fps: float = 10.0
    num_frames: int = 17
    height: int = 96
    width: int = 128
    extra_slots: tuple[str, ...] = ()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="datasets with masks")
    parser.add_argument("--estimator", type=Path, nargs="*", default=[], help="beside the shipped")
    parser.add_argument("--clips", type=int, default=60)
    options = parser.parse_args()
    estimators = {"shipped": KeypointEstimator.from_pretrained()}
    estimators |= {
        folder.name: KeypointEstimator.from_pretrained(folder) for folder in options.estimator
    }
    print("| robot | estimator | joints | mean px | median px | mean mm | hand IoU | arms IoU |")
    print("|" + "---|" * 8)
    for folder in options.data:
        reader = DatasetReader(folder)
        clips = list(evaluation_clips(reader, ClipForm(), options.clips))
        for name, estimator in estimators.items():
            judged = [Judge(clip, estimator)(clip.images[1:]) for clip in clips]
            px, mm = (np.concatenate([e["all"][unit] for _, e in judged]) for unit in ("px", "mm"))
            hand, arms = (
                np.nanmean([scores[region] for scores, _ in judged])
                for region in ("hand_iou", "arms_iou")
            )
            print(
                f"| {reader.spec.embodiment} | {name} | {len(px)} | {px.mean():.2f} | "
                f"{np.median(px):.2f} | {mm.mean():.1f} | {hand:.3f} | {arms:.3f} |"
            )


if __name__ == "__main__":
    main()
