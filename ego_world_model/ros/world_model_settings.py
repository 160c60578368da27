"""The parameters of the ``world_model`` node."""

from __future__ import annotations

import os
from dataclasses import dataclass

from rclpy.node import Node

from ego_world_model.ros.joint_time_offset import declare_joint_time_offset
from ego_world_model.ros.parameters import declare
from ego_world_model.ros.rollout_inputs import MOTION_SOURCES
from ego_world_model.ros.rollouts import Sampling


@dataclass(frozen=True)
class Settings:
    """Parameters that hold for the node's life; see :func:`declare_settings` for each."""

    autostart: bool
    checkpoint: str
    device: str
    embodiment: str
    motion_source: str
    threads: int
    niceness: int
    max_staleness: float
    joint_tolerance: float
    joint_time_offset: float
    silence_timeout: float
    max_candidates: int
    only_when_subscribed: bool


def declare_settings(node: Node) -> Settings:
    """Declare every parameter of the node and read those that never change.

    Raises:
        ParameterError: a value of the wrong type or out of range.
    """
    declare(node, "steps", 0, "denoising steps; 0: the checkpoint's", minimum=0, maximum=1000)
    declare(
        node,
        "guidance",
        0.0,
        "classifier-free guidance scale; 0: the checkpoint's",
        minimum=0.0,
        maximum=50.0,
    )
    declare(node, "seed", -1, "noise seed; -1: a fresh one for every rollout", minimum=-1)
    declare(node, "prompt", "", "text for checkpoints with a text encoder; empty otherwise")
    declare(
        node,
        "period",
        0.0,
        "seconds from the start of one continuous rollout to the start of the next; 0: the model's "
        "horizon, so that each imagined future plays to its end; 0.001: back to back",
        minimum=0.0,
        maximum=3600.0,
    )
    threads = declare(
        node,
        "threads",
        0,
        "CPU threads of the model; 0: all cores but one",
        minimum=0,
        maximum=1024,
        read_only=True,
    )
    return Settings(
        autostart=declare(
            node, "autostart", True, "configure and activate without being asked", read_only=True
        ),
        checkpoint=declare(
            node,
            "checkpoint",
            "tiny",
            "name of a shipped model, or a folder written by WorldModel.save_pretrained",
            read_only=True,
        ),
        device=declare(node, "device", "cpu", "torch device: cpu, cuda, cuda:1", read_only=True),
        embodiment=declare(
            node, "embodiment", "g1_dex3", "robot: a built-in name or a YAML file", read_only=True
        ),
        motion_source=declare(
            node,
            "motion_source",
            "planned",
            "motion to imagine: planned (joint_trajectory/planned) or predicted (hands/predicted)",
            choices=tuple(MOTION_SOURCES),
            read_only=True,
        ),
        threads=threads or max(1, (os.cpu_count() or 2) - 1),
        niceness=declare(
            node,
            "niceness",
            10,
            "how far the model's threads stand back behind the camera and the robot's state",
            minimum=0,
            maximum=19,
            read_only=True,
        ),
        max_staleness=declare(
            node,
            "max_staleness",
            0.5,
            "seconds after its arrival for which a camera frame may start a rollout",
            minimum=0.01,
            maximum=60.0,
            read_only=True,
        ),
        joint_tolerance=declare(
            node,
            "joint_tolerance",
            0.05,
            "longest gap in seconds between two joint states that a frame may lie in",
            minimum=0.001,
            maximum=1.0,
            read_only=True,
        ),
        joint_time_offset=declare_joint_time_offset(node),
        silence_timeout=declare(
            node,
            "silence_timeout",
            5.0,
            "seconds without an input after which the node says what is missing",
            minimum=0.5,
            maximum=600.0,
            read_only=True,
        ),
        max_candidates=declare(
            node,
            "max_candidates",
            16,
            "most candidates in one goal of the action imagine (memory grows with them)",
            minimum=1,
            maximum=1024,
            read_only=True,
        ),
        only_when_subscribed=declare(
            node,
            "only_when_subscribed",
            False,
            "imagine continuously only while someone listens to the imagined topics",
            read_only=True,
        ),
    )


def sampling(node: Node) -> Sampling:
    """How to sample the next continuous rollout; these parameters may change at any time."""
    return Sampling(
        steps=node.get_parameter("steps").value or None,
        guidance=node.get_parameter("guidance").value or None,
        seed=node.get_parameter("seed").value,
        prompt=node.get_parameter("prompt").value,
    )
