"""The log file of a process: its name, its link, its largest size, and the format of its lines."""

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

from grpo.addresses import without_secrets
from grpo.config.section import LogLevel
from grpo.report import run_files
from grpo.visible import visible

# A process keeps the newest 64 MiB of its log, which is about 500,000 lines.
FILE_BYTES = 16 << 20
OLDER_FILES = 3
# Largest length of a record, in characters. Without a limit, an exception could quote a very long completion.
RECORD_CHARACTERS = 1 << 16
_SECRET_NAME = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD)$")
_SECRET = re.compile(r"\b(hf_|sk-|ghp_|github_pat_)[\w-]{16,}|(?<=://)[^/?#\s@]{1,256}@")
_SHORTEST_SECRET = 8


@dataclass(frozen=True, slots=True)
class LogPlace:
    """The place and the level of a job's logs.

    Attributes:
        folder: absolute path of the job's `logs/`.
        level: lowest level of the records that our packages write.
        driver: name of the driver's file in `history/`. If a node lacks this file, it cannot access the job's
            folder.
    """

    folder: str
    level: LogLevel
    driver: str


class ActorFile(RotatingFileHandler):
    """The log file of a process, and a link that points to the actor's newest log file.

    The job makes its folder only after it has checked its data, so a job that cannot start leaves no folder.
    Records that are made earlier are kept in memory until the folder exists.
    """

    def __init__(self, actor: str, folder: Path) -> None:
        """Choose the file's name. No file is written yet.

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
        """The path of the file."""
        return Path(self.baseFilename)

    def _new_path(self) -> str:
        self._process = os.getpid()
        now = datetime.now(UTC)
        stamp = f"{now:%Y%m%dT%H%M%S}.{now.microsecond // 1000:03}Z"
        name = f"{self._link.stem}.{stamp}.{self._process}.log"
        return str((self.folder / run_files.LOG_HISTORY / name).absolute())

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record. A forked process gets a new file, because two processes cannot rotate the same file."""
        if os.getpid() != self._process:
            self.stream, self.baseFilename = None, self._new_path()
            self._link = self.path
        self._held_back.append(record)
        self.write_held_back()

    def write_held_back(self) -> None:
        """If the job's folder exists now, write the records that were kept in memory."""
        if self.folder.parent.is_dir():
            held_back, self._held_back = self._held_back, []
            for record in held_back:
                super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """The lines of a record. Ray sets a formatter on all handlers of its loggers; this method ignores it."""
        return self._lines.format(record)

    def _open(self) -> Any:
        made = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        stream = super()._open()
        if made and self._link != self.path:
            self._make_link()
        return stream

    def _make_link(self) -> None:
        # Replace the link in a single step, because another process may be reading it. The link is relative, because
        # the folder may be moved. If the file system has no links, only the files in `history/` exist.
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
        # Records of libraries may contain secrets from this process's environment.
        secrets = {value for name, value in os.environ.items() if _SECRET_NAME.search(name.upper())}
        self._secrets = sorted((secret for secret in secrets if len(secret) >= _SHORTEST_SECRET), key=len, reverse=True)

    def format(self, record: logging.LogRecord) -> str:
        """The lines of a record. All lines except the first are indented."""
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
