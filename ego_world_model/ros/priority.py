"""Scheduling priority of a node: small real-time work beside a model that fills the cores."""

from __future__ import annotations

import os
from pathlib import Path


def set_nice(value: int) -> None:
    """Sets the niceness of every thread of this process (threads made later inherit it).

    Linux keeps niceness per thread, and the middleware's threads exist before a node can read its
    parameters; so each one is set.

    Raises:
        PermissionError: lowering niceness needs CAP_SYS_NICE or a limit in limits.conf.
    """
    for task in Path("/proc/self/task").iterdir():
        os.setpriority(os.PRIO_PROCESS, int(task.name), value)
