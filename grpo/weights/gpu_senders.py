"""The learner's senders for the transports between GPUs. They have not run on a GPU yet."""

from __future__ import annotations

import collections
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor
from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator

from grpo.weights.buckets import Bucket
from grpo.weights.group import RollCall
from grpo.weights.nccl import nccl_communicator
from grpo.weights.sender import GroupSender, Handle
from grpo.weights.source import PolicyWeights, as_bytes, gathered_together

_POLL_S = 0.001


class NcclSender(GroupSender):
    """Broadcasts packed buckets between GPUs, from the learner's rank 0 to vLLM's receiving engine."""

    _communicator: PyNcclCommunicator | None = None

    def join(self) -> None:
        """Wait for the receivers.

        Raises:
            TimeoutError: a receiver did not connect; the message names the missing receivers.
        """
        if self._roll is not None:
            self._communicator = nccl_communicator(self._roll, torch.device("cuda", torch.cuda.current_device()))

    def send(self, bucket: Bucket) -> None:
        """Pack a bucket, and broadcast it when all receivers are ready.

        Receivers are ready after they have loaded the bucket before this one. So packing overlaps with that loading.

        Raises:
            TimeoutError: a receiver was not ready for the bucket or did not receive all of the bucket within the
                deadline; the message names the receiver.
            RuntimeError: `abort` ended the push.
        """
        roll, communicator = self._roll, self._communicator
        packed = pack(self._weights, bucket, wanted=roll is not None)
        if roll is not None and communicator is not None and packed is not None:
            what = f"bucket {bucket.number} of the weights cannot be sent until all members are ready"
            roll.wait_for_others(f"bucket {bucket.number}", what)
            try:
                communicator.broadcast(packed, src=0, stream=torch.cuda.current_stream())
            except RuntimeError as failure:
                # A call into NCCL that waits for a lost receiver fails when another thread aborts the communicator.
                if roll.ended is None:
                    raise
                raise RuntimeError(roll.ended) from failure
            _wait_for_stream(roll, bucket.number)
            roll.forget(f"bucket {bucket.number}")

    def abort(self, reason: str) -> None:
        """End a wait for receivers, and a broadcast that a lost receiver does not take.

        NCCL allows another thread to abort a communicator. The GPU's part of the broadcast then ends.
        """
        super().abort(reason)
        if self._communicator is not None:
            self._communicator.destroy()

    def close(self) -> None:
        """End the connections."""
        if self._communicator is not None:
            self._communicator.destroy()
        self._communicator = None
        super().close()


class IpcSender:
    """Shares buckets within a GPU: a rank packs a bucket in GPU memory, and the generator on that GPU opens it."""

    def __init__(self, weights: PolicyWeights, rank: int) -> None:
        self._weights = weights
        self._rank = rank
        # The buckets that a generator may still read.
        self._read: collections.deque[Tensor] = collections.deque()

    def open(self, address: str, members: Sequence[str], deadline_s: float) -> int:
        """Return 0, because shared memory needs no port."""
        return 0

    def join(self) -> None:
        """Do nothing, because no receiver has to connect."""

    def send(self, bucket: Bucket) -> Handle:
        """Pack a bucket while generators load the bucket before it; return the handle of the packed memory."""
        # Bucket n + 2 is packed only after all generators have loaded bucket n, so the memory of bucket n is free.
        while len(self._read) > 1:
            self._read.popleft()
        torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]
        packed = pack(self._weights, bucket, wanted=True)
        assert packed is not None
        torch.cuda.current_stream().synchronize()
        self._read.append(packed)
        _, arguments = reduce_tensor(packed)  # type: ignore[no-untyped-call]
        # The receiver knows the tensor class, shape, strides, storage class and dtype, so they are not sent. The other
        # arguments are numbers and bytes, which reach vLLM's workers without pickling.
        handle: tuple[Any, ...] = tuple(arguments[6:])
        return str(torch.cuda.get_device_properties(packed.device).uuid), handle

    def release(self) -> None:
        """Release the buckets' memory."""
        self._read.clear()
        torch.cuda.ipc_collect()  # type: ignore[no-untyped-call]

    def abort(self, reason: str) -> None:
        """Do nothing, because this sender waits for no receiver."""

    def close(self) -> None:
        """Release the buckets' memory. There is no connection to end."""
        self.release()


def pack(weights: PolicyWeights, bucket: Bucket, *, wanted: bool) -> Tensor | None:
    """Pack a bucket's bytes on the current GPU, uint8, without gaps. vLLM expects this layout.

    Args:
        weights: the policy's weights.
        bucket: bucket to pack.
        wanted: whether this rank packs the bytes. A rank that does not pack them only takes part in the gathering.
    """
    packed = torch.empty(bucket.nbytes, dtype=torch.uint8, device="cuda") if wanted else None
    position = 0
    for tensors in gathered_together(bucket.tensors, bucket.nbytes if weights.sharded else None):
        with weights.whole([tensor.name for tensor in tensors]) as whole_tensors:
            for tensor in whole_tensors if packed is not None else ():
                assert packed is not None
                packed[position : position + tensor.nbytes].copy_(as_bytes(tensor))
                position += tensor.nbytes
    return packed


def _wait_for_stream(roll: RollCall, number: int) -> None:
    """Wait for the broadcast on the current stream, with a deadline, because the stream itself has no deadline."""
    event: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    ends = time.monotonic() + roll.deadline_s
    while not event.query():
        roll.check()
        if time.monotonic() > ends:
            raise TimeoutError(
                f"NCCL did not carry bucket {number} of weights within weight_sync.deadline_s={roll.deadline_s:.0f}; "
                "all members were ready, so either a member has stopped after that, or the network is too slow for the "
                "deadline: "
                f"{', '.join(roll.members)}"
            )
        time.sleep(_POLL_S)
    # After an abort, the stream ends too, but the receivers do not have the bytes.
    roll.check()
