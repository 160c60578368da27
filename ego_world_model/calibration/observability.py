"""Whether annotated frames determine the camera, and what to annotate where they do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ego_world_model.calibration.problem import INTRINSICS, ROTATION, TRANSLATION, Parameter

ENOUGH = 0.1
"""A direction counts as constrained where its standard deviation is below this share of its bound
(with the default bounds: 5 mm and 1 degree)."""

_IN_WORDS = {
    ROTATION[0]: "tilt up and down (rotation about x)",
    ROTATION[1]: "pan left and right (rotation about y)",
    ROTATION[2]: "roll about the optical axis (rotation about z)",
    TRANSLATION[0]: "translation to the right (x)",
    TRANSLATION[1]: "translation down (y)",
    TRANSLATION[2]: "translation along the optical axis (z)",
}
_DEPTHS = "annotate frames with hands at clearly different distances from the camera"
_SPREAD = "annotate joints far apart in the picture: both hands, high and low, near its edges"


@dataclass(frozen=True, kw_only=True)
class Observability:
    """How well the frames determine the unknowns, before looking at the residuals.

    Attributes:
        singular_values: (P,) falling, of the Jacobian in standard deviations per bound: 1/s is the
            standard deviation of a direction of the unknowns as a share of its bounds.
        condition: largest over smallest singular value.
        constrained: whether every direction is known to ``ENOUGH``.
        weakest: the least determined direction in words.
        weakest_share: its standard deviation as a share of the bounds.
        remedy: what to annotate next; empty where constrained.
    """

    singular_values: NDArray[np.float64]
    condition: float
    constrained: bool
    weakest: str
    weakest_share: float
    remedy: str

    def sentence(self) -> str:
        """One sentence for people."""
        if self.constrained:
            return (
                "The frames constrain every unknown; least certain: "
                f"{self.weakest}, {self.weakest_share:.1%} of its bounds."
            )
        known = (
            f"known to {self.weakest_share:.0%} of its bounds only"
            if self.weakest_share < 1
            else "not known at all"
        )
        return f"The frames do NOT constrain {self.weakest}: {known}; {self.remedy}."


def observability(jacobian: NDArray[np.float64], parameters: Sequence[Parameter]) -> Observability:
    """Judge a Jacobian (M, P) of residuals in standard deviations, priors included."""
    bounds = np.array([parameter.bound for parameter in parameters])
    _, singular, directions = np.linalg.svd(jacobian * bounds, full_matrices=False)
    smallest = max(float(singular[-1]), 1e-9 * float(singular[0]), 1e-300)
    direction = np.abs(directions[-1])
    order = np.argsort(-direction)
    # The second component belongs to the direction where it is a fair part of it (a coupling).
    leading = [parameters[i] for i in order if direction[i] > 0.5 * direction[order[0]]][:3]
    share = 1 / smallest
    constrained = share < ENOUGH
    return Observability(
        singular_values=singular,
        condition=float(singular[0]) / smallest,
        constrained=constrained,
        weakest=" with ".join(_IN_WORDS.get(p.name, p.name) for p in leading),
        weakest_share=share,
        remedy="" if constrained else _remedy(leading),
    )


def _remedy(leading: Sequence[Parameter]) -> str:
    names = {parameter.name for parameter in leading}
    joints = [parameter.joint for parameter in leading if parameter.joint]
    if joints:
        return f"annotate more poses that differ in {', '.join(joints)}, or do not refine it"
    if names & set(INTRINSICS):
        return f"{_DEPTHS} and near the picture's edges, or do not refine the intrinsics"
    if names == {ROTATION[2]}:
        return _SPREAD
    if len(names) == 1 and names <= set(TRANSLATION[:2]):
        return _DEPTHS
    return f"{_DEPTHS}, and {_SPREAD.removeprefix('annotate ')}"
