"""The motion policy: what it reads, what it answers, how it is kept, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_policy
import torch
from numpy.typing import NDArray
from small_policy import DEPTH, INSTRUCTIONS, TEXT, VISION
from transformers import (
    DepthAnythingConfig,
    DepthAnythingForDepthEstimation,
    Dinov2Config,
    DPTImageProcessor,
    ResNetConfig,
    ResNetModel,
    SmolVLMConfig,
    SmolVLMModel,
)

from ego_world_model.embodiment import load_embodiment
from ego_world_model.kinematics import HandKinematics, HandState
from ego_world_model.kinematics.state import matrix_from_6d
from ego_world_model.perception.monocular_depth import MonocularDepth
from ego_world_model.policy import MotionPolicy
from ego_world_model.policy.cerebrum import CerebrumConfig
from ego_world_model.policy.checkpoint import PolicyConfig, read_tokenizer
from ego_world_model.policy.flow import draw_times, integrate, interpolate
from ego_world_model.policy.spaces import Layout, Normaliser, chunk_from, relative, state_vector
from ego_world_model.policy.tokenizer import word_tokenizer
from ego_world_model.world_model import CheckpointError

ROBOTS = ("g1_dex3", "h1_2_inspire")


@pytest.fixture(scope="module", params=("tokens", "patches"))
def policy(request: pytest.FixtureRequest) -> MotionPolicy:
    """Either kind of pointing head."""
    return small_policy.small_policy(pointing=request.param)


@pytest.fixture(scope="module", params=ROBOTS)
def robot(request: pytest.FixtureRequest) -> HandKinematics:
    return HandKinematics(load_embodiment(request.param))


def seen(kinematics: HandKinematics, seed: int = 0) -> tuple[NDArray[np.uint8], HandState, NDArray]:
    """A random image, the neutral hands and the camera."""
    rng = np.random.default_rng(seed)
    robot = kinematics.robot
    image = rng.integers(0, 255, (96, 128, 3), dtype=np.uint8)
    return image, kinematics.hand_state(robot.neutral), robot.camera.resized(128, 96).matrix


# -------------------------------------------------------------------- flow


def test_flow_runs_from_noise_to_data_with_the_consistent_sign() -> None:
    """Integrating the velocity that is trained ends at the data, whatever the noise."""
    clean, noise = torch.randn(4, 16, 6), torch.randn(4, 16, 6)
    _, velocity = interpolate(clean, noise, torch.rand(4))
    ended = integrate(lambda actions, times: velocity, noise, 10)
    torch.testing.assert_close(ended, clean, atol=1e-5, rtol=0)


def test_flow_times_are_biased_to_noise() -> None:
    """tau = 0.999 (1 - Beta(1.5, 1)): mean 0.4, below 0.999, most mass near noise."""
    times = draw_times(200_000, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert times.min() >= 0 and times.max() <= 0.999
    assert float(times.mean()) == pytest.approx(0.999 * 0.4, abs=0.003)
    assert float((times < 0.2).float().mean()) > 2 * float((times > 0.8).float().mean())


# -------------------------------------------------------------------- spaces


def test_a_chunk_survives_the_way_through_normalised_numbers(robot: HandKinematics) -> None:
    """Future wrists and fingers → relative, normalised numbers → the same chunk."""
    layout = Layout(small_policy.finger_kinds(*ROBOTS))
    rng = np.random.default_rng(0)
    body = robot.robot
    state = robot.hand_state(body.neutral)
    future = [
        robot.hand_state(
            np.clip(body.neutral + rng.normal(0, 0.1, len(body.neutral)), body.lower, body.upper)
        )
        for _ in range(16)
    ]
    to_matrix = np.tile(np.eye(4), (17, 2, 1, 1))
    for k, one in enumerate([state, *future]):
        to_matrix[k, :, :3, :3], to_matrix[k, :, :3, 3] = (
            matrix_from_6d(one.rotation),
            one.translation,
        )
    moved = relative(to_matrix[1:], to_matrix[0])
    fingers = layout.spread(np.stack([one.fingers for one in future]), state.finger_names)
    actions = layout.join(*moved, fingers)
    normaliser = small_policy.wide_normaliser(layout, 16)
    back = normaliser.action_back(normaliser.action(actions))
    chunk = chunk_from(layout, back, state, (np.arange(16) + 1) / 10)
    for k, one in enumerate(future):
        np.testing.assert_allclose(chunk.translation[k], one.translation, atol=1e-6)
        np.testing.assert_allclose(chunk.state(k).rotation, one.rotation, atol=1e-6)
        np.testing.assert_allclose(chunk.fingers[k], one.fingers, atol=1e-6)


def test_robots_fill_their_own_dimensions() -> None:
    """Three-fingered and five-fingered hands share the wrists and no finger dimension."""
    layout = Layout(small_policy.finger_kinds(*ROBOTS))
    masks = []
    for name in ROBOTS:
        kinematics = HandKinematics(load_embodiment(name))
        _, mask = state_vector(layout, kinematics.hand_state(kinematics.robot.neutral))
        masks.append(mask)
    wrists = np.zeros(layout.width, bool).reshape(2, -1)
    wrists[:, :9] = True
    np.testing.assert_array_equal(masks[0] & masks[1], wrists.reshape(-1))
    assert masks[0].sum() == 2 * (9 + 7) and masks[1].sum() == 2 * (9 + 6)


def test_a_hand_that_the_policy_never_saw_is_refused_by_name(robot: HandKinematics) -> None:
    """A finger joint outside the checkpoint's vocabulary is named, with the remedy."""
    other = "h1_2_inspire" if robot.robot.name == "g1_dex3" else "g1_dex3"
    policy = small_policy.small_policy(other)
    image, state, camera = seen(robot)
    with pytest.raises(ValueError, match=f"{state.finger_names[0][0]}.*trained on"):
        policy.predict(image, state, camera)


def test_quantiles_are_taken_of_what_is_known() -> None:
    """Masked entries do not count, and 1 % and 99 % land on -1 and 1, step by step."""
    layout = Layout(("a",))
    rng = np.random.default_rng(0)
    states = rng.normal(3, 1, (5000, layout.width)).astype(np.float32)
    actions = rng.normal(0, 1, (5000, 4, layout.width)).astype(np.float32)
    actions *= np.arange(1, 5, dtype=np.float32)[:, None]
    mask = rng.random(actions.shape) < 0.5
    actions[~mask] = 1e6
    fitted = Normaliser.fit(layout, states, np.ones(states.shape, bool), actions, mask)
    unit = np.where(mask, fitted.action(actions), np.nan)
    np.testing.assert_allclose(np.nanquantile(unit, 0.99, axis=0), 1, atol=1e-3)
    np.testing.assert_allclose(np.nanquantile(unit, 0.01, axis=0), -1, atol=1e-3)


# -------------------------------------------------------------------- prediction


def test_predict_answers_sixteen_steps_of_both_hands(
    policy: MotionPolicy, robot: HandKinematics
) -> None:
    """Times 0.1 to 1.6 s, rotations that are rotations, fingers under their names; same seed, same
    chunk; another seed, another."""
    image, state, camera = seen(robot)
    chunk = policy.predict(image, state, camera, instruction=INSTRUCTIONS[0], seed=3)
    np.testing.assert_allclose(chunk.times, np.arange(1, 17) / 10)
    assert chunk.translation.shape == (16, 2, 3)
    product = chunk.rotation @ np.swapaxes(chunk.rotation, -1, -2)
    np.testing.assert_allclose(product, np.broadcast_to(np.eye(3), product.shape), atol=1e-9)
    assert chunk.finger_names == state.finger_names
    again = policy.predict(image, state, camera, instruction=INSTRUCTIONS[0], seed=3)
    np.testing.assert_array_equal(chunk.translation, again.translation)
    other = policy.predict(image, state, camera, instruction=INSTRUCTIONS[0], seed=4)
    assert np.abs(other.translation - chunk.translation).max() > 1e-4


def test_temperature_scales_how_much_chunks_differ(
    policy: MotionPolicy, robot: HandKinematics
) -> None:
    """At 0 every seed gives the same chunk; at 1 chunks differ more than at a half."""
    image, state, camera = seen(robot)

    def spread(temperature: float) -> float:
        chunks = [
            policy.predict(image, state, camera, seed=seed, temperature=temperature).translation
            for seed in range(4)
        ]
        return float(np.std(chunks, axis=0).mean())

    assert spread(0.0) == 0.0
    assert spread(1.0) > 1.5 * spread(0.5) > 0


def test_every_modality_counts_and_none_is_needed(
    policy: MotionPolicy, robot: HandKinematics
) -> None:
    """Image, words and depth each change the answer; T, I, ID, TI and TID all give one."""
    image, state, camera = seen(robot)
    depth = np.random.default_rng(1).uniform(0.3, 0.8, image.shape[:2]).astype(np.float32)
    given = {
        "T": (None, INSTRUCTIONS[0], None),
        "I": (image, None, None),
        "ID": (image, None, depth),
        "TI": (image, INSTRUCTIONS[0], None),
        "TID": (image, INSTRUCTIONS[0], depth),
        "TID, other words": (image, INSTRUCTIONS[1], depth),
        "TID, other image": (image[::-1].copy(), INSTRUCTIONS[0], depth),
        "TID, other depth": (image, INSTRUCTIONS[0], depth[::-1].copy()),
    }
    answers = {
        name: policy.predict(i, state, camera, instruction=t, depth=d, seed=0).translation
        for name, (i, t, d) in given.items()
    }
    names = list(answers)
    for k, one in enumerate(names):
        assert np.isfinite(answers[one]).all()
        for other in names[k + 1 :]:
            assert np.abs(answers[one] - answers[other]).max() > 1e-7, (one, other)


def test_absent_modalities_are_truly_absent(policy: MotionPolicy, robot: HandKinematics) -> None:
    """Pixels of a withheld image, values of a withheld depth and words of a withheld instruction
    cannot leak into the prefix."""
    image, state, camera = seen(robot)
    observation = policy.observe(image, state, camera, instruction=INSTRUCTIONS[0])
    hidden = observation.present & False
    with torch.no_grad():
        one = policy.cerebrum(replace(observation, present=hidden))
        two = policy.cerebrum(
            replace(
                observation,
                present=hidden,
                image=torch.randn_like(observation.image),
                depth=torch.rand_like(observation.depth),
                words=observation.words.flip(1),
            )
        )
    torch.testing.assert_close(one.tokens[one.mask], two.tokens[two.mask])


def test_the_prefix_is_read_once(policy: MotionPolicy, robot: HandKinematics) -> None:
    """Ten Euler steps run the vision-language model once and use its keys and values ten times."""
    image, state, camera = seen(robot)
    calls = {"prefix": 0, "steps": 0}
    hooks = [
        policy.cerebrum.register_forward_hook(lambda *_: calls.update(prefix=calls["prefix"] + 1)),
        policy.cerebellum.register_forward_hook(lambda *_: calls.update(steps=calls["steps"] + 1)),
    ]
    policy.predict(image, state, camera, instruction=INSTRUCTIONS[0])
    for hook in hooks:
        hook.remove()
    assert calls == {"prefix": 1, "steps": 10}


def test_cached_keys_and_values_change_nothing(policy: MotionPolicy, robot: HandKinematics) -> None:
    """The integration with a shared prefix equals one that reads the prefix at every step."""
    image, state, camera = seen(robot)
    observation = policy.observe(image, state, camera, instruction=INSTRUCTIONS[2])
    noise = torch.randn(1, 16, policy.layout.width)
    with torch.no_grad():
        shared = policy.denoise(observation, noise, 10)
        actions = noise
        for step in range(10):
            prefix = policy.cerebrum(observation)
            memory, steering = policy.cerebellum.remember(prefix.tokens, prefix.summary)
            times = torch.full((1,), step / 10)
            actions = actions + 0.1 * policy.cerebellum(
                actions, observation.known, times, memory, steering, prefix.mask
            )
    torch.testing.assert_close(shared, actions)


def test_attention_over_the_chunk_is_bidirectional(
    policy: MotionPolicy, robot: HandKinematics
) -> None:
    """The first step's velocity depends on the last step's action, and the other way round."""
    image, state, camera = seen(robot)
    observation = policy.observe(image, state, camera)
    with torch.no_grad():
        prefix = policy.cerebrum(observation)
        memory, steering = policy.cerebellum.remember(prefix.tokens, prefix.summary)

        def velocity(actions: torch.Tensor) -> torch.Tensor:
            arguments = (torch.zeros(1), memory, steering, prefix.mask)
            return policy.cerebellum(actions, observation.known, *arguments)

        base = torch.zeros(1, 16, policy.layout.width)
        changed = {k: base.clone() for k in (0, 15)}
        for k, actions in changed.items():
            actions[:, k] = 1.0
        assert (velocity(changed[15]) - velocity(base))[:, 0].abs().max() > 1e-6
        assert (velocity(changed[0]) - velocity(base))[:, 15].abs().max() > 1e-6


def test_what_does_not_fit_is_named(policy: MotionPolicy) -> None:
    """Wrong image, depth or camera: the message names the argument and what it must be."""
    kinematics = HandKinematics(load_embodiment("g1_dex3"))
    image, state, camera = seen(kinematics)
    with pytest.raises(ValueError, match=r"image must be \(H, W, 3\) uint8"):
        policy.predict(image[..., 0], state, camera)
    with pytest.raises(ValueError, match=r"depth must be \(H, W\) metres"):
        policy.predict(image, state, camera, depth=np.zeros((4, 4, 1), np.float32))
    with pytest.raises(ValueError, match=r"intrinsics must be a finite \(3, 3\)"):
        policy.predict(image, state, np.full((3, 3), np.nan))


# -------------------------------------------------------------------- checkpoints


def test_a_saved_policy_predicts_the_same(policy: MotionPolicy, tmp_path: Path) -> None:
    """save_pretrained → from_pretrained: the same chunk, config, words and metadata."""
    kinematics = HandKinematics(load_embodiment("g1_dex3"))
    image, state, camera = seen(kinematics)
    policy.metadata = {"steps": 7}
    policy.save_pretrained(tmp_path / "policy")
    loaded = MotionPolicy.from_pretrained(tmp_path / "policy")
    assert loaded.config == policy.config and loaded.metadata == {"steps": 7}
    one, two = (
        p.predict(image, state, camera, instruction=INSTRUCTIONS[1], seed=0)
        for p in (policy, loaded)
    )
    np.testing.assert_array_equal(one.translation, two.translation)
    assert not list((tmp_path / "policy").rglob("*.bin"))


def test_broken_checkpoints_say_what_is_broken(policy: MotionPolicy, tmp_path: Path) -> None:
    """Missing folder, changed weights, foreign format, unknown field: each its own message."""
    with pytest.raises(CheckpointError, match="no policy checkpoint at .*config.json is missing"):
        MotionPolicy.from_pretrained(tmp_path / "nothing")
    folder = tmp_path / "policy"
    policy.save_pretrained(folder)
    document = json.loads((folder / "config.json").read_text())
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    with pytest.raises(CheckpointError, match="model.safetensors is corrupt"):
        MotionPolicy.from_pretrained(folder)
    for change, message in (
        ({"format": "other/1"}, "format must be"),
        ({"policy": document["policy"] | {"wings": 2}}, "unknown fields.*wings"),
    ):
        (folder / "config.json").write_text(json.dumps(document | change))
        with pytest.raises(CheckpointError, match=message):
            MotionPolicy.from_pretrained(folder)


def test_a_published_vision_language_model_loads_from_its_folder(tmp_path: Path) -> None:
    """A SmolVLM-class folder and a ResNet folder in transformers' layout: weights are taken, the
    language model is frozen and stays in its folder, the rest trains and is stored."""
    tokenizer = word_tokenizer(INSTRUCTIONS)
    text = TEXT | {"vocab_size": len(tokenizer)}
    torch.manual_seed(5)
    published = SmolVLMModel(SmolVLMConfig(scale_factor=2, vision_config=VISION, text_config=text))
    published.save_pretrained(tmp_path / "smolvlm")
    tokenizer.save_pretrained(tmp_path / "smolvlm")
    ResNetModel(ResNetConfig(**DEPTH)).save_pretrained(tmp_path / "resnet")
    fingers = small_policy.finger_kinds("g1_dex3")
    config = PolicyConfig(
        fps=10.0,
        fingers=fingers,
        cerebrum=CerebrumConfig(
            image_size=32, base=str(tmp_path / "smolvlm"), depth_base=str(tmp_path / "resnet")
        ),
        cerebellum=small_policy.CerebellumConfig(**small_policy.CEREBELLUM),
    )
    normaliser = small_policy.wide_normaliser(Layout(fingers), 16)
    policy = MotionPolicy(config, normaliser, read_tokenizer(tmp_path / "smolvlm"))
    state = policy.cerebrum.vlm.state_dict()
    for name, value in published.state_dict().items():
        torch.testing.assert_close(state[name], value)
    trained = {n for n, p in policy.named_parameters() if p.requires_grad}
    assert not any("text_model" in name for name in trained)
    assert any("vision_model" in name for name in trained)
    policy.save_pretrained(tmp_path / "policy")
    stored = MotionPolicy.from_pretrained(tmp_path / "policy")
    assert not any("text_model" in name for name in stored.stored_state())
    kinematics = HandKinematics(load_embodiment("g1_dex3"))
    image, hands, camera = seen(kinematics)
    one, two = (
        p.eval().predict(image, hands, camera, instruction=INSTRUCTIONS[0], seed=0)
        for p in (policy, stored)
    )
    np.testing.assert_allclose(one.translation, two.translation, atol=1e-6)
    with pytest.raises(CheckpointError, match="image_size 40 must be a multiple"):
        MotionPolicy(
            PolicyConfig(
                **{
                    **config.__dict__,
                    "cerebrum": CerebrumConfig(
                        image_size=40, base=config.cerebrum.base, depth=DEPTH
                    ),
                }
            ),
            normaliser,
            policy.tokenizer,
        )


def test_a_missing_base_is_named(tmp_path: Path) -> None:
    """The folder of a published model that is not there is in the message."""
    fingers = small_policy.finger_kinds("g1_dex3")
    config = PolicyConfig(
        fps=10.0,
        fingers=fingers,
        cerebrum=CerebrumConfig(base=str(tmp_path / "absent"), depth=DEPTH),
        cerebellum=small_policy.CerebellumConfig(**small_policy.CEREBELLUM),
    )
    normaliser = small_policy.wide_normaliser(Layout(fingers), 16)
    with pytest.raises(CheckpointError, match="absent is missing"):
        MotionPolicy(config, normaliser, word_tokenizer(INSTRUCTIONS))


# -------------------------------------------------------------------- depth from one image


def depth_folder(folder: Path, kind: str) -> Path:
    """A random Depth Anything V2 in the published layout."""
    backbone = Dinov2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        out_features=["stage1", "stage2"],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=32,
        reassemble_factors=[4, 2],
        neck_hidden_sizes=[16, 32],
        fusion_hidden_size=16,
        head_hidden_size=8,
        depth_estimation_type=kind,
        max_depth=20,
    )
    torch.manual_seed(0)
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    DPTImageProcessor(size={"height": 56, "width": 56}, ensure_multiple_of=14).save_pretrained(
        folder
    )
    return folder


def test_depth_comes_from_an_estimator_where_no_sensor_gives_it(
    policy: MotionPolicy, tmp_path: Path
) -> None:
    """A metric Depth Anything V2 folder stands in for the sensor: the chunk is the one that its
    own depth image gives. One that answers with relative depth is refused."""
    estimator = depth_folder(tmp_path / "metric", "metric")
    policy.save_pretrained(tmp_path / "policy")
    loaded = MotionPolicy.from_pretrained(tmp_path / "policy", depth_estimator=estimator)
    kinematics = HandKinematics(load_embodiment("g1_dex3"))
    image, state, camera = seen(kinematics)
    depth = MonocularDepth.from_pretrained(estimator)(image)
    assert depth.shape == image.shape[:2] and (depth > 0).all() and depth.std() > 0
    given = policy.predict(image, state, camera, depth=depth, seed=0)
    estimated = loaded.predict(image, state, camera, seed=0)
    without = policy.predict(image, state, camera, seed=0)
    np.testing.assert_allclose(estimated.translation, given.translation, atol=1e-6)
    assert np.abs(estimated.translation - without.translation).max() > 1e-6
    with pytest.raises(CheckpointError, match="relative depth; the policy needs metres"):
        MonocularDepth.from_pretrained(depth_folder(tmp_path / "relative", "relative"))
    with pytest.raises(CheckpointError, match="nothing is not a depth estimator"):
        MonocularDepth.from_pretrained(tmp_path / "nothing")
