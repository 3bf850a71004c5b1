"""Files of one JSON object per line, appended whole, and cut back when a run resumes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path


class JsonLines:
    """Appends lines to a file; each is one write, on the disk when `append` returns unless it need not be."""

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        """Open the file, made with its folder where it is missing.

        Args:
            path: the file.
            durable: wait for the disk at each line; without, a power cut may take the last ones.
        """
        self._durable = durable
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            # Cut off what a killed process left half written, or the next line would be glued to it.
            _replace_lines(path, complete_lines(path))
        self._descriptor = _open_to_append(path)

    def append(self, line: str) -> None:
        """Write one line, which ends with its newline.

        Raises:
            OSError: the disk is full.
        """
        payload = line.encode()
        written = os.write(self._descriptor, payload)
        if written != len(payload):
            raise OSError(f"wrote {written} of {len(payload)} bytes to {self.path}; is the disk full?")
        if self._durable:
            os.fsync(self._descriptor)

    def keep(self, wanted: Callable[[int, str], bool]) -> None:
        """Drop the lines that are not wanted: `wanted(number from 1, text)`."""
        kept = [text for number, text in enumerate(complete_lines(self.path), start=1) if wanted(number, text)]
        os.close(self._descriptor)
        _replace_lines(self.path, kept)
        self._descriptor = _open_to_append(self.path)

    def close(self) -> None:
        """Release the file. Safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def complete_lines(path: Path) -> Sequence[str]:
    """The lines of a file that may be missing, without what a killed process left of a last one."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def _open_to_append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


def _replace_lines(path: Path, lines: Iterable[str]) -> None:
    # Beside the file and renamed over it: a kill in between leaves the old file whole.
    beside = path.with_name(path.name + ".partial")
    beside.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    os.replace(beside, path)
