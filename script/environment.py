"""Make the virtual environment in which everything runs: ROS 2 wheels, libraries, and this package.

Called by script/setup, script/run and script/test with any Python >= 3.10; needs only the standard
library. Each stage leaves a stamp (a hash of what it was made from), so that a stage whose inputs
did not change costs nothing:

    packages    requirements/*.txt, constraints/*.txt, interpreter       pip, minutes
    interfaces  msg/, srv/, action/, CMakeLists.txt, package.xml         C++ compiler, half a minute
    python      ego_world_model/, config/, launch/                       a copy, below a second

Environment variables: EGO_PYTHON (interpreter to use), EGO_VENV (folder, default .venv),
EGO_TORCH_INDEX (package index that torch comes from, such as the CPU-only one).
"""

from __future__ import annotations

import argparse
import ctypes.util
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUPPORTED = ((3, 10), (3, 13))
# GB that an environment takes while it is made, downloads included: torch for the CPU, with CUDA
DISK_CPU, DISK_CUDA = 4.0, 10.0


class SetupError(RuntimeError):
    """A stage failed; the message says what to do about it."""


def main() -> int:
    parser = argparse.ArgumentParser(description="make or update the environment")
    parser.add_argument("--test", action="store_true", help="also install what the tests need")
    parser.add_argument(
        "--force", action="store_true", help="ignore the stamps and redo all stages"
    )
    options = parser.parse_args()
    venv = Path(os.environ.get("EGO_VENV", ROOT / ".venv")).absolute()
    try:
        check_interpreter()
        install_system_packages(test=options.test)
        make_environment(venv, test=options.test, force=options.force)
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    return 0


def make_environment(venv: Path, *, test: bool, force: bool) -> None:
    """Bring `venv` up to date, one caller at a time."""
    if not (venv / "bin" / "python").exists():
        check_disk(venv.parent)
        say(f"making {venv}")
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    with (venv / ".setup.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stages = [("packages", lambda: install_packages(venv, ["library", "ros-jazzy"]))]
        if test:
            stages.append(("test", lambda: install_packages(venv, ["test"])))
        stages.append(("interfaces", lambda: build_interfaces(venv)))
        stages.append(("python", lambda: install_python(venv)))
        outdated = force
        for name, stage in stages:
            stamp = venv / f".stamp-{name}"
            wanted = fingerprint(name, venv)
            if name == "interfaces" and not interfaces_installed(venv):
                stamp.unlink(missing_ok=True)  # such as by `pip uninstall`
            # new ROS wheels make the built interfaces stale, and those the installed files
            if outdated or not stamp.exists() or stamp.read_text() != wanted:
                started = time.monotonic()
                say(f"{name}: working ...")
                stamp.unlink(missing_ok=True)
                stage()
                stamp.write_text(wanted)
                say(f"{name}: done in {time.monotonic() - started:.1f} s")
                outdated = outdated or name != "test"


def fingerprint(stage: str, venv: Path) -> str:
    """Hash of everything that the stage's result depends on."""
    inputs = {
        "packages": ["requirements/library.txt", "requirements/ros-jazzy.txt", "constraints"],
        "test": ["requirements/test.txt", "constraints"],
        "interfaces": ["msg", "srv", "action", "CMakeLists.txt", "package.xml", "nodes"],
        "python": ["ego_world_model", "config", "launch"],
    }[stage]
    digest = hashlib.sha256(f"{venv} {sys.version}".encode())
    for path in source_files(inputs):
        digest.update(f"\0{path.relative_to(ROOT)}\0".encode())
        if stage == "python":  # checkpoints are large: size and time tell as much as their content
            status = path.stat()
            digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        else:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def source_files(names: Iterable[str]) -> list[Path]:
    """All files below the named files and folders of the source tree, sorted, without caches."""
    found: list[Path] = []
    for name in names:
        path = ROOT / name
        candidates = path.rglob("*") if path.is_dir() else [path]
        found += [p for p in candidates if p.is_file() and "__pycache__" not in p.parts]
    return sorted(found)


def install_packages(venv: Path, names: list[str]) -> None:
    """Install requirements/NAME.txt for all names, ROS wheels pinned."""
    pip = [
        str(venv / "bin" / "python"),
        "-m",
        "pip",
        "--disable-pip-version-check",
        "install",
        "-q",
    ]
    # some ROS tools come as sources only, which older pips else build in a way that they warn about
    pip += ["--use-pep517", "-c", str(ROOT / "constraints" / "jazzy.txt")]
    torch_index = os.environ.get("EGO_TORCH_INDEX")
    if torch_index and "library" in names:
        lines = (ROOT / "requirements" / "library.txt").read_text().splitlines()
        torch = next(line for line in lines if line.startswith("torch>"))
        # its dependencies follow below, from the usual index, which need not be mirrored there
        command = [*pip, "--no-deps", "--index-url", torch_index, torch]
        run(command, "pip could not install torch from EGO_TORCH_INDEX")
    files = [word for name in names for word in ("-r", str(ROOT / "requirements" / f"{name}.txt"))]
    run(
        [*pip, *files],
        "pip failed; read its message above (network, disk, or an unsupported Python)",
    )
    if "ros-jazzy" in names:
        correct_include_paths(venv)


def correct_include_paths(venv: Path) -> None:
    """Replace the build machine's include folders in the CMake files that the ROS wheels export."""
    query = "import numpy, sysconfig as s; print(s.get_path('include')); print(numpy.get_include())"
    python = venv / "bin" / "python"
    answer = subprocess.run([python, "-c", query], check=True, capture_output=True, text=True)
    python_include, numpy_include = answer.stdout.split()
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    tag = "cp" + version.replace(".", "")
    home = f"/opt/python/{tag}-{tag}"
    for path in (venv / "share").glob("*/cmake/export_*__rosidl_generator_pyExport.cmake"):
        text = path.read_text()
        fixed = text.replace(f"{home}/include/python{version}", python_include)
        fixed = fixed.replace(
            f"{home}/lib/python{version}/site-packages/numpy/_core/include", numpy_include
        )
        if fixed != text:
            path.write_text(fixed)


def build_interfaces(venv: Path) -> None:
    """Generate, compile and install the messages and the action into the environment."""
    build = build_folder(venv)
    python = venv / "bin" / "python"
    environment = venv_environment(venv)
    configure = ["cmake", "-S", str(ROOT), "-B", str(build), f"-DCMAKE_INSTALL_PREFIX={venv}"]
    configure += [f"-DPython3_EXECUTABLE={python}", f"-DPROGRAM_PYTHON={python}"]
    configure += ["-DBUILD_TESTING=OFF", "-DCMAKE_BUILD_TYPE=Release", "-Wno-dev"]
    advice = f"building the interfaces failed; delete {build} and try again"
    run([*configure, "--log-level=WARNING"], advice, environment=environment, quiet=True)
    jobs = str(os.cpu_count() or 1)
    run(["cmake", "--build", str(build), "-j", jobs], advice, environment=environment, quiet=True)
    run(["cmake", "--install", str(build)], advice, environment=environment, quiet=True)


def interfaces_installed(venv: Path) -> bool:
    return any(venv.glob("lib/python*/site-packages/ego_world_model/msg/__init__.py"))


def install_python(venv: Path) -> None:
    """Copy the Python package, the programs, config/ and launch/ into the environment."""
    manifest = build_folder(venv) / "install_manifest_python.txt"
    before = set(manifest.read_text().split("\n")) if manifest.exists() else set()
    command = ["cmake", "--install", str(build_folder(venv)), "--component", "python"]
    run(command, "installing the Python files failed", quiet=True)
    for leftover in before - set(manifest.read_text().split("\n")):
        Path(leftover).unlink(missing_ok=True)


def build_folder(venv: Path) -> Path:
    return venv / "build-ego_world_model"


def venv_environment(venv: Path) -> dict[str, str]:
    """The variables that an activated environment has, which is also a ROS prefix."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONHOME", "PYTHONPATH")}
    environment["VIRTUAL_ENV"] = str(venv)
    environment["PATH"] = f"{venv / 'bin'}{os.pathsep}{environment.get('PATH', '')}"
    environment["AMENT_PREFIX_PATH"] = str(venv)
    environment["CMAKE_PREFIX_PATH"] = str(venv)
    return environment


def check_interpreter() -> None:
    lowest, highest = SUPPORTED
    if not lowest <= sys.version_info[:2] <= highest:
        raise SetupError(
            f"Python {sys.version.split()[0]} is not supported; install a Python from "
            f"{lowest[0]}.{lowest[1]} to {highest[0]}.{highest[1]} and name it in EGO_PYTHON"
        )


def check_disk(folder: Path) -> None:
    """Refuse to start an installation that cannot fit."""
    cpu_only = "EGO_TORCH_INDEX" in os.environ
    needed = DISK_CPU if cpu_only else DISK_CUDA
    free = shutil.disk_usage(folder).free / 1e9
    if free >= needed:
        return
    message = f"{folder} has {free:.1f} GB free, the installation takes up to {needed:.0f} GB"
    if not cpu_only and free >= DISK_CPU:
        message += "; without a GPU, set EGO_TORCH_INDEX to PyTorch's index of CPU-only wheels"
        message += f" ({DISK_CPU:.0f} GB)"
    raise SetupError(message + "; free some space, or name another disk in EGO_VENV")


def missing_system_packages() -> list[str]:
    """Debian and Ubuntu packages that are absent, found by what they provide."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    drivers = ("dri/swrast_dri.so", "libgallium*.so*")
    present = {
        f"python{version}-venv": module_exists("ensurepip") and module_exists("venv"),
        f"python{version}-dev": header.exists(),
        "cmake": shutil.which("cmake"),
        "g++": shutil.which("g++"),
        "make": shutil.which("make"),
        "libegl1": ctypes.util.find_library("EGL"),
        "libopengl0": ctypes.util.find_library("OpenGL") or ctypes.util.find_library("GL"),
        "libgl1-mesa-dri": any(any(Path("/usr/lib").glob(f"*/{name}")) for name in drivers),
    }
    return [name for name, there in present.items() if not there]


def module_exists(name: str) -> bool:
    from importlib.util import find_spec

    return find_spec(name) is not None


def install_system_packages(*, test: bool) -> None:
    """Install what is missing when root, else say how."""
    missing = missing_system_packages()
    if missing and not can_apt():
        raise SetupError(f"system packages are missing; install them with\n    {apt(missing)}")
    if missing:
        say(f"installing {' '.join(missing)}")
        advice = f"apt-get failed; try it by hand:\n    {apt(missing)}"
        run(["sh", "-c", apt(missing)], advice)
    browsers = ("chromium", "chromium-browser", "google-chrome")
    if test and not any(map(shutil.which, browsers)):
        # only the tests of the browser page need one, and those skip without
        say(f"no browser for the tests of the page: {apt(['chromium'])}")
        if can_apt():
            subprocess.run(["sh", "-c", apt(["chromium"])], stdout=subprocess.DEVNULL)


def can_apt() -> bool:
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def apt(packages: list[str]) -> str:
    """The shell command that installs packages."""
    words = "DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends"
    command = f"apt-get update && {words} {' '.join(packages)}"
    return command if os.geteuid() == 0 else f"sudo sh -c '{command}'"


def run(
    command: list[str],
    advice: str,
    *,
    environment: dict[str, str] | None = None,
    quiet: bool = False,
) -> None:
    """Run a command; SetupError with `advice` where it fails. Quiet: show output only then."""
    result = subprocess.run(
        command, env=environment, text=True, capture_output=quiet, stdin=subprocess.DEVNULL
    )
    if result.returncode != 0:
        if quiet:
            print(result.stdout[-8000:], result.stderr[-8000:], file=sys.stderr)
        raise SetupError(f"{advice} (exit code {result.returncode})")


def say(message: str) -> None:
    print(f"setup: {message}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
