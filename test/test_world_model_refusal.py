"""The ``world_model`` node refuses to start without a sound checkpoint, and says which file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run script/setup")
pytest.importorskip("ego_world_model.msg", reason="needs the built interfaces: run script/setup")

from imagined_graph import random_checkpoint
from support import node


def _missing(folder: Path) -> str:
    (folder / "config.json").unlink()
    return "config.json is missing"


def _corrupt(folder: Path) -> str:
    path = folder / "backbone.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 0xFF
    path.write_bytes(data)
    return f"{path} is corrupt"


def _truncated_config(folder: Path) -> str:
    path = folder / "config.json"
    path.write_text(path.read_text()[:100])
    return f"{path} is not valid JSON"


def _wrong_shape(folder: Path) -> str:
    path = folder / "config.json"
    document = json.loads(path.read_text())
    document["model"]["backbone"]["kwargs"]["channels"] = 24
    path.write_text(json.dumps(document))
    return f"{folder / 'backbone.safetensors'} does not fit"


@pytest.mark.parametrize("damage", [_missing, _corrupt, _truncated_config, _wrong_shape])
def test_refuses_to_start_with_a_broken_checkpoint(
    ros_domain: int, tmp_path: Path, damage: Callable[[Path], str]
) -> None:
    """Exit code 1, the file and what is wrong with it, and no traceback."""
    folder = random_checkpoint(tmp_path / "checkpoint")
    text = damage(folder)
    with node("world_model_node", parameters={"checkpoint": str(folder)}) as process:
        assert process.wait(timeout=240.0) == 1
        process_said = process.output
    assert text in process_said
    assert "cannot start: world model checkpoint" in process_said
    assert "Traceback" not in process_said


def test_refuses_to_start_with_an_unknown_name(ros_domain: int) -> None:
    with node("world_model_node", parameters={"checkpoint": "enormous"}) as process:
        assert process.wait(timeout=240.0) == 1
        assert "enormous" in process.output
        assert "the name of a shipped model ('tiny')" in process.output
