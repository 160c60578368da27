"""docs/misconfigurations.md speaks of tests that exist and of messages that they look for."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "misconfigurations.md"
TESTS = Path(__file__).resolve().parent
LENGTH = 9
"""Characters below which a text in a test does not count as the message that it looks for."""


def rows() -> list[tuple[str, str, str]]:
    """(message, file, test) of every row."""
    found = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        named = re.fullmatch(r"`(test_\w+\.py)::(test_\w+)`", cells[-1].strip("| "))
        if line.startswith("| ") and cells[0] not in ("what is wrong", "---"):
            assert named and len(cells) == 3, f"no test at the end of: {line}"
            found.append((cells[1], named[1], named[2]))
    return found


@cache
def content(file: str) -> tuple[frozenset[str], frozenset[str]]:
    """Functions of a test file; its texts, of patterns their fixed parts."""
    nodes = list(ast.walk(ast.parse((TESTS / file).read_text(encoding="utf-8"))))
    functions = frozenset(node.name for node in nodes if isinstance(node, ast.FunctionDef))
    constants = [
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    parts = {part for text in constants for part in re.split(r"\.\*|\|", text.replace("\\", ""))}
    return functions, frozenset(part.strip() for part in parts if len(part.strip()) >= LENGTH)


@pytest.mark.parametrize(("message", "file", "name"), rows(), ids=lambda value: value[:40])
def test_a_row_names_a_test_that_looks_for_its_message(message, file, name):
    functions, texts = content(file)
    assert name in functions, f"{file} has no {name}"
    quoted = "\n".join(re.findall(r"`([^`]+)`", message))
    looked_for = [text for text in texts if text in quoted]
    assert looked_for, f"{file} looks for nothing of: {message}"


def test_the_page_has_all_areas():
    """Bridge, cameras, calibration, delay, embodiment and importers are on one page."""
    files = {file for _, file, _ in rows()}
    assert len(rows()) > 50
    assert {
        "test_unitree_bridge.py",
        "test_camera_nodes.py",
        "test_calibration_command.py",
        "test_calibrate_delay.py",
        "test_robot_description.py",
        "test_import_bag.py",
    } <= files
