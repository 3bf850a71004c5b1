"""The stage that the running verifier is at, told to whoever may have to kill it.

A verifier calls `enter("parse")` as it goes; in a pool's worker the name lands in a page shared with the parent,
which puts it into the reason of a `timeout`. Elsewhere the call does nothing.
"""

from __future__ import annotations

import mmap
import struct

PAGE_BYTES = 4096
_REVOKED = struct.Struct("=Q")
_STAGE_AT, _STAGE_BYTES = 16, 48


class SharedPage:
    """One page shared by the parent (which writes `revoked`) and one worker (which writes the stage)."""

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, PAGE_BYTES)

    def close(self) -> None:
        """Unmap the page."""
        self._memory.close()

    def revoke(self, batch: int) -> None:
        """Parent: nothing of `batch` or of an earlier one is to be started any more."""
        _REVOKED.pack_into(self._memory, 0, batch)

    def revoked(self) -> int:
        """Worker: the last batch that was revoked, 0 where none was."""
        return int(_REVOKED.unpack_from(self._memory, 0)[0])

    def write_stage(self, stage: str) -> None:
        """Worker: say what is being done."""
        encoded = stage.encode("ascii", "replace")[:_STAGE_BYTES]
        self._memory[_STAGE_AT : _STAGE_AT + _STAGE_BYTES] = encoded.ljust(_STAGE_BYTES, b"\0")

    def read_stage(self) -> str:
        """Parent: the stage last written; a worker may have written anything, so only plain characters pass."""
        raw = bytes(self._memory[_STAGE_AT : _STAGE_AT + _STAGE_BYTES]).split(b"\0")[0]
        return "".join(chr(c) for c in raw if 32 <= c < 127)


_page: SharedPage | None = None


def share(page: SharedPage) -> None:
    """Make `enter` write to this page; called once in each worker."""
    global _page
    _page = page


def enter(stage: str) -> None:
    """Tell the parent, if there is one, that the verifier now does `stage`."""
    if _page is not None:
        _page.write_stage(stage)
