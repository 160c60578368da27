"""Fixtures that all tests share: reference data beside the checkout, and a private ROS graph."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent

# One domain per test run, chosen before any rclpy context exists, inherited by child processes, and
# on the loopback only: two runs on one machine, or a robot nearby, never meet. Domains above 101
# may collide with the ephemeral ports of Linux.
os.environ.setdefault("EGO_TEST_DOMAIN", str(random.SystemRandom().randint(1, 101)))
os.environ["ROS_DOMAIN_ID"] = os.environ["EGO_TEST_DOMAIN"]
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
os.environ.pop("ROS_STATIC_PEERS", None)
os.environ.setdefault("MUJOCO_GL", "egl")
# The simulated demo's transport: shared memory that holds images, UDP on 127.0.0.1.
_profile = ROOT / "config" / "fastdds_local.xml"
for _variable in ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE"):
    os.environ[_variable] = str(_profile)

if str(ROOT / "test") not in sys.path:  # `import support` under every import mode
    sys.path.insert(0, str(ROOT / "test"))


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of reference data beside the checkout; skips where it is absent."""
    folder = Path(os.environ.get("EGO_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"reference data not found: {folder} (set EGO_SHARED to its place)")
    return folder.resolve()


@pytest.fixture(scope="session")
def ros_domain() -> int:
    """The ROS domain of this run; skips where ROS or the built interfaces are absent."""
    pytest.importorskip("rclpy", reason="needs ROS 2: run script/setup")
    pytest.importorskip(
        "ego_world_model.msg", reason="needs the built interfaces: run script/setup"
    )
    return int(os.environ["ROS_DOMAIN_ID"])


@pytest.fixture
def ros_node(ros_domain: int) -> Iterator[Any]:
    """An rclpy node of the test's own, spun by a background thread."""
    import rclpy
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor

    context = rclpy.Context()
    rclpy.init(context=context, domain_id=ros_domain)
    node = rclpy.create_node(f"test_{os.getpid()}_{random.randrange(10**6)}", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)

    def spin() -> None:
        with contextlib.suppress(ExternalShutdownException):
            executor.spin()

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    yield node
    executor.shutdown()
    thread.join(5.0)
    node.destroy_node()
    rclpy.try_shutdown(context=context)
