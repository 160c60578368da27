"""`ego-world-model replay` and `record` as processes, and a bag of a robot that moves unevenly."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from bags import Message, camera_messages, joint_state, stamp, write_bag
from recordings import ROBOT
from support import NodeProcess

START = 200.0  # seconds that imports may take on a busy machine

FRAMES = np.arange(30) / 15 + 0.013  # between joint states
ROOT = Path(__file__).resolve().parent.parent
STATES = np.arange(-5, 215) / 100


def lossless(folder: Path) -> Path:
    """The documented parameters with which ``hand_kinematics`` loses nothing of a bag."""
    text = (ROOT / "docs/recording.md").read_text()
    path = folder / "lossless.yaml"
    path.write_text(text.split("```yaml\n")[1].split("```")[0])
    return path


def cli(*words: object, environment: Mapping[str, str] | None = None) -> NodeProcess:
    """``ego-world-model`` with these words."""
    command = [sys.executable, "-m", "ego_world_model.cli", *map(str, words)]
    return NodeProcess(command, environment=environment)


def replay(bag: Path, *options: object, environment: Mapping[str, str] | None = None) -> str:
    """Plays a bag to its end; what the command printed."""
    with cli("replay", bag, "--wait", 60, *options, environment=environment) as process:
        assert process.wait(timeout=START) == 0, process.output
        return process.output


def uneven_joints(times: Iterable[float] = STATES) -> list[Message]:
    """Joint states of noise, every joint: another neighbour gives another interpolated value."""
    rng = np.random.default_rng(0)
    span = np.minimum(0.2, 0.4 * (ROBOT.upper - ROBOT.lower))
    out: list[Message] = []
    for t in times:
        q = np.clip(ROBOT.neutral + rng.uniform(-span, span), ROBOT.lower, ROBOT.upper)
        joints = dict(zip(ROBOT.joint_names, q.tolist(), strict=True))
        out.append((t, "/joint_states", joint_state(stamp(t), joints)))
    return out


def uneven_bag(path: Path) -> Path:
    """Thirty frames at 15 Hz with such joint states at 100 Hz."""
    return write_bag(path, camera_messages(FRAMES, delay=0.005) + uneven_joints())
