"""The two pictures of the live page, as they are sent to the browser."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

RGB = NDArray[np.uint8]

PICTURE_WIDTH = 512
"""Pixels; smaller pictures are enlarged to it, so that overlay and text stay crisp."""

_INK = (238, 240, 244)
_PAPER = (22, 24, 29)
_ACCENT = (255, 171, 64)


def enlarge(image: RGB, width: int = PICTURE_WIDTH) -> RGB:
    """(H, W, 3) scaled to ``width`` with its aspect ratio kept; larger images are left alone."""
    height = round(image.shape[0] * width / image.shape[1])
    if image.shape[1] >= width:
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def caption(image: RGB, text: str, progress: float | None = None) -> RGB:
    """The image with a text in its lower left corner and, over its lower edge, a progress bar."""
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas, "RGBA")
    width, height = canvas.size
    font = _font(max(11, height // 24))
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    pad = font.size // 3
    base = height - (6 if progress is not None else 0) - pad
    draw.rounded_rectangle(
        (pad, base - (bottom - top) - 2 * pad, 3 * pad + right - left, base),
        radius=pad,
        fill=(*_PAPER, 170),
    )
    draw.text((2 * pad - left, base - pad - bottom), text, font=font, fill=_INK)
    if progress is not None:
        draw.rectangle((0, height - 5, width, height), fill=(*_PAPER, 190))
        draw.rectangle((0, height - 5, round(width * progress), height), fill=_ACCENT)
    return np.asarray(canvas)


def placeholder(text: str, width: int = 640, height: int = 480) -> RGB:
    """A dark picture that says what is awaited."""
    canvas = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((width / 2, height / 2), text, font=_font(20), fill=(150, 156, 168), anchor="mm")
    return np.asarray(canvas)


@functools.lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
