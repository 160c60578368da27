"""Controls compared at equal budget: ours, its ablations and the peers', in the same harness.

Every run trains the same backbone from the same initial weights on the same clips in the same
order, on latents of one frozen autoencoder; only the control differs. A run that is finished has a
result file and is not repeated, one that was interrupted goes on, so a set of many runs can grow
over days.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ego_world_model.data import DatasetReader, Episode
from ego_world_model.evaluation.benchmark import region_scores
from ego_world_model.evaluation.clips import command, evaluation_clips
from ego_world_model.evaluation.judge import Judge
from ego_world_model.evaluation.metrics import regions
from ego_world_model.evaluation.subsets import is_heavy, occlusion
from ego_world_model.perception import KeypointEstimator
from ego_world_model.training.clips import ClipCache
from ego_world_model.training.latents import LatentObjective, LatentSampler, encode_frames
from ego_world_model.training.loop import LoopSettings, Trainer
from ego_world_model.training.losses import RegionWeights
from ego_world_model.training.objectives import NoiseSettings
from ego_world_model.world_model.checkpoint import PartSpec, WorldModelConfig
from ego_world_model.world_model.model import WorldModel
from ego_world_model.world_model.parts import build_backbone

Report = Callable[[str], None]

METRICS = (
    "hand_psnr",
    "hand_object_psnr",
    "changed_psnr",
    "all_psnr",
    "hand_iou",
    "control_error_px",
    "moving_control_error_px",
)
"""What is kept of every held-out clip; defined in ``evaluation.benchmark``."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the comparison.

    Attributes:
        name: of its result files and its row.
        about: what it is, in a few words.
        control: the part, see ``world_model.parts.CONTROLS``.
        seeds: a run each.
    """

    name: str
    about: str
    control: PartSpec
    seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """``ego-world-model train ablation CONFIG.yaml``.

    Attributes:
        train: dataset folder.
        tests: dataset folders of held-out episodes.
        clips: clips from each of ``tests``.
        autoencoder_from: checkpoint (name or folder) whose autoencoder all runs share, frozen.
        extra_slots: slots after the 42 that controls read.
        frames, stride: a clip is so many frames, every stride-th of an episode.
        batch: clips per step.
        hide_joints: probability that a training clip has 10-30 % of its joints hidden.
        methods: in the order of the table; the first is what the others are compared with.
    """

    train: str
    tests: tuple[str, ...]
    backbone: PartSpec
    loop: LoopSettings
    methods: tuple[Method, ...]
    clips: int = 120
    autoencoder_from: str = "tiny"
    extra_slots: tuple[str, ...] = ()
    frames: int = 9
    stride: int = 2
    batch: int = 8
    hide_joints: float = 0.1
    noise: NoiseSettings = field(default_factory=NoiseSettings)
    weights: RegionWeights = field(default_factory=RegionWeights)

    def runs(self) -> Iterator[tuple[Method, int]]:
        """(method, seed) of all runs, first one seed of every method, then the next."""
        for place in range(max(len(method.seeds) for method in self.methods)):
            for method in self.methods:
                if place < len(method.seeds):
                    yield method, method.seeds[place]


def run_ablation(
    config: Ablation,
    folder: Path,
    results: Path,
    *,
    only: Sequence[str] = (),
    report: Report = print,
    on_finished: Callable[[], None] = lambda: None,
) -> None:
    """Do all runs that have no result yet.

    Args:
        folder: of training states, cached frames and latents.
        results: folder of the result files, ``<method>-<seed>.json``.
        only: names of methods to run; empty for all.
        on_finished: called after each run.

    Raises:
        ValueError: if ``only`` names an unknown method.
    """
    if unknown := sorted(set(only) - {method.name for method in config.methods}):
        known = ", ".join(method.name for method in config.methods)
        raise ValueError(f"unknown methods {', '.join(unknown)}; the config has {known}")
    results.mkdir(parents=True, exist_ok=True)
    bench: _Bench | None = None
    for method, seed in config.runs():
        path = results / f"{method.name}-{seed}.json"
        if path.exists() or (only and method.name not in only):
            continue
        bench = bench or _Bench(config, folder, report)
        report(f"{method.name}, seed {seed}")
        result = bench.run(method, seed)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(result, indent=1) + "\n")
        part.rename(path)
        on_finished()


class _Bench:
    """What all runs share: frames, latents, autoencoder, held-out clips, estimator."""

    def __init__(self, config: Ablation, folder: Path, report: Report) -> None:
        self.config, self.folder, self.report = config, folder, report
        self.source = WorldModel.from_pretrained(config.autoencoder_from)
        form = self.source.config
        reader = DatasetReader(config.train)
        self.cache = ClipCache.build(
            _Episodes(reader),
            folder / "frames",
            width=form.width,
            height=form.height,
            extra_slots=config.extra_slots,
        )
        self.latents = encode_frames(
            self.cache, self.source.autoencoder, folder / "latents", report=report
        )
        self.judge = KeypointEstimator.from_pretrained(None)
        shape = self._model(config.methods[0], 0).config
        self.clips = [
            (Path(root).name, clip)
            for root in config.tests
            for clip in evaluation_clips(DatasetReader(root), shape, config.clips)
        ]
        report(f"{len(self.clips)} held-out clips")

    def run(self, method: Method, seed: int) -> dict[str, Any]:
        """Train and measure one method from one seed."""
        config = self.config
        model = self._model(method, seed)
        objective = LatentObjective(model.control, model.backbone, config.weights, config.noise)
        rng = np.random.default_rng(seed)
        sampler = LatentSampler(
            self.cache,
            self.latents,
            rng,
            frames=config.frames,
            stride=config.stride,
            hide_joints=config.hide_joints,
        )
        trainer = Trainer(
            objective,
            lambda progress: sampler.sample(config.batch),
            rng,
            self.folder / "runs" / f"{method.name}-{seed}",
            replace(config.loop, seed=seed),
            report=self.report,
        )
        trainer.run()
        if trainer.progress < 1:
            raise KeyboardInterrupt
        trainer.average.swap(objective)
        model.eval()
        return {
            "method": method.name,
            "seed": seed,
            "steps": trainer.step,
            "minutes": round(trainer.elapsed / 60, 2),
            "parameters": {
                "control": sum(p.numel() for p in model.control.parameters()),
                "backbone": sum(p.numel() for p in model.backbone.parameters()),
            },
            "clips": [measure(model, self.judge, clip, dataset=name) for name, clip in self.clips],
        }

    def _model(self, method: Method, seed: int) -> WorldModel:
        """The shared autoencoder, the method's control, and the seed's backbone."""
        config, form = self.config, self.source.config
        torch.manual_seed(seed)
        model = WorldModel(
            WorldModelConfig(
                fps=self.cache.fps / config.stride,
                num_frames=config.frames,
                height=form.height,
                width=form.width,
                extra_slots=config.extra_slots,
                autoencoder=form.autoencoder,
                backbone=config.backbone,
                control=method.control,
            )
        )
        model.autoencoder.load_state_dict(self.source.autoencoder.state_dict())
        # A control draws its own random weights; the backbone must start alike beside all of them.
        torch.manual_seed(seed)
        backbone = build_backbone(config.backbone.name, **config.backbone.kwargs)
        model.backbone.load_state_dict(backbone.state_dict())
        return model


class _Episodes:
    """A dataset as a sequence of episodes."""

    def __init__(self, reader: DatasetReader) -> None:
        self.reader = reader

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> Episode:
        return self.reader.episode(index)


def measure(
    model: WorldModel, judge: KeypointEstimator, clip: Episode, *, dataset: str
) -> dict[str, Any]:
    """``METRICS`` of one held-out clip under its own joints, null where one does not apply."""
    given = {"masks": clip.masks} if model.control.reads_masks else {}
    trajectory = command(clip, tuple(model.config.extra_slots))
    result = model.imagine(clip.images[0], trajectory, clip.camera.matrix, seed=0, **given)
    frames = result.frames[0][1:]
    scores, _ = Judge(clip, judge)(frames)
    scores |= region_scores(frames, clip.images[1:], regions(clip.masks[0], clip.masks[1:]))
    hidden = occlusion(clip)
    return {
        "data": dataset,
        "episode": clip.metadata["episode"],
        "first_frame": clip.metadata["first_frame"],
        "kind": clip.metadata["kind"],
        "occlusion": round(hidden, 4),
        "heavy": bool(is_heavy(clip)),
        **{name: _plain(scores[name]) for name in METRICS},
    }


def _plain(value: float) -> float | None:
    return round(float(value), 4) if math.isfinite(value) else None


def load_results(folder: Path) -> list[dict[str, Any]]:
    """All result files of a folder."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*-*.json"))]
