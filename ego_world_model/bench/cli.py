"""``ego-world-model bench``: time a rollout by stage, of a checkpoint or at a published size."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

if TYPE_CHECKING:
    import torch

    from ego_world_model.bench.stages import Measured
    from ego_world_model.world_model import WorldModel, WorldModelConfig

Results = dict[int, "dict[str, Measured]"]  # candidates → stage → measured


def bench(
    model: Annotated[
        str,
        typer.Option(
            help="A shipped model, a checkpoint folder, or wan-14b or wan-1.3b: random weights at "
            "the published size, which take their true time."
        ),
    ] = "tiny",
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:1.")] = "cpu",
    dtype: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Of transformer and encoders, only for wan-14b and wan-1.3b (bfloat16 if not "
            "given); a checkpoint declares its own."
        ),
    ] = None,
    steps: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Denoising steps; the model's own if not given."),
    ] = None,
    candidates: Annotated[
        list[int], typer.Option(min=1, help="Trajectories at a time; give it again for more.")
    ] = [1],  # noqa: B006  Typer copies it
    repeats: Annotated[int, typer.Option(min=1, help="Measured rollouts.")] = 20,
    warmup: Annotated[int, typer.Option(min=0, help="Rollouts before them.")] = 3,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of torch; 0: its choice.")] = 0,
    frames: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=2, help="Frames of a rollout; the model's own if not given."),
    ] = None,
    height: Annotated[Optional[int], typer.Option(min=8, help="Pixels; likewise.")] = None,  # noqa: UP045
    width: Annotated[Optional[int], typer.Option(min=8, help="Pixels; likewise.")] = None,  # noqa: UP045
    layers: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=1,
            help="Build only so many transformer blocks of wan-14b or wan-1.3b, and time a block.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Try although the memory does not seem to suffice.")
    ] = False,
    out: Annotated[Optional[Path], typer.Option(help="JSON file to write.")] = None,  # noqa: UP045
) -> None:
    """Time each stage of a rollout: encode, tokens, control, a denoising step, decode, whole.

    Rollouts run one after another on random images, with a synchronisation around every stage. The
    memory that is needed is worked out before anything is loaded; what does not fit is refused.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the node sets it; before torch starts
    import torch

    from ego_world_model.bench.memory import check_memory, memory_need
    from ego_world_model.bench.sizes import SIZES

    target = _device(device)
    if model not in SIZES and (dtype or layers):
        raise typer.BadParameter(
            f"--dtype and --layers are for {' and '.join(SIZES)}; {model} declares its own"
        )
    if threads:
        torch.set_num_threads(threads)
    resized = {"num_frames": frames, "height": height, "width": width}
    resized = {name: value for name, value in resized.items() if value is not None}
    build = _builder(model, _dtype(dtype or "bfloat16"), layers, resized)
    plan = build("meta")
    need = memory_need(plan, max(candidates))
    if not force:
        what = _title(model, plan.config, layers)
        check_memory(need, target, what=what, loads_on_cpu=model not in SIZES)
    typer.echo(f"estimated memory: {need}")
    loaded = build(device)
    results = _measure(loaded, candidates, repeats, warmup, steps, blocks=layers is not None)
    about = {
        "model": model,
        "layers": layers,
        "device": _name(target),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": _main_dtype(loaded),
        "frames": loaded.config.num_frames,
        "height": loaded.config.height,
        "width": loaded.config.width,
        "steps": steps or loaded.config.steps,
        "guidance": loaded.config.guidance,
        "repeats": repeats,
        "warmup": warmup,
        "estimated_bytes": need.total,
    }
    _print(_title(model, loaded.config, layers), about, results)
    if layers is not None:
        typer.echo(_extrapolation(model, layers, loaded.config, results))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(_document(about, results), indent=2) + "\n")
        typer.echo(f"{out} has every measured time")


def _device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise typer.BadParameter(f"--device {name}: give cpu, cuda or cuda:1") from error
    if device.type not in ("cpu", "cuda"):
        raise typer.BadParameter(f"--device {name}: only cpu and cuda are measured")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter(
            f"--device {name}: this machine has no CUDA device that torch {torch.__version__} sees"
        )
    return device


def _dtype(name: str) -> torch.dtype:
    import torch

    if name not in ("float32", "bfloat16", "float16"):
        raise typer.BadParameter(f"--dtype {name}: give float32, bfloat16 or float16")
    return getattr(torch, name)


def _builder(
    model: str, dtype: torch.dtype, layers: int | None, resized: dict[str, int]
) -> Callable[[str], WorldModel]:
    """A function that builds the model on a device; on "meta" without weights."""
    import torch

    from ego_world_model.bench.sizes import SIZES, build_random, random_config
    from ego_world_model.world_model import WorldModel
    from ego_world_model.world_model.checkpoint import read_config
    from ego_world_model.world_model.model import SHIPPED

    if model in SIZES:
        config = replace(random_config(model, layers=layers), **resized)
        return lambda device: build_random(model, config, dtype, device)
    folder = Path(model) if Path(model).exists() else SHIPPED / model

    def build(device: str) -> WorldModel:
        if device == "meta":
            config = read_config(folder)[0].relative_to(folder)
            with torch.device("meta"):
                return WorldModel(replace(config, **resized)).eval()
        loaded = WorldModel.from_pretrained(model, device=device)
        loaded.config = replace(loaded.config, **resized)
        return loaded

    return build


def _measure(
    model: WorldModel,
    candidates: list[int],
    repeats: int,
    warmup: int,
    steps: int | None,
    *,
    blocks: bool,
) -> Results:
    from rich.progress import Progress

    from ego_world_model.bench.stages import measure

    results = {}
    with Progress(transient=True) as progress:
        task = progress.add_task("rollouts", total=len(candidates) * (warmup + repeats))
        for count in candidates:
            results[count] = measure(
                model,
                candidates=count,
                repeats=repeats,
                warmup=warmup,
                steps=steps,
                blocks=blocks,
                on_rollout=lambda: progress.advance(task),
            )
    return results


def _title(model: str, config: WorldModelConfig, layers: int | None) -> str:
    from ego_world_model.bench.sizes import SIZES

    cut = f" cut to {layers} of {SIZES[model].layers} layers" if layers else ""
    return (
        f"{model}{cut}, {config.num_frames} frames of {config.width}x{config.height}, "
        f"horizon {config.horizon:.2f} s"
    )


def _print(title: str, about: dict[str, Any], results: Results) -> None:
    from rich.console import Console
    from rich.table import Table

    from ego_world_model.bench.memory import gibibytes

    console = Console()
    console.print(
        f"[bold]{title}[/bold]\n{about['device']}, {about['threads']} CPU thread(s), torch "
        f"{about['torch']}, {about['dtype']}; {about['steps']} step(s), guidance "
        f"{about['guidance']:g}; {about['warmup']} + {about['repeats']} rollouts",
        highlight=False,
    )
    for count, stages in results.items():
        table = Table(title=f"{count} candidate(s), ms", title_justify="left")
        table.add_column("stage")
        for heading in ("times", "median", "p90", "p99", "peak memory"):
            table.add_column(heading, justify="right")
        for stage, measured in stages.items():
            cells = [f"{1e3 * measured.percentile(q):.1f}" for q in (50, 90, 99)]
            table.add_row(stage, str(len(measured.seconds)), *cells, gibibytes(measured.peak))
        console.print(table)


def _extrapolation(model: str, layers: int, config: WorldModelConfig, results: Results) -> str:
    """What all layers would take: computed from the measured block, and said to be."""
    from ego_world_model.bench.sizes import SIZES
    from ego_world_model.bench.stages import BLOCK, STEP

    published = SIZES[model].layers
    passes = 2 if config.guidance != 1 else 1
    lines = []
    for count, stages in results.items():
        block, step = stages[BLOCK].percentile(50), stages[STEP].percentile(50)
        whole = step + passes * (published - layers) * block
        lines.append(
            f"not measured, computed for {count} candidate(s): a step of all {published} layers "
            f"{whole:.1f} s = {step:.1f} s + {passes} passes x {published - layers} layers x "
            f"{block:.3f} s"
        )
    return "\n".join(lines)


def _document(about: dict[str, Any], results: Results) -> dict[str, Any]:
    """All that was measured; seconds and bytes."""
    runs = [
        {
            "candidates": count,
            "stages": {
                stage: {
                    **{f"p{q}": measured.percentile(q) for q in (50, 90, 99)},
                    "seconds": list(measured.seconds),
                    "peak_bytes": measured.peak,
                }
                for stage, measured in stages.items()
            },
        }
        for count, stages in results.items()
    ]
    return {**about, "runs": runs}


def _main_dtype(model: WorldModel) -> str:
    """The dtype of most of the transformer; norms and a trained input layer may differ."""
    counts: Counter[str] = Counter()
    for parameter in model.backbone.parameters():
        counts[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    return counts.most_common(1)[0][0]


def _name(device: torch.device) -> str:
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()} ({os.cpu_count()} cores)"
