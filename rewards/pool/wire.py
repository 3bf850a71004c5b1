"""The messages between the pool and its processes.

The parent sends length-prefixed pickles, because it is trusted and references may be any Python value. A worker sends
length-prefixed JSON, because it has read hostile text. Nothing that a worker sends is unpickled, and a worker that
sends a message longer than `MAX_REPLY` is ended.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator

from rewards.adapt import as_verdict
from rewards.verdict import Status, Verdict, error

LENGTH = struct.Struct("=I")
MAX_REPLY = 1 << 18
# Before a verdict is sent, its reason is cut to this many characters, and only this number of its parts is kept.
MAX_REASON, MAX_PARTS = 600, 64
# A verdict with more spans becomes an `error`: a part of the steps would be another reward.
MAX_SPANS = 512


class ProtocolError(Exception):
    """A worker sent something that is not a reply."""


class Inbox:
    """Splits the byte stream of a worker into replies.

    Args:
        longest: longest reply, in bytes.
    """

    def __init__(self, longest: int = MAX_REPLY) -> None:
        self._longest = longest
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[list[object]]:
        """Yield each complete reply.

        Raises:
            ProtocolError: the reply is too long, or is not a JSON list.
        """
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= LENGTH.size:
                (size,) = LENGTH.unpack_from(self._buffer, start)
                if size > self._longest:
                    raise ProtocolError(f"a reply of {size} bytes")
                if len(self._buffer) - start - LENGTH.size < size:
                    break
                body = self._buffer[start + LENGTH.size : start + LENGTH.size + size]
                start += LENGTH.size + size
                try:
                    reply = json.loads(body)
                except (ValueError, RecursionError) as problem:
                    raise ProtocolError("a reply that is not JSON") from problem
                if not isinstance(reply, list) or not reply:
                    raise ProtocolError("a reply that is not a list")
                yield reply
        finally:
            del self._buffer[:start]


def encode_reply(reply: list[object]) -> bytes:
    """One reply in the form that is sent: its length, then its JSON."""
    body = json.dumps(reply, allow_nan=False).encode()
    return LENGTH.pack(len(body)) + body


def verdict_fields(verdict: Verdict) -> list[object]:
    """A verdict as plain data. If a part is not a finite number, the verdict becomes an `error`."""
    parts = dict(list(verdict.parts.items())[:MAX_PARTS])
    for name, value in parts.items():
        if as_verdict(value, (-1e300, 1e300)).status.failed:
            return [None, Status.ERROR.value, f"part {str(name)[:60]!r} is {value!r:.60}, not a finite number", {}]
    plain = {str(name)[:100]: float(value) for name, value in parts.items()}
    if len(verdict.spans) > MAX_SPANS:
        return [None, Status.ERROR.value, f"returned {len(verdict.spans)} spans, more than {MAX_SPANS}", {}]
    fields: list[object] = [verdict.score, verdict.status.value, str(verdict.reason)[:MAX_REASON], plain]
    return [*fields, [list(span) for span in verdict.spans]] if verdict.spans else fields


def read_verdict(fields: object) -> Verdict:
    """Read a verdict from plain data that an untrusted process sent.

    Raises:
        ProtocolError: the data are not a verdict.
    """
    if not isinstance(fields, list) or len(fields) not in (4, 5):
        raise ProtocolError("a verdict without its four or five fields")
    score, status, reason, parts, *spans = fields
    if not (score is None or isinstance(score, (int, float))) or not isinstance(reason, str):
        raise ProtocolError("a verdict with fields of the wrong type")
    if not isinstance(parts, dict) or not all(isinstance(value, (int, float)) for value in parts.values()):
        raise ProtocolError("a verdict whose parts are not numbers")
    if spans and not (isinstance(spans[0], list) and all(map(_is_span, spans[0]))):
        raise ProtocolError("a verdict whose spans are not two whole numbers and a score")
    try:
        steps = spans[0] if spans else ()
        return Verdict(None if score is None else float(score), Status(status), reason, parts, steps)
    except (ValueError, OverflowError) as problem:
        return error(f"the worker sent an invalid verdict: {problem}")


def _is_span(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 3:
        return False
    return all(isinstance(place, int) for place in value[:2]) and isinstance(value[2], (int, float))


def receive_exactly(connection: socket.socket, size: int) -> bytes | None:
    """Called in the worker. Read `size` bytes; return None at the end of the stream."""
    chunks = bytearray()
    while len(chunks) < size:
        data = connection.recv(min(1 << 20, size - len(chunks)))
        if not data:
            return None
        chunks += data
    return bytes(chunks)
