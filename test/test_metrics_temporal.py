"""ST-SSIM and GMSD-T against the order in which known faults must be judged."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from ego_world_model.evaluation import metrics, temporal

SIZE = (12, 48, 64)  # frames, height, width
START = {0: 14, 1: 6, -1: 28}
"""First row of the square, by where it goes."""


def clip(step: tuple[int, int] = (0, 3), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A textured square that moves by (dy, dx) pixels a frame over a textured ground, and where."""
    rng = np.random.default_rng(seed)
    ground = gaussian_filter(rng.uniform(0, 255, (*SIZE[1:], 3)), (2, 2, 0)) * 2 - 128
    square = gaussian_filter(rng.uniform(0, 255, (16, 16, 3)), (1, 1, 0)) + 40
    video = np.repeat(ground[None], SIZE[0], axis=0)
    region = np.zeros(SIZE, bool)
    for k in range(SIZE[0]):
        top, left = START[np.sign(step[0])] + k * step[0], 8 + k * step[1]
        video[k, top : top + 16, left : left + 16] = square
        region[k, top : top + 16, left : left + 16] = True
    return np.clip(video, 0, 255).astype(np.uint8), region


def faults(video: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        "blurred": gaussian_filter(video, (0, 1.0, 1.0, 0)),
        "more blurred": gaussian_filter(video, (0, 3.0, 3.0, 0)),
        "shifted": np.roll(video, 1, axis=2),
        "more shifted": np.roll(video, 4, axis=2),
        "late": video[np.maximum(np.arange(len(video)) - 1, 0)],
        "frozen": np.repeat(video[:1], len(video), axis=0),
        "shuffled": video[rng.permutation(len(video))],
    }


@pytest.mark.parametrize("where", ["whole", "region"])
def test_a_copy_is_perfect_and_worse_faults_score_worse(where):
    video, region = clip()
    region = region if where == "region" else None
    st = {k: temporal.st_ssim(v, video, region) for k, v in faults(video).items()}
    gm = {k: temporal.gmsd_t(v, video, region) for k, v in faults(video).items()}
    assert temporal.st_ssim(video, video, region) == pytest.approx(1, abs=1e-6)
    assert temporal.gmsd_t(video, video, region) == pytest.approx(0, abs=1e-6)
    for mild, grave in (("blurred", "more blurred"), ("shifted", "more shifted")):
        assert 1 > st[mild] > st[grave]
        assert 0 < gm[mild] < gm[grave]
    assert 1 > st["late"] > st["shuffled"] and 0 < gm["late"] < gm["shuffled"]
    assert st["late"] > st["frozen"] and gm["frozen"] > 0.1
    if region is None:  # in a region that all moves, standing still is wrong alike everywhere
        assert gm["late"] < gm["frozen"]


def test_motion_is_seen_where_the_mean_of_the_frames_is_right():
    """Frames in another order keep every pixel's mean over time, and are still told apart."""
    video, region = clip()
    backwards = video[::-1]
    assert temporal.st_ssim(backwards, video, region) < 0.6
    assert temporal.gmsd_t(backwards, video, region) > 0.1


def test_gmsd_t_sees_changes_only():
    """Frames that are wrong in the same way at all times are perfect to it, not to ST-SSIM, even in
    a region that moves."""
    video, region = clip()
    video = video // 2
    for wrong in (video + 60, video + 60 * region[3][None, ..., None].astype(np.uint8)):
        assert temporal.gmsd_t(wrong, video) == pytest.approx(0, abs=1e-6)
        assert temporal.gmsd_t(wrong, video, region) == pytest.approx(0, abs=1e-6)
        assert temporal.st_ssim(wrong, video, region) < 0.9


def test_what_lies_outside_the_region_cannot_contribute():
    video, region = clip()
    imagined = faults(video)["late"]

    def ruined(inside: np.ndarray) -> np.ndarray:
        return np.where(inside[..., None], imagined, 255 - imagined)

    found = temporal.st_ssim(ruined(region), video, region)
    assert found == temporal.st_ssim(imagined, video, region)
    near = region.copy()  # a change belongs to the region of both of its frames
    near[1:] |= region[:-1]
    near[:-1] |= region[1:]
    found = temporal.gmsd_t(ruined(near), video, region)
    assert found == temporal.gmsd_t(imagined, video, region)
    assert temporal.st_ssim(ruined(region), video) < temporal.st_ssim(imagined, video)


def test_an_empty_region_is_unknown():
    video, region = clip()
    nowhere = np.zeros_like(region)
    assert np.isnan(temporal.st_ssim(video, video, nowhere))
    assert np.isnan(temporal.gmsd_t(video, video, nowhere))


@pytest.mark.parametrize(
    ("step", "direction"), [((0, 3), 0), ((2, 2), 1), ((2, 0), 2), ((-2, 2), 3), ((0, 0), 4)]
)
def test_the_windows_follow_the_truths_motion(step, direction):
    video, region = clip(step)
    found = temporal.motion_direction(video)
    inside = found[1:][region[1:] & region[:-1]]
    assert (inside == direction).mean() > 0.6  # blocks at the square's edge hold some ground
    assert (found[~region] == 4).mean() > 0.8
    assert found.shape == SIZE


def test_motion_can_be_given_where_videos_share_a_truth():
    video, _ = clip()
    late = faults(video)["late"]
    motion = temporal.motion_direction(video)
    assert temporal.st_ssim(late, video, motion=motion) == temporal.st_ssim(late, video)
    with pytest.raises(ValueError, match="motion .* must match"):
        temporal.st_ssim(late, video, motion=motion[1:])


def test_st_ssim_of_flat_clips_is_the_luminance_term():
    truth, frames = np.full((*SIZE, 3), 100, np.uint8), np.full((*SIZE, 3), 120, np.uint8)
    expected = (2 * 100 * 120 + metrics.SSIM_C1) / (100**2 + 120**2 + metrics.SSIM_C1)
    assert temporal.st_ssim(frames, truth) == pytest.approx(expected, abs=1e-4)


def test_gmsd_t_of_one_edge_worked_out_by_hand():
    """A vertical edge appears; imagined, nothing does. Two columns of the halved image see it."""
    height, width, level = 16, 32, 200
    truth = np.zeros((2, height, width, 3), np.uint8)
    truth[1, :, width // 2 :] = level
    c = temporal.GMS_CONSTANT
    low = c / (level**2 + c)  # the gradient is the step
    share = 2 / (width // 2)
    expected = (1 - low) * np.sqrt(share * (1 - share))
    assert temporal.gmsd_t(np.zeros_like(truth), truth) == pytest.approx(expected, rel=1e-4)


def test_composite_keeps_the_region_and_takes_the_truth_elsewhere():
    video, region = clip()
    black = np.zeros_like(video)
    mixed = metrics.composite(black, video, region)
    assert not mixed[region].any() and (mixed[~region] == video[~region]).all()


def test_shapes_that_do_not_fit_are_refused():
    video, region = clip()
    with pytest.raises(ValueError, match="share a shape"):
        temporal.st_ssim(video[1:], video)
    with pytest.raises(ValueError, match="at least 2 frames"):
        temporal.gmsd_t(video[:1], video[:1])
    with pytest.raises(ValueError, match="a region"):
        temporal.st_ssim(video, video, region[:, 1:])
