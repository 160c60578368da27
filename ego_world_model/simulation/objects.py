"""Objects and surfaces of the table scene, drawn from catalogues that the splits do not share.

A catalogue entry is a whole object (shape, size, colour) or a whole texture made from its number.
Entry n belongs to "test" where n % 10 == 9, to "validation" where n % 10 == 8, else to "train".
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "validation", "test")
_CATALOGUE_SIZE = 400
_HUES = (
    (0.0, "red"),
    (0.07, "orange"),
    (0.15, "yellow"),
    (0.33, "green"),
    (0.5, "cyan"),
    (0.61, "blue"),
    (0.77, "purple"),
    (0.9, "pink"),
    (1.0, "red"),
)


@dataclass(frozen=True)
class ObjectPart:
    """One primitive of an object: MuJoCo geom type name, half sizes (m), offset (m), colour."""

    kind: str
    size: tuple[float, float, float]
    offset: tuple[float, float, float]
    rgb: tuple[float, float, float]


@dataclass(frozen=True)
class TableObject:
    """An object of the catalogue, standing upright with its origin at its centre.

    Attributes:
        name: what an instruction calls it, e.g. "red box".
        radius: metres, half its widest horizontal extent. height: metres.
    """

    number: int
    name: str
    radius: float
    height: float
    parts: tuple[ObjectPart, ...]

    @property
    def for_two_hands(self) -> bool:
        """Whether it is too wide for one hand."""
        return self.radius > 0.06


def entries(split: str) -> NDArray[np.int64]:
    """Catalogue numbers of a split.

    Raises:
        ValueError: for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; splits are {', '.join(SPLITS)}")
    numbers = np.arange(_CATALOGUE_SIZE)
    digit = numbers % 10
    keep = {"train": digit < 8, "validation": digit == 8, "test": digit == 9}[split]
    return numbers[keep]


def colour_name(rgb: tuple[float, float, float]) -> str:
    """Everyday name of a colour."""
    hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
    if saturation < 0.2:
        return "white" if value > 0.6 else "grey"
    return min(_HUES, key=lambda entry: abs(entry[0] - hue))[1]


def make_object(number: int, *, large: bool = False) -> TableObject:
    """Object ``number`` of the catalogue; ``large`` ones are boxes for two hands."""
    rng = np.random.default_rng((7, number, int(large)))
    saturated = rng.random() < 0.88
    rgb = colorsys.hsv_to_rgb(
        rng.random(), rng.uniform(0.65, 1.0) if saturated else 0.05, rng.uniform(0.6, 0.95)
    )
    dark = tuple(0.6 * c for c in rgb)
    if large:
        half = (rng.uniform(0.035, 0.05), rng.uniform(0.1, 0.115), rng.uniform(0.035, 0.055))
        lid = ObjectPart("box", (half[0], half[1] * 0.18, 0.002), (0, 0, half[2]), dark)
        parts = (ObjectPart("box", half, (0.0, 0.0, 0.0), rgb), lid)
        return TableObject(number, f"large {colour_name(rgb)} box", half[1], 2 * half[2], parts)
    kind = ("box", "cylinder", "ball", "can", "bottle", "mug")[rng.integers(6)]
    radius, height = rng.uniform(0.024, 0.034), rng.uniform(0.08, 0.14)
    centre = (0.0, 0.0, 0.0)
    if kind == "box":
        parts = (
            ObjectPart("box", (radius, radius * rng.uniform(0.7, 1), height / 2), centre, rgb),
        )
    elif kind == "ball":
        radius = rng.uniform(0.032, 0.042)
        height = 2 * radius
        parts = (ObjectPart("sphere", (radius, 0, 0), centre, rgb),)
    elif kind == "bottle":
        body, neck = 0.66 * height, 0.34 * height
        parts = (
            ObjectPart("cylinder", (radius, body / 2, 0), (0, 0, (body - height) / 2), rgb),
            ObjectPart("cylinder", (0.42 * radius, neck / 2, 0), (0, 0, (height - neck) / 2), dark),
        )
    elif kind == "mug":
        height = rng.uniform(0.075, 0.1)
        handle = ObjectPart("box", (0.009, 0.006, height * 0.28), (radius + 0.008, 0, 0), dark)
        parts = (ObjectPart("cylinder", (radius, height / 2, 0), centre, rgb), handle)
    else:
        parts = (ObjectPart("cylinder", (radius, height / 2, 0), centre, rgb),)
        if kind == "can":
            band = ObjectPart("cylinder", (radius * 1.01, height * 0.14, 0), centre, dark)
            parts = (*parts, band)
    return TableObject(number, f"{colour_name(rgb)} {kind}", radius, height, parts)


def make_texture(number: int, size: int = 128) -> NDArray[np.uint8]:
    """Texture ``number`` of the catalogue, (size, size, 3) RGB."""
    rng = np.random.default_rng((11, number))
    base = np.array(
        colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.05, 0.45), rng.uniform(0.45, 0.9))
    )
    y, x = np.mgrid[0:size, 0:size] / size
    kind = rng.integers(5)
    if kind == 0:  # wood: warped stripes along one direction
        warp = 0.05 * np.sin(2 * np.pi * (y * rng.integers(1, 3) + rng.random()))
        field = np.sin(2 * np.pi * (x + warp) * rng.integers(3, 9)) * 0.09
    elif kind == 1:  # tiles
        n = int(rng.integers(3, 9))
        field = 0.08 * (((x * n).astype(int) + (y * n).astype(int)) % 2 * 2 - 1)
    elif kind == 2:  # weave
        n = int(rng.integers(8, 16))
        field = 0.05 * np.sin(2 * np.pi * n * x) * np.sin(2 * np.pi * n * y)
    elif kind == 3:  # soft clouds
        field = sum(
            0.05 * np.sin(2 * np.pi * (fx * x + fy * y) + phase)
            for fx, fy, phase in zip(
                rng.integers(-3, 4, 6), rng.integers(-3, 4, 6), rng.uniform(0, 6.28, 6), strict=True
            )
        )
    else:
        field = np.zeros((size, size))
    speckle = rng.normal(0, rng.uniform(0, 0.02), (size, size))
    rgb = base * (1 + (field + speckle)[..., None] * rng.uniform(0.6, 1.4))
    return (np.clip(rgb, 0, 1) * 255).astype(np.uint8)
