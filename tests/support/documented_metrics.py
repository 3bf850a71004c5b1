"""The metrics that docs/metrics.md lists."""

from __future__ import annotations

import re
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"


def documented_names() -> list[str]:
    """First column of the table of metrics; `<verifier>` and the like stand for one word each."""
    table = DOCUMENT.read_text(encoding="utf-8").split("## Metrics")[1].split("## Rollouts")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def is_documented(name: str) -> bool:
    return any(re.fullmatch(re.sub(r"<\w+>", "[^/]+", pattern), name) for pattern in documented_names())
