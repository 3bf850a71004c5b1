"""Outcomes of the parts of the GPU check, their table and their file. It imports only the standard library."""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

State = Literal["passed", "failed", "skipped"]
# Figures that have a column in the table: (name in the figures, head of the column, format).
COLUMNS = (
    ("tokens_per_s", "tokens/s", "{:,.0f}"),
    ("mfu", "MFU", "{:.1%}"),
    ("peak_gib", "GiB", "{:.1f}"),
    ("planned_gib", "plan", "{:.1f}"),
)
# Width of the last column, in characters.
_NOTE = 72


class Skipped(Exception):
    """A part cannot run here; the message is the reason."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a part found when nothing was wrong.

    Attributes:
        note: one line for the table.
        figures: measured numbers by name. `COLUMNS` says which of them are in the table.
        spent: whether the process must not run another part.
    """

    note: str
    figures: Mapping[str, float] = field(default_factory=dict)
    spent: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one part.

    Attributes:
        part: name of the part.
        state: whether the part passed, failed, or was skipped.
        seconds: wall time, in seconds; 0 if the part did not start.
        note: one line: what was seen, the error, or the reason of the skip.
        figures: measured numbers by name.
    """

    part: str
    state: State
    seconds: float
    note: str
    figures: Mapping[str, float] = field(default_factory=dict)


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes as a table of plain text, one part after another; a long note takes several lines."""
    measured = [column for column in COLUMNS if any(column[0] in outcome.figures for outcome in outcomes)]
    rows = [["part", "result", "s", *(head for _, head, _ in measured), "seen"]]
    for outcome in outcomes:
        figures = [form.format(outcome.figures[name]) if name in outcome.figures else "" for name, _, form in measured]
        seconds = f"{outcome.seconds:.1f}" if outcome.state != "skipped" else ""
        first, *more = textwrap.wrap(outcome.note, _NOTE) or [""]
        rows.append([outcome.part, outcome.state, seconds, *figures, first])
        rows += [["", "", "", *("" for _ in measured), line] for line in more]
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    # Words start at the left edge of their column, numbers end at the right edge.
    last = len(widths) - 1
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if index in (0, 1, last) else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def write(path: Path, machine: Mapping[str, object], outcomes: Sequence[Outcome]) -> None:
    """Write machine and outcomes as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine, "parts": [dataclasses.asdict(outcome) for outcome in outcomes]}
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
