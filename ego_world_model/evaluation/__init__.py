"""How good imagined frames are: metrics, held-out benchmark, obedience, reports."""

from ego_world_model.evaluation.metrics import (
    Estimate,
    control_error,
    estimate,
    iou,
    l1,
    psnr,
    regions,
    ssim,
)

__all__ = ["Estimate", "control_error", "estimate", "iou", "l1", "psnr", "regions", "ssim"]
