"""Classifier-free guidance on text and on control: leading an estimate away from going without.

Every branch differs from the full condition in one thing alone, so each scale has a meaning of its
own: the text branch keeps the joints, the control branch keeps the prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ego_world_model.world_model.backbones import Condition

FULL, WITHOUT_TEXT, WITHOUT_CONTROL = "full", "without_text", "without_control"


@dataclass(frozen=True, kw_only=True)
class GuidanceBranch:
    """One thing that estimates are led away from.

    Attributes:
        name: which (``WITHOUT_TEXT`` or ``WITHOUT_CONTROL``); caches keep branches apart by it.
        condition: the full condition but for that thing.
        scale: 1 leaves the estimate as it is and costs no forward.
    """

    name: str
    condition: Condition
    scale: float


def guided(
    estimate: Callable[[Condition, str], Tensor],
    condition: Condition,
    branches: Sequence[GuidanceBranch],
) -> Tensor:
    """The guided estimate of the clean latents, (B, C, t, h, w).

    With the estimates ``full``, ``without_text`` and ``without_control`` and scales g_t and g_c::

        full + (g_t - 1) (full - without_text) + (g_c - 1) (full - without_control)

    With one scale at 1 this is the usual ``without + g (full - without)`` of
    classifier-free guidance (arXiv 2207.12598).

    Args:
        estimate: called as estimate(condition, branch name), once for ``condition`` and once for
            each branch whose scale is not 1.
    """
    full = estimate(condition, FULL)
    clean = full
    for branch in branches:
        if branch.scale != 1:
            without = estimate(branch.condition, branch.name)
            clean = clean + (branch.scale - 1) * (full - without)
    return clean
