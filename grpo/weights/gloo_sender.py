"""The learner's sender for the transport over gloo."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor, distributed

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
        """Send a bucket's messages when all receivers are ready.

        With ZeRO-3, the first part of a bucket is gathered while the receivers load the bucket before it, and each
        further part while the part before it is sent. The call needs extra memory for two gathered parts, and for the
        messages of small tensors.

        Raises:
            TimeoutError: a receiver was not ready for the bucket or did not take all bytes within the deadline; the
                message names the receiver.
            RuntimeError: a connection broke, or `abort` ended the push.
        """
        if bucket.sparse:
            self._send_changes(bucket)
            return
        limit = GATHERED_SHARE * bucket.nbytes if self._weights.sharded else float("inf")
        transfer = _Transfer(self._group, bucket.number)
        with contextlib.closing(transfer):
            for run in runs(messages(bucket.tensors), limit):
                with contextlib.ExitStack() as gathered:
                    whole = self._weights.whole([tensor.name for message in run for tensor in message.tensors])
                    tensors = gathered.enter_context(whole)
                    parts = _parts(run, tensors) if self._group is not None else []
                    transfer.send(parts, gathered.pop_all())
        if transfer.failure is not None:
            raise transfer.failure
        if self._group is not None:
            self._group.sent(bucket.number)

    def _send_changes(self, bucket: Bucket) -> None:
        file = self._patches.file(bucket)
        if self._group is not None and file is not None:
            self._group.wait_for_receivers(bucket.number)
            size = torch.tensor([file.nbytes]).view(torch.uint8)
            self._group.finish_sending(self._group.start_sending([size, torch.from_numpy(file)]), bucket.number)
            self._group.sent(bucket.number)

    def close(self) -> None:
        """End the connections."""
        if self._group is not None:
            self._group.close()
        self._group = None
        super().close()


class _Transfer:
    """A bucket on its way, with at most two parts in memory.

    The other ranks wait for this rank in the gathering. So after a failure, this rank still gathers, and only keeps the
    failure. A rank without a group sends nothing, and releases gathered memory in the same order.
    """

    def __init__(self, group: GlooGroup | None, number: int) -> None:
        self.failure: TimeoutError | RuntimeError | None = None
        self._group = group
        self._number = number
        self._ready = False
        self._works: list[distributed.Work] = []
        self._memory = contextlib.ExitStack()

    def send(self, parts: Sequence[Tensor], memory: contextlib.ExitStack) -> None:
        """Start to send the next parts. Then finish the parts before them.

        Args:
            parts: bytes to send, uint8 on the CPU.
            memory: closed when these parts are sent.
        """
        works: list[distributed.Work] = []
        if self._group is not None and self.failure is None:
            if not self._ready:
                self.failure = failure_of(self._group.wait_for_receivers, self._number)
                self._ready = True
            if self.failure is None:
                try:
                    works = self._group.start_sending(parts)
                except RuntimeError as failure:
                    self.failure = failure
        self.close()
        self._works, self._memory = works, memory

    def close(self) -> None:
        """Wait until the last parts are sent, and release their memory."""
        if self._group is not None and self._works:
            self.failure = self.failure or failure_of(self._group.finish_sending, self._works, self._number)
        self._works = []
        self._memory.close()


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
