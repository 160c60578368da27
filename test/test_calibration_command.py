"""`ego-world-model calibrate`: from pictures and joint states to what the launch files take."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mounts import diverse_poses, pixels
from support import node, wait_until
from typer.testing import CliRunner, Result

from ego_world_model import cli
from ego_world_model.bringup import BringupError, load_bringup, resolve
from ego_world_model.calibrate import read_frames
from ego_world_model.calibration import CalibrationError, corrected_mount, read_mount
from ego_world_model.calibration.annotations import Annotations
from ego_world_model.calibration.frames import choose_diverse, read_image_folder
from ego_world_model.data import DatasetWriter, Episode
from ego_world_model.data.importers.camera_file import read_camera_file
from ego_world_model.embodiment import load_embodiment
from ego_world_model.hands import NUM_SLOTS, SLOT_NAMES
from ego_world_model.kinematics import HandKinematics
from ego_world_model.media import write_png

ROBOT = load_embodiment("g1_dex3")
MOUNT = corrected_mount(ROBOT.camera_pose, np.radians([3.0, -2.0, 4.0]), [0.02, 0.01, -0.015])


@pytest.fixture(scope="module")
def fk() -> HandKinematics:
    return HandKinematics(ROBOT)


def write_folder(folder: Path, poses: list[np.ndarray], **more: Any) -> Path:
    """An image folder as a user would make it; the pictures' content does not matter here."""
    entries = []
    for number, q in enumerate(poses):
        write_png(folder / f"{number:04d}.png", np.full((480, 640, 3), number, np.uint8))
        joints = dict(zip(ROBOT.joint_names, q.tolist()))
        entries.append({"image": f"{number:04d}.png", "joints": joints})
    (folder / "frames.json").write_text(json.dumps({"frames": entries, **more}))
    return folder


@pytest.fixture
def folder(fk, tmp_path) -> Path:
    return write_folder(tmp_path / "pictures", diverse_poses(fk, 12))


def annotate(path: Path, fk: HandKinematics, folder: Path, noise: float = 0.0) -> Annotations:
    """What an annotator of the folder would leave."""
    kept, rng = Annotations(path, ROBOT.name), np.random.default_rng(0)
    for frame in read_image_folder(folder, ROBOT):
        for slot, pixel in pixels(fk, frame.q, MOUNT, frame.camera).items():
            clicked = np.array(pixel) + noise * rng.normal(size=2)
            if frame.camera.contains(clicked):
                kept.set(frame.name, slot, tuple(clicked.tolist()))
    return kept


def run(*words: object) -> Result:
    return CliRunner().invoke(cli.app, ["calibrate", *map(str, words)])


# ------------------------------------------------------------------------------ annotations


def test_annotations_survive_the_session_and_can_be_undone(tmp_path):
    """Every change is in the file at once; undo goes back step by step, removals included."""
    path = tmp_path / "new" / "annotations.json"
    kept = Annotations(path, "g1_dex3")
    kept.set("a", "left_wrist", (1.25, 2.0))
    kept.set("a", "left_wrist", (3.0, 4.0))
    kept.set("b", "left_wrist", (5.0, 6.0))
    kept.set("b", "left_wrist", None)
    again = Annotations(path, "g1_dex3")
    assert again.of("a") == {"left_wrist": (3.0, 4.0)} and again.frames == ("a",)
    assert kept.undo() == ("b", "left_wrist") and kept.of("b") == {"left_wrist": (5.0, 6.0)}
    assert kept.undo() == ("b", "left_wrist") and kept.of("b") == {}
    assert kept.undo() == ("a", "left_wrist")
    assert Annotations(path, "g1_dex3").of("a") == {"left_wrist": (1.25, 2.0)}
    assert kept.undo() == ("a", "left_wrist") and kept.undo() is None and len(kept) == 0


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "is no JSON"),
        ('{"robot": "h1", "frames": {}}', "are of robot 'h1', not 'g1_dex3'"),
        ('{"robot": "g1_dex3"}', "an annotation file is"),
        ('{"robot": "g1_dex3", "frames": {"a": {"left_wrist": [1]}}}', "left_wrist must be"),
        ('{"robot": "g1_dex3", "frames": {"a": {"left_wrist": [1, "2"]}}}', "left_wrist must be"),
    ],
)
def test_broken_annotation_files_are_named(tmp_path, text, words):
    path = tmp_path / "annotations.json"
    path.write_text(text)
    with pytest.raises(CalibrationError, match="annotations.json.*" + words):
        Annotations(path, "g1_dex3")


# ------------------------------------------------------------------------------ frames


def test_intrinsics_come_from_the_file_or_the_robot(fk, tmp_path):
    poses = diverse_poses(fk, 1)
    nominal = read_image_folder(write_folder(tmp_path / "a", poses), ROBOT)[0]
    assert nominal.camera == ROBOT.camera
    np.testing.assert_allclose(nominal.q, poses[0])
    given = dict(width=640, height=480, fx=500, fy=501, cx=310, cy=240, distortion=[0.1, 0, 0, 0])
    frame = read_image_folder(write_folder(tmp_path / "b", poses, camera=given), ROBOT)[0]
    assert (frame.camera.fx, frame.camera.distortion) == (500.0, (0.1, 0.0, 0.0, 0.0))


def test_mistakes_in_an_image_folder_name_file_and_field(fk, tmp_path):
    poses = diverse_poses(fk, 2)
    path = write_folder(tmp_path / "p", poses) / "frames.json"
    sound = json.loads(path.read_text())
    joints = sound["frames"][1]["joints"]

    def refused(text: Any) -> str:
        path.write_text(text if isinstance(text, str) else json.dumps(text))
        with pytest.raises(CalibrationError) as error:
            read_image_folder(path.parent, ROBOT)
        assert str(path) in str(error.value)
        return str(error.value)

    def second(**change: Any) -> dict[str, Any]:
        return {"frames": [sound["frames"][0], {**sound["frames"][1], **change}]}

    assert "is no JSON" in refused("[")
    assert "'frames' must list" in refused({"frames": []})
    assert "frames[1]: picture" in refused(second(image="absent.png"))
    short = {k: v for k, v in joints.items() if k != "left_elbow_joint"}
    assert "frames[1].joints lacks left_elbow_joint" in refused(second(joints=short))
    assert "no joint 'elbow'" in refused(second(joints={**joints, "elbow": 0.0}))
    assert "left_elbow_joint" in refused(
        second(joints={**joints, "left_elbow_joint": float("nan")})
    )
    assert "fx, fy" in refused({**sound, "camera": {"width": 640, "height": 480}})
    path.unlink()
    with pytest.raises(CalibrationError, match="frames.json is missing"):
        read_image_folder(path.parent, ROBOT)


def test_diverse_frames_are_chosen_and_blind_ones_left_out(fk):
    """Of a hundred nearly equal frames and three different ones, the different ones are taken."""
    base, rng = ROBOT.neutral, np.random.default_rng(0)
    q = np.repeat(base[None], 100, axis=0) + rng.normal(0, 1e-3, (100, len(base)))
    q[[10, 50, 90]] = diverse_poses(fk, 3)
    q[70, ROBOT.indices(("left_shoulder_pitch_joint", "right_shoulder_pitch_joint"))] = 1.5
    chosen = choose_diverse(fk, q, [ROBOT.camera] * 100, 4)
    assert {10, 50, 90} < set(chosen) and 70 not in chosen and len(chosen) == 4
    with pytest.raises(CalibrationError, match="no frame shows 8 joints"):
        choose_diverse(fk, q[70:71], [ROBOT.camera], 4)


def test_a_dataset_of_ours_is_a_source(fk, tmp_path):
    """Frames are named by episode and number, with each episode's intrinsics and joint states."""
    pytest.importorskip("mujoco")
    words = "simulate --episodes 2 --seconds 2 --fps 5 --workers 1 --no-depth --out"
    made = CliRunner().invoke(cli.app, [*words.split(), str(tmp_path / "d")])
    assert made.exit_code == 0, made.output
    frames = read_frames(tmp_path / "d", fk, count=5, episodes=[1])
    assert len(frames) == 5 and all(f.name.startswith("episode_000001/frame_") for f in frames)
    from ego_world_model.data.reader import DatasetReader

    episode = DatasetReader(tmp_path / "d").episode(1)
    k = int(frames[2].name[-6:])
    np.testing.assert_array_equal(frames[2].image, episode.images[k])
    np.testing.assert_allclose(frames[2].q, episode.state[k], atol=1e-7)
    kept = read_frames(tmp_path / "d", fk, count=1, annotated=(frames[0].name,))
    assert frames[0].name in [f.name for f in kept], "annotated frames are shown again"
    with pytest.raises(CalibrationError, match="has 2 episodes"):
        read_frames(tmp_path / "d", fk, count=5, episodes=[2])


# ------------------------------------------------------------------------------ the command


def test_command_solves_annotations_and_writes_parameters_and_report(fk, folder, tmp_path):
    out = tmp_path / "calibration.yaml"
    annotate(tmp_path / "calibration_annotations.json", fk, folder, noise=1.0)
    result = run(folder, "--out", out, "--no-page")
    assert result.exit_code == 0, result.output
    for words in ("RMS", "translation x", "left_wrist", "constrain every unknown", "calibration:="):
        assert words in result.output
    mount = read_mount(out, ROBOT)
    assert mount.link == MOUNT.link
    assert np.linalg.norm(mount.translation - MOUNT.translation) < 2e-3
    report = json.loads((tmp_path / "calibration_report.json").read_text())
    assert report["constrained"] and report["rms_px"] == pytest.approx(1.4, abs=0.2)
    np.testing.assert_allclose(report["mount"], mount.matrix, atol=2e-6)
    assert np.shape(report["covariance"]) == (6, 6)
    assert report["by_joint"]["left_wrist"]["count"] > 3


def test_command_refines_intrinsics_into_a_camera_info_file(fk, folder, tmp_path):
    out = tmp_path / "c.yaml"
    annotate(tmp_path / "c_annotations.json", fk, folder)
    words = ("--no-page", "--intrinsics", "--joint", "left_elbow_joint", "--loss", "huber")
    result = run(folder, "--out", out, *words)
    assert result.exit_code == 0, result.output
    info = yaml.safe_load((tmp_path / "c_camera_info.yaml").read_text())
    assert info["camera_matrix"]["data"][0] == pytest.approx(ROBOT.camera.fx, rel=1e-3)
    assert (info["image_width"], info["distortion_model"]) == (640, "plumb_bob")
    report = json.loads((tmp_path / "c_report.json").read_text())
    assert set(report["joint_offsets"]) == {"left_elbow_joint"}


def test_refined_intrinsics_of_a_rectified_dataset_keep_the_lens(fk, tmp_path):
    """Annotations are of rectified pictures, a driver's CameraInfo is of those that it takes."""
    camera = ROBOT.camera.resized(320, 240)
    lens = replace(camera, distortion=(-0.02, 0.01, -0.004, 0.0), distortion_model="equidistant")
    poses, out = np.stack(diverse_poses(fk, 12)), tmp_path / "c.yaml"
    episode = Episode(
        fps=10.0,
        images=np.zeros((len(poses), 240, 320, 3), np.uint8),
        state=poses,
        action=poses,
        hand_positions=np.zeros((len(poses), NUM_SLOTS, 3)),
        hand_valid=np.zeros((len(poses), NUM_SLOTS), bool),
        slot_names=SLOT_NAMES,
        camera_pose=np.tile(np.eye(4), (len(poses), 1, 1)),
        camera=camera,
        task="stand",
        embodiment=ROBOT.name,
        joint_names=ROBOT.joint_names,
        metadata={"lens": asdict(lens.resized(640, 480))},  # as an import with --size leaves it
    )
    with DatasetWriter(
        tmp_path / "set",
        embodiment=ROBOT.name,
        fps=10.0,
        camera=camera,
        joint_names=ROBOT.joint_names,
        slot_names=SLOT_NAMES,
        masks=False,
        depth=False,
    ) as writer:
        writer.write(episode)
    kept = Annotations(tmp_path / "c_annotations.json", ROBOT.name)
    for frame in read_frames(tmp_path / "set", fk, count=12):
        for slot, pixel in pixels(fk, frame.q, MOUNT, camera).items():
            if camera.contains(pixel):
                kept.set(frame.name, slot, pixel)
    result = run(tmp_path / "set", "--out", out, "--no-page", "--intrinsics")
    assert result.exit_code == 0, result.output
    assert read_mount(out, ROBOT).translation == pytest.approx(MOUNT.translation, abs=1e-3)
    info = read_camera_file(tmp_path / "c_camera_info.yaml")
    assert (info.distortion_model, info.distortion) == (lens.distortion_model, lens.distortion)
    assert (info.width, info.fx) == (320, pytest.approx(camera.fx, rel=1e-3))


def test_command_says_what_is_missing(fk, folder, tmp_path):
    def refused(*words: object) -> str:
        result = run(*words, "--no-page")
        assert result.exit_code in (1, 2) and "Traceback" not in result.output
        return " ".join(result.stderr.split())

    assert "0 annotated pixels" in refused(folder, "--out", tmp_path / "a.yaml")
    assert not (tmp_path / "a.yaml").exists()
    assert "is no folder" in refused(tmp_path / "absent")
    assert "--episode is for datasets" in refused(folder, "--episode", 0)
    kept = annotate(tmp_path / "b_annotations.json", fk, folder)
    kept.set("other.png", "left_wrist", (1.0, 1.0))
    assert "annotates other.png, no frame" in refused(folder, "--out", tmp_path / "b.yaml")


# ------------------------------------------------------------------------------ on the robot


@pytest.fixture
def calibration(fk, folder, tmp_path) -> Path:
    annotate(tmp_path / "calibration_annotations.json", fk, folder)
    assert run(folder, "--out", tmp_path / "calibration.yaml", "--no-page").exit_code == 0
    return tmp_path / "calibration.yaml"


def test_launch_argument_gives_the_calibration_to_the_nodes(calibration, root):
    """After the parameter file, so that it overrides the nominal mount there."""
    specs = resolve(load_bringup("g1"), {"calibration": str(calibration)}, share=root)
    for spec in specs:
        if spec.name in ("hand_kinematics", "world_model"):
            assert spec.parameter_files[-1] == str(calibration) and len(spec.parameter_files) == 2
            words = spec.ros_arguments()
            first, second = (i for i, word in enumerate(words) if word == "--params-file")
            assert words[first + 1].endswith("g1.yaml") and words[second + 1] == str(calibration)
    with pytest.raises(BringupError, match="absent.yaml does not exist"):
        resolve(load_bringup("g1"), {"calibration": "absent.yaml"}, share=root)


def test_node_starts_with_the_written_parameters(calibration, ros_node):
    from rcl_interfaces.srv import GetParameters

    names = ["camera_correction_xyz", "camera_correction_rpy"]
    client = ros_node.create_client(GetParameters, "/hand_kinematics/get_parameters")
    with node("hand_kinematics_node", parameter_file=calibration) as process:
        started = lambda: client.service_is_ready() or not process.alive  # noqa: E731
        wait_until(started, timeout=60, what="hand_kinematics starts")
        future = client.call_async(GetParameters.Request(names=names))
        wait_until(future.done, timeout=20, what="the parameters arrive")
        xyz, rpy = (list(v.double_array_value) for v in future.result().values)
    np.testing.assert_allclose(xyz, [0.02, 0.01, -0.015], atol=1e-6)
    section = yaml.safe_load(calibration.read_text())["/**/world_model"]["ros__parameters"]
    assert section == {"camera_correction_xyz": xyz, "camera_correction_rpy": rpy}


def test_broken_calibration_files_are_refused(tmp_path):
    path = tmp_path / "c.yaml"
    for text in ("{}", "[1]", "/**/hand_kinematics:\n  ros__parameters: {}", "a: ["):
        path.write_text(text)
        with pytest.raises(CalibrationError, match="c.yaml is no calibration"):
            read_mount(path, ROBOT)
