"""``ego-world-model train``: the parts of the world model, the estimator, the policy."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Optional

import typer

app = typer.Typer(no_args_is_help=True, help="Train the world model's parts and the policy.")

ConfigFile = Annotated[Path, typer.Argument(help="Training YAML, see config/training/.")]
Run = Annotated[Path, typer.Option(help="Folder of the run; an unfinished run is resumed.")]
Data = Annotated[
    Optional[list[Path]],  # noqa: UP045
    typer.Option(help="Training dataset instead of the YAML's (may be repeated)."),
]
HeldOut = Annotated[
    Optional[list[Path]],  # noqa: UP045
    typer.Option(help="Validation dataset instead of the YAML's (may be repeated)."),
]
Minutes = Annotated[
    Optional[float], typer.Option(help="Minutes of training instead of the YAML's.")  # noqa: UP045
]
Cache = Annotated[
    Optional[Path], typer.Option(help="Where unpacked frames are kept (default: in the run).")  # noqa: UP045
]


def _prepare() -> None:
    # Spinning OpenMP threads starve whatever else shares the cores; must be set before torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _finish() -> bool:
    """Part from the other processes of the run; whether this is the main one."""
    from ego_world_model.training.processes import processes

    main = processes().is_main_process
    processes().destroy_process_group()
    return main


def _overrides(data: list[Path] | None, held_out: list[Path] | None, minutes: float | None) -> dict:
    return {
        "data": {
            "train": [str(folder) for folder in data] if data else None,
            "validation": [str(folder) for folder in held_out] if held_out else None,
        },
        "loop": {"deadline_minutes": minutes},
    }


@app.command("autoencoder")
def autoencoder(
    config: ConfigFile,
    run: Run = Path("runs/autoencoder"),
    data: Data = None,
    validation_data: HeldOut = None,
    deadline_minutes: Minutes = None,
    cache: Cache = None,
) -> None:
    """Train the per-frame autoencoder."""
    _prepare()
    from ego_world_model.training.config import AutoencoderTraining, load
    from ego_world_model.training.runs import train_autoencoder

    overrides = _overrides(data, validation_data, deadline_minutes)
    train_autoencoder(load(AutoencoderTraining, config, overrides), run, cache=cache, report=_say)
    _finish()


@app.command("world-model")
def world_model(
    config: ConfigFile,
    autoencoder: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Run folder of the trained autoencoder, unless the YAML says where it comes from."
        ),
    ] = None,
    run: Run = Path("runs/world_model"),
    data: Data = None,
    validation_data: HeldOut = None,
    deadline_minutes: Minutes = None,
    cache: Cache = None,
) -> None:
    """Train joint control and backbone, of any size; several processes by `accelerate launch`."""
    _prepare()
    from ego_world_model.training.config import WorldModelTraining, load
    from ego_world_model.training.runs import train_world_model

    overrides = _overrides(data, validation_data, deadline_minutes)
    settings = load(WorldModelTraining, config, overrides)
    checkpoint = train_world_model(settings, autoencoder, run, cache=cache, report=_say)
    if _finish():
        typer.echo(f"checkpoint: {checkpoint}")


@app.command("tiny")
def tiny(
    data: Annotated[list[Path], typer.Option(help="Training dataset (may be repeated).")],
    validation_data: Annotated[
        list[Path], typer.Option(help="Validation dataset (may be repeated).")
    ],
    run: Run = Path("runs/tiny"),
    configs: Annotated[Path, typer.Option(help="Folder of the tiny_*.yaml files.")] = Path(
        "config/training"
    ),
    autoencoder_minutes: Minutes = None,
    world_model_minutes: Minutes = None,
) -> None:
    """Retrain the shipped model: autoencoder, then world model."""
    cache = run / "cache"
    autoencoder(
        configs / "tiny_autoencoder.yaml",
        run / "autoencoder",
        data,
        validation_data,
        autoencoder_minutes,
        cache,
    )
    world_model(
        configs / "tiny_world_model.yaml",
        run / "autoencoder",
        run / "world_model",
        data,
        validation_data,
        world_model_minutes,
        cache,
    )


@app.command("policy")
def policy(
    config: ConfigFile,
    run: Run = Path("runs/policy"),
    data: Data = None,
    validation_data: HeldOut = None,
    deadline_minutes: Minutes = None,
    cache: Cache = None,
) -> None:
    """Train the motion policy; several processes by `accelerate launch`."""
    _prepare()
    from ego_world_model.training.config import load
    from ego_world_model.training.policy import PolicyTraining, train_policy

    settings = load(PolicyTraining, config, _overrides(data, validation_data, deadline_minutes))
    checkpoint = train_policy(settings, run, cache=cache, report=_say)
    if _finish():
        typer.echo(f"checkpoint: {checkpoint}")


@app.command("keypoints")
def keypoints(config: ConfigFile) -> None:
    """Train the keypoint and segmentation estimator that measures imagined frames."""
    _prepare()
    from ego_world_model.training.keypoints import train_keypoints

    train_keypoints(config)


@app.command("ablation")
def ablation(
    config: ConfigFile,
    run: Annotated[Path, typer.Option(help="Folder of training states and caches.")] = Path(
        "runs/ablation"
    ),
    results: Annotated[
        Path, typer.Option(help="Folder of a result file per finished run, and report.md.")
    ] = Path("docs/ablation"),
    method: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Only this row of the table (may be repeated)."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of a run.")] = 1,
) -> None:
    """Compare controls at equal budget: ours, ablated and the peers'; goes on where it stopped."""
    _prepare()
    import torch

    from ego_world_model.training.ablation import Ablation, run_ablation
    from ego_world_model.training.ablation_report import write_report
    from ego_world_model.training.config import load

    torch.set_num_threads(threads)
    settings = load(Ablation, config, {})

    def report() -> None:
        write_report(
            settings,
            results,
            results / "report.md",
            command=f"ego-world-model train ablation {config}",
        )

    run_ablation(settings, run, results, only=method or (), report=_say, on_finished=report)
    report()


@app.command("curve")
def curve(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.")],
    output: Annotated[Path, typer.Argument(help="Where to write OUTPUT.json and OUTPUT.png.")],
) -> None:
    """Draw a run's learning curve."""
    from ego_world_model.training.curve import save_curve

    save_curve(run, output)


def _say(line: str) -> None:
    typer.echo(line)
