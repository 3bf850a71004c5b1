"""Where the weights leave a rank of the learner: as files for Ray's object store, or through a sender past it."""

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
    """One rank's end of all pushes. Every rank takes part in the gathering; rank 0 alone yields files."""

    def __init__(self, weights: PolicyWeights, rank: int, address: str) -> None:
        """Nothing is sent yet.

        Args:
            weights: the policy's tensors.
            rank: number of this rank.
            address: IP address at which generators find rank 0.
        """
        self._weights = weights
        self._rank = rank
        self._address = address
        self._patches = PatchWriter(weights, wanted=rank == 0)
        self._sender: Sender | None = None

    def tensors(self) -> list[TensorInfo]:
        """Name, dtype and whole shape of every tensor, tied ones under each of their names."""
        return self._weights.infos()

    def files(self, bucket_bytes: int) -> Iterator[np.ndarray]:
        """The policy in pieces of at most `bucket_bytes`: uint8 arrays, each the bytes of a safetensors file.

        A piece's memory is used again for the next one. A piece ends only where a layer's block does (`self_attn`,
        `mlp`), and is as large as that where a block is larger.
        """
        return self._weights.files(bucket_bytes, wanted=self._rank == 0)

    @torch.no_grad()
    def changes(self, bucket_bytes: int, *, whole: bool) -> Iterator[np.ndarray]:
        """Likewise, of each tensor only what changed since the last time (`PatchWriter.file`).

        Args:
            bucket_bytes: size of the whole tensors of one piece.
            whole: send all, as some generator has not got what came the last time.
        """
        if whole:
            self._patches.forget()
        for bucket in cut(self.tensors(), bucket_bytes):
            file = self._patches.file(bucket)
            if file is not None:
                yield file

    def take_pushed(self) -> Pushed:
        """What sparse pushes have carried since the last call."""
        pushed, self._patches.pushed = self._patches.pushed, Pushed()
        return pushed

    def open(self, transport: GroupTransport, members: Sequence[str], deadline_s: float) -> tuple[str, int]:
        """Make ready to send buckets to generators: the address and port at which they find rank 0 (`Sender.open`)."""
        if self._sender is None:
            self._sender = make_sender(transport, self._weights, self._rank, self._patches)
        return self._address, self._sender.open(self._address, members, deadline_s)

    def join(self) -> None:
        """Wait for the generators that were told of this rank."""
        assert self._sender is not None
        self._sender.join()

    @torch.no_grad()
    def send(self, bucket: Bucket) -> Handle | None:
        """Gather a bucket, all ranks together, and send it to the generators (`Sender.send`)."""
        assert self._sender is not None
        return self._sender.send(bucket)

    def release(self) -> None:
        """Give back memory that only generators read; they have loaded all that was sent."""
        if self._sender is not None:
            self._sender.release()
