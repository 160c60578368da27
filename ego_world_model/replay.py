"""``ego-world-model replay``: play a bag into the graph, with its time on /clock."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from ego_world_model.ros.bag_player import BagPlayer


def replay(
    bag: Annotated[Path, typer.Argument(help="A rosbag2 recording (sqlite3 or MCAP).")],
    rate: Annotated[float, typer.Option(min=0.01, max=100, help="Bag seconds a second.")] = 1.0,
    start: Annotated[
        float, typer.Option("--start-offset", min=0.0, help="Seconds of the bag to leave out.")
    ] = 0.0,
    loop: Annotated[bool, typer.Option(help="Begin again at the end, until ctrl-C.")] = False,
    topic: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Play only this topic (repeat for several)."),
    ] = None,
    remap: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(metavar="FROM:=TO", help="Publish a topic under another name (repeatable)."),
    ] = None,
    clock: Annotated[
        bool, typer.Option(help="Publish the bag's time on /clock, for use_sim_time:=true.")
    ] = True,
    wait: Annotated[
        float, typer.Option(min=0.0, help="Seconds to wait for the first subscriber.")
    ] = 10.0,
) -> None:
    """Play a recording into the graph: its messages unchanged, its time on /clock.

    Start the nodes with use_sim_time:=true first. Topics whose message package is not installed
    are left out and named.
    """
    # rclpy and the middleware read these when they are loaded
    from ego_world_model.bringup import environment, load_bringup

    os.environ.update(environment(load_bringup("g1"), {}, os.environ))

    import rclpy
    from rclpy.signals import SignalHandlerOptions
    from rich.console import Console
    from rosbags.highlevel import AnyReader, AnyReaderError

    from ego_world_model.data.importers.bag import find_bags
    from ego_world_model.data.importers.bag_messages import typestore
    from ego_world_model.ros.bag_player import BagPlayer, PlayOptions, ReplayError

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    found = find_bags(bag)
    if len(found) > 1:
        raise ReplayError(f"{bag} holds {len(found)} recordings, choose one: {found[0]}, …")
    words = [word for rule in remap or () for word in ("-r", _rule(rule))]
    options = PlayOptions(rate=rate, start=start, topics=_topics(topic), loop=loop, clock=clock)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    rclpy.init(args=["--ros-args", *words], signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("bag_player")
    try:
        with AnyReader([found[0]], default_typestore=typestore()) as reader:
            player = BagPlayer(node, reader, options)
            if player.seconds == 0.0:
                raise ReplayError(f"--start-offset {start:g} leaves nothing of {bag}")
            _announce(player, console, clock=clock)
            if not player.wait_for_subscribers(wait, stop) and not stop.is_set():
                console.print("nobody subscribes to these topics; playing all the same")
            _play(player, stop, console)
    except AnyReaderError as error:
        raise ReplayError(f"{bag} cannot be read: {error}") from error
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


def _announce(player: BagPlayer, console: Console, *, clock: bool) -> None:
    for name, why in player.skipped.items():
        console.print(f"left out: {name}, {why}", style="yellow", markup=False)
    topics = ", ".join(sorted(player.subscribers()))
    console.print(f"{player.seconds:.1f} s: {topics}", markup=False)
    if clock and player.own_clock:
        console.print("the bag brings its own /clock, which is played")


def _play(player: BagPlayer, stop: threading.Event, console: Console) -> None:
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("playing"), BarColumn(), TextColumn("{task.completed:.1f} s"))
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        line = bar.add_task("", total=player.seconds)
        played = player.play(stop, on_time=lambda seconds: bar.update(line, completed=seconds))
    count = sum(played.messages.values())
    console.print(
        f"played {count} messages of {len(played.messages)} topics; the latest came "
        f"{1e3 * played.lag:.0f} ms after its time"
    )


def _rule(text: str) -> str:
    if ":=" not in text:
        raise typer.BadParameter(f"{text!r} is not FROM:=TO, such as /camera/image:=/other/image")
    return text


def _topics(names: list[str] | None) -> tuple[str, ...]:
    return tuple(f"/{name.lstrip('/')}" for name in names or ())
