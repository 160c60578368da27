"""Training of the keypoint and segmentation estimator on simulated frames of one or several robots.

One file in, one checkpoint folder out; every minute the folder is written anew, so that a run that
is cut short still leaves an estimator. The run ends at ``steps`` or ``minutes``, whichever comes
first, and the learning rate falls to zero towards that end.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import typer
import yaml
from torch import Tensor

from ego_world_model.data import DatasetReader, Episode
from ego_world_model.hands import NUM_SLOTS, SLOT_NAMES
from ego_world_model.perception.estimator import (
    STRIDE,
    EstimatorConfig,
    KeypointEstimator,
    cell_centres,
)
from ego_world_model.perception.frames import LabelledFrames, augmented_images, mirrored

Report = dict[str, dict[str, float]]
"""{robot: what ``measure`` says of its frames}"""


@dataclass(frozen=True)
class KeypointTraining:
    """A training run of the estimator.

    Attributes:
        data: dataset folders with masks (training split); image size and slots come from them. A
            robot's slots that another lacks are learned from the first alone.
        output: checkpoint folder to write.
        steps, minutes: the run ends at whichever comes first.
        batch_size: frames per step; half of each batch is mirrored.
        learning_rate: peak of AdamW's rate, after ``warmup`` steps; cosine to zero from there.
        validation: dataset folders to measure on, each robot apart; empty measures on the last
            episodes of each of ``data``.
        validation_episodes: how many episodes of each folder are measured on (and, of ``data``,
            not trained on).
        max_episodes: use only the first so many episodes of each folder (0: all).
        frame_stride: use every so many frames of an episode; neighbours are nearly alike.
        checkpoint_seconds: between checkpoints.
        threads: of torch (0: torch's own choice).
        initial: checkpoint folder to start from, or empty; slots that it lacks are added.
        seed: of weights, batches and augmentation.
    """

    data: tuple[Path, ...]
    output: Path
    steps: int = 4000
    minutes: float = 20.0
    batch_size: int = 32
    learning_rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 1e-4
    validation: tuple[Path, ...] = ()
    validation_episodes: int = 24
    max_episodes: int = 0
    frame_stride: int = 2
    checkpoint_seconds: float = 60.0
    threads: int = 1
    initial: str = ""
    seed: int = 0

    @classmethod
    def from_yaml(cls, path: str | Path) -> KeypointTraining:
        """Read a run from a YAML mapping of this class's fields; one dataset needs no list.

        Raises:
            ValueError: naming a field that is unknown or missing.
        """
        values = yaml.safe_load(Path(path).read_text())
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold a mapping of fields such as data and output")
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        missing = sorted({"data", "output"} - set(values))
        if unknown or missing:
            raise ValueError(
                f"{path}: unknown fields {unknown}, missing fields {missing}; known fields are "
                f"{', '.join(sorted(known))}"
            )
        for name in ("data", "validation"):
            folders = values.get(name) or ()
            folders = (folders,) if isinstance(folders, str) else folders
            values[name] = tuple(Path(folder) for folder in folders)
        if not values["data"]:
            raise ValueError(f"{path}: data names no dataset folder")
        values["output"] = Path(values["output"])
        return cls(**values)


def estimator_loss(
    outputs: tuple[Tensor, Tensor, Tensor], frames: LabelledFrames
) -> dict[str, Tensor]:
    """Cross entropy of heatmaps (visible joints only) and classes, L1 of offsets near each joint.

    ``total`` is their weighted sum, the one to minimise.
    """
    heat, offset, classes = outputs
    b, k, h, w = heat.shape
    centres = cell_centres(h, w, heat.device)  # (2, h, w)
    away = (frames.pixels[:, :, :, None, None] - centres) / STRIDE  # (B, K, 2, h, w) cells
    target = torch.exp(-away.square().sum(2) / (2 * 0.7**2)).flatten(2)
    target = target / target.sum(-1, keepdim=True).clamp_min(1e-9)
    entropy = -(target * heat.flatten(2).log_softmax(-1)).sum(-1)
    visible = frames.visible.float()
    count = visible.sum().clamp_min(1)
    near = (away.abs().amax(2) < 1.6) * visible[:, :, None, None]
    offset_error = F.smooth_l1_loss(offset, away, beta=0.25, reduction="none").sum(2)
    losses = {
        "heat": (entropy * visible).sum() / count,
        "offset": (offset_error * near).sum() / near.sum().clamp_min(1),
        "classes": F.cross_entropy(classes, frames.classes.long()),
    }
    losses["total"] = losses["heat"] + losses["offset"] + 4 * losses["classes"]
    return losses


def measure(estimator: KeypointEstimator, frames: LabelledFrames) -> dict[str, float]:
    """The estimator's own error: pixels on visible joints, IoU of hands, arms and objects."""
    prediction = estimator(frames.images.numpy())
    visible = frames.visible.numpy()
    error = np.linalg.norm(prediction.pixels - frames.pixels.numpy(), axis=-1)[visible]
    report = {
        "keypoint_error_px": float(error.mean()) if error.size else float("nan"),
        "keypoint_error_median_px": float(np.median(error)) if error.size else float("nan"),
        "keypoints_within_3px": float((error <= 3).mean()) if error.size else float("nan"),
    }
    truth = frames.classes.numpy()
    for name, members in (("hand", (1, 2)), ("arms", (3,)), ("objects", (4,))):
        said, is_so = np.isin(prediction.classes, members), np.isin(truth, members)
        union = (said | is_so).sum()
        report[f"{name}_iou"] = float((said & is_so).sum() / union) if union else float("nan")
    return report


class KeypointTrainer:
    """Runs one ``KeypointTraining``: ``KeypointTrainer(run).train()``."""

    def __init__(self, run: KeypointTraining) -> None:
        self.run = run
        if run.threads:
            torch.set_num_threads(run.threads)
        torch.manual_seed(run.seed)
        self.generator = torch.Generator().manual_seed(run.seed)
        readers = [DatasetReader(folder) for folder in run.data]
        self.training = [_Span(r, 0, min(len(r), run.max_episodes or len(r))) for r in readers]
        held = [
            _Span(DatasetReader(folder), 0, run.validation_episodes) for folder in run.validation
        ]
        if not held:
            held = [span.last(run.validation_episodes) for span in self.training]
            self.training = [span.without_last(run.validation_episodes) for span in self.training]
        for span in (*self.training, *held):
            span.check()
        self.estimator = _estimator(run, readers)
        config = self.estimator.config
        self.frames = LabelledFrames.from_episodes(
            _episodes(self.training), config, stride=run.frame_stride
        )
        self.validation = {
            robot: LabelledFrames.from_episodes(
                _episodes(span for span in held if span.robot == robot), config, stride=4
            )
            for robot in dict.fromkeys(span.robot for span in held)
        }
        self.optimizer = torch.optim.AdamW(
            self.estimator.network.parameters(), lr=0.0, weight_decay=run.weight_decay
        )

    def train(self) -> Report:
        """Train to the end; returns the last measurement, also in training_log.jsonl."""
        run = self.run
        begin = saved = time.monotonic()
        held = ", ".join(f"{len(frames)} of {robot}" for robot, frames in self.validation.items())
        typer.echo(f"{len(self.frames)} training frames; validation frames: {held}")
        step = 0
        while True:
            elapsed = time.monotonic() - begin
            progress = max(step / run.steps, elapsed / (60 * run.minutes))
            if progress >= 1:
                break
            losses = self._step(step, progress)
            step += 1
            if time.monotonic() - saved > run.checkpoint_seconds:
                self._checkpoint(step, elapsed, losses)
                saved = time.monotonic()
        return self._checkpoint(step, time.monotonic() - begin, losses)

    def _step(self, step: int, progress: float) -> dict[str, float]:
        rate = self.run.learning_rate * min(1.0, (step + 1) / self.run.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1 + np.cos(np.pi * progress))
        index = torch.randint(len(self.frames), (self.run.batch_size,), generator=self.generator)
        half = self.run.batch_size // 2
        plain = self.frames[index[half:]]
        mirror = mirrored(self.frames[index[:half]], self.estimator.config)
        batch = LabelledFrames(
            *(
                torch.cat([getattr(plain, f.name), getattr(mirror, f.name)])
                for f in fields(LabelledFrames)
            )
        )
        network = self.estimator.network.train()
        losses = estimator_loss(network(augmented_images(batch, self.generator)), batch)
        self.optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        self.optimizer.step()
        return {name: float(loss.detach()) for name, loss in losses.items()}

    def _checkpoint(self, step: int, elapsed: float, losses: dict[str, float]) -> Report:
        report = {
            robot: measure(self.estimator, frames) for robot, frames in self.validation.items()
        }
        record = {"step": step, "seconds": round(elapsed, 1), **losses}
        output = self.run.output
        self.estimator.save(output)
        with (output / "training_log.jsonl").open("a") as log:
            log.write(json.dumps(record | {"validation": report}) + "\n")
        (output / "README.md").write_text(self._card(record, report))
        typer.echo(_in_line(record))
        for robot, measured in report.items():
            typer.echo(f"  {robot}: {_in_line(measured)}")
        return report

    def _card(self, record: dict[str, float], report: Report) -> str:
        config = self.estimator.config
        count = sum(p.numel() for p in self.estimator.network.parameters())
        trained = ", ".join(
            f"{sum(len(span) for span in self.training if span.robot == robot)} of {robot}"
            for robot in dict.fromkeys(span.robot for span in self.training)
        )
        measured = ", ".join(f"{len(f)} of {robot}" for robot, f in self.validation.items())
        names = next(iter(report.values()))
        rows = "\n".join(
            f"| {name} | {' | '.join(f'{values[name]:.4g}' for values in report.values())} |"
            for name in names
        )
        settings = {
            k: v
            for k, v in asdict(self.run).items()
            if k not in ("data", "output", "validation", "initial")
        }
        return (
            "# Keypoint and segmentation estimator\n\n"
            f"Finds {len(config.slots)} hand slots and the classes {', '.join(config.classes)} in "
            f"single {config.width}x{config.height} frames ({count / 1e6:.2f} M parameters). "
            "Trained on simulated frames only; it measures imagined frames and steers nothing.\n\n"
            f"Data: simulated episodes, {trained} ({len(self.frames)} frames); measured on "
            f"other frames, {measured}, keypoints on joints that can be seen. Slots that a robot "
            "does not have are neither learned from it nor counted.\n\n"
            f"| at the end of training | {' | '.join(report)} |\n|---|{'---|' * len(report)}\n"
            f"{rows}\n\n"
            f"{_in_line(record)}\n\n"
            f"Settings: `{json.dumps(settings)}`\n\n"
            f"Limits: simulated {' and '.join(report)} only; a joint that cannot be seen is "
            "guessed. Two kinds of object (manipulated and other) are one class, since a single "
            "frame does not tell them apart.\n"
        )


@dataclass(frozen=True)
class _Span:
    """Episodes ``first`` up to ``stop`` of a dataset."""

    reader: DatasetReader
    first: int
    stop: int

    def __len__(self) -> int:
        return max(0, self.stop - self.first)

    @property
    def robot(self) -> str:
        return self.reader.spec.embodiment

    def last(self, count: int) -> _Span:
        return _Span(self.reader, self.stop - count, self.stop)

    def without_last(self, count: int) -> _Span:
        return _Span(self.reader, self.first, self.stop - count)

    def check(self) -> None:
        """Refuse what the dataset does not hold."""
        if self.first < 0 or self.stop > len(self.reader) or not len(self):
            raise ValueError(
                f"{self.reader.root} has {len(self.reader)} episodes, too few to train and to "
                "measure on; lower validation_episodes or simulate more"
            )


def _episodes(spans: Iterable[_Span]) -> Iterator[Episode]:
    return (span.reader.episode(i) for span in spans for i in range(span.first, span.stop))


def _estimator(run: KeypointTraining, readers: Sequence[DatasetReader]) -> KeypointEstimator:
    """The estimator to start with. Only joints that one of the robots has can be learned, so these
    are its slots."""
    firsts = [reader.episode(0, stop=1, images=False, masks=False) for reader in readers]
    valid = np.any([first.hand_valid[0, :NUM_SLOTS] for first in firsts], axis=0)
    names = tuple(SLOT_NAMES[i] for i in np.flatnonzero(valid))
    if run.initial:
        return KeypointEstimator.from_pretrained(run.initial).with_slots(names)
    camera = firsts[0].camera
    return KeypointEstimator(EstimatorConfig(names, camera.width, camera.height))


def _in_line(values: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in values.items())


def train_keypoints(config: Path) -> Report:
    """Run the training that a YAML file describes; returns the last measurement."""
    if not config.is_file():
        raise FileNotFoundError(
            f"no training config {config}; config/training/keypoints.yaml is an example"
        )
    return KeypointTrainer(KeypointTraining.from_yaml(config)).train()
