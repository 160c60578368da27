"""Pictures of closed-loop episodes: strips of those that succeed and fail, and a film."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ego_world_model.camera import PinholeCamera
from ego_world_model.drawing import draw_hands
from ego_world_model.evaluation.policy.chunks import chunk_slots
from ego_world_model.evaluation.policy.closed_loop import EpisodeJob, episode_line
from ego_world_model.evaluation.policy.loop import FRAME, Recording
from ego_world_model.evaluation.policy.methods import body
from ego_world_model.evaluation.policy.swap import SwapJob, swap_line
from ego_world_model.media import strip, write_animation, write_png

COLUMNS = 8
_CAPTION = 22  # pixels of a caption's line
_AHEAD = 4  # the step of a chunk that a film shows as ghost hands


def write_strips(
    jobs: Sequence[EpisodeJob], lines: Sequence[dict[str, Any]], out: Path, count: int
) -> list[tuple[str, str]]:
    """``count`` episodes that succeed and ``count`` that fail per robot and task, run once more.

    Args:
        jobs: all of one method. lines: what they gave.

    Returns:
        (caption, file relative to ``out``) of each.
    """
    found = {(line["robot"], line["task"], line["number"]): line for line in lines}
    shown: dict[tuple[str, str, bool], int] = {}
    written = []
    for job in jobs:
        line = found.get((job.robot, job.task, job.number))
        if line is None:
            continue
        group = (job.robot, job.task, bool(line["success"]))
        if shown.get(group, 0) >= count:
            continue
        number = shown[group] = shown.get(group, 0) + 1
        recording = Recording()
        again = episode_line(job, recording)
        kind = "success" if line["success"] else "failure"
        file = f"strips/{job.robot}_{job.task}_{kind}_{number}.png"
        write_png(out / file, episode_strip(recording))
        note = "" if again["outcome"] == line["outcome"] else f" (run again: {again['outcome']})"
        written.append(
            (f"{job.robot}, \u201c{line['instruction']}\u201d: {line['outcome']}{note}", file)
        )
    return written


def episode_strip(recording: Recording, columns: int = COLUMNS) -> NDArray[np.uint8]:
    """Evenly spaced frames from first to last, with their times."""
    last = len(recording.images) - 1
    shown = np.unique(np.linspace(0, last, columns).round().astype(int))
    return strip(
        [[recording.images[k] for k in shown]],
        columns=[f"{recording.times[k]:.1f} s" for k in shown],
    )


def write_swap_film(jobs: Sequence[SwapJob], file: Path) -> list[dict[str, Any]]:
    """Episodes side by side, each under its instruction, with the hands that are predicted.

    The drawn hands are where the policy wants them ``_AHEAD`` steps after its last look.

    Returns:
        What each episode gave.
    """
    columns, answers = [], []
    for job in jobs:
        recording = Recording()
        answer = swap_line(job, recording)
        columns.append(_film(job.robot, recording, answer))
        answers.append(answer)
    length = max(len(frames) for frames in columns)
    longer = [frames + [frames[-1]] * (length - len(frames)) for frames in columns]
    gap = np.full((longer[0][0].shape[0], 4, 3), 255, np.uint8)
    film = []
    for together in zip(*longer, strict=True):
        row = [piece for frame in together for piece in (frame, gap)]
        film.append(np.hstack(row[:-1]))
    write_animation(file, film + [film[-1]] * round(1 / FRAME), fps=1 / FRAME)
    return answers


def _film(robot: str, recording: Recording, answer: dict[str, Any]) -> list[NDArray[np.uint8]]:
    """Frames with ghost hands drawn on them and the instruction below."""
    embodiment, kinematics = body(robot)
    height, width = recording.images[0].shape[:2]
    camera: PinholeCamera = embodiment.camera.resized(width, height)
    frames = []
    for time, image in zip(recording.times, recording.images, strict=True):
        chunk = [c for begun, c in recording.chunks if begun <= time + 1e-6][-1]
        points, valid = chunk_slots(chunk, kinematics)
        ahead = min(_AHEAD, len(chunk) - 1)
        drawn = draw_hands(image, camera.project(points[ahead]), valid)
        ended = time >= recording.times[-1] - 1e-6
        text = answer["instruction"] + (f": {answer['outcome']}" if ended else "")
        frames.append(np.vstack([drawn, _caption(text, width)]))
    return frames


def _caption(text: str, width: int) -> NDArray[np.uint8]:
    """Words on a white strip, in two lines at most."""
    font = ImageFont.load_default(size=13)
    lines, words = [""], text.split()
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > width - 8 and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    picture = Image.new("RGB", (width, 2 * _CAPTION), "white")
    draw = ImageDraw.Draw(picture)
    for k, line in enumerate(lines[:2]):
        draw.text((4, 3 + k * (_CAPTION - 4)), line, fill="black", font=font)
    return np.array(picture)
