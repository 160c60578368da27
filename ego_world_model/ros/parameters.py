"""Declared parameters: each with a description, a range or choices, read-only where needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import (
    InvalidParameterTypeException,
    InvalidParameterValueException,
    ParameterUninitializedException,
)
from rclpy.node import Node


class ParameterError(ValueError):
    """A parameter value that the node refuses to start with; the text says what is allowed."""


def declare(
    node: Node,
    name: str,
    default: Any,
    description: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[str] = (),
    length: int | None = None,
    read_only: bool = False,
) -> Any:
    """Declares a parameter and returns its value (the user's override, or ``default``).

    Args:
        minimum, maximum: inclusive range of an int or float.
        choices: the strings allowed.
        length: number of elements of an array.
        read_only: changes after start are rejected by ROS.

    Raises:
        ParameterError: the user's value has the wrong type or is out of range.
    """
    constraints = []
    descriptor = ParameterDescriptor(description=description, read_only=read_only)
    if minimum is not None or maximum is not None:
        if isinstance(default, float):
            low = -1e308 if minimum is None else float(minimum)
            high = 1e308 if maximum is None else float(maximum)
            descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
        else:
            low = -(2**63) if minimum is None else int(minimum)
            high = 2**63 - 1 if maximum is None else int(maximum)
            descriptor.integer_range = [IntegerRange(from_value=low, to_value=high)]
        constraints.append(f"between {low:g} and {high:g}")
    if choices:
        constraints.append(f"one of {', '.join(choices)}")
    if length is not None:
        constraints.append(f"{length} numbers")
    allowed = " and ".join([type(default).__name__, *constraints])
    descriptor.additional_constraints = "; ".join(constraints)
    try:
        value = node.declare_parameter(name, default, descriptor).value
    except (
        InvalidParameterTypeException,
        InvalidParameterValueException,
        ParameterUninitializedException,
    ) as error:
        raise ParameterError(f"parameter {name!r} must be {allowed}: {error}") from None
    if choices and value not in choices:
        raise ParameterError(f"parameter {name!r} is {value!r}; it must be {allowed}")
    if length is not None and len(value) != length:
        raise ParameterError(f"parameter {name!r} is {list(value)}; it must be {allowed}")
    return value
