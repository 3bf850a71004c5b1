"""Read the policy's weights for a push, as whole tensors. With ZeRO-3, a few tensors at a time are gathered."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor, nn

from grpo.policy.adapters import PolicyTensor, policy_tensors
from grpo.weights.buckets import Bucket, TensorInfo, cut, safetensors_header

# Share of a bucket's bytes that is gathered at a time.
GATHERED_SHARE = 0.25

Gather = Callable[[list[nn.Parameter]], AbstractContextManager[None]]


class PolicyWeights:
    """Every tensor of a policy, by its Hugging Face name, in the dtype of the push, with the adapters merged.

    A tied tensor travels once, with all of its names. On a CPU, vLLM keeps a separate output head even if the
    configuration ties the head to the embeddings, so a receiver loads the tensor under every name.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, gather: Gather | None = None) -> None:
        """Read from `model`.

        Args:
            model: the policy.
            dtype: element type of the tensors in a push.
            gather: function that takes parameters and returns a context. Inside the context, these parameters are
                whole on every rank. All ranks must enter the context together. None if parameters are always whole.
        """
        self._model = model
        self._dtype = dtype
        self._gather = gather

    @property
    def sharded(self) -> bool:
        """Whether tensors must be gathered, by all ranks together."""
        return self._gather is not None

    def infos(self) -> list[TensorInfo]:
        """Return the names, dtype and whole shape of every tensor. This gathers no tensors."""
        dtype = str(self._dtype).removeprefix("torch.")
        same: dict[tuple[int, ...], list[PolicyTensor]] = {}
        for tensor in self._tensors().values():
            # Two names of one parameter are one tensor, unless adapters change them in different ways.
            same.setdefault(tuple(id(part) for part in tensor.parts), []).append(tensor)
        return [
            TensorInfo(first.name, dtype, _whole_shape(first.parameter), tuple(other.name for other in others))
            for first, *others in same.values()
        ]

    @contextlib.contextmanager
    def whole(self, names: Sequence[str]) -> Iterator[list[Tensor]]:
        """Yield whole tensors on the model's device. Do not change them, because they may share the model's memory.

        All ranks must enter the context together, with the same names.
        """
        known = self._tensors()
        wanted = [known[name] for name in names]
        # A tied tensor is gathered once.
        parts = list({id(part): part for tensor in wanted for part in tensor.parts}.values())
        with self._gather(parts) if self._gather else contextlib.nullcontext():
            yield [tensor.merged().to(self._dtype) for tensor in wanted]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield copies of all tensors on the CPU, one after the other. All ranks must iterate together."""
        for name in self._tensors():
            with self.whole([name]) as (tensor,):
                yield name, tensor.to(device="cpu", copy=True)

    def files(self, bucket_bytes: int, *, wanted: bool) -> Iterator[np.ndarray]:
        """Yield the policy in buckets: the bytes of safetensors files, uint8. Each bucket overwrites the one before it.

        All ranks must iterate together.

        Args:
            bucket_bytes: maximum size of a bucket, in bytes. A block of tensors that is larger becomes one bucket.
            wanted: whether this rank yields buckets. Other ranks only take part in the gathering.
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
        """Copy a bucket's tensors into `target`, uint8, without gaps. If `target` is None, only gather the tensors."""
        position = 0
        for tensors in gathered_together(bucket.tensors, bucket.nbytes if self.sharded else None):
            with self.whole([tensor.name for tensor in tensors]) as whole_tensors:
                for tensor in whole_tensors if target is not None else ():
                    size = tensor.nbytes
                    assert target is not None
                    target[position : position + size].copy_(as_bytes(tensor))
                    position += size

    def _tensors(self) -> dict[str, PolicyTensor]:
        return {tensor.name: tensor for tensor in policy_tensors(self._model)}


def gathered_together(tensors: Sequence[TensorInfo], bucket_bytes: int | None) -> Iterator[list[TensorInfo]]:
    """Yield lists of consecutive tensors to gather together.

    A list has at most `GATHERED_SHARE` of the bucket's bytes. A tensor that is larger has its own list.

    Args:
        tensors: the tensors of one bucket.
        bucket_bytes: size of the bucket, in bytes. None if no gathering is needed; one list then has all tensors.
    """
    limit = GATHERED_SHARE * bucket_bytes if bucket_bytes is not None else float("inf")
    lot: list[TensorInfo] = []
    for tensor in tensors:
        if lot and sum(info.nbytes for info in lot) + tensor.nbytes > limit:
            yield lot
            lot = []
        lot.append(tensor)
    if lot:
        yield lot


def as_bytes(tensor: Tensor) -> Tensor:
    """Return the tensor's bytes, uint8 [bytes]. The bytes are copied only if the tensor is not contiguous."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _whole_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    # With ZeRO-3, the parameter on this rank is empty, and its attribute ds_shape holds the whole shape.
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
