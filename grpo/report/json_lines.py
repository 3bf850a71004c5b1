"""Files with a JSON object per line. Each line is appended in one write. A resumed run removes later steps."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from grpo import files


class JsonLines:
    """Appends lines to a file, each in a single write. If `durable` is set, a line is on disk when `write` returns."""

    def __init__(self, path: Path, *, durable: bool = True, alone: bool = False) -> None:
        """Open the file. If the file or its folder is missing, it is created.

        Args:
            path: the file.
            durable: whether each write waits for the disk. If not, a power cut may lose the last lines.
            alone: whether to lock the file, so that no other process can open it with `alone`.

        Raises:
            ValueError: another process has opened the file with `alone`.
        """
        self._durable, self._alone = durable, alone
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._descriptor = self._open()
        # A killed process may have written an incomplete line. Remove this line, because the next line would be
        # appended to it.
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
        """Keep only the lines for which `wanted(number, text)` is true. Lines are numbered from 1."""
        kept = [text for number, text in enumerate(complete_lines(self.path), start=1) if wanted(number, text)]
        os.close(self._descriptor)
        files.write_text(self.path, "".join(line + "\n" for line in kept), durable=self._durable)
        self._descriptor = self._open()

    def truncate_after(self, step: int) -> None:
        """Drop the lines of later steps, because a resumed run makes them again. Each line needs the key `step`."""
        self.keep(lambda _, text: int(json.loads(text)["step"]) <= step)

    def close(self) -> None:
        """Write all lines to the disk and close the file. Safe to call twice."""
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
    """The complete lines of a file that may be missing. An incomplete line of a killed process is left out."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return text.split("\n")[:-1]
