"""Records the stage of the running verifier in memory that the pool can read after it has killed the worker.

A verifier calls, for example, `enter("parse")` when a stage begins. In a worker of a pool, `enter` writes the stage's
name to a page of memory that is shared with the parent. The parent puts the name into the reason of a `timeout`. In
other processes `enter` does nothing.
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
_WAITING_SINCE_AT, _WAITED_AT = 192, 200  # start of the wait (0: no wait), and sum of all waits, in nanoseconds
_RECEIVED_AT = 208


class SharedPage:
    """One page shared by the parent and one worker. The parent writes `revoked`, the worker writes everything else."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, PAGE_BYTES)

    def close(self) -> None:
        """Unmap the page."""
        self._memory.close()

    def revoke(self, batch: int, kept: int) -> None:
        """Parent: forbid the worker to start calls of `batch` or of earlier batches, except the call `kept`."""
        _REVOKED.pack_into(self._memory, 0, batch, kept)

    def revoked(self) -> tuple[int, int]:
        """Worker: the last revoked batch, and the call of this batch that was kept.

        The batch is 0 if none was revoked.
        """
        batch, kept = _REVOKED.unpack_from(self._memory, 0)
        return int(batch), int(kept)

    def write_received(self, count: int) -> None:
        """Worker: record that the first bytes of this many batches were read from the socket."""
        _NUMBER.pack_into(self._memory, _RECEIVED_AT, count)

    def received(self) -> int:
        """Parent: number of batches that the worker has read at least in part."""
        return int(_NUMBER.unpack_from(self._memory, _RECEIVED_AT)[0])

    def write_begun(self, identity: int, clock_ns: int) -> None:
        """Worker: record that the call `identity` begins when this process has used `clock_ns` of processor time."""
        _NUMBER.pack_into(self._memory, _CLOCK_AT, clock_ns)
        _NUMBER.pack_into(self._memory, _WAITING_SINCE_AT, 0)
        _NUMBER.pack_into(self._memory, _WAITED_AT, 0)
        # The identity is written last, and never as 0. So a reader that sees this identity finds the clock of this call
        # or of a later call.
        _NUMBER.pack_into(self._memory, _IDENTITY_AT, identity + 1)

    def begun(self) -> tuple[int, int]:
        """Parent: the call that began last (-1 if none has begun), and the worker's processor time at its start."""
        (identity,) = _NUMBER.unpack_from(self._memory, _IDENTITY_AT)
        (clock_ns,) = _NUMBER.unpack_from(self._memory, _CLOCK_AT)
        return identity - 1, clock_ns

    def write_waiting(self, waits: bool) -> None:
        """Worker: record that the call begins or ends a wait for a resource.

        This time does not count for the call.
        """
        now = time.monotonic_ns()
        (since,) = _NUMBER.unpack_from(self._memory, _WAITING_SINCE_AT)
        if since:
            (waited,) = _NUMBER.unpack_from(self._memory, _WAITED_AT)
            _NUMBER.pack_into(self._memory, _WAITED_AT, waited + now - since)
        _NUMBER.pack_into(self._memory, _WAITING_SINCE_AT, now if waits else 0)

    def waited_s(self) -> float:
        """Parent: seconds that the current call has waited for a resource, as the worker reports."""
        (since,) = _NUMBER.unpack_from(self._memory, _WAITING_SINCE_AT)
        (waited,) = _NUMBER.unpack_from(self._memory, _WAITED_AT)
        now = time.monotonic_ns()
        return float(waited + (max(0, now - since) if since else 0)) * 1e-9

    def write_stage(self, stage: str, elsewhere: bool = False) -> None:
        """Worker: report the stage, and whether another process does the work."""
        self._write_text(_STAGE_AT, stage)
        self._memory[_ELSEWHERE_AT] = elsewhere

    def write_running(self, identity: int) -> None:
        """Worker with overlapping calls: record that this call uses the processor from now on; -1 means no call."""
        _RUNNING.pack_into(self._memory, _RUNNING_AT, identity + 1, time.monotonic())

    def running(self) -> tuple[int, float]:
        """Parent: the call that uses the processor (-1 for no call), and the monotonic time at which this use began."""
        identity, since = _RUNNING.unpack_from(self._memory, _RUNNING_AT)
        return identity - 1, since

    def write_import(self, module: str) -> None:
        """Worker: report the module that is being imported, or an empty text."""
        self._write_text(_IMPORT_AT, module)

    def importing(self) -> str:
        """Parent: the module that is being imported; empty when there is none."""
        return self._read_text(_IMPORT_AT)

    def works_elsewhere(self) -> bool:
        """Parent: whether the worker waits while another process does the work."""
        return self._memory[_ELSEWHERE_AT] != 0

    def read_stage(self) -> str:
        """Parent: the last stage. A worker may have written anything, so only printable characters are kept."""
        return self._read_text(_STAGE_AT)

    def _write_text(self, at: int, text: str) -> None:
        encoded = text.encode("ascii", "replace")[:_STAGE_BYTES]
        self._memory[at : at + _STAGE_BYTES] = encoded.ljust(_STAGE_BYTES, b"\0")

    def _read_text(self, at: int) -> str:
        raw = bytes(self._memory[at : at + _STAGE_BYTES]).split(b"\0")[0]
        return "".join(chr(c) for c in raw if 32 <= c < 127)


_page: SharedPage | None = None
# Each overlapping call has its own stage. The tasks that a call starts share the stage of the call.
_call_stage: ContextVar[list[str] | None] = ContextVar("_call_stage", default=None)


def share(page: SharedPage) -> None:
    """Make `enter` write to this page. Each worker calls this function once."""
    global _page
    _page = page


def enter(stage: str, elsewhere: bool = False) -> None:
    """Report to the parent, if there is one, that the verifier begins a stage.

    Args:
        stage: name of the stage, a word or two.
        elsewhere: whether another process, such as a sandbox, does the work. Then, while this worker waits, the
            processor is not free for another worker.
    """
    if _page is not None:
        at = _call_stage.get()
        if at is not None:
            at[0] = stage
        _page.write_stage(stage, elsewhere)


def follow_call(at: list[str]) -> None:
    """Worker: make `enter` write the stage into `at[0]` too, in this task and in the tasks that it starts."""
    _call_stage.set(at)


def watch_imports(page: SharedPage) -> None:
    """Worker: write to the page which module a verifier is importing. The reason of a timeout then names the module."""
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
    """Put this around code that waits for a resource that other calls use.

    The deadline of the call is extended by the time of the wait.
    """
    if _page is not None:
        _page.write_waiting(True)
    try:
        yield
    finally:
        if _page is not None:
            _page.write_waiting(False)
