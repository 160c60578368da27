"""Make the README's animation: held-out clips, the simulator above, the imagination below.

python examples/rollout_animation.py --data datasets/g1_test datasets/h1_test --out rollouts.webp
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ego_world_model.data import DatasetReader
from ego_world_model.evaluation.clips import command, evaluation_clips
from ego_world_model.media import resize, write_animation
from ego_world_model.world_model import WorldModel

GAP = 4  # pixels between pictures
HOLD = 4  # frames that the reference and the last frame stay


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="held-out datasets")
    parser.add_argument("--out", type=Path, required=True, help=".webp, .gif or .png to write")
    parser.add_argument("--model", default="tiny", help="shipped name or checkpoint folder")
    parser.add_argument("--clips", type=int, nargs="+", default=[3, 22], help="of each dataset")
    parser.add_argument("--scale", type=int, default=2, help="enlargement of each picture")
    options = parser.parse_args()
    model = WorldModel.from_pretrained(options.model)
    count = max(options.clips) + 1
    columns = []
    clips = [
        clip
        for folder in options.data
        for number, clip in enumerate(evaluation_clips(DatasetReader(folder), model.config, count))
        if number in options.clips
    ]
    for clip in clips:
        motion = command(clip, tuple(model.config.extra_slots))
        imagined = model.imagine(clip.images[0], [motion], clip.camera.matrix, seed=0).frames[0]
        columns.append((clip.images, imagined))
    frames = [sheet(columns, k, options.scale) for k in range(model.config.num_frames)]
    frames = [frames[0]] * HOLD + frames + [frames[-1]] * HOLD
    write_animation(options.out, frames, fps=model.config.fps)


def sheet(columns: list[tuple[np.ndarray, np.ndarray]], k: int, scale: int) -> np.ndarray:
    """Frame k of every clip: truth above, imagination below."""
    pictures = []
    for truth, imagined in columns:
        height, width = truth.shape[1:3]
        pair = [resize(video[k], scale * width, scale * height) for video in (truth, imagined)]
        line = np.full((GAP, scale * width, 3), 255, np.uint8)
        pictures += [np.vstack([pair[0], line, pair[1]])]
        pictures += [np.full((pictures[-1].shape[0], GAP, 3), 255, np.uint8)]
    return np.hstack(pictures[:-1])


if __name__ == "__main__":
    main()
