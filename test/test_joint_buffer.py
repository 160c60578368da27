"""Joint states meet the image they belong to, and never one they do not belong to."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: run script/setup")

from ego_world_model.camera import PinholeCamera
from ego_world_model.embodiment import load_embodiment
from ego_world_model.kinematics import HandKinematics
from ego_world_model.kinematics.joint_buffer import JointBuffer, Match, influential_joints
from ego_world_model.ros.camera_frames import CameraFrame
from ego_world_model.ros.frame_pairing import FramePairer

MS = 1_000_000
NAMES = ("a", "b")


def filled(*stamps_ms: float, **options) -> JointBuffer:
    """A buffer whose joint a is the stamp in seconds and joint b twice that."""
    buffer = JointBuffer(NAMES, **options)
    for stamp in stamps_ms:
        buffer.add(round(stamp * MS), NAMES, [stamp * 1e-3, stamp * 2e-3], arrival=stamp)
    return buffer


def image(stamp_ms: float, width: int = 64, height: int = 48) -> CameraFrame:
    return CameraFrame(round(stamp_ms * MS), "optical", width, height, memoryview(b""), "/images")


def test_positions_are_interpolated_to_the_stamp():
    found = filled(0, 10, 20).at(13 * MS)
    assert found.match is Match.FOUND
    np.testing.assert_allclose(found.q, [0.013, 0.026])
    assert found.arrival == 20, "the later sample decides when the pair is complete"


def test_exact_stamp_needs_no_second_sample():
    found = filled(0, 10).at(10 * MS)
    np.testing.assert_allclose(found.q, [0.010, 0.020])


@pytest.mark.parametrize(
    ("stamps", "at", "match"),
    [
        ((), 5, Match.EMPTY),
        ((10, 20), 5, Match.TOO_OLD),
        ((10, 20), 25, Match.WAIT),
        ((10, 100), 50, Match.GAP),
    ],
)
def test_frame_without_bracketing_states_gets_none(stamps, at, match):
    found = filled(*stamps, tolerance=0.05).at(at * MS)
    assert (found.match, found.q) == (match, None)


def test_ring_forgets_the_oldest():
    buffer = filled(*range(0, 100, 10), capacity=4)
    assert len(buffer) == 4
    assert buffer.at(55 * MS).match is Match.TOO_OLD
    np.testing.assert_allclose(buffer.at(65 * MS).q, [0.065, 0.130])


def test_joints_are_matched_by_name_and_strangers_ignored():
    buffer = JointBuffer(NAMES)
    buffer.add(0, ["gripper", "b", "a"], [9.0, 2.0, 1.0])
    np.testing.assert_allclose(buffer.newest_q, [1.0, 2.0])
    assert buffer.unknown == ("gripper",)


@pytest.mark.parametrize(
    ("names", "positions", "text"),
    [
        (["a"], [0.0], "name lacks 1 joints of this robot: b"),
        (["a", "b"], [0.0], "name has 2 entries but position has 1"),
        (["a", "b"], [0.0, float("nan")], "NaN or infinite for b"),
        (["a", "b"], [float("inf"), 0.0], "NaN or infinite for a"),
    ],
)
def test_unusable_joint_state_is_refused_and_leaves_the_buffer_as_it_was(names, positions, text):
    buffer = filled(0, 10)
    with pytest.raises(ValueError, match=text):
        buffer.add(20 * MS, names, positions)
    assert buffer.newest == 10 * MS


def test_joints_without_influence_may_be_missing():
    buffer = JointBuffer(NAMES, required=["a"], defaults=np.array([0.0, 0.7]))
    buffer.add(0, ["a"], [0.5])
    np.testing.assert_allclose(buffer.newest_q, [0.5, 0.7])


def test_states_out_of_order_are_refused_but_a_restart_begins_anew():
    buffer = filled(5000, 5010)
    with pytest.raises(ValueError, match="10.0 ms older"):
        buffer.add(5000 * MS, NAMES, [0, 0])
    buffer.add(1000 * MS, NAMES, [0, 0])
    assert (len(buffer), buffer.restarts) == (1, 1)


def test_legs_are_not_needed_for_hands_in_the_camera():
    robot = load_embodiment("g1_dex3")
    fk = HandKinematics(robot)
    needed = influential_joints(fk, robot.camera_pose)
    assert "left_elbow_joint" in needed
    assert "left_knee_joint" not in needed


# ------------------------------------------------------------------------ frame pairing


class Pairing:
    """A pairer with a camera of 64x48 and a record of what it dropped."""

    def __init__(self, buffer: JointBuffer, *, camera: bool = True, **options) -> None:
        self.dropped: list[tuple[str, str]] = []
        self.pairer = FramePairer(
            buffer,
            wait=0.1,
            info_topic="/info",
            on_drop=lambda counter, why: self.dropped.append((counter, why)),
            **options,
        )
        if camera:
            self.pairer.set_camera(PinholeCamera(64, 48, 50.0, 50.0, 32.0, 24.0), 0.0)


def test_frame_waits_for_the_joint_state_behind_it():
    buffer = filled(0, 10)
    pairing = Pairing(buffer)
    pairing.pairer.add(image(15), 1.0)
    assert pairing.pairer.take(1.05) == []
    buffer.add(20 * MS, NAMES, [0.020, 0.040], arrival=1.06)
    (frame,) = pairing.pairer.take(1.06)
    np.testing.assert_allclose(frame.q, [0.015, 0.030])
    assert frame.ready == 1.06
    assert pairing.dropped == []


def test_frame_is_dropped_when_joint_states_stop():
    pairing = Pairing(filled(0, 10))
    pairing.pairer.add(image(15), 1.0)
    assert pairing.pairer.take(1.2) == []
    ((counter, why),) = pairing.dropped
    assert counter == "frames dropped: no joint states"
    assert "0.005 s newer than the newest joint state" in why


def test_a_frame_of_a_bag_that_is_played_slowly_waits_by_the_bags_clock():
    """A tenth of the speed: the joint state 10 ms behind the frame comes after 100 ms and more."""
    clock = [50.0]
    buffer = filled(0, 10)
    pairing = Pairing(buffer, pace=lambda: clock[0])
    pairing.pairer.add(image(15), 1.0)
    clock[0] = 50.05
    assert pairing.pairer.take(1.5) == [] and not pairing.dropped
    buffer.add(20 * MS, NAMES, [0.020, 0.040], arrival=1.6)
    assert len(pairing.pairer.take(1.6)) == 1
    pairing.pairer.add(image(25), 2.0)
    clock[0] = 50.2
    assert pairing.pairer.take(2.05) == [] and not pairing.dropped, "a backlog is worked off first"
    assert pairing.pairer.take(2.2) == [] and len(pairing.dropped) == 1


def test_a_frame_from_before_the_clock_was_set_back_is_dropped():
    clock = [50.0]
    pairing = Pairing(filled(0, 10), pace=lambda: clock[0])
    pairing.pairer.add(image(15), 1.0)
    clock[0] = 3.0
    assert pairing.pairer.take(1.2) == [] and len(pairing.dropped) == 1


def test_frame_in_a_gap_is_dropped_at_once():
    pairing = Pairing(filled(0, 100))
    pairing.pairer.add(image(50), 1.0)
    assert pairing.pairer.take(1.0) == []
    assert "more than 50 ms apart" in pairing.dropped[0][1]


def test_frame_of_another_resolution_waits_for_its_camera_info():
    pairing = Pairing(filled(0, 10, 20))
    pairing.pairer.add(image(5, 32, 24), 1.0)
    assert pairing.pairer.take(1.05) == []
    pairing.pairer.set_camera(PinholeCamera(32, 24, 25.0, 25.0, 16.0, 12.0), 1.06)
    (frame,) = pairing.pairer.take(1.06)
    assert frame.camera.width == 32

    pairing.pairer.add(image(7), 2.0)
    assert pairing.pairer.take(2.2) == []
    assert "/info: width, height are 32x24 but /images is 64x48" in pairing.dropped[-1][1]


def test_frame_without_camera_info_is_dropped():
    pairing = Pairing(filled(0, 10), camera=False)
    pairing.pairer.add(image(5), 1.0)
    assert pairing.pairer.take(1.2) == []
    assert pairing.dropped[0][0] == "frames dropped: no camera_info"


def test_frame_waits_for_something_optional_only_once_it_is_complete():
    """Depth, say: a frame without joint states is dropped as ever; a complete one waits until told
    otherwise, and frames leave in order."""
    settled: set[int] = set()
    pairing = Pairing(filled(0, 10, 20), settled=lambda frame, *_: frame.stamp in settled)
    pairing.pairer.add(image(5), 1.0)
    pairing.pairer.add(image(15), 1.0)
    pairing.pairer.add(image(500), 1.0)
    assert pairing.pairer.take(1.2) == []
    assert [counter for counter, _ in pairing.dropped] == ["frames dropped: no joint states"]
    settled |= {5 * MS, 15 * MS}
    assert [frame.image.stamp for frame in pairing.pairer.take(1.2)] == [5 * MS, 15 * MS]
