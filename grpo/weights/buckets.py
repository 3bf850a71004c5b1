"""The layout of a push: tensors, buckets, and each tensor's position in its bucket. Pure arithmetic.

Sender and receivers compute the same layout from the names, dtypes and shapes of a bucket's tensors. So the sender
announces only names, dtypes and shapes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Content = TypeVar("Content")

# Every tensor begins at a multiple of this number of bytes, which suits all element types.
ALIGNMENT = 16
# Tensors of fewer bytes than this are collected into messages of about this size. A larger tensor is sent without a
# copy. Over gloo, no other size is faster than 4 MiB. The receiver loads a message while its bytes are still in the
# CPU's cache.
MESSAGE_BYTES = 4 << 20

ITEM_BYTES = {"float32": 4, "bfloat16": 2}
# Key of a file's metadata.
_FURTHER = "further_names"
_SAFETENSORS_DTYPES = {"float32": "F32", "bfloat16": "BF16"}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of the policy, without its values.

    Attributes:
        name: name in Hugging Face format.
        dtype: torch's name of the element type in the push: `float32` or `bfloat16`.
        shape: shape of the whole tensor.
        further_names: other names of the same tensor, for example of an output head that is tied to the embeddings. The
            tensor travels once, and the receiver loads it under every name.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    further_names: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the tensor."""
        return (self.name, *self.further_names)

    @property
    def nbytes(self) -> int:
        """Number of bytes of the whole tensor."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def block(self) -> str:
        """The tensor's block in a layer, for example `model.layers.0.self_attn` for its `q_proj.weight`."""
        return self.name.rsplit(".", 2)[0]


@dataclass(frozen=True, slots=True)
class Bucket:
    """The description of tensors that are sent together. A generator gets the description before it gets the bytes.

    Attributes:
        number: number of the bucket, unique in a run. Members use the number to report for which bucket they
            are ready.
        tensors: the tensors, in their order in the bucket.
        handles: for the transport `ipc`: a handle of each GPU's copy. A handle has the GPU's identity, and numbers and
            bytes for CUDA.
        sparse: whether only the changes of the tensors are sent (`grpo.weights.patches`).
    """

    number: int
    tensors: tuple[TensorInfo, ...]
    handles: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    sparse: bool = False

    @property
    def nbytes(self) -> int:
        """Number of bytes of the bucket's tensors together."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def names(self) -> list[str]:
        """All names of the bucket's tensors. A tied tensor has several names."""
        return [name for tensor in self.tensors for name in tensor.names]

    @property
    def further_names(self) -> dict[str, list[str]]:
        """The further names of the tensors that have several names, by the first name."""
        return {tensor.name: list(tensor.further_names) for tensor in self.tensors if tensor.further_names}

    def update_info(self) -> dict[str, Any]:
        """Return the bucket as plain lists and numbers, which vLLM can send to its workers."""
        info: dict[str, Any] = {
            "number": self.number,
            "names": [tensor.name for tensor in self.tensors],
            "dtype_names": [tensor.dtype for tensor in self.tensors],
            "shapes": [list(tensor.shape) for tensor in self.tensors],
        }
        if self.further_names:
            info["further_names"] = self.further_names
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
    """Divide the policy into buckets of at most `bucket_bytes`. A block that is larger becomes one bucket.

    A bucket contains only whole blocks of a layer (`self_attn`, `mlp`), because vLLM fuses the tensors of a block, and
    keeps them until the block is complete.
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
    """Split a bucket into messages. Only tensors smaller than `MESSAGE_BYTES` share a message."""
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
    """Yield groups of consecutive messages, each of at most `limit_bytes`. A larger message has its own group."""
    run: list[Message] = []
    for message in all_messages:
        if run and message.end - run[0].start > limit_bytes:
            yield run
            run = []
        run.append(message)
    if run:
        yield run


def safetensors_header(bucket: Bucket) -> bytes:
    """Return the header of the bucket's safetensors file; the tensors' bytes follow without gaps.

    The format has one name for each tensor, so the metadata holds the further names (`further_names_in`).
    """
    further = bucket.further_names
    return file_header(
        ((info.name, _SAFETENSORS_DTYPES[info.dtype], info.shape, info.nbytes) for info in bucket.tensors),
        {_FURTHER: json.dumps(further)} if further else None,
    )


def further_names_in(metadata: Mapping[str, str] | None) -> dict[str, list[str]]:
    """Return `Bucket.further_names` from the metadata of the bucket's safetensors file."""
    names: dict[str, list[str]] = json.loads((metadata or {}).get(_FURTHER, "{}"))
    return names


def under_all_names(
    tensors: Iterable[tuple[str, Content]], further_names: Mapping[str, Sequence[str]]
) -> list[tuple[str, Content]]:
    """Return the tensors with each tensor under all of its names; see `Bucket.further_names`."""
    return [(each, tensor) for name, tensor in tensors for each in (name, *further_names.get(name, ()))]


def file_header(
    parts: Iterable[tuple[str, str, Sequence[int], int]], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Return the header of a safetensors file.

    Args:
        parts: (name, dtype in safetensors' notation, shape, size in bytes) of each tensor, in the order of the file.
        metadata: further texts for the header, by their names.
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
