"""The interface of the learner's senders, and the part that senders over a group share."""

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
        """Prepare for the receivers; return the port of this rank for them, or 0 if they need no port."""
        ...

    def join(self) -> None:
        """Wait for the receivers."""
        ...

    def send(self, bucket: Bucket) -> Handle | None:
        """Gather a bucket and send it; with `ipc`, return the handle of this GPU's copy."""
        ...

    def release(self) -> None:
        """Release memory that only generators read, after they have read all of it."""
        ...

    def close(self) -> None:
        """End the connections; `open` may follow."""
        ...


class GroupSender:
    """The common part of `gloo` and `nccl`: rank 0 serves the store where the receivers meet it."""

    def __init__(self, weights: PolicyWeights, rank: int) -> None:
        self._weights = weights
        self._rank = rank
        self._roll: RollCall | None = None

    def open(self, address: str, members: Sequence[str], deadline_s: float) -> int:
        """Serve the store on rank 0; return its port, or 0 on other ranks."""
        self.close()
        if self._rank != SENDER:
            return 0
        listener = listen(address)
        port = int(listener.getsockname()[1])
        self._roll = RollCall(Invitation(address, port, tuple(members), deadline_s), SENDER, listener)
        return port

    def release(self) -> None:
        """Do nothing: sent bytes have arrived, so generators read no memory of this rank."""

    def close(self) -> None:
        """End the connections."""
        self._roll = None


def failure_of(call: Callable[..., object], *arguments: object) -> TimeoutError | RuntimeError | None:
    """Call, and return the error of the transport; None if there is no error."""
    try:
        call(*arguments)
    except (TimeoutError, RuntimeError) as failure:
        return failure
    return None
