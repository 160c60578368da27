"""Small recordings for the importers' tests: a robot that moves, seen by a camera."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from ego_world_model import cli
from ego_world_model.data import DatasetReader, Episode
from ego_world_model.data.check import check_dataset
from ego_world_model.embodiment import Embodiment, load_embodiment
from ego_world_model.hands import EXTRA_SLOTS
from ego_world_model.kinematics import HandKinematics

WIDTH, HEIGHT = 64, 48
ROBOT = load_embodiment("g1_dex3")
KINEMATICS = HandKinematics(ROBOT)


def command(*words: object) -> Result:
    """Runs ``ego-world-model`` with these words."""
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def joints_at(seconds: float, robot: Embodiment = ROBOT) -> dict[str, float]:
    """Joint → radians: every arm, finger and waist joint sways linearly, each at its own rate.

    Linear in time, so that interpolation between samples gives the same values exactly.
    """
    moving = [name for name in robot.joint_names if "hip" not in name and "knee" not in name]
    moving = [name for name in moving if "ankle" not in name]
    followers = {coupling.follower for coupling in robot.couplings}
    rates = 0.01 * (1 + np.arange(len(moving)) % 7)
    neutral = dict(zip(robot.joint_names, robot.neutral.tolist(), strict=True))
    return {
        name: neutral[name] + rate * (seconds - 0.5) * (-1) ** i
        for i, (name, rate) in enumerate(zip(moving, rates, strict=True))
        if name not in followers
    }


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> NDArray[np.uint8]:
    """(H, W, 3) RGB whose colours say which frame it is, with unequal channels."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = 40 + 5 * (number % 40)
    image[..., 1] = np.linspace(0, 200, width).astype(np.uint8)
    image[..., 2] = 10
    return image


def number_of(image: NDArray[np.uint8]) -> int:
    """The frame number (0 to 39) that ``picture`` drew, also after lossy coding."""
    return round((float(image[..., 0].mean()) - 40) / 5)


def check_sound(root: Path) -> DatasetReader:
    """The dataset, which ``data check`` finds nothing wrong with."""
    assert check_dataset(root) == []
    done = command("data", "check", root)
    assert done.exit_code == 0, done.output
    return DatasetReader(root)


def assert_kinematics(
    episode: Episode, seconds: NDArray[np.float64], robot: Embodiment = ROBOT
) -> None:
    """The episode's joints and hand slots are those of the moving robot at these instants."""
    kinematics = HandKinematics(robot)
    for k, time in enumerate(seconds):
        wanted = joints_at(time, robot)
        got = dict(zip(episode.joint_names, episode.state[k].tolist(), strict=True))
        assert {n: got[n] for n in wanted} == {n: approx(v) for n, v in wanted.items()}
        hands = kinematics.hand_joints(wanted, extra_slots=EXTRA_SLOTS)
        np.testing.assert_array_equal(episode.hand_valid[k], hands.valid)
        np.testing.assert_allclose(episode.hand_positions[k], hands.positions, atol=2e-6)
        np.testing.assert_allclose(
            episode.camera_pose[k], kinematics.camera_pose(wanted), atol=2e-6
        )


def approx(value: float) -> Any:
    import pytest

    return pytest.approx(value, abs=2e-6)


def report_of(root: Path) -> dict[str, Any]:
    """The import report's recordings."""
    return json.loads((root / "import_report.json").read_text())["sources"]
