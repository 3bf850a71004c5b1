"""What the learner's end of every transport has in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol

from grpo.weights.buckets import Bucket
from grpo.weights.group import SENDER, Invitation, RollCall, listen
from grpo.weights.source import PolicyWeights

GroupTransport = Literal["gloo", "nccl", "ipc"]


# Where a GPU's copy of a bucket lies: its identity, and what CUDA needs to open the memory.
Handle = tuple[str, tuple[Any, ...]]


class Sender(Protocol):
    """One rank's end of a transport."""

    def open(self, address: str, members: Sequence[str], deadline_s: float) -> int:
        """Make ready for the receivers; the port at which they find this rank, 0 where they need none."""
        ...

    def join(self) -> None:
        """Wait for the receivers."""
        ...

    def send(self, bucket: Bucket) -> Handle | None:
        """Gather a bucket and send it; with `ipc`, where this GPU's copy lies."""
        ...

    def release(self) -> None:
        """Give memory back that only generators read; they have read all of it."""
        ...

    def close(self) -> None:
        """End the connections; `open` may follow."""
        ...


class GroupSender:
    """What `gloo` and `nccl` share: rank 0 serves the store at which the receivers meet it."""

    def __init__(self, weights: PolicyWeights, rank: int) -> None:
        self._weights = weights
        self._rank = rank
        self._roll: RollCall | None = None

    def open(self, address: str, members: Sequence[str], deadline_s: float) -> int:
        """Serve the store; the port at which it listens."""
        self.close()
        if self._rank != SENDER:
            return 0
        listener = listen(address)
        port = int(listener.getsockname()[1])
        self._roll = RollCall(Invitation(address, port, tuple(members), deadline_s), SENDER, listener)
        return port

    def release(self) -> None:
        """There is none: what was sent has arrived."""

    def close(self) -> None:
        """End the connections."""
        self._roll = None


def failure_of(call: Callable[..., object], *arguments: object) -> TimeoutError | RuntimeError | None:
    """What a call raised, if it failed as transports do."""
    try:
        call(*arguments)
    except (TimeoutError, RuntimeError) as failure:
        return failure
    return None
