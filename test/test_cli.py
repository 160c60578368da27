"""The command line: fast help, clear errors, and an imagined video from files alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from ego_world_model import cli
from ego_world_model.camera import PinholeCamera
from ego_world_model.hands import EXTRA_SLOTS, HandTrajectory
from ego_world_model.imagine import find_camera
from ego_world_model.media import read_image, read_video, write_png
from ego_world_model.trajectory_file import TrajectoryFile, load_trajectory, save_trajectory

SIZE = (160, 120)
CAMERA = PinholeCamera(*SIZE, 150.0, 150.0, 79.5, 59.5)


def run(*words: object) -> Result:
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=Path(__file__).parent,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1"},
    )


def refused(result: Result) -> str:
    """The message of a run that failed as a user's mistake should: on stderr, no traceback."""
    assert result.exit_code in (1, 2), result.output
    assert not isinstance(result.exception, ValueError), "the error reached the user unprepared"
    text = result.stderr
    assert "Traceback" not in text
    return " ".join(text.replace("│", " ").split())


# ------------------------------------------------------------------------------ the program


def test_help_is_quick_and_loads_nothing_heavy():
    """`--help` lists every command in half a second of processor time, imports included."""
    program = (
        "import sys, time\n"
        "from ego_world_model.cli import app\n"
        "try:\n    app(['--help'], prog_name='ego-world-model')\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'mujoco', 'rclpy', 'pinocchio', 'numpy', 'av'} & set(sys.modules)\n"
        "print('heavy', sorted(heavy), 'seconds', time.process_time())\n"
    )
    seconds = []
    for _ in range(3):  # a busy machine makes even processor time vary
        done = python(program)
        assert done.returncode == 0, done.stderr
        for command in cli.COMMANDS:
            assert f" {command} " in done.stdout
        assert "heavy []" in done.stdout
        seconds.append(float(done.stdout.rsplit(maxsplit=1)[1]))
        if seconds[-1] < 0.5:
            return
    raise AssertionError(f"help took {seconds} s of processor time")


@pytest.mark.parametrize("name", list(cli.COMMANDS))
def test_every_listed_command_exists(name: str):
    result = run(name, "--help")
    assert result.exit_code == 0, result.output
    assert "Usage" in result.output and name in result.output


def test_misspelt_command_gets_a_suggestion():
    message = refused(run("imagin"))
    assert "imagin" in message and "imagine" in message.replace("'imagin'", "")


@pytest.mark.parametrize(
    "module, remedy",
    [
        ("rclpy", "script/setup"),
        ("ego_world_model.msg", "interfaces are not built"),
        ("pinocchio", "pip install pin"),
        ("viser", "pip install viser"),
    ],
)
def test_missing_requirement_is_one_line_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, module: str, remedy: str
):
    (tmp_path / "needy.py").write_text(f"import {module}\ndef needy(): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(cli.COMMANDS, "needy", cli.LazyCommand("needy", "needy", "Needs much."))
    try:
        message = refused(run("needy"))
    finally:
        sys.modules.pop("needy", None)
    assert module in message and remedy in message


def test_a_broken_module_of_our_own_is_not_called_a_missing_requirement(
    monkeypatch: pytest.MonkeyPatch,
):
    """A bug must look like a bug."""
    entry = cli.LazyCommand("ego_world_model.no_such_module", "app", "Broken.")
    monkeypatch.setitem(cli.COMMANDS, "broken", entry)
    assert isinstance(run("broken").exception, ModuleNotFoundError)


def test_version():
    assert run("--version").output.startswith("ego-world-model ")


# ---------------------------------------------------------------------------------- imagine


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model with random weights and the shipped one's clock, slots and size."""
    torch = pytest.importorskip("torch")
    from ego_world_model.world_model import WorldModel, WorldModelConfig
    from ego_world_model.world_model.checkpoint import PartSpec

    torch.manual_seed(0)
    transformer = dict(num_layers=1, num_attention_heads=2, attention_head_dim=16, ffn_dim=32)
    wan = dict(latent_channels=4, channels=16, transformer=transformer)
    model = WorldModel(
        WorldModelConfig(
            fps=10.0,
            num_frames=17,
            height=96,
            width=128,
            extra_slots=EXTRA_SLOTS,
            autoencoder=PartSpec(name="frame", kwargs=dict(latent_channels=4, channels=(8, 8, 8))),
            backbone=PartSpec(name="wan", kwargs=wan),
            steps=2,
        )
    )
    for parameter in model.parameters():
        if not parameter.any():  # layers that start as the identity would ignore the motion
            torch.nn.init.normal_(parameter, std=0.05)
    folder = tmp_path_factory.mktemp("checkpoint")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    """Options of a valid run, but for the model."""
    rng = np.random.default_rng(0)
    write_png(tmp_path / "frame.png", rng.integers(0, 255, (SIZE[1], SIZE[0], 3), np.uint8))
    save_trajectory(tmp_path / "hands.npz", motion(), camera=CAMERA)
    return {
        "--image": tmp_path / "frame.png",
        "--trajectory": tmp_path / "hands.npz",
        "--out": tmp_path / "new" / "rollout.mp4",
    }


def motion(*, seconds: float = 2.0, slots: int = 46, towards: float = 0.1) -> HandTrajectory:
    """Both hands wander right, or left where ``towards`` is negative."""
    times = np.arange(round(seconds * 15) + 1) / 15
    rng = np.random.default_rng(1)
    start = rng.uniform((-0.15, -0.1, 0.4), (0.15, 0.1, 0.5), (slots, 3))
    positions = start + (towards * times)[:, None, None] * np.array([1.0, 0, 0])
    return HandTrajectory(times, positions)


def imagine(files: dict[str, Any], checkpoint: Path | str, **more: object) -> Result:
    words: list[object] = ["imagine", "--model", checkpoint]
    for option, value in {**files, **{f"--{name}": value for name, value in more.items()}}.items():
        words += [option, value]
    return run(*words)


def test_imagine_writes_a_video_and_a_strip(files, checkpoint):
    """17 frames at the model's rate and size; the strip has joints drawn in its second row."""
    result = imagine(files, checkpoint, seed=7)
    assert result.exit_code == 0, result.output
    frames, fps = read_video(files["--out"])
    assert frames.shape == (17, 96, 128, 3) and fps == pytest.approx(10)
    sheet = read_image(files["--out"].with_suffix(".png"))
    assert sheet.shape[1] > 9 * 256 and sheet.shape[0] > 2 * 192
    upper, lower = sheet[-386:-194], sheet[-192:]
    assert np.abs(upper.astype(int) - lower).max() > 100, "joints are drawn"
    for part in ("rollout.mp4", "rollout.png", "16 imagined frames", "seed 7", "denoise"):
        assert part in result.output


def test_same_seed_same_video_and_another_motion_another_video(files, checkpoint, tmp_path):
    def frames(**more: object) -> np.ndarray:
        result = imagine(files, checkpoint, seed=3, **more)
        assert result.exit_code == 0, result.output
        return read_video(files["--out"])[0].astype(int)

    first = frames()
    np.testing.assert_array_equal(first, frames())
    files["--trajectory"] = save_trajectory(
        tmp_path / "left.npz", motion(towards=-0.1), camera=CAMERA
    )
    assert np.abs(first[1:] - frames()[1:]).max() > 2


def test_intrinsics_by_option_or_file_mean_the_same(tmp_path):
    """Also where the file's are for the same picture at another size."""
    picture = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    names = tmp_path / "frame.png", tmp_path / "hands.npz"
    for camera, option in (
        (CAMERA, None),
        (CAMERA.resized(320, 240), None),
        (None, "150,150,79.5,59.5"),
        (CAMERA.resized(40, 40), "150, 150, 79.5, 59.5"),  # the option wins
    ):
        found = find_camera(TrajectoryFile(motion(), camera), picture, *names, option)
        np.testing.assert_allclose(found.matrix, CAMERA.matrix, atol=1e-9)
        assert (found.width, found.height) == SIZE


def test_trajectory_without_arms_is_accepted(files, checkpoint, tmp_path):
    """42 slots suffice; the model's extra slots count as unknown."""
    files["--trajectory"] = save_trajectory(
        tmp_path / "hands_only.npz", motion(slots=42), camera=CAMERA
    )
    assert imagine(files, checkpoint).exit_code == 0


def test_mistakes_name_file_field_and_remedy(files, checkpoint, tmp_path):
    short = save_trajectory(tmp_path / "short.npz", motion(seconds=1.0), camera=CAMERA)
    bare = save_trajectory(tmp_path / "bare.npz", motion())
    wide = save_trajectory(tmp_path / "wide.npz", motion(), camera=CAMERA.resized(320, 120))
    np.savez(tmp_path / "half.npz", positions=motion().positions[:, :21], fps=15)
    (tmp_path / "text.png").write_text("no picture")
    cases = {
        "short.npz: field 'times': covers 0 to 1.000 s": {"--trajectory": short},
        "imagines 1.600 s (16 frames at 10 Hz)": {"--trajectory": short},
        "bare.npz: field 'intrinsics': missing": {"--trajectory": bare},
        "--intrinsics fx,fy,cx,cy in pixels of": {"--trajectory": bare},
        "wide.npz: field 'image_size': 320x120": {"--trajectory": wide},
        "half.npz: field 'positions': expected (T, 42, 3)": {"--trajectory": tmp_path / "half.npz"},
        "absent.npz does not exist": {"--trajectory": tmp_path / "absent.npz"},
        "text.png": {"--image": tmp_path / "text.png"},
        "absent.png": {"--image": tmp_path / "absent.png"},
        "--intrinsics must be fx,fy,cx,cy": {"--intrinsics": "150,150"},
        "must end in .mp4": {"--out": tmp_path / "rollout.gif"},
        "no_such_model": {"--model": "no_such_model"},
        "has no text encoder": {"--prompt": "lift the cup"},
    }
    for words, change in cases.items():
        message = refused(imagine({**files, **change}, change.get("--model", checkpoint)))
        assert "".join(words.split()) in "".join(message.split()), message
    assert not files["--out"].parent.exists(), "nothing is written after a mistake"


def test_traceback_on_request(files, checkpoint):
    files["--trajectory"] = files["--image"]
    words = [word for pair in files.items() for word in pair]
    result = run("--traceback", "imagine", "--model", checkpoint, *words)
    assert isinstance(result.exception, ValueError)


# ---------------------------------------------------------------------------------- example


def test_example_files_are_valid_and_their_motions_part(checkpoint, tmp_path):
    """A newcomer without a robot gets a frame and motions that `imagine` takes as they are."""
    pytest.importorskip("mujoco")
    out = tmp_path / "example"
    result = run("example", "--out", out)
    assert result.exit_code == 0, result.output
    assert read_image(out / "frame.png").shape == (480, 640, 3)
    files = {path.stem: load_trajectory(path) for path in out.glob("*.npz")}
    assert {"hands", "raise_left", "raise_right", "close_hands"} <= files.keys()
    start = files["hands"].trajectory
    ends = []
    for name, file in files.items():
        assert file.camera is not None and file.instruction, name
        assert file.trajectory.duration == pytest.approx(2.0)
        np.testing.assert_allclose(
            file.trajectory.positions[0], start.positions[0], atol=1e-4, err_msg=name
        )
        seen = file.camera.contains(file.camera.project(file.trajectory.positions[0]))
        assert (seen & file.trajectory.valid[0])[:42].sum() >= 10, "hands are in the picture"
        ends.append(file.trajectory.positions[-1][file.trajectory.valid[-1]])
    for i, end in enumerate(ends):
        for other in ends[:i]:
            assert np.abs(end - other).max() > 0.01, "motions differ"
    rise = files["raise_left"].trajectory.positions[-1, 0] - start.positions[0, 0]
    assert rise[1] < -0.03, "up is towards smaller y"
    result = run(
        "imagine",
        "--model",
        checkpoint,
        "--image",
        out / "frame.png",
        "--trajectory",
        out / "raise_left.npz",
        "--out",
        out / "rollout.mp4",
    )
    assert result.exit_code == 0, result.output
