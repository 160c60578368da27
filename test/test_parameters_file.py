"""Every parameter in config/*.yaml exists in its node: a misspelt one would silently do nothing."""

from __future__ import annotations

import pytest
import yaml
from support import node, wait_until

MODULES = ("hand_kinematics", "motion_policy", "robot_sim", "viewer", "world_model")
# what would be slow or need a free port, and is not what is tested
QUIET = {
    "motion_policy": {"autostart": False},
    "world_model": {"autostart": False},
    "viewer": {"port": 0},
}


@pytest.mark.parametrize("name", MODULES)
def test_parameters_are_declared(root, ros_node, name):
    from rcl_interfaces.srv import ListParameters

    path = root / "config" / "g1.yaml"
    section = yaml.safe_load(path.read_text())[f"/**/{name}"]["ros__parameters"]
    client = ros_node.create_client(ListParameters, f"/{name}/list_parameters")
    with node(f"{name}_node", parameters=QUIET.get(name), parameter_file=path) as process:
        started = lambda: client.service_is_ready() or not process.alive  # noqa: E731
        wait_until(started, timeout=60, what=f"{name} starts")
        assert process.alive, process.output
        future = client.call_async(ListParameters.Request())
        wait_until(future.done, timeout=20, what="the parameter list arrives")
        declared = set(future.result().result.names)
        assert process.alive, process.output
    assert set(section) <= declared, f"{path} has unknown {sorted(set(section) - declared)}"
