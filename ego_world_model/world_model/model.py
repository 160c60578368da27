"""One world model of any size: an image and planned hand joints in, imagined frames out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ego_world_model.hands import NUM_SLOTS, HandTrajectory
from ego_world_model.world_model.backbones import Condition
from ego_world_model.world_model.checkpoint import (
    CheckpointError,
    WorldModelConfig,
    load_weights,
    read_config,
    save_checkpoint,
)
from ego_world_model.world_model.encoders import build_encoders
from ego_world_model.world_model.parts import build_autoencoder, build_backbone, build_control
from ego_world_model.world_model.sampler import OnStep, flow_sigmas, sample

SHIPPED = Path(__file__).resolve().parent.parent / "checkpoints"


@dataclass(frozen=True)
class ImaginationResult:
    """K imagined futures.

    Attributes:
        frames: (K, T, h, w, 3) uint8 RGB at the model's size; frame 0 is the resized reference.
        times: (T,) seconds from the reference.
        timings: seconds spent in encode, control, denoise, decode.
    """

    frames: NDArray[np.uint8]
    times: NDArray[np.float64]
    timings: dict[str, float]


class WorldModel(nn.Module):
    """Autoencoder, joint control and backbone of one checkpoint.

    Use ``WorldModel.from_pretrained("tiny")`` or a checkpoint folder.
    """

    def __init__(self, config: WorldModelConfig) -> None:
        super().__init__()
        self.config = config
        self.metadata: dict[str, Any] = {}
        self.autoencoder = build_autoencoder(config.autoencoder.name, **config.autoencoder.kwargs)
        self.control = build_control(
            config.control.name,
            num_joints=config.num_slots,
            latent_channels=self.autoencoder.latent_channels,
            spatial_stride=self.autoencoder.spatial_stride,
            temporal_stride=self.autoencoder.temporal_stride,
            **config.control.kwargs,
        )
        self.backbone = build_backbone(config.backbone.name, **config.backbone.kwargs)
        spec = config.encoders
        self.encoders = build_encoders(spec.name, **spec.kwargs) if spec else None
        if config.guidance != 1 and self.encoders is None:
            raise CheckpointError(
                f"guidance {config.guidance} needs `encoders`: without text there is nothing to "
                "guide by"
            )
        stride = self.autoencoder.spatial_stride
        if config.height % stride or config.width % stride:
            raise CheckpointError(
                f"{config.width}x{config.height} is not a multiple of the autoencoder's stride "
                f"{stride}"
            )
        if (config.num_frames - 1) % self.autoencoder.temporal_stride:
            raise CheckpointError(
                f"num_frames {config.num_frames} must be 1 plus a multiple of the autoencoder's "
                f"temporal stride {self.autoencoder.temporal_stride}"
            )

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path, *, device: str = "cpu") -> WorldModel:
        """A shipped model by name ("tiny"), or a folder written by ``save_pretrained``.

        Raises:
            CheckpointError: if it is missing, corrupt or not understood; the message says which
                file and what to do.
        """
        folder = Path(name_or_folder)
        if not folder.exists() and folder.name == str(name_or_folder):
            folder = SHIPPED / folder.name
        config, hashes, metadata = read_config(folder)
        model = cls(config.relative_to(folder))
        for part, module in model.parts.items():
            load_weights(folder, part, module, hashes)
        model.metadata = metadata
        return model.eval().requires_grad_(False).to(device)

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write config.json and weights; ``dtype`` is only how they are stored."""
        save_checkpoint(Path(folder), self.config, self.parts, dtype=dtype, metadata=self.metadata)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The parts by the name of their weights file."""
        return {
            "autoencoder": self.autoencoder,
            "control": self.control,
            "backbone": self.backbone,
        }

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @torch.inference_mode()
    def imagine(
        self,
        image: ArrayLike,
        trajectories: HandTrajectory | Sequence[HandTrajectory],
        intrinsics: ArrayLike,
        *,
        prompt: str = "",
        guidance: float | None = None,
        steps: int | None = None,
        seed: int | None = None,
        masks: ArrayLike | None = None,
        on_step: OnStep | None = None,
    ) -> ImaginationResult:
        """Imagine what the camera will see if the hands follow each of K trajectories.

        Args:
            image: (H, W, 3) uint8 RGB of any size; it is resized to the model's.
            trajectories: one or K; each is resampled to the model's clock and must cover its
                horizon. 42 slots, or 42 plus the checkpoint's extra slots; with 42, the extra
                ones count as unknown.
            intrinsics: (3, 3) camera matrix in pixels of ``image``, for an undistorted image.
            prompt: only for checkpoints with a text encoder.
            guidance: classifier-free guidance scale; needs a prompt. None: the checkpoint's.
            steps: denoising steps; None: the checkpoint's.
            seed: of the noise; the same seed gives the same frames. None draws a fresh one. All K
                candidates share the noise, so that they differ by their joints alone.
            masks: (T, H, W) or (K, T, H, W) uint8 classes of ``data.schema.MASK_CLASSES`` on the
                model's clock, only for checkpoints whose control reads masks.
            on_step: called as on_step(step, steps); returning False cancels.

        Raises:
            ImaginationCancelled: if ``on_step`` returned False.
            ValueError: naming the argument that does not fit.
        """
        if isinstance(trajectories, HandTrajectory):
            trajectories = [trajectories]
        self._check_text(prompt, guidance)
        joints, valid = self._joints(trajectories)
        frame, matrix = self._inputs(image, intrinsics)
        watch = _Stopwatch()
        reference = self.autoencoder.encode_reference(frame)
        watch.lap("encode")
        count = len(trajectories)
        shared = reference.expand(count, -1, -1, -1)
        signal = self.control(
            joints,
            matrix.expand(count, -1, -1),
            shared,
            valid=valid,
            **self._masks(masks, count),
        )
        condition = Condition.from_control(shared, signal.motion, signal.geometry)
        guidance = self.config.guidance if guidance is None else guidance
        condition, unconditional = self._with_context(condition, frame, prompt, guidance)
        watch.lap("control")
        sigmas = flow_sigmas(self.config.steps if steps is None else steps, self.config.shift)
        noise = self._noise(signal.motion[:1].shape, seed).expand_as(signal.motion)
        latents = sample(
            self.backbone,
            condition,
            noise,
            sigmas,
            guidance=guidance,
            unconditional=unconditional,
            on_step=on_step,
        )
        watch.lap("denoise")
        video = self.autoencoder.decode(latents, frame.expand(count, -1, -1, -1))
        pixels = ((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        frames = pixels.permute(0, 2, 3, 4, 1).cpu().numpy()
        watch.lap("decode")
        return ImaginationResult(frames, self._times, watch.seconds)

    @property
    def _times(self) -> NDArray[np.float64]:
        return np.arange(self.config.num_frames) / self.config.fps

    def _with_context(
        self, condition: Condition, frame: Tensor, prompt: str, guidance: float
    ) -> tuple[Condition, Condition | None]:
        """The condition with text and image tokens, and the one that guidance leads away from.

        The two differ by their text alone: both see the joints.
        """
        if self.encoders is None:
            return condition, None
        count = len(condition.reference)
        image = self.encoders.encode_image(frame)
        image = None if image is None else image.expand(count, -1, -1)

        def with_text(text: str) -> Condition:
            tokens = self.encoders.encode_text(text).expand(count, -1, -1)
            return replace(condition, text=tokens, image=image)

        negative = self.encoders.negative_prompt
        return with_text(prompt), with_text(negative) if guidance != 1 else None

    def _check_text(self, prompt: str, guidance: float | None) -> None:
        """Where nothing reads text, ignoring a prompt would be a quiet lie."""
        if self.encoders is not None:
            return
        if prompt.strip():
            raise ValueError(
                f"prompt {prompt!r}: this checkpoint has no text encoder and would ignore it; "
                "leave prompt empty"
            )
        if guidance not in (None, 1, 1.0):
            raise ValueError(
                f"guidance {guidance}: this checkpoint has no text encoder, so there is nothing to "
                "guide by; leave guidance out"
            )

    def _joints(self, trajectories: Sequence[HandTrajectory]) -> tuple[Tensor, Tensor]:
        """(K, T, J, 3) and (K, T, J) on the model's clock and slots."""
        if not trajectories:
            raise ValueError("trajectories is empty: give at least one HandTrajectory")
        slots, positions, valid = self.config.num_slots, [], []
        for number, trajectory in enumerate(trajectories):
            if trajectory.num_slots not in (NUM_SLOTS, slots):
                raise ValueError(
                    f"trajectory {number} has {trajectory.num_slots} slots; this checkpoint "
                    f"reads {NUM_SLOTS} hand slots, optionally followed by "
                    f"{list(self.config.extra_slots)}"
                )
            try:
                trajectory = trajectory.resample(self._times)
            except ValueError as error:
                raise ValueError(f"trajectory {number}: {error}") from error
            missing = slots - trajectory.num_slots
            positions.append(np.pad(trajectory.positions, ((0, 0), (0, missing), (0, 0))))
            valid.append(np.pad(trajectory.valid, ((0, 0), (0, missing))))
        joints, known = torch.from_numpy(np.stack(positions)), torch.from_numpy(np.stack(valid))
        return joints.to(self.device), known.to(self.device)

    def _masks(self, masks: ArrayLike | None, count: int) -> dict[str, Tensor]:
        """``masks`` as the control's keyword argument, (K, T, h, w); none where it reads none."""
        if not self.control.reads_masks:
            if masks is not None:
                raise ValueError("masks: this checkpoint's control reads none; leave masks out")
            return {}
        config = self.config
        if masks is None:
            raise ValueError(
                f"masks is missing: control {config.control.name!r} is steered by segmentation "
                f"masks of all {config.num_frames} frames"
            )
        stack = torch.from_numpy(np.array(masks, dtype=np.uint8))
        stack = stack.expand(count, *stack.shape[-3:])
        if stack.shape[1] != config.num_frames:
            raise ValueError(f"masks has {stack.shape[1]} frames, not {config.num_frames}")
        size = (config.height, config.width)
        if stack.shape[2:] != size:
            stack = F.interpolate(stack.float(), size, mode="nearest-exact").byte()
        return {"masks": stack.to(self.device)}

    def _inputs(self, image: ArrayLike, intrinsics: ArrayLike) -> tuple[Tensor, Tensor]:
        """The image as (1, 3, h, w) in [-1, 1] and its camera matrix (1, 3, 3), at model size."""
        image, matrix = np.asarray(image), np.array(intrinsics, dtype=np.float64)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"image must be (H, W, 3) uint8 RGB, got shape {image.shape} {image.dtype}"
            )
        if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or matrix[0, 0] <= 0:
            raise ValueError(
                f"intrinsics must be a finite (3, 3) camera matrix in pixels of the image, got "
                f"{np.array2string(matrix, threshold=10)}"
            )
        height, width = self.config.height, self.config.width
        frame = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
        if image.shape[:2] != (height, width):
            shrinks = image.shape[0] >= height and image.shape[1] >= width
            mode = {"mode": "area"} if shrinks else {"mode": "bilinear", "align_corners": False}
            frame = F.interpolate(frame, (height, width), **mode)
            scale = np.array([width / image.shape[1], height / image.shape[0]])
            matrix[:2] *= scale[:, None]
            matrix[:2, 2] += 0.5 * scale - 0.5  # pixel centres lie at integer coordinates
        frame = (frame / 127.5 - 1).to(self.device)
        return frame, torch.from_numpy(matrix)[None].float().to(self.device)

    def _noise(self, shape: torch.Size, seed: int | None) -> Tensor:
        # Drawn on the CPU so that a seed means the same on every device.
        generator = torch.Generator()
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        return torch.randn(shape, generator=generator).to(self.device)


class _Stopwatch:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now
