"""Text and image encoders of a published model: what its backbone attends to beside the latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ego_world_model.world_model.checkpoint import CheckpointError
from ego_world_model.world_model.pretrained import load_base
from ego_world_model.world_model.wan import TEXT_TOKENS


class WanEncoders(nn.Module):
    """The UMT5 text encoder and CLIP image encoder of a Wan 2.1 image-to-video folder.

    Args:
        base: diffusers folder with ``tokenizer/`` and ``text_encoder/`` and, with ``image``,
            ``image_processor/`` and ``image_encoder/``.
        image: whether the transformer attends to image tokens (Wan 2.1 I2V does).
        negative_prompt: text of the unconditional branch of classifier-free guidance.
        dtype: name of a torch dtype for the weights, e.g. "bfloat16".
    """

    def __init__(
        self,
        *,
        base: str,
        image: bool = True,
        negative_prompt: str = "",
        dtype: str | None = None,
    ) -> None:
        super().__init__()
        from transformers import (
            AutoTokenizer,
            CLIPImageProcessor,
            CLIPVisionModel,
            UMT5EncoderModel,
        )

        self.negative_prompt = negative_prompt
        # Where to compute; the weights themselves may be elsewhere until they are needed.
        self.register_buffer("place", torch.empty(0), persistent=False)
        self.text_encoder = load_base(UMT5EncoderModel, base, "text_encoder", dtype)
        self.tokenizer = _processor(AutoTokenizer, base, "tokenizer")
        self.image_encoder = (
            load_base(CLIPVisionModel, base, "image_encoder", dtype) if image else None
        )
        self.image_processor = (
            _processor(CLIPImageProcessor, base, "image_processor") if image else None
        )

    def encode_text(self, prompt: str) -> Tensor:
        """(1, 512, D); positions behind the text are zeros, as in Wan's training."""
        tokens = self.tokenizer(
            [" ".join(prompt.split())],
            padding="max_length",
            max_length=TEXT_TOKENS,
            truncation=True,
            return_tensors="pt",
        ).to(self.place.device)
        mask = tokens.attention_mask
        embedding = self.text_encoder(tokens.input_ids, mask).last_hidden_state
        return embedding * mask[..., None].to(embedding.dtype)

    def encode_image(self, image: Tensor) -> Tensor | None:
        """(1, 3, H, W) in [-1, 1] → (1, L, D) CLIP tokens, or None without an image encoder.

        As in Wan's training, the whole image is squeezed into the encoder's square; the processor's
        own centre crop would hide the left and right of a wide image.
        """
        if self.image_encoder is None:
            return None
        side = self.image_encoder.config.image_size
        pixels = F.interpolate(image.float(), (side, side), mode="bicubic", align_corners=False)
        mean, std = (
            pixels.new_tensor(statistic).view(1, 3, 1, 1)
            for statistic in (self.image_processor.image_mean, self.image_processor.image_std)
        )
        pixels = ((pixels + 1) / 2 - mean) / std
        inputs = pixels.to(self.image_encoder.dtype)
        return self.image_encoder(inputs, output_hidden_states=True).hidden_states[-2]


def _processor(processor_class: Any, base: str | Path, part: str) -> Any:
    """A tokenizer or image processor from the sub-folder ``part`` of ``base``."""
    folder = Path(base) / part
    if not folder.is_dir():
        raise CheckpointError(f"base model part {folder} is missing")
    try:
        return processor_class.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} is not usable: {error}") from error


ENCODERS = {"wan": WanEncoders}
"""Name in a checkpoint's config → constructor."""


def build_encoders(name: str, **kwargs: Any) -> WanEncoders:
    """The encoders a checkpoint declares.

    Raises:
        ValueError: if the name is unknown.
    """
    if name not in ENCODERS:
        raise ValueError(f"unknown encoders {name!r}; known: {', '.join(sorted(ENCODERS))}")
    return ENCODERS[name](**kwargs)
