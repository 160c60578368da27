"""A run that is killed with SIGKILL and started again ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from published_bundle import write_base
from safetensors.torch import load_file
from small_runs import (
    entries,
    losses,
    start,
    train_command,
    wan_training,
    write_config,
    write_dataset,
)

from ego_world_model.training.display import cut_log


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve steps that are logged two by two and saved every few of them."""
    folder = tmp_path_factory.mktemp("data")
    document = wan_training(
        write_base(folder / "base"),
        write_dataset(folder / "train", episodes=3),
        write_dataset(folder / "held_out", episodes=2, seed=50),
        loop={"max_steps": 30, "log_steps": 2, "save_minutes": 0.004},
    )
    return write_config(folder / "config.yaml", document)


def finish(command: list[str]) -> str:
    process = start(command)
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output[-6000:]
    return output


def test_kill_nine_and_restart_gives_the_same_losses(config: Path, tmp_path: Path) -> None:
    """Killed somewhere in the middle and started again by the same command: the same log, the same
    weights and averages, bit for bit."""
    cache = tmp_path / "cache"
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(train_command(config, whole, cache=cache))
    assert len(losses(whole)) == 15

    command = train_command(config, broken, cache=cache)
    process = start(command)
    log, deadline = broken / "log.jsonl", time.monotonic() + 200
    state = broken / "state" / "numbers.json"
    while not (log.exists() and len(log.read_text().splitlines()) >= 5 and state.exists()):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = len(losses(broken))
    assert 5 <= done < 15
    output = finish(command)
    assert "resumed at step" in output
    assert losses(broken) == losses(whole)
    for name in ("module", "average", "optimiser"):
        expected = load_file(whole / "state" / f"{name}.safetensors")
        found = load_file(broken / "state" / f"{name}.safetensors")
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert value.equal(found[key]), (name, key)
    scores = [
        {k: v for k, v in entries(run, "validation")[-1].items() if k != "minutes"}
        for run in (whole, broken)
    ]
    assert scores[0] == scores[1]


def test_a_log_is_cut_back_to_the_step_a_run_resumes_at(tmp_path: Path) -> None:
    """Entries that the run will write again go, and so does a line that the kill cut short."""
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n{"step": 3, "lo')
    cut_log(path, 1)
    assert path.read_text() == '{"step": 1, "loss": 3}\n'
