"""What a robot is: its kinematic model, which link fills which hand slot, where its camera sits.

An embodiment is a YAML file beside (or naming) an MJCF or URDF model. Built-in ones are loaded by
name; a user's own by the path of its YAML. ``docs/embodiments.md`` explains the fields.
"""

from __future__ import annotations

from pathlib import Path

from ego_world_model.embodiment.reading import model_topic, read_embodiment
from ego_world_model.embodiment.robot import Embodiment, HandChain, SlotSource, Workspace

__all__ = [
    "Embodiment",
    "HandChain",
    "SlotSource",
    "Workspace",
    "builtin_embodiments",
    "description_topic",
    "load_embodiment",
]

_HERE = Path(__file__).parent


def builtin_embodiments() -> tuple[str, ...]:
    """Names that ``load_embodiment`` knows without a path."""
    return tuple(sorted(p.parent.name for p in _HERE.glob("*/*.yaml") if p.stem == p.parent.name))


def load_embodiment(name_or_path: str | Path, *, urdf: str | None = None) -> Embodiment:
    """Load a built-in embodiment by name, or a user's own from its YAML file.

    Args:
        urdf: text of the robot's URDF, where the YAML takes it from ``description_topic``.

    Raises:
        FileNotFoundError: if neither a built-in name nor an existing file.
        ValueError: naming the YAML field that is wrong, what was expected and the remedy.
    """
    return read_embodiment(_file(name_or_path), urdf=urdf)


def description_topic(name_or_path: str | Path) -> str | None:
    """The topic from which an embodiment takes its URDF (``model: {topic: …}``), or None.

    Raises:
        FileNotFoundError, ValueError: as ``load_embodiment``.
    """
    return model_topic(_file(name_or_path))


def _file(name_or_path: str | Path) -> Path:
    if str(name_or_path) in builtin_embodiments():
        return _HERE / str(name_or_path) / f"{name_or_path}.yaml"
    path = Path(name_or_path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"no embodiment {str(name_or_path)!r}: built-in ones are "
            f"{', '.join(builtin_embodiments())}; for your own robot give the path of its YAML"
        )
    return path
