"""Images and videos in files: PNG, H.264 in MP4, labelled strips, short animations.

Everything that leaves or enters as a picture goes through here, so that colours, frame rates and
file handling are the same for datasets, rollouts and documents. Frames are RGB, (H, W, 3) uint8.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

RGB = NDArray[np.uint8]


def encode_png(image: NDArray[Any], *, compress_level: int = 1) -> bytes:
    """Lossless PNG of (H, W, 3) uint8 RGB, (H, W) uint8 or (H, W) uint16.

    Level 1 is about four times as fast as the usual 6 and some ten per cent larger.
    """
    buffer = io.BytesIO()
    _to_pillow(image).save(buffer, format="PNG", compress_level=compress_level)
    return buffer.getvalue()


def decode_png(data: bytes) -> NDArray[Any]:
    """The array that ``encode_png`` was given: uint8 (H, W, 3), uint8 (H, W) or uint16 (H, W)."""
    with Image.open(io.BytesIO(data)) as image:
        if image.mode.startswith("I"):
            return np.asarray(image).astype(np.uint16)
        if image.mode not in ("RGB", "L"):
            image = image.convert("RGB")
        return np.array(image)


def write_png(path: str | Path, image: NDArray[Any]) -> None:
    """Write ``encode_png``'s image to a file, whole or not at all; makes the folder if needed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(encode_png(image, compress_level=6))
    temporary.replace(path)


def read_image(path: str | Path) -> RGB:
    """Any picture Pillow can read, as (H, W, 3) uint8 RGB.

    Raises:
        ValueError: if the file is not a picture.
    """
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} is not a picture that can be read ({error})") from error


# What Pillow raises for data that is no picture, or a damaged one.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def picture_size(data: bytes | memoryview) -> tuple[int, int]:
    """(width, height) of an encoded picture, from its header alone.

    Raises:
        ValueError: if the data is not a picture.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.size
    except _BROKEN as error:
        raise ValueError(
            f"{len(data)} bytes are not a picture that can be read ({error})"
        ) from None


def decode_picture(data: bytes | memoryview) -> RGB:
    """An encoded picture (JPEG, PNG, …) as (H, W, 3) uint8 RGB; grey ones repeat their channel.

    Raises:
        ValueError: if the data is not a picture, or a damaged one.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode.startswith("I"):  # 16 bit grey
                grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            return np.array(image.convert("RGB"))
    except _BROKEN as error:
        raise ValueError(
            f"{len(data)} bytes are not a picture that can be read ({error})"
        ) from None


def encode_jpeg(image: RGB, *, quality: int = 90) -> bytes:
    """JPEG of (H, W, 3) uint8 RGB."""
    buffer = io.BytesIO()
    _to_pillow(image).save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def resize(image: RGB, width: int, height: int) -> RGB:
    """Area-averaging resize of (H, W, 3) or (H, W) uint8 to width x height."""
    if image.shape[:2] == (height, width):
        return image
    return np.array(_to_pillow(image).resize((width, height), Image.Resampling.BOX))


def _to_pillow(image: NDArray[Any]) -> Image.Image:
    image = np.asarray(image)
    colour = image.ndim == 3 and image.shape[2] == 3 and image.dtype == np.uint8
    if not colour and not (image.ndim == 2 and image.dtype in (np.uint8, np.uint16)):
        raise ValueError(
            "an image must be (H, W, 3) uint8 RGB, (H, W) uint8 or (H, W) uint16, got "
            f"{image.dtype} {image.shape}"
        )
    return Image.fromarray(np.ascontiguousarray(image))


def frame_rate(fps: float) -> Fraction:
    """A frame rate as the fraction that video containers store (29.97 → 30000/1001)."""
    ntsc = Fraction(round(fps) * 1000, 1001)
    if abs(float(ntsc) - fps) < 1e-3:
        return ntsc
    return Fraction(fps).limit_denominator(1001)


class VideoWriter:
    """H.264 (yuv420p) MP4, frame by frame; the file appears under its name only when complete.

    Args:
        crf: constant rate factor, 0 lossless to 51; 18 is visually close to lossless.
        keyframe_interval: frames between keyframes; small values make random access quick.

    Raises:
        ValueError: if width or height is odd (4:2:0 needs even sizes).
    """

    def __init__(
        self,
        path: str | Path,
        *,
        fps: float,
        width: int,
        height: int,
        crf: int = 18,
        keyframe_interval: int = 10,
    ) -> None:
        if width % 2 or height % 2:
            raise ValueError(f"H.264 yuv420p needs an even size, got {width}x{height}; resize it")
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = self.path.with_name(f".{self.path.stem}.{os.getpid()}.mp4")
        self._container = av.open(str(self._temporary), mode="w", format="mp4")
        rate = frame_rate(fps)
        # No B-frames: frame k then sits exactly at k / fps and decoding order is display order.
        options = {"crf": str(crf), "g": str(keyframe_interval), "bf": "0", "preset": "veryfast"}
        self._stream = self._container.add_stream("libx264", rate=rate, options=options)
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = 1 / rate
        self._stream.codec_context.thread_count = 1
        self._frames = 0

    def write(self, frame: RGB) -> None:
        """Append one (H, W, 3) uint8 frame."""
        size = (self._stream.height, self._stream.width, 3)
        if frame.shape != size or frame.dtype != np.uint8:
            raise ValueError(f"frame must be uint8 {size}, got {frame.dtype} {frame.shape}")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        picture.pts = self._frames
        picture.time_base = self._stream.codec_context.time_base
        self._frames += 1
        self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        """Finish the file and give it its name."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
        self._temporary.replace(self.path)

    def discard(self) -> None:
        """Give up: nothing is left behind."""
        self._container.close()
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def write_video(path: str | Path, frames: Iterable[RGB], *, fps: float, crf: int = 18) -> None:
    """Write (T, H, W, 3) uint8 frames (an array or any iterable) as H.264 MP4."""
    frames = iter(frames)
    try:
        first = next(frames)
    except StopIteration:
        raise ValueError(f"no frames to write to {path}") from None
    height, width = first.shape[:2]
    with VideoWriter(path, fps=fps, width=width, height=height, crf=crf) as writer:
        writer.write(first)
        for frame in frames:
            writer.write(frame)


def iterate_video(path: str | Path, *, start: int = 0, stop: int | None = None) -> Iterator[RGB]:
    """Frames start..stop of a video one by one, seeking to the keyframe before ``start``."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate, base = stream.average_rate, stream.time_base
        origin = stream.start_time or 0
        if start:
            container.seek(int(origin + start / rate / base), stream=stream, backward=True)
        for picture in container.decode(stream):
            number = round((picture.pts - origin) * base * rate)
            if number < start:
                continue
            if stop is not None and number >= stop:
                return
            yield picture.to_ndarray(format="rgb24")


def read_video(path: str | Path, *, start: int = 0, stop: int | None = None) -> tuple[RGB, float]:
    """Frames start..stop of a video, (T, H, W, 3) uint8, and its frames per second.

    Raises:
        ValueError: if the file holds no video or not the frames asked for.
    """
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path} holds no video stream")
            fps = float(container.streams.video[0].average_rate)
        frames = list(iterate_video(path, start=start, stop=stop))
    except av.error.FFmpegError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{path} is not a readable video ({error})") from error
    if not frames or (stop is not None and len(frames) != stop - start):
        raise ValueError(
            f"{path} holds {start + len(frames)} frames; frames {start} to {stop} were asked for"
        )
    return np.stack(frames), fps


def write_animation(path: str | Path, frames: Sequence[RGB] | RGB, *, fps: float) -> None:
    """A looping picture for pages that play no video: ``.gif``, ``.webp`` or ``.png`` (APNG)."""
    path = Path(path)
    if path.suffix not in (".gif", ".webp", ".png"):
        raise ValueError(f"an animation is written as .gif, .webp or .png, not {path.suffix!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *rest = (_to_pillow(frame) for frame in frames)
    options: dict[str, Any] = {"quality": 85} if path.suffix == ".webp" else {}
    first.save(
        path,
        save_all=True,
        append_images=rest,
        duration=round(1000 / fps),
        loop=0,
        **options,
    )


def strip(
    rows: Sequence[Sequence[RGB] | RGB],
    labels: Sequence[str] = (),
    *,
    columns: Sequence[str] = (),
    scale: int = 1,
    gap: int = 2,
) -> RGB:
    """Lay frames out as a sheet: one row of pictures per entry, each row with its label.

    Args:
        rows: each a sequence of (H, W, 3) frames, all of one size; rows may differ in length.
        labels: one text per row, written to its left.
        columns: texts written above the columns (times, say).
        scale: whole factor by which small frames are enlarged (nearest neighbour).

    Returns:
        (height, width, 3) uint8 on white.
    """
    if not rows or not len(rows[0]):
        raise ValueError("a strip needs at least one row with one frame")
    if labels and len(labels) != len(rows):
        raise ValueError(f"{len(rows)} rows need as many labels, got {len(labels)}")
    height, width = (scale * n for n in np.shape(rows[0][0])[:2])
    font = ImageFont.load_default(size=max(11, min(20, height // 7)))
    left = max((int(font.getlength(text)) + 8 for text in labels), default=0)
    top = 8 + int(font.size) if columns else 0
    count = max(len(row) for row in rows)
    size = (left + count * (width + gap) - gap, top + len(rows) * (height + gap) - gap)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for k, text in enumerate(columns[:count]):
        draw.text((left + k * (width + gap) + 2, 2), text, fill="black", font=font)
    for r, row in enumerate(rows):
        y = top + r * (height + gap)
        if labels:
            draw.text((4, y + height // 2), labels[r], fill="black", font=font, anchor="lm")
        for k, frame in enumerate(row):
            frame = np.asarray(frame).repeat(scale, axis=0).repeat(scale, axis=1)
            if frame.shape[:2] != (height, width):
                raise ValueError(
                    f"row {r} frame {k} is {frame.shape}, the first frame is {height}x{width}"
                )
            sheet.paste(_to_pillow(frame), (left + k * (width + gap), y))
    return np.array(sheet)
