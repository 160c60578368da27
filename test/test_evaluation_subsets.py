"""Which clips count as occlusion-heavy: joints that something is drawn over, and no others."""

from dataclasses import replace

import numpy as np
import pytest
import synthetic_scenes

from ego_world_model.data.schema import MASK_CLASSES
from ego_world_model.evaluation.subsets import HEAVY, is_heavy, occlusion
from ego_world_model.hands import SLOT_NAMES


def open_hand_clip():
    """One drawn left hand with its joints side by side: nothing hides anything."""
    clip = synthetic_scenes.episode(0)
    left = np.array([name.startswith("left") for name in clip.slot_names])
    masks = np.where(clip.masks == 1, clip.masks, 0).astype(np.uint8)
    return replace(clip, hand_valid=clip.hand_valid & left, masks=masks)


def covered(clip, share: float, what: str):
    """The clip with something else drawn over the given share of its joints, in all frames."""
    masks = clip.masks.copy()
    slots = [s for s, name in enumerate(SLOT_NAMES) if clip.hand_valid[0, s]]
    for slot in slots[: round(share * len(slots))]:
        pixels = np.rint(clip.camera.project(clip.hand_positions[:, slot])).astype(int)
        for k, (u, v) in enumerate(pixels):
            masks[k, v, u] = MASK_CLASSES.index(what)
    return replace(clip, masks=masks)


def test_open_hand_over_an_empty_table_is_not_occluded():
    assert occlusion(open_hand_clip()) == 0
    assert not is_heavy(open_hand_clip())


@pytest.mark.parametrize("what", ["right_hand", "right_arm", "manipulated_object", "other_objects"])
def test_joints_behind_something_else_are_counted(what):
    clip = open_hand_clip()
    joints = clip.hand_valid[0, :42].sum()
    shown = occlusion(covered(clip, 0.5, what))
    assert shown == pytest.approx(round(0.5 * joints) / joints, abs=0.05)
    assert is_heavy(covered(clip, 0.5, what)) and shown >= HEAVY


def test_joint_that_rounds_to_the_table_is_not_hidden():
    assert occlusion(covered(open_hand_clip(), 0.5, "background")) == 0


def test_joints_outside_the_image_do_not_count():
    clip = open_hand_clip()
    positions = clip.hand_positions.copy()
    positions[:, 0, 0] += 5  # the wrist, far to the right
    assert occlusion(replace(clip, hand_positions=positions)) == 0
    positions[..., 0] += 5
    assert np.isnan(occlusion(replace(clip, hand_positions=positions)))


def test_own_hand_hides_its_joints():
    clip = open_hand_clip()
    positions = clip.hand_positions.copy()
    wrist, index, middle = (
        SLOT_NAMES.index(f"left_{joint}") for joint in ("wrist", "index_tip", "middle_tip")
    )
    between = 0.5 * (positions[:, wrist] + positions[:, index])
    positions[:, middle] = between * (0.65 / 0.5)  # on the ray through the index finger, behind it
    clip = replace(clip, hand_positions=positions, masks=np.ones_like(clip.masks))
    assert occlusion(clip) == pytest.approx(1 / clip.hand_valid[0, :42].sum(), abs=0.01)


def test_clip_without_masks_is_refused():
    with pytest.raises(ValueError, match="this clip has none"):
        occlusion(replace(open_hand_clip(), masks=None))
