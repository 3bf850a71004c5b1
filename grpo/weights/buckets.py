"""The layout of a push: tensors, buckets, and each tensor's position in its bucket. Pure arithmetic.

Both ends of a push compute the same layout from the same announcement. So only names and shapes are announced.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Bytes: every tensor begins at a multiple of this, which suits all element types.
ALIGNMENT = 16
# Smaller tensors are collected into messages of about this size; a larger tensor is sent without a copy. No other size
# is faster over gloo than 4 MiB, and the newest message is still in the receiver's cache when it is loaded.
MESSAGE_BYTES = 4 << 20

ITEM_BYTES = {"float32": 4, "bfloat16": 2}
_SAFETENSORS_DTYPES = {"float32": "F32", "bfloat16": "BF16"}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of the policy, without its values.

    Attributes:
        name: name in Hugging Face format.
        dtype: torch's name of the element type in the push: `float32` or `bfloat16`.
        shape: shape of the whole tensor.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def block(self) -> str:
        """The tensor's block in a layer: `model.layers.0.self_attn` for its `q_proj.weight`."""
        return self.name.rsplit(".", 2)[0]


@dataclass(frozen=True, slots=True)
class Bucket:
    """Tensors that travel together. A generator gets this description first; the bytes come by the transport.

    Attributes:
        number: number that is unique among all buckets of a run; both ends of a transport use it to meet.
        tensors: the tensors, in their order in the bucket.
        handles: with `ipc`, handles of the GPU copies: [the GPU's identity, numbers and bytes] for each GPU.
        sparse: whether only the changes of the tensors travel (`grpo.weights.patches`).
    """

    number: int
    tensors: tuple[TensorInfo, ...]
    handles: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    sparse: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the bucket's tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def names(self) -> list[str]:
        """The names of the bucket's tensors."""
        return [tensor.name for tensor in self.tensors]

    def update_info(self) -> dict[str, Any]:
        """Return the bucket as plain lists and numbers, which vLLM can send to its workers."""
        info: dict[str, Any] = {
            "number": self.number,
            "names": self.names,
            "dtype_names": [tensor.dtype for tensor in self.tensors],
            "shapes": [list(tensor.shape) for tensor in self.tensors],
        }
        if self.sparse:
            info["sparse"] = True
        if self.handles:
            info["handles"] = [[gpu, list(handle)] for gpu, handle in self.handles]
        return info


@dataclass(frozen=True, slots=True)
class Message:
    """Consecutive tensors of a bucket that are sent in one piece.

    Attributes:
        tensors: the tensors, in order.
        starts: start of each tensor, in bytes from the bucket's beginning.
        start: start of the first tensor, in bytes from the bucket's beginning.
        end: end of the last tensor, in bytes from the bucket's beginning.
    """

    tensors: tuple[TensorInfo, ...]
    starts: tuple[int, ...]
    start: int
    end: int


def cut(tensors: Iterable[TensorInfo], bucket_bytes: int) -> list[Bucket]:
    """Cut the policy into buckets of at most `bucket_bytes`; a larger block becomes one bucket.

    A bucket ends only where a layer's block does (`self_attn`, `mlp`): vLLM fuses tensors of one block, and keeps
    the tensors of a block until the block is complete.
    """
    buckets: list[Bucket] = []
    current: list[TensorInfo] = []
    size = 0
    for block in _blocks(tensors):
        more = sum(tensor.nbytes for tensor in block)
        if current and size + more > bucket_bytes:
            buckets.append(Bucket(len(buckets), tuple(current)))
            current, size = [], 0
        current += block
        size += more
    if current:
        buckets.append(Bucket(len(buckets), tuple(current)))
    return buckets


def messages(tensors: Sequence[TensorInfo]) -> list[Message]:
    """Split a bucket into messages: one for each tensor of `MESSAGE_BYTES` or more; smaller tensors share a message."""
    complete: list[Message] = []
    run: list[tuple[TensorInfo, int]] = []
    position = 0

    def close() -> None:
        if run:
            last, start = run[-1]
            complete.append(Message(tuple(t for t, _ in run), tuple(s for _, s in run), run[0][1], start + last.nbytes))
            run.clear()

    for tensor in tensors:
        if tensor.nbytes >= MESSAGE_BYTES or (run and position + tensor.nbytes - run[0][1] > MESSAGE_BYTES):
            close()
        run.append((tensor, position))
        position += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        if tensor.nbytes >= MESSAGE_BYTES:
            close()
    close()
    return complete


def runs(all_messages: Sequence[Message], limit_bytes: float) -> Iterator[list[Message]]:
    """Group consecutive messages, at most `limit_bytes` together; a larger message is alone."""
    run: list[Message] = []
    for message in all_messages:
        if run and message.end - run[0].start > limit_bytes:
            yield run
            run = []
        run.append(message)
    if run:
        yield run


def safetensors_header(bucket: Bucket) -> bytes:
    """Return the header of the bucket's safetensors file; the tensors' bytes follow without gaps."""
    return file_header((info.name, _SAFETENSORS_DTYPES[info.dtype], info.shape, info.nbytes) for info in bucket.tensors)


def file_header(
    parts: Iterable[tuple[str, str, Sequence[int], int]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Return the header of a safetensors file.

    Args:
        parts: name, dtype in safetensors' notation, shape and size in bytes of each tensor, in the order of the file.
        metadata: texts by name, which the file also holds.
    """
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    position = 0
    for name, dtype, shape, nbytes in parts:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + nbytes]}
        position += nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    # The format requires data aligned to 8 bytes, and allows spaces after the JSON, so spaces fill the gap.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _blocks(tensors: Iterable[TensorInfo]) -> Iterator[list[TensorInfo]]:
    block: list[TensorInfo] = []
    for tensor in tensors:
        if block and tensor.block != block[0].block:
            yield block
            block = []
        block.append(tensor)
    if block:
        yield block
