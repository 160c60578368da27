"""Feature networks of the perceptual metrics, read from a folder that the user gives.

Nothing is downloaded and nothing stands in for a network that is missing: its metrics are refused.
``NETWORKS`` lists the files. Three of them are TorchScript, which is no pickle of arbitrary objects
but is a program all the same: it runs as it is loaded and called, so take it from its publisher.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

FRAMES_AT_ONCE = 16
VIDEOS_AT_ONCE = 4
LPIPS_PIXELS_AT_ONCE = 2**17
"""LPIPS keeps every feature map, about 0.5 kB a pixel."""

MIN_VIDEO_FRAMES = 10
"""Frames that I3D's last pooling needs, after it has divided time by eight."""

CLIP_SCORE_WEIGHT = 2.5
"""w of Hessel et al., 2021."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """A feature network's place in the folder.

    Attributes:
        file: name of the file or sub-folder.
        metrics: what it makes possible.
        published: whose file that is.
        arguments: keyword arguments it is called with (TorchScript only).
    """

    file: str
    metrics: tuple[str, ...]
    published: str
    arguments: tuple[str, ...] = ()


NETWORKS: dict[str, Network] = {
    "inception": Network(
        file="inception-2015-12-05.pt",
        metrics=("fid",),
        published="the TorchScript Inception v3 published with StyleGAN2-ADA and StyleGAN3 for "
        "their metrics",
        arguments=("return_features",),
    ),
    "vgg": Network(
        file="vgg16.pt",
        metrics=("lpips",),
        published="the TorchScript VGG-16 with LPIPS weights published with StyleGAN2-ADA and "
        "StyleGAN3 for their metrics",
        arguments=("resize_images", "return_lpips"),
    ),
    "i3d": Network(
        file="i3d_torchscript.pt",
        metrics=("fvd",),
        published="the TorchScript I3D (Kinetics-400) published with StyleGAN-V for its FVD",
        arguments=("rescale", "resize", "return_features"),
    ),
    "clip": Network(
        file="clip",
        metrics=("clip_score", "clip_image", "clip_fid"),
        published="a transformers folder of OpenAI's CLIP, e.g. clip-vit-base-patch32: "
        "config.json, model.safetensors, tokenizer and preprocessor files",
    ),
}

FEATURE_METRICS = tuple(metric for network in NETWORKS.values() for metric in network.metrics)
"""Metrics that need a network; ``fid``, ``clip_fid`` and ``fvd`` always come with their kernel
distance."""


class MissingNetworkError(FileNotFoundError):
    """A metric was asked for whose feature network is not in the user's folder."""


class FeatureNetworks:
    """The networks found in a folder, and the features they give.

    Made by ``from_folder``. Frames are (N, H, W, 3) uint8; features are (N, D) float64.

    Attributes:
        folder: where they came from.
        metrics: those of ``FEATURE_METRICS`` that can be measured.
    """

    def __init__(self, folder: Path, networks: dict[str, Any], *, device: str | torch.device):
        self.folder, self.device = folder, torch.device(device)
        self._networks = networks
        self.metrics = tuple(m for name in networks for m in NETWORKS[name].metrics)

    @classmethod
    def from_folder(cls, path: str | Path, device: str | torch.device = "cpu") -> FeatureNetworks:
        """Load every network of ``NETWORKS`` that the folder holds.

        Raises:
            MissingNetworkError: if there is no folder, or none of the networks in it.
            ValueError: naming the file, if it is not what its name says.
        """
        folder = Path(path)
        found = {name: n for name, n in NETWORKS.items() if (folder / n.file).exists()}
        if not found:
            wanted = "\n".join(f"  {n.file}: {n.published}" for n in NETWORKS.values())
            raise MissingNetworkError(
                f"{folder} holds no feature network; put there any of\n{wanted}"
            )
        loaded = {
            name: _load_clip(folder / network.file, device)
            if name == "clip"
            else _load_script(folder / network.file, network, device)
            for name, network in found.items()
        }
        return cls(folder, loaded, device=device)

    def require(self, metrics: Sequence[str]) -> None:
        """Refuse metrics that cannot be measured here.

        Raises:
            ValueError: for a name that is no feature metric.
            MissingNetworkError: naming the file to put into the folder, and whose it is.
        """
        unknown = [metric for metric in metrics if metric not in FEATURE_METRICS]
        if unknown:
            raise ValueError(f"unknown metrics {unknown}; known: {', '.join(FEATURE_METRICS)}")
        missing = [metric for metric in metrics if metric not in self.metrics]
        if missing:
            lines = "\n".join(
                f"  {', '.join(m for m in missing if m in n.metrics)}: {self.folder / n.file}, "
                f"{n.published}"
                for n in NETWORKS.values()
                if set(n.metrics) & set(missing)
            )
            raise MissingNetworkError(f"cannot measure without their feature networks:\n{lines}")

    def inception(self, frames: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Pool3 features of FID (2048 with the published file)."""
        script = self._get("inception")

        def run(batch: Tensor) -> Tensor:
            return script(batch, return_features=True)

        return self._features("inception", run, _pictures(frames), FRAMES_AT_ONCE)

    def i3d(self, videos: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Features of FVD (400 with the published file): (N, T, H, W, 3) uint8 → (N, D).

        Raises:
            ValueError: if the videos have fewer than ``MIN_VIDEO_FRAMES`` frames.
        """
        script = self._get("i3d")
        videos = np.asarray(videos)
        if videos.ndim != 5 or videos.shape[1] < MIN_VIDEO_FRAMES:
            raise ValueError(
                f"FVD needs videos (N, T, H, W, 3) of at least {MIN_VIDEO_FRAMES} frames, got "
                f"{videos.shape}"
            )

        def run(batch: Tensor) -> Tensor:
            return script(batch.float(), rescale=True, resize=True, return_features=True)

        tensor = torch.from_numpy(np.ascontiguousarray(np.moveaxis(videos, -1, 1)))
        return self._features("i3d", run, tensor, VIDEOS_AT_ONCE)  # (N, 3, T, H, W) in

    def lpips(self, frames: NDArray[np.uint8], truth: NDArray[np.uint8]) -> NDArray[np.float64]:
        """(N,) perceptual distance (Zhang et al., 2018, VGG) of frames at their own size.

        Raises:
            ValueError: if the shapes differ.
        """
        script = self._get("vgg")
        if np.shape(frames) != np.shape(truth):
            raise ValueError(f"frames {np.shape(frames)} and truth {np.shape(truth)} differ")
        pairs = torch.stack([_pictures(frames), _pictures(truth)], dim=1)  # (N, 2, 3, H, W)

        def run(batch: Tensor) -> Tensor:
            flat = script(batch.flatten(0, 1).float(), resize_images=False, return_lpips=True)
            one, other = flat.unflatten(0, batch.shape[:2]).unbind(1)  # (n, D) each
            return (one - other).square().sum(dim=1, keepdim=True)

        pixels = pairs.shape[-1] * pairs.shape[-2] * 2
        at_once = max(1, LPIPS_PIXELS_AT_ONCE // pixels)
        return self._features("vgg", run, pairs, at_once)[:, 0]

    def clip_images(self, frames: NDArray[np.uint8]) -> NDArray[np.float64]:
        """CLIP's projected image embeddings, not normalised.

        Frames are squeezed to CLIP's square instead of cropped to it, so that hands at a side are
        seen (as CLIP-FID of Kynkäänniemi et al., 2023, does).
        """
        model, processor = self._get("clip")
        side = model.config.vision_config.image_size
        square = ((side, side), Image.Resampling.BICUBIC)
        shown = np.stack([np.asarray(Image.fromarray(f).resize(*square)) for f in frames])

        def run(batch: Tensor) -> Tensor:
            images = list(batch.cpu().permute(0, 2, 3, 1).numpy())
            inputs = processor.image_processor(images=images, return_tensors="pt")
            hidden = model.vision_model(inputs["pixel_values"].to(self.device)).pooler_output
            return model.visual_projection(hidden)

        return self._features("clip", run, _pictures(shown), FRAMES_AT_ONCE)

    def clip_texts(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """(N, D) projected text embeddings, not normalised; text beyond CLIP's length is cut."""
        model, processor = self._get("clip")
        tokens = processor.tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.device)
        with torch.inference_mode():
            hidden = model.text_model(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).pooler_output
            return model.text_projection(hidden).double().cpu().numpy()

    def _get(self, name: str) -> Any:
        if name not in self._networks:
            self.require(NETWORKS[name].metrics)
        return self._networks[name]

    def _features(
        self, name: str, run: Callable[[Tensor], Tensor], inputs: Tensor, at_once: int
    ) -> NDArray[np.float64]:
        """``run`` on batches; its output must be one row per input."""
        parts = []
        for batch in inputs.split(at_once):
            with torch.inference_mode():
                try:
                    features = run(batch.to(self.device))
                except RuntimeError as error:
                    raise ValueError(
                        f"{self.folder / NETWORKS[name].file} failed on an input "
                        f"{tuple(batch.shape)}: {error}"
                    ) from error
            if features.ndim != 2 or len(features) != len(batch):
                raise ValueError(
                    f"{self.folder / NETWORKS[name].file} gave features "
                    f"{tuple(features.shape)} for {len(batch)} inputs, not ({len(batch)}, D); it "
                    f"should be {NETWORKS[name].published}"
                )
            parts.append(features.double().cpu().numpy())
        return np.concatenate(parts)


def cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """(...) cosine similarity of vectors (..., D)."""
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def _pictures(frames: NDArray[np.uint8]) -> Tensor:
    """(N, H, W, 3) uint8 → (N, 3, H, W) uint8."""
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"expected frames (N, H, W, 3) uint8, got {frames.shape} {frames.dtype}")
    return torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))


def _load_script(file: Path, network: Network, device: str | torch.device) -> Any:
    try:
        script = torch.jit.load(str(file), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{file} is not a TorchScript file; it should be {network.published}"
        ) from error
    known = {argument.name for argument in script.forward.schema.arguments}
    lacking = [argument for argument in network.arguments if argument not in known]
    if lacking:
        raise ValueError(
            f"{file} takes no argument {', '.join(lacking)}; it should be {network.published}"
        )
    return script


def _load_clip(folder: Path, device: str | torch.device) -> tuple[Any, Any]:
    from transformers import CLIPModel, CLIPProcessor

    try:
        model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"{folder} is not usable as CLIP; it should be {NETWORKS['clip'].published}. Weights "
            f"in pytorch_model.bin are not read: save them as safetensors first. {error}"
        ) from error
    return model.float().eval().to(device), processor
