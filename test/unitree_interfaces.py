"""Small `unitree_hg` and `unitree_go` message packages, built as ROS builds any, for DDS tests.

They have the names and fields of Unitree's; a build takes half a minute per package on an idle
machine and is kept for later runs.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ego_world_model.data.importers.bag_messages import UNITREE_TYPES

_PACKAGE_XML = """<?xml version="1.0"?>
<package format="3">
  <name>{name}</name>
  <version>0.0.0</version>
  <description>Messages for tests</description>
  <maintainer email="nobody@example.invalid">nobody</maintainer>
  <license>Apache-2.0</license>
  <buildtool_depend>ament_cmake</buildtool_depend>
  <buildtool_depend>rosidl_default_generators</buildtool_depend>
  <member_of_group>rosidl_interface_packages</member_of_group>
  <export><build_type>ament_cmake</build_type></export>
</package>
"""
_CMAKE = """cmake_minimum_required(VERSION 3.16)
project({name})
find_package(ament_cmake REQUIRED)
find_package(rosidl_default_generators REQUIRED)
file(GLOB FILES RELATIVE ${{CMAKE_CURRENT_SOURCE_DIR}} msg/*.msg)
rosidl_generate_interfaces(${{PROJECT_NAME}} ${{FILES}})
ament_package()
"""


def build_interfaces(cache: Path) -> dict[str, str]:
    """Environment variables with which the packages can be imported; skips without a compiler."""
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("building message packages needs cmake and a C++ compiler")
    key = hashlib.sha256(f"{UNITREE_TYPES}{_CMAKE}{sys.version}{sys.prefix}".encode()).hexdigest()
    folder = cache / key[:16]
    prefix = folder / "prefix"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in ("unitree_hg", "unitree_go"):
            if not (folder / f"{name}.done").exists():
                _build(name, folder, prefix)
                (folder / f"{name}.done").touch()
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = next(prefix.glob(f"**/{version}/*-packages/unitree_hg")).parent
    return {
        "PYTHONPATH": _joined(str(site), "PYTHONPATH"),
        "LD_LIBRARY_PATH": _joined(str(prefix / "lib"), "LD_LIBRARY_PATH"),
        "AMENT_PREFIX_PATH": _joined(f"{prefix}{os.pathsep}{sys.prefix}", "AMENT_PREFIX_PATH"),
    }


def _build(name: str, folder: Path, prefix: Path) -> None:
    source, build = folder / name, folder / f"build_{name}"
    (source / "msg").mkdir(parents=True, exist_ok=True)
    (source / "package.xml").write_text(_PACKAGE_XML.format(name=name))
    (source / "CMakeLists.txt").write_text(_CMAKE.format(name=name))
    for kind, text in UNITREE_TYPES.items():
        package, _, message = kind.split("/")
        if package == name:
            (source / "msg" / f"{message}.msg").write_text(text.replace(f"{name}/", ""))
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    for variable in ("AMENT_PREFIX_PATH", "CMAKE_PREFIX_PATH"):
        environment[variable] = _joined(sys.prefix, variable)
    configure = ["cmake", "-S", source, "-B", build, f"-DCMAKE_INSTALL_PREFIX={prefix}"]
    configure += [f"-DPython3_EXECUTABLE={sys.executable}", "-DBUILD_TESTING=OFF", "-Wno-dev"]
    jobs = str(os.cpu_count() or 1)
    for command in (
        configure,
        ["cmake", "--build", build, "-j", jobs],
        ["cmake", "--install", build],
    ):
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def _joined(first: str, variable: str) -> str:
    rest = os.environ.get(variable)
    return f"{first}{os.pathsep}{rest}" if rest else first
