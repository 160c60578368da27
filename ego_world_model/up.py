"""``ego-world-model up``: starts a robot's node table as processes, where ROS launch is absent.

It starts what ``ros2 launch ego_world_model <robot>.launch.py`` starts, with the same arguments.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from ego_world_model.bringup import (
    BRINGUPS,
    PACKAGE,
    Bringup,
    BringupError,
    NodeSpec,
    environment,
    load_bringup,
    resolve,
)
from ego_world_model.processes import ProcessGroup
from ego_world_model.programs import find_program

app = typer.Typer(add_completion=False)


@app.command(name="up")
def up(
    robot: str = typer.Argument(help=f"which graph: {', '.join(BRINGUPS)}"),
    arguments: list[str] = typer.Argument(
        None, metavar="[NAME:=VALUE]...", help="launch arguments, as for ros2 launch"
    ),
    sim: bool = typer.Option(False, "--sim", help="Simulate the robot; short for sim:=true."),
    show_args: bool = typer.Option(False, "--show-args", help="List the arguments and end."),
    status: bool = typer.Option(True, help="Print a line a second about what flows."),
) -> None:
    """Start a robot's nodes and keep an eye on them until ctrl-C."""
    bringup = load_bringup(robot)
    if show_args:
        show_arguments(bringup)
        return
    given = parse_arguments(arguments or [])
    if sim:
        given["sim"] = "true"
    raise typer.Exit(run(bringup, given, status=status))


def run(bringup: Bringup, given: Mapping[str, str], *, status: bool = True) -> int:
    """Start the nodes, supervise them until SIGINT, SIGTERM or the end of the last; exit code.

    The code is 0 where the user ended it and no node had failed by itself.
    """
    specs = resolve(bringup, given)
    commands = {spec.name: command_line(spec) for spec in specs}
    # the status subscriber in this process talks through the same transports as the nodes
    os.environ.update(environment(bringup, given, os.environ))
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    group = ProcessGroup()
    board = None
    try:
        for name, command in commands.items():
            group.start(name, command, os.environ)
        board = _status_board(specs) if status else None
        failed = _supervise(group, stop, board)
    finally:
        if board is not None:
            board.close()
        group.stop()
    return 1 if failed else 0


def parse_arguments(words: Sequence[str]) -> dict[str, str]:
    """``name:=value`` words as a mapping."""
    given = {}
    for word in words:
        name, sign, value = word.partition(":=")
        if not sign or not name:
            raise BringupError(f"argument {word!r} is not NAME:=VALUE, such as sim:=true")
        given[name] = value
    return given


def command_line(spec: NodeSpec) -> list[str]:
    """Program and arguments of a node."""
    program = str(find_program(spec.package, spec.executable))
    # our programs are Python: run them with the interpreter that runs this, activated or not
    interpreter = [sys.executable] if spec.package == PACKAGE else []
    return [*interpreter, program, *spec.ros_arguments()]


def show_arguments(bringup: Bringup) -> None:
    """Print the launch arguments with defaults and descriptions."""
    table = Table("argument", "default", "meaning", box=None)
    for argument in bringup.arguments:
        table.add_row(argument.name, argument.default or "(empty)", argument.description)
    Console().print(table)


def _status_board(specs: Sequence[NodeSpec]) -> Any:
    from ego_world_model.ros.status import StatusBoard

    return StatusBoard([f"{spec.namespace}/{spec.name}" for spec in specs])


def _supervise(group: ProcessGroup, stop: threading.Event, board: Any) -> bool:
    """Report what happens until asked to stop or nothing runs; whether a node failed."""
    started = time.monotonic()
    next_line = started + 1.0
    failed = False
    while group.running and not stop.wait(0.05):
        for ended in group.reap():
            failed = True  # nodes run until they are told to stop
            _say(f"{ended}; its messages are above")
            if board is not None:
                board.node_ended(str(ended.name), str(ended))
        if board is not None and time.monotonic() >= next_line:
            next_line += 1.0
            _say(f"{time.monotonic() - started:.0f} s: {board.line()}")
    if not stop.is_set():
        _say("no node is left")
    return failed


def _say(message: str) -> None:
    print(f"[up] {message}", flush=True)
