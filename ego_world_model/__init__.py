"""Imagine what a humanoid's head camera would see if its hands moved in a given way."""

__version__ = "0.1.0"
