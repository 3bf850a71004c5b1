"""The trusted end of the call channel: it sends one line and receives one line, under a deadline.

No reply is trusted. A reply is a `BadReply` if there was no request for it, if it is too long, or if it is not JSON of
the agreed form. A `BadReply` fails the program.
"""

from __future__ import annotations

import json
import os
import select
import time
from typing import Any

MAX_LINE = 8 << 20  # size of the longest reply that is read, in bytes
_CHUNK = 1 << 16


class BadReply(Exception):
    """The program broke the protocol of the channel."""


class ProgramEnded(Exception):
    """The program ended, or closed the channel, instead of answering."""


class DeadlinePassed(Exception):
    """No answer came in time."""


class CallChannel:
    """A pair of pipes to a program's process. `far_ends` are the program's ends (see `close_far_ends`)."""

    def __init__(self) -> None:
        far_requests, self._requests = os.pipe2(os.O_CLOEXEC)
        self._replies, far_replies = os.pipe2(os.O_CLOEXEC)
        self.far_ends = (far_requests, far_replies)
        self._buffer = bytearray()
        self.ended = False  # whether the other side has closed its end
        os.set_blocking(self._requests, False)
        os.set_blocking(self._replies, False)

    def close_far_ends(self) -> None:
        """Close this process's copies of the program's ends, once the program's process has been started with them."""
        for descriptor in self.far_ends:
            os.close(descriptor)
        self.far_ends = (-1, -1)

    def close(self) -> None:
        """Close the ends of this side. Can be called twice."""
        self.close_requests()
        if self._replies >= 0:
            os.close(self._replies)
        self._replies = -1

    def close_requests(self) -> None:
        """Tell the other side that no request follows. Can be called twice."""
        if self._requests >= 0:
            os.close(self._requests)
        self._requests = -1

    def ask(self, line: bytes, deadline: float) -> bytes:
        """Send one line and return the one line that answers it.

        Args:
            line: request, without the newline.
            deadline: time on the monotonic clock.

        Raises:
            BadReply: a reply came before the request or after the answer, or the answer is too long.
            ProgramEnded, DeadlinePassed: no answer came.
        """
        self.check_silence()
        self.send(line, deadline)
        answer = self.receive(deadline)
        self.check_silence()
        return answer

    def check_silence(self) -> None:
        """Make sure that no reply has come without a request.

        Raises:
            BadReply: such a reply has come.
        """
        if self._buffer or self._read():
            raise BadReply("a reply without a request")

    def send(self, line: bytes, deadline: float) -> None:
        """Send one line. `line` does not include the newline; `deadline` is a time on the monotonic clock.

        Raises:
            ProgramEnded: the other side has closed its end.
            DeadlinePassed: the other side has not read the line in time.
        """
        rest = memoryview(line + b"\n")
        while rest:
            _wait([], [self._requests], deadline)
            try:
                rest = rest[os.write(self._requests, rest) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                self.ended = True
                raise ProgramEnded from None

    def receive(self, deadline: float) -> bytes:
        """Return the next line, without the newline; `deadline` is a time on the monotonic clock.

        Raises:
            BadReply: the line is longer than `MAX_LINE`.
            ProgramEnded: the other side has closed its end.
            DeadlinePassed: no line came in time.
        """
        while b"\n" not in self._buffer:
            _wait([self._replies], [], deadline)
            chunk = self._read()
            if chunk == b"":
                self.ended = True
                raise ProgramEnded
            if len(self._buffer) > MAX_LINE:
                raise BadReply(f"a reply longer than {MAX_LINE} bytes")
        line, _, rest = self._buffer.partition(b"\n")
        self._buffer = rest
        return bytes(line)

    def _read(self) -> bytes | None:
        """Read without waiting. Return None if there is no data yet, and empty bytes at the end of the stream."""
        try:
            chunk = os.read(self._replies, _CHUNK)
        except BlockingIOError:
            return None
        self._buffer += chunk
        return chunk


def _wait(reading: list[int], writing: list[int], deadline: float) -> None:
    poll = select.poll()
    for descriptor in reading:
        poll.register(descriptor, select.POLLIN)
    for descriptor in writing:
        poll.register(descriptor, select.POLLOUT)
    remaining = deadline - time.monotonic()
    if remaining <= 0 or not poll.poll(remaining * 1000):
        raise DeadlinePassed


def parse_object(line: bytes) -> dict[str, Any]:
    """Parse a line of the channel as a JSON object.

    Raises:
        BadReply: the line is not a JSON object.
    """
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise BadReply("a reply that is not JSON") from None
    if type(message) is not dict:
        raise BadReply("a reply that is not an object")
    return message
