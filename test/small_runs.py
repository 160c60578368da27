"""Small datasets and training configs: the full-size path with every part small and random."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from synthetic_clips import NAMES, synthetic_episode

from ego_world_model.data import DatasetWriter

FRAMES, HEIGHT, WIDTH = 9, 48, 64
JOINTS = ("left", "right")


def write_dataset(root: Path, *, episodes: int, frames: int = 14, seed: int = 0) -> Path:
    """Episodes of the synthetic hands; each changes its task halfway."""
    first = synthetic_episode(seed, frames=frames, width=WIDTH, height=HEIGHT)
    with DatasetWriter(
        root,
        embodiment="synthetic",
        fps=first.fps,
        camera=first.camera,
        joint_names=JOINTS,
        slot_names=NAMES,
        image_storage="image",
        depth=False,
    ) as writer:
        for number in range(episodes):
            episode = synthetic_episode(seed + number, frames=frames, width=WIDTH, height=HEIGHT)
            state = np.zeros((frames, len(JOINTS)), np.float32)
            tasks = [[0, "reach", "the cup"], [frames // 2, "grasp", "pick up the cup"]]
            writer.write(
                replace(
                    episode,
                    state=state,
                    action=state,
                    joint_names=JOINTS,
                    metadata={"tasks": tasks},
                )
            )
    return root


def wan_training(base: Path, train: Path, validation: Path, **changes: Any) -> dict[str, Any]:
    """A training config on a Wan 2.1 folder: text and image, LoRA, cached windows, guidance."""
    document = {
        "data": {
            "train": str(train),
            "validation": str(validation),
            "width": WIDTH,
            "height": HEIGHT,
        },
        "autoencoder": {"name": "wan", "kwargs": {"base": str(base)}},
        "encoders": {"name": "wan", "kwargs": {"base": str(base)}},
        "backbone": {
            "name": "wan_i2v",
            "kwargs": {"base": str(base), "lora": {"rank": 4}},
        },
        "num_frames": FRAMES,
        "steps": 2,
        "shift": 5.0,
        "guidance": 2.0,
        "windows": {"every": 2},
        "noise": {"pure": 0.0, "lowest": 0.05, "shift": 5.0},
        "loss": "velocity",
        "reference_weight": 1.0,
        "pixel_weight": 0.0,
        "augmentation": {
            "mirror": 0.0,
            "colour": 0.0,
            "hide_joints": 0.3,
            "hide_all": 0.1,
            "drop_prompt": 0.1,
        },
        "weights": {"hand": 1.0, "arm": 0.0, "object": 1.0, "uncovered": 0.0},
        "validation": {"clips": 2, "baselines_every": 0},
        "stages": [{"frames": FRAMES, "batch": 2}],
        "loop": {
            "max_steps": 20,
            "learning_rate": 1e-3,
            "warmup_steps": 2,
            "precision": "fp32",
            "log_steps": 1,
            "save_minutes": 60.0,
            "validate_minutes": 60.0,
        },
    }
    for key, value in changes.items():
        merge = isinstance(value, dict) and isinstance(document.get(key), dict)
        document[key] = {**document[key], **value} if merge else value
    return document


def write_config(path: Path, document: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(document))
    return path


def train_command(config: Path, run: Path, *, cache: Path | None = None) -> list[str]:
    """``ego-world-model train world-model``, to be started by Python or Accelerate."""
    command = ["-m", "ego_world_model.cli", "train", "world-model", str(config), "--run", str(run)]
    return [*command, *(["--cache", str(cache)] if cache else [])]


def environment(**variables: str) -> dict[str, str]:
    """One thread a process: results must not depend on how sums are dealt out to cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **variables}


def start(arguments: list[str], **variables: str) -> subprocess.Popen[str]:
    """A Python process with ``arguments``."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment(**variables),
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def run_processes(count: int, arguments: list[str], *, timeout: float = 240) -> list[str]:
    """The same command in so many processes of one run on CPUs; the output of each.

    ``accelerate launch`` starts several processes on GPUs only; this sets what it and torchrun set.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    started = [
        start(arguments, RANK=str(rank), LOCAL_RANK=str(rank), **world) for rank in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert not any(process.returncode for process in started), "\n".join(outputs)[-6000:]
    return outputs


def entries(run: Path, name: str = "log") -> list[dict[str, Any]]:
    """What a run logged."""
    return [json.loads(line) for line in (run / f"{name}.jsonl").open()]


def losses(run: Path) -> list[tuple[int, float]]:
    """(step, loss) of every entry."""
    return [(entry["step"], entry["loss"]) for entry in entries(run)]
