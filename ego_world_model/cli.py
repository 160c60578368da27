"""The command line, ``ego-world-model``: one table of commands, each loaded only when asked for.

``--help`` imports no model, no simulator and no ROS, so it answers at once and works where only a
part of the package is installed. A command whose requirement is missing says which and how to get
it; errors that this package raises about its inputs are printed as one message, not a traceback.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

import ego_world_model


@dataclass(frozen=True)
class LazyCommand:
    """Where a command lives; ``attribute`` is a Typer app, or a function that can be a command."""

    module: str
    attribute: str
    help: str


COMMANDS: dict[str, LazyCommand] = {
    "up": LazyCommand(
        "ego_world_model.up", "app", "Start a robot's graph of nodes (no ROS launch)."
    ),
    "imagine": LazyCommand(
        "ego_world_model.imagine", "imagine", "Imagine one image's future under a hand trajectory."
    ),
    "example": LazyCommand(
        "ego_world_model.example", "example", "Write an example frame and hand trajectories."
    ),
    "simulate": LazyCommand(
        "ego_world_model.data.cli", "simulate", "Record episodes of the simulated robot."
    ),
    "record": LazyCommand(
        "ego_world_model.record", "record", "Record a live graph or a bag as episodes."
    ),
    "replay": LazyCommand(
        "ego_world_model.replay", "replay", "Play a bag into the graph, with its time on /clock."
    ),
    "calibrate": LazyCommand(
        "ego_world_model.calibrate", "calibrate", "Find the head camera's true mount from pixels."
    ),
    "calibrate-delay": LazyCommand(
        "ego_world_model.calibrate_delay",
        "calibrate_delay",
        "Find how much later images are stamped than joint states.",
    ),
    "data": LazyCommand("ego_world_model.data.cli", "data", "Inspect and check datasets."),
    "train": LazyCommand("ego_world_model.training.cli", "app", "Train the world model's parts."),
    "evaluate": LazyCommand(
        "ego_world_model.evaluation.cli", "app", "Measure a checkpoint on held-out episodes."
    ),
    "evaluate-policy": LazyCommand(
        "ego_world_model.evaluation.policy.cli", "app", "Measure a motion policy, also in action."
    ),
    "import": LazyCommand(
        "ego_world_model.importing", "app", "Import published models and recordings."
    ),
    "bench": LazyCommand("ego_world_model.bench.cli", "bench", "Time a rollout by stage."),
}

_SETUP = "run script/setup in the source checkout, then use its .venv/bin/ego-world-model"
_REMEDIES: dict[str, str] = {
    "rclpy": f"ROS 2 for Python is not installed here: {_SETUP}, or source a ROS 2 installation",
    "ego_world_model.msg": f"the ROS interfaces are not built here: {_SETUP}, or build the package "
    "with colcon and source the workspace",
    "ego_world_model.action": f"the ROS interfaces are not built here: {_SETUP}, or build the "
    "package with colcon and source the workspace",
    "pinocchio": "pip install pin",
    "pink": "pip install pin-pink",
    "PIL": "pip install pillow",
    "yaml": "pip install pyyaml",
}
"""What to do about a missing module, where it is not ``pip install`` of the same name."""


def remedy(missing: str) -> str:
    """One sentence that helps where module ``missing`` cannot be imported."""
    for name in (missing, missing.split(".")[0]):
        if name in _REMEDIES:
            return _REMEDIES[name]
    return f"pip install {missing.split('.')[0].replace('_', '-')}"


class LazyGroup(TyperGroup):
    """Lists the commands from the table and imports the one that is invoked."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return list(COMMANDS)

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        """A name and a help line, all that a listing needs."""
        if cmd_name not in COMMANDS:
            return None
        return TyperCommand(name=cmd_name, help=COMMANDS[cmd_name].help)

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override]
        """The real command, at the moment it is run."""
        self.commands = {name: self.get_command(ctx, name) for name in COMMANDS}  # "did you mean"
        name, listed, rest = super().resolve_command(ctx, args)
        return name, listed if listed is None else load(listed.name), rest

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        if ctx.params.get("traceback"):
            return super().invoke(ctx)
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            missing = error.name or str(error)
            own = missing.startswith("ego_world_model") and missing not in _REMEDIES
            if own:
                raise
            _fail(f"module {missing} is needed. Remedy: {remedy(missing)}.")
        except (ValueError, FileNotFoundError, NotADirectoryError, PermissionError) as error:
            _fail(str(error))
        except Exception as error:
            # The package's own exceptions speak to the user too; all others are bugs.
            if not type(error).__module__.startswith("ego_world_model."):
                raise
            _fail(str(error))


def load(name: str) -> Any:
    """The runnable command called ``name`` in the table."""
    entry = COMMANDS[name]
    target = getattr(importlib.import_module(entry.module), entry.attribute)
    if not isinstance(target, typer.Typer):
        app = typer.Typer(add_completion=False)
        app.command(name=name, help=target.__doc__ or entry.help)(target)
        target = app
    target._add_completion = False  # completion belongs to the program, not to a command of it
    command = typer.main.get_command(target)
    command.name = name
    return command


def _fail(message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    line = Text.assemble(("error: ", "bold red"), message)
    Console(stderr=True, soft_wrap=True, highlight=False).print(line)
    raise typer.Exit(1)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"ego-world-model {ego_world_model.__version__}")
        raise typer.Exit


app = typer.Typer(
    name="ego-world-model",
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(help=ego_world_model.__doc__)
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Print the version."
    ),
    traceback: bool = typer.Option(
        False, "--traceback", help="Show the full traceback of an error, for a bug report."
    ),
) -> None:
    pass


def main() -> None:
    """Entry point of the console script."""
    # Headless machines have no display; EGL renders there, and a choice of the user's is kept.
    os.environ.setdefault("MUJOCO_GL", "egl")
    app()


if __name__ == "__main__":
    main()
