"""Everything that must hold before a change is kept: format, lint, colcon build, tests.

Run by script/test with the environment's Python.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from environment import ROOT, venv_environment

# whatever hangs is ended before a continuous-integration machine would end it
TEST_LIMIT_S = 60 * 60


def main() -> int:
    venv = Path(sys.prefix)
    tools = venv / "bin"
    environment = venv_environment(venv)
    environment.setdefault("OMP_NUM_THREADS", "2")
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # node tests share the cores
    steps = {
        "format": [str(tools / "ruff"), "format", "--check", str(ROOT)],
        "lint": [str(tools / "ruff"), "check", str(ROOT)],
        "colcon build": [],
    }
    failed = []
    for name, command in steps.items():
        started = time.monotonic()
        ok = run(command, environment) if command else colcon_build(tools, environment)
        print(
            f"{name}: {'ok' if ok else 'FAILED'} ({time.monotonic() - started:.1f} s)", flush=True
        )
        failed += [] if ok else [name]
    if failed:
        print(f"FAILED before the tests: {', '.join(failed)}", file=sys.stderr, flush=True)
    # the installed pytest program, not `python -m pytest`: that would put the checkout, which has
    # no generated messages, before the installed package
    code = pytest([str(tools / "pytest"), str(ROOT / "test"), *sys.argv[1:]], environment)
    return code or int(bool(failed))


def run(command: list[str], environment: dict[str, str]) -> bool:
    return subprocess.run(command, env=environment, cwd=ROOT).returncode == 0


def colcon_build(tools: Path, environment: dict[str, str]) -> bool:
    """Build in a workspace of its own as users with a full ROS 2 do, and use a message from it."""
    with tempfile.TemporaryDirectory(prefix="ego_world_model_ws_") as folder:
        workspace = Path(folder)
        (workspace / "src").mkdir()
        (workspace / "src" / "ego_world_model").symlink_to(ROOT)
        build = [
            str(tools / "python"),
            "-m",
            "colcon",
            "--log-base",
            str(workspace / "log"),
            "build",
        ]
        build += ["--base-paths", str(workspace / "src" / "ego_world_model")]
        build += ["--build-base", str(workspace / "build"), "--merge-install"]
        build += [
            "--install-base",
            str(workspace / "install"),
            "--event-handlers",
            "console_direct-",
        ]
        build += ["--cmake-args", f"-DPython3_EXECUTABLE={tools / 'python'}", "-Wno-dev"]
        result = subprocess.run(
            build, env=environment, cwd=workspace, capture_output=True, text=True
        )
        if result.returncode != 0:
            print(result.stdout[-6000:], result.stderr[-6000:], file=sys.stderr)
            return False
        install = workspace / "install"
        check = (
            "import ego_world_model, ego_world_model.hands, ego_world_model.msg as m; "
            f"assert ego_world_model.__file__.startswith({str(install)!r}), "
            "ego_world_model.__file__; assert m.Rollout().get_fields_and_field_types()"
        )
        # setup.sh, since setup.bash comes from a part of colcon that the wheels do not bring
        source = 'COLCON_CURRENT_PREFIX="$1" . "$1/setup.sh" && exec "$2" -c "$3"'
        use = ["sh", "-c", source, "sh", str(install), str(tools / "python"), check]
        return subprocess.run(use, env=environment, cwd=workspace).returncode == 0


def pytest(command: list[str], environment: dict[str, str]) -> int:
    """Run the tests; their own summary is the last that is printed."""
    try:
        return subprocess.run(command, env=environment, cwd=ROOT, timeout=TEST_LIMIT_S).returncode
    except subprocess.TimeoutExpired:
        print(f"the tests took longer than {TEST_LIMIT_S // 60} minutes", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
