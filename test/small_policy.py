"""A random motion policy, small enough for tests, of the classes that are shipped."""

from __future__ import annotations

import numpy as np
import torch

from ego_world_model.embodiment import load_embodiment
from ego_world_model.policy.cerebellum import CerebellumConfig
from ego_world_model.policy.cerebrum import CerebrumConfig
from ego_world_model.policy.checkpoint import PolicyConfig
from ego_world_model.policy.policy import MotionPolicy
from ego_world_model.policy.spaces import Layout, Normaliser, finger_kind
from ego_world_model.policy.tokenizer import with_vocabulary, word_tokenizer

INSTRUCTIONS = (
    "grasp the red box with the left hand",
    "grasp the blue can with the right hand",
    "reach for the green mug with the left hand",
    "lift the large yellow box with both hands",
)
VISION = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
TEXT = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
DEPTH = {
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 16],
    "depths": [1, 1, 1],
    "layer_type": "bottleneck",
}
CEREBELLUM = {"width": 32, "layers": 2, "heads": 2, "ffn": 64}


def finger_kinds(*robots: str) -> tuple[str, ...]:
    """Kinds of finger joints of the named robots."""
    hands = [hand for robot in robots for hand in load_embodiment(robot).hands.values()]
    return tuple(dict.fromkeys(finger_kind(name) for hand in hands for name in hand.fingers))


def wide_normaliser(layout: Layout, chunk: int) -> Normaliser:
    """Quantiles of hands that move a few centimetres."""
    half = np.array(
        [{"translation": 0.05, "rotation": 0.1, "fingers": 0.3}[kind] for kind in layout.kinds()],
        np.float32,
    )
    middle = np.zeros_like(half)
    middle.reshape(2, -1)[:, (3, 7)] = 1.0  # the identity's columns
    low, high = middle - half, middle + half
    return Normaliser(low - 1, high + 1, np.tile(low, (chunk, 1)), np.tile(high, (chunk, 1)))


def small_policy(
    *robots: str, seed: int = 0, moving: bool = True, pointing: str = "tokens"
) -> MotionPolicy:
    """A policy for the named robots (G1 and H1-2 unless given).

    Args:
        moving: random weights in the last layer, too, so that inputs change what is predicted.
        pointing: see ``CerebrumConfig``.
    """
    torch.manual_seed(seed)
    fingers = finger_kinds(*(robots or ("g1_dex3", "h1_2_inspire")))
    tokenizer = word_tokenizer(INSTRUCTIONS)
    vlm = {"scale_factor": 2, "vision_config": VISION, "text_config": TEXT}
    config = PolicyConfig(
        fps=10.0,
        fingers=fingers,
        cerebrum=CerebrumConfig(
            image_size=32,
            words=16,
            vlm=with_vocabulary(vlm, tokenizer),
            depth=DEPTH,
            pointing=pointing,
        ),
        cerebellum=CerebellumConfig(**CEREBELLUM),
    )
    policy = MotionPolicy(config, wide_normaliser(Layout(fingers), config.chunk), tokenizer)
    if moving:
        for block in policy.cerebellum.blocks:
            torch.nn.init.normal_(block.modulation.weight, std=0.2)
        torch.nn.init.normal_(policy.cerebellum.leave.weight, std=0.2)
        torch.nn.init.normal_(policy.cerebellum.leave_modulation.weight, std=0.2)
    return policy.eval()
