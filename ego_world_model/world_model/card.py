"""The model card of a checkpoint: README.md beside config.json, written from what config.json says.

A card that a person wrote is never replaced: the generated one carries a line that says so, and
only a file with that line, or none at all, is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CARD = "README.md"
MARKER = (
    "<!-- Generated from config.json by WorldModel.save_pretrained, which writes it again at the "
    "next save. Remove this line to keep your edits. -->"
)

_ABOUT = ("licence", "limits", "source")  # metadata with a section of its own


def write_card(folder: Path, document: Mapping[str, Any], parameters: Mapping[str, int]) -> bool:
    """Write the card of a checkpoint folder, unless a person wrote the one that is there.

    Args:
        folder: of the checkpoint; its weights files are already there.
        document: what config.json holds.
        parameters: part → number of parameters, those of its base included.

    Returns:
        Whether it was written.
    """
    path = folder / CARD
    if path.exists() and MARKER not in path.read_text(encoding="utf-8"):
        return False
    sizes = {name: (folder / name).stat().st_size for name in document["sha256"]}
    path.write_text(model_card(document, parameters, sizes), encoding="utf-8")
    return True


def model_card(
    document: Mapping[str, Any], parameters: Mapping[str, int], sizes: Mapping[str, int]
) -> str:
    """The card's text.

    Of the metadata, ``licence`` (an SPDX identifier), ``source`` (where the weights come from) and
    ``limits`` (a sentence or a list of them) have sections of their own; all other entries, such as
    data, steps, hardware and tables of metrics, are listed under "Training".

    Args:
        document: what config.json holds.
        parameters: part → number of parameters, those of its base included.
        sizes: weights file → bytes.
    """
    metadata = document.get("metadata", {})
    sections = [
        _front_matter(metadata),
        MARKER,
        "# Joint-conditioned video model",
        _summary(document["model"], metadata),
        _parts(document, parameters, sizes),
        _bases(document),
        _loading(document["model"]),
        _training(metadata),
        _limits(metadata),
        _licence(document, metadata),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(metadata: Mapping[str, Any]) -> str:
    lines = ["library_name: ego_world_model", "pipeline_tag: image-to-video"]
    if licence := metadata.get("licence"):
        lines.append(f"license: {licence}")
    return "\n".join(["---", *lines, "---"])


def _summary(model: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    frames, extra = model["num_frames"], model["extra_slots"]
    slots = "42 hand slots" + (f" and {', '.join(extra)}" if extra else "")
    reads = "A prompt is read." if model["encoders"] else "No text is read."
    text = (
        f"One camera frame and the planned hand joints ({slots}) in, {frames - 1} imagined frames "
        f"out: {model['width']}x{model['height']} pixels at {model['fps']:g} Hz, a horizon of "
        f"{(frames - 1) / model['fps']:.2f} s. {reads} Defaults: {model['steps']} denoising "
        f"step(s), guidance {model['guidance']:g}, shift {model['shift']:g}."
    )
    source = metadata.get("source")
    return f"{text}\n\nSource: {source}." if source else text


def _parts(
    document: Mapping[str, Any], parameters: Mapping[str, int], sizes: Mapping[str, int]
) -> str:
    model = document["model"]
    rows = []
    for part in (*parameters, "encoders"):
        if model[part] is None:
            continue
        file = f"{part}.safetensors"
        rows.append(
            (
                part,
                f"`{model[part]['name']}`",
                _count(parameters[part]) if part in parameters else "all in the base",
                f"{file}, {sizes[file] / 1e6:.2f} MB" if file in sizes else "nothing",
                model[part]["kwargs"].get("base", "–"),
            )
        )
    heading = ("part", "kind", "parameters", "stored here", "base")
    return "## Parts\n\n" + _table(heading, rows)


def _bases(document: Mapping[str, Any]) -> str:
    if not document["bases"]:
        return ""
    rows = [
        (part, f"`{name}`", f"`{digest.removeprefix('sample:')[:16]}…`")
        for part, files in document["bases"].items()
        for name, digest in files.items()
    ]
    text = (
        "The base is not part of this folder. It is recognised by the SHA-256 of its configs and a "
        "sample of its weights; another one is refused."
    )
    return f"## Base\n\n{text}\n\n" + _table(("part", "file", "hash"), rows)


def _loading(model: Mapping[str, Any]) -> str:
    prompt = ', prompt="…"' if model["encoders"] else ""
    return f"""## Use

```python
from ego_world_model.world_model import WorldModel

model = WorldModel.from_pretrained("this folder")  # device="cuda" on a GPU
result = model.imagine(image, trajectory, camera_matrix{prompt}, seed=0)
result.frames  # (1, {model["num_frames"]}, {model["height"]}, {model["width"]}, 3) uint8
```"""


def _training(metadata: Mapping[str, Any]) -> str:
    facts = {name: value for name, value in metadata.items() if name not in _ABOUT}
    tables = {name: value for name, value in facts.items() if isinstance(value, Mapping)}
    rows = [(_words(name), str(value)) for name, value in facts.items() if name not in tables]
    parts = [_table(("", ""), rows)] if rows else []
    for name, table in tables.items():
        cells = [(_words(key), str(value)) for key, value in table.items()]
        parts.append(f"{_words(name).capitalize()}:\n\n" + _table(("measure", "value"), cells))
    return "## Training\n\n" + ("\n\n".join(parts) or "Nothing was recorded when it was saved.")


def _limits(metadata: Mapping[str, Any]) -> str:
    limits = metadata.get("limits", ())
    limits = [limits] if isinstance(limits, str) else limits
    lines = [f"- {limit}" for limit in limits]
    return "## Limits\n\n" + ("\n".join(lines) or "None were stated when it was saved.")


def _licence(document: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    licence = metadata.get("licence", "not stated when it was saved")
    base = " The base keeps its own." if document["bases"] else ""
    return f"## Licence\n\nThese weights: {licence}.{base}"


def _count(parameters: int) -> str:
    return f"{parameters / 1e6:.2f} M" if parameters >= 1e5 else f"{parameters:,}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
