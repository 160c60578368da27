"""One process of a run on a small Wan base, started by ``test_training_processes``.

    python training_worker.py FOLDER BASE DTYPE {one,replicated,sharded} [STOP]

Every step sees the same eight clips with the same noise, dealt out to the processes, so that any
number of them must compute the same weights. They are written to FOLDER/weights_<rank>.safetensors.
"""

from __future__ import annotations

import itertools
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from safetensors.torch import save_file
from torch import Tensor, nn

from ego_world_model.training.loop import LoopSettings, Trainer, process_rng
from ego_world_model.training.processes import processes, whole
from ego_world_model.training.start import checkpoint_gradients
from ego_world_model.world_model.backbones import Condition
from ego_world_model.world_model.controls import JointControl
from ego_world_model.world_model.wan import WanI2VBackbone

CONFIG = Path(__file__).resolve().parent.parent / "config" / "accelerate_fsdp.yaml"
STEPS, CLIPS, SHAPE = 4, 8, (16, 3, 4, 6)


@dataclass(frozen=True)
class Clips:
    """What a step learns from, B clips."""

    clean: Tensor
    noise: Tensor
    joints: Tensor
    text: Tensor
    image: Tensor

    def __len__(self) -> int:
        return len(self.clean)

    def split(self, parts: int) -> list[Clips]:
        assert parts == 1
        return [self]


class Objective(nn.Module):
    """Flow matching at one noise level, through joint control and the LoRA-adapted transformer."""

    def __init__(self, base: str, dtype: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.control = JointControl()
        self.backbone = WanI2VBackbone(base=base, lora={"rank": 4}, dtype=dtype)
        self.backbone.train_on_top()
        checkpoint_gradients(self.backbone)

    def forward(self, clips: Clips, progress: float, generator: object) -> dict[str, Tensor]:
        return {"loss": error_of(self, clips)}


def error_of(objective: Objective, clips: Clips) -> Tensor:
    """Through the parts by themselves, as validation does it."""
    camera = torch.tensor([[40.0, 0, 23.5], [0, 40.0, 15.5], [0, 0, 1]])
    reference = clips.clean[:, :, 0]
    signal = objective.control(clips.joints, camera.expand(len(clips), 3, 3), reference)
    condition = Condition.from_control(reference, signal.motion, signal.geometry, image=clips.image)
    sigma = torch.full((len(clips),), 0.7)
    noisy = 0.3 * clips.clean + 0.7 * clips.noise
    return (objective.backbone(noisy, sigma, condition) - clips.clean).square().mean()


def shard() -> None:
    """Take over what ``accelerate launch --config_file config/accelerate_fsdp.yaml`` sets.

    Accelerate shards on GPUs only, though torch can on CPUs: have it take these for GPUs.
    """
    given = ["--config_file", str(CONFIG), "--num_processes", "2", "script.py"]
    arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(given))
    wanted = prepare_multi_gpu_env(arguments).items()
    os.environ |= {name: value for name, value in wanted if "FSDP" in name}
    processes()
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def main(folder: Path, base: str, dtype: str, kind: str, stop: int) -> None:
    if kind == "sharded":
        shard()
    state = processes()
    assert (state.num_processes > 1) == (kind != "one")
    generator = torch.Generator().manual_seed(5)
    rows = slice(state.process_index, None, state.num_processes)
    clean, noise = (torch.randn(CLIPS, *SHAPE, generator=generator)[rows] for _ in range(2))
    joints = torch.rand(CLIPS, 9, 42, 3, generator=generator)[rows] + torch.tensor([0.0, 0, 0.4])
    text = torch.randn(CLIPS, 8, 24, generator=generator)[rows]
    image = torch.randn(CLIPS, 5, 32, generator=generator)[rows]
    batch = Clips(clean, noise, joints, text, image)
    halves = [Clips(*(x[i::2] for x in vars(batch).values())) for i in range(2)]
    drawn = itertools.cycle(halves)  # a step accumulates both
    objective = Objective(base, dtype)
    trainer = Trainer(
        objective,
        lambda progress: next(drawn),
        process_rng(0),
        folder,
        LoopSettings(
            max_steps=STEPS,
            learning_rate=1e-2,
            warmup_steps=1,
            accumulate=2,
            precision="fp32",
            log_steps=1,
        ),
        validate=lambda step, progress: {"error": float(error_of(objective, batch))},
    )
    if kind == "sharded":
        sizes = {n: (p.to_local().numel(), p.numel()) for n, p in objective.named_parameters()}
        assert sum(a for a, _ in sizes.values()) < 0.6 * sum(b for _, b in sizes.values())
    trainer.run(stop=lambda step: step == stop)
    weights = {
        name: whole(p.detach()).clone()
        for name, p in objective.named_parameters()
        if p.requires_grad
    }
    weights |= {f"average.{n}": whole(t).clone() for n, t in trainer.average.parameters.items()}
    save_file(weights, folder / f"weights_{state.process_index}.safetensors")
    state.destroy_process_group()


if __name__ == "__main__":
    given = sys.argv[1:]
    main(Path(given[0]), given[1], given[2], given[3], int((given[4:] or ["-1"])[0]))
