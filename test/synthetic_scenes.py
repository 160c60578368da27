"""Small drawn scenes with exact labels, for tests that need episodes but no simulator.

Two coloured hands of a few visible joints and one block slide over a plain table; the block follows
the right hand. Masks, joints and pixels agree exactly, since everything is drawn from the joints.
"""

from __future__ import annotations

import numpy as np

from ego_world_model.camera import PinholeCamera
from ego_world_model.data.schema import Episode
from ego_world_model.hands import EXTRA_SLOTS, NUM_SLOTS, SLOT_NAMES

CAMERA = PinholeCamera(128, 96, 120.0, 120.0, 63.5, 47.5)
JOINTS = ("wrist", "thumb_tip", "index_tip", "middle_tip")
SLOTS = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in JOINTS)
_OFFSETS = np.array([(0, 0), (9, 1), (6, -9), (-3, -10)], np.float64)  # pixels from the wrist
_COLOURS = np.array([(200, 60, 50), (230, 200, 40), (40, 170, 220), (70, 220, 90)], np.uint8)


def episode(seed: int, frames: int = 17, fps: float = 10.0) -> Episode:
    """A drawn episode; hands, and the block from the middle on, move at random."""
    rng = np.random.default_rng(seed)
    shape = (frames, CAMERA.height, CAMERA.width)
    images = np.full((*shape, 3), rng.integers(90, 140, 3), np.uint8)
    masks = np.zeros(shape, np.uint8)
    positions = np.zeros((frames, NUM_SLOTS + len(EXTRA_SLOTS), 3), np.float32)
    valid = np.zeros(NUM_SLOTS + len(EXTRA_SLOTS), bool)
    phase = np.linspace(0, 1, frames)[:, None]
    for side, (low, high) in enumerate(((22, 52), (78, 102))):
        start, end = rng.uniform((low, 35), (high, 70), (2, 2))
        wrist = start + (end - start) * phase
        pixels = wrist[:, None] + _OFFSETS * (1 if side else (-1, 1))
        if side:
            for k in range(frames):  # the block, held beside the wrist
                _square(images[k], masks[k], wrist[k] + (0, 12), 5, (240, 240, 240), 5)
        for j, joint in enumerate(JOINTS):
            slot = SLOT_NAMES.index(f"{'right' if side else 'left'}_{joint}")
            valid[slot] = True
            depth = np.full(frames, 0.5)
            positions[:, slot] = CAMERA.unproject(pixels[:, j], depth)
            for k in range(frames):
                tint = _COLOURS[j] if side else _COLOURS[j][::-1]
                _square(images[k], masks[k], pixels[k, j], 2, tint, 1 + side)
    return Episode(
        fps=fps,
        images=images,
        state=np.zeros((frames, 2)),
        action=np.zeros((frames, 2)),
        hand_positions=positions,
        hand_valid=valid,
        slot_names=SLOT_NAMES + EXTRA_SLOTS,
        camera_pose=np.repeat(np.eye(4)[None], frames, axis=0),
        camera=CAMERA,
        task="slide the block",
        embodiment="drawn",
        joint_names=("first", "second"),
        masks=masks,
        metadata={"seed": seed, "split": "test"},
    )


def _square(image, mask, centre, half, colour, label) -> None:
    u, v = np.rint(centre).astype(int)
    area = (slice(max(0, v - half), v + half + 1), slice(max(0, u - half), u + half + 1))
    image[area], mask[area] = colour, label
