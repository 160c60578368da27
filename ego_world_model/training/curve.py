"""A training run's learning curve, as JSON and as a picture for the documentation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

SIZE, MARGIN = (900, 460), 56
INK, GRID = (40, 40, 40), (222, 222, 222)
COLOURS = ((200, 60, 40), (40, 110, 200), (50, 150, 80), (150, 90, 180), (130, 130, 130))


def read_curve(run: Path) -> dict[str, list[dict[str, Any]]]:
    """{"log": ..., "validation": ...} of a run folder.

    Raises:
        ValueError: if the folder holds no training log.
    """
    curve = {}
    for name in ("log", "validation"):
        path = run / f"{name}.jsonl"
        if not path.is_file():
            raise ValueError(f"{path} does not exist; give the folder of a training run")
        curve[name] = [json.loads(line) for line in path.open()]
    return curve


def save_curve(run: Path, output: Path) -> None:
    """Write ``output``.json (every entry) and ``output``.png (held-out PSNR over minutes)."""
    curve = read_curve(run)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(curve, indent=1) + "\n")
    series: dict[str, list[tuple[float, float]]] = {}
    for entry in curve["validation"]:
        for name in ("hand", "arm", "object", "background", "hand_copy"):
            if name in entry:
                series.setdefault(name, []).append((entry["minutes"], entry[name]))
    plot(series, "minutes of training", "held-out PSNR, dB").save(output.with_suffix(".png"))


def plot(
    series: dict[str, Sequence[tuple[float, float]]], x_label: str, y_label: str
) -> Image.Image:
    """Lines through (x, y) points with a grid and a legend."""
    points = [point for line in series.values() for point in line]
    if not points:
        raise ValueError("nothing to plot: the run has no validation entries yet")
    x_end = max(x for x, _ in points) or 1.0
    low, high = min(y for _, y in points) - 1, max(y for _, y in points) + 1
    width, height = SIZE[0] - 2 * MARGIN, SIZE[1] - 2 * MARGIN
    image = Image.new("RGB", SIZE, "white")
    draw = ImageDraw.Draw(image)

    def place(x: float, y: float) -> tuple[float, float]:
        return MARGIN + x / x_end * width, MARGIN + (high - y) / (high - low) * height

    for k in range(6):
        y = low + (high - low) * k / 5
        draw.line([place(0, y), place(x_end, y)], fill=GRID)
        draw.text((MARGIN - 40, place(0, y)[1] - 6), f"{y:.1f}", fill=INK)
        x = x_end * k / 5
        draw.text((place(x, low)[0] - 8, SIZE[1] - MARGIN + 6), f"{x:.0f}", fill=INK)
    for number, (name, line) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        draw.line([place(*point) for point in line], fill=colour, width=2)
        for point in line:
            x, y = place(*point)
            draw.ellipse([x - 3, y - 3, x + 3, y + 3], fill=colour)
        draw.text((MARGIN + 120 * number, 14), f"{name} {line[-1][1]:.1f}", fill=colour)
    draw.text((SIZE[0] / 2 - 60, SIZE[1] - 24), x_label, fill=INK)
    draw.text((8, 34), y_label, fill=INK)
    return image
