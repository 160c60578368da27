"""The node table of ``bringup.py`` as a ROS launch description (needs a full ROS 2)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from ego_world_model.bringup import (
    BOOLEAN,
    PACKAGE,
    NodeSpec,
    environment,
    load_bringup,
    resolve,
)
from ego_world_model.programs import find_program


def launch_description(robot: str, *, modules: Any = None) -> Any:
    """What ``launch/<robot>.launch.py`` returns.

    Args:
        robot: name in the table, e.g. "g1".
        modules: object with the classes of ``launch`` and ``launch_ros`` that are used; by
            default the installed ones.
    """
    modules = launch_modules() if modules is None else modules
    bringup = load_bringup(robot)

    def start(context: Any) -> list[Any]:
        given = {
            argument.name: modules.LaunchConfiguration(argument.name).perform(context)
            for argument in bringup.arguments
        }
        variables = environment(bringup, given, os.environ)
        specs = resolve(bringup, given)
        for spec in specs:
            if spec.package != PACKAGE:
                find_program(spec.package, spec.executable)  # says what to install
        actions = [modules.SetEnvironmentVariable(name, value) for name, value in variables.items()]
        return actions + [modules.Node(**node_arguments(spec, modules)) for spec in specs]

    declared = [
        modules.DeclareLaunchArgument(
            argument.name,
            default_value=argument.default,
            description=argument.description,
            # ROS launch spells booleans in several ways; the table checks those itself
            **({"choices": list(argument.choices)} if _closed(argument.choices) else {}),
        )
        for argument in bringup.arguments
    ]
    return modules.LaunchDescription([*declared, modules.OpaqueFunction(function=start)])


def node_arguments(spec: NodeSpec, modules: Any) -> Mapping[str, Any]:
    """Keyword arguments of ``launch_ros.actions.Node`` for one node."""
    # typed, since launch would read a checkpoint called "7" as a number
    values = {
        name: modules.ParameterValue(value, value_type=type(value))
        for name, value in spec.parameters.items()
    }
    return {
        "package": spec.package,
        "executable": spec.executable,
        "name": spec.name,
        "namespace": spec.namespace,
        "parameters": [*spec.parameter_files, *([values] if values else [])],
        "remappings": list(spec.remaps),
        "arguments": [*spec.arguments, "--ros-args", "--log-level", spec.log_level],
        "output": "screen",
        "emulate_tty": True,
    }


def launch_modules() -> Any:
    """The classes of the installed ``launch`` and ``launch_ros``."""
    import launch
    import launch.actions
    import launch.substitutions
    import launch_ros.actions
    import launch_ros.parameter_descriptions

    return SimpleNamespace(
        LaunchDescription=launch.LaunchDescription,
        DeclareLaunchArgument=launch.actions.DeclareLaunchArgument,
        OpaqueFunction=launch.actions.OpaqueFunction,
        SetEnvironmentVariable=launch.actions.SetEnvironmentVariable,
        LaunchConfiguration=launch.substitutions.LaunchConfiguration,
        Node=launch_ros.actions.Node,
        ParameterValue=launch_ros.parameter_descriptions.ParameterValue,
    )


def _closed(choices: tuple[str, ...]) -> bool:
    return bool(choices) and not set(BOOLEAN) <= set(choices)
