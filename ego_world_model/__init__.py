"""Imagine what a humanoid's head camera would see if its hands moved in a given way."""

import os

# MuJoCo chooses its renderer when it is first imported; its default needs a display.
if "DISPLAY" not in os.environ:
    os.environ.setdefault("MUJOCO_GL", "egl")

__version__ = "0.1.0"
