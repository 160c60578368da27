"""Where the programs of ROS packages are installed, and what to install where they are not."""

from __future__ import annotations

import os
from pathlib import Path

from ego_world_model.bringup import PACKAGE, BringupError, share_folder


def find_program(package: str, executable: str) -> Path:
    """Where a ROS package installed a program.

    Raises:
        BringupError: nowhere; the text names the package to install.
    """
    prefixes = [share_folder().parent.parent]
    prefixes += [Path(p) for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    for prefix in prefixes:
        program = prefix / "lib" / package / executable
        if os.access(program, os.X_OK):
            return program
    if package == PACKAGE:
        remedy = "run script/setup in the source checkout and use its .venv/bin/ego-world-model"
    else:
        distribution = os.environ.get("ROS_DISTRO", "jazzy")
        remedy = (
            "it comes with a full ROS 2: "
            f"sudo apt install ros-{distribution}-{package.replace('_', '-')}, and source "
            f"/opt/ros/{distribution}/setup.bash"
        )
    raise BringupError(f"program {executable} of package {package} is not installed; {remedy}")
