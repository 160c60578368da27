"""The shipped model and the shipped estimator, on a few held-out scenes of each robot they know.

The scenes are simulated here, from seeds that neither training nor the published numbers used.
docs/benchmarks.md has the numbers of 100 clips for each robot.
"""

import numpy as np
import pytest

from ego_world_model.data.generate import GenerationPlan, simulate_episode
from ego_world_model.evaluation.benchmark import clip_regions, imagine_clip
from ego_world_model.evaluation.clips import command, evaluation_clips
from ego_world_model.evaluation.judge import Judge
from ego_world_model.evaluation.metrics import psnr
from ego_world_model.perception import KeypointEstimator
from ego_world_model.world_model import WorldModel

ROBOTS = ("g1_dex3", "h1_2_inspire")
CLIPS = 4


class Simulated(list):
    """Simulated episodes, as evaluation reads them off a dataset."""

    def episode(self, index):
        return self[index]


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return WorldModel.from_pretrained("tiny")


@pytest.fixture(scope="module", params=ROBOTS)
def clips(request, model):
    """Clips of one robot at work, a second after the start of its first task."""
    plan = GenerationPlan(
        robot=request.param,
        split="test",
        seed=900,
        fps=model.config.fps,
        seconds=3.7,
        width=model.config.width,
        height=model.config.height,
        depth=False,
        oversample=2,
    )
    episodes = Simulated(simulate_episode(plan, index) for index in range(CLIPS))
    return list(evaluation_clips(episodes, model.config, CLIPS))


def test_imagined_hands_follow_their_own_joints(model, clips):
    """On either robot, hands are drawn far better than by repeating the first frame or by following
    another clip's joints."""
    commands = [command(clip, tuple(model.config.extra_slots)) for clip in clips]
    above_copy, above_others = [], []
    for index, clip in enumerate(clips):
        two = [commands[index], commands[index - 1]]
        (own, others), _ = imagine_clip(model, clip, two, seed=index)
        copied = np.repeat(clip.images[:1], len(clip), axis=0)
        hand = clip_regions(clip)["hand"]
        quality, copy, other = (
            psnr(frames[1:], clip.images[1:], hand) for frames in (own, copied, others)
        )
        above_copy.append(quality - copy)
        above_others.append(quality - other)
    assert np.mean(above_copy) > 3 and np.mean(above_others) > 3


def test_imagined_hands_are_found_where_they_are_commanded(model, clips):
    """The estimator finds the joints of either robot in true frames, and those of imagined frames
    close to the commanded ones."""
    estimator = KeypointEstimator.from_pretrained()
    true_errors, errors, overlaps = [], [], []
    for index, clip in enumerate(clips):
        frames, _ = imagine_clip(
            model, clip, [command(clip, tuple(model.config.extra_slots))], seed=index
        )
        judge = Judge(clip, estimator)
        true_errors.append(judge(clip.images[1:])[0]["control_error_px"])
        scores, _ = judge(frames[0, 1:])
        errors.append(scores["control_error_px"])
        overlaps.append(scores["hand_iou"])
    assert np.mean(true_errors) < 3
    assert np.mean(errors) < 4 and np.mean(overlaps) > 0.65
