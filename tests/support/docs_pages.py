"""The pages of the documentation, and the files that they tell a newcomer to write."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_OUTSIDE_DOCS = ("README.md", "CONTRIBUTING.md", "configs/README.md")
PAGES = (*(ROOT / name for name in _OUTSIDE_DOCS), *sorted((ROOT / "docs").glob("*.md")))


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page of docs/, in order."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def block(page: str, language: str, containing: str) -> str:
    """The one block of a page that contains something."""
    (found,) = [text for text in blocks(page, language) if containing in text]
    return found


def commands() -> Iterator[tuple[str, str]]:
    """(page, command) of every `grpo ...` in fenced blocks and in running text."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        fenced = "\n".join(re.findall(r"```\w*\n(.*?)```", text, re.DOTALL))
        lines = [line.split("  #")[0].strip() for line in fenced.splitlines()]
        spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
        for one in [*lines, *spans]:
            words = one.removeprefix(".venv/bin/")
            if words.startswith("grpo "):
                yield page.name, words


def unpack(folder: Path) -> None:
    """Write the files of docs/data.md: those whose first line names them, and the questions."""
    (folder / "questions.jsonl").write_text(block("data.md", "", '"question"'))
    for language in ("yaml", "python"):
        for text in blocks("data.md", language):
            named = re.match(r"# (\w+\.(?:yaml|py))\n", text)
            if named:
                (folder / named[1]).write_text(text)
