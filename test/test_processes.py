"""Processes that `up` starts are reported when they die and never outlive it."""

from __future__ import annotations

import os
import signal
import sys

from support import NodeProcess, wait_until

from ego_world_model.processes import ProcessGroup

SLEEP = "import time; time.sleep(600)"
DEAF = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); {SLEEP}"


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_dead_process_is_named_with_its_exit_code():
    group = ProcessGroup()
    group.start("fine", [sys.executable, "-c", SLEEP], os.environ)
    group.start("broken", [sys.executable, "-c", "raise SystemExit(3)"], os.environ)
    group.start("killed", [sys.executable, "-c", SLEEP], os.environ)
    os.kill(group.pid("killed"), signal.SIGSEGV)
    ended = []
    wait_until(lambda: ended.extend(group.reap()) or len(ended) == 2, what="two processes end")
    assert sorted(map(str, ended)) == [
        "broken ended with exit code 3",
        "killed was killed by SIGSEGV",
    ]
    assert group.running == ("fine",)
    group.stop()
    assert group.running == ()


def test_stop_ends_processes_that_ignore_ctrl_c_and_their_children(tmp_path):
    note = tmp_path / "pid"
    parent = (
        f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {DEAF!r}]); "
        f"open({str(note)!r}, 'w').write(str(p.pid)); {DEAF}"
    )
    group = ProcessGroup()
    group.start("deaf", [sys.executable, "-c", parent], os.environ)
    wait_until(lambda: note.exists() and note.read_text() != "", what="the child starts")
    pids = [group.pid("deaf"), int(note.read_text())]
    assert all(map(alive, pids))
    group.stop(patience=0.5)
    wait_until(lambda: not any(map(alive, pids)), what="both end")


def test_children_end_when_their_supervisor_is_killed():
    code = (
        "import os, sys, time; from ego_world_model.processes import ProcessGroup; "
        "g = ProcessGroup(); "
        f"g.start('child', [sys.executable, '-c', {SLEEP!r}], os.environ); "
        "print('pid', g.pid('child'), flush=True); time.sleep(600)"
    )
    with NodeProcess([sys.executable, "-c", code]) as supervisor:
        child = int(supervisor.wait_for("pid ").split()[1])
        assert alive(child)
        supervisor.send_signal(signal.SIGKILL)
        wait_until(lambda: not alive(child), what="the child ends")
