"""`ego-world-model up` runs the real graph, reports what flows and dies, leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest
from imagined_graph import random_checkpoint
from support import NodeProcess, wait_until

from ego_world_model.bringup import BRINGUPS

COMMAND = Path(sys.prefix) / "bin" / "ego-world-model"


def children(pid: int) -> dict[str, int]:
    """Running child processes of a process: program name → pid."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            words = (folder / "cmdline").read_text().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == pid and state != "Z":
            name = next((Path(w).name for w in words[1:] if "/lib/ego_world_model/" in w), words[0])
            found[name] = int(folder.name)
    return found


def listening_addresses(pid: int, domain: int) -> set[str]:
    """IPv4 addresses at which a process receives DDS messages of a domain (hexadecimal)."""
    links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    inodes = {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}
    rows = [line.split() for line in Path("/proc/net/udp").read_text().splitlines()[1:]]
    local = [row[1].split(":") for row in rows if row[9] in inodes]
    first = 7400 + 250 * domain  # DDS fixes the ports of a domain
    return {address for address, port in local if first <= int(port, 16) < first + 250}


def small_parameters(root: Path, tmp_path: Path, robot: str) -> Path:
    """A robot's shipped parameters with pictures that cost little."""
    text = (root / "config" / f"{robot}.yaml").read_text()
    text = re.sub(r"width: 640 ", "width: 160 ", text)
    text = re.sub(r"height: 480\b", "height: 120", text)
    assert "width: 160" in text and "height: 120" in text
    path = tmp_path / "small.yaml"
    path.write_text(text)
    return path


@pytest.fixture
def small_graph(ros_domain: int, root: Path, tmp_path: Path) -> Path:
    return small_parameters(root, tmp_path, "g1")


def test_up_reports_and_leaves_nothing_behind(
    small_graph: Path, tmp_path: Path, ros_domain: int
) -> None:
    words = ["up", "g1", "--sim", "viewer:=false", f"params_file:={small_graph}"]
    words.append(f"checkpoint:={tmp_path / 'nowhere'}")
    with NodeProcess([sys.executable, str(COMMAND), *words]) as up:
        # the world model refuses to start without its checkpoint; the rest of the graph works on
        up.wait_for("[up] world_model ended with exit code 1", timeout=120)
        assert str(tmp_path / "nowhere") in up.output
        flows = re.compile(
            r"\[up\] \d+ s: camera [\d.]+ Hz \| joints [\d.]+ Hz \| hands .*"
            r" \|\| .*world_model ended with exit code 1"
        )
        wait_until(lambda: any(map(flows.match, up.lines)), timeout=120, what="the status line")

        running = children(up.pid)
        assert set(running) == {"robot_sim", "hand_kinematics"}
        for name, pid in running.items():
            assert listening_addresses(pid, ros_domain) == {"0100007F"}, name  # 127.0.0.1

        os.kill(running["hand_kinematics"], signal.SIGKILL)
        up.wait_for("[up] hand_kinematics was killed by SIGKILL", timeout=20)
        assert up.alive

        up.send_signal(signal.SIGINT)
        assert up.wait(timeout=40) == 1  # not 0: nodes had failed
        for pid in running.values():
            wait_until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), what="children end")


@pytest.mark.parametrize("robot", BRINGUPS)
def test_the_whole_graph_imagines_and_ends_cleanly(
    robot: str, ros_domain: int, root: Path, tmp_path: Path
) -> None:
    checkpoint = random_checkpoint(tmp_path / "random")
    parameters = small_parameters(root, tmp_path, robot)
    parameters.write_text(parameters.read_text().replace("port: 8080 ", "port: 0 "))
    words = ["up", robot, "--sim", f"params_file:={parameters}", f"checkpoint:={checkpoint}"]
    with NodeProcess([sys.executable, str(COMMAND), *words]) as up:
        assert "127.0.0.1" in up.wait_for("open http://", timeout=120)
        flows = re.compile(r"\[up\] .*camera .* \| hands .* \| rollouts \d+ \| each [\d.]+ ms")
        wait_until(
            lambda: any(map(flows.match, up.lines)), timeout=180, what="rollouts in the line"
        )
        running = children(up.pid)
        assert set(running) == {"robot_sim", "hand_kinematics", "world_model", "viewer"}
        up.send_signal(signal.SIGTERM)
        assert up.wait(timeout=60) == 0, up.output
    assert "Traceback" not in up.output, up.output
    for pid in running.values():
        assert not Path(f"/proc/{pid}").exists()


def test_up_refuses_wrong_arguments_before_it_starts_anything() -> None:
    with NodeProcess([sys.executable, str(COMMAND), "up", "g1", "simulate:=true"]) as up:
        assert up.wait(timeout=60) != 0
        assert "no argument 'simulate'; there are sim, " in up.output.replace("\n", " ")
    with NodeProcess([sys.executable, str(COMMAND), "up", "g7"]) as up:
        assert up.wait(timeout=60) != 0
        assert "no robot 'g7'; there is g1, h1" in up.output
