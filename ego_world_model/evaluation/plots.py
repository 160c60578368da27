"""Plots of an evaluation, drawn with Pillow: lines with interval bands, and rows of intervals.

Pillow is a dependency already; what reports need (two kinds of plot) does not warrant another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ego_world_model.evaluation.metrics import Estimate

INK, GRID, WHITE = (40, 40, 40), (225, 225, 225), (255, 255, 255)
COLOURS = (
    (200, 60, 40),
    (40, 110, 200),
    (50, 150, 80),
    (150, 90, 180),
    (120, 120, 120),
    (200, 140, 30),
    (20, 150, 160),
    (190, 80, 140),
)

PANEL = (420, 300)
"""Pixels of one panel of a figure."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 24, 38, 46


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Lines over a shared x axis, each point with its interval.

    Attributes:
        title: metric and unit.
        x_label: of the x axis.
        x: positions of the points along the axis; equal steps if they are names.
        lines: {name: an estimate for each x}.
    """

    title: str
    x_label: str
    x: Sequence[float] | Sequence[str]
    lines: Mapping[str, Sequence[Estimate]]


def line_figure(panels: Sequence[Panel], *, columns: int = 3) -> NDArray[np.uint8]:
    """Panels side by side, (H, W, 3) uint8. Shaded: 95 % intervals; unknown points are left out."""
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    sheet = Image.new("RGB", (columns * PANEL[0], rows * PANEL[1]), WHITE)
    for number, panel in enumerate(panels):
        place = (number % columns * PANEL[0], number // columns * PANEL[1])
        sheet.paste(_panel(panel), place)
    return np.array(sheet)


def interval_figure(rows: Mapping[str, Mapping[str, Estimate]]) -> NDArray[np.uint8]:
    """{metric: {name: estimate}} as one block per metric, each with a scale of its own: a dot for
    the mean and a bar for its 95 % interval. Metrics that nobody has are left out.
    """
    blocks = {
        metric: known
        for metric, values in rows.items()
        if (known := {name: value for name, value in values.items() if value.n})
    }
    names = list(dict.fromkeys(name for values in blocks.values() for name in values))
    font, line = _font(13), 18
    left = 12 + max((int(font.getlength(name)) for name in (*names, *blocks)), default=0)
    width, height = left + 470, sum(line * (len(v) + 2) for v in blocks.values()) + 8
    image = Image.new("RGB", (width, max(height, line)), WHITE)
    draw = ImageDraw.Draw(image)
    top = 4
    for metric, values in blocks.items():
        draw.text((4, top), metric, fill=INK, font=font)
        low, high = _bounds(values.values())
        axis = top + line * (len(values) + 1)
        for tick in _ticks(low, high):
            x = left + (tick - low) / (high - low) * 440
            draw.line([x, top + line, x, axis], fill=GRID)
            draw.text((x, axis + 1), _number(tick), fill=INK, font=_font(10), anchor="ma")
        for row, (name, value) in enumerate(values.items()):
            y = top + line * (row + 1) + line / 2
            colour = COLOURS[names.index(name) % len(COLOURS)]
            x0, x, x1 = (
                left + (v - low) / (high - low) * 440 for v in (value.low, value.mean, value.high)
            )
            draw.text((left - 6, y), name, fill=colour, font=font, anchor="rm")
            draw.line([x0, y, x1, y], fill=colour, width=3)
            draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=colour)
        top = axis + line
    return np.array(image)


def _panel(panel: Panel) -> Image.Image:
    image = Image.new("RGB", PANEL, WHITE)
    draw = ImageDraw.Draw(image, "RGBA")
    draw.text((_LEFT, 4), panel.title, fill=INK, font=_font(13))
    named = any(isinstance(x, str) for x in panel.x)
    xs = [float(k) if named else float(x) for k, x in enumerate(panel.x)]
    known = [value for line in panel.lines.values() for value in line if value.n]
    low, high = _bounds(known)
    span = max(xs) - min(xs) or 1.0

    def place(x: float, y: float) -> tuple[float, float]:
        inner = (PANEL[0] - _LEFT - _RIGHT, PANEL[1] - _TOP - _BOTTOM)
        along = (x - min(xs)) / span if len(xs) > 1 else 0.5
        return _LEFT + along * inner[0], _TOP + (high - y) / (high - low) * inner[1]

    for tick in _ticks(low, high):
        y = place(xs[0], tick)[1]
        draw.line([_LEFT, y, PANEL[0] - _RIGHT, y], fill=GRID)
        draw.text((_LEFT - 6, y), _number(tick), fill=INK, font=_font(11), anchor="rm")
    shown = range(len(xs)) if len(xs) <= 8 else range(0, len(xs), math.ceil(len(xs) / 8))
    for k in shown:
        text = str(panel.x[k]) if named else _number(xs[k])
        draw.text((place(xs[k], low)[0], PANEL[1] - _BOTTOM + 5), text, INK, _font(11), "ma")
    centre = _LEFT + (PANEL[0] - _LEFT - _RIGHT) / 2
    draw.text((centre, PANEL[1] - 8), panel.x_label, fill=INK, font=_font(12), anchor="ms")
    right = PANEL[0] - _RIGHT
    for number, (name, line) in reversed(list(enumerate(panel.lines.items()))):
        colour = COLOURS[number % len(COLOURS)]
        points = [(x, value) for x, value in zip(xs, line, strict=True) if value.n]
        if len(panel.lines) > 1:
            draw.text((right, 20), name, fill=colour, font=_font(11), anchor="ra")
            right -= _font(11).getlength(name) + 12
        if not points:
            continue
        above = [place(x, value.high) for x, value in points]
        below = [place(x, value.low) for x, value in reversed(points)]
        middle = [place(x, value.mean) for x, value in points]
        if len(points) > 1:
            draw.polygon([*above, *below], fill=(*colour, 45))
            draw.line(middle, fill=colour, width=2)
        for x, y in middle:
            draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colour)
    return image


def _bounds(values: Iterable[Estimate]) -> tuple[float, float]:
    """Range of an axis that shows all intervals with a little room."""
    ends = [end for value in values for end in (value.low, value.mean, value.high)]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _ticks(low: float, high: float) -> NDArray[np.float64]:
    """Three to seven round numbers between the ends of an axis."""
    rough = (high - low) / 7
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough)
    return np.arange(math.ceil(low / step), math.floor(high / step) + 1) * step


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) > 1e-12 else "0"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
