"""Keeps a judge's answers by the content of the question, so that no question is paid for twice."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path

# Answers that are kept in memory if there is no folder.
_KEPT = 4096


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """A judge's answer with the tokens that it cost."""

    text: str
    prompt_tokens: int
    completion_tokens: int


class AnswerCache:
    """A file for each question. Several processes may share the folder: a file is written whole, then renamed."""

    def __init__(self, folder: str | Path | None) -> None:
        """Use a folder, which is made when the first answer comes; with None, keep the last answers in memory."""
        self._folder = None if folder is None else Path(folder)
        self._memory: OrderedDict[str, StoredAnswer] = OrderedDict()
        # Key -> lock and number of calls that use it.
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    @staticmethod
    def key(content: str) -> str:
        """The key of a question, from all that decides its answer."""
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()

    def get(self, key: str) -> StoredAnswer | None:
        """The answer to a question; None if there is none, or if its file is damaged."""
        if self._folder is None:
            return self._memory.get(key)
        try:
            return StoredAnswer(**json.loads(self._path(self._folder, key).read_text(encoding="utf-8")))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def put(self, key: str, answer: StoredAnswer) -> None:
        """Keep the answer to a question."""
        if self._folder is None:
            self._memory[key] = answer
            while len(self._memory) > _KEPT:
                self._memory.popitem(last=False)
            return
        path = self._path(self._folder, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
        try:
            partial.write_text(json.dumps(asdict(answer)), encoding="utf-8")
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    @contextlib.asynccontextmanager
    async def alone(self, key: str) -> AsyncIterator[None]:
        """Let only one call of this process ask a question at a time, so that the others find its answer."""
        lock, users = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(key)
            if users > 1:
                self._locks[key] = lock, users - 1

    @staticmethod
    def _path(folder: Path, key: str) -> Path:
        return folder / key[:2] / f"{key}.json"
