"""Recordings through real lenses: a dataset holds what an ideal pinhole would have seen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags")
pytest.importorskip("mujoco")

import bags
from bags import DEPTH_TOPIC, IMAGE_TOPIC, INFO_TOPIC, Message, joint_state, stamp, write_bag
from lenses import LENSES, Lens, View, apart
from recordings import KINEMATICS, ROBOT, check_sound, command, report_of

from ego_world_model.camera import PinholeCamera
from ego_world_model.data import DatasetReader, DatasetSpec, Episode
from ego_world_model.data.layout import MODALITY, read_json, write_json
from ego_world_model.hands import SLOTS_PER_HAND
from ego_world_model.simulation import MASK_CLASSES

LEFT, RIGHT = MASK_CLASSES.index("left_hand"), MASK_CLASSES.index("right_hand")
FAST = ("--fps", 10, "--min-seconds", 0.5, "--storage", "image")
FRAMES = np.arange(6) / 10
STILL = dict(zip(ROBOT.joint_names, apart(ROBOT).tolist(), strict=True))


def painted(view: View) -> np.ndarray:
    """(H, W, 3): the left hand's pixels red, the right hand's green, the rest blue."""
    hands = [view.masks == LEFT, view.masks == RIGHT]
    return 255 * np.stack([*hands, ~(hands[0] | hands[1])], axis=-1).astype(np.uint8)


def recorded(path: Path, view: View, lenses: list[PinholeCamera]) -> Path:
    """A bag of a robot that stands still before a camera whose lens is ``lenses[k]`` at frame k."""
    millimetres = np.round(view.depth * 1e3).clip(0, 65535).astype(np.uint16)
    messages: list[Message] = []
    for t, lens in zip(FRAMES, lenses, strict=True):
        messages += [
            (t + 0.018, INFO_TOPIC, bags.camera_info(stamp(t), lens)),
            (t + 0.019, DEPTH_TOPIC, bags.depth_image(stamp(t), millimetres)),
            (t + 0.02, IMAGE_TOPIC, bags.raw_image(stamp(t), painted(view))),
        ]
    times = np.arange(-2, 35) / 50
    messages += [(t, "/joint_states", joint_state(stamp(t), STILL)) for t in times]
    return write_bag(path, messages)


def on_own_hand(episode: Episode, camera: PinholeCamera) -> float:
    """Share of the finger joints whose pixel through ``camera`` shows their own hand."""
    pixels = camera.project(episode.hand_positions[0])
    seen = np.flatnonzero(episode.hand_valid[0] & camera.contains(pixels))
    fingers = [s for s in seen if s < 2 * SLOTS_PER_HAND and s % SLOTS_PER_HAND]
    column, row = np.round(pixels[fingers]).astype(int).T
    side = (np.array(fingers) >= SLOTS_PER_HAND).astype(int)  # the channel that shows it
    assert len(fingers) > 10
    return float((episode.images[0][row, column, side] > 127).mean())


@pytest.mark.parametrize("model", ["plumb_bob", "equidistant"])
def test_hands_lie_on_the_stored_pictures_of_a_lens(tmp_path, model):
    """Pictures and depth are rectified, the stored camera is a pinhole, the lens is noted."""
    lens = LENSES[model]
    with Lens(ROBOT, lens) as camera:
        bent, ideal = camera.see(apart(ROBOT))
    bag = recorded(tmp_path / "bag", bent, [lens] * len(FRAMES))
    done = command("record", "--bag", bag, "--out", tmp_path / "out", *FAST)
    assert done.exit_code == 0, done.output
    episode = check_sound(tmp_path / "out").episode(0, depth=True)
    assert episode.camera == lens.ideal() and len(episode) == len(FRAMES)
    assert on_own_hand(episode, episode.camera) > 0.9
    bent_episode = replace(episode, images=np.repeat(painted(bent)[None], len(FRAMES), axis=0))
    assert on_own_hand(bent_episode, episode.camera) < 0.7, "as recorded, they would miss"
    # Depth lies where the picture's pinhole sees it.
    known = episode.depth[0] > 0
    error = np.abs(episode.depth[0] * 1e-3 - ideal.depth)[known]
    assert known.mean() > 0.8 and np.median(error) < 0.005 and (error < 0.03).mean() > 0.9
    noted = episode.metadata["lens"]
    assert PinholeCamera(**noted | {"distortion": tuple(noted["distortion"])}) == lens
    (note,) = report_of(tmp_path / "out")["bag"]["tally"]["notes"]
    assert note == f"pictures are rectified: a {model} lens took them"


def test_a_smaller_dataset_and_a_calibration_file_of_a_fisheye(tmp_path):
    """--camera-info takes every lens model, as camera_calibration writes it; --size comes after."""
    lens = LENSES["equidistant"]
    with Lens(ROBOT, lens) as camera:
        bent, _ = camera.see(apart(ROBOT))
    bag = recorded(tmp_path / "bag", bent, [lens.ideal()] * len(FRAMES))
    calibration = tmp_path / "fisheye.yaml"
    calibration.write_text(
        f"image_width: {lens.width}\nimage_height: {lens.height}\n"
        f"camera_matrix: {{rows: 3, cols: 3, data: {lens.matrix.ravel().tolist()}}}\n"
        "distortion_model: equidistant\n"
        f"distortion_coefficients: {{rows: 1, cols: 4, data: {list(lens.distortion)}}}\n"
    )
    words = ("--camera-info", calibration, "--size", "160x120")
    done = command("import", "bag", bag, "--out", tmp_path / "out", *FAST, *words)
    assert done.exit_code == 0, done.output
    episode = check_sound(tmp_path / "out").episode(0)
    assert episode.camera == lens.ideal().resized(160, 120)
    assert on_own_hand(episode, episode.camera) > 0.9


def test_another_lens_begins_another_episode(tmp_path):
    """Each episode's metadata names the one lens that took it."""
    first = replace(bags.CAMERA, distortion=(-0.1, 0.0, 0.0, 0.0, 0.0))
    second = replace(bags.CAMERA, distortion=(-0.1, 0.02, 0.0, 0.0, 0.0))
    size = (bags.HEIGHT, bags.WIDTH)
    view = View(np.zeros((*size, 3), np.uint8), np.ones(size, np.float32), np.zeros(size, np.uint8))
    bag = recorded(tmp_path / "bag", view, [first] * 3 + [second] * 3)
    short = ("--fps", 10, "--min-seconds", 0.2, "--storage", "image")
    done = command("import", "bag", bag, "--out", tmp_path / "out", *short)
    assert done.exit_code == 0, done.output
    reader = check_sound(tmp_path / "out")
    assert reader.lengths.tolist() == [3, 3]
    lenses = [tuple(record.metadata["lens"]["distortion"]) for record in reader.records]
    assert lenses == [first.distortion, second.distortion]
    assert reader.episode(0).camera == reader.episode(1).camera == bags.CAMERA


def test_a_lens_model_that_is_not_known_rejects_the_bag_by_name(tmp_path):
    messages = bags.camera_messages(FRAMES, info=False)
    odd = replace(bags.camera_info(stamp(0.0)), distortion_model="double_sphere", d=np.ones(2))
    messages += [(0.0, INFO_TOPIC, odd)] + bags.joint_messages(np.arange(-2, 35) / 50)
    done = command("import", "bag", write_bag(tmp_path / "bag", messages), "--out", tmp_path / "o")
    assert done.exit_code == 1
    reason = report_of(tmp_path / "o")["bag"]["reason"]
    assert "'double_sphere' is not supported, only plumb_bob, rational_polynomial" in reason


def test_datasets_of_bent_pictures_are_neither_written_nor_read(tmp_path):
    """Everything that reads a dataset projects through pinholes: a lens would misplace hands."""
    lens = replace(bags.CAMERA, distortion=(-0.1, 0.0, 0.0, 0.0))
    robot = KINEMATICS.robot
    spec = DatasetSpec(
        embodiment=robot.name,
        fps=10.0,
        camera=bags.CAMERA,
        joint_names=robot.joint_names,
        slot_names=("a",),
    )
    with pytest.raises(ValueError, match=r"pictures of ideal pinholes.*plumb_bob.*rectify"):
        replace(spec, camera=lens).modality()
    bag = write_bag(
        tmp_path / "bag",
        bags.camera_messages(FRAMES) + bags.joint_messages(np.arange(-2, 35) / 50),
    )
    out = tmp_path / "out"
    assert command("import", "bag", bag, "--out", out, *FAST).exit_code == 0
    modality = read_json(out / MODALITY)
    assert modality["camera"]["intrinsics"]["nominal"][4:] == [0.0] * 5
    modality["camera"]["intrinsics"]["nominal"][4] = -0.1  # as imports of before wrote them
    write_json(out / MODALITY, modality)
    with pytest.raises(ValueError, match="lens distortion.*import the recordings again"):
        DatasetReader(out)
