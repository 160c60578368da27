"""The model's thread puts jobs before background work, and frames leave when their turn comes."""

from __future__ import annotations

import threading
import time

import pytest
from support import wait_until

from ego_world_model.ros.frame_player import DueFrame, FramePlayer
from ego_world_model.ros.model_thread import ModelThread


def test_waiting_job_is_seen_by_background_work_and_runs_next() -> None:
    order: list[str] = []
    begun = threading.Event()

    def background() -> None:
        begun.set()
        deadline = time.monotonic() + 5.0
        while not thread.job_waiting and time.monotonic() < deadline:
            time.sleep(0.001)
        order.append("background gave way")

    thread = ModelThread(background, on_error=lambda error: None)
    try:
        thread.wake()
        assert begun.wait(30.0)
        assert thread.submit(lambda: order.append("job") or 42).result(5.0) == 42
        assert order == ["background gave way", "job"]
    finally:
        thread.close()


def test_errors_reach_their_owner_and_the_thread_lives_on() -> None:
    errors: list[Exception] = []

    def background() -> None:
        raise ArithmeticError("rollout")

    thread = ModelThread(background, on_error=errors.append)
    try:
        thread.wake()
        wait_until(lambda: len(errors) == 1, timeout=30.0, what="the background error")
        with pytest.raises(ZeroDivisionError):
            thread.submit(lambda: 1 // 0).result(5.0)
        assert thread.submit(lambda: "alive").result(5.0) == "alive"
    finally:
        thread.close()


def test_closing_cancels_what_waits_and_refuses_more() -> None:
    begun, release = threading.Event(), threading.Event()
    thread = ModelThread(lambda: None, on_error=lambda error: None)
    running = thread.submit(lambda: begun.set() or release.wait(30.0))
    assert begun.wait(30.0)
    waiting = thread.submit(lambda: None)
    thread.begin_closing()
    assert waiting.cancelled()
    release.set()
    assert running.result(5.0)
    with pytest.raises(RuntimeError, match="shutting down"):
        thread.submit(lambda: None)
    thread.close()


class _Stage:
    """A player on the wall clock and what it played: (seconds after the start, message)."""

    def __init__(self) -> None:
        self.start = time.monotonic_ns()
        self.played: list[tuple[float, str]] = []
        self.player = FramePlayer(
            time.monotonic_ns,
            lambda m: self.played.append(((time.monotonic_ns() - self.start) * 1e-9, m)),
        )

    def frames(self, name: str, reference: float, count: int = 4) -> list[DueFrame]:
        """``count`` frames 0.2 s apart from ``reference`` s after the start."""
        moments = [self.start + round((reference + 0.2 * k) * 1e9) for k in range(count)]
        return [DueFrame(t, t, f"{name}{k}") for k, t in enumerate(moments)]


def test_frames_leave_at_their_moment_and_late_ones_at_once() -> None:
    stage = _Stage()
    stage.player.play(stage.frames("a", -0.3))
    wait_until(lambda: len(stage.played) == 4, what="four frames")
    stage.player.close()
    assert [m for _, m in stage.played] == ["a0", "a1", "a2", "a3"]
    for (moment, _), due in zip(stage.played, [0.0, 0.0, 0.1, 0.3], strict=True):
        assert due <= moment < due + 0.09


def test_newer_rollout_takes_over_without_repeating_a_moment() -> None:
    stage = _Stage()
    stage.player.play(stage.frames("a", 0.0))
    wait_until(lambda: len(stage.played) == 2, what="two frames")
    stage.player.play(stage.frames("b", 0.05))
    wait_until(lambda: len(stage.played) == 5, what="the newer rollout")
    time.sleep(0.1)
    stage.player.close()
    # b0 (0.05 s) lies before a1 (0.2 s), which was shown; a2 and a3 are replaced.
    assert [m for _, m in stage.played] == ["a0", "a1", "b1", "b2", "b3"]
