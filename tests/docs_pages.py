"""The pages of the documentation, and the files that they tell a newcomer to write."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page of docs/, in order."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def block(page: str, language: str, containing: str) -> str:
    """The one block of a page that contains something."""
    (found,) = [text for text in blocks(page, language) if containing in text]
    return found


def unpack(folder: Path) -> None:
    """Write the files of docs/data.md: those whose first line names them, and the questions."""
    (folder / "questions.jsonl").write_text(block("data.md", "", '"question"'))
    for language in ("yaml", "python"):
        for text in blocks("data.md", language):
            named = re.match(r"# (\w+\.(?:yaml|py))\n", text)
            if named:
                (folder / named[1]).write_text(text)
