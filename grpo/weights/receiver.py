"""A generator's part of a push over gloo. This module does not use vLLM: the caller passes the loading function."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from grpo.weights.buckets import Bucket, Message, messages
from grpo.weights.group import GlooGroup
from grpo.weights.patches import PatchReader


class BucketReceiver:
    """Receives buckets over gloo, and passes their tensors in order to a loading function."""

    def __init__(self, group: GlooGroup) -> None:
        self._group = group
        self._memory = _Memory()
        self._patches = PatchReader()

    def receive(self, bucket: Bucket, load: Callable[[list[tuple[str, Tensor]]], object]) -> None:
        """Receive a bucket. Call `load` for each block in order, while later blocks still arrive.

        Raises:
            TimeoutError: the bucket did not arrive within the deadline.
            RuntimeError: the connection broke.
            WeightsDiffer: after the changes of a sparse push are applied, a tensor differs from the sender's tensor.
        """
        if bucket.sparse:
            self._receive_changes(bucket, load)
            return
        expected = messages(bucket.tensors)
        parts = self._memory.parts(expected)
        self._group.arrive(bucket.number)
        works = self._group.start_receiving([torch.from_numpy(part) for part in parts])
        block: list[tuple[str, Tensor]] = []
        block_name = ""
        for message, part, work in zip(expected, parts, works, strict=True):
            self._group.finish_receiving(work, bucket.number)
            for start, info in zip(message.starts, message.tensors, strict=True):
                if block and info.block != block_name:
                    load(block)
                    block = []
                block_name = info.block
                offset = start - message.start
                tensor = torch.from_numpy(part[offset : offset + info.nbytes])
                whole = tensor.view(getattr(torch, info.dtype)).view(info.shape)
                block += [(name, whole) for name in info.names]
        load(block)

    def _receive_changes(self, bucket: Bucket, load: Callable[[list[tuple[str, Tensor]]], object]) -> None:
        self._group.arrive(bucket.number)
        size = torch.zeros(8, dtype=torch.uint8)
        self._receive_all(size, bucket.number)
        file = torch.empty(int(size.view(torch.int64)), dtype=torch.uint8)
        self._receive_all(file, bucket.number)
        tensors = self._patches.read(file.numpy())
        for _, block in itertools.groupby(tensors, lambda pair: pair[0].block):
            load([(name, tensor) for info, tensor in block for name in info.names])

    def _receive_all(self, memory: Tensor, number: int) -> None:
        (work,) = self._group.start_receiving([memory])
        self._group.finish_receiving(work, number)

    def close(self) -> None:
        """Release the memory and the connections."""
        self._memory = _Memory()
        self._patches = PatchReader()
        self._group.close()


class _Memory:
    """Memory for a bucket. The next bucket reuses this memory unless other code still holds a tensor in it."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, dtype=np.uint8)

    def parts(self, expected: Sequence[Message]) -> list[np.ndarray]:
        """Return memory for each message."""
        needed = expected[-1].end
        if len(self._bytes) < needed or not self._free():
            self._bytes = np.empty(needed, dtype=np.uint8)
        return [self._bytes[message.start : message.end] for message in expected]

    def _free(self) -> bool:
        # Every array or tensor that uses this memory holds a reference to the memory. This object and the call below
        # hold one reference each. vLLM keeps the tensors of a layer until the layer is complete. Gloo's thread also
        # holds a reference and releases it a moment later, so try several times.
        for _ in range(10):
            if sys.getrefcount(self._bytes) <= 2:
                return True
            time.sleep(0.001)
        return False
