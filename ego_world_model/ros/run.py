"""How every node starts and stops: no tracebacks for the user's mistakes or Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

import rclpy
from rclpy.executors import Executor, ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

from ego_world_model.ros.parameters import ParameterError


class StartError(RuntimeError):
    """A node cannot start; its text is what the user reads."""


def run_node(
    factory: Callable[[], Node],
    args: Sequence[str] | None = None,
    *,
    executor: Callable[[], Executor] = SingleThreadedExecutor,
) -> int:
    """Creates a node, spins it until SIGINT or SIGTERM, and destroys it.

    The default executor is the one that was measured (benchmarks/graph.py): Jazzy's experimental
    EventsExecutor answers no frame, takes a whole core and does not end on SIGTERM.

    A node that cannot go on sets its attribute ``failure`` to the reason and shuts its context
    down.

    Returns:
        The exit status: 0 after a requested shutdown, 1 where the node refuses to start or gives
        up (the reason is printed, without a traceback).
    """
    rclpy.init(args=list(sys.argv if args is None else args))
    node: Node | None = None
    spinner: Executor | None = None
    try:
        node = factory()
        spinner = executor()
        spinner.add_node(node)
        spinner.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass  # the user or the launcher asked for it
    except (StartError, ParameterError) as error:
        print(f"cannot start: {error}", file=sys.stderr, flush=True)
        return 1
    except Exception:
        if rclpy.ok():
            raise
        # ctrl-C came while the node was being made: whatever failed then, failed for that reason
    finally:
        if spinner is not None:
            spinner.shutdown(timeout_sec=1.0)
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    failure = getattr(node, "failure", None)
    if failure is not None:
        print(f"stopped: {failure}", file=sys.stderr, flush=True)
    return 0 if failure is None else 1
