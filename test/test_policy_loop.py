"""Policies in closed loop: the scripted expert through the whole chain, baselines, swapped words,
kinds of failure, resumed runs, and the command with its report."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import small_policy
from typer.testing import CliRunner

from ego_world_model.data.generate import generate
from ego_world_model.evaluation.policy.cli import app
from ego_world_model.evaluation.policy.closed_loop import EpisodeJob, episode_line, run_closed_loop
from ego_world_model.evaluation.policy.jobs import read_lines, run_jobs, settle
from ego_world_model.evaluation.policy.loop import LoopOptions, Recording, make_table, run_episode
from ego_world_model.evaluation.policy.methods import EXPERT, Method, body
from ego_world_model.evaluation.policy.outcomes import (
    FAILURES,
    Trace,
    acting_side,
    chosen_object,
    failure,
)
from ego_world_model.evaluation.policy.predictors import ConstantPosition
from ego_world_model.evaluation.policy.swap import KINDS, find_pair, run_swaps
from ego_world_model.evaluation.policy.tables import flipped, obeyed, share
from ego_world_model.media import read_image
from ego_world_model.simulation import Goal

OPTIONS = LoopOptions(seconds=10.0)
SHORT = LoopOptions(seconds=1.0)


def job(method: Method, robot: str, task: str, number: int, options: LoopOptions = OPTIONS):
    return EpisodeJob(method, robot, task, number, 3, options)


@pytest.mark.parametrize("task", ["grasp", "reach", "bimanual"])
@pytest.mark.parametrize("robot", ["g1_dex3", "h1_2_inspire"])
def test_the_expert_s_chunks_achieve_its_tasks(robot: str, task: str) -> None:
    """Plan to chunks, chunks to joint targets, targets to motion: nothing on the way loses it."""
    lines = [episode_line(job(Method(EXPERT), robot, task, number)) for number in range(2)]
    fit = [line for line in lines if line["fit"]]
    assert fit
    assert [line["outcome"] for line in fit] == ["success"] * len(fit)
    assert max(line["tracking"] for line in fit) < 2e-3


def test_staying_achieves_nothing() -> None:
    """Constant position neither lifts nor reaches, and what it did wrong has a name."""
    for task in ("grasp", "reach"):
        lines = [
            episode_line(job(Method("constant position"), "g1_dex3", task, number, SHORT))
            for number in range(3)
        ]
        assert {line["outcome"] for line in lines if line["fit"]} <= set(FAILURES[task])


def test_what_is_predicted_is_what_the_robot_sees() -> None:
    """A moment has the dataset's picture size and depth in metres, the hands in the true camera,
    and the instruction of the goal."""
    robot, kinematics = body("g1_dex3")
    sim = make_table(robot, seed=2003000000, split="test", task="grasp", options=SHORT)
    seen = []

    @dataclass
    class Spy:
        def predict(self, moment):
            seen.append(moment)
            return ConstantPosition().predict(moment)

    try:
        goal, start = sim.goal, sim.joint_positions
        truth = kinematics.hand_state(start, camera=sim.camera_pose)
        recording = Recording()
        run_episode(sim, goal, Spy(), kinematics, options=SHORT, recording=recording)
    finally:
        sim.close()
    first = seen[0]
    assert len(seen) == 3 and len(recording.images) == 11  # every 0.4 s; ten frames and the end
    assert first.image.shape == (96, 128, 3) and first.depth.shape == (96, 128)
    assert 0.2 < np.median(first.depth[first.depth > 0]) < 2.0
    assert first.intrinsics[0, 2] == pytest.approx(robot.camera.resized(128, 96).cx)
    assert first.instruction == goal.instruction
    np.testing.assert_allclose(first.state.translation, truth.translation, atol=1e-9)


# -------------------------------------------------------------------- swapped instructions


def test_the_expert_goes_where_it_is_told(tmp_path: Path) -> None:
    """In one scene, two instructions lead to two objects, or to two hands."""
    lines = run_swaps([Method(EXPERT)], ["g1_dex3"], tmp_path, scenes=1, run=7, options=OPTIONS)
    for kind in KINDS:
        ours = [line for line in lines if line["kind"] == kind]
        assert len(ours) == 2 and ours[0]["number"] == ours[1]["number"]
        differs = {name for name in ("target", "side") if ours[0][name] != ours[1][name]}
        assert differs == {"target" if kind == "object" else "side"}
        assert obeyed(ours).mean == 1.0 and flipped(ours).mean == 1.0


def test_deaf_hands_obey_one_instruction_of_two() -> None:
    """Who does the same under both instructions is counted as obeying half, and never flips."""
    lines = [
        {"method": "deaf", "robot": "r", "kind": "object", "number": n, "obeyed": v == 0}
        for n in range(10)
        for v in range(2)
    ]
    assert obeyed(lines).mean == 0.5
    assert flipped(lines).mean == 0.0 and flipped(lines).n == 10


def test_a_scene_with_one_object_has_no_pair() -> None:
    """Two objects for one hand, or nothing to swap."""
    robot, _ = body("g1_dex3")
    sim = make_table(robot, seed=2003000000, split="test", task="grasp", options=SHORT)
    sim.scene = replace(sim.scene, objects=sim.scene.objects[:1])
    assert find_pair(sim, "object") is None
    with pytest.raises(ValueError, match="kind of swap"):
        find_pair(sim, "colour")
    sim.close()


# -------------------------------------------------------------------- outcomes


def trace(*, holder, closed=None, grasp=None, palms=None) -> Trace:
    """Two objects on the table at y = +-0.2 m; rows as given."""
    steps = len(holder)
    rest = np.array([[0.0, 0.5, 0.0], [0.0, -0.5, 0.0]])
    return Trace(
        times=list(0.05 * np.arange(steps)),
        grasp=grasp or [rest] * steps,
        palms=palms or [rest] * steps,
        objects=[np.array([[0.0, 0.2, 0.0], [0.0, -0.2, 0.0]])] * steps,
        holder=[np.array(row) for row in holder],
        closed=closed or [(False, False)] * steps,
    )


FREE, LEFT_HOLDS_0, RIGHT_HOLDS_0, LEFT_HOLDS_1 = (-1, -1), (0, -1), (1, -1), (-1, 0)


@pytest.mark.parametrize(
    ("outcome", "seen"),
    [
        ("never closed", {"holder": [FREE] * 3}),
        ("missed", {"holder": [FREE] * 3, "closed": [(False, False), (True, False)] * 2}),
        ("wrong object", {"holder": [FREE, LEFT_HOLDS_1]}),
        ("wrong hand", {"holder": [FREE, RIGHT_HOLDS_0]}),
        ("dropped", {"holder": [FREE, LEFT_HOLDS_0, FREE]}),
        ("held, not lifted", {"holder": [FREE, LEFT_HOLDS_0]}),
    ],
)
def test_failed_grasps_have_a_kind(outcome: str, seen: dict) -> None:
    """Told to grasp object 0 with the left hand, what went wrong is told apart."""
    goal = Goal("grasp", "grasp it", "left", 0)
    assert failure(trace(**seen), goal, np.array([0.1, 0.1]), 0.03) == outcome


@pytest.mark.parametrize(
    ("outcome", "place"),
    [
        ("not reached", (0.0, 0.5, 0.05)),
        ("wrong object", (0.0, -0.2, 0.05)),
    ],
)
def test_failed_reaches_have_a_kind(outcome: str, place: tuple) -> None:
    """Told to reach for object 0 with the left hand."""
    rest = np.array([[0.0, 0.5, 0.0], [0.0, -0.5, 0.0]])
    there = np.array([place, rest[1]])
    seen = trace(holder=[FREE] * 2, grasp=[rest, there])
    goal = Goal("reach", "reach for it", "left", 0)
    assert failure(seen, goal, np.array([0.1, 0.1]), 0.03) == outcome


def test_one_palm_alone_is_told_from_none() -> None:
    """A large object needs both palms."""
    rest = np.array([[0.0, 0.9, 0.0], [0.0, -0.9, 0.0]])
    left_there = np.array([[0.0, 0.3, 0.0], [0.0, -0.9, 0.0]])
    goal = Goal("bimanual", "lift it", target=0)
    for palms, outcome in (([rest, rest], "not reached"), ([rest, left_there], "one palm")):
        seen = trace(holder=[FREE] * 2, palms=palms)
        assert failure(seen, goal, np.array([0.1, 0.1]), 0.1) == outcome


def test_the_chosen_object_is_held_else_closed_upon_else_nearest() -> None:
    """First what is held counts, then the closing hand's place, then the closest approach."""
    far, near_1 = np.array([[0, 0.5, 0], [0, -0.5, 0]]), np.array([[0, -0.1, 0], [0, -0.5, 0]])
    near_0 = np.array([[0, 0.21, 0], [0, -0.5, 0]])
    passing = trace(holder=[FREE] * 3, grasp=[far, near_1, near_0])
    assert acting_side(passing) == "left"
    assert chosen_object(passing, "left") == 0  # comes within 1 cm of it
    closing = trace(
        holder=[FREE] * 3,
        grasp=[far, near_1, near_0],
        closed=[(False, False), (True, False), (True, False)],
    )
    assert chosen_object(closing, "left") == 1  # closed 10 cm from it
    holding = trace(holder=[FREE, LEFT_HOLDS_0, FREE], grasp=[far, near_1, near_1])
    assert chosen_object(holding, "left") == 0


def test_shares_know_that_none_of_ten_is_not_never() -> None:
    """A share of 0 has an interval above 0, as Wilson's."""
    none = share(0, 10)
    assert none.mean == 0.0 and none.low == pytest.approx(0, abs=1e-12)
    assert none.high == pytest.approx(0.2775, abs=1e-3)


# -------------------------------------------------------------------- runs


@dataclass(frozen=True)
class Doubling:
    number: int

    @property
    def key(self) -> str:
        return f"job {self.number}"


def test_a_run_goes_on_after_a_torn_line(tmp_path: Path) -> None:
    """What is finished is not done again; a line that was cut short is."""
    file, worked = tmp_path / "lines.jsonl", []

    def work(item: Doubling) -> dict:
        worked.append(item.number)
        return {"value": 2 * item.number}

    run_jobs([Doubling(n) for n in range(3)], work, file)
    text = file.read_text()
    file.write_text(text[:-6])  # killed while it wrote the third
    lines = run_jobs([Doubling(n) for n in range(4)], work, file)
    assert worked == [0, 1, 2, 2, 3]
    assert [line["value"] for line in lines.values()] == [0, 2, 4, 6]
    assert len(read_lines(file)) == 4


def test_results_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    """A folder keeps to the settings that it began with, and says which ones differ."""
    settle(tmp_path, {"replan": 0.4, "seed": 7})
    settle(tmp_path, {"replan": 0.4, "seed": 7})
    with pytest.raises(ValueError, match=r"replan was 0.4, is 0.8"):
        settle(tmp_path, {"replan": 0.8, "seed": 7})


def test_scenes_that_say_nothing_are_replaced_for_all(tmp_path: Path) -> None:
    """Methods meet the same scenes, as many as were asked for."""
    methods = [Method("constant position"), Method("constant velocity")]
    options = {"episodes": 3, "run": 3, "options": LoopOptions(seconds=0.4), "noisy": False}
    lines = run_closed_loop(
        methods, ["g1_dex3"], ["reach"], tmp_path / "lines.jsonl", workers=2, **options
    )
    numbers = {m.label: [x["number"] for x in lines if x["method"] == m.label] for m in methods}
    assert len(numbers["constant position"]) == 3
    assert sorted(numbers["constant position"]) == sorted(numbers["constant velocity"])


def test_the_command_writes_tables_numbers_and_pictures(tmp_path: Path) -> None:
    """A small random policy, from recordings and a checkpoint folder to the report."""
    generate(
        "g1_dex3",
        tmp_path / "data",
        episodes=2,
        seconds=2.0,
        split="test",
        still=True,
        workers=1,
        tasks=["grasp", "reach"],
    )
    small_policy.small_policy().save_pretrained(tmp_path / "policy")
    words = (
        f"--model {tmp_path}/policy --out {tmp_path}/out --data {tmp_path}/data "
        f"--train-data {tmp_path}/data --robot g1_dex3 --task grasp --modality I --modality TID "
        "--episodes 1 --swap-scenes 1 --seconds 0.8 --workers 1 --seed 7"
    ).split()
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, (done.output, done.exception)
    document = json.loads((tmp_path / "out/results.json").read_text())
    methods = {"policy I", "policy TID", "constant position", "constant velocity", "mean motion"}
    assert set(document["open_loop"]["g1_dex3"]) == methods
    assert set(document["closed_loop"]["g1_dex3"]) == methods | {EXPERT}
    assert document["closed_loop"]["g1_dex3"]["policy TID"]["grasp"]["n"] == 1
    assert document["swaps"]["g1_dex3"][EXPERT]["object"]["obeyed"]["n"] == 2
    report = (tmp_path / "out/report.md").read_text()
    for heading in ("success in closed loop", "open loop, hands that move", "differ in the hand"):
        assert heading in report
    for picture in ("plots/by_time.png", "strips/g1_dex3_grasp_failure_1.png"):
        assert picture in report and read_image(tmp_path / "out" / picture).size
    before = (tmp_path / "out/closed_loop.jsonl").read_text()
    assert CliRunner().invoke(app, words).exit_code == 0
    assert (tmp_path / "out/closed_loop.jsonl").read_text() == before


def test_what_the_command_cannot_do_it_says_first() -> None:
    """Unknown words and a missing dataset are refused before anything is loaded."""
    for words, message in (
        (["--modality", "TX"], "unknown TX"),
        (["--task", "juggle"], "unknown juggle"),
        (["--part", "open"], "needs held-out"),
    ):
        done = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
        assert done.exit_code == 2 and message in done.output
