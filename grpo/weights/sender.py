"""The interface of the learner's senders, and the base class of the senders for `gloo` and `nccl`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

from grpo.weights.buckets import Bucket
from grpo.weights.group import SENDER, Invitation, RollCall, listen
from grpo.weights.source import PolicyWeights

GroupTransport = Literal["gloo", "nccl", "ipc"]


# A GPU's copy of a bucket: the GPU's identity, and the arguments with which CUDA opens the memory.
Handle = tuple[str, tuple[Any, ...]]


class Sender(Protocol):
    """Sends the buckets of a rank over a transport."""

    def open(self, address: str, members: Sequence[str], deadline_s: float) -> int:
        """Prepare for the receivers; return the port to which they connect, or 0 if they need no port of this rank."""
        ...

    def join(self) -> None:
        """Wait for the receivers."""
        ...

    def send(self, bucket: Bucket) -> Handle | None:
        """Gather a bucket and send it; with `ipc`, return the handle of this GPU's copy."""
        ...

    def release(self) -> None:
        """Release memory that only generators read. Call this after the generators have read all of this memory."""
        ...

    def abort(self, reason: str) -> None:
        """End a push that waits for a lost receiver. The push raises RuntimeError with this reason.

        Another thread calls this while `join` or `send` waits.
        """
        ...

    def close(self) -> None:
        """End the connections. `open` may be called again after this."""
        ...


class GroupSender:
    """The common part of `gloo` and `nccl`: rank 0 serves the store to which the receivers connect."""

    def __init__(self, weights: PolicyWeights, rank: int) -> None:
        self._weights = weights
        self._rank = rank
        self._roll: RollCall | None = None

    def open(self, address: str, members: Sequence[str], deadline_s: float) -> int:
        """On rank 0, serve the store and return its port. On other ranks, return 0."""
        self.close()
        if self._rank != SENDER:
            return 0
        listener = listen(address)
        port = int(listener.getsockname()[1])
        self._roll = RollCall(Invitation(address, port, tuple(members), deadline_s), SENDER, listener)
        return port

    def release(self) -> None:
        """Do nothing, because generators read no memory of this rank: they have received all bytes."""

    def abort(self, reason: str) -> None:
        """End a wait for receivers."""
        if self._roll is not None:
            self._roll.ended = reason

    def close(self) -> None:
        """End the connections."""
        self._roll = None


def failure_of(call: Callable[..., object], *arguments: object) -> TimeoutError | RuntimeError | None:
    """Run `call(*arguments)`, and return the error that it raises; return None if there is no error."""
    try:
        call(*arguments)
    except (TimeoutError, RuntimeError) as failure:
        return failure
    return None
