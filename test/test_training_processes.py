"""Runs of several processes: one model, whole or sharded, and one who writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from published_bundle import write_base
from safetensors.torch import load_file
from small_runs import (
    entries,
    losses,
    run_processes,
    start,
    train_command,
    wan_training,
    write_config,
    write_dataset,
)
from torch import Tensor

from ego_world_model.training.config import WorldModelTraining, parse
from ego_world_model.training.runs import train_world_model
from ego_world_model.world_model import WorldModel


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("wan21"))


def alone(folder: Path, base: Path, dtype: str) -> dict[str, Tensor]:
    """Weights and averages of four steps of one process."""
    process = start(["training_worker.py", str(folder), str(base), dtype, "one"])
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output[-6000:]
    return load_file(folder / "weights_0.safetensors")


def together(folder: Path, base: Path, *arguments: str) -> list[dict[str, Tensor]]:
    """The same of two processes."""
    run_processes(2, ["training_worker.py", str(folder), str(base), *arguments])
    return [load_file(folder / f"weights_{rank}.safetensors") for rank in range(2)]


def test_two_processes_average_their_gradients(base: Path, tmp_path: Path) -> None:
    """With half of the clips each they end at the weights of one process with all of them."""
    expected = alone(tmp_path / "one", base, "float32")
    first, second = together(tmp_path / "two", base, "float32", "replicated")
    for name, value in expected.items():
        assert torch.equal(first[name], second[name]), name
        # 4 steps of 1e-2 move a weight by up to 0.04; where gradients are next to nothing, the
        # last bits of a sum decide how far Adam goes
        difference = (first[name] - value).abs().max()
        assert difference < 5e-4, (name, difference)
    assert len(entries(tmp_path / "two")) == 4  # written once
    assert abs(losses(tmp_path / "two")[0][1] - losses(tmp_path / "one")[0][1]) < 1e-5


def test_sharded_weights_train_save_and_resume(base: Path, tmp_path: Path) -> None:
    """FSDP2 on a bfloat16 base with float32 LoRA: stopped after two steps and resumed, two
    processes with half of the weights each end where one process does."""
    expected = alone(tmp_path / "one", base, "bfloat16")
    together(tmp_path / "two", base, "bfloat16", "sharded", "2")
    assert [step for step, _ in losses(tmp_path / "two")] == [1, 2]
    first, second = together(tmp_path / "two", base, "bfloat16", "sharded")
    assert [step for step, _ in losses(tmp_path / "two")] == [1, 2, 3, 4]
    for name, value in expected.items():
        assert torch.equal(first[name], second[name]), name
        difference = (first[name].reshape(value.shape) - value).abs().max()
        assert difference < 2e-3, (name, difference)
    error = entries(tmp_path / "two", "validation")[-1]["error"]
    assert error < losses(tmp_path / "two")[0][1]  # parts by themselves see trained weights


def test_the_command_runs_in_two_processes(base: Path, tmp_path: Path) -> None:
    """Each draws its own clips, both encode windows, one writes; the checkpoint loads."""
    train = write_dataset(tmp_path / "train", episodes=3)
    held_out = write_dataset(tmp_path / "held_out", episodes=2, seed=50)
    loop = {"max_steps": 4, "validate_minutes": 0.0}
    config = write_config(tmp_path / "config.yaml", wan_training(base, train, held_out, loop=loop))
    run, cache = tmp_path / "run", tmp_path / "cache"
    outputs = run_processes(2, train_command(config, run, cache=cache))
    assert "checkpoint: " in outputs[0] and "checkpoint: " not in outputs[1]
    assert [step for step, _ in losses(run)] == [1, 2, 3, 4]
    assert len(entries(run, "validation")) >= 4
    assert WorldModel.from_pretrained(run / "checkpoint").metadata["steps"] == 4
    # One process cannot go on where two stopped: they would not draw the same clips.
    document = wan_training(base, train, held_out, loop=loop)
    settings = parse(WorldModelTraining, document, "test")
    with pytest.raises(ValueError, match="saved by 2 processes and is resumed by 1"):
        train_world_model(settings, None, run, cache=cache, report=lambda line: None)
