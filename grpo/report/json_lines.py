"""Files with a JSON object per line. Lines are appended whole, and a run that resumes cuts the file back."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from grpo import files


class JsonLines:
    """Appends lines to a file. Each line is a single write. With `durable`, it is on the disk when `write` returns."""

    def __init__(self, path: Path, *, durable: bool = True, alone: bool = False) -> None:
        """Open the file. A missing file is created, and so is its folder.

        Args:
            path: the file.
            durable: wait for the disk at each line; without it, a power cut may lose the last lines.
            alone: lock the file, so that no other process opens it with `alone`.

        Raises:
            ValueError: another process has opened the file with `alone`.
        """
        self._durable, self._alone = durable, alone
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._descriptor = self._open()
        # A killed process may have written half a line. Remove it, or the next line would continue it.
        os.ftruncate(self._descriptor, path.read_bytes().rfind(b"\n") + 1)

    def write(self, line: str) -> None:
        """Write a line, which must end with a newline.

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
        files.write_text(self.path, "".join(line + "\n" for line in kept), durable=self._durable)
        self._descriptor = self._open()

    def truncate_after(self, step: int) -> None:
        """Drop the lines of later steps, because a resumed run makes them again. Each line needs the key `step`."""
        self.keep(lambda _, text: int(json.loads(text)["step"]) <= step)

    def close(self) -> None:
        """Bring the lines to disk and release the file. Safe to call twice."""
        if self._descriptor >= 0:
            os.fsync(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open(self) -> int:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            if self._alone:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise ValueError(
                f"another process is writing to {self.path}; wait for it, or choose another folder"
            ) from None
        return descriptor


def complete_lines(path: Path) -> Sequence[str]:
    """The complete lines of a file that may be missing. A half line of a killed process is left out."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return text.split("\n")[:-1]
