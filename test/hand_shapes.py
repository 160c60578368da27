"""Plain geometric hands for tests that need no robot."""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
