"""One evaluation from its settings: every model on the same clips, scenes and studies."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ego_world_model.data import DatasetReader, Episode
from ego_world_model.embodiment import Embodiment, builtin_embodiments, load_embodiment
from ego_world_model.evaluation.benchmark import Benchmark, ClipResult, Imagines, clip_regions
from ego_world_model.evaluation.clips import ClipFormat, evaluation_clips
from ego_world_model.evaluation.features import FeatureNetworks
from ego_world_model.evaluation.obedience import measure_obedience
from ego_world_model.evaluation.results import ModelEvaluation, Scores
from ego_world_model.evaluation.set_scores import set_scores
from ego_world_model.evaluation.studies import (
    Study,
    denoising_steps,
    denoising_steps_study,
    masked_joints,
    masked_joints_study,
)
from ego_world_model.perception import KeypointEstimator

FEATURE_REGIONS = ("hand", "hand_object")
FEATURE_METHODS = ("model", "copy_first")

Track = Callable[[Iterator[Any], str, int], list[Any]]
"""Collects results, given a description and how many there will be; a place for a progress bar."""


def untracked(results: Iterator[Any], description: str, total: int) -> list[Any]:
    """No progress bar."""
    return list(results)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Settings of an evaluation.

    Attributes:
        judge: the estimator that reads frames.
        data: dataset folder.
        clips: so many, spread over the episodes.
        steps: denoising steps, None for each checkpoint's own.
        scenes: of the obedience test, with the dataset's robot; 0 leaves it out.
        robots: names or YAML files of robots to look for the dataset's in; else a built-in one.
        shares: of hidden joints to study; empty for no study.
        step_counts: denoising steps to study; empty for no study.
        study_clips: clips of each study.
        networks: for feature metrics; None leaves them out.
        feature_metrics: which; empty for all that the networks allow.
        seed: of noise and hidden joints.
        device: of the world models, as torch names it.
        track: collects the results of each part.
    """

    judge: KeypointEstimator
    data: Path
    clips: int = 100
    steps: int | None = None
    scenes: int = 5
    robots: tuple[str, ...] = ()
    shares: tuple[float, ...] = ()
    step_counts: tuple[int, ...] = ()
    study_clips: int = 40
    networks: FeatureNetworks | None = None
    feature_metrics: tuple[str, ...] = ()
    seed: int = 0
    device: str = "cpu"
    track: Track = untracked

    def evaluate(self, models: Sequence[str]) -> dict[str, ModelEvaluation]:
        """{label: results} of checkpoints (names or folders), one loaded after the other.

        Raises:
            ValueError: if they imagine clips of different rates, lengths or sizes.
        """
        from ego_world_model.world_model import WorldModel

        labels = model_labels(models)
        _check_forms(models, labels)
        return {
            label: self._model(WorldModel.from_pretrained(name, device=self.device), label)
            for name, label in zip(models, labels, strict=True)
        }

    def _model(self, model: Imagines, label: str) -> ModelEvaluation:
        reader = DatasetReader(self.data)
        episodes = list(evaluation_clips(reader, model.config, self.clips))
        runs = Benchmark(model, self.judge, steps=self.steps, seed=self.seed).run(episodes)
        results = self.track(runs, f"{label}: clips", len(episodes))
        futures = []
        if self.scenes:
            robot = dataset_robot(reader.spec.embodiment, self.robots)
            runs = measure_obedience(model, self.judge, robot, scenes=self.scenes, steps=self.steps)
            futures = self.track(runs, f"{label}: futures", 5 * self.scenes)
        return ModelEvaluation(
            clips=results,
            futures=futures,
            studies=self._studies(model, label, reader),
            features=self._features(results, episodes),
        )

    def _studies(self, model: Imagines, label: str, reader: DatasetReader) -> list[Study]:
        studies = []
        if not self.shares and not self.step_counts:
            return studies
        episodes = list(evaluation_clips(reader, model.config, self.study_clips))
        if self.shares:
            runs = masked_joints(
                model, self.judge, episodes, self.shares, steps=self.steps, seed=self.seed
            )
            clips = self.track(runs, f"{label}: hidden joints", len(episodes))
            studies.append(masked_joints_study(self.shares, clips))
        if self.step_counts:
            runs = denoising_steps(model, self.judge, episodes, self.step_counts, seed=self.seed)
            clips = self.track(runs, f"{label}: steps", len(episodes))
            studies.append(denoising_steps_study(self.step_counts, clips))
        return studies

    def _features(
        self, results: Sequence[ClipResult], episodes: Sequence[Episode]
    ) -> dict[str, Scores]:
        if self.networks is None:
            return {}
        regions = [clip_regions(clip) for clip in episodes]
        chosen = {name: [region[name] for region in regions] for name in FEATURE_REGIONS}
        truth = [result.frames["truth"][1:] for result in results]
        return {
            method: set_scores(
                [result.frames[method][1:] for result in results],
                truth,
                chosen,
                self.networks,
                [result.task for result in results],
                metrics=self.feature_metrics or None,
            )
            for method in FEATURE_METHODS
        }


def dataset_robot(name: str, robots: Sequence[str] = ()) -> Embodiment:
    """The robot that a dataset names: one of ``robots`` (names or YAML files), else a built-in one.

    Raises:
        ValueError: if it is none of them.
    """
    given = {robot.name: robot for robot in map(load_embodiment, robots)}
    if name in given:
        return given[name]
    if name in builtin_embodiments():
        return load_embodiment(name)
    raise ValueError(
        f"the dataset's robot {name!r} is neither built in ({', '.join(builtin_embodiments())}) "
        "nor given: name its YAML file with --robot, or leave out the simulated scenes of "
        "different futures with --scenes 0"
    )


def model_labels(models: Sequence[str]) -> list[str]:
    """The shortest ends of checkpoint names or paths that tell them apart.

    >>> model_labels(["tiny", "runs/a/checkpoint", "runs/b/checkpoint"])
    ['tiny', 'a/checkpoint', 'b/checkpoint']
    """
    parts = [Path(model).parts for model in models]
    labels = []
    for own in parts:
        length = 1
        while length < len(own) and sum(own[-length:] == other[-length:] for other in parts) > 1:
            length += 1
        labels.append("/".join(own[-length:]))
    return labels


def _check_forms(models: Sequence[str], labels: Sequence[str]) -> None:
    """Refuse models of different clips, before the first one is run."""
    from ego_world_model.world_model.checkpoint import read_config
    from ego_world_model.world_model.model import SHIPPED

    forms = []
    for name in models:
        folder = Path(name)
        known = folder.exists() or folder.name != name
        forms.append(_form(read_config(folder if known else SHIPPED / name)[0]))
    for label, form in zip(labels, forms, strict=True):
        if form != forms[0]:
            raise ValueError(
                f"{label} imagines {_described(form)}, {labels[0]} {_described(forms[0])}; only "
                "models of one kind of clip can be compared"
            )


def _form(config: ClipFormat) -> tuple[float, int, int, int]:
    return config.fps, config.num_frames, config.width, config.height


def _described(form: tuple[float, int, int, int]) -> str:
    fps, frames, width, height = form
    return f"{frames} frames of {width}x{height} at {fps:g} Hz"
