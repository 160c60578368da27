"""The parameters of the ``motion_policy`` node."""

from __future__ import annotations

from dataclasses import dataclass

from rclpy.node import Node

from ego_world_model.ros.joint_time_offset import declare_joint_time_offset
from ego_world_model.ros.parameters import declare


@dataclass(frozen=True)
class Settings:
    """Parameters that hold for the node's life; see :func:`declare_settings` for each."""

    autostart: bool
    checkpoint: str
    device: str
    embodiment: str
    threads: int
    niceness: int
    use_depth: bool
    depth_wait: float
    joint_tolerance: float
    joint_wait: float
    joint_time_offset: float
    silence_timeout: float


@dataclass(frozen=True)
class Sampling:
    """How the next chunk is made; these parameters may change at any time.

    Attributes:
        period: seconds between the starts of two chunks.
        steps: integration steps; None = the checkpoint's.
        seed: noise seed; None = fresh noise for every chunk.
        smoothing: whether overlapping chunks are averaged.
    """

    period: float
    steps: int | None
    seed: int | None
    smoothing: bool


def declare_settings(node: Node) -> Settings:
    """Declare every parameter of the node and read those that never change.

    Raises:
        ParameterError: a value of the wrong type or out of range.
    """
    declare(
        node, "rate", 4.0, "chunks per second, at most one per image", minimum=0.1, maximum=60.0
    )
    declare(node, "steps", 0, "integration steps; 0: the checkpoint's", minimum=0, maximum=1000)
    declare(node, "seed", -1, "noise seed; -1: fresh noise for every chunk", minimum=-1)
    declare(
        node,
        "smoothing",
        True,
        "average a chunk with what the one before says of the same moment (temporal orthogonal "
        "filtering)",
    )
    return Settings(
        autostart=declare(
            node, "autostart", True, "configure and activate without being asked", read_only=True
        ),
        checkpoint=declare(
            node,
            "checkpoint",
            "tiny",
            "name of a shipped policy, or a folder written by MotionPolicy.save_pretrained",
            read_only=True,
        ),
        device=declare(node, "device", "cpu", "torch device: cpu, cuda, cuda:1", read_only=True),
        embodiment=declare(
            node, "embodiment", "g1_dex3", "robot: a built-in name or a YAML file", read_only=True
        ),
        threads=declare(
            node, "threads", 1, "CPU threads of the policy", minimum=1, maximum=1024, read_only=True
        ),
        niceness=declare(
            node,
            "niceness",
            0,
            "how far the policy's thread stands back; keep it below the world model's, whose "
            "rollouts may wait",
            minimum=0,
            maximum=19,
            read_only=True,
        ),
        use_depth=declare(
            node,
            "use_depth",
            True,
            "show the policy the aligned depth images where they come",
            read_only=True,
        ),
        depth_wait=declare(
            node,
            "depth_wait",
            0.03,
            "seconds that a frame waits for its depth image, where depth images come",
            minimum=0.0,
            maximum=1.0,
            read_only=True,
        ),
        joint_tolerance=declare(
            node,
            "joint_tolerance",
            0.05,
            "seconds: joint states further apart are not interpolated, the frame is dropped",
            minimum=0.001,
            maximum=1.0,
            read_only=True,
        ),
        joint_wait=declare(
            node,
            "joint_wait",
            0.1,
            "seconds that a frame waits for the joint state behind its stamp",
            minimum=0.0,
            maximum=2.0,
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
    )


def sampling(node: Node) -> Sampling:
    """How to make the next chunk."""
    seed = node.get_parameter("seed").value
    return Sampling(
        period=1.0 / node.get_parameter("rate").value,
        steps=node.get_parameter("steps").value or None,
        seed=None if seed < 0 else seed,
        smoothing=node.get_parameter("smoothing").value,
    )
