"""What is kept between calls of imagine: counted encoder calls, equal frames, bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from published_bundle import FRAMES, HEIGHT, WIDTH, moving_scene, write_base

from ego_world_model.hands import HandTrajectory
from ego_world_model.world_model import WorldModel, WorldModelConfig
from ego_world_model.world_model.caches import LeastRecentlyUsed, digest
from ego_world_model.world_model.checkpoint import PartSpec
from ego_world_model.world_model.model import KEPT_PROMPTS, KEPT_REFERENCES


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def model(base: Path) -> WorldModel:
    """A small Wan 2.1 with text and image encoders, two steps, and nothing kept yet."""
    parts = {
        name: PartSpec(name=kind, kwargs={"base": str(base)})
        for name, kind in (("autoencoder", "wan"), ("backbone", "wan_i2v"), ("encoders", "wan"))
    }
    torch.manual_seed(0)
    config = WorldModelConfig(
        fps=16, num_frames=FRAMES, height=HEIGHT, width=WIDTH, steps=2, **parts
    )
    return WorldModel(config).eval().requires_grad_(False)


def imagine(model: WorldModel, *, image: np.ndarray | None = None, **options: object) -> np.ndarray:
    scene = moving_scene()
    motion = HandTrajectory(np.arange(FRAMES) / 16, scene.joints, scene.valid)
    image = scene.image if image is None else image
    options = {"seed": 0, "steps": 1} | options
    return model.imagine(image, motion, scene.camera, **options).frames


@contextmanager
def counted_encoders(model: WorldModel) -> Iterator[Counter]:
    calls: Counter = Counter()
    parts = {
        "frame": model.autoencoder.vae.encoder,
        "image": model.encoders.image_encoder,
        "text": model.encoders.text_encoder,
    }
    handles = [
        part.register_forward_hook(lambda *_, name=name: calls.update([name]))
        for name, part in parts.items()
    ]
    yield calls
    for handle in handles:
        handle.remove()


def test_one_frame_and_prompt_are_encoded_once(model: WorldModel) -> None:
    """A planner asks about many motions from one frame; with guidance the empty prompt counts."""
    options = {"prompt": "pick up the cup", "guidance": 2.0}
    with counted_encoders(model) as calls:
        first = imagine(model, **options)
        again = imagine(model, **options)
    assert calls == {"frame": 1, "image": 1, "text": 2}
    np.testing.assert_array_equal(again, first)
    with counted_encoders(model) as calls:
        imagine(model, prompt="the cup")
    assert calls == {"text": 1}


def test_kept_results_are_those_of_the_same_frame(model: WorldModel) -> None:
    """Another frame gives what a model that has forgotten all gives. (The same model: a copy's
    weights lie elsewhere in memory, for which some CPUs choose kernels that round otherwise.)"""
    scene = moving_scene()
    other = scene.image[::-1].copy()
    nearly = scene.image.copy()
    nearly[0, 0, 0] ^= 1
    imagine(model)
    with counted_encoders(model) as calls:
        frames = imagine(model, image=other)
        imagine(model, image=nearly)
    assert calls["frame"] == 2
    model.clear_caches()
    assert len(model._references) == 0
    np.testing.assert_array_equal(frames, imagine(model, image=other))


def test_memory_is_bounded_and_the_latest_stay(model: WorldModel) -> None:
    image = moving_scene().image
    for number in range(KEPT_REFERENCES + 2):
        imagine(model, image=image + np.uint8(number))
    for number in range(KEPT_PROMPTS + 2):
        imagine(model, prompt=f"cup {number}")
    assert len(model._references) == KEPT_REFERENCES
    assert len(model._prompts) == KEPT_PROMPTS
    with counted_encoders(model) as calls:
        imagine(model, image=image, prompt=f"cup {KEPT_PROMPTS + 1}")
    assert calls == {}


@pytest.mark.parametrize("change", ["train", "load", "move", "by_hand"])
def test_other_weights_are_not_answered_with_old_latents(model: WorldModel, change: str) -> None:
    before = imagine(model)
    state = {k: 1.5 * v for k, v in model.autoencoder.state_dict().items()}
    if change == "load":
        model.autoencoder.load_state_dict(state)
    else:
        for name, parameter in model.autoencoder.named_parameters():
            parameter.data.copy_(state[name])
        changes = {"train": lambda: model.train().eval(), "move": lambda: model.to("cpu")}
        changes.get(change, model.clear_caches)()
    with counted_encoders(model) as calls:
        after = imagine(model)
    assert calls["frame"] == 1
    assert (after != before).any()


def test_the_least_recently_used_is_forgotten_first() -> None:
    kept: LeastRecentlyUsed[int] = LeastRecentlyUsed(2)
    computed = []

    def get(key: str) -> int:
        return kept.get(key, lambda: computed.append(key) or len(computed))

    for key in ("a", "b", "a", "c", "a", "b"):
        get(key)
    assert computed == ["a", "b", "c", "b"]


def test_threads_may_share_it() -> None:
    kept: LeastRecentlyUsed[int] = LeastRecentlyUsed(3)
    wrong = []

    def work(offset: int) -> None:
        for number in range(2000):
            key = (number + offset) % 7
            if kept.get(key, lambda key=key: 10 * key) != 10 * key:
                wrong.append(key)

    threads = [Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(kept) == 3


def test_a_digest_tells_shapes_apart() -> None:
    pixels = torch.zeros(1, 3, 4, 6)
    assert digest(pixels) == digest(pixels.clone())
    assert digest(pixels) != digest(pixels.view(1, 3, 6, 4))
