"""The parameters of the ``robot_sim`` node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rclpy.node import Node

from ego_world_model.ros.parameters import declare
from ego_world_model.simulation import SPLITS, TASKS


@dataclass(frozen=True)
class Settings:
    """Parameters, all of which hold for the node's life; see :func:`declare_settings`."""

    embodiment: str
    seed: int
    split: str
    task: str
    width: int
    height: int
    camera_rate: float
    joint_rate: float
    plan_rate: float
    plan_horizon: float
    resume_after: float
    max_joint_speed: float
    execute: bool
    instruction: str
    task_patience: float
    task_pause: float
    tasks_per_scene: int

    def table_options(self) -> dict[str, Any]:
        """Keyword arguments of ``TableTop``, or of ``InstructedTable`` with ``execute``."""
        options = {name: getattr(self, name) for name in ("seed", "split", "width", "height")}
        options["task"] = self.task or None
        if self.execute:
            options |= {
                "patience": self.task_patience,
                "pause": self.task_pause,
                "tasks_per_scene": self.tasks_per_scene,
            }
        return options


def declare_settings(node: Node) -> Settings:
    """Declare every parameter of the node.

    Raises:
        ParameterError: a value of the wrong type or out of range.
    """

    def fixed(name: str, default: Any, description: str, low: Any = None, high: Any = None) -> Any:
        return declare(node, name, default, description, minimum=low, maximum=high, read_only=True)

    return Settings(
        embodiment=fixed(
            "embodiment",
            "g1_dex3",
            "robot: a built-in name, or the path of an embodiment YAML with an MJCF model",
        ),
        seed=fixed("seed", 0, "scene, tasks and motion", 0),
        split=declare(
            node,
            "split",
            "test",
            "which objects, textures and seeds: those of training, or held-out ones",
            choices=SPLITS,
            read_only=True,
        ),
        task=declare(
            node,
            "task",
            "",
            "do only this task; empty: one after the other",
            choices=("", *TASKS),
            read_only=True,
        ),
        width=fixed("width", 640, "image width", 32, 1920),
        height=fixed("height", 480, "image height", 32, 1080),
        camera_rate=fixed("camera_rate", 15.0, "images per second", 0.5, 60.0),
        joint_rate=fixed("joint_rate", 125.0, "joint states per second", 10.0, 500.0),
        plan_rate=fixed("plan_rate", 5.0, "least plans per second", 0.2, 15.0),
        plan_horizon=fixed(
            "plan_horizon", 3.0, "seconds that the published plan reaches ahead", 1.0, 3.5
        ),
        resume_after=fixed(
            "resume_after",
            5.0,
            "seconds behind the end of a followed trajectory at which the scripted tasks go on; "
            "-1: never",
            -1.0,
            3600.0,
        ),
        max_joint_speed=fixed(
            "max_joint_speed", 10.0, "rad/s; faster trajectories are refused", 0.1, 100.0
        ),
        execute=fixed(
            "execute",
            False,
            "follow the motion policy (joint_trajectory/predicted) through tasks in words, instead "
            "of scripted motion",
        ),
        instruction=fixed(
            "instruction",
            "",
            "your own words instead of the tasks, as if published on `instruction`; empty: the "
            "tasks",
        ).strip(),
        task_patience=fixed(
            "task_patience",
            12.0,
            "seconds in which a task is to be achieved (with execute)",
            1.0,
            3600.0,
        ),
        task_pause=fixed(
            "task_pause", 2.5, "seconds from success to the next task (with execute)", 0.0, 3600.0
        ),
        tasks_per_scene=fixed(
            "tasks_per_scene",
            4,
            "tasks after which the scene changes; a failed one changes it, too (with execute)",
            1,
            1000,
        ),
    )
