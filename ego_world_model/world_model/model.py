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

from ego_world_model.hands import HandTrajectory
from ego_world_model.world_model.acceleration import Acceleration, StepCache, accelerate
from ego_world_model.world_model.caches import LeastRecentlyUsed, digest
from ego_world_model.world_model.checkpoint import (
    CheckpointError,
    WorldModelConfig,
    load_weights,
    read_config,
    save_checkpoint,
)
from ego_world_model.world_model.encoders import build_encoders
from ego_world_model.world_model.inputs import (
    clock,
    draw_noise,
    read_image,
    read_joints,
    read_masks,
)
from ego_world_model.world_model.loras import attach_loras
from ego_world_model.world_model.parts import build_autoencoder, build_backbone, build_control
from ego_world_model.world_model.sampler import OnStep, SolverName, sample
from ego_world_model.world_model.sampling import Sampling, choose_sampling, split_batches
from ego_world_model.world_model.scene import Scene, signal_of_unknown_hands

SHIPPED = Path(__file__).resolve().parent.parent / "checkpoints"
KEPT_REFERENCES, KEPT_PROMPTS = 4, 16


@dataclass(frozen=True)
class ImaginationResult:
    """K imagined futures.

    Attributes:
        frames: (K, T, h, w, 3) uint8 RGB at the model's size; frame 0 is the resized reference.
        times: (T,) seconds from the reference.
        timings: seconds spent in encode, control, denoise, decode. A reference frame or prompt that
            was given before is not encoded again and takes next to none.
    """

    frames: NDArray[np.uint8]
    times: NDArray[np.float64]
    timings: dict[str, float]


class WorldModel(nn.Module):
    """Autoencoder, joint control and backbone of one checkpoint.

    Use ``WorldModel.from_pretrained("tiny")`` or a checkpoint folder; it loads the weights and adds
    the config's ``loras`` and ``acceleration``, which a model that is only built, e.g. to be
    trained, goes without. The latents of the last few reference frames and the embeddings of the
    last few prompts are kept from call to call.
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
        self._step_cache = StepCache()
        self._not_as_stored = ""
        self._references = LeastRecentlyUsed[tuple[Tensor, "Tensor | None"]](KEPT_REFERENCES)
        self._prompts = LeastRecentlyUsed[Tensor](KEPT_PROMPTS)
        self.autoencoder.register_load_state_dict_post_hook(self._forget)
        self._check_config()

    def _check_config(self) -> None:
        """That what the config asks for fits together."""
        config, stride = self.config, self.autoencoder.spatial_stride
        if config.guidance != 1 and self.encoders is None:
            raise CheckpointError(
                f"guidance {config.guidance} needs `encoders`: without text there is nothing to "
                "guide by"
            )
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
        try:
            choose_sampling(config)
            split_batches(1, config.max_batch)
        except ValueError as error:
            raise CheckpointError(str(error)) from error

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        *,
        device: str = "cpu",
        acceleration: Acceleration | None = None,
    ) -> WorldModel:
        """A shipped model by name ("tiny"), or a folder written by ``save_pretrained``.

        Args:
            acceleration: instead of the checkpoint's; ``Acceleration()`` takes none.

        Raises:
            CheckpointError: if it is missing, corrupt or not understood; the message says which
                file and what to do.
            ValueError: if the acceleration does not fit the backbone or this machine.
        """
        folder = Path(name_or_folder)
        if not folder.exists() and folder.name == str(name_or_folder):
            folder = SHIPPED / folder.name
        config, hashes, metadata = read_config(folder)
        if acceleration is not None:
            config = replace(config, acceleration=acceleration)
        config = config.relative_to(folder)
        model = cls(config)
        for part, module in model.parts.items():
            load_weights(folder, part, module, hashes)
        attach_loras(model.backbone, config.loras)
        if config.loras or config.acceleration.layerwise_casting:
            model._not_as_stored = "the weights carry `loras` or `acceleration.layerwise_casting`"
        model.metadata = metadata
        model.eval().requires_grad_(False)
        offloaded: list[nn.Module] = []
        if config.acceleration != Acceleration():
            model._step_cache, offloaded = accelerate(
                model.backbone, model.encoders, config.acceleration, device
            )
        return model._move(device, offloaded)

    def _move(self, device: str, offloaded: list[nn.Module]) -> WorldModel:
        """To the device, but for modules whose weights come and go by themselves."""
        held = [
            (parent, name, child)
            for parent in self.modules()
            for name, child in parent.named_children()
            if child in offloaded
        ]
        for parent, name, _ in held:
            setattr(parent, name, nn.Identity())
        self.to(device)
        for parent, name, child in held:
            setattr(parent, name, child)
        return self

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype = torch.float32) -> None:
        """Write config.json and weights; ``dtype`` is only how they are stored.

        Raises:
            ValueError: if the weights are no longer those of a checkpoint, by layerwise casting or
                by LoRA files beside our own.
        """
        if self._not_as_stored:
            raise ValueError(f"{self._not_as_stored}; load the checkpoint without them to save it")
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

    def clear_caches(self) -> None:
        """Forget encoded references and prompts; needed after writing into the weights by hand."""
        self._references.clear()
        self._prompts.clear()

    def train(self, mode: bool = True) -> WorldModel:
        self.clear_caches()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> WorldModel:
        self.clear_caches()  # they live on the former device, in the former dtype
        return super()._apply(*args, **kwargs)

    def _forget(self, *_: Any) -> None:
        self.clear_caches()

    @torch.inference_mode()
    def imagine(
        self,
        image: ArrayLike,
        trajectories: HandTrajectory | Sequence[HandTrajectory],
        intrinsics: ArrayLike,
        *,
        prompt: str = "",
        guidance: float | None = None,
        control_guidance: float | None = None,
        steps: int | None = None,
        sigmas: Sequence[float] | None = None,
        solver: SolverName | None = None,
        seed: int | None = None,
        masks: ArrayLike | None = None,
        max_batch: int | None = None,
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
            control_guidance: scale of the same on the joints, away from what would be imagined if
                none were known (see ``guidance.guided``). None: the checkpoint's.
            steps: denoising steps; None: the checkpoint's.
            sigmas: noise levels of the steps, falling from 1, instead of ``steps``.
            solver: "euler" or "unipc"; None: the checkpoint's.
            seed: of the noise; the same seed gives the same frames. None draws a fresh one. All K
                candidates share the noise, so that they differ by their joints alone.
            masks: (T, H, W) or (K, T, H, W) uint8 classes of ``data.schema.MASK_CLASSES`` on the
                model's clock, only for checkpoints whose control reads masks.
            max_batch: most candidates computed at a time, for less memory; the frames are the same.
                None: the checkpoint's.
            on_step: called as on_step(step, steps), over all batches; returning False cancels.

        Raises:
            ImaginationCancelled: if ``on_step`` returned False.
            ValueError: naming the argument that does not fit.
        """
        if isinstance(trajectories, HandTrajectory):
            trajectories = [trajectories]
        sampling = choose_sampling(
            self.config,
            prompt=prompt,
            guidance=guidance,
            control_guidance=control_guidance,
            steps=steps,
            sigmas=sigmas,
            solver=solver,
        )
        joints, valid = (x.to(self.device) for x in read_joints(trajectories, self.config))
        pixels, matrix = read_image(image, intrinsics, self.config)
        stack = read_masks(masks, len(joints), self.config, wanted=self.control.reads_masks)
        batches = split_batches(
            len(joints), self.config.max_batch if max_batch is None else max_batch
        )
        watch, frames = _Stopwatch(), []
        frame, matrix = pixels.to(self.device), matrix.to(self.device)
        reference, tokens = self._references.get(digest(pixels), lambda: self._encode(frame))
        watch.lap("encode")
        scene = self._scene(reference, tokens, matrix, prompt, sampling)
        noise = draw_noise(self._latent_shape(reference), seed).to(self.device)
        for number, batch in enumerate(batches):
            known = {} if stack is None else {"masks": stack[batch].to(self.device)}
            condition, branches = scene.conditions(self.control, joints[batch], valid[batch], known)
            watch.lap("control")
            latents = sample(
                self.backbone,
                condition,
                noise.expand_as(condition.motion),
                sampling.sigmas,
                guidance=branches,
                solver=sampling.solver,
                cache=self._step_cache,
                on_step=_counted(on_step, number, len(batches)),
            )
            watch.lap("denoise")
            video = self.autoencoder.decode(latents, frame.expand(len(latents), -1, -1, -1))
            video = ((video.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
            frames.append(video.permute(0, 2, 3, 4, 1).cpu().numpy())
            watch.lap("decode")
        return ImaginationResult(np.concatenate(frames), clock(self.config), watch.seconds)

    def _encode(self, frame: Tensor) -> tuple[Tensor, Tensor | None]:
        """Latent (1, C, h, w) and image tokens (1, L, D) of the reference frame."""
        tokens = None if self.encoders is None else self.encoders.encode_image(frame)
        return self.autoencoder.encode_reference(frame), tokens

    def _latent_shape(self, reference: Tensor) -> tuple[int, ...]:
        """(1, C, t, h, w) of a rollout."""
        frames = 1 + (self.config.num_frames - 1) // self.autoencoder.temporal_stride
        return (1, reference.shape[1], frames, *reference.shape[-2:])

    def _scene(
        self,
        reference: Tensor,
        image: Tensor | None,
        matrix: Tensor,
        prompt: str,
        sampling: Sampling,
    ) -> Scene:
        """What all candidates share, and what each kind of guidance needs besides."""

        def tokens(text: str) -> Tensor | None:
            if self.encoders is None:
                return None
            return self._prompts.get(text, lambda: self.encoders.encode_text(text))

        bare = None
        if sampling.control_guidance != 1:
            bare = signal_of_unknown_hands(self.control, self.config, reference, matrix)
        return Scene(
            reference=reference,
            matrix=matrix,
            image=image,
            text=tokens(prompt),
            without_text=(
                None if sampling.guidance == 1 else tokens(self.encoders.negative_prompt)
            ),
            without_control=bare,
            sampling=sampling,
        )


def _counted(on_step: OnStep | None, batch: int, batches: int) -> OnStep | None:
    """``on_step`` of one batch, counting the steps of all."""
    if on_step is None or batches == 1:
        return on_step
    return lambda step, steps: on_step(batch * steps + step, batches * steps)


class _Stopwatch:
    """Seconds spent under each name, lap by lap."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
