"""Send the weights of a learner rank: as files for Ray's object store, or through the sender of another transport."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from grpo.weights.buckets import Bucket, TensorInfo, cut
from grpo.weights.patches import PatchWriter, Pushed
from grpo.weights.sender import GroupTransport, Handle, Sender
from grpo.weights.senders import make_sender
from grpo.weights.source import PolicyWeights


class WeightOutlet:
    """A learner rank's part in all pushes. Every rank takes part in the gathering, but only rank 0 yields files."""

    def __init__(self, weights: PolicyWeights, rank: int, address: str) -> None:
        """Begin without connections; `open` makes a sender.

        Args:
            weights: the policy's tensors.
            rank: number of this rank.
            address: IP address at which the generators reach rank 0.
        """
        self._weights = weights
        self._rank = rank
        self._address = address
        self._patches = PatchWriter(weights, wanted=rank == 0)
        self._sender: Sender | None = None

    def tensors(self) -> list[TensorInfo]:
        """Return the names, dtype and whole shape of every tensor. A tied tensor is listed once, with all its names."""
        return self._weights.infos()

    def files(self, bucket_bytes: int) -> Iterator[np.ndarray]:
        """Yield the policy in buckets of at most `bucket_bytes` (`PolicyWeights.files`)."""
        return self._weights.files(bucket_bytes, wanted=self._rank == 0)

    @torch.no_grad()
    def changes(self, bucket_bytes: int, *, whole: bool) -> Iterator[np.ndarray]:
        """Yield the changes since the last push, in buckets (`PatchWriter.file`).

        Args:
            bucket_bytes: maximum size of the whole tensors of a bucket, in bytes.
            whole: True to send all elements, because a generator missed the last push.
        """
        if whole:
            self._patches.forget()
        for bucket in cut(self.tensors(), bucket_bytes):
            file = self._patches.file(bucket)
            if file is not None:
                yield file

    def take_pushed(self) -> Pushed:
        """Return the totals of sparse pushes since the last call."""
        pushed, self._patches.pushed = self._patches.pushed, Pushed()
        return pushed

    def open(self, transport: GroupTransport, members: Sequence[str], deadline_s: float) -> tuple[str, int]:
        """Prepare to send buckets; return the address and port at which generators connect (`Sender.open`)."""
        if self._sender is None:
            self._sender = make_sender(transport, self._weights, self._rank, self._patches)
        return self._address, self._sender.open(self._address, members, deadline_s)

    def join(self) -> None:
        """Wait for the invited generators."""
        assert self._sender is not None
        self._sender.join()

    @torch.no_grad()
    def send(self, bucket: Bucket) -> Handle | None:
        """Gather a bucket and send it to the generators (`Sender.send`). All ranks must call this together."""
        assert self._sender is not None
        return self._sender.send(bucket)

    def abort(self, reason: str) -> None:
        """End a push that waits for a lost generator (`Sender.abort`). Another thread may call this."""
        if self._sender is not None:
            self._sender.abort(reason)

    def release(self) -> None:
        """Release memory that only generators read. Call this after the generators have loaded all buckets."""
        if self._sender is not None:
            self._sender.release()
