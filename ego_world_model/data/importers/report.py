"""What an import kept and left out, as a JSON file beside the dataset and as a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from ego_world_model.data.importers.base import Tally
from ego_world_model.data.layout import read_json, write_json

REPORT_NAME = "import_report.json"
Status = Literal["imported", "rejected", "incomplete"]


@dataclass(kw_only=True)
class SourceReport:
    """One recording's outcome.

    Attributes:
        status: ``imported`` (done, a later run skips it), ``rejected`` (nothing of it is in the
            dataset) or ``incomplete`` (it failed after some episodes; those are kept).
        reason, remedy: why, and what helps, unless imported.
    """

    name: str
    kind: str
    status: Status
    tally: Tally
    reason: str = ""
    remedy: str = ""


@dataclass(kw_only=True)
class ImportReport:
    """All recordings that were ever imported into a dataset folder, by name.

    Attributes:
        settings: what decides where episodes begin and end; one folder keeps to one choice.
    """

    settings: dict[str, Any]
    sources: dict[str, SourceReport] = field(default_factory=dict)

    @classmethod
    def load(cls, root: Path, settings: dict[str, Any]) -> ImportReport:
        """The folder's report, or an empty one.

        Raises:
            ValueError: the folder was imported to with other settings.
        """
        path = root / REPORT_NAME
        report = cls(settings=settings)
        if path.exists():
            content = read_json(path)
            for name, value in content["settings"].items():
                if settings.get(name) != value:
                    raise ValueError(
                        f"{root} was imported with {name} {value}, now {settings.get(name)} is "
                        "asked for; use the same settings or another folder"
                    )
            for name, entry in content["sources"].items():
                entry = dict(entry)
                tally = Tally(**entry.pop("tally"))
                report.sources[name] = SourceReport(tally=tally, **entry)
        return report

    def save(self, root: Path) -> None:
        """Writes the report, whole or not at all."""
        content: dict[str, Any] = asdict(self)
        write_json(root / REPORT_NAME, content)

    def print(self, console: Console) -> None:
        """A table of recordings, then what was left out and why, then what was assumed."""
        table = Table("recording", "status", "read", "thinned", "dropped", "kept", "episodes")
        for entry in self.sources.values():
            tally = entry.tally
            dropped = sum(count for count, _ in tally.dropped.values())
            numbers = (tally.read, tally.thinned, dropped, tally.written, tally.episodes)
            table.add_row(entry.name, entry.status, *map(str, numbers))
        console.print(table)
        for entry in self.sources.values():
            if entry.reason:
                _line(console, f"{entry.name} {entry.status}: {entry.reason}")
                _line(console, f"  remedy: {entry.remedy}")
            for reason, (count, example) in entry.tally.dropped.items():
                example = f" (first: {example})" if example else ""
                _line(console, f"{entry.name}: {count} frames dropped: {reason}{example}")
            for note in entry.tally.notes:
                _line(console, f"{entry.name}: {note}")


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
