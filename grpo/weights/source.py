"""The policy's weights as a push reads them: whole tensors, gathered from ZeRO-3's shards a few at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor, nn

from grpo.policy.adapters import PolicyTensor, policy_tensors
from grpo.weights.buckets import Bucket, TensorInfo, cut, safetensors_header

# Of a bucket's bytes, how many are gathered at a time.
GATHERED_SHARE = 0.25

Gather = Callable[[list[nn.Parameter]], AbstractContextManager[None]]


class PolicyWeights:
    """Every tensor of a policy under its Hugging Face name, in the policy's dtype, adapters merged.

    Tied tensors come once for each of their names: vLLM on CPU keeps an output head of its own even where the
    configuration ties it.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, gather: Gather | None = None) -> None:
        """Read from `model`.

        Args:
            model: the policy.
            dtype: in which tensors travel.
            gather: inside what it returns, parameters are whole on every rank; all ranks must enter it alike. None
                where they always are whole.
        """
        self._model = model
        self._dtype = dtype
        self._gather = gather

    @property
    def sharded(self) -> bool:
        """Whether tensors must be gathered, by all ranks together."""
        return self._gather is not None

    def infos(self) -> list[TensorInfo]:
        """Name, dtype and whole shape of every tensor; nothing is gathered."""
        name = str(self._dtype).removeprefix("torch.")
        return [TensorInfo(one.name, name, _whole_shape(one.parameter)) for one in self._tensors().values()]

    @contextlib.contextmanager
    def whole(self, names: Sequence[str]) -> Iterator[list[Tensor]]:
        """Inside, these tensors are whole, on their device: the model's own where they need no change, so read only.

        All ranks must enter it together, with the same names.
        """
        known = self._tensors()
        wanted = [known[name] for name in names]
        # A tied tensor is gathered once.
        parts = list({id(part): part for one in wanted for part in one.parts}.values())
        with self._gather(parts) if self._gather else contextlib.nullcontext():
            yield [one.merged().to(self._dtype) for one in wanted]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Copies of all tensors on the CPU, one after the other. All ranks must iterate together."""
        for name in self._tensors():
            with self.whole([name]) as (tensor,):
                yield name, tensor.to(device="cpu", copy=True)

    def files(self, bucket_bytes: int, *, wanted: bool) -> Iterator[np.ndarray]:
        """The policy in buckets, each the bytes of a safetensors file, uint8; a bucket's memory is used for the next.

        All ranks must iterate together.

        Args:
            bucket_bytes: of one bucket, unless a single block is larger.
            wanted: this rank yields them; the others take part in the gathering and yield nothing.
        """
        buckets = cut(self.infos(), bucket_bytes)
        headers = [safetensors_header(bucket) for bucket in buckets]
        sizes = [len(header) + bucket.nbytes for header, bucket in zip(headers, buckets, strict=True)]
        memory = np.empty(max(sizes) if wanted else 0, dtype=np.uint8)
        for bucket, header, size in zip(buckets, headers, sizes, strict=True):
            if wanted:
                memory[: len(header)] = np.frombuffer(header, dtype=np.uint8)
            self._fill(torch.from_numpy(memory[len(header) :]) if wanted else None, bucket)
            if wanted:
                yield memory[:size]

    def _fill(self, target: Tensor | None, bucket: Bucket) -> None:
        """Copy a bucket's tensors into `target`, uint8, one right after the other."""
        position = 0
        for tensors in gathered_together(bucket.tensors, bucket.nbytes if self.sharded else None):
            with self.whole([tensor.name for tensor in tensors]) as found:
                for tensor in found if target is not None else ():
                    size = tensor.nbytes
                    assert target is not None
                    target[position : position + size].copy_(as_bytes(tensor))
                    position += size

    def _tensors(self) -> dict[str, PolicyTensor]:
        return {one.name: one for one in policy_tensors(self._model)}


def gathered_together(tensors: Sequence[TensorInfo], bucket_bytes: int | None) -> Iterator[list[TensorInfo]]:
    """Consecutive tensors that are whole at the same time: a share of the bucket's bytes, or one larger tensor.

    Args:
        tensors: of one bucket.
        bucket_bytes: of the bucket; None where nothing is gathered, and one lot will do.
    """
    limit = GATHERED_SHARE * bucket_bytes if bucket_bytes is not None else float("inf")
    lot: list[TensorInfo] = []
    for tensor in tensors:
        if lot and sum(one.nbytes for one in lot) + tensor.nbytes > limit:
            yield lot
            lot = []
        lot.append(tensor)
    if lot:
        yield lot


def as_bytes(tensor: Tensor) -> Tensor:
    """The tensor's bytes, uint8 [bytes]; a copy only where it is not contiguous."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _whole_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    # ds_shape is the whole shape of a parameter of which ZeRO-3 left an empty shell here.
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
