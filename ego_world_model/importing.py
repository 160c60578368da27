"""``ego-world-model import``: make what others published usable here, one command per kind.

Models become checkpoints (``released``), recordings become datasets (the others).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from ego_world_model.data.importers import cli as recordings

app = typer.Typer(
    no_args_is_help=True,
    help="Import published models and recordings.",
    context_settings={"max_content_width": 100},
)


@app.callback()
def _group() -> None:
    """Import published models and recordings."""


app.command("bag")(recordings.bag)
app.command("humanoid-everyday")(recordings.humanoid_everyday)
app.command("xr-teleoperate")(recordings.xr_teleoperate)
app.command("lerobot")(recordings.lerobot)


@app.command("released")
def released(
    bundle: Annotated[
        Path, typer.Argument(help="Folder with dit.safetensors and hand-controller.safetensors.")
    ],
    base: Annotated[
        Path,
        typer.Option(help="Wan 2.1 I2V in diffusers' layout; it is referenced, not copied."),
    ],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="New checkpoint folder; checkpoints/<the bundle's name> if not given."),
    ] = None,
    frames: Annotated[int, typer.Option(min=5, help="Frames, 1 plus a multiple of 4.")] = 81,
    height: Annotated[int, typer.Option(min=16, help="Pixels.")] = 480,
    width: Annotated[int, typer.Option(min=16, help="Pixels.")] = 832,
    fps: Annotated[float, typer.Option(min=1, help="Frames a second of a rollout.")] = 16,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 50,
    guidance: Annotated[float, typer.Option(min=1, help="Guidance scale; 1 means none.")] = 5,
    negative_prompt: Annotated[str, typer.Option(help="What guidance leads away from.")] = "",
    dtype: Annotated[
        str, typer.Option(help="Of the base's transformer and encoders when it is loaded.")
    ] = "bfloat16",
) -> None:
    """Make a checkpoint of the published joint-control bundle and a Wan 2.1 I2V model.

    Reads the base's configs and tokenizer only, so it needs neither the base's weights nor a large
    machine. The checkpoint records which base it was made on and refuses another one.
    """
    from ego_world_model.world_model.released import import_released

    folder = out or Path("checkpoints") / bundle.resolve().name
    declared = import_released(
        bundle,
        base,
        folder,
        negative_prompt=negative_prompt,
        dtype=dtype,
        num_frames=frames,
        height=height,
        width=width,
        fps=fps,
        steps=steps,
        guidance=guidance,
    )
    lora = declared.backbone.kwargs["lora"]
    megabytes = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    typer.echo(
        f"{folder}: {declared.num_frames} frames of {declared.width}x{declared.height} at "
        f"{declared.fps:g} Hz, LoRA of rank {lora['rank']}, {megabytes:.1f} MB beside the base in "
        f"{declared.backbone.kwargs['base']}"
    )
    typer.echo(f"next: ego-world-model imagine --model {folder} --device cuda …")
