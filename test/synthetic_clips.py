"""Episodes drawn in numpy: dark capsule hands over a textured table. Quick, and no renderer needed.

They carry what training reads (frames, masks, slots, camera), with known geometry.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ego_world_model.camera import PinholeCamera
from ego_world_model.data import Episode
from ego_world_model.hands import EXTRA_SLOTS, SLOT_NAMES

NAMES = (*SLOT_NAMES, *EXTRA_SLOTS)
_FINGERS = {
    "thumb": ("cmc", "mcp", "ip", "tip"),
    "index": ("mcp", "pip", "tip"),
    "middle": ("mcp", "pip", "tip"),
}


def synthetic_episode(
    seed: int, *, frames: int = 24, width: int = 128, height: int = 96, fps: float = 10.0
) -> Episode:
    """A still camera over a random table; two hands wander, the right one carries a ball."""
    rng = np.random.default_rng(seed)
    camera = PinholeCamera(640, 480, 606.0, 606.0, 319.5, 239.5).resized(width, height)
    positions = np.zeros((frames, len(NAMES), 3), np.float32)
    valid = np.zeros((frames, len(NAMES)), bool)
    time = np.arange(frames) / fps
    for side, sign in (("left", -1.0), ("right", 1.0)):
        for name, track in _hand_tracks(rng, time, sign).items():
            slot = NAMES.index(f"{side}_{name}")
            positions[:, slot], valid[:, slot] = track, True
    texture = _table(rng, height, width)
    images = np.repeat(texture[None], frames, axis=0)
    masks = np.zeros((frames, height, width), np.uint8)
    for k in range(frames):
        _draw_frame(images[k], masks[k], positions[k], camera)
    poses = np.repeat(np.eye(4)[None], frames, axis=0)
    return Episode(
        fps=fps,
        images=images,
        state=np.zeros((frames, 1), np.float32),
        action=np.zeros((frames, 1), np.float32),
        hand_positions=positions,
        hand_valid=valid,
        slot_names=NAMES,
        camera_pose=poses,
        camera=camera,
        task="wander over the table",
        embodiment="synthetic",
        joint_names=("joint",),
        masks=masks,
    )


def _hand_tracks(
    rng: np.random.Generator, time: NDArray[np.float64], sign: float
) -> dict[str, NDArray[np.float64]]:
    """Joint name → (T, 3) metres in the camera frame."""

    def wave(amplitude: float) -> NDArray[np.float64]:
        frequency, phase = rng.uniform(0.15, 0.5), rng.uniform(0, 2 * np.pi)
        return amplitude * np.sin(2 * np.pi * frequency * time + phase)

    wrist = np.stack(
        [sign * rng.uniform(0.05, 0.15) + wave(0.08), 0.08 + wave(0.06), 0.45 + wave(0.08)], 1
    )
    angle, curl = rng.uniform(-0.5, 0.5) + wave(0.5), 0.5 + wave(0.5)
    tracks = {"wrist": wrist}
    elbow = wrist + np.array([sign * 0.12, 0.22, -0.12])
    tracks |= {"elbow": elbow, "forearm": 0.5 * (elbow + wrist)}
    for number, (finger, joints) in enumerate(_FINGERS.items()):
        spread = angle + (number - 1) * 0.6 * -sign
        point = wrist + 0.04 * np.stack([np.sin(spread), -np.cos(spread), 0 * spread], 1)
        for step, joint in enumerate(joints):
            tracks[f"{finger}_{joint}"] = point
            bend = curl * step * (0.6 + 0.2 * number)
            direction = [
                np.sin(spread) * np.cos(bend),
                -np.cos(spread) * np.cos(bend),
                np.sin(bend),
            ]
            point = point + 0.035 * np.stack(direction, 1)
    return tracks


def _table(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    coarse = rng.uniform(60, 220, (height // 16, width // 16, 3))
    image = np.repeat(np.repeat(coarse, 16, 0), 16, 1)[:height, :width]
    image += rng.uniform(-12, 12, (height, width, 1))
    for _ in range(4):
        y, x = rng.integers(0, height - 16), rng.integers(0, width - 16)
        image[y : y + rng.integers(8, 20), x : x + rng.integers(8, 20)] = rng.uniform(0, 255, 3)
    return image.clip(0, 255).astype(np.uint8)


def _draw_frame(
    image: NDArray[np.uint8],
    mask: NDArray[np.uint8],
    positions: NDArray[np.float32],
    camera: PinholeCamera,
) -> None:
    def at(name: str) -> NDArray[np.float32]:
        return positions[NAMES.index(name)]

    parts = []  # (mean depth, start, end, radius, mask class, colour)
    for side, hand, arm in (("left", 1, 3), ("right", 2, 4)):
        wrist = at(f"{side}_wrist")
        parts.append((at(f"{side}_elbow"), wrist, 0.03, arm, (150, 150, 155)))
        parts.append((wrist, at(f"{side}_index_mcp"), 0.025, hand, (45, 45, 50)))
        for finger, joints in _FINGERS.items():
            chain = [at(f"{side}_{finger}_{joint}") for joint in joints]
            parts += [(a, b, 0.008, hand, (30, 30, 35)) for a, b in zip(chain[:-1], chain[1:])]
    ball = at("right_middle_tip")
    parts.append((ball, ball, 0.02, 5, (200, 60, 40)))
    for a, b, radius, label, colour in sorted(parts, key=lambda p: -(p[0][2] + p[1][2])):
        _capsule(image, mask, camera, a, b, radius, label, np.array(colour))


def _capsule(image, mask, camera, a, b, radius, label, colour) -> None:
    """Paint the image of a capsule from a to b, shaded towards its edge."""
    u, v = camera.project(a), camera.project(b)
    pixels = radius * camera.fx / (0.5 * (a[2] + b[2]))
    height, width = mask.shape
    low = np.floor(np.minimum(u, v) - pixels).clip(0, (width, height)).astype(int)
    high = np.ceil(np.maximum(u, v) + pixels + 1).clip(0, (width, height)).astype(int)
    if (high <= low).any():
        return
    y, x = np.mgrid[low[1] : high[1], low[0] : high[0]]
    along = v - u
    t = ((x - u[0]) * along[0] + (y - u[1]) * along[1]) / max(1e-9, float(along @ along))
    t = t.clip(0, 1)
    distance = np.hypot(x - u[0] - t * along[0], y - u[1] - t * along[1]) / pixels
    inside = distance <= 1
    shade = (1.25 - 0.5 * distance[inside])[:, None] * colour
    image[low[1] : high[1], low[0] : high[0]][inside] = shade.clip(0, 255)
    mask[low[1] : high[1], low[0] : high[0]][inside] = label
