"""The stage that the running verifier is at, told to whoever may have to kill it.

A verifier calls `enter("parse")` as it goes; in a pool's worker the name lands in a page shared with the parent,
which puts it into the reason of a `timeout`. Elsewhere the call does nothing.
"""

from __future__ import annotations

import builtins
import contextlib
import mmap
import struct
import sys
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

PAGE_BYTES = 4096
_REVOKED = struct.Struct("=QQ")
_STAGE_AT, _STAGE_BYTES = 16, 48
_ELSEWHERE_AT = _STAGE_AT + _STAGE_BYTES
_NUMBER = struct.Struct("=Q")
_IDENTITY_AT, _CLOCK_AT = 72, 80
_RUNNING_AT = 96
_RUNNING = struct.Struct("=Qd")
_IMPORT_AT = 128
_WAITING_SINCE_AT, _WAITED_AT = 192, 200  # nanoseconds of the monotonic clock, 0 where it does not wait; and in all


class SharedPage:
    """One page shared by the parent (which writes `revoked`) and one worker (which writes the stage)."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, PAGE_BYTES)

    def close(self) -> None:
        """Unmap the page."""
        self._memory.close()

    def revoke(self, batch: int, kept: int) -> None:
        """Parent: nothing of `batch` or of an earlier one is to be started any more, but for the call `kept`."""
        _REVOKED.pack_into(self._memory, 0, batch, kept)

    def revoked(self) -> tuple[int, int]:
        """Worker: the last batch that was revoked, 0 where none was, and the call that was not."""
        batch, kept = _REVOKED.unpack_from(self._memory, 0)
        return int(batch), int(kept)

    def write_begun(self, identity: int, clock_ns: int) -> None:
        """Worker: the call `identity` begins, at `clock_ns` of this process's processor time."""
        _NUMBER.pack_into(self._memory, _CLOCK_AT, clock_ns)
        _NUMBER.pack_into(self._memory, _WAITING_SINCE_AT, 0)
        _NUMBER.pack_into(self._memory, _WAITED_AT, 0)
        # Last, and never 0: who reads it finds the clock of this call or of a later one.
        _NUMBER.pack_into(self._memory, _IDENTITY_AT, identity + 1)

    def begun(self) -> tuple[int, int]:
        """Parent: the call begun last (-1 before the first) and the processor time then, as the worker says."""
        (identity,) = _NUMBER.unpack_from(self._memory, _IDENTITY_AT)
        (clock_ns,) = _NUMBER.unpack_from(self._memory, _CLOCK_AT)
        return identity - 1, clock_ns

    def write_waiting(self, waits: bool) -> None:
        """Worker: it begins, or ends, to wait for its turn, which is not the call's time."""
        now = time.monotonic_ns()
        (since,) = _NUMBER.unpack_from(self._memory, _WAITING_SINCE_AT)
        if since:
            (waited,) = _NUMBER.unpack_from(self._memory, _WAITED_AT)
            _NUMBER.pack_into(self._memory, _WAITED_AT, waited + now - since)
        _NUMBER.pack_into(self._memory, _WAITING_SINCE_AT, now if waits else 0)

    def waited_seconds(self) -> float:
        """Parent: how long the current call has waited for its turn, as the worker says."""
        (since,) = _NUMBER.unpack_from(self._memory, _WAITING_SINCE_AT)
        (waited,) = _NUMBER.unpack_from(self._memory, _WAITED_AT)
        now = time.monotonic_ns()
        return float(waited + (max(0, now - since) if since else 0)) * 1e-9

    def write_stage(self, stage: str, elsewhere: bool = False) -> None:
        """Worker: say what is being done, and whether another process does it on this one's behalf."""
        self._write_text(_STAGE_AT, stage)
        self._memory[_ELSEWHERE_AT] = elsewhere

    def write_running(self, identity: int) -> None:
        """Worker with several calls under way: this one has the processor from now on; -1 for none."""
        _RUNNING.pack_into(self._memory, _RUNNING_AT, identity + 1, time.monotonic())

    def running(self) -> tuple[int, float]:
        """Parent: the call that has the processor, -1 for none, and since when on the monotonic clock."""
        identity, since = _RUNNING.unpack_from(self._memory, _RUNNING_AT)
        return identity - 1, since

    def write_import(self, module: str) -> None:
        """Worker: this module is being imported; empty for none."""
        self._write_text(_IMPORT_AT, module)

    def importing(self) -> str:
        """Parent: the module that is being imported, empty for none."""
        return self._read_text(_IMPORT_AT)

    def works_elsewhere(self) -> bool:
        """Parent: whether the worker, if it waits, waits for a process that works on its behalf."""
        return self._memory[_ELSEWHERE_AT] != 0

    def read_stage(self) -> str:
        """Parent: the stage last written; a worker may have written anything, so only plain characters pass."""
        return self._read_text(_STAGE_AT)

    def _write_text(self, at: int, text: str) -> None:
        encoded = text.encode("ascii", "replace")[:_STAGE_BYTES]
        self._memory[at : at + _STAGE_BYTES] = encoded.ljust(_STAGE_BYTES, b"\0")

    def _read_text(self, at: int) -> str:
        raw = bytes(self._memory[at : at + _STAGE_BYTES]).split(b"\0")[0]
        return "".join(chr(c) for c in raw if 32 <= c < 127)


_page: SharedPage | None = None
# Of several calls under way in one worker, each has a stage of its own, which the tasks that it starts share.
_own_stage: ContextVar[list[str] | None] = ContextVar("_own_stage", default=None)


def share(page: SharedPage) -> None:
    """Make `enter` write to this page; called once in each worker."""
    global _page
    _page = page


def enter(stage: str, elsewhere: bool = False) -> None:
    """Tell the parent, if there is one, that the verifier now does `stage`.

    Args:
        stage: a word or two.
        elsewhere: another process does the work, such as a sandbox: while this one waits for it, the processor is not
            free for one more worker.
    """
    if _page is not None:
        at = _own_stage.get()
        if at is not None:
            at[0] = stage
        _page.write_stage(stage, elsewhere)


def follow_call(at: list[str]) -> None:
    """Worker: `enter`, called by the present task or by one that it starts, writes the stage into `at[0]` as well."""
    _own_stage.set(at)


def watch_imports(page: SharedPage) -> None:
    """Worker: note in the page which module a verifier is importing, for a call that this takes past its deadline."""
    original = builtins.__import__
    under_way = False

    def noted(name: str, *rest: Any, **named: Any) -> Any:
        nonlocal under_way
        if under_way or name in sys.modules or not name:
            return original(name, *rest, **named)
        under_way = True
        page.write_import(name)
        try:
            return original(name, *rest, **named)
        finally:
            page.write_import("")
            under_way = False

    builtins.__import__ = noted


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """What is done inside is to wait for one's turn: others use what this call needs, and its deadline moves on."""
    if _page is not None:
        _page.write_waiting(True)
    try:
        yield
    finally:
        if _page is not None:
            _page.write_waiting(False)
