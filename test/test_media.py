"""Pictures and videos keep what they were given."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ego_world_model.media import (
    VideoWriter,
    decode_png,
    encode_png,
    iterate_video,
    read_image,
    read_video,
    resize,
    strip,
    write_animation,
    write_png,
    write_video,
)


def moving_square(steps: int = 25, height: int = 96, width: int = 128) -> np.ndarray:
    """A coloured square that crosses a gradient; every frame differs from its neighbours."""
    frames = np.empty((steps, height, width, 3), np.uint8)
    frames[...] = np.linspace(40, 200, width).astype(np.uint8)[None, None, :, None]
    for k in range(steps):
        frames[k, 30:60, 4 * k : 4 * k + 24] = (220, 60, 40)
    return frames


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.square(a.astype(float) - b).mean()))


@pytest.mark.parametrize(
    "image",
    [
        np.random.default_rng(0).integers(0, 256, (33, 47, 3), dtype=np.uint8),
        np.random.default_rng(1).integers(0, 7, (33, 47), dtype=np.uint8),
        np.random.default_rng(2).integers(0, 65536, (33, 47), dtype=np.uint16),
    ],
    ids=["rgb", "masks", "depth"],
)
def test_png_is_lossless_for_every_kind_of_picture(image):
    back = decode_png(encode_png(image))
    assert back.dtype == image.dtype
    np.testing.assert_array_equal(back, image)


def test_png_refuses_pictures_it_would_change():
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8 RGB.*float32 \(4, 4, 3\)"):
        encode_png(np.zeros((4, 4, 3), np.float32))


def test_video_keeps_frames_rate_and_colours(tmp_path):
    frames = moving_square()
    write_video(tmp_path / "v.mp4", frames, fps=10)
    back, fps = read_video(tmp_path / "v.mp4")
    assert fps == 10 and back.shape == frames.shape
    assert psnr(back, frames) > 30
    red = back[:, 45, :, 0].astype(int) - back[:, 45, :, 2]
    starts = [int(np.flatnonzero(row > 80)[0]) for row in red]
    np.testing.assert_allclose(starts, 4 * np.arange(len(frames)), atol=1)


def test_any_range_of_frames_is_read_exactly(tmp_path):
    write_video(tmp_path / "v.mp4", moving_square(), fps=30000 / 1001)
    whole, fps = read_video(tmp_path / "v.mp4")
    assert fps == pytest.approx(29.97, abs=1e-3)
    for start, stop in ((0, 3), (9, 12), (10, 25), (24, 25)):
        part, _ = read_video(tmp_path / "v.mp4", start=start, stop=stop)
        np.testing.assert_array_equal(part, whole[start:stop])
    assert len(list(iterate_video(tmp_path / "v.mp4", start=20))) == 5


def test_asking_for_frames_beyond_the_end_says_how_many_there_are(tmp_path):
    write_video(tmp_path / "v.mp4", moving_square(), fps=10)
    with pytest.raises(ValueError, match="holds 25 frames; frames 20 to 30"):
        read_video(tmp_path / "v.mp4", start=20, stop=30)


def test_an_interrupted_video_leaves_no_file(tmp_path):
    with (
        pytest.raises(KeyboardInterrupt),
        VideoWriter(tmp_path / "v.mp4", fps=10, width=128, height=96) as writer,
    ):
        writer.write(moving_square()[0])
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_odd_sizes_and_wrong_frames_are_refused_with_the_reason(tmp_path):
    with pytest.raises(ValueError, match="even size, got 127x96"):
        VideoWriter(tmp_path / "v.mp4", fps=10, width=127, height=96)
    with (
        pytest.raises(ValueError, match=r"uint8 \(96, 128, 3\), got uint8 \(48, 64, 3\)"),
        VideoWriter(tmp_path / "v.mp4", fps=10, width=128, height=96) as writer,
    ):
        writer.write(np.zeros((48, 64, 3), np.uint8))


def test_files_that_are_no_pictures_are_named(tmp_path):
    (tmp_path / "x.png").write_text("no picture")
    (tmp_path / "x.mp4").write_text("no video")
    with pytest.raises(ValueError, match="x.png is not a picture"):
        read_image(tmp_path / "x.png")
    with pytest.raises(ValueError, match="x.mp4 is not a readable video"):
        read_video(tmp_path / "x.mp4")
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "absent.png")


def test_resize_averages_areas():
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, ::2] = 200
    np.testing.assert_array_equal(resize(image, 4, 2), np.full((2, 4, 3), 100, np.uint8))


def test_a_strip_holds_every_frame_unchanged(tmp_path):
    frames = moving_square(4, 24, 32)
    sheet = strip([frames, frames[:2]], ["truth", "imagined"], columns=["0", "1", "2", "3"])
    write_png(tmp_path / "s" / "strip.png", sheet)
    back = read_image(tmp_path / "s" / "strip.png")
    np.testing.assert_array_equal(back, sheet)
    for frame in frames:
        places = [
            (y, x)
            for y in range(sheet.shape[0] - 23)
            for x in range(sheet.shape[1] - 31)
            if np.array_equal(sheet[y : y + 24, x : x + 32], frame)
        ]
        assert places, "a frame is missing from the strip"
    with pytest.raises(ValueError, match="2 rows need as many labels, got 1"):
        strip([frames, frames], ["truth"])


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_animations_play_all_frames(tmp_path, suffix):
    write_animation(tmp_path / f"a{suffix}", moving_square(6), fps=10)
    with Image.open(tmp_path / f"a{suffix}") as picture:
        assert picture.n_frames == 6
