"""The learner's sender for the transport over gloo."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from grpo.weights.buckets import Bucket, Message, messages, runs
from grpo.weights.group import GlooGroup
from grpo.weights.patches import PatchWriter
from grpo.weights.sender import GroupSender, failure_of
from grpo.weights.source import GATHERED_SHARE, PolicyWeights, as_bytes


class GlooSender(GroupSender):
    """Sends buckets over TCP, from host memory."""

    _group: GlooGroup | None = None

    def __init__(self, weights: PolicyWeights, rank: int, patches: PatchWriter) -> None:
        super().__init__(weights, rank)
        self._patches = patches

    def join(self) -> None:
        """Wait for the receivers.

        Raises:
            TimeoutError: a receiver did not connect; the message names the missing receivers.
        """
        # A new receiver may have missed earlier pushes, so the next push must be whole.
        self._patches.forget()
        if self._roll is not None:
            self._group = GlooGroup(self._roll)

    def send(self, bucket: Bucket) -> None:
        """Send a bucket's messages.

        The call needs extra memory for the tensors that ZeRO-3 gathers, and for the messages of small tensors.

        Raises:
            TimeoutError: a receiver was not ready for the bucket or did not take all bytes within the deadline; the
                message names the receiver.
            RuntimeError: a connection broke.
        """
        if bucket.sparse:
            self._send_changes(bucket)
            return
        group, failure = self._group, None
        if group is not None:
            failure = failure_of(group.wait_for_receivers, bucket.number)
        limit = GATHERED_SHARE * bucket.nbytes if self._weights.sharded else float("inf")
        for run in runs(messages(bucket.tensors), limit):
            with self._weights.whole([tensor.name for message in run for tensor in message.tensors]) as tensors:
                # The other ranks wait for this rank in the gathering, so after a failure this rank still gathers.
                if group is not None and failure is None:
                    failure = failure_of(group.send, bucket.number, _parts(run, tensors))
        if failure is not None:
            raise failure
        if group is not None:
            group.sent(bucket.number)

    def _send_changes(self, bucket: Bucket) -> None:
        file = self._patches.file(bucket)
        if self._group is not None and file is not None:
            self._group.wait_for_receivers(bucket.number)
            size = torch.tensor([file.nbytes]).view(torch.uint8)
            self._group.send(bucket.number, [size, torch.from_numpy(file)])
            self._group.sent(bucket.number)

    def close(self) -> None:
        """End the connections."""
        if self._group is not None:
            self._group.close()
        self._group = None
        super().close()


def _parts(run: Sequence[Message], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return each message's bytes, uint8 on the CPU. Small tensors are copied together into the memory of a message."""
    parts, following = [], iter(tensors)
    for message in run:
        if len(message.tensors) == 1:
            parts.append(as_bytes(next(following)).cpu())
            continue
        part = torch.zeros(message.end - message.start, dtype=torch.uint8)
        for start, info in zip(message.starts, message.tensors, strict=True):
            offset = start - message.start
            part[offset : offset + info.nbytes].copy_(as_bytes(next(following)))
        parts.append(part)
    return parts
