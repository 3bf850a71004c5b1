"""What travels in a push: which tensors, in which buckets, and where each lies in its bucket. Pure arithmetic.

Both ends of a push compute the same layout from the same announcement, so that only names and shapes need telling.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Tensors begin where any element type may begin.
ALIGNMENT = 16
# Smaller tensors are collected into messages of about this size; larger ones are sent from where they lie. Messages of
# 4 MiB are as fast over gloo as any, and what came last is still in the receiver's cache when it is loaded.
MESSAGE_BYTES = 4 << 20

ITEM_BYTES = {"float32": 4, "bfloat16": 2}
_SAFETENSORS_DTYPES = {"float32": "F32", "bfloat16": "BF16"}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of the policy, without its values.

    Attributes:
        name: in Hugging Face format.
        dtype: torch's name of it, as it travels: `float32` or `bfloat16`.
        shape: of the whole tensor.
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
        """The block of a layer that it belongs to: `model.layers.0.self_attn` for its `q_proj.weight`."""
        return self.name.rsplit(".", 2)[0]


@dataclass(frozen=True, slots=True)
class Bucket:
    """Tensors that travel together; what a generator is told before their bytes come another way.

    Attributes:
        number: unique among all buckets of a run; the ends of a transport meet under it.
        tensors: in the order in which they lie in the bucket.
        handles: with `ipc`, where each GPU's copy lies: [the GPU's identity, numbers and bytes] for each GPU.
        sparse: only what changed of them travels (`grpo.weights.patches`).
    """

    number: int
    tensors: tuple[TensorInfo, ...]
    handles: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    sparse: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def names(self) -> list[str]:
        """Its tensors' names."""
        return [tensor.name for tensor in self.tensors]

    def update_info(self) -> dict[str, Any]:
        """The same as plain lists and numbers, which vLLM carries to its workers."""
        told: dict[str, Any] = {
            "number": self.number,
            "names": self.names,
            "dtype_names": [tensor.dtype for tensor in self.tensors],
            "shapes": [list(tensor.shape) for tensor in self.tensors],
        }
        if self.sparse:
            told["sparse"] = True
        if self.handles:
            told["handles"] = [[gpu, list(handle)] for gpu, handle in self.handles]
        return told


@dataclass(frozen=True, slots=True)
class Message:
    """A run of a bucket's tensors that is sent in one piece.

    Attributes:
        tensors: in order.
        starts: where each begins, in bytes from the bucket's beginning.
        start: where the first one begins.
        end: where the last one ends.
    """

    tensors: tuple[TensorInfo, ...]
    starts: tuple[int, ...]
    start: int
    end: int


def cut(tensors: Iterable[TensorInfo], bucket_bytes: int, first_number: int = 0) -> list[Bucket]:
    """The policy in buckets of at most `bucket_bytes`, or of one block where a block is larger.

    A bucket ends only where a layer's block does (`self_attn`, `mlp`): vLLM fuses tensors of one block, and holds on to
    those that have come until all are there.
    """
    buckets: list[Bucket] = []
    current: list[TensorInfo] = []
    size = 0
    for block in _blocks(tensors):
        more = sum(tensor.nbytes for tensor in block)
        if current and size + more > bucket_bytes:
            buckets.append(Bucket(first_number + len(buckets), tuple(current)))
            current, size = [], 0
        current += block
        size += more
    if current:
        buckets.append(Bucket(first_number + len(buckets), tuple(current)))
    return buckets


def messages(tensors: Sequence[TensorInfo]) -> list[Message]:
    """A bucket's messages: a tensor of `MESSAGE_BYTES` or more is one, smaller ones are collected until they are it."""
    found: list[Message] = []
    run: list[tuple[TensorInfo, int]] = []
    position = 0

    def close() -> None:
        if run:
            last, start = run[-1]
            found.append(Message(tuple(t for t, _ in run), tuple(s for _, s in run), run[0][1], start + last.nbytes))
            run.clear()

    for tensor in tensors:
        if tensor.nbytes >= MESSAGE_BYTES or (run and position + tensor.nbytes - run[0][1] > MESSAGE_BYTES):
            close()
        run.append((tensor, position))
        position += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        if tensor.nbytes >= MESSAGE_BYTES:
            close()
    close()
    return found


def runs(found: Sequence[Message], limit_bytes: float) -> Iterator[list[Message]]:
    """Consecutive messages of at most `limit_bytes` together, or one where it is larger."""
    run: list[Message] = []
    for message in found:
        if run and message.end - run[0].start > limit_bytes:
            yield run
            run = []
        run.append(message)
    if run:
        yield run


def safetensors_header(bucket: Bucket) -> bytes:
    """What a safetensors file of the bucket begins with; the tensors' bytes follow, one right after the other."""
    return file_header((info.name, _SAFETENSORS_DTYPES[info.dtype], info.shape, info.nbytes) for info in bucket.tensors)


def file_header(
    parts: Iterable[tuple[str, str, Sequence[int], int]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """What a safetensors file begins with.

    Args:
        parts: name, dtype in safetensors' words, shape and bytes of each tensor, in the order of the file.
        metadata: named texts that the file carries as well.
    """
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    position = 0
    for name, dtype, shape, nbytes in parts:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + nbytes]}
        position += nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    # The format wants the data aligned to 8 bytes; spaces after the JSON are allowed for it.
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
