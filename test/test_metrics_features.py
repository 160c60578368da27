"""Scores that need feature networks: what is refused, and the order in which faults are judged."""

import shutil

import numpy as np
import pytest
import torch
from feature_networks import write_networks
from scipy.ndimage import gaussian_filter

from ego_world_model.evaluation.distribution import Distance, frechet_distance, kernel_distance
from ego_world_model.evaluation.features import (
    FEATURE_METRICS,
    NETWORKS,
    FeatureNetworks,
    MissingNetworkError,
    cosine,
)
from ego_world_model.evaluation.metrics import Estimate
from ego_world_model.evaluation.set_scores import set_scores

CLIPS, SHAPE = 6, (12, 24, 32)  # frames, height, width


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_networks(tmp_path_factory.mktemp("networks"))


@pytest.fixture(scope="module")
def networks(folder):
    return FeatureNetworks.from_folder(folder)


@pytest.fixture(scope="module")
def truth():
    """Clips of a smooth texture that slides, each its own."""
    rng = np.random.default_rng(0)
    clips = []
    for k in range(CLIPS):
        wide = gaussian_filter(rng.uniform(0, 255, (SHAPE[1], 80, 3)), (1.5, 1.5, 0))
        wide = np.clip((wide - 127) * 3 + 127 + 10 * k, 0, 255).astype(np.uint8)
        clips.append(np.stack([wide[:, 2 * t : 2 * t + SHAPE[2]] for t in range(SHAPE[0])]))
    return clips


@pytest.fixture
def region():
    mask = np.zeros(SHAPE, bool)
    mask[:, 8:16, 8:20] = True
    return [mask] * CLIPS


def test_every_metric_is_there_with_its_n_and_frechet_never_without_its_kernel(
    networks, truth, region
):
    assert networks.metrics == FEATURE_METRICS
    blurred = [gaussian_filter(clip, (0, 1, 1, 0)) for clip in truth]
    scores = set_scores(blurred, truth, {"hand": region}, networks, ["pick"] * CLIPS)
    distances = ("fid", "kid", "clip_fid", "clip_kid", "fvd", "kvd")
    means = ("lpips", "clip_image", "clip_score")
    assert set(scores) == {f"{r}_{m}" for r in ("all", "hand") for m in distances + means}
    for metric in distances:
        found = scores[f"all_{metric}"]
        rows = CLIPS if metric in ("fvd", "kvd") else CLIPS * SHAPE[0]
        assert isinstance(found, Distance) and (found.n, found.groups) == (rows, CLIPS)
        assert np.isfinite(found.value)
        assert (found.error is not None) == (metric in ("kid", "clip_kid", "kvd"))
    assert "rank 5" in scores["all_fvd"].warning  # six videos, 16 dimensions
    for metric in means:
        found = scores[f"all_{metric}"]
        assert isinstance(found, Estimate) and found.n == CLIPS and found.low <= found.high


@pytest.mark.parametrize("where", ["all", "hand"])
def test_a_copy_scores_perfectly_and_worse_faults_score_worse(networks, truth, region, where):
    def scores(fault):
        clips = [fault(clip) for clip in truth]
        found = set_scores(clips, truth, {"hand": region}, networks)
        names = ("fid", "kid", "clip_fid", "clip_kid", "fvd", "kvd")
        means = {m: found[f"{where}_{m}"].mean for m in ("lpips", "clip_image")}
        return means | {m: found[f"{where}_{m}"].value for m in names}

    copy = scores(np.copy)
    mild = scores(lambda clip: gaussian_filter(clip, (0, 0.8, 0.8, 0)))
    grave = scores(lambda clip: gaussian_filter(clip, (0, 3, 3, 0)))
    assert copy.pop("clip_image") == pytest.approx(1)
    assert 1 > mild.pop("clip_image") > grave.pop("clip_image")
    for metric, value in copy.items():
        assert value == pytest.approx(0, abs=1e-9), metric
        assert 0 < mild[metric] < grave[metric], metric


def test_frozen_and_shuffled_clips_are_told_by_the_video_network(networks, truth):
    """Shuffled frames are the same set of frames: only FVD can see it."""
    order = np.random.default_rng(1).permutation(SHAPE[0])
    shuffled = set_scores([clip[order] for clip in truth], truth, {}, networks)
    frozen = set_scores([np.repeat(c[:1], SHAPE[0], 0) for c in truth], truth, {}, networks)
    assert shuffled["all_fid"].value == pytest.approx(0, abs=1e-6)
    assert shuffled["all_fvd"].value > 1e-6
    assert frozen["all_fvd"].value > 1e-6 and frozen["all_fid"].value > 1e-6
    assert frozen["all_lpips"].mean > 0.01


def test_what_lies_outside_the_region_cannot_contribute(networks, truth, region):
    blurred = [gaussian_filter(clip, (0, 2, 2, 0)) for clip in truth]
    ruined = [
        np.where(mask[..., None], clip, 255 - clip)
        for clip, mask in zip(blurred, region, strict=True)
    ]
    kept, spoilt = (
        set_scores(clips, truth, {"hand": region}, networks, ["reach"] * CLIPS)
        for clips in (blurred, ruined)
    )
    for name in kept:
        assert (kept[name] == spoilt[name]) == name.startswith("hand_"), name


def test_frames_and_clips_without_the_region_are_left_out(networks, truth, region):
    masks = [mask.copy() for mask in region]
    masks[0][:] = False  # never
    masks[1][3:] = False  # in three frames
    black = [np.zeros_like(clip) for clip in truth]
    scores = set_scores(black, truth, {"hand": masks}, networks)
    assert scores["hand_fid"].n == 3 + (CLIPS - 2) * SHAPE[0]
    assert scores["hand_fid"].groups == scores["hand_fvd"].n == scores["hand_lpips"].n == CLIPS - 1
    nowhere = [np.zeros(SHAPE, bool)] * CLIPS
    scores = set_scores(black, truth, {"hand": nowhere}, networks)
    for metric in ("fid", "kid", "fvd"):
        assert (
            np.isnan(scores[f"hand_{metric}"].value) and "empty" in scores[f"hand_{metric}"].warning
        )
    assert scores["hand_lpips"].n == 0


def test_the_networks_are_called_as_their_publishers_do(folder, networks, truth):
    frames = truth[0]
    script = torch.jit.load(str(folder / "inception-2015-12-05.pt"))
    images = torch.from_numpy(frames.transpose(0, 3, 1, 2).copy())
    expected = script(images, return_features=True).detach().numpy()
    np.testing.assert_allclose(networks.inception(frames), expected, rtol=1e-5)
    script = torch.jit.load(str(folder / "i3d_torchscript.pt"))
    video = images.float().transpose(0, 1)[None]
    expected = script(video / 127.5 - 1, rescale=False, resize=True, return_features=True)
    np.testing.assert_allclose(
        networks.i3d(frames[None]), expected.detach().numpy(), rtol=1e-4, atol=1e-6
    )
    script = torch.jit.load(str(folder / "vgg16.pt"))
    one, other = (
        script(x.float(), resize_images=False, return_lpips=True) for x in (images, images.flip(0))
    )
    expected = (one - other).square().sum(1).detach().numpy()
    np.testing.assert_allclose(networks.lpips(frames, frames[::-1]), expected, rtol=1e-4)


def test_clip_embeddings_are_those_of_transformers(folder, networks, truth):
    from transformers import CLIPModel, CLIPProcessor

    model = CLIPModel.from_pretrained(folder / "clip").eval()
    processor = CLIPProcessor.from_pretrained(folder / "clip")
    square = np.zeros((1, 32, 32, 3), np.uint8)
    square[0, :16] = truth[0][0, :16]
    with torch.no_grad():
        out = model(**processor(text=["grasp the cup"], images=list(square), return_tensors="pt"))
    np.testing.assert_allclose(
        cosine(networks.clip_images(square), networks.clip_texts(["grasp the cup"])),
        (out.image_embeds * out.text_embeds).sum(-1).numpy(),
        atol=1e-5,
    )
    assert networks.clip_texts(["a very long instruction that clip has to cut off"]).shape == (
        1,
        12,
    )


def test_clip_sees_the_sides_of_a_wide_frame(networks):
    """CLIP's usual centre crop would drop them, and with them a hand at the side."""
    plain = np.full((1, 24, 64, 3), 90, np.uint8)
    side = plain.copy()
    side[:, :, :8] = 250
    assert cosine(networks.clip_images(plain), networks.clip_images(side))[0] < 1 - 1e-4


def test_clip_score_is_hessels_and_leaves_out_clips_without_an_instruction(networks, truth):
    texts = ["reach the cup", "", *["lift the box"] * (CLIPS - 2)]
    found = set_scores(truth, truth, {}, networks, texts, metrics=["clip_score"])["all_clip_score"]
    images = [networks.clip_images(clip) for clip in truth]
    expected = [
        2.5 * np.maximum(cosine(image, networks.clip_texts([text])), 0).mean()
        for image, text in zip(images, texts, strict=True)
        if text
    ]
    assert found.n == CLIPS - 1 and found.mean == pytest.approx(np.mean(expected))
    with pytest.raises(ValueError, match="instructions"):
        set_scores(truth, truth, {}, networks, metrics=["clip_score"])


def test_distances_are_those_of_the_features_by_clip(networks, truth):
    blurred = [gaussian_filter(clip, (0, 2, 2, 0)) for clip in truth]
    scores = set_scores(blurred, truth, {}, networks, metrics=["fid"])
    sets = [np.concatenate([networks.inception(c) for c in clips]) for clips in (blurred, truth)]
    clips = np.repeat(np.arange(CLIPS), SHAPE[0])
    assert scores == {
        "all_fid": frechet_distance(*sets, clips),
        "all_kid": kernel_distance(*sets, clips),
    }


def test_clips_of_one_episode_count_as_one_in_errors_and_intervals(networks, truth):
    blurred = [gaussian_filter(clip, (0, 2, 2, 0)) for clip in truth]
    metrics = ["fid", "lpips"]
    apart = set_scores(blurred, truth, {}, networks, metrics=metrics)
    both = [[*clips, *clips] for clips in (blurred, truth)]
    episodes = [*range(CLIPS), *range(CLIPS)]
    doubled = set_scores(*both, {}, networks, groups=episodes, metrics=metrics)
    for metric in ("all_fid", "all_kid"):
        assert doubled[metric].n == 2 * apart[metric].n
        assert doubled[metric].groups == apart[metric].groups == CLIPS
    for value in ("value", "error"):
        expected = getattr(apart["all_kid"], value)
        assert getattr(doubled["all_kid"], value) == pytest.approx(expected)
    assert doubled["all_lpips"].low == pytest.approx(apart["all_lpips"].low)
    with pytest.raises(ValueError, match="groups"):
        set_scores(blurred, truth, {}, networks, groups=[1])


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_metric_without_its_network_is_refused_naming_the_file(folder, tmp_path, truth, name):
    """No other network stands in, and without asking for it the others are measured."""
    network = NETWORKS[name]
    some = tmp_path / "some"
    shutil.copytree(folder, some, ignore=shutil.ignore_patterns(network.file))
    networks = FeatureNetworks.from_folder(some)
    assert not set(network.metrics) & set(networks.metrics) and len(networks.metrics) >= 3
    for metric in network.metrics:
        with pytest.raises(MissingNetworkError, match=network.file) as refusal:
            set_scores(truth, truth, {}, networks, ["a"] * CLIPS, metrics=[metric])
        assert network.published in str(refusal.value) and metric in str(refusal.value)
    measured = set_scores(truth[:2], truth[:2], {}, networks, metrics=networks.metrics[:1])
    assert not {f"all_{metric}" for metric in network.metrics} & set(measured)


def test_a_folder_without_any_network_is_refused_naming_all_files(tmp_path):
    with pytest.raises(MissingNetworkError) as refusal:
        FeatureNetworks.from_folder(tmp_path)
    assert all(network.file in str(refusal.value) for network in NETWORKS.values())


def test_files_that_are_not_what_their_name_says_are_refused(folder, tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "vgg16.pt")  # a state dict
    with pytest.raises(ValueError, match="vgg16.pt is not a TorchScript file"):
        FeatureNetworks.from_folder(tmp_path)
    shutil.copy(folder / "vgg16.pt", tmp_path / "vgg16.pt")
    shutil.copy(folder / "vgg16.pt", tmp_path / "i3d_torchscript.pt")
    with pytest.raises(ValueError, match="i3d_torchscript.pt takes no argument rescale, resize"):
        FeatureNetworks.from_folder(tmp_path)
    (tmp_path / "i3d_torchscript.pt").unlink()
    (tmp_path / "clip").mkdir()
    with pytest.raises(ValueError, match="not usable as CLIP"):
        FeatureNetworks.from_folder(tmp_path)


def test_a_network_that_gives_no_feature_vectors_is_refused(tmp_path, truth):
    class Maps(torch.nn.Module):
        def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
            return img.float()

    torch.jit.script(Maps()).save(str(tmp_path / "inception-2015-12-05.pt"))
    networks = FeatureNetworks.from_folder(tmp_path)
    with pytest.raises(ValueError, match="inception-2015-12-05.pt gave features"):
        networks.inception(truth[0])


def test_clips_that_do_not_fit_are_refused(networks, truth, region):
    with pytest.raises(ValueError, match="at least 2 clips"):
        set_scores(truth[:1], truth[:1], {}, networks)
    with pytest.raises(ValueError, match="of one size"):
        set_scores(truth[:-1] + [truth[0][:5]], truth, {}, networks)
    with pytest.raises(ValueError, match="region 'hand'"):
        set_scores(truth, truth, {"hand": region[1:]}, networks)
    with pytest.raises(ValueError, match="leave it out"):
        set_scores(truth, truth, {"all": region}, networks)
    with pytest.raises(ValueError, match="at least 10 frames"):
        short = [clip[:9] for clip in truth]
        set_scores(short, short, {}, networks, metrics=["fvd"])
    with pytest.raises(ValueError, match="unknown metrics"):
        networks.require(["fdi"])
