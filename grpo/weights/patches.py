"""Sparse pushes: send only the elements whose bits changed since the last push. This module works for all transports.

At the learning rates of reinforcement learning, most updates are smaller than the distance between neighbouring
bfloat16 numbers. So about 99 % of the elements keep their bits (Miahi and Belilovsky 2026, arXiv:2602.03839;
SparseRL-Sync, arXiv:2605.07330; like this module, both papers send indices and values). A new value replaces the
old value, bit for bit. Changes are never added to old values, so rounding errors cannot add up. Learner and generators
keep a copy of the policy in host memory. Each tensor's changes are sent with a hash of the new tensor.

vLLM's own sparse patches (`vllm.model_executor.model_loader.checkpoint_weight_patch`) are written into the loaded model
with NaN for "unchanged". So these patches cannot set an element to NaN. These patches also do not change the linear
layers that vLLM packs on a CPU. So the receiver here builds whole tensors, and loads them as in a push of all elements.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from grpo.weights.buckets import Bucket, TensorInfo, file_header
from grpo.weights.source import PolicyWeights, gathered_together

# A flattened tensor is divided into spans of this number of elements. So the position of an element inside a span has
# 16 bits.
SPAN = 1 << 16
# Number of elements compared or written at a time. This number limits the extra memory.
_SLAB = 64 * SPAN
_BITS: dict[str, np.dtype[Any]] = {"float32": np.dtype("<u4"), "bfloat16": np.dtype("<u2")}
_COUNT, _POSITION = np.dtype("<u4"), np.dtype("<u2")
_NAMES = {"<u4": "U32", "<u2": "U16"}


class WeightsDiffer(RuntimeError):
    """A receiver's copy differs from the sender's copy; the message names the tensor."""


@dataclass(frozen=True, slots=True)
class Patch:
    """The changes of a flattened tensor of E elements.

    Attributes:
        counts_S: number of changed elements in each span of `SPAN` elements, uint32.
        positions_N: position of each changed element in its span, ascending, uint16.
        values_N: new bits of each changed element, uint16 or uint32.
    """

    counts_S: np.ndarray
    positions_N: np.ndarray
    values_N: np.ndarray

    def apply(self, bits_E: np.ndarray) -> None:
        """Write the new values into the tensor's bits.

        Raises:
            WeightsDiffer: the patch does not fit the tensor.
        """
        spans = -(-len(bits_E) // SPAN)
        changed = int(self.counts_S.sum())
        if len(self.counts_S) != spans or not changed == len(self.positions_N) == len(self.values_N):
            raise WeightsDiffer(f"{len(self.positions_N)} positions in {len(self.counts_S)} spans do not fit")
        first = 0
        for span in range(0, spans, _SLAB // SPAN):
            counts = self.counts_S[span : span + _SLAB // SPAN]
            last = first + int(counts.sum())
            starts = np.repeat(np.arange(len(counts)) * SPAN, counts)
            slab = bits_E[span * SPAN : span * SPAN + _SLAB]
            where = starts + self.positions_N[first:last]
            if len(where) and int(where.max()) >= len(slab):
                raise WeightsDiffer(f"a position is beyond its {len(bits_E)} elements")
            slab[where] = self.values_N[first:last]
            first = last


def difference(old_E: np.ndarray, new_E: np.ndarray) -> tuple[int, Patch | None]:
    """Return the number of changed elements and the patch; the patch is None if it is not smaller than the tensor.

    Args:
        old_E: old bits, uint16 or uint32, one-dimensional.
        new_E: new bits, uint16 or uint32, one-dimensional.
    """
    counts, positions, values = [], [], []
    total = 0
    size = -(-len(new_E) // SPAN) * _COUNT.itemsize
    for start in range(0, len(new_E), _SLAB):
        old, new = old_E[start : start + _SLAB], new_E[start : start + _SLAB]
        different = old != new
        changed = int(np.count_nonzero(different))
        total += changed
        size += changed * (_POSITION.itemsize + new_E.itemsize)
        if size < new_E.nbytes:
            where = np.flatnonzero(different)
            ends = np.searchsorted(where, np.arange(SPAN, len(new) + SPAN, SPAN))
            counts.append(np.diff(ends, prepend=0).astype(_COUNT))
            # The cast keeps the low 16 bits: the position inside the span.
            positions.append(where.astype(_POSITION))
            values.append(new[where])
        else:
            counts, positions, values = [], [], []
    if size >= new_E.nbytes:
        return total, None
    return total, Patch(np.concatenate(counts), np.concatenate(positions), np.concatenate(values))


@dataclass(slots=True)
class Pushed:
    """Totals of pushes: bytes that the learner sent, number of all elements, and number of changed elements.

    If the learner has no older copy of a tensor, all elements of the tensor count as changed.
    """

    nbytes: int = 0
    elements: int = 0
    changed: int = 0


class PatchWriter:
    """The learner's part. On rank 0, it keeps a CPU copy of each tensor as last sent, in the dtype of the push."""

    def __init__(self, weights: PolicyWeights, *, wanted: bool) -> None:
        """Begin with no copies, because nothing was sent yet.

        Args:
            weights: the policy.
            wanted: whether this rank writes files. Other ranks only take part in the gathering, and keep no copies.
        """
        self._weights = weights
        self._wanted = wanted
        self._sent: dict[str, np.ndarray] = {}
        self.pushed = Pushed()

    def forget(self) -> None:
        """Send every tensor whole in the next push, because a receiver missed the last push."""
        self._sent = {}

    def file(self, bucket: Bucket) -> np.ndarray | None:
        """Return a bucket's changes: the bytes of a safetensors file, uint8. Return None on ranks that do not write.

        The file contains either the whole tensor NAME under its name, or its changes as `NAME:counts`,
        `NAME:positions` and `NAME:values` (`Patch`). All ranks must call this together. Besides the policy and the
        copy, the call needs memory for the tensors that ZeRO-3 gathers, and for the file. Without its header, the file
        is no larger than the bucket.
        """
        arrays: list[tuple[str, np.ndarray]] = []
        hashes: dict[str, str] = {}
        for tensors in gathered_together(bucket.tensors, bucket.nbytes if self._weights.sharded else None):
            with self._weights.whole([tensor.name for tensor in tensors]) as whole:
                for info, tensor in zip(tensors, whole, strict=True):
                    if self._wanted:
                        arrays += self._changes(info, _bits_of(tensor))
                        hashes[info.name] = _hash(self._sent[info.name])
        if not self._wanted:
            return None
        described = [
            (info.name, info.dtype, list(info.shape), list(info.further_names), hashes[info.name])
            for info in bucket.tensors
        ]
        file = _safetensors(arrays, {"tensors": json.dumps(described)})
        self.pushed.nbytes += file.nbytes
        return file

    def _changes(self, info: TensorInfo, bits_E: np.ndarray) -> list[tuple[str, np.ndarray]]:
        sent = self._sent.get(info.name)
        self.pushed.elements += len(bits_E)
        if sent is None:
            self._sent[info.name] = bits_E.copy()
            self.pushed.changed += len(bits_E)
            return [(info.name, self._sent[info.name])]
        changed, patch = difference(sent, bits_E)
        self.pushed.changed += changed
        np.copyto(sent, bits_E)
        if patch is None:
            return [(info.name, sent)]
        parts = {"counts": patch.counts_S, "positions": patch.positions_N, "values": patch.values_N}
        return [(f"{info.name}:{part}", array) for part, array in parts.items()]


class PatchReader:
    """A generator's part: applies changes to a copy of every tensor. The first push fills the copies."""

    def __init__(self) -> None:
        self._copies: dict[str, np.ndarray] = {}

    def read(self, file: np.ndarray) -> list[tuple[TensorInfo, Tensor]]:
        """Return the bucket's updated tensors, in order. Do not change them, because they share memory with the copies.

        Args:
            file: bytes from `PatchWriter.file`, uint8.

        Raises:
            WeightsDiffer: a tensor differs from the sender's tensor.
        """
        arrays, metadata = _arrays(file)
        read = []
        for name, dtype, shape, further_names, expected in json.loads(metadata["tensors"]):
            info = TensorInfo(name, dtype, tuple(shape), tuple(further_names))
            copy = self._update(info, arrays)
            if _hash(copy) != expected:
                raise self._differs(name, "has another hash than the learner's tensor after its changes")
            signed = torch.from_numpy(copy.view(f"<i{copy.itemsize}"))
            read.append((info, signed.view(getattr(torch, dtype)).view(info.shape)))
        return read

    def _update(self, info: TensorInfo, arrays: dict[str, np.ndarray]) -> np.ndarray:
        """Update the generator's copy of a tensor, and return the copy."""
        name, bits = info.name, _BITS[info.dtype]
        copy = self._copies.get(name)
        if name in arrays:
            whole = arrays[name]
            if copy is None or len(copy) != len(whole):
                self._copies[name] = copy = np.empty(len(whole), dtype=bits)
            np.copyto(copy, whole)
        elif copy is None:
            raise self._differs(name, "was sent as changes, but this generator has no earlier copy of it")
        else:
            try:
                Patch(*(arrays[f"{name}:{part}"] for part in ("counts", "positions", "values"))).apply(copy)
            except WeightsDiffer as failure:
                raise self._differs(name, f"was sent with changes that do not fit it: {failure}") from failure
        return copy

    def _differs(self, name: str, how: str) -> WeightsDiffer:
        # Drop the wrong copies, so that the next push cannot apply changes to them.
        self._copies = {}
        return WeightsDiffer(
            f"{name} {how}: learner and generator do not hold the same weights any more. No completion was sampled "
            "from the wrong weights. Resume with resume=auto; if the error happens again, set weight_sync.sparse=false "
            "and report the error"
        )


def _bits_of(tensor: Tensor) -> np.ndarray:
    """Return a tensor's bits, [elements]. Do not change the result: it shares memory with a contiguous CPU tensor."""
    flat = tensor.detach().contiguous().reshape(-1).cpu()
    signed = {2: torch.int16, 4: torch.int32}[flat.element_size()]
    return flat.view(signed).numpy().view(f"<u{flat.element_size()}")


def _hash(bits_E: np.ndarray) -> str:
    """Return a hash of the bits. The hash detects mistakes, but does not stop an attacker."""
    # A learner that pushes whole tensors does not need the library.
    import xxhash

    return xxhash.xxh3_64_hexdigest(bits_E.data)


def _safetensors(arrays: Sequence[tuple[str, np.ndarray]], metadata: dict[str, str]) -> np.ndarray:
    """Return the bytes of a safetensors file with one-dimensional arrays, uint8."""
    parts = ((name, _NAMES[array.dtype.str], array.shape, array.nbytes) for name, array in arrays)
    begin = np.frombuffer(file_header(parts, metadata), dtype=np.uint8)
    return np.concatenate([begin, *(array.view(np.uint8) for _, array in arrays)])


def _arrays(file: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read the arrays and metadata of a safetensors file, without copying."""
    length = int.from_bytes(file[:8].tobytes(), "little")
    header = json.loads(file[8 : 8 + length].tobytes())
    metadata = header.pop("__metadata__")
    dtypes = {name: dtype for dtype, name in _NAMES.items()}
    arrays = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        part = file[8 + length + start : 8 + length + end]
        arrays[name] = part.view(np.dtype(dtypes[entry["dtype"]]))
    return arrays, metadata
