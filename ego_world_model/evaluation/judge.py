"""What the keypoint estimator says of a clip's frames, against the simulator's truth."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from ego_world_model.data.schema import MASK_CLASSES, Episode
from ego_world_model.evaluation import metrics, pose
from ego_world_model.evaluation.moved_object import moved_object
from ego_world_model.hands import SLOTS_PER_HAND
from ego_world_model.perception import CLASS_NAMES, KeypointEstimator, visible_joints

MOVING_PX = 8.0
"""A joint counts as moving in a frame if it lies this far from its place in the reference."""
GRASP_FRAMES = 3
"""Frames at the end of a clip on which it is judged whether the object followed."""
FOLLOWS_IOU = 0.5

Errors = dict[str, dict[str, NDArray[np.float64]]]
"""{"all" | "moving": {"px" | "mm": (n,)}}, a distance for each counted joint of each frame."""


class Judge:
    """Measures frames 1.. of one clip with the estimator, against the simulator's truth.

    Metrics:

    - ``hand_iou`` (either hand), ``arms_iou``;
    - ``control_error_px`` and ``moving_control_error_px``: mean over joints that can be seen in the
      true frame, the second over those that moved at least ``MOVING_PX``;
    - ``control_error_mm`` and ``moving_control_error_mm``: the same joints' MPJPE after what the
      estimator found was put at the commanded joint's depth (``pose.lift``): the error across the
      line of sight;
    - ``pa_mpjpe_mm``: of all these joints after each hand of each frame was aligned to the
      commanded one by rotation, translation and scale: its shape without its place;
    - ``object_iou`` over the last ``GRASP_FRAMES`` frames and ``object_follows`` (1 or 0), in clips
      with a moved object only. The estimator knows objects but not which one was moved, so pixels
      of the others, as the simulator shows them, are left out.

    Raises:
        ValueError: if the clip has no masks.
    """

    def __init__(self, clip: Episode, estimator: KeypointEstimator) -> None:
        if clip.masks is None:
            raise ValueError("a clip without masks cannot be judged; use simulated episodes")
        self.estimator, self.camera, self.masks = estimator, clip.camera, clip.masks
        slots = np.array(estimator.config.slot_numbers)
        pixels, visible = visible_joints(
            clip.hand_positions, clip.hand_valid, clip.masks, clip.camera, clip.depth
        )
        self.pixels, self.visible = pixels[:, slots], visible[1:, slots]
        self.joints = clip.hand_positions[1:, slots]  # (T - 1, K, 3) metres
        self.left = slots < SLOTS_PER_HAND
        self.moved = moved_object(clip.masks)

    def __call__(self, frames: NDArray[np.uint8]) -> tuple[dict[str, float], Errors]:
        """Metrics of (T - 1, H, W, 3) frames, and the distances behind the control errors."""
        said = self.estimator(frames)
        truth = self.masks[1:]
        lifted = pose.lift(said.pixels, self.joints[..., 2], self.camera)
        errors = {
            name: self._errors(said.pixels, lifted, moved)
            for name, moved in (("all", 0.0), ("moving", MOVING_PX))
        }
        scores = {
            "hand_iou": metrics.iou(said.hand_mask(), _is(truth, "left_hand", "right_hand")),
            "arms_iou": metrics.iou(
                said.classes == CLASS_NAMES.index("arms"), _is(truth, "left_arm", "right_arm")
            ),
            "control_error_px": _mean(errors["all"]["px"]),
            "moving_control_error_px": _mean(errors["moving"]["px"]),
            "control_error_mm": _mean(errors["all"]["mm"]),
            "moving_control_error_mm": _mean(errors["moving"]["mm"]),
            "pa_mpjpe_mm": _mean(self._aligned_errors(lifted)),
        }
        overlap = self._object_iou(said.classes)
        scores["object_iou"] = overlap
        scores["object_follows"] = (
            float("nan") if np.isnan(overlap) else float(overlap >= FOLLOWS_IOU)
        )
        return scores, errors

    def _errors(
        self, pixels: NDArray[np.float32], lifted: NDArray[np.float64], moved: float
    ) -> dict[str, NDArray[np.float64]]:
        """Distances of the counted joints in pixels and in millimetres at the commanded depth."""
        counted = metrics.counted_joints(self.pixels, self.visible, moved=moved)
        return {
            "px": metrics.control_error(pixels, self.pixels, self.visible, moved=moved),
            "mm": 1000 * pose.joint_distances(lifted, self.joints, counted)[counted],
        }

    def _aligned_errors(self, lifted: NDArray[np.float64]) -> NDArray[np.float64]:
        """(n,) mm of visible joints after each hand's alignment, where that can be made."""
        errors = []
        for hand in (self.left, ~self.left):
            found, true = lifted[:, hand], self.joints[:, hand]
            aligned = pose.procrustes(found, true, self.visible[:, hand])
            distances = pose.joint_distances(aligned, true)
            errors.append(distances[np.isfinite(distances)])
        return 1000 * np.concatenate(errors)

    def _object_iou(self, classes: NDArray[np.uint8]) -> float:
        if self.moved is None:
            return float("nan")
        there, last = self.moved[-GRASP_FRAMES:], self.masks[-GRASP_FRAMES:]
        other = _is(last, "manipulated_object", "other_objects") & ~there
        other = binary_dilation(other, np.ones((1, 3, 3), bool)) & ~there
        found = classes[-GRASP_FRAMES:] == CLASS_NAMES.index("objects")
        return metrics.iou(found & ~other, there)


def _is(masks: NDArray[np.uint8], *names: str) -> NDArray[np.bool_]:
    return np.isin(masks, [MASK_CLASSES.index(name) for name in names])


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else float("nan")
