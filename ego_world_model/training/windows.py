"""Windows of a dataset as a large model reads them: latents and embeddings, computed once.

An autoencoder that compresses time gives a frame another latent in every clip it is cut into, so
what is cached are windows: clips of fixed starts. Beside the latents lie the embedded reference
image of each window and each distinct instruction, so that training never loads the encoders.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ego_world_model.training.augmentation import Augmentation, hide_joints
from ego_world_model.training.clips import ClipBatch, ClipCache
from ego_world_model.training.processes import processes
from ego_world_model.world_model.checkpoint import PartSpec
from ego_world_model.world_model.encoders import WanEncoders, build_encoders

NO_PROMPT = ""
"""Stands for an instruction that was left out."""

_PARTS_OF_ENCODERS = ("text_encoder", "tokenizer", "image_encoder", "image_processor")
_SAMPLED_FRAMES = 64


@dataclass(frozen=True, kw_only=True)
class WindowSettings:
    """How a dataset is cut into windows.

    Attributes:
        every: frames of the dataset between the starts of neighbouring windows.
        stride: a window holds every stride-th frame of the dataset.
    """

    every: int = 8
    stride: int = 1


def window_starts(cache: ClipCache, frames: int, settings: WindowSettings) -> NDArray[np.int64]:
    """(N,) first frames of all windows of ``frames`` frames, counted over all episodes.

    Raises:
        ValueError: if no episode is long enough.
    """
    span = settings.stride * (frames - 1) + 1
    starts = [
        np.arange(first, after - span + 1, settings.every)
        for first, after in zip(cache.first[:-1], cache.first[1:], strict=True)
    ]
    starts = np.concatenate(starts)
    if not len(starts):
        raise ValueError(f"no episode has the {span} frames of a window")
    return starts


class WindowCache:
    """Latents and embeddings of windows of a ``ClipCache``; see ``build``.

    Attributes:
        index: (N, T) frames of each window, counted over all episodes.
        latents: (N, C, t, h, w) float16.
        image: (N, L, D) float16 embedded reference frames, or None.
    """

    def __init__(self, cache: ClipCache, index: NDArray[np.int64], folder: Path) -> None:
        self.cache, self.index = cache, index
        self.latents = np.load(folder / "latents.npy", mmap_mode="r")
        path = folder / "image.npy"
        self.image = np.load(path, mmap_mode="r") if path.exists() else None
        path = folder / "text.safetensors"
        self._text = load_file(path) if path.exists() else {}
        self.instructions = [cache.instruction(int(row[0])) for row in index] if self._text else []

    def __len__(self) -> int:
        return len(self.index)

    @classmethod
    def build(
        cls,
        cache: ClipCache,
        index: NDArray[np.int64],
        folder: Path,
        *,
        autoencoder: nn.Module,
        encoders: PartSpec | None = None,
        report: Callable[[str], None] = lambda line: None,
    ) -> WindowCache:
        """Encode the windows of ``index`` (N, T), or reuse what was encoded from the same.

        Each process encodes its share. ``folder/windows.json`` says what everything was made from:
        autoencoder, encoders, frames and windows. If any of them differs, all is made again.

        Args:
            autoencoder: on the device that is to encode.
            encoders: loaded for the time of encoding only; None for models that read no text.
        """
        state = processes()
        key = _key(cache, index, autoencoder, encoders)
        info = folder / "windows.json"
        fresh = not (info.exists() and json.loads(info.read_text()) == key)
        state.wait_for_everyone()  # all have looked before one removes it
        if fresh:
            if state.is_main_process:
                folder.mkdir(parents=True, exist_ok=True)
                for old in (info, folder / "image.npy", folder / "text.safetensors"):
                    old.unlink(missing_ok=True)
            state.wait_for_everyone()
            with torch.inference_mode():
                _encode_latents(cache, index, folder, autoencoder, report)
                if encoders is not None:
                    _embed(cache, index, folder, encoders, report)
            state.wait_for_everyone()
            if state.is_main_process:
                info.write_text(json.dumps(key))
            state.wait_for_everyone()
        return cls(cache, index, folder)

    def text(self, instructions: list[str]) -> Tensor | None:
        """(B, L, D) embedded instructions, zeros behind each; None where nothing reads text."""
        if not self._text:
            return None
        length = int(self._text["length"])
        rows = [self._text[_name(instruction)].float() for instruction in instructions]
        return torch.stack(
            [torch.nn.functional.pad(row, (0, 0, 0, length - len(row))) for row in rows]
        )

    def gather(
        self,
        rows: NDArray[np.int64],
        *,
        valid: NDArray[np.bool_] | None = None,
        instructions: list[str] | None = None,
    ) -> ClipBatch:
        """The windows ``rows`` (B,) as a batch.

        Args:
            valid: (B, T, J) instead of the dataset's.
            instructions: instead of the dataset's.
        """
        cache, index = self.cache, self.index[rows]
        episodes = np.searchsorted(cache.first, index[:, 0], side="right") - 1
        reference = torch.from_numpy(cache.images[index[:, :1]]).permute(0, 1, 4, 2, 3).float()
        if instructions is None and self.instructions:
            instructions = [self.instructions[row] for row in rows]
        image = None if self.image is None else torch.from_numpy(self.image[rows]).float()
        return ClipBatch(
            video=reference / 127.5 - 1,
            masks=torch.from_numpy(cache.masks[index]),
            joints=torch.from_numpy(cache.positions[index]),
            valid=torch.from_numpy(cache.valid[index] if valid is None else valid),
            intrinsics=torch.from_numpy(cache.intrinsics[episodes]),
            latents=torch.from_numpy(self.latents[rows]).float(),
            text=self.text(instructions) if instructions else None,
            image=image,
        )


class WindowSampler:
    """Random windows, with joints hidden and instructions left out as ``augmentation`` says.

    Frames cannot be mirrored or recoloured here: their latents are fixed.

    Args:
        rng: drives everything drawn here, so that a resumed run continues exactly.

    Raises:
        ValueError: if ``augmentation`` changes frames.
    """

    def __init__(
        self, windows: WindowCache, rng: np.random.Generator, *, augmentation: Augmentation
    ) -> None:
        if augmentation.mirror or augmentation.colour:
            raise ValueError(
                "augmentation: cached latents cannot be mirrored or recoloured; set mirror and "
                "colour to 0, or leave `windows` out"
            )
        self.windows, self.rng, self.augmentation = windows, rng, augmentation

    def sample(self, batch: int) -> ClipBatch:
        """``batch`` windows, each equally likely."""
        windows, rng = self.windows, self.rng
        rows = rng.integers(len(windows), size=batch)
        valid = hide_joints(windows.cache.valid[windows.index[rows]], self.augmentation, rng)
        dropped = rng.random(batch) < self.augmentation.drop_prompt
        instructions = [
            NO_PROMPT if drop else windows.instructions[row]
            for row, drop in zip(rows, dropped, strict=True)
            if windows.instructions
        ]
        return windows.gather(rows, valid=valid, instructions=instructions)


def _encode_latents(
    cache: ClipCache,
    index: NDArray[np.int64],
    folder: Path,
    autoencoder: nn.Module,
    report: Callable[[str], None],
) -> None:
    device = next(autoencoder.parameters()).device

    def latents(row: NDArray[np.int64]) -> Tensor:
        frames = torch.from_numpy(cache.images[row]).permute(3, 0, 1, 2)[None]
        return autoencoder.encode(frames.to(device).float() / 127.5 - 1)[0]

    _fill(folder / "latents.npy", index, latents, "latents", report)


def _embed(
    cache: ClipCache,
    index: NDArray[np.int64],
    folder: Path,
    spec: PartSpec,
    report: Callable[[str], None],
) -> None:
    """Reference frames by the image encoder, distinct instructions by the text encoder."""
    state = processes()
    encoders = build_encoders(spec.name, **spec.kwargs).eval().to(state.device)

    def image(row: NDArray[np.int64]) -> Tensor | None:
        frame = torch.from_numpy(cache.images[row[:1]]).permute(0, 3, 1, 2)
        tokens = encoders.encode_image(frame.to(state.device).float() / 127.5 - 1)
        return None if tokens is None else tokens[0]

    if encoders.image_encoder is not None:
        _fill(folder / "image.npy", index, image, "reference images", report)
    if state.is_main_process:
        texts = {NO_PROMPT, *(cache.instruction(int(row[0])) for row in index)}
        save_file(_texts(encoders, texts), folder / "text.safetensors")


def _texts(encoders: WanEncoders, instructions: set[str]) -> dict[str, Tensor]:
    """Embedded instructions by name without the zeros behind them, and their full "length"."""
    tensors = {}
    for instruction in sorted(instructions):
        embedding = encoders.encode_text(instruction)[0].cpu()  # (L, D)
        used = embedding.abs().sum(dim=1).nonzero()
        tensors[_name(instruction)] = embedding[: int(used.max()) + 1 if len(used) else 0].clone()
        tensors["length"] = torch.tensor(len(embedding))
    return tensors


def _fill(
    path: Path,
    index: NDArray[np.int64],
    encode: Callable[[NDArray[np.int64]], Tensor],
    what: str,
    report: Callable[[str], None],
) -> None:
    """Write ``encode(window)`` of all windows to a float16 array, this process its share."""
    state = processes()
    mine = range(state.process_index, len(index), state.num_processes)
    if state.is_main_process:
        first = encode(index[0])
        open_memmap(path, "w+", np.float16, (len(index), *first.shape)).flush()
    state.wait_for_everyone()
    array = np.lib.format.open_memmap(path, "r+")
    for done, number in enumerate(mine):
        array[number] = encode(index[number]).float().cpu().numpy()
        if done % 100 == 0:
            report(f"encoded {what} of {number} of {len(index)} windows")
    array.flush()


def _key(
    cache: ClipCache, index: NDArray[np.int64], autoencoder: nn.Module, encoders: PartSpec | None
) -> dict[str, Any]:
    """What the cached arrays are made from, as hashes."""
    sampled = np.linspace(0, len(cache.images) - 1, _SAMPLED_FRAMES).astype(int)
    frames = hashlib.sha256(np.ascontiguousarray(cache.images[sampled]).tobytes())
    windows = hashlib.sha256(np.ascontiguousarray(index).tobytes())
    weights = hashlib.sha256()
    for name, value in sorted(autoencoder.state_dict().items()):
        weights.update(name.encode())
        value = value.detach().cpu().contiguous()
        weights.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return {
        "frames": frames.hexdigest(),
        "windows": windows.hexdigest(),
        "autoencoder": weights.hexdigest(),
        "encoders": None if encoders is None else _encoder_key(encoders),
        "instructions": None if encoders is None else _instruction_key(cache, index),
    }


def _encoder_key(spec: PartSpec) -> str:
    digest = hashlib.sha256(json.dumps(spec.kwargs.get("dtype")).encode())
    base = Path(spec.kwargs["base"])
    for path in sorted(p for part in _PARTS_OF_ENCODERS for p in (base / part).glob("*")):
        digest.update(path.relative_to(base).as_posix().encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _instruction_key(cache: ClipCache, index: NDArray[np.int64]) -> str:
    texts = [cache.instruction(int(row[0])) for row in index]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()


def _name(instruction: str) -> str:
    """Name of an instruction's tensor; a hash, since it may be of any length."""
    return hashlib.sha256(instruction.encode()).hexdigest()
