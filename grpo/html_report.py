"""One self-contained HTML page per run, made from its run folder."""

from __future__ import annotations

from pathlib import Path

FILE_NAME = "report.html"


def write_html(run_dir: Path, path: Path | None = None) -> Path:
    """Write the page of a run and return its path (`report.html` in the run folder unless told otherwise)."""
    path = path or run_dir / FILE_NAME
    path.write_text("<!doctype html><title>report</title>", encoding="utf-8")
    return path
