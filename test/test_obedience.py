"""Different futures from one simulated image part visibly, and their masks tell them apart."""

from types import SimpleNamespace

import numpy as np
import pytest

from ego_world_model.embodiment import load_embodiment
from ego_world_model.evaluation.obedience import (
    APART_PX,
    FuturesError,
    _Start,
    different_futures,
    measure_obedience,
)
from ego_world_model.kinematics import HandKinematics
from ego_world_model.perception import KeypointEstimator

TIMES = np.arange(6) / 10 * 3.2  # 1.6 s in few frames: every frame is rendered


@pytest.fixture(scope="module", params=["g1_dex3", "h1_2_inspire"])
def robot(request):
    return load_embodiment(request.param)


class Replay:
    """Answers with frames prepared in the order of the calls, whatever it is commanded."""

    config = SimpleNamespace(fps=1 / TIMES[1], num_frames=6, height=96, width=128, extra_slots=())

    def __init__(self, answers) -> None:
        self.answers = iter(answers)

    def imagine(self, image, trajectory, intrinsics, **options):
        assert np.array_equal(image, (frames := next(self.answers))[0])
        return SimpleNamespace(frames=frames[None], timings={})


@pytest.fixture(scope="module")
def scene(robot):
    """The first scene in which both wrists are seen: its plans and the simulator's frames."""
    kinematics = HandKinematics(robot)
    for seed in range(20):
        start = _Start(robot, seed, 128, 96)
        try:
            plans = different_futures(kinematics, start, TIMES, 2)
        except FuturesError:
            continue
        return SimpleNamespace(
            seed=seed,
            start=start,
            plans=plans,
            frames=[start.follow(TIMES, plan)[0] for plan in plans],
        )
    raise AssertionError("no scene of 20 starts with both wrists in view")


def test_futures_share_their_start_and_part_visibly(scene, robot):
    assert np.array_equal(scene.plans[:, 0], np.stack([scene.start.q] * 2))
    assert np.array_equal(scene.frames[0][0], scene.frames[1][0])
    assert (scene.plans >= robot.lower - 1e-9).all() and (scene.plans <= robot.upper + 1e-9).all()
    kinematics = HandKinematics(robot)
    ends = [
        scene.start.camera.project(
            kinematics.hand_state(plan[-1], scene.start.camera_pose).translation
        )
        for plan in scene.plans
    ]
    assert np.linalg.norm(ends[0] - ends[1], axis=-1).mean() > APART_PX - 1


def test_the_simulators_own_frames_are_obedient_and_swapped_ones_are_not(scene, robot):
    estimator = KeypointEstimator.from_pretrained()

    def measured(answers):
        options = {"scenes": 1, "futures": 2, "first_seed": scene.seed}
        return list(measure_obedience(Replay(answers), estimator, robot, **options))

    for number, result in enumerate(measured(scene.frames)):
        assert result.obeyed and result.iou == result.own_iou
        assert result.best_match == result.future == number
    for number, result in enumerate(measured(scene.frames[::-1])):
        assert result.iou < result.own_iou - 0.1 and result.best_match != number
