"""The log file of a process: its name, its link, its size, and the content of its lines."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from grpo.config.addresses import without_secrets
from grpo.config.section import LogLevel
from grpo.report import run_files
from grpo.visible import visible

# A process keeps its newest 64 MiB, some 500,000 lines.
FILE_BYTES = 16 << 20
OLDER_FILES = 3
# Largest length of a record, in characters, because an exception may quote a completion of any length.
RECORD_CHARACTERS = 1 << 16
_SECRET_NAME = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD)$")
_SECRET = re.compile(r"\b(hf_|sk-|ghp_|github_pat_)[\w-]{16,}|(?<=://)[^/?#\s@]{1,256}@")
_SHORTEST_SECRET = 8


@dataclass(frozen=True, slots=True)
class LogPlace:
    """The place and the level of a job's logs.

    Attributes:
        folder: absolute path of the job's `logs/`.
        level: lowest level of records of our packages.
        driver: name of the driver's file in `history/`. A node on which it is missing does not see the job's folder.
    """

    folder: str
    level: LogLevel
    driver: str


class ActorFile(RotatingFileHandler):
    """The file of a process, with a link as the actor's newest file.

    The job makes its folder only after it has checked its data, so a job that refuses to start leaves no folder.
    Earlier records are held back until the folder exists.
    """

    def __init__(self, actor: str, folder: Path) -> None:
        """Nothing is written yet.

        Args:
            actor: name of the actor.
            folder: path of `logs/`, which lies in the job's folder.
        """
        self.folder = folder
        self.place: LogPlace | None = None
        """The place of all logs of the job; set when this file becomes the log of its process."""
        self._link = folder / run_files.log_of(actor)
        self._process = 0
        self._held_back: list[logging.LogRecord] = []
        super().__init__(self._new_path(), "a", FILE_BYTES, OLDER_FILES, "utf-8", delay=True, errors="backslashreplace")
        self._lines = RecordFormatter(self._link.stem)

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.baseFilename)

    def _new_path(self) -> str:
        self._process = os.getpid()
        now = datetime.now(UTC)
        stamp = f"{now:%Y%m%dT%H%M%S}.{now.microsecond // 1000:03}Z"
        name = f"{self._link.stem}.{stamp}.{self._process}.log"
        return str((self.folder / run_files.LOG_HISTORY / name).absolute())

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record. A fork gets a new file, because two processes cannot rotate the same file."""
        if os.getpid() != self._process:
            self.stream, self.baseFilename = None, self._new_path()
            self._link = self.path
        self._held_back.append(record)
        self.write_held_back()

    def write_held_back(self) -> None:
        """Write the records that waited for the job's folder, if it exists now."""
        if self.folder.parent.is_dir():
            held_back, self._held_back = self._held_back, []
            for record in held_back:
                super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """The lines of a record. Ray gives every handler of its loggers a formatter; this file keeps its format."""
        return self._lines.format(record)

    def _open(self) -> Any:
        made = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        stream = super()._open()
        if made and self._link != self.path:
            self._make_link()
        return stream

    def _make_link(self) -> None:
        # Replace the link in a single step, because somebody may be reading. It is relative, because the folder may be
        # moved. A file system without links has only the history.
        partial = self._link.with_name(f".{self.path.name}")
        with contextlib.suppress(OSError):
            partial.symlink_to(Path(run_files.LOG_HISTORY) / self.path.name)
            partial.replace(self._link)

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop the record, because a full disk must neither end the job nor flood the terminal."""


class RecordFormatter(logging.Formatter):
    """`2026-12-01T15:22:27.123Z INFO    generator-0 4711 grpo.module: message`, without terminal control characters."""

    def __init__(self, actor: str) -> None:
        """Make the formatter of an actor's records."""
        super().__init__()
        self._actor = actor
        # Libraries may quote the secrets in this process's environment.
        secrets = {value for name, value in os.environ.items() if _SECRET_NAME.search(name.upper())}
        self._secrets = sorted((secret for secret in secrets if len(secret) >= _SHORTEST_SECRET), key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        """The lines of a record; all but the first are indented."""
        parts = [record.getMessage()]
        if record.exc_info and record.exc_info[1]:
            parts.append("".join(traceback.format_exception(record.exc_info[1])))
        if record.stack_info:
            parts.append(record.stack_info)
        text = "\n".join(part.rstrip("\n") for part in parts)
        if len(text) > RECORD_CHARACTERS:
            half = RECORD_CHARACTERS // 2
            text = f"{text[:half]}\n... {len(text) - 2 * half:,} characters are left out ...\n{text[-half:]}"
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")
        head = f"{when}Z {record.levelname:<7} {self._actor} {record.process} {visible(record.name)}"
        return f"{head}: {visible(self._without_secrets(text))}".replace("\n", "\n    ")

    def _without_secrets(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return _SECRET.sub("***", without_secrets(text))
