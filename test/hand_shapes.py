"""Open hands facing the camera: a plain five-fingered one, and the robot's."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from ego_world_model.embodiment import load_embodiment
from ego_world_model.hands import SLOTS_PER_HAND, slot_index
from ego_world_model.kinematics import HandKinematics


def open_hand() -> Tensor:
    """An open flat hand facing the camera, (21, 3) metres in slot order, centred on the origin."""
    points = [(0.0, 0.0), (0.03, 0.02), (0.05, 0.045), (0.065, 0.07), (0.075, 0.095)]
    fingers = (
        (0.030, 0.090, (0.040, 0.025, 0.020)),
        (0.008, 0.095, (0.045, 0.028, 0.022)),
        (-0.012, 0.090, (0.040, 0.027, 0.020)),
        (-0.030, 0.080, (0.030, 0.020, 0.018)),
    )
    for x, y, phalanges in fingers:
        points.append((x, y))
        for length in phalanges:
            y += length
            points.append((x * 1.1, y))
    hand = torch.tensor([(x, -y, 0.0) for x, y in points])  # fingers up: image y points down
    return hand - hand.mean(dim=0)


def look_from(hand: Tensor, degrees: float) -> Tensor:
    """The hand tilted about the image's horizontal axis, fingers away from the camera."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return hand @ torch.tensor([[1.0, 0.0, 0.0], [0.0, c, s], [0.0, -s, c]]).T


def open_dex3_hand(degrees: float) -> tuple[Tensor, Tensor]:
    """The G1's left hand with straight fingers, from its forward kinematics.

    The palm's normal points at the camera before the hand is turned by ``degrees`` about its
    fingers. Returns joints (21, 3) metres, centred on the origin, and valid (21,).
    """
    robot = load_embodiment("g1_dex3")
    q = {n: 0.0 if "hand" in n else a for n, a in zip(robot.joint_names, robot.neutral)}
    hand = HandKinematics(robot).hand_joints(q)
    points, valid = hand.positions[:SLOTS_PER_HAND].astype(float), hand.valid[:SLOTS_PER_HAND]
    index, tip, middle = (
        points[slot_index(f"left_{name}")] for name in ("index_mcp", "index_tip", "middle_mcp")
    )
    along = (tip - index) / np.linalg.norm(tip - index)
    across = middle - index - along * (along @ (middle - index))
    across /= np.linalg.norm(across)
    points = (points - points[valid].mean(axis=0)) @ np.stack(
        [across, -along, np.cross(across, -along)], axis=1
    )
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turned = points @ np.array([[c, 0.0, s], [0.0, 1.0, 0.0], [-s, 0.0, c]]).T
    return torch.from_numpy(turned).float(), torch.from_numpy(valid)
