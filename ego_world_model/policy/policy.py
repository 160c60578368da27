"""The motion policy: an image, words and the hands' state in, a chunk of future hand motion out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from ego_world_model.kinematics.state import HandState
from ego_world_model.perception.monocular_depth import MonocularDepth
from ego_world_model.policy.cerebellum import Cerebellum
from ego_world_model.policy.cerebrum import Cerebrum, Observation, Prefix
from ego_world_model.policy.checkpoint import (
    TOKENIZER,
    PolicyConfig,
    read_policy_config,
    read_tokenizer,
    read_weights,
    save_policy,
)
from ego_world_model.policy.chunk import HandChunk
from ego_world_model.policy.flow import integrate
from ego_world_model.policy.spaces import Layout, Normaliser, chunk_from, state_vector
from ego_world_model.world_model.checkpoint import CheckpointError

SHIPPED = Path(__file__).resolve().parent.parent / "checkpoints"


def policy_folder(name_or_folder: str | Path) -> Path:
    """The folder of a shipped policy ("tiny"), or the folder itself."""
    folder = Path(name_or_folder)
    if not folder.exists() and folder.name == str(name_or_folder):
        folder = SHIPPED / f"{folder.name}_policy"
    return folder


class MotionPolicy(nn.Module):
    """Cerebrum, cerebellum and normalisation of one checkpoint.

    ``MotionPolicy.from_pretrained("tiny").predict(image, state, intrinsics, instruction=...)``.

    Args:
        normaliser: of the data it was trained on.
        tokenizer: of its language model.
    """

    def __init__(
        self, config: PolicyConfig, normaliser: Normaliser, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        super().__init__()
        self.config, self.normaliser, self.tokenizer = config, normaliser, tokenizer
        self.metadata: dict[str, Any] = {}
        self.depth_estimator: MonocularDepth | None = None
        self.layout = Layout(config.fingers)
        expected = (config.chunk, self.layout.width)
        if normaliser.action_low.shape != expected:
            raise CheckpointError(
                f"the normaliser is for chunks of {normaliser.action_low.shape}, the config "
                f"declares {expected}"
            )
        self.cerebrum = Cerebrum(config.cerebrum, hand_features=hand_feature_count(self.layout))
        self.cerebellum = Cerebellum(
            config.cerebellum,
            actions=self.layout.width,
            chunk=config.chunk,
            prefix=self.cerebrum.width,
        )

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        *,
        device: str = "cpu",
        depth_estimator: str | Path | None = None,
    ) -> MotionPolicy:
        """A shipped policy by name ("tiny"), or a folder written by ``save_pretrained``.

        Args:
            depth_estimator: folder of a metric depth estimator (see ``MonocularDepth``) that gives
                the depth of images that come without; None: the policy then goes without depth.

        Raises:
            CheckpointError: if it is missing, corrupt or not understood; the message says which
                file and what to do.
        """
        folder = policy_folder(name_or_folder)
        config, sha256, metadata = read_policy_config(folder)
        tensors = read_weights(folder, sha256)
        try:
            normaliser = Normaliser(
                **{
                    name: tensors.pop(f"normaliser.{name}").numpy()
                    for name in Normaliser.__dataclass_fields__
                }
            )
        except KeyError as error:
            raise CheckpointError(f"{folder} lacks the tensor {error}") from error
        policy = cls(config.relative_to(folder), normaliser, read_tokenizer(folder / TOKENIZER))
        expected = set(policy.stored_state())
        if missing := sorted(expected ^ set(tensors)):
            raise CheckpointError(
                f"{folder}: tensors missing or unexpected: {', '.join(missing[:6])}"
            )
        try:
            policy.load_state_dict(tensors, strict=False)
        except RuntimeError as error:
            raise CheckpointError(f"{folder} does not fit what its config declares: {error}") from (
                error
            )
        policy.metadata = metadata
        if depth_estimator is not None:
            policy.depth_estimator = MonocularDepth.from_pretrained(depth_estimator, device=device)
        return policy.eval().requires_grad_(False).to(device)

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write a checkpoint; weights that a base holds and training left alone stay there."""
        tensors = self.stored_state()
        for name, value in self.normaliser.tensors().items():
            tensors[f"normaliser.{name}"] = torch.from_numpy(np.array(value))
        save_policy(
            Path(folder), self.config, tensors, self.tokenizer, dtype=dtype, metadata=self.metadata
        )

    def stored_state(self) -> dict[str, Tensor]:
        """What a checkpoint stores of the networks."""
        base = "cerebrum.vlm.text_model." if self.config.cerebrum.base is not None else None
        return {
            n: t for n, t in self.state_dict().items() if base is None or not n.startswith(base)
        }

    @property
    def device(self) -> torch.device:
        return self.cerebrum.sides.device

    # ---------------------------------------------------------------- prediction

    @torch.no_grad()
    def predict(
        self,
        image: NDArray[np.uint8] | None,
        state: HandState,
        intrinsics: ArrayLike,
        *,
        instruction: str | None = None,
        depth: NDArray[np.float32] | None = None,
        seed: int | None = None,
        steps: int | None = None,
        temperature: float | None = None,
    ) -> HandChunk:
        """The hands' next ``config.chunk`` steps.

        Args:
            image: (H, W, 3) uint8 RGB of any size; None: the policy goes without.
            state: both hands in the camera of the image, with the names of their finger joints.
            intrinsics: (3, 3) pixels of the image, or of the size that it would have.
            instruction: in plain words, such as "grasp the red box with the left hand"; None or
                empty: without.
            depth: (H, W) metres along z, aligned with the image, 0 or NaN where unknown; None:
                what the depth estimator says, or, without one, the policy goes without.
            seed: of the noise that motion is made from; None: a fresh one.
            steps, temperature: instead of the checkpoint's, see ``PolicyConfig``.

        Raises:
            ValueError: naming the argument that does not fit.
        """
        config = self.config
        if depth is None and image is not None and self.depth_estimator is not None:
            depth = self.depth_estimator(image)
        observation = self.observe(image, state, intrinsics, instruction=instruction, depth=depth)
        generator = torch.Generator().manual_seed(seed) if seed is not None else None
        noise = torch.randn(1, config.chunk, self.layout.width, generator=generator)
        noise = noise * (config.temperature if temperature is None else temperature)
        actions = self.denoise(observation, noise.to(self.device), steps or config.steps)
        times = (np.arange(config.chunk) + 1) / config.fps
        values = self.normaliser.action_back(actions[0].cpu().numpy())
        return chunk_from(self.layout, values, state, times)

    def denoise(self, observation: Observation, noise: Tensor, steps: int) -> Tensor:
        """Normalised actions (B, N, D) from noise; the prefix is read once."""
        prefix = self.cerebrum(observation)
        return self.integrate(observation, prefix, noise, steps)

    def integrate(
        self, observation: Observation, prefix: Prefix, noise: Tensor, steps: int
    ) -> Tensor:
        """``denoise`` from a prefix."""
        memory, steering = self.cerebellum.remember(prefix.tokens, prefix.summary)

        def velocity(actions: Tensor, times: Tensor) -> Tensor:
            return self.cerebellum(actions, observation.known, times, memory, steering, prefix.mask)

        return integrate(velocity, noise, steps)

    def observe(
        self,
        image: NDArray[np.uint8] | None,
        state: HandState,
        intrinsics: ArrayLike,
        *,
        instruction: str | None = None,
        depth: NDArray[np.float32] | None = None,
    ) -> Observation:
        """One observation as the networks read it; see ``predict``."""
        size, device = self.config.cerebrum.image_size, self.device
        matrix = np.asarray(intrinsics, dtype=np.float64)
        if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
            raise ValueError(f"intrinsics must be a finite (3, 3) matrix, got {matrix.shape}")
        shape = next((a.shape[:2] for a in (image, depth) if a is not None), None)
        if shape is None:  # the principal point is about the centre
            shape = (int(2 * matrix[1, 2] + 1), int(2 * matrix[0, 2] + 1))
        vector, mask = state_vector(self.layout, state)
        hands = hand_features(
            self.layout, self.normaliser, vector[None], mask[None], matrix[None], shape
        )
        text = (instruction or "").strip()
        words, word_mask = self.tokens([text])
        present = torch.tensor([[bool(text), image is not None, depth is not None]])
        pixels = torch.zeros(1, 3, size, size) if image is None else resize_image(image, size)
        metres = torch.zeros(1, 1, size, size)
        if depth is not None:
            metres = normalised_depth(resize_depth(depth, size), self.config.depth_range)
        wrists = torch.from_numpy(state.translation)[None].float()
        parts = (pixels, metres, words, word_mask, present, torch.from_numpy(hands), wrists)
        return Observation(*(p.to(device) for p in parts), torch.from_numpy(mask)[None].to(device))

    def tokens(self, instructions: list[str]) -> tuple[Tensor, Tensor]:
        """Token numbers (B, L) and mask (B, L) of instructions; L is the longest's, at least 1."""
        texts = [self.config.prompt.format(instruction=text) for text in instructions]
        encoded = self.tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=self.config.cerebrum.words,
            return_tensors="pt",
        )
        words, mask = encoded["input_ids"].long(), encoded["attention_mask"].bool()
        if not words.shape[1]:
            words = torch.zeros(len(texts), 1, dtype=torch.long)
            mask = torch.zeros(len(texts), 1, dtype=torch.bool)
        return words, mask


def hand_feature_count(layout: Layout) -> int:
    """Width of ``hand_features``."""
    return 2 * layout.per_hand + 6


def hand_features(
    layout: Layout,
    normaliser: Normaliser,
    vector: NDArray[np.float64],
    mask: NDArray[np.bool_],
    intrinsics: NDArray[np.float64],
    shape: tuple[int, int],
) -> NDArray[np.float32]:
    """What the networks know of each hand, (B, 2, H): its normalised state, which numbers of it
    there are, where its wrist is in the image (in half images from the centre), and the camera.

    Args:
        vector, mask: (B, D) hand states. intrinsics: (B, 3, 3) pixels of images of ``shape``
            (height, width).
    """
    batch = len(vector)
    hands = (batch, 2, layout.per_hand)
    state = np.where(mask, normaliser.state(vector), 0).reshape(hands)
    height, width = shape
    size = np.array([width, height])
    focal = intrinsics[:, (0, 1), (0, 1)] / size  # (B, 2)
    centre = (intrinsics[:, :2, 2] + 0.5) / size
    wrist = vector.reshape(hands)[..., :3]
    depth = np.maximum(wrist[..., 2:], 0.05)
    seen = 2 * (focal[:, None] * wrist[..., :2] / depth + centre[:, None]) - 1
    camera = np.broadcast_to(np.concatenate([focal, centre], axis=1)[:, None], (batch, 2, 4))
    parts = [state, mask.reshape(hands), np.clip(seen, -3, 3), camera]
    return np.concatenate(parts, axis=-1).astype(np.float32)


def resize_image(image: NDArray[np.uint8], size: int) -> Tensor:
    """(H, W, 3) uint8 → (1, 3, size, size) in [-1, 1]."""
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"image must be (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
    pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return pixels / 127.5 - 1


def resize_depth(depth: ArrayLike, size: int) -> Tensor:
    """(H, W) metres → (1, 1, size, size) metres, 0 where unknown; no mean over an edge."""
    depth = np.asarray(depth, dtype=np.float32)
    if depth.ndim != 2:
        raise ValueError(f"depth must be (H, W) metres, got shape {depth.shape}")
    known = np.isfinite(depth) & (depth > 0)
    metres = torch.from_numpy(np.where(known, depth, np.float32(0)))[None, None]
    return F.interpolate(metres, (size, size), mode="nearest-exact")


def normalised_depth(metres: Tensor, largest: float) -> Tensor:
    """Metres → what the depth encoder reads: 0 unknown, 1 at ``largest``; farther is unknown."""
    return torch.where(metres <= largest, metres / largest, torch.zeros_like(metres))
