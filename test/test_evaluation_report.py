"""``ego-world-model evaluate`` from checkpoint folders to tables, plots and strips; refusals."""

import json
from pathlib import Path

import feature_networks
import numpy as np
import pytest
import small_evaluation
from typer.testing import CliRunner

from ego_world_model import embodiment
from ego_world_model.evaluation.cli import app
from ego_world_model.evaluation.metrics import Estimate
from ego_world_model.evaluation.overview import part_names
from ego_world_model.evaluation.plots import COLOURS, Panel, interval_figure, line_figure
from ego_world_model.evaluation.runs import Run, dataset_robot, model_labels
from ego_world_model.media import read_image


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two checkpoints, one that imagines shorter clips, an estimator and a dataset."""
    root = tmp_path_factory.mktemp("evaluation")
    small_evaluation.write_dataset(root / "data")
    small_evaluation.world_model(0).save_pretrained(root / "a" / "checkpoint")
    small_evaluation.world_model(1).save_pretrained(root / "b" / "checkpoint")
    small_evaluation.world_model(0, num_frames=5).save_pretrained(root / "short")
    small_evaluation.estimator().save(root / "estimator")
    return root


def evaluate(root, out, *options):
    """The console command on the folders' dataset; its result."""
    fixed = ["--data", root / "data", "--estimator", root / "estimator", "--out", out]
    fixed += ["--clips", 3, "--scenes", 0, "--strips", 1]
    return CliRunner().invoke(app, [str(part) for part in (*fixed, *options)])


@pytest.fixture(scope="module")
def compared(folders):
    """Everything at once: two models, both studies."""
    out = folders / "out"
    models = ["--model", folders / "a" / "checkpoint", "--model", folders / "b" / "checkpoint"]
    studies = ["--masked", "0 0.5", "--study-steps", "1,2", "--study-clips", 2]
    done = evaluate(folders, out, *models, *studies)
    assert done.exit_code == 0, done.output
    return out


def test_two_models_are_compared_on_the_same_clips(compared):
    document = json.loads((compared / "results.json").read_text())
    a, b = (document["models"][name] for name in ("a/checkpoint", "b/checkpoint"))
    assert [c["name"] for c in a["clips"]] == [c["name"] for c in b["clips"]]
    per_clip = [
        theirs["scores"]["model"]["hand_psnr"] - ours["scores"]["model"]["hand_psnr"]
        for ours, theirs in zip(a["clips"], b["clips"], strict=True)
    ]
    gain = document["differences"]["b/checkpoint"]["all"]["hand_psnr"]
    assert document["compared_with"] == "a/checkpoint"
    assert gain["n"] == 3 and gain["mean"] == pytest.approx(np.mean(per_clip))
    report = (compared / "report.md").read_text()
    assert "### b/checkpoint minus a/checkpoint, within each clip" in report


def test_report_keeps_every_number_of_every_clip(compared):
    model = json.loads((compared / "results.json").read_text())["models"]["a/checkpoint"]
    for clip in model["clips"]:
        assert set(clip["scores"]) == {"model", "copy_first", "shuffled", "frozen", "truth"}
        assert len(clip["hand_psnr_over_time"]["model"]) == small_evaluation.FRAMES - 1
        assert 0 <= clip["occlusion"] <= 1
    assert len(model["studies"]["masked_joints"]["clips"]) == 2
    assert set(model["studies"]["denoising_steps"]["means"]) == {"1", "2"}
    pooled = model["control_error_pooled"]["truth"]["all"]
    assert pooled["px"]["n"] == pooled["mm"]["n"] > 0
    heavy = model["subsets"]["occlusion-heavy"]
    assert len(heavy.get("model", {})) == 0 or heavy["model"]["hand_psnr"]["n"] <= 3


def test_report_shows_its_tables_and_pictures(compared):
    report = (compared / "report.md").read_text()
    for wanted in (
        "hand-object PSNR",
        "control error (mm)",
        "PA-MPJPE",
        "Occlusion-heavy clips",
        "Joints hidden from the model (2 clips)",
        "Denoising steps (2 clips)",
    ):
        assert wanted in report
    pictures = [line.split("](")[1][:-1] for line in report.splitlines() if line.startswith("![")]
    assert {"plots/intervals.png", "plots/over_time.png"} < set(pictures)
    for picture in pictures:
        assert read_image(compared / picture).std() > 1
    truth_a_b = read_image(compared / "strips" / "best_0.png").shape[0]
    assert truth_a_b > 3 * 2 * 96  # three rows, drawn twice as large


def test_a_second_run_alone_gives_the_same_numbers(folders, compared, tmp_path):
    model = ["--model", folders / "a" / "checkpoint"]
    done = evaluate(folders, tmp_path, *model, "--masked", "0 0.5", "--study-clips", 2)
    assert done.exit_code == 0, done.output
    before = json.loads((compared / "results.json").read_text())["models"]["a/checkpoint"]
    again = json.loads((tmp_path / "results.json").read_text())["models"]["checkpoint"]
    for clip in (*before["clips"], *again["clips"]):
        del clip["timings"]
    for part in ("clips", "methods", "subsets", "control_error_pooled"):
        assert again[part] == before[part]
    assert again["studies"]["masked_joints"] == before["studies"]["masked_joints"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--feature-metric", "fid"], "need feature networks"),
        (["--feature-metric", "beauty"], "unknown beauty"),
        (["--features", "nowhere"], "holds no feature network"),
        (["--masked", "0.1 0.5"], "include 0"),
        (["--masked", "0 2"], "shares in"),
        (["--study-steps", "1 two"], "whole numbers"),
        (["--model", "tiny", "--model", "tiny"], "given twice"),
        (["--scenes", "1"], "'drawn' is neither built in"),
    ],
)
def test_impossible_wishes_are_refused_before_anything_runs(folders, tmp_path, options, says):
    done = evaluate(folders, tmp_path / "out", *options)
    assert done.exit_code == 2
    assert says in " ".join(done.output.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_models_of_different_clips_are_not_compared(folders):
    run = Run(judge=small_evaluation.estimator(), data=folders / "data", clips=2, scenes=0)
    models = [str(folders / "a" / "checkpoint"), str(folders / "short")]
    with pytest.raises(ValueError, match="short imagines 5 frames .*checkpoint 9 frames"):
        run.evaluate(models)


def test_feature_distances_stand_beside_the_kernel_distance_and_n(folders, tmp_path):
    (tmp_path / "networks").mkdir()
    networks = feature_networks.write_networks(tmp_path / "networks")
    model = ["--model", folders / "a" / "checkpoint"]
    metrics = ["--feature-metric", "fid", "--feature-metric", "lpips"]
    done = evaluate(folders, tmp_path / "out", *model, "--features", networks, *metrics)
    assert done.exit_code == 0, done.output
    report = (tmp_path / "out" / "report.md").read_text()
    for name in ("all_fid", "all_kid", "hand_object_fid", "hand_object_kid", "hand_lpips"):
        line = next(line for line in report.splitlines() if line.startswith(f"| {name} |"))
        assert "n = " in line
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    scores = document["models"]["checkpoint"]["features"]
    assert set(scores) == {"model", "copy_first"} and "all_fvd" not in scores["model"]
    assert scores["model"]["all_fid"]["n"] == 3 * (small_evaluation.FRAMES - 1)


@pytest.fixture(scope="module")
def side_by_side(folders):
    """Two models on datasets of two robots, which name no robot that could be simulated."""
    small_evaluation.write_dataset(folders / "other", robot="other_robot")
    models = ["--model", folders / "a" / "checkpoint", "--model", folders / "b" / "checkpoint"]
    out = folders / "robots"
    done = evaluate(folders, out, "--data", folders / "other", *models)
    assert done.exit_code == 0, done.output
    return out


def test_datasets_of_two_robots_are_reported_side_by_side(side_by_side):
    """Each robot has its own report, as if it were alone, and a page sets their numbers in one
    table."""
    documents = {
        robot: json.loads((side_by_side / robot / "results.json").read_text())
        for robot in ("drawn", "other_robot")
    }
    assert all(document["about"]["robot"] == robot for robot, document in documents.items())
    report = (side_by_side / "report.md").read_text()
    row = next(line for line in report.splitlines() if line.startswith("| hand PSNR (dB)"))
    cells = [cell.strip() for cell in row.split("|")[2:-1]]
    assert len(cells) == 6  # two models and the truth, for each robot
    for column, (robot, model) in {
        0: ("drawn", "a/checkpoint"),
        1: ("drawn", "b/checkpoint"),
        3: ("other_robot", "a/checkpoint"),
    }.items():
        mean = documents[robot]["models"][model]["methods"]["model"]["hand_psnr"]["mean"]
        assert cells[column].startswith(f"{mean:.2f} [")
    gains = report.split("### b/checkpoint minus a/checkpoint")[1]
    gain = documents["other_robot"]["differences"]["b/checkpoint"]["all"]["hand_psnr"]["mean"]
    row = next(line for line in gains.splitlines() if line.startswith("| hand PSNR (dB)"))
    assert row.split("|")[3].strip().startswith(f"{gain:+.2f} [")
    assert (side_by_side / "other_robot" / "strips" / "best_0.png").exists()
    assert "[other_robot](other_robot/report.md): 3 clips of other" in report


def test_datasets_of_one_robot_are_told_apart_by_their_folders():
    assert part_names([("a", "test"), ("b", "test")]) == ["a", "b"]
    assert part_names([("a", "x"), ("a", "y"), ("b", "x")]) == ["a_x", "a_y", "b"]
    with pytest.raises(ValueError, match="reported as a_x"):
        part_names([("a", "x"), ("a", "x")])


def test_a_robot_of_ones_own_plays_the_scenes_if_its_file_is_given(tmp_path):
    """Scenes are simulated with the dataset's robot, so an unknown one is refused with a remedy."""
    source = Path(embodiment.__file__).parent / "h1_inspire" / "h1_inspire.yaml"
    text = source.read_text().replace("name: h1_inspire", "name: mine")
    text = text.replace("model: h1_inspire.xml", f"model: {source.parent / 'h1_inspire.xml'}")
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    assert dataset_robot("mine", [str(file)]).joint_names == dataset_robot("h1_inspire").joint_names
    with pytest.raises(ValueError, match="'mine' is neither built in .*--robot.*--scenes 0"):
        dataset_robot("mine")


def test_labels_are_the_shortest_ends_that_differ():
    assert model_labels(["tiny"]) == ["tiny"]
    assert model_labels(["runs/a/last"]) == ["last"]
    assert model_labels(["tiny", "x/a/last", "x/b/last"]) == ["tiny", "a/last", "b/last"]


def places(image, colour) -> np.ndarray:
    """(n, 2) rows and columns of the pixels of one colour."""
    return np.argwhere((image == np.array(colour, np.uint8)).all(axis=-1))


def test_larger_means_are_drawn_further_right_and_higher():
    low, high = Estimate(1.0, 0.5, 1.5, 9), Estimate(3.0, 2.5, 3.5, 9)
    unknown = Estimate(float("nan"), float("nan"), float("nan"), 0)
    image = interval_figure({"PSNR": {"a": low, "b": high}, "nothing": {"a": unknown}})
    # Names are drawn in the same colours at the left; bars begin behind the longest.
    left, right = (places(image, COLOURS[k])[:, 1] for k in (0, 1))
    assert right.max() > left.max() + 100
    lines = {"a": [low, high, unknown], "b": [high, high, high]}
    panel = Panel(title="PSNR", x_label="steps", x=("1", "2", "4"), lines=lines)
    shown = line_figure([panel])
    a, b = (places(shown, COLOURS[k]) for k in (0, 1))
    drawn = a[a[:, 0] > 40]  # below the legend
    first, last = drawn[drawn[:, 1].argmin()], drawn[drawn[:, 1].argmax()]
    assert last[0] < first[0] - 50
    assert b[:, 1].max() > last[1] + 50  # the unknown point of a is left out


def test_a_plot_of_one_point_is_still_a_plot():
    one = Estimate(2.0, 2.0, 2.0, 1)
    panel = Panel(title="IoU", x_label="joints hidden", x=("0%",), lines={"iou": [one]})
    assert len(places(line_figure([panel]), COLOURS[0])) > 10
